//! Opens a mart for writing: reuse the local files if the log proves them, else restore into a new epoch.
//!
//! # Consistency
//! Local files are reused only if `local.json` names the log's incarnation and epoch, and either the file is the base's very image
//! and its WAL begins with exactly what was shipped, or a checkpoint was begun when exactly the log's head was shipped. All else
//! goes to `quarantine/`: never opened, never deleted.
//!
//! # Crash consistency
//! A restore builds a complete directory under another name and renames it. A crash leaves `.restore-*`, removed next time.
//!
//! # Cancellation
//! Dropping `open_writer` leaves at most a fence without files: the next open restores again, into the next epoch.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path as Key;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::layout::Layout;
use crate::local::{Local, sync_dir};
use crate::log::{Log, Put, Stores};
use crate::names::Names;
use crate::plan::{Life, Plan};
use crate::record::{Kind, Record, Tip};
use crate::restore::{self, Restored};
use crate::ship::{BaseState, Draft, Head, Shipped, Shipper, blocking, hash_prefix, now_us};
use crate::{DB_FILE, WAL_FILE};

/// A fence may lose its slot to the old writer's commits this often before the open gives up.
const FENCE_ATTEMPTS: u32 = 10;
const QUARANTINE: &str = "quarantine";
pub(crate) const RESTORING: &str = ".restore-";

/// The replica of one life of a mart.
#[derive(Debug, Clone)]
pub struct MartReplica {
    pub(crate) log: Log,
}

/// A mart that may be written.
#[derive(Debug)]
pub struct Opened {
    /// Holds `mart.db`, `mart.db.wal` (either may not exist yet) and `local.json`.
    pub dir: PathBuf,
    /// Where the files came from.
    pub how: How,
    /// Makes its commits durable.
    pub shipper: Shipper,
}

/// Where a mart's files came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Nothing was ever shipped: the engine creates the file.
    Fresh,
    /// The local files continue what was shipped.
    Reused,
    /// Written from the object store.
    Restored {
        /// Bytes of database and WAL.
        bytes: u64,
        /// From the first read to the rename.
        took: Duration,
    },
}

impl MartReplica {
    /// `prefix` is the mart's in its bucket (`duckdb/{mart}`). Touches nothing.
    pub fn new(stores: Stores, prefix: Key, incarnation: Uuid) -> Self {
        Self { log: Log { stores, layout: Layout::new(&prefix, incarnation), incarnation } }
    }

    /// Starts the log. Calling it again is harmless.
    pub async fn create(&self, node: &str) -> Result<()> {
        let head = Head::nowhere();
        let kind = Kind::Fence { node: node.to_owned(), from: None };
        let (_, bytes) = Draft { epoch: 1, base_slot: 0, tip: None, kind, time_us: now_us(), detour: None }.encode(
            self.log.incarnation,
            &head,
            &[],
        );
        match self.log.create(1, &bytes).await? {
            Put::Won => Ok(()),
            // The incarnation is in the key: only an earlier call of this can have made it.
            Put::Lost(record) if matches!(record.header.kind, Kind::Fence { from: None, .. }) => Ok(()),
            Put::Lost(_) => Err(Error::corrupt(self.log.layout.slot(1).as_ref(), "a log starts with a fence")),
        }
    }

    /// Ends the log with a tombstone: no writer can go on, no reader will open. Calling it again is harmless.
    pub async fn drop_mart(&self) -> Result<()> {
        for _ in 0..FENCE_ATTEMPTS {
            let record = self.head().await?;
            if matches!(record.header.kind, Kind::Drop {}) {
                return Ok(());
            }
            let head = Head::of(&record);
            let draft = Draft {
                epoch: head.epoch + 1,
                base_slot: head.base_slot,
                tip: head.tip,
                kind: Kind::Drop {},
                time_us: now_us(),
                detour: None,
            };
            let (header, bytes) = draft.encode(self.log.incarnation, &head, &[]);
            if matches!(self.log.create(header.slot, &bytes).await?, Put::Won) {
                return Ok(());
            }
        }
        Err(Error::Unavailable { what: "the log's writer was faster every time".into(), source: None })
    }

    /// Opens for writing. `root` is the mart's own directory on this machine; the caller holds its lock. An old writer
    /// elsewhere is fenced, unless the local files are the log's own continuation.
    ///
    /// Errors: `NotFound` (no log), `Dropped`, `Corrupt` (nothing was changed locally), `Unavailable`, `Io`.
    pub async fn open_writer(&self, root: &Path, node: &str) -> Result<Opened> {
        self.open_writer_behind(None, root, node).await
    }

