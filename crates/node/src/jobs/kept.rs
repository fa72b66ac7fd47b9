//! What is kept of a job: a read's rows stay in a session of the engine, any other answer is small and stays in memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::HeaderMap;
use replica::Position;
use uuid::Uuid;

use crate::error::{ApiError, Code};
use crate::profiles::Profile;
use crate::router::{Who, close_session};
use crate::watcher::Live;

/// Longest answer that is kept.
pub(super) const MOST_ANSWER_BYTES: usize = 16 << 20;
/// What all kept answers of a node may take.
const MOST_BYTES: usize = 256 << 20;

/// Rows in a session's table. They end with their engine.
pub struct Rows {
    /// The engine.
    pub live: Weak<Live>,
    /// The session's owner.
    pub who: Who,
    /// The session.
    pub session: Uuid,
    /// How many may be read.
    pub rows: u64,
    /// How many were asked for at most; the engine may have more.
    pub most: Option<u64>,
    /// The moment they are of.
    pub position: Option<Position>,
    /// Whether that was in the object store when they were made.
    pub durable: bool,
    /// The size of the query that made them, and of whoever reads them.
    pub profile: Profile,
}

/// An answer as it would have been sent.
pub struct Answer {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    _share: Share,
}

/// How many bytes of answers may be kept.
#[derive(Clone, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// A part of the budget, until dropped.
struct Share(Budget, usize);

impl Rows {
    /// The engine that has them, if it still runs.
    pub fn engine(&self) -> Option<Arc<Live>> {
        self.live.upgrade().filter(|live| live.engine.is_running())
    }

    /// Lets the engine free them.
    pub fn close(&self) -> impl Future<Output = ()> + Send + 'static {
        let (live, who, session) = (self.engine(), self.who.clone(), self.session);
        async move {
            if let Some(live) = live {
                // Gone already, or soon by itself: it is idle from now on.
                let _ = close_session(&live, &who, session).await;
            }
        }
    }
}

impl Answer {
    /// Longest answer that is kept.
    pub const MOST_BYTES: usize = MOST_ANSWER_BYTES;

    /// Keeps an answer if there is room.
    pub fn keep(headers: HeaderMap, body: Bytes, budget: &Budget) -> Result<Self, ApiError> {
        let share = budget.take(body.len()).ok_or_else(|| {
            ApiError::new(Code::Limited, "too many answers are kept at once on this node")
                .hint("free results that were read with `DELETE /v1/queries/{id}`")
        })?;
        Ok(Self { headers, body, _share: share })
    }
}

impl Budget {
    fn take(&self, bytes: usize) -> Option<Share> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= MOST_BYTES);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Share(self.clone(), bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_take_no_more_than_there_is_and_give_it_back() {
        let budget = Budget::default();
        let first = budget.take(MOST_BYTES - 1).expect("it fits");
        assert!(budget.take(2).is_none() && budget.take(1).is_some());
        drop(first);
        assert!(budget.take(MOST_BYTES).is_some());
    }
}
