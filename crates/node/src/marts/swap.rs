//! Puts other files in an open mart's place: those of an earlier moment, or a compact copy of its own.
//!
//! The mart's writers are held off and everything is shipped before this begins; its engine goes on answering reads until the next one
//! is up, and those under way end on what they see.
//!
//! # Crash consistency
//! The fence that begins the new epoch is the moment of change. Before it the mart is what it was; after it, whoever opens the mart
//! finds in the log what to restore. A vacuum's rows count from its base on; nobody writes before that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::compact::Compacted;
use replica::{Position, Shipper};
use uuid::Uuid;

use crate::error::{ApiError, Code, Outcome};
use crate::orders::{Reply, Swap, Swapped, refused};
use crate::publish;
use crate::supervisor::child;
use crate::watcher::Live;

/// Reads under way on the files before have this long to end.
const LINGER: Duration = Duration::from_secs(600);

/// How a swap ended that changed nothing, or nobody knows what.
pub(super) enum Failed {
    /// The mart is as it was.
    Nothing(Reply<Swapped>, Result<Swapped, ApiError>),
    /// The files on this disk may not be the mart's any more: it must be opened anew.
    Unknown(Reply<Swapped>, ApiError),
}

/// Does it. The shipper then stands for the new files, for which there is no engine yet.
pub(super) async fn swap(
    shipper: &mut Shipper,
    live: &Live,
    swap: Swap,
    node: &str,
) -> Result<(Swapped, Reply<Swapped>), Failed> {
    let before = shipper.durable();
    match swap {
        Swap::Back { expected: Some(expected), reply, .. } if expected != before => {
            let error = ApiError::new(Code::Conflict, format!("the mart is at {before}, not at {expected}"))
                .hint("look at what has changed, then ask again with the new position");
            Err(Failed::Nothing(reply, Err(error)))
        }
        Swap::Back { prepared, reply, .. } => match shipper.go_back(*prepared, node).await {
            Ok(after) => Ok((Swapped { before, after, compacted: None }, reply)),
            Err(error @ replica::Error::NotFound(_)) => Err(Failed::Nothing(reply, Err(refused(&error)))),
            Err(error) => Err(Failed::Unknown(reply, refused(&error).outcome(Outcome::Unknown))),
        },
        Swap::Vacuum { reply } => vacuum(shipper, live, before, reply, node).await,
    }
}

async fn vacuum(
    shipper: &mut Shipper,
    live: &Live,
    before: Position,
    reply: Reply<Swapped>,
    node: &str,
) -> Result<(Swapped, Reply<Swapped>), Failed> {
    let Some(root) = live.dir.parent() else {
        return Err(Failed::Nothing(reply, Err(ApiError::internal("a mart's directory has a parent", "none"))));
    };
    let work = Work::new(root);
    let (compacted, iteration) = match compact(&live.dir, &work, before).await {
        Ok(done) => done,
        Err(error) => {
            let text = "the compact copy could not be made, or is not the same; the mart is as it was";
            tracing::error!(%error, "a vacuum failed");
            let error = ApiError::new(Code::Internal, text).hint("the server's log says why");
            return Err(Failed::Nothing(reply, Err(error)));
        }
    };
    if compacted.bytes_after >= compacted.bytes_before {
        // Small files have nothing to give.
        let kept = Compacted { bytes_after: compacted.bytes_before, ..compacted };
        return Err(Failed::Nothing(reply, Ok(Swapped { before, after: before, compacted: Some(kept) })));
    }
    let changed = async {
        shipper.replace_files(&work.to(), node).await?;
        shipper.ship_base(iteration).await
    };
    match changed.await {
        Ok(after) => Ok((Swapped { before, after, compacted: Some(compacted) }, reply)),
        Err(error) => Err(Failed::Unknown(reply, refused(&error).outcome(Outcome::Unknown))),
    }
}

/// Copies the files, which nobody writes, and makes a compact and verified database of them.
async fn compact(
    dir: &Path,
    work: &Work,
    at: Position,
) -> Result<(Compacted, u64), Box<dyn std::error::Error + Send + Sync>> {
    let (from, to) = (work.from(), work.to());
    for dir in [&from, &to] {
        std::fs::create_dir_all(dir)?;
    }
    let (dir, copy) = (dir.to_owned(), from.clone());
    tokio::task::spawn_blocking(move || publish::copy_quiet(&dir, &copy, at)).await??;
    let new = to.join(replica::DB_FILE);
    let compacted: Compacted = child::compact(&from.join(replica::DB_FILE), &new).await?;
    let iteration = replica::image::Image::read_headers(&std::fs::File::open(&new)?)?.iteration;
    std::fs::File::open(&new)?.sync_all()?;
    Ok((compacted, iteration))
}

/// Lets an engine whose files were exchanged answer what it has begun, then removes those files: all of them are in the log.
pub(super) async fn linger(live: Arc<Live>) {
    live.engine.shutdown(LINGER).await;
    let dir = live.dir.clone();
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, "files that were exchanged can't be removed");
    }
}

/// A directory of this swap alone; gone with it.
struct Work(PathBuf);

impl Work {
    fn new(root: &Path) -> Self {
        Self(root.join(format!(".vacuum-{}", Uuid::new_v4().simple())))
    }

    fn from(&self) -> PathBuf {
        self.0.join("from")
    }

    fn to(&self) -> PathBuf {
        self.0.join("to")
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What a crash leaves is removed when the mart is opened next.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
