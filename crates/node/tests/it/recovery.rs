//! Damage in the bucket: named, put back from the bucket's older versions, and proved by the rows.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use node::stores::{Bucket, BucketStores, BucketTemplates, StoreConfig};
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::history::{MART, get, post};
use crate::seaweed::SeaweedFs;
use crate::server::{Answer, TestServer};

const ROWS: &str = "SELECT (SELECT list(a ORDER BY a) FROM t), (SELECT count(*) FROM bulk), (SELECT sum(i) FROM bulk), \
    (SELECT max(text) FROM bulk), (SELECT bit_xor(hash(bulk)) FROM bulk)";
const BULK: &str = "CREATE TABLE bulk AS SELECT i, 'row ' || i AS text, [i, i + 1] AS list FROM range(200000) r(i)";

/// A node on a bucket of a real S3 server.
async fn node(s3: &SeaweedFs) -> TestServer {
    let keys = s3.config();
    let text = |text: Option<String>| text.expect("it has keys and an endpoint");
    let (endpoint, id, secret) = (text(keys.endpoint), text(keys.access_key_id), text(keys.secret_access_key));
    TestServer::start_with(&[
        ("TARN_STORE", "s3"),
        ("DUCKDB_S3_ENDPOINT", &endpoint),
        ("DUCKDB_ACCESS_KEY_ID", &id),
        ("DUCKDB_SECRET_ACCESS_KEY", &secret),
        // So that there are several bases.
        ("TARN_CHECKPOINT_WAL", "1KB"),
        ("TARN_CHECKPOINT_IDLE_MS", "600000"),
    ])
    .await
}

fn bucket(s3: &SeaweedFs) -> Bucket {
    let stores =
        BucketStores::new(StoreConfig::S3(s3.config()), BucketTemplates::default()).expect("a good configuration");
    stores.bucket(&"sm-default-analytics".parse().expect("legal")).expect("opens")
}

async fn objects(bucket: &Bucket) -> BTreeMap<Key, bytes::Bytes> {
    let prefix = Key::from("duckdb/dev");
    let listed: Vec<_> = bucket.data.list(Some(&prefix)).try_collect().await.expect("lists");
    let mut objects = BTreeMap::new();
    for object in listed {
        let bytes = bucket.data.get(&object.location).await.expect("there").bytes().await.expect("reads");
        objects.insert(object.location, bytes);
    }
    objects
}

/// A mart with commits, bulk commits, bases and names; the node is gone, and so is its disk.
async fn lived(server: &mut TestServer) -> Value {
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    server.query(BULK).await.rows();
    for value in 0..20 {
        server.query(&format!("INSERT INTO t VALUES ({value})")).await.rows();
        if value % 5 == 0 {
            let named = post(server, &format!("{MART}/snapshots"), json!({"name": format!("after-{value}")})).await;
            assert_eq!(named.status, StatusCode::OK, "{named:?}");
        }
    }
    server.query("UPDATE bulk SET text = 'changed ' || i WHERE i % 3 = 0").await.rows();
    let rows = server.query(ROWS).await.rows().clone();
    server.stop().await;
    server.wipe_state();
    rows
}

async fn verify(server: &TestServer, body: Value) -> Answer {
    post(server, &format!("{MART}/verify"), body).await
}

fn keys(report: &Value) -> BTreeSet<Key> {
    let problems = report["problems"].as_array().expect("a list");
    problems.iter().map(|problem| Key::from(problem["key"].as_str().expect("a key"))).collect()
}

fn is_hint(key: &Key) -> bool {
    key.as_ref().ends_with("/head")
}

/// Half of it is deleted, the newest record among them, and the rest overwritten with garbage.
async fn destroy(bucket: &Bucket, all: &BTreeMap<Key, bytes::Bytes>) {
    let newest = all.keys().filter(|key| key.as_ref().contains("/log/")).max().expect("a log");
    let parity = all.keys().position(|key| key == newest).expect("itself") % 2;
    for (index, key) in all.keys().enumerate() {
        if index % 2 == parity || is_hint(key) {
            bucket.data.delete(key).await.expect("deletes");
        } else {
            bucket.data.put(key, "garbage".into()).await.expect("puts");
        }
    }
}

