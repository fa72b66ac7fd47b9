//! The Flight format, descriptions of statements, and parameters as Arrow.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::json;

use crate::support::{Home, Served};

const FLIGHT: [(&str, &str); 1] = [("accept", "application/x-tarn-flight")];

/// Header and body of each message; panics if the framing is not gRPC's around FlightData's.
fn messages(mut bytes: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[0], 0, "not compressed");
        let length = u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes")) as usize;
        let (mut message, rest) = bytes[5..].split_at(length);
        let (mut header, mut body) = (Bytes::new(), Bytes::new());
        while !message.is_empty() {
            let key = varint(&mut message);
            let length = varint(&mut message) as usize;
            let (value, rest) = message.split_at(length);
            match key {
                18 => header = Bytes::copy_from_slice(value),
                8002 => body = Bytes::copy_from_slice(value),
                other => panic!("field {other}"),
            }
            message = rest;
        }
        found.push((header, body));
        bytes = rest;
    }
    found
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    unreachable!("a varint ends")
}

/// The same messages as an IPC stream.
fn stream(messages: &[(Bytes, Bytes)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (header, body) in messages {
        out.extend_from_slice(&[0xff; 4]);
        out.extend_from_slice(&(header.len() as u32).to_le_bytes());
        out.extend_from_slice(header);
        out.extend_from_slice(body);
    }
    out.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    out
}

fn read(bytes: &[u8]) -> Vec<RecordBatch> {
    let reader = arrow_ipc::reader::StreamReader::try_new(bytes, None).expect("is a stream");
    reader.collect::<Result<_, _>>().expect("is whole")
}

#[tokio::test(flavor = "multi_thread")]
async fn flight_messages_hold_what_the_arrow_stream_holds() {
    let served = Served::start().await;
    let sql = "SELECT i, CASE WHEN i % 3 > 0 THEN 's' || i END AS s, ['a', NULL] AS l, (i % 2 = 0) AS b, NULL AS n,
        (CASE WHEN i % 2 = 0 THEN 'on' ELSE 'off' END)::ENUM('on', 'off') AS e FROM range(300000) t(i)";
    let flight = served.ask(json!({ "sql": sql }), &FLIGHT).await;
    let arrow = served.ask(json!({ "sql": sql }), &[("accept", "application/vnd.apache.arrow.stream")]).await;
    assert_eq!((flight.status, flight.header("content-type")), (200, Some("application/x-tarn-flight")));
    let (ours, theirs) = (read(&stream(&messages(&flight.body))), read(&arrow.body));
    assert_eq!(
        arrow_select::concat::concat_batches(&ours[0].schema(), &ours).expect("one schema"),
        arrow_select::concat::concat_batches(&theirs[0].schema(), &theirs).expect("one schema")
    );
    let empty = served.ask(json!({ "sql": "SELECT 1 AS x WHERE false" }), &FLIGHT).await;
    assert_eq!(messages(&empty.body).len(), 1, "the schema");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_message_stays_below_what_stock_clients_take() {
    let served = Served::start().await;
    let got = served.ask(json!({ "sql": "SELECT repeat('x', 100000) AS s FROM range(1000)" }), &FLIGHT).await;
    let messages = messages(&got.body);
    assert!(messages.iter().all(|(header, body)| header.len() + body.len() < 16 << 20));
    assert_eq!(read(&stream(&messages)).iter().map(RecordBatch::num_rows).sum::<usize>(), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_after_the_first_byte_is_told_in_the_trailers() {
    // With one thread the rows come in their order, and the one that fails comes late.
    let served = Served::over(Home { threads: 1, ..Home::new() }).await;
    let sql = "SELECT if(i < 3000000, repeat('x', 50), error('too late')) AS s FROM range(6000000) t(i)";
    let got = served.ask(json!({ "sql": sql }), &FLIGHT).await;
    assert_eq!(got.status, 200);
    let told = got.trailers.get("tarn-error").expect("a trailer").to_str().expect("text");
    let told = percent_encoding::percent_decode_str(told).decode_utf8().expect("UTF-8");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["code"], "sql");
    assert!(told["message"].as_str().expect("text").contains("too late"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_tells_columns_and_parameters_and_runs_nothing() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER, d DECIMAL(9,2))").await;
    let describe = async |sql: &str| {
        let got = served.send("POST", "/describe", json!({ "sql": sql }).to_string().into(), &[]).await;
        assert_eq!(got.status, 200, "{sql}: {got:?}");
        got.json()
    };
    let schema = |text: &serde_json::Value| {
        let mut bytes = STANDARD.decode(text.as_str().expect("a schema")).expect("base64");
        bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        arrow_ipc::reader::StreamReader::try_new(&bytes[..], None).expect("is a stream").schema()
    };
    let read = describe("SELECT d, i + ? AS more FROM t WHERE i > ?").await;
    assert_eq!((&read["kind"], &read["statements"]), (&json!("read"), &json!(1)));
    let fields = schema(&read["schema"]);
    assert_eq!(fields.field(0).data_type(), &arrow_schema::DataType::Decimal128(9, 2));
    assert_eq!(schema(&read["parameters"]).fields().len(), 2);
    let write = describe("INSERT INTO t VALUES (?, ?)").await;
    assert_eq!((&write["kind"], &write["schema"]), (&json!("write"), &json!(null)));
    assert_eq!(schema(&write["parameters"]).field(0).data_type(), &arrow_schema::DataType::Int32);
    assert_eq!(describe("DROP TABLE t").await["kind"], "ddl");
    assert_eq!(describe("INSERT INTO t VALUES (1, 2); SELECT 1").await["kind"], "write");
    served.rows("INSERT INTO t VALUES (1, 2)").await;
    assert_eq!(describe("PIVOT t ON i USING sum(d)").await["kind"], "read");
    served.rows("DELETE FROM t").await;
    assert_eq!(describe("SELECT ? AS x").await["exact"], false);
    let body = json!({ "sql": "SELECT $1 AS x, $2 AS y", "params_arrow": params(vec![Some(1)], vec![Some("a")]) });
    let known = served.send("POST", "/describe", body.to_string().into(), &[]).await.json();
    assert_eq!(known["exact"], true);
    assert_eq!(schema(&known["schema"]).field(0).data_type(), &arrow_schema::DataType::Int64);
    assert_eq!(served.rows("SELECT count(*) FROM t").await, json!([[0]]), "nothing ran");
    let unknown = served.send("POST", "/describe", json!({ "sql": "FROM nowhere" }).to_string().into(), &[]).await;
    assert_eq!(unknown.json()["code"], "sql");
}

fn params(numbers: Vec<Option<i64>>, texts: Vec<Option<&str>>) -> String {
    let columns: Vec<(&str, ArrayRef)> =
        vec![("0", Arc::new(Int64Array::from(numbers))), ("1", Arc::new(StringArray::from(texts)))];
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("writes");
    writer.write(&batch).expect("writes");
    STANDARD.encode(writer.into_inner().expect("ends"))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_parameters_are_written_in_one_transaction_and_read_one_after_another() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER NOT NULL, s VARCHAR)").await;
    let rows = params(vec![Some(1), Some(2), Some(3)], vec![Some("a"), None, Some("c")]);
    let written = served.ask(json!({ "sql": "INSERT INTO t VALUES (?, ?)", "params_arrow": rows }), &[]).await;
    assert_eq!((written.status, written.header("tarn-changed-rows")), (200, Some("3")), "{written:?}");
    assert_eq!(served.rows("FROM t ORDER BY i").await, json!([[1, "a"], [2, null], [3, "c"]]));
    let failing = params(vec![Some(4), None], vec![Some("d"), Some("e")]);
    let refused = served.ask(json!({ "sql": "INSERT INTO t VALUES (?, ?)", "params_arrow": failing }), &[]).await;
    assert_eq!(refused.json()["outcome"], "none");
    assert_eq!(served.rows("SELECT count(*) FROM t").await, json!([[3]]), "all or nothing");
    let asked = params(vec![Some(1), Some(3)], vec![Some("x"), Some("y")]);
    let sql = "SELECT s, $2 AS tag FROM t WHERE i = $1";
    let got = served.ask(json!({ "sql": sql, "params_arrow": asked }), &[]).await;
    assert_eq!(got.json()["rows"], json!([["a", "x"], ["c", "y"]]));
    let few = served.ask(json!({ "sql": "SELECT ?", "params_arrow": rows }), &[]).await;
    assert_eq!(few.json()["code"], "invalid");
    let garbled = served.ask(json!({ "sql": "SELECT ?", "params_arrow": STANDARD.encode(b"no stream") }), &[]).await;
    assert_eq!(garbled.json()["code"], "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_writes_nothing_through_a_view() {
    let served = Served::start().await;
    served
        .rows(
            "CREATE SEQUENCE s; CREATE VIEW v AS SELECT nextval('s') AS n; CREATE TABLE t AS SELECT nextval('s') AS n",
        )
        .await;
    let size = || std::fs::metadata(served.home.wal()).expect("a log").len();
    let before = size();
    for sql in [
        "FROM v",
        "PIVOT v ON n USING count(*)",
        "SELECT ?, n FROM v",
        "WITH x AS MATERIALIZED (FROM v) SELECT ?, n FROM x",
    ] {
        let body = json!({ "sql": sql }).to_string();
        let got = served.send("POST", "/describe", body.into(), &[("tarn-role", "reader")]).await;
        assert_eq!((&got.json()["kind"], &got.json()["exact"]), (&json!("read"), &json!(false)), "{sql}: {got:?}");
    }
    assert_eq!(served.rows("SELECT currval('s')").await, json!([[1]]));
    assert_eq!(size(), before);
    served.rows("DROP VIEW v").await;
    let body = json!({ "sql": "FROM t" }).to_string();
    let got = served.send("POST", "/describe", body.into(), &[("tarn-role", "reader")]).await;
    assert_eq!(got.json()["exact"], true, "{got:?}");
}
