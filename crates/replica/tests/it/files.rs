//! The database file's framing.

use crate::life::steps;
use replica::Error;
use replica::image::Image;

#[test]
fn the_free_list_is_what_duckdb_reads() {
    for step in steps() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), step.db()).expect("writes");
        let image = Image::read(file.as_file()).expect("parses");
        assert_eq!(image.iteration, step.iteration, "{}", step.name);
        assert_eq!(image.block_count, step.total_blocks, "{}", step.name);
        let free = image.free.as_ref().expect("understood");
        assert_eq!(free.len() as u64, step.free_blocks, "{}", step.name);
        assert_eq!(image.live().count() as u64, step.total_blocks - step.free_blocks);
    }
}

#[test]
fn a_damaged_free_list_makes_every_block_live() {
    let step = crate::life::step("checkpoint-3");
    let mut db = step.db();
    let pointer = u64::from_le_bytes(active(&db)[24..32].try_into().expect("eight bytes"));
    let holder = 12288 + usize::try_from(pointer & ((1 << 56) - 1)).expect("small") * 262_144;
    let piece = holder + 8 + usize::try_from(pointer >> 56).expect("small") * 4088;
    db[piece + 8] ^= 0x40;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &db).expect("writes");
    let image = Image::read(file.as_file()).expect("the headers are whole");
    assert_eq!(image.free, None);
    assert_eq!(image.live().count() as u64, image.block_count);
}

#[test]
fn a_damaged_header_is_no_database() {
    let db = crate::life::step("checkpoint").db();
    for at in [8, 600, 4096 + 9, 4096 + 100, 8192, 8192 + 33] {
        let mut damaged = db[..12288].to_vec();
        damaged[at] ^= 1;
        assert!(matches!(Image::parse_headers(damaged.into()), Err(Error::Corrupt { .. })), "byte {at}");
    }
}

fn active(db: &[u8]) -> &[u8] {
    let (first, second) = (&db[4096..8192], &db[8192..12288]);
    let iteration = |header: &[u8]| u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    if iteration(first) > iteration(second) { first } else { second }
}
