//! The published dev file: what an unmodified DuckDB opens beside the running server.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::server::TestServer;

/// One value out of a DuckDB file, read by the stock Python package, read-only, in a process of its own.
pub fn read(file: &Path, sql: &str) -> Result<String, String> {
    const SCRIPT: &str =
        "import sys, duckdb; print(duckdb.connect(sys.argv[1], read_only=True).execute(sys.argv[2]).fetchone()[0])";
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vendor/venv/bin/python");
    let output = Command::new(python)
        .args(["-c", SCRIPT])
        .arg(file)
        .arg(sql)
        .output()
        .expect("`scripts/setup --test` made the environment");
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Reads until the value is there; the file may be a while behind but must open every time once it exists.
fn eventually(file: &Path, sql: &str, value: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = if file.exists() { read(file, sql) } else { Ok("no file".into()) };
        match found {
            Ok(found) if found == value => return,
            Err(error) if !error.contains("does not exist") => panic!("the published file does not open: {error}"),
            found => assert!(Instant::now() < deadline, "still {found:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dev_mart_is_published_whole_after_every_kind_of_commit() {
    let server = TestServer::start_with(&[("TARN_PUBLISH", "default/dev")]).await;
    let file = server.state_dir().join("duckdb-dev.db");
    server.query("CREATE SCHEMA metrics; CREATE TABLE metrics.daily AS SELECT 1 AS a").await.rows();
    eventually(&file, "SELECT sum(a)::INTEGER FROM metrics.daily", "1");
    server.query("INSERT INTO metrics.daily SELECT 1 FROM range(200000)").await.rows();
    eventually(&file, "SELECT sum(a)::INTEGER FROM metrics.daily", "200001");
    server.query("DELETE FROM metrics.daily WHERE rowid > 9").await.rows();
    eventually(&file, "SELECT sum(a)::INTEGER FROM metrics.daily", "10");
    assert!(!file.with_extension("db.wal").exists());
    // The live mart was never touched by it.
    assert_eq!(*server.query("SELECT count(*) FROM metrics.daily").await.rows(), serde_json::json!([[10]]));
}
