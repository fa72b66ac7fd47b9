//! Queries that took long: a line in the log for each, and the slowest of each mart with their plans.
//!
//! A plan is made when the query is over, as its sender would have had it with EXPLAIN: nothing runs a second time. It is this node's
//! memory only, and goes with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use crate::clock;
use crate::names::MartId;

/// So many of each mart are kept, for so long.
const KEPT: usize = 20;
const KEPT_FOR_US: i64 = 24 * 3600 * 1_000_000;

/// One of them.
pub struct Query {
    pub id: Uuid,
    /// Who sent it: a token's name, or else its id.
    pub sender: String,
    /// Read, write, ddl or other.
    pub kind: &'static str,
    /// The contract's word for what came of it.
    pub outcome: String,
    /// When it came, in microseconds since 1970.
    pub began_us: i64,
    pub took: Duration,
    /// Its beginning.
    pub sql: String,
    /// DuckDB's plan as JSON, or why there is none. Empty while it is made.
    pub plan: OnceLock<Result<String, String>>,
}

/// Those of all marts.
pub struct Slow {
    /// From here on a query is slow; none if none ever is.
    threshold: Option<Duration>,
    kept: Mutex<HashMap<MartId, Vec<Arc<Query>>>>,
}

impl Slow {
    /// A threshold of zero is none.
    pub fn new(threshold: Duration) -> Self {
        Self { threshold: (!threshold.is_zero()).then_some(threshold), kept: Mutex::default() }
    }

    /// Whether a query that took so long is slow.
    pub fn is_slow(&self, took: Duration) -> bool {
        self.threshold.is_some_and(|threshold| took >= threshold)
    }

    /// Keeps a query if it is among the slowest of its mart; whether it is.
    pub fn keep(&self, mart: &MartId, query: &Arc<Query>) -> bool {
        let mut all = self.lock();
        let kept = all.entry(mart.clone()).or_default();
        let oldest = query.began_us - KEPT_FOR_US;
        kept.retain(|other| other.began_us >= oldest);
        let place = kept.partition_point(|other| other.took >= query.took);
        kept.insert(place, query.clone());
        kept.truncate(KEPT);
        place < KEPT
    }

    /// Of a mart, slowest first.
    pub fn of(&self, mart: &MartId) -> Vec<Arc<Query>> {
        let oldest = clock::now_us() - KEPT_FOR_US;
        let all = self.lock();
        all.get(mart).into_iter().flatten().filter(|query| query.began_us >= oldest).cloned().collect()
    }

    /// Of a mart that is gone nothing stays.
    pub fn forget(&self, mart: &MartId) {
        self.lock().remove(mart);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MartId, Vec<Arc<Query>>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(seconds: u64, began_us: i64) -> Arc<Query> {
        Arc::new(Query {
            id: Uuid::new_v4(),
            sender: "etl".into(),
            kind: "read",
            outcome: "ok".into(),
            began_us,
            took: Duration::from_secs(seconds),
            sql: "select 1".into(),
            plan: OnceLock::new(),
        })
    }

    #[test]
    fn the_slowest_of_a_day_are_kept() {
        let mart = MartId { tenant: "acme".parse().expect("legal"), mart: "sales".parse().expect("legal") };
        let slow = Slow::new(Duration::from_secs(1));
        let now = clock::now_us();
        assert!(slow.keep(&mart, &query(1000, now - KEPT_FOR_US - 1)));
        for seconds in 1..=30 {
            assert!(slow.keep(&mart, &query(seconds, now)));
        }
        assert!(!slow.keep(&mart, &query(5, now)));
        let kept: Vec<_> = slow.of(&mart).iter().map(|query| query.took.as_secs()).collect();
        assert_eq!(kept, (11..=30).rev().collect::<Vec<_>>());
        slow.forget(&mart);
        assert!(slow.of(&mart).is_empty());
    }

    #[test]
    fn without_a_threshold_nothing_is_slow() {
        assert!(!Slow::new(Duration::ZERO).is_slow(Duration::from_secs(3600)));
        assert!(Slow::new(Duration::from_secs(1)).is_slow(Duration::from_secs(1)));
    }
}
