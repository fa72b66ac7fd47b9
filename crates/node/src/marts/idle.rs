//! Engines that nobody uses are closed: after a while, or at once when there are more than there should be. The next request opens
//! the mart again, mostly from the files that are still there.
//!
//! **Invariant:** closing one ends no request and no session, and leaves no commit behind that is not in the object store.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use engine::wire::Health;
use tokio_util::sync::CancellationToken;

use super::{Marts, OpenMart};
use crate::watcher::Phase;

/// How often it is looked who is idle.
const LOOK: Duration = Duration::from_secs(1);
/// Not even too many engines are a reason to close one that was used within this time.
const BUSY: Duration = Duration::from_secs(1);

/// When an idle engine is closed.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// After so long without a request; never without.
    pub after: Option<Duration>,
    /// As soon as there are more than so many; however many without.
    pub most: Option<usize>,
}

impl Marts {
    /// Closes idle engines until cancelled.
    pub async fn tend(&self, rules: Idle, stop: CancellationToken) {
        if rules.after.is_none() && rules.most.is_none() {
            return;
        }
        loop {
            let opened = async {
                match rules.most {
                    Some(_) => self.opened.notified().await,
                    None => std::future::pending().await,
                }
            };
            let turn = async {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = opened => {}
                }
                for (mart, used) in self.idle(rules) {
                    self.close_idle(mart, used).await;
                }
            };
            if stop.run_until_cancelled(turn).await.is_none() {
                return;
            }
        }
    }

    /// Those that may be closed, with when they were last used; the longest idle first.
    fn idle(&self, rules: Idle) -> Vec<(Arc<OpenMart>, Instant)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut engines = 0_usize;
        let mut idle = Vec::new();
        for mart in open.values().filter(|mart| !mart.stop.is_cancelled()) {
            match &*mart.watcher.phase() {
                Phase::Ready(_) => engines += 1,
                Phase::Opening | Phase::Down(..) => {
                    engines += 1;
                    continue;
                }
                Phase::Closed(_) | Phase::Elsewhere(..) => continue,
            }
            // Somebody besides this map has it.
            if Arc::strong_count(mart) > 1 {
                mart.touch();
                continue;
            }
            idle.push((mart.clone(), mart.last_used()));
        }
        idle.sort_by_key(|(_, used)| *used);
        let too_many = rules.most.map_or(0, |most| engines.saturating_sub(most));
        let due = |at: usize, used: &Instant| {
            let time = used.elapsed();
            rules.after.is_some_and(|after| time >= after) || (at < too_many && time >= BUSY)
        };
        idle.into_iter().enumerate().filter(|(at, (_, used))| due(*at, used)).map(|(_, found)| found).collect()
    }

    /// Closes it if it is still idle once its engine has said that it is.
    async fn close_idle(&self, mart: Arc<OpenMart>, used: Instant) {
        let Some(live) = mart.watcher.live_now() else { return };
        let progress = mart.watcher.progress();
        if progress.newest > progress.durable {
            return;
        }
        match live.engine.client().get::<Health>("/health").await {
            Ok(health) if health.queries == 0 && health.sessions == 0 => {}
            Ok(_) => return mart.touch(),
            // It ends by itself, most likely.
            Err(_) => return,
        }
        drop(live);
        // Whoever asks for the mart does so under this lock, and gets one that is opened anew from here on.
        let _open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let ours_and_the_maps = 2;
        if Arc::strong_count(&mart) == ours_and_the_maps && mart.last_used() == used {
            tracing::info!(mart = %mart.id, idle = ?used.elapsed(), "nobody uses it: its engine is closed");
            mart.left.store(true, Ordering::Relaxed);
            mart.stop.cancel();
        }
    }
}
