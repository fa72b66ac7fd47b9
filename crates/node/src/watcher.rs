//! What others may know of an open mart: whether its engine is up, and how far its replica has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use replica::Position;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::Elsewhere;
use crate::error::{ApiError, Code};
use crate::room::Room;
use crate::supervisor::Engine;

/// An engine that takes requests.
pub struct Live {
    /// The process.
    pub engine: Engine,
    /// The epoch that its commits belong to.
    pub epoch: u64,
    /// The directory of its files.
    pub dir: std::path::PathBuf,
    /// Queries that it has been given and whose answers have not ended.
    pub running: AtomicUsize,
    /// How large it is.
    pub room: Room,
}

/// Where an open mart stands.
#[derive(Clone)]
pub enum Phase {
    /// Its files are being restored or its engine is starting.
    Opening,
    /// It takes requests.
    Ready(Arc<Live>),
    /// Its engine ended or can't start, for this reason; tried again then.
    Down(Instant, &'static str),
    /// It is not open any more, and why.
    Closed(ApiError),
    /// It was not opened: another node serves it, as was seen then.
    Elsewhere(Elsewhere, Instant),
}

/// How far a mart's replica has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The current epoch.
    pub epoch: u64,
    /// Where the epoch before it ended, if that is known: what it had up to there is part of this one.
    pub before: Option<Position>,
    /// Everything up to here is in the object store.
    pub durable: Option<Position>,
    /// The newest commit that the engine reported.
    pub newest: Option<Position>,
    /// The newest streak of the node's proof of life in which the mart has won a slot.
    pub streak: u64,
    /// Nobody ships any more.
    pub closed: bool,
}

impl Progress {
    /// An epoch begins, of which nothing is known yet.
    pub fn enter(&mut self, epoch: u64) {
        if self.epoch != epoch {
            (self.epoch, self.durable, self.newest) = (epoch, None, None);
        }
    }
}

/// Whether a commit has reached the object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landed {
    /// It has.
    Durable,
    /// Not yet.
    Late,
    /// The mart's files went another way before it did.
    Lost,
}

/// An observer of a mart; cheap to clone.
#[derive(Clone)]
pub struct Watcher {
    phase: watch::Receiver<Phase>,
    progress: watch::Receiver<Progress>,
    waiters: watch::Sender<usize>,
    used: Arc<AtomicBool>,
}

/// A request waits so long for a mart that is being opened; a restore may take longer.
const OPEN_WAIT: Duration = Duration::from_secs(60);
/// A mart that closes says why within this time.
const REASON_WAIT: Duration = Duration::from_secs(1);
/// A restart further away than this is not waited for.
const RESTART_WAIT: Duration = Duration::from_secs(2);

impl Watcher {
    /// Of the mart whose task has the other ends.
    pub fn new(phase: watch::Receiver<Phase>, progress: watch::Receiver<Progress>) -> Self {
        Self { phase, progress, waiters: watch::channel(0).0, used: Arc::default() }
    }

    /// The mart's engine, once it takes requests.
    pub async fn live(&self) -> Result<Arc<Live>, ApiError> {
        self.used.store(true, Ordering::Relaxed);
        if let Phase::Ready(live) = &*self.phase.borrow() {
            return Ok(live.clone());
        }
        let mut phase = self.phase.clone();
        let settled = tokio::time::timeout(
            OPEN_WAIT,
            phase.wait_for(|phase| match phase {
                Phase::Opening => false,
                Phase::Ready(_) | Phase::Closed(_) | Phase::Elsewhere(..) => true,
                Phase::Down(until, _) => until.duration_since(Instant::now()) > RESTART_WAIT,
            }),
        );
        match settled.await {
            Ok(Ok(phase)) => match &*phase {
                Phase::Ready(live) => Ok(live.clone()),
                Phase::Closed(error) => Err(error.clone()),
                Phase::Elsewhere(place, _) => Err(place.refusal()),
                Phase::Down(until, why) => {
                    let pause = until.saturating_duration_since(Instant::now());
                    let again = format!("it is started again in {} s", pause.as_secs() + 1);
                    Err(ApiError::new(Code::Unavailable, format!("the mart's engine keeps ending: {why}"))
                        .hint(format!("{again}; whatever makes it end should not be sent again"))
                        .retry_after(pause))
                }
                Phase::Opening => Err(ApiError::new(Code::Unavailable, "the mart is being opened").hint("try again")),
            },
            Ok(Err(_)) => Err(ApiError::new(Code::Unavailable, "the mart is closing").hint("try again")),
            Err(_) => Err(ApiError::new(Code::Unavailable, "the mart is being opened")
                .hint("a large mart takes a while to restore; try again")),
        }
    }

