//! What is left after a death: of the engine, of the node, of the whole machine.

use reqwest::StatusCode;
use serde_json::json;

use crate::server::{DEV, TestServer};

/// A row-group-sized bulk commit bypasses the log, a small one goes through it.
const BULK: &str = "CREATE TABLE bulk AS SELECT i, 'row ' || i AS text, [i, i + 1] AS list FROM range(200000) r(i)";

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_back_after_the_machine_is_lost() {
    let mut server = TestServer::start().await;
    let small = server.query("CREATE TABLE small(a INTEGER); INSERT INTO small VALUES (1), (2)").await;
    assert_eq!(small.durable.as_deref(), Some("object"), "{small:?}");
    let bulk = server.query(BULK).await;
    assert_eq!(bulk.durable.as_deref(), Some("object"), "{bulk:?}");
    let after = server.query("INSERT INTO small VALUES (3)").await;
    assert_eq!(after.status, StatusCode::OK, "{after:?}");
    let sums = "SELECT (SELECT sum(a) FROM small), (SELECT count(*) FROM bulk), (SELECT sum(i) FROM bulk), (SELECT sum(list[2]) FROM bulk), \
        (SELECT max(text) FROM bulk)";
    let before = server.query(sums).await.rows().clone();

    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;

    assert_eq!(*server.query(sums).await.rows(), before);
    assert!(server.log().contains("restored from the object store"), "{}", server.log());
    // The restored mart goes on, and survives once more.
    assert_eq!(server.query("INSERT INTO small VALUES (4)").await.durable.as_deref(), Some("object"));
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(*server.query("SELECT sum(a) FROM small").await.rows(), json!([[10]]));
}

