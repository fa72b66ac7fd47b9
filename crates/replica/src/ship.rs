//! The shipper: makes an engine's commits durable. One per open mart, owned by one task.
//!
//! It ships only up to commits that the engine reported, in slots strictly one after another.
//!
//! # Consistency
//! Blocks and manifests are uploaded before the record that names them. Before every ship the file must still be at the shipped
//! iteration and the WAL must still begin with what was shipped; else `Diverged`, and nothing is written.
//!
//! # Crash consistency
//! The log is the truth; nothing here is remembered on disk but `local.json` (whose files, which checkpoint intent). A crash
//! between upload and record leaves unnamed packs, which are garbage.
//!
//! # Cancellation
//! Any future may be dropped. A record whose outcome is unknown stays `pending` with its effect; the next call settles it first,
//! with the same bytes.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::image::Image;
use crate::local::{Intent, Local};
use crate::log::{Log, Put, ends_segment};
use crate::names::{Names, Past};
use crate::pack::{BlockMap, BlockRef};
use crate::position::{CommitPoint, Position};
use crate::record::{self, Detour, Header, Kind, Record, Stretch, Tip, VERSION};
use crate::wal::{self, FrameKind, Walker};
use crate::{DB_FILE, WAL_FILE};

mod back;
mod base;
mod blocks;
mod claim;
mod commits;
mod sweep;

pub use back::Prepared;
pub(crate) use blocks::Stamp;
pub use sweep::{Swept, Terms};

/// Ask for a checkpoint beyond this much WAL.
const WAL_LIMIT_BYTES: u64 = 64 << 20;
/// Ask for a checkpoint beyond this much of blocks shipped outside a base.
const AREA_LIMIT_BYTES: u64 = 256 << 20;
/// Ask for a checkpoint beyond this many records since the base: a restore reads them all.
const RECORDS_LIMIT: u64 = 20_000;
/// A hint is left every so many records.
const HINT_EVERY: u64 = 256;

/// What an engine's files are to the shipper after the engine opened them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    /// They continue what was shipped: ship on.
    Match,
    /// Nothing counts as durable before `ship_base`: the mart is new, or a checkpoint ran whose base is not in the log.
    NeedsBase,
}

/// Makes commits durable.
#[derive(Debug)]
pub struct Shipper {
    log: Log,
    dir: PathBuf,
    head: Head,
    needs_base: bool,
    /// The next base is of a file that no checkpoint intent announced: a new mart's, or one that diverged.
    base_anew: bool,
    base: BaseState,
    shipped: Shipped,
    pending: Option<Pending>,
    names: Names,
    /// Rolling of log segments; nobody waits for it, and it ends with the shipper.
    rolling: JoinSet<()>,
}

/// The log's end, as this writer knows it.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub slot: u64,
    pub hash: Hash,
    pub epoch: u64,
    pub base_slot: u64,
    pub time_us: i64,
    pub tip: Option<Tip>,
    pub fence_slot: u64,
    pub names_slot: u64,
    pub detour: Option<Box<Detour>>,
}

impl Head {
    /// Before the first record.
    pub(crate) fn nowhere() -> Self {
        Self {
            slot: 0,
            hash: Hash::ZERO,
            epoch: 0,
            base_slot: 0,
            time_us: 0,
            tip: None,
            fence_slot: 0,
            names_slot: 0,
            detour: None,
        }
    }

    pub(crate) fn of(record: &Record) -> Self {
        Self::after(&record.header, record.hash)
    }

    /// What to read to have the mart as it is now.
    fn route(&self) -> Vec<Stretch> {
        record::route(self.detour.as_deref(), self.base_slot, self.slot, self.hash)
    }

    fn after(header: &Header, hash: Hash) -> Self {
        let Header { slot, epoch, base_slot, time_us, tip, fence_slot, names_slot, ref detour, .. } = *header;
        Self { slot, hash, epoch, base_slot, time_us, tip, fence_slot, names_slot, detour: detour.clone() }
    }
}

