//! Loads: each format and mode, what does not fit, and that a body which is not whole leaves nothing.

use std::{io::Write, sync::Arc, time::Duration};

use arrow_array::{ArrayRef, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use engine::wire::Point;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Got, Home, Served, load_header};

pub const ARROW: &str = "application/vnd.apache.arrow.stream";
const PARQUET: &str = "application/vnd.apache.parquet";
const CSV: &str = "text/csv";
const NDJSON: &str = "application/x-ndjson";

/// Batches as a stream.
pub fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer =
        arrow_ipc::writer::StreamWriter::try_new(Vec::new(), batches[0].schema_ref()).expect("writes a schema");
    for batch in batches {
        writer.write(batch).expect("writes");
    }
    writer.finish().expect("ends");
    writer.into_inner().expect("is whole")
}

pub fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .expect("a batch")
}

/// `rows` rows from `start` on: `id`, `name`, `price`.
fn goods(start: i64, rows: i64) -> RecordBatch {
    let ids = start..start + rows;
    batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
        ("name", Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("the good number {id}"))))),
        ("price", Arc::new(Float64Array::from_iter(ids.map(|id| (id % 3 != 0).then_some(id as f64 / 4.0))))),
    ])
}

fn create(table: &str) -> Value {
    json!({"table": table, "if_missing": "create"})
}

fn append(table: &str) -> Value {
    json!({"table": table, "if_exists": "append"})
}

fn replace(table: &str) -> Value {
    json!({"table": table, "if_missing": "create", "if_exists": "replace"})
}

fn upsert(table: &str, key: &[&str]) -> Value {
    json!({"table": table, "if_exists": "upsert", "key": key})
}

fn loaded(got: &Got) -> (u64, bool) {
    let answer = got.json();
    assert_eq!(got.status, 200, "{answer}");
    (answer["rows"].as_u64().expect("a number"), answer["created"].as_bool().expect("a flag"))
}

fn refused(got: &Got) -> (u16, String, String) {
    let answer = got.json();
    assert_eq!(answer["outcome"], "none", "{answer}");
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (got.status, text("code"), text("message"))
}

async fn tables(served: &Served) -> Value {
    served.rows("select table_name from duckdb_tables() where not internal order by 1").await
}

