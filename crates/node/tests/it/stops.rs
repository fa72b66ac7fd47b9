//! A node that is asked to stop under writers, between checkpoints and bases: everything acknowledged is in the object store when it has
//! stopped, and its disk is used as it is when it starts again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::TestServer;

const WRITERS: u64 = 4;
const SETTINGS: [(&str, &str); 2] = [("TARN_CHECKPOINT_WAL", "4KB"), ("TARN_CHECKPOINT_IDLE_MS", "1")];

/// Writes under numbers of its own until the node does not take any more; says what was acknowledged.
async fn write_until_stopped(requests: crate::server::Requests, first: u64, told: Arc<Mutex<HashSet<u64>>>) {
    for number in (first..).step_by(WRITERS as usize) {
        let durability = if number % 3 == 0 { "object" } else { "local" };
        let sql = format!("INSERT INTO t SELECT {number}, repeat('x', 200)");
        let request = requests.request(Method::POST, "/v1/tenants/default/marts/dev/query");
        match requests.try_send(request.json(&json!({"sql": sql, "durability": durability}))).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                told.lock().expect("nobody panics with it").insert(number);
            }
            Ok(answer) => {
                assert_eq!(answer.code(), "unavailable", "{answer:?}");
                assert_eq!(answer.body["outcome"], "none", "a stop leaves nobody in doubt: {answer:?}");
            }
            Err(_) => return,
        }
    }
}

async fn missing(server: &TestServer, told: &Mutex<HashSet<u64>>) -> Vec<u64> {
    let rows = server.query("SELECT list(number) FROM t").await.rows()[0][0].clone();
    let there: HashSet<u64> = rows.as_array().expect("a list").iter().filter_map(serde_json::Value::as_u64).collect();
    told.lock().expect("nobody panics with it").difference(&there).copied().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_writers_leaves_everything_in_the_store_and_a_disk_that_is_used_again() {
    let mut server = TestServer::start_with(&SETTINGS).await;
    server.query("CREATE TABLE t(number BIGINT, text VARCHAR)").await.rows();
    let told = Arc::new(Mutex::new(HashSet::new()));
    for round in 0..6u64 {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                tokio::spawn(write_until_stopped(server.requests(), round * 1_000_000 + writer, told.clone()))
            })
            .collect();
        // Somewhere in the middle of it all, each time at another place.
        let enough = told.lock().expect("nobody panics with it").len() + 40 + 7 * round as usize;
        while told.lock().expect("nobody panics with it").len() < enough {
            tokio::task::yield_now().await;
        }
        assert!(server.stop().await.success(), "{}", server.log());
        futures::future::try_join_all(writers).await.expect("no writer panics");
        let with_disk = round % 2 == 0;
        if !with_disk {
            server.wipe_state();
        }
        let restored = server.log().matches("restored from the object store").count();
        server.start_again().await;
        let missing = missing(&server, &told).await;
        assert!(missing.is_empty(), "round {round}: {missing:?}\n{}", server.log());
        let restored = server.log().matches("restored from the object store").count() - restored;
        assert_eq!(restored, usize::from(!with_disk), "round {round}\n{}", server.log());
    }
    assert!(server.log().matches("base shipped").count() > 6, "no base was under way:\n{}", server.log());
}
