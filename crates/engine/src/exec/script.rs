//! The statements of a request, one after another.

use std::sync::atomic::Ordering;

use crate::{
    buffer::{Buffer, Kept},
    commit::CommitError,
    duck::{DuckError, ErrorKind, Prepared},
    failure::Failure,
    format::{Columns, Encoder, Options},
    params,
    queries::{Query, Reason},
    replay::{self, Refusal, bulk},
    session,
    sql::{Kind, Statement, gate, lexer::TokenKind},
    wal::Names,
    wire::{Code, Point, Role},
    writers::{NotEntered, WriterPass},
};

use super::{Engine, Reply, Request, keyed};

/// Stands for the result of a script that has none, as DuckDB itself says it.
const NO_RESULT: &str = "SELECT true AS Success WHERE false";

/// What of a request is in effect.
#[derive(Default)]
pub(super) struct Progress {
    /// Statements whose effects stay.
    pub committed: usize,
    /// The last commit that changed the mart.
    pub commit: Option<Point>,
}

/// An answer that was kept until its commit.
pub(super) struct Outcome {
    pub kept: Kept,
    pub content_type: String,
    pub replayed: bool,
}

/// A request on its connection.
pub(super) struct Run<'a> {
    pub engine: &'a Engine,
    pub query: &'a Query,
    pub kept: &'a mut session::Kept,
    pub request: &'a Request,
    pub progress: &'a mut Progress,
    /// Held while a transaction is open.
    pub pass: Option<WriterPass<'a>>,
    /// Statements of the open transaction.
    pub open: usize,
    /// The open transaction changes the catalog; so many statements may hide a write in it.
    pub ddl: Option<usize>,
    /// What the open transaction made and dropped so far.
    pub names: Names,
}

impl<'a> Run<'a> {
    /// Runs the request if the gate lets it pass.
    pub fn checked(&mut self, reply: &mut Option<Reply>) -> Result<Option<Outcome>, Failure> {
        let request = self.request;
        let statements = gate::check(&request.sql, request.role)?;
        if statements.is_empty() {
            return Err(Failure::new(Code::Invalid, "the request holds no statement").hint("put one into `sql`"));
        }
        if let Some(view) = &self.engine.view {
            view.check(&request.sql, &statements)?;
        }
        self.script(&statements, reply)
    }