/// The newest base and which blocks can have changed since.
#[derive(Debug, Clone, Default)]
pub(crate) struct BaseState {
    /// Every block whose newest shipped content is known, by number.
    pub blocks: Arc<BlockMap>,
    /// Blocks that the base refers to: they stay as they are until the next checkpoint.
    pub live: Arc<HashSet<u64>>,
    /// False if the free list was not understood: any block may change.
    pub free_list_known: bool,
    /// Size of a block; 0 before the first base.
    pub block_bytes: u64,
    /// Live blocks that may be free all the same, with a stamp to see a change by. DuckDB leaves a freed block out of the free
    /// list that a checkpoint writes while somebody still reads it, and may reuse it before the next one.
    pub suspects: Arc<HashMap<u64, Stamp>>,
    /// What blocks held before they became free, by content. They keep it until they are reused, so it is found again by every
    /// look for changes: it is then named, not uploaded. Whoever sweeps packs must drop their entries here.
    pub stale: Arc<HashMap<Hash, BlockRef>>,
    /// Blocks uploaded since the base.
    pub area_blocks: u64,
}

/// The WAL bytes that were shipped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shipped {
    /// Over all of them.
    pub hasher: blake3::Hasher,
    /// Hash of the part up to the last whole commit.
    pub durable_hash: Option<Hash>,
    /// The last bytes before the last whole commit's end, to see that the file still has them.
    pub tail: Bytes,
}

#[derive(Debug)]
struct Pending {
    header: Header,
    bytes: Bytes,
    hash: Hash,
    effect: Effect,
}

/// What becomes true when a pending record is won.
#[derive(Debug)]
enum Effect {
    Commits {
        extra: Extra,
        shipped: Box<Shipped>,
    },
    Base(Box<BaseState>),
    /// Nothing but the head moves.
    Head,
    Names(Box<Names>),
}

impl Shipper {
    pub(crate) fn new(log: Log, dir: PathBuf, (head, names): (Head, Names), base: BaseState, shipped: Shipped) -> Self {
        let needs_base = head.tip.is_none();
        Self {
            log,
            dir,
            head,
            needs_base,
            base_anew: needs_base,
            base,
            shipped,
            pending: None,
            names,
            rolling: JoinSet::new(),
        }
    }

    /// The last commit that is in the object store. Before the first base: iteration 0, no bytes.
    pub fn durable(&self) -> Position {
        let (iteration, wal_bytes) = self.head.tip.map_or((0, 0), |tip| (tip.iteration, tip.durable));
        Position { epoch: self.head.epoch, iteration, wal_bytes }
    }

    /// The moment that is durable now; `None` before the first base.
    pub fn here(&self) -> Option<Past> {
        self.head.tip?;
        Some(Past { position: self.durable(), time_us: self.head.time_us, route: self.head.route() })
    }

    /// The writer's reign: what positions of commits from here on carry.
    pub fn epoch(&self) -> u64 {
        self.head.epoch + u64::from(self.base_begins_epoch())
    }

    /// The base of other files has an iteration of its own, which may be lower than that of the fence before it: so that positions
    /// only go up, it begins one more epoch.
    fn base_begins_epoch(&self) -> bool {
        self.base_anew && self.head.tip.is_some()
    }

    /// True while nothing can be shipped but a base.
    pub fn needs_base(&self) -> bool {
        self.needs_base
    }

    /// Bytes of WAL since the base.
    pub fn wal_bytes(&self) -> u64 {
        self.head.tip.map_or(0, |tip| tip.wal_bytes)
    }

    /// True when WAL, blocks outside the base, or records since it have grown enough for a checkpoint.
    pub fn wants_checkpoint(&self) -> bool {
        let from = self.head.detour.as_ref().map_or(self.head.base_slot, |detour| detour.resumes);
        let records = self.head.slot - from;
        let area = self.base.area_blocks * self.base.block_bytes;
        !self.needs_base && (self.wal_bytes() > WAL_LIMIT_BYTES || area > AREA_LIMIT_BYTES || records > RECORDS_LIMIT)
    }

