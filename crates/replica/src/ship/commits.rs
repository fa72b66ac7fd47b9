//! Ships WAL bytes up to a reported commit, with the file blocks that they may point to.
//!
//! The pointers themselves are never decoded: every block that the base does not refer to and that changed goes along.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::blocks::{Found, Scan};
use super::{Draft, Effect, Extra, FrameKind, Shipped, Shipper, Walker, blocking, open};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::pack;
use crate::position::{CommitPoint, Position};
use crate::record::{Kind, Tip};
use crate::wal;
use crate::{DB_FILE, WAL_FILE};

/// WAL bytes in one record at most.
const PART_BYTES: u64 = 16 << 20;
const TAIL_BYTES: u64 = 4096;
const ZSTD_LEVEL: i32 = 1;

impl Shipper {
    /// Makes all these commits durable and returns the durable position. Points already shipped are ignored.
    ///
    /// Errors: `Diverged` (see [`Shipper::rebase`]), `Fenced`, `Dropped`, `Misuse` if a base is due first, `Unavailable` (call again
    /// with the same or more points).
    pub async fn ship(&mut self, commits: &[CommitPoint]) -> Result<Position> {
        self.settle().await?;
        let Some(tip) = self.head.tip.filter(|_| !self.needs_base) else {
            return Err(Error::Misuse("a base must be shipped first".into()));
        };
        if let Some(ahead) = commits.iter().find(|commit| commit.iteration > tip.iteration) {
            return Err(Error::Misuse(format!("commit of iteration {} before its base", ahead.iteration)));
        }
        let mut due: Vec<CommitPoint> =
            commits.iter().filter(|c| c.iteration == tip.iteration && c.wal_end > tip.durable).copied().collect();
        due.sort_unstable();
        if due.is_empty() {
            return Ok(self.durable());
        }
        let (dir, tail) = (self.dir.clone(), self.shipped.tail.clone());
        let checked = blocking(move || check_range(&dir, tip, &tail, &due)).await?;
        let found = if checked.pointers { self.upload_blocks(&checked).await? } else { Found::default() };
        self.append_parts(tip, checked, found).await?;
        Ok(self.durable())
    }

    async fn upload_blocks(&self, checked: &Checked) -> Result<Found> {
        let file = Arc::clone(&checked.file);
        let length = file.metadata().map_err(Error::io("reading the database's size"))?.len();
        let scan = Scan {
            file,
            block_bytes: self.base.block_bytes,
            blocks: self.base.candidates(checked.image.blocks_in(length)),
            known: Arc::clone(&self.base.blocks),
            by_hash: Arc::clone(&self.base.stale),
            stamps: Arc::clone(&self.base.suspects),
            epoch: self.head.epoch,
        };
        scan.run(&self.log).await
    }

    async fn append_parts(&mut self, tip: Tip, checked: Checked, found: Found) -> Result<()> {
        let wal = Arc::new(checked.wal);
        let mut from = tip.wal_bytes;
        let mut ends = checked.ends.into_iter().filter(|(end, _)| *end > tip.durable).peekable();
        let target = checked.target;
        let stamps = found.stamps.into_iter().filter(|(block, _)| self.base.suspects.contains_key(block)).collect();
        let mut extra = Some(Extra { blocks: found.changed, stamps, uploaded: found.uploaded });
        while from < target {
            let to = target.min(from + PART_BYTES);
            let mut inside = Vec::new();
            while let Some(end) = ends.next_if(|(end, _)| *end <= to) {
                inside.push(end);
            }
            let (file, shipped) = (Arc::clone(&wal), self.shipped.clone());
            let last_end = inside.last().map(|(end, _)| *end);
            let part = blocking(move || read_part(&file, from..to, last_end, shipped)).await?;
            self.append_part(from..to, inside, part, extra.take().unwrap_or_default()).await?;
            from = to;
        }
        Ok(())
    }

    async fn append_part(
        &mut self,
        range: Range<u64>,
        ends: Vec<(u64, i64)>,
        part: ReadPart,
        extra: Extra,
    ) -> Result<()> {
        let Some(tip) = self.head.tip else { return Err(Error::Misuse("a base must be shipped first".into())) };
        let blocks = &extra.blocks;
        let mut payload = if blocks.is_empty() {
            Vec::new()
        } else {
            pack::encode_table(blocks.iter().map(|(id, reference)| (*id, reference)))
        };
        let table_bytes = payload.len() as u64;
        payload.extend_from_slice(&part.compressed);
        let tip = Tip {
            iteration: tip.iteration,
            wal_bytes: range.end,
            wal_prefix: part.shipped.hasher.finalize().into(),
            durable: ends.last().map_or(tip.durable, |(end, _)| *end),
        };
        let time_us = ends.last().map_or(self.head.time_us, |(_, time)| *time);
        let mut least = self.head.time_us;
        let ends = ends.into_iter().map(|(end, time)| {
            least = least.max(time);
            (end, least)
        });
        let kind = Kind::Commits {
            iteration: tip.iteration,
            wal_from: range.start,
            wal_to: range.end,
            ends: ends.collect(),
            table_bytes,
        };
        let draft = Draft {
            epoch: self.head.epoch,
            base_slot: self.head.base_slot,
            tip: Some(tip),
            kind,
            time_us,
            detour: None,
        };
        self.append(draft, &payload, Effect::Commits { extra, shipped: Box::new(part.shipped) }).await
    }
}

