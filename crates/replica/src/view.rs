//! A mart's files as of one moment, read by range without restoring them.
//!
//! Does not know who reads. Blocks are fetched when they are first touched, each checked against its hash; those read last are kept.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::image::HEADER_BYTES;
use crate::log::Log;
use crate::names::Past;
use crate::open::MartReplica;
use crate::pack::{self, BlockMap};
use crate::past::Loaded;
use crate::plan::Part;
use crate::position::Position;
use crate::restore::{self, Read};
use crate::ship::blocking;

/// Blocks kept in memory.
const CACHE_BYTES: usize = 32 << 20;
const PARALLEL_READS: usize = 8;

/// Files as of one moment.
#[derive(Debug)]
pub struct View {
    log: Log,
    position: Position,
    header: Bytes,
    block_bytes: u64,
    blocks: BlockMap,
    db_bytes: u64,
    parts: Vec<Part>,
    wal_bytes: u64,
    cache: Mutex<Cache>,
    fetched: AtomicU64,
}

#[derive(Debug, Default)]
struct Cache {
    blocks: HashMap<u64, Bytes>,
    order: VecDeque<u64>,
    bytes: usize,
    /// The part of the WAL that was read last.
    part: Option<(u64, Bytes)>,
}

impl MartReplica {
    /// Reads what there is to know of a moment's files; their blocks later.
    pub async fn view(&self, past: &Past) -> Result<View> {
        let Loaded { life, manifest, tip } = Loaded::of(&self.log, past).await?;
        let mut blocks = manifest.blocks;
        blocks.extend(life.overlay());
        let count = blocks.keys().max().map_or(0, |last| last + 1).max(manifest.block_count);
        Ok(View {
            log: self.log.clone(),
            position: past.position,
            header: manifest.header,
            block_bytes: manifest.block_bytes,
            db_bytes: HEADER_BYTES as u64 + count * manifest.block_bytes,
            blocks,
            parts: life.parts,
            wal_bytes: tip.durable,
            cache: Mutex::default(),
            fetched: AtomicU64::new(0),
        })
    }
}

impl View {
    /// The moment.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Length of the database file.
    pub fn db_bytes(&self) -> u64 {
        self.db_bytes
    }

    /// Length of the WAL; 0 means that there is none.
    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes
    }

    /// Bytes that were read from the store for blocks so far.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Bytes of the database file; the range must lie inside.
    pub async fn read_db(&self, range: Range<u64>) -> Result<Bytes> {
        if range.end > self.db_bytes || range.is_empty() {
            return Err(Error::Misuse("a range outside the file".into()));
        }
        let header = HEADER_BYTES as u64;
        let mut out = BytesMut::with_capacity(usize_of(range.end - range.start)?);
        if range.start < header {
            out.extend_from_slice(&self.header[usize_of(range.start)?..usize_of(range.end.min(header))?]);
        }
        if range.end > header {
            let (start, end) = (range.start.max(header) - header, range.end - header);
            let numbers = start / self.block_bytes..end.div_ceil(self.block_bytes);
            let found = self.blocks(numbers.clone()).await?;
            for number in numbers {
                let first = number * self.block_bytes;
                let (from, to) = (start.max(first) - first, end.min(first + self.block_bytes) - first);
                match found.get(&number) {
                    Some(block) => out.extend_from_slice(&block[usize_of(from)?..usize_of(to)?]),
                    // A free block: nobody reads what it held.
                    None => out.resize(out.len() + usize_of(to - from)?, 0),
                }
            }
        }
        Ok(out.freeze())
    }

    /// Bytes of the WAL; the range must lie inside.
    pub async fn read_wal(&self, range: Range<u64>) -> Result<Bytes> {
        if range.end > self.wal_bytes || range.is_empty() {
            return Err(Error::Misuse("a range outside the WAL".into()));
        }
        let mut out = BytesMut::with_capacity(usize_of(range.end - range.start)?);
        for part in self.parts.iter().filter(|part| part.from < range.end && part.to > range.start) {
            let bytes = self.part(part).await?;
            let (from, to) = (range.start.max(part.from) - part.from, range.end.min(part.to) - part.from);
            out.extend_from_slice(&bytes[usize_of(from)?..usize_of(to)?]);
        }
        Ok(out.freeze())
    }

    async fn part(&self, part: &Part) -> Result<Bytes> {
        if let Some((_, bytes)) = self.cache().part.as_ref().filter(|(from, _)| *from == part.from) {
            return Ok(bytes.clone());
        }
        let wanted = part.clone();
        let bytes = Bytes::from(blocking(move || restore::part_bytes(&wanted)).await?);
        self.cache().part = Some((part.from, bytes.clone()));
        Ok(bytes)
    }

    async fn blocks(&self, numbers: Range<u64>) -> Result<HashMap<u64, Bytes>> {
        let mut found = HashMap::new();
        let mut missing = BlockMap::new();
        {
            let cache = self.cache();
            for number in numbers {
                match (cache.blocks.get(&number), self.blocks.get(&number)) {
                    (Some(block), _) => drop(found.insert(number, block.clone())),
                    (None, Some(reference)) => drop(missing.insert(number, reference.clone())),
                    (None, None) => {}
                }
            }
        }
        let mut fetched =
            stream::iter(restore::reads(&missing)).map(|read| self.fetch(read)).buffer_unordered(PARALLEL_READS);
        while let Some(blocks) = fetched.try_next().await? {
            self.cache().keep(&blocks);
            found.extend(blocks);
        }
        drop(fetched);
        Ok(found)
    }

    async fn fetch(&self, read: Read) -> Result<Vec<(u64, Bytes)>> {
        let mut bytes = Vec::new();
        restore::fetch_range(&self.log, &read, &mut bytes).await?;
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let block_bytes = self.block_bytes;
        blocking(move || {
            read.blocks
                .iter()
                .map(|(number, reference)| {
                    let start = usize_of(u64::from(reference.offset) - read.range.start)?;
                    let stored = &bytes[start..start + reference.length as usize];
                    Ok((*number, Bytes::from(pack::unpack(reference, stored, block_bytes)?.into_owned())))
                })
                .collect()
        })
        .await
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn keep(&mut self, blocks: &[(u64, Bytes)]) {
        for (number, block) in blocks {
            self.bytes += block.len();
            match self.blocks.insert(*number, block.clone()) {
                Some(before) => self.bytes -= before.len(),
                None => self.order.push_back(*number),
            }
        }
        while self.bytes > CACHE_BYTES
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.blocks.remove(&oldest).map_or(0, |block| block.len());
        }
    }
}

fn usize_of(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| Error::Misuse("a range larger than memory".into()))
}
