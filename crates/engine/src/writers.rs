//! The writers' gate: writing transactions pass together, a checkpoint passes alone.
//!
//! A transaction that may write enters before its BEGIN and leaves after its COMMIT or ROLLBACK. Reads outside a transaction never
//! come here. Not here: who is aborted when a checkpoint can't wait (see `checkpoint`).

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often a waiting writer looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

/// Shared by all writers of a mart.
#[derive(Default)]
pub struct WriterGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    writers: usize,
    closed: bool,
}

/// Leave to write, until dropped.
pub struct WriterPass<'a>(&'a WriterGate);

/// Nobody else writes, until dropped.
pub struct ClosedGate<'a>(&'a WriterGate);

impl WriterGate {
    /// Waits until the gate is open; `None` if `cancelled` says so first.
    pub fn enter(&self, cancelled: impl Fn() -> bool) -> Option<WriterPass<'_>> {
        let mut state = self.lock();
        while state.closed {
            if cancelled() {
                return None;
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.writers += 1;
        Some(WriterPass(self))
    }

    /// Holds off new writers and waits until the running ones are done; `None` at the deadline, or if another holds it closed.
    pub fn close(&self, deadline: Instant) -> Option<ClosedGate<'_>> {
        let mut state = self.lock();
        while state.closed {
            state = self.wait_until(state, deadline)?;
        }
        state.closed = true;
        let closed = ClosedGate(self);
        while state.writers > 0 {
            match self.wait_until(state, deadline) {
                Some(next) => state = next,
                None => {
                    drop(closed);
                    return None;
                }
            }
        }
        Some(closed)
    }

    fn wait_until<'a>(&'a self, state: MutexGuard<'a, State>, deadline: Instant) -> Option<MutexGuard<'a, State>> {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WriterPass<'_> {
    fn drop(&mut self) {
        self.0.lock().writers -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for ClosedGate<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_waits_for_writers_and_holds_off_new_ones() {
        let gate = WriterGate::default();
        let pass = gate.enter(|| false).expect("open");
        assert!(gate.close(Instant::now()).is_none(), "a writer is inside");
        let second = gate.enter(|| false).expect("a close that gave up opened it again");
        drop((pass, second));
        let closed = gate.close(Instant::now() + Duration::from_secs(5)).expect("nobody inside");
        assert!(gate.enter(|| true).is_none(), "a cancelled writer does not wait");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.enter(|| false).is_some());
            drop(closed);
            assert!(waiter.join().expect("ends"));
        });
    }
}