    /// The same, but fences only right behind the slot `seen`: `Unavailable` if the log went on since, and the old writer with it.
    pub async fn open_writer_behind(&self, seen: Option<u64>, root: &Path, node: &str) -> Result<Opened> {
        fs::create_dir_all(root).map_err(Error::io("creating the mart's directory"))?;
        let mut record = self.end().await?;
        let mut names = self.log.names(&record.header).await?;
        if let Some(opened) = self.reuse(root, &record, &names).await? {
            return Ok(opened);
        }
        let aside = root.to_owned();
        blocking(move || quarantine_all(&aside)).await?;
        for _ in 0..FENCE_ATTEMPTS {
            if matches!(record.header.kind, Kind::Drop {}) {
                return Err(Error::Dropped);
            }
            if seen.is_some_and(|seen| seen != record.header.slot) {
                return Err(Error::Unavailable { what: "the log's writer went on".into(), source: None });
            }
            let started = Instant::now();
            // Read and check everything that is small before the old writer is deposed.
            let plan = self.plan(&record, true).await?;
            let source = Source::load(&self.log, &plan).await?;
            let prefix = match (&source, plan.tip()) {
                (Some(source), Some(tip)) => {
                    let life = source.life.clone();
                    Some(blocking(move || restore::wal_prefix(&life, tip)).await?)
                }
                _ => None,
            };
            let fence = self.fence(&Head::of(&record), node, prefix);
            match self.log.create(fence.0.slot, &fence.1).await? {
                Put::Won => {
                    let record = Record::decode("own fence", &fence.1)?;
                    return self.restore(root, (Head::of(&record), names), source, started).await;
                }
                Put::Lost(other) => {
                    tracing::info!(slot = other.header.slot, "the old writer was faster; fencing again");
                    record = self.end().await?;
                    names = self.log.names(&record.header).await?;
                }
            }
        }
        Err(Error::Unavailable { what: "the log's writer was faster every time".into(), source: None })
    }

    fn fence(&self, head: &Head, node: &str, prefix: Option<crate::hash::Hash>) -> (crate::record::Header, Bytes) {
        let tip = head.tip.zip(prefix).map(|(tip, wal_prefix)| Tip { wal_bytes: tip.durable, wal_prefix, ..tip });
        let from =
            tip.map(|tip| crate::Position { epoch: head.epoch, iteration: tip.iteration, wal_bytes: tip.durable });
        let kind = Kind::Fence { node: node.to_owned(), from };
        let draft =
            Draft { epoch: head.epoch + 1, base_slot: head.base_slot, tip, kind, time_us: now_us(), detour: None };
        draft.encode(self.log.incarnation, head, &[])
    }

    async fn restore(
        &self,
        root: &Path,
        standing: (Head, Names),
        source: Option<Source>,
        started: Instant,
    ) -> Result<Opened> {
        let (epoch, tip) = (standing.0.epoch, standing.0.tip);
        let building = root.join(format!("{RESTORING}{}", Uuid::new_v4().simple()));
        fs::create_dir(&building).map_err(Error::io("creating a directory to restore into"))?;
        let image = source.as_ref().map_or_else(Uuid::new_v4, |source| source.life.image);
        let (how, base, shipped) = match (source, tip) {
            (Some(source), Some(tip)) => {
                let applied = restore::apply(&self.log, (&source.manifest, &source.life), tip, &building).await;
                let Restored { bytes, shipped } = applied.inspect_err(|_| {
                    if let Err(error) = fs::remove_dir_all(&building) {
                        tracing::warn!(%error, "a failed restore was not removed");
                    }
                })?;
                (How::Restored { bytes, took: started.elapsed() }, source.base_state(), shipped)
            }
            _ => (How::Fresh, BaseState::default(), Shipped::default()),
        };
        let local = Local { incarnation: self.log.incarnation, epoch, image, intent: None };
        let dir = root.join(format!("{}-{epoch}", self.log.incarnation));
        let (from, to, root) = (building, dir.clone(), root.to_owned());
        blocking(move || {
            local.write(&from)?;
            let rename = || fs::rename(&from, &to).and_then(|()| sync_dir(&root));
            rename().map_err(Error::io("moving the restored files into place"))
        })
        .await?;
        Ok(Opened { dir: dir.clone(), how, shipper: Shipper::new(self.log.clone(), dir, standing, base, shipped) })
    }

    /// The local directory that is the log's own continuation, if there is one.
    async fn reuse(&self, root: &Path, record: &Record, names: &Names) -> Result<Option<Opened>> {
        if matches!(record.header.kind, Kind::Drop {}) {
            return Err(Error::Dropped);
        }
        let head = Head::of(record);
        let ours = |local: &Local| local.incarnation == self.log.incarnation && local.epoch == head.epoch;
        let found =
            mart_dirs(root)?.into_iter().find_map(|dir| Local::read(&dir).filter(ours).map(|local| (dir, local)));
        let Some((dir, local)) = found else { return Ok(None) };
        let plan = self.plan(record, false).await?;
        let Some(source) = Source::load(&self.log, &plan).await? else {
            let shipper = Shipper::new(
                self.log.clone(),
                dir.clone(),
                (head, names.clone()),
                BaseState::default(),
                Shipped::default(),
            );
            return Ok(Some(Opened { dir, how: How::Reused, shipper }));
        };
        let Some(tip) = head.tip else { return Ok(None) };
        let (path, life_image, at) = (dir.clone(), source.life.image, head.clone());
        match blocking(move || proven(&path, &local, (&at, tip), life_image)).await? {
            Some(shipped) => {
                let shipper =
                    Shipper::new(self.log.clone(), dir.clone(), (head, names.clone()), source.base_state(), shipped);
                Ok(Some(Opened { dir, how: How::Reused, shipper }))
            }
            None => Ok(None),
        }
    }

