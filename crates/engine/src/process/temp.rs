//! Keeps the spill files near their quota: DuckDB's own limit counts what DuckDB spills, not what else lies in the directory.
//!
//! First the query gives way that has run longest, which is most likely to have spilled most: DuckDB does not say whose a file is. Where
//! that does not help, or files grow too fast for it, the process ends.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    queries::{Queries, Reason},
    wire::exit,
};

const LOOK: Duration = Duration::from_millis(500);
/// A query that was stopped has so long to let go of its files before the next is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Stops queries while the files under `dir` take more than `quota_bytes` and a little, since DuckDB counts blocks by its own measure;
/// ends the process when they take a quarter more.
pub(super) fn watch(dir: PathBuf, quota_bytes: u64, queries: Arc<Queries>) -> io::Result<()> {
    let much = quota_bytes.saturating_add(quota_bytes / 16);
    let most = quota_bytes.saturating_add(quota_bytes / 4);
    thread::Builder::new().name("temp".into()).spawn(move || {
        let mut stopped: Option<Instant> = None;
        loop {
            thread::sleep(LOOK);
            let bytes = size_bytes(&dir);
            if bytes > most {
                eprintln!("engine: spill files passed their quota of {} MB", quota_bytes >> 20);
                super::end(exit::TEMP);
            }
            if bytes > much && stopped.is_none_or(|since| since.elapsed() > PATIENCE) {
                stopped = queries.stop_longest(Reason::Spilled).then(Instant::now);
            }
        }
    })?;
    Ok(())
}

/// What a directory's files take; what vanishes meanwhile takes nothing.
fn size_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = dir.read_dir() else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes += size_bytes(&entry.path()),
            // Blocks, as a sparse file takes less than its length.
            Ok(found) => bytes += found.blocks() * 512,
            Err(_) => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_directories_count() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("sub")).expect("makes it");
        for name in ["a", "sub/b"] {
            std::fs::write(dir.path().join(name), vec![1; 1 << 20]).expect("writes");
        }
        assert!(size_bytes(dir.path()) >= 2 << 20);
    }
}
