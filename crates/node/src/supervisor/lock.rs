//! The lock that keeps two engines off one mart's files.
//!
//! A `flock` on `{mart}/lock`, taken by the node and inherited by the engine: as long as either holds it, nobody else opens the mart.
//! The file names the engine's process, so that a starting node can end an orphan that will not go by itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

/// An orphan notices the loss of its node at once; after this long it is taken to be stuck.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);

/// The lock of one mart, held.
pub struct MartLock {
    file: File,
}

impl MartLock {
    /// Takes it, ending a left-over engine of a killed node if that does not end by itself.
    pub async fn acquire(mart_dir: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(mart_dir.join("lock"))?;
        let mut lock = Self { file };
        if lock.wait().await? {
            return Ok(lock);
        }
        match lock.holder()? {
            Some(pid) => {
                tracing::warn!(pid = pid.as_raw_nonzero().get(), "ending an engine that outlived its node");
                // It may end by itself in this very moment.
                let _ = kill_process(pid, Signal::KILL);
            }
            None => tracing::warn!("a mart is locked by an unknown process"),
        }
        if lock.wait().await? {
            return Ok(lock);
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "another process holds the mart's lock"))
    }

    /// Notes whose process holds the lock from now on.
    pub(super) fn record(&self, pid: u32) -> io::Result<()> {
        let started = start_time(pid).unwrap_or_default();
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{pid} {started}")
    }

    /// Another descriptor of the same lock, for an engine to inherit.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    async fn wait(&self) -> io::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(RETRY).await,
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The recorded process, if it is still the one that was recorded.
    fn holder(&mut self) -> io::Result<Option<Pid>> {
        let mut text = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut text)?;
        let recorded = || {
            let (pid, started) = text.split_once(' ')?;
            let pid: u32 = pid.parse().ok()?;
            let same = start_time(pid)? == started.trim().parse::<u64>().ok()?;
            Pid::from_raw(i32::try_from(pid).ok()?).filter(|_| same)
        };
        Ok(recorded())
    }
}

/// When a process started, in the kernel's ticks: tells a process from a later one with the same number.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything; the start time is the 22nd.
    let rest = &stat[stat.rfind(')')? + 1..];
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stuck_orphan_is_ended_and_a_stranger_with_its_number_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let held = MartLock::acquire(dir.path()).await.expect("nobody holds it");
        let fd = held.share().expect("descriptors are left");
        let mut orphan = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is there");

        std::fs::write(dir.path().join("lock"), format!("{} 1", orphan.id())).expect("the lock file is writable");
        let mut probe = MartLock { file: File::open(dir.path().join("lock")).expect("it is there") };
        assert_eq!(probe.holder().expect("it is readable"), None, "another start time is another process");

        held.record(orphan.id()).expect("the lock file is writable");
        let ender = async {
            while orphan.try_wait().expect("it is our child").is_none() {
                tokio::time::sleep(RETRY).await;
            }
            drop((held, fd));
        };
        let (taken, ()) = tokio::join!(MartLock::acquire(dir.path()), ender);
        assert!(taken.is_ok());
    }
}