    /// Compares the files, which the engine has just opened, with what was shipped. `engine` is the point it reports.
    /// `Diverged` asks for [`Shipper::rebase`].
    pub async fn adopt(&mut self, engine: CommitPoint) -> Result<Adopt> {
        self.settle().await?;
        let on_disk = self.read_image().await?.iteration;
        if on_disk != engine.iteration {
            return Err(Error::Misuse(format!("the engine says iteration {}, its file {on_disk}", engine.iteration)));
        }
        let Some(tip) = self.head.tip.filter(|_| !self.needs_base) else {
            self.needs_base = true;
            return Ok(Adopt::NeedsBase);
        };
        if on_disk == tip.iteration {
            if engine.wal_end < tip.durable {
                return Err(Error::Diverged(format!(
                    "the engine has {} of {} durable WAL bytes",
                    engine.wal_end, tip.durable
                )));
            }
            let path = self.dir.join(WAL_FILE);
            let prefix = blocking(move || hash_prefix(&path, tip.wal_bytes, tip.durable)).await?;
            return match prefix {
                Some(found) if Hash::from(found.hasher.finalize()) == tip.wal_prefix => {
                    self.shipped = found;
                    Ok(Adopt::Match)
                }
                _ => Err(Error::Diverged("the WAL does not begin with what was shipped".into())),
            };
        }
        let local = self.local()?;
        if on_disk > tip.iteration && local.intent.is_some_and(|intent| intent.covers(self.head.slot, self.head.hash)) {
            self.needs_base = true;
            return Ok(Adopt::NeedsBase);
        }
        Err(Error::Diverged(format!("the file is at iteration {on_disk}, the log at {}", tip.iteration)))
    }

    /// Writes down that a checkpoint is about to run. Everything that the WAL holds must have been shipped.
    pub async fn begin_checkpoint(&mut self) -> Result<()> {
        self.settle().await?;
        let tip = self.may_checkpoint()?;
        let path = self.dir.join(WAL_FILE);
        let end = blocking(move || last_flush(&path)).await?;
        if tip.durable != end || tip.wal_bytes != end {
            return Err(Error::Misuse(format!("WAL holds commits up to {end}, shipped are {}", tip.durable)));
        }
        self.write_intent(tip).await
    }

    /// The same for when the store is away and the WAL is over its limit: what the WAL holds beyond the durable position never
    /// becomes a position of its own, and the next base covers it. Until that base, a lost disk goes back to the durable position.
    pub async fn begin_checkpoint_behind(&mut self) -> Result<()> {
        let tip = self.may_checkpoint()?;
        self.write_intent(tip).await
    }

    fn may_checkpoint(&self) -> Result<Tip> {
        self.head
            .tip
            .filter(|_| !self.needs_base)
            .ok_or_else(|| Error::Misuse("a base must be shipped before the next checkpoint".into()))
    }

    async fn write_intent(&self, tip: Tip) -> Result<()> {
        if self.read_image().await?.iteration != tip.iteration {
            return Err(Error::Misuse("a checkpoint ran whose base is not shipped".into()));
        }
        let pending = self.pending.as_ref().map(|pending| (pending.header.slot, pending.hash));
        let heads = [(self.head.slot, self.head.hash)].into_iter().chain(pending).collect();
        let local = Local { intent: Some(Intent { heads, image: Uuid::new_v4() }), ..self.current_local()? };
        let dir = self.dir.clone();
        blocking(move || local.write(&dir)).await
    }

