//! Framing of DuckDB's write-ahead log, as bytes. Does not know what a frame says, only where commits end and whether the
//! database file may hold blocks that the log points to.
//!
//! Format (DuckDB 1.5.5, WAL version 2): a header of serialized properties without a checksum, then frames
//! `[u64 size][u64 checksum][payload]`, little endian. A payload starts `64 00` and the frame's type as a varint.
//! A file of storage version ≥ 1.3 has the database's identifier and checkpoint iteration in the header; an older one has not.
//!
//! **Invariant:** a FLUSH end is only believed after every frame before it was whole and its checksum right.

use std::fs::File;
use std::os::unix::fs::FileExt;

mod checksum;

pub use checksum::{Checksum, checksum};

/// Bytes before a frame's payload.
pub const FRAME_HEADER_BYTES: u64 = 16;
/// A header is at most: version, identifier (16 varints of up to 2 bytes), iteration (10 bytes), ends.
pub const MAX_HEADER_BYTES: usize = 64;

const TYPE_ROW_GROUP_DATA: u64 = 29;
const TYPE_VERSION: u64 = 98;
const TYPE_CHECKPOINT: u64 = 99;
const TYPE_FLUSH: u64 = 100;
/// Frames known to carry all they mean; anything not listed is treated like pointers into the file.
const SELF_CONTAINED: [u64; 24] =
    [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 25, 26, 27, 28, TYPE_CHECKPOINT, TYPE_FLUSH];

/// Why a WAL cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The bytes are not what DuckDB 1.5.5 writes.
    #[error("WAL is corrupt at byte {at}: {reason}")]
    Corrupt {
        /// Offset in the file.
        at: u64,
        /// What did not fit.
        reason: &'static str,
    },
    /// A WAL of another version (3 is encrypted).
    #[error("WAL version {0} is not supported")]
    Version(u64),
    /// The disk failed.
    #[error("reading the WAL: {0}")]
    Io(#[from] std::io::Error),
}

/// What the first bytes of a WAL say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its length; the first frame starts here.
    pub bytes: u64,
    /// Identifier of the database file, if the storage version has one.
    pub db_identifier: Option<[u8; 16]>,
    /// Checkpoint iteration it belongs to, if the storage version has it.
    pub iteration: Option<u64>,
}

/// What a frame means to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// End of a commit.
    Flush,
    /// A checkpoint began; no commit.
    Checkpoint,
    /// All its data is in the frame.
    SelfContained,
    /// Points into the database file, or is of a type we do not know.
    Pointers,
}

/// One whole frame with a right checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Offset of its size field.
    pub start: u64,
    /// Offset after its payload.
    pub end: u64,
    /// What it means.
    pub kind: FrameKind,
}

/// Parses the header. `None` when `bytes` (the file's beginning) stops before the header's end.
pub fn parse_header(bytes: &[u8]) -> Result<Option<Header>, WalError> {
    let mut cursor = Cursor { bytes, at: 0 };
    match cursor.header() {
        Ok(header) => Ok(Some(header)),
        Err(HeaderFault::Short) if bytes.len() < MAX_HEADER_BYTES => Ok(None),
        Err(HeaderFault::Short) => Err(WalError::Corrupt { at: 0, reason: "header does not end" }),
        Err(HeaderFault::Bad(at, reason)) => Err(WalError::Corrupt { at, reason }),
        Err(HeaderFault::Version(version)) => Err(WalError::Version(version)),
    }
}