/// S9 of docs/seed-coverage.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_mart_whose_objects_were_deleted_and_overwritten_comes_back_from_older_versions() {
    let names = ["tarn-control", "sm-default-analytics"].map(|name| name.parse().expect("legal"));
    let s3 = SeaweedFs::start(&names).await;
    let mut server = node(&s3).await;
    let rows = lived(&mut server).await;
    let bucket = bucket(&s3);
    let all = objects(&bucket).await;
    for folder in ["/log/", "/manifest/", "/pack/"] {
        assert!(all.keys().filter(|key| key.as_ref().contains(folder)).count() > 1, "{folder}");
    }
    server.start_again().await;
    let whole = verify(&server, json!({"all": true})).await;
    assert_eq!((whole.status, &whole.body["problems"]), (StatusCode::OK, &json!([])), "{whole:?}");

    destroy(&bucket, &all).await;
    assert_eq!(server.query("SELECT 1").await.code(), "corrupt", "it does not open");
    let damaged = verify(&server, json!({"all": true})).await;
    // Not what nothing refers to: an upload that was given up when the node stopped, say.
    let needed = keys(&damaged.body);
    assert_eq!(json!(needed.len()), whole.body["objects"], "{damaged:?}");
    assert!(needed.iter().all(|key| all.contains_key(key) && !is_hint(key)), "{damaged:?}");
    let shown = server.tarn(&["verify", "--all"]).output().await.expect("runs");
    assert_eq!(shown.status.code(), Some(1));
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(needed.iter().all(|key| text.contains(key.as_ref())), "{text}");

    let repaired = server.tarn(&["verify", "--all", "--repair", "--trial", "--json"]).output().await.expect("runs");
    assert!(repaired.status.success(), "{repaired:?}");
    let report: Value = serde_json::from_slice(&repaired.stdout).expect("JSON");
    assert_eq!((report["repaired"].as_array().map(Vec::len), &report["problems"]), (Some(needed.len()), &json!([])));
    assert_eq!((&report["trial"]["rows"], &report["trial"]["position"]), (&json!(200_020), &report["position"]));
    let now = objects(&bucket).await;
    assert!(needed.iter().all(|key| now.get(key) == all.get(key)), "every object is what it was");
    assert_eq!(*server.query(ROWS).await.rows(), rows);
    assert!(server.log().contains("restored from the object store"), "{}", server.log());
    // And it goes on.
    assert_eq!(server.query("INSERT INTO t VALUES (100)").await.durable.as_deref(), Some("object"));
    assert_eq!(verify(&server, json!({"all": true})).await.body["problems"], json!([]));

    let page = get(&server, "/metrics").await;
    let page = page.body.as_str().expect("text").to_owned();
    let line = "tarn_last_verified_restore_timestamp_seconds{tenant=\"default\",mart=\"dev\"} ";
    let time: f64 = page.lines().find_map(|found| found.strip_prefix(line)?.parse().ok()).expect("it was verified");
    assert!(time > 1.7e9, "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_older_versions_damage_is_named_and_nothing_is_written() {
    let s3 = SeaweedFs::start(&["tarn-control".parse().expect("legal")]).await;
    assert!(s3.put("sm-default-analytics", "").await, "a bucket without versions");
    let mut server = node(&s3).await;
    lived(&mut server).await;
    let bucket = bucket(&s3);
    let all = objects(&bucket).await;
    server.start_again().await;
    // Of packs that something refers to: an upload that was given up when the node stopped is nobody's loss.
    let packs: Vec<_> = all.keys().filter(|key| key.as_ref().contains("/pack/")).collect();
    for pack in &packs {
        bucket.data.delete(pack).await.expect("deletes");
    }
    let missed = keys(&verify(&server, json!({"all": true})).await.body);
    for pack in &packs {
        bucket.data.put(pack, all[*pack].clone().into()).await.expect("puts");
    }
    let packs: Vec<_> = packs.into_iter().filter(|pack| missed.contains(*pack)).collect();
    bucket.data.delete(packs[0]).await.expect("deletes");
    bucket.data.put(packs[1], "garbage".into()).await.expect("puts");
    let before = objects(&bucket).await;
    for repair in [false, true] {
        let found = verify(&server, json!({"all": true, "repair": repair})).await;
        assert_eq!(keys(&found.body), packs[..2].iter().map(|key| (*key).clone()).collect(), "{found:?}");
        assert_eq!(found.body["problems"][0]["what"], "missing");
        assert_eq!(found.body["problems"][1]["what"], "corrupt");
        assert_eq!(
            found.body["note"].as_str().is_some_and(|note| note.contains("versioning is off")),
            repair,
            "{found:?}"
        );
    }
    assert!(objects(&bucket).await == before);
    let doctor =
        server.tarn(&["doctor", "--json", "--store", "s3"]).envs(s3_variables(&s3)).output().await.expect("runs");
    let report: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let finding =
        report.as_array().expect("a list").iter().find(|finding| finding["check"] == "versioning of tenant default");
    let finding = finding.unwrap_or_else(|| panic!("{report}"));
    assert_eq!(finding["verdict"], "warn", "{finding}");
    assert!(finding["found"].as_str().is_some_and(|found| found.starts_with("off")), "{finding}");
}

