//! `kill -9` at random moments under writers, again and again: of the engine with its files left in place, and of the node with all its
//! files lost. Every commit that was acknowledged as durable is there afterwards, and nothing is half there.
//!
//! `TARN_TEST_KILLS` sets the number of kills (default 54), `TARN_TEST_SEED` repeats a run.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::server::{Answer, TestServer};

const LANES: u64 = 3;
const KILLS: u64 = 54;
const WRITERS: u64 = 4;
const ACCOUNTS: u64 = 20;
const TOTAL: u64 = ACCOUNTS * 1000;
/// More than a row group, so that its rows bypass the log.
const BULK_ROWS: u64 = 130_000;
const QUERY: &str = "/v1/tenants/default/marts/dev/query";

/// What the clients were told.
#[derive(Default)]
struct Told {
    /// Acknowledged as durable: must be there for good.
    durable: HashSet<Uuid>,
    /// Refused with outcome `none`: must never be there.
    refused: HashSet<Uuid>,
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_commit_is_lost_and_none_is_half_there() {
    let seed = variable("TARN_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let kills = variable("TARN_TEST_KILLS").unwrap_or(KILLS);
    println!("TARN_TEST_SEED={seed}");
    let lanes = (0..LANES).map(|lane| tokio::spawn(lane_of_kills(seed.wrapping_add(lane), kills.div_ceil(LANES))));
    let told = futures::future::try_join_all(lanes).await.expect("no lane panics");
    let durable: usize = told.iter().sum();
    println!("{kills} kills, {durable} commits acknowledged as durable, none lost");
    assert!(durable as u64 > kills, "hardly anything was committed: the test proves nothing");
}

/// One server and its kills; returns how many commits it acknowledged.
async fn lane_of_kills(seed: u64, kills: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = TestServer::start().await;
    server
        .query(&format!(
            "CREATE TABLE accounts AS SELECT i AS id, 1000 AS balance FROM range({ACCOUNTS}) r(i);
             CREATE TABLE ledger(id UUID);
             CREATE TABLE bulk(batch UUID, i BIGINT, text VARCHAR)"
        ))
        .await
        .rows();
    let told = Arc::new(Mutex::new(Told::default()));
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                tokio::spawn(write(
                    server.requests(),
                    StdRng::seed_from_u64(random.random()),
                    told.clone(),
                    stop.clone(),
                ))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..600))).await;
        if random.random_bool(0.5) {
            server.kill_engine_if_any("default/dev");
        } else {
            server.kill_node().await;
            server.wipe_state();
        }
        stop.store(true, Ordering::Relaxed);
        futures::future::try_join_all(writers).await.expect("no writer panics");
        if !server.is_running() {
            server.start_again().await;
        }
        check(&server, &told, &format!("seed {seed}, kill {kill}")).await;
    }
    let told = told.lock().expect("nobody panics with it");
    told.durable.len()
}

/// Transfers and bulk loads until stopped, each under an id of its own.
async fn write(requests: crate::server::Requests, mut random: StdRng, told: Arc<Mutex<Told>>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let id = Uuid::from_u128(random.random());
        let sql = if random.random_bool(0.05) {
            format!("INSERT INTO bulk SELECT '{id}', i, 'row ' || i FROM range({BULK_ROWS}) r(i)")
        } else {
            let (from, to, amount) =
                (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS), random.random_range(1..50));
            format!(
                "BEGIN;
                 UPDATE accounts SET balance = balance - {amount} WHERE id = {from};
                 UPDATE accounts SET balance = balance + {amount} WHERE id = {to};
                 INSERT INTO ledger VALUES ('{id}');
                 COMMIT"
            )
        };
        let Ok(answer) = requests.try_send(requests.request(Method::POST, QUERY).json(&json!({ "sql": sql }))).await
        else {
            continue;
        };
        let mut told = told.lock().expect("nobody panics with it");
        if answer.status == StatusCode::OK {
            assert_eq!(answer.durable.as_deref(), Some("object"), "{answer:?}");
            told.durable.insert(id);
        } else if answer.body["outcome"] == "none" {
            told.refused.insert(id);
        }
    }
}

async fn check(server: &TestServer, told: &Mutex<Told>, when: &str) {
    let found =
        read(server, "SELECT list(id::VARCHAR) FROM (FROM ledger UNION ALL SELECT DISTINCT batch FROM bulk)").await;
    let there: HashSet<Uuid> = found[0][0]
        .as_array()
        .into_iter()
        .flatten()
        .map(|id| id.as_str().and_then(|id| id.parse().ok()).expect("a UUID"))
        .collect();
    {
        let told = told.lock().expect("nobody panics with it");
        let lost: Vec<_> = told.durable.difference(&there).collect();
        assert!(lost.is_empty(), "{when}: acknowledged and lost: {lost:?}\n{}", server.log());
        let risen: Vec<_> = told.refused.intersection(&there).collect();
        assert!(risen.is_empty(), "{when}: refused and there: {risen:?}\n{}", server.log());
    }
    let sums = read(server, "SELECT (SELECT sum(balance) FROM accounts), (SELECT count(*) FROM accounts)").await;
    assert_eq!(sums, json!([[TOTAL, ACCOUNTS]]), "{when}: transfers do not keep their sum\n{}", server.log());
    let half = format!(
        "SELECT count(*) FROM (SELECT batch FROM bulk GROUP BY batch HAVING count(*) <> {BULK_ROWS} OR max(text) <> 'row 99999')"
    );
    assert_eq!(read(server, &half).await, json!([[0]]), "{when}: a bulk load is half there\n{}", server.log());
}

/// Reads until the mart is back.
async fn read(server: &TestServer, sql: &str) -> Value {
    loop {
        let answer: Answer = server.query(sql).await;
        if answer.status == StatusCode::OK {
            return answer.rows().clone();
        }
        assert_eq!(answer.code(), "unavailable", "{answer:?}\n{}", server.log());
    }
}
