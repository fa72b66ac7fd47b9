//! Earlier moments of a mart: copying one into a directory, branching from it.
//!
//! Nothing here changes the mart's own log; going back in place is the writer's business (`ship::back`).
//!
//! # Crash consistency
//! A copy is a directory that nobody uses before it is whole. A branch is one record, created if absent in a log of its own.

use std::path::Path;

use futures::TryStreamExt;

use crate::error::{Error, Result};
use crate::history::{At, History, Moment};
use crate::log::{Log, Put};
use crate::names::{Names, Past};
use crate::open::MartReplica;
use crate::plan::{Life, Plan};
use crate::position::Position;
use crate::record::{Detour, Kind, Owner, Record, Stretch, Tip};
use crate::restore;
use crate::retention::Ledger;
use crate::ship::{Draft, Head, Shipped, now_us};

/// A moment with what there is to fetch for it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub life: Life,
    pub manifest: crate::manifest::Manifest,
    pub tip: Tip,
}

impl Loaded {
    /// Reads and checks everything that is small. `NotFound` if no commit ended there.
    pub(crate) async fn of(log: &Log, past: &Past) -> Result<Self> {
        let mut plan: Plan = log.fold(&past.route, true).await?;
        let absent = || Error::NotFound(format!("position {}", past.position));
        let position = past.position;
        let plan = crate::ship::blocking(move || plan.cut(position).map(|whole| whole.then_some(plan))).await?;
        let plan = plan.ok_or_else(absent)?;
        let (life, tip) = plan.life().zip(plan.tip()).ok_or_else(absent)?;
        let manifest = restore::load_manifest(log, life).await?;
        Ok(Self { life: life.clone(), manifest, tip })
    }

    /// Writes database and WAL.
    pub(crate) async fn write(&self, log: &Log, dir: &Path) -> Result<(u64, Shipped)> {
        let restored = restore::apply(log, (&self.manifest, &self.life), self.tip, dir).await?;
        Ok((restored.bytes, restored.shipped))
    }
}

/// A mart's history as of one look at its log.
#[derive(Debug)]
pub struct Looked {
    /// The log's last record.
    pub(crate) head: Record,
    /// What is named.
    pub names: Names,
}

impl Looked {
    /// Time of the newest record, in microseconds since the Unix epoch.
    pub fn newest_us(&self) -> i64 {
        self.head.header.time_us
    }
}

/// What a moment takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of its file.
    pub bytes: u64,
    /// How many of them another moment has too, and so takes nothing more.
    pub shared_bytes: u64,
}

impl MartReplica {
    /// Looks where the log ends. Does not need its writer.
    pub async fn look(&self) -> Result<Looked> {
        let head = self.head().await?;
        if matches!(head.header.kind, Kind::Drop {}) {
            return Err(Error::Dropped);
        }
        let names = self.log.names(&head.header).await?;
        Ok(Looked { head, names })
    }

    /// The way to a moment. `NotFound` if there is none, or not any more.
    pub async fn find(&self, looked: &Looked, at: At) -> Result<Past> {
        History::new(&self.log, looked.head.clone(), &looked.names).find(at).await
    }

    /// Moments in a span of time (microseconds, end not included), oldest first; at least the newest `limit` of them.
    pub async fn moments(&self, looked: &Looked, time_us: std::ops::Range<i64>, limit: usize) -> Result<Vec<Moment>> {
        let history = History::new(&self.log, looked.head.clone(), &looked.names);
        history.between(time_us, limit).await
    }

    /// Writes `mart.db` and `mart.db.wal` as of a moment into an empty directory; returns their bytes.
    pub async fn copy(&self, past: &Past, dir: &Path) -> Result<u64> {
        Ok(Loaded::of(&self.log, past).await?.write(&self.log, dir).await?.0)
    }

