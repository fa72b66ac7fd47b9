//! The command line against a running node.

use std::process::Output;

use crate::server::TestServer;

async fn run(server: &TestServer, arguments: &[&str]) -> Output {
    server.tarn(arguments).output().await.expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn query_prints_each_text_format() {
    let server = TestServer::start().await;
    let sql = "SELECT 1 AS a, 'x' AS b UNION ALL SELECT 20, NULL ORDER BY a";
    assert_eq!(stdout(&run(&server, &["query", sql]).await), " a  b\n──  ─\n 1  x\n20\n(2 rows)\n");
    assert_eq!(stdout(&run(&server, &["query", sql, "--format", "csv"]).await).replace('\r', ""), "a,b\n1,x\n20,\n");
    assert_eq!(
        stdout(&run(&server, &["query", sql, "--format", "ndjson"]).await),
        "{\"a\":1,\"b\":\"x\"}\n{\"a\":20,\"b\":null}\n"
    );
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&run(&server, &["query", sql, "--format", "json"]).await)).expect("JSON");
    assert_eq!(json["rows"], serde_json::json!([[1, "x"], [20, null]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn arrow_goes_to_a_file() {
    let server = TestServer::start().await;
    let file = server.state_dir().join("result.arrow");
    let path = file.to_string_lossy().into_owned();
    let output =
        run(&server, &["query", "SELECT i FROM range(100000) t(i)", "--format", "arrow", "--output", &path]).await;
    assert_eq!(stdout(&output), "");
    let reader = arrow_ipc::reader::StreamReader::try_new(std::fs::File::open(file).expect("it was written"), None)
        .expect("an Arrow stream");
    let rows: usize = reader.map(|batch| batch.expect("a whole batch").num_rows()).sum();
    assert_eq!(rows, 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn parquet_goes_to_a_file_that_duckdb_reads() {
    let server = TestServer::start().await;
    let dir = server.objects_dir().join("sm-default-raw");
    std::fs::create_dir_all(&dir).expect("it is writable");
    let path = dir.join("result.parquet").to_string_lossy().into_owned();
    let output =
        run(&server, &["query", "SELECT i FROM range(100000) t(i)", "--format", "parquet", "--output", &path]).await;
    assert_eq!(stdout(&output), "");
    let read = server.query("SELECT count(*), sum(i)::BIGINT FROM 's3://sm-default-raw/result.parquet'").await;
    assert_eq!(*read.rows(), serde_json::json!([[100_000, 4_999_950_000_i64]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_usage_from_failure() {
    let server = TestServer::start().await;
    for (arguments, code) in [
        (&["query", "SELECT * FROM nowhere"][..], 1),
        (&["query", "http://x", "SELECT 1"], 2),
        (&["query", "SELECT 1", "--format", "xml"], 2),
        (&["frobnicate"], 2),
        (&["mart", "drop"], 2),
    ] {
        let output = run(&server, arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?} wrote to stdout: {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?} said nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn marts_and_tokens_by_command() {
    let server = TestServer::start().await;
    let sales = format!("tarn://{}/acme/sales", server.address());
    let acme = format!("tarn://{}/acme", server.address());
    stdout(&run(&server, &["mart", "create", &sales]).await);
    assert!(stdout(&run(&server, &["mart", "list", &acme]).await).contains("sales"));
    let token = stdout(&run(&server, &["token", "create", &acme, "--role", "reader"]).await);
    let dsn = format!("tarn://{}@{}/acme/sales", token.trim(), server.address());
    assert!(stdout(&run(&server, &["query", &dsn, "SELECT 7 AS seven"]).await).contains("seven"));
    assert_eq!(run(&server, &["query", &dsn, "CREATE TABLE t(a INTEGER)"]).await.status.code(), Some(1));
    stdout(&run(&server, &["mart", "drop", &sales, "--yes"]).await);
    assert_eq!(run(&server, &["query", &dsn, "SELECT 1"]).await.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_passes_a_good_store_and_fails_a_bad_one() {
    let server = TestServer::start().await;
    let objects = format!("file:{}", server.objects_dir().display());
    let state = server.state_dir().to_string_lossy().into_owned();
    let good = run(&server, &["doctor", "--store", &objects, "--state-dir", &state]).await;
    let text = stdout(&good);
    assert!(text.contains("control bucket") && !text.contains("FAIL"), "{text}");
    let file = server.state_dir().join("a-file");
    std::fs::write(&file, "x").expect("it is writable");
    let bad = run(&server, &["doctor", "--store", &format!("file:{}", file.display()), "--state-dir", &state]).await;
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    assert!(String::from_utf8_lossy(&bad.stdout).contains("FAIL"), "{bad:?}");
}