    /// Runs all; `None` if the last statement's answer was streamed.
    fn script(&mut self, statements: &[Statement<'_>], reply: &mut Option<Reply>) -> Result<Option<Outcome>, Failure> {
        self.check_parameters(statements)?;
        let reads = self.engine.view.is_some() || statements.iter().all(|statement| statement.kind.is_read());
        if let (Some(key), false) = (&self.request.key, reads) {
            return keyed::run(self, key, statements).map(Some);
        }
        let answer_at = answering(statements);
        let mut answer = None;
        for (index, statement) in statements.iter().enumerate() {
            let place = |failure: Failure| if statements.len() > 1 { failure.at(index) } else { failure };
            if let Some(reason) = self.query.reason() {
                return Err(place(reason.into()));
            }
            let answers = answer_at == Some(index);
            if answers && index + 1 == statements.len() && statement.kind.is_read() && !self.kept.in_transaction() {
                return self.stream(statement, reply).map_err(place);
            }
            let kept = self.statement(statement, answers).map_err(place)?;
            answer = kept.or(answer);
        }
        if self.kept.in_transaction() {
            let failure = Failure::new(Code::Invalid, "the script leaves a transaction open; it was rolled back");
            return Err(failure.hint("end it with COMMIT").at(statements.len() - 1));
        }
        let kept = match answer {
            Some(kept) => kept,
            None => self.collect(NO_RESULT, false)?,
        };
        Ok(Some(self.outcome(kept)))
    }

    /// Rolls back what is open, after a failure.
    pub fn give_up(&mut self) {
        if self.kept.in_transaction() {
            // A connection that can't is not used again.
            let _ = self.kept.rollback();
        }
        self.closed();
    }

    /// Parameters belong to exactly one statement.
    fn check_parameters(&self, statements: &[Statement<'_>]) -> Result<(), Failure> {
        let taking = statements.iter().filter(|statement| takes_parameters(statement)).count();
        if taking == 0 && !self.request.params.is_empty() {
            return Err(Failure::new(
                Code::Invalid,
                format!("the request has {} `params` and the SQL takes none", self.request.params.len()),
            ));
        }
        if taking > 1 {
            return Err(Failure::new(Code::Invalid, "only one statement of a script may take parameters")
                .hint("send the others by themselves"));
        }
        Ok(())
    }

    /// One statement; gives its answer if asked to.
    pub fn statement(&mut self, statement: &Statement<'_>, answers: bool) -> Result<Option<Kept>, Failure> {
        match &statement.kind {
            Kind::TxBegin => self.begin_by_text(statement.text).map(|()| None),
            Kind::TxCommit if self.kept.in_transaction() => self.commit().map(|()| None),
            Kind::TxCommit => Err(Failure::new(Code::Sql, "cannot commit: no transaction is open")),
            Kind::TxRollback if self.kept.in_transaction() => {
                let done = self.kept.rollback();
                self.closed();
                done.map(|()| None).map_err(|error| self.duck(&error))
            }
            Kind::TxRollback => Err(Failure::new(Code::Sql, "cannot roll back: no transaction is open")),
            Kind::InstallLoad(_) => {
                self.progress.committed += usize::from(!self.kept.in_transaction());
                self.open += usize::from(self.kept.in_transaction());
                Ok(None)
            }
            kind if self.kept.in_transaction() || kind.is_read() && !self.engine.hidden.possible() => {
                let kept = self.execute(statement, answers)?;
                match self.kept.in_transaction() {
                    true => self.open += 1,
                    false => self.progress.committed += 1,
                }
                Ok(kept)
            }
            _ => {
                self.begin()?;
                let kept = self.execute(statement, answers)?;
                self.open += 1;
                self.commit()?;
                Ok(kept)
            }
        }
    }

    /// Enters the gate and begins a transaction.
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.enter()?;
        let begun = match self.request.role {
            // What hides in a view must not make a reader write.
            Role::Reader => self.kept.begin_by("BEGIN TRANSACTION READ ONLY"),
            Role::Writer | Role::Admin => self.kept.begin(),
        };
        begun.map_err(|error| self.duck(&error))
    }

    fn begin_by_text(&mut self, text: &str) -> Result<(), Failure> {
        if self.kept.in_transaction() {
            return Err(Failure::new(Code::Sql, "cannot begin: a transaction is open already"));
        }
        self.enter()?;
        self.kept.begin_by(text).map_err(|error| self.duck(&error))?;
        self.open += 1;
        Ok(())
    }

    fn enter(&mut self) -> Result<(), Failure> {
        match self.engine.gate.enter(|| self.query.is_cancelled()) {
            Ok(pass) => {
                self.pass = Some(pass);
                self.query.writes();
                Ok(())
            }
            Err(NotEntered::Retired) => Err(Failure::exchange()),
            Err(NotEntered::Cancelled) => Err(self.query.reason().unwrap_or(Reason::Cancelled).into()),
        }
    }

    /// Commits the open transaction.
    pub fn commit(&mut self) -> Result<(), Failure> {
        if self.engine.indexed.load(Ordering::SeqCst)
            && let Some(failure) = bulk::check(&self.kept.connection).map_err(|error| self.duck(&error))?
        {
            return Err(failure);
        }
        let commits = &self.engine.mart.commits;
        let kept = &mut *self.kept;
        let result = self.query.shield(|| commits.commit(|| kept.commit()));
        match result {
            Err(reason) => Err(reason.into()),
            Ok(Ok(point)) => {
                self.progress.committed += self.open;
                self.progress.commit = point.map(|point| point.point()).or(self.progress.commit);
                self.closed();
                Ok(())
            }
            Ok(Err(CommitError::Duck(error))) => {
                let mut failure = self.duck(&error);
                failure.unknown = matches!(error.kind, ErrorKind::Fatal | ErrorKind::Io | ErrorKind::Internal);
                failure.fatal |= failure.unknown;
                self.closed();
                Err(failure)
            }
            Ok(Err(CommitError::Position(error))) => {
                tracing::error!(%error, "the position of a commit can't be read");
                let mut failure = Failure::new(Code::Internal, "the position of the commit can't be read");
                (failure.unknown, failure.fatal) = (true, true);
                self.closed();
                Err(failure)
            }
        }
    }

    /// A transaction is over: others may checkpoint, and the catalog may have changed.
    fn closed(&mut self) {
        self.open = 0;
        self.names = Names::default();
        if let Some(counted) = self.ddl.take() {
            self.engine.hidden.after_ddl(&self.kept.connection, counted);
        }
        self.query.wrote();
        self.pass = None;
    }

    fn execute(&mut self, statement: &Statement<'_>, answers: bool) -> Result<Option<Kept>, Failure> {
        if replay::concerns(statement) {
            let logged = || self.engine.mart.commits.names();
            replay::check(&self.kept.connection, &self.request.sql, statement, logged, &mut self.names).map_err(
                |refusal| match refusal {
                    Refusal::Failure(failure) => failure,
                    Refusal::Duck(error) => self.engine.redactor.failure(&error, self.query.reason()),
                },
            )?;
        }
        if statement.kind == Kind::Ddl {
            if statement.text.to_ascii_lowercase().contains("index") {
                self.engine.indexed.store(true, Ordering::SeqCst);
            }
            let counted = self.engine.hidden.before_ddl(statement.text);
            self.ddl = Some(self.ddl.unwrap_or(0) + counted);
            // Temporary objects would be seen by the connection's next request.
            self.kept.used_up |= statement.text.to_ascii_lowercase().contains("temp");
        }
        let takes = takes_parameters(statement);
        if answers {
            return self.collect(statement.text, takes).map(Some);
        }
        let mut prepared = self.prepare(statement.text, takes)?;
        let mut result = prepared.stream().map_err(|error| self.duck(&error))?;
        while result.next_chunk().map_err(|error| self.duck(&error))?.is_some() {}
        Ok(None)
    }

    /// Runs to the end and keeps the encoded rows.
    fn collect(&mut self, text: &str, takes_parameters: bool) -> Result<Kept, Failure> {
        let mut prepared = self.prepare(text, takes_parameters)?;
        let mut result = prepared.stream().map_err(|error| self.duck(&error))?;
        // SAFETY: the result is valid and stays ours.
        let columns = unsafe { Columns::of_result(result.raw()) };
        let mut encoder = Encoder::new(self.request.format, columns, Options { max_rows: self.request.max_rows })?;
        let mut buffer = Buffer::new(&self.engine.temp_dir);
        while let Some(chunk) = result.next_chunk().map_err(|error| self.duck(&error))? {
            // SAFETY: the chunk is of the result that the columns are of.
            unsafe { encoder.push(chunk.raw()) }?;
            buffer.push(encoder.take_ready()).map_err(spill)?;
        }
        buffer.push(encoder.finish()).map_err(spill)?;
        if self.request.key.is_some() && buffer.bytes() > keyed::MAX_ANSWER_BYTES {
            return Err(Failure::new(Code::TooLarge, "the answer is too large to be kept under an idempotency key")
                .hint("leave out RETURNING, or send the request without a key"));
        }
        buffer.finish().map_err(spill)
    }

    /// Binds the last of DuckDB's statements for `text` after running those before it (PIVOT makes several).
    pub fn prepare(&mut self, text: &str, takes_parameters: bool) -> Result<Prepared, Failure> {
        let mut extracted = self.kept.connection.extract(text).map_err(|error| self.duck(&error))?;
        loop {
            let Some(mut parsed) = extracted.next() else {
                return Err(Failure::new(Code::Sql, "DuckDB finds no statement in the text"));
            };
            let mut prepared = parsed.prepare().map_err(|error| self.duck(&error))?;
            if prepared.parameters() > 0 || takes_parameters && extracted.left() == 0 {
                // SAFETY: both handles are this thread's, and no result is open on the connection.
                unsafe { params::bind(self.kept.connection.raw(), prepared.raw(), &self.request.params) }?;
            }
            if extracted.left() == 0 {
                return Ok(prepared);
            }
            // The helping statements make temporary types.
            self.kept.used_up = true;
            prepared.run().map_err(|error| self.duck(&error))?;
        }
    }

    pub fn outcome(&self, kept: Kept) -> Outcome {
        Outcome { kept, content_type: self.request.format.content_type().to_owned(), replayed: false }
    }

    pub fn duck(&self, error: &DuckError) -> Failure {
        if matches!(error.kind, ErrorKind::Internal | ErrorKind::Fatal) {
            tracing::error!(%error, "DuckDB failed");
        }
        self.engine.redactor.failure(error, self.query.reason())
    }
}

/// The statement whose result is the answer: the last one that has one.
pub(super) fn answering(statements: &[Statement<'_>]) -> Option<usize> {
    statements.iter().rposition(|statement| {
        !matches!(statement.kind, Kind::TxBegin | Kind::TxCommit | Kind::TxRollback | Kind::InstallLoad(_))
    })
}

pub(super) fn takes_parameters(statement: &Statement<'_>) -> bool {
    statement.tokens.iter().any(|token| token.kind == TokenKind::Parameter)
}

fn spill(error: std::io::Error) -> Failure {
    tracing::warn!(%error, "an answer can't be kept");
    Failure::new(Code::Limited, "the server's temporary space is used up").hint("ask for less at once")
}
