//! The marts that are open on this node: each is opened when first asked for, by a task of its own that keeps its engine running and
//! its commits shipped until it is closed.
//!
//! It does not decide who may open a mart, and does not look into requests.
//!
//! **Invariant:** at most one task per mart; a mart's files are touched only by the task that holds the mart's lock.

mod idle;
mod life;
mod swap;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::path::Path as Key;
use replica::MartReplica;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::clock;
use crate::cluster::{Cluster, Elsewhere};
use crate::config::{Checkpoints, EngineLimits};
use crate::error::{ApiError, Code};
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::names::MartId;
use crate::orders::{self, Order};
use crate::pins::AllPins;
use crate::stores::{BucketStores, StoreError};
use crate::supervisor::{Groups, Spares};
use crate::watcher::{Landed, Live, Phase, Progress, Watcher};

/// A write waits so long for a checkpoint to begin.
const HOLD_WAIT: Duration = Duration::from_secs(20);
/// An answer waits so long for its mart to win a slot, after its node could not prove that it lives or has just opened the mart.
const CLAIM_WAIT: Duration = Duration::from_secs(10);

/// That another node serves a mart is known for so long.
const ELSEWHERE_KNOWN: Duration = Duration::from_secs(1);

/// What every open mart needs of its node.
pub struct Ground {
    /// Where marts' directories lie.
    pub state_dir: std::path::PathBuf,
    /// This node among others.
    pub cluster: Arc<Cluster>,
    /// The object store.
    pub stores: Arc<BucketStores>,
    /// Engines' way to `s3://`.
    pub gateway: Gateway,
    /// Processes that become engines.
    pub spares: Spares,
    /// Their control groups.
    pub groups: Groups,
    /// Where their ends are counted.
    pub metrics: Arc<Metrics>,
    /// What engines may use.
    pub limits: EngineLimits,
    /// When their logs are folded.
    pub checkpoints: Checkpoints,
    /// Who reads their past.
    pub pins: AllPins,
}

impl Ground {
    /// The replica of one life of a mart.
    pub fn replica(&self, id: &MartId, incarnation: Uuid) -> Result<MartReplica, StoreError> {
        let bucket = self.stores.bucket(&self.stores.names_of(&id.tenant).analytics)?;
        Ok(MartReplica::new(bucket.replica(), Key::from(format!("duckdb/{}", id.mart)), incarnation))
    }

    /// A mart's directory.
    pub fn mart_dir(&self, id: &MartId) -> std::path::PathBuf {
        self.state_dir.join("marts").join(id.tenant.as_str()).join(id.mart.as_str())
    }

