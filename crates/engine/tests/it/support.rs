//! A mart in a directory of its own, and what tests ask of it.

use std::path::PathBuf;

use engine::{
    commit::CommitError,
    config::EngineConfig,
    duck::Connection,
    open::Mart,
    wire::CommitPoint,
};

/// A configuration in a fresh directory, which lives as long as this.
pub struct Home {
    pub dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    pub fn db(&self) -> PathBuf {
        self.dir.path().join("mart.db")
    }

    pub fn wal(&self) -> PathBuf {
        self.dir.path().join("mart.db.wal")
    }

    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            db_path: self.db(),
            temp_dir: self.dir.path().join("tmp"),
            home_dir: self.dir.path().join("home"),
            memory_limit_bytes: 512 << 20,
            threads: 2,
            max_temp_bytes: 1 << 30,
            httpfs_path: None,
            gateway: None,
            listen_fd: -1,
            life_fd: -1,
            lock_fd: None,
            max_queries: 16,
            deaf_ms: 5_000,
        }
    }

    pub fn open(&self) -> Mart {
        Mart::open(&self.config()).expect("opens")
    }
}

/// Runs `sql` in a transaction and commits it the engine's way.
pub fn commit(mart: &Mart, connection: &Connection, sql: &str) -> Option<CommitPoint> {
    connection.execute("BEGIN").expect("begins");
    connection.execute(sql).expect("runs");
    match mart.commits.commit(|| connection.execute("COMMIT")) {
        Ok(point) => point,
        Err(CommitError::Duck(error)) => panic!("{error}"),
        Err(CommitError::Position(error)) => panic!("{error}"),
    }
}

/// The one text that a query gives.
pub fn one(connection: &Connection, sql: &str) -> String {
    connection.column(sql).expect("runs").pop().expect("has a row")
}