    /// Starts the log of `child`, a mart of the same tenant that was never created, at a moment of this one. Shares everything.
    /// The caller has noted the branch in this mart's names before, so that no sweep takes what it needs.
    pub async fn branch(&self, past: &Past, child: &Self, node: &str) -> Result<Position> {
        let mut plan = self.log.fold(&past.route, true).await?;
        let position = past.position;
        let plan = crate::ship::blocking(move || plan.cut(position).map(|whole| whole.then_some(plan))).await?;
        let absent = || Error::NotFound(format!("position {position}"));
        let plan = plan.ok_or_else(absent)?;
        let (life, tip) = plan.life().zip(plan.tip()).ok_or_else(absent)?;
        let detour = Detour { before: self.abroad(&past.route), resumes: 1 };
        let draft = Draft {
            epoch: position.epoch + 1,
            base_slot: life.slot,
            tip: Some(tip),
            kind: Kind::Fence { node: node.to_owned(), from: Some(position) },
            time_us: now_us(),
            detour: Some(Box::new(detour)),
        };
        let (_, bytes) = draft.encode(child.log.incarnation, &Head::nowhere(), &[]);
        match child.log.create(1, &bytes).await? {
            Put::Won => Ok(Position { epoch: position.epoch + 1, ..position }),
            Put::Lost(_) => Err(Error::Misuse("the branch's log exists already".into())),
        }
    }

    /// Reads what each record still needs: the ground for a sweep. Grows with the window.
    pub async fn ledger(&self, looked: &Looked) -> Result<Ledger> {
        Ledger::read(&self.log, &looked.names, looked.head.header.slot).await
    }

    /// What the file of a moment takes, as of its base, and how much of it that of `other` shares.
    pub async fn sizes(&self, past: &Past, other: &Past) -> Result<Sizes> {
        let (own, others) = (self.base(past).await?, self.base(other).await?);
        let theirs: std::collections::HashSet<_> = others.blocks.values().map(|block| block.hash).collect();
        let shared = own.blocks.values().filter(|block| theirs.contains(&block.hash)).count() as u64;
        Ok(Sizes { bytes: own.file_bytes(), shared_bytes: shared * own.block_bytes })
    }

    /// Manifest of the base that a moment builds on: what its route begins with.
    async fn base(&self, past: &Past) -> Result<crate::manifest::Manifest> {
        let first = past.route.first().ok_or_else(|| Error::Misuse("a route has a stretch".into()))?;
        let relative = first.owner.as_ref().filter(|owner| *owner != self.log.layout.owner());
        let log = relative.map_or_else(|| self.log.clone(), |owner| self.log.of(owner));
        let header = log.header_anywhere(first.first).await?;
        match &header.kind {
            Kind::Base { manifest, manifest_hash, iteration, .. } => {
                restore::load_named_manifest(&log, first.first, manifest, *manifest_hash, *iteration).await
            }
            _ => Err(Error::corrupt(format!("log record {}", first.first), "a route begins at a base")),
        }
    }

    /// Objects of this life that nothing names and that are older than a day, by their names below its root.
    pub async fn unknown(&self, looked: &Looked, ledger: &Ledger) -> Result<Vec<String>> {
        let root = self.log.layout.root();
        let now = chrono::Utc::now();
        let doomed = looked.names.doomed.iter().flat_map(|doomed| &doomed.objects).map(String::as_str);
        let named = ledger.entries.values().flat_map(|entry| {
            entry.manifest.as_deref().into_iter().chain(entry.packs.iter().map(|(pack, _)| pack.as_ref()))
        });
        let known: std::collections::HashSet<&str> = doomed.chain(named).collect();
        let mut objects = self.log.stores.data.list(Some(root));
        let mut unknown = Vec::new();
        while let Some(object) = objects.try_next().await.map_err(|error| Error::store(root, error))? {
            let Some(name) = object.location.as_ref().strip_prefix(&format!("{root}/")) else { continue };
            let young = now - object.last_modified < chrono::Duration::days(1);
            let of_the_log = ["log/", "kept/", "segment/"].iter().any(|folder| name.starts_with(folder));
            if !young && !of_the_log && name != "head" && !known.contains(name) {
                unknown.push(name.to_owned());
            }
        }
        Ok(unknown)
    }

    /// Bytes of all objects of this life. What it shares with the marts that it branched off is theirs.
    pub async fn stored_bytes(&self) -> Result<u64> {
        let root = self.log.layout.root();
        let objects = self.log.stores.data.list(Some(root));
        let bytes = objects.try_fold(0, |sum, object| std::future::ready(Ok(sum + object.size)));
        bytes.await.map_err(|error| Error::store(root, error))
    }

    /// Whose replica it is.
    pub fn owner(&self) -> &Owner {
        self.log.layout.owner()
    }

    /// A route as a relative reads it.
    fn abroad(&self, route: &[Stretch]) -> Vec<Stretch> {
        let own = self.log.layout.owner();
        route
            .iter()
            .map(|stretch| Stretch { owner: Some(stretch.owner.as_ref().unwrap_or(own).clone()), ..stretch.clone() })
            .collect()
    }
}