    /// Removes the local files of one life of a mart that is closed. The next life's may lie beside them.
    pub fn remove_files(&self, id: &MartId, incarnation: Uuid) -> std::io::Result<()> {
        let dir = self.mart_dir(id);
        for parent in [dir.join("quarantine"), dir] {
            let entries = match std::fs::read_dir(parent) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(&incarnation.to_string()) {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// All open marts of a node.
pub struct Marts {
    ground: Arc<Ground>,
    open: Mutex<HashMap<MartId, Arc<OpenMart>>>,
    /// One more was opened.
    opened: Notify,
    tasks: TaskTracker,
}

/// A mart that is open, opening, or just closed.
pub struct OpenMart {
    id: MartId,
    incarnation: Uuid,
    cluster: Arc<Cluster>,
    watcher: Watcher,
    hold: watch::Receiver<bool>,
    orders: mpsc::Sender<Order>,
    /// When it was last asked for, or seen in use.
    last_used: Mutex<Instant>,
    /// It closes because nobody used it: whoever asks now opens it anew. One that closes for another reason says so.
    left: AtomicBool,
    stop: CancellationToken,
    ended: CancellationToken,
}

pub use idle::Idle;

impl Marts {
    /// None is open.
    pub fn new(ground: Arc<Ground>) -> Self {
        Self { ground, open: Mutex::default(), opened: Notify::new(), tasks: TaskTracker::new() }
    }

    /// What they stand on.
    pub fn ground(&self) -> &Arc<Ground> {
        &self.ground
    }

    /// The mart in that life, opened if it is not.
    pub fn open(&self, id: &MartId, incarnation: Uuid) -> Result<Arc<OpenMart>, ApiError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tasks.is_closed() {
            return Err(ApiError::new(Code::Unavailable, "the server is shutting down"));
        }
        if let Some(found) = open.get(id)
            && found.incarnation == incarnation
            && !found.can_be_opened_anew()
        {
            found.touch();
            return Ok(found.clone());
        }
        let (phase, phases) = watch::channel(Phase::Opening);
        let (progress, progresses) = watch::channel(Progress::default());
        let (hold, held) = watch::channel(false);
        let (orders, given) = orders::channel();
        let mart = Arc::new(OpenMart {
            id: id.clone(),
            incarnation,
            cluster: self.ground.cluster.clone(),
            watcher: Watcher::new(phases, progresses),
            hold: held,
            orders,
            last_used: Mutex::new(Instant::now()),
            left: AtomicBool::new(false),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        let (waiters, used) = (mart.watcher.waiters(), mart.watcher.used());
        let before = open.insert(id.clone(), mart.clone());
        let life = life::Life {
            ground: self.ground.clone(),
            id: id.clone(),
            incarnation,
            phase,
            progress,
            waiters,
            used,
            hold,
            orders: given,
            stop: mart.stop.clone(),
        };
        let ended = mart.ended.clone().drop_guard();
        self.tasks.spawn(async move {
            if let Some(before) = before {
                // The life before this one must have let go of the files.
                before.close().await;
            }
            life.run().await;
            drop(ended);
        });
        self.opened.notify_one();
        Ok(mart)
    }

    /// The mart if it is open just now.
    pub fn get(&self, id: &MartId) -> Option<Arc<OpenMart>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Those that are open just now.
    pub fn open_ids(&self) -> Vec<MartId> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter(|(_, mart)| mart.watcher.closed().is_none()).map(|(id, _)| id.clone()).collect()
    }

    /// Closes that life of a mart and forgets it.
    pub async fn close(&self, id: &MartId, incarnation: Uuid) {
        let Some(mart) = self.get(id).filter(|mart| mart.incarnation == incarnation) else { return };
        mart.close().await;
        // Only now: whoever opens the next life before this waits for the end of this one.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(id).is_some_and(|found| Arc::ptr_eq(found, &mart)) {
            open.remove(id);
        }
    }

    /// Opens nothing more, closes all, and returns when all are closed.
    pub async fn shutdown(&self) {
        let all: Vec<_> = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            self.tasks.close();
            open.values().cloned().collect()
        };
        for mart in all {
            mart.stop.cancel();
        }
        self.tasks.wait().await;
    }
}

impl OpenMart {
    /// Which mart.
    pub fn id(&self) -> &MartId {
        &self.id
    }

    /// Which life of it.
    pub fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    /// The engine, once it takes requests.
    pub async fn live(&self) -> Result<Arc<Live>, ApiError> {
        self.watcher.live().await
    }

    /// Where orders to its task go.
    pub fn orders(&self) -> &mpsc::Sender<Order> {
        &self.orders
    }

    /// An observer of its own.
    pub fn watcher(&self) -> Watcher {
        self.watcher.clone()
    }

    /// Waits until a commit is in the object store.
    pub async fn landed(&self, position: replica::Position, wait: Duration) -> Landed {
        self.watcher.landed(position, wait).await
    }

    /// Whether a commit is there now.
    pub fn landed_now(&self, position: Option<replica::Position>) -> Landed {
        self.watcher.landed_now(position)
    }

    /// True while writers should wait before they reach the engine, because a checkpoint begins.
    pub fn holds_writers(&self) -> bool {
        *self.hold.borrow()
    }

    /// Waits until writers may pass; not for ever, since the engine has a gate of its own.
    pub async fn writers_may_pass(&self) {
        let mut hold = self.hold.clone();
        // Late or closed, the request goes on to the engine, which knows best.
        let _ = tokio::time::timeout(HOLD_WAIT, hold.wait_for(|held| !held)).await;
    }

    async fn close(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }

    /// Which node serves it instead of this one, if one does.
    pub fn elsewhere(&self) -> Option<Elsewhere> {
        self.watcher.elsewhere().map(|(place, _)| place)
    }

    /// Refuses at once what could not be answered later: an answer from this node's disk while it can't prove that it lives.
    pub fn may_answer(&self) -> Result<(), ApiError> {
        match self.cluster.proof().streak(clock::since_boot()) {
            Some(_) => Ok(()),
            None => Err(unproved()),
        }
    }

    /// Whether that is shown already: as below, without waiting.
    pub fn is_ours_now(&self) -> Result<(), ApiError> {
        let streak = self.cluster.proof().streak(clock::since_boot()).ok_or_else(unproved)?;
        let progress = self.watcher.progress();
        if progress.streak >= streak && !progress.closed { Ok(()) } else { Err(unproved()) }
    }

    /// Whether what was read from, or committed to, the mart's files on this node may be told now: nobody can have taken the mart over
    /// before this was asked. Waits for a slot to be won if that has not been shown yet.
    pub async fn still_ours(&self) -> Result<(), ApiError> {
        let deadline = tokio::time::Instant::now() + CLAIM_WAIT;
        loop {
            let streak = self.cluster.proof().streak(clock::since_boot()).ok_or_else(unproved)?;
            match tokio::time::timeout_at(deadline, self.watcher.claimed(streak)).await {
                // Asked once more: the wait may have outlasted the streak.
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(unproved()),
            }
        }
    }

    /// A mart that closed is opened anew by the next request, which asks again whose it is. Who serves it instead is not asked for
    /// every request.
    fn can_be_opened_anew(&self) -> bool {
        match self.watcher.elsewhere() {
            Some((_, since)) => since.elapsed() > ELSEWHERE_KNOWN,
            None => self.left.load(Ordering::Relaxed) || self.watcher.closed().is_some(),
        }
    }

    fn touch(&self) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last_used(&self) -> Instant {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unproved() -> ApiError {
    ApiError::new(
        Code::Unavailable,
        "this node can't prove that it still serves this mart: it has no contact with the object store",
    )
    .hint("try again, or send the request to another node; `object` writes are taken all the same")
}
