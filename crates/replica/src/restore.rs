//! Applies a plan: writes base, blocks and WAL into a directory that nobody uses yet.
//!
//! Does not decide what to restore (`plan`) nor where it ends up (`open`).
//!
//! # Consistency
//! Every block is checked against its hash, the WAL against the hash of all that was shipped, its cut against DuckDB's own frame
//! checksums. One wrong byte is `Corrupt`, naming the object; the directory is then of no use and is removed.
//!
//! # Crash consistency
//! Files are synced before the caller renames the directory.
//!
//! # Cancellation
//! May be dropped at any await; writers on blocking threads finish their piece and stop.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::image::{HEADER_BYTES, Image};
use crate::log::Log;
use crate::manifest::Manifest;
use crate::pack::{self, BlockMap, BlockRef};
use crate::plan::Life;
use crate::record::Tip;
use crate::ship::{Shipped, blocking, hash_prefix};
use crate::wal;
use crate::{DB_FILE, WAL_FILE};

/// Ranges of one pack closer than this are read in one request.
const MERGE_GAP_BYTES: u64 = 256 << 10;
const MAX_READ_BYTES: u64 = 8 << 20;
const PARALLEL_READS: usize = 8;
/// Written bytes are synced while others are still fetched, so that little is left to wait for at the end.
const SYNC_BYTES: u64 = 64 << 20;

/// What was written.
pub(crate) struct Restored {
    pub bytes: u64,
    pub shipped: Shipped,
}

/// Fetches and checks the manifest that a base record names.
pub(crate) async fn load_manifest(log: &Log, life: &Life) -> Result<Manifest> {
    load_named_manifest(log, life.slot, &life.manifest, life.manifest_hash, life.iteration).await
}

/// The same, before the record in `slot` is folded.
pub(crate) async fn load_named_manifest(
    log: &Log,
    slot: u64,
    name: &str,
    hash: Hash,
    iteration: u64,
) -> Result<Manifest> {
    let key = log.layout.named(name).ok_or_else(|| names_no_manifest(slot))?;
    let read = async { log.stores.data.get(&key).await?.bytes().await };
    let bytes = read.await.map_err(|error| Error::required(&key, error))?;
    check_manifest(log, slot, (name, hash, iteration), &bytes)
}

/// Whether these bytes are the manifest that the record in `slot` names: by its name, its hash and its iteration.
pub(crate) fn check_manifest(
    log: &Log,
    slot: u64,
    (name, hash, iteration): (&str, Hash, u64),
    bytes: &Bytes,
) -> Result<Manifest> {
    let key = log.layout.named(name).ok_or_else(|| names_no_manifest(slot))?;
    let home = log.layout.home_of(name).ok_or_else(|| names_no_manifest(slot))?;
    if Hash::of(bytes) != hash {
        return Err(Error::corrupt(key.as_ref(), "it is not the one that the log names"));
    }
    let manifest = Manifest::decode(key.as_ref(), &home, home.owner() != log.layout.owner(), bytes)?;
    if manifest.iteration != iteration {
        return Err(Error::corrupt(key.as_ref(), "it is of another iteration than the log says"));
    }
    Ok(manifest)
}

fn names_no_manifest(slot: u64) -> Error {
    Error::corrupt(format!("log record {slot}"), "it names no manifest")
}

/// Hash of the WAL up to the tip's last whole commit; checks on the way that the log's parts are what was shipped.
pub(crate) fn wal_prefix(life: &Life, tip: Tip) -> Result<Hash> {
    wal_prefix_at(life, tip, tip.durable)
}

/// The same up to `at`, where a part or a commit ends.
pub(crate) fn wal_prefix_at(life: &Life, tip: Tip, at: u64) -> Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut prefix = Hash::of(b"");
    for part in &life.parts {
        let bytes = part_bytes(part)?;
        let cut = usize::try_from(at.clamp(part.from, part.to) - part.from).unwrap_or(bytes.len());
        hasher.update(&bytes[..cut]);
        if (part.from..=part.to).contains(&at) {
            prefix = hasher.finalize().into();
        }
        hasher.update(&bytes[cut..]);
    }
    if Hash::from(hasher.finalize()) != tip.wal_prefix {
        return Err(Error::corrupt(
            format!("log records from {}", life.slot),
            "their WAL bytes are not what was shipped",
        ));
    }
    Ok(prefix)
}

