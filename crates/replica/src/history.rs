//! Finds moments in a log: by position, by time, in order.
//!
//! Works on headers read by range, so that a search costs a few small reads whatever the log's length. Headers alone are not checked
//! by hash: what is found is checked when its records are read to build on it.
//!
//! **Invariant:** slots, epochs with their tips, and times all go up together; so a bisection over slots finds any of them.

use std::ops::Range;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::log::Log;
use crate::names::{Names, Past};
use crate::position::Position;
use crate::record::{Header, Kind, Record};

const PARALLEL_READS: usize = 16;
/// Headers read at once at least.
const LEAST_PIECE: usize = 64;

/// What made a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A commit.
    Commit,
    /// The log was folded into the file; nothing changed.
    Checkpoint,
    /// A writer's reign began: a restart elsewhere, a rollback, a branch, a vacuum.
    Epoch,
}

/// A restorable moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Its position.
    pub position: Position,
    /// When, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// What made it.
    pub what: What,
    /// Bytes that came with it: of the WAL for a commit, of the file for a checkpoint.
    pub bytes: u64,
}

/// Which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Now,
    /// The last one not after this time, in microseconds since the Unix epoch.
    Time(i64),
    /// Exactly this one.
    Position(Position),
}

/// The moments of one record, oldest first.
pub fn moments(header: &Header) -> Vec<Moment> {
    let at = |iteration, wal_bytes| Position { epoch: header.epoch, iteration, wal_bytes };
    match &header.kind {
        Kind::Commits { iteration, wal_from, ends, .. } => {
            let mut from = *wal_from;
            ends.iter()
                .map(|(end, time_us)| {
                    // A header may be read before its hash is checked.
                    let bytes = end.saturating_sub(std::mem::replace(&mut from, *end));
                    Moment { position: at(*iteration, *end), time_us: *time_us, what: What::Commit, bytes }
                })
                .collect()
        }
        Kind::Base { iteration, file_bytes, .. } => vec![Moment {
            position: at(*iteration, 0),
            time_us: header.time_us,
            what: What::Checkpoint,
            bytes: *file_bytes,
        }],
        Kind::Fence { .. } => {
            let tip = header.tip.iter();
            tip.map(|tip| Moment {
                position: at(tip.iteration, tip.durable),
                time_us: header.time_us,
                what: What::Epoch,
                bytes: 0,
            })
            .collect()
        }
        Kind::Names {} | Kind::Claim {} | Kind::Drop {} => Vec::new(),
    }
}

/// A log as far as it is known to reach.
#[derive(Debug)]
pub struct History<'a> {
    log: &'a Log,
    /// Slots that are there.
    slots: Range<u64>,
    head: Record,
}

impl<'a> History<'a> {
    /// Of the log up to `head`.
    pub fn new(log: &'a Log, head: Record, names: &Names) -> Self {
        Self { log, slots: names.floor.max(1)..head.header.slot + 1, head }
    }

    /// The way to a moment. `NotFound` if there is none, or not any more.
    pub async fn find(&self, at: At) -> Result<Past> {
        let missing = |what: String| Error::NotFound(what);
        let (record, moment) = match at {
            At::Now => self.back_from(self.slots.end, |_| true).await?.ok_or_else(|| missing("a commit".into()))?,
            At::Time(time_us) => {
                let after = self.first(|header| header.time_us > time_us).await?;
                // The first record that ends later may begin earlier.
                let end = (after + 1).min(self.slots.end);
                let found = self.back_from(end, |moment| moment.time_us <= time_us).await?;
                found.ok_or_else(|| missing("a commit that early".into()))?
            }
            At::Position(position) => {
                let reaches = |header: &Header| {
                    // Before its first base an epoch has no moment.
                    let tip = header.tip.map(|tip| (tip.iteration, tip.durable));
                    (header.epoch, tip) >= (position.epoch, Some((position.iteration, position.wal_bytes)))
                };
                let slot = self.first(reaches).await?;
                let absent = || missing(format!("position {position}"));
                let record = if slot < self.slots.end { self.log.get(slot).await? } else { None };
                let record = record.ok_or_else(absent)?;
                let moment = moments(&record.header).into_iter().find(|moment| moment.position == position);
                (record, moment.ok_or_else(absent)?)
            }
        };
        let Moment { position, time_us, .. } = moment;
        Ok(Past { position, time_us, route: record.header.route(record.hash) })
    }

    /// Moments in a span of time (microseconds, end not included), oldest first: all of them, or at least the newest `limit`.
    pub async fn between(&self, time_us: Range<i64>, limit: usize) -> Result<Vec<Moment>> {
        let first = self.first(|header| header.time_us >= time_us.start).await?;
        // One more: a record that ends later may begin in the span.
        let mut end = (self.first(|header| header.time_us >= time_us.end).await? + 1).min(self.slots.end);
        let mut pieces = Vec::new();
        let mut found = 0;
        // Backwards, since not every record has a moment.
        while end > first && found < limit {
            let start = first.max(end.saturating_sub((limit - found).max(LEAST_PIECE) as u64));
            let headers: Vec<Header> =
                stream::iter(start..end).map(|slot| self.header(slot)).buffered(PARALLEL_READS).try_collect().await?;
            let piece: Vec<Moment> =
                headers.iter().flat_map(moments).filter(|moment| time_us.contains(&moment.time_us)).collect();
            found += piece.len();
            pieces.push(piece);
            end = start;
        }
        Ok(pieces.into_iter().rev().flatten().collect())
    }

    /// The last moment before `end` that is wanted, with its record.
    async fn back_from(&self, end: u64, wanted: impl Fn(&Moment) -> bool) -> Result<Option<(Record, Moment)>> {
        for slot in (self.slots.start..end).rev() {
            let header = self.header(slot).await?;
            if let Some(moment) = moments(&header).into_iter().rev().find(&wanted) {
                let record = self.log.get(slot).await?.ok_or_else(|| Error::NotFound(format!("log record {slot}")))?;
                return Ok(Some((record, moment)));
            }
        }
        Ok(None)
    }

    /// The first slot whose header is so; the end if none is.
    async fn first(&self, is_so: impl Fn(&Header) -> bool) -> Result<u64> {
        let Range { mut start, mut end } = self.slots.clone();
        while start < end {
            let middle = start + (end - start) / 2;
            if is_so(&self.header(middle).await?) { end = middle } else { start = middle + 1 }
        }
        Ok(start)
    }

    async fn header(&self, slot: u64) -> Result<Header> {
        if slot == self.head.header.slot {
            return Ok(self.head.header.clone());
        }
        self.log.header(slot).await?.ok_or_else(|| Error::NotFound(format!("log record {slot}")))
    }
}
