//! The statements of a request, one after another.

use std::sync::atomic::Ordering;

use crate::{
    buffer::{Buffer, Kept},
    commit::CommitError,
    duck::{DuckError, ErrorKind, Prepared, ResultKind},
    failure::Failure,
    format::{Columns, Encoder, Format, Options},
    params::{self, Params, Set, arrow::Rows},
    queries::{Query, Reason},
    replay::{self, Refusal, bulk},
    session::{self, Transaction},
    sessions::Others,
    sql::{self, Kind, Statement, gate, lexer::TokenKind},
    wire::{Code, Point, Role},
    writers::{NotEntered, WriterPass},
};

use super::{Done, Engine, Reply, Request, describe, keep, keyed, parquet, stream::no_sets};

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
    /// The client's session that the connection belongs to, if it is one's.
    pub session: Option<&'a Others>,
    /// Rows that the answering statement changed.
    pub changed: Option<u64>,
}

impl<'a> Run<'a> {
    /// Runs the request if the gate lets it pass.
    pub fn checked(&mut self, reply: &mut Option<Reply>) -> Result<Done, Failure> {
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

    /// Runs all.
    fn script(&mut self, statements: &[Statement<'_>], reply: &mut Option<Reply>) -> Result<Done, Failure> {
        if self.request.describe {
            return describe::run(self, statements).map(Done::Whole);
        }
        self.check_parameters(statements)?;
        parquet::check(self, statements)?;
        if self.request.keep {
            return keep::run(self, statements).map(Done::Whole);
        }
        let reads = self.engine.view.is_some() || statements.iter().all(|statement| statement.kind.is_read());
        if let (Some(key), false) = (&self.request.key, reads) {
            return keyed::run(self, key, statements).map(Done::Whole);
        }
        let answer_at = answering(statements);
        let mut answer = None;
        for (index, statement) in statements.iter().enumerate() {
            let place = |failure: Failure| if statements.len() > 1 { failure.at(index) } else { failure };
            if let Some(reason) = self.query.reason() {
                return Err(place(reason.into()));
            }
            let answers = answer_at == Some(index);
            if answers && self.request.format == Format::Parquet {
                return parquet::run(self, statement).map_err(place);
            }
            let alone = self.session.is_some() || !self.kept.in_transaction();
            if answers && index + 1 == statements.len() && statement.kind.is_read() && alone {
                return self.stream(statement, reply).map_err(place);
            }
            let kept = self.statement(statement, answers).map_err(place)?;
            answer = kept.or(answer);
        }
        if self.session.is_none() && self.kept.in_transaction() {
            let failure = Failure::new(Code::Invalid, "the script leaves a transaction open; it was rolled back");
            return Err(failure.hint("end it with COMMIT, or run it in a session").at(statements.len() - 1));
        }
        let kept = match answer {
            Some(kept) => kept,
            None => self.collect(NO_RESULT, false, false)?,
        };
        Ok(Done::Whole(self.outcome(kept)))
    }

    /// After a failure: rolls back what is open, unless it is a session's, which decides itself.
    pub fn give_up(&mut self) {
        if self.session.is_none() {
            if self.kept.in_transaction() {
                // A connection that can't is not used again.
                let _ = self.kept.rollback();
            }
            self.closed();
        }
        self.query.wrote();
    }

    /// Parameters belong to exactly one statement.
    fn check_parameters(&self, statements: &[Statement<'_>]) -> Result<(), Failure> {
        let taking = statements.iter().filter(|statement| takes_parameters(statement)).count();
        if taking == 0 && !(self.request.params.is_empty() && self.request.rows.is_none()) {
            return Err(Failure::new(Code::Invalid, "the request has `params` and the SQL takes none"));
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
            Kind::TxCommit | Kind::TxRollback if !is_bare(&self.request.sql, statement) => {
                Err(Failure::new(Code::Sql, "only COMMIT and ROLLBACK by themselves end a transaction")
                    .hint("there are no savepoints and no chained transactions"))
            }
            Kind::TxCommit => self.end_by_text("commit", Self::commit_if_whole).map(|()| None),
            Kind::TxRollback => self.end_by_text("roll back", Self::roll_back).map(|()| None),
            Kind::InstallLoad(_) => {
                match self.kept.open() {
                    Some(open) => open.statements += 1,
                    None => self.progress.committed += 1,
                }
                Ok(None)
            }
            kind => {
                let alone = self.enter_transaction()?;
                if !alone || kind.is_read() && !self.engine.hidden.possible() {
                    let kept = self.execute(statement, answers)?;
                    match self.kept.open() {
                        Some(open) => open.statements += 1,
                        None => self.progress.committed += 1,
                    }
                    return Ok(kept);
                }
                self.begin()?;
                let done = self.execute(statement, answers).and_then(|kept| {
                    self.statement_ran();
                    self.commit().map(|()| kept)
                });
                if done.is_err() && self.kept.in_transaction() {
                    // In a session as well: it was the statement's own transaction.
                    let _ = self.kept.rollback();
                    self.closed();
                }
                done
            }
        }
    }

    /// Makes a transaction that a session has begun a real one. True if there is none.
    pub fn enter_transaction(&mut self) -> Result<bool, Failure> {
        match &self.kept.transaction {
            Transaction::None => Ok(true),
            Transaction::Open(_) => {
                // What another order or a checkpoint can't wait for, is given up.
                self.query.writes();
                Ok(false)
            }
            Transaction::Lost => Err(lost()),
            Transaction::Begun(words) => {
                let words = words.clone();
                self.begin_in(Some(&words))?;
                Ok(false)
            }
        }
    }

    /// Enters the gate and begins a transaction.
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.begin_in(None)
    }

    fn begin_in(&mut self, words: Option<&str>) -> Result<(), Failure> {
        let pass = self.enter()?;
        let words = match self.request.role {
            // What hides in a view must not make a reader write.
            Role::Reader => Some("BEGIN TRANSACTION READ ONLY"),
            Role::Writer | Role::Admin => words,
        };
        self.kept.begin(pass, words).map_err(|error| self.duck(&error))
    }

    fn begin_by_text(&mut self, text: &str) -> Result<(), Failure> {
        match self.kept.transaction {
            Transaction::None => {}
            Transaction::Lost => return Err(lost()),
            Transaction::Begun(_) | Transaction::Open(_) => {
                return Err(Failure::new(Code::Sql, "cannot begin: a transaction is open already"));
            }
        }
        if self.session.is_some() {
            // Its words are looked at now, though nothing is held yet.
            self.kept.connection.extract(text).map_err(|error| self.duck(&error))?;
            self.kept.transaction = Transaction::Begun(text.to_owned());
            return Ok(());
        }
        self.begin_in(Some(text))?;
        self.statement_ran();
        Ok(())
    }

    /// COMMIT and ROLLBACK in a client's words.
    fn end_by_text(&mut self, verb: &str, end: impl FnOnce(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        match self.kept.transaction {
            Transaction::Open(_) => {
                self.query.writes();
                end(self)
            }
            Transaction::None => Err(Failure::new(Code::Sql, format!("cannot {verb}: no transaction is open"))),
            Transaction::Begun(_) => {
                self.kept.transaction = Transaction::None;
                Ok(())
            }
            Transaction::Lost => {
                self.kept.transaction = Transaction::None;
                if verb == "commit" { Err(lost()) } else { Ok(()) }
            }
        }
    }

    /// COMMIT in a client's words. DuckDB takes it for a transaction that it has given up and commits nothing; the client must know.
    fn commit_if_whole(&mut self) -> Result<(), Failure> {
        let failed = self.kept.open().and_then(|open| open.failed);
        if let Some(transient) = failed
            && self.kept.connection.execute("SELECT 1").is_err()
        {
            self.roll_back()?;
            let code = if transient { Code::Conflict } else { Code::Sql };
            let failure = Failure::new(code, "the transaction was rolled back: a statement in it had failed")
                .hint("nothing of it is committed; begin it again");
            return Err(if transient { failure.transient() } else { failure });
        }
        let done = self.commit();
        if done.is_err() && self.kept.in_transaction() {
            // A COMMIT that was refused ends the transaction too: what a client sends next must not run inside of one that it was
            // told has failed. A connection that can't roll back ends with its session.
            let _ = self.roll_back();
        }
        done
    }

    /// Remembers in a session's transaction that a statement failed.
    pub fn failed(&mut self, failure: &Failure) {
        if let Some(open) = self.kept.open() {
            open.failed.get_or_insert(failure.transient);
        }
    }

    fn roll_back(&mut self) -> Result<(), Failure> {
        let done = self.kept.rollback();
        self.closed();
        done.map_err(|error| self.duck(&error))
    }

    fn enter(&mut self) -> Result<WriterPass, Failure> {
        match self.engine.gate.enter(|| self.query.is_cancelled()) {
            Ok(pass) => {
                self.query.writes();
                Ok(pass)
            }
            Err(NotEntered::Retired) => Err(Failure::exchange()),
            Err(NotEntered::Cancelled) => Err(self.query.reason().unwrap_or(Reason::Cancelled).into()),
        }
    }

    /// Counts a statement of the open transaction.
    pub fn statement_ran(&mut self) {
        if let Some(open) = self.kept.open() {
            open.statements += 1;
        }
    }

    /// Refuses a transaction that recovery could not repeat.
    pub fn check_bulk(&self) -> Result<(), Failure> {
        if !self.engine.indexed.load(Ordering::SeqCst) {
            return Ok(());
        }
        match bulk::check(&self.kept.connection).map_err(|error| self.duck(&error))? {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Commits the open transaction.
    pub fn commit(&mut self) -> Result<(), Failure> {
        self.check_bulk()?;
        let commits = &self.engine.mart.commits;
        let kept = &mut *self.kept;
        let result = self.query.shield(|| commits.commit(|| kept.commit()));
        match result {
            Err(reason) => Err(reason.into()),
            Ok(Ok(point)) => {
                self.progress.commit = point.map(|point| point.point()).or(self.progress.commit);
                self.progress.committed += self.closed();
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

    /// A transaction is over: others may checkpoint, and the catalog may have changed. Gives how many statements it had.
    fn closed(&mut self) -> usize {
        self.query.wrote();
        self.kept.close(&self.engine.hidden)
    }

    /// Runs DDL that the engine itself wrote, under the rules for a client's.
    pub fn own_ddl(&mut self, text: &str) -> Result<(), Failure> {
        let statements = sql::split(text).map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
        for statement in &statements {
            self.before_change(text, statement)?;
        }
        self.kept.connection.execute(text).map_err(|error| self.duck(&error))
    }

    /// Before a statement of `script` runs that may change the catalog.
    fn before_change(&mut self, script: &str, statement: &Statement<'_>) -> Result<(), Failure> {
        let mut names = self.kept.open().map(|open| std::mem::take(&mut open.names)).unwrap_or_default();
        let checked = match replay::concerns(statement) {
            true => {
                let logged = || self.engine.mart.commits.names();
                replay::check(&self.kept.connection, script, statement, logged, &mut names)
            }
            false => Ok(()),
        };
        if let Some(open) = self.kept.open() {
            open.names = names;
        }
        checked.map_err(|refusal| match refusal {
            Refusal::Failure(failure) => failure,
            Refusal::Duck(error) => self.engine.redactor.failure(&error, self.query.reason()),
        })?;
        if statement.kind == Kind::Ddl {
            if statement.text.to_ascii_lowercase().contains("index") {
                self.engine.indexed.store(true, Ordering::SeqCst);
            }
            let counted = self.engine.hidden.before_ddl(statement.text);
            match self.kept.open() {
                Some(open) => open.ddl = Some(open.ddl.unwrap_or(0) + counted),
                None => self.engine.hidden.after_ddl(&self.kept.connection, counted),
            }
            // Temporary objects would be seen by the connection's next request.
            self.kept.used_up |= self.session.is_none() && statement.text.to_ascii_lowercase().contains("temp");
        }
        Ok(())
    }

    fn execute(&mut self, statement: &Statement<'_>, answers: bool) -> Result<Option<Kept>, Failure> {
        let request = self.request;
        self.before_change(&request.sql, statement)?;
        let takes = takes_parameters(statement);
        if answers {
            let writes = matches!(statement.kind, Kind::Write | Kind::CopyTo);
            return self.collect(statement.text, takes, writes).map(Some);
        }
        let rows = self.rows()?;
        for set in sets(self.request, rows.as_ref(), takes) {
            let mut prepared = self.prepare(statement.text, set)?;
            let mut result = prepared.stream().map_err(|error| self.duck(&error))?;
            while result.next_chunk().map_err(|error| self.duck(&error))?.is_some() {}
        }
        Ok(None)
    }

    /// The rows of parameters, if the request has some.
    pub fn rows(&self) -> Result<Option<Rows>, Failure> {
        let Some(stream) = &self.request.rows else { return Ok(None) };
        Rows::read(&self.kept.connection, stream, self.engine.spool.clone()).map(Some)
    }

    /// Runs to the end and keeps the encoded rows; counts those that it changed if it `writes`.
    fn collect(&mut self, text: &str, takes_parameters: bool, writes: bool) -> Result<Kept, Failure> {
        let mut encoder = None;
        let mut buffer = Buffer::new(self.engine.spool.clone());
        let mut changed = 0;
        let rows = self.rows()?;
        for set in sets(self.request, rows.as_ref(), takes_parameters) {
            if let Some(reason) = self.query.reason() {
                return Err(reason.into());
            }
            let mut prepared = self.prepare(text, set)?;
            let mut result = prepared.stream().map_err(|error| self.duck(&error))?;
            let kind = result.kind();
            let encoder = match &mut encoder {
                Some(encoder) => encoder,
                empty => {
                    // SAFETY: the result is valid and stays ours.
                    let columns = unsafe { Columns::of_result(result.raw()) };
                    empty.insert(Encoder::new(self.request.format, columns, self.options())?)
                }
            };
            while let Some(chunk) = result.next_chunk().map_err(|error| self.duck(&error))? {
                changed += if kind == ResultKind::Changes { chunk.first_count() } else { chunk.rows() };
                // SAFETY: the chunk is of the result that the columns are of, or of one of the same statement.
                unsafe { encoder.push(chunk.raw()) }?;
                buffer.push(encoder.take_ready())?;
            }
        }
        let Some(encoder) = encoder else {
            return Err(no_sets());
        };
        self.changed = writes.then_some(changed);
        buffer.push(encoder.finish())?;
        if self.request.key.is_some() && buffer.bytes() > keyed::MAX_ANSWER_BYTES {
            return Err(Failure::new(Code::TooLarge, "the answer is too large to be kept under an idempotency key")
                .hint("leave out RETURNING, or send the request without a key"));
        }
        buffer.finish()
    }

    /// Binds the last of DuckDB's statements for `text` after running those before it (PIVOT makes several).
    pub fn prepare(&mut self, text: &str, set: Option<Set<'_>>) -> Result<Prepared, Failure> {
        let mut extracted = self.kept.connection.extract(text).map_err(|error| self.duck(&error))?;
        loop {
            let Some(mut parsed) = extracted.next() else {
                return Err(Failure::new(Code::Sql, "DuckDB finds no statement in the text"));
            };
            let mut prepared = parsed.prepare().map_err(|error| self.duck(&error))?;
            if prepared.parameters() > 0 || set.is_some() && extracted.left() == 0 {
                let set = set.unwrap_or(Set::Json(&Params::None));
                // SAFETY: both handles are this thread's, and no result is open on the connection.
                unsafe { params::bind(self.kept.connection.raw(), prepared.raw(), set) }?;
            }
            if extracted.left() == 0 {
                return Ok(prepared);
            }
            // The helping statements make temporary types.
            self.kept.used_up |= self.session.is_none();
            prepared.run().map_err(|error| self.duck(&error))?;
        }
    }

    pub fn options(&self) -> Options {
        Options { max_rows: self.request.max_rows }
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

/// Is a COMMIT or ROLLBACK nothing but that?
fn is_bare(sql: &str, statement: &Statement<'_>) -> bool {
    match statement.tokens.as_slice() {
        [_] => true,
        [_, second] => ["work", "transaction"].iter().any(|word| second.is_word(sql, word)),
        _ => false,
    }
}

/// A session's transaction that the server ended.
fn lost() -> Failure {
    Failure::new(Code::Conflict, "the transaction was rolled back: it was idle for too long, or a load in it failed")
        .hint("ROLLBACK, then begin it again")
        .transient()
}

/// The statement whose result is the answer: the last one that has one.
pub(super) fn answering(statements: &[Statement<'_>]) -> Option<usize> {
    statements.iter().rposition(|statement| {
        !matches!(statement.kind, Kind::TxBegin | Kind::TxCommit | Kind::TxRollback | Kind::InstallLoad(_))
    })
}

/// The sets of parameters that a statement runs with, one after another; nothing if it takes none.
pub(super) fn sets<'s>(request: &'s Request, rows: Option<&'s Rows>, takes: bool) -> Vec<Option<Set<'s>>> {
    match (takes, rows) {
        (false, _) => vec![None],
        (true, None) => vec![Some(Set::Json(&request.params))],
        (true, Some(rows)) => (0..rows.len()).map(|row| Some(Set::Row(rows, row))).collect(),
    }
}

pub(super) fn takes_parameters(statement: &Statement<'_>) -> bool {
    statement.tokens.iter().any(|token| token.kind == TokenKind::Parameter)
}