    /// Starts a new epoch on the same files after `Diverged`: fences, and asks for a base that makes them whole. Until that base
    /// is won, the durable position stays what it was; a restore in between goes there.
    pub async fn rebase(&mut self, node: &str) -> Result<()> {
        self.settle().await?;
        let durable = self.durable();
        let tip = match self.head.tip {
            Some(tip) => {
                let prefix = self.shipped.durable_hash.unwrap_or(Hash::of(b""));
                Some(Tip { wal_bytes: tip.durable, wal_prefix: prefix, ..tip })
            }
            None => None,
        };
        let epoch = self.head.epoch + 1;
        let kind = Kind::Fence { node: node.to_owned(), from: tip.map(|_| durable) };
        (self.needs_base, self.base_anew) = (true, true);
        self.append(
            Draft { epoch, base_slot: self.head.base_slot, tip, kind, time_us: now_us(), detour: None },
            &[],
            Effect::Head,
        )
        .await?;
        let epoch = self.epoch();
        let local = Local { incarnation: self.log.incarnation, epoch, image: Uuid::new_v4(), intent: None };
        let dir = self.dir.clone();
        blocking(move || local.write(&dir)).await
    }

    /// Whether another writer or a tombstone has taken the next slot: `Fenced`, `Dropped`. Who only reads would not find out else.
    pub async fn look(&self) -> Result<()> {
        if self.pending.is_some() {
            // Settling it will tell.
            return Ok(());
        }
        self.log.get(self.head.slot + 1).await?.map_or(Ok(()), |record| Err(taken(&record)))
    }

    /// Finds out what became of a record whose outcome is unknown. Every call does this first.
    async fn settle(&mut self) -> Result<()> {
        let Some(pending) = &self.pending else { return Ok(()) };
        match self.log.create(pending.header.slot, &pending.bytes).await? {
            Put::Won => {}
            // The slot is another's for good: nothing of ours may be retried there.
            Put::Lost(record) => return Err(taken(&record)),
        }
        let Some(Pending { header, hash, effect, .. }) = self.pending.take() else { return Ok(()) };
        let slot = header.slot;
        self.head = Head::after(&header, hash);
        match effect {
            Effect::Commits { extra, shipped } => {
                self.shipped = *shipped;
                self.base.add(extra);
            }
            Effect::Base(base) => {
                self.base = *base;
                self.shipped = Shipped::default();
                (self.needs_base, self.base_anew) = (false, false);
            }
            Effect::Names(names) => self.names = *names,
            Effect::Head => {}
        }
        if matches!(header.kind, Kind::Base { .. }) || slot % HINT_EVERY == 0 {
            self.log.write_hint(&header).await;
        }
        if ends_segment(slot) {
            while self.rolling.try_join_next().is_some() {}
            let log = self.log.clone();
            self.rolling.spawn(async move { log.roll_segment(slot).await });
        }
        Ok(())
    }

    async fn append(&mut self, draft: Draft, payload: &[u8], effect: Effect) -> Result<()> {
        let (header, bytes) = draft.encode(self.log.incarnation, &self.head, payload);
        let hash = Hash::of(&bytes);
        self.pending = Some(Pending { header, bytes, hash, effect });
        self.settle().await
    }

    async fn read_image(&self) -> Result<Image> {
        let path = self.dir.join(DB_FILE);
        blocking(move || Image::read_headers(&open(&path)?)).await
    }

    fn local(&self) -> Result<Local> {
        Local::read(&self.dir).ok_or_else(|| Error::Misuse("local.json is gone".into()))
    }

    /// `local.json` with the intent resolved: which file it is now that the last base is won.
    fn current_local(&self) -> Result<Local> {
        let local = self.local()?;
        let image = match &local.intent {
            Some(intent) if intent.heads.iter().all(|(slot, _)| *slot < self.head.base_slot) => intent.image,
            _ => local.image,
        };
        Ok(Local { image, intent: None, ..local })
    }
}

/// What it means that the next slot is another's.
fn taken(record: &Record) -> Error {
    match record.header.kind {
        Kind::Drop {} => Error::Dropped,
        _ => Error::Fenced { epoch: record.header.epoch },
    }
}

impl BaseState {
    /// Blocks that may have changed since the base, in a file with `file_blocks` of them.
    fn candidates(&self, file_blocks: u64) -> Vec<u64> {
        let may_change =
            |block: &u64| !self.free_list_known || !self.live.contains(block) || self.suspects.contains_key(block);
        (0..file_blocks).filter(may_change).collect()
    }

