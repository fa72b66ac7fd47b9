//! Queries at an earlier moment: they see that moment, cost the live engine nothing, and end nobody's work.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::history::{MART, get, post};
use crate::server::{Answer, DEV, TestServer};

async fn at(server: &TestServer, sql: &str, at: &str) -> Answer {
    server.query_in(DEV, json!({"sql": sql, "at": at})).await
}

async fn list_at(server: &TestServer, moment: &str) -> Value {
    let answer = at(server, "SELECT list(a ORDER BY a) FROM t", moment).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.durable.as_deref(), Some("object"));
    answer.rows()[0][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_sees_the_moment_it_names_and_the_live_mart_goes_on() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let mut positions = Vec::new();
    for value in 0..3 {
        let sql = format!("INSERT INTO t VALUES ({value})");
        positions.push(server.query(&sql).await.position.expect("a commit has a position"));
    }
    post(&server, &format!("{MART}/snapshots"), json!({"name": "three"})).await;
    // Over a row group: its blocks go beside the log.
    server.query("INSERT INTO t SELECT 100 + range FROM range(200000)").await.rows();
    let engine = server.engine_pid(DEV);
    assert_eq!(list_at(&server, "three").await, json!([0, 1, 2]));
    for (index, position) in positions.iter().enumerate() {
        let expected: Vec<_> = (0..=index).collect();
        assert_eq!(list_at(&server, position).await, json!(expected), "{position}");
        let answer = at(&server, "SELECT 1", position).await;
        assert_eq!(answer.position.as_deref(), Some(&**position), "the answer says what it saw");
    }
    let listed = get(&server, &format!("{MART}/history")).await;
    let times: Vec<_> = listed.body["moments"].as_array().expect("a list").clone();
    let bulk = times.iter().find(|moment| moment["what"] == "commit").expect("the newest commit");
    let counted = at(&server, "SELECT count(*) FROM t", bulk["time"].as_str().expect("a time")).await;
    assert_eq!(counted.rows()[0][0], json!(200_003));
    let insert = server.query("INSERT INTO t VALUES (7)").await;
    assert_eq!(insert.status, StatusCode::OK);
    assert_eq!(server.engine_pid(DEV), engine, "the live engine was not touched");
    assert_eq!(server.query("SELECT count(*) FROM t").await.rows()[0][0], json!(200_004));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_between_two_commits_means_the_earlier_one() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    for value in 0..3 {
        server.query(&format!("INSERT INTO t VALUES ({value})")).await.rows();
    }
    let listed = get(&server, &format!("{MART}/history")).await;
    let times: Vec<_> = listed.body["moments"].as_array().expect("a list").clone();
    let commits: Vec<_> =
        times.iter().filter(|m| m["what"] == "commit").filter_map(|m| m["time"].as_str()).take(3).collect();
    for (index, time) in commits.iter().rev().enumerate() {
        let expected: Vec<_> = (0..=index).collect();
        assert_eq!(list_at(&server, time).await, json!(expected));
        let micros = chrono::DateTime::parse_from_rfc3339(time).expect("a time").timestamp_micros();
        let before = chrono::DateTime::from_timestamp_micros(micros - 1).expect("a time").to_rfc3339();
        let expected: Vec<_> = (0..index).collect();
        let answer = at(&server, "SELECT coalesce(list(a ORDER BY a), []) FROM t", &before).await;
        assert_eq!(answer.rows()[0][0], json!(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_reads_run_at_an_earlier_moment() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT); CREATE SEQUENCE s; CREATE MACRO n() AS nextval('s')").await;
    let position = server.query("INSERT INTO t VALUES (1)").await.position.expect("a position");
    for sql in ["INSERT INTO t VALUES (2)", "CREATE TEMP TABLE x(a INT)", "BEGIN", "SELECT nextval('s')", "SELECT n()"]
    {
        let refused = at(&server, sql, &position).await;
        assert_eq!((refused.code(), &refused.body["outcome"]), ("invalid", &json!("none")), "{sql}: {refused:?}");
    }
    for (moment, code) in [("nothing-like-it", "not_found"), ("1.2", "invalid"), ("9.9.9", "not_found")] {
        assert_eq!(at(&server, "SELECT 1", moment).await.code(), code, "{moment}");
    }
    let hidden = at(&server, "SELECT * FROM read_blob('s3://tarn-past/mart.db')", &position).await;
    assert_eq!(hidden.code(), "forbidden", "{hidden:?}");
    assert_eq!(list_at(&server, &position).await, json!([1]));
}

/// DuckDB can't replay it read-only: such a moment is restored to disk instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_moment_whose_log_builds_an_index_can_be_read_too() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT range AS a FROM range(10)").await.rows();
    let position = server.query("CREATE INDEX i ON t(a)").await.position.expect("a position");
    server.query("DELETE FROM t").await.rows();
    assert_eq!(list_at(&server, &position).await, json!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
    assert_eq!(at(&server, "DELETE FROM t", &position).await.code(), "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_of_earlier_moments_make_room_for_each_other_and_a_mart_can_be_lost_in_between() {
    let mut server = TestServer::start_with(&[("TARN_PAST_ENGINES", "2")]).await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let mut positions = Vec::new();
    for value in 0..5 {
        let sql = format!("INSERT INTO t VALUES ({value})");
        positions.push(server.query(&sql).await.position.expect("a commit has a position"));
    }
    for round in 0..2 {
        for (index, position) in positions.iter().enumerate() {
            let expected: Vec<_> = (0..=index).collect();
            assert_eq!(list_at(&server, position).await, json!(expected), "round {round}");
        }
    }
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(list_at(&server, &positions[1]).await, json!([0, 1]), "no restore is needed to ask");
}

/// S21 of docs/seed-coverage.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_vacuum_gives_space_back_under_reads_and_keeps_every_row() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT range AS a, hash(range)::VARCHAR AS b FROM range(1000000)").await.rows();
    server.query("CREATE TABLE p(id INT PRIMARY KEY); CREATE TABLE c(id INT REFERENCES p(id))").await;
    server.query("INSERT INTO p VALUES (1); INSERT INTO c VALUES (1)").await;
    let before = server.query("DELETE FROM t WHERE a % 10 <> 0").await.position.expect("a position");
    let sum = server.query("SELECT sum(a), count(*), max(b) FROM t").await.rows().clone();
    let streaming = server.requests();
    let reader = tokio::spawn(async move {
        let body = json!({"sql": "SELECT count(*) FROM t a, range(300) b"});
        let request = streaming.request(reqwest::Method::POST, &format!("{MART}/query")).json(&body);
        streaming.try_send(request).await.expect("the node runs")
    });
    let done = post(&server, &format!("{MART}/vacuum"), json!({})).await;
    assert_eq!(done.status, StatusCode::OK, "{done:?}");
    let (bytes_before, bytes_after) = (done.body["bytes_before"].as_u64(), done.body["bytes_after"].as_u64());
    assert!(bytes_after.expect("bytes") * 2 < bytes_before.expect("bytes"), "{done:?}");
    assert_eq!(reader.await.expect("it ends").rows()[0][0], json!(100_000 * 300), "a read under way is not cut off");
    assert_eq!(*server.query("SELECT sum(a), count(*), max(b) FROM t").await.rows(), sum);
    let again = server.query("vacuum;").await;
    assert!(again.rows()[0][1].as_u64() <= bytes_after, "in SQL it is the same: {again:?}");
    let refused = server.query("INSERT INTO c VALUES (2)").await;
    assert_eq!(refused.code(), "sql", "the foreign key is still there: {refused:?}");
    server.query("INSERT INTO t VALUES (-1, 'x')").await.rows();
    let after = server.query("SELECT sum(a), count(*) FROM t").await.rows().clone();
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(*server.query("SELECT sum(a), count(*) FROM t").await.rows(), after);
    assert_eq!(*at(&server, "SELECT sum(a), count(*), max(b) FROM t", &before).await.rows(), sum, "and so is the past");
}
