//! `kill -9` at random moments under writers, again and again, with checkpoints and bases all the time: of the engine with its files
//! left in place, of the node with its disk intact, and of the node with all its files lost. Every commit that was acknowledged is
//! there afterwards as its durability promised, none is half there, none is there twice.
//!
//! `TARN_TEST_KILLS` sets the number of kills (default 75), `TARN_TEST_SEED` repeats a run.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use replica::Position;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::server::{Answer, Requests, TestServer};

const LANES: u64 = 3;
const KILLS: u64 = 75;
const WRITERS: usize = 4;
const ACCOUNTS: u64 = 20;
const TOTAL: u64 = ACCOUNTS * 1000;
/// More than a row group, so that its rows bypass the log.
const BULK_ROWS: u64 = 130_000;
const QUERY: &str = "/v1/tenants/default/marts/dev/query";
/// A few commits fill such a log, and a moment without commits is idle: there is always a checkpoint or a base under way.
const SETTINGS: [(&str, &str); 2] = [("TARN_CHECKPOINT_WAL", "4KB"), ("TARN_CHECKPOINT_IDLE_MS", "20")];

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Death {
    /// The engine; its files are opened again in place.
    Engine,
    /// The node, and its engines with it; the disk stays.
    Node,
    /// The node with its disk: everything comes back from the object store.
    Machine,
}

/// What the clients were told.
#[derive(Default)]
struct Told {
    /// Acknowledged as durable: must be there for good.
    durable: HashSet<Uuid>,
    /// Acknowledged as on the disk: must be there as long as the disk is.
    local: HashSet<Uuid>,
    /// Refused with outcome `none`: must never be there.
    refused: HashSet<Uuid>,
    /// Sent under an idempotency key and acknowledged: sent again, they must not run again.
    keyed: HashMap<Uuid, Value>,
    /// The same without an answer: sent again, they run once.
    unsettled: HashMap<Uuid, Value>,
    /// Requests without an answer, or with outcome `unknown`.
    unknown: usize,
    /// The highest checkpoint that a position told of.
    iteration: u64,
}

/// What a lane has seen.
struct Seen {
    durable: usize,
    unknown: usize,
    iteration: u64,
    deaths: HashMap<Death, usize>,
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_commit_is_lost_and_none_is_half_there() {
    let seed = variable("TARN_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let kills = variable("TARN_TEST_KILLS").unwrap_or(KILLS).div_ceil(LANES);
    println!("TARN_TEST_SEED={seed}");
    let lanes = (0..LANES).map(|lane| tokio::spawn(lane_of_kills(seed.wrapping_add(lane), kills)));
    let seen = futures::future::try_join_all(lanes).await.expect("no lane panics");
    for Seen { durable, unknown, iteration, deaths } in &seen {
        println!("{deaths:?}: {durable} commits durable, {unknown} unknown, checkpoint {iteration}; none lost");
        assert!(*durable as u64 > kills, "hardly anything was committed: the test proves nothing");
    }
    let checkpoints: u64 = seen.iter().map(|seen| seen.iteration).sum();
    assert!(
        checkpoints > LANES * kills / 2,
        "hardly any checkpoint came between the kills: the test proves too little"
    );
}

/// One server and its kills.
async fn lane_of_kills(seed: u64, kills: u64) -> Seen {
    let mut random = StdRng::seed_from_u64(seed);
    // One lane's node is one of many as far as it knows: it beats, claims, and takes over from itself when its disk was lost.
    let takeover = if seed.is_multiple_of(LANES) { "3s" } else { "never" };
    let mut server = TestServer::start_with(&[SETTINGS[0], SETTINGS[1], ("TARN_TAKEOVER_AFTER", takeover)]).await;
    server.query(&tables()).await.rows();
    let told = Arc::new(Mutex::new(Told::default()));
    let mut deaths = HashMap::new();
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| Writer {
                requests: server.requests(),
                number,
                random: StdRng::seed_from_u64(random.random()),
                told: told.clone(),
                stop: stop.clone(),
            })
            .map(|writer| tokio::spawn(writer.run()))
            .collect();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..600))).await;
        let death = [Death::Engine, Death::Node, Death::Machine][random.random_range(0..3)];
        match death {
            Death::Engine => server.kill_engine_if_any("default/dev"),
            Death::Node | Death::Machine => server.kill_node().await,
        }
        if death == Death::Machine {
            server.wipe_state();
        }
        *deaths.entry(death).or_default() += 1;
        stop.store(true, Ordering::Relaxed);
        futures::future::try_join_all(writers).await.expect("no writer panics");
        if !server.is_running() {
            server.start_again().await;
        }
        let when = format!("seed {seed}, kill {kill} ({death:?})");
        check(&server, &told, death, &when).await;
        if send_again(&server, &told, &mut random).await {
            check(&server, &told, Death::Engine, &format!("{when}, after requests were sent again")).await;
        }
    }
    let restored = server.log().matches("restored from the object store").count();
    assert_eq!(restored, deaths.get(&Death::Machine).copied().unwrap_or(0), "a disk that was there was not used");
    for odd in ["moved to quarantine", "went another way", "panicked"] {
        assert!(!server.log().contains(odd), "`{odd}` in\n{}", server.log());
    }
    let told = lock(&told);
    Seen { durable: told.durable.len(), unknown: told.unknown, iteration: told.iteration, deaths }
}

