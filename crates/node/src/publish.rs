//! The published file: a plain DuckDB file beside the live mart that any DuckDB can open read-only at any time.
//!
//! The mart's files are copied as bytes, the log first and the database second, which is consistent between two checkpoints; a child
//! process folds the copy's log into it; a rename puts it in place. The live mart is never touched and never waits.
//!
//! # Consistency
//! A copy during which a checkpoint ran is thrown away. What is published is the mart as of one commit.
//!
//! # Crash consistency
//! The target is replaced by rename, so a reader sees the old file or the new one, each whole. Left-over copies are removed at the
//! next start.
//!
//! # Cancellation
//! Dropping it leaves a copy that the next run removes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use replica::Position;
use replica::image::Image;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::marts::OpenMart;
use crate::supervisor::child;
use crate::watcher::Watcher;

/// Changes are gathered for so long at least.
const GATHER: Duration = Duration::from_millis(500);
/// The file may be so far behind, or so many times one copy's time; a little less than what is promised (2 s, 20 times).
const LAG: Duration = Duration::from_millis(1800);
const LAG_COPIES: u32 = 18;
/// A failed copy, or a mart that can't be opened, is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// A mart that does not exist is looked for again after this.
const ABSENT: Duration = Duration::from_secs(1);
/// Folding replays the log, which is quick.
const FOLD_DEADLINE: Duration = Duration::from_secs(120);

/// Where the published file goes.
pub struct Target {
    /// Its path, on any file system.
    pub path: PathBuf,
    /// Where copies are made, on the mart's own.
    pub work: PathBuf,
    /// A bigger mart is not published.
    pub max_bytes: u64,
}

/// What became of one attempt.
#[derive(Debug, PartialEq, Eq)]
enum Copied {
    /// In place.
    Published,
    /// A checkpoint ran meanwhile.
    Again,
    /// Over the limit.
    TooBig(u64),
}

