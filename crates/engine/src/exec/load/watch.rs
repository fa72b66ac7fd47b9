//! What a load looks at while its client sends, and while it sends nothing.

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

    /// Called with each read, and every few milliseconds while nothing comes; an error ends the load.
    pub fn look(&self, waited: Duration) -> Result<(), Failure> {
        match waited.is_zero() {
            true => self.query.flows(),
            false => self.query.stalls(),
        }
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Failure::new(Code::Cancelled, "the load was given up"));
        }
        match self.query.reason() {
            Some(Reason::Stalled) => return Err(stalled()),
            Some(reason) => return Err(reason.into()),
            None => {}
        }
        let inside = self.inside.load(Ordering::Relaxed);
        let in_the_way = inside && self.engine.gate.is_waited_for() || self.engine.loads.is_waited_for();
        if waited > PATIENCE && in_the_way { Err(stalled()) } else { Ok(()) }
    }
}

fn stalled() -> Failure {
    Failure::new(Code::Limited, "the body did not come while others waited for the load to end")
        .hint("send it again, without pauses")
        .transient()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::exec::load::tests::engine;

    #[test]
    fn a_client_that_pauses_loses_its_load_only_if_it_is_in_the_way() {
        let (_dir, engine) = engine();
        let ticket = engine.queries.start(uuid::Uuid::new_v4(), "ann".into(), None).expect("starts");
        let watch = Watch::new(&engine, ticket.query());
        let long = PATIENCE + Duration::from_secs(1);
        let look = || watch.look(long).map_err(|failure| (failure.code, failure.transient));
        let pass = engine.gate.enter(|| false).expect("open");
        watch.inside.store(true, Ordering::Relaxed);
        assert_eq!(look(), Ok(()), "nobody waits");
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| engine.gate.close(Instant::now() + Duration::from_secs(60)).is_ok());
            while !engine.gate.is_waited_for() {
                std::thread::yield_now();
            }
            assert_eq!(look(), Err((Code::Limited, true)));
            assert!(watch.look(Duration::from_secs(1)).is_ok(), "a short pause");
            watch.inside.store(false, Ordering::Relaxed);
            assert_eq!(look(), Ok(()), "it has not begun");
            drop(pass);
            assert!(closing.join().expect("ends"));
        });
        engine.queries.cancel(ticket.query().id, "ann", Reason::Cancelled);
        assert_eq!(watch.look(Duration::ZERO).map_err(|failure| failure.code), Err(Code::Cancelled));
    }
}
