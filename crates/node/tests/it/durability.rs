//! What an answer says about durability, with an S3 server that goes away and comes back.

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::{Answer, DEV, TOKEN, TestServer};
use crate::wire::{Way, over_s3};

pub async fn position(server: &TestServer, position: &str, wait_ms: u64) -> Answer {
    let path = format!("/v1/tenants/default/marts/dev/positions/{position}?wait_ms={wait_ms}");
    server.send(server.request(Method::GET, &path)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_cannot_reach_the_store_is_not_called_durable_and_gets_there_later() {
    let (_weed, wire, mut server) = over_s3(&[("TARN_DURABLE_WAIT_MS", "1000")]).await;
    assert_eq!(server.query("CREATE TABLE t(a INTEGER)").await.durable.as_deref(), Some("object"));

    wire.set(Way::Cut);
    let local = server.query_in(DEV, json!({"sql": "INSERT INTO t VALUES (1)", "durability": "local"})).await;
    assert_eq!((local.status, local.durable.as_deref()), (StatusCode::OK, Some("local")), "{local:?}");
    let read = server.query("SELECT a FROM t").await;
    assert_eq!((read.rows(), read.durable.as_deref()), (&json!([[1]]), Some("local")), "a read of it says so too");
    let late = server.query("INSERT INTO t VALUES (2)").await;
    assert_eq!(late.code(), "not_yet_durable", "{late:?}");
    assert_eq!((&late.body["outcome"], &late.body["retryable"]), (&json!("committed"), &json!(false)));
    let at = late.body["position"].as_str().expect("it says where").to_owned();
    assert_eq!(position(&server, &at, 0).await.body["durable"], json!(false));

    wire.set(Way::Open);
    assert_eq!(position(&server, &at, 60_000).await.body["durable"], json!(true));
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(*server.query("SELECT sum(a) FROM t").await.rows(), json!([[3]]));
    assert_eq!(
        position(&server, &at, 0).await.body["durable"],
        json!(true),
        "a position of an earlier epoch that was kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_name_their_position() {
    let server = TestServer::start().await;
    let create = server.query("CREATE TABLE t(a INTEGER)").await.position.expect("a commit has a position");
    let insert = server.query("INSERT INTO t VALUES (1)").await.position.expect("a commit has a position");
    let read = server.query("SELECT a FROM t").await;
    assert_eq!(read.position.as_deref(), Some(insert.as_str()));
    assert_ne!(create, insert);
    assert_eq!(position(&server, &insert, 0).await.body["durable"], json!(true));
    let ahead = insert.rsplit_once('.').map(|(front, _)| format!("{front}.999999999")).expect("it has three parts");
    assert_eq!(position(&server, &ahead, 0).await.body["durable"], json!(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_runs_once_even_across_the_loss_of_the_machine() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let insert = |server: &TestServer| {
        let path = "/v1/tenants/default/marts/dev/query";
        server
            .request(Method::POST, path)
            .header("idempotency-key", "order-7")
            .json(&json!({"sql": "INSERT INTO t VALUES (1)"}))
    };
    let first = server.send(insert(&server)).await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    assert_eq!(server.send(insert(&server)).await.body, first.body);
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(server.send(insert(&server)).await.body, first.body);
    assert_eq!(*server.query("SELECT count(*) FROM t").await.rows(), json!([[1]]));
}

/// A view may hide a `nextval`: then reading it writes, and only the end of the stream knows the position.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_turns_out_to_write_ends_only_when_that_is_durable() {
    let mut server = TestServer::start().await;
    server
        .query("CREATE SEQUENCE s; CREATE VIEW v AS SELECT nextval('s') AS n, i FROM range(300000) r(i)")
        .await
        .rows();
    let body = json!({"sql": "SELECT n, 'some more bytes ' || i FROM v"}).to_string();
    let head = format!(
        "POST /v1/tenants/default/marts/dev/query HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nte: trailers\r\n\
         connection: close\r\naccept: text/csv\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(server.address()).await.expect("it listens");
    stream.write_all(head.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    server.kill_node().await;
    let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("tarn-position"), "{head}");
    let trailers = rest.rsplit_once("\r\n0\r\n").expect("a last chunk").1;
    assert!(trailers.contains("tarn-durable: object") && trailers.contains("tarn-position: "), "{trailers}");

    server.wipe_state();
    server.start_again().await;
    let next = server.query("SELECT nextval('s')").await;
    assert!(next.rows()[0][0].as_u64() > Some(300_000), "numbers were given out twice: {next:?}");
}
