//! What `/metrics` says: the one owner of metric names, and the Prometheus text format.
//!
//! Knows numbers and labels; what happened is told to it. Labels hold names of tenants and marts only, so the page is for whoever
//! holds the node's admin token, or for loopback.

mod latency;
mod usage;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use replica::Position;

use crate::admission::Counts;
use crate::gateway::{Direction, TrafficBytes};
use crate::names::MartId;
use latency::{Histogram, Latency};
pub use usage::{Place, usage};

/// Media type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How exactly the lag is known.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Commits that wait to be durable are remembered by when they were seen; so many are enough to tell how long the oldest waits.
const MOST_WAITING: usize = 4096;

/// What is counted on this node.
#[derive(Debug, Default)]
pub struct Metrics {
    verified: Mutex<BTreeMap<MartId, i64>>,
    snapshots: Mutex<BTreeMap<MartId, i64>>,
    lags: Mutex<HashMap<MartId, Lag>>,
    restarts: Mutex<BTreeMap<&'static str, u64>>,
    latency: Latency,
    stalls: Mutex<BTreeMap<MartId, Histogram>>,
    objects: Mutex<BTreeMap<MartId, u64>>,
    upkeep: Mutex<BTreeMap<(MartId, &'static str), i64>>,
}

/// Commits of a mart that are not durable, oldest first, with when they were first seen.
#[derive(Debug, Default)]
struct Lag {
    waiting: VecDeque<(Position, Instant)>,
}

impl Lag {
    fn see(&mut self, newest: Option<Position>, durable: Option<Position>, now: Instant) {
        self.waiting.retain(|(position, _)| durable.is_none_or(|durable| *position > durable));
        let Some(newest) = newest.filter(|newest| durable.is_none_or(|durable| *newest > durable)) else { return };
        if self.waiting.back().is_none_or(|(last, _)| *last != newest) && self.waiting.len() < MOST_WAITING {
            self.waiting.push_back((newest, now));
        }
    }

    fn seconds(&self, now: Instant) -> f64 {
        self.waiting.front().map_or(0.0, |(_, since)| now.saturating_duration_since(*since).as_secs_f64())
    }
}

impl Metrics {
    /// A trial restore of a mart read every row.
    pub fn restore_verified(&self, id: &MartId, time_us: i64) {
        lock(&self.verified).insert(id.clone(), time_us);
    }

    /// A moment of a mart was named.
    pub fn snapshot_taken(&self, id: &MartId, time_us: i64) {
        lock(&self.snapshots).insert(id.clone(), time_us);
    }

    /// A query ended so, after this time.
    pub fn query_ended(&self, id: &MartId, kind: &'static str, status: &str, took: Duration) {
        self.latency.saw(id, kind, status, took);
    }

    /// A checkpoint held writers of a mart back for so long.
    pub fn writers_stalled(&self, id: &MartId, time: Duration) {
        lock(&self.stalls).entry(id.clone()).or_default().saw(time);
    }

    /// A kind of upkeep was done for a mart, by whichever node.
    pub fn upkeep_done(&self, id: &MartId, job: &'static str, time_us: i64) {
        lock(&self.upkeep).insert((id.clone(), job), time_us);
    }

    /// A mart's objects take so many bytes of the store.
    pub fn objects_weighed(&self, id: &MartId, bytes: u64) {
        lock(&self.objects).insert(id.clone(), bytes);
    }

    /// What marts' objects took when they were weighed last.
    pub fn objects(&self) -> BTreeMap<MartId, u64> {
        lock(&self.objects).clone()
    }

    /// A mart was dropped: nothing is told of it any more.
    pub fn mart_dropped(&self, id: &MartId) {
        lock(&self.verified).remove(id);
        lock(&self.snapshots).remove(id);
        lock(&self.stalls).remove(id);
        lock(&self.objects).remove(id);
        lock(&self.upkeep).retain(|(of, _), _| of != id);
        self.latency.forget(id);
    }

    /// An engine is started again after one that ended for this reason.
    pub fn engine_restarted(&self, reason: &'static str) {
        *lock(&self.restarts).entry(reason).or_default() += 1;
    }

    /// How far open marts' replicas are now: the newest commit and the newest durable one. Marts that are not named are closed.
    pub fn see_progress(&self, open: &[(MartId, Option<Position>, Option<Position>)], now: Instant) {
        let mut lags = lock(&self.lags);
        lags.retain(|id, _| open.iter().any(|(other, _, _)| other == id));
        for (id, newest, durable) in open {
            lags.entry(id.clone()).or_default().see(*newest, *durable, now);
        }
    }

