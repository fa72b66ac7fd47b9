//! The object store goes away under writers: what answers say then, what becomes of the log, and that nothing is lost afterwards.

use serde_json::json;

use crate::durability::position;
use crate::server::{DEV, TestServer};
use crate::wire::{Way, Wire, over_s3};

const SETTINGS: [(&str, &str); 3] =
    [("TARN_CHECKPOINT_WAL", "64KB"), ("TARN_CHECKPOINT_IDLE_MS", "600000"), ("TARN_DURABLE_WAIT_MS", "1000")];
const BEHIND: &str = "folding it before it is shipped";

/// Fills a table until the log has grown far over its limit, and until it was folded although nothing of it is in the store; gives
/// the position of a commit that was waiting all the while.
async fn folded_while_away(server: &TestServer, wire: &Wire, way: Way) -> String {
    server.query("CREATE TABLE t(number BIGINT, text VARCHAR)").await.rows();
    let durable = server.query("INSERT INTO t VALUES (0, 'durable')").await;
    assert_eq!(durable.durable.as_deref(), Some("object"), "{durable:?}");
    wire.set(way);
    let late = server.query("INSERT INTO t VALUES (1, 'late')").await;
    assert_eq!((late.code(), &late.body["outcome"]), ("not_yet_durable", &json!("committed")), "{late:?}");
    let at = late.body["position"].as_str().expect("it says where").to_owned();
    local(server, 2..12).await;
    server.logged(BEHIND, 1).await;
    server.logged("checkpoint iteration=1", 1).await;
    let log = server.files_dir(DEV).join("mart.db.wal");
    assert!(std::fs::metadata(log).map_or(0, |found| found.len()) < 64 << 10, "it was not folded");
    assert_eq!(position(server, &at, 0).await.body["durable"], json!(false), "folded is not durable");
    at
}

/// Commits of 100 kB in the log each, acknowledged as on the disk.
async fn local(server: &TestServer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let sql = format!("INSERT INTO t SELECT {number}, md5(i::VARCHAR) || repeat('x', 1000) FROM range(100) r(i)");
        let answer = server.query_in(DEV, json!({"sql": sql, "durability": "local"})).await;
        assert_eq!(answer.durable.as_deref(), Some("local"), "{answer:?}");
    }
}

async fn numbers(server: &TestServer) -> serde_json::Value {
    server.query("SELECT count(DISTINCT number), count(*) FROM t").await.rows()[0].clone()
}

/// The commit arrives, and everything is there on another machine.
async fn arrives(server: &mut TestServer, at: &str, expected: serde_json::Value) {
    let arrived = position(server, at, 60_000).await;
    assert_eq!(arrived.body["durable"], json!(true), "{arrived:?}\n{}", server.log());
    let last = server.query("INSERT INTO t VALUES (1000, 'last')").await;
    assert_eq!(last.durable.as_deref(), Some("object"), "{last:?}\n{}", server.log());
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(numbers(server).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_over_its_limit_is_folded_while_the_store_is_away_and_nothing_is_lost_afterwards() {
    let (_weed, wire, mut server) = over_s3(&SETTINGS).await;
    let at = folded_while_away(&server, &wire, Way::Cut).await;
    local(&server, 12..14).await;
    wire.set(Way::Open);
    arrives(&mut server, &at, json!([15, 2 + 12 * 100 + 1])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_a_store_that_is_frozen_and_an_engine_that_is_killed_meanwhile() {
    let (_weed, wire, mut server) = over_s3(&SETTINGS).await;
    let at = folded_while_away(&server, &wire, Way::Silent).await;
    local(&server, 12..14).await;
    server.kill_engine(DEV);
    wire.set(Way::Open);
    server.logged("engine up", 2).await;
    arrives(&mut server, &at, json!([15, 2 + 12 * 100 + 1])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_a_node_that_is_killed_meanwhile_and_its_disk_is_used() {
    let (_weed, wire, mut server) = over_s3(&SETTINGS).await;
    let at = folded_while_away(&server, &wire, Way::Cut).await;
    local(&server, 12..14).await;
    server.kill_node().await;
    wire.set(Way::Open);
    server.start_again().await;
    assert_eq!(numbers(&server).await, json!([14, 2 + 12 * 100]));
    assert!(!server.log().contains("restored from"), "{}", server.log());
    arrives(&mut server, &at, json!([15, 2 + 12 * 100 + 1])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_lost_after_such_a_fold_goes_back_to_what_was_durable_and_not_further() {
    let (_weed, wire, mut server) = over_s3(&SETTINGS).await;
    let at = folded_while_away(&server, &wire, Way::Cut).await;
    server.kill_node().await;
    server.wipe_state();
    wire.set(Way::Open);
    server.start_again().await;
    assert_eq!(numbers(&server).await, json!([1, 1]));
    assert_eq!(position(&server, &at, 0).await.code(), "not_found", "and nobody says that it is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_ends_while_the_store_is_away_is_noticed_and_its_commits_arrive_later() {
    let (_weed, wire, mut server) = over_s3(&SETTINGS).await;
    server.query("CREATE TABLE t(number BIGINT, text VARCHAR)").await.rows();
    wire.set(Way::Cut);
    let late = server.query("INSERT INTO t VALUES (1, 'late')").await;
    assert_eq!(late.code(), "not_yet_durable", "{late:?}");
    local(&server, 2..12).await;
    server.kill_engine(DEV);
    server.logged("starting the engine again", 1).await;
    wire.set(Way::Open);
    let at = late.body["position"].as_str().expect("it says where");
    arrives(&mut server, at, json!([12, 1 + 10 * 100 + 1])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_store_is_away_keeps_the_rest_on_the_disk() {
    let (_weed, wire, mut server) = over_s3(&SETTINGS).await;
    server.query("CREATE TABLE t(number BIGINT, text VARCHAR)").await.rows();
    wire.set(Way::Cut);
    local(&server, 1..3).await;
    assert!(server.stop().await.success());
    wire.set(Way::Open);
    server.start_again().await;
    assert_eq!(numbers(&server).await, json!([2, 200]));
    assert!(!server.log().contains("restored from"), "{}", server.log());
}
