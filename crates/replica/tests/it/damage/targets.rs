//! What is done to bytes of unknown origin: everything that decodes what a store or a disk gives back. Shared with `fuzz/`.
//!
//! Each returns whether the bytes were taken for good. None may panic, and none may ask for memory that the bytes don't account for.

use std::fs::File;
use std::io::Write;

use bytes::Bytes;
use replica::image::{HEADER_BYTES, Image};
use replica::layout::Layout;
use replica::manifest::Manifest;
use replica::names::Names;
use replica::record::{self, Record};
use replica::{pack, wal};

/// One of them.
pub type Target = fn(&[u8]) -> bool;

/// A file that holds them.
pub fn file(bytes: &[u8]) -> File {
    let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("writes");
    file
}

/// Header and frames of a WAL, to the end of the last commit and one by one.
pub fn wal(bytes: &[u8]) -> bool {
    let file = file(bytes);
    let Ok(Some(header)) = wal::read_header(&file) else { return false };
    let end = wal::last_flush(&file, bytes.len() as u64).unwrap_or(0);
    assert!(end <= bytes.len() as u64);
    let mut walker = wal::Walker::new(&file, header.bytes, bytes.len() as u64);
    let mut at = header.bytes;
    while let Ok(Some(frame)) = walker.next_frame() {
        assert!(frame.start == at && frame.end > at && frame.end <= bytes.len() as u64);
        at = frame.end;
    }
    assert!(end <= at);
    at == bytes.len() as u64
}

/// A record of the log, and what its first bytes say.
pub fn record(bytes: &[u8]) -> bool {
    let _ = record::peek("fuzz", bytes);
    let Ok(record) = Record::decode("fuzz", &Bytes::copy_from_slice(bytes)) else { return false };
    let _ = Names::decode(&record);
    let _ = replica::history::moments(&record.header);
    let _ = record.header.route(record.hash);
    let mut plan = replica::plan::Plan::new(true);
    let _ = plan.push(&record);
    true
}

/// A manifest.
pub fn manifest(bytes: &[u8]) -> bool {
    let home = Layout::new(&"duckdb/dev".into(), uuid::Uuid::nil());
    Manifest::decode("fuzz", &home, true, &Bytes::copy_from_slice(bytes)).is_ok()
}

/// A table of blocks.
pub fn table(bytes: &[u8]) -> bool {
    pack::decode_table("fuzz", bytes, None).is_ok()
}

/// Headers and free list of a database.
pub fn image(bytes: &[u8]) -> bool {
    let _ = bytes.get(..HEADER_BYTES).map(|header| Image::parse_headers(Bytes::copy_from_slice(header)));
    let Ok(image) = Image::read(&file(bytes)) else { return false };
    if let Some(free) = &image.free {
        assert!(free.iter().all(|block| *block < image.block_count));
    }
    true
}