enum HeaderFault {
    Short,
    Bad(u64, &'static str),
    Version(u64),
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn header(&mut self) -> Result<Header, HeaderFault> {
        if self.field()? != 100 || self.varint()? != TYPE_VERSION {
            return Err(HeaderFault::Bad(0, "does not start with a version"));
        }
        if self.field()? != 101 {
            return Err(HeaderFault::Bad(self.at as u64, "version number missing"));
        }
        let version = self.varint()?;
        if version != 2 {
            return Err(HeaderFault::Version(version));
        }
        let mut header = Header { bytes: 0, db_identifier: None, iteration: None };
        loop {
            match self.field()? {
                102 => header.db_identifier = Some(self.identifier()?),
                103 => header.iteration = Some(self.varint()?),
                0xffff => break,
                _ => return Err(HeaderFault::Bad(self.at as u64, "unknown header field")),
            }
        }
        header.bytes = self.at as u64;
        Ok(header)
    }

    fn identifier(&mut self) -> Result<[u8; 16], HeaderFault> {
        if self.varint()? != 16 {
            return Err(HeaderFault::Bad(self.at as u64, "identifier is not 16 bytes"));
        }
        let mut identifier = [0; 16];
        for byte in &mut identifier {
            *byte = u8::try_from(self.varint()?)
                .map_err(|_| HeaderFault::Bad(self.at as u64, "identifier byte out of range"))?;
        }
        Ok(identifier)
    }

    fn byte(&mut self) -> Result<u8, HeaderFault> {
        let byte = *self.bytes.get(self.at).ok_or(HeaderFault::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn field(&mut self) -> Result<u16, HeaderFault> {
        Ok(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    /// LEB128, at most 64 bits.
    fn varint(&mut self) -> Result<u64, HeaderFault> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(HeaderFault::Bad(self.at as u64, "number too long"))
    }
}

/// Reads the header of an open WAL. `None` if the file is empty or holds only a part of one.
pub fn read_header(file: &File) -> Result<Option<Header>, WalError> {
    let mut bytes = [0; MAX_HEADER_BYTES];
    let read = read_up_to(file, &mut bytes, 0)?;
    parse_header(&bytes[..read])
}

/// Walks frames from an offset, checking each.
pub struct Walker<'a> {
    file: &'a File,
    at: u64,
    limit: u64,
    buffer: Vec<u8>,
}

impl<'a> Walker<'a> {
    /// `from`: a frame's start. `limit`: the end of what may be read (the file's length, or less).
    pub fn new(file: &'a File, from: u64, limit: u64) -> Self {
        Self { file, at: from, limit, buffer: vec![0; 256 << 10] }
    }

    /// The next whole frame. `None` at the limit, and at a frame that does not fit before it (a torn tail).
    /// A frame that fits but has a wrong checksum is an error: DuckDB would refuse the file.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WalError> {
        let start = self.at;
        if self.limit.saturating_sub(start) < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let mut head = [0; FRAME_HEADER_BYTES as usize];
        self.file.read_exact_at(&mut head, start)?;
        let (size, stored) = (le_u64(&head[..8]), le_u64(&head[8..]));
        let payload = start + FRAME_HEADER_BYTES;
        if size > self.limit - payload {
            return Ok(None);
        }
        let mut sum = Checksum::new();
        let mut kind = None;
        let mut offset = 0;
        while offset < size {
            let length = usize::try_from(size - offset).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let chunk = &mut self.buffer[..length];
            self.file.read_exact_at(chunk, payload + offset)?;
            if offset == 0 {
                kind = frame_kind(chunk);
            }
            sum.update(chunk);
            offset += length as u64;
        }
        if sum.finish() != stored {
            return Err(WalError::Corrupt { at: start, reason: "frame checksum does not match" });
        }
        let kind = kind.ok_or(WalError::Corrupt { at: start, reason: "frame has no type" })?;
        self.at = payload + size;
        Ok(Some(Frame { start, end: self.at, kind }))
    }
}

/// End of the last whole, checksum-valid FLUSH at or before `limit`, walking from the header; 0 if there is none.
/// A torn or damaged tail ends the walk: what follows it was never acknowledged.
pub fn last_flush(file: &File, limit: u64) -> Result<u64, WalError> {
    let Some(header) = read_header(file)? else { return Ok(0) };
    let mut walker = Walker::new(file, header.bytes, limit);
    let mut end = 0;
    loop {
        match walker.next_frame() {
            Ok(Some(Frame { end: frame_end, kind: FrameKind::Flush, .. })) => end = frame_end,
            Ok(Some(_)) => {}
            Ok(None) | Err(WalError::Corrupt { .. }) => return Ok(end),
            Err(other) => return Err(other),
        }
    }
}

fn frame_kind(payload: &[u8]) -> Option<FrameKind> {
    let mut cursor = Cursor { bytes: payload, at: 0 };
    let (Ok(100), Ok(kind)) = (cursor.field(), cursor.varint()) else { return None };
    Some(match kind {
        TYPE_FLUSH => FrameKind::Flush,
        TYPE_CHECKPOINT => FrameKind::Checkpoint,
        TYPE_ROW_GROUP_DATA => FrameKind::Pointers,
        other if SELF_CONTAINED.contains(&other) => FrameKind::SelfContained,
        _ => FrameKind::Pointers,
    })
}

fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("callers pass eight bytes"))
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
