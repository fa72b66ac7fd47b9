//! What is named or held in a mart's history: snapshots, branches, and what a sweep has taken. Small, whole in every record of it.
//!
//! # Consistency
//! It lives in the log, so a snapshot, a branch, a rollback and a sweep have one order, and a writer that was deposed can't sweep.
//! The newest record of names counts; every header says where that is.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{Owner, Record, Stretch};

const ZSTD_LEVEL: i32 = 3;
/// A mart has at most so many names; each record of names holds them all.
pub const MAX_SNAPSHOTS: usize = 10_000;

/// A moment of a mart and the way to it through the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Where a commit ended.
    pub position: Position,
    /// When, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// What to read, oldest first.
    pub route: Vec<Stretch>,
}

/// A moment with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The moment.
    #[serde(flatten)]
    pub past: Past,
    /// When it was named.
    pub created_us: i64,
    /// Made by a schedule.
    #[serde(default)]
    pub automatic: bool,
}

/// A mart that builds on a moment of this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The child.
    pub child: Owner,
    /// When it was noted.
    pub created_us: i64,
    /// The moment.
    #[serde(flatten)]
    pub past: Past,
}

/// Objects that nothing refers to any more, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doomed {
    /// Nobody could begin to use them after this.
    pub since_us: i64,
    /// Keys below the incarnation's root.
    pub objects: Vec<String>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// By name.
    #[serde(default)]
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Marts that share packs of this one.
    #[serde(default)]
    pub branches: Vec<Branch>,
    /// How long every position is kept, in microseconds, if not as long as everywhere.
    #[serde(default)]
    pub keep_us: Option<i64>,
    /// Slots below are swept; of those that something named needs, there is a copy.
    #[serde(default)]
    pub floor: u64,
    /// Slots below the floor of which there is a copy, as ranges.
    #[serde(default)]
    pub kept: Vec<(u64, u64)>,
    /// When upkeep of each kind was last done, in microseconds since the Unix epoch.
    #[serde(default)]
    pub done: BTreeMap<String, i64>,
    /// To be deleted after the grace period.
    #[serde(default)]
    pub doomed: Vec<Doomed>,
}

impl Names {
    /// The record's payload.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("names have string keys");
        zstd::bulk::compress(&json, ZSTD_LEVEL).expect("compressing memory to memory cannot fail")
    }

    /// From a record's payload.
    pub fn decode(record: &Record) -> Result<Self> {
        let object = format!("log record {}", record.header.slot);
        let json = zstd::stream::decode_all(Bytes::clone(&record.payload).as_ref())
            .map_err(|error| Error::corrupt(object.as_str(), error.to_string()))?;
        serde_json::from_slice(&json).map_err(|error| Error::corrupt(object, error.to_string()))
    }

    /// Whether the log still has all that a moment needs, as far as it is `own`.
    pub fn holds(&self, past: &Past, own: &Owner) -> bool {
        let is_own = |stretch: &&Stretch| stretch.owner.as_ref().is_none_or(|owner| owner == own);
        let is_there = |slot| slot >= self.floor || self.kept.iter().any(|(from, to)| (*from..=*to).contains(&slot));
        // Copies of a stretch are one range, or part of one.
        let whole = |stretch: &Stretch| {
            let below = stretch.first.min(self.floor)..=stretch.last.min(self.floor.saturating_sub(1));
            is_there(stretch.first)
                && is_there(stretch.last)
                && (stretch.first >= self.floor
                    || self.kept.iter().any(|(from, to)| from <= below.start() && below.end() <= to))
        };
        past.route.iter().filter(is_own).all(whole)
    }

    /// Every moment that is held by a name or a branch.
    pub fn held(&self) -> impl Iterator<Item = &Past> {
        self.snapshots.values().map(|snapshot| &snapshot.past).chain(self.branches.iter().map(|branch| &branch.past))
    }
}
