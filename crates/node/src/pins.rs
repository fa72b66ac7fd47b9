//! Who reads the past of a mart just now, so that no sweep deletes under them.
//!
//! Whoever looks at a mart's log to read from it takes a pin first and keeps it until the last byte. It counts on this node only:
//! what other nodes read is covered by the grace period.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// All pins of a node.
#[derive(Debug, Clone, Default)]
pub struct AllPins(Arc<Mutex<HashMap<Uuid, usize>>>);

/// The pins of one life of a mart.
#[derive(Debug, Clone)]
pub struct Pins {
    all: AllPins,
    incarnation: Uuid,
}

/// One that reads, until dropped.
#[derive(Debug)]
pub struct Pin(Pins);

impl AllPins {
    /// Those of one life of a mart.
    pub fn of(&self, incarnation: Uuid) -> Pins {
        Pins { all: self.clone(), incarnation }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pins {
    /// Before the first look at the log.
    pub fn pin(&self) -> Pin {
        *self.all.lock().entry(self.incarnation).or_default() += 1;
        Pin(self.clone())
    }

    /// Whether anybody reads.
    pub fn any(&self) -> bool {
        self.all.lock().contains_key(&self.incarnation)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut all = self.0.all.lock();
        if let Some(count) = all.get_mut(&self.0.incarnation) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.0.incarnation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mart_is_read_as_long_as_anybody_reads_it() {
        let all = AllPins::default();
        let (pins, other) = (all.of(Uuid::from_u128(1)), all.of(Uuid::from_u128(2)));
        let (first, second) = (pins.pin(), pins.pin());
        drop(first);
        assert!(pins.any() && !other.any());
        drop(second);
        assert!(!pins.any());
    }
}