/// The same rows in each format.
async fn bodies(served: &Served) -> Vec<(&'static str, Bytes)> {
    let got = served
        .ask(json!({"sql": "select * from (values (1, 'a', date '2024-02-29'), (2, NULL, NULL), (3, 'c,\"d\"', date '1969-07-20')) t(k, v, d)"}), &[("accept", PARQUET)])
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    let arrow = batch(vec![
        ("k", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("v", Arc::new(StringArray::from(vec![Some("a"), None, Some("c,\"d\"")]))),
        ("d", Arc::new(Date32Array::from(vec![Some(19_782), None, Some(-165)]))),
    ]);
    vec![
        (ARROW, stream(&[arrow]).into()),
        (PARQUET, got.body),
        (CSV, Bytes::from("k,v,d\n1,a,2024-02-29\n2,,\n3,\"c,\"\"d\"\"\",1969-07-20\n")),
        (
            NDJSON,
            Bytes::from(
                "{\"k\":1,\"v\":\"a\",\"d\":\"2024-02-29\"}\n{\"k\":2,\"v\":null,\"d\":null}\n{\"k\":3,\"v\":\"c,\\\"d\\\"\",\"d\":\"1969-07-20\"}\n",
            ),
        ),
    ]
}

const ROWS: &str = "select k::int, v, d::varchar from t order by k";

fn three() -> Value {
    json!([[1, "a", "2024-02-29"], [2, null, null], [3, "c,\"d\"", "1969-07-20"]])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_format_goes_in_by_each_mode() {
    let served = Served::start().await;
    for (media, body) in bodies(&served).await {
        let got = served.load(create("t"), media, body.clone()).await;
        assert_eq!(loaded(&got), (3, true), "{media}");
        assert_eq!(got.commit().wal_bytes, std::fs::metadata(served.home.wal()).expect("a log").len());
        assert_eq!(served.rows(ROWS).await, three(), "{media}");
        let got = served.load(create("t"), media, body.clone()).await;
        assert_eq!(refused(&got).1, "conflict", "it is there already");
        assert_eq!(loaded(&served.load(append("t"), media, body.clone()).await), (3, false));
        assert_eq!(served.rows("select count(*) from t").await, json!([[6]]));
        served.query("create or replace table t as select 'old' as other").await;
        assert_eq!(loaded(&served.load(replace("t"), media, body.clone()).await), (3, true));
        assert_eq!(served.rows(ROWS).await, three(), "{media}");
        served.query("update t set v = 'changed'; insert into t values (4, 'stays', NULL)").await;
        assert_eq!(loaded(&served.load(upsert("t", &["K"]), media, body.clone()).await), (3, false));
        let mut four = three().as_array().expect("rows").clone();
        four.push(json!([4, "stays", null]));
        assert_eq!(served.rows(ROWS).await, json!(four), "{media}");
        let got = served.load(append("missing"), media, body).await;
        assert_eq!((refused(&got).0, refused(&got).1), (404, "not_found".to_owned()));
        assert_eq!(tables(&served).await, json!([["t"]]), "no helper is left");
        served.query("drop table t").await;
    }
    assert_eq!(std::fs::read_dir(served.home.dir.path().join("tmp/load")).expect("lists").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_go_by_name_and_the_rest_gets_its_default() {
    let served = Served::start().await;
    for (media, body) in bodies(&served).await {
        served
            .query("create or replace table t(x int default 7, D date, \"K\" smallint, v varchar, e int[] default [1])")
            .await;
        assert_eq!(loaded(&served.load(append("T"), media, body).await), (3, false), "{media}");
        assert_eq!(
            served.rows("select k, v, d::varchar, x, e from t order by k limit 1").await,
            json!([[1, "a", "2024-02-29", 7, [1]]])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_csv_body_is_looked_at_to_its_end_and_its_names_are_only_names() {
    let served = Served::start().await;
    let late: String = (0..60_000).map(|i| format!("{i};0{}/0{}/2024\n", i % 9 + 1, i % 8 + 1)).collect();
    let body = format!("n;\"it's a \"\"day\"\", {{}}\"\n{late}x;31/12/2024\n");
    assert_eq!(loaded(&served.load(create("t"), "text/csv; delimiter=semicolon", body).await), (60_001, true));
    assert_eq!(
        served
            .rows(
                "select n, typeof(\"it's a \"\"day\"\", {}\"), \"it's a \"\"day\"\", {}\"::varchar from t where n = 'x'"
            )
            .await,
        json!([["x", "DATE", "2024-12-31"]])
    );
    let body = "a,b\n\"\",1\n,2\n\"x\ny\",3\n";
    assert_eq!(loaded(&served.load(replace("t"), CSV, body).await), (3, true));
    assert_eq!(served.rows("select a, b from t order by b").await, json!([["", 1], [null, 2], ["x\ny", 3]]));
    assert_eq!(
        loaded(&served.load(replace("t"), "text/csv; header=absent; delimiter=pipe", "1|2\r\n3|4\r\n").await),
        (2, true)
    );
    assert_eq!(served.rows("select column1 from t order by 1").await, json!([[2], [4]]));
    assert_eq!(loaded(&served.load(replace("t"), CSV, "only\n1\n2\n").await), (2, true));
    assert_eq!(served.rows("select sum(\"only\") from t").await, json!([[3]]));
    assert_eq!(loaded(&served.load(replace("t"), CSV, "a,b\n").await), (0, true));
    assert_eq!(loaded(&served.load(append("t"), CSV, "b,a\n").await), (0, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_named_and_nothing_is_written() {
    let served = Served::start().await;
    served.query("create table t(k date, name varchar)").await;
    let at = served.query("insert into t values ('2020-01-01', 'x')").await.commit();
    for (media, body) in bodies(&served).await {
        let (status, code, message) = refused(&served.load(append("t"), media, body).await);
        assert_eq!((status, code.as_str()), (400, "invalid"), "{media}: {message}");
        for part in ["table `main.t`", "column `v` (VARCHAR) is not in the table", "`d`"] {
            assert!(message.contains(part), "{media}: {message}");
        }
        // Of text it is only guessed what it is.
        let typed = [ARROW, PARQUET].contains(&media);
        assert_eq!(message.contains("column `k` is"), typed, "{media}: {message}");
    }
    served.query("create or replace table t(k int, v varchar, d date)").await;
    for (media, body) in [(CSV, "k,v,d\n1,a,2024-01-01\nx,b,2024-01-01\n"), (NDJSON, "{\"k\": 1}\n{\"k\": \"x\"}\n")] {
        let (_, _, message) = refused(&served.load(append("t"), media, body).await);
        assert!(message.contains('x') && !message.contains("/tmp") && !message.contains(".csv"), "{message}");
    }
    assert_eq!(served.rows("select count(*) from t").await, json!([[0]]));
    assert!(served.query("select 1").await.header("tarn-at").expect("a position").parse::<Point>().expect("one") > at);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_needs_keys_that_tell_rows_apart() {
    let served = Served::start().await;
    served.query("create table p(a int, b varchar, n int default 5, l int[], primary key (a, b)); insert into p values (1, 'x', 1, [1]), (2, 'y', 2, [2])").await;
    let csv = |rows: &str| format!("b,a,l\n{rows}");
    let got = served.load(upsert("p", &[]), CSV, csv("x,1,\"[7, 8]\"\nz,1,\n")).await;
    assert_eq!(loaded(&got), (2, false), "by its primary key");
    assert_eq!(
        served.rows("select * from p order by all").await,
        json!([[1, "x", 1, [7, 8]], [1, "z", 5, null], [2, "y", 2, [2]]])
    );
    let (_, code, message) = refused(&served.load(upsert("p", &[]), CSV, csv("x,1,\nx,1,\ny,2,\n")).await);
    assert_eq!(code, "invalid");
    assert!(message.contains("1 keys come more than once") && message.contains("(a, b) = (1, x)"), "{message}");
    let (_, _, message) = refused(&served.load(upsert("p", &[]), CSV, csv("x,,\n,,\nx,1,\n")).await);
    assert!(message.contains("2 rows of the body have NULL in the key (a, b)"), "{message}");
    let (_, _, message) = refused(&served.load(upsert("p", &[]), CSV, "b,n\nx,1\n").await);
    assert!(message.contains("the key's column `a` is not in the body"), "{message}");
    served.query("create table q as select 1 a, 2 b").await;
    let (_, _, message) = refused(&served.load(upsert("q", &[]), CSV, "a,b\n1,3\n").await);
    assert!(message.contains("has no primary key"), "{message}");
    served.query("create unique index q_a on q(a)").await;
    assert_eq!(loaded(&served.load(upsert("q", &["a"]), CSV, "a,b\n1,3\n2,4\n").await), (2, false));
    assert_eq!(loaded(&served.load(upsert("q", &["a"]), CSV, "a\n1\n9\n").await), (2, false), "keys alone");
    assert_eq!(served.rows("from q order by a").await, json!([[1, 3], [2, 4], [9, null]]));
    let made = json!({"table": "r", "if_missing": "create", "if_exists": "upsert", "key": ["a"]});
    assert!(refused(&served.load(made.clone(), CSV, "a\n1\n1\n").await).2.contains("more than once"));
    assert_eq!(loaded(&served.load(made, CSV, "a\n1\n2\n").await), (2, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_leaves_nothing() {
    let served = Served::start().await;
    let arrow = stream(&(0..30).map(|part| goods(part * 20_000, 20_000)).collect::<Vec<_>>());
    let csv = "a,b\n1,2\n".repeat(100_000);
    for (media, body) in [(ARROW, arrow.as_slice()), (CSV, csv.as_bytes())] {
        for end in [0, 1, body.len() / 2, body.len() - 1] {
            let mut stream = tokio::net::UnixStream::connect(served.socket()).await.expect("connects");
            let head = format!(
                "POST /load HTTP/1.1\r\nhost: e\r\ntarn-role: writer\r\ntarn-load: {}\r\ncontent-type: {media}\r\ncontent-length: {}\r\n\r\n",
                load_header(&create("t")),
                body.len()
            );
            stream.write_all(head.as_bytes()).await.expect("writes");
            stream.write_all(&body[..end]).await.expect("writes");
            stream.shutdown().await.expect("stops writing");
            // An answer or none, but never a success.
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            until_idle(&served).await;
        }
    }
    for end in [arrow.len() - 8, arrow.len() - 1, arrow.len() / 2, 7, 0] {
        let (_, code, _) = refused(&served.load(create("t"), ARROW, arrow[..end].to_vec()).await);
        assert_eq!(code, "invalid", "the transport is whole, the stream is not: {end}");
    }
    let (_, _, message) = refused(&served.load(create("t"), ARROW, [arrow.as_slice(), b"more"].concat()).await);
    assert!(message.contains("bytes follow the end mark"), "{message}");
    assert_eq!(tables(&served).await, json!([]));
    assert_eq!(loaded(&served.load(create("t"), ARROW, arrow).await), (600_000, true));
}

async fn until_idle(served: &Served) {
    while !served.server.engine().queries.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_come_compressed_and_a_coding_that_is_cut_leaves_nothing() {
    let served = Served::start().await;
    let plain = stream(&[goods(0, 5_000)]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("compresses");
    let gzip = gzip.finish().expect("ends");
    let zstd = zstd::encode_all(plain.as_slice(), 1).expect("compresses");
    for (coding, body) in [("gzip", gzip), ("zstd", zstd)] {
        let headers = [("content-type", ARROW), ("content-encoding", coding)];
        let load = |body: Vec<u8>| served.load_with(replace("t"), &headers, body);
        assert_eq!(loaded(&load(body.clone()).await), (5_000, true), "{coding}");
        for end in [0, body.len() / 2, body.len() - 1] {
            assert_eq!(refused(&load(body[..end].to_vec()).await).1, "invalid", "{coding} {end}");
        }
        assert_eq!(refused(&load(plain.clone()).await).1, "invalid", "{coding}");
    }
    let headers = [("content-type", ARROW), ("content-encoding", "br")];
    assert_eq!(refused(&served.load_with(replace("t"), &headers, plain).await).1, "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_load_is_there_after_the_files_are_opened_again() {
    let home = Home::new();
    let (db, wal) = (home.db(), home.wal());
    let served = Served::over(home).await;
    let body = stream(&(0..20).map(|part| goods(part * 50_000, 50_000)).collect::<Vec<_>>());
    assert_eq!(loaded(&served.load(create("t"), ARROW, body.clone()).await), (1_000_000, true));
    assert_eq!(loaded(&served.load(append("t"), ARROW, body.clone()).await), (1_000_000, false));
    served.query("create table old as select 1 a").await;
    assert_eq!(loaded(&served.load(replace("old"), ARROW, body.clone()).await), (1_000_000, true));
    served.query("create table u as select range id, 'x' as name from range(200000)").await;
    let (_, _, message) = refused(&served.load(upsert("u", &["id"]), ARROW, body).await);
    assert!(message.contains("column `price` (DOUBLE)"), "{message}");
    served.query("alter table u add column price double").await;
    let body = stream(&(0..10).map(|part| goods(part * 50_000, 50_000)).collect::<Vec<_>>());
    assert_eq!(loaded(&served.load(upsert("u", &["id"]), ARROW, body).await), (500_000, false));
    const SUMS: &str = "select (select (count(*), sum(id), sum(hash(name)), sum(price)) from t)::varchar,
        (select (count(*), sum(id), sum(hash(name)), sum(price)) from old)::varchar,
        (select (count(*), sum(id), sum(hash(name)), sum(price)) from u)::varchar";
    let here = served.rows(SUMS).await;
    // As a kill leaves the files: the log first, then the file.
    let copy = Home::new();
    std::fs::copy(wal, copy.wal()).expect("copies");
    std::fs::copy(db, copy.db()).expect("copies");
    let again = Served::over(copy).await;
    assert_eq!(again.rows(SUMS).await, here);
    let done = again.send("POST", "/checkpoint", r#"{"reader_wait_ms": 2000}"#.into(), &[]).await;
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(again.rows(SUMS).await, here);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_rows_is_kept_within_a_group() {
    let served = Served::start().await;
    let body = stream(&(0..4).map(|part| goods(part * 50_000, 50_000)).collect::<Vec<_>>());
    assert_eq!(loaded(&served.load(create("t"), ARROW, body).await), (200_000, true));
    assert_eq!(
        served.rows("select bool_and(id = rowid) from t").await,
        json!([[true]]),
        "a body that fits one group is kept as it is"
    );
    let body = stream(&(0..14).map(|part| goods(part * 50_000, 50_000)).collect::<Vec<_>>());
    assert_eq!(loaded(&served.load(replace("t"), ARROW, body).await), (700_000, true));
    let breaks = "select count(*) from (select id - lag(id) over (order by rowid) step from t) where step <> 1";
    let breaks = served.rows(breaks).await[0][0].as_u64().expect("a number");
    assert!(breaks <= 2 * 700_000 / 122_880, "{breaks} places where the order breaks");
    assert_eq!(served.rows("select current_setting('threads')").await, json!([[2]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_takes_no_more_than_recovery_can_repeat() {
    let served = Served::start().await;
    served.query("create table t(id bigint, name varchar, price double); create index i on t(id)").await;
    let body = stream(&(0..3).map(|part| goods(part * 50_000, 50_000)).collect::<Vec<_>>());
    let (_, code, message) = refused(&served.load(append("t"), ARROW, body).await);
    assert!(code == "invalid" && message.contains("has an index"), "{message}");
    assert_eq!(served.rows("select count(*) from t").await, json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_under_a_key_is_answered_and_another_body_is_a_conflict() {
    let served = Served::start().await;
    served.query("create table t(id bigint, name varchar, price double)").await;
    let body = stream(&[goods(0, 1_000)]);
    let headers = [("content-type", ARROW), ("idempotency-key", "once"), ("tarn-principal", "ann")];
    let first = served.load_with(append("t"), &headers, body.clone()).await;
    assert_eq!((loaded(&first), first.header("tarn-replayed")), ((1_000, false), None));
    let second = served.load_with(append("t"), &headers, body.clone()).await;
    assert_eq!((loaded(&second), second.header("tarn-replayed")), ((1_000, false), Some("true")));
    assert!(second.commit() >= first.commit());
    assert_eq!(served.rows("select count(*) from t").await, json!([[1_000]]));
    let zipped = zstd::encode_all(body.as_slice(), 3).expect("compresses");
    let again = [headers.as_slice(), &[("content-encoding", "zstd")]].concat();
    let again = served.load_with(append("t"), &again, zipped).await;
    assert_eq!(again.header("tarn-replayed"), Some("true"), "the same rows, compressed");
    let other = served.load_with(append("t"), &headers, stream(&[goods(1, 1_000)])).await;
    assert_eq!(refused(&other).1, "conflict");
    let other = served.load_with(replace("t"), &headers, body.clone()).await;
    assert_eq!(refused(&other).1, "conflict");
    let bob = [("content-type", ARROW), ("idempotency-key", "once"), ("tarn-principal", "bob")];
    assert_eq!(served.load_with(append("t"), &bob, body.clone()).await.header("tarn-replayed"), None);
    let fails = [("content-type", ARROW), ("idempotency-key", "later"), ("tarn-principal", "ann")];
    assert_eq!(served.load_with(append("t"), &fails, body[..2_000].to_vec()).await.status, 400);
    assert_eq!(loaded(&served.load_with(append("t"), &fails, body).await), (1_000, false), "a failure is no answer");
    assert_eq!(served.rows("select count(*) from t").await, json!([[3_000]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_in_the_middle_can_be_cancelled() {
    let served = Served::start().await;
    let id = uuid::Uuid::new_v4().to_string();
    let body = stream(&(0..12).map(|part| goods(part * 50_000, 50_000)).collect::<Vec<_>>());
    let mut stream = tokio::net::UnixStream::connect(served.socket()).await.expect("connects");
    let head = format!(
        "POST /load HTTP/1.1\r\nhost: e\r\ntarn-role: writer\r\ntarn-principal: ann\r\ntarn-query-id: {id}\r\ntarn-load: {}\r\ncontent-type: {ARROW}\r\ncontent-length: {}\r\n\r\n",
        load_header(&create("t")),
        body.len() + 1
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    stream.write_all(&body[..body.len() - 9]).await.expect("writes");
    let path = format!("/queries/{id}");
    let stranger = served.send("DELETE", &path, Bytes::new(), &[("tarn-principal", "bob")]).await;
    assert_eq!(stranger.status, 404);
    let cancelled = served.send("DELETE", &path, Bytes::new(), &[("tarn-principal", "ann")]).await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.expect("answers while the body is not at its end");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 499");
    assert_eq!(tables(&served).await, json!([]));
    drop(stream);
    until_idle(&served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_ends_at_its_time_whatever_its_client_does() {
    let served = Served::start().await;
    let mut stream = tokio::net::UnixStream::connect(served.socket()).await.expect("connects");
    let head = format!(
        "POST /load HTTP/1.1\r\nhost: e\r\ntarn-role: writer\r\ntarn-timeout-ms: 100\r\ntarn-load: {}\r\ncontent-type: {CSV}\r\ntransfer-encoding: chunked\r\n\r\n2\r\na\n\r\n",
        load_header(&create("t")),
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await;
    read.expect("in time").expect("answers");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 504");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_load_and_what_is_no_load() {
    let served = Served::start().await;
    let csv = "a\n1\n";
    let reader = [("content-type", CSV), ("tarn-role", "reader")];
    assert_eq!(refused(&served.load_with(create("t"), &reader, csv).await).0, 403);
    served.query("create view v as select 1 a").await;
    for (request, status) in [
        (json!({"table": "t", "schema": "_tarn", "if_missing": "create"}), 403),
        (json!({"table": "idempotency", "schema": "_TARN", "if_exists": "append"}), 403),
        (json!({"table": "", "if_missing": "create"}), 400),
        (json!({"table": "t", "nonsense": 1}), 400),
        (json!({"table": "t", "if_missing": "create", "key": ["a"]}), 400),
        (json!({"table": "t", "if_missing": "create", "temporary": true}), 400),
        (json!({"table": "t", "if_missing": "create", "session": uuid::Uuid::new_v4()}), 404),
        (json!({"table": "t", "schema": "nowhere", "if_missing": "create"}), 422),
        (json!({"table": "v", "if_exists": "append"}), 400),
        (json!({"table": "t"}), 404),
        (json!(["t"]), 400),
    ] {
        let got = served.load(request.clone(), CSV, csv).await;
        assert_eq!(refused(&got).0, status, "{request}: {got:?}");
    }
    for (media, body) in [("text/plain", csv), (PARQUET, csv), (ARROW, csv), (NDJSON, csv), (CSV, ""), (NDJSON, "")] {
        let (status, code, message) = refused(&served.load(create("t"), media, body).await);
        assert_eq!((status, code.as_str()), (400, "invalid"), "{media} {body:?}: {message}");
        assert!(!message.contains("tmp"), "{message}");
    }
    served.query("create table n(a int)").await;
    assert_eq!(loaded(&served.load(append("n"), NDJSON, "").await), (0, false), "no line is no row");
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    assert!(refused(&served.load(create("t"), NDJSON, deep).await).2.contains("nests deeper"));
    assert_eq!(loaded(&served.load(json!({"table": "o\"dd; --", "if_missing": "create"}), CSV, csv).await), (1, true));
    assert_eq!(served.rows("select a from \"o\"\"dd; --\"").await, json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_s_transaction_takes_loads_in_and_temporary_tables_stay_in_it() {
    let served = Served::start().await;
    let id = uuid::Uuid::new_v4();
    let opened = served.send("POST", "/sessions", json!({"id": id}).to_string().into(), &[]).await;
    assert_eq!(opened.status, 200, "{opened:?}");
    let ask = |sql: &str| served.ask(json!({"sql": sql, "session": id}), &[]);
    let into = |table: &str, temporary: bool| json!({"table": table, "if_missing": "create", "temporary": temporary, "session": id});
    let body = stream(&[goods(0, 1_000)]);
    assert_eq!(loaded(&served.load(into("here", true), ARROW, body.clone()).await), (1_000, true));
    assert_eq!(ask("select count(*) from here").await.json()["rows"], json!([[1_000]]));
    assert_eq!(tables(&served).await, json!([]));
    ask("begin").await;
    let got = served.load(into("t", false), ARROW, body.clone()).await;
    assert_eq!((loaded(&got), got.header("tarn-commit")), ((1_000, true), None));
    assert_eq!(tables(&served).await, json!([]), "not committed");
    assert_eq!(ask("rollback").await.status, 200);
    ask("begin").await;
    assert_eq!(loaded(&served.load(into("t", false), ARROW, body.clone()).await), (1_000, true));
    assert!(ask("commit").await.commit().wal_bytes > 0);
    assert_eq!(served.rows("select count(*) from t").await, json!([[1_000]]));
    ask("begin").await;
    ask("insert into t values (-1, 'x', 0)").await;
    let failed = served.load(json!({"table": "t", "if_exists": "append", "session": id}), CSV, "id\nx\n").await;
    assert_eq!(failed.status, 422, "{failed:?}");
    assert_eq!(ask("commit").await.json()["code"], "conflict", "the whole transaction went with it");
    ask("rollback").await;
    assert_eq!(served.rows("select count(*) from t").await, json!([[1_000]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_neither_the_engine_s_files_nor_its_function() {
    let served = Served::start().await;
    let dir = served.home.dir.path().join("tmp/load");
    std::fs::write(dir.join("x.csv"), "a\n1\n").expect("writes");
    let path = dir.join("x.csv").display().to_string();
    let all = dir.join("*").display().to_string();
    for sql in [
        format!("from read_csv('{path}')"),
        format!("from '{path}'"),
        format!("from read_text('{all}')"),
        format!("from glob('{all}')"),
        format!("copy (select 1) to '{path}'"),
        format!("copy t from '{path}'"),
        format!("select * from read_blob(['{path}'])"),
        "from tarn_body('x')".to_owned(),
        "from \"TARN_BODY\"('x')".to_owned(),
        "select * from system.main.tarn_body('x')".to_owned(),
        "create macro m() as table from tarn_body('x')".to_owned(),
    ] {
        let got = served.query(&sql).await;
        assert_eq!((got.status, got.json()["code"].clone()), (403, json!("forbidden")), "{sql}");
    }
    let again = served.home.open();
    assert!(!dir.join("x.csv").exists(), "emptied at the start");
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_huge_batch_goes_through_a_file() {
    let served = Served::start().await;
    let rows = 1_800_000;
    let body = stream(&[goods(0, rows)]);
    assert!(body.len() > 64 << 20, "{} bytes", body.len());
    assert_eq!(loaded(&served.load(create("t"), ARROW, body).await), (rows as u64, true));
    assert_eq!(
        served.rows("select count(*), sum(id), count(distinct name) from t").await,
        json!([[rows, rows * (rows - 1) / 2, rows]])
    );
    assert_eq!(std::fs::read_dir(served.home.dir.path().join("tmp/load")).expect("lists").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_loads_than_are_read_at_once_take_turns() {
    let served = Served::start().await;
    let body = Bytes::from(stream(&(0..30).map(|part| goods(part * 20_000, 20_000)).collect::<Vec<_>>()));
    let load = async |table| loaded(&served.load(create(table), ARROW, body.clone()).await);
    let all = async { tokio::join!(load("a"), load("b"), load("c"), load("d")) };
    let all = tokio::time::timeout(Duration::from_secs(60), all).await.expect("none waits for ever");
    let one = (600_000, true);
    assert_eq!(all, (one, one, one, one));
}
