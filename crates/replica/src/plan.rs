//! The restore plan: folds records into "this base, these blocks, these WAL parts". Pure: no clock, no disk, no store.
//!
//! **Invariant:** the fold refuses any gap: a record that does not name its predecessor's hash, a WAL part that does not
//! continue the previous one, a part of another iteration than its base's.

use bytes::Bytes;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::layout::Layout;
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
    /// Whose log is read, if a relative's.
    foreign: Option<Layout>,
    /// The next record may be a fence anywhere: it cuts what was read before.
    turned: bool,
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

    /// The records from here on are of this relative's log.
    pub fn read_from(&mut self, relative: Option<Layout>) {
        self.foreign = relative;
    }

    /// The next record is the fence that cut what was read so far.
    pub fn turn(&mut self) {
        self.turned = true;
    }

    /// Whether the last record is the one with that hash.
    pub fn ends_with(&self, hash: Hash) -> Result<()> {
        match self.last {
            Some((_, last)) if last == hash => Ok(()),
            last => {
                let slot = last.map_or(0, |(slot, _)| slot);
                Err(Error::corrupt(format!("log record {slot}"), "it is not the one that is built on"))
            }
        }
    }

    /// Cuts the plan at an earlier position of what was read; false if no commit ended there.
    pub fn cut(&mut self, position: Position) -> Result<bool> {
        let (Some(tip), Some(life)) = (self.tip, self.lives.last_mut()) else { return Ok(false) };
        let ends = life.parts.iter().flat_map(|part| &part.ends).any(|(end, _)| *end == position.wal_bytes);
        // A fence may have cut where the log of this epoch begins.
        let whole = position.wal_bytes == 0 || ends || position.wal_bytes == tip.durable;
        if life.iteration != position.iteration || position.wal_bytes > tip.durable || !whole {
            return Ok(false);
        }
        let wal_prefix =
            if self.keep_wal { crate::restore::wal_prefix_at(life, tip, position.wal_bytes)? } else { tip.wal_prefix };
        life.cut(position.wal_bytes);
        self.tip = Some(Tip { wal_bytes: position.wal_bytes, durable: position.wal_bytes, wal_prefix, ..tip });
        Ok(true)
    }

    /// Takes the next record. The first must be a base, or slot 1.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        let header = &record.header;
        let corrupt = |reason: String| Error::corrupt(format!("log record {}", header.slot), reason);
        let turned = std::mem::take(&mut self.turned);
        if turned && !matches!(header.kind, Kind::Fence { .. }) {
            return Err(corrupt("only a fence goes on elsewhere".into()));
        }
        match self.last.filter(|_| !turned) {
            Some((slot, hash)) if header.slot != slot + 1 || header.prev != hash => {
                return Err(corrupt("it does not continue its predecessor".into()));
            }
            None if !turned && header.slot != 1 && !matches!(header.kind, Kind::Base { .. }) => {
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
                manifest: match &self.foreign {
                    Some(layout) => layout.qualified(manifest),
                    None => manifest.clone(),
                },
                manifest_hash: *manifest_hash,
                image: *image,
                iteration: *iteration,
                parts: Vec::new(),
            }),
            Kind::Names {} | Kind::Claim {} => {}
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
        life.cut(from.wal_bytes);
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
        let blocks = if table == 0 {
            BlockMap::new()
        } else {
            pack::decode_table(&object, &record.payload[..table], self.foreign.as_ref())?
        };
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
    fn cut(&mut self, wal_bytes: u64) {
        self.parts.retain(|part| part.from < wal_bytes);
        if let Some(part) = self.parts.last_mut() {
            part.to = part.to.min(wal_bytes);
            part.ends.retain(|(end, _)| *end <= wal_bytes);
        }
    }

    /// Blocks shipped on top of the base's, newest first.
    pub fn overlay(&self) -> BlockMap {
        let mut blocks = BlockMap::new();
        for part in &self.parts {
            blocks.extend(part.blocks.iter().map(|(block, reference)| (*block, reference.clone())));
        }
        blocks
    }
}
