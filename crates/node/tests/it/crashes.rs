//! What clients are told when an engine ends under them: who did it, who may try again, and when.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{DEV, TestServer, works};

/// Passes the gate and overflows the stack of DuckDB's JSON functions.
const CRASHER: &str = "select json_structure(repeat('[',1000000)||repeat(']',1000000))";
/// Does not look whether it was interrupted, and takes half a minute.
const DEAF: &str = "select list_reduce(range(40000000), lambda a, b: (a * 31 + b) % 1000003)";
/// Runs for ever in little memory.
const SPIN: &str = "select sum(hash(a.range, b.range)) from range(10000000) a, range(10000000) b";

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_keeps_ending_pauses_and_says_why() {
    let server = TestServer::start().await;
    server.query("create table kept as select 42 a").await.rows();
    let told = loop {
        let path = "/v1/tenants/default/marts/dev/query";
        let sent = server.request(Method::POST, path).json(&json!({ "sql": CRASHER })).send().await.expect("answers");
        assert_eq!(sent.status(), StatusCode::SERVICE_UNAVAILABLE);
        let after = sent.headers().get("retry-after").map(|value| value.to_str().expect("a number").to_owned());
        let body: serde_json::Value = sent.json().await.expect("JSON");
        if let Some(after) = after {
            assert!(after.parse::<u64>().expect("seconds") >= 1);
            break body;
        }
        // It ran alone, or came between two lives.
        let restarting = body["message"] == "the mart's engine is restarting";
        assert_eq!((&body["outcome"], &body["retryable"]), (&json!("none"), &json!(restarting)), "{body}");
    };
    assert!(told["message"].as_str().expect("a text").contains("keeps ending: crashed"), "{told}");
    assert_eq!((&told["code"], &told["retryable"]), (&json!("unavailable"), &json!(true)), "{told}");
    // Another mart does not notice, and this one comes back with all it had.
    server.send(server.request(Method::POST, "/v1/tenants/default/marts").json(&json!({"name": "other"}))).await;
    server.query_in("default/other", json!({"sql": "select 1"})).await.rows();
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = server.query("from kept").await;
        if answer.status.is_success() {
            assert_eq!(*answer.rows(), json!([[42]]));
            break;
        }
        assert!(Instant::now() < patience, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_query_is_ended_and_its_neighbours_may_try_again() {
    // Enough for it to be deaf rather than large.
    let server = TestServer::start_with(&[("TARN_ENGINE_MEMORY", "4GB")]).await;
    server.query("create table kept as select 42 a").await.rows();
    let pid = server.engine_pid(DEV);
    let started = Instant::now();
    // The neighbours come when it is under way: one that has not begun would hear its deadline.
    let neighbours = async {
        works(pid).await;
        tokio::join!(
            server.query_in(DEV, json!({"sql": SPIN, "timeout_ms": 60_000})),
            server.query_in(DEV, json!({"sql": format!("create table late as {SPIN}"), "timeout_ms": 60_000})),
        )
    };
    let deaf = server.query_in(DEV, json!({"sql": DEAF, "timeout_ms": 3000}));
    let (deaf, (reader, writer)) = tokio::join!(deaf, neighbours);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!((deaf.code(), &deaf.body["retryable"]), ("timeout", &json!(false)), "{deaf:?}");
    for innocent in [reader, writer] {
        let told = (innocent.code(), &innocent.body["outcome"], &innocent.body["retryable"]);
        assert_eq!(told, ("unavailable", &json!("none"), &json!(true)), "{innocent:?}");
    }
    assert_eq!(*server.query("from kept").await.rows(), json!([[42]]));
    assert_ne!(server.engine_pid(DEV), pid);
    assert_eq!(server.query("from late").await.code(), "sql");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_engine_was_killed_did_not_happen_if_the_log_says_so() {
    let server = TestServer::start().await;
    server.query("create table t(a bigint)").await.rows();
    let insert = json!({ "sql": format!("insert into t {SPIN}") });
    let kill = async {
        works(server.engine_pid(DEV)).await;
        server.kill_engine(DEV);
    };
    let (answer, _, ()) = tokio::join!(server.query_in(DEV, insert.clone()), server.query(SPIN), kill);
    assert_eq!((answer.code(), &answer.body["outcome"]), ("unavailable", &json!("none")), "{answer:?}");
    assert_eq!(answer.body["retryable"], true, "{answer:?}");
    assert_eq!(*server.query("select count(*) from t").await.rows(), json!([[0]]));
}
