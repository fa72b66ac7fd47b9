//! How many Arrow bodies are read at once: what is read of them lies in memory that DuckDB does not count.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// Bodies at once.
const MOST: usize = 2;
/// How often one that waits looks whether it has to stop.
const LOOK: Duration = Duration::from_millis(20);

/// The places.
#[derive(Default)]
pub struct Places {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    taken: usize,
    waiting: usize,
}

/// One of them, until dropped.
pub struct Place<'a>(&'a Places);

impl Places {
    /// Waits for a place; an error of `look` ends the wait.
    pub fn take<E>(&self, look: impl Fn() -> Result<(), E>) -> Result<Place<'_>, E> {
        let mut state = self.lock();
        state.waiting += 1;
        while state.taken >= MOST {
            state = self.freed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            if state.taken < MOST {
                break;
            }
            // It asks `is_waited_for`. A wake-up missed meanwhile is made up for by the next wait's end.
            drop(state);
            let looked = look();
            state = self.lock();
            if let Err(error) = looked {
                state.waiting -= 1;
                if state.taken < MOST {
                    self.freed.notify_one();
                }
                return Err(error);
            }
        }
        state.waiting -= 1;
        state.taken += 1;
        Ok(Place(self))
    }

    /// Does somebody wait for one?
    pub fn is_waited_for(&self) -> bool {
        self.lock().waiting > 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().taken -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_place_waits_until_one_is_free_or_has_to_stop() {
        let places = Places::default();
        let taken: Vec<_> = (0..MOST).map(|_| places.take(|| Ok::<_, ()>(())).expect("free")).collect();
        assert!(!places.is_waited_for());
        assert!(matches!(places.take(|| Err(places.is_waited_for())), Err(true)), "it looks while it waits");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| places.take(|| Ok::<_, ()>(())).is_ok());
            while !places.is_waited_for() {
                std::thread::yield_now();
            }
            drop(taken);
            assert!(waiter.join().expect("ends"));
        });
    }
}
