//! `local.json` beside a mart's files: whose they are. Written rarely, always whole (temp file, fsync, rename, fsync).
//!
//! It does not say how far they were shipped: the log does, and the WAL's own bytes prove it (see `open`).

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::hash::Hash;

const NAME: &str = "local.json";

/// Whose files these are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The mart's life.
    pub incarnation: Uuid,
    /// The reign in which they were written.
    pub epoch: u64,
    /// Which file, if no checkpoint ran since: a base record with the same is of this very file.
    pub image: Uuid,
    /// A checkpoint may have run after everything up to this record was shipped.
    pub intent: Option<Intent>,
}

/// A checkpoint that was about to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Slot and hash of the log's head then; two if it was unknown whether the last record had landed.
    pub heads: Vec<(u64, Hash)>,
    /// Which file it is after that checkpoint.
    pub image: Uuid,
}

impl Intent {
    /// True if this is where the log stood.
    pub fn covers(&self, slot: u64, hash: Hash) -> bool {
        self.heads.contains(&(slot, hash))
    }
}

impl Local {
    /// Reads; `None` if it is missing or not what this program writes (then the files are nobody's).
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(NAME)).ok()?).ok()
    }

    /// Writes and syncs.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let write = || {
            let temporary = dir.join("local.json.new");
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(self).expect("plain fields"))?;
            file.sync_all()?;
            fs::rename(&temporary, dir.join(NAME))?;
            sync_dir(dir)
        };
        write().map_err(Error::io("writing local.json"))
    }
}

/// Makes names created, renamed or removed in a directory durable.
pub fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
