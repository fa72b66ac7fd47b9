//! Damaged bytes: real ones with bits flipped, cut, spliced, or with lengths that lie are refused, without a panic and without asking
//! for memory that they don't account for.
//!
//! `TARN_TEST_DAMAGES` sets how many (default 20000), `TARN_TEST_SEED` repeats a run. `fuzz/` has the same targets for libFuzzer.

mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use object_store::ObjectStoreExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use replica::wal::checksum;

use crate::life::{lived_until, step, steps};
use targets::Target;

const DAMAGES: u64 = 20_000;
/// The buffer of one block and decompressor's windows; nothing else is large.
const LARGEST_ALLOCATION: usize = 16 << 20;

thread_local!(static LARGEST: Cell<usize> = const { Cell::new(0) });

/// Remembers the largest piece of memory that each thread has asked for.
struct Counting;

// SAFETY: everything is the system allocator's; only a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of one kind.
struct Kind {
    name: &'static str,
    target: Target,
    samples: Vec<Vec<u8>>,
    /// A hash covers all of them: damage is never accepted, but with a new hash.
    rehash: Option<fn(&mut Vec<u8>)>,
}

async fn kinds() -> Vec<Kind> {
    let (mart, mut opened) = lived_until("bulk-into-free-blocks").await;
    opened.shipper.claim().await.expect("claims");
    let mut names = opened.shipper.names().clone();
    let now = opened.shipper.here().expect("there is a commit");
    let snapshot = replica::names::Snapshot { past: now, created_us: 0, automatic: true };
    names.snapshots.insert("monday".into(), snapshot);
    opened.shipper.set_names(names).await.expect("is named");
    let (mut records, mut tables) = (Vec::new(), Vec::new());
    for slot in 1.. {
        let Ok(found) = mart.store.get(&mart.key(&format!("log/{slot:020}"))).await else { break };
        let record = found.bytes().await.expect("reads");
        let decoded = replica::record::Record::decode("sample", &record).expect("whole");
        if let replica::record::Kind::Commits { table_bytes, .. } = decoded.header.kind {
            tables.push(decoded.payload[..table_bytes as usize].to_vec());
        }
        records.push(record.to_vec());
    }
    tables.retain(|table| !table.is_empty());
    let mut manifests = Vec::new();
    for record in &records {
        let record = replica::record::Record::decode("sample", &record.clone().into()).expect("whole");
        if let replica::record::Kind::Base { manifest, .. } = record.header.kind {
            manifests.push(
                mart.store.get(&mart.key(&manifest)).await.expect("there").bytes().await.expect("reads").to_vec(),
            );
        }
    }
    let wals = steps().iter().filter_map(|step| step.wal()).collect();
    let images = ["checkpoint-2", "checkpoint-3"].map(|name| step(name).db()).to_vec();
    vec![
        Kind { name: "record", target: targets::record, samples: records, rehash: Some(seal) },
        Kind { name: "manifest", target: targets::manifest, samples: manifests, rehash: Some(seal) },
        Kind { name: "table", target: targets::table, samples: tables, rehash: None },
        Kind { name: "wal", target: targets::wal, samples: wals, rehash: None },
        Kind { name: "image", target: targets::image, samples: images, rehash: Some(|bytes| seal_headers(bytes)) },
    ]
}

/// The hash at an envelope's end.
fn seal(bytes: &mut Vec<u8>) {
    let body = bytes.len().saturating_sub(32);
    bytes.truncate(body);
    let hash = blake3::hash(bytes);
    bytes.extend_from_slice(hash.as_bytes());
}

/// The checksums of a database's headers.
fn seal_headers(bytes: &mut [u8]) {
    for header in bytes.chunks_exact_mut(4096).take(3) {
        let sum = checksum(&header[8..]);
        header[..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Damages bytes in some way.
fn damage(random: &mut StdRng, bytes: &mut Vec<u8>) {
    let length = bytes.len();
    if length < 16 {
        return bytes.push(random.random());
    }
    // Much of what matters stands at the beginning.
    let near = if random.random_bool(0.5) { length } else { length.min(600) };
    let at = random.random_range(0..near - 8);
    match random.random_range(0..6) {
        0 | 1 => bytes[at] ^= 1 << random.random_range(0..8),
        2 => bytes.truncate(random.random_range(0..length)),
        3 => {
            let from = random.random_range(0..length - 8);
            let count = random.random_range(1..200).min(length - from.max(at));
            bytes.copy_within(from..from + count, at);
        }
        4 => {
            let lie = *[0, 1, 0x7f, 0xffff, 1 << 20, u64::from(u32::MAX), 1 << 40, u64::MAX, u64::MAX - 15]
                .choose(random)
                .expect("some");
            let width = *[1, 2, 4, 8].choose(random).expect("some");
            bytes[at..at + width].copy_from_slice(&lie.to_le_bytes()[..width]);
        }
        _ => {
            let extra: Vec<u8> = (0..random.random_range(1..64)).map(|_| random.random()).collect();
            bytes.splice(at..at, extra);
        }
    }
}

#[tokio::test]
async fn damaged_bytes_are_refused_without_a_panic_and_in_little_memory() {
    let variable = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = variable("TARN_TEST_SEED").unwrap_or_else(|| u64::from(rand::rng().random::<u32>()));
    let damages = variable("TARN_TEST_DAMAGES").unwrap_or(DAMAGES);
    println!("TARN_TEST_SEED={seed} TARN_TEST_DAMAGES={damages}");
    let mut random = StdRng::seed_from_u64(seed);
    let kinds = kinds().await;
    for kind in &kinds {
        assert!(!kind.samples.is_empty(), "{}", kind.name);
        let whole = kind.samples.iter().all(|sample| (kind.target)(sample));
        assert!(whole || kind.name == "manifest", "{}: a whole one is taken", kind.name);
    }
    let mut resealed = 0;
    for number in 0..damages {
        let kind = kinds.choose(&mut random).expect("some");
        let sample = kind.samples.choose(&mut random).expect("some");
        let mut bytes = sample.clone();
        for _ in 0..random.random_range(1..4) {
            damage(&mut random, &mut bytes);
        }
        let sealed = kind.rehash.filter(|_| random.random_bool(0.5));
        if let Some(seal) = sealed {
            seal(&mut bytes);
        }
        LARGEST.set(0);
        let taken = (kind.target)(&bytes);
        let largest = LARGEST.get();
        let when = format!("seed {seed}, damage {number}, a {} of {} bytes", kind.name, bytes.len());
        assert!(largest <= LARGEST_ALLOCATION.max(2 * bytes.len()), "{when} asked for {largest} bytes");
        resealed += u64::from(taken && sealed.is_some());
        if kind.rehash.is_some() && sealed.is_none() && kind.name != "image" && bytes != *sample {
            assert!(!taken, "{when} was taken for whole");
        }
    }
    assert!(resealed > 0, "nothing with a new hash came through: the test proves less than it says");
}

/// One flipped bit hides the commits behind it, and never changes one that is believed.
#[test]
fn a_commit_is_believed_only_if_every_bit_before_it_is_right() {
    let wal = step("mixed").wal().expect("it has one");
    let open = targets::file;
    let header = replica::wal::read_header(&open(&wal)).expect("reads").expect("whole").bytes;
    for at in usize::try_from(header).expect("small")..wal.len() {
        let mut bytes = wal.clone();
        bytes[at] ^= 1 << (at % 8);
        let end = replica::wal::last_flush(&open(&bytes), bytes.len() as u64).expect("reads");
        assert!(end <= at as u64, "byte {at} is wrong, and a commit that ends at {end} is believed");
    }
}
