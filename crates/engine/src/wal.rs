//! Follows the framing of the mart's write-ahead log, to know where the last commit ends.
//!
//! It reads frame headers, and the names in a few small frames (see [`Names`]), and judges no content: DuckDB has replayed or just
//! written what is read here. It never writes, but for [`cut_torn_tail`], which runs before DuckDB opens the file.
//!
//! Format (DuckDB 1.5.5): a header of properties that ends in `ff ff`, then frames `[u64 size][u64 checksum][payload]`, little
//! endian; a payload starts `64 00` and the frame's type; type 100 (FLUSH) ends a commit.
//!
//! # Crash consistency
//! A crash may leave a torn frame at the end, or whole frames of a commit that did not finish. Those and trailing zeros are cut;
//! anything else in front of the end is left for DuckDB to refuse, so that damage is never taken for a torn tail. Whole frames must
//! go too: DuckDB 1.5.5 makes the types of a log before it looks for commits.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const FRAME_HEADER: u64 = 16;
const CREATE_SCHEMA: u8 = 3;
const DROP_SCHEMA: u8 = 4;
const DROP_TYPE: u8 = 14;
const CHECKPOINT: u8 = 99;
const FLUSH: u8 = 100;
/// Enough for a frame's header and the start of its payload; small commits fit whole.
const READ_BYTES: usize = 4096;

/// The end of the last commit in a log, followed as it grows.
pub struct WalTail {
    path: PathBuf,
    file: Option<File>,
    end: u64,
    names: Names,
}

/// What was made or dropped since the last checkpoint and decides whether a new type can be replayed (see `replay`); lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Schemas that were made or dropped.
    pub schemas: HashSet<String>,
    /// Types that were dropped or replaced.
    pub dropped_types: HashSet<String>,
    /// There are more that can't be told.
    pub unknown: bool,
}

impl Names {
    /// Takes up what the frame of type `kind` says; `payload` is its beginning.
    fn take(&mut self, kind: u8, payload: &[u8]) {
        // Behind the type: field 101, the schema's name; then for a type field 102, its own.
        let fields = payload.get(3..).unwrap_or_default();
        let first = text_field(fields, 101);
        match (kind, first) {
            (CREATE_SCHEMA | DROP_SCHEMA, Some((schema, _))) => self.schemas.insert(schema),
            (DROP_TYPE, Some((_, rest))) => match text_field(rest, 102) {
                Some((name, _)) => self.dropped_types.insert(name),
                None => std::mem::replace(&mut self.unknown, true),
            },
            (CREATE_SCHEMA | DROP_SCHEMA | DROP_TYPE, None) => std::mem::replace(&mut self.unknown, true),
            _ => return,
        };
    }

    fn add(&mut self, other: Names) {
        self.schemas.extend(other.schemas);
        self.dropped_types.extend(other.dropped_types);
        self.unknown |= other.unknown;
    }
}

/// The text of field `id` at the beginning of `bytes`, in lower case, and what follows it.
fn text_field(bytes: &[u8], id: u16) -> Option<(String, &[u8])> {
    if bytes.get(..2)? != id.to_le_bytes() {
        return None;
    }
    let mut at = 2;
    let len = varint(bytes, &mut at)? as usize;
    let text = std::str::from_utf8(bytes.get(at..at.checked_add(len)?)?).ok()?;
    Some((text.to_ascii_lowercase(), &bytes[at + len..]))
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl WalTail {
    /// Of the log at `path`, which may not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, end: 0, names: Names::default() }
    }

    /// What the commits seen so far made and dropped.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// End of the last commit seen, 0 without any.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The log was folded into the database file and begins anew.
    pub fn restart(&mut self) {
        self.file = None;
        self.end = 0;
        self.names = Names::default();
    }

    /// Looks at what was appended; the end of the last whole commit if there is a new one.
    pub fn advance(&mut self) -> io::Result<Option<u64>> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        let Some(file) = &self.file else { return Ok(None) };
        let scan = scan(file, self.end)?;
        if scan.commit_end <= self.end {
            return Ok(None);
        }
        self.end = scan.commit_end;
        self.names.add(scan.names);
        Ok(Some(self.end))
    }
}

/// Cuts what a crash left behind the last whole frame; returns how many bytes that were.
pub fn cut_torn_tail(path: &Path) -> io::Result<u64> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let scan = scan(&file, 0)?;
    let torn = scan.whole_end < size && (scan.incomplete || only_zeros(&file, scan.whole_end, size)?);
    let unfinished = scan.whole_end == size && scan.unfinished;
    if !torn && !unfinished {
        return Ok(0);
    }
    if scan.commit_end == 0 {
        std::fs::remove_file(path)?;
    } else {
        file.set_len(scan.commit_end)?;
    }
    file.sync_all()?;
    Ok(size - scan.commit_end)
}

