//! Reads blocks of the database file, finds those whose content is not in the store, and uploads them in packs.
//!
//! Does not decide which blocks to look at. A block that nobody refers to may be half written while it is read: it is uploaded
//! as it was, which is harmless.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use object_store::ObjectStoreExt;
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::image::HEADER_BYTES;
use crate::layout::Layout;
use crate::log::Log;
use crate::pack::{BlockMap, BlockRef, PackBuilder};
use crate::ship::blocking;
use crate::wal::checksum;

const UPLOADS: usize = 4;
const PAGE: usize = 4096;

/// Enough of a block to see that it was rewritten: its first page, which holds DuckDB's checksum of all of it. `None` if that
/// checksum was not right when it was read, so nothing can be concluded from it.
pub(crate) type Stamp = Option<Hash>;

/// Which blocks to look at, and what is known of them.
#[derive(Debug)]
pub(crate) struct Scan {
    pub file: Arc<File>,
    pub block_bytes: u64,
    pub blocks: Vec<u64>,
    /// Newest shipped content by number.
    pub known: Arc<BlockMap>,
    /// More contents that the store has.
    pub by_hash: Arc<HashMap<Hash, BlockRef>>,
    /// Blocks to be read whole only if their stamp changed.
    pub stamps: Arc<HashMap<u64, Stamp>>,
    pub epoch: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Blocks whose content differs from what was known, now in the store.
    pub changed: BlockMap,
    /// Stamps of all blocks that were read.
    pub stamps: HashMap<u64, Stamp>,
    /// All zero and never known: nothing was ever there.
    pub empty: HashSet<u64>,
    /// How many blocks had to be uploaded.
    pub uploaded: u64,
}

impl Scan {
    /// Reads, compares, packs, uploads.
    pub(crate) async fn run(self, log: &Log) -> Result<Found> {
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(4)
            .min(self.blocks.len().div_ceil(16))
            .max(1);
        let (packs, mut full) = mpsc::channel::<(Arc<str>, Bytes)>(1);
        let scan = Arc::new((self, AtomicUsize::new(0)));
        let mut tasks: Vec<_> = (0..workers)
            .map(|_| {
                let (scan, packs) = (Arc::clone(&scan), packs.clone());
                tokio::spawn(blocking(move || scan.0.work(&scan.1, &packs)))
            })
            .collect();
        drop(packs);
        let mut uploads = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(done) = uploads.next(), if !uploads.is_empty() => { let () = done?; }
                pack = full.recv(), if uploads.len() < UPLOADS => match pack {
                    Some((name, bytes)) => uploads.push(upload(log, name, bytes)),
                    None => break,
                },
            }
        }
        while let Some(done) = uploads.next().await {
            done?;
        }
        let mut found = Found::default();
        for task in &mut tasks {
            let part = task.await.map_err(|error| Error::Misuse(format!("a block reader died: {error}")))??;
            found.changed.extend(part.changed);
            found.stamps.extend(part.stamps);
            found.empty.extend(part.empty);
            found.uploaded += part.uploaded;
        }
        Ok(found)
    }

    fn work(&self, next: &AtomicUsize, packs: &mpsc::Sender<(Arc<str>, Bytes)>) -> Result<Found> {
        let size = usize::try_from(self.block_bytes).map_err(|_| Error::Misuse("block size".into()))?;
        let mut found = Found::default();
        let mut buffer = vec![0; size];
        let mut pack = PackBuilder::new(Layout::new_pack(self.epoch));
        while let Some(&block) = self.blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let offset = HEADER_BYTES as u64 + block * self.block_bytes;
            let known = self.known.get(&block);
            if let Some(Some(stamp)) = self.stamps.get(&block)
                && known.is_some()
            {
                self.file.read_exact_at(&mut buffer[..PAGE], offset).map_err(Error::io("reading a block"))?;
                if Hash::of(&buffer[..PAGE]) == *stamp {
                    continue;
                }
            }
            self.file.read_exact_at(&mut buffer, offset).map_err(Error::io("reading a block"))?;
            let hash = Hash::of(&buffer);
            found.stamps.insert(block, is_sound(&buffer).then(|| Hash::of(&buffer[..PAGE])));
            if known.is_some_and(|known| known.hash == hash) {
                continue;
            }
            if known.is_none() && buffer.iter().all(|byte| *byte == 0) {
                found.empty.insert(block);
                continue;
            }
            if let Some(same) = self.by_hash.get(&hash) {
                found.changed.insert(block, same.clone());
                continue;
            }
            found.changed.insert(block, pack.push(&buffer, hash));
            found.uploaded += 1;
            if pack.is_full() {
                let full = std::mem::replace(&mut pack, PackBuilder::new(Layout::new_pack(self.epoch)));
                send(packs, full)?;
            }
        }
        if !pack.is_empty() {
            send(packs, pack)?;
        }
        Ok(found)
    }
}

/// DuckDB's own checksum of a block, in its first eight bytes.
fn is_sound(block: &[u8]) -> bool {
    checksum(&block[8..]).to_le_bytes() == block[..8]
}

fn send(packs: &mpsc::Sender<(Arc<str>, Bytes)>, pack: PackBuilder) -> Result<()> {
    let name = Arc::clone(&pack.name);
    let gone = |_| Error::Unavailable { what: "an upload failed".into(), source: None };
    packs.blocking_send((name, pack.finish())).map_err(gone)
}

async fn upload(log: &Log, name: Arc<str>, bytes: Bytes) -> Result<()> {
    let key = log.layout.named(&name).expect("own pack names are well formed");
    log.stores.data.put(&key, bytes.into()).await.map(|_| ()).map_err(|error| Error::store(&key, error))
}
