//! Verification names what is damaged and nothing else; repair puts back what a store remembers and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use replica::history::At;
use replica::names::{Branch, Past, Snapshot};
use replica::ship::Terms;
use replica::store::{Fault, FaultyStore, Op};
use replica::verify::{Report, Scope, Version, Versions, What};
use replica::{Adopt, Error, How, MartReplica, Opened, Position, Stores};
use uuid::Uuid;

use crate::life::{Mart, advance, assert_files, assert_restores, step, steps};

type Objects = BTreeMap<Key, Bytes>;

/// What a store would remember: by key, newest first.
#[derive(Debug, Default)]
struct Memory(BTreeMap<Key, Vec<Bytes>>);

impl Memory {
    fn of(objects: &Objects) -> Self {
        Self(objects.iter().map(|(key, bytes)| (key.clone(), vec![bytes.clone()])).collect())
    }
}

#[async_trait]
impl Versions for Memory {
    async fn list(&self, prefix: &str) -> object_store::Result<Vec<Version>> {
        let below = self.0.iter().filter(|(key, _)| key.as_ref().starts_with(prefix));
        let versions = below.flat_map(|(key, all)| {
            let gone = Version { key: key.clone(), id: "gone".into(), deleted: true };
            let states = (0..all.len()).map(|id| Version { key: key.clone(), id: id.to_string(), deleted: false });
            std::iter::once(gone).chain(states)
        });
        Ok(versions.collect())
    }

    async fn get(&self, key: &Key, id: &str) -> object_store::Result<Bytes> {
        let index: usize = id.parse().expect("no one asks for a delete marker");
        Ok(self.0[key][index].clone())
    }
}

async fn objects(store: &dyn ObjectStore) -> Objects {
    let listed: Vec<_> = store.list(None).try_collect().await.expect("lists");
    let mut objects = Objects::new();
    for object in listed {
        let bytes = store.get(&object.location).await.expect("there").bytes().await.expect("reads");
        objects.insert(object.location, bytes);
    }
    objects
}

/// A mart with a past of every kind: commits, bases, a name, a way back, and a life after it.
async fn lived() -> (Mart, Opened) {
    let mart = Mart::create().await;
    let mut opened = mart.open().await.expect("opens");
    let mut ended = BTreeMap::new();
    for step in steps() {
        ended.insert(step.name.clone(), advance(&mut opened, &step).await.expect("ships"));
        if step.name == "mixed" {
            name(&mart, &mut opened, "mixed").await;
        }
    }
    let past = find(&mart.replica, At::Position(ended["mixed"])).await;
    let prepared = mart.replica.prepare(mart.root.path(), past).await.expect("fetches");
    opened.shipper.go_back(prepared, "here").await.expect("goes back");
    opened.dir = opened.shipper.dir().to_owned();
    assert_eq!(opened.shipper.adopt(step("mixed").point()).await.expect("adopts"), Adopt::Match);
    (mart, opened)
}

async fn find(replica: &MartReplica, at: At) -> Past {
    let looked = replica.look().await.expect("looks");
    replica.find(&looked, at).await.expect("found")
}

async fn name(mart: &Mart, opened: &mut Opened, name: &str) {
    let past = find(&mart.replica, At::Now).await;
    let mut names = opened.shipper.names().clone();
    names.snapshots.insert(name.into(), Snapshot { past, created_us: 0, automatic: false });
    opened.shipper.set_names(names).await.expect("is named");
}

async fn verify(mart: &Mart, versions: Option<&dyn Versions>) -> Report {
    mart.replica.verify(Scope::Window, versions).await.expect("the store answers")
}

fn keys(report: &Report) -> BTreeSet<Key> {
    report.problems.iter().map(|problem| Key::from(problem.key.as_str())).collect()
}

fn is_hint(key: &Key) -> bool {
    key.as_ref().ends_with("/head")
}

/// Ways to lose an object; none if there is nothing left of it.
fn damages(whole: &Bytes) -> Vec<Option<Bytes>> {
    let mut flipped = whole.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let cut = whole.slice(..whole.len() - 1);
    vec![None, Some(Bytes::from_static(b"garbage")), Some(flipped.into()), Some(cut), Some(Bytes::new())]
}

async fn damage(store: &dyn ObjectStore, key: &Key, left: Option<Bytes>) {
    match left {
        Some(bytes) => drop(store.put(key, bytes.into()).await.expect("puts")),
        None => store.delete(key).await.expect("deletes"),
    }
}