    /// The last record, for whoever writes behind it.
    async fn end(&self) -> Result<Record> {
        let record = self.head().await?;
        self.log.ends_at(record.header.slot).await?;
        Ok(record)
    }

    pub(crate) async fn head(&self) -> Result<Record> {
        self.log
            .find_head()
            .await?
            .ok_or_else(|| Error::NotFound(format!("log of incarnation {}", self.log.incarnation)))
    }

    /// Folds what `head` builds on.
    async fn plan(&self, head: &Record, keep_wal: bool) -> Result<Plan> {
        self.log.fold(&head.header.route(head.hash), keep_wal).await
    }
}

/// What a plan builds on, fetched.
struct Source {
    life: Life,
    manifest: crate::manifest::Manifest,
}

impl Source {
    async fn load(log: &Log, plan: &Plan) -> Result<Option<Self>> {
        let Some(life) = plan.life() else { return Ok(None) };
        let manifest = restore::load_manifest(log, life).await?;
        Ok(Some(Self { life: life.clone(), manifest }))
    }

    fn base_state(self) -> BaseState {
        base_state(self.manifest, &self.life)
    }
}

/// What a shipper knows of files that were just read or written as `life` says.
pub(crate) fn base_state(manifest: crate::manifest::Manifest, life: &Life) -> BaseState {
    let live = manifest.blocks.keys().copied().collect();
    let overlay = life.overlay();
    let area_blocks = overlay.len() as u64;
    let mut blocks = manifest.blocks;
    blocks.extend(overlay);
    BaseState {
        blocks: Arc::new(blocks),
        live: Arc::new(live),
        free_list_known: manifest.free_list_known,
        block_bytes: manifest.block_bytes,
        suspects: Arc::default(),
        stale: Arc::default(),
        area_blocks,
    }
}

/// Whether local files continue the log; if so, what of their WAL was shipped.
fn proven(dir: &Path, local: &Local, (head, tip): (&Head, Tip), image: Uuid) -> Result<Option<Shipped>> {
    let on_disk = match fs::File::open(dir.join(DB_FILE))
        .map_err(Error::io("opening"))
        .and_then(|file| Image::read_headers(&file))
    {
        Ok(on_disk) => on_disk,
        Err(error) => {
            tracing::warn!(%error, "local database not readable");
            return Ok(None);
        }
    };
    if on_disk.iteration == tip.iteration {
        let same_file = local.image == image || local.intent.as_ref().is_some_and(|intent| intent.image == image);
        let shipped = if same_file { hash_prefix(&dir.join(WAL_FILE), tip.wal_bytes, tip.durable)? } else { None };
        return Ok(shipped.filter(|shipped| crate::hash::Hash::from(shipped.hasher.finalize()) == tip.wal_prefix));
    }
    let begun = local.intent.as_ref().is_some_and(|intent| intent.covers(head.slot, head.hash));
    Ok((on_disk.iteration > tip.iteration && begun).then(Shipped::default))
}

/// Directories with a mart's files, newest epoch first. Removes what an interrupted restore left.
fn mart_dirs(root: &Path) -> Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(root).map_err(Error::io("listing the mart's directory"))? {
        let entry = entry.map_err(Error::io("listing the mart's directory"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && name.starts_with(RESTORING) {
            fs::remove_dir_all(entry.path()).map_err(Error::io("removing an interrupted restore"))?;
        } else if is_dir && name != QUARANTINE && epoch_of(&name).is_some() {
            dirs.push((epoch_of(&name), entry.path()));
        }
    }
    dirs.sort_by(|a, b| b.cmp(a));
    Ok(dirs.into_iter().map(|(_, path)| path).collect())
}

/// Of `{uuid}-{epoch}`.
fn epoch_of(name: &str) -> Option<u64> {
    let (uuid, epoch) = name.rsplit_once('-')?;
    Uuid::parse_str(uuid).ok()?;
    epoch.parse().ok()
}

fn quarantine_all(root: &Path) -> Result<()> {
    for dir in mart_dirs(root)? {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let target = root.join(QUARANTINE).join(format!("{name}-{}", now_us()));
        let quarantine = || {
            fs::create_dir_all(root.join(QUARANTINE))?;
            fs::rename(&dir, &target)?;
            sync_dir(&root.join(QUARANTINE))?;
            sync_dir(root)
        };
        quarantine().map_err(Error::io("moving files to quarantine"))?;
        tracing::warn!(from = name, "local files do not continue the log; moved to quarantine");
    }
    Ok(())
}
