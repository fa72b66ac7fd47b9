//! The restore plan: folds records into "this base, these blocks, these WAL parts". Pure: no clock, no disk, no store.
//!
//! **Invariant:** the fold refuses any gap: a record that does not name its predecessor's hash, a WAL part that does not
//! continue the previous one, a part of another iteration than its base's.

use bytes::Bytes;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::pack::{self, BlockMap};
use crate::position::Position;
use crate::record::{Header, Kind, Record, Tip};

/// What must be fetched and written to have the mart at the plan's position.
#[derive(Debug, Default)]
pub struct Plan {
    last: Option<(u64, Hash)>,
    lives: Vec<Life>,
    tip: Option<Tip>,
    epoch: u64,
    keep_wal: bool,
}

/// A base and what was shipped on top of it.
#[derive(Debug, Clone)]
pub struct Life {
    /// Slot of the base record.
    pub slot: u64,
    /// Name of its manifest.
    pub manifest: String,
    /// Hash of the manifest.
    pub manifest_hash: Hash,
    /// Which file it was.
    pub image: Uuid,
    /// Its checkpoint.
    pub iteration: u64,
    /// WAL parts, without a gap from byte 0.
    pub parts: Vec<Part>,
}

/// A part of the WAL.
#[derive(Debug, Clone)]
pub struct Part {
    /// Where it was found.
    pub slot: u64,
    /// First byte.
    pub from: u64,
    /// After the last byte; less than was stored if a later epoch continued inside.
    pub to: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Commits that end in it.
    pub ends: Vec<(u64, i64)>,
    /// Blocks of the file that came with it.
    pub blocks: BlockMap,
    /// The part, compressed; empty if the plan does not keep WAL bytes.
    pub wal: Bytes,
}

impl Plan {
    /// An empty plan. Without `keep_wal` the WAL's bytes are dropped: enough to know what was shipped.
    pub fn new(keep_wal: bool) -> Self {
        Self { keep_wal, ..Self::default() }
    }

    /// Takes the next record. The first must be a base, or slot 1.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        let header = &record.header;
        let corrupt = |reason: String| Error::corrupt(format!("log record {}", header.slot), reason);
        match self.last {
            Some((slot, hash)) if header.slot != slot + 1 || header.prev != hash => {
                return Err(corrupt("it does not continue its predecessor".into()));
            }
            None if header.slot != 1 && !matches!(header.kind, Kind::Base { .. }) => {
                return Err(corrupt("a plan starts at a base".into()));
            }
            _ => {}
        }
        if header.epoch < self.epoch {
            return Err(corrupt("epochs go back".into()));
        }
        match &header.kind {
            Kind::Fence { from, .. } => self.fence(header, *from)?,
            Kind::Commits { .. } => self.commits(record)?,
            Kind::Base { iteration, manifest, manifest_hash, image, .. } => self.lives.push(Life {
                slot: header.slot,
                manifest: manifest.clone(),
                manifest_hash: *manifest_hash,
                image: *image,
                iteration: *iteration,
                parts: Vec::new(),
            }),
            Kind::Drop {} => return Err(Error::Dropped),
        }
        self.last = Some((header.slot, record.hash));
        self.epoch = header.epoch;
        self.tip = header.tip;
        self.check_tip(header)
    }

    /// The base and parts that the last record builds on; `None` if nothing was ever shipped.
    pub fn life(&self) -> Option<&Life> {
        self.lives.last()
    }

    /// How far the log reaches.
    pub fn tip(&self) -> Option<Tip> {
        self.tip
    }

    /// Slot and hash of the last record taken.
    pub fn last(&self) -> Option<(u64, Hash)> {
        self.last
    }

    /// The last whole commit; `None` if nothing was ever shipped.
    pub fn position(&self) -> Option<Position> {
        self.tip.map(|tip| Position { epoch: self.epoch, iteration: tip.iteration, wal_bytes: tip.durable })
    }

    fn fence(&mut self, header: &Header, from: Option<Position>) -> Result<()> {
        let corrupt = |reason: &str| Error::corrupt(format!("log record {}", header.slot), reason);
        let Some(from) = from else {
            return if self.lives.is_empty() { Ok(()) } else { Err(corrupt("a fence from nowhere after a base")) };
        };
        self.lives.retain(|life| life.slot <= header.base_slot);
        let life =
            self.lives.last_mut().filter(|life| life.slot == header.base_slot && life.iteration == from.iteration);
        let life = life.ok_or_else(|| corrupt("a fence from a base that is not there"))?;
        life.parts.retain(|part| part.from < from.wal_bytes);
        if let Some(part) = life.parts.last_mut() {
            part.to = part.to.min(from.wal_bytes);
            part.ends.retain(|(end, _)| *end <= from.wal_bytes);
        }
        Ok(())
    }

    fn commits(&mut self, record: &Record) -> Result<()> {
        let Kind::Commits { iteration, wal_from, wal_to, ends, table_bytes } = &record.header.kind else {
            return Ok(());
        };
        let object = format!("log record {}", record.header.slot);
        let corrupt = |reason: &str| Error::corrupt(object.as_str(), reason);
        let life =
            self.lives.last_mut().filter(|life| life.iteration == *iteration && life.slot == record.header.base_slot);
        let life = life.ok_or_else(|| corrupt("commits without their base"))?;
        if life.parts.last().map_or(0, |part| part.to) != *wal_from || wal_to <= wal_from {
            return Err(corrupt("its WAL part does not continue the previous one"));
        }
        let table = usize::try_from(*table_bytes).ok().filter(|bytes| *bytes <= record.payload.len());
        let table = table.ok_or_else(|| corrupt("block table longer than the payload"))?;
        let blocks = if table == 0 { BlockMap::new() } else { pack::decode_table(&object, &record.payload[..table])? };
        let wal = if self.keep_wal { record.payload.slice(table..) } else { Bytes::new() };
        let (from, to) = (*wal_from, *wal_to);
        life.parts.push(Part {
            slot: record.header.slot,
            from,
            to,
            stored_bytes: to - from,
            ends: ends.clone(),
            blocks,
            wal,
        });
        Ok(())
    }

    /// What the header says the log holds must be what the fold found.
    fn check_tip(&self, header: &Header) -> Result<()> {
        let found = self.lives.last().map(|life| {
            let ends = life.parts.iter().rev().find_map(|part| part.ends.last());
            (life.slot, life.iteration, life.parts.last().map_or(0, |part| part.to), ends.map_or(0, |(end, _)| *end))
        });
        let said = header.tip.map(|tip| (header.base_slot, tip.iteration, tip.wal_bytes, tip.durable));
        if found == said {
            Ok(())
        } else {
            Err(Error::corrupt(format!("log record {}", header.slot), "its tip is not where the log is"))
        }
    }
}

impl Life {
    /// Blocks shipped on top of the base's, newest first.
    pub fn overlay(&self) -> BlockMap {
        let mut blocks = BlockMap::new();
        for part in &self.parts {
            blocks.extend(part.blocks.iter().map(|(block, reference)| (*block, reference.clone())));
        }
        blocks
    }
}
