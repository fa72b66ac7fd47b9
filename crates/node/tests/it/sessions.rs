//! Sessions over HTTP: transactions and temporary tables from request to request, whose they are, and how they end.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::admin::with;
use crate::server::{Answer, DEV, TestServer};

const SESSIONS: &str = "/v1/tenants/default/marts/dev/sessions";
const QUERY: &str = "/v1/tenants/default/marts/dev/query";

async fn open(server: &TestServer) -> String {
    let opened = server.send(server.request(Method::POST, SESSIONS)).await;
    assert_eq!(opened.status, StatusCode::OK, "{opened:?}");
    opened.body["session"].as_str().expect("it has an id").to_owned()
}

async fn run(server: &TestServer, session: &str, sql: &str) -> Answer {
    server.query_in(DEV, json!({"sql": sql, "session": session})).await
}

async fn ok(server: &TestServer, session: &str, sql: &str) -> Answer {
    let answer = run(server, session, sql).await;
    assert_eq!(answer.status, StatusCode::OK, "{sql}: {answer:?}");
    answer
}

async fn close(server: &TestServer, session: &str) -> Answer {
    server.send(server.request(Method::DELETE, &format!("{SESSIONS}/{session}"))).await
}

async fn rows(server: &TestServer, sql: &str) -> Value {
    server.query(sql).await.rows().clone()
}

