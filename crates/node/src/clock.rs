//! The one place where the node reads a clock.
//!
//! Wall-clock time is for records that people read; it never decides what is durable or who may write.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since the Unix epoch, now.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Time since this machine started, sleep included: what a process that was stopped finds to have passed.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A time as RFC 3339 text in UTC, for lists that people read.
pub fn rfc3339(time_us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(time_us)
        .map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
        .unwrap_or_default()
}

/// The same to the microsecond, for times that are given back to us.
pub fn rfc3339_us(time_us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(time_us)
        .map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
        .unwrap_or_default()
}

/// A time as part of a name: `20260131T120000Z`.
pub fn compact(time_us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(time_us)
        .map(|time| time.format("%Y%m%dT%H%M%SZ").to_string())
        .unwrap_or_default()
}

/// The same to the microsecond: `20260131T120000.000001Z`.
pub fn compact_us(time_us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(time_us)
        .map(|time| time.format("%Y%m%dT%H%M%S%.6fZ").to_string())
        .unwrap_or_default()
}

/// Microseconds since the Unix epoch of an RFC 3339 text.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

/// A span of time as people write it: `45s`, `15m`, `12h`, `30d`, `2w`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return None,
    };
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
}

/// Waits between attempts at something that keeps failing: doubling from `first` to `limit`, back to `first` after a calm spell.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
    last: Option<Instant>,
}

impl Backoff {
    /// A back-off that starts at `first` and never waits longer than `limit`.
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, next: first, last: None }
    }

    /// How long to wait before the next attempt. Asked after a calm spell of ten times the limit, it starts over.
    pub fn after_failure(&mut self) -> Duration {
        let calm = self.last.is_some_and(|last| last.elapsed() > self.limit * 10);
        if calm {
            self.next = self.first;
        }
        self.last = Some(Instant::now());
        let wait = self.next;
        self.next = (self.next * 2).min(self.limit);
        wait
    }

    /// Forgets the failures so far.
    pub fn success(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_number_and_a_unit() {
        assert_eq!(parse_span("30d"), Some(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(parse_span(" 5m "), Some(Duration::from_secs(300)));
        for bad in ["", "d", "5", "-5d", "+5d", "5x", "5é", "99999999999999999999s", "9999999999999999999w"] {
            assert_eq!(parse_span(bad), None, "{bad:?} passed");
        }
    }

    #[test]
    fn back_off_doubles_to_its_limit_and_starts_over_on_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(300));
        let waits: Vec<_> = (0..4).map(|_| backoff.after_failure()).collect();
        assert_eq!(waits, [ms(100), ms(200), ms(300), ms(300)]);
        backoff.success();
        assert_eq!(backoff.after_failure(), ms(100));
    }
}
