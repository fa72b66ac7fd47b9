//! The writers' gate by order of the node.

use std::time::Duration;

use engine::wire::Point;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::{
    process::Process,
    support::{Got, Home, Served, ask_or_break, begin},
};

/// Writes until it is stopped.
const ENDLESS: &str =
    "insert into t select count(*) from range(1000000000) a, range(1000000000) b where a.range + b.range < 0";

async fn order(served: &Served, state: &str, wait_ms: u64, abort: bool) -> Got {
    let body = json!({"state": state, "wait_ms": wait_ms, "abort": abort}).to_string();
    served.send("POST", "/writers", body.into(), &[]).await
}

fn point(got: &Got) -> Point {
    let answer = got.json();
    assert_eq!(got.status, 200, "{answer}");
    let number = |name: &str| answer[name].as_u64().expect("a number");
    Point { iteration: number("iteration"), wal_bytes: number("wal_bytes") }
}

async fn with_table() -> (Served, Point) {
    let served = Served::start().await;
    let point = served.query("create table t(i bigint)").await.commit();
    (served, point)
}

/// Waits until a writer is inside: then the gate can't be closed at once, and stays open.
async fn until_writing(served: &Served) {
    while order(served, "closed", 0, false).await.status == 200 {
        assert_eq!(order(served, "open", 0, false).await.status, 200);
    }
}

async fn until_running(served: &Served, count: usize) {
    while served.server.engine().queries.len() < count {
        tokio::task::yield_now().await;
    }
}

