//! Results under way: bounded, broken when they fail, stopped when nobody reads them, and out of a checkpoint's way.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::json;

use crate::support::Served;

const ENDLESS: &str =
    r#"{"sql": "select count(*) from range(1000000000) a, range(1000000000) b where a.range + b.range < 0"}"#;

async fn running(served: &Served) -> usize {
    served.server.engine().queries.len()
}

/// Waits until no query runs; fails after `limit`.
async fn idle_within(served: &Served, limit: Duration) {
    let queries = served.server.engine().queries.clone();
    let idle =
        tokio::task::spawn_blocking(move || queries.wait_until_idle(Instant::now() + limit)).await.expect("waits");
    assert!(idle, "queries still run after {limit:?}");
}

async fn until_running(served: &Served, count: usize) {
    while running(served).await < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_first_byte_breaks_the_body() {
    let served = Served::start().await;
    let sql = "select repeat('x', 100), if(i < 3000000, 1, error('late')) from range(6000000) t(i)";
    for accept in ["application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.arrow.stream"] {
        let response =
            served.begin("POST", "/query", json!({ "sql": sql }).to_string().into(), &[("accept", accept)]).await;
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_err(), "{accept} ended as if whole");
    }
    idle_within(&served, Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_before_the_first_byte_is_an_error() {
    let served = Served::start().await;
    let got = served.query("select if(i < 3000, 1, error('early')) from range(6000) t(i)").await;
    assert_eq!((got.status, got.json()["code"].clone()), (422, json!("sql")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_stops_a_query_and_says_so() {
    let served = Served::start().await;
    let started = Instant::now();
    let body = ENDLESS.replace('}', r#", "timeout_ms": 200}"#);
    let got = served.send("POST", "/query", body.into(), &[]).await;
    assert_eq!(
        (got.status, got.json()["code"].clone(), got.json()["outcome"].clone()),
        (504, json!("timeout"), json!("none"))
    );
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_times_out_leaves_nothing() {
    let served = Served::start().await;
    served.query("create table t(a bigint)").await;
    let sql = "insert into t select a.range from range(100000000) a, range(100) b";
    let got = served.ask(json!({"sql": sql, "timeout_ms": 300}), &[]).await;
    assert_eq!((got.status, got.json()["outcome"].clone()), (504, json!("none")), "{got:?}");
    assert_eq!(served.rows("select count(*) from t").await, json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled_by_its_owner_only() {
    let served = Served::start().await;
    let id = uuid::Uuid::new_v4().to_string();
    let headers = [("tarn-query-id", id.as_str()), ("tarn-principal", "ann")];
    let query = served.send("POST", "/query", ENDLESS.into(), &headers);
    let cancel = async {
        until_running(&served, 1).await;
        let path = format!("/queries/{id}");
        let other = served.send("DELETE", &path, Default::default(), &[("tarn-principal", "bob")]).await;
        assert_eq!(other.status, 404);
        served.send("DELETE", &path, Default::default(), &[("tarn-principal", "ann")]).await
    };
    let (got, cancelled) = tokio::join!(query, cancel);
    assert_eq!((got.status, got.json()["code"].clone(), cancelled.status), (499, json!("cancelled"), 200));
    assert_eq!(got.header("tarn-query-id"), Some(id.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_stops_its_query_within_a_second() {
    let served = Served::start().await;
    {
        // Before the first byte.
        let waiting = served.begin("POST", "/query", ENDLESS.into(), &[]);
        tokio::select! {
            _ = waiting => panic!("an endless query answered"),
            () = until_running(&served, 1) => {}
        }
    }
    idle_within(&served, Duration::from_secs(1)).await;
    // In the middle of a stream.
    let sql = r#"{"sql": "select i, repeat('x', 1000) from range(100000000) t(i)"}"#;
    let response = served.begin("POST", "/query", sql.into(), &[]).await;
    let mut body = response.into_body();
    body.frame().await.expect("has begun").expect("is whole");
    assert_eq!(running(&served).await, 1);
    drop(body);
    idle_within(&served, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_waits_for_writers_and_holds_off_new_ones() {
    let served = Served::start().await;
    served.query("create table t(a bigint)").await;
    let slow = "begin; insert into t values (1); select count(*) from range(20000000) x, range(3) y where x.range + y.range < 0; commit";
    let checkpoint = async {
        until_running(&served, 1).await;
        served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 60000}"#.into(), &[]).await
    };
    let (written, checkpointed) = tokio::join!(served.query(slow), checkpoint);
    assert_eq!((written.status, checkpointed.status), (200, 200), "{checkpointed:?}");
    assert_eq!(
        served.query("insert into t values (2)").await.commit().iteration,
        checkpointed.json()["iteration"].as_u64().expect("a number")
    );
    assert_eq!(served.rows("select sum(a)::int from t").await, json!([[3]]));
    assert!(!served.home.dir.path().join("mart.db.wal.checkpoint").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_reader_refuses_a_checkpoint_until_it_is_aborted() {
    let served = Served::start().await;
    served.query("create table t as select range a from range(10)").await;
    let sql = r#"{"sql": "select r.range, repeat('x', 1000) from range(10000000) r, t"}"#;
    let response = served.begin("POST", "/query", sql.into(), &[]).await;
    let mut body = response.into_body();
    body.frame().await.expect("has begun").expect("is whole");
    served.query("update t set a = a + 1").await;
    let refused = served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 100}"#.into(), &[]).await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (409, json!("conflict")));
    assert!(served.query("insert into t values (7)").await.status == 200, "writers go on after a refusal");
    let done =
        served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 100, "abort_readers": true}"#.into(), &[]).await;
    assert_eq!((done.status, done.json()["iteration"].clone()), (200, json!(1)), "{done:?}");
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return;
        }
    }
    panic!("the aborted stream ended as if whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_returning_waits_in_a_file_for_its_commit() {
    let served = Served::start().await;
    let got = served.query("create table t(a bigint, s varchar); insert into t select range, repeat('y', 100) from range(500000) returning *").await;
    assert_eq!(got.status, 200);
    assert!(got.body.len() > 40 << 20);
    assert_eq!(got.json()["row_count"], 500_000);
    assert_eq!(got.commit().wal_bytes, std::fs::metadata(served.home.wal()).expect("a log").len());
}

#[tokio::test(flavor = "multi_thread")]
async fn max_rows_cuts_and_says_so() {
    let served = Served::start().await;
    let got = served.ask(json!({"sql": "select range from range(100000000000)", "max_rows": 3}), &[]).await;
    assert_eq!((got.json()["rows"].clone(), got.json()["truncated"].clone()), (json!([[0], [1], [2]]), json!(true)));
    let got = served.ask(json!({"sql": "select range from range(3)", "max_rows": 3}), &[]).await;
    assert_eq!(got.json()["truncated"], json!(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_was_cut_is_no_reader_any_more() {
    let served = Served::start().await;
    served.query("create table t as select range a from range(3000000)").await;
    assert_eq!(served.ask(json!({"sql": "from t", "max_rows": 3}), &[]).await.json()["row_count"], 3);
    served.query("update t set a = a + 1 where a < 10").await;
    let done = served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 2000}"#.into(), &[]).await;
    assert_eq!((done.status, done.json()["iteration"].clone()), (200, json!(1)), "{done:?}");
}
