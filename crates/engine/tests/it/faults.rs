//! Disks that fail or are full.
//!
//! DuckDB is a library of its own, so the C functions below take the place of the C library's for it, in this process and in the
//! engines that tests start from this binary. They fail for a mart's file while a file that says so lies beside it.

use std::{
    ffi::{c_int, c_void},
    os::fd::{BorrowedFd, RawFd},
    path::PathBuf,
    time::Duration,
};

use engine::wire::{Point, exit};
use http_body_util::BodyExt;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::{
    process::Process,
    support::{Home, ask_or_break, begin},
};

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn marker(operation: &str, file: &str) -> String {
    format!("fail-{operation}-{file}")
}

/// Does a call on this descriptor fail?
fn fails(fd: RawFd, operation: &str) -> bool {
    let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { return false };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return false;
    };
    name.starts_with("mart.db") && dir.join(marker(operation, name)).exists()
}

fn answer(result: Result<usize, Errno>) -> isize {
    match result {
        Ok(done) => done as isize,
        Err(errno) => {
            // SAFETY: the C library's place for this thread's error number.
            unsafe { *__errno_location() = errno.raw_os_error() };
            -1
        }
    }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let done = if fails(fd, "fsync") { Err(Errno::IO) } else { rustix::fs::fsync(file).map(|()| 0) };
    answer(done) as c_int
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    // SAFETY: the caller's promise.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let done = match fails(fd, "ftruncate") {
        true => Err(Errno::IO),
        false => rustix::fs::ftruncate(file, length as u64).map(|()| 0),
    };
    answer(done) as c_int
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize {
    // SAFETY: the caller's promise.
    let (file, bytes) = unsafe { (BorrowedFd::borrow_raw(fd), std::slice::from_raw_parts(bytes.cast::<u8>(), count)) };
    answer(if fails(fd, "write") { Err(Errno::NOSPC) } else { rustix::io::write(file, bytes) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, count: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise.
    let (file, bytes) = unsafe { (BorrowedFd::borrow_raw(fd), std::slice::from_raw_parts(bytes.cast::<u8>(), count)) };
    answer(if fails(fd, "write") { Err(Errno::NOSPC) } else { rustix::io::pwrite(file, bytes, offset as u64) })
}

/// A table with one row, in an engine of its own, and then a disk on which these calls fail.
struct Failing {
    home: Home,
    process: Process,
    /// End of the last commit that went well.
    end: u64,
    markers: Vec<PathBuf>,
}

impl Failing {
    async fn start(calls: &[(&str, &str)]) -> Self {
        let home = Home::new();
        let process = Process::start(&home, 512 << 20);
        process.query("create table t(i bigint)").await;
        let (_, commit) = ask_or_break(&process.socket, "insert into t values (1)").await.expect("answers");
        let end = commit.expect("commits").wal_bytes;
        let markers: Vec<_> = calls.iter().map(|(call, file)| home.dir.path().join(marker(call, file))).collect();
        markers.iter().for_each(|marker| std::fs::write(marker, "").expect("writes"));
        Self { home, process, end, markers }
    }

    async fn ask(&self, sql: &str) -> Option<(Value, Option<Point>)> {
        ask_or_break(&self.process.socket, sql).await
    }

    fn heal(&mut self) {
        self.markers.drain(..).for_each(|marker| std::fs::remove_file(marker).expect("is there"));
    }

    /// How the engine ended.
    fn ended(&mut self) -> Option<i32> {
        self.process.wait(Duration::from_secs(20)).code()
    }

    /// What another engine finds, with the position where it begins.
    async fn again(&mut self) -> (Value, u64) {
        self.heal();
        self.process = Process::start(&self.home, 512 << 20);
        let response = begin(&self.process.socket, "GET", "/health", Default::default(), &[]).await;
        let health = response.into_body().collect().await.expect("whole").to_bytes();
        let health: Value = serde_json::from_slice(&health).expect("JSON");
        let rows = self.process.query("select list(i order by i) from t").await["rows"][0][0].clone();
        (rows, health["wal_bytes"].as_u64().expect("a position"))
    }
}

/// Ends of all commits that `GET /commits` tells of until the engine ends.
async fn commits(socket: PathBuf) -> Vec<u64> {
    let mut body = begin(&socket, "GET", "/commits", Default::default(), &[]).await.into_body();
    let mut lines = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        lines.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    let ends = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    ends.map(|line| serde_json::from_slice::<Value>(line).expect("JSON")["wal_end"].as_u64().expect("an end")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_sync_fails_is_in_doubt_and_its_position_is_never_handed_out() {
    for file in ["mart.db.wal", "mart.db"] {
        let mut failing = Failing::start(&[("fsync", file)]).await;
        let feed = tokio::spawn(commits(failing.process.socket.clone()));
        // In bulk, so that both files are synced.
        let (answer, commit) = failing.ask("insert into t from range(1000000)").await.expect("answers");
        assert_eq!((&answer["outcome"], &answer["retryable"]), (&json!("unknown"), &json!(false)), "{file}: {answer}");
        assert_eq!(commit, None);
        assert_eq!(failing.ended(), Some(exit::FATAL), "{file}: nobody may go on with such a file");
        let ends = feed.await.expect("does not panic");
        assert!(ends.iter().all(|end| *end == failing.end), "{file}: {ends:?} beyond {}", failing.end);
        // DuckDB took the bytes away again.
        assert_eq!(failing.again().await, (json!([1]), failing.end), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_a_failed_commit_that_can_t_be_taken_away_end_the_engine_before_anybody_hears_of_them() {
    let mut failing = Failing::start(&[("fsync", "mart.db.wal"), ("ftruncate", "mart.db.wal")]).await;
    let feed = tokio::spawn(commits(failing.process.socket.clone()));
    let answer = failing.ask("insert into t values (2)").await;
    assert!(answer.is_none(), "{answer:?}");
    assert_ne!(failing.ended(), Some(exit::OK));
    assert!(feed.await.expect("does not panic").iter().all(|end| *end == failing.end));
    // In doubt for the client, and a commit like any other from here on.
    let (rows, end) = failing.again().await;
    assert_eq!((rows, end), (json!([1, 2]), std::fs::metadata(failing.home.wal()).expect("a log").len()));
    assert!(end > failing.end);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_commit_does_not_happen_and_says_why_and_the_next_one_follows_the_last_good_one() {
    for (file, sql) in [
        ("mart.db.wal", "insert into t values (2)"),
        ("mart.db.wal", "insert into t select 2 from range(100000)"),
        ("mart.db", "insert into t from range(1000000)"),
    ] {
        let mut failing = Failing::start(&[("write", file)]).await;
        let (answer, commit) = failing.ask(sql).await.expect("answers");
        assert_eq!(
            (&answer["code"], &answer["outcome"], commit),
            (&json!("limited"), &json!("none"), None),
            "{answer}"
        );
        assert_eq!(std::fs::metadata(failing.home.wal()).expect("a log").len(), failing.end, "{file}");
        failing.heal();
        let (_, commit) = failing.ask("insert into t values (3)").await.expect("answers");
        let size = std::fs::metadata(failing.home.wal()).expect("a log").len();
        assert_eq!(commit.expect("commits").wal_bytes, size);
        failing.process.kill();
        assert_eq!(failing.again().await, (json!([1, 3]), size), "{file}: {sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_fails_ends_the_engine_and_nothing_is_lost() {
    for (call, file) in [("write", "mart.db"), ("fsync", "mart.db"), ("fsync", "mart.db.wal"), ("write", "mart.db.wal")]
    {
        let mut failing = Failing::start(&[(call, file)]).await;
        let request = r#"{"reader_wait_ms": 1000, "abort_readers": false}"#;
        let answer = begin(&failing.process.socket, "POST", "/checkpoint", request.into(), &[]).await;
        assert!(!answer.status().is_success(), "{call} {file}");
        assert_eq!(failing.ended(), Some(exit::FATAL), "{call} {file}");
        let (rows, end) = failing.again().await;
        let size = std::fs::metadata(failing.home.wal()).expect("a log").len();
        assert_eq!((rows, end), (json!([1]), size), "{call} {file}");
        // What the failed checkpoint wrote into the log does not hide what follows.
        let (_, commit) = failing.ask("insert into t values (2)").await.expect("answers");
        failing.process.kill();
        assert_eq!(failing.again().await, (json!([1, 2]), commit.expect("commits").wal_bytes), "{call} {file}");
    }
}

/// DuckDB makes one when somebody commits beside a checkpoint, which the writers' gate never lets happen.
#[tokio::test(flavor = "multi_thread")]
async fn a_left_over_second_log_loses_and_doubles_nothing() {
    for (calls, copied) in [(&[][..], false), (&[], true), (&[("write", "mart.db")], false)] {
        let mut failing = Failing::start(calls).await;
        if calls.is_empty() {
            failing.process.kill();
        } else {
            // The first log then ends in the beginning of a checkpoint.
            let request = r#"{"reader_wait_ms": 1000, "abort_readers": false}"#;
            begin(&failing.process.socket, "POST", "/checkpoint", request.into(), &[]).await;
            failing.ended();
        }
        let content = if copied { std::fs::read(failing.home.wal()).expect("a log") } else { Vec::new() };
        std::fs::write(failing.home.dir.path().join("mart.db.wal.checkpoint"), content).expect("writes");
        assert_eq!(failing.again().await.0, json!([1]), "{calls:?} {copied}");
        let (_, commit) = failing.ask("insert into t values (2)").await.expect("answers");
        failing.process.kill();
        assert_eq!(failing.again().await, (json!([1, 2]), commit.expect("commits").wal_bytes), "{calls:?} {copied}");
    }
}
