//! Verifications that are asked for: reading a replica back, putting damaged objects back, restoring on trial.
//!
//! Works on the object store, not on open marts: whichever node is asked may do it, also of a mart that can't be opened.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::compact::Checked;
use replica::history::At;
use replica::verify::{Repaired, Report, Scope, Versions};
use replica::{DB_FILE, MartReplica};
use serde::Serialize;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::clock;
use crate::error::{ApiError, Code};
use crate::marts::Ground;
use crate::metrics::Metrics;
use crate::names::MartId;
use crate::orders::refused;
use crate::scratch::Scratch;
use crate::stores::{Bucket, BucketVersions, Versioning};
use crate::supervisor;

/// Each reads as fast as it can.
const AT_ONCE: usize = 2;

/// What to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Task {
    /// Everything that is retained, not only the newest moment.
    pub all: bool,
    /// Put damaged objects back from older versions.
    pub repair: bool,
    /// Restore the newest moment into a directory, and read every row.
    pub trial: bool,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// What is wrong now.
    #[serde(flatten)]
    pub report: Report,
    /// What was put back.
    pub repaired: Vec<Repaired>,
    /// The trial restore, if one was asked for and there is no problem.
    pub trial: Option<Trial>,
    /// What stood in the way of more.
    pub note: Option<&'static str>,
}

/// A restore that was tried.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// What was restored.
    pub position: replica::Position,
    /// Bytes of its files.
    pub bytes: u64,
    /// From the first read to the last row.
    pub took_ms: u64,
    /// What its tables hold.
    #[serde(flatten)]
    pub checked: Checked,
}

/// Verifies marts' replicas, few at once.
pub struct Verifier {
    turns: Semaphore,
    ground: Arc<Ground>,
    metrics: Arc<Metrics>,
}

impl Verifier {
    /// What it finds is told to `metrics`.
    pub fn new(ground: Arc<Ground>, metrics: Arc<Metrics>) -> Self {
        Self { turns: Semaphore::new(AT_ONCE), ground, metrics }
    }

    /// Verifies a mart's replica.
    pub async fn verify(&self, id: &MartId, incarnation: Uuid, task: Task) -> Result<Verified, ApiError> {
        let ground = &self.ground;
        let bucket = ground.stores.bucket(&ground.stores.names_of(&id.tenant).analytics)?;
        let replica = ground.replica(id, incarnation)?;
        let _turn = self.turns.acquire().await.map_err(|error| ApiError::internal("turns never end", error))?;
        let scope = if task.all { Scope::Window } else { Scope::Head };
        let versions = usable(&bucket).await;
        let (report, repaired) = match (&versions, task.repair) {
            (Ok(versions), true) => {
                let outcome = replica.repair(scope, versions).await.map_err(|error| unread(&error))?;
                (outcome.report, outcome.repaired)
            }
            (versions, _) => {
                let versions = versions.as_ref().ok().map(|versions| versions as &dyn Versions);
                (replica.verify(scope, versions).await.map_err(|error| unread(&error))?, Vec::new())
            }
        };
        for problem in &report.problems {
            tracing::error!(mart = %id, key = problem.key, what = ?problem.what, reason = problem.reason, "damaged object");
        }
        let trial = match task.trial && report.problems.is_empty() && report.position.is_some() {
            true => Some(self.try_restore(id, &replica).await?),
            false => None,
        };
        let note = versions.err().filter(|_| task.repair && !report.problems.is_empty());
        Ok(Verified { report, repaired, trial, note })
    }

    /// Restores the newest moment where nobody uses it, and reads every row.
    async fn try_restore(&self, id: &MartId, replica: &MartReplica) -> Result<Trial, ApiError> {
        let started = Instant::now();
        let looked = replica.look().await.map_err(|error| refused(&error))?;
        let past = replica.find(&looked, At::Now).await.map_err(|error| refused(&error))?;
        let scratch = Scratch::make(&self.ground.state_dir).await?;
        let bytes = replica.copy(&past, scratch.path()).await.map_err(|error| refused(&error))?;
        let checked = check(&scratch.path().join(DB_FILE)).await?;
        self.metrics.restore_verified(id, clock::now_us());
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Trial { position: past.position, bytes, took_ms, checked })
    }
}

/// Has an engine read every row of a copy.
async fn check(db: &Path) -> Result<Checked, ApiError> {
    supervisor::child::check(db).await.map_err(|error| {
        tracing::error!(%error, "a restored copy can't be read");
        ApiError::new(Code::Corrupt, "the mart was restored, but its rows can't be read")
            .hint("the server's log says why")
    })
}

/// The bucket's older versions, or why there are none to be had.
async fn usable(bucket: &Bucket) -> Result<BucketVersions, &'static str> {
    let versions = bucket.versions().ok_or("this store keeps no older versions")?;
    match bucket.versioning().await {
        Ok(Versioning::On | Versioning::Suspended) => Ok(versions),
        Ok(Versioning::Off | Versioning::None) => {
            Err("this bucket keeps no older versions: its versioning is off; docs/recovery.md says how to turn it on")
        }
        Err(error) => {
            tracing::warn!(%error, "it can't be told whether a bucket keeps older versions");
            // Perhaps only that question is not allowed.
            match versions.list("duckdb/.doctor").await {
                Ok(_) => Ok(versions),
                Err(_) => Err("older versions can't be listed: the credentials want `s3:ListBucketVersions`"),
            }
        }
    }
}

/// What an error of a verification means to whoever asked: an object store that is away is not a damaged replica.
fn unread(error: &replica::Error) -> ApiError {
    match error {
        replica::Error::NotFound(_) => {
            ApiError::new(Code::Corrupt, "the mart's log is not there, not even a part of it")
                .hint("restore the bucket's `duckdb/` from its older versions or from a copy")
        }
        other => refused(other),
    }
}