/// A range of the WAL that may be shipped.
struct Checked {
    file: Arc<File>,
    wal: File,
    image: Image,
    /// End of the last commit to ship.
    target: u64,
    /// Every commit in the range: end, time.
    ends: Vec<(u64, i64)>,
    /// Some frame may point into the database file.
    pointers: bool,
}

/// Proves that the files still continue what was shipped, and that a whole commit ends at every reported point.
fn check_range(dir: &Path, tip: Tip, tail: &Bytes, due: &[CommitPoint]) -> Result<Checked> {
    let file = open(&dir.join(DB_FILE))?;
    let image = Image::read_headers(&file)?;
    let diverged = |reason: String| Error::Diverged(reason);
    if image.iteration != tip.iteration {
        return Err(diverged(format!("the file is at iteration {}, the log at {}", image.iteration, tip.iteration)));
    }
    let target = due.last().map_or(tip.durable, |commit| commit.wal_end);
    let wal = File::open(dir.join(WAL_FILE)).map_err(|error| diverged(format!("the WAL is gone: {error}")))?;
    let length = wal.metadata().map_err(Error::io("reading the WAL's size"))?.len();
    if length < target.max(tip.wal_bytes) {
        return Err(diverged(format!("the WAL has {length} bytes, {} were reported", target.max(tip.wal_bytes))));
    }
    if read_tail(&wal, tip.durable)? != *tail {
        return Err(diverged("the WAL no longer ends its shipped part as it was shipped".into()));
    }
    let start = if tip.durable > 0 { tip.durable } else { first_frame(&wal, tip.iteration)? };
    let mut walker = Walker::new(&wal, start, target);
    let (mut ends, mut pointers, mut times) = (Vec::new(), false, due.iter().peekable());
    while let Some(frame) = walker.next_frame().map_err(|error| diverged(error.to_string()))? {
        pointers |= frame.kind == FrameKind::Pointers;
        if frame.kind == FrameKind::Flush {
            while times.next_if(|commit| commit.wal_end < frame.end).is_some() {}
            ends.push((frame.end, times.peek().map_or(0, |commit| commit.time_us)));
        }
    }
    if let Some(odd) = due.iter().find(|commit| ends.binary_search_by_key(&commit.wal_end, |(end, _)| *end).is_err()) {
        return Err(diverged(format!("no commit ends at {}", odd.wal_end)));
    }
    Ok(Checked { file: Arc::new(file), wal, image, target, ends, pointers })
}

fn first_frame(wal: &File, iteration: u64) -> Result<u64> {
    let header = wal::read_header(wal).map_err(|error| Error::Diverged(error.to_string()))?;
    let header = header.ok_or_else(|| Error::Diverged("the WAL has no header".into()))?;
    match header.iteration {
        Some(other) if other != iteration => {
            Err(Error::Diverged(format!("the WAL belongs to iteration {other}, not {iteration}")))
        }
        _ => Ok(header.bytes),
    }
}

struct ReadPart {
    compressed: Vec<u8>,
    shipped: Shipped,
}

/// Reads a part once: hashes it, compresses it, remembers its last commit's tail.
fn read_part(wal: &File, range: Range<u64>, last_end: Option<u64>, mut shipped: Shipped) -> Result<ReadPart> {
    let length =
        usize::try_from(range.end - range.start).map_err(|_| Error::Misuse("a part is at most 16 MiB".into()))?;
    let mut bytes = vec![0; length];
    wal.read_exact_at(&mut bytes, range.start).map_err(Error::io("reading the WAL"))?;
    let split = last_end.map_or(0, |end| usize::try_from(end - range.start).unwrap_or(length).min(length));
    shipped.hasher.update(&bytes[..split]);
    if let Some(end) = last_end {
        shipped.durable_hash = Some(shipped.hasher.finalize().into());
        shipped.tail = read_tail(wal, end)?;
    }
    shipped.hasher.update(&bytes[split..]);
    let compressed = zstd::bulk::compress(&bytes, ZSTD_LEVEL).map_err(Error::io("compressing the WAL"))?;
    Ok(ReadPart { compressed, shipped })
}

/// The last bytes before `end`.
pub(super) fn read_tail(wal: &File, end: u64) -> Result<Bytes> {
    let start = end.saturating_sub(TAIL_BYTES);
    let mut bytes =
        vec![0; usize::try_from(end - start).map_err(|_| Error::Misuse("a tail is at most 4096 bytes".into()))?];
    wal.read_exact_at(&mut bytes, start).map_err(Error::io("reading the WAL"))?;
    Ok(bytes.into())
}

/// Adds a range of a file to a hash.
pub(super) fn hash_range(file: &File, range: Range<u64>, hasher: &mut blake3::Hasher) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        file.read_exact_at(&mut buffer[..length], at).map_err(Error::io("reading the WAL"))?;
        hasher.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(())
}
