//! Engines that show a past moment from files behind HTTP.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{
    config::{GatewayConfig, ViewConfig},
    exec::Engine,
    wire::{Point, exit},
};
use serde_json::{Value, json};

use crate::{
    process::Process,
    ranges::Ranges,
    support::{Home, Served, commit},
};

/// A mart's files as they were at a moment, with more in the mart that came later.
struct Past {
    files: tempfile::TempDir,
    point: Point,
}

impl Past {
    /// Small commits in the log, a bulk commit in the file's free space, and a checkpoint before.
    fn new() -> Self {
        let home = Home::new();
        let files = tempfile::tempdir().expect("a directory");
        let mart = home.open();
        let connection = mart.connect().expect("connects");
        commit(
            &mart,
            &connection,
            "create table big as select i id, hash(i) h, 'name ' || i s from range(3000000) t(i);
             create table t(id int primary key, v varchar); insert into t select i, 'v' || i from range(100000) r(i);
             create sequence q; create macro hidden() as nextval('q'); create view hiding as select nextval('q') n",
        );
        mart.commits.checkpoint(|| connection.execute("CHECKPOINT mart")).expect("runs").expect("folds");
        commit(&mart, &connection, "insert into t values (-1, 'late'); update t set v = 'new' where id = 5");
        commit(&mart, &connection, "create table bulk as select i from range(500000) r(i)");
        let point = commit(&mart, &connection, "delete from t where id = 6").expect("commits").point();
        std::fs::copy(home.wal(), files.path().join("mart.db.wal")).expect("copies the log first");
        std::fs::copy(home.db(), files.path().join("mart.db")).expect("then the file");
        commit(&mart, &connection, "insert into t values (-2, 'later'); drop table bulk");
        Self { files, point }
    }

    /// An engine on it, and what serves its files.
    async fn served(&self, url: &dyn Fn(&str) -> String) -> (Served, Ranges) {
        let (home, ranges) = self.home(url);
        (Served::over(home).await, ranges)
    }

    fn home(&self, url: &dyn Fn(&str) -> String) -> (Home, Ranges) {
        let ranges = Ranges::start(self.files.path().to_owned());
        let mut home = Home::new();
        home.httpfs = Some(httpfs());
        home.gateway = Some(GatewayConfig {
            endpoint: ranges.address.clone(),
            key_id: "KEYID".into(),
            secret: "it's secret".into(),
            scopes: vec!["s3://sm-acme-raw/".into()],
            region: "us-east-1".into(),
        });
        let Point { iteration, wal_bytes } = self.point;
        home.view = Some(ViewConfig { url: url(&ranges.address), iteration, wal_bytes });
        (home, ranges)
    }
}

fn httpfs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vendor/duckdb/ext/httpfs.duckdb_extension")
}

