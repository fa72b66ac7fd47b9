//! Bad requests: each a clear error of the contract, and an unharmed server.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{DEV, TOKEN, TestServer};

const QUERY: &str = "/v1/tenants/default/marts/dev/query";

async fn still_serves(server: &TestServer) {
    assert_eq!(*server.query("SELECT 42").await.rows(), json!([[42]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_the_contracts_errors() {
    let server = TestServer::start().await;
    let post =
        |body: &'static [u8]| server.request(Method::POST, QUERY).header("content-type", "application/json").body(body);
    let long = format!("SELECT '{}'", "x".repeat(300_000));
    let elsewhere =
        server.request(Method::POST, "/v1/tenants/default/marts/nowhere/query").json(&json!({"sql": "SELECT 1"}));
    let badly_named =
        server.request(Method::POST, "/v1/tenants/default/marts/Dev%2F..%2Fx/query").json(&json!({"sql": "SELECT 1"}));
    let strange_accept =
        server.request(Method::POST, QUERY).header("accept", "image/png").json(&json!({"sql": "SELECT 1"}));
    let inner = server.request(Method::POST, QUERY).header("accept", "application/x-tarn-flight");
    let inner = inner.json(&json!({"sql": "SELECT 1"}));
    let bad_id = server.request(Method::POST, QUERY).header("tarn-query-id", "seven").json(&json!({"sql": "SELECT 1"}));
    let sql = |text: &str| server.request(Method::POST, QUERY).json(&json!({ "sql": text }));
    let params = server.request(Method::POST, QUERY).json(&json!({"sql": "SELECT $1 + $2", "params": [1]}));
    for (what, request, code) in [
        ("no JSON", post(b"select 1"), "invalid"),
        ("an array", post(b"[1]"), "invalid"),
        ("an array of what the fields would be", post(br#"["SELECT 1", null, 5000]"#), "invalid"),
        ("an array for a tenant", server.request(Method::POST, "/v1/tenants").json(&json!(["acme"])), "invalid"),
        ("an empty object", post(b"{}"), "invalid"),
        ("an unknown field", post(br#"{"sql": "SELECT 1", "sqk": 1}"#), "invalid"),
        ("a duplicate field", post(br#"{"sql": "SELECT 1", "sql": "SELECT 2"}"#), "invalid"),
        ("a wrong type", post(br#"{"sql": 1}"#), "invalid"),
        ("invalid UTF-8", post(b"{\"sql\": \"SELECT '\xff\xfe'\"}"), "invalid"),
        ("an unknown durability", post(br#"{"sql": "SELECT 1", "durability": "disk"}"#), "invalid"),
        ("bad SQL", sql("SELECT 1 +"), "sql"),
        ("no SQL", sql("SELEKT 1"), "sql"),
        ("an unknown table", sql("SELECT * FROM nowhere"), "sql"),
        ("300 KB of SQL", sql(&long), "too_large"),
        ("too few parameters", params, "invalid"),
        ("an unknown mart", elsewhere, "not_found"),
        ("a name that is none", badly_named, "not_found"),
        ("a format we don't have", strange_accept, "invalid"),
        ("a format that is not for clients", inner, "invalid"),
        ("a query id that is none", bad_id, "invalid"),
        ("an unknown path", server.request(Method::GET, "/v1/nothing"), "not_found"),
        ("a wrong method", server.request(Method::GET, QUERY), "invalid"),
        (
            "a position that is none",
            server.request(Method::GET, "/v1/tenants/default/marts/dev/positions/x"),
            "invalid",
        ),
    ] {
        let answer = server.send(request).await;
        assert_eq!(answer.code(), code, "{what}: {answer:?}");
        for field in ["message", "hint", "request_id"] {
            assert!(answer.body[field].is_string(), "{what} lacks {field}: {answer:?}");
        }
        assert!(!answer.body["request_id"].as_str().expect("checked").is_empty(), "{what}: {answer:?}");
        assert_eq!(answer.body["outcome"], "none", "{what}");
        let state = server.state_dir();
        assert!(!answer.body.to_string().contains(&*state.to_string_lossy()), "{what} names a path of the server");
    }
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_known_tokens_open() {
    let server = TestServer::start().await;
    let client = reqwest::Client::new();
    let url = format!("http://{}{QUERY}", server.address());
    for authorization in
        [None, Some("Bearer wrong".to_owned()), Some(format!("Basic {TOKEN}")), Some(format!("Bearer {TOKEN}x"))]
    {
        let mut request = client.post(&url).json(&json!({"sql": "SELECT 1"}));
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let response = request.send().await.expect("it answers");
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers().contains_key("www-authenticate"));
        let body: Value = response.json().await.expect("an error is JSON");
        assert_eq!(body["code"], "unauthenticated");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_half_way_harms_nobody() {
    let server = TestServer::start().await;
    let mut stream = tokio::net::TcpStream::connect(server.address()).await.expect("it listens");
    let head = format!(
        "POST {QUERY} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 1000\r\n\r\n{{\"sql\": \"SEL"
    );
    stream.write_all(head.as_bytes()).await.expect("it reads");
    stream.shutdown().await.expect("the socket is open");
    let mut answer = String::new();
    // Either nothing or a refusal: the client has hung up.
    let _ = stream.read_to_string(&mut answer).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_script_says_where_and_what_was_committed() {
    let server = TestServer::start().await;
    let answer = server
        .query(
            "CREATE TABLE t(a INTEGER); INSERT INTO t VALUES (1); INSERT INTO t VALUES ('x'); INSERT INTO t VALUES (2)",
        )
        .await;
    assert_eq!(answer.code(), "sql");
    assert_eq!((&answer.body["statement_index"], &answer.body["committed"]), (&json!(2), &json!(2)));
    assert_eq!((&answer.body["outcome"], &answer.body["retryable"]), (&json!("committed"), &json!(false)));
    assert!(answer.body["position"].is_string(), "{answer:?}");
    assert_eq!(*server.query("SELECT a FROM t").await.rows(), json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_query_and_a_cancel_does_too() {
    let server = TestServer::start().await;
    let endless = "SELECT count(*) FROM range(1000000000000) a, range(1000000) b";
    let late = server.query_in(DEV, json!({"sql": endless, "timeout_ms": 200})).await;
    assert_eq!(late.code(), "timeout");
    assert_eq!(late.body["outcome"], "none");

    let id = "6f1c2f6e-7c4b-4f1e-9d52-0d6e5b2a9c11";
    let running =
        server.send(server.request(Method::POST, QUERY).header("tarn-query-id", id).json(&json!({ "sql": endless })));
    let cancel = async {
        loop {
            let answer = server.send(server.request(Method::DELETE, &format!("/v1/queries/{id}"))).await;
            if answer.status == StatusCode::OK {
                break;
            }
            assert_eq!(answer.code(), "not_found");
        }
    };
    let (cancelled, ()) = tokio::join!(running, cancel);
    assert_eq!(cancelled.code(), "cancelled");
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_null_is_a_field_left_out() {
    let server = TestServer::start().await;
    let body = json!({"sql": "SELECT 42", "params": null, "timeout_ms": null, "durability": null, "max_rows": null});
    let answer = server.send(server.request(Method::POST, QUERY).json(&body)).await;
    assert_eq!((answer.status, answer.rows()), (StatusCode::OK, &json!([[42]])));
}
