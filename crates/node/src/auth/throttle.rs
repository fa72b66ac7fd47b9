//! Failed logins, counted by where they come from.
//!
//! What it does not do: lock anybody out. A valid token is always looked at and always passes, so that an attacker behind the same
//! address translator, or one who forges nothing but bad tokens, takes nothing away from others. A look costs a hash (a microsecond) or
//! a signature check (under a tenth of a millisecond), less than the request around it; a token has 256 random bits, so guessing is
//! hopeless at any rate. What is spared is the audit log's disk, and what a failing client is told is to slow down.
//!
//! **Invariant:** memory is fixed: a table of counters that addresses share by a keyed hash. Sharing one costs an innocent client only
//! that its own failures are answered `limited` sooner.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::RngCore;

/// Failures of one address within a window that are answered as what they are.
pub const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// 96 KiB of counters.
const COUNTERS: usize = 4096;
/// Failures of all addresses within a window that are written down one by one.
const MOST_TOLD: u32 = 600;

/// What a failure comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failed {
    /// It is one too many: when to try again.
    pub retry_after: Option<Duration>,
    /// It is not to be written down; another line stands for it.
    pub untold: bool,
    /// How many it stands for, if it is the line for many.
    pub repeated: Option<u32>,
}

/// The counters of a node.
pub struct Throttle {
    start: Instant,
    key: [u8; blake3::KEY_LEN],
    table: Mutex<Table>,
}

struct Table {
    counters: Vec<Counter>,
    all: Counter,
}

/// Failures since the second at which its window began.
#[derive(Clone, Copy, Default)]
struct Counter {
    since: Option<u64>,
    failures: u32,
}

impl Counter {
    /// One more; how many that makes.
    fn count(&mut self, now: u64) -> u32 {
        if self.since.is_none_or(|since| now.saturating_sub(since) >= WINDOW.as_secs()) {
            *self = Self { since: Some(now), failures: 0 };
        }
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    fn ends_in(&self, now: u64) -> Duration {
        Duration::from_secs((self.since.unwrap_or(now) + WINDOW.as_secs()).saturating_sub(now))
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

impl Throttle {
    /// Nobody has failed.
    pub fn new() -> Self {
        let mut key = [0; blake3::KEY_LEN];
        rand::rng().fill_bytes(&mut key);
        let table = Table { counters: vec![Counter::default(); COUNTERS], all: Counter::default() };
        Self { start: Instant::now(), key, table: Mutex::new(table) }
    }

    /// Counts a failure from there.
    pub fn failed(&self, peer: IpAddr) -> Failed {
        self.failed_at(peer, self.start.elapsed().as_secs())
    }

    fn failed_at(&self, peer: IpAddr, now: u64) -> Failed {
        let place = self.place(peer);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let all = table.all.count(now);
        let counter = &mut table.counters[place];
        let own = counter.count(now);
        let retry_after = (own > MOST).then(|| counter.ends_in(now));
        // Beyond either limit only every doubling is written down.
        let many = if all > MOST_TOLD { Some(all) } else { Some(own).filter(|own| *own > MOST) };
        let told = match all > MOST_TOLD {
            true => all.is_power_of_two(),
            false => own <= MOST || own.is_power_of_two(),
        };
        Failed { retry_after, untold: !told, repeated: many.filter(|_| told) }
    }

    /// Whoever has a network of IPv6 has all of its addresses.
    fn place(&self, peer: IpAddr) -> usize {
        let bytes = match peer.to_canonical() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets()[..8].to_vec(),
        };
        let hash = blake3::keyed_hash(&self.key, &bytes);
        let [a, b, ..] = *hash.as_bytes();
        usize::from(u16::from_le_bytes([a, b])) % COUNTERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_that_fails_often_is_told_to_wait_until_its_window_ends() {
        let throttle = Throttle::new();
        for _ in 0..MOST {
            assert_eq!(throttle.failed_at(address("10.0.0.1"), 5), Failed::default());
        }
        let failed = throttle.failed_at(address("10.0.0.1"), 15);
        assert_eq!(failed.retry_after, Some(WINDOW - Duration::from_secs(10)));
        assert_eq!(throttle.failed_at(address("10.0.0.1"), 5 + WINDOW.as_secs()).retry_after, None);
    }

    #[test]
    fn one_network_of_ipv6_is_one_address() {
        let throttle = Throttle::new();
        assert_eq!(throttle.place(address("2001:db8::1")), throttle.place(address("2001:db8::2")));
        assert_eq!(throttle.place(address("::ffff:10.0.0.1")), throttle.place(address("10.0.0.1")));
    }

    #[test]
    fn a_flood_leaves_few_lines_wherever_it_comes_from() {
        let throttle = Throttle::new();
        let lines =
            |peers: &dyn Fn(u32) -> IpAddr| (0..100_000).filter(|i| !throttle.failed_at(peers(*i), 1).untold).count();
        assert!(lines(&|_| address("10.0.0.1")) < 40);
        let throttle = Throttle::new();
        let lines = (0..100_000u32).filter(|i| !throttle.failed_at(IpAddr::from(i.to_be_bytes()), 1).untold).count();
        assert!(lines < 620, "{lines}");
    }
}
