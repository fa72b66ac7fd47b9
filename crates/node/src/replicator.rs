//! Ships an engine's commits to the object store, and decides when it checkpoints. One per life of an engine.
//!
//! It does not start or end engines and does not know what is in a record (crate `replica` does).
//!
//! # Consistency
//! Commits are shipped in the engine's order, as many at once as have come together; the durable position moves only after the object
//! store has the record. A checkpoint runs only when everything before it is shipped, and nothing counts after it before its base.
//!
//! # Crash consistency
//! Nothing is kept: after any death the next life compares the files with the log.
//!
//! # Cancellation
//! Dropping the run leaves at most a record whose outcome the shipper settles at its next call.

mod feed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::wire;
use replica::names::Names;
use replica::{CommitPoint, Error, Position, Shipper};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use feed::{Feed, FeedError};

use crate::clock::Backoff;
use crate::cluster::Proof;
use crate::config::Checkpoints;
use crate::engine_client::{CallError, EngineClient};
use crate::error::{ApiError, Code, Outcome};
use crate::orders::{Change, Order, Swap, refused};
use crate::watcher::{Live, Progress};

/// Commits for which nobody waits share a record with those that come within this time. It bounds what a lost disk takes along of
/// `local` acknowledgements.
const GATHER: Duration = Duration::from_millis(25);
/// A log smaller than this is not worth a checkpoint.
const IDLE_WAL_BYTES: u64 = 1 << 20;
/// The object store has been away so long, and the log grown to so many times its limit: then it is folded all the same.
const AWAY: Duration = Duration::from_secs(10);
const OVERRUN: u64 = 4;
/// How often an overrun is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// A mart that is used but not written looks so often whether another node has taken it over: as long may its answers be old.
const OLD_ANSWERS: Duration = Duration::from_secs(5);
/// How long writers may be held off for everything to be shipped before a checkpoint.
const QUIET: Duration = Duration::from_secs(2);
/// How long a checkpoint waits for running transactions and old readers.
const READER_WAIT: Duration = Duration::from_secs(2);
/// After a checkpoint that did not get through.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(10);
/// Readers that stand in the way this long, or with a log this large, are aborted.
const READER_PATIENCE: Duration = Duration::from_secs(300);
const ABORT_WAL_BYTES: u64 = 256 << 20;
/// An engine that has ended is replaced after this long, though its last commits are not shipped: the next one has them in its files.
const LEFT_BEHIND: Duration = Duration::from_secs(2);
/// Before other files take a mart's place, running transactions have this long to end.
const DRAIN: Duration = Duration::from_secs(10);
/// A closing mart has this long to get its last commits out.
const LAST_SHIP: Duration = Duration::from_secs(30);

/// Why shipping ended.
pub enum End {
    /// The engine ended; everything it reported is shipped.
    Engine,
    /// It was asked to stop; everything is shipped that could be.
    Stopped,
    /// The replica can't go on with these files.
    Replica(Error),
    /// Other files are to take the mart's place. Writers are held off and everything is shipped, until the guard is dropped.
    Swap(Swap, Quiet),
}

/// One life's replication.
pub struct Replicator<'a> {
    /// The engine.
    pub live: &'a Live,
    /// Its commits.
    pub feed: &'a Feed,
    /// Where they go.
    pub shipper: &'a mut Shipper,
    /// Who wants to know.
    pub progress: &'a watch::Sender<Progress>,
    /// How many requests wait for commits to be in the object store.
    pub waiters: watch::Receiver<usize>,
    /// Set by whoever asks for the engine.
    pub used: &'a AtomicBool,
    /// True holds writers back before they reach the engine.
    pub hold: &'a watch::Sender<bool>,
    /// What is asked of the mart.
    pub orders: &'a mut mpsc::Receiver<Order>,
    /// Ends it, after the engine was asked to end.
    pub stop: &'a CancellationToken,
    /// When the log is folded.
    pub checkpoints: Checkpoints,
    /// Told how long writers waited for one.
    pub stalled: &'a (dyn Fn(Duration) + Sync),
    /// The node's; each of its streaks wants a slot of this mart.
    pub proof: &'a Proof,
}

/// What is waiting to be shipped and what is planned.
struct Plan {
    pending: Vec<CommitPoint>,
    base_due: Option<u64>,
    idle_at: Instant,
    not_before: Instant,
    refused_since: Option<Instant>,
    /// Since when nothing more has reached the object store, if something waits to.
    stuck_since: Option<Instant>,
}

