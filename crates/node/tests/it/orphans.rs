//! Engines that a killed node leaves behind: whatever they are doing, they are gone before anybody else opens the mart's files.

use reqwest::StatusCode;
use serde_json::json;

use crate::server::{TestServer, runs, works};

/// Work without an end, of which DuckDB asks now and then whether to stop.
const BUSY: &str = "SELECT count(*) FROM range(1000000000000) a, range(1000000) b WHERE a.range + b.range < 0";
/// Work in one step, which no interrupt reaches for minutes.
const DEAF: &str = "SELECT list_reduce(range(10000000), lambda a, b: (a * 31 + b) % 1000003)";

async fn written() -> TestServer {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT 42 AS a").await.rows();
    server
}

/// The mart is served again, by another engine, and the one before it is gone by then.
async fn comes_back_without(server: &mut TestServer, orphan: u32) {
    server.start_again().await;
    assert_eq!(*server.query("SELECT a FROM t").await.rows(), json!([[42]]));
    assert!(!runs(orphan), "two engines have the mart's files open");
    assert_ne!(server.engine_pid("default/dev"), orphan);
    let insert = server.query("INSERT INTO t VALUES (43)").await;
    assert_eq!((insert.status, insert.durable.as_deref()), (StatusCode::OK, Some("object")), "{insert:?}");
}

async fn killed_during(sql: &'static str) {
    let mut server = written().await;
    let (requests, orphan) = (server.requests(), server.engine_pid("default/dev"));
    let query = tokio::spawn(async move {
        let path = "/v1/tenants/default/marts/dev/query";
        let request = requests.request(reqwest::Method::POST, path).json(&json!({ "sql": sql }));
        requests.try_send(request).await.map(|answer| answer.status)
    });
    works(orphan).await;
    server.kill_node().await;
    assert!(query.await.expect("it does not panic").is_err(), "the query ended before its node");
    comes_back_without(&mut server, orphan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_orphan_is_gone_before_its_files_are_opened() {
    killed_during(BUSY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_orphan_is_gone_before_its_files_are_opened() {
    killed_during(DEAF).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_orphan_is_ended_before_its_files_are_opened() {
    let mut server = written().await;
    let orphan = server.engine_pid("default/dev");
    server.freeze_engine("default/dev");
    server.kill_node().await;
    comes_back_without(&mut server, orphan).await;
    server.logged("ending an engine that outlived its node", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_deaf_to_its_deadline_ends_with_its_engine_and_nothing_else_does() {
    let server = written().await;
    let pid = server.engine_pid("default/dev");
    let late = server.query_in("default/dev", json!({"sql": DEAF, "timeout_ms": 200})).await;
    assert_eq!((late.code(), &late.body["outcome"]), ("timeout", &json!("none")), "{late:?}");
    server.logged("reason=\"deaf\"", 1).await;
    let mut again = server.query("SELECT a FROM t").await;
    while again.status != StatusCode::OK {
        assert_eq!(again.code(), "unavailable", "{again:?}");
        again = server.query("SELECT a FROM t").await;
    }
    assert_eq!(*again.rows(), json!([[42]]));
    assert_ne!(server.engine_pid("default/dev"), pid);
}
