//! The gateway as a real DuckDB meets it, over a directory and over a real S3 server, straight and as its `http_proxy`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use http::{Method, StatusCode};
use node::gateway::{Direction, Gateway, Grant, REGION};
use node::names::Tenant;
use node::stores::{Bucket, BucketStores, BucketTemplates, StoreConfig};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpRequestBody};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Mutex;

use crate::seaweed::SeaweedFs;

const ANALYTICS: &str = "s3://sm-default-analytics";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A gateway over some store, with two tenants, and what must outlive it.
struct Place {
    gateway: Gateway,
    stores: Arc<BucketStores>,
    grant: Grant,
    proxy: bool,
    duckdb: Mutex<Option<DuckDb>>,
    _dir: Option<tempfile::TempDir>,
    _server: Option<SeaweedFs>,
}

/// Where an engine comes in that has no network namespace of its own.
fn door() -> std::net::TcpListener {
    std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("loopback can be listened on")
}

impl Place {
    async fn on_files() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let stores = stores(StoreConfig::File(dir.path().join("objects")));
        Self { _dir: Some(dir), ..Self::over(stores).await }
    }

    async fn on_seaweed() -> Self {
        let templates = BucketTemplates::default();
        let tenants = ["default", "acme"].map(|tenant| templates.names_of(&tenant_named(tenant)));
        let buckets: Vec<_> = tenants.into_iter().flat_map(|t| [t.analytics, t.processed, t.raw]).collect();
        let server = SeaweedFs::start(&buckets).await;
        let stores = stores(StoreConfig::S3(server.config()));
        Self { _server: Some(server), ..Self::over(stores).await }
    }

    async fn over(stores: BucketStores) -> Self {
        let stores = Arc::new(stores);
        let gateway = Gateway::new(stores.clone());
        let mart = "dev".parse().expect("a legal name");
        let grant = gateway.grant(door(), &tenant_named("default"), &mart).expect("a grant");
        Self { gateway, stores, grant, proxy: false, duckdb: Mutex::default(), _dir: None, _server: None }
    }

    fn bucket(&self, name: &str) -> Bucket {
        self.stores.bucket(&name.parse().expect("a legal bucket name")).expect("opens")
    }

    async fn put(&self, bucket: &str, key: &str, text: &'static str) {
        let path = Path::parse(key).expect("a legal key");
        self.bucket(bucket).data.put(&path, PutPayload::from_static(text.as_bytes())).await.expect("stored");
    }

    /// What DuckDB makes of some statements, in one connection.
    async fn outcomes(&self, sql: &[&str]) -> Vec<Result<Vec<Vec<String>>, String>> {
        let mut duckdb = self.duckdb.lock().await;
        let duckdb = duckdb.get_or_insert_with(|| DuckDb::start(self.settings()));
        let outcomes = duckdb.ask(&json!(sql)).await;
        let outcomes = outcomes.as_array().expect("a list").iter().map(|outcome| match &outcome["error"] {
            serde_json::Value::String(error) => Err(error.clone()),
            _ => Ok(serde_json::from_value(outcome["rows"].clone()).expect("rows")),
        });
        outcomes.collect()
    }

    fn settings(&self) -> serde_json::Value {
        json!({
            "httpfs": format!("{ROOT}/vendor/duckdb/ext/httpfs.duckdb_extension"),
            "endpoint": self.grant.addr.to_string(), "region": REGION, "proxy": self.proxy,
            "key_id": self.grant.key_id, "secret": self.grant.secret, "scopes": self.grant.scopes,
        })
    }

    /// The rows of one statement, each as text with spaces between its values.
    async fn rows(&self, sql: &str) -> Vec<String> {
        let rows = self.outcomes(&[sql]).await.remove(0).unwrap_or_else(|error| panic!("{sql}\n{error}"));
        rows.into_iter().map(|row| row.join(" ")).collect()
    }

    async fn run(&self, sql: &[&str]) {
        for (sql, outcome) in sql.iter().zip(self.outcomes(sql).await) {
            outcome.unwrap_or_else(|error| panic!("{sql}\n{error}"));
        }
    }

    /// A request signed by the grant's keys, outside of DuckDB.
    async fn request(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, http::HeaderMap, String) {
        let mut request = http::Request::builder().method(method).uri(format!("http://{}{target}", self.grant.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(HttpRequestBody::empty()).expect("a legal request");
        let keys =
            AwsCredential { key_id: self.grant.key_id.clone(), secret_key: self.grant.secret.clone(), token: None };
        AwsAuthorizer::new(&keys, "s3", REGION).authorize(&mut request, None);
        let answer = HttpClient::new(reqwest::Client::new()).execute(request).await.expect("an answer");
        let (parts, body) = answer.into_parts();
        let body = body.bytes().await.expect("a whole body");
        (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
    }
}

/// A Python process with a DuckDB connection.
struct DuckDb {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    settings: Option<serde_json::Value>,
    _process: Child,
}

impl DuckDb {
    fn start(settings: serde_json::Value) -> Self {
        let vendored = || PathBuf::from(ROOT).join("vendor/venv/bin/python");
        let python = std::env::var_os("TARN_TEST_PYTHON").map_or_else(vendored, PathBuf::from);
        let mut process = tokio::process::Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/run_sql.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python with DuckDB: `scripts/setup` makes it");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { input, output, settings: Some(settings), _process: process }
    }

    async fn ask(&mut self, sql: &serde_json::Value) -> serde_json::Value {
        let mut text = self.settings.take().map(|settings| format!("{settings}\n")).unwrap_or_default();
        text.push_str(&format!("{sql}\n"));
        self.input.write_all(text.as_bytes()).await.expect("DuckDB listens");
        let line = self.output.next_line().await.expect("DuckDB answers").expect("DuckDB lives");
        serde_json::from_str(&line).expect("outcomes")
    }
}

fn stores(config: StoreConfig) -> BucketStores {
    BucketStores::new(config, BucketTemplates::default()).expect("a good configuration")
}

fn tenant_named(name: &str) -> Tenant {
    name.parse().expect("a legal name")
}

/// Bytes as they are on the wire, without a client that would tidy them up.
async fn raw(addr: SocketAddr, head: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(addr).await.expect("connected");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn everything_that_tenants_do(place: &Place) {
    the_seeds_join(place).await;
    names_with_odd_characters(place).await;
    partitions_written_and_replaced(place).await;
    uploads_in_parts(place).await;
    long_lists(place).await;
    walls(place).await;
}

/// The first sample query of the seed.
async fn the_seeds_join(place: &Place) {
    place.put("sm-default-processed", "knowledge/k.json", "{\"id\": 1}\n{\"id\": 2}\n{\"id\": 3}").await;
    place
        .run(&[&format!(
            "COPY (FROM (VALUES (1, 'engagement_score', 0.5), (2, 'engagement_score', 0.25), (3, 'other', 9))
                t(asset_id, metric, value)) TO '{ANALYTICS}/seed/m.parquet'"
        )])
        .await;
    let parquet = place.bucket("sm-default-analytics").data.get(&Path::from("seed/m.parquet")).await.expect("written");
    let bytes = parquet.bytes().await.expect("whole");
    place
        .bucket("sm-default-processed")
        .data
        .put(&Path::from("metrics/m.parquet"), bytes.into())
        .await
        .expect("stored");
    let rows = place
        .rows(
            "SELECT a.id, m.metric, m.value
            FROM read_parquet('s3://sm-default-processed/metrics/*.parquet') m
            JOIN read_json('s3://sm-default-processed/knowledge/*.json') a
              ON a.id = m.asset_id
            WHERE m.metric = 'engagement_score' ORDER BY ALL",
        )
        .await;
    assert_eq!(rows, ["1 engagement_score 0.50", "2 engagement_score 0.25"]);
}

async fn names_with_odd_characters(place: &Place) {
    let keys = ["odd/a b+c%20d.csv", "odd/é&=;'().csv", "odd/100%.csv", "odd/plain.csv", "odd/sub dir/x.csv"];
    for key in keys {
        place.put("sm-default-raw", key, "a\n1\n").await;
    }
    let found = place.rows("SELECT file FROM glob('s3://sm-default-raw/odd/**') ORDER BY file").await;
    let mut expected = keys.map(|key| format!("s3://sm-default-raw/{key}")).to_vec();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(place.rows("SELECT sum(a) FROM read_csv('s3://sm-default-raw/odd/*.csv')").await, ["4"]);
    assert_eq!(place.rows("SELECT a FROM 's3://sm-default-raw/odd/a b+c%20d.csv'").await, ["1"]);
    assert_eq!(place.rows("SELECT file FROM glob('s3://sm-default-raw/odd/p*.csv')").await.len(), 1);
    assert_eq!(place.rows("SELECT count(*) FROM glob('s3://sm-default-raw/nothing/*')").await, ["0"]);
}

async fn partitions_written_and_replaced(place: &Place) {
    let target = format!("'{ANALYTICS}/parts'");
    place
        .run(&[
            &format!(
                "COPY (SELECT range i, range % 3 p FROM range(3000)) TO {target} (FORMAT parquet, PARTITION_BY (p))"
            ),
            &format!(
                "COPY (SELECT range i, range % 2 p, 'a b+%/' || (range % 2) q FROM range(300)) TO {target}
                (FORMAT parquet, PARTITION_BY (p, q), OVERWRITE)"
            ),
        ])
        .await;
    let read =
        format!("SELECT p, q, count(*) FROM read_parquet('{ANALYTICS}/parts/**/*.parquet') GROUP BY ALL ORDER BY ALL");
    assert_eq!(place.rows(&read).await, ["0 a b+%/0 150", "1 a b+%/1 150"]);
}

async fn uploads_in_parts(place: &Place) {
    let file = format!("'{ANALYTICS}/big/b.csv'");
    let rows = "SELECT range i, md5(range::VARCHAR) h FROM range(700000)";
    place.run(&[&format!("COPY ({rows}) TO {file}")]).await;
    let bucket = place.bucket("sm-default-analytics");
    let size = bucket.data.head(&Path::from("big/b.csv")).await.expect("uploaded").size;
    assert!(size > 20_000_000, "several parts of 5 MiB: {size}");
    let same = format!("SELECT count(*) FROM (FROM {file} EXCEPT ALL ({rows}))");
    assert_eq!(place.rows(&same).await, ["0"]);
    assert_eq!(place.rows(&format!("SELECT count(*) FROM {file}")).await, ["700000"]);
}

/// More entries than one page holds, with hidden ones in their midst.
async fn long_lists(place: &Place) {
    let bucket = place.bucket("sm-default-analytics");
    let keys = (0..1100).map(|n| format!("list/{n:04}")).chain((0..1100).map(|n| format!("duckdb/m/log/{n:04}")));
    let put = futures::future::join_all(keys.map(|key| {
        let bucket = bucket.clone();
        async move { bucket.data.put(&Path::from(key), PutPayload::from_static(b"x")).await.map(|_| ()) }
    }));
    assert!(put.await.iter().all(Result::is_ok));
    assert_eq!(place.rows(&format!("SELECT count(*) FROM glob('{ANALYTICS}/list/*')")).await, ["1100"]);
    let seen = place.rows(&format!("SELECT file FROM glob('{ANALYTICS}/**')")).await;
    assert_eq!(seen.iter().filter(|file| file.contains("/list/")).count(), 1100);
    assert!(seen.iter().all(|file| !file.contains("/duckdb/")), "the replica shows");
}

async fn walls(place: &Place) {
    place.put("sm-default-analytics", "duckdb/m/secret.csv", "a\nHIDDEN\n").await;
    place.put("sm-acme-raw", "f.csv", "a\nFOREIGN\n").await;
    place.put("sm-default-raw", "f.csv", "a\n1\n").await;
    let addr = place.grant.addr;
    let (key, secret) = (&place.grant.key_id, &place.grant.secret);
    let signed = format!("s3_endpoint={addr}&s3_access_key_id={key}&s3_secret_access_key={secret}&s3_use_ssl=false");
    let sql = [
        format!("FROM '{ANALYTICS}/duckdb/m/secret.csv'"),
        format!("SELECT * FROM read_text('{ANALYTICS}/x/../duckdb/m/secret.csv')"),
        format!("SELECT * FROM read_text('{ANALYTICS}//duckdb/m/secret.csv')"),
        format!("SELECT * FROM read_text('{ANALYTICS}/DuckDB/m/secret.csv')"),
        format!("SELECT * FROM glob('{ANALYTICS}/duckdb/**')"),
        format!("COPY (SELECT 1) TO '{ANALYTICS}/duckdb/x.csv'"),
        format!("COPY (SELECT 1) TO '{ANALYTICS}/duckdb' (FORMAT csv, PER_THREAD_OUTPUT)"),
        "COPY (SELECT 1) TO 's3://sm-default-raw/x.csv'".to_owned(),
        "COPY (SELECT 1) TO 's3://sm-default-processed/x.csv'".to_owned(),
        "FROM 's3://sm-acme-raw/f.csv'".to_owned(),
        format!("SELECT * FROM read_text('s3://sm-acme-raw/f.csv?{signed}&s3_url_style=path')"),
        format!("SELECT * FROM read_text('s3://sm-acme-raw/f.csv?{signed}&s3_url_style=vhost')"),
        "SELECT * FROM read_text('s3://sm-default-raw/f.csv?s3_url_style=vhost')".to_owned(),
        "SELECT * FROM read_text('s3://sm-default-raw/f.csv?s3_endpoint=127.0.0.1:1')".to_owned(),
        format!("SELECT * FROM read_text('http://{addr}/sm-default-raw/f.csv')"),
        "SELECT * FROM read_text('http://example.com/x')".to_owned(),
        "SELECT * FROM read_text('https://example.com/x')".to_owned(),
        "SELECT * FROM read_text('s3://sm-default-raw/missing.csv')".to_owned(),
    ];
    let texts: Vec<_> = sql.iter().map(String::as_str).collect();
    for (sql, outcome) in sql.iter().zip(place.outcomes(&texts).await) {
        let error = outcome.expect_err(sql);
        assert!(!error.contains("HIDDEN") && !error.contains("FOREIGN"), "{sql}\n{error}");
    }
    let raw = place.bucket("sm-default-raw");
    assert!(raw.data.head(&Path::from("x.csv")).await.is_err(), "a read-only bucket was written");
    let replica = place.bucket("sm-default-analytics");
    assert!(replica.data.head(&Path::from("duckdb/x.csv")).await.is_err(), "the replica's prefix was written");
    // What stands right beside the walls is open.
    place.run(&[&format!("COPY (SELECT 1 a) TO '{ANALYTICS}/duckdb-exports/x.csv'")]).await;
    assert_eq!(place.rows(&format!("FROM '{ANALYTICS}/duckdb-*/x.csv'")).await, ["1"]);
}

#[tokio::test]
async fn duckdb_works_over_a_directory() {
    everything_that_tenants_do(&Place::on_files().await).await;
}

#[tokio::test]
async fn duckdb_works_over_a_directory_with_the_gateway_as_its_proxy() {
    everything_that_tenants_do(&Place { proxy: true, ..Place::on_files().await }).await;
}

#[tokio::test]
async fn duckdb_works_over_s3() {
    everything_that_tenants_do(&Place::on_seaweed().await).await;
}

#[tokio::test]
async fn duckdb_works_over_s3_with_the_gateway_as_its_proxy() {
    everything_that_tenants_do(&Place { proxy: true, ..Place::on_seaweed().await }).await;
}

#[tokio::test]
async fn ranges_and_conditions_are_those_of_s3() {
    for place in [Place::on_files().await, Place::on_seaweed().await] {
        place.put("sm-default-raw", "ten", "0123456789").await;
        let target = "/sm-default-raw/ten";
        for (range, status, body) in [
            ("bytes=2-4", StatusCode::PARTIAL_CONTENT, "234"),
            ("bytes=7-", StatusCode::PARTIAL_CONTENT, "789"),
            ("bytes=-2", StatusCode::PARTIAL_CONTENT, "89"),
            ("bytes=8-99", StatusCode::PARTIAL_CONTENT, "89"),
        ] {
            let (got, headers, text) = place.request(Method::GET, target, &[("range", range)]).await;
            assert_eq!((got, text.as_str()), (status, body), "{range}");
            assert_eq!(headers["content-length"], body.len().to_string(), "{range}");
        }
        let (outside, ..) = place.request(Method::GET, target, &[("range", "bytes=10-12")]).await;
        assert_eq!(outside, StatusCode::RANGE_NOT_SATISFIABLE);
        let (ok, head, _) = place.request(Method::HEAD, target, &[]).await;
        assert_eq!((ok, head["content-length"].to_str().expect("a number")), (StatusCode::OK, "10"));
        let tag = head["etag"].to_str().expect("a tag");
        let (same, ..) = place.request(Method::GET, target, &[("if-match", tag)]).await;
        let (other, ..) = place.request(Method::GET, target, &[("if-match", "\"other\"")]).await;
        let (unchanged, ..) = place.request(Method::GET, target, &[("if-none-match", tag)]).await;
        let expected = [StatusCode::OK, StatusCode::PRECONDITION_FAILED, StatusCode::NOT_MODIFIED];
        assert_eq!([same, other, unchanged], expected);
        let (missing, ..) = place.request(Method::HEAD, "/sm-default-raw/none", &[]).await;
        assert_eq!(missing, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_proxy_for_the_rest_of_the_world_it_is_not() {
    let place = Place::on_files().await;
    let addr = place.grant.addr;
    for head in [
        "CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n".to_owned(),
        format!("CONNECT {addr} HTTP/1.1\r\nhost: {addr}\r\n\r\n"),
        "GET http://example.com/ HTTP/1.1\r\nhost: example.com\r\n\r\n".to_owned(),
        format!("GET http://example.com/ HTTP/1.1\r\nhost: {addr}\r\n\r\n"),
        "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nhost: 169.254.169.254\r\n\r\n".to_owned(),
        format!("GET /sm-default-raw/f HTTP/1.1\r\nhost: {addr}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: {addr}\r\n\r\n"),
    ] {
        let answer = raw(addr, &head).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{head}\n{answer}");
    }
}

#[tokio::test]
async fn operations_that_engines_do_not_need_are_refused() {
    let place = Place::on_files().await;
    place.put("sm-default-raw", "f", "x").await;
    place.put("sm-acme-raw", "f", "x").await;
    place.put("sm-default-analytics", "duckdb/m/x", "x").await;
    let refused = [StatusCode::FORBIDDEN, StatusCode::NOT_IMPLEMENTED, StatusCode::BAD_REQUEST];
    for (method, target, headers) in [
        (Method::PUT, "/sm-default-analytics/copy", &[("x-amz-copy-source", "/sm-acme-raw/f")][..]),
        (Method::PUT, "/sm-default-analytics/acl", &[("x-amz-acl", "public-read")]),
        (Method::PUT, "/sm-default-analytics", &[]),
        (Method::DELETE, "/sm-default-analytics", &[]),
        (Method::GET, "/sm-default-analytics?versions=", &[]),
        (Method::GET, "/sm-default-analytics?prefix=x", &[]),
        (Method::GET, "/sm-default-analytics?list-type=2&prefix=duckdb%2F", &[]),
        (Method::GET, "/sm-default-raw/f?versionId=1", &[]),
        (Method::GET, "/sm-acme-raw/f", &[]),
        (Method::GET, "/sm-acme-raw?list-type=2", &[]),
        (Method::GET, "/sm-nobody-raw/f", &[]),
        (Method::DELETE, "/sm-default-raw/f", &[]),
        (Method::GET, "/sm-default-analytics/duckdb%2Fm%2Fx", &[]),
        (Method::GET, "/sm-default-analytics/%64uckdb/m/x", &[]),
        (Method::DELETE, "/sm-default-analytics/duckdb/m/x", &[]),
        (Method::POST, "/sm-default-analytics/duckdb/m/x?uploads=", &[]),
    ] {
        let (status, _, body) = place.request(method.clone(), target, headers).await;
        assert!(refused.contains(&status), "{method} {target}: {status} {body}");
    }
    let (status, _, body) = place.request(Method::GET, "/sm-default-analytics?list-type=2&delimiter=%2F", &[]).await;
    assert!(status.is_success() && !body.contains("duckdb"), "{body}");
    let replica = place.bucket("sm-default-analytics");
    replica.data.head(&Path::from("duckdb/m/x")).await.expect("untouched");
}

#[tokio::test]
async fn a_grant_ends_with_its_drop_and_its_unfinished_uploads_with_it() {
    let mut place = Place::on_files().await;
    place.put("sm-default-raw", "f", "x").await;
    let (status, _, body) = place.request(Method::POST, "/sm-default-analytics/u?uploads=", &[]).await;
    assert!(status.is_success() && body.contains("<UploadId>"), "{body}");
    let begun = || {
        let dir = place._dir.as_ref().expect("over files").path().join("objects/sm-default-analytics/.tarn-tmp");
        std::fs::read_dir(dir).expect("the store's temporary files").count()
    };
    assert_eq!(begun(), 1);
    let (key_id, secret) = (place.grant.key_id.clone(), place.grant.secret.clone());
    let mart = "dev".parse().expect("a legal name");
    drop(std::mem::replace(
        &mut place.grant,
        place.gateway.grant(door(), &tenant_named("default"), &mart).expect("another"),
    ));

    let renewed = place.request(Method::GET, "/sm-default-raw/f", &[]).await;
    assert_eq!(renewed.0, StatusCode::OK);
    let mut old = std::mem::replace(
        &mut place.grant,
        place.gateway.grant(door(), &tenant_named("acme"), &mart).expect("a third"),
    );
    (old.key_id, old.secret) = (key_id, secret);
    let place = Place { grant: old, ..place };
    let (status, _, body) = place.request(Method::GET, "/sm-default-raw/f", &[]).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    place.gateway.shutdown().await;
    let dir = place._dir.as_ref().expect("over files").path().join("objects/sm-default-analytics/.tarn-tmp");
    assert_eq!(std::fs::read_dir(dir).expect("the store's temporary files").count(), 0, "an upload was left behind");
}

#[tokio::test]
async fn a_request_with_another_secret_or_a_changed_target_is_refused() {
    let mut place = Place::on_files().await;
    place.put("sm-default-raw", "f", "x").await;
    assert_eq!(place.request(Method::GET, "/sm-default-raw/f", &[]).await.0, StatusCode::OK);
    place.grant.secret = "0".repeat(64);
    let (status, _, body) = place.request(Method::GET, "/sm-default-raw/f", &[]).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    assert!(body.contains("SignatureDoesNotMatch"), "{body}");
}

#[tokio::test]
async fn a_key_is_good_only_through_its_own_engine_s_door() {
    let mut place = Place::on_files().await;
    place.put("sm-default-raw", "f", "x").await;
    let mart = "dev".parse().expect("a legal name");
    let other = place.gateway.grant(door(), &tenant_named("default"), &mart).expect("another of the same mart");
    let own = std::mem::replace(&mut place.grant.addr, other.addr);
    let (status, _, body) = place.request(Method::GET, "/sm-default-raw/f", &[]).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    place.grant.addr = own;
    assert_eq!(place.request(Method::GET, "/sm-default-raw/f", &[]).await.0, StatusCode::OK);
}

#[tokio::test]
async fn bytes_are_counted_for_their_tenant() {
    let place = Place::on_files().await;
    place.put("sm-default-raw", "f", "0123456789").await;
    let count = |direction| {
        let counts = place.gateway.traffic();
        counts.iter().find(|count| count.direction == direction).map(|count| (count.tenant.to_string(), count.bytes))
    };
    assert_eq!(count(Direction::Read), Some(("default".into(), 0)));
    place.request(Method::GET, "/sm-default-raw/f", &[("range", "bytes=0-3")]).await;
    assert_eq!(count(Direction::Read), Some(("default".into(), 4)));
    assert_eq!(count(Direction::Write), Some(("default".into(), 0)));
}