    /// The page.
    pub fn page(&self, traffic: &[TrafficBytes], past_fetched: u64, now: Instant) -> String {
        let mut page = Page::default();
        page.family("tarn_build_info", "gauge", "Always 1; the labels say what runs.");
        page.sample("tarn_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let times = [
            (
                "tarn_last_verified_restore_timestamp_seconds",
                "When a mart was last restored on trial and every row was read, by this node since it started.",
                &self.verified,
            ),
            (
                "tarn_last_snapshot_timestamp_seconds",
                "When a moment of a mart was last named, by this node since it started.",
                &self.snapshots,
            ),
        ];
        for (name, help, marts) in times {
            page.family(name, "gauge", help);
            for (id, time_us) in lock(marts).iter() {
                page.sample(name, &of_mart(id), *time_us as f64 / 1e6);
            }
        }
        let name = "tarn_upkeep_last_timestamp_seconds";
        page.family(
            name,
            "gauge",
            "When upkeep of an open mart was last done, by whichever node: snapshot, archive, sweep, vacuum, verify.",
        );
        for ((id, job), time_us) in lock(&self.upkeep).iter() {
            let labels = [of_mart(id).as_slice(), &[("job", *job)]].concat();
            page.sample(name, &labels, *time_us as f64 / 1e6);
        }
        let name = "tarn_replication_lag_seconds";
        page.family(
            name,
            "gauge",
            "For how long the oldest commit that is not in the object store has waited; 0 if none waits.",
        );
        let lags = lock(&self.lags);
        let mut sorted: Vec<_> = lags.iter().collect();
        sorted.sort_by_key(|(id, _)| (id.tenant.as_str(), id.mart.as_str()));
        for (id, lag) in sorted {
            page.sample(name, &of_mart(id), lag.seconds(now));
        }
        self.latency.write(&mut page);
        page.family("tarn_checkpoint_stall_seconds", "histogram", "How long a checkpoint held a mart's writers back.");
        for (id, stalls) in lock(&self.stalls).iter() {
            stalls.write("tarn_checkpoint_stall_seconds", &of_mart(id), &mut page);
        }
        let name = "tarn_past_fetched_bytes_total";
        page.family(name, "counter", "Bytes of blocks that queries of earlier moments fetched from the object store.");
        page.sample(name, &[], past_fetched as f64);
        let name = "tarn_engine_restarts_total";
        page.family(name, "counter", "Engines started again, by why the one before had ended.");
        for (reason, count) in lock(&self.restarts).iter() {
            page.sample(name, &[("reason", *reason)], *count as f64);
        }
        let name = "tarn_gateway_bytes_total";
        page.family(name, "counter", "Bytes that passed the gateway between engines and the object store.");
        for count in traffic {
            let direction = match count.direction {
                Direction::Read => "read",
                Direction::Write => "write",
            };
            // There is no cache in the gateway: every byte is the store's.
            let labels = [("tenant", count.tenant.as_str()), ("direction", direction), ("source", "store")];
            page.sample(name, &labels, count.bytes as f64);
        }
        page.text
    }
}

fn of_mart(id: &MartId) -> [(&'static str, &str); 2] {
    [("tenant", id.tenant.as_str()), ("mart", id.mart.as_str())]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Text in Prometheus' exposition format, version 0.0.4.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<_> = labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.line(format_args!("{name}{labels} {value}\n"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("writing to a string can't fail");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Requests that run and wait, by tenant.
pub fn admission(counts: &[Counts]) -> String {
    let mut text = String::new();
    let families = [
        ("tarn_queries_in_flight", "Places that running queries take."),
        ("tarn_queries_queued", "Queries that wait for a place."),
    ];
    for (name, help) in families {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for Counts { tenant, places, waiting } in counts {
            let value = if name.ends_with("queued") { *waiting as u64 } else { u64::from(*places) };
            let _ = writeln!(text, "{name}{{tenant=\"{tenant}\"}} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MartId {
        MartId { tenant: "acme".parse().expect("legal"), mart: "sales".parse().expect("legal") }
    }

    #[test]
    fn the_page_is_in_the_text_format() {
        let metrics = Metrics::default();
        metrics.restore_verified(&id(), 1_500_000);
        metrics.snapshot_taken(&id(), 2_000_000);
        let traffic = [TrafficBytes { tenant: id().tenant, direction: Direction::Write, bytes: 12_345_678_901 }];
        metrics.engine_restarted("memory");
        metrics.engine_restarted("memory");
        let page = metrics.page(&traffic, 7, Instant::now());
        for line in [
            "# TYPE tarn_last_verified_restore_timestamp_seconds gauge",
            "tarn_last_verified_restore_timestamp_seconds{tenant=\"acme\",mart=\"sales\"} 1.5",
            "tarn_last_snapshot_timestamp_seconds{tenant=\"acme\",mart=\"sales\"} 2",
            "tarn_past_fetched_bytes_total 7",
            "tarn_engine_restarts_total{reason=\"memory\"} 2",
            "# TYPE tarn_gateway_bytes_total counter",
            "tarn_gateway_bytes_total{tenant=\"acme\",direction=\"write\",source=\"store\"} 12345678901",
        ] {
            assert!(page.lines().any(|found| found == line), "`{line}` is not in\n{page}");
        }
        assert!(page.ends_with('\n'));
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn the_lag_is_the_age_of_the_oldest_commit_that_is_not_durable() {
        let at = |wal_bytes| Some(Position { epoch: 1, iteration: 1, wal_bytes });
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut lag = Lag::default();
        lag.see(at(10), at(10), start);
        assert_eq!(lag.seconds(after(9)), 0.0);
        lag.see(at(20), at(10), after(1));
        lag.see(at(30), at(10), after(5));
        assert_eq!(lag.seconds(after(9)), 8.0);
        lag.see(at(30), at(20), after(9));
        assert_eq!(lag.seconds(after(9)), 4.0, "the first of the two is durable");
        lag.see(at(30), at(30), after(10));
        assert_eq!(lag.seconds(after(11)), 0.0);
    }
}