fn s3(_: &str) -> String {
    "s3://tarn-past/7f3a/mart.db".to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_past_moment_shows_its_commits_and_no_later_one() {
    let past = Past::new();
    let http = |address: &str| format!("http://{address}/7f3a/mart.db");
    for url in [&s3 as &dyn Fn(&str) -> String, &http] {
        let (served, ranges) = past.served(url).await;
        let got = served.query("select id, v from t where id in (-2, -1, 4, 5, 6) order by id").await;
        assert_eq!(got.json()["rows"], json!([[-1, "late"], [4, "v4"], [5, "new"]]));
        assert_eq!(got.header("tarn-at"), Some(past.point.to_string().as_str()));
        assert_eq!((got.header("tarn-at-moving"), got.header("tarn-commit")), (None, None));
        assert_eq!(served.rows("select count(*), sum(i) from bulk").await, json!([[500_000, 124_999_750_000i64]]));
        assert_eq!(served.rows("select count(*), min(s) from big").await, json!([[3_000_000, "name 0"]]));
        let health = served.send("GET", "/health", Default::default(), &[]).await.json();
        assert_eq!((&health["iteration"], &health["wal_bytes"]), (&json!(1), &json!(past.point.wal_bytes)));
        let asked = ranges.take();
        assert!(asked.iter().all(|asked| asked.line.contains("/7f3a/mart.db")), "{asked:?}");
        assert!(!served.home.db().exists() && !served.home.wal().exists(), "nothing is made here");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_without_a_log_is_one_too() {
    let past = Past::new();
    std::fs::remove_file(past.files.path().join("mart.db.wal")).expect("is there");
    let (served, _) = past.served(&s3).await;
    assert_eq!(served.rows("select count(*) from t where id < 10").await, json!([[10]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_reads_run_at_a_past_moment() {
    let past = Past::new();
    let (served, _) = past.served(&s3).await;
    for (sql, at) in [
        ("insert into t values (1, 'x')", 0),
        ("select 1; update t set v = 'x'", 1),
        ("begin; select 1; commit", 0),
        ("create table x(i int)", 0),
        ("create temp table x(i int)", 0),
        ("copy t to 's3://sm-acme-raw/x.csv'", 0),
        ("select nextval('q')", 0),
        ("explain analyze delete from t", 0),
        ("with x as (select 1) delete from t", 0),
    ] {
        for headers in [&[("tarn-role", "admin")][..], &[("tarn-role", "admin"), ("idempotency-key", "k")]] {
            let got = served.ask(json!({"sql": sql}), headers).await;
            let body = got.json();
            assert_eq!(
                (got.status, &body["code"], &body["message"], &body["outcome"], &body["statement_index"]),
                (400, &json!("invalid"), &json!("only reads can run at a past moment"), &json!("none"), &json!(at)),
                "{sql}: {body}"
            );
        }
    }
    for sql in [
        "install httpfs; load httpfs; select 1",
        "explain delete from t",
        "pivot (from t where id < 3) on id using count(*)",
        "describe t",
    ] {
        let got = served.query(sql).await;
        assert!(got.status == 200 || got.json()["message"] == "only reads can run at a past moment", "{sql}: {got:?}");
    }
    let keyed = served.ask(json!({"sql": "select 1"}), &[("idempotency-key", "k")]).await;
    assert_eq!(keyed.json()["rows"], json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hides_a_write_does_not_write() {
    let past = Past::new();
    let (served, _) = past.served(&s3).await;
    for sql in ["select hidden()", "from hiding", "explain analyze select hidden()"] {
        let got = served.query(sql).await;
        let body = got.json();
        assert_eq!(
            (got.status, &body["message"], &body["outcome"]),
            (400, &json!("only reads can run at a past moment"), &json!("none")),
            "{sql}: {body}"
        );
        assert!(body["hint"].as_str().is_some_and(|hint| hint.contains("nextval")), "{body}");
    }
    assert_eq!(served.rows("select last_value from duckdb_sequences()").await, json!([[null]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_walls_stand_and_the_tenant_s_own_files_are_still_there() {
    let past = Past::new();
    std::fs::write(past.files.path().join("t.csv"), "a,b\n1,x\n").expect("writes");
    let (served, ranges) = past.served(&s3).await;
    let opened = ranges.take();
    assert!(!opened.is_empty() && opened.iter().all(|asked| asked.signed), "{opened:?}");
    assert_eq!(served.rows("select * from read_csv('s3://sm-acme-raw/t.csv')").await, json!([[1, "x"]]));
    assert!(ranges.take().iter().all(|asked| asked.signed && asked.line.contains("/sm-acme-raw/t.csv")));
    let address = ranges.address.clone();
    for sql in [
        "select content from read_blob('s3://tarn-past/7f3a/mart.db')".to_owned(),
        "select content from read_blob(e's3://tarn-past/7f3a/\\x6dart.db')".to_owned(),
        "select content from read_text('s3://tarn-past/7f3a/mart.db.wal')".to_owned(),
        "from \"s3://tarn-past/7f3a/mart.db\"".to_owned(),
        "from glob('s3://tarn-past/**')".to_owned(),
        "select content from read_blob('s3://tarn-past/*/mart.db')".to_owned(),
        "select content from read_blob('S3://tarn-past/7f3a/mart.db')".to_owned(),
        format!("select content from read_blob('http://{address}/tarn-past/7f3a/mart.db')"),
        "select * from read_csv('s3://sm-other-raw/t.csv')".to_owned(),
        "select * from read_csv('/etc/passwd')".to_owned(),
        "from _tarn.idempotency".to_owned(),
        "from duckdb_databases()".to_owned(),
    ] {
        let got = served.query(&sql).await;
        assert!([403, 422].contains(&got.status), "{sql}: {got:?}");
        let text = String::from_utf8_lossy(&got.body).into_owned();
        assert!(!text.contains(served.home.dir.path().to_str().expect("text")), "{text}");
        assert!(sql.contains(&address) || !text.contains(&address), "{text}");
        assert!(sql.contains("7f3a") || !text.contains("7f3a"), "{text}");
    }
    let asked = ranges.take();
    assert!(asked.is_empty(), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_once_is_not_asked_for_again() {
    let past = Past::new();
    let (served, ranges) = past.served(&s3).await;
    let sum = |asked: &[crate::ranges::Asked]| asked.iter().map(|asked| asked.bytes).sum::<u64>();
    let opened = ranges.take();
    assert!(opened.len() <= 14 && sum(&opened) < 2_500_000, "{opened:?}");
    for sql in ["select v from t where id = 777", "select s from big where id = 2345678"] {
        let rows = served.rows(sql).await;
        let cold = ranges.take();
        assert!(cold.len() <= 6 && sum(&cold) < 2_000_000, "{sql}: {cold:?}");
        println!("{sql}: {} requests, {} bytes", cold.len(), sum(&cold));
        assert_eq!(served.rows(sql).await, rows);
        let warm = ranges.take();
        assert!(warm.is_empty(), "{sql}: {warm:?}");
    }
    println!("attach: {} requests, {} bytes", opened.len(), sum(&opened));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_checkpoints_or_orders_writers_at_a_past_moment() {
    let past = Past::new();
    let (served, _) = past.served(&s3).await;
    for (path, body) in [("/checkpoint", r#"{"abort_readers": true}"#), ("/writers", r#"{"state": "closed"}"#)] {
        let got = served.send("POST", path, body.into(), &[]).await;
        assert_eq!((got.status, got.json()["code"].clone()), (409, json!("conflict")), "{path}");
    }
    assert_eq!(served.rows("select 1").await, json!([[1]]));
}

#[test]
fn files_that_are_not_there_do_not_open() {
    let past = Past::new();
    std::fs::remove_file(past.files.path().join("mart.db")).expect("is there");
    let (home, _ranges) = past.home(&s3);
    assert!(Engine::open(&home.config()).is_err());
}

/// The node then restores it instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_makes_an_index_over_rows_is_told_from_other_failures() {
    let home = Home::new();
    let files = tempfile::tempdir().expect("a directory");
    let mart = home.open();
    let connection = mart.connect().expect("connects");
    commit(&mart, &connection, "create table t as select i from range(10) r(i)");
    mart.commits.checkpoint(|| connection.execute("CHECKPOINT mart")).expect("runs").expect("folds");
    let point = commit(&mart, &connection, "create index i on t(i)").expect("commits").point();
    std::fs::copy(home.wal(), files.path().join("mart.db.wal")).expect("copies the log first");
    std::fs::copy(home.db(), files.path().join("mart.db")).expect("then the file");
    let past = Past { files, point };
    for (code, missing) in [(exit::REPLAY, None), (exit::OPEN, Some("mart.db"))] {
        if let Some(name) = missing {
            std::fs::remove_file(past.files.path().join(name)).expect("is there");
        }
        let (home, _ranges) = past.home(&s3);
        let mut process = Process::start(&home, 512 << 20);
        assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(code));
    }
}

#[test]
fn a_configuration_without_a_moment_reads_as_before() {
    let mut config = serde_json::to_value(Home::new().config()).expect("has a JSON form");
    assert_eq!(config.get("view"), None::<&Value>);
    config["view"] = json!({"url": "s3://x/mart.db", "iteration": 3, "wal_bytes": 99});
    let read: engine::config::EngineConfig = serde_json::from_value(config).expect("reads");
    assert_eq!(read.view.map(|view| (view.iteration, view.wal_bytes)), Some((3, 99)));
}
