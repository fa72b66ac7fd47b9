//! A mart's history as requests see it: what `at` means, which moments there are, what they take.
//!
//! Reads the replica only; needs no engine, and works wherever the mart is open.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use replica::MartReplica;
use replica::history::{self, Moment};
use replica::names::{self, Names};
use replica::past::{Looked, Sizes};
use replica::retention::Ledger;

use uuid::Uuid;

use crate::clock;
use crate::error::{ApiError, Code};
use crate::marts::Ground;
use crate::names::MartId;
use crate::orders::refused;
use crate::pins::Pin;

const MAX_SNAPSHOT_NAME: usize = 64;

/// What a client may mean by a moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum At {
    /// A time, in microseconds since the Unix epoch.
    Time(i64),
    /// A position, as answers give it.
    Position(replica::Position),
    /// A snapshot's name.
    Snapshot(String),
}

/// Reads an RFC 3339 time, a position or a snapshot's name; no text is two of them.
pub fn parse_at(text: &str) -> Result<At, ApiError> {
    if let Some(time_us) = clock::parse_rfc3339(text) {
        return Ok(At::Time(time_us));
    }
    if let Ok(position) = text.parse() {
        return Ok(At::Position(position));
    }
    snapshot_name(text).map(|()| At::Snapshot(text.to_owned())).map_err(|_| {
        ApiError::new(
            Code::Invalid,
            "`at` is an RFC 3339 time such as 2026-01-31T12:00:00Z, a snapshot's name, or a position",
        )
    })
}

/// Whether a snapshot may be called so.
pub fn snapshot_name(text: &str) -> Result<(), ApiError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fine = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(legal);
    if fine && text.len() <= MAX_SNAPSHOT_NAME {
        return Ok(());
    }
    let text = "a snapshot's name is a letter and up to 63 of letters, digits, `-`, `_` and `.`";
    Err(ApiError::new(Code::Invalid, text))
}

/// One look at a mart's history.
pub struct Past {
    replica: MartReplica,
    looked: Looked,
    pin: Pin,
}

impl Past {
    /// As of now, of a mart that exists.
    pub async fn of(ground: &Ground, id: &MartId, incarnation: Uuid) -> Result<Self, ApiError> {
        let replica = ground.replica(id, incarnation)?;
        let pin = ground.pins.of(incarnation).pin();
        let looked = replica.look().await.map_err(|error| refused(&error))?;
        Ok(Self { replica, looked, pin })
    }

    /// What keeps sweeps from deleting what this look has found.
    pub fn into_pin(self) -> Pin {
        self.pin
    }

    /// Whose it is.
    pub fn replica(&self) -> &MartReplica {
        &self.replica
    }

    /// What is named.
    pub fn names(&self) -> &Names {
        &self.looked.names
    }

    /// Time of the newest record: what a time before it means, will not change.
    pub fn settled_us(&self) -> i64 {
        self.looked.newest_us()
    }

    /// The newest moment.
    pub async fn now(&self) -> Result<names::Past, ApiError> {
        self.replica.find(&self.looked, history::At::Now).await.map_err(|error| refused(&error))
    }

    /// The way to a moment.
    pub async fn find(&self, at: &At) -> Result<names::Past, ApiError> {
        let at = match at {
            At::Snapshot(name) => {
                let named = self.names().snapshots.get(name).map(|snapshot| snapshot.past.clone());
                return named.ok_or_else(|| {
                    ApiError::new(Code::NotFound, "no snapshot has this name").hint("`tarn snapshot list` shows them")
                });
            }
            At::Time(time_us) => history::At::Time(*time_us),
            At::Position(position) => history::At::Position(*position),
        };
        self.replica.find(&self.looked, at).await.map_err(|error| refused(&error))
    }

    /// Moments in a span of time, oldest first.
    pub async fn moments(&self, span: Range<i64>, limit: usize) -> Result<Vec<Moment>, ApiError> {
        self.replica.moments(&self.looked, span, limit).await.map_err(|error| refused(&error))
    }

    /// What each record needs.
    pub async fn ledger(&self) -> replica::Result<Ledger> {
        self.replica.ledger(&self.looked).await
    }

    /// Objects of the mart that nothing names, and that are old enough not to be on their way.
    pub async fn unknown(&self, ledger: &Ledger) -> replica::Result<Vec<String>> {
        self.replica.unknown(&self.looked, ledger).await
    }

    /// What all snapshots take, by name.
    pub async fn sizes(&self) -> Result<BTreeMap<String, Sizes>, ApiError> {
        let mut by_base: HashMap<(Option<replica::record::Owner>, u64), Sizes> = HashMap::new();
        let mut sizes = BTreeMap::new();
        let now = self.now().await;
        for (name, snapshot) in &self.names().snapshots {
            let Some(first) = snapshot.past.route.first() else { continue };
            let key = (first.owner.clone(), first.first);
            let base = match by_base.get(&key) {
                Some(known) => *known,
                None => {
                    let against = now.as_ref().unwrap_or(&snapshot.past);
                    let found = self.replica.sizes(&snapshot.past, against).await.map_err(|error| refused(&error))?;
                    by_base.insert(key, found);
                    found
                }
            };
            let wal = snapshot.past.position.wal_bytes;
            sizes.insert(name.clone(), Sizes { bytes: base.bytes + wal, shared_bytes: base.shared_bytes });
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_a_position_and_a_name_are_told_apart() {
        assert_eq!(parse_at("1970-01-01T00:00:01.5Z").expect("a time"), At::Time(1_500_000));
        assert_eq!(parse_at("1970-01-01T01:00:01+01:00").expect("a time"), At::Time(1_000_000));
        assert!(matches!(parse_at("2.7.4096"), Ok(At::Position(_))));
        assert_eq!(parse_at("before-import").expect("a name"), At::Snapshot("before-import".into()));
        for bad in ["", "2026-01-31", "1.2", "-x", "a/b", "ä", &"a".repeat(65)] {
            assert!(parse_at(bad).is_err(), "{bad}");
        }
    }
}
