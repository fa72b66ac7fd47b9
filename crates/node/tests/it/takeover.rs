//! Several nodes on one store: one of them serves a mart, the others say which; whose node is dead goes over to another; and whoever
//! was deposed tells nothing more, however it comes back.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::seaweed::SeaweedFs;
use crate::server::{Answer, DEV, Requests, TestServer};
use crate::wire::{Way, wired_to};

const TAKEOVER: Duration = Duration::from_secs(4);
const SHORT: (&str, &str) = ("TARN_TAKEOVER_AFTER", "4s");
/// Longer than any request waits.
const LONG: (&str, &str) = ("TARN_TAKEOVER_AFTER", "1000s");
/// What a take-over may take beyond its time, on a busy machine.
const SLACK: Duration = Duration::from_secs(20);
const QUERY: &str = "/v1/tenants/default/marts/dev/query";

async fn first(setting: (&str, &str)) -> TestServer {
    let first = TestServer::start_with(&[setting]).await;
    first.query("CREATE TABLE t(a BIGINT)").await.rows();
    assert_eq!(insert(&first, 1, "object").await.durable.as_deref(), Some("object"));
    first
}

async fn another(first: &TestServer, setting: (&str, &str)) -> TestServer {
    let store = format!("file:{}", first.objects_dir().display());
    TestServer::start_with(&[("TARN_STORE", store.as_str()), setting]).await
}

fn body(value: i64, durability: &str) -> Value {
    json!({"sql": format!("INSERT INTO t VALUES ({value})"), "durability": durability})
}

async fn insert(server: &TestServer, value: i64, durability: &str) -> Answer {
    server.query_in(DEV, body(value, durability)).await
}

const ROWS: &str = "SELECT list(a ORDER BY a) FROM t";

async fn rows(server: &TestServer) -> Value {
    server.query(ROWS).await.rows()[0][0].clone()
}

/// Asks until it is answered; in between it may be told that the dead node serves it.
async fn rows_at_last(server: &TestServer) -> Value {
    loop {
        let answer = server.query(ROWS).await;
        if answer.status == StatusCode::OK {
            return answer.rows()[0][0].clone();
        }
        assert!(["fenced", "unavailable"].contains(&answer.code()), "{answer:?}");
        assert_eq!((&answer.body["outcome"], &answer.body["retryable"]), (&json!("none"), &json!(true)), "{answer:?}");
    }
}

/// A deposed node says nothing but that, and in the end only that.
async fn tells_nothing_more(server: &TestServer) {
    loop {
        let (read, local, object) =
            (server.query(ROWS).await, insert(server, -1, "local").await, insert(server, -2, "object").await);
        for answer in [&read, &local, &object] {
            assert!(["fenced", "unavailable"].contains(&answer.code()), "{answer:?}\n{}", server.log());
        }
        if [&read, &local, &object].iter().all(|answer| answer.code() == "fenced" && answer.body["outcome"] == "none") {
            return;
        }
    }
}

