//! One open mart from opening its files to closing them: an engine after another, each with its replication.
//!
//! # Consistency
//! Requests reach an engine only after its files were compared with the log, so every position an answer names belongs to the epoch
//! that ships it.
//!
//! # Crash consistency
//! Whatever dies, the next life starts from the files and the log alone.
//!
//! # Cancellation
//! Ends only by its stop token: the engine is asked to end and its last commits are shipped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use replica::{Adopt, Error, How, MartReplica, Opened, Position, Shipper};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Ground;
use super::swap;
use crate::clock::Backoff;
use crate::cluster::{Elsewhere, Look};
use crate::error::{ApiError, Code};
use crate::gateway;
use crate::names::MartId;
use crate::orders::{Order, Reply, Swapped};
use crate::replicator::{End, Feed, FeedError, Quiet, Replicator};
use crate::room::Room;
use crate::stores::StoreError;
use crate::supervisor::{Engine, Launch, MartLock, SpawnError};
use crate::watcher::{Live, Phase, Progress};

/// Running queries have this long to end when their mart closes.
const GRACE: Duration = Duration::from_secs(5);
/// An engine that lived this long is not one that keeps ending.
const CALM: Duration = Duration::from_secs(30);

/// So many lives that ended soon after they began are told of.
const MANY: u32 = 5;

/// The task of one open mart.
pub(super) struct Life {
    pub ground: Arc<Ground>,
    pub id: MartId,
    pub incarnation: Uuid,
    pub phase: watch::Sender<Phase>,
    pub progress: watch::Sender<Progress>,
    pub waiters: watch::Receiver<usize>,
    pub used: Arc<AtomicBool>,
    pub hold: watch::Sender<bool>,
    pub orders: mpsc::Receiver<Order>,
    pub stop: CancellationToken,
}

/// Why one engine's life is over, or could not begin.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Replica(#[from] Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the mart's directory or lock can't be had")]
    Disk(#[from] std::io::Error),
    #[error("other files took its place")]
    Swapped(Box<Next>),
    #[error("the files may not be the mart's any more")]
    Reopen,
    #[error("another node serves it")]
    Elsewhere(Elsewhere),
    #[error("the engine ended: {0}")]
    Engine(&'static str),
    #[error("asked to close")]
    Stopped,
}

impl Trouble {
    /// In a word, for metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::Engine(reason) | Self::Spawn(SpawnError::Ended(reason)) => reason,
            Self::Spawn(_) | Self::Feed(_) => "start",
            _ => "replica",
        }
    }

    /// In a word or a few, for clients.
    fn reason(&self) -> &'static str {
        match self {
            Self::Engine(reason) | Self::Spawn(SpawnError::Ended(reason)) => reason,
            Self::Spawn(SpawnError::System(_)) => "it can't be started",
            Self::Spawn(SpawnError::Slow) => "it takes too long to open",
            Self::Feed(_) => "it does not report its commits",
            Self::Replica(_) | Self::Store(_) => "its replica can't be reached",
            _ => "it can't be opened",
        }
    }
}

