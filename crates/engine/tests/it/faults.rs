//! Disks that fail or are full.
//!
//! DuckDB is a library of its own, so the C functions below take the place of the C library's for it, in this process and in the
//! engines that tests start from this binary. They fail for a mart's file while a file that says so lies beside it.

use std::{
    ffi::{c_int, c_void},
    os::fd::{BorrowedFd, RawFd},
};

use rustix::io::Errno;

use crate::{process::Process, support::Home};

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn marker(operation: &str, file: &str) -> String {
    format!("fail-{operation}-{file}")
}

/// Does a call on this descriptor fail?
fn fails(fd: RawFd, operation: &str) -> bool {
    let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { return false };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return false };
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

#[tokio::test(flavor = "multi_thread")]
async fn explore() {
    for (ops, sql) in [
        (vec![("fsync", "mart.db.wal")], "insert into t values (2)"),
        (vec![("fsync", "mart.db.wal"), ("ftruncate", "mart.db.wal")], "insert into t values (2)"),
        (vec![("write", "mart.db.wal")], "insert into t values (2)"),
        (vec![("write", "mart.db.wal"), ("ftruncate", "mart.db.wal")], "insert into t values (2)"),
        (vec![("write", "mart.db")], "insert into t from range(1000000)"),
        (vec![("fsync", "mart.db")], "insert into t from range(1000000)"),
        (vec![("write", "mart.db")], "CHECKPOINT"),
        (vec![("fsync", "mart.db")], "CHECKPOINT"),
        (vec![("fsync", "mart.db.wal")], "CHECKPOINT"),
    ] {
        let home = Home::new();
        let mut process = Process::start(&home, 512 << 20);
        process.query("create table t(i bigint)").await;
        process.query("insert into t values (1)").await;
        let size = std::fs::metadata(home.wal()).map(|m| m.len());
        for (op, file) in &ops {
            std::fs::write(home.dir.path().join(marker(op, file)), "").expect("w");
        }
        eprintln!("== {ops:?} {sql}");
        if sql == "CHECKPOINT" {
            use http_body_util::BodyExt;
            let got = crate::support::begin(&process.socket, "POST", "/checkpoint", r#"{"reader_wait_ms":100,"abort_readers":false}"#.into(), &[]).await;
            eprintln!("{} {:?}", got.status(), got.into_body().collect().await.map(|b| b.to_bytes()));
        } else {
            eprintln!("{}", process.query(sql).await);
        }
        eprintln!("wal {size:?} -> {:?}", std::fs::metadata(home.wal()).map(|m| m.len()));
        for (op, file) in &ops {
            std::fs::remove_file(home.dir.path().join(marker(op, file))).expect("w");
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let ended = process.try_status();
        eprintln!("ended: {ended:?}");
        if ended.is_none() {
            eprintln!("{}", process.query("insert into t values (3)").await);
            eprintln!("{}", process.query("select count(*), min(i), max(i) from t").await);
        }
        process.kill();
        let process = Process::start(&home, 512 << 20);
        eprintln!("reopened: {}", process.query("select count(*), min(i), max(i) from t").await);
    }
}
