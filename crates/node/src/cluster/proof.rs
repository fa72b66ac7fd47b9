//! This node's proof of life: as long as it stands, nobody can have taken a mart over from this node since its mart last won a slot.
//!
//! Heartbeats that follow each other closely enough make a streak. Others wait for the whole take-over time after the last heartbeat
//! they saw; the proof stands for three fifths of it after that heartbeat *began*. So within a streak nobody can have found this node
//! dead. Between two streaks somebody can, and may act on it at any later time; therefore a mart's slot won in one streak says nothing
//! about the next.

use std::time::Duration;

use tokio::sync::watch;

/// Whether this node can prove that it lives.
#[derive(Debug)]
pub struct Proof {
    /// How long one heartbeat proves it; none if nobody else can be there.
    limit: Option<Duration>,
    chain: watch::Sender<Chain>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Chain {
    /// Counts from 1.
    streak: u64,
    /// When the newest heartbeat that landed began, since boot.
    newest: Option<Duration>,
}

impl Proof {
    /// Without a heartbeat yet.
    pub fn new(takeover_after: Option<Duration>) -> Self {
        Self { limit: takeover_after.map(|takeover| takeover * 3 / 5), chain: watch::Sender::default() }
    }

    /// A heartbeat began and was known to have landed then, both since boot.
    pub fn landed(&self, began: Duration, landed: Duration) {
        let Some(limit) = self.limit else { return };
        self.chain.send_if_modified(|chain| {
            let broken = chain.newest.is_none_or(|newest| landed.saturating_sub(newest) > limit);
            chain.newest = Some(began);
            chain.streak += u64::from(broken);
            broken
        });
    }

    /// The present streak; none if nothing is proved at this time since boot. 0 where there is nobody to prove it to.
    pub fn streak(&self, now: Duration) -> Option<u64> {
        let Some(limit) = self.limit else { return Some(0) };
        let chain = *self.chain.borrow();
        chain.newest.filter(|newest| now.saturating_sub(*newest) <= limit).map(|_| chain.streak)
    }

    /// The number of the newest streak, whether it still lasts or not.
    pub fn newest_streak(&self) -> u64 {
        self.chain.borrow().streak
    }

    /// Waits for a streak after that one.
    pub async fn streak_after(&self, streak: u64) {
        // The sender is ours: it does not close.
        let _ = self.chain.subscribe().wait_for(|chain| chain.streak > streak).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_heartbeat_proves_three_fifths_of_the_take_over_time_from_its_beginning() {
        let proof = Proof::new(Some(s(25)));
        assert_eq!(proof.streak(s(100)), None, "nothing is proved before the first");
        proof.landed(s(100), s(104));
        assert_eq!(proof.streak(s(115)), Some(1));
        assert_eq!(proof.streak(s(116)), None);
    }

    #[test]
    fn a_gap_ends_a_streak_even_if_nobody_asked_meanwhile() {
        let proof = Proof::new(Some(s(25)));
        proof.landed(s(100), s(101));
        proof.landed(s(110), s(115));
        assert_eq!(proof.streak(s(120)), Some(1));
        proof.landed(s(120), s(126));
        assert_eq!(proof.streak(s(126)), Some(2), "it began in time, and landed when nothing was proved any more");
        proof.landed(s(500), s(500));
        assert_eq!((proof.streak(s(500)), proof.newest_streak()), (Some(3), 3));
    }

    #[test]
    fn a_heartbeat_that_took_too_long_proves_nothing() {
        let proof = Proof::new(Some(s(25)));
        proof.landed(s(100), s(120));
        assert_eq!(proof.streak(s(120)), None);
        proof.landed(s(121), s(122));
        assert_eq!(proof.streak(s(122)), Some(2));
    }

    #[test]
    fn alone_there_is_nothing_to_prove() {
        let proof = Proof::new(None);
        assert_eq!(proof.streak(s(1)), Some(0));
        proof.landed(s(1), s(500));
        assert_eq!(proof.streak(s(1000)), Some(0));
    }
}