/// Writes database and WAL as of `tip` (a fence's: it ends at a commit) into `dir` and syncs them.
pub(crate) async fn apply(log: &Log, (manifest, life): (&Manifest, &Life), tip: Tip, dir: &Path) -> Result<Restored> {
    let mut blocks: BlockMap = manifest.blocks.clone();
    blocks.extend(life.overlay());
    let db = dir.join(DB_FILE);
    let (file, length) = create_sparse(&db, manifest, &blocks)?;
    let file = Arc::new(file);
    let target = Target {
        file: Arc::clone(&file),
        block_bytes: manifest.block_bytes,
        buffers: Mutex::default(),
        unsynced: AtomicU64::new(0),
    };
    stream::iter(reads(&blocks))
        .map(|read| fetch(log, read, &target))
        .buffer_unordered(PARALLEL_READS)
        .try_collect::<()>()
        .await?;
    let (life, wal_path) = (life.clone(), dir.join(WAL_FILE));
    let expected = manifest.header.clone();
    let shipped = blocking(move || {
        file.sync_all().map_err(Error::io("syncing the restored database"))?;
        let image = Image::read_headers(&file)?;
        if image.header != expected {
            return Err(Error::corrupt(DB_FILE, "its header changed while it was restored"));
        }
        write_wal(&wal_path, &life, tip)
    })
    .await?;
    Ok(Restored { bytes: length + tip.durable, shipped })
}

fn create_sparse(path: &Path, manifest: &Manifest, blocks: &BlockMap) -> Result<(File, u64)> {
    let count = blocks.keys().max().map_or(0, |last| last + 1);
    let length = HEADER_BYTES as u64 + count * manifest.block_bytes;
    let create = || {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(length)?;
        file.write_all_at(&manifest.header, 0)?;
        Ok(file)
    };
    create().map(|file| (file, length)).map_err(Error::io("creating the restored database"))
}

/// One request: a range of a pack, and the blocks in it.
#[derive(Debug, PartialEq)]
pub(crate) struct Read {
    pub pack: Arc<str>,
    pub range: Range<u64>,
    pub blocks: Vec<(u64, BlockRef)>,
}

/// Groups blocks by pack and merges neighbours into few requests.
pub(crate) fn reads(blocks: &BlockMap) -> Vec<Read> {
    let mut sorted: Vec<_> = blocks.iter().map(|(block, reference)| (*block, reference.clone())).collect();
    sorted.sort_unstable_by(|(_, a), (_, b)| (&a.pack, a.offset).cmp(&(&b.pack, b.offset)));
    let mut reads: Vec<Read> = Vec::new();
    for (block, reference) in sorted {
        let range = u64::from(reference.offset)..u64::from(reference.offset) + u64::from(reference.length);
        match reads.last_mut() {
            Some(last)
                if last.pack == reference.pack
                    && range.start <= last.range.end + MERGE_GAP_BYTES
                    && range.end - last.range.start <= MAX_READ_BYTES =>
            {
                last.range.end = last.range.end.max(range.end);
                last.blocks.push((block, reference));
            }
            _ => reads.push(Read { pack: Arc::clone(&reference.pack), range, blocks: vec![(block, reference)] }),
        }
    }
    reads
}

/// The file that is written, and buffers that reads hand on: memory that was touched before costs no page faults.
struct Target {
    file: Arc<File>,
    block_bytes: u64,
    buffers: Mutex<Vec<Vec<u8>>>,
    unsynced: AtomicU64,
}

