//! Records: what one log slot holds. An envelope of magic, JSON header, payload and a hash of all that.
//!
//! `[8 magic][u32 LE header length][JSON header][payload][32 blake3 of everything before]`. Manifests share the envelope.
//! A reader refuses a version or kind that it does not know: guessing could skip somebody's commit.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::position::Position;

/// Version of records and manifests that this program writes, and the only one it reads.
pub const VERSION: u32 = 1;
const RECORD_MAGIC: &[u8; 8] = b"TARNLOG1";
/// Magic of a manifest.
pub const MANIFEST_MAGIC: &[u8; 8] = b"TARNMAN1";
const HASH_BYTES: usize = 32;

/// JSON header of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    /// Format version.
    pub version: u32,
    /// The mart's life.
    pub incarnation: Uuid,
    /// The reign of the writer.
    pub epoch: u64,
    /// Own place in the log, from 1.
    pub slot: u64,
    /// Hash of the predecessor's bytes; zeros in slot 1.
    pub prev: Hash,
    /// Random: tells one's own bytes from a rival's after an unclear answer.
    pub nonce: Uuid,
    /// Slot of the base that what follows builds on; 0 before the first base. A base names itself.
    pub base_slot: u64,
    /// When it was written; never less than its predecessor's.
    pub time_us: i64,
    /// What is in the log once this record is.
    pub tip: Option<Tip>,
    /// Slot of the newest fence, this record included: who writes.
    #[serde(default)]
    pub fence_slot: u64,
    /// Slot of the newest record of names, this one included; 0 before the first.
    #[serde(default)]
    pub names_slot: u64,
    /// Where what it builds on lies, if not simply from `base_slot` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detour: Option<Box<Detour>>,
    /// What happened.
    #[serde(flatten)]
    pub kind: Kind,
}

impl Header {
    /// What to read to have the mart as of this record, oldest first; `hash` is the record's.
    pub fn route(&self, hash: Hash) -> Vec<Stretch> {
        route(self.detour.as_deref(), self.base_slot, self.slot, hash)
    }
}

/// What to read to have the mart as of the record in `slot`, oldest first.
pub(crate) fn route(detour: Option<&Detour>, base_slot: u64, slot: u64, hash: Hash) -> Vec<Stretch> {
    let (mut stretches, first) = match detour {
        Some(detour) => (detour.before.clone(), detour.resumes),
        None => (Vec::new(), base_slot.max(1)),
    };
    stretches.push(Stretch { owner: None, first, last: slot, hash });
    stretches
}

/// How far the log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// Iteration of the newest base.
    pub iteration: u64,
    /// WAL bytes shipped; may end inside a commit that is shipped in parts.
    pub wal_bytes: u64,
    /// Hash of those bytes, from the WAL's start.
    pub wal_prefix: Hash,
    /// End of the last whole commit among them: what is durable.
    pub durable: u64,
}

impl Tip {
    /// Right after a base.
    pub fn at_base(iteration: u64) -> Self {
        Self { iteration, wal_bytes: 0, wal_prefix: Hash::of(b""), durable: 0 }
    }
}

/// A way through logs that is not one range of slots: after going back to an earlier position, or in a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detour {
    /// What counts of what was before, oldest first; the first stretch begins at the base.
    pub before: Vec<Stretch>,
    /// The fence that cut there; from it on, all records of this log count.
    pub resumes: u64,
}

/// A range of slots of one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Whose log it is; this one's if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// First slot.
    pub first: u64,
    /// Last slot.
    pub last: u64,
    /// Hash of the last slot's record.
    pub hash: Hash,
}

/// One life of a mart, as its relatives name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The mart's name below the common prefix.
    pub mart: String,
    /// Which life.
    pub incarnation: Uuid,
}

/// Kinds of records.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A new epoch begins, continuing at `from` (nowhere: the mart is new).
    Fence {
        /// Who writes now; for people.
        node: String,
        /// What the new epoch starts from.
        from: Option<Position>,
    },
    /// Bytes of the WAL with the file blocks that they may point to. Payload: block table, then the WAL part, each zstd.
    Commits {
        /// Of the file, and of the base in `base_slot`.
        iteration: u64,
        /// First byte of the part.
        wal_from: u64,
        /// After its last byte.
        wal_to: u64,
        /// Commits that end in the part: (end of FLUSH, time in µs).
        ends: Vec<(u64, i64)>,
        /// Length of the compressed block table at the payload's start; 0 if there is none.
        table_bytes: u64,
    },
    /// A whole file at one checkpoint.
    Base {
        /// The checkpoint.
        iteration: u64,
        /// Name of the manifest below the incarnation's root.
        manifest: String,
        /// Hash of the manifest's bytes.
        manifest_hash: Hash,
        /// Length of the file.
        file_bytes: u64,
        /// Which file: drawn at random when the checkpoint was begun, and written beside the file (see `local`). Two copies of
        /// one disk reach the same iteration with different rows; this tells them apart.
        image: Uuid,
    },
    /// All that is named or held in this mart's history, as of now. Payload: JSON, zstd (see `names`).
    Names {},
    /// The epoch's writer still writes. Changes nothing; whoever thought it dead loses the slot.
    Claim {},
    /// The mart is no more. Nothing follows.
    Drop {},
}

