//! The mart's database file as far as the engine looks into it itself: the checkpoint iteration in its headers.
//!
//! **Invariant:** the descriptor stays open as long as DuckDB has the file: `fcntl` locks of a process are dropped when *any* of
//! its descriptors of that file is closed, and another process could then open the mart.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const MAGIC: &[u8] = b"DUCK";

/// A database file that DuckDB has open.
pub struct DbFile {
    file: File,
}

impl DbFile {
    /// Opens a second descriptor of the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// The iteration of the last finished checkpoint: the higher of the two database headers.
    pub fn iteration(&self) -> io::Result<u64> {
        let mut bytes = [0; 12288];
        self.file.read_exact_at(&mut bytes, 0)?;
        if bytes[8..12] != *MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a DuckDB file"));
        }
        let at = |offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"));
        Ok(at(4096 + 8).max(at(8192 + 8)))
    }
}

/// Where DuckDB keeps the log of the database file `db`.
pub fn wal_path(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(".wal");
    name.into()
}