struct Scan {
    /// End of the last FLUSH; 0 if there is none.
    commit_end: u64,
    /// End of the last whole frame.
    whole_end: u64,
    /// What follows is the beginning of a frame that the file's end cuts off.
    incomplete: bool,
    /// Between the two ends are frames of a commit that did not finish.
    unfinished: bool,
    /// Of the commits.
    names: Names,
}

/// Walks frames from `from`, the end of a commit, or 0 for the log's beginning.
fn scan(file: &File, from: u64) -> io::Result<Scan> {
    let size = file.metadata()?.len();
    let mut buffer = Window { file, bytes: vec![0; READ_BYTES], start: 0, len: 0 };
    let mut scan =
        Scan { commit_end: from, whole_end: from, incomplete: false, unfinished: false, names: Names::default() };
    let mut open = Names::default();
    if from == 0 {
        match header_len(buffer.at(0, 64)?) {
            Some(len) => scan.whole_end = len,
            None => {
                scan.incomplete = size < 64;
                return Ok(scan);
            }
        }
    }
    while scan.whole_end < size {
        let frame = buffer.at(scan.whole_end, FRAME_HEADER as usize + 3)?;
        if frame.len() < FRAME_HEADER as usize + 3 {
            scan.incomplete = true;
            break;
        }
        let payload = u64::from_le_bytes(frame[..8].try_into().expect("eight bytes"));
        if payload < 3 || frame[16..18] != [0x64, 0x00] {
            break;
        }
        let kind = frame[18];
        if matches!(kind, CREATE_SCHEMA | DROP_SCHEMA | DROP_TYPE) {
            let start =
                buffer.at(scan.whole_end, READ_BYTES.min(FRAME_HEADER as usize + payload.min(4096) as usize))?;
            open.take(kind, &start[FRAME_HEADER as usize..]);
        }
        match (scan.whole_end + FRAME_HEADER).checked_add(payload) {
            Some(end) if end <= size => scan.whole_end = end,
            _ => {
                scan.incomplete = true;
                break;
            }
        }
        scan.unfinished = !matches!(kind, FLUSH | CHECKPOINT);
        if kind == FLUSH {
            scan.commit_end = scan.whole_end;
            scan.names.add(std::mem::take(&mut open));
        }
    }
    Ok(scan)
}

/// A few bytes of the file at any offset, read ahead.
struct Window<'a> {
    file: &'a File,
    bytes: Vec<u8>,
    start: u64,
    len: usize,
}

impl Window<'_> {
    /// Up to `len` bytes from `offset`; fewer only at the file's end.
    fn at(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        if offset < self.start || offset + len as u64 > self.start + self.len as u64 {
            self.start = offset;
            self.len = 0;
            while self.len < len {
                match self.file.read_at(&mut self.bytes[self.len..], offset + self.len as u64)? {
                    0 => break,
                    read => self.len += read,
                }
            }
        }
        let begin = (offset - self.start) as usize;
        Ok(&self.bytes[begin..self.len.min(begin + len)])
    }
}

/// Length of the log's header: fields `u16 id, value`, ended by `ff ff`. `None` if `bytes` stop before its end or are none.
fn header_len(bytes: &[u8]) -> Option<u64> {
    let mut at = 0;
    let field = |at: &mut usize| -> Option<u16> {
        let id = u16::from_le_bytes([*bytes.get(*at)?, *bytes.get(*at + 1)?]);
        *at += 2;
        Some(id)
    };
    loop {
        match field(&mut at)? {
            0xffff => return Some(at as u64),
            // Frame type (98), version, and the checkpoint iteration.
            100 | 101 | 103 => {
                varint(bytes, &mut at)?;
            }
            // The database's identifier: a list of bytes, each a varint.
            102 => {
                for _ in 0..varint(bytes, &mut at)? {
                    varint(bytes, &mut at)?;
                }
            }
            _ => return None,
        }
    }
}