/// Publishes after every change until stopped. `open` gives the mart, opened anew when it was closed; none while it does not exist.
pub async fn run<F>(target: Target, open: impl Fn() -> F, stop: CancellationToken)
where
    F: Future<Output = Result<Option<Arc<OpenMart>>, ApiError>>,
{
    let work = target.work.clone();
    // Left by a node that was killed.
    let _ = std::fs::remove_dir_all(&work);
    let mut published: Option<(uuid::Uuid, Position)> = None;
    let (mut told, mut failing) = (false, false);
    loop {
        let step = step(&target, &open, &mut published, &mut told);
        match stop.run_until_cancelled(step).await {
            None => break,
            Some(Ok(pause)) => {
                failing = false;
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
            Some(Err(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the mart is not published; trying again until it is");
                }
                stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        }
    }
    let _ = std::fs::remove_dir_all(&work);
}

/// Waits for a change and publishes it; returns how long to rest.
async fn step<F>(
    target: &Target,
    open: impl Fn() -> F,
    published: &mut Option<(uuid::Uuid, Position)>,
    told: &mut bool,
) -> Result<Duration, Box<dyn std::error::Error + Send + Sync>>
where
    F: Future<Output = Result<Option<Arc<OpenMart>>, ApiError>>,
{
    let Some(mart) = open().await? else { return Ok(ABSENT) };
    let live = mart.live().await?;
    let Some(newest) =
        changed(mart.watcher(), published.filter(|(life, _)| *life == mart.incarnation()).map(|(_, at)| at)).await
    else {
        return Ok(GATHER);
    };
    tokio::time::sleep(GATHER).await;
    let started = Instant::now();
    let newest = mart.watcher().progress().newest.unwrap_or(newest);
    let (dir, work, max_bytes) = (live.dir.clone(), target.work.clone(), target.max_bytes);
    let copied = tokio::task::spawn_blocking(move || copy(&dir, &work, newest, max_bytes)).await??;
    match copied {
        Copied::Published => {
            child::fold(&target.work.join(FILE), FOLD_DEADLINE).await?;
            let (work, path) = (target.work.clone(), target.path.clone());
            tokio::task::spawn_blocking(move || put_in_place(&work, &path)).await??;
            tracing::debug!(position = %newest, took = ?started.elapsed(), "published");
            *published = Some((mart.incarnation(), newest));
            *told = false;
        }
        Copied::Again => return Ok(Duration::ZERO),
        Copied::TooBig(bytes) => {
            if !std::mem::replace(told, true) {
                tracing::warn!(
                    bytes,
                    limit = target.max_bytes,
                    "the mart is too big to be published; raise `publish_max` to have it anyway"
                );
            }
            *published = Some((mart.incarnation(), newest));
        }
    }
    Ok(rest_after(started.elapsed()))
}

/// How long to rest after a copy that took `copy`, so that the lag is kept: a change just missed waits for the end of this copy, this
/// rest, the gathering, and the next copy.
fn rest_after(copy: Duration) -> Duration {
    LAG.max(copy * LAG_COPIES).saturating_sub(GATHER + copy * 2)
}

const FILE: &str = "copy.db";

/// Waits until the mart has a commit other than `published`; `None` when it closed.
async fn changed(watcher: Watcher, published: Option<Position>) -> Option<Position> {
    let mut progress = watcher.subscribe();
    let found = progress
        .wait_for(|progress| progress.closed || (progress.newest.is_some() && progress.newest != published))
        .await
        .ok()?;
    found.newest.filter(|newest| !found.closed && Some(*newest) != published)
}

/// Copies the log up to `at` and then the database, and checks that they belong together.
fn copy(dir: &Path, work: &Path, at: Position, max_bytes: u64) -> io::Result<Copied> {
    let (db, wal) = (dir.join(replica::DB_FILE), dir.join(replica::WAL_FILE));
    let file = File::open(&db)?;
    let bytes = file.metadata()?.len() + at.wal_bytes;
    if bytes > max_bytes {
        return Ok(Copied::TooBig(bytes));
    }
    let _ = std::fs::remove_dir_all(work);
    std::fs::create_dir_all(work)?;
    if iteration(&file)? != at.iteration {
        return Ok(Copied::Again);
    }
    if at.wal_bytes > 0 {
        match File::open(&wal) {
            Ok(wal) if wal.metadata()?.len() >= at.wal_bytes => {
                let mut part = io::Read::take(wal, at.wal_bytes);
                io::copy(&mut part, &mut File::create(work.join(format!("{FILE}.wal")))?)?;
            }
            _ => return Ok(Copied::Again),
        }
    }
    copy_whole(&file, &work.join(FILE))?;
    // A checkpoint in between changes the iteration, before it reuses any block of the old one.
    Ok(if iteration(&file)? == at.iteration { Copied::Published } else { Copied::Again })
}

/// Copies the files of a mart that nobody writes.
pub fn copy_quiet(dir: &Path, to: &Path, at: Position) -> io::Result<()> {
    if at.wal_bytes > 0 {
        let mut part = io::Read::take(File::open(dir.join(replica::WAL_FILE))?, at.wal_bytes);
        io::copy(&mut part, &mut File::create(to.join(replica::WAL_FILE))?)?;
    }
    copy_whole(&File::open(dir.join(replica::DB_FILE))?, &to.join(replica::DB_FILE))
}

fn copy_whole(from: &File, to: &Path) -> io::Result<()> {
    const PIECE: usize = 1 << 20;
    let to = File::create(to)?;
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let read = from.read_at(&mut piece, offset)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all_at(&piece[..read], offset)?;
        offset += read as u64;
    }
}

fn iteration(file: &File) -> io::Result<u64> {
    Image::read_headers(file).map(|image| image.iteration).map_err(io::Error::other)
}

fn put_in_place(work: &Path, path: &Path) -> io::Result<()> {
    if work.join(format!("{FILE}.wal")).exists() {
        return Err(io::Error::other("the folded copy still has a log"));
    }
    let copy = work.join(FILE);
    match std::fs::rename(&copy, path) {
        // Another file system: beside the target first.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let beside = path.with_extension("new");
            copy_whole(&File::open(&copy)?, &beside)?;
            std::fs::rename(beside, path)?;
        }
        renamed => renamed?,
    }
    std::fs::remove_dir_all(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_published_within_the_promised_lag() {
        for millis in [1, 50, 100, 300, 5_000] {
            let copy = Duration::from_millis(millis);
            let behind = copy + rest_after(copy) + GATHER + copy;
            assert!(behind <= Duration::from_secs(2).max(copy * 20), "a copy of {copy:?} leaves it {behind:?} behind");
        }
    }
}