fn tables() -> String {
    let bulk = (0..WRITERS).map(|writer| format!(";\nCREATE TABLE bulk_{writer} AS {}", bulk(Uuid::nil(), 0)));
    format!(
        "CREATE TABLE accounts AS SELECT i AS id, 1000 AS balance FROM range({ACCOUNTS}) r(i);
         CREATE TABLE ledger(id UUID PRIMARY KEY, writer BIGINT, turn BIGINT, bulk BOOLEAN){};
         CREATE TABLE expected AS SELECT count(*)::VARCHAR || ' ' || sum(hash(i, text, list, pair)) AS digest FROM ({})",
        bulk.collect::<String>(),
        self::bulk(Uuid::nil(), BULK_ROWS)
    )
}

/// Rows whose strings lie partly in blocks of their own, with nested values and NULLs.
fn bulk(id: Uuid, rows: u64) -> String {
    format!(
        "SELECT '{id}'::UUID AS batch, i, CASE i % 20000 WHEN 7 THEN repeat('long ', 2000) || i WHEN 8 THEN NULL ELSE 'row ' || i END AS text,
             [i, NULL, i + 1] AS list, {{'half': i // 2, 'text': 'n' || i}} AS pair FROM range({rows}) r(i)"
    )
}

/// Transfers and bulk loads until stopped, each under an id of its own.
struct Writer {
    requests: Requests,
    number: usize,
    random: StdRng,
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = Uuid::from_u128(self.random.random());
            let (bulk, keyed) = (self.random.random_bool(0.05), self.random.random_bool(0.2));
            let durability = if self.random.random_bool(0.25) { "local" } else { "object" };
            let sql = if bulk { self.load(id) } else { self.transfer(id) };
            let body = json!({"sql": sql, "durability": durability});
            let answer = self.requests.try_send(request(&self.requests, &body, keyed.then_some(id))).await;
            if matches!(&answer, Err(error) if error.is_connect()) {
                // Nobody is there to take it.
                tokio::task::yield_now().await;
                continue;
            }
            let mut told = lock(&self.told);
            match answer {
                Ok(answer) if answer.status == StatusCode::OK => {
                    told.note(&answer);
                    match durability {
                        "local" => told.local.insert(id),
                        _ => {
                            assert_eq!(answer.durable.as_deref(), Some("object"), "{answer:?}");
                            told.durable.insert(id)
                        }
                    };
                    if keyed {
                        told.keyed.insert(id, body);
                    }
                }
                Ok(answer) if answer.body["outcome"] == "none" => {
                    told.refused.insert(id);
                }
                // A client whose node dies learns nothing; one whose engine dies is told just that.
                Ok(_) | Err(_) => {
                    told.unknown += 1;
                    if keyed {
                        told.unsettled.insert(id, body);
                    }
                }
            }
        }
    }

    fn transfer(&mut self, id: Uuid) -> String {
        let random = &mut self.random;
        let (from, to, amount) =
            (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS), random.random_range(1..50));
        format!(
            "BEGIN;
             UPDATE accounts SET balance = balance - {amount} WHERE id = {from};
             UPDATE accounts SET balance = balance + {amount} WHERE id = {to};
             {};
             COMMIT",
            self.entry(id, false)
        )
    }

    /// Replaces this writer's table, so that blocks become free and are used again.
    fn load(&self, id: Uuid) -> String {
        let (table, rows) = (self.number, bulk(id, BULK_ROWS));
        format!("BEGIN; CREATE OR REPLACE TABLE bulk_{table} AS {rows}; {}; COMMIT", self.entry(id, true))
    }

    fn entry(&self, id: Uuid, bulk: bool) -> String {
        let writer = self.number;
        format!(
            "INSERT INTO ledger SELECT '{id}', {writer}, coalesce(max(turn), 0) + 1, {bulk} FROM ledger WHERE writer = {writer}"
        )
    }
}

