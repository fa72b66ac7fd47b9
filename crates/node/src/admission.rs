//! How much a node runs at once, and who waits: every request for SQL takes places before it reaches an engine and keeps them until its
//! answer has ended.
//!
//! The decisions are [`queue`]'s; here requests wait for them, not for ever. What the node does by itself (checkpoints, publishing,
//! upkeep) takes no places.
//!
//! # Cancellation
//! A request that is dropped while it waits leaves the line; one that is dropped in the moment it is served gives its places back.

pub mod queue;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::error::{ApiError, Code};
use crate::names::Tenant;
use queue::Queue;

/// Requests of one tenant that may wait at once.
const MOST_WAITING: usize = 1024;

/// A node's places.
pub struct Admission {
    state: Mutex<State>,
    /// So long is waited for a place at most.
    patience: Duration,
}

struct State {
    queue: Queue<Tenant>,
    next: u64,
    waiting: HashMap<u64, (Uuid, oneshot::Sender<()>)>,
}

/// Places that are held. Dropping it gives them back.
pub struct Place {
    admission: Arc<Admission>,
    tenant: Tenant,
    cost: u32,
}

/// What of one tenant runs and waits.
#[derive(Debug, PartialEq, Eq)]
pub struct Counts {
    /// Whose.
    pub tenant: Tenant,
    /// Places in use.
    pub places: u32,
    /// Requests that wait.
    pub waiting: usize,
}

impl Admission {
    /// `places` in all; a request waits for `patience` at most.
    pub fn new(places: u32, patience: Duration) -> Arc<Self> {
        let state = State { queue: Queue::new(places, MOST_WAITING), next: 0, waiting: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state), patience })
    }

    /// Places for a query of a tenant, at once or when it is its turn. `deadline` is the query's own.
    pub async fn enter(
        self: &Arc<Self>,
        tenant: &Tenant,
        query: Uuid,
        cost: u32,
        deadline: Duration,
    ) -> Result<Place, ApiError> {
        let (mut served, mut line) = {
            let mut state = self.lock();
            let ticket = state.next;
            state.next += 1;
            if !state.queue.join(tenant, ticket, cost) {
                return Err(limited("too many requests of this tenant wait already", self.patience));
            }
            let (send, served) = oneshot::channel();
            state.waiting.insert(ticket, (query, send));
            state.serve();
            (served, Line { admission: self.clone(), tenant: tenant.clone(), ticket, cost, served: false })
        };
        let wait = self.patience.min(deadline);
        if served.try_recv().is_err() && tokio::time::timeout(wait, served).await.is_err() {
            let position = self.lock().queue.position(tenant, line.ticket);
            // None: it was served in this very moment, and goes on.
            if let Some(position) = position {
                let message = format!(
                    "the node is busy: this request waited {} s and is number {position} in line",
                    wait.as_secs()
                );
                return Err(limited(message, self.patience));
            }
        }
        line.served = true;
        Ok(Place { admission: self.clone(), tenant: tenant.clone(), cost })
    }

    /// The place in line of a query that waits.
    pub fn position(&self, tenant: &Tenant, query: Uuid) -> Option<usize> {
        let state = self.lock();
        let ticket = state.waiting.iter().find(|(_, (waits, _))| *waits == query).map(|(ticket, _)| *ticket)?;
        state.queue.position(tenant, ticket)
    }

    /// What runs and waits, by tenant.
    pub fn counts(&self) -> Vec<Counts> {
        let state = self.lock();
        let counts = state.queue.counts();
        counts.map(|(tenant, places, waiting)| Counts { tenant: tenant.clone(), places, waiting }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn serve(&mut self) {
        for ticket in self.queue.serve() {
            if let Some((_, served)) = self.waiting.remove(&ticket) {
                // Whoever does not listen any more gives the places back in its drop.
                let _ = served.send(());
            }
        }
    }
}

/// A request in line, until it is served.
struct Line {
    admission: Arc<Admission>,
    tenant: Tenant,
    ticket: u64,
    cost: u32,
    served: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        let mut state = self.admission.lock();
        state.waiting.remove(&self.ticket);
        if !state.queue.give_up(&self.tenant, self.ticket) {
            state.queue.leave(&self.tenant, self.cost);
        }
        state.serve();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.queue.leave(&self.tenant, self.cost);
        state.serve();
    }
}

fn limited(message: impl Into<String>, again: Duration) -> ApiError {
    ApiError::new(Code::Limited, message)
        .hint("try again after a while; `tarn_queries_queued` shows who waits")
        .retry_after((again / 4).min(Duration::from_secs(10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        name.parse().expect("a legal name")
    }

    #[tokio::test]
    async fn a_request_waits_for_its_turn_and_one_that_goes_away_leaves_nothing() {
        let admission = Admission::new(2, Duration::from_secs(60));
        let (acme, long) = (tenant("acme"), Duration::from_secs(60));
        let first = admission.enter(&acme, Uuid::new_v4(), 1, long).await.expect("there is room");
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        let dropped = tokio::spawn({
            let (admission, acme) = (admission.clone(), acme.clone());
            async move { admission.enter(&acme, a, 1, long).await }
        });
        while admission.position(&acme, a).is_none() {
            tokio::task::yield_now().await;
        }
        let waits = tokio::spawn({
            let (admission, acme) = (admission.clone(), acme.clone());
            async move { admission.enter(&acme, b, 1, long).await }
        });
        while admission.position(&acme, b) != Some(2) {
            tokio::task::yield_now().await;
        }
        dropped.abort();
        assert!(dropped.await.is_err());
        assert_eq!(admission.position(&acme, b), Some(1));
        let other =
            admission.enter(&tenant("other"), Uuid::new_v4(), 1, long).await.expect("a place is kept for others");
        drop(first);
        let second = waits.await.expect("runs").expect("its turn came");
        drop((second, other));
        assert_eq!(admission.counts(), []);
    }

    #[tokio::test]
    async fn patience_ends() {
        let admission = Admission::new(2, Duration::from_millis(20));
        let acme = tenant("acme");
        let long = Duration::from_secs(600);
        let _first = admission.enter(&acme, Uuid::new_v4(), 1, long).await.expect("there is room");
        let refused = admission.enter(&acme, Uuid::new_v4(), 1, long).await.err().expect("there is none");
        assert_eq!((refused.code, refused.retryable), (Code::Limited, true));
        assert!(refused.message.contains("number 1 in line"), "{refused}");
        assert!(refused.retry_after_s.is_some());
        assert_eq!(admission.counts(), [Counts { tenant: acme, places: 1, waiting: 0 }]);
    }
}
