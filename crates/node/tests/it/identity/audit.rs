//! What the audit log says, and what it never does.

use std::path::{Path, PathBuf};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{acme, query, revoke, token};
use crate::flight::client::Client;
use crate::server::{TOKEN, TestServer};

fn log_of(server: &TestServer) -> PathBuf {
    server.state_dir().join("audit.jsonl")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The first line that is so, once it is there.
async fn line(path: &Path, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        // The writer may be in the middle of one.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().filter_map(|line| serde_json::from_str(line).ok()).find(|line| wanted(line));
        if let Some(found) = found {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_leaves_a_line_that_says_who_did_what_and_no_secret() {
    let mut server = TestServer::start_with(&[("TARN_AUDIT_SQL", "text")]).await;
    acme(&server).await;
    let (id, text) = token(&server, json!({"tenant": "acme", "role": "writer", "name": "etl"})).await;
    query(&server, &text, "acme/sales", "CREATE TABLE t AS SELECT 1 AS a").await.rows();
    query(&server, &text, "acme/sales", &format!("SELECT '{text}' AS leaked")).await.rows();
    query(&server, &text, "evil/sales", "SELECT 1").await.code();
    query(&server, &text, "acme/sales", "SELECT nothing FROM nowhere").await.code();
    let client = Client::connect_as(server.address(), &text).await.with("tarn-mart", "acme/sales");
    let info = client.execute("SELECT a FROM t").await.expect("it runs");
    client.count(&info).await.expect("it runs");
    revoke(&server, &id).await;
    query(&server, &text, "acme/sales", "SELECT 1").await.code();
    Client::connect_as(server.address(), &text).await.execute("SELECT 1").await.expect_err("it was revoked");
    server.stop().await;

    let all = lines(&log_of(&server));
    let one = |action: &str, outcome: &str| {
        let found =
            all.iter().find(|line| line["action"] == action && line["outcome"] == outcome && line["name"] != "admin");
        found.unwrap_or_else(|| panic!("no `{action}` that is `{outcome}` in {all:#?}"))
    };
    let made = all.iter().find(|line| line["action"] == "token.create").expect("it was made");
    assert_eq!((&made["object"], &made["tenant"], &made["auth"]), (&json!(id), &json!("acme"), &json!("admin")));
    let created = one("query", "ok");
    let said = |field: &str| created[field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (said("principal"), said("name"), said("auth"), said("role")),
        (id.clone(), "etl".into(), "token".into(), "writer".into())
    );
    assert_eq!((said("tenant"), said("mart"), said("kind")), ("acme".into(), "sales".into(), "ddl".into()));
    assert_eq!(said("sql"), "CREATE TABLE t AS SELECT 1 AS a");
    assert!(said("peer").starts_with("127.0.0.1:"), "{created}");
    assert!(said("time").ends_with('Z') && said("time").len() == "2026-01-31T12:00:00.000000Z".len(), "{created}");
    assert!(
        said("query").len() == 36 && created["duration_ms"].is_number() && created["bytes"].is_number(),
        "{created}"
    );
    let foreign = one("query", "forbidden");
    assert_eq!((&foreign["tenant"], &foreign["mart"]), (&json!("evil"), &json!("sales")));
    one("query", "sql");
    assert_eq!(one("flight.get_flight_info", "ok")["sql"], "SELECT a FROM t");
    assert_eq!(one("flight.do_get", "ok")["mart"], "sales");
    let revoked = all.iter().find(|line| line["action"] == "token.revoke").expect("it was revoked");
    assert_eq!(revoked["object"], json!(id));
    for action in ["query", "flight.get_flight_info"] {
        let refused = one(action, "unauthenticated");
        assert_eq!((&refused["principal"], &refused["reason"]), (&Value::Null, &json!("unknown token")), "{refused}");
    }

    let secret = text.rsplit('_').next().expect("it has parts");
    let written = std::fs::read_to_string(log_of(&server)).expect("it is there");
    assert!(!written.contains(secret) && !written.contains(TOKEN), "a token is in the audit log");
    assert!(written.contains("[redacted]"));
    assert!(!server.log().contains(secret), "a token is in the node's log");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(log_of(&server)).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_or_does_not_wait_is_in_it_too() {
    let server = TestServer::start().await;
    server.query("SELECT 1").await.rows();
    let path = log_of(&server);
    // No row comes before the end.
    let slow = "SELECT count(*) FROM range(10000000000) AS t(i) WHERE i % 7 = 3";
    let id = uuid::Uuid::new_v4().to_string();
    let asked = super::query_request(&server, TOKEN, crate::server::DEV, slow).header("tarn-query-id", &id).send();
    let waits = tokio::spawn(asked);
    let shown = format!("/v1/queries/{id}");
    while server.send(server.request(Method::GET, &shown)).await.status != StatusCode::OK {}
    waits.abort();
    let left = line(&path, |line| line["query"] == id.as_str() && line["action"] == "query").await;
    assert_eq!((&left["outcome"], &left["kind"]), (&json!("cancelled"), &json!("read")), "{left}");

    let sql = json!({"sql": "CREATE TABLE later(i INT)"});
    let job = super::post(&server, "/v1/tenants/default/marts/dev/queries", sql).await;
    let ran = line(&path, |line| line["action"] == "query.run").await;
    assert_eq!((&ran["query"], &ran["outcome"], &ran["kind"]), (&job.body["id"], &json!("ok"), &json!("ddl")), "{ran}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_is_in_it_only_if_asked_for_and_a_moved_log_is_begun_anew() {
    let server = TestServer::start_with(&[("TARN_AUDIT_SQL", "hash")]).await;
    server.query("SELECT 42").await.rows();
    let path = log_of(&server);
    let first = line(&path, |line| line["action"] == "query").await;
    assert_eq!(first["sql_blake3"], blake3::hash(b"SELECT 42").to_hex().to_string());
    assert!(first["sql"].is_null() && first["kind"] == "read", "{first}");
    std::fs::rename(&path, path.with_extension("1")).expect("it is there");
    server.query("SELECT 43").await.rows();
    line(&path, |line| line["sql_blake3"] == blake3::hash(b"SELECT 43").to_hex().to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bad_tokens_leaves_few_lines() {
    let mut server = TestServer::start().await;
    for index in 0..300 {
        query(&server, &format!("tarn_{index}_x"), "acme/sales", "SELECT 1").await.code();
    }
    server.stop().await;
    let all = lines(&log_of(&server));
    let refused: Vec<_> =
        all.iter().filter(|line| line["outcome"] == "limited" || line["outcome"] == "unauthenticated").collect();
    assert!((20..40).contains(&refused.len()), "{}", refused.len());
    assert_eq!(refused.last().expect("there are some")["repeated"], 256);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_the_node_serves_on_or_not_as_it_is_told() {
    let mut server = TestServer::start_with(&[("TARN_AUDIT", "/dev/full")]).await;
    server.query("SELECT 1").await.rows();
    server.logged("the audit log can't be written", 1).await;
    server.query("SELECT 1").await.rows();
    server.stop().await;
    server.start_again_with(&[("TARN_AUDIT_REQUIRED", "true")]).await;
    // The first request's line is what finds it out.
    loop {
        let answer = server.query("SELECT 1").await;
        if answer.status != StatusCode::OK {
            assert_eq!((answer.code(), &answer.body["outcome"]), ("unavailable", &json!("none")));
            break;
        }
    }
    let client = Client::connect(server.address()).await;
    assert_eq!(client.execute("SELECT 1").await.expect_err("nobody is served").code(), tonic::Code::Unavailable);
    let health = server.send(server.request(Method::GET, "/healthz")).await;
    assert_eq!(health.status, StatusCode::OK);
    assert!(server.stop().await.success(), "it stops all the same");
}