fn s3_variables(s3: &SeaweedFs) -> Vec<(&'static str, String)> {
    let keys = s3.config();
    let pairs = [
        ("DUCKDB_S3_ENDPOINT", keys.endpoint),
        ("DUCKDB_ACCESS_KEY_ID", keys.access_key_id),
        ("DUCKDB_SECRET_ACCESS_KEY", keys.secret_access_key),
    ];
    pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_directory_a_mart_is_verified_and_tried_but_has_no_older_versions() {
    let mut server = TestServer::start_with(&[("TARN_METRICS_LISTEN", "127.0.0.1:0")]).await;
    let rows = lived(&mut server).await;
    server.start_again().await;
    let tried = verify(&server, json!({"all": true, "trial": true})).await;
    assert_eq!((&tried.body["problems"], &tried.body["trial"]["tables"]), (&json!([]), &json!(2)), "{tried:?}");
    let left = std::fs::read_dir(server.state_dir().join("scratch")).expect("it was used");
    assert_eq!(left.count(), 0, "the copy is gone");
    assert_eq!(*server.query(ROWS).await.rows(), rows);
    // Beside the main address the page wants no token, and nothing else is there.
    server.logged("metrics on http://", 1).await;
    let log = server.log();
    let place = log.lines().rev().find_map(|line| line.split_once("metrics on ")).expect("it was logged").1;
    let page = reqwest::get(place).await.expect("answers").text().await.expect("text");
    assert!(page.contains("tarn_last_verified_restore_timestamp_seconds{tenant=\"default\",mart=\"dev\"}"), "{page}");
    let other = reqwest::get(place.replace("/metrics", "/v1/tenants")).await.expect("answers");
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    let packs: Vec<_> =
        walk(&server.objects_dir()).into_iter().filter(|path| path.to_string_lossy().contains("/pack/")).collect();
    std::fs::remove_file(&packs[0]).expect("it is there");
    let output = server.tarn(&["verify", "--all", "--repair"]).output().await.expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    let name = packs[0].file_name().expect("a name").to_string_lossy();
    assert!(text.contains(&*name) && text.contains("missing") && text.contains("keeps no older versions"), "{text}");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("it is readable") {
            let path = entry.expect("it is readable").path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_and_metrics_are_for_administrators() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let named = post(&server, &format!("{MART}/snapshots"), json!({"name": "now"})).await;
    assert_eq!(named.status, StatusCode::OK, "{named:?}");
    for role in ["reader", "writer", "admin"] {
        let token = post(&server, "/v1/tokens", json!({"tenant": "default", "role": role, "name": role})).await;
        let token = token.body["token"].as_str().expect("a token").to_owned();
        let ask = |method: Method, path: &str| {
            reqwest::Client::new().request(method, format!("http://{}{path}", server.address())).bearer_auth(&token)
        };
        let asked = ask(Method::POST, &format!("{MART}/verify")).json(&json!({})).send().await.expect("answers");
        let expected = if role == "admin" { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(asked.status(), expected, "{role}");
        let page = ask(Method::GET, "/metrics").send().await.expect("answers");
        assert_eq!(page.status(), StatusCode::FORBIDDEN, "{role}: the page names all tenants");
    }
    let page = get(&server, "/metrics").await.body.as_str().expect("text").to_owned();
    for begin in [
        "tarn_build_info{version=",
        "tarn_last_snapshot_timestamp_seconds{tenant=\"default\",mart=\"dev\"} ",
        "# TYPE tarn_replication_lag_seconds gauge",
        "tarn_gateway_bytes_total{tenant=\"default\",direction=\"read\",source=\"store\"} ",
        "tarn_query_seconds_count{tenant=\"default\",mart=\"dev\",kind=\"ddl\",status=\"ok\"} 1",
        "tarn_disk_used_bytes{tenant=\"default\",mart=\"dev\",kind=\"wal\"} ",
        "tarn_engine_memory_bytes{tenant=\"default\",mart=\"dev\"} ",
        "tarn_volume_free_bytes ",
    ] {
        assert!(page.lines().any(|line| line.starts_with(begin)), "`{begin}` is not in\n{page}");
    }
}
