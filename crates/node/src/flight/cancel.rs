//! Cancelling: by the tickets that a client holds, before, while and after they are presented.
//!
//! Whoever drops a call cancels it too, without this.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow_flight::{CancelStatus, FlightInfo};
use http::Method;
use serde::de::IgnoredAny;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::get::handle_of;
use super::paper::Matter;
use crate::error::{ApiError, Code};

/// A query that was cancelled before it ran is remembered so long: longer than its ticket counts.
const REMEMBERED: Duration = Duration::from_secs(3700);
/// That many at most.
const MOST: usize = 65_536;

/// What is being fetched, and what must not be.
#[derive(Clone, Default)]
pub(super) struct Cancels(Arc<Mutex<HashMap<(String, Uuid), Entry>>>);

#[derive(Default)]
struct Entry {
    token: CancellationToken,
    /// The queries that run for it: each fetch of a ticket is one of its own.
    queries: Vec<Uuid>,
    cancelled: Option<Instant>,
}

/// An answer on its way; forgotten when dropped.
pub(super) struct Watched {
    cancels: Cancels,
    key: (String, Uuid),
    query: Uuid,
    token: CancellationToken,
}

impl Watched {
    /// The id of the query that this fetch is.
    pub(super) fn query(&self) -> Uuid {
        self.query
    }

    pub(super) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    pub(super) async fn cancelled(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut all = self.cancels.all();
        if let Some(entry) = all.get_mut(&self.key) {
            entry.queries.retain(|query| *query != self.query);
            if entry.queries.is_empty() && entry.cancelled.is_none() {
                all.remove(&self.key);
            }
        }
    }
}

impl Cancels {
    fn all(&self) -> MutexGuard<'_, HashMap<(String, Uuid), Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an answer, unless it was cancelled.
    pub(super) fn watch(&self, principal: &str, id: Uuid) -> Result<Watched, ApiError> {
        let key = (principal.to_owned(), id);
        let mut all = self.all();
        let entry = all.entry(key.clone()).or_default();
        if entry.cancelled.is_some() {
            return Err(cancelled());
        }
        let query = Uuid::new_v4();
        entry.queries.push(query);
        Ok(Watched { cancels: self.clone(), key, query, token: entry.token.clone() })
    }

    /// Cancels what runs under the id and what would; gives the queries that run.
    fn cancel(&self, principal: &str, id: Uuid) -> Vec<Uuid> {
        let mut all = self.all();
        if all.len() >= MOST {
            all.retain(|_, entry| !entry.queries.is_empty());
        }
        let entry = all.entry((principal.to_owned(), id)).or_default();
        entry.cancelled = Some(Instant::now());
        entry.token.cancel();
        entry.queries.clone()
    }

    /// Forgets what can't be asked for any more.
    pub(super) fn expire(&self) {
        let old = |entry: &Entry| entry.cancelled.is_some_and(|at| at.elapsed() > REMEMBERED);
        self.all().retain(|_, entry| !entry.queries.is_empty() || !old(entry));
    }
}

impl Flight {
    /// Cancels what a `FlightInfo` names.
    pub(super) async fn cancel(&self, call: &Call, info: &FlightInfo) -> Result<CancelStatus, ApiError> {
        let tickets: Vec<_> = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref()).collect();
        if tickets.is_empty() {
            return Err(ApiError::new(Code::Invalid, "the info holds no ticket").hint("send it back as it was given"));
        }
        let mut done = CancelStatus::NotCancellable;
        for ticket in tickets {
            let (call, matter) = self.seal().await?.read(call.clone(), &handle_of(ticket)?)?;
            let id = match matter {
                Matter::Read(read) => read.id,
                Matter::Held(id) => id,
                _ => continue,
            };
            done = CancelStatus::Cancelled;
            self.held.drop_one(&call, id);
            for query in self.cancels.cancel(&call.principal.id, id) {
                // What has ended just now needs no interrupt.
                let _ = self.app.running.ask::<IgnoredAny>(&call.principal, query, Method::DELETE).await;
            }
        }
        Ok(done)
    }
}

/// What a cancelled query ends with.
pub(super) fn cancelled() -> ApiError {
    ApiError::new(Code::Cancelled, "the query was cancelled")
}
