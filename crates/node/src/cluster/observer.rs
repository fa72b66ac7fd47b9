//! Whether a node lives, from looks at its heartbeat. Pure: whoever looks brings the times.
//!
//! Nothing runs between looks, and nothing need: an object that is as it was when it was first seen has not changed meanwhile. So what
//! was seen for one mart counts for the next one of the same node.

use std::ops::Range;
use std::time::{Duration, Instant};

/// Tells one heartbeat from the next.
pub type Mark = [u8; 32];

/// What was seen of one node.
#[derive(Debug, Default)]
pub struct Sight {
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    mark: Mark,
    /// When it was there for the first time, at the latest.
    since: Instant,
    /// Something else was there before: somebody has written it while we looked on.
    changed: bool,
}

/// What follows from a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its heartbeat changed not long ago.
    Alive,
    /// Not seen for long enough; so much is left until it is dead if nothing changes.
    Unknown(Duration),
    /// Nothing has changed for its take-over time.
    Dead,
}

impl Sight {
    /// A look that began and ended then found `mark`, of a node that counts on `takeover`.
    ///
    /// The heartbeat had landed by the end of the first look, and was still there after the last one began: what is in between has
    /// surely passed without a sign of life.
    pub fn seen(&mut self, mark: Mark, takeover: Duration, look: Range<Instant>) -> Verdict {
        match &self.seen {
            Some(seen) if seen.mark == mark => {}
            before => self.seen = Some(Seen { mark, since: look.end, changed: before.is_some() }),
        }
        let Some(seen) = &self.seen else { return Verdict::Unknown(takeover) };
        let unchanged = look.start.saturating_duration_since(seen.since);
        if unchanged >= takeover {
            return Verdict::Dead;
        }
        // A heartbeat comes five times as often.
        match seen.changed && unchanged < takeover * 2 / 5 {
            true => Verdict::Alive,
            false => Verdict::Unknown(takeover - unchanged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKEOVER: Duration = Duration::from_secs(25);

    /// A look of one second that ends `at` seconds after the start.
    struct Looks(Instant, Sight);

    impl Looks {
        fn new() -> Self {
            Self(Instant::now(), Sight::default())
        }

        fn at(&mut self, at: u64, mark: u8) -> Verdict {
            let end = self.0 + Duration::from_secs(at + 1);
            self.1.seen([mark; 32], TAKEOVER, end - Duration::from_secs(1)..end)
        }
    }

    fn unknown(seconds: u64) -> Verdict {
        Verdict::Unknown(Duration::from_secs(seconds))
    }

    #[test]
    fn the_first_look_says_nothing_and_an_unchanged_one_says_dead_after_the_take_over_time() {
        let mut looks = Looks::new();
        assert_eq!(looks.at(0, 1), unknown(25));
        assert_eq!(looks.at(25, 1), unknown(1), "the first look ended a second later than it began");
        assert_eq!(looks.at(26, 1), Verdict::Dead);
        assert_eq!(looks.at(1000, 1), Verdict::Dead);
    }

    #[test]
    fn a_change_says_alive_for_a_while_and_starts_the_time_anew() {
        let mut looks = Looks::new();
        looks.at(0, 1);
        assert_eq!(looks.at(20, 2), Verdict::Alive);
        assert_eq!(looks.at(30, 2), Verdict::Alive);
        assert_eq!(looks.at(31, 2), unknown(15));
        assert_eq!(looks.at(45, 2), unknown(1));
        assert_eq!(looks.at(46, 2), Verdict::Dead);
        assert_eq!(looks.at(47, 3), Verdict::Alive, "it came back");
    }

    #[test]
    fn an_older_heartbeat_that_lands_late_delays_and_nothing_else() {
        let mut looks = Looks::new();
        looks.at(0, 2);
        assert_eq!(looks.at(24, 1), Verdict::Alive);
        assert_eq!(looks.at(49, 1), unknown(1));
    }

    #[test]
    fn who_counts_on_a_longer_time_is_given_it() {
        let (mut sight, start) = (Sight::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        sight.seen([1; 32], TAKEOVER, at(0)..at(0));
        assert_eq!(sight.seen([1; 32], TAKEOVER * 2, at(25)..at(25)), unknown(25));
        assert_eq!(sight.seen([1; 32], TAKEOVER, at(25)..at(25)), Verdict::Dead);
    }
}
