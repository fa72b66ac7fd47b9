//! The writers' gate: writing transactions pass together, a checkpoint passes alone, and the node can keep it closed.
//!
//! A transaction that may write enters before its BEGIN and leaves after its COMMIT or ROLLBACK. Reads outside a transaction never
//! come here. Not here: who is aborted when a checkpoint or the node can't wait (see `checkpoint`, `orders`).
//!
//! **Invariants:** closed means that nobody is inside; a retired gate never opens again.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often a waiting writer looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

/// Shared by all writers of a mart.
#[derive(Debug, Default)]
pub struct WriterGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    writers: usize,
    door: Door,
    /// The node's orders so far; one that waits gives up when another comes.
    orders: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Door {
    #[default]
    Open,
    /// Somebody has a [`ClosedGate`], or waits for the last writer to get one.
    Closing,
    /// By order, until the next one.
    Kept,
    /// For good.
    Retired,
}

/// Leave to write, until dropped. A session keeps it between requests, as long as its transaction is open.
pub struct WriterPass(Arc<WriterGate>);

/// Nobody else writes, until dropped.
#[derive(Debug)]
pub struct ClosedGate<'a>(&'a WriterGate);

/// Why a writer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEntered {
    /// It was cancelled while it waited.
    Cancelled,
    /// Nobody is let in any more.
    Retired,
}

/// Why the gate could not be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotClosed {
    /// Writers were inside, or another held it closed, until the deadline.
    Late,
    /// The node keeps it closed, or ordered something else meanwhile.
    Ordered,
}

/// An order's turn: the newest one has the say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl WriterGate {
    /// Waits until the gate is open, or until `cancelled` says so.
    pub fn enter(self: &Arc<Self>, cancelled: impl Fn() -> bool) -> Result<WriterPass, NotEntered> {
        let mut state = self.lock();
        loop {
            match state.door {
                Door::Open => break,
                Door::Retired => return Err(NotEntered::Retired),
                Door::Closing | Door::Kept if cancelled() => return Err(NotEntered::Cancelled),
                Door::Closing | Door::Kept => {
                    state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        state.writers += 1;
        Ok(WriterPass(self.clone()))
    }

    /// Holds off new writers and waits until the running ones are done.
    pub fn close(&self, deadline: Instant) -> Result<ClosedGate<'_>, NotClosed> {
        self.close_while(|_| left(deadline))
    }

    /// Begins an order of the node's; one that waits gives up.
    pub fn order(&self) -> Turn {
        let mut state = self.lock();
        state.orders += 1;
        self.changed.notify_all();
        Turn(state.orders)
    }

    /// As [`Self::close`], for an order; `None` if the gate is kept closed already. `wait` says before each wait how long it may
    /// last, or why to give up.
    pub fn close_by(
        &self,
        turn: Turn,
        mut wait: impl FnMut() -> Result<Duration, NotClosed>,
    ) -> Result<Option<ClosedGate<'_>>, NotClosed> {
        if matches!(self.lock().door, Door::Kept | Door::Retired) {
            return Ok(None);
        }
        self.close_while(|orders| if orders == turn.0 { wait() } else { Err(NotClosed::Ordered) }).map(Some)
    }

    /// Keeps the gate closed.
    pub fn keep(&self, closed: ClosedGate<'_>) {
        self.lock().door = Door::Kept;
        drop(closed);
    }

    /// Takes a kept gate over: it opens when that is dropped. `None` if it is not kept.
    pub fn take_kept(&self) -> Option<ClosedGate<'_>> {
        let mut state = self.lock();
        if state.door != Door::Kept {
            return None;
        }
        state.door = Door::Closing;
        Some(ClosedGate(self))
    }

    /// Turns a kept gate into one that never opens; false if it is not kept.
    pub fn retire(&self) -> bool {
        let mut state = self.lock();
        if state.door == Door::Kept {
            state.door = Door::Retired;
        }
        self.changed.notify_all();
        state.door == Door::Retired
    }

    /// Opens a kept gate, leaves a checkpoint alone; false if it is retired.
    pub fn open(&self) -> bool {
        let mut state = self.lock();
        if state.door == Door::Kept {
            state.door = Door::Open;
        }
        self.changed.notify_all();
        state.door != Door::Retired
    }

    /// Does somebody wait until all writers are done?
    pub fn is_waited_for(&self) -> bool {
        let state = self.lock();
        state.door == Door::Closing && state.writers > 0
    }

    /// Is nobody let in any more?
    pub fn is_retired(&self) -> bool {
        self.lock().door == Door::Retired
    }

    fn close_while(
        &self,
        mut wait: impl FnMut(u64) -> Result<Duration, NotClosed>,
    ) -> Result<ClosedGate<'_>, NotClosed> {
        let mut state = self.lock();
        while state.door != Door::Open {
            if state.door != Door::Closing {
                return Err(NotClosed::Ordered);
            }
            state = self.wait(state, &mut wait)?;
        }
        state.door = Door::Closing;
        while state.writers > 0 {
            state = match self.wait(state, &mut wait) {
                Ok(state) => state,
                Err(why) => {
                    self.lock().door = Door::Open;
                    self.changed.notify_all();
                    return Err(why);
                }
            };
        }
        drop(state);
        Ok(ClosedGate(self))
    }

    /// Waits for a change, as long as `time` says, which is asked without the lock: whoever waits may have to roll back transactions,
    /// and those leave the gate.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        time: &mut impl FnMut(u64) -> Result<Duration, NotClosed>,
    ) -> Result<MutexGuard<'a, State>, NotClosed> {
        let before = (state.door, state.writers, state.orders);
        drop(state);
        let time = time(before.2)?;
        let state = self.lock();
        if (state.door, state.writers, state.orders) != before {
            return Ok(state);
        }
        Ok(self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left(deadline: Instant) -> Result<Duration, NotClosed> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or(NotClosed::Late)
}