fn exchanged(got: &Got) {
    let body = got.json();
    assert_eq!(
        (got.status, &body["code"], &body["retryable"], &body["outcome"]),
        (503, &json!("unavailable"), &json!(true), &json!("none")),
        "{body}"
    );
    assert!(body["message"].as_str().is_some_and(|text| text.contains("files are being exchanged")), "{body}");
    assert_eq!(body["hint"], "send it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_can_t_be_closed_in_time_is_open_again() {
    let (served, _) = with_table().await;
    let write = served.query(ENDLESS);
    let orders = async {
        until_writing(&served).await;
        let late = order(&served, "closed", 50, false).await;
        assert_eq!((late.status, late.json()["code"].clone()), (409, json!("conflict")));
        assert_eq!(order(&served, "retired", 50, false).await.status, 409);
        let at = served.query("insert into t values (1)").await.commit();
        assert_eq!(point(&order(&served, "closed", 0, true).await), at);
    };
    let (stopped, ()) = tokio::join!(write, orders);
    exchanged(&stopped);
    assert_eq!(served.rows("from t").await, json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_gate_keeps_its_position_and_those_who_wait_go_on_when_it_opens() {
    let (served, at) = with_table().await;
    assert_eq!(point(&order(&served, "closed", 5000, false).await), at);
    let write = served.query("insert into t values (7)");
    let orders = async {
        until_running(&served, 1).await;
        assert_eq!(served.rows("select count(*) from t").await, json!([[0]]));
        // The second time is as good as the first, and those who wait are not what stands in the way.
        assert_eq!(point(&order(&served, "closed", 0, true).await), at);
        assert_eq!(point(&order(&served, "open", 0, false).await).iteration, at.iteration);
        assert_eq!(order(&served, "open", 0, false).await.status, 200);
    };
    let (written, ()) = tokio::join!(write, orders);
    assert!(written.commit() > at);
    let done = served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 2000}"#.into(), &[]).await;
    assert_eq!(done.status, 200, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_takes_over_a_closed_gate_and_opens_it() {
    let (served, at) = with_table().await;
    assert_eq!(point(&order(&served, "closed", 5000, false).await), at);
    let write = served.query("insert into t values (7)");
    let orders = async {
        until_running(&served, 1).await;
        let done = served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 2000}"#.into(), &[]).await;
        assert_eq!((done.status, done.json()["iteration"].as_u64()), (200, Some(at.iteration + 1)));
    };
    let (written, ()) = tokio::join!(write, orders);
    assert_eq!(written.commit().iteration, at.iteration + 1, "it waited, and came after");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_writers_are_stopped_and_what_of_a_script_is_committed_is_said() {
    let (served, _) = with_table().await;
    let read = json!({"sql": "select i, repeat('x', 1000) from range(100000) t(i)"}).to_string();
    let read = served.begin("POST", "/query", read.into(), &[]).await;
    let script = format!("insert into t values (1); {ENDLESS}");
    let write = served.query(&script);
    let orders = async {
        while served.rows("select count(*) from t").await == json!([[0]]) {}
        loop {
            let at = point(&order(&served, "closed", 0, true).await);
            if served.server.engine().queries.len() == 1 {
                return at;
            }
            // It is between its statements.
            assert_eq!(order(&served, "open", 0, false).await.status, 200);
        }
    };
    let (stopped, at) = tokio::join!(write, orders);
    let body = stopped.json();
    assert_eq!((stopped.commit(), &body["outcome"], &body["retryable"]), (at, &json!("committed"), &json!(false)));
    assert_eq!((&body["statement_index"], &body["committed"]), (&json!(1), &json!(1)));
    let read = read.into_body().collect().await.expect("comes whole").to_bytes();
    let rows: Value = serde_json::from_slice(&read).expect("JSON");
    assert_eq!(rows["rows"].as_array().map(Vec::len), Some(100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_engine_reads_and_never_writes_again() {
    let (served, _) = with_table().await;
    let at = served.query("insert into t values (1)").await.commit();
    assert_eq!(point(&order(&served, "closed", 5000, false).await), at);
    let waiting = served.query("insert into t values (2)");
    let orders = async {
        until_running(&served, 1).await;
        assert_eq!(point(&order(&served, "retired", 0, false).await), at);
    };
    exchanged(&tokio::join!(waiting, orders).0);
    for sql in ["insert into t values (3)", "begin; insert into t values (3); commit", "create table u(i int)"] {
        exchanged(&served.query(sql).await);
    }
    exchanged(&served.ask(json!({"sql": "insert into t values (3)"}), &[("idempotency-key", "k")]).await);
    assert_eq!(served.rows("from t").await, json!([[1]]));
    for (state, status) in [("open", 409), ("closed", 409), ("retired", 200)] {
        assert_eq!(order(&served, state, 0, true).await.status, status, "{state}");
    }
    let checkpoint = served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 1000}"#.into(), &[]).await;
    assert_eq!(checkpoint.status, 409);
    assert_eq!(served.home.wal().metadata().expect("a log").len(), at.wal_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_none_is_refused() {
    let (served, _) = with_table().await;
    for body in [r#"{"state": "ajar"}"#, r#"{}"#, r#"{"state": "open", "now": true}"#, r#"["open"]"#] {
        let got = served.send("POST", "/writers", body.into(), &[]).await;
        assert_eq!((got.status, got.json()["code"].clone()), (400, json!("invalid")), "{body}");
    }
    assert_eq!(served.query("insert into t values (1)").await.status, 200);
}

/// The answer is in the pipe and in the sockets, its query long over.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_answers_that_are_not_read_yet() {
    let home = Home::new();
    let mut process = Process::start(&home, 512 << 20);
    process.query("create table t(i int)").await;
    let socket = process.socket.clone();
    let post = |path: &'static str, body: Value| {
        let socket = socket.clone();
        async move {
            let response = begin(&socket, "POST", path, body.to_string().into(), &[]).await;
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.expect("whole").to_bytes())
        }
    };
    assert_eq!(post("/writers", json!({"state": "retired", "wait_ms": 5000})).await.0, 200);
    // The feed has no end and is nothing to wait for.
    let _feed = begin(&socket, "GET", "/commits", Default::default(), &[]).await;
    let sql = json!({"sql": "select repeat('x', 1000) from range(3000)"}).to_string();
    let unread = begin(&socket, "POST", "/query", sql.into(), &[]).await;
    let health = || async {
        let body = begin(&socket, "GET", "/health", Default::default(), &[]).await.into_body();
        serde_json::from_slice::<Value>(&body.collect().await.expect("whole").to_bytes()).expect("JSON")
    };
    while health().await["queries"] != 0 {}
    let mut shutdown = tokio::spawn(post("/shutdown", json!({"grace_ms": 60_000})));
    // A connection that was just made may be closed instead of answered.
    while ask_or_break(&process.socket, "select 1").await.is_some_and(|(answer, _)| answer.get("rows").is_some()) {}
    let early = tokio::time::timeout(Duration::from_millis(300), &mut shutdown).await;
    assert!(early.is_err(), "an answer is still under way");
    let rows: Value =
        serde_json::from_slice(&unread.into_body().collect().await.expect("comes whole").to_bytes()).expect("JSON");
    assert_eq!(rows["rows"].as_array().map(Vec::len), Some(3000));
    assert_eq!(shutdown.await.expect("ends").0, 200);
    assert_eq!(process.wait(Duration::from_secs(5)).code(), Some(engine::wire::exit::OK));
}
