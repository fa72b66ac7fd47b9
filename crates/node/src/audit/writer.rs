//! The thread that writes the audit log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::{Health, Line};
use crate::clock;
use crate::config::AuditTo;

/// A line that has to be written is tried again after so long.
const AGAIN: Duration = Duration::from_millis(200);

/// Where lines go.
pub(super) struct Writer {
    to: To,
    health: Arc<Health>,
    required: bool,
    /// Lines that were lost before this outage began.
    told: u64,
    /// The last line was written in part: the next one begins behind a line end.
    torn: bool,
}

enum To {
    Stdout,
    File(PathBuf, Option<File>),
}

impl Writer {
    pub(super) fn open(to: &AuditTo, health: Arc<Health>, required: bool) -> io::Result<Self> {
        let to = match to {
            AuditTo::File(path) => To::File(path.clone(), Some(open(path)?)),
            AuditTo::Stdout | AuditTo::None => To::Stdout,
        };
        Ok(Self { to, health, required, told: 0, torn: false })
    }

    /// Writes what comes, until nothing can come any more.
    pub(super) fn run(mut self, lines: &Receiver<Line>) {
        while let Ok(line) = lines.recv() {
            self.take(&line.text);
        }
        if let To::File(_, Some(file)) = &self.to
            && let Err(error) = file.sync_all()
        {
            tracing::warn!(%error, "the audit log may not be on the disk yet");
        }
    }

    fn take(&mut self, text: &str) {
        loop {
            match self.append(text) {
                Ok(()) => return self.well(),
                Err(error) => {
                    if !self.health.failing.swap(true, Ordering::Relaxed) {
                        let what = if self.required { "requests are refused" } else { "lines are lost and counted" };
                        tracing::error!(%error, "the audit log can't be written; {what} until it can");
                    }
                    if !self.required || self.health.stopping.load(Ordering::Relaxed) {
                        self.health.lost.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }

    /// A line was written: says what was lost before it.
    fn well(&mut self) {
        self.health.failing.store(false, Ordering::Relaxed);
        let lost = self.health.lost.load(Ordering::Relaxed);
        if lost > self.told {
            let count = lost - self.told;
            tracing::warn!(count, "the audit log is written again; so many lines are missing");
            let line =
                serde_json::json!({"time": clock::rfc3339_us(clock::now_us()), "action": "audit.lost", "count": count});
            if self.append(&format!("{line}\n")).is_ok() {
                self.told = lost;
            }
        }
    }

    /// One call of `write`; a file that was moved away is begun anew.
    fn append(&mut self, text: &str) -> io::Result<()> {
        let begin = if self.torn { "\n" } else { "" };
        let bytes = [begin.as_bytes(), text.as_bytes()].concat();
        let written = match &mut self.to {
            To::Stdout => io::stdout().lock().write(&bytes)?,
            To::File(path, kept) => {
                let there = std::fs::metadata(&*path).ok().map(|found| (found.dev(), found.ino()));
                let ours = kept.as_ref().and_then(|file| file.metadata().ok()).map(|found| (found.dev(), found.ino()));
                if there.is_none() || there != ours {
                    *kept = Some(open(path)?);
                    self.torn = false;
                }
                let Some(file) = kept else { return Err(io::ErrorKind::NotFound.into()) };
                file.write(if self.torn { &bytes } else { text.as_bytes() })?
            }
        };
        self.torn = written < bytes.len();
        if self.torn { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

/// Only its owner may read who does what here.
fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew_and_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("audit.jsonl");
        let mut writer = Writer::open(&AuditTo::File(path.clone()), Arc::default(), false).expect("it can be made");
        writer.take("one\n");
        let moved = dir.path().join("audit.1");
        std::fs::rename(&path, &moved).expect("it is there");
        writer.take("two\n");
        let read = |path| std::fs::read_to_string(path).expect("it is there");
        assert_eq!((read(&moved), read(&path)), ("one\n".into(), "two\n".into()));
        assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn lines_that_a_full_disk_takes_away_are_counted() {
        let health = Arc::<Health>::default();
        let full = AuditTo::File("/dev/full".into());
        let mut writer = Writer::open(&full, health.clone(), false).expect("Linux has it");
        writer.take("one\n");
        writer.take("two\n");
        assert_eq!(health.lost.load(Ordering::Relaxed), 2);
        assert!(health.failing.load(Ordering::Relaxed));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("audit.jsonl");
        writer.to = To::File(path.clone(), None);
        writer.take("three\n");
        let text = std::fs::read_to_string(path).expect("it is there");
        assert!(
            text.starts_with("three\n") && text.contains("\"audit.lost\"") && text.contains("\"count\":2"),
            "{text}"
        );
        assert!(!health.failing.load(Ordering::Relaxed));
    }
}