impl Target {
    fn buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fetch(log: &Log, read: Read, target: &Target) -> Result<()> {
    let mut bytes = target.buffers().pop().unwrap_or_else(|| Vec::with_capacity(MAX_READ_BYTES as usize));
    fetch_range(log, &read, &mut bytes).await?;
    let (file, block_bytes) = (Arc::clone(&target.file), target.block_bytes);
    let written = read.blocks.len() as u64 * block_bytes;
    let sync = target.unsynced.fetch_add(written, Ordering::Relaxed) + written >= SYNC_BYTES;
    if sync {
        target.unsynced.store(0, Ordering::Relaxed);
    }
    let buffer = blocking(move || {
        for (block, reference) in &read.blocks {
            let start = usize::try_from(u64::from(reference.offset) - read.range.start)
                .map_err(|_| Error::Misuse("a read is at most 8 MiB".into()))?;
            let content = pack::unpack(reference, &bytes[start..start + reference.length as usize], block_bytes)?;
            file.write_all_at(&content, HEADER_BYTES as u64 + block * block_bytes)
                .map_err(Error::io("writing a restored block"))?;
        }
        if sync {
            file.sync_data().map_err(Error::io("syncing the restored database"))?;
        }
        bytes.clear();
        Ok(bytes)
    })
    .await?;
    target.buffers().push(buffer);
    Ok(())
}

/// Reads stored blocks as they lie, all of them.
pub(crate) async fn fetch_range(log: &Log, read: &Read, bytes: &mut Vec<u8>) -> Result<()> {
    let bad_name = || Error::corrupt(read.pack.as_ref(), "not a pack's name");
    let key = log.layout.named(&read.pack).ok_or_else(bad_name)?;
    if let Err(error) = read_range(log, &key, &read.range, bytes).await {
        // A range past the end is an error of its own in every store; the size tells it from a store in trouble.
        let size = log.stores.data.head(&key).await.map(|meta| meta.size);
        let cut_short = size.is_ok_and(|size| size < read.range.end);
        return Err(if cut_short { Error::corrupt(key.as_ref(), "cut short") } else { Error::required(&key, error) });
    }
    if bytes.len() as u64 != read.range.end - read.range.start {
        return Err(Error::corrupt(key.as_ref(), "cut short"));
    }
    Ok(())
}

async fn read_range(log: &Log, key: &Key, range: &Range<u64>, into: &mut Vec<u8>) -> object_store::Result<()> {
    let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
    let mut pieces = log.stores.data.get_opts(key, options).await?.into_stream();
    while let Some(piece) = pieces.try_next().await? {
        into.extend_from_slice(&piece);
    }
    Ok(())
}

pub(crate) fn part_bytes(part: &crate::plan::Part) -> Result<Vec<u8>> {
    let corrupt = |reason: String| Error::corrupt(format!("log record {}", part.slot), reason);
    let size = usize::try_from(part.stored_bytes).map_err(|_| corrupt("WAL part too large".into()))?;
    let mut bytes = zstd::bulk::decompress(&part.wal, size).map_err(|error| corrupt(format!("WAL part: {error}")))?;
    if bytes.len() != size {
        return Err(corrupt("WAL part shorter than it says".into()));
    }
    bytes.truncate(usize::try_from(part.to - part.from).map_err(|_| corrupt("WAL part too large".into()))?);
    Ok(bytes)
}

/// Writes the WAL up to the tip's last commit. No file if that is the checkpoint itself.
fn write_wal(path: &Path, life: &Life, tip: Tip) -> Result<Shipped> {
    if tip.durable == 0 {
        return hash_prefix(path, 0, 0)?.ok_or_else(|| Error::Misuse("nothing is always there".into()));
    }
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(Error::io("creating the restored WAL"))?;
    for part in &life.parts {
        let bytes = part_bytes(part)?;
        let keep = usize::try_from(tip.durable.clamp(part.from, part.to) - part.from).unwrap_or(bytes.len());
        file.write_all(&bytes[..keep]).map_err(Error::io("writing the restored WAL"))?;
    }
    file.sync_all().map_err(Error::io("syncing the restored WAL"))?;
    let end = wal::last_flush(&file, tip.durable).map_err(|error| Error::corrupt(WAL_FILE, error.to_string()))?;
    let shipped = hash_prefix(path, tip.durable, tip.durable)?
        .filter(|shipped| Hash::from(shipped.hasher.finalize()) == tip.wal_prefix);
    match shipped {
        Some(shipped) if end == tip.durable => Ok(shipped),
        _ => {
            let _ = fs::remove_file(path);
            Err(Error::corrupt(
                format!("log records from {}", life.slot),
                "their WAL does not end in a commit as shipped",
            ))
        }
    }
}
