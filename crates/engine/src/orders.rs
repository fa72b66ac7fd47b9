//! `POST /writers`: the node closes the writers' gate, keeps it closed, opens it or retires the engine.
//!
//! # Consistency
//! As for a checkpoint, running writers end before the gate counts as closed, so the position in the answer is the last one that
//! this engine commits while it stays so. A COMMIT under way is never interrupted.
//!
//! # Cancellation
//! Once begun an order goes on although its request is gone; a later order ends its wait. What fails leaves the gate as it was.

use std::time::{Duration, Instant};

use crate::{
    exec::Engine,
    failure::Failure,
    queries::Reason,
    view,
    wire::{Code, WritersAnswer, WritersRequest, WritersState},
    writers::{ClosedGate, NotClosed, Turn},
};

/// How long stopped writers may take to end.
const ABORT: Duration = Duration::from_secs(5);
/// A writer that came in just before is not yet known as one: stopping is repeated.
const REPEAT: Duration = Duration::from_millis(20);

/// Carries out `request` on this thread.
pub fn order(engine: &Engine, request: WritersRequest) -> Result<WritersAnswer, Failure> {
    if engine.view.is_some() {
        return Err(view::nobody_writes());
    }
    let gate = &engine.gate;
    let turn = gate.order();
    match request.state {
        WritersState::Open => {
            if !gate.open() {
                return Err(retired());
            }
        }
        WritersState::Closed if gate.is_retired() => return Err(retired()),
        WritersState::Closed | WritersState::Retired => {
            if let Some(closed) = close(engine, turn, request)? {
                gate.keep(closed);
            }
            if request.state == WritersState::Retired && !gate.retire() {
                return Err(superseded());
            }
        }
    }
    let point = engine.mart.commits.latest().0;
    Ok(WritersAnswer { state: request.state, iteration: point.iteration, wal_bytes: point.wal_end })
}

/// `None` if the gate is kept closed already.
fn close(engine: &Engine, turn: Turn, request: WritersRequest) -> Result<Option<ClosedGate<'_>>, Failure> {
    let patience = Instant::now() + Duration::from_millis(request.wait_ms);
    let end = if request.abort { patience + ABORT } else { patience };
    let wait = || {
        let now = Instant::now();
        if now >= end {
            return Err(NotClosed::Late);
        }
        if now < patience {
            return Ok(patience - now);
        }
        engine.queries.cancel_writers(Reason::Exchange);
        engine.roll_back_idle();
        Ok(REPEAT)
    };
    engine.gate.close_by(turn, wait).map_err(|why| match why {
        NotClosed::Ordered => superseded(),
        NotClosed::Late => {
            Failure::new(Code::Conflict, "writes that run stand in the way").hint("try again later").transient()
        }
    })
}

fn superseded() -> Failure {
    Failure::new(Code::Conflict, "another order for the writers' gate came meanwhile")
}

fn retired() -> Failure {
    Failure::new(Code::Conflict, "the engine is retired: it lets no writer in any more")
}
