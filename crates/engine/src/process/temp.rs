//! Keeps the spill files near their quota: DuckDB's own limit counts what DuckDB spills, not what else lies in the directory.

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::wire::exit;

const LOOK: Duration = Duration::from_secs(1);

/// Ends the process when the files under `dir` are larger than `quota_bytes` and a quarter more.
pub(super) fn watch(dir: PathBuf, quota_bytes: u64) -> io::Result<()> {
    let most = quota_bytes.saturating_add(quota_bytes / 4);
    thread::Builder::new().name("temp".into()).spawn(move || {
        loop {
            thread::sleep(LOOK);
            if size_bytes(&dir) > most {
                eprintln!("engine: spill files passed their quota of {} MB", quota_bytes >> 20);
                super::end(exit::TEMP);
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