/// A column for each way in which DuckDB packs values, each with NULLs, and strings and nested values that go into blocks of their own.
const KINDS: &str = "SELECT i, CASE WHEN i % 97 <> 0 THEN 7 END AS constant, CASE WHEN i % 50000 > 9 THEN i // 5000 END AS runs,
    CASE WHEN i % 7 <> 0 THEN hash(i) % 1000 END AS packed, CASE WHEN i % 3 <> 0 THEN hash(i) END AS random,
    CASE WHEN i % 5 <> 0 THEN 'word ' || i % 20 END AS dictionary, CASE WHEN i % 5 <> 0 THEN 'https://example.org/' || hash(i) END AS similar,
    CASE WHEN i % 5 <> 0 THEN (i % 1000) / 100.0 END::DOUBLE AS decimals, CASE WHEN i % 5 <> 0 THEN sqrt(i) END AS reals,
    CASE WHEN i % 5000 = 1 THEN repeat(md5(i::VARCHAR), 300) END AS long, md5(i::VARCHAR)::BLOB AS blob, i % 2 = 0 AS flag,
    CASE WHEN i % 11 <> 0 THEN [i, NULL, i * 2] END AS list, CASE WHEN i % 13 <> 0 THEN {'a': i, 'b': 'text ' || i, 'c': [i::VARCHAR, NULL]} END AS struct,
    [i, i + 1, i + 2]::BIGINT[3] AS fixed, MAP {i % 10: 'x' || i} AS map, i::HUGEINT << 60 AS huge,
    TIMESTAMP '2020-01-01' + INTERVAL (i) SECOND AS at, (i % 10000 / 100)::DECIMAL(18, 4) AS money FROM range(300000) r(i)";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_value_is_back_after_the_machine_is_lost_from_the_log_s_blocks_and_from_a_base() {
    let mut server =
        TestServer::start_with(&[("TARN_CHECKPOINT_WAL", "1KB"), ("TARN_CHECKPOINT_IDLE_MS", "600000")]).await;
    server
        .query(&format!(
            "CREATE TABLE expected AS SELECT count(*) AS rows, sum(hash(kinds)) AS digest FROM ({KINDS}) kinds"
        ))
        .await
        .rows();
    let same = "SELECT (SELECT (count(*), sum(hash(t))) FROM t) = (SELECT (rows, digest) FROM expected)";
    // Twice in a row, so that the second writes over blocks that the first had freed, and a base lies between or behind.
    for round in 0..3 {
        let load = server.query(&format!("CREATE OR REPLACE TABLE t AS {KINDS}")).await;
        assert_eq!(load.durable.as_deref(), Some("object"), "{load:?}");
        server.kill_node().await;
        server.wipe_state();
        server.start_again().await;
        assert_eq!(*server.query(same).await.rows(), json!([[true]]), "round {round}\n{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_reuses_its_disk_and_keeps_local_commits() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let local = server.query_in(DEV, json!({"sql": "INSERT INTO t VALUES (7)", "durability": "local"})).await;
    assert_eq!(local.status, StatusCode::OK, "{local:?}");
    server.kill_node().await;
    server.start_again().await;
    let read = server.query("SELECT a FROM t").await;
    assert_eq!((read.rows(), &read.position), (&json!([[7]]), &local.position), "in the same epoch");
    let log = server.log();
    assert!(log.contains("local files reused") && !log.contains("restored from"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_has_shipped_everything() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let local = server.query_in(DEV, json!({"sql": "INSERT INTO t FROM range(1000)", "durability": "local"})).await;
    assert_eq!(local.status, StatusCode::OK, "{local:?}");
    assert!(server.stop().await.success());
    server.wipe_state();
    server.start_again().await;
    assert_eq!(*server.query("SELECT count(*) FROM t").await.rows(), json!([[1000]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_comes_back_with_every_commit() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    for round in 0..3 {
        server.query(&format!("INSERT INTO t VALUES ({round})")).await.rows();
        server.kill_engine(DEV);
        // The request may meet the engine's last moment or wait for the next engine; it is a read, so trying again is safe.
        let rows = loop {
            let answer = server.query("SELECT count(*) FROM t").await;
            if answer.status == StatusCode::OK {
                break answer.rows().clone();
            }
            assert_eq!(answer.code(), "unavailable", "{answer:?}");
            assert_eq!((&answer.body["outcome"], &answer.body["retryable"]), (&json!("none"), &json!(true)));
        };
        assert_eq!(rows, json!([[round + 1]]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_engine_dies_before_it_commits_is_told_so_and_other_marts_do_not_notice() {
    let server = TestServer::start().await;
    server
        .send(server.request(reqwest::Method::POST, "/v1/tenants/default/marts").json(&json!({"name": "other"})))
        .await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    server.query_in("default/other", json!({"sql": "CREATE TABLE t AS SELECT 1 AS a"})).await.rows();
    let endless = server.query("INSERT INTO t SELECT count(*) FROM range(1000000000000) a, range(1000000) b");
    let kill = async {
        // The engine is asked for something else first, so that the endless write is under way.
        while server.query("SELECT 1").await.status != StatusCode::OK {}
        server.kill_engine(DEV);
    };
    let (lost, ()) = tokio::join!(endless, kill);
    assert_eq!(lost.code(), "unavailable", "{lost:?}");
    // The next engine's log ends where it ended before the write.
    assert_eq!((&lost.body["outcome"], &lost.body["retryable"]), (&json!("none"), &json!(true)));
    assert_eq!(*server.query("SELECT count(*) FROM t").await.rows(), json!([[0]]));
    assert_eq!(*server.query_in("default/other", json!({"sql": "SELECT a FROM t"})).await.rows(), json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_mart_stays_dropped_and_its_name_begins_anew() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let dropped = server.send(server.request(reqwest::Method::DELETE, "/v1/tenants/default/marts/dev")).await;
    assert_eq!(dropped.status, StatusCode::OK, "{dropped:?}");
    // The dev mart is made anew when it is asked for.
    assert_eq!(server.query("SELECT * FROM t").await.code(), "sql");
    server.query("CREATE TABLE t AS SELECT 2 AS a").await.rows();
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(*server.query("SELECT a FROM t").await.rows(), json!([[2]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_object_is_named_in_the_log_and_never_half_restored() {
    let mut server = TestServer::start().await;
    server.query(BULK).await.rows();
    server.kill_node().await;
    let flipped = flip_a_pack(&server.objects_dir());
    server.wipe_state();
    server.start_again().await;
    assert_eq!(server.query("SELECT count(*) FROM bulk").await.code(), "corrupt");
    // What it writes there and what it answers come by different ways.
    server.logged(&flipped, 1).await;
}

/// Flips a bit in the middle of the biggest pack and returns its name.
fn flip_a_pack(objects: &std::path::Path) -> String {
    let mut packs = Vec::new();
    let mut dirs = vec![objects.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("it is readable") {
            let path = entry.expect("it is readable").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.parent().is_some_and(|parent| parent.ends_with("pack")) {
                packs.push(path);
            }
        }
    }
    let pack = packs
        .into_iter()
        .max_by_key(|path| path.metadata().map_or(0, |found| found.len()))
        .expect("a bulk commit makes a pack");
    let mut bytes = std::fs::read(&pack).expect("it is readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).expect("it is writable");
    pack.file_name().expect("it has a name").to_string_lossy().into_owned()
}