impl Replicator<'_> {
    /// Ships until the engine ends, a stop, or an error that trying again does not help.
    pub async fn run(mut self) -> End {
        let now = Instant::now();
        let first = self.feed.first();
        let mut plan = Plan {
            pending: vec![first],
            base_due: self.shipper.needs_base().then_some(first.iteration),
            idle_at: now + self.checkpoints.idle,
            not_before: now,
            refused_since: None,
            stuck_since: None,
        };
        self.announce(Some(&first));
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            let (stop, live, overrun) = (self.stop, self.live, self.overrun(&plan));
            let left_behind = async {
                live.engine.exited().await;
                tokio::time::sleep(LEFT_BEHIND).await;
            };
            let stepped = tokio::select! {
                biased;
                stepped = self.step(&mut plan) => stepped,
                // A store that does not answer must not keep the mart from closing.
                () = stop.cancelled() => return self.last(plan).await,
                // What it reported is in its files; the next life ships it, and need not wait for the store to answer reads.
                () = left_behind => return End::Engine,
                () = overrun => self.checkpoint_behind(&mut plan).await.map(|()| None),
            };
            match stepped {
                Ok(Some(end)) => return end,
                Ok(None) => {
                    plan.stuck_since = None;
                    backoff.success();
                }
                Err(error) if error.is_transient() => {
                    plan.stuck_since.get_or_insert_with(Instant::now);
                    let wait = backoff.after_failure();
                    tracing::warn!(%error, waiting = plan.pending.len(), ?wait, "commits are not shipped; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => return self.last(plan).await,
                        _ = live.engine.exited() => return End::Engine,
                    }
                }
                Err(error) => return End::Replica(error),
            }
        }
    }

    /// Waits until the log on disk has grown far over its limit and nothing of it has been shipped for long. Never, if a base is due:
    /// there is no further checkpoint before it.
    fn overrun(&self, plan: &Plan) -> impl Future<Output = ()> + use<> {
        let wal = self.live.dir.join(replica::WAL_FILE);
        let limit = self.shipper.wal_bytes() + OVERRUN * self.checkpoints.wal_bytes;
        let possible = plan.base_due.is_none() && !self.shipper.needs_base();
        // After a refusal shipping has its turn, else each new try would cut it off.
        let from = (plan.stuck_since.unwrap_or_else(Instant::now) + AWAY).max(plan.not_before);
        async move {
            if !possible {
                return std::future::pending().await;
            }
            tokio::time::sleep_until(from).await;
            while std::fs::metadata(&wal).map_or(0, |found| found.len()) <= limit {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Checkpoints although the store is away: what was not shipped is never a position of its own, and the next base covers it.
    async fn checkpoint_behind(&mut self, plan: &mut Plan) -> Result<(), Error> {
        tracing::warn!("the object store is away and the log over its limit: folding it before it is shipped");
        let held = Held::new(self.hold);
        match self.shipper.begin_checkpoint_behind().await {
            Ok(()) => self.ask_for_checkpoint(plan, true).await,
            // A checkpoint ran whose answer was not waited for; its commits say so, and make its base due.
            Err(Error::Misuse(why)) => {
                self.let_in().await;
                self.refused(plan, &why);
            }
            Err(error) => {
                self.let_in().await;
                return Err(error);
            }
        }
        drop(held);
        Ok(())
    }

    /// One thing at a time: a base that is due, commits, a checkpoint, or waiting for either. May be dropped at any await: what was
    /// taken from the feed is in the plan, and the shipper keeps a record whose outcome is unknown.
    async fn step(&mut self, plan: &mut Plan) -> Result<Option<End>, Error> {
        self.claim().await?;
        self.ship(plan).await?;
        if self.checkpoint_wanted(plan) {
            return self.checkpoint(plan).await.map(|()| None);
        }
        let wake = match self.worth_folding() || self.over_limit() {
            true => plan.idle_at.max(plan.not_before),
            false => Instant::now() + Duration::from_secs(3600),
        };
        let (proof, streak) = (self.proof, self.progress.borrow().streak);
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => return self.obey(plan, order).await,
            more = self.feed.arrived() => {
                if !more {
                    return Ok(Some(End::Engine));
                }
                self.collect(plan);
                self.gather(plan).await;
            }
            () = tokio::time::sleep_until(wake) => {}
            error = taken_over(self.used, self.shipper) => return Err(error),
            () = proof.streak_after(streak) => {}
        }
        Ok(None)
    }

    /// Wins a slot in the node's present streak, so that nobody who found the node dead before can depose this writer any more.
    async fn claim(&mut self) -> Result<(), Error> {
        // Before the slot: one that was won before the streak began would prove nothing.
        let streak = self.proof.newest_streak();
        if self.progress.borrow().streak < streak {
            self.shipper.claim().await?;
            self.progress.send_modify(|progress| progress.streak = streak);
        }
        Ok(())
    }

    /// Carries out an order, or prepares the ground for whoever does.
    async fn obey(&mut self, plan: &mut Plan, order: Order) -> Result<Option<End>, Error> {
        match order {
            Order::Names(change, reply) => {
                let done = self.name(plan, change).await;
                let answer = match &done {
                    Ok(answer) => answer.clone(),
                    Err(error) => Err(refused(error).outcome(Outcome::Unknown)),
                };
                // Whoever asked may have gone.
                let _ = reply.send(answer);
                done.map(|_| None)
            }
            Order::Sweep(ledger, terms, pins, reply) => {
                let done = self.shipper.sweep(ledger, terms, &|| pins.any()).await;
                match done {
                    Ok(swept) => drop(reply.send(Ok(swept))),
                    Err(error) => {
                        let _ = reply.send(Err(refused(&error)));
                        return Err(error);
                    }
                }
                Ok(None)
            }
            Order::Swap(swap) => match self.quiesce(plan).await {
                Ok(quiet) => Ok(Some(End::Swap(swap, quiet))),
                Err(error) => {
                    let _ = swap.into_reply().send(Err(error));
                    Ok(None)
                }
            },
        }
    }

    async fn name(&mut self, plan: &mut Plan, change: Change) -> Result<Result<Arc<Names>, ApiError>, Error> {
        self.collect(plan);
        self.ship(plan).await?;
        let mut names = self.shipper.names().clone();
        if let Err(error) = change(&mut names, self.shipper.here()) {
            return Ok(Err(error));
        }
        if names != *self.shipper.names() {
            self.shipper.set_names(names).await?;
        }
        Ok(Ok(Arc::new(self.shipper.names().clone())))
    }

    /// Drains the writers and ships all there is.
    async fn quiesce(&mut self, plan: &mut Plan) -> Result<Quiet, ApiError> {
        self.hold.send_replace(true);
        let quiet = Quiet { client: self.live.engine.client().clone(), hold: self.hold.clone(), retired: false };
        let wait_ms = u64::try_from(DRAIN.as_millis()).unwrap_or(u64::MAX);
        let request = wire::WritersRequest { state: wire::WritersState::Closed, wait_ms, abort: true };
        let at: wire::WritersAnswer = self.live.engine.client().call("/writers", &request).await.map_err(|error| {
            tracing::warn!(%error, "writers can't be drained");
            ApiError::new(Code::Unavailable, "the mart's writers can't be stopped just now").hint("try again")
        })?;
        let shipped = async {
            loop {
                self.collect(plan);
                self.ship(plan).await?;
                let durable = self.shipper.durable();
                if (durable.iteration, durable.wal_bytes) >= (at.iteration, at.wal_bytes) {
                    return Ok(());
                }
                if !self.feed.arrived().await {
                    return Err(Error::Unavailable { what: "the engine ended".into(), source: None });
                }
            }
        };
        match tokio::time::timeout(LAST_SHIP, shipped).await {
            Ok(Ok(())) => Ok(quiet),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(ApiError::new(Code::Unavailable, "the mart's last commits are not in the object store yet")
                .hint("try again; `tarn doctor` checks the store")),
        }
    }

    fn collect(&mut self, plan: &mut Plan) {
        let points = self.feed.take();
        if let Some(newest) = points.last() {
            plan.idle_at = Instant::now() + self.checkpoints.idle;
            self.announce(Some(newest));
        }
        plan.pending.extend(points);
    }

    /// While nobody waits, waits for more commits: each record costs the disk that commits need too.
    async fn gather(&mut self, plan: &mut Plan) {
        let awaited = async {
            if self.waiters.wait_for(|count| *count > 0).await.is_err() {
                // Nobody is left who could wait.
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = awaited => {}
            () = tokio::time::sleep(GATHER) => {}
        }
        self.collect(plan);
    }

    /// Ships the base that is due, then all commits that wait.
    async fn ship(&mut self, plan: &mut Plan) -> Result<(), Error> {
        if plan.base_due.is_none() {
            // A checkpoint whose answer got lost shows in the commits that follow it.
            let shipped = self.shipper.durable().iteration;
            plan.base_due =
                plan.pending.iter().map(|point| point.iteration).max().filter(|iteration| *iteration > shipped);
        }
        if let Some(iteration) = plan.base_due {
            let started = Instant::now();
            let position = self.shipper.ship_base(iteration).await?;
            tracing::info!(%position, took_ms = started.elapsed().as_millis(), "base shipped");
            plan.base_due = None;
            self.announce(None);
        }
        let durable = self.shipper.durable();
        plan.pending.retain(|point| beyond(point, durable));
        if plan.pending.is_empty() {
            return Ok(());
        }
        self.shipper.ship(&plan.pending).await?;
        plan.pending.clear();
        self.announce(None);
        Ok(())
    }

    fn announce(&self, newest: Option<&CommitPoint>) {
        let (epoch, durable) = (self.live.epoch, self.shipper.durable());
        self.progress.send_modify(|progress| {
            let newest = newest
                .map(|point| Position { epoch, iteration: point.iteration, wal_bytes: point.wal_end })
                .or(progress.newest);
            // Before its first base an epoch has nothing durable of its own.
            let durable = Some(durable).filter(|_| !self.shipper.needs_base());
            *progress =
                Progress { epoch, durable, newest, closed: false, before: progress.before, streak: progress.streak };
        });
    }

    fn checkpoint_wanted(&self, plan: &Plan) -> bool {
        let now = Instant::now();
        let idle = now >= plan.idle_at && self.worth_folding();
        now >= plan.not_before && (idle || self.over_limit())
    }

    fn worth_folding(&self) -> bool {
        self.shipper.wal_bytes() > IDLE_WAL_BYTES.min(self.checkpoints.wal_bytes)
    }

    fn over_limit(&self) -> bool {
        self.shipper.wal_bytes() > self.checkpoints.wal_bytes || self.shipper.wants_checkpoint()
    }

    /// Holds writers back, ships the rest, checkpoints, and makes the base due.
    async fn checkpoint(&mut self, plan: &mut Plan) -> Result<(), Error> {
        let held = Held::new(self.hold);
        // In the engine too: whoever had passed the node would commit between the last shipping and the checkpoint, and its position
        // would be none that the log knows.
        let client = self.live.engine.client();
        let wait_ms = u64::try_from(QUIET.as_millis()).unwrap_or(u64::MAX);
        // Transactions of sessions, reading ones too, are all behind the gate: whoever is in the way for too long is so here.
        let patience_over = plan.refused_since.is_some_and(|since| since.elapsed() > READER_PATIENCE);
        let abort_readers = patience_over || self.shipper.wal_bytes() > ABORT_WAL_BYTES;
        let close = wire::WritersRequest { state: wire::WritersState::Closed, wait_ms, abort: abort_readers };
        if let Err(error) = client.call::<_, wire::WritersAnswer>("/writers", &close).await {
            self.refused(plan, &format!("writers are busy: {error}"));
            return Ok(());
        }
        let shipped = self.all_shipped(plan).await;
        if !matches!(shipped, Ok(true)) {
            self.let_in().await;
            shipped?;
            self.refused(plan, "the last commits are not shipped");
            return Ok(());
        }
        self.ask_for_checkpoint(plan, abort_readers).await;
        drop(held);
        Ok(())
    }

    /// Opens the engine's gate, if it is closed. A checkpoint does so by itself.
    async fn let_in(&self) {
        let open = wire::WritersRequest { state: wire::WritersState::Open, wait_ms: 0, abort: false };
        if let Err(error) = self.live.engine.client().call::<_, wire::WritersAnswer>("/writers", &open).await {
            // It has ended, then.
            tracing::debug!(%error, "an engine's gate can't be opened");
        }
    }

    /// The checkpoint was announced and writers are held: runs it.
    async fn ask_for_checkpoint(&mut self, plan: &mut Plan, abort_readers: bool) {
        let request = wire::CheckpointRequest {
            reader_wait_ms: u64::try_from(READER_WAIT.as_millis()).unwrap_or(u64::MAX),
            abort_readers,
        };
        let answer = self.live.engine.client().call::<_, wire::CheckpointAnswer>("/checkpoint", &request).await;
        match answer {
            Ok(answer) => {
                tracing::info!(iteration = answer.iteration, stall_ms = answer.stall_ms, "checkpoint");
                (self.stalled)(Duration::from_millis(answer.stall_ms));
                plan.base_due = Some(answer.iteration);
                plan.refused_since = None;
                plan.idle_at = Instant::now() + self.checkpoints.idle;
            }
            Err(CallError::Refused { message, .. }) => {
                self.let_in().await;
                self.refused(plan, &message);
            }
            // The engine is going or gone; its feed will say so.
            Err(error) => self.refused(plan, &error.to_string()),
        }
    }

    /// Ships until the log on disk holds nothing more, with new writers held back; false if running ones take too long.
    async fn all_shipped(&mut self, plan: &mut Plan) -> Result<bool, Error> {
        let deadline = Instant::now() + QUIET;
        loop {
            match self.shipper.begin_checkpoint().await {
                Ok(()) => return Ok(true),
                Err(Error::Misuse(_)) => {}
                Err(error) => return Err(error),
            }
            match tokio::time::timeout_at(deadline, self.feed.arrived()).await {
                Ok(true) => self.collect(plan),
                Ok(false) | Err(_) => return Ok(false),
            }
            self.ship(plan).await?;
        }
    }

    fn refused(&self, plan: &mut Plan, why: &str) {
        let now = Instant::now();
        tracing::info!(why, wal_bytes = self.shipper.wal_bytes(), "checkpoint put off");
        plan.refused_since.get_or_insert(now);
        plan.not_before = now + CHECKPOINT_RETRY;
    }

    /// After a stop: the engine is ending; ships what it still reports.
    async fn last(&mut self, mut plan: Plan) -> End {
        let rest = async {
            loop {
                match self.ship(&mut plan).await {
                    Ok(()) if !self.feed.arrived().await => return Ok(()),
                    Ok(()) => self.collect(&mut plan),
                    Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(200)).await,
                    // A checkpoint may have run whose answer was not waited for: then the engine says more.
                    Err(Error::Diverged(_)) if self.feed.arrived().await => self.collect(&mut plan),
                    Err(error) => return Err(error),
                }
            }
        };
        match tokio::time::timeout(LAST_SHIP, rest).await {
            Ok(Ok(())) => End::Stopped,
            Ok(Err(error)) => End::Replica(error),
            Err(_) => {
                tracing::warn!("the object store is away: the last commits stay on this disk until the next start");
                End::Stopped
            }
        }
    }
}

/// Waits until another node has the mart. Nobody looks while nobody asks for the mart.
async fn taken_over(used: &AtomicBool, shipper: &Shipper) -> Error {
    loop {
        tokio::time::sleep(OLD_ANSWERS).await;
        if !used.swap(false, Ordering::Relaxed) {
            continue;
        }
        match shipper.look().await {
            Ok(()) => {}
            Err(error) if error.is_transient() => tracing::debug!(%error, "can't look who has the mart"),
            Err(error) => return error,
        }
    }
}

/// Whether a commit is not in the object store yet.
fn beyond(point: &CommitPoint, durable: Position) -> bool {
    (point.iteration, point.wal_end) > (durable.iteration, durable.wal_bytes)
}

/// Writers are held off, in the node and in the engine, until this is dropped.
pub struct Quiet {
    client: EngineClient,
    hold: watch::Sender<bool>,
    retired: bool,
}

impl Quiet {
    /// Lets nobody into the engine again: those that wait there are told to come back. In the node they are held on.
    pub async fn retire(&mut self) {
        self.retired = true;
        let request = wire::WritersRequest { state: wire::WritersState::Retired, wait_ms: 0, abort: true };
        // An engine that can't be told has ended.
        let _ = self.client.call::<_, wire::WritersAnswer>("/writers", &request).await;
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let (client, hold) = (self.client.clone(), self.hold.clone());
        if self.retired {
            hold.send_replace(false);
            return;
        }
        tokio::spawn(async move {
            let request = wire::WritersRequest { state: wire::WritersState::Open, wait_ms: 0, abort: false };
            if let Err(error) = client.call::<_, wire::WritersAnswer>("/writers", &request).await {
                tracing::debug!(%error, "an engine's gate can't be opened again");
            }
            hold.send_replace(false);
        });
    }
}

/// Holds writers back until dropped.
struct Held<'a>(&'a watch::Sender<bool>);

impl<'a> Held<'a> {
    fn new(hold: &'a watch::Sender<bool>) -> Self {
        hold.send_replace(true);
        Self(hold)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}
