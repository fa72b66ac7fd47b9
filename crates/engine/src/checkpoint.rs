//! Folding the log into the file, on demand and alone.
//!
//! # Consistency
//! The writers' gate is closed, by the node before it shipped what there was or else here, and all writers are done before CHECKPOINT runs, so no commit can come beside it, and DuckDB never
//! puts one into its second log (`.wal.checkpoint`). The new position is announced before the gate opens again.
//!
//! # Crash consistency
//! DuckDB's: it writes new blocks and a new header and only then removes the log. The answer to the node may be lost; the
//! iteration in the file's header tells what happened.
//!
//! # Cancellation
//! Once CHECKPOINT runs it is not interrupted. Before, it gives up at its deadline and leaves everything as it was.

use std::time::{Duration, Instant};

use crate::{
    commit::CommitError,
    duck::{Connection, DuckError, ErrorKind},
    exec::Engine,
    failure::Failure,
    queries::Reason,
    view,
    wire::{CheckpointAnswer, CheckpointRequest, Code},
    writers::{ClosedGate, NotClosed},
};

/// Between two tries while an old reader is in the way.
const RETRY: Duration = Duration::from_millis(20);
/// How long aborted queries may take to end.
const ABORT: Duration = Duration::from_secs(5);

enum Tried {
    Done(CheckpointAnswer),
    InTheWay,
}

/// Runs a checkpoint on this thread.
pub fn checkpoint(engine: &Engine, request: CheckpointRequest) -> Result<CheckpointAnswer, Failure> {
    if engine.view.is_some() {
        return Err(view::nobody_writes());
    }
    let started = Instant::now();
    let connection = engine.mart.connect().map_err(|error| engine.redactor.failure(&error, None))?;
    // The node has closed it, shipped all there is, and nothing may come in between.
    let kept = engine.gate.take_kept();
    let patience = started + Duration::from_millis(request.reader_wait_ms);
    if let Tried::Done(answer) = until(engine, &connection, kept.as_ref(), started, patience)? {
        return Ok(answer);
    }
    if request.abort_readers {
        engine.queries.cancel_all(Reason::InTheWay);
        engine.roll_back_idle();
        if let Tried::Done(answer) = until(engine, &connection, kept.as_ref(), started, Instant::now() + ABORT)? {
            return Ok(answer);
        }
    }
    Err(Failure::new(Code::Conflict, "queries that run stand in the way of the checkpoint")
        .hint("try again later")
        .transient())
}

fn until(
    engine: &Engine,
    connection: &Connection,
    kept: Option<&ClosedGate<'_>>,
    started: Instant,
    deadline: Instant,
) -> Result<Tried, Failure> {
    let closed = match kept {
        Some(_) => None,
        None => match engine.gate.close(deadline) {
            Ok(gate) => Some(gate),
            Err(NotClosed::Ordered) => {
                return Err(
                    Failure::new(Code::Conflict, "writers are held off by the node").hint("open the gate first")
                );
            }
            Err(NotClosed::Late) => return Ok(Tried::InTheWay),
        },
    };
    let Some(gate) = kept.or(closed.as_ref()) else { return Ok(Tried::InTheWay) };
    loop {
        match once(engine, connection, gate) {
            Ok(point) => {
                let stall_ms = started.elapsed().as_millis() as u64;
                return Ok(Tried::Done(CheckpointAnswer { iteration: point.0, wal_bytes: point.1, stall_ms }));
            }
            // A reader older than a committed change.
            Err(CommitError::Duck(error)) if error.kind == ErrorKind::Transaction => {}
            Err(CommitError::Duck(error)) => return Err(failed(engine, &error)),
            Err(CommitError::Position(error)) => {
                tracing::error!(%error, "the files can't be read after a checkpoint");
                let mut failure = Failure::new(Code::Internal, "the files can't be read after the checkpoint");
                (failure.unknown, failure.fatal) = (true, true);
                return Err(failure);
            }
        }
        if Instant::now() + RETRY > deadline {
            return Ok(Tried::InTheWay);
        }
        std::thread::sleep(RETRY);
    }
}

fn once(engine: &Engine, connection: &Connection, _closed: &ClosedGate<'_>) -> Result<(u64, u64), CommitError> {
    let done = engine.mart.commits.checkpoint(|| connection.execute(&format!("CHECKPOINT {}", crate::open::MART)))?;
    let point = done.unwrap_or_else(|| engine.mart.commits.latest().0);
    match done {
        // DuckDB said yes and did nothing although there is a log: something still holds it.
        None if point.wal_end > 0 => {
            Err(CommitError::Duck(DuckError::new("TransactionContext Error: the log was not folded")))
        }
        _ => Ok((point.iteration, point.wal_end)),
    }
}

/// A checkpoint that failed half way spoils the attached database until it is opened again.
fn failed(engine: &Engine, error: &DuckError) -> Failure {
    tracing::error!(%error, "a checkpoint failed");
    let mut failure = engine.redactor.failure(error, None);
    failure.fatal = true;
    failure
}
