//! Framing of a DuckDB database file: three headers, then blocks. Does not know what a block holds, except for the chain of
//! the free list.
//!
//! Format (DuckDB 1.5.5): 4096-byte headers at 0 (main), 4096 and 8192 (database; the higher iteration counts), each starting
//! with a checksum of the rest; blocks from offset 12288. The free list is a chain of metadata blocks, 64 to a block:
//! `[u64 next][data]`, a pointer holding the block in its low 56 bits and the place in it above.
//!
//! **Invariant:** a block is called free only if the whole chain is sane and its checksums are right; else nothing is, and
//! every block counts as live (and as changeable).

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::wal::checksum;

/// Bytes before the first block; they travel in the manifest.
pub const HEADER_BYTES: usize = 12288;
const ONE_HEADER: usize = 4096;
const MAGIC: &[u8; 4] = b"DUCK";
const NONE: u64 = u64::MAX;
const METADATA_PER_BLOCK: u64 = 64;

/// The state of a database file at one checkpoint.
#[derive(Debug, Clone)]
pub struct Image {
    /// The first [`HEADER_BYTES`] of the file.
    pub header: Bytes,
    /// Checkpoint iteration; 0 in a new file.
    pub iteration: u64,
    /// Blocks that the checkpoint knows of. The file may be longer (bulk commits) or shorter (free blocks cut off).
    pub block_count: u64,
    /// Size of a block, 256 KiB unless the file was made otherwise.
    pub block_bytes: u64,
    /// Blocks that hold nothing; `None` if the list could not be read.
    pub free: Option<HashSet<u64>>,
}

impl Image {
    /// Reads headers and free list.
    pub fn read(file: &File) -> Result<Self> {
        let mut image = Self::read_headers(file)?;
        image.free = image.read_free_list(file);
        if image.free.is_none() {
            tracing::warn!(iteration = image.iteration, "free list not understood; all blocks count as live");
        }
        Ok(image)
    }

    /// Reads the headers only: `free` stays `None`.
    pub fn read_headers(file: &File) -> Result<Self> {
        let mut header = vec![0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(Error::io("reading the database header"))?;
        Self::parse_headers(header.into())
    }

    /// Parses the first [`HEADER_BYTES`] of a file.
    pub fn parse_headers(header: Bytes) -> Result<Self> {
        let corrupt = |reason: &str| Error::corrupt("database file", reason);
        if header.len() != HEADER_BYTES {
            return Err(corrupt("header is cut short"));
        }
        if &header[8..12] != MAGIC {
            return Err(corrupt("not a DuckDB file"));
        }
        for part in header.chunks_exact(ONE_HEADER) {
            if checksum(&part[8..]) != word(part, 0) {
                return Err(corrupt("header checksum does not match"));
            }
        }
        let (first, second) = (&header[ONE_HEADER..2 * ONE_HEADER], &header[2 * ONE_HEADER..]);
        let active = if word(first, 8) > word(second, 8) { first } else { second };
        let (iteration, block_count, block_bytes) = (word(active, 8), word(active, 32), word(active, 40));
        if !block_bytes.is_power_of_two() || !(16 << 10..=1 << 20).contains(&block_bytes) {
            return Err(corrupt("block size out of range"));
        }
        if block_count > u64::from(u32::MAX) {
            return Err(corrupt("block count out of range"));
        }
        Ok(Self { iteration, block_count, block_bytes, free: None, header })
    }

    /// Offset of a block in the file.
    pub fn offset(&self, block: u64) -> u64 {
        HEADER_BYTES as u64 + block * self.block_bytes
    }

    /// Whole blocks in a file of this length.
    pub fn blocks_in(&self, file_bytes: u64) -> u64 {
        file_bytes.saturating_sub(HEADER_BYTES as u64) / self.block_bytes
    }

    /// True if the checkpoint refers to the block: its content stays until the next checkpoint.
    pub fn is_live(&self, block: u64) -> bool {
        block < self.block_count && self.free.as_ref().is_none_or(|free| !free.contains(&block))
    }

    /// All live blocks, ascending.
    pub fn live(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.block_count).filter(|block| self.is_live(*block))
    }

    fn active(&self) -> &[u8] {
        let (first, second) = (&self.header[ONE_HEADER..2 * ONE_HEADER], &self.header[2 * ONE_HEADER..]);
        if word(first, 8) > word(second, 8) { first } else { second }
    }

    fn read_free_list(&self, file: &File) -> Option<HashSet<u64>> {
        let mut pointer = word(self.active(), 24);
        if pointer == NONE {
            return Some(HashSet::new());
        }
        let piece_bytes = (self.block_bytes - 8) / METADATA_PER_BLOCK / 8 * 8;
        let mut data = Vec::new();
        let mut wanted = 8;
        let mut holders = HashSet::new();
        let mut block = vec![0; usize::try_from(self.block_bytes).ok()?];
        let mut loaded = None;
        // The list is longer than the chain: count, ids, multi-use blocks, metadata blocks. Only the ids are read.
        while data.len() < wanted {
            let (holder, piece) = (pointer & (NONE >> 8), pointer >> 56);
            if pointer == NONE || holder >= self.block_count || piece >= METADATA_PER_BLOCK || !holders.insert(pointer)
            {
                return None;
            }
            if loaded != Some(holder) {
                file.read_exact_at(&mut block, self.offset(holder)).ok()?;
                if checksum(&block[8..]) != word(&block, 0) {
                    return None;
                }
                loaded = Some(holder);
            }
            let start = usize::try_from(8 + piece * piece_bytes).ok()?;
            let piece = &block[start..start + usize::try_from(piece_bytes).ok()?];
            data.extend_from_slice(&piece[8..]);
            pointer = word(piece, 0);
            let count = word(&data, 0);
            if count > self.block_count {
                return None;
            }
            wanted = usize::try_from(8 + 8 * count).ok()?;
        }
        let ids: Vec<u64> = data[8..wanted].chunks_exact(8).map(|id| word(id, 0)).collect();
        let ascending = ids.windows(2).all(|pair| pair[0] < pair[1]);
        let in_range = ids.last().is_none_or(|last| *last < self.block_count);
        let free: HashSet<u64> = ids.into_iter().collect();
        let holds_itself = holders.iter().any(|pointer| free.contains(&(pointer & (NONE >> 8))));
        (ascending && in_range && !holds_itself).then_some(free)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
