//! What upkeep there is, and when a mart is due for it: the same answer on every node.

use std::time::Duration;

use replica::names::Names;

use crate::clock;
use crate::config::Upkeep;
use crate::names::MartId;

/// Retention is looked after so often.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A job comes later by up to this part of its period, so that marts made together are not looked after together.
const JITTER: u32 = 10;
const MOST_JITTER: Duration = Duration::from_secs(3600);

/// A kind of upkeep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Snapshot,
    Archive,
    Sweep,
    Vacuum,
    Verify,
}

impl Job {
    pub const ALL: [Self; 5] = [Self::Snapshot, Self::Archive, Self::Sweep, Self::Vacuum, Self::Verify];

    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Archive => "archive",
            Self::Sweep => "sweep",
            Self::Vacuum => "vacuum",
            Self::Verify => "verify",
        }
    }

    /// How often it is to be done; never without.
    pub fn every(self, upkeep: &Upkeep) -> Option<Duration> {
        match self {
            Self::Snapshot => upkeep.snapshot_every,
            Self::Archive => upkeep.archive_every,
            Self::Sweep => Some(SWEEP_EVERY.min(upkeep.keep)),
            Self::Vacuum => upkeep.vacuum_every,
            Self::Verify => upkeep.verify_every,
        }
    }

    /// Whether it is for marts that have been there for a period.
    pub fn can_wait(self) -> bool {
        matches!(self, Self::Vacuum | Self::Archive)
    }

    /// When it is due, in microseconds since the Unix epoch. A time long ago, of runs that were missed, means one run now and the next a
    /// period after that. A job that was never done is due at once, or not before the mart was looked after once.
    pub fn due_us(self, names: &Names, every: Duration, id: &MartId) -> i64 {
        match names.done.get(self.name()) {
            Some(last) => last.saturating_add(micros(every)).saturating_add(self.jitter_us(*last, every, id)),
            None if self.can_wait() => i64::MAX,
            None => 0,
        }
    }

    /// Told by what every node knows, so that all of them take it for due at the same time.
    fn jitter_us(self, last_us: i64, every: Duration, id: &MartId) -> i64 {
        let most = u64::try_from(micros((every / JITTER).min(MOST_JITTER))).unwrap_or_default().max(1);
        let hash = blake3::hash(format!("{id} {} {last_us}", self.name()).as_bytes());
        let (first, _) = hash.as_bytes().split_at(8);
        let number = u64::from_be_bytes(first.try_into().expect("8 of 32 bytes"));
        i64::try_from(number % most).unwrap_or_default()
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Whether a whole period has passed since a job was due. One that was never done is not meant.
pub fn overdue(names: &Names, job: Job, every: Duration, id: &MartId) -> bool {
    let due_us = job.due_us(names, every, id);
    due_us > 0 && due_us < i64::MAX && due_us.saturating_add(micros(every)) < clock::now_us()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const HOUR_US: i64 = 3_600_000_000;

    fn id(mart: usize) -> MartId {
        MartId { tenant: "t".parse().expect("legal"), mart: format!("m{mart}").parse().expect("legal") }
    }

    #[test]
    fn a_job_is_due_a_period_after_it_was_done_and_some_not_at_first() {
        let mut names = Names::default();
        assert_eq!(Job::Snapshot.due_us(&names, HOUR, &id(0)), 0);
        assert_eq!(Job::Vacuum.due_us(&names, HOUR, &id(0)), i64::MAX, "only after the first look");
        for job in Job::ALL {
            names.done.insert(job.name().into(), 5);
            let due = job.due_us(&names, HOUR, &id(0)) - 5;
            assert!((HOUR_US..HOUR_US + HOUR_US / 10).contains(&due), "{due}");
        }
    }

    #[test]
    fn marts_are_spread_and_each_is_due_at_one_time() {
        let names = Names { done: [("verify".to_owned(), 0)].into(), ..Names::default() };
        let due = |mart| Job::Verify.due_us(&names, HOUR, &id(mart));
        let all: std::collections::BTreeSet<_> = (0..100).map(due).collect();
        assert!(all.len() > 90 && all.last().expect("some") - all.first().expect("some") > HOUR_US / 20);
        assert_eq!(due(3), due(3));
    }

    #[test]
    fn missed_runs_are_one_run() {
        let mut names = Names { done: [("sweep".to_owned(), 0)].into(), ..Names::default() };
        let now = 1000 * HOUR_US;
        assert!(Job::Sweep.due_us(&names, HOUR, &id(0)) <= now);
        names.done.insert("sweep".into(), now);
        assert!(Job::Sweep.due_us(&names, HOUR, &id(0)) > now);
    }
}
