//! Bulk loads: the statements that make rows of a table out of a body, in one transaction.
//!
//! # Consistency
//! All is one transaction, committed like a query's, and only after the body was read to its true end. The transaction begins when the
//! first rows are here. Inside a session's own transaction nothing is committed; a load that fails there after it wrote takes the whole
//! transaction with it, since a part of the body must not stay.
//! Large Arrow bodies keep the order of rows within row groups only: with the order kept, DuckDB inserts on one thread.
//!
//! # Cancellation
//! As a query; and a client that sends nothing for 30 seconds while others wait for the writers to leave loses its load.

mod arrow;
mod fit;
mod job;
mod spooled;
mod target;
mod types;
mod upsert;
mod watch;

use std::sync::{Arc, atomic::Ordering};

use super::{
    Answer, Engine, Failed, Head, Reply, Request, keyed,
    script::{Outcome, Progress, Run},
    send,
};
use crate::{
    buffer::Kept,
    duck::DuckError,
    failure::Failure,
    format::Format,
    load::{
        read_failure,
        reader::{BodyReader, Hash},
    },
    queries::Query,
    session::{Session, Transaction},
    sessions::Others,
    wire::{Code, LoadRequest, Loaded},
};

pub use job::{Load, Media};
use watch::Watch;

/// A load on its connection.
struct Loading<'r, 'a> {
    run: &'r mut Run<'a>,
    request: &'r LoadRequest,
    watch: &'r Watch<'a>,
    /// The transaction was begun for the load, and ends with it.
    own: bool,
    /// DuckDB is told that the order of rows does not matter.
    unordered: bool,
    /// Runs once under this key.
    key: Option<&'r str>,
}

impl Engine {
    /// Runs `load` on this thread and answers it. True if the engine has to end. `session` is the thread's own.
    pub fn load(&self, query: &Query, session: &mut Session, load: Load, reply: Reply) -> bool {
        let (answer, fatal) = match load.request.session {
            None => self.load_on(query, session, None, load),
            Some(id) => match self.sessions.take(id, query, &self.hidden) {
                Ok(mut turn) => {
                    let (session, others) = turn.parts();
                    self.load_on(query, session, Some(others), load)
                }
                Err(failure) => (Err(Failed { body: failure.body(0, false), commit: None }), false),
            },
        };
        send(&mut Some(reply), answer);
        fatal
    }

    fn load_on(
        &self,
        query: &Query,
        session: &mut Session,
        others: Option<&Others>,
        load: Load,
    ) -> (Result<Answer, Failed>, bool) {
        let mut progress = Progress::default();
        let request = Request { session: load.request.session, ..Request::new("", Format::Json, load.role) };
        let result = match session.connection(&self.mart) {
            Ok(kept) => {
                query.attach(kept.connection.interrupter());
                let (request, progress) = (&request, &mut progress);
                let mut run = Run { engine: self, query, kept, request, progress, session: others, changed: None };
                let result = load.check(self).and_then(|()| run.load(load));
                run.give_up();
                query.detach();
                result
            }
            Err(error) => Err(self.redactor.failure(&error, None)),
        };
        match result {
            Ok(outcome) => {
                let Kept::Memory(pieces) = outcome.kept else { unreachable!("a load's answer is one line") };
                let head = self.head(&request, progress.commit);
                let head = Head { content_type: outcome.content_type, replayed: outcome.replayed, ..head };
                (Ok(Answer::Whole(head, pieces)), false)
            }
            Err(failure) => {
                let body = failure.body(progress.committed, progress.commit.is_some());
                (Err(Failed { body, commit: progress.commit }), failure.fatal)
            }
        }
    }
}

