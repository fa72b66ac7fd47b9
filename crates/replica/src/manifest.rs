//! Manifests: the table of a file's blocks at one checkpoint, with the file's headers. Immutable, named by a base record.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{HEADER_BYTES, Image};
use crate::layout::Layout;
use crate::pack::{self, BlockMap};
use crate::record::{self, MANIFEST_MAGIC, VERSION};

/// A file at one checkpoint.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The file's headers, as they were.
    pub header: Bytes,
    /// Checkpoint iteration.
    pub iteration: u64,
    /// Size of a block.
    pub block_bytes: u64,
    /// Blocks the checkpoint knows of; those not in `blocks` are free.
    pub block_count: u64,
    /// False if the free list was not understood: then any block may change before the next checkpoint.
    pub free_list_known: bool,
    /// The live blocks.
    pub blocks: BlockMap,
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    incarnation: Uuid,
    iteration: u64,
    block_bytes: u64,
    block_count: u64,
    free_list_known: bool,
}

impl Manifest {
    /// Length of the file that it describes.
    pub fn file_bytes(&self) -> u64 {
        let blocks = self.blocks.keys().max().map_or(0, |last| last + 1);
        HEADER_BYTES as u64 + blocks * self.block_bytes
    }

    /// Encodes to the object's bytes.
    pub fn encode(&self, incarnation: Uuid) -> Bytes {
        let head = Head {
            version: VERSION,
            incarnation,
            iteration: self.iteration,
            block_bytes: self.block_bytes,
            block_count: self.block_count,
            free_list_known: self.free_list_known,
        };
        let mut payload = BytesMut::from(self.header.as_ref());
        payload.put_slice(&pack::encode_table(self.blocks.iter().map(|(block, reference)| (*block, reference))));
        record::encode(MANIFEST_MAGIC, &head, &payload)
    }

    /// Decodes the manifest of whoever `home` is; `object` names it in errors. The file's headers must parse and agree. With
    /// `qualify` its packs are named as a relative would.
    pub fn decode(object: &str, home: &Layout, qualify: bool, bytes: &Bytes) -> Result<Self> {
        let (head, payload) = record::decode::<Head>(MANIFEST_MAGIC, object, bytes)?;
        if payload.len() < HEADER_BYTES || head.incarnation != home.owner().incarnation {
            return Err(Error::corrupt(object, "not a manifest of this mart"));
        }
        let header = payload.slice(..HEADER_BYTES);
        let image = Image::parse_headers(header.clone())?;
        if (image.iteration, image.block_bytes, image.block_count)
            != (head.iteration, head.block_bytes, head.block_count)
        {
            return Err(Error::corrupt(object, "the file's header says otherwise"));
        }
        let blocks = pack::decode_table(object, &payload[HEADER_BYTES..], qualify.then_some(home))?;
        if blocks.keys().any(|block| *block >= head.block_count) {
            return Err(Error::corrupt(object, "a block lies past the file's end"));
        }
        let Head { iteration, block_bytes, block_count, free_list_known, .. } = head;
        Ok(Self { header, iteration, block_bytes, block_count, free_list_known, blocks })
    }
}
