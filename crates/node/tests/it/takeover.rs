//! Two nodes on one store: whoever wins the log's next slot has the mart, and the other finds out.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{DEV, TestServer};

async fn another(first: &TestServer) -> TestServer {
    let store = format!("file:{}", first.objects_dir().display());
    TestServer::start_with(&[("TARN_STORE", store.as_str())]).await
}

async fn insert(server: &TestServer, value: i64, durability: &str) -> crate::server::Answer {
    server.query_in(DEV, json!({"sql": format!("INSERT INTO t VALUES ({value})"), "durability": durability})).await
}

async fn rows(server: &TestServer) -> Value {
    server.query("SELECT list(a ORDER BY a) FROM t").await.rows()[0][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_mart_was_taken_over_acknowledges_nothing_more_and_takes_it_back_when_it_restarts() {
    let mut first = TestServer::start().await;
    first.query("CREATE TABLE t(a BIGINT)").await.rows();
    assert_eq!(insert(&first, 1, "object").await.durable.as_deref(), Some("object"));
    let second = another(&first).await;
    assert_eq!(rows(&second).await, json!([1]));

    // Committed on a node that is no longer the writer: not durable, and no one says so.
    let deposed = insert(&first, 2, "object").await;
    assert_eq!((deposed.code(), &deposed.body["outcome"]), ("unavailable", &json!("unknown")), "{deposed:?}");
    for durability in ["object", "local"] {
        let refused = insert(&first, 3, durability).await;
        assert_eq!((refused.code(), &refused.body["outcome"]), ("fenced", &json!("none")), "{refused:?}");
    }
    assert_eq!(first.query("SELECT a FROM t").await.code(), "fenced", "nor does it answer with old rows");
    let position = deposed.body["position"].as_str().expect("it says where");
    assert_eq!(crate::durability::position(&first, position, 0).await.code(), "fenced");
    assert_eq!(crate::durability::position(&second, position, 0).await.code(), "not_found");

    assert_eq!(insert(&second, 4, "object").await.durable.as_deref(), Some("object"));
    assert_eq!(rows(&second).await, json!([1, 4]));

    first.kill_node().await;
    first.start_again().await;
    assert_eq!(rows(&first).await, json!([1, 4]), "its own files are not the mart's any more");
    first.logged("moved to quarantine", 1).await;
    assert_eq!(insert(&first, 5, "object").await.durable.as_deref(), Some("object"));
    assert_eq!(insert(&second, 6, "object").await.body["outcome"], "unknown");
    assert_eq!(insert(&second, 6, "object").await.code(), "fenced");
    assert_eq!(rows(&first).await, json!([1, 4, 5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_only_reads_finds_out_too() {
    let first = TestServer::start().await;
    first.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let second = another(&first).await;
    assert_eq!(insert(&second, 2, "object").await.status, StatusCode::OK);
    loop {
        let read = first.query("SELECT list(a) FROM t").await;
        if read.status == StatusCode::OK {
            assert_eq!(*read.rows(), json!([[[1]]]));
            continue;
        }
        if read.code() == "fenced" {
            break;
        }
        // It finds out under the very read: the engine is gone a moment before the mart is closed.
        assert_eq!(read.code(), "unavailable", "{read:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_acknowledgement_of_a_deposed_node_is_lost_as_its_name_says_and_its_rows_are_kept_aside() {
    let mut first = TestServer::start().await;
    first.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let second = another(&first).await;
    assert_eq!(rows(&second).await, json!([1]));
    let local = insert(&first, 2, "local").await;
    assert_eq!((local.status, local.durable.as_deref()), (StatusCode::OK, Some("local")), "{local:?}");
    // The shipper finds the slot taken, without anybody asking.
    first.logged("mart closed", 1).await;
    assert_eq!(first.query("SELECT a FROM t").await.code(), "fenced");
    assert_eq!(rows(&second).await, json!([1]));
    first.kill_node().await;
    first.start_again().await;
    assert_eq!(rows(&first).await, json!([1]));
    let aside = std::fs::read_dir(first.state_dir().join("marts").join(DEV).join("quarantine")).expect("it is there");
    assert_eq!(aside.count(), 1, "the files with the lost row");
}