fn only_zeros(file: &File, from: u64, to: u64) -> io::Result<bool> {
    let mut bytes = vec![0; 64 * 1024];
    let mut at = from;
    while at < to {
        let want = bytes.len().min((to - at) as usize);
        let read = file.read_at(&mut bytes[..want], at)?;
        if read == 0 || bytes[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [u8; 39] = [
        0x64, 0, 0x62, 0x65, 0, 2, 0x66, 0, 0x10, 0xb3, 1, 0x2d, 0x42, 0x89, 1, 0x66, 0x67, 0x7d, 0x50, 0xe7, 1, 0x70,
        0x5e, 0x4e, 0xac, 1, 0xac, 1, 0x5d, 0x54, 0x67, 0, 0x83, 1, 0xff, 0xff, 0, 0, 0,
    ];
    const HEADER_LEN: usize = 36;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let mut bytes = (payload as u64).to_le_bytes().to_vec();
        bytes.extend([9; 8]);
        bytes.extend([0x64, 0, kind]);
        bytes.resize(16 + payload, 7);
        bytes
    }

    fn log(frames: &[Vec<u8>]) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("wal");
        let mut bytes = HEADER[..HEADER_LEN].to_vec();
        frames.iter().for_each(|frame| bytes.extend(frame));
        std::fs::write(&path, &bytes).expect("writes");
        (dir, path, bytes)
    }

    #[test]
    fn the_end_is_that_of_the_last_flush_and_grows_with_commits() {
        let (_dir, path, mut bytes) = log(&[frame(26, 9000), frame(FLUSH, 5), frame(26, 50)]);
        let flush = (HEADER_LEN + 16 + 9000 + 16 + 5) as u64;
        let mut tail = WalTail::new(path.clone());
        assert_eq!(tail.advance().expect("reads"), Some(flush));
        assert_eq!(tail.advance().expect("reads"), None);
        bytes.extend(frame(FLUSH, 5));
        std::fs::write(&path, &bytes).expect("writes");
        assert_eq!(tail.advance().expect("reads"), Some(bytes.len() as u64));
    }

    #[test]
    fn a_tail_cut_at_any_byte_shrinks_to_the_last_commit() {
        let (_dir, path, bytes) = log(&[frame(26, 40), frame(FLUSH, 5), frame(26, 60), frame(FLUSH, 5)]);
        let first = HEADER_LEN + 16 + 40 + 16 + 5;
        for cut in first + 1..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("writes");
            assert_eq!(cut_torn_tail(&path).expect("cuts"), (cut - first) as u64, "cut at {cut}");
            assert_eq!(std::fs::metadata(&path).expect("is there").len(), first as u64);
        }
    }

    /// As DuckDB writes them (seen).
    #[test]
    fn the_names_are_those_of_commits_only() {
        let named = |payload: &[u8]| {
            let mut bytes = (payload.len() as u64).to_le_bytes().to_vec();
            bytes.extend([9; 8]);
            bytes.extend(payload);
            bytes
        };
        let made = named(b"d\x00\x03e\x00\x03Abc\xff\xff");
        let dropped = named(b"d\x00\x0ee\x00\x04mainf\x00\x02ty\xff\xff");
        let gone = named(b"d\x00\x04e\x00\x03xyz\xff\xff");
        let (_dir, path, mut bytes) = log(&[made, frame(FLUSH, 5), dropped, gone]);
        let mut tail = WalTail::new(path.clone());
        tail.advance().expect("reads");
        assert_eq!(tail.names(), &Names { schemas: ["abc".to_owned()].into(), ..Names::default() });
        bytes.extend(frame(FLUSH, 5));
        std::fs::write(&path, &bytes).expect("writes");
        tail.advance().expect("reads");
        let all = Names {
            schemas: ["abc".to_owned(), "xyz".to_owned()].into(),
            dropped_types: ["ty".to_owned()].into(),
            unknown: false,
        };
        assert_eq!(tail.names(), &all);
        tail.restart();
        assert_eq!(tail.names(), &Names::default());
    }

    #[test]
    fn a_name_too_long_to_be_read_counts_as_any() {
        let mut payload = b"d\x00\x03e\x00".to_vec();
        payload.extend([0xc0, 0x3e]);
        payload.resize(payload.len() + 8000, b'n');
        let mut bytes = (payload.len() as u64).to_le_bytes().to_vec();
        bytes.extend([9; 8]);
        bytes.extend(payload);
        let (_dir, path, _) = log(&[bytes, frame(FLUSH, 5)]);
        let mut tail = WalTail::new(path);
        tail.advance().expect("reads");
        assert!(tail.names().unknown);
    }

    #[test]
    fn zeros_behind_the_last_commit_are_cut_and_damage_in_front_is_left_alone() {
        let (_dir, path, mut bytes) = log(&[frame(26, 40), frame(FLUSH, 5)]);
        let whole = bytes.len();
        bytes.resize(whole + 4096, 0);
        std::fs::write(&path, &bytes).expect("writes");
        assert_eq!(cut_torn_tail(&path).expect("cuts"), 4096);
        let mut damaged = bytes[..whole].to_vec();
        damaged[HEADER_LEN + 16] = 0x65;
        damaged.extend(frame(FLUSH, 5));
        std::fs::write(&path, &damaged).expect("writes");
        assert_eq!(cut_torn_tail(&path).expect("looks"), 0);
    }
}
