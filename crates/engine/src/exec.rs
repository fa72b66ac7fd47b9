//! Runs one request on a session: a statement or a script, streaming or buffered, each write committed at an exact position.
//!
//! # Consistency
//! Each statement autocommits unless the script says BEGIN. A write runs inside the writers' gate as BEGIN … COMMIT; its answer
//! leaves only after the commit, with its position. Only a statement that is proved to read streams, and only as the last one.
//!
//! # Cancellation
//! A query that has to stop stops between statements or by interrupt, never in its COMMIT. What is committed stays and is reported.

mod describe;
mod keep;
mod keyed;
pub mod load;
mod parquet;
mod script;
mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    buffer::Kept,
    config::EngineConfig,
    failure::{Failure, Redactor},
    format::Format,
    hidden::HiddenWrites,
    load::{groups, places::Places, spool::Spool},
    open::{MART, Mart, OpenError},
    params::Params,
    pipe::{PipeBody, pipe},
    pool::Pool,
    queries::{Queries, Query, Reason},
    replay::bulk,
    session::Session,
    sessions::{Others, Sessions},
    sql::gate::OWN_SCHEMA,
    view::View,
    wire::{Code, ErrorBody, Point, ResizeRequest, Role},
    writers::WriterGate,
};

/// Everything that runs requests on one mart.
pub struct Engine {
    /// The open mart.
    pub mart: Mart,
    /// Holds writers off a checkpoint.
    pub gate: Arc<WriterGate>,
    /// What runs now.
    pub queries: Arc<Queries>,
    /// Clients' sessions.
    pub sessions: Sessions,
    /// Where it runs.
    pub pool: Pool,
    hidden: HiddenWrites,
    /// The mart has, or had, an index.
    pub(crate) indexed: AtomicBool,
    /// The past moment that it shows, if it does.
    pub view: Option<View>,
    pub(crate) redactor: Redactor,
    /// DuckDB's memory limit, for whoever watches the process.
    pub memory_limit_bytes: Arc<AtomicU64>,
    keys: keyed::Keys,
    limits: groups::Limits,
    loads: Places,
    spool: Arc<Spool>,
}

/// What a client asked for.
#[derive(Debug)]
pub struct Request {
    /// A statement or a script.
    pub sql: String,
    /// Its parameters.
    pub params: Params,
    /// Several sets of them instead, as an Arrow IPC stream.
    pub rows: Option<Vec<u8>>,
    /// Rows behind so many are left out.
    pub max_rows: Option<u64>,
    /// The answer's format.
    pub format: Format,
    /// What the caller may do.
    pub role: Role,
    /// Runs at most once under this key.
    pub key: Option<String>,
    /// Runs in this session.
    pub session: Option<Uuid>,
    /// Its rows stay in the session.
    pub keep: bool,
    /// Tells what it would give, and runs nothing.
    pub describe: bool,
}

impl Request {
    /// A statement or script without anything else.
    pub fn new(sql: impl Into<String>, format: Format, role: Role) -> Self {
        Self {
            sql: sql.into(),
            params: Params::None,
            rows: None,
            max_rows: None,
            format,
            role,
            key: None,
            session: None,
            keep: false,
            describe: false,
        }
    }
}

/// The first line and headers of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Media type of the body.
    pub content_type: String,
    /// The last commit the request made.
    pub commit: Option<Point>,
    /// The newest commit, and whether another was in flight.
    pub at: (Point, bool),
    /// An earlier answer, repeated.
    pub replayed: bool,
    /// Rows that the answering statement changed.
    pub changed: Option<u64>,
    /// The names of trailers that may follow.
    pub trailers: Vec<&'static str>,
}

/// A success.
pub enum Answer {
    /// The whole body.
    Whole(Head, Vec<Bytes>),
    /// A body under way.
    Stream(Head, PipeBody),
}

/// A failure, with the position of what is committed all the same.
#[derive(Debug)]
pub struct Failed {
    /// The answer's body.
    pub body: ErrorBody,
    /// The last commit the request made.
    pub commit: Option<Point>,
}

