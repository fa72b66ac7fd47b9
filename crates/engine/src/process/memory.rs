//! Keeps the process's memory near DuckDB's limit: some functions allocate far past it without asking.

use std::{io, thread, time::Duration};

use crate::wire::exit;

/// What the process may use beside DuckDB's limit: its own buffers, and what DuckDB does not count.
const MARGIN_BYTES: u64 = 300 << 20;
const LOOK: Duration = Duration::from_millis(100);

/// Makes this process the kernel's first choice when memory runs out, so that the node and other marts stay.
pub(super) fn limit_damage() {
    // Refused in some containers; then the kernel chooses by size, which is an engine as well.
    let _ = std::fs::write("/proc/self/oom_score_adj", "900");
}

/// Ends the process when it passes `limit_bytes` by the margin.
pub(super) fn watch(limit_bytes: u64) -> io::Result<()> {
    let limit = limit_bytes.saturating_add(MARGIN_BYTES);
    thread::Builder::new().name("memory".into()).spawn(move || {
        loop {
            thread::sleep(LOOK);
            if anonymous_bytes().is_ok_and(|bytes| bytes > limit) {
                eprintln!("engine: memory passed its limit by {} MB", MARGIN_BYTES >> 20);
                super::end(exit::MEMORY);
            }
        }
    })?;
    Ok(())
}

/// Resident memory without mapped files.
fn anonymous_bytes() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let kilobytes =
        text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes << 10).ok_or_else(|| io::Error::other("the kernel does not say"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_counts() {
        let before = anonymous_bytes().expect("readable");
        let touched = vec![1u8; 64 << 20];
        assert!(anonymous_bytes().expect("readable") >= before + (48 << 20), "{}", touched.len());
    }
}
