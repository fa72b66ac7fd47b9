//! Checkpoints, which the server alone decides: when nobody writes, and under writers that never pause.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::Method;
use serde_json::json;

use crate::server::{Answer, TestServer};

/// Waits until the mart's first checkpoint is in the object store: a position right after it is durable then.
async fn checkpointed(server: &TestServer, since: &str) -> Answer {
    let mut parts = since.split('.').map(|part| part.parse::<u64>().expect("a number"));
    let (epoch, iteration) = (parts.next().expect("an epoch"), parts.next().expect("an iteration"));
    let path = format!("/v1/tenants/default/marts/dev/positions/{epoch}.{}.0?wait_ms=60000", iteration + 1);
    loop {
        let answer = server.send(server.request(Method::GET, &path)).await;
        if answer.body["durable"] == json!(true) {
            return answer;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_mart_is_checkpointed_and_restored_from_its_new_base() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(i BIGINT, text VARCHAR)").await.rows();
    let insert = server.query("INSERT INTO t SELECT i, repeat('x', 100) || i FROM range(30000) r(i)").await;
    checkpointed(&server, &insert.position.expect("a commit has a position")).await;
    let after = server.query("INSERT INTO t VALUES (-1, 'after')").await;
    assert_eq!(after.durable.as_deref(), Some("object"), "{after:?}");
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    let rows = server.query("SELECT count(*), sum(i), max(length(text)) FROM t").await;
    assert_eq!(*rows.rows(), json!([[30001, 449_984_999, 105]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_never_pause_do_not_keep_a_checkpoint_away() {
    let mut server = TestServer::start().await;
    let create = server.query("CREATE TABLE t(text VARCHAR)").await.position.expect("a commit has a position");
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let write = async || {
        while !stop.load(Ordering::Relaxed) {
            let insert =
                server.query("INSERT INTO t SELECT md5(i::VARCHAR) || repeat('y', 1000) FROM range(1000) r(i)").await;
            assert_eq!(insert.durable.as_deref(), Some("object"), "{insert:?}");
            written.fetch_add(1000, Ordering::Relaxed);
        }
    };
    let watch = async {
        checkpointed(&server, &create).await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(write(), write(), write(), write(), watch);
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    let count = server.query("SELECT count(*) FROM t").await;
    assert_eq!(*count.rows(), json!([[written.load(Ordering::Relaxed)]]));
}