    /// The engine after `lost`, once it takes requests; None if there will be none.
    pub async fn next(&self, lost: &Arc<Live>) -> Option<Arc<Live>> {
        let mut phase = self.phase.clone();
        let next = phase.wait_for(|phase| match phase {
            Phase::Ready(live) => !Arc::ptr_eq(live, lost),
            Phase::Closed(_) | Phase::Elsewhere(..) => true,
            Phase::Opening | Phase::Down(..) => false,
        });
        match &*next.await.ok()? {
            Phase::Ready(live) => Some(live.clone()),
            _ => None,
        }
    }

    /// The mart's engine, if it takes requests just now.
    pub fn live_now(&self) -> Option<Arc<Live>> {
        match &*self.phase.borrow() {
            Phase::Ready(live) => Some(live.clone()),
            _ => None,
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> watch::Ref<'_, Phase> {
        self.phase.borrow()
    }

    /// Waits until a commit is in the object store.
    pub async fn landed(&self, position: Position, wait: Duration) -> Landed {
        if self.landed_now(Some(position)) == Landed::Durable {
            return Landed::Durable;
        }
        let _waiting = Waiting::among(&self.waiters);
        let mut progress = self.progress.clone();
        let settled = progress.wait_for(|progress| judge(progress, position) != Landed::Late || progress.closed);
        match tokio::time::timeout(wait, settled).await {
            Ok(Ok(progress)) => match judge(&progress, position) {
                Landed::Late => Landed::Lost,
                settled => settled,
            },
            Ok(Err(_)) => Landed::Lost,
            Err(_) => Landed::Late,
        }
    }

    /// Whether it is there now; without a position, nothing is missing.
    pub fn landed_now(&self, position: Option<Position>) -> Landed {
        position.map_or(Landed::Durable, |position| judge(&self.progress.borrow(), position))
    }

    /// Whether the mart has won a slot in that streak of the node's proof of life: true at once if it has, false after waiting until it
    /// has. Fails when the mart closes.
    pub async fn claimed(&self, streak: u64) -> Result<bool, ApiError> {
        let mut progress = self.progress.clone();
        if progress.borrow().streak >= streak && !progress.borrow().closed {
            return Ok(true);
        }
        let settled = progress.wait_for(|progress| progress.streak >= streak || progress.closed).await;
        if settled.is_ok_and(|progress| !progress.closed) {
            return Ok(false);
        }
        let mut phase = self.phase.clone();
        // Why it closed is said right after.
        let _ = tokio::time::timeout(REASON_WAIT, phase.wait_for(|phase| matches!(phase, Phase::Closed(_)))).await;
        Err(self.closed().unwrap_or_else(|| ApiError::new(Code::Unavailable, "the mart is closing").hint("try again")))
    }

    /// Why the mart is not open any more, if it is not.
    pub fn closed(&self) -> Option<ApiError> {
        match &*self.phase.borrow() {
            Phase::Closed(error) => Some(error.clone()),
            Phase::Elsewhere(place, _) => Some(place.refusal()),
            _ => None,
        }
    }

    /// Which node serves the mart instead, and when that was seen.
    pub fn elsewhere(&self) -> Option<(Elsewhere, Instant)> {
        match &*self.phase.borrow() {
            Phase::Elsewhere(place, since) => Some((place.clone(), *since)),
            _ => None,
        }
    }

    /// Changes of the progress.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// How many wait for a commit to be in the object store.
    pub fn waiters(&self) -> watch::Receiver<usize> {
        self.waiters.subscribe()
    }

    /// Whether anybody has asked for the engine; whoever acts on it takes it back.
    pub fn used(&self) -> Arc<AtomicBool> {
        self.used.clone()
    }

    /// How far the replica has come.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }
}

/// One that waits for durability, until dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn among(waiters: &'a watch::Sender<usize>) -> Self {
        waiters.send_if_modified(|count| {
            *count += 1;
            *count == 1
        });
        Self(waiters)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_if_modified(|count| {
            *count -= 1;
            false
        });
    }
}

