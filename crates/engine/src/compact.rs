//! Compact copies of a database file, and whether two files hold the same.
//!
//! `tarn engine --compact` writes everything of one file into a new one, reads both again in instances of their own and compares all
//! objects and all rows; `--check` reads one file whole. They are processes by themselves: the files are plain copies that nobody
//! else has open. Not here: where the copies come from and what becomes of them.
//!
//! # Consistency
//! The source is only read, its log replayed in memory (see `instance` for the exception). What the copy can't carry over, the comparison finds.
//!
//! # Crash consistency
//! A copy that was not reported on standard output is worth nothing; nobody may use it.

mod content;
mod copy;
mod diff;
mod instance;
mod levels;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use content::Content;
pub use diff::{TableDiff, diff};
use instance::Instance;

use crate::{duck::DuckError, files::wal_path};

/// What such a process may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// DuckDB's memory limit; beyond it, it spills.
    pub memory_bytes: u64,
    /// DuckDB's threads.
    pub threads: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 1 << 30, threads: 2 }
    }
}

/// A compact copy was made and holds the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// The source with its log.
    pub bytes_before: u64,
    /// The copy.
    pub bytes_after: u64,
    /// Tables, the engine's own too.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
}

/// A file was read whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Tables, the engine's own too.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// Hex SHA-256 over all objects and rows; the same for the same content, however it is stored.
    pub fingerprint: String,
}

/// Why there is no compact copy, or why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// DuckDB refused.
    #[error("{0}")]
    Duck(#[from] DuckError),
    /// A file can't be made, removed or looked at.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The copy is not what the source is.
    #[error("the copy differs: {0}")]
    Differs(String),
    /// Something in the database that can't be carried over.
    #[error("{0}")]
    Unsupported(String),
}

/// Writes all of `from` into the new file `to` and compares them. Without success there is no `to`.
pub fn compact(from: &Path, to: &Path, limits: Limits) -> Result<Compacted, CompactError> {
    if to.exists() || wal_path(to).exists() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the target exists already").into());
    }
    let made = copy::copy(from, to, limits).and_then(|()| compare(from, to, limits));
    if made.is_err() {
        for path in [to.to_owned(), wal_path(to)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    made
}

/// Reads every row of `file` and its log.
pub fn check(file: &Path, limits: Limits) -> Result<Checked, CompactError> {
    let instance = Instance::open(&spill_dir(file), limits)?;
    instance.attach_only(file)?;
    let content = Content::read(&instance)?;
    let fingerprint = content.fingerprint(&instance)?;
    Ok(Checked { tables: content.tables(), rows: content.rows(), fingerprint })
}

/// Reads both files and says how they differ, if they do.
pub fn difference(from: &Path, to: &Path, limits: Limits) -> Result<Option<String>, CompactError> {
    let (before, after) = contents(from, to, limits)?;
    Ok(before.difference(&after))
}

fn compare(from: &Path, to: &Path, limits: Limits) -> Result<Compacted, CompactError> {
    if wal_path(to).exists() {
        return Err(CompactError::Differs("it left a log".to_owned()));
    }
    let (before, after) = contents(from, to, limits)?;
    if let Some(difference) = before.difference(&after) {
        return Err(CompactError::Differs(difference));
    }
    let log = fs::metadata(wal_path(from)).map_or(0, |log| log.len());
    Ok(Compacted {
        bytes_before: fs::metadata(from)?.len() + log,
        bytes_after: fs::metadata(to)?.len(),
        tables: after.tables(),
        rows: after.rows(),
    })
}

fn contents(from: &Path, to: &Path, limits: Limits) -> Result<(Content, Content), CompactError> {
    let read = |file: &Path| {
        let instance = Instance::open(&spill_dir(to), limits)?;
        instance.attach_only(file)?;
        Content::read_with_definitions(&instance)
    };
    Ok((read(from)?, read(to)?))
}

/// Where DuckDB spills while it works on `file`.
fn spill_dir(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".spill");
    name.into()
}
