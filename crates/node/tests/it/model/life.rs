//! The driver: what happens, in random order, and what the model says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use replica::Position;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::content::{self, BULK_ROWS, Content, Refused, STRING, TABLES};
use super::ground::Ground;
use crate::server::{Answer, Requests, TestServer};

/// Marts at most: the first and its branches.
const MARTS: usize = 3;
/// Moments that are read after a disaster.
const SAMPLE: usize = 1;

/// What the model knows of one mart.
#[derive(Default)]
struct Mart {
    /// Commits that must be in it now.
    sure: BTreeSet<i64>,
    /// Commits that may be: without an answer, or not promised to outlive the disk.
    maybe: BTreeSet<i64>,
    /// What each moment held when it was the present, or when it was first read.
    moments: BTreeMap<Position, Content>,
    /// Moments that were acknowledged as durable.
    durable: BTreeSet<Position>,
    snapshots: BTreeMap<String, Content>,
    relations: Vec<String>,
}

/// A moment as a history lists it.
struct Listed {
    position: Position,
    time_us: i64,
    commit: bool,
}

/// What a client was told.
enum Told {
    Durable,
    Local,
    Refused,
    Unknown,
}

/// A store, its nodes, its marts and the model.
pub struct World {
    seed: u64,
    random: StdRng,
    ground: Ground,
    settings: Vec<(&'static str, &'static str)>,
    /// Serves the marts.
    server: TestServer,
    /// Would take them over.
    other: Option<TestServer>,
    marts: BTreeMap<String, Mart>,
    /// How long moments are kept; `None` for longer than any test.
    keep: Option<Duration>,
    next: i64,
    done: BTreeMap<&'static str, u64>,
    step: u64,
}

impl World {
    pub async fn start(mut ground: Ground, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut settings =
            vec![("TARN_CHECKPOINT_IDLE_MS", "20"), ("TARN_PAST_ENGINES", "2"), ("TARN_ENGINE_MEMORY", "256MB")];
        settings.push(("TARN_CHECKPOINT_WAL", *["2KB", "8KB", "64KB"].choose(&mut random).expect("some")));
        let keep = random.random_bool(0.5).then_some(Duration::from_millis(2592));
        if keep.is_some() {
            settings.extend([("TARN_RETENTION_DAYS", "0.00003"), ("TARN_RETENTION_GRACE_HOURS", "0")]);
        }
        let pair = random.random_bool(0.5);
        settings.push(("TARN_TAKEOVER_AFTER", if pair { "2s" } else { "never" }));
        println!("seed {seed}: {settings:?}");
        let server = ground.node(&settings).await;
        let other = if pair { Some(ground.node(&settings).await) } else { None };
        let mut world = Self {
            seed,
            random,
            ground,
            settings,
            server,
            other,
            marts: BTreeMap::new(),
            keep,
            next: 0,
            done: BTreeMap::new(),
            step: 0,
        };
        world.server.query(TABLES).await.rows();
        world.marts.insert("dev".into(), Mart::default());
        world.look("dev").await;
        world
    }

    pub fn summary(&self) -> String {
        let moments: usize = self.marts.values().map(|mart| mart.moments.len()).sum();
        format!("{} marts, {moments} moments; {:?}", self.marts.len(), self.done)
    }

    pub fn proves_something(&self, steps: u64) {
        let count = |name| self.done.get(name).copied().unwrap_or(0);
        assert!(count("committed") * 4 > steps, "hardly anything was committed: {:?}", self.done);
        assert!(count("moment read") > 0, "no moment was read: {:?}", self.done);
    }

    pub async fn step(&mut self, step: u64) {
        self.step = step;
        let names: Vec<String> = self.marts.keys().cloned().collect();
        let mart = names.choose(&mut self.random).expect("there is one").clone();
        match self.random.random_range(0..100) {
            0..50 => self.write(&mart).await,
            50..58 => self.snapshot(&mart).await,
            58..63 => self.branch(&mart).await,
            63..72 => self.restore(&mart).await,
            72..76 => self.vacuum(&mart).await,
            76..83 => self.sweep(&mart).await,
            _ => self.disaster(&mart).await,
        }
    }

