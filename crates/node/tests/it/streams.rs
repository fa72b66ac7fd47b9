//! Large answers through the node, and clients that go away.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{DEV, TestServer, resident_bytes};

const GIGABYTE: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_to_a_slow_client_needs_little_memory_in_node_and_engine() {
    let server = TestServer::start().await;
    server.query("SELECT 1").await.rows();
    let (node, engine) = (server.node_pid(), server.engine_pid(DEV));
    let before = (resident_bytes(node), resident_bytes(engine));
    let sql = "SELECT i, repeat('abcdefgh', 125) s FROM range(1000000) t(i)";
    let request = server.request(Method::POST, "/v1/tenants/default/marts/dev/query");
    let request = request.header("accept", "application/vnd.apache.arrow.stream").json(&json!({ "sql": sql }));
    let mut answer = request.send().await.expect("it answers");
    assert_eq!(answer.status(), StatusCode::OK);
    let (mut bytes, mut looked, mut most) = (0u64, 0, (0, 0));
    while let Some(piece) = answer.chunk().await.expect("it comes whole") {
        bytes += piece.len() as u64;
        if bytes > looked {
            // Other requests of a client that reads slowly: whoever sends has all the time to run ahead.
            assert_eq!(server.query("SELECT count(*) FROM range(1000000)").await.status, StatusCode::OK);
            looked = bytes + (16 << 20);
            most = (most.0.max(resident_bytes(node)), most.1.max(resident_bytes(engine)));
        }
    }
    assert!(bytes > GIGABYTE, "{bytes}");
    let grown = ((most.0.saturating_sub(before.0)) >> 20, (most.1.saturating_sub(before.1)) >> 20);
    println!("node +{} MB, engine +{} MB", grown.0, grown.1);
    assert!(grown.0 < 64, "the node grew by {} MB", grown.0);
    assert!(grown.1 < 300, "the engine grew by {} MB", grown.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_stops_its_query() {
    // One place: whoever comes next gets it only when the query before has really stopped.
    let server = TestServer::start_with(&[("TARN_MAX_QUERIES", "1")]).await;
    server.query("SELECT 1").await.rows();
    let engine = server.engine_pid(DEV);
    for sql in [
        "SELECT count(*) FROM range(1000000000000) a, range(1000000) b WHERE a.range + b.range < 0",
        "CREATE TABLE t AS SELECT count(*) c FROM range(1000000000000) a, range(1000000) b WHERE a.range + b.range < 0",
        "SELECT i, repeat('x', 1000) FROM range(1000000000000) t(i)",
    ] {
        let endless = server.query(sql);
        tokio::select! {
            answer = endless => panic!("it ended: {answer:?}"),
            () = crate::server::works(engine) => {}
        }
        assert_eq!(server.query_in(DEV, json!({"sql": "SELECT 1", "timeout_ms": 20000})).await.status, StatusCode::OK);
    }
    assert_eq!(server.engine_pid(DEV), engine, "no engine had to end for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_under_way_tells_how_far_it_is_and_can_be_cancelled() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT i, repeat('x', 1000) s FROM range(300000) r(i)").await.rows();
    let id = "0b7e9a52-2f4b-4a0c-9d1e-6a7f21c0d4e8";
    let path = format!("/v1/queries/{id}");
    let gone = server.send(server.request(Method::GET, &path)).await;
    assert_eq!(gone.code(), "not_found");
    let request = server.request(Method::POST, "/v1/tenants/default/marts/dev/query").header("tarn-query-id", id);
    let mut answer = request.json(&json!({"sql": "SELECT * FROM t"})).send().await.expect("it answers");
    assert!(answer.chunk().await.expect("it has begun").is_some());
    let told = server.send(server.request(Method::GET, &path)).await;
    assert_eq!((told.status, &told.body["state"]), (StatusCode::OK, &json!("running")), "{told:?}");
    let progress = told.body["progress"].as_f64().expect("DuckDB counts the rows of a table");
    assert!((0.0..1.0).contains(&progress), "{progress}");
    assert_eq!(server.send(server.request(Method::DELETE, &path)).await.status, StatusCode::OK);
    let broken = async {
        while answer.chunk().await?.is_some() {}
        Ok::<_, reqwest::Error>(())
    };
    assert!(broken.await.is_err(), "a cancelled answer must not look whole");
    drop(answer);
    while server.send(server.request(Method::GET, &path)).await.status == StatusCode::OK {}
}
