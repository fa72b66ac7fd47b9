//! Follows the WAL through records in order: parts without a gap, and at every record the hash of all bytes up to there.
//!
//! Keeps one part in memory, never the WAL.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::layout::Layout;
use crate::plan::{Part, Plan};
use crate::record::{Kind, Record};
use crate::restore::part_bytes;
use crate::ship::blocking;

/// Where a walk is. Until it meets a base (or a log's first record) it knows nothing.
#[derive(Debug, Default)]
pub(super) struct Walk {
    plan: Option<Plan>,
    foreign: Option<Layout>,
    /// The next record is a fence that cuts what was read so far.
    turned: bool,
    /// Over all WAL bytes of this life.
    wal: blake3::Hasher,
    at: u64,
    /// The last part, with what was before it: a fence may cut inside.
    last: Option<(u64, blake3::Hasher, Bytes)>,
    /// Up to the last whole commit.
    durable: (u64, blake3::Hasher),
}

impl Walk {
    /// Something is missing: nothing can be said before the next base.
    pub(super) fn lose(&mut self) {
        *self = Self { foreign: self.foreign.take(), ..Self::default() };
    }

    /// The next record is a fence that cuts here.
    pub(super) fn turn(&mut self) {
        self.turned = true;
    }

    /// Whether the next record is such a fence.
    pub(super) fn turned(&self) -> bool {
        self.turned
    }

    /// The records from here on are of a relative's log.
    pub(super) fn read_from(&mut self, relative: Option<Layout>) {
        self.foreign = relative;
    }

    /// Takes the next record. `Corrupt` says what does not fit; the walk is lost then.
    pub(super) async fn take(&mut self, record: Record) -> Result<()> {
        let walk = std::mem::take(self);
        let foreign = walk.foreign.clone();
        match blocking(move || walk.step(&record)).await {
            Ok(walk) => {
                *self = walk;
                Ok(())
            }
            Err(error) => {
                self.foreign = foreign;
                Err(error)
            }
        }
    }

    fn step(mut self, record: &Record) -> Result<Self> {
        let header = &record.header;
        let starts = matches!(header.kind, Kind::Base { .. }) || header.slot == 1 && !self.turned;
        if starts {
            self = Self { foreign: self.foreign.take(), plan: Some(Plan::new(false)), ..Self::default() };
        }
        let turned = std::mem::take(&mut self.turned);
        let Some(plan) = &mut self.plan else { return Ok(self) };
        plan.read_from(self.foreign.clone());
        if turned {
            plan.turn();
        }
        plan.push(record)?;
        let corrupt = |reason: &str| Error::corrupt(format!("log record {}", header.slot), reason);
        match &header.kind {
            Kind::Commits { wal_from, wal_to, table_bytes, .. } => {
                let table = usize::try_from(*table_bytes).unwrap_or(usize::MAX);
                let part = Part {
                    slot: header.slot,
                    from: *wal_from,
                    to: *wal_to,
                    stored_bytes: wal_to - wal_from,
                    ends: Vec::new(),
                    blocks: Default::default(),
                    wal: record.payload.slice(table.min(record.payload.len())..),
                };
                let bytes = Bytes::from(part_bytes(&part)?);
                let before = self.wal.clone();
                let durable = header.tip.map_or(0, |tip| tip.durable);
                if (*wal_from..=*wal_to).contains(&durable) {
                    let mut up_to = before.clone();
                    up_to.update(&bytes[..length(durable - wal_from)]);
                    self.durable = (durable, up_to);
                }
                self.wal.update(&bytes);
                self.at = *wal_to;
                self.last = Some((*wal_from, before, bytes));
            }
            Kind::Fence { from: Some(from), .. } => match self.cut(from.wal_bytes) {
                Some(hasher) => {
                    (self.wal, self.at) = (hasher, from.wal_bytes);
                    self.durable = (self.at, self.wal.clone());
                    self.last = None;
                }
                None => return Err(corrupt("it goes on from where no part of the WAL ends")),
            },
            _ => {}
        }
        match header.tip {
            Some(tip) if Hash::from(self.wal.finalize()) != tip.wal_prefix => {
                Err(corrupt("the WAL up to it is not what was shipped"))
            }
            _ => Ok(self),
        }
    }

    /// Over the WAL's first bytes, if the cut lies where one can.
    fn cut(&self, at: u64) -> Option<blake3::Hasher> {
        if at == self.at {
            return Some(self.wal.clone());
        }
        if at == 0 {
            return Some(blake3::Hasher::new());
        }
        if at == self.durable.0 {
            return Some(self.durable.1.clone());
        }
        let (from, before, bytes) = self.last.as_ref()?;
        let kept = bytes.get(..length(at.checked_sub(*from)?))?;
        let mut hasher = before.clone();
        hasher.update(kept);
        Some(hasher)
    }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
