//! `PUT …/tables/…` as clients send it: four modes and formats, all or nothing whoever goes away, and little memory on the way.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::admin::with;
use crate::server::{Answer, DEV, TOKEN, TestServer, resident_bytes};
use crate::sessions::token;

const ARROW: &str = "application/vnd.apache.arrow.stream";
const CSV: &str = "text/csv";
const TABLES: &str = "/v1/tenants/default/marts/dev/tables";

fn put(server: &TestServer, place: &str, kind: &str) -> RequestBuilder {
    server.request(Method::PUT, &format!("{TABLES}/{place}")).header("content-type", kind)
}

async fn csv(server: &TestServer, place: &str, text: &str) -> Answer {
    server.send(put(server, place, CSV).body(text.to_owned())).await
}

fn assert_loaded(answer: &Answer, rows: u64, created: bool) {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!((&answer.body["rows"], &answer.body["created"]), (&json!(rows), &json!(created)), "{answer:?}");
    assert!(answer.position.is_some() && answer.durable.as_deref() == Some("object"), "{answer:?}");
}

async fn rows(server: &TestServer, sql: &str) -> Value {
    server.query(sql).await.rows().clone()
}

async fn is_there(server: &TestServer, table: &str) -> bool {
    let sql = format!("SELECT count(*) FROM duckdb_tables() WHERE table_name = '{table}'");
    rows(server, &sql).await == json!([[1]])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_does_what_it_says_and_says_what_it_did() {
    let server = TestServer::start().await;
    assert_eq!(csv(&server, "main/t?mode=append", "a,b\n1,x\n").await.code(), "not_found");
    assert_eq!(csv(&server, "main/t?mode=upsert&key=a", "a,b\n1,x\n").await.code(), "not_found");
    assert_loaded(&csv(&server, "main/t?mode=create", "a,b\n1,x\n2,y\n").await, 2, true);
    assert_eq!(csv(&server, "main/t?mode=create", "a,b\n1,x\n").await.code(), "conflict");
    assert_loaded(&csv(&server, "main/t?mode=append", "b,a\nz,3\n").await, 1, false);
    assert_eq!(rows(&server, "FROM t ORDER BY a").await, json!([[1, "x"], [2, "y"], [3, "z"]]));
    assert_loaded(&csv(&server, "main/t?mode=upsert&key=a", "a,b\n2,new\n4,w\n").await, 2, false);
    assert_eq!(rows(&server, "FROM t ORDER BY a").await, json!([[1, "x"], [2, "new"], [3, "z"], [4, "w"]]));
    let replaced = csv(&server, "main/t?mode=replace", "c\n7\n").await;
    assert_eq!((replaced.status, &replaced.body["rows"]), (StatusCode::OK, &json!(1)), "{replaced:?}");
    assert_eq!(rows(&server, "FROM t").await, json!([[7]]));
    let fresh = csv(&server, "main/fresh?mode=replace", "c\n7\n").await;
    assert_loaded(&fresh, 1, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_can_be_loaded_again() {
    let server = TestServer::start().await;
    let sql =
        "SELECT i AS a, 'ü ' || i AS b, i % 3 = 0 AS c, DATE '2026-01-01' + i::INTEGER AS d FROM range(5000) r(i)";
    server.query(&format!("CREATE TABLE s AS {sql}")).await.rows();
    for (name, kind) in [
        ("arrow", ARROW),
        ("parquet", "application/vnd.apache.parquet"),
        ("csv", CSV),
        ("ndjson", "application/x-ndjson"),
    ] {
        let request = server.request(Method::POST, "/v1/tenants/default/marts/dev/query").header("accept", kind);
        let answer = request.json(&json!({"sql": "FROM s"})).send().await.expect("it answers");
        assert_eq!(answer.status(), StatusCode::OK, "{name}");
        let body = answer.bytes().await.expect("it is whole");
        let loaded = server.send(put(&server, &format!("main/{name}?mode=create"), kind).body(body)).await;
        assert_loaded(&loaded, 5000, true);
        let odd =
            format!("SELECT count(*) FROM ((FROM s EXCEPT ALL FROM {name}) UNION ALL (FROM {name} EXCEPT ALL FROM s))");
        assert_eq!(rows(&server, &odd).await, json!([[0]]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_be_compressed() {
    let server = TestServer::start().await;
    let mut gzip = std::process::Command::new("gzip");
    let mut child = gzip.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip is installed");
    child.stdin.take().expect("it is piped").write_all(b"a\n1\n2\n").expect("it reads");
    let mut packed = Vec::new();
    child.stdout.take().expect("it is piped").read_to_end(&mut packed).expect("it writes");
    child.wait().expect("it ends");
    let request = put(&server, "main/t?mode=create", CSV).header("content-encoding", "gzip");
    assert_loaded(&server.send(request.body(packed.clone())).await, 2, true);
    let torn = put(&server, "main/t?mode=append", CSV).header("content-encoding", "gzip");
    let refused = server.send(torn.body(packed[..packed.len() - 6].to_vec())).await;
    assert!(!refused.status.is_success(), "{refused:?}");
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[2]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_be_anything_that_a_path_can_say() {
    let server = TestServer::start().await;
    server.query("CREATE SCHEMA \"we ird\"").await.rows();
    let place = "we%20ird/t%22%C3%BC%22%3B%20drop?mode=create";
    assert_loaded(&csv(&server, place, "a\n1\n").await, 1, true);
    assert_eq!(rows(&server, "FROM \"we ird\".\"t\"\"ü\"\"; drop\"").await, json!([[1]]));
    let nowhere = csv(&server, "nowhere/t?mode=create", "a\n1\n").await;
    assert!(["not_found", "sql"].contains(&nowhere.code()) && nowhere.body["outcome"] == "none", "{nowhere:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_loads_get_the_contracts_errors_and_leave_nothing() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let reader = token(&server, "reader").await;
    let bare = |path: &str| server.request(Method::PUT, &format!("{TABLES}/{path}")).body("a\n1\n");
    let elsewhere = "/v1/tenants/default/marts/nowhere/tables/main/t?mode=append";
    let typed = |place: &str, kind: &str| put(&server, place, kind).body("a\n1\n");
    for (what, request, code) in [
        ("no mode", typed("main/t", CSV), "invalid"),
        ("an unknown mode", typed("main/t?mode=merge", CSV), "invalid"),
        ("a mode twice", typed("main/t?mode=append&mode=replace", CSV), "invalid"),
        ("an unknown parameter", typed("main/t?mode=append&colour=red", CSV), "invalid"),
        ("a key without an upsert", typed("main/t?mode=append&key=a", CSV), "invalid"),
        ("a key that is none", typed("main/t?mode=upsert&key=a,,b", CSV), "invalid"),
        ("a deadline that is no number", typed("main/t?mode=append&timeout_ms=soon", CSV), "invalid"),
        ("an unknown durability", typed("main/t?mode=append&durability=disk", CSV), "invalid"),
        ("no content type", bare("main/t?mode=append"), "invalid"),
        ("a type that is no table", typed("main/t?mode=append", "image/png"), "invalid"),
        ("JSON that is no NDJSON", typed("main/t?mode=append", "application/json"), "invalid"),
        ("an encoding", typed("main/t?mode=append", CSV).header("content-encoding", "br"), "invalid"),
        ("a query id that is none", typed("main/t?mode=append", CSV).header("tarn-query-id", "x"), "invalid"),
        ("a reader", with(typed("main/t?mode=append", CSV), &reader), "forbidden"),
        ("a wrong token", with(typed("main/t?mode=append", CSV), "wrong"), "unauthenticated"),
        (
            "an unknown mart",
            server.request(Method::PUT, elsewhere).header("content-type", CSV).body("a\n1\n"),
            "not_found",
        ),
        ("a wrong method", server.request(Method::POST, &format!("{TABLES}/main/t?mode=append")), "invalid"),
        ("a body that is no Arrow", typed("main/t?mode=append", ARROW), "invalid"),
        ("a body that is no Parquet", typed("main/t?mode=append", "application/vnd.apache.parquet"), "invalid"),
    ] {
        let answer = server.send(request).await;
        assert_eq!(answer.code(), code, "{what}: {answer:?}");
        assert_eq!(answer.body["outcome"], "none", "{what}: {answer:?}");
        assert!(answer.body["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{what}: {answer:?}");
    }
    let modes = server.send(typed("main/t", CSV)).await;
    let told = format!("{} {}", modes.body["message"], modes.body["hint"]);
    assert!(["create", "append", "replace", "upsert"].iter().all(|mode| told.contains(mode)), "{told}");
    let wrong = csv(&server, "main/t?mode=append", "a\n1\nx\n").await;
    assert!(!wrong.status.is_success(), "{wrong:?}");
    assert_eq!(wrong.body["outcome"], "none", "{wrong:?}");
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_can_be_local_and_under_a_key_it_runs_once() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let local = csv(&server, "main/t?mode=append&durability=local", "a\n1\n").await;
    assert_eq!((local.status, local.position.is_some()), (StatusCode::OK, true), "{local:?}");
    let keyed = || put(&server, "main/t?mode=append", CSV).header("idempotency-key", "one").body("a\n2\n3\n");
    let first = server.send(keyed()).await;
    let second = server.send(keyed()).await;
    assert_eq!((first.status, &first.body), (StatusCode::OK, &second.body), "{first:?} {second:?}");
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[3]]));
}

/// A load whose body comes piece by piece: what to send it with, and what it will answer.
fn slow_load(
    server: &TestServer,
    place: &str,
    id: &str,
) -> (tokio::sync::mpsc::Sender<Bytes>, tokio::task::JoinHandle<reqwest::Result<Answer>>) {
    let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(1);
    let pieces = stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
    let body = reqwest::Body::wrap_stream(pieces.map(Ok::<_, std::io::Error>));
    let request = put(server, place, CSV).header("tarn-query-id", id).body(body);
    let requests = server.requests();
    (send, tokio::spawn(async move { requests.try_send(request).await }))
}

/// Waits until the load of that id runs.
async fn runs(server: &TestServer, id: &str) -> Answer {
    loop {
        let told = server.send(server.request(Method::GET, &format!("/v1/queries/{id}"))).await;
        if told.status == StatusCode::OK {
            return told;
        }
        assert_eq!(told.code(), "not_found");
    }
}

const ID: &str = "6f1c2f6e-7c4b-4f1e-9d52-0d6e5b2a9c11";

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_a_query_that_runs_and_can_be_cancelled() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let (send, answer) = slow_load(&server, "main/t?mode=append", ID);
    send.send(Bytes::from("a\n1\n2\n")).await.expect("it reads");
    assert_eq!(runs(&server, ID).await.body["state"], "running");
    while server.send(server.request(Method::DELETE, &format!("/v1/queries/{ID}"))).await.status != StatusCode::OK {}
    let cancelled = answer.await.expect("no panic").expect("an answer");
    assert_eq!((cancelled.code(), &cancelled.body["outcome"]), ("cancelled", &json!("none")), "{cancelled:?}");
    drop(send);
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stalls_meets_its_deadline_and_the_engine_lives() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let engine = server.engine_pid(DEV);
    let (send, answer) = slow_load(&server, "main/t?mode=append&timeout_ms=500", ID);
    send.send(Bytes::from("a\n1\n2\n")).await.expect("it reads");
    let late = answer.await.expect("no panic").expect("an answer");
    assert_eq!((late.code(), &late.body["outcome"]), ("timeout", &json!("none")), "{late:?}");
    drop(send);
    assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[0]]));
    assert_eq!(server.engine_pid(DEV), engine);
}

/// The head of a raw upload.
fn head(place: &str, more: &str) -> String {
    format!(
        "PUT {TABLES}/{place} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: {CSV}\r\n{more}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_in_the_middle_leaves_nothing() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let rows_sent = "1\n".repeat(50_000);
    for (place, framing) in [
        ("main/t?mode=append", "content-length: 10000000"),
        ("main/made?mode=create", "content-length: 10000000"),
        ("main/made?mode=create", "transfer-encoding: chunked"),
        ("main/t?mode=replace", "transfer-encoding: chunked"),
    ] {
        // The engine may learn later than the node that a load is over.
        let id = uuid::Uuid::new_v4().to_string();
        let mut stream = TcpStream::connect(server.address()).await.expect("it listens");
        stream.write_all(head(place, &format!("tarn-query-id: {id}\r\n{framing}")).as_bytes()).await.expect("it reads");
        let body = format!("a\n{rows_sent}");
        let body = if framing.contains("chunked") { format!("{:x}\r\n{body}\r\n", body.len()) } else { body };
        stream.write_all(body.as_bytes()).await.expect("it reads");
        let mut answer = vec![0; 64 << 10];
        tokio::select! {
            _ = runs(&server, &id) => {}
            read = stream.read(&mut answer) => {
                let read = read.unwrap_or_default();
                panic!("{place} ended early: {}", String::from_utf8_lossy(&answer[..read]))
            }
        }
        drop(stream);
        while server.send(server.request(Method::GET, &format!("/v1/queries/{id}"))).await.status == StatusCode::OK {}
        assert_eq!(rows(&server, "SELECT count(*) FROM t").await, json!([[0]]), "{place}");
        assert!(!is_there(&server, "made").await, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_killed_in_the_middle_of_a_load_leaves_nothing_of_it() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let (send, answer) = slow_load(&server, "main/t?mode=append", ID);
    send.send(Bytes::from(format!("a\n{}", "2\n".repeat(300_000)))).await.expect("it reads");
    runs(&server, ID).await;
    server.kill_engine(DEV);
    let told = answer.await.expect("no panic").expect("an answer");
    // The log that the next engine opens ends where it ended before the load.
    let told = (told.code(), &told.body["outcome"], &told.body["retryable"]);
    assert_eq!(told, ("unavailable", &json!("none"), &json!(true)));
    drop(send);
    let after = loop {
        let answer = server.query("SELECT count(*) FROM t").await;
        if answer.status == StatusCode::OK {
            break answer;
        }
    };
    assert_eq!(*after.rows(), json!([[1]]));
    assert_loaded(&csv(&server, "main/t?mode=append", "a\n2\n").await, 1, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_everything_before_it_reads_sees_why_it_is_refused() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let bytes = 32 << 20;
    for (place, code) in [("main/t?mode=merge", "invalid"), ("main/nowhere?mode=append", "not_found")] {
        let mut stream = TcpStream::connect(server.address()).await.expect("it listens");
        stream.write_all(head(place, &format!("content-length: {bytes}")).as_bytes()).await.expect("it reads");
        let mut left = bytes;
        let piece = "a\n".repeat(32 << 10);
        while left > 0 {
            let part = left.min(piece.len());
            stream.write_all(&piece.as_bytes()[..part]).await.unwrap_or_else(|error| panic!("{place}: {error}"));
            left -= part;
        }
        let mut answer = vec![0; 64 << 10];
        let read = stream.read(&mut answer).await.expect("it answers");
        let text = String::from_utf8_lossy(&answer[..read]);
        assert!(text.starts_with("HTTP/1.1 4") && text.contains(&format!("\"code\":\"{code}\"")), "{place}: {text}");
    }
    // Who asks first, is told before it sends anything.
    let mut stream = TcpStream::connect(server.address()).await.expect("it listens");
    let asking = head("main/t?mode=merge", &format!("expect: 100-continue\r\ncontent-length: {bytes}"));
    stream.write_all(asking.as_bytes()).await.expect("it reads");
    let mut answer = vec![0; 64 << 10];
    let read = stream.read(&mut answer).await.expect("it answers");
    assert!(answer[..read].starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer[..read]));
}

/// A stream of `batches` times the same rows: its beginning, and what comes again and again.
fn arrow(rows: i64) -> (Bytes, Bytes, Bytes) {
    let schema =
        Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false), Field::new("b", DataType::Utf8, false)]));
    let text: Vec<String> = (0..rows).map(|row| format!("{row:0120}")).collect();
    let columns: Vec<arrow_array::ArrayRef> =
        vec![Arc::new(Int64Array::from_iter_values(0..rows)), Arc::new(StringArray::from(text))];
    let batch = RecordBatch::try_new(schema.clone(), columns).expect("columns as the schema says");
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).expect("it writes");
    let start = writer.get_ref().len();
    writer.write(&batch).expect("it writes");
    let behind = writer.get_ref().len();
    let whole = Bytes::from(writer.into_inner().expect("it writes"));
    (whole.slice(..start), whole.slice(start..behind), whole.slice(behind..))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_from_a_fast_client_needs_little_memory_in_the_node() {
    let server = TestServer::start().await;
    server.query("SELECT 1").await.rows();
    let (node, before) = (server.node_pid(), resident_bytes(server.node_pid()));
    let (start, batch, end) = arrow(8192);
    let times = (1 << 30) / batch.len() + 1;
    let pieces = std::iter::once(start).chain(std::iter::repeat_n(batch, times)).chain([end]);
    let body = reqwest::Body::wrap_stream(stream::iter(pieces.map(Ok::<_, std::io::Error>)));
    let request = put(&server, "main/t?mode=create", ARROW).body(body);
    let requests = server.requests();
    let answer = tokio::spawn(async move { requests.try_send(request).await });
    let mut most = 0;
    while !answer.is_finished() {
        most = most.max(resident_bytes(node));
        tokio::task::yield_now().await;
    }
    assert_loaded(&answer.await.expect("no panic").expect("an answer"), 8192 * times as u64, true);
    let grown = most.saturating_sub(before) >> 20;
    println!("node +{grown} MB");
    assert!(grown < 64, "the node grew by {grown} MB");
}
