//! Engines that nobody uses: closed without a request, a session or a commit lost, and opened again by whoever asks.

use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::server::{DEV, TestServer, runs};

const CLOSED: &str = "its engine is closed";

async fn mart(server: &TestServer, name: &str) -> String {
    let made = server.request(Method::POST, "/v1/tenants/default/marts").json(&json!({ "name": name }));
    assert_eq!(server.send(made).await.status, StatusCode::OK);
    format!("default/{name}")
}

/// Processes that the node has started and that run.
fn children(server: &TestServer) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.node_pid())).expect("the node runs");
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.expect("it is readable").path().join("children")).unwrap_or_default()
    };
    let all: Vec<String> = tasks.map(of_task).collect();
    let pids = all.iter().flat_map(|line| line.split_whitespace()).filter_map(|pid| pid.parse().ok());
    pids.filter(|pid| runs(*pid)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_engine_is_closed_and_the_next_request_opens_it_again() {
    let server = TestServer::start_with(&[("TARN_ENGINE_IDLE_SECONDS", "1")]).await;
    server.query("CREATE TABLE t AS SELECT 42 AS a").await.rows();
    let first = server.engine_pid(DEV);
    server.logged(CLOSED, 1).await;
    assert_eq!(*server.query("FROM t").await.rows(), json!([[42]]));
    assert!(!runs(first), "two engines have the mart's files open");
    let insert = server.query("INSERT INTO t VALUES (43)").await;
    assert_eq!((insert.status, insert.durable.as_deref()), (StatusCode::OK, Some("object")), "{insert:?}");

    // What is in a session stays: its engine is closed when it has ended.
    let sessions = "/v1/tenants/default/marts/dev/sessions";
    let session = server.send(server.request(Method::POST, sessions)).await.body["session"].clone();
    let said =
        server.query_in(DEV, json!({"sql": "CREATE TEMP TABLE mine AS SELECT 7 AS a", "session": session})).await;
    assert_eq!(said.status, StatusCode::OK, "{said:?}");
    let (held, other) = (server.engine_pid(DEV), mart(&server, "other").await);
    let closed_before = server.log().matches(CLOSED).count();
    server.query_in(&other, json!({"sql": "SELECT 1"})).await.rows();
    server.logged("mart=default/other", 1).await;
    // The other one has been idle for as long, or less, when it is closed.
    server.logged(CLOSED, closed_before + 1).await;
    assert!(runs(held) && server.engine_pid(DEV) == held);
    assert_eq!(*server.query_in(DEV, json!({"sql": "FROM mine", "session": session})).await.rows(), json!([[7]]));
    let id = session.as_str().expect("an id");
    server.send(server.request(Method::DELETE, &format!("{sessions}/{id}"))).await;
    server.logged(CLOSED, closed_before + 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marts_that_take_turns_lose_no_request() {
    let server = TestServer::start_with(&[("TARN_MAX_ENGINES", "1"), ("TARN_TAKEOVER_AFTER", "25s")]).await;
    let (mut marts, mut turns) = (Vec::new(), 0);
    for name in ["one", "two", "three"] {
        let mart = mart(&server, name).await;
        server.query_in(&mart, json!({"sql": "CREATE TABLE t(a INT)"})).await.rows();
        marts.push(mart);
        turns += 1;
        server.logged(CLOSED, turns - 1).await;
    }
    let rounds = 4;
    for round in 0..rounds {
        for mart in &marts {
            // Right into the closing of the one before, and two at once.
            let insert = json!({"sql": format!("INSERT INTO t VALUES ({round})")});
            let (insert, read) =
                tokio::join!(server.query_in(mart, insert), server.query_in(mart, json!({"sql": "FROM t"})));
            insert.rows();
            read.rows();
            turns += 1;
            server.logged(CLOSED, turns - 1).await;
        }
    }
    for mart in &marts {
        assert_eq!(*server.query_in(mart, json!({"sql": "SELECT count(*) FROM t"})).await.rows(), json!([[rounds]]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_meets_a_closing_engine_waits_for_the_next() {
    let server = TestServer::start_with(&[("TARN_ENGINE_IDLE_SECONDS", "0.001")]).await;
    server.query("CREATE TABLE t(a INT)").await.rows();
    let mut rows = 0;
    // Each closing is met by a request as soon as it is told of.
    for closing in 1..=6 {
        server.logged(CLOSED, closing).await;
        server.query(&format!("INSERT INTO t VALUES ({closing})")).await.rows();
        rows += 1;
    }
    assert_eq!(*server.query("SELECT count(*) FROM t").await.rows(), json!([[rows]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_becomes_an_engine_and_one_that_died_is_missed_by_nobody() {
    let server = TestServer::start_with(&[("TARN_LOG", "info,node::supervisor=debug")]).await;
    let waits = "a blank engine waits";
    server.logged(waits, 1).await;
    let [spare] = children(&server)[..] else { panic!("one process waits: {:?}", children(&server)) };
    server.query("CREATE TABLE t AS SELECT 42 AS a").await.rows();
    assert_eq!(server.engine_pid(DEV), spare, "the process that waited serves the mart");
    server.logged(waits, 2).await;
    let next = children(&server).into_iter().find(|pid| *pid != spare).expect("another one waits in its place");
    let pid = |raw| Pid::from_raw(i32::try_from(raw).expect("a process id")).expect("not 0");
    kill_process(pid(next), Signal::KILL).expect("it runs");
    server.kill_engine(DEV);
    while server.query("FROM t").await.status != StatusCode::OK {}
    assert_ne!(server.engine_pid(DEV), next);
}
