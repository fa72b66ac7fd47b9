//! Runs one request on a session: a statement or a script, streaming or buffered, each write committed at an exact position.
//!
//! # Consistency
//! Each statement autocommits unless the script says BEGIN. A write runs inside the writers' gate as BEGIN … COMMIT; its answer
//! leaves only after the commit, with its position. Only a statement that is proved to read streams, and only as the last one.
//!
//! # Cancellation
//! A query that has to stop stops between statements or by interrupt, never in its COMMIT. What is committed stays and is reported.

mod keyed;
mod script;
mod stream;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    buffer::{self, Kept},
    config::EngineConfig,
    failure::Redactor,
    format::Format,
    hidden::HiddenWrites,
    open::{Mart, OpenError},
    params::Params,
    pipe::{PipeBody, pipe},
    pool::Pool,
    queries::{Queries, Query},
    replay::bulk,
    session::Session,
    view::View,
    wire::{ErrorBody, Point, Role},
    writers::WriterGate,
};

/// Everything that runs requests on one mart.
pub struct Engine {
    /// The open mart.
    pub mart: Mart,
    /// Holds writers off a checkpoint.
    pub gate: WriterGate,
    /// What runs now.
    pub queries: Arc<Queries>,
    /// Where it runs.
    pub pool: Pool,
    hidden: HiddenWrites,
    /// The mart has, or had, an index.
    pub(crate) indexed: AtomicBool,
    /// The past moment that it shows, if it does.
    pub view: Option<View>,
    pub(crate) redactor: Redactor,
    keys: keyed::Keys,
    temp_dir: PathBuf,
}

/// What a client asked for.
#[derive(Debug)]
pub struct Request {
    /// A statement or a script.
    pub sql: String,
    /// Its parameters.
    pub params: Params,
    /// Rows behind so many are left out.
    pub max_rows: Option<u64>,
    /// The answer's format.
    pub format: Format,
    /// What the caller may do.
    pub role: Role,
    /// Runs at most once under this key.
    pub key: Option<String>,
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
    /// A commit may follow in the trailer.
    pub trailer: bool,
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
            gate: WriterGate::default(),
            queries: Arc::default(),
            pool: Pool::default(),
            hidden,
            indexed: AtomicBool::new(indexed),
            view: config.view.as_ref().map(View::new),
            redactor: Redactor::new(config),
            keys: keyed::Keys::default(),
            temp_dir: config.temp_dir.clone(),
        })
    }

    /// May a statement that reads by its text write all the same (a `nextval` hides in the catalog)?
    pub fn reads_may_write(&self) -> bool {
        self.hidden.possible()
    }

    /// Runs `request` on this thread and answers it; returns when its last byte is handed over. True if the engine has to end.
    pub fn run(&self, query: &Query, session: &mut Session, request: Request, reply: Reply) -> bool {
        let mut reply = Some(reply);
        let mut progress = script::Progress::default();
        let result = match session.connection(&self.mart) {
            Ok(kept) => {
                query.attach(kept.connection.interrupter());
                let mut run = script::Run {
                    engine: self,
                    query,
                    kept,
                    request: &request,
                    progress: &mut progress,
                    pass: None,
                    open: 0,
                    ddl: None,
                    names: crate::wal::Names::default(),
                };
                let result = run.checked(&mut reply);
                run.give_up();
                query.detach();
                result
            }
            Err(error) => Err(self.redactor.failure(&error, None)),
        };
        let head = |replayed| Head { replayed, ..self.head(&request, progress.commit) };
        match result {
            Ok(None) => false,
            Ok(Some(script::Outcome { kept: Kept::Memory(pieces), content_type, replayed })) => {
                send(&mut reply, Ok(Answer::Whole(Head { content_type, ..head(replayed) }, pieces)));
                false
            }
            Ok(Some(script::Outcome { kept: Kept::File(mut file), content_type, replayed })) => {
                let (writer, body) = pipe();
                send(&mut reply, Ok(Answer::Stream(Head { content_type, ..head(replayed) }, body)));
                // A broken file breaks the body: the commit was reported already.
                while let Ok(piece) = buffer::next_piece(&mut file) {
                    match piece {
                        None => {
                            writer.finish(None);
                            break;
                        }
                        Some(piece) => {
                            let stalled = || {
                                query.stalls();
                                query.is_cancelled()
                            };
                            let sent = writer.send(piece, stalled);
                            query.flows();
                            if sent.is_err() {
                                break;
                            }
                        }
                    }
                }
                false
            }
            Err(failure) => {
                let fatal = failure.fatal;
                let body = failure.body(progress.committed, progress.commit.is_some());
                send(&mut reply, Err(Failed { body, commit: progress.commit }));
                fatal
            }
        }
    }

    fn head(&self, request: &Request, commit: Option<Point>) -> Head {
        let (at, moving) = self.mart.commits.latest();
        Head {
            content_type: request.format.content_type().to_owned(),
            commit,
            at: (at.point(), moving),
            replayed: false,
            trailer: false,
        }
    }
}

fn send(reply: &mut Option<Reply>, answer: Result<Answer, Failed>) {
    if let Some(reply) = reply.take() {
        // A client that went away has no use for it.
        let _ = reply.send(answer);
    }
}