/// What goes on while the next engine starts, after a swap.
struct Next {
    /// The engine of the files before: it answers reads until then.
    before: Arc<Live>,
    quiet: Quiet,
    done: Swapped,
    reply: Reply<Swapped>,
}

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Next").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Life {
    pub(super) async fn run(mut self) {
        let trouble = self.serve().await;
        let phase = match trouble {
            Trouble::Elsewhere(place) => Phase::Elsewhere(place, Instant::now()),
            trouble => Phase::Closed(self.explain(&trouble)),
        };
        self.progress.send_modify(|progress| progress.closed = true);
        self.phase.send_replace(phase);
    }

    /// Opens the files and serves them until something final happens.
    async fn serve(&mut self) -> Trouble {
        let dir = self.ground.mart_dir(&self.id);
        let lock = match std::fs::create_dir_all(&dir) {
            Ok(()) => MartLock::acquire(&dir).await,
            Err(error) => Err(error),
        };
        let lock = match lock {
            Ok(lock) => lock,
            Err(error) => return error.into(),
        };
        let mut opened = match self.open_files(&dir).await {
            Ok(opened) => opened,
            Err(trouble) => return trouble,
        };
        if let How::Restored { .. } = opened.how {
            // A restore begins the next epoch exactly where the log of the one before ended.
            let end = opened.shipper.durable();
            self.begins_after(Position { epoch: end.epoch - 1, ..end });
        }
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
        // Engines of files that were exchanged; they end with this life.
        let mut lingering = JoinSet::new();
        let mut next = None;
        let mut short_lives = 0;
        loop {
            let started = Instant::now();
            let trouble = self.one_engine(&lock, &mut opened.shipper, next.take(), &mut lingering).await;
            if started.elapsed() > CALM {
                backoff.success();
            }
            let trouble = match trouble {
                Trouble::Swapped(swapped) => {
                    self.begins_after(swapped.done.before);
                    next = Some(*swapped);
                    continue;
                }
                Trouble::Reopen => {
                    self.phase.send_replace(Phase::Opening);
                    let end = opened.shipper.durable();
                    opened = match self.open_files(&dir).await {
                        Ok(opened) => opened,
                        Err(trouble) => return trouble,
                    };
                    self.begins_after(end);
                    continue;
                }
                trouble => trouble,
            };
            match &trouble {
                Trouble::Stopped => return trouble,
                Trouble::Replica(error) if !(error.is_transient() || matches!(error, Error::Diverged(_))) => {
                    return trouble;
                }
                _ if self.stop.is_cancelled() => return Trouble::Stopped,
                _ => {}
            }
            let wait = backoff.after_failure();
            tracing::warn!(mart = %self.id, reason = %chain(&trouble), ?wait, "starting the engine again");
            self.ground.metrics.engine_restarted(trouble.word());
            short_lives = if started.elapsed() > CALM { 1 } else { short_lives + 1 };
            if short_lives == MANY {
                tracing::error!(mart = %self.id, lives = short_lives, reason = trouble.reason(), "this mart's engine keeps ending soon after it began: some request, or the mart itself, makes it end");
            }
            self.phase.send_replace(Phase::Down(Instant::now() + wait, trouble.reason()));
            if self.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return Trouble::Stopped;
            }
            self.phase.send_replace(Phase::Opening);
        }
    }

    /// Waits until the log's writer is this node or is gone; `Elsewhere` if it lives. Returns the log's head as it was before the
    /// last look at the writer, and whether it is this node.
    async fn find_writer(&self, replica: &MartReplica) -> Result<(u64, bool), Trouble> {
        loop {
            let writer = replica.writer().await?;
            match self.ground.cluster.look(&writer.node).await {
                Look::Me => return Ok((writer.slot, true)),
                Look::Gone => return Ok((writer.slot, false)),
                Look::Lives(place) => return Err(Trouble::Elsewhere(*place)),
                Look::Unknown(again) => {
                    tracing::debug!(mart = %self.id, writer = writer.node, ?again, "is its node alive?");
                    tokio::time::sleep(again).await;
                }
            }
        }
    }

    /// Opens the files unless another node that lives has the mart.
    async fn try_open(&self, dir: &std::path::Path) -> Result<Opened, Trouble> {
        let replica: MartReplica = self.ground.replica(&self.id, self.incarnation)?;
        let cluster = &self.ground.cluster;
        let (head, is_mine) = self.find_writer(&replica).await?;
        let streak = cluster.proof().newest_streak();
        let mut opened = replica.open_writer_behind(Some(head), dir, &cluster.name().to_string()).await?;
        match opened.how {
            // The fence is the slot that was won.
            How::Fresh | How::Restored { .. } => self.progress.send_modify(|progress| progress.streak = streak),
            How::Reused if !is_mine => {
                // Nobody else can have written these files, but the log calls their writer by a name that nobody answers to.
                let end = opened.shipper.durable();
                opened.shipper.rebase(&cluster.name().to_string()).await?;
                self.begins_after(end);
            }
            How::Reused => {}
        }
        Ok(opened)
    }

    /// Reuses the local files or restores them, for as long as the store is only away.
    async fn open_files(&self, dir: &std::path::Path) -> Result<Opened, Trouble> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let attempt = self.stop.run_until_cancelled(self.try_open(dir)).await;
            let error = match attempt.ok_or(Trouble::Stopped)? {
                Ok(opened) => {
                    match opened.how {
                        How::Fresh => tracing::info!(mart = %self.id, "new mart"),
                        How::Reused => tracing::info!(mart = %self.id, "local files reused"),
                        How::Restored { bytes, took } => {
                            tracing::info!(mart = %self.id, bytes, ?took, "restored from the object store")
                        }
                    }
                    return Ok(opened);
                }
                Err(Trouble::Replica(error)) if error.is_transient() => error,
                Err(trouble) => return Err(trouble),
            };
            let wait = backoff.after_failure();
            tracing::warn!(mart = %self.id, error = %chain(&error), ?wait, "the mart can't be opened yet");
            self.phase.send_replace(Phase::Down(Instant::now() + wait, "the object store is away"));
            self.stop.run_until_cancelled(tokio::time::sleep(wait)).await.ok_or(Trouble::Stopped)?;
        }
    }

    /// One engine's life. After a swap, `next` is what waits for it to be up.
    async fn one_engine(
        &mut self,
        lock: &MartLock,
        shipper: &mut Shipper,
        next: Option<Next>,
        lingering: &mut JoinSet<()>,
    ) -> Trouble {
        let dir = shipper.dir().to_owned();
        let started = self.stop.run_until_cancelled(self.start(lock, &dir, shipper)).await;
        let (live, feed, _grant) = match started {
            Some(Ok(started)) => started,
            Some(Err(trouble)) => return trouble,
            None => return Trouble::Stopped,
        };
        // Before anybody can commit: a commit of an epoch that is not announced would be taken for one that was lost.
        self.progress.send_modify(|progress| progress.enter(live.epoch));
        self.phase.send_replace(Phase::Ready(live.clone()));
        if let Some(next) = next {
            drop(next.quiet);
            lingering.spawn(swap::linger(next.before));
            // Whoever asked may have gone.
            let _ = next.reply.send(Ok(next.done));
        }
        let (stop, asked) = (self.stop.clone(), live.clone());
        let asked_to_end = async move {
            stop.cancelled().await;
            asked.engine.shutdown(GRACE).await;
        };
        tokio::pin!(asked_to_end);
        let mut stopping = false;
        let end = loop {
            let end = {
                let replicator = Replicator {
                    live: &live,
                    feed: &feed,
                    shipper: &mut *shipper,
                    progress: &self.progress,
                    waiters: self.waiters.clone(),
                    used: &self.used,
                    hold: &self.hold,
                    orders: &mut self.orders,
                    stop: &self.stop,
                    checkpoints: self.ground.checkpoints,
                    stalled: &|time| self.ground.metrics.writers_stalled(&self.id, time),
                    proof: self.ground.cluster.proof(),
                };
                let replicating = replicator.run();
                tokio::pin!(replicating);
                tokio::select! {
                    end = replicating.as_mut() => end,
                    () = asked_to_end.as_mut(), if !stopping => {
                        stopping = true;
                        replicating.await
                    }
                }
            };
            let name = self.ground.cluster.name().to_string();
            let End::Swap(order, mut quiet) = end else { break end };
            let swapping = swap::swap(shipper, &live, order, &name);
            match self.stop.run_until_cancelled(swapping).await {
                Some(Ok((done, reply))) => {
                    // Nothing may be written to the files before any more.
                    quiet.retire().await;
                    tracing::info!(mart = %self.id, before = %done.before, after = %done.after, "other files took the mart's place");
                    return Trouble::Swapped(Box::new(Next { before: live, quiet, done, reply }));
                }
                // The engine goes on; the next turn of the loop ships what it writes.
                Some(Err(swap::Failed::Nothing(reply, answer))) => drop(reply.send(answer)),
                Some(Err(swap::Failed::Unknown(reply, error))) => {
                    let _ = reply.send(Err(error));
                    quiet.retire().await;
                    live.engine.kill();
                    live.engine.exited().await;
                    return Trouble::Reopen;
                }
                None => {}
            }
        };
        // Whoever still has an answer under way keeps the engine's handle, not its life.
        live.engine.kill();
        let reason = live.engine.exited().await;
        match end {
            End::Engine | End::Swap(..) => Trouble::Engine(reason.unwrap_or("unknown")),
            End::Stopped => Trouble::Stopped,
            End::Replica(error) => error.into(),
        }
    }

    /// Starts an engine and compares its files with the log.
    async fn start(
        &self,
        lock: &MartLock,
        dir: &std::path::Path,
        shipper: &mut Shipper,
    ) -> Result<(Arc<Live>, Feed, gateway::Grant), Trouble> {
        let mut blank = self.ground.spares.take().await?;
        let (door, gateway) = (blank.door().map_err(SpawnError::from)?, &self.ground.gateway);
        let grant = gateway.grant(door, &self.id.tenant, &self.id.mart).map_err(SpawnError::from)?;
        let gateway = Some(grant.config());
        let launch = Launch {
            id: &self.id,
            dir,
            lock,
            limits: &self.ground.limits,
            groups: &self.ground.groups,
            gateway,
            view: None,
        };
        let engine = launch.start(blank).await?;
        match self.compare(&engine, shipper).await {
            Ok(feed) => {
                let (epoch, running) = (shipper.epoch(), AtomicUsize::new(0));
                let room = Room::new(self.ground.limits.size());
                Ok((Arc::new(Live { engine, epoch, dir: dir.to_owned(), running, room }), feed, grant))
            }
            Err(trouble) => {
                // The next engine must not meet this one.
                engine.kill();
                engine.exited().await;
                Err(trouble)
            }
        }
    }

    /// Whether the engine's files continue the log; if not, begins an epoch that they do continue.
    async fn compare(&self, engine: &Engine, shipper: &mut Shipper) -> Result<Feed, Trouble> {
        let feed = Feed::connect(engine.client().clone()).await?;
        match shipper.adopt(feed.first()).await {
            Ok(Adopt::Match | Adopt::NeedsBase) => {}
            Err(Error::Diverged(why)) => {
                tracing::warn!(mart = %self.id, why, "local files went another way than the log: a new epoch begins with them");
                let end = shipper.durable();
                shipper.rebase(&self.ground.cluster.name().to_string()).await?;
                self.begins_after(end);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(feed)
    }

    fn begins_after(&self, end: Position) {
        self.progress.send_modify(|progress| progress.before = Some(end));
    }

    /// What requests are told from now on.
    fn explain(&self, trouble: &Trouble) -> ApiError {
        match trouble {
            Trouble::Stopped | Trouble::Engine(_) => tracing::info!(mart = %self.id, "mart closed"),
            _ => tracing::error!(mart = %self.id, reason = %chain(trouble), "mart closed"),
        }
        match trouble {
            Trouble::Replica(Error::Fenced { .. }) => {
                ApiError::new(Code::Fenced, "another node has taken over this mart")
                    .hint("send the request again: it says which one")
            }
            Trouble::Replica(Error::Dropped) => {
                ApiError::new(Code::NotFound, format!("mart `{}` was dropped", self.id.mart))
            }
            Trouble::Replica(Error::Corrupt { .. } | Error::NotFound(_)) => {
                ApiError::new(Code::Corrupt, "the mart's replica does not pass its checks")
                    .hint("the server's log names the object")
            }
            _ => ApiError::new(Code::Unavailable, "the mart is closed").hint("try again; the server's log says more"),
        }
    }
}

/// An error with its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