/// A decoded record.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Bytes,
    /// Hash of all its bytes: what its successor names as `prev`.
    pub hash: Hash,
}

impl Record {
    /// Encodes to the bytes of the slot's object.
    pub fn encode(header: &Header, payload: &[u8]) -> Bytes {
        encode(RECORD_MAGIC, header, payload)
    }

    /// Decodes the bytes of one record; `object` names it in errors.
    pub fn decode(object: &str, bytes: &Bytes) -> Result<Self> {
        let (header, payload) = decode::<Header>(RECORD_MAGIC, object, bytes)?;
        Ok(Self { header, payload, hash: Hash::of(bytes) })
    }
}

/// What the first bytes of a record hold.
#[derive(Debug)]
pub enum Peeked {
    /// Its header, not checked by hash.
    Header(Box<Header>),
    /// The header is longer: so many bytes hold it.
    Needs(u64),
}

/// Reads a header from a record's first bytes; `object` names it in errors.
pub fn peek(object: &str, bytes: &[u8]) -> Result<Peeked> {
    let corrupt = |reason: String| Error::corrupt(object, reason);
    let (Some(magic), Some(length)) = (bytes.get(..8), bytes.get(8..12)) else {
        return Err(corrupt("cut short".into()));
    };
    if magic != RECORD_MAGIC {
        return Err(corrupt("wrong magic".into()));
    }
    let end = 12 + u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    match bytes.get(12..end) {
        Some(json) => parse_header(object, json).map(|header| Peeked::Header(Box::new(header))),
        None => Ok(Peeked::Needs(end as u64)),
    }
}

/// Envelope with any JSON header.
pub fn encode<H: Serialize>(magic: &[u8; 8], header: &H, payload: &[u8]) -> Bytes {
    let json = serde_json::to_vec(header).expect("headers have string keys and finite numbers");
    let mut bytes = BytesMut::with_capacity(8 + 4 + json.len() + payload.len() + HASH_BYTES);
    bytes.put_slice(magic);
    bytes.put_u32_le(u32::try_from(json.len()).expect("a header is far below 4 GiB"));
    bytes.put_slice(&json);
    bytes.put_slice(payload);
    let hash = blake3::hash(&bytes);
    bytes.put_slice(hash.as_bytes());
    bytes.freeze()
}

/// Checks hash, magic and version of an envelope and parses its header.
pub fn decode<H: DeserializeOwned>(magic: &[u8; 8], object: &str, bytes: &Bytes) -> Result<(H, Bytes)> {
    let corrupt = |reason: String| Error::corrupt(object, reason);
    if bytes.len() < 8 + 4 + HASH_BYTES {
        return Err(corrupt("cut short".into()));
    }
    let body = bytes.slice(..bytes.len() - HASH_BYTES);
    if &body[..8] != magic {
        return Err(corrupt("wrong magic".into()));
    }
    if blake3::hash(&body).as_bytes() != &bytes[body.len()..] {
        return Err(corrupt("hash does not match".into()));
    }
    let length = u32::from_le_bytes(body[8..12].try_into().expect("four bytes")) as usize;
    let json = body.get(12..12 + length).ok_or_else(|| corrupt("header longer than the object".into()))?;
    let header = parse_header(object, json)?;
    Ok((header, body.slice(12 + length..)))
}

fn parse_header<H: DeserializeOwned>(object: &str, json: &[u8]) -> Result<H> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let corrupt = |reason: String| Error::corrupt(object, reason);
    let versioned: Versioned = serde_json::from_slice(json).map_err(|error| corrupt(format!("header: {error}")))?;
    if versioned.version != VERSION {
        return Err(corrupt(format!(
            "format version {} is not known to this program (it knows {VERSION}); a newer one may read it",
            versioned.version
        )));
    }
    serde_json::from_slice(json).map_err(|error| corrupt(format!("header: {error}")))
}