#[tokio::test]
async fn a_whole_mart_has_no_problem_and_every_object_is_looked_at() {
    let (mart, _opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let report = verify(&mart, None).await;
    assert_eq!(report.problems, []);
    assert_eq!(report.objects, all.keys().filter(|key| !is_hint(key)).count() as u64);
    assert_eq!(report.position, Some(find(&mart.replica, At::Now).await.position));
    let head = mart.replica.verify(Scope::Head, None).await.expect("answers");
    assert_eq!(head.problems, []);
    assert!(head.objects < report.objects && head.bytes < report.bytes, "{head:?} {report:?}");
}

#[tokio::test]
async fn whatever_happens_to_one_object_is_named_and_put_back() {
    let (mart, _opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let memory = Memory::of(&all);
    for (key, whole) in all.iter().filter(|(key, _)| !is_hint(key)) {
        for (way, left) in damages(whole).into_iter().enumerate() {
            let what = if left.is_none() { What::Missing } else { What::Corrupt };
            damage(mart.store.as_ref(), key, left).await;
            let report = verify(&mart, Some(&memory)).await;
            assert_eq!(keys(&report), [key.clone()].into(), "damage {way}: {report:?}");
            assert_eq!(report.problems[0].what, what, "damage {way} to {key}");
            let outcome = mart.replica.repair(Scope::Window, &memory).await.expect("repairs");
            assert_eq!(outcome.report.problems, [], "damage {way} to {key}");
            assert_eq!(outcome.repaired.len(), 1, "damage {way} to {key}: {outcome:?}");
            assert!(objects(mart.store.as_ref()).await == all, "{key} is another after damage {way}");
        }
    }
}

#[tokio::test]
async fn of_everything_half_is_deleted_and_half_overwritten_and_all_comes_back() {
    let (mart, _opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let memory = Memory::of(&all);
    for parity in 0..2 {
        for (index, (key, _)) in all.iter().enumerate() {
            let left = (index % 2 == parity).then(|| Bytes::from_static(b"garbage"));
            damage(mart.store.as_ref(), key, left).await;
        }
        // Everything is named at once, read from older versions as far as that takes.
        let needed: BTreeSet<_> = all.keys().filter(|key| !is_hint(key)).cloned().collect();
        assert_eq!(keys(&verify(&mart, Some(&memory)).await), needed);
        let outcome = mart.replica.repair(Scope::Window, &memory).await.expect("repairs");
        assert_eq!(outcome.report.problems, []);
        let mut now = objects(mart.store.as_ref()).await;
        let hint = mart.key("head");
        // The hint may be missing or garbage: nothing needs it.
        now.insert(hint.clone(), all[&hint].clone());
        assert!(now == all);
    }
    assert_restores(&mart, &step("mixed")).await;
}

#[tokio::test]
async fn lost_newest_records_are_seen_by_older_versions_and_by_the_hint() {
    let (mart, mut opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let last = all.keys().filter(|key| key.as_ref().contains("/log/")).count() as u64;
    for lost in 1..last {
        for slot in last - lost + 1..=last {
            damage(mart.store.as_ref(), &mart.key(&format!("log/{slot:020}")), None).await;
        }
        let report = verify(&mart, Some(&Memory::of(&all))).await;
        let expected: BTreeSet<_> = (last - lost + 1..=last).map(|slot| mart.key(&format!("log/{slot:020}"))).collect();
        assert!(keys(&report).is_superset(&expected), "{lost} lost: {report:?}");
        let outcome = mart.replica.repair(Scope::Window, &Memory::of(&all)).await.expect("repairs");
        assert_eq!((outcome.report.problems.len(), outcome.repaired.len() as u64), (0, lost), "{outcome:?}");
        assert!(objects(mart.store.as_ref()).await == all, "{lost} lost");
    }
    // Without older versions the hint may know.
    let slot = last + 1;
    name(&mart, &mut opened, "later").await;
    mart.store.put(&mart.key("head"), format!("{{\"slot\":{slot},\"base_slot\":2}}").into()).await.expect("puts");
    assert_eq!(verify(&mart, None).await.problems, []);
    let key = mart.key(&format!("log/{slot:020}"));
    damage(mart.store.as_ref(), &key, None).await;
    assert_eq!(keys(&verify(&mart, None).await), [key].into());
}

/// A store with a writer that wins the next slot whenever its versions are listed.
#[derive(Debug)]
struct Busy {
    store: Arc<dyn ObjectStore>,
    writer: tokio::sync::Mutex<Opened>,
}

#[async_trait]
impl Versions for Busy {
    async fn list(&self, prefix: &str) -> object_store::Result<Vec<Version>> {
        let mut writer = self.writer.lock().await;
        let names = writer.shipper.names().clone();
        writer.shipper.set_names(names).await.expect("wins");
        let all = objects(self.store.as_ref()).await;
        Memory::of(&all).list(prefix).await
    }

    async fn get(&self, key: &Key, _: &str) -> object_store::Result<Bytes> {
        self.store.get(key).await?.bytes().await
    }
}

#[tokio::test]
async fn a_slot_that_is_won_meanwhile_is_not_taken_for_lost() {
    let (mart, opened) = lived().await;
    let busy = Busy { store: mart.store.clone(), writer: tokio::sync::Mutex::new(opened) };
    assert_eq!(verify(&mart, Some(&busy)).await.problems, []);
    let outcome = mart.replica.repair(Scope::Window, &busy).await.expect("answers");
    assert!(outcome.repaired.is_empty() && outcome.report.problems.is_empty(), "{outcome:?}");
}

#[tokio::test]
async fn a_repair_writes_nothing_that_does_not_pass() {
    let (mart, _opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let mut wrong = Memory::default();
    for (key, whole) in &all {
        // Bytes of a neighbour, and every kind of damage.
        let other = all.iter().find(|(other, bytes)| *other > key && *bytes != whole).map(|(_, bytes)| bytes.clone());
        wrong.0.insert(key.clone(), damages(whole).into_iter().flatten().chain(other).collect());
    }
    for key in all.keys().filter(|key| !is_hint(key)) {
        damage(mart.store.as_ref(), key, None).await;
        let before = objects(mart.store.as_ref()).await;
        let outcome = mart.replica.repair(Scope::Window, &wrong).await.expect("answers");
        assert!(outcome.repaired.is_empty(), "{outcome:?}");
        assert!(objects(mart.store.as_ref()).await == before, "something was written for {key}");
        damage(mart.store.as_ref(), key, Some(all[key].clone())).await;
        // With the right bytes among them, these are found.
        wrong.0.get_mut(key).expect("all are there").push(all[key].clone());
        damage(mart.store.as_ref(), key, None).await;
        let outcome = mart.replica.repair(Scope::Window, &wrong).await.expect("answers");
        assert_eq!((outcome.repaired.len(), outcome.report.problems.len()), (1, 0), "{key}: {outcome:?}");
        wrong.0.get_mut(key).expect("all are there").pop();
    }
}

#[tokio::test]
async fn a_slot_that_a_writer_won_after_the_loss_stays_its_own() {
    let (mart, opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let last = all.keys().filter(|key| key.as_ref().contains("/log/")).count() as u64;
    let key = mart.key(&format!("log/{last:020}"));
    damage(mart.store.as_ref(), &key, None).await;
    drop(opened);
    // Nobody noticed, and another machine goes on from what is there.
    let elsewhere = mart.elsewhere();
    let _taken = elsewhere.open().await.expect("restores");
    let after = objects(mart.store.as_ref()).await;
    let outcome = mart.replica.repair(Scope::Window, &Memory::of(&all)).await.expect("answers");
    assert!(outcome.repaired.is_empty() && outcome.report.problems.is_empty(), "{outcome:?}");
    assert!(objects(mart.store.as_ref()).await == after);
}

/// Versions of a store in which somebody else opens the mart while they are read.
#[derive(Debug)]
struct Taken {
    memory: Memory,
    rival: tokio::sync::Mutex<Option<(MartReplica, tempfile::TempDir)>>,
}

#[async_trait]
impl Versions for Taken {
    async fn list(&self, prefix: &str) -> object_store::Result<Vec<Version>> {
        self.memory.list(prefix).await
    }

    async fn get(&self, key: &Key, id: &str) -> object_store::Result<Bytes> {
        if let Some((rival, root)) = self.rival.lock().await.take() {
            rival.open_writer(root.path(), "there").await.expect("restores");
        }
        self.memory.get(key, id).await
    }
}

#[tokio::test]
async fn a_slot_that_a_writer_wins_during_the_repair_stays_its_own() {
    let (mart, opened) = lived().await;
    drop(opened);
    let all = objects(mart.store.as_ref()).await;
    let last = all.keys().filter(|key| key.as_ref().contains("/log/")).count() as u64;
    let key = mart.key(&format!("log/{last:020}"));
    damage(mart.store.as_ref(), &key, None).await;
    let rival = (mart.replica.clone(), tempfile::tempdir().expect("a directory"));
    let taken = Taken { memory: Memory::of(&all), rival: tokio::sync::Mutex::new(Some(rival)) };
    let outcome = mart.replica.repair(Scope::Window, &taken).await.expect("answers");
    assert!(outcome.repaired.is_empty() && outcome.report.problems.is_empty(), "{outcome:?}");
    assert!(objects(mart.store.as_ref()).await[&key] != all[&key], "the writer's record is there");
}

#[tokio::test]
async fn of_two_records_of_a_slot_the_one_that_was_built_on_is_put_back() {
    let (mart, _opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let key = mart.key("log/00000000000000000001");
    let mut memory = Memory::of(&all);
    memory.0.get_mut(&key).expect("there").insert(0, rivals_first(&mart).await);
    damage(mart.store.as_ref(), &key, None).await;
    let outcome = mart.replica.repair(Scope::Window, &memory).await.expect("repairs");
    assert_eq!((outcome.repaired.len(), outcome.report.problems.len()), (1, 0), "{outcome:?}");
    assert!(objects(mart.store.as_ref()).await == all);
}

/// The first record of another history of the same mart.
async fn rivals_first(mart: &Mart) -> Bytes {
    let store = Arc::new(object_store::memory::InMemory::new());
    let stores = Stores { data: store.clone(), log: store.clone() };
    let rival = MartReplica::new(stores, "duckdb/dev".into(), mart.incarnation);
    rival.create("there").await.expect("creates");
    let key = mart.key("log/00000000000000000001");
    store.get(&key).await.expect("there").bytes().await.expect("reads")
}

#[tokio::test]
async fn a_whole_record_in_place_of_another_is_named_and_left_to_a_person() {
    let (mart, _opened) = lived().await;
    let all = objects(mart.store.as_ref()).await;
    let key = mart.key("log/00000000000000000001");
    let theirs = rivals_first(&mart).await;
    damage(mart.store.as_ref(), &key, Some(theirs.clone())).await;
    let outcome = mart.replica.repair(Scope::Window, &Memory::of(&all)).await.expect("answers");
    assert_eq!(keys(&outcome.report), [key.clone()].into(), "{outcome:?}");
    assert!(outcome.repaired.is_empty());
    assert_eq!(objects(mart.store.as_ref()).await[&key], theirs);
}

#[tokio::test]
async fn a_hole_before_the_end_is_not_taken_for_the_end() {
    let (mart, opened) = lived().await;
    drop(opened);
    let all = objects(mart.store.as_ref()).await;
    let last = all.keys().filter(|key| key.as_ref().contains("/log/")).count() as u64;
    let mut refused = 0;
    // A hint that leads just before the hole, or further before it.
    for (hint, hole) in (2..last).flat_map(|hole| [(hole - 1, hole), (hole / 2, hole)]) {
        let hole = mart.key(&format!("log/{hole:020}"));
        let store = Arc::new(object_store::memory::InMemory::new());
        for (key, bytes) in all.iter().filter(|(key, _)| **key != hole) {
            store.put(key, bytes.clone().into()).await.expect("puts");
        }
        let hinted = format!("{{\"slot\":{hint},\"base_slot\":2}}");
        store.put(&mart.key("head"), hinted.into()).await.expect("puts");
        let before = objects(store.as_ref()).await;
        let through = mart.through(store.clone());
        // On the disk that has the files, too.
        match through.replica.open_writer(mart.root.path(), "here").await {
            Err(Error::Corrupt { .. }) => assert!(objects(store.as_ref()).await == before, "nobody goes on in a hole"),
            Err(other) => panic!("{other}"),
            Ok(opened) => assert_eq!(opened.how, How::Reused),
        }
        match through.open().await {
            Err(Error::Corrupt { .. }) => {
                refused += 1;
                assert!(objects(store.as_ref()).await == before, "nobody fences into a hole");
            }
            Err(other) => panic!("{other}"),
            // What it builds on is whole, and it is at the log's real end.
            Ok(opened) => assert_files(&opened.dir, &step("mixed")),
        }
    }
    assert!(refused >= last - 2, "{refused}");
}

#[tokio::test]
async fn what_a_sweep_kept_is_looked_at_and_what_it_let_go_is_not_missed() {
    let (mart, mut opened) = lived().await;
    let looked = mart.replica.look().await.expect("looks");
    let ledger = mart.replica.ledger(&looked).await.expect("reads");
    let now_us = i64::MAX / 2;
    let terms = Terms { now_us, keep_us: 0, grace_us: 1 };
    opened.shipper.sweep(ledger.clone(), terms, &|| false).await.expect("sweeps");
    // While both are there, a copy's loss is seen.
    let all = objects(mart.store.as_ref()).await;
    let copies: Vec<_> = all.keys().filter(|key| key.as_ref().contains("/kept/")).cloned().collect();
    assert!(!copies.is_empty(), "the name holds records");
    assert_eq!(verify(&mart, None).await.problems, []);
    for key in &copies {
        damage(mart.store.as_ref(), key, None).await;
        assert_eq!(keys(&verify(&mart, None).await), [key.clone()].into());
        let outcome = mart.replica.repair(Scope::Window, &Memory::of(&all)).await.expect("repairs");
        assert_eq!(outcome.report.problems, []);
    }
    opened
        .shipper
        .sweep(ledger, Terms { now_us: now_us + 2, keep_us: 2, grace_us: 1 }, &|| false)
        .await
        .expect("sweeps");
    let swept = objects(mart.store.as_ref()).await;
    assert!(swept.len() < all.len(), "something was deleted");
    // Older versions still know what was swept; it is not needed.
    let outcome = mart.replica.repair(Scope::Window, &Memory::of(&all)).await.expect("answers");
    assert!(outcome.repaired.is_empty() && outcome.report.problems.is_empty(), "{outcome:?}");
    let doomed: Vec<_> = opened.shipper.names().doomed.iter().flat_map(|doomed| &doomed.objects).collect();
    // Fences stay where they were, whether anything builds on them or not; what is doomed is not needed any more.
    let first_fences = [mart.key("log/00000000000000000001"), mart.key("log/00000000000000000002")];
    let needed = |key: &Key| {
        !is_hint(key) && !first_fences.contains(key) && !doomed.iter().any(|name| key.as_ref().ends_with(name.as_str()))
    };
    for (key, whole) in swept.iter().filter(|(key, _)| needed(key)) {
        damage(mart.store.as_ref(), key, Some(whole.slice(..whole.len() / 2))).await;
        assert_eq!(keys(&verify(&mart, None).await), [key.clone()].into());
        damage(mart.store.as_ref(), key, Some(whole.clone())).await;
    }
}

#[tokio::test]
async fn a_branch_looks_at_what_it_shares_with_its_parent() {
    let (mart, mut opened) = lived().await;
    let past = find(&mart.replica, At::Now).await;
    let stores = Stores { data: mart.store.clone(), log: mart.store.clone() };
    let child = MartReplica::new(stores, "duckdb/try".into(), Uuid::new_v4());
    let mut names = opened.shipper.names().clone();
    names.branches.push(Branch { child: child.owner().clone(), created_us: 0, past: past.clone() });
    opened.shipper.set_names(names).await.expect("is noted");
    mart.replica.branch(&past, &child, "there").await.expect("branches");
    let all = objects(mart.store.as_ref()).await;
    let memory = Memory::of(&all);
    for scope in [Scope::Head, Scope::Window] {
        let whole = child.verify(scope, None).await.expect("answers");
        assert_eq!(whole.problems, []);
        assert!(whole.objects > 3, "{whole:?}");
    }
    let parents: Vec<_> = all.keys().filter(|key| key.as_ref().contains("/dev/")).collect();
    let mut shared = 0;
    for key in parents {
        damage(mart.store.as_ref(), key, None).await;
        let report = child.verify(Scope::Window, None).await.expect("answers");
        if !report.problems.is_empty() {
            shared += 1;
            assert_eq!(keys(&report), [key.clone()].into());
            let outcome = child.repair(Scope::Head, &memory).await.expect("repairs");
            assert_eq!((outcome.report.problems.len(), outcome.repaired.len()), (0, 1), "{outcome:?}");
        }
        damage(mart.store.as_ref(), key, Some(all[key].clone())).await;
    }
    assert!(shared > 2, "{shared}");
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_an_error_and_not_a_problem() {
    let (mart, _opened) = lived().await;
    for op in [Op::Get, Op::List] {
        let away = FaultyStore::new(mart.store.clone(), move |call| (call.op == op).then_some(Fault::Unavailable));
        let through = mart.through(Arc::new(away));
        for scope in [Scope::Head, Scope::Window] {
            let error = through.replica.verify(scope, None).await.expect_err("the store is away");
            assert!(error.is_transient(), "{op:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_mart_that_was_never_there_or_was_dropped_is_not_verified() {
    let nobody = Mart::on(Arc::new(object_store::memory::InMemory::new()));
    assert!(matches!(nobody.replica.verify(Scope::Head, None).await, Err(Error::NotFound(_))));
    let mart = Mart::create().await;
    assert_eq!(mart.replica.verify(Scope::Window, None).await.expect("answers").position, None::<Position>);
    mart.replica.drop_mart().await.expect("drops");
    assert!(matches!(mart.replica.verify(Scope::Head, None).await, Err(Error::Dropped)));
}
