//! Follows the framing of the mart's write-ahead log, to know where the last commit ends.
//!
//! It reads frame headers only and judges no content: DuckDB has replayed or just written what is read here. It never writes, but
//! for [`cut_torn_tail`], which runs before DuckDB opens the file.
//!
//! Format (DuckDB 1.5.5): a header of properties that ends in `ff ff`, then frames `[u64 size][u64 checksum][payload]`, little
//! endian; a payload starts `64 00` and the frame's type; type 100 (FLUSH) ends a commit.
//!
//! # Crash consistency
//! A crash may leave a torn frame at the end. Only an incomplete last frame or trailing zeros are cut; anything else in front of
//! the end is left for DuckDB to refuse, so that damage is never taken for a torn tail.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const FRAME_HEADER: u64 = 16;
const FLUSH: u8 = 100;
/// Enough for a frame's header and the start of its payload; small commits fit whole.
const READ_BYTES: usize = 4096;

/// The end of the last commit in a log, followed as it grows.
pub struct WalTail {
    path: PathBuf,
    file: Option<File>,
    end: u64,
}

impl WalTail {
    /// Of the log at `path`, which may not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, end: 0 }
    }

    /// End of the last commit seen, 0 without any.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The log was folded into the database file and begins anew.
    pub fn restart(&mut self) {
        self.file = None;
        self.end = 0;
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
    if scan.whole_end == size || !(scan.incomplete || only_zeros(&file, scan.whole_end, size)?) {
        return Ok(0);
    }
    // Whole frames of a commit that did not finish go too: DuckDB would skip them, and positions stay equal to the file's size.
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
}

/// Walks frames from `from`, the end of a commit, or 0 for the log's beginning.
fn scan(file: &File, from: u64) -> io::Result<Scan> {
    let size = file.metadata()?.len();
    let mut buffer = Window { file, bytes: vec![0; READ_BYTES], start: 0, len: 0 };
    let mut scan = Scan { commit_end: from, whole_end: from, incomplete: false };
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
        match (scan.whole_end + FRAME_HEADER).checked_add(payload) {
            Some(end) if end <= size => scan.whole_end = end,
            _ => {
                scan.incomplete = true;
                break;
            }
        }
        if kind == FLUSH {
            scan.commit_end = scan.whole_end;
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
    let varint = |at: &mut usize| -> Option<u64> {
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
    };
    loop {
        match field(&mut at)? {
            0xffff => return Some(at as u64),
            // Frame type (98), version, and the checkpoint iteration.
            100 | 101 | 103 => {
                varint(&mut at)?;
            }
            // The database's identifier: a list of bytes, each a varint.
            102 => {
                for _ in 0..varint(&mut at)? {
                    varint(&mut at)?;
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
        // A cut at a frame's end leaves whole frames, which DuckDB skips by itself.
        for cut in (first + 1..bytes.len()).filter(|cut| *cut != first + 76) {
            std::fs::write(&path, &bytes[..cut]).expect("writes");
            assert_eq!(cut_torn_tail(&path).expect("cuts"), (cut - first) as u64, "cut at {cut}");
            assert_eq!(std::fs::metadata(&path).expect("is there").len(), first as u64);
        }
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
