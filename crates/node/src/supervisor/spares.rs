//! Processes that wait to become engines, so that opening a mart does not begin with starting one.
//!
//! Each knows no mart, has most of its walls, and takes a few megabytes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::SocketDir;
use super::spawn::{Blank, SpawnError};
use crate::clock::Backoff;

/// The waiting processes of a node.
pub struct Spares {
    sockets: SocketDir,
    most: usize,
    waiting: Mutex<Vec<Blank>>,
    taken: Notify,
}

impl Spares {
    /// So many, once they are tended.
    pub fn new(sockets: SocketDir, most: usize) -> Self {
        Self { sockets, most, waiting: Mutex::default(), taken: Notify::new() }
    }

    /// One that waits, or else a new one.
    pub async fn take(&self) -> Result<Blank, SpawnError> {
        let found = {
            let mut waiting = self.waiting();
            // One that ended meanwhile is of no use.
            waiting.retain_mut(Blank::waits);
            waiting.pop()
        };
        self.taken.notify_one();
        match found {
            Some(blank) => Ok(blank),
            None => Blank::spawn(&self.sockets).await,
        }
    }

    /// Keeps so many until cancelled; then ends them.
    pub async fn tend(&self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let wait = self.fill(&mut backoff);
            if stop.run_until_cancelled(wait).await.is_none() {
                break;
            }
        }
        self.waiting().clear();
    }

    async fn fill(&self, backoff: &mut Backoff) {
        let lacking = self.most > self.waiting().len();
        if !lacking {
            return self.taken.notified().await;
        }
        match Blank::spawn(&self.sockets).await {
            Ok(blank) => {
                self.waiting().push(blank);
                backoff.success();
            }
            Err(error) => {
                tracing::warn!(%error, "a spare engine does not start");
                tokio::time::sleep(backoff.after_failure()).await;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Blank>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