/// A token of the default tenant.
pub async fn token(server: &TestServer, role: &str) -> String {
    server.query("SELECT 1").await.rows();
    let body = json!({"tenant": "default", "role": role, "name": "test"});
    let made = server.send(server.request(Method::POST, "/v1/tokens").json(&body)).await;
    made.body["token"].as_str().unwrap_or_else(|| panic!("no token: {made:?}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_lives_from_request_to_request_and_is_durable_at_its_commit() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let opened = server.send(server.request(Method::POST, SESSIONS).json(&json!({}))).await;
    assert_eq!((&opened.body["idle_ms"], &opened.body["idle_in_transaction_ms"]), (&json!(900_000), &json!(60_000)));
    let session = opened.body["session"].as_str().expect("it has an id");
    ok(&server, session, "BEGIN").await;
    ok(&server, session, "INSERT INTO t VALUES (1)").await;
    ok(&server, session, "INSERT INTO t VALUES (2)").await;
    assert_eq!(*ok(&server, session, "SELECT sum(a)::INTEGER FROM t").await.rows(), json!([[3]]));
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[0]]), "nobody else sees it yet");
    let before = server.query("SELECT 1").await.position;
    let committed = ok(&server, session, "COMMIT").await;
    assert_eq!(committed.durable.as_deref(), Some("object"));
    assert!(committed.position.is_some() && committed.position != before, "{committed:?} {before:?}");
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[2]]));

    ok(&server, session, "BEGIN; INSERT INTO t VALUES (3)").await;
    let local = server.query_in(DEV, json!({"sql": "COMMIT", "session": session, "durability": "local"})).await;
    assert_eq!((local.status, local.position.is_some()), (StatusCode::OK, true), "{local:?}");
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[3]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_temporary_is_the_session_s_own_and_outlives_a_request() {
    let server = TestServer::start().await;
    let (one, other) = (open(&server).await, open(&server).await);
    ok(&server, &one, "CREATE TEMP TABLE mine AS SELECT 7 AS a").await;
    ok(&server, &one, "CREATE TEMP MACRO twice(x) AS x * 2").await;
    assert_eq!(*ok(&server, &one, "SELECT twice(a) FROM mine").await.rows(), json!([[14]]));
    assert_eq!(run(&server, &other, "FROM mine").await.code(), "sql");
    assert_eq!(server.query("FROM mine").await.code(), "sql");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_closed_rolls_back_and_is_gone() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let session = open(&server).await;
    ok(&server, &session, "BEGIN; INSERT INTO t VALUES (1)").await;
    let closed = close(&server, &session).await;
    assert_eq!((closed.status, &closed.body["closed"]), (StatusCode::OK, &json!(true)), "{closed:?}");
    assert_eq!(run(&server, &session, "COMMIT").await.code(), "not_found");
    assert_eq!(close(&server, &session).await.code(), "not_found");
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_its_principal_s_alone() {
    let server = TestServer::start().await;
    let (ann, bob) = (token(&server, "writer").await, token(&server, "writer").await);
    let opened = server.send(with(server.request(Method::POST, SESSIONS), &ann)).await;
    let session = opened.body["session"].as_str().expect("it has an id");
    let body = json!({"sql": "SELECT 1", "session": session});
    let ask = |token: &str| server.send(with(server.request(Method::POST, QUERY).json(&body), token));
    assert_eq!(ask(&bob).await.code(), "not_found");
    let closed = server.send(with(server.request(Method::DELETE, &format!("{SESSIONS}/{session}")), &bob)).await;
    assert_eq!(closed.code(), "not_found");
    assert_eq!(ask(&ann).await.status, StatusCode::OK);
    // Nor is it in another mart.
    server.send(server.request(Method::POST, "/v1/tenants/default/marts").json(&json!({"name": "other"}))).await;
    let elsewhere = server.request(Method::POST, "/v1/tenants/default/marts/other/query").json(&body);
    assert_eq!(server.send(with(elsewhere, &ann)).await.code(), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_go_with_a_session_is_refused() {
    let server = TestServer::start().await;
    let session = open(&server).await;
    let unknown = "0b7e9a52-2f4b-4a0c-9d1e-6a7f21c0d4e8";
    for (what, body, code) in [
        ("an id that is none", json!({"sql": "SELECT 1", "session": "seven"}), "invalid"),
        ("an id that is unknown", json!({"sql": "SELECT 1", "session": unknown}), "not_found"),
        ("a moment", json!({"sql": "SELECT 1", "session": session, "at": "2026-01-31T12:00:00Z"}), "invalid"),
        ("a vacuum", json!({"sql": "VACUUM", "session": session}), "invalid"),
    ] {
        let answer = server.query_in(DEV, body).await;
        assert_eq!((answer.code(), &answer.body["outcome"]), (code, &json!("none")), "{what}: {answer:?}");
    }
    let keyed = server.request(Method::POST, QUERY).header("idempotency-key", "k");
    assert_eq!(server.send(keyed.json(&json!({"sql": "SELECT 1", "session": session}))).await.code(), "invalid");
    assert_eq!(close(&server, "seven").await.code(), "not_found");
    let odd = server.send(server.request(Method::POST, SESSIONS).json(&json!({"idle_ms": 5}))).await;
    assert_eq!(odd.code(), "invalid");
    let nowhere = server.send(server.request(Method::POST, "/v1/tenants/default/marts/nowhere/sessions")).await;
    assert_eq!(nowhere.code(), "not_found");
    // The session has come to no harm.
    ok(&server, &session, "SELECT 1").await;
}

fn assert_conflict(answer: &Answer) {
    assert_eq!(answer.code(), "conflict", "{answer:?}");
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!((&answer.body["retryable"], &answer.body["outcome"]), (&json!(true), &json!("none")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sessions_that_update_one_row_the_second_may_try_again() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT 1 AS id, 0 AS n; CREATE TABLE k(id INTEGER PRIMARY KEY)").await.rows();
    let (one, other) = (open(&server).await, open(&server).await);
    for session in [&one, &other] {
        ok(&server, session, "BEGIN; SELECT * FROM t").await;
    }
    ok(&server, &one, "UPDATE t SET n = n + 1").await;
    let update = run(&server, &other, "UPDATE t SET n = n + 1").await;
    assert_conflict(&update);
    ok(&server, &one, "COMMIT").await;
    ok(&server, &other, "ROLLBACK").await;
    ok(&server, &other, "UPDATE t SET n = n + 1").await;
    assert_eq!(rows(&server, "SELECT n FROM t").await, json!([[2]]));

    // One that shows only at the commit.
    for session in [&one, &other] {
        ok(&server, session, "BEGIN; INSERT INTO k VALUES (1)").await;
    }
    ok(&server, &one, "COMMIT").await;
    let commit = run(&server, &other, "COMMIT").await;
    assert_conflict(&commit);
    assert_eq!(rows(&server, "SELECT count(*) FROM k").await, json!([[1]]));
    // And of names.
    for session in [&one, &other] {
        ok(&server, session, "BEGIN").await;
    }
    ok(&server, &one, "CREATE TABLE fresh(a INTEGER)").await;
    assert_conflict(&run(&server, &other, "CREATE TABLE fresh(b INTEGER)").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_nobody_goes_on_with_is_rolled_back_and_says_so() {
    let server = TestServer::start_with(&[("TARN_TRANSACTION_IDLE_MS", "300")]).await;
    server.query("CREATE TABLE t AS SELECT 0 AS n").await.rows();
    let session = open(&server).await;
    ok(&server, &session, "BEGIN; UPDATE t SET n = 1").await;
    // It stands in the way until it is rolled back.
    while server.query("UPDATE t SET n = 2").await.status != StatusCode::OK {}
    let told = run(&server, &session, "UPDATE t SET n = 3").await;
    assert_conflict(&told);
    assert!(told.body["message"].as_str().is_some_and(|text| text.contains("idle")), "{told:?}");
    assert_conflict(&run(&server, &session, "SELECT n FROM t").await);
    ok(&server, &session, "ROLLBACK").await;
    assert_eq!(*ok(&server, &session, "SELECT n FROM t").await.rows(), json!([[2]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_uses_ends() {
    let server = TestServer::start_with(&[("TARN_SESSION_IDLE_MS", "1")]).await;
    let session = open(&server).await;
    loop {
        let answer = run(&server, &session, "SELECT 1").await;
        if answer.status != StatusCode::OK {
            assert_eq!((answer.code(), &answer.body["retryable"]), ("not_found", &json!(false)), "{answer:?}");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_a_session_whose_engine_is_killed() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let session = open(&server).await;
    ok(&server, &session, "BEGIN; INSERT INTO t VALUES (2); CREATE TABLE u AS SELECT 3 AS a").await;
    server.kill_engine(DEV);
    let told = loop {
        let answer = run(&server, &session, "COMMIT").await;
        if answer.code() != "unavailable" {
            break answer;
        }
    };
    assert_eq!(told.code(), "not_found", "{told:?}");
    assert_eq!(rows(&server, "SELECT list(a) FROM t").await, json!([[[1]]]));
    assert_eq!(server.query("FROM u").await.code(), "sql");
}
