//! Packs: many blocks in one immutable object, each compressed by itself so that one block is one range read.
//!
//! Does not decide which blocks to ship. A block's identity is the blake3 of its raw bytes, checked on every read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::layout::Layout;

/// A pack is closed once it holds this many bytes.
pub const PACK_BYTES: usize = 8 << 20;
const ZSTD_LEVEL: i32 = 1;
/// Compression that saves less than one part in so many is not worth the time to undo it.
const LEAST_SAVING: usize = 8;
const RAW: u32 = 1 << 31;

/// Where a block's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRef {
    /// Name of the pack below the incarnation's root.
    pub pack: Arc<str>,
    /// Offset in the pack.
    pub offset: u32,
    /// Stored length.
    pub length: u32,
    /// Stored as it is: compression did not help enough.
    pub raw: bool,
    /// Hash of the raw block.
    pub hash: Hash,
}

/// Blocks of a file by number.
pub type BlockMap = HashMap<u64, BlockRef>;

/// A pack being filled.
#[derive(Debug)]
pub struct PackBuilder {
    /// Its name.
    pub name: Arc<str>,
    bytes: Vec<u8>,
}

impl PackBuilder {
    /// Empty.
    pub fn new(name: String) -> Self {
        Self { name: name.into(), bytes: Vec::new() }
    }

    /// Appends a block whose hash is known.
    pub fn push(&mut self, block: &[u8], hash: Hash) -> BlockRef {
        let compressed = zstd::bulk::compress(block, ZSTD_LEVEL)
            .ok()
            .filter(|bytes| bytes.len() < block.len() - block.len() / LEAST_SAVING);
        let raw = compressed.is_none();
        let stored = compressed.as_deref().unwrap_or(block);
        let offset = u32::try_from(self.bytes.len()).expect("a pack is closed at 8 MiB");
        self.bytes.extend_from_slice(stored);
        BlockRef {
            pack: Arc::clone(&self.name),
            offset,
            length: u32::try_from(stored.len()).expect("a block is at most 1 MiB"),
            raw,
            hash,
        }
    }

    /// True when it should be uploaded.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= PACK_BYTES
    }

    /// True if nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The object's bytes.
    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

/// Unpacks and verifies one stored block; borrows it if it was stored as it is.
pub fn unpack<'a>(reference: &BlockRef, stored: &'a [u8], block_bytes: u64) -> Result<Cow<'a, [u8]>> {
    let corrupt =
        |reason: String| Error::corrupt(reference.pack.as_ref(), format!("block at {}: {reason}", reference.offset));
    if stored.len() != reference.length as usize {
        return Err(corrupt(format!("{} bytes where {} were stored", stored.len(), reference.length)));
    }
    let size = usize::try_from(block_bytes).map_err(|_| corrupt("block size".into()))?;
    let block = if reference.raw {
        Cow::Borrowed(stored)
    } else {
        Cow::Owned(zstd::bulk::decompress(stored, size).map_err(|error| corrupt(error.to_string()))?)
    };
    if block.len() != size || Hash::of(&block) != reference.hash {
        return Err(corrupt("content does not match its hash".into()));
    }
    Ok(block)
}

/// Encodes a table of blocks (zstd). Rows are sorted by block number.
pub fn encode_table<'a>(blocks: impl IntoIterator<Item = (u64, &'a BlockRef)>) -> Vec<u8> {
    let mut rows: Vec<_> = blocks.into_iter().collect();
    rows.sort_unstable_by_key(|(block, _)| *block);
    let mut packs: Vec<&str> = Vec::new();
    let mut index: HashMap<&str, u32> = HashMap::new();
    let mut body = Vec::with_capacity(rows.len() * 48);
    for (block, reference) in &rows {
        let pack = *index.entry(&reference.pack).or_insert_with(|| {
            packs.push(&reference.pack);
            u32::try_from(packs.len() - 1).expect("fewer packs than blocks")
        });
        body.put_u32_le(u32::try_from(*block).expect("block numbers are checked when the file is read"));
        body.put_u32_le(pack);
        body.put_u32_le(reference.offset);
        body.put_u32_le(reference.length | if reference.raw { RAW } else { 0 });
        body.put_slice(&reference.hash.0);
    }
    let mut table = Vec::with_capacity(body.len() + packs.len() * 64 + 8);
    table.put_u32_le(u32::try_from(packs.len()).expect("fewer packs than blocks"));
    table.put_u32_le(u32::try_from(rows.len()).expect("block numbers are 32 bits"));
    for pack in packs {
        table.put_u16_le(u16::try_from(pack.len()).expect("pack names are short"));
        table.put_slice(pack.as_bytes());
    }
    table.extend_from_slice(&body);
    zstd::bulk::compress(&table, ZSTD_LEVEL).expect("compressing memory to memory cannot fail")
}