impl Drop for WriterPass {
    fn drop(&mut self) {
        self.0.lock().writers -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for ClosedGate<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.door == Door::Closing {
            state.door = Door::Open;
        }
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn closing_waits_for_writers_and_holds_off_new_ones() {
        let gate = Arc::new(WriterGate::default());
        let pass = gate.enter(|| false).expect("open");
        assert!(gate.close(Instant::now()).is_err(), "a writer is inside");
        let second = gate.enter(|| false).expect("a close that gave up opened it again");
        drop((pass, second));
        let closed = gate.close(soon()).expect("nobody inside");
        assert_eq!(gate.enter(|| true).err(), Some(NotEntered::Cancelled), "a cancelled writer does not wait");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.enter(|| false).is_ok());
            drop(closed);
            assert!(waiter.join().expect("ends"));
        });
    }

    #[test]
    fn a_kept_gate_lets_nobody_in_until_it_is_opened_and_a_retired_one_never() {
        let gate = Arc::new(WriterGate::default());
        assert!(!gate.retire(), "writers may be inside");
        let closed = gate.close_by(gate.order(), || left(soon())).ok().flatten().expect("open");
        gate.keep(closed);
        assert_eq!(gate.enter(|| true).err(), Some(NotEntered::Cancelled));
        assert_eq!(gate.close(soon()).err(), Some(NotClosed::Ordered), "no checkpoint meanwhile");
        assert!(gate.close_by(gate.order(), || left(soon())).expect("again").is_none());
        assert!(gate.open() && gate.enter(|| true).is_ok());
        let closed = gate.close_by(gate.order(), || left(soon())).ok().flatten().expect("open");
        gate.keep(closed);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.enter(|| false).err());
            assert!(gate.retire());
            assert_eq!(waiter.join().expect("ends"), Some(NotEntered::Retired));
        });
        assert!(!gate.open());
        assert_eq!(gate.enter(|| false).err(), Some(NotEntered::Retired));
    }

    #[test]
    fn a_later_order_takes_the_place_of_one_that_waits() {
        let gate = Arc::new(WriterGate::default());
        let pass = gate.enter(|| false).expect("open");
        let first = gate.order();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.close_by(first, || left(soon())).err());
            gate.order();
            assert_eq!(waiter.join().expect("ends"), Some(NotClosed::Ordered));
        });
        drop(pass);
        assert!(gate.enter(|| true).is_ok(), "open as before");
    }
}
