//! What can go wrong with a replica, as few kinds as there are different things a caller would do.
//!
//! Messages are for the log: they name objects by key. Nothing here may be shown to a client as it is.

use object_store::path::Path;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Kinds of failure; each asks something else of the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mart, position or object does not exist (never existed, or was swept).
    #[error("{0} not found")]
    NotFound(String),
    /// Bytes that were read back are not those that were written, or a named object is gone. Never restore from it.
    #[error("object `{object}` is corrupt: {reason}")]
    Corrupt {
        /// Key of the object (or name of the local file).
        object: String,
        /// What did not fit.
        reason: String,
    },
    /// Another writer owns the log now. Stop the engine; `open_writer` decides what the local files are worth.
    #[error("fenced: another writer took the log (epoch {epoch})")]
    Fenced {
        /// Epoch of the record that was found in the slot.
        epoch: u64,
    },
    /// The store did not answer usefully. What was being written may or may not have landed; calling again resolves it.
    #[error("object store unavailable: {what}")]
    Unavailable {
        /// What was attempted.
        what: String,
        /// The store's own error, if it gave one.
        #[source]
        source: Option<object_store::Error>,
    },
    /// The local files are no longer a continuation of what was shipped: `rebase`, then a new base.
    #[error("local files diverged from the replica: {0}")]
    Diverged(String),
    /// The mart was dropped: its log ends in a tombstone.
    #[error("the mart was dropped")]
    Dropped,
    /// The caller asked for something that the current state does not allow; a mistake in the program.
    #[error("not allowed now: {0}")]
    Misuse(String),
    /// The local disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn corrupt(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt { object: object.into(), reason: reason.into() }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For an object that need not exist: absent is `NotFound`, all else `Unavailable`.
    pub(crate) fn store(key: &Path, source: object_store::Error) -> Self {
        match source {
            object_store::Error::NotFound { .. } => Self::NotFound(format!("object `{key}`")),
            other => Self::Unavailable { what: format!("object `{key}`"), source: Some(other) },
        }
    }

    /// For an object that the log names: absent is `Corrupt`.
    pub(crate) fn required(key: &Path, source: object_store::Error) -> Self {
        match source {
            object_store::Error::NotFound { .. } => Self::corrupt(key.as_ref(), "it is named by the log but missing"),
            other => Self::Unavailable { what: format!("object `{key}`"), source: Some(other) },
        }
    }

    /// True when trying the same call again later can succeed without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
