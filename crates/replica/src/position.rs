//! Positions: restorable moments of a mart, and the points at which an engine says it committed.
//!
//! A position is opaque to clients and totally ordered within a mart. It knows nothing of log slots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `epoch.iteration.wal_bytes`: the end of a commit in the WAL that follows the checkpoint `iteration`, in one writer's reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The writer's reign.
    pub epoch: u64,
    /// DuckDB's checkpoint iteration, from the file's header.
    pub iteration: u64,
    /// Bytes of the WAL up to the end of a FLUSH frame; 0 right after a checkpoint.
    pub wal_bytes: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch, self.iteration, self.wal_bytes)
    }
}

/// The text is not three dot-separated decimal numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a position looks like `2.7.4096`")]
pub struct BadPosition;

impl FromStr for Position {
    type Err = BadPosition;

    fn from_str(text: &str) -> Result<Self, BadPosition> {
        let mut parts = text.split('.').map(number);
        let (Some(epoch), Some(iteration), Some(wal_bytes), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadPosition);
        };
        Ok(Self { epoch: epoch?, iteration: iteration?, wal_bytes: wal_bytes? })
    }
}

/// Plain digits only: `+1`, ` 1` and `01` would be second names of the same position.
fn number(text: &str) -> Result<u64, BadPosition> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().map_err(|_| BadPosition) } else { Err(BadPosition) }
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A commit as the engine reports it, in commit order: never one whose fsync failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CommitPoint {
    /// Checkpoint iteration of the file at the commit.
    pub iteration: u64,
    /// End of the commit's FLUSH frame in the WAL; 0 when nothing was committed since the checkpoint.
    pub wal_end: u64,
    /// Microseconds since the Unix epoch.
    pub time_us: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let position = Position { epoch: 2, iteration: 0, wal_bytes: u64::MAX };
        assert_eq!(position.to_string().parse(), Ok(position));
        assert_eq!(serde_json::to_string(&position).expect("serializes"), format!("\"{position}\""));
    }

    #[test]
    fn only_one_spelling_is_accepted() {
        for text in
            ["", "1", "1.2", "1.2.3.4", "1.2.", "+1.2.3", "01.2.3", "1. 2.3", "1.2.18446744073709551616", "-1.2.3"]
        {
            assert_eq!(text.parse::<Position>(), Err(BadPosition), "{text}");
        }
    }

    #[test]
    fn a_new_epoch_sorts_after_everything_before() {
        let old: Position = "1.9.900".parse().expect("valid");
        let new: Position = "2.0.0".parse().expect("valid");
        assert!(old < new);
    }
}
