//! The engine's walls as DuckDB's settings make them: one way out, nothing beside the mart.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    sync::mpsc::{Receiver, channel},
};

use engine::config::GatewayConfig;
use serde_json::json;

use crate::support::{Home, Served};

/// A gateway that knows one object and remembers what it was asked for.
fn gateway() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has one").to_string();
    let (asked, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let asked = asked.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("clones")).lines();
                let mut stream = stream;
                while let Some(Ok(first)) = lines.next() {
                    let signed = lines
                        .by_ref()
                        .map_while(Result::ok)
                        .take_while(|line| !line.is_empty())
                        .filter(|line| line.contains("KEYID"))
                        .count()
                        > 0;
                    let body = if first.starts_with("HEAD") { "" } else { "a,b\n1,x\n" };
                    let status = if first.contains("/sm-acme-raw/t.csv") { "200 OK" } else { "404 Not Found" };
                    let _ = asked.send(format!("{first} signed={signed}"));
                    let head = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: 8\r\naccept-ranges: bytes\r\netag: \"1\"\r\nlast-modified: Sun, 22 Nov 2026 00:00:00 GMT\r\n\r\n"
                    );
                    if stream.write_all((head + body).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, requests)
}

/// An engine with `s3://`, if the extension is where `scripts/setup` puts it.
async fn with_gateway() -> (Served, Receiver<String>) {
    let (endpoint, requests) = gateway();
    let mut home = Home::new();
    home.httpfs = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vendor/duckdb/ext/httpfs.duckdb_extension"));
    home.gateway = Some(GatewayConfig {
        endpoint,
        key_id: "KEYID".into(),
        secret: "it's secret".into(),
        scopes: vec!["s3://sm-acme-raw/".into(), "s3://sm-acme-analytics/".into()],
        region: "us-east-1".into(),
    });
    (Served::over(home).await, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_goes_to_the_gateway_signed_and_only_within_the_scopes() {
    let (served, requests) = with_gateway().await;
    assert_eq!(
        served.rows("INSTALL httpfs; LOAD httpfs; select * from read_csv('s3://sm-acme-raw/t.csv')").await,
        json!([[1, "x"]])
    );
    let seen: Vec<String> = requests.try_iter().collect();
    assert!(
        !seen.is_empty()
            && seen.iter().all(|line| line.ends_with("signed=true") && line.contains("/sm-acme-raw/t.csv")),
        "{seen:?}"
    );
    for url in ["s3://sm-acme-raw-evil/t.csv", "s3://other/t.csv"] {
        let got = served.query(&format!("select * from read_csv('{url}')")).await;
        assert!([403, 422].contains(&got.status), "{got:?}");
    }
    assert_eq!(requests.try_iter().count(), 0, "nothing else was asked for");
    let got = served.query("select * from read_csv('s3://sm-acme-raw/missing.csv')").await;
    let text = String::from_utf8_lossy(&got.body).into_owned();
    assert!(got.status == 422 && !text.contains("127.0.0.1") && !text.contains("KEYID"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_settings_and_other_databases_are_out_of_reach() {
    let (served, _requests) = with_gateway().await;
    let own = served.home.db().display().to_string();
    for sql in [
        "select * from read_csv('/etc/passwd')".to_owned(),
        format!("select * from read_blob('{own}')"),
        "copy (select 1) to '/tmp/out.csv'".to_owned(),
        "attach ':memory:' as m".to_owned(),
        "set threads = 1".to_owned(),
        "create table memory.main.x(i int)".to_owned(),
        "from duckdb_settings()".to_owned(),
        "from duckdb_secrets()".to_owned(),
        "from duckdb_databases()".to_owned(),
        "select checkpoint()".to_owned(),
        "from _tarn.idempotency".to_owned(),
    ] {
        let got = served.query(&sql).await;
        assert!([403, 422].contains(&got.status), "{sql}: {got:?}");
        let text = String::from_utf8_lossy(&got.body).into_owned();
        assert!(sql.contains(&own) || !text.contains(served.home.dir.path().to_str().expect("text")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_and_a_reopen_work_behind_the_walls() {
    let (served, _requests) = with_gateway().await;
    served.query("create table t as select hash(range) h from range(300000); insert into t values (1)").await;
    let done = served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 2000}"#.into(), &[]).await;
    assert_eq!(done.status, 200, "{done:?}");
    served.query("insert into t values (2)").await;
    assert_eq!(served.rows("select count(*) from t").await, json!([[300_002]]));
}

#[test]
fn a_folded_copy_is_one_plain_file() {
    let home = Home::new();
    let copy = Home::new();
    {
        let mart = home.open();
        let connection = mart.connect().expect("connects");
        crate::support::commit(&mart, &connection, "create table t as select 7 a");
        std::fs::copy(home.wal(), copy.wal()).expect("copies the log first");
        std::fs::copy(home.db(), copy.db()).expect("then the file");
    }
    engine::open::fold(&copy.db()).expect("folds");
    assert!(!copy.wal().exists());
    assert_eq!(crate::support::one(&copy.open().connect().expect("connects"), "select a::varchar from t"), "7");
}
