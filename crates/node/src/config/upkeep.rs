//! What is done to marts without being asked, and how much of their past is kept.

use std::time::Duration;

use super::{ConfigError, Layers};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is kept of marts' past, and how often what is done to it. None means never.
#[derive(Debug, Clone, Copy)]
pub struct Upkeep {
    /// Every position since is kept.
    pub keep: Duration,
    /// Between letting go and deleting.
    pub grace: Duration,
    /// Snapshots.
    pub snapshot_every: Option<Duration>,
    /// A mart is archived so often.
    pub archive_every: Option<Duration>,
    /// Trial restores.
    pub verify_every: Option<Duration>,
    /// Vacuums.
    pub vacuum_every: Option<Duration>,
}

impl Upkeep {
    pub(super) fn read(layers: &Layers) -> Result<Self, ConfigError> {
        let every = |name, unit| Ok(Some(layers.spell(name, unit)?).filter(|every: &Duration| !every.is_zero()));
        Ok(Self {
            keep: layers.spell("retention_days", DAY)?,
            grace: layers.spell("retention_grace_hours", HOUR)?,
            snapshot_every: every("snapshot_every_hours", HOUR)?,
            archive_every: every("archive_every_days", DAY)?,
            verify_every: every("verify_every_days", DAY)?,
            vacuum_every: every("vacuum_every_days", DAY)?,
        })
    }
}
