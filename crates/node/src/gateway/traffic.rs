//! Bytes that pass the gateway, counted per tenant and direction.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::names::Tenant;

/// Which way bytes went, as an engine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Store to engine.
    Read,
    /// Engine to store.
    Write,
}

/// One count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes {
    /// Whose.
    pub tenant: Tenant,
    /// Which way.
    pub direction: Direction,
    /// How many since the node started.
    pub bytes: u64,
}

/// One tenant's counts.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
}

impl Traffic {
    pub(super) fn add(&self, direction: Direction, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.of(direction).fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn get(&self, direction: Direction) -> u64 {
        self.of(direction).load(Ordering::Relaxed)
    }

    fn of(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.written,
        }
    }
}
