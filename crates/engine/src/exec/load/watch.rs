//! What a load looks at while its client sends nothing.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::{
    exec::Engine,
    failure::Failure,
    queries::{Query, Reason},
    wire::Code,
};

/// A client that sends nothing for so long loses its load if others wait for the writers to leave.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Watch<'a> {
    engine: &'a Engine,
    query: &'a Query,
    /// Its transaction is open.
    pub inside: AtomicBool,
    /// Nobody needs the body any more.
    pub abandoned: AtomicBool,
}

impl<'a> Watch<'a> {
    pub fn new(engine: &'a Engine, query: &'a Query) -> Self {
        Self { engine, query, inside: AtomicBool::new(false), abandoned: AtomicBool::new(false) }
    }

    /// Called every few milliseconds while nothing comes; an error ends the load.
    pub fn idle(&self, waited: Duration) -> Result<(), Failure> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Failure::new(Code::Cancelled, "the load was given up"));
        }
        match self.query.reason() {
            Some(Reason::Stalled) => return Err(stalled()),
            Some(reason) => return Err(reason.into()),
            None => {}
        }
        if waited > PATIENCE && self.inside.load(Ordering::Relaxed) && self.engine.gate.is_waited_for() {
            return Err(stalled());
        }
        Ok(())
    }
}

fn stalled() -> Failure {
    Failure::new(Code::Limited, "the body did not come while others waited for the load to end")
        .hint("send it again, without pauses")
        .transient()
}