fn heartbeat_of(server: &TestServer) -> std::path::PathBuf {
    let id = std::fs::read_to_string(server.state_dir().join("node-id")).expect("a node has an id");
    server.objects_dir().join("tarn-control/nodes").join(id.trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_says_who_serves_the_mart_and_leaves_it_alone() {
    let first = first(SHORT).await;
    let second = another(&first, SHORT).await;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux");
    for answer in [second.query(ROWS).await, insert(&second, 2, "object").await, insert(&second, 2, "local").await] {
        assert_eq!((answer.code(), &answer.body["outcome"]), ("fenced", &json!("none")), "{answer:?}");
        let message = answer.body["message"].as_str().expect("a text");
        assert!(message.contains(&format!("`{}`", host.trim())), "{message}");
    }
    assert_eq!(insert(&first, 3, "object").await.durable.as_deref(), Some("object"));
    assert_eq!(rows(&first).await, json!([1, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_marts_of_a_killed_node_are_served_by_another_without_a_human() {
    let mut first = first(SHORT).await;
    let other = json!({"name": "other"});
    first.send(first.request(Method::POST, "/v1/tenants/default/marts").json(&other)).await;
    first.query_in("default/other", json!({"sql": "CREATE TABLE t AS SELECT 7 AS a"})).await.rows();
    let second = another(&first, SHORT).await;
    assert_eq!(second.query(ROWS).await.code(), "fenced");
    first.kill_node().await;
    let killed = Instant::now();
    assert_eq!(rows_at_last(&second).await, json!([1]));
    assert!(killed.elapsed() < TAKEOVER + SLACK, "{:?}", killed.elapsed());
    assert_eq!(insert(&second, 2, "object").await.durable.as_deref(), Some("object"));
    let asked = Instant::now();
    assert_eq!(*second.query_in("default/other", json!({"sql": ROWS})).await.rows(), json!([[[7]]]));
    assert!(asked.elapsed() < TAKEOVER, "that the node is dead was known: {:?}", asked.elapsed());

    // It comes back with its disk, and is told.
    first.start_again().await;
    tells_nothing_more(&first).await;
    assert_eq!(rows(&second).await, json!([1, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_on_its_disk_goes_on_at_once() {
    let mut first = first(LONG).await;
    let before = insert(&first, 0, "object").await.position.expect("a commit has a position");
    first.kill_node().await;
    first.start_again().await;
    let read = first.query(ROWS).await;
    assert_eq!((read.rows(), read.position.as_ref()), (&json!([[[0, 1]]]), Some(&before)), "the same epoch");
    assert!(!first.log().contains("restored from"), "{}", first.log());
    assert_eq!(insert(&first, 2, "object").await.durable.as_deref(), Some("object"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_hands_its_marts_over_at_once() {
    let mut first = first(LONG).await;
    let mut second = another(&first, LONG).await;
    assert_eq!(insert(&first, 2, "local").await.durable.as_deref(), Some("local"));
    assert!(first.stop().await.success());
    assert_eq!(rows(&second).await, json!([1, 2]));
    first.start_again().await;
    assert!(second.stop().await.success());
    assert_eq!(rows(&first).await, json!([1, 2]), "and back, without a restart of the one that had lost it");
    assert_eq!(insert(&first, 3, "object").await.durable.as_deref(), Some("object"));
}

async fn send_while_frozen(requests: &Requests) -> Vec<tokio::task::JoinHandle<Answer>> {
    let bodies = [json!({"sql": ROWS}), body(-3, "local"), body(-4, "object")];
    let send = |body: Value| {
        let requests = requests.clone();
        async move { requests.try_send(requests.request(Method::POST, QUERY).json(&body)).await.expect("an answer") }
    };
    bodies.into_iter().map(|body| tokio::spawn(send(body))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_frozen_while_it_was_deposed_tells_nothing_more() {
    let first = first(SHORT).await;
    let second = another(&first, SHORT).await;
    for round in 0..3 {
        // The node that has the mart freezes; the other takes over.
        let (frozen, other) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let before = rows_at_last(frozen).await;
        frozen.freeze_node().await;
        let waiting = send_while_frozen(&frozen.requests()).await;
        assert_eq!(rows_at_last(other).await, before);
        assert_eq!(insert(other, 10 + round, "object").await.durable.as_deref(), Some("object"));
        let after = rows(other).await;
        frozen.thaw_node();
        tells_nothing_more(frozen).await;
        for answer in waiting {
            let answer = answer.await.expect("no panic");
            assert!(["fenced", "unavailable"].contains(&answer.code()), "{answer:?}\n{}", frozen.log());
        }
        assert_eq!(rows(other).await, after, "round {round}");
    }
    assert_eq!(rows(&second).await, json!([1, 10, 11, 12]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_contact_to_the_store_stops_answering_before_another_takes_over() {
    let buckets = ["tarn-control", "sm-default-analytics"].map(|name| name.parse().expect("a legal bucket name"));
    let weed = SeaweedFs::start(&buckets).await;
    let settings = [SHORT, ("TARN_DURABLE_WAIT_MS", "500")];
    let (wire, first) = wired_to(&weed, &settings).await;
    let (_other_wire, mut second) = wired_to(&weed, &settings).await;
    first.query("CREATE TABLE t(a BIGINT)").await.rows();
    insert(&first, 1, "object").await.rows();
    assert_eq!(second.query(ROWS).await.code(), "fenced");

    wire.set(Way::Cut);
    let local = insert(&first, 2, "local").await;
    assert_eq!((local.status, local.durable.as_deref()), (StatusCode::OK, Some("local")), "it may still: {local:?}");
    // It answers as long as it may, and never again once it may not.
    let refused = loop {
        let answer = first.query(ROWS).await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        assert_eq!(answer.rows()[0][0], json!([1, 2]));
    };
    assert_eq!((refused.code(), &refused.body["outcome"]), ("unavailable", &json!("none")), "{refused:?}");
    let refused = insert(&first, 3, "local").await;
    assert_eq!((refused.code(), &refused.body["outcome"]), ("unavailable", &json!("none")), "{refused:?}");
    let unsure = insert(&first, 4, "object").await;
    assert_eq!((unsure.code(), &unsure.body["outcome"]), ("unavailable", &json!("unknown")), "{unsure:?}");
    assert!(unsure.body["position"].is_string(), "{unsure:?}");

    assert_eq!(rows_at_last(&second).await, json!([1]), "what was only on the other's disk is lost, as `local` says");
    insert(&second, 5, "object").await.rows();
    assert_eq!(first.query(ROWS).await.code(), "unavailable", "still without contact");
    wire.set(Way::Open);
    tells_nothing_more(&first).await;
    assert_eq!(rows(&second).await, json!([1, 5]));

    assert!(second.stop().await.success());
    assert_eq!(rows_at_last(&first).await, json!([1, 5]), "{}", first.log());
    let aside = std::fs::read_dir(first.state_dir().join("marts").join(DEV).join("quarantine")).expect("it is there");
    assert_eq!(aside.count(), 1, "the files with the lost row");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_heartbeat_can_t_be_written_answers_no_reads_until_it_can() {
    let first = first(SHORT).await;
    let heartbeat = heartbeat_of(&first);
    // A directory in its place can't be replaced. A heartbeat may come between.
    while std::fs::remove_file(&heartbeat).and_then(|()| std::fs::create_dir_all(heartbeat.join("in/the/way"))).is_err()
    {
    }
    let refused = loop {
        let answer = first.query(ROWS).await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        assert_eq!(answer.rows()[0][0], json!([1]));
    };
    assert_eq!((refused.code(), &refused.body["outcome"]), ("unavailable", &json!("none")), "{refused:?}");
    assert_eq!(insert(&first, 2, "local").await.code(), "unavailable");
    assert_eq!(insert(&first, 3, "object").await.durable.as_deref(), Some("object"), "slots decide, not heartbeats");
    std::fs::remove_dir_all(&heartbeat).expect("it is there");
    assert_eq!(rows_at_last(&first).await, json!([1, 3]), "it has shown that it is still the writer");
    assert_eq!(insert(&first, 4, "local").await.durable.as_deref(), Some("local"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_sent_on_to_the_node_that_serves_the_mart_and_streams_through() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound");
    let place = port.to_string();
    let mut first = TestServer::start_with(&[SHORT, ("TARN_ADVERTISE", &place)]).await;
    first.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    // Nobody listens there: the client is told.
    let second = another(&first, SHORT).await;
    let told = second.query(ROWS).await;
    assert_eq!((told.code(), &told.body["outcome"]), ("fenced", &json!("none")), "{told:?}");
    assert!(told.body["message"].as_str().is_some_and(|text| text.contains(&place)), "{told:?}");

    first.kill_node().await;
    first.start_again_with(&[("TARN_LISTEN", &place)]).await;
    let sent_on = insert(&second, 2, "object").await;
    assert_eq!((sent_on.status, sent_on.durable.as_deref()), (StatusCode::OK, Some("object")), "{sent_on:?}");
    assert_eq!(rows(&second).await, json!([1, 2]));
    assert_eq!(
        crate::durability::position(&second, sent_on.position.as_deref().expect("it says where"), 0).await.body["durable"],
        json!(true)
    );
    assert!(!second.log().contains("restored from"), "{}", second.log());
    assert_eq!(second.query("SELECT nothing FROM nowhere").await.code(), "sql");
    let many = "SELECT i, 'some more bytes ' || i FROM range(300000) r(i)";
    let request = second.request(Method::POST, QUERY).header("accept", "text/csv").json(&json!({"sql": many}));
    let answer = second.send(request).await;
    assert_eq!(answer.body.as_str().map(|text| text.lines().count()), Some(300_001), "header and rows");
    let refused = second
        .send(second.request(Method::POST, QUERY).header("tarn-forwarded", "1").json(&json!({"sql": ROWS})))
        .await;
    assert_eq!(refused.code(), "fenced", "once is enough");
}

/// Inserts numbers of its own until so many have been taken; says which.
async fn race(server: &TestServer, numbers: std::ops::Range<i64>, enough: Duration) -> Vec<i64> {
    let mut taken = Vec::new();
    let started = Instant::now();
    for number in numbers {
        let answer = insert(server, number, "object").await;
        if answer.status == StatusCode::OK {
            taken.push(number);
        } else {
            assert_eq!((answer.code(), &answer.body["outcome"]), ("fenced", &json!("none")), "{answer:?}");
        }
        if taken.len() == 20 || started.elapsed() > enough {
            break;
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_that_take_over_at_once_one_wins() {
    let mut first = first(SHORT).await;
    let nodes = (another(&first, SHORT).await, another(&first, SHORT).await);
    first.kill_node().await;
    let (one, other) = tokio::join!(
        race(&nodes.0, 100..1_000_000, TAKEOVER + SLACK),
        race(&nodes.1, 1_000_000..2_000_000, TAKEOVER + SLACK)
    );
    assert!(one.is_empty() != other.is_empty(), "{one:?} {other:?}");
    let winner = if one.is_empty() { &nodes.1 } else { &nodes.0 };
    let mut expected = vec![1];
    expected.extend(one);
    expected.extend(other);
    assert_eq!(rows(winner).await, json!(expected));
    let restored = [&nodes.0, &nodes.1].map(|node| node.log().matches("restored from the object store").count());
    assert_eq!(restored.iter().sum::<usize>(), 1, "{restored:?}");
}
