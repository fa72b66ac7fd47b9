//! Commits: one at a time, each with its exact position.
//!
//! # Consistency
//! DuckDB writes its log under a lock of its own, so a mutex around COMMIT costs little, and while it is held the last FLUSH in the
//! log is this commit's. Hence every position handed out belongs to a commit that DuckDB reported as done. Bytes of a commit that
//! failed after they were written (DuckDB truncates them) are never reported.
//!
//! # Crash consistency
//! Nothing is kept besides DuckDB's own files: after a crash the position is read from them again.
//!
//! # Cancellation
//! A COMMIT is never interrupted; callers shield it (see `queries`).

use std::{
    io,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::broadcast;

use crate::{
    duck::DuckError,
    files::{DbFile, wal_path},
    wal::{Names, WalTail},
    wire::{CommitPoint, Point},
};

/// Followers of the feed may be this many commits behind before they are cut off.
const FEED_LENGTH: usize = 65_536;

/// All commits of the mart, in order.
pub struct Commits {
    /// Nothing at a past moment.
    state: Mutex<Option<State>>,
    /// Only short holds, so that reads never wait for a commit's fsync.
    latest: Mutex<CommitPoint>,
    in_flight: AtomicBool,
    feed: broadcast::Sender<CommitPoint>,
}

struct State {
    wal: WalTail,
    file: DbFile,
    iteration: u64,
}

/// Why a commit or checkpoint did not give a position.
#[derive(Debug)]
pub enum CommitError {
    /// DuckDB refused.
    Duck(DuckError),
    /// DuckDB succeeded, but the files can't be read: it happened, and nobody knows where. The engine must end.
    Position(io::Error),
}

impl Commits {
    /// After DuckDB opened the database at `db` and replayed its log.
    pub fn open(db: &Path) -> io::Result<Self> {
        let file = DbFile::open(db)?;
        let iteration = file.iteration()?;
        let mut wal = WalTail::new(wal_path(db));
        wal.advance()?;
        let latest = Point { iteration, wal_bytes: wal.end() };
        Ok(Self { state: Mutex::new(Some(State { wal, file, iteration })), ..Self::fixed(latest) })
    }

    /// At a past moment: no commit ever follows.
    pub fn fixed(point: Point) -> Self {
        Self {
            state: Mutex::new(None),
            latest: Mutex::new(CommitPoint { iteration: point.iteration, wal_end: point.wal_bytes, time_us: now_us() }),
            in_flight: AtomicBool::new(false),
            feed: broadcast::channel(FEED_LENGTH).0,
        }
    }

    /// What the commits since the last checkpoint made and dropped, after the one that is in flight.
    pub fn names(&self) -> Names {
        lock(&self.state).as_ref().map(|state| state.wal.names().clone()).unwrap_or_default()
    }

    /// Runs `commit`, a COMMIT, alone. `None` if it had nothing to write.
    pub fn commit(&self, commit: impl FnOnce() -> Result<(), DuckError>) -> Result<Option<CommitPoint>, CommitError> {
        let mut state = lock(&self.state);
        let _flight = Flight::start(&self.in_flight);
        commit().map_err(CommitError::Duck)?;
        let Some(state) = &mut *state else { return Ok(None) };
        match state.wal.advance().map_err(CommitError::Position)? {
            Some(wal_end) => Ok(Some(self.publish(state.iteration, wal_end))),
            None => Ok(None),
        }
    }

    /// Runs `checkpoint`, a CHECKPOINT that no writer can be beside. `None` if DuckDB left the log as it was.
    pub fn checkpoint(
        &self,
        checkpoint: impl FnOnce() -> Result<(), DuckError>,
    ) -> Result<Option<CommitPoint>, CommitError> {
        let mut state = lock(&self.state);
        let _flight = Flight::start(&self.in_flight);
        checkpoint().map_err(CommitError::Duck)?;
        let Some(state) = &mut *state else { return Ok(None) };
        let iteration = state.file.iteration().map_err(CommitError::Position)?;
        if iteration == state.iteration {
            return Ok(None);
        }
        state.iteration = iteration;
        state.wal.restart();
        // Nobody writes: a log that is here already would belong to the old iteration.
        let left = state.wal.advance().map_err(CommitError::Position)?;
        debug_assert_eq!(left, None, "a checkpoint removes the log");
        let wal_end = state.wal.end();
        Ok(Some(self.publish(iteration, wal_end)))
    }

    /// The newest commit, and whether another is in flight.
    pub fn latest(&self) -> (CommitPoint, bool) {
        // The flag first: a commit that ends in between is then in the point.
        let moving = self.in_flight.load(Ordering::SeqCst);
        (*lock(&self.latest), moving)
    }

    /// The newest commit and all that follow it.
    pub fn follow(&self) -> (CommitPoint, broadcast::Receiver<CommitPoint>) {
        let latest = lock(&self.latest);
        (*latest, self.feed.subscribe())
    }

    fn publish(&self, iteration: u64, wal_end: u64) -> CommitPoint {
        let mut latest = lock(&self.latest);
        let point = CommitPoint { iteration, wal_end, time_us: now_us().max(latest.time_us) };
        *latest = point;
        // No follower is no error.
        let _ = self.feed.send(point);
        point
    }
}

struct Flight<'a>(&'a AtomicBool);

impl<'a> Flight<'a> {
    fn start(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::SeqCst);
        Self(flag)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves the state whole at each step, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
