//! The engine as a process: how it starts, how it ends, and what it leaves.

use std::{
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use engine::{
    handover::{self, Ends, Hello},
    wire::exit,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{Home, ask_or_break, begin};

/// An engine in a process of its own.
pub struct Process {
    child: Child,
    pub socket: PathBuf,
    life: Option<UnixStream>,
}

impl Process {
    pub fn start(home: &Home, memory_limit_bytes: u64) -> Self {
        let socket = home.dir.path().join("socket");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("binds");
        let mut config = home.config();
        (config.memory_limit_bytes, config.deaf_ms) = (memory_limit_bytes, 2_000);
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command
            .args(["--exact", "process::this_test_is_an_engine_when_asked_to_be", "--nocapture"])
            .env("ENGINE_TEST_PROCESS", "1")
            .stdout(Stdio::null());
        let Ends { talk, life } = handover::equip(&mut command, listener.into()).expect("descriptors are left");
        let child = command.spawn().expect("starts");
        drop(command);
        handover::receive::<Hello>(&talk).expect("speaks").expect("says hello");
        handover::send(&talk, &config, None::<OwnedFd>).expect("listens");
        let life = UnixStream::from(life);
        Self { child, socket, life: Some(life) }
    }

    pub async fn query(&self, sql: &str) -> Value {
        let response = begin(&self.socket, "POST", "/query", json!({ "sql": sql }).to_string().into(), &[]).await;
        serde_json::from_slice(&response.into_body().collect().await.expect("comes whole").to_bytes()).expect("JSON")
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait().expect("can be asked") {
                Some(status) => return status,
                None => assert!(Instant::now() < deadline, "the process still runs"),
            }
            std::thread::yield_now();
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("is our child");
        self.child.wait().expect("is gone");
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("says");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn this_test_is_an_engine_when_asked_to_be() {
    if std::env::var_os("ENGINE_TEST_PROCESS").is_some() {
        let _ = engine::process::main(std::iter::empty(), || ());
        std::process::exit(exit::OPEN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_ends_when_its_node_is_gone_and_its_commits_stay() {
    let home = Home::new();
    let mut process = Process::start(&home, 512 << 20);
    process.query("create table t as select 42 a").await;
    process.life.take();
    assert_eq!(process.wait(Duration::from_secs(5)).code(), Some(exit::ORPHAN));
    let process = Process::start(&home, 512 << 20);
    assert_eq!(process.query("from t").await["rows"], json!([[42]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_stops_work_and_does_not_checkpoint() {
    let home = Home::new();
    let mut process = Process::start(&home, 512 << 20);
    process.query("create table t as select 42 a").await;
    let size = std::fs::metadata(home.wal()).expect("a log").len();
    let endless =
        process.query("select count(*) from range(1000000000) a, range(1000000000) b where a.range + b.range < 0");
    let shutdown = async {
        // The endless query has begun when the engine says so.
        loop {
            let health = begin(&process.socket, "GET", "/health", Default::default(), &[])
                .await
                .into_body()
                .collect()
                .await
                .expect("whole");
            let health: Value = serde_json::from_slice(&health.to_bytes()).expect("JSON");
            if health["queries"] == 1 {
                break;
            }
        }
        begin(&process.socket, "POST", "/shutdown", r#"{"grace_ms": 50}"#.into(), &[]).await
    };
    let (stopped, answer) = tokio::join!(endless, shutdown);
    assert_eq!((stopped["code"].clone(), stopped["retryable"].clone()), (json!("unavailable"), json!(true)));
    assert_eq!(answer.status(), 200);
    assert_eq!(process.wait(Duration::from_secs(5)).code(), Some(exit::OK));
    assert_eq!(std::fs::metadata(home.wal()).expect("the log stays").len(), size);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_none_is_refused_with_a_reason() {
    let home = Home::new();
    std::fs::write(home.db(), b"this is no database, whatever its name says".repeat(1000)).expect("writes");
    let mut process = Process::start(&home, 512 << 20);
    assert_eq!(process.wait(Duration::from_secs(10)).code(), Some(exit::OPEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_passes_its_memory_limit_by_far_ends_and_keeps_its_commits() {
    let home = Home::new();
    let mut process = Process::start(&home, 256 << 20);
    process.query("create table t as select 42 a").await;
    // 8 GB in one value, which DuckDB's limit does not see.
    let answer = ask_or_break(&process.socket, "select len(range(1000000000))").await;
    assert!(answer.is_none(), "{answer:?}");
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(exit::MEMORY));
    let process = Process::start(&home, 256 << 20);
    assert_eq!(process.query("from t").await["rows"], json!([[42]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_quota_of_temporary_files_a_query_gives_way_and_then_the_engine() {
    const QUOTA: usize = 32 << 20;
    let home = Home { max_temp_bytes: QUOTA as u64, ..Home::new() };
    let mut process = Process::start(&home, 512 << 20);
    process.query("create table t as select 42 a").await;
    // What lies there counts, whoever wrote it.
    let (file, temp) = ("x.tmp", home.config().temp_dir);
    std::fs::write(temp.join(file), vec![1; QUOTA + QUOTA / 8]).expect("writes");
    // Long, and needs no room of its own.
    let told = process.query("select count(*) from range(1000000000000) where range < 0").await;
    let seen = (&told["code"], &told["outcome"], &told["retryable"]);
    assert_eq!(seen, (&json!("limited"), &json!("none"), &json!(false)), "{told}");
    std::fs::remove_file(temp.join(file)).expect("is there");
    assert_eq!(process.query("from t").await["rows"], json!([[42]]));
    std::fs::write(temp.join(file), vec![1; QUOTA + QUOTA / 2]).expect("writes");
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(exit::TEMP));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_to_a_slow_client_needs_little_memory() {
    const LIMIT: u64 = 256 << 20;
    let home = Home::new();
    let process = Process::start(&home, LIMIT);
    let sql = json!({"sql": "select i, repeat('abcdefgh', 125) s from range(1000000) t(i)"}).to_string();
    for accept in ["application/vnd.apache.arrow.stream", "application/json"] {
        let response = begin(&process.socket, "POST", "/query", sql.clone().into(), &[("accept", accept)]).await;
        let mut body = response.into_body();
        let (mut bytes, mut most) = (0u64, 0);
        let mut looked = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.expect("is whole").into_data().map_or(0, |data| data.len() as u64);
            if bytes > looked {
                looked = bytes + (4 << 20);
                most = most.max(process.resident_bytes());
            }
        }
        assert!(bytes > 1_000_000_000, "{accept}: {bytes}");
        assert!(most < LIMIT + (300 << 20), "{accept}: {} MB", most >> 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_nobody_reads_take_no_more_than_a_share() {
    const LIMIT: u64 = 256 << 20;
    let home = Home::new();
    let process = Process::start(&home, LIMIT);
    let sql = json!({"sql": "select repeat('x', 1000) s from range(10000000)"}).to_string();
    let mut unread = Vec::new();
    for _ in 0..15 {
        unread.push(begin(&process.socket, "POST", "/query", sql.clone().into(), &[]).await);
    }
    assert_eq!(process.query("select 42").await["rows"], json!([[42]]));
    assert!(process.resident_bytes() < LIMIT + (300 << 20), "{} MB", process.resident_bytes() >> 20);
    assert!(unread.iter().all(|response| response.status().is_success()));
}
