//! The audit log: who did what, when, from where, and what came of it, as JSON lines that are only ever appended.
//!
//! One line per request that asks who it is of, written when its answer has ended. It holds no token, no row and, unless that is asked
//! for, no SQL.
//!
//! # Consistency
//! Lines are in the order in which requests ended, each written with one call. A line is in the file's page cache before the next is
//! taken; it is forced to the disk at shutdown, not before.
//!
//! # Crash consistency
//! What waits in memory when the process dies is lost: at most [`WAITING`] lines, usually none. When the disk is full or fails, lines are
//! lost and counted, said so in the node's log once and in the audit log when it can be written again. With `audit_required` no line is
//! lost so: it is tried again until it is written, and meanwhile requests are refused. A process that is killed then loses what waits.

pub mod action;
mod record;
mod writer;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use record::Record;

use crate::config::{AuditConfig, AuditSql, AuditTo};
use crate::error::{ApiError, Code};
use crate::visit::Keeps;
use writer::Writer;

/// Lines that wait to be written at most; with `audit_required` also the requests that may be under way.
pub const WAITING: usize = 8192;

/// The audit log of a node.
pub struct Audit {
    sql: AuditSql,
    required: bool,
    /// None keeps no log.
    lines: Mutex<Option<SyncSender<Line>>>,
    health: Arc<Health>,
    places: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A line on its way to the writer, with the place that was reserved for it.
struct Line {
    text: String,
    _place: Option<OwnedSemaphorePermit>,
}

/// How the writer does.
#[derive(Default)]
struct Health {
    failing: AtomicBool,
    lost: AtomicU64,
    stopping: AtomicBool,
}

/// The right of one request to leave a line.
#[derive(Default)]
pub struct Place(Option<OwnedSemaphorePermit>);

impl Audit {
    /// Opens the log and starts its writer.
    pub fn start(config: &AuditConfig) -> io::Result<Self> {
        let health = Arc::<Health>::default();
        let (mut lines, mut thread) = (None, None);
        if config.to != AuditTo::None {
            let writer = Writer::open(&config.to, health.clone(), config.required)?;
            let (send, receive) = sync_channel(WAITING);
            lines = Some(send);
            thread = Some(std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receive))?);
        }
        Ok(Self {
            sql: config.sql,
            required: config.required,
            lines: Mutex::new(lines),
            health,
            places: Arc::new(Semaphore::new(WAITING)),
            thread: Mutex::new(thread),
        })
    }

    /// What of SQL it wants.
    pub fn keeps(&self) -> Keeps {
        match self.sql {
            AuditSql::None => Keeps::Kind,
            AuditSql::Hash => Keeps::Hash,
            AuditSql::Text => Keeps::Text,
        }
    }

    /// A place for a request's line. Where the log is required, there is none while it can't be written.
    pub fn place(&self) -> Result<Place, ApiError> {
        if !self.required {
            return Ok(Place(None));
        }
        let refused = || {
            ApiError::new(Code::Unavailable, "the audit log can't be written, and this server serves nobody without it")
                .hint("its operator finds the reason in the server's log")
        };
        if self.health.failing.load(Ordering::Relaxed) {
            return Err(refused());
        }
        self.places.clone().try_acquire_owned().map(|place| Place(Some(place))).map_err(|_| refused())
    }

    /// Appends a record.
    pub fn write(&self, record: &Record, place: Place) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lines) = &*lines else { return };
        let Ok(mut text) = serde_json::to_string(&record.shown(self.sql)) else { return };
        text.push('\n');
        if lines.try_send(Line { text, _place: place.0 }).is_err() {
            self.health.lose();
        }
    }

    /// Lines that were lost since the start.
    pub fn lost(&self) -> u64 {
        self.health.lost.load(Ordering::Relaxed)
    }

    /// Writes what waits, forces it to the disk and ends.
    pub async fn shutdown(&self) {
        self.health.stopping.store(true, Ordering::Relaxed);
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A writer that panicked has said so.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Health {
    /// Counts a lost line, and says so if it is the first of an outage.
    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::error!("the audit log can't be written fast enough or at all; lines are lost and counted");
        }
    }
}
