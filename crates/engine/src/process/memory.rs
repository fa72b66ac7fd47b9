//! Keeps the process's memory near DuckDB's limit: some functions allocate far past it without asking.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{queries::Queries, wire::exit};

/// What the process may use beside DuckDB's limit: its own buffers, and what DuckDB does not count.
const MARGIN_BYTES: u64 = 300 << 20;
const LOOK: Duration = Duration::from_millis(100);
/// Past this much of the margin, results that nobody reads give way: what DuckDB holds ready for each is not counted in its limit.
const PRESSURE_BYTES: u64 = MARGIN_BYTES / 3;
/// A client that has taken nothing for so long is not reading just now.
const STALLED: Duration = Duration::from_millis(500);
/// About what one stalled result may hold.
const RESULT_BYTES: u64 = 32 << 20;

/// Makes this process the kernel's first choice when memory runs out, so that the node and other marts stay.
pub(super) fn limit_damage() {
    // Refused in some containers; then the kernel chooses by size, which is an engine as well.
    let _ = std::fs::write("/proc/self/oom_score_adj", "900");
}

/// What the kernel says of this process, opened before the walls are up.
pub(super) struct Status(File);

impl Status {
    pub(super) fn open() -> io::Result<Self> {
        File::open("/proc/self/status").map(Self)
    }

    /// Resident memory without mapped files.
    fn anonymous_bytes(&self) -> io::Result<u64> {
        // Larger than the file; read from its start the kernel writes it anew.
        let mut bytes = [0; 8 << 10];
        let length = self.0.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        let line =
            text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
        line.map(|kilobytes: u64| kilobytes << 10).ok_or_else(|| io::Error::other("the kernel does not say"))
    }
}

/// Stops stalled results when the process comes near `limit_bytes` and the margin, and ends it when it passes them.
pub(super) fn watch(status: Status, limit_bytes: Arc<AtomicU64>, queries: Arc<Queries>) -> io::Result<()> {
    thread::Builder::new().name("memory".into()).spawn(move || {
        loop {
            thread::sleep(LOOK);
            let limit_bytes = limit_bytes.load(Ordering::Relaxed);
            let limit = limit_bytes.saturating_add(MARGIN_BYTES);
            let pressure = limit_bytes.saturating_add(PRESSURE_BYTES);
            let Ok(bytes) = status.anonymous_bytes() else { continue };
            if bytes > limit {
                eprintln!("engine: memory passed its limit by {} MB", MARGIN_BYTES >> 20);
                super::end(exit::MEMORY);
            }
            if bytes > pressure {
                let most = (bytes - pressure).div_ceil(RESULT_BYTES) as usize;
                let stopped = queries.stop_stalled(STALLED, most);
                if stopped > 0 {
                    tracing::warn!(
                        stopped,
                        megabytes = bytes >> 20,
                        "stopped results that nobody reads, to free memory"
                    );
                }
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_counts() {
        let status = Status::open().expect("opens");
        let before = status.anonymous_bytes().expect("readable");
        let touched = vec![1u8; 64 << 20];
        assert!(status.anonymous_bytes().expect("readable") >= before + (48 << 20), "{}", touched.len());
    }
}