/// Where the answer goes; gone if the client went away.
pub type Reply = oneshot::Sender<Result<Answer, Failed>>;

impl Engine {
    /// Opens the mart.
    pub fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        let mart = Mart::open(config)?;
        let (hidden, indexed) = match config.view {
            Some(_) => (HiddenWrites::none(), false),
            None => {
                let connection = mart.connect()?;
                (HiddenWrites::open(&connection)?, bulk::has_index(&connection)?)
            }
        };
        Ok(Self {
            mart,
            gate: Arc::default(),
            queries: Arc::default(),
            sessions: Sessions::new(
                Duration::from_millis(config.session_idle_ms),
                Duration::from_millis(config.transaction_idle_ms),
            ),
            pool: Pool::default(),
            hidden,
            indexed: AtomicBool::new(indexed),
            view: config.view.as_ref().map(View::new),
            redactor: Redactor::new(config),
            memory_limit_bytes: Arc::new(AtomicU64::new(config.memory_limit_bytes)),
            keys: keyed::Keys::default(),
            limits: groups::Limits::of(config.memory_limit_bytes, config.threads),
            loads: Places::default(),
            spool: Spool::open(&config.temp_dir, config.max_temp_bytes)?,
        })
    }

    /// May a statement that reads by its text write all the same (a `nextval` hides in the catalog)?
    pub fn reads_may_write(&self) -> bool {
        self.hidden.possible()
    }

    /// Runs `request` on this thread and answers it; returns when its last byte is handed over. True if the engine has to end.
    /// `session` is the thread's own, for requests without one of a client's.
    pub fn run(&self, query: &Query, session: &mut Session, request: Request, reply: Reply) -> bool {
        let mut reply = Some(reply);
        let (rest, fatal) = match request.session {
            None => self.run_on(query, Seat { session, others: None }, &request, &mut reply),
            Some(id) => match self.sessions.take(id, query, &self.hidden) {
                Ok(mut turn) => {
                    let (session, others) = turn.parts();
                    self.run_on(query, Seat { session, others: Some(others) }, &request, &mut reply)
                }
                Err(failure) => {
                    send(&mut reply, Err(Failed { body: failure.body(0, false), commit: None }));
                    (None, false)
                }
            },
        };
        // The session's next request has its turn meanwhile.
        if let Some(rest) = rest {
            rest.send(query);
        }
        fatal
    }

    fn run_on(
        &self,
        query: &Query,
        seat: Seat<'_>,
        request: &Request,
        reply: &mut Option<Reply>,
    ) -> (Option<stream::Rest>, bool) {
        let Seat { session, others } = seat;
        let mut progress = script::Progress::default();
        let mut changed = None;
        let result = match session.connection(&self.mart) {
            Ok(kept) => {
                query.attach(kept.connection.interrupter());
                let progress = &mut progress;
                let mut run =
                    script::Run { engine: self, query, kept, request, progress, session: others, changed: None };
                let result = run.checked(reply);
                if let Err(failure) = &result {
                    run.failed(failure);
                }
                changed = run.changed;
                run.give_up();
                query.detach();
                result
            }
            Err(error) => Err(self.redactor.failure(&error, None)),
        };
        match result {
            Ok(Done::Streamed) => (None, false),
            Ok(Done::Rest(rest)) => (Some(rest), false),
            Ok(Done::Whole(outcome)) => {
                let head = Head {
                    content_type: outcome.content_type,
                    replayed: outcome.replayed,
                    changed,
                    ..self.head(request, progress.commit)
                };
                match outcome.kept {
                    Kept::Memory(pieces) => {
                        send(reply, Ok(Answer::Whole(head, pieces)));
                        (None, false)
                    }
                    // A broken file breaks the body: the commit was reported already.
                    kept @ Kept::File(..) => {
                        let (writer, body) = pipe();
                        send(reply, Ok(Answer::Stream(head, body)));
                        (Some(stream::Rest::new(writer, kept)), false)
                    }
                }
            }
            Err(failure) => {
                let fatal = failure.fatal;
                let body = failure.body(progress.committed, progress.commit.is_some());
                send(reply, Err(Failed { body, commit: progress.commit }));
                (None, fatal)
            }
        }
    }

    /// Ends a session of `principal`; false if there is none.
    pub fn close_session(&self, id: Uuid, principal: &str) -> bool {
        let Some(running) = self.sessions.close(id, principal, &self.hidden) else { return false };
        if let Some(query) = running {
            self.queries.cancel(query, principal, Reason::Cancelled);
        }
        true
    }

    /// Makes the engine larger or smaller from now on.
    pub fn resize(&self, size: ResizeRequest) -> Result<(), Failure> {
        // Whoever watches the process hears of more before DuckDB does, and of less after it.
        let before = self.memory_limit_bytes.fetch_max(size.memory_limit_bytes, Ordering::Relaxed);
        match self.mart.resize(size) {
            Ok(()) => {
                self.memory_limit_bytes.store(size.memory_limit_bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                self.memory_limit_bytes.store(before, Ordering::Relaxed);
                Err(self.redactor.failure(&error, None))
            }
        }
    }

    /// Ends all sessions of a principal and stops all its queries; what is in its COMMIT ends by itself.
    pub fn end_principal(&self, principal: &str) {
        // First, so that what waits for a turn in a session is stopped before it gets it.
        self.queries.cancel_of(principal, Reason::Cancelled);
        for id in self.sessions.of(principal) {
            self.close_session(id, principal);
        }
    }

    /// Looks names of a session up in `schema` first. SQL itself may not set anything: what it sets is not the mart's alone.
    pub fn use_schema(&self, id: Uuid, principal: &str, schema: &str) -> Result<(), Failure> {
        let hidden = [OWN_SCHEMA, "information_schema", "pg_catalog"];
        if schema.is_empty() || hidden.iter().any(|name| name.eq_ignore_ascii_case(schema)) {
            return Err(Failure::new(Code::Invalid, "this is no schema of the mart's"));
        }
        let ticket = self.queries.start(Uuid::new_v4(), principal.to_owned(), None);
        let ticket = ticket.map_err(|_| Failure::from(Reason::Shutdown))?;
        let mut turn = self.sessions.take(id, ticket.query(), &self.hidden)?;
        let failed = |error| self.redactor.failure(&error, None);
        let kept = turn.parts().0.connection(&self.mart).map_err(failed)?;
        let name = schema.replace('"', "\"\"");
        kept.connection.execute(&format!("USE {MART}.\"{name}\"")).map_err(failed)
    }

    /// Ends idle sessions and transactions.
    pub fn tend_sessions(&self) {
        self.sessions.tend(&self.hidden, self.gate.is_waited_for());
    }

    /// Rolls back every transaction that no request works in just now.
    pub fn roll_back_idle(&self) {
        self.sessions.roll_back_idle(&self.hidden, Duration::ZERO);
    }

    fn head(&self, request: &Request, commit: Option<Point>) -> Head {
        let (at, moving) = self.mart.commits.latest();
        Head {
            content_type: request.format.content_type().to_owned(),
            commit,
            at: (at.point(), moving),
            replayed: false,
            changed: None,
            trailers: Vec::new(),
        }
    }
}

/// The connection that a request runs on, and who else waits for it if it is a client's session.
struct Seat<'a> {
    session: &'a mut Session,
    others: Option<&'a Others>,
}

/// How a request ended well.
enum Done {
    /// With all of its answer.
    Whole(script::Outcome),
    /// Its answer is sent.
    Streamed,
    /// Its answer is sent but for this.
    Rest(stream::Rest),
}

fn send(reply: &mut Option<Reply>, answer: Result<Answer, Failed>) {
    if let Some(reply) = reply.take() {
        // A client that went away has no use for it.
        let _ = reply.send(answer);
    }
}