fn judge(progress: &Progress, position: Position) -> Landed {
    if position.epoch != progress.epoch {
        let kept = progress.before.is_some_and(|end| end.epoch == position.epoch && end >= position);
        return if kept { Landed::Durable } else { Landed::Lost };
    }
    match progress.durable {
        Some(durable) if durable >= position => Landed::Durable,
        _ => Landed::Late,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(progress: Progress) -> (watch::Sender<Progress>, Watcher) {
        let (_, phase) = watch::channel(Phase::Opening);
        let (send, progress) = watch::channel(progress);
        (send, Watcher::new(phase, progress))
    }

    fn at(text: &str) -> Position {
        text.parse().expect("a legal position")
    }

    #[tokio::test]
    async fn a_commit_of_a_lost_epoch_is_never_reported_durable() {
        let start = Progress { epoch: 1, durable: Some(at("1.3.100")), ..Progress::default() };
        let (send, watcher) = watcher(start);
        let waiting = tokio::spawn({
            let watcher = watcher.clone();
            async move { watcher.landed(at("1.3.200"), Duration::from_secs(60)).await }
        });
        send.send_replace(Progress { epoch: 2, durable: Some(at("2.9.900")), ..start });
        assert_eq!(waiting.await.expect("it does not panic"), Landed::Lost);
    }

    #[test]
    fn a_commit_of_an_epoch_that_has_just_begun_is_late_and_not_lost() {
        let mut progress =
            Progress { epoch: 1, durable: Some(at("1.3.100")), before: Some(at("0.1.1")), ..Progress::default() };
        progress.enter(2);
        assert_eq!(judge(&progress, at("2.3.1")), Landed::Late);
        progress.enter(2);
        progress.durable = Some(at("2.3.1"));
        progress.enter(2);
        assert_eq!((judge(&progress, at("2.3.1")), progress.before), (Landed::Durable, Some(at("0.1.1"))));
    }

    #[test]
    fn what_an_earlier_epoch_had_shipped_stays_durable() {
        let progress =
            Progress { epoch: 2, before: Some(at("1.3.150")), durable: Some(at("2.3.900")), ..Progress::default() };
        assert_eq!(judge(&progress, at("1.3.150")), Landed::Durable);
        assert_eq!(judge(&progress, at("1.3.151")), Landed::Lost);
        assert_eq!(judge(&progress, at("3.1.0")), Landed::Lost);
    }

    #[tokio::test]
    async fn a_base_of_a_later_iteration_covers_what_was_before() {
        let start = Progress { epoch: 1, durable: Some(at("1.3.100")), ..Progress::default() };
        let (send, watcher) = watcher(start);
        assert_eq!(watcher.landed_now(Some(at("1.3.200"))), Landed::Late);
        assert_eq!(watcher.landed(at("1.3.200"), Duration::ZERO).await, Landed::Late);
        send.send_replace(Progress { durable: Some(at("1.4.0")), ..start });
        assert_eq!(watcher.landed(at("1.3.200"), Duration::ZERO).await, Landed::Durable);
    }

    #[tokio::test]
    async fn a_mart_that_closes_leaves_nobody_waiting() {
        let (send, watcher) = watcher(Progress { epoch: 1, ..Progress::default() });
        send.send_replace(Progress { epoch: 1, closed: true, ..Progress::default() });
        assert_eq!(watcher.landed(at("1.1.1"), Duration::from_secs(60)).await, Landed::Lost);
    }
}
