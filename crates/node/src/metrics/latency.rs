//! How long queries take: a histogram for each mart, kind of statement and outcome.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::{Page, lock};
use crate::names::MartId;

/// Upper ends of the buckets, seconds.
const ENDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

/// Whose, what kind, what came of it.
type Key = (MartId, &'static str, String);

/// All histograms.
#[derive(Debug, Default)]
pub(super) struct Latency(Mutex<BTreeMap<Key, Histogram>>);

/// Of times.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    counts: [u64; ENDS.len()],
    all: u64,
    sum: f64,
}

impl Histogram {
    pub(super) fn saw(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(bucket) = ENDS.iter().position(|end| seconds <= *end) {
            self.counts[bucket] += 1;
        }
        self.all += 1;
        self.sum += seconds;
    }

    /// Its samples, below a family's head.
    pub(super) fn write(&self, name: &str, labels: &[(&str, &str)], page: &mut Page) {
        let mut bucket = |end: &str, count: u64| {
            page.sample(&format!("{name}_bucket"), &[labels, &[("le", end)]].concat(), count as f64);
        };
        let mut below = 0;
        for (end, count) in ENDS.iter().zip(self.counts) {
            below += count;
            bucket(&end.to_string(), below);
        }
        bucket("+Inf", self.all);
        page.sample(&format!("{name}_sum"), labels, self.sum);
        page.sample(&format!("{name}_count"), labels, self.all as f64);
    }
}

impl Latency {
    pub(super) fn saw(&self, id: &MartId, kind: &'static str, status: &str, took: Duration) {
        let mut all = lock(&self.0);
        let histogram = all.entry((id.clone(), kind, status.to_owned())).or_default();
        histogram.saw(took);
    }

    /// Of a mart that is gone nothing stays.
    pub(super) fn forget(&self, id: &MartId) {
        lock(&self.0).retain(|(of, _, _), _| of != id);
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.family(
            "tarn_query_seconds",
            "histogram",
            "Time from a query's arrival to the last byte of its answer, by kind of statement and outcome.",
        );
        for ((id, kind, status), histogram) in lock(&self.0).iter() {
            let labels =
                [("tenant", id.tenant.as_str()), ("mart", id.mart.as_str()), ("kind", kind), ("status", status)];
            histogram.write("tarn_query_seconds", &labels, page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_all_below_them() {
        let id = MartId { tenant: "acme".parse().expect("legal"), mart: "sales".parse().expect("legal") };
        let latency = Latency::default();
        for millis in [1, 20, 20, 3_600_000] {
            latency.saw(&id, "read", "ok", Duration::from_millis(millis));
        }
        let mut page = Page::default();
        latency.write(&mut page);
        let labels = "tenant=\"acme\",mart=\"sales\",kind=\"read\",status=\"ok\"";
        for (le, count) in [("0.001", 1), ("0.01", 1), ("0.025", 3), ("600", 3), ("+Inf", 4)] {
            let line = format!("tarn_query_seconds_bucket{{{labels},le=\"{le}\"}} {count}\n");
            assert!(page.text.contains(&line), "{line} is not in {}", page.text);
        }
        assert!(page.text.contains(&format!("tarn_query_seconds_count{{{labels}}} 4\n")));
        latency.forget(&id);
        let mut page = Page::default();
        latency.write(&mut page);
        assert!(!page.text.contains("acme"));
    }
}
