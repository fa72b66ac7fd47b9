//! Copies of moments on this node's disk, for work that wants plain files: comparing, archiving, trial restores.
//!
//! # Crash consistency
//! Nobody needs a copy for longer than its work: each is removed with it, and what a crash leaves at the next start.

use std::path::{Path, PathBuf};

use engine::compact::TableDiff;
use replica::names;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use crate::error::{ApiError, Code};
use crate::orders::refused;
use crate::past::Past;
use crate::supervisor::child;

/// Below the state directory.
const DIR: &str = "scratch";
/// Each takes a copy's room on disk and an engine of its own: more wait.
static TURNS: Semaphore = Semaphore::const_new(2);

/// A directory of one piece of work; gone with it.
pub struct Scratch {
    dir: PathBuf,
    _turn: SemaphorePermit<'static>,
}

impl Scratch {
    /// An empty one, when it is its turn.
    pub async fn make(state_dir: &Path) -> Result<Self, ApiError> {
        let turn = TURNS.acquire().await.map_err(|error| ApiError::internal("turns never end", error))?;
        let dir = state_dir.join(DIR).join(Uuid::new_v4().to_string());
        std::fs::create_dir_all(&dir)
            .map_err(|error| ApiError::internal("a scratch directory can't be made", error))?;
        Ok(Self { dir, _turn: turn })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The database of a moment, copied there.
    pub async fn copy(&self, past: &Past, at: &names::Past) -> Result<PathBuf, ApiError> {
        let dir = self.dir.join(at.position.to_string());
        std::fs::create_dir_all(&dir)
            .map_err(|error| ApiError::internal("a scratch directory can't be made", error))?;
        past.replica().copy(at, &dir).await.map_err(|error| refused(&error))?;
        Ok(dir.join(replica::DB_FILE))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is removed at the next start.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Removes what an earlier life of this node left.
pub fn clean(state_dir: &Path) {
    let _ = std::fs::remove_dir_all(state_dir.join(DIR));
}

/// How many rows of each table would come and go if `to` took the place of `from`.
pub async fn compare(
    state_dir: &Path,
    past: &Past,
    from: &names::Past,
    to: &names::Past,
) -> Result<Vec<TableDiff>, ApiError> {
    if from.position == to.position {
        return Ok(Vec::new());
    }
    let scratch = Scratch::make(state_dir).await?;
    let (from, to) = futures::future::try_join(scratch.copy(past, from), scratch.copy(past, to)).await?;
    child::diff(&from, &to).await.map_err(|error| {
        tracing::error!(%error, "two moments can't be compared");
        ApiError::new(Code::Internal, "the two moments can't be compared").hint("the server's log says why")
    })
}
