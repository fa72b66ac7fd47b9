//! A mart's past over HTTP: listing it, naming moments, going back, branching, compacting.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Answer, DEV, TestServer};

pub const MART: &str = "/v1/tenants/default/marts/dev";

pub async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    server.send(server.request(Method::POST, path).json(&body)).await
}

pub async fn get(server: &TestServer, path: &str) -> Answer {
    server.send(server.request(Method::GET, path)).await
}

async fn values(server: &TestServer, mart: &str) -> Value {
    server.query_in(mart, json!({"sql": "SELECT list(a ORDER BY a) FROM t"})).await.rows()[0][0].clone()
}

/// Writes a commit and says where it ended.
async fn insert(server: &TestServer, value: i64) -> String {
    let answer = server.query(&format!("INSERT INTO t VALUES ({value})")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.position.expect("a commit has a position")
}

async fn restore(server: &TestServer, at: &str) -> Answer {
    post(server, &format!("{MART}/restore"), json!({ "at": at })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mart_goes_back_and_forth_in_place_and_survives_the_loss_of_its_machine() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    let second = insert(&server, 2).await;
    let back = restore(&server, &first).await;
    assert_eq!(back.status, StatusCode::OK, "{back:?}");
    assert_eq!((back.body["restored"].as_str(), back.body["before"].as_str()), (Some(&*first), Some(&*second)));
    assert_eq!(values(&server, DEV).await, json!([1]));
    let third = insert(&server, 3).await;
    assert_eq!(values(&server, DEV).await, json!([1, 3]));
    // What was given up is still reachable, and so is what came after it was.
    assert_eq!(restore(&server, &second).await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    assert_eq!(restore(&server, &third).await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1, 3]));
    insert(&server, 4).await;
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(values(&server, DEV).await, json!([1, 3, 4]));
    assert_eq!(restore(&server, &first).await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_expects_another_position_or_moment_changes_nothing() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    let second = insert(&server, 2).await;
    let body = json!({"at": first, "expected_position": first});
    let refused = post(&server, &format!("{MART}/restore"), body).await;
    assert_eq!((refused.code(), &refused.body["outcome"]), ("conflict", &json!("none")), "{refused:?}");
    for (at, code) in [("9.9.9", "not_found"), ("no-such-name", "not_found"), ("what?", "invalid")] {
        assert_eq!(restore(&server, at).await.code(), code, "{at}");
    }
    assert_eq!(restore(&server, "1980-01-01T00:00:00Z").await.code(), "not_found", "before it was made");
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    insert(&server, 3).await;
    let body = json!({"at": first, "expected_position": second});
    assert_eq!(post(&server, &format!("{MART}/restore"), body).await.code(), "conflict");
    assert_eq!(values(&server, DEV).await, json!([1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_during_restores_lose_nothing_that_was_acknowledged_after_the_last() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let start = insert(&server, -1).await;
    let requests = server.requests();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for value in 0.. {
            if *stopped.borrow_and_update() {
                break;
            }
            let body = json!({ "sql": format!("INSERT INTO t VALUES ({value})") });
            let request = requests.request(Method::POST, &format!("{MART}/query")).json(&body);
            let answer = requests.try_send(request).await.expect("the node runs");
            match answer.status {
                StatusCode::OK => acknowledged.push((value, answer.position.expect("a commit has one"))),
                _ => assert!(answer.body["outcome"] == "none" && answer.body["retryable"] == true, "{answer:?}"),
            }
        }
        acknowledged
    });
    let mut last = String::new();
    for _ in 0..3 {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let back = restore(&server, &start).await;
        assert_eq!(back.status, StatusCode::OK, "{back:?}");
        last = back.body["position"].as_str().expect("a position").to_owned();
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    stop.send_replace(true);
    let acknowledged = writer.await.expect("it does not panic");
    let epoch = |position: &str| position.split('.').next().and_then(|text| text.parse::<u64>().ok());
    let kept: Vec<i64> = std::iter::once(-1)
        .chain(acknowledged.iter().filter(|(_, position)| epoch(position) == epoch(&last)).map(|(value, _)| *value))
        .collect();
    assert!(kept.len() > 1 && kept.len() <= acknowledged.len());
    assert_eq!(values(&server, DEV).await, json!(kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_has_its_own_life() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    insert(&server, 2).await;
    let branch = post(&server, &format!("{MART}/branches"), json!({"name": "try", "at": first})).await;
    assert_eq!(branch.status, StatusCode::OK, "{branch:?}");
    assert_eq!(values(&server, "default/try").await, json!([1]));
    server.query_in("default/try", json!({"sql": "INSERT INTO t VALUES (10)"})).await.rows();
    let again = post(&server, "/v1/tenants/default/marts/try/branches", json!({"name": "again"})).await;
    assert_eq!(again.status, StatusCode::OK, "{again:?}");
    server.query_in("default/again", json!({"sql": "INSERT INTO t VALUES (100)"})).await.rows();
    assert_eq!(post(&server, &format!("{MART}/branches"), json!({"name": "try"})).await.code(), "conflict");
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    assert_eq!(values(&server, "default/try").await, json!([1, 10]));
    assert_eq!(values(&server, "default/again").await, json!([1, 10, 100]));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_named_listed_gone_back_to_and_deleted() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    let monday = post(&server, &format!("{MART}/snapshots"), json!({"name": "monday"})).await;
    assert_eq!((monday.status, monday.body["position"].as_str()), (StatusCode::OK, Some(&*first)), "{monday:?}");
    let second = insert(&server, 2).await;
    insert(&server, 3).await;
    let body = json!({"name": "tuesday", "at": second});
    assert_eq!(post(&server, &format!("{MART}/snapshots"), body).await.status, StatusCode::OK);
    for (body, code) in [
        (json!({"name": "monday"}), "conflict"),
        (json!({"name": "2026"}), "invalid"),
        (json!({"name": "a/b"}), "invalid"),
        (json!({"name": "x", "at": "9.9.9"}), "not_found"),
        (json!({"nam": "x"}), "invalid"),
    ] {
        assert_eq!(post(&server, &format!("{MART}/snapshots"), body.clone()).await.code(), code, "{body}");
    }
    let listed = get(&server, &format!("{MART}/snapshots")).await;
    let listed = listed.body["snapshots"].as_array().expect("a list").clone();
    assert_eq!(
        listed.iter().map(|shown| shown["name"].as_str()).collect::<Vec<_>>(),
        [Some("monday"), Some("tuesday")]
    );
    assert!(listed[0]["bytes"].as_u64() > Some(0) && listed[0]["shared_bytes"].is_u64(), "{listed:?}");
    assert_eq!(restore(&server, "monday").await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1]));
    assert_eq!(restore(&server, "tuesday").await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    let gone = server.send(server.request(Method::DELETE, &format!("{MART}/snapshots/monday"))).await;
    assert_eq!(gone.status, StatusCode::OK);
    assert_eq!(restore(&server, "monday").await.code(), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_lists_positions_with_their_times_and_a_time_means_the_commit_before_it() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let mut positions = Vec::new();
    for value in 0..5 {
        positions.push(insert(&server, value).await);
    }
    let listed = get(&server, &format!("{MART}/history")).await;
    let moments = listed.body["moments"].as_array().unwrap_or_else(|| panic!("{listed:?}")).clone();
    let commits: Vec<_> = moments.iter().filter(|moment| moment["what"] == "commit").collect();
    let newest_first: Vec<_> = commits.iter().filter_map(|moment| moment["position"].as_str()).take(5).collect();
    let expected: Vec<_> = positions.iter().rev().map(String::as_str).collect();
    assert_eq!(newest_first, expected);
    let third = commits[2]["time"].as_str().expect("a time");
    assert_eq!(restore(&server, third).await.body["restored"].as_str(), Some(&*positions[2]));
    assert_eq!(values(&server, DEV).await, json!([0, 1, 2]));
    let span = format!("{MART}/history?from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z&buckets=8");
    let counted = get(&server, &span).await;
    let counts = counted.body["buckets"].as_array().unwrap_or_else(|| panic!("{counted:?}"));
    assert_eq!(counts.len(), 8);
    assert!(counts.iter().filter_map(|bucket| bucket["commits"].as_u64()).sum::<u64>() >= 6, "{counts:?}");
    for wrong in ["from=yesterday", "buckets=5", "buckets=0&from=2020-01-01T00:00:00Z", "x=1"] {
        assert_eq!(get(&server, &format!("{MART}/history?{wrong}")).await.code(), "invalid", "{wrong}");
    }
}
