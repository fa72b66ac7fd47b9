//! What a writer does to its own history: naming moments, going back to one, replacing its files.
//!
//! Each is one record in the next slot, so it has its place among commits, and a deposed writer can't do it.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{BaseState, Draft, Effect, Shipped, Shipper, blocking, now_us};
use crate::error::{Error, Result};
use crate::local::{Local, sync_dir};
use crate::names::{Names, Past};
use crate::open::{MartReplica, RESTORING, base_state};
use crate::past::Loaded;
use crate::position::Position;
use crate::record::{Detour, Kind, Tip};

/// Files as of an earlier moment, whole, in a directory that nobody uses.
#[derive(Debug)]
pub struct Prepared {
    past: Past,
    loaded: Loaded,
    shipped: Shipped,
    dir: PathBuf,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Moved away when it was used; what is left is of no use.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl MartReplica {
    /// Fetches the files of an earlier moment into the mart's own directory on this machine; the mart goes on meanwhile.
    pub async fn prepare(&self, root: &Path, past: Past) -> Result<Prepared> {
        let loaded = Loaded::of(&self.log, &past).await?;
        let dir = root.join(format!("{RESTORING}{}", Uuid::new_v4().simple()));
        fs::create_dir(&dir).map_err(Error::io("creating a directory to restore into"))?;
        let mut prepared = Prepared { past, loaded, shipped: Shipped::default(), dir };
        prepared.shipped = prepared.loaded.write(&self.log, &prepared.dir).await?.1;
        Ok(prepared)
    }
}

impl Shipper {
    /// What is named and held.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Makes these the names. Returns when the record is won.
    pub async fn set_names(&mut self, names: Names) -> Result<()> {
        self.settle().await?;
        let (epoch, base_slot, tip) = (self.head.epoch, self.head.base_slot, self.head.tip);
        let payload = names.encode();
        let draft = Draft { epoch, base_slot, tip, kind: Kind::Names {}, time_us: now_us(), detour: None };
        self.append_beside(draft, &payload, Effect::Names(Box::new(names))).await
    }

    /// Goes back: from here on the mart is what it was then, in a new epoch and a new directory. What it was until now stays in the
    /// log. The engine must not write any more, and all of its commits must have been shipped.
    pub async fn go_back(&mut self, mut prepared: Prepared, node: &str) -> Result<Position> {
        self.settle().await?;
        // It may have been swept while it was fetched.
        if !self.names.holds(&prepared.past, self.log.layout.owner()) {
            return Err(Error::NotFound(format!("position {}", prepared.past.position)));
        }
        let epoch = self.head.epoch + 1;
        let detour = Detour { before: prepared.past.route.clone(), resumes: self.head.slot + 1 };
        let (life, tip) = (&prepared.loaded.life, prepared.loaded.tip);
        let kind = Kind::Fence { node: node.to_owned(), from: Some(prepared.past.position) };
        let local = Local { incarnation: self.log.incarnation, epoch, image: life.image, intent: None };
        let draft = Draft {
            epoch,
            base_slot: life.slot,
            tip: Some(tip),
            kind,
            time_us: now_us(),
            detour: Some(Box::new(detour)),
        };
        self.append(draft, &[], Effect::Head).await?;
        self.move_in(&prepared.dir, local).await?;
        self.base = base_state(prepared.loaded.manifest.clone(), &prepared.loaded.life);
        self.shipped = std::mem::take(&mut prepared.shipped);
        (self.needs_base, self.base_anew) = (false, false);
        Ok(self.durable())
    }

    /// Puts other files in place of the mart's, in a new epoch: a directory beside the mart's own with `mart.db` alone, which holds
    /// the same rows. The caller ships its base next; until that is won the mart is in the log what it was. As for `go_back`, nobody
    /// writes.
    pub async fn replace_files(&mut self, from: &Path, node: &str) -> Result<()> {
        self.settle().await?;
        let tip = self.head.tip.ok_or_else(|| Error::Misuse("a base must be shipped first".into()))?;
        let prefix = self.shipped.durable_hash.unwrap_or(crate::hash::Hash::of(b""));
        let tip = Tip { wal_bytes: tip.durable, wal_prefix: prefix, ..tip };
        let epoch = self.head.epoch + 1;
        let kind = Kind::Fence { node: node.to_owned(), from: Some(self.durable()) };
        let draft =
            Draft { epoch, base_slot: self.head.base_slot, tip: Some(tip), kind, time_us: now_us(), detour: None };
        self.append(draft, &[], Effect::Head).await?;
        (self.needs_base, self.base_anew) = (true, true);
        let epoch = self.epoch();
        let local = Local { incarnation: self.log.incarnation, epoch, image: Uuid::new_v4(), intent: None };
        self.move_in(from, local).await?;
        // The packs stay known by content; which block is where does not.
        self.base = BaseState { stale: self.base.contents(), ..BaseState::default() };
        self.shipped = Shipped::default();
        Ok(())
    }

    /// The directory of the mart's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn root(&self) -> Result<&Path> {
        self.dir.parent().ok_or_else(|| Error::Misuse("a mart's files lie in a directory of the mart".into()))
    }

    async fn move_in(&mut self, from: &Path, local: Local) -> Result<()> {
        let root = self.root()?.to_owned();
        let dir = root.join(format!("{}-{}", self.log.incarnation, local.epoch));
        let (from, to) = (from.to_owned(), dir.clone());
        blocking(move || {
            local.write(&from)?;
            let rename = || fs::rename(&from, &to).and_then(|()| sync_dir(&root));
            rename().map_err(Error::io("moving the mart's new files into place"))
        })
        .await?;
        self.dir = dir;
        Ok(())
    }
}