/// Decodes a table of blocks; `object` names where it was found. In the table of a relative the packs' names mean that one's:
/// `of` is its layout, and the names come back qualified.
pub fn decode_table(object: &str, compressed: &[u8], of: Option<&Layout>) -> Result<BlockMap> {
    let corrupt = |reason: &str| Error::corrupt(object, format!("block table: {reason}"));
    let table = zstd::stream::decode_all(compressed).map_err(|error| corrupt(&error.to_string()))?;
    let mut rest = table.as_slice();
    let short = || corrupt("cut short");
    let pack_count = rest.try_get_u32_le().map_err(|_| short())?;
    let rows = rest.try_get_u32_le().map_err(|_| short())? as usize;
    let mut packs: Vec<Arc<str>> = Vec::new();
    for _ in 0..pack_count {
        let length = usize::from(rest.try_get_u16_le().map_err(|_| short())?);
        let (name, after) = rest.split_at_checked(length).ok_or_else(short)?;
        let name = std::str::from_utf8(name).map_err(|_| corrupt("pack name is not UTF-8"))?;
        packs.push(of.map_or_else(|| name.into(), |layout| layout.qualified(name).into()));
        rest = after;
    }
    if rest.len() != rows * 48 {
        return Err(short());
    }
    let mut blocks = BlockMap::with_capacity(rows);
    while rest.has_remaining() {
        let block = u64::from(rest.get_u32_le());
        let pack = packs.get(rest.get_u32_le() as usize).ok_or_else(|| corrupt("pack out of range"))?;
        let (offset, length) = (rest.get_u32_le(), rest.get_u32_le());
        let mut hash = [0; 32];
        rest.copy_to_slice(&mut hash);
        blocks.insert(
            block,
            BlockRef {
                pack: Arc::clone(pack),
                offset,
                length: length & !RAW,
                raw: length & RAW != 0,
                hash: Hash(hash),
            },
        );
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_from_a_pack() {
        let mut pack = PackBuilder::new("pack/a".into());
        let flat = vec![7; 1 << 16];
        let noise: Vec<u8> = blake3::Hasher::new().finalize_xof_bytes(1 << 16);
        let refs = [&flat, &noise].map(|block| pack.push(block, Hash::of(block)));
        assert!(!refs[0].raw && refs[1].raw);
        let bytes = pack.finish();
        for (reference, block) in refs.iter().zip([&flat, &noise]) {
            let stored = &bytes[reference.offset as usize..][..reference.length as usize];
            assert_eq!(&*unpack(reference, stored, 1 << 16).expect("whole"), block);
            let mut damaged = stored.to_vec();
            damaged[0] ^= 1;
            assert!(matches!(unpack(reference, &damaged, 1 << 16), Err(Error::Corrupt { .. })));
        }
    }

    #[test]
    fn a_table_comes_back_and_a_cut_one_is_corrupt() {
        let reference = |n: u32| BlockRef {
            pack: format!("pack/{}", n % 2).into(),
            offset: n,
            length: n + 1,
            raw: n == 3,
            hash: Hash::of(&[n as u8]),
        };
        let blocks: BlockMap = (0..5).map(|n| (u64::from(n) * 3, reference(n))).collect();
        let table = encode_table(blocks.iter().map(|(block, reference)| (*block, reference)));
        assert_eq!(decode_table("x", &table, None).expect("whole"), blocks);
        let raw = zstd::stream::decode_all(table.as_slice()).expect("zstd");
        for cut in 0..raw.len() {
            let cut = zstd::bulk::compress(&raw[..cut], 1).expect("zstd");
            assert!(matches!(decode_table("x", &cut, None), Err(Error::Corrupt { .. })));
        }
    }

    trait Noise {
        fn finalize_xof_bytes(&self, length: usize) -> Vec<u8>;
    }

    impl Noise for blake3::Hasher {
        fn finalize_xof_bytes(&self, length: usize) -> Vec<u8> {
            let mut bytes = vec![0; length];
            self.finalize_xof().fill(&mut bytes);
            bytes
        }
    }
}