impl Run<'_> {
    fn load(&mut self, load: Load) -> Result<Outcome, Failure> {
        let key = load.key.as_deref();
        let held = key.map(|key| keyed::hold(self, key)).transpose()?;
        let hash = if held.is_some() { Hash::taken() } else { Hash::default() };
        let watch = Watch::new(self.engine, self.query);
        let look = Arc::new(|waited| watch.look(waited));
        let mut body = BodyReader::new(load.body, load.coding, hash.clone(), look).map_err(read_failure)?;
        if let Some(key) = key {
            if !matches!(self.kept.transaction, Transaction::None) {
                return Err(Failure::new(Code::Invalid, "under an idempotency key a load is a transaction of its own"));
            }
            if keyed::is_recorded(self, key)? {
                // Whether it is the same load is known at its end only.
                body.drain().map_err(read_failure)?;
                self.begin()?;
                let request = fingerprint(&load.request, load.media, &hash);
                let found = keyed::find(self, key, &request)?;
                let gone = || Failure::new(Code::Conflict, "the record under the idempotency key was just removed");
                return found.ok_or_else(|| gone().hint("send the load again").transient());
            }
        }
        let mut loading =
            Loading { run: self, request: &load.request, watch: &watch, own: true, unordered: false, key };
        let finish = |loading: &mut Loading<'_, '_>, loaded: Loaded| {
            let answer = serde_json::to_vec(&loaded).expect("a plain struct has a JSON form");
            if let Some(key) = key {
                let request = fingerprint(&load.request, load.media, &hash);
                keyed::record(loading.run, key, &request, &answer)?;
            }
            loading.end()?;
            Ok(loading.run.outcome(Kept::Memory(vec![answer.into()])))
        };
        let loaded = match load.media {
            Media::Arrow => loading.arrow(body),
            media => loading.spooled(body, media),
        };
        let done = loaded.and_then(|loaded| finish(&mut loading, loaded));
        done.map_err(|failure| loading.give_up(failure))
    }
}

impl<'a> Loading<'_, 'a> {
    /// Enters the session's transaction, or the writers' gate and one of its own.
    fn begin(&mut self) -> Result<(), Failure> {
        self.own = self.run.enter_transaction()?;
        if self.own {
            self.run.begin()?;
        }
        self.watch.inside.store(true, Ordering::Relaxed);
        if let Some(key) = self.key
            && keyed::find(self.run, key, "")?.is_some()
        {
            return Err(Failure::new(Code::Internal, "a key that is held was used by another"));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.run.statement_ran();
        if self.own { self.run.commit() } else { Ok(()) }
    }

    /// Leaves nothing of it behind.
    fn give_up(&mut self, mut failure: Failure) -> Failure {
        if self.run.session.is_none() {
            self.run.kept.used_up |= self.unordered;
            return failure;
        }
        if !self.watch.inside.load(Ordering::Relaxed) || !self.run.kept.in_transaction() {
            return failure;
        }
        // A connection that can't is closed with its session.
        let _ = self.run.kept.rollback();
        self.run.kept.close(&self.run.engine.hidden);
        // Not before: in a transaction that failed no statement runs.
        self.ordered();
        if !self.own {
            self.run.kept.transaction = Transaction::Lost;
            failure.hint = Some(format!(
                "{}the session's transaction was rolled back with the load: ROLLBACK, then begin again",
                failure.hint.map(|hint| format!("{hint}; ")).unwrap_or_default()
            ));
        }
        failure
    }

    /// Lets DuckDB use all its threads.
    fn unordered(&mut self) -> Result<(), Failure> {
        self.unordered = true;
        self.execute("SET SESSION preserve_insertion_order = false").map(drop)
    }

    fn ordered(&mut self) {
        if self.unordered {
            let set = self.execute("SET SESSION preserve_insertion_order = true");
            self.run.kept.used_up |= set.is_err();
            self.unordered = set.is_err();
        }
    }

    /// Runs a statement of the engine's own; gives how many rows it changed.
    fn execute(&mut self, sql: &str) -> Result<u64, Failure> {
        let changed = || -> Result<u64, DuckError> {
            let mut changed = 0;
            for mut statement in self.run.kept.connection.extract(sql)? {
                changed = statement.prepare()?.run()?.changed();
            }
            Ok(changed)
        };
        changed().map_err(|error| self.run.duck(&error))
    }

    /// The first column of a query of the engine's own.
    fn ask(&self, sql: &str, params: &[&str]) -> Result<Vec<String>, Failure> {
        self.run.kept.connection.column_with(sql, params).map_err(|error| self.run.duck(&error))
    }
}

/// What makes two loads the same.
fn fingerprint(request: &LoadRequest, media: Media, hash: &Hash) -> String {
    serde_json::json!(["load", request, media.content_type(), hash.text()]).to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::EngineConfig;

    /// An engine in a directory of its own.
    pub fn engine() -> (tempfile::TempDir, Engine) {
        let dir = tempfile::tempdir().expect("a directory");
        let place = |name: &str| dir.path().join(name);
        let config = serde_json::json!({
            "db_path": place("mart.db"), "temp_dir": place("tmp"), "home_dir": place("home"), "memory_limit_bytes": 256 << 20,
            "threads": 1, "max_temp_bytes": 1 << 30,
        });
        let config: EngineConfig = serde_json::from_value(config).expect("a configuration");
        let engine = Engine::open(&config).expect("opens");
        (dir, engine)
    }
}