    /// All contents that the store has, by hash.
    fn contents(&self) -> Arc<HashMap<Hash, BlockRef>> {
        let known = self.blocks.values().map(|reference| (reference.hash, reference.clone()));
        Arc::new(known.chain(self.stale.iter().map(|(hash, reference)| (*hash, reference.clone()))).collect())
    }

    fn add(&mut self, Extra { blocks, stamps, uploaded }: Extra) {
        self.area_blocks += uploaded;
        if blocks.is_empty() && stamps.is_empty() {
            return;
        }
        Arc::make_mut(&mut self.blocks).extend(blocks);
        Arc::make_mut(&mut self.suspects).extend(stamps);
    }
}

/// Blocks that go along with WAL bytes.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    pub blocks: BlockMap,
    /// New stamps of suspects.
    pub stamps: HashMap<u64, Stamp>,
    /// How many of the blocks had to be uploaded.
    pub uploaded: u64,
}

/// A record before it has a place.
#[derive(Debug)]
pub(crate) struct Draft {
    pub epoch: u64,
    pub base_slot: u64,
    pub tip: Option<Tip>,
    pub kind: Kind,
    pub time_us: i64,
    /// A fence's that goes on from elsewhere; else the predecessor's goes on.
    pub detour: Option<Box<Detour>>,
}

impl Draft {
    /// For the slot after `head`.
    pub(crate) fn encode(self, incarnation: Uuid, head: &Head, payload: &[u8]) -> (Header, Bytes) {
        let header = Header {
            version: VERSION,
            incarnation,
            epoch: self.epoch,
            slot: head.slot + 1,
            prev: head.hash,
            nonce: Uuid::new_v4(),
            base_slot: self.base_slot,
            time_us: self.time_us.max(head.time_us),
            tip: self.tip,
            fence_slot: if matches!(self.kind, Kind::Fence { .. }) { head.slot + 1 } else { head.fence_slot },
            names_slot: if matches!(self.kind, Kind::Names {}) { head.slot + 1 } else { head.names_slot },
            // A base is read by itself.
            detour: match (&self.kind, self.detour) {
                (Kind::Base { .. }, _) => None,
                (_, None) => head.detour.clone(),
                (_, anew) => anew,
            },
            kind: self.kind,
        };
        let bytes = Record::encode(&header, payload);
        (header, bytes)
    }
}

/// Hashes the first `bytes` of a WAL, remembering the state at `durable`. `None` if the file is shorter.
pub(crate) fn hash_prefix(path: &Path, bytes: u64, durable: u64) -> Result<Option<Shipped>> {
    let mut shipped = Shipped { durable_hash: Some(Hash::of(b"")), ..Shipped::default() };
    if bytes == 0 {
        return Ok(Some(shipped));
    }
    let Ok(file) = File::open(path) else { return Ok(None) };
    let length = file.metadata().map_err(Error::io("reading the WAL's size"))?.len();
    if length < bytes {
        return Ok(None);
    }
    commits::hash_range(&file, 0..durable, &mut shipped.hasher)?;
    shipped.durable_hash = Some(shipped.hasher.finalize().into());
    shipped.tail = commits::read_tail(&file, durable)?;
    commits::hash_range(&file, durable..bytes, &mut shipped.hasher)?;
    Ok(Some(shipped))
}

/// End of the last whole commit in a WAL that may not exist.
fn last_flush(path: &Path) -> Result<u64> {
    let Ok(file) = File::open(path) else { return Ok(0) };
    let length = file.metadata().map_err(Error::io("reading the WAL's size"))?.len();
    wal::last_flush(&file, length).map_err(|error| Error::Diverged(error.to_string()))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::io("opening a mart's file"))
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_cancelled) => Err(Error::Unavailable { what: "the runtime is shutting down".into(), source: None }),
    }
}

pub(crate) fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}