impl Told {
    fn note(&mut self, answer: &Answer) {
        let position: Position = answer.position.as_deref().and_then(|text| text.parse().ok()).expect("a position");
        self.iteration = self.iteration.max(position.iteration);
    }
}

fn request(requests: &Requests, body: &Value, key: Option<Uuid>) -> reqwest::RequestBuilder {
    let request = requests.request(Method::POST, QUERY).json(body);
    match key {
        Some(key) => request.header("idempotency-key", key.to_string()),
        None => request,
    }
}

/// Sends again what got no answer, and some of what got one, under the same keys; was there anything?
async fn send_again(server: &TestServer, told: &Mutex<Told>, random: &mut StdRng) -> bool {
    let requests: Vec<(Uuid, Value)> = {
        let mut told = lock(told);
        let unsettled: Vec<_> = told.unsettled.drain().collect();
        let here = told.keyed.iter().filter(|(id, _)| told.durable.contains(id) || told.local.contains(id));
        let some = here.filter(|_| random.random_bool(0.05)).take(5).map(|(id, body)| (*id, body.clone()));
        let some: Vec<_> = some.collect();
        unsettled.into_iter().chain(some).collect()
    };
    let any = !requests.is_empty();
    for (id, body) in requests {
        let answer = loop {
            let answer = server.send(request(&server.requests(), &body, Some(id))).await;
            match answer.status {
                StatusCode::OK => break answer,
                _ => assert_eq!(answer.code(), "unavailable", "{answer:?}\n{}", server.log()),
            }
        };
        let mut told = lock(told);
        if body["durability"] == "object" {
            assert_eq!(answer.durable.as_deref(), Some("object"), "{answer:?}");
            told.durable.insert(id);
        } else {
            told.local.insert(id);
        }
        told.keyed.insert(id, body);
    }
    any
}

async fn check(server: &TestServer, told: &Mutex<Told>, death: Death, when: &str) {
    let found = read(server, "SELECT list(id::VARCHAR), count(*), count(DISTINCT id) FROM ledger").await;
    assert_eq!(found[0][1], found[0][2], "{when}: something is there twice\n{}", server.log());
    let there: HashSet<Uuid> = found[0][0]
        .as_array()
        .into_iter()
        .flatten()
        .map(|id| id.as_str().and_then(|id| id.parse().ok()).expect("a UUID"))
        .collect();
    {
        let mut told = lock(told);
        let lost: Vec<_> = told.durable.difference(&there).collect();
        assert!(lost.is_empty(), "{when}: acknowledged and lost: {lost:?}\n{}", server.log());
        if death == Death::Machine {
            // What is not in the object store is gone, as its acknowledgement said; the rest is there for good.
            let kept: Vec<_> = told.local.drain().filter(|id| there.contains(id)).collect();
            told.durable.extend(kept);
        }
        let lost: Vec<_> = told.local.difference(&there).collect();
        assert!(lost.is_empty(), "{when}: acknowledged as on the disk and lost: {lost:?}\n{}", server.log());
        let risen: Vec<_> = told.refused.intersection(&there).collect();
        assert!(risen.is_empty(), "{when}: refused and there: {risen:?}\n{}", server.log());
    }
    let sums = read(server, "SELECT (SELECT sum(balance) FROM accounts), (SELECT count(*) FROM accounts)").await;
    assert_eq!(sums, json!([[TOTAL, ACCOUNTS]]), "{when}: transfers do not keep their sum\n{}", server.log());
    let whole = read(server, &bulks()).await;
    let expected: Vec<_> = (0..WRITERS).map(|_| json!([true, true])).collect();
    assert_eq!(whole, json!(expected), "{when}: a bulk load is half there\n{}", server.log());
}

/// For every writer's table: whether it is of the last load that the ledger knows, and whether its rows are that load's.
fn bulks() -> String {
    let of_one = |writer| {
        let last = format!("(SELECT id FROM ledger WHERE writer = {writer} AND bulk ORDER BY turn DESC LIMIT 1)");
        let digest = "count(*)::VARCHAR || ' ' || coalesce(sum(hash(i, text, list, pair)), 0)";
        format!(
            "SELECT (SELECT count(*) FROM bulk_{writer} WHERE batch IS DISTINCT FROM {last}) = 0,
                 (SELECT {digest} FROM bulk_{writer}) = CASE WHEN {last} IS NULL THEN '0 0' ELSE (SELECT digest FROM expected) END",
        )
    };
    (0..WRITERS).map(of_one).collect::<Vec<_>>().join(" UNION ALL ")
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

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().expect("nobody panics with it")
}
