//! The WAL's framing: commits end where DuckDB says they do, and nothing damaged is ever taken for a commit.

use std::fs::File;

use proptest::prelude::*;
use replica::wal::{self, FrameKind, Walker};

use crate::life::{Step, steps};

fn on_disk(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, bytes).expect("writes");
    file
}

/// Steps with a WAL, each with the ends of all commits in it.
fn wals() -> Vec<(Step, Vec<u8>, Vec<u64>)> {
    let mut found = Vec::new();
    let mut ends: Vec<u64> = Vec::new();
    for step in steps() {
        if step.checkpoint {
            ends.clear();
        }
        ends.extend(&step.ends);
        if let Some(wal) = step.wal() {
            found.push((step, wal, ends.clone()));
        }
    }
    found
}

#[test]
fn flushes_are_exactly_the_commits() {
    for (step, wal, ends) in wals() {
        let file = on_disk(&wal);
        let header = wal::read_header(&file).expect("reads").expect("whole");
        assert_eq!(header.iteration, Some(step.iteration), "{}", step.name);
        assert!(header.db_identifier.is_some());
        let mut walker = Walker::new(&file, header.bytes, wal.len() as u64);
        let mut found = Vec::new();
        while let Some(frame) = walker.next_frame().expect("whole") {
            if frame.kind == FrameKind::Flush {
                found.push(frame.end);
            }
        }
        assert_eq!(found, ends, "{}", step.name);
    }
}

#[test]
fn pointers_are_seen_in_bulk_commits_and_only_there() {
    for (step, wal, _) in wals() {
        let file = on_disk(&wal);
        let header = wal::read_header(&file).expect("reads").expect("whole");
        let mut walker = Walker::new(&file, header.bytes, wal.len() as u64);
        let mut pointers = false;
        while let Some(frame) = walker.next_frame().expect("whole") {
            pointers |= frame.kind == FrameKind::Pointers;
        }
        let bulk = step.name.contains("bulk") || step.name == "mixed";
        assert_eq!(pointers, bulk, "{}", step.name);
    }
}

#[test]
fn a_wal_of_an_older_storage_version_has_no_iteration() {
    let file = on_disk(include_bytes!("../../testdata/small.wal"));
    let header = wal::read_header(&file).expect("reads").expect("whole");
    assert_eq!((header.bytes, header.iteration, header.db_identifier), (8, None, None));
    assert_eq!(wal::last_flush(&file, 493).expect("reads"), 493);
}

#[test]
fn an_encrypted_wal_is_refused_by_version() {
    let file = on_disk(&[0x64, 0, 0x62, 0x65, 0, 3, 0xff, 0xff]);
    assert!(matches!(wal::read_header(&file), Err(wal::WalError::Version(3))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_cut_anywhere_leaves_the_last_whole_commit(which in 0..7usize, cut in 0.0..1.0f64) {
        let wals = wals();
        let (_, wal, ends) = &wals[which % wals.len()];
        let cut = (wal.len() as f64 * cut) as u64;
        let file = on_disk(&wal[..cut as usize]);
        let expected = ends.iter().copied().filter(|end| *end <= cut).max().unwrap_or(0);
        prop_assert_eq!(wal::last_flush(&file, cut).expect("reads"), expected);
    }

    #[test]
    fn a_flipped_bit_ends_the_log_before_its_frame(which in 0..7usize, at in 0.0..1.0f64, bit in 0..8u32) {
        let wals = wals();
        let (_, wal, ends) = &wals[which % wals.len()];
        let header = wal::parse_header(wal).expect("parses").expect("whole").bytes as usize;
        let at = header + ((wal.len() - header) as f64 * at) as usize;
        let mut damaged = wal.clone();
        damaged[at] ^= 1 << bit;
        let end = wal::last_flush(&on_disk(&damaged), wal.len() as u64).expect("reads");
        let before = ends.iter().copied().filter(|end| *end <= at as u64).max().unwrap_or(0);
        prop_assert_eq!(end, before);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = on_disk(&bytes);
        let _ = wal::last_flush(&file, bytes.len() as u64);
    }
}