    fn here(&self, mart: &str) -> String {
        format!("seed {}, step {}, mart {mart}", self.seed, self.step)
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    async fn post(&self, mart: &str, what: &str, body: Value) -> Answer {
        let path = format!("/v1/tenants/default/marts/{mart}/{what}");
        self.server.send(self.server.request(Method::POST, &path).json(&body)).await
    }

    /// The same, again while the mart is just being opened.
    async fn order(&self, mart: &str, what: &str, body: Value) -> Answer {
        loop {
            let answer = self.post(mart, what, body.clone()).await;
            if answer.body["code"] != "unavailable" || answer.body["outcome"] != "none" {
                return answer;
            }
        }
    }

    // Writing.

    async fn write(&mut self, name: &str) {
        for _ in 0..self.random.random_range(1..4) {
            let (id, body) = self.commit(name);
            let requests = self.server.requests();
            let (told, position) = send(&requests, name, &body).await;
            let here = self.here(name);
            let mart = self.marts.get_mut(name).expect("it is in the model");
            match told {
                Told::Durable => {
                    mart.sure.append(&mut mart.maybe);
                    mart.sure.insert(id);
                    mart.durable.extend(position);
                }
                // The disk is not lost before the next look.
                Told::Local => drop(mart.sure.insert(id)),
                Told::Refused => {}
                Told::Unknown => panic!("{here}: no disaster, and nobody knows: {body}\n{}", self.server.log()),
            }
            self.count(if matches!(told, Told::Refused) { "refused" } else { "committed" });
            let content = self.look(name).await;
            let mart = self.marts.get_mut(name).expect("it is in the model");
            if let Some(position) = position {
                mart.moments.insert(position, content);
            }
            if matches!(told, Told::Local) {
                mart.sure.remove(&id);
                mart.maybe.insert(id);
            }
        }
    }

    /// A random commit under a number of its own.
    fn commit(&mut self, name: &str) -> (i64, Value) {
        self.next += 1;
        let (id, random) = (self.next, &mut self.random);
        let mut numbered = false;
        let relations = &self.marts[name].relations;
        let own: Vec<&String> = relations.iter().filter(|relation| relation.starts_with("t_")).collect();
        let table = own.choose(random).map_or("t_none", |name| name.as_str());
        let (k, rows) = (random.random_range(0..50), random.random_range(1..3000));
        let sql = match random.random_range(0..16) {
            0 | 1 => format!(
                "CREATE TABLE t_{id}(k BIGINT, v DOUBLE, s VARCHAR, l INT[]); INSERT INTO t_{id} SELECT i, i / 3, 'x' || i, [i] FROM range({rows}) r(i)"
            ),
            2 => format!("DROP VIEW IF EXISTS v_{table}; DROP TABLE {table}"),
            3 => format!("ALTER TABLE {table} ADD COLUMN c_{id} BIGINT DEFAULT {k}"),
            4 => {
                format!("CREATE OR REPLACE VIEW v_{table} AS SELECT k % 7 AS k, count(*) AS n FROM {table} GROUP BY 1")
            }
            5 => format!("CREATE INDEX i_{id} ON {table}(k)"),
            6 | 7 => format!("UPDATE {table} SET v = v + {k}, s = s || 'u' WHERE k % 5 = {k} % 5"),
            8 => format!("DELETE FROM {table} WHERE k % 11 = {k} % 11"),
            9 => format!("INSERT INTO {table}(k, s) VALUES ({k}, 'a'); SELECT * FROM no_such_table"),
            10 => format!(
                "INSERT INTO {table}(k, s) VALUES ({k}, repeat('long ', 3000)); DELETE FROM {table} WHERE k = {rows}"
            ),
            11 | 12 => {
                numbered = true;
                format!(
                    "CREATE OR REPLACE TABLE big AS SELECT {id}::BIGINT AS id, i, {STRING} AS s, [i, {id}] AS l FROM range({BULK_ROWS}) r(i)"
                )
            }
            _ => format!("INSERT INTO {table}(k, v, s) SELECT i, random(), 'y' || i FROM range({rows}) r(i)"),
        };
        let durability = if random.random_bool(0.2) { "local" } else { "object" };
        let sql =
            format!("BEGIN; INSERT INTO log VALUES ({id}, {numbered}); INSERT INTO pair VALUES ({id}); {sql}; COMMIT");
        (id, json!({"sql": sql, "durability": durability}))
    }

    // Looking.

    /// Reads the present and compares it with the model.
    async fn look(&mut self, name: &str) -> Content {
        let content = self.read_at_last(name).await;
        let here = self.here(name);
        let log = || self.server.log();
        let mart = self.marts.get_mut(name).expect("it is in the model");
        let lost: Vec<_> = mart.sure.difference(&content.ids).collect();
        assert!(lost.is_empty(), "{here}: acknowledged and lost: {lost:?}\n{}", log());
        let more: Vec<_> =
            content.ids.iter().filter(|id| !mart.sure.contains(id) && !mart.maybe.contains(id)).collect();
        assert!(more.is_empty(), "{here}: there and should not be: {more:?}\n{}", log());
        mart.relations.clone_from(&content.relations);
        content
    }

    /// After a disaster: what may be there is or is not, for good.
    async fn settle(&mut self, name: &str) {
        let content = self.look(name).await;
        let mart = self.marts.get_mut(name).expect("it is in the model");
        mart.sure.clone_from(&content.ids);
        mart.maybe.clear();
    }

    async fn read_at_last(&self, name: &str) -> Content {
        loop {
            match content::read(&self.server.requests(), name, None).await {
                Ok(content) => return content,
                Err(Refused(answer)) => {
                    let code = answer.body["code"].as_str().unwrap_or_default();
                    assert!(
                        ["unavailable", "fenced"].contains(&code),
                        "{}: {answer:?}\n{}",
                        self.here(name),
                        self.server.log()
                    );
                }
            }
        }
    }

    async fn history(&self, name: &str) -> Vec<Listed> {
        let path = format!("/v1/tenants/default/marts/{name}/history?limit=10000");
        let answer = self.server.send(self.server.request(Method::GET, &path)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}: {answer:?}\n{}", self.here(name), self.server.log());
        assert_eq!(answer.body["truncated"], json!(false));
        let moments = answer.body["moments"].as_array().expect("a list").iter().rev();
        let listed = moments.map(|moment| Listed {
            position: moment["position"].as_str().and_then(|text| text.parse().ok()).expect("a position"),
            time_us: time_us(&moment["time"]),
            commit: moment["what"] == "commit",
        });
        listed.collect()
    }

    /// Reads moments of every mart, at most so many of each: all that is retained is what it was.
    pub async fn check_moments(&mut self, most: usize) {
        let names: Vec<String> = self.marts.keys().cloned().collect();
        for name in names {
            self.settle(&name).await;
            self.check_moments_of(&name, most).await;
        }
    }

    async fn check_moments_of(&mut self, name: &str, most: usize) {
        let listed = self.history(name).await;
        let here = self.here(name);
        assert!(listed.windows(2).all(|pair| pair[0].time_us <= pair[1].time_us), "{here}: times go back");
        let positions: BTreeSet<Position> = listed.iter().map(|moment| moment.position).collect();
        let all: Vec<String> = listed.iter().map(|moment| moment.position.to_string()).collect();
        assert_eq!(positions.len(), listed.len(), "{here}: a position is listed twice: {all:?}, after {:?}", self.done);
        if self.keep.is_none() {
            let gone: Vec<_> = self.marts[name].durable.difference(&positions).map(ToString::to_string).collect();
            assert!(gone.is_empty(), "{here}: durable and not in the history: {gone:?} {all:?}\n{}", self.server.log());
        }
        let all: Vec<usize> = (0..listed.len()).collect();
        let mut chosen: Vec<usize> = all.choose_multiple(&mut self.random, most).copied().collect();
        chosen.sort_unstable();
        for index in chosen {
            let moment = &listed[index];
            let content = self.read_at(name, &moment.position.to_string()).await;
            let previous =
                index.checked_sub(1).and_then(|before| self.marts[name].moments.get(&listed[before].position));
            // A checkpoint, and an epoch that no restore began, change nothing.
            let same = previous.filter(|_| !moment.commit).cloned();
            let mart = self.marts.get_mut(name).expect("it is in the model");
            let expected =
                mart.moments.entry(moment.position).or_insert_with(|| same.unwrap_or_else(|| content.clone()));
            assert_eq!(content, *expected, "{here}: {} is not what it was\n{}", moment.position, self.server.log());
            self.count("moment read");
            let next = listed.get(index + 1).map_or(i64::MAX, |next| next.time_us);
            if most < usize::MAX && self.random.random_bool(0.7) || next <= moment.time_us {
                continue;
            }
            let between = moment.time_us + (next.min(moment.time_us + 1000) - moment.time_us) / 2;
            let by_time = self.read_at(name, &rfc3339(between)).await;
            assert_eq!(
                by_time,
                content,
                "{here}: a time after {} means another moment\n{}",
                moment.position,
                self.server.log()
            );
        }
        let named: Vec<(String, Content)> =
            self.marts[name].snapshots.iter().map(|(name, content)| (name.clone(), content.clone())).collect();
        for (snapshot, expected) in named.into_iter().take(most) {
            let content = self.read_at(name, &snapshot).await;
            assert_eq!(content, expected, "{here}: snapshot {snapshot} is not what it was\n{}", self.server.log());
        }
    }

    async fn read_at(&self, name: &str, at: &str) -> Content {
        loop {
            match content::read(&self.server.requests(), name, Some(at)).await {
                Ok(content) => return content,
                Err(Refused(answer)) => assert!(
                    answer.body["code"] == "unavailable" && answer.body["retryable"] == true,
                    "{} at {at}: {answer:?}\n{}",
                    self.here(name),
                    self.server.log()
                ),
            }
        }
    }

    // What is done to a history.

    async fn snapshot(&mut self, name: &str) {
        let here = self.here(name);
        let known: Vec<String> = self.marts[name].snapshots.keys().cloned().collect();
        if let Some(old) = known.choose(&mut self.random).filter(|_| known.len() > 3) {
            let path = format!("/v1/tenants/default/marts/{name}/snapshots/{old}");
            let gone = self.server.send(self.server.request(Method::DELETE, &path)).await;
            assert_eq!(gone.status, StatusCode::OK, "{here}: {gone:?}");
            self.marts.get_mut(name).expect("it is in the model").snapshots.remove(old);
            return;
        }
        self.next += 1;
        let snapshot = format!("s{}", self.next);
        let made = self.order(name, "snapshots", json!({ "name": snapshot })).await;
        assert_eq!(made.status, StatusCode::OK, "{here}: {made:?}\n{}", self.server.log());
        // Whatever was acknowledged is durable with it.
        let content = self.look(name).await;
        let mart = self.marts.get_mut(name).expect("it is in the model");
        mart.sure.clone_from(&content.ids);
        mart.maybe.clear();
        mart.snapshots.insert(snapshot, content);
        self.count("snapshot");
    }

    async fn branch(&mut self, name: &str) {
        if self.marts.len() >= MARTS {
            return;
        }
        let here = self.here(name);
        let (at, expected) = self.some_moment(name).await;
        self.next += 1;
        let child = format!("b{}", self.next);
        let made = self.order(name, "branches", json!({"name": child, "at": at})).await;
        if self.is_swept(&made) {
            return;
        }
        assert_eq!(made.status, StatusCode::OK, "{here} at {at}: {made:?}\n{}", self.server.log());
        self.marts.insert(child.clone(), Mart { sure: expected.ids.clone(), ..Mart::default() });
        let content = self.look(&child).await;
        assert_eq!(content, expected, "{here}: the branch {child} at {at} is another\n{}", self.server.log());
        let position = made.body["position"].as_str().and_then(|text| text.parse().ok()).expect("a position");
        self.marts.get_mut(&child).expect("just made").moments.insert(position, content);
        self.count("branch");
    }

    /// A moment that a mart can be asked for, and what it held.
    async fn some_moment(&mut self, name: &str) -> (String, Content) {
        loop {
            let listed = self.history(name).await;
            let moment = listed.choose(&mut self.random).expect("the present is one");
            let last = listed.iter().rposition(|other| other.time_us == moment.time_us);
            let names: Vec<&String> = self.marts[name].snapshots.keys().collect();
            let at = match (self.random.random_range(0..3), names.choose(&mut self.random)) {
                (0, Some(snapshot)) => (*snapshot).clone(),
                (1, _) if last.is_some_and(|last| listed[last].position == moment.position) => rfc3339(moment.time_us),
                _ => moment.position.to_string(),
            };
            match content::read(&self.server.requests(), name, Some(&at)).await {
                Ok(content) if content.relations.is_empty() => {}
                Ok(content) => return (at, content),
                Err(Refused(answer)) => assert!(
                    answer.body["retryable"] == true || self.is_swept(&answer),
                    "{} at {at}: {answer:?}\n{}",
                    self.here(name),
                    self.server.log()
                ),
            }
        }
    }

    fn is_swept(&self, answer: &Answer) -> bool {
        self.keep.is_some() && answer.body["code"] == "not_found"
    }

    async fn restore(&mut self, name: &str) {
        let here = self.here(name);
        let (at, expected) = self.some_moment(name).await;
        let back = self.order(name, "restore", json!({ "at": at })).await;
        if self.is_swept(&back) {
            return;
        }
        assert_eq!(back.status, StatusCode::OK, "{here} at {at}: {back:?}\n{}", self.server.log());
        let position = back.body["position"].as_str().and_then(|text| text.parse().ok()).expect("a position");
        let mart = self.marts.get_mut(name).expect("it is in the model");
        mart.sure.clone_from(&expected.ids);
        mart.maybe.clear();
        let content = self.look(name).await;
        assert_eq!(content, expected, "{here}: restored to {at}\n{}", self.server.log());
        self.marts.get_mut(name).expect("it is in the model").moments.insert(position, content);
        self.count("restore");
    }

    async fn vacuum(&mut self, name: &str) {
        let here = self.here(name);
        let before = self.look(name).await;
        let done = self.order(name, "vacuum", json!({})).await;
        assert_eq!(done.status, StatusCode::OK, "{here}: {done:?}\n{}", self.server.log());
        let after = self.look(name).await;
        assert_eq!(after, before, "{here}: a vacuum changed something\n{}", self.server.log());
        let mart = self.marts.get_mut(name).expect("it is in the model");
        mart.sure.append(&mut mart.maybe);
        let position = done.body["position"].as_str().and_then(|text| text.parse().ok()).expect("a position");
        mart.moments.insert(position, after);
        mart.durable.insert(position);
        self.count("vacuum");
    }

    async fn sweep(&mut self, name: &str) {
        let here = self.here(name);
        let before = self.history(name).await;
        let swept = self.order(name, "sweep", json!({})).await;
        assert_eq!(swept.status, StatusCode::OK, "{here}: {swept:?}\n{}", self.server.log());
        let now_us = chrono::Utc::now().timestamp_micros();
        let after: BTreeSet<Position> = self.history(name).await.iter().map(|moment| moment.position).collect();
        let from = self.keep.map_or(0, |keep| now_us - i64::try_from(keep.as_micros()).expect("seconds"));
        // The last one before the window is the present as the window begins.
        let first = before.iter().rposition(|moment| moment.time_us < from).unwrap_or(0);
        // The sweep's own clock was read earlier than ours.
        for moment in before.iter().skip(first + 1) {
            assert!(after.contains(&moment.position), "{here}: {} is gone\n{}", moment.position, self.server.log());
        }
        self.look(name).await;
        self.check_moments_of(name, SAMPLE).await;
        self.count("sweep");
    }

    // What happens to machines.

    async fn disaster(&mut self, name: &str) {
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let (id, body) = self.commit(name);
                let (requests, name) = (self.server.requests(), name.to_owned());
                tokio::spawn(async move { (id, send(&requests, &name, &body).await) })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..150))).await;
        let kind = self.random.random_range(0..4);
        // What is only on a disk is lost with it.
        let disk_lost = kind >= 2;
        match kind {
            0 => self.server.kill_engine_if_any(&format!("default/{name}")),
            _ => self.server.kill_node().await,
        }
        for writer in writers {
            let (id, (told, position)) = writer.await.expect("it does not panic");
            let mart = self.marts.get_mut(name).expect("it is in the model");
            match told {
                Told::Durable => {
                    mart.sure.insert(id);
                    mart.durable.extend(position);
                }
                Told::Local | Told::Unknown => drop(mart.maybe.insert(id)),
                Told::Refused => {}
            }
        }
        if !disk_lost {
            // Earlier commits that were answered are on the disk, which is there.
            let answered: Vec<i64> = self.marts[name]
                .moments
                .values()
                .next_back()
                .map_or_else(Vec::new, |last| last.ids.iter().copied().collect());
            let mart = self.marts.get_mut(name).expect("it is in the model");
            mart.sure.extend(answered.into_iter().filter(|id| mart.maybe.contains(id)));
        }
        self.come_back(kind).await;
        self.check_moments(SAMPLE).await;
    }

    async fn come_back(&mut self, kind: u32) {
        match (kind, self.other.take()) {
            (0, other) => {
                self.other = other;
                self.count("engine killed");
            }
            (3, Some(other)) => {
                let mut dead = std::mem::replace(&mut self.server, other);
                self.check_alive().await;
                // It comes back with its disk, and is told.
                dead.start_again().await;
                let refused = dead.query("SELECT 1 FROM log").await;
                assert_ne!(refused.status, StatusCode::OK, "seed {}: deposed, and it answers", self.seed);
                self.other = Some(dead);
                self.count("taken over");
            }
            (1, other) => {
                self.server.start_again().await;
                self.other = other;
                self.count("node killed");
            }
            (_, other) => {
                self.server.wipe_state();
                self.server = self.ground.node(&self.settings).await;
                self.other = other;
                self.count("disk lost");
            }
        }
    }

    async fn check_alive(&self) {
        for name in self.marts.keys() {
            self.read_at_last(name).await;
        }
    }
}

async fn send(requests: &Requests, mart: &str, body: &Value) -> (Told, Option<Position>) {
    let path = format!("/v1/tenants/default/marts/{mart}/query");
    let Ok(answer) = requests.try_send(requests.request(Method::POST, &path).json(body)).await else {
        return (Told::Unknown, None);
    };
    if answer.status == StatusCode::OK {
        let position = answer.position.as_deref().and_then(|text| text.parse().ok()).expect("a commit has a position");
        let told = if answer.durable.as_deref() == Some("object") { Told::Durable } else { Told::Local };
        return (told, Some(position));
    }
    (if answer.body["outcome"] == "none" { Told::Refused } else { Told::Unknown }, None)
}

fn time_us(text: &Value) -> i64 {
    let text = text.as_str().expect("a time");
    chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros()
}

fn rfc3339(time_us: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(time_us).expect("a time");
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
