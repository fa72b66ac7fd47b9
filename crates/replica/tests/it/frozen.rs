//! Bytes that the first version wrote stay readable: `testdata/v1` holds marts with every kind of record and object.
//!
//! `store.zst` is objects one after the other, `[u32 key length][key][u32 length][bytes]`, little endian, zstd over all. `moments.json` says
//! which moments they hold, with the blake3 of database and WAL. `TARN_TEST_FREEZE=1` writes both anew with today's program: only for a
//! new version, into a folder of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use replica::hash::Hash;
use replica::history::At;
use replica::layout::Layout;
use replica::manifest::Manifest;
use replica::names::{Branch, Names, Past, Snapshot};
use replica::record::{MANIFEST_MAGIC, Record};
use replica::ship::Terms;
use replica::{Error, MartReplica, Opened, Position, Stores};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::life::{Mart, advance, step};

const RECORD_MAGIC: &[u8; 8] = b"TARNLOG1";

/// A mart and what it must hold.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Frozen {
    mart: String,
    incarnation: Uuid,
    dropped: bool,
    snapshots: BTreeSet<String>,
    moments: Vec<Moment>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Moment {
    position: Position,
    time_us: i64,
    db: Hash,
    wal: Hash,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1")
}

fn replica(store: &Arc<dyn ObjectStore>, mart: &str, incarnation: Uuid) -> MartReplica {
    let stores = Stores { data: Arc::clone(store), log: Arc::clone(store) };
    MartReplica::new(stores, format!("duckdb/{mart}").into(), incarnation)
}

async fn thaw() -> (Arc<dyn ObjectStore>, Vec<Frozen>) {
    let packed = std::fs::read(folder().join("store.zst")).expect("fixture");
    let mut rest = Bytes::from(zstd::stream::decode_all(packed.as_slice()).expect("fixture"));
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    while rest.has_remaining() {
        let length = rest.get_u32_le() as usize;
        let key = String::from_utf8(rest.split_to(length).to_vec()).expect("fixture");
        let length = rest.get_u32_le() as usize;
        store.put(&Key::parse(&key).expect("a key"), rest.split_to(length).into()).await.expect("puts");
    }
    let frozen = serde_json::from_slice(&std::fs::read(folder().join("moments.json")).expect("fixture"));
    (store, frozen.expect("fixture"))
}

/// What a mart holds, read with today's program.
async fn read(store: &Arc<dyn ObjectStore>, mart: &str, incarnation: Uuid) -> Frozen {
    let replica = replica(store, mart, incarnation);
    let mut frozen =
        Frozen { mart: mart.into(), incarnation, dropped: false, snapshots: BTreeSet::new(), moments: vec![] };
    let looked = match replica.look().await {
        Err(Error::Dropped) => return Frozen { dropped: true, ..frozen },
        looked => looked.expect("looks"),
    };
    frozen.snapshots = looked.names.snapshots.keys().cloned().collect();
    let listed = replica.moments(&looked, 0..i64::MAX, usize::MAX).await.expect("lists");
    let mut pasts: Vec<Past> = looked.names.held().cloned().collect();
    for moment in listed {
        pasts.push(replica.find(&looked, At::Position(moment.position)).await.expect("it is listed"));
    }
    for past in pasts {
        let dir = tempfile::tempdir().expect("a directory");
        replica.copy(&past, dir.path()).await.expect("copies");
        let hash = |name| Hash::of(&std::fs::read(dir.path().join(name)).unwrap_or_default());
        frozen.moments.push(Moment {
            position: past.position,
            time_us: past.time_us,
            db: hash(replica::DB_FILE),
            wal: hash(replica::WAL_FILE),
        });
    }
    frozen
}

async fn all(store: &Arc<dyn ObjectStore>) -> BTreeMap<String, Bytes> {
    let listed: Vec<_> = store.list(None).try_collect().await.expect("lists");
    let mut objects = BTreeMap::new();
    for object in listed {
        let bytes = store.get(&object.location).await.expect("there").bytes().await.expect("reads");
        objects.insert(object.location.to_string(), bytes);
    }
    objects
}

/// The part of a key that says what the object is.
fn folder_of(key: &str) -> &str {
    key.split('/').nth(3).expect("below an incarnation")
}

fn header(record: &Bytes) -> Value {
    let length = u32::from_le_bytes(record[8..12].try_into().expect("four bytes")) as usize;
    serde_json::from_slice(&record[12..12 + length]).expect("JSON")
}

#[tokio::test]
async fn what_the_first_version_wrote_is_read_to_the_byte() {
    if std::env::var_os("TARN_TEST_FREEZE").is_some() {
        freeze().await;
    }
    let (store, frozen) = thaw().await;
    let objects = all(&store).await;
    let folders: BTreeSet<&str> = objects.keys().map(|key| folder_of(key)).collect();
    assert_eq!(folders, BTreeSet::from(["head", "kept", "log", "manifest", "pack", "segment"]));
    let records: Vec<Value> =
        objects.iter().filter(|(key, _)| folder_of(key) == "log").map(|(_, bytes)| header(bytes)).collect();
    let kinds: BTreeSet<&str> = records.iter().filter_map(|record| record["kind"].as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["base", "claim", "commits", "drop", "fence", "names"]));
    let any = |wanted: &dyn Fn(&Value) -> bool| records.iter().any(wanted);
    assert!(any(&|record| record["table_bytes"].as_u64() > Some(0)) && any(&|record| record["table_bytes"] == 0));
    let owner = |record: &Value| record["detour"]["before"][0]["owner"].is_object();
    assert!(any(&|record| record["detour"].is_object() && !owner(record)), "a rollback");
    assert!(any(&owner), "a branch");

    for expected in &frozen {
        let found = read(&store, &expected.mart, expected.incarnation).await;
        assert_eq!(found, *expected);
        assert!(expected.dropped || expected.moments.len() > 1);
        // It is not only read: a writer goes on.
        let root = tempfile::tempdir().expect("a directory");
        let opened = replica(&store, &expected.mart, expected.incarnation).open_writer(root.path(), "today").await;
        match expected.dropped {
            true => assert!(matches!(opened, Err(Error::Dropped))),
            false => opened.expect("opens").shipper.claim().await.expect("writes"),
        }
    }
    assert!(frozen.iter().any(|mart| mart.dropped) && frozen.iter().any(|mart| !mart.snapshots.is_empty()));
}

#[tokio::test]
async fn versions_and_kinds_that_are_not_known_are_refused_by_name() {
    let (store, _) = thaw().await;
    let objects = all(&store).await;
    let of = |folder: &str| objects.iter().find(|(key, _)| folder_of(key) == folder).expect("one of each");
    let (key, record) = of("log");
    for (field, value, named) in
        [("version", Value::from(2), "version 2"), ("kind", "merge".into(), "merge"), ("slot", "x".into(), "header")]
    {
        let mut changed = header(record);
        changed[field] = value;
        let bytes = replica::record::encode(RECORD_MAGIC, &changed, &[]);
        let error = Record::decode(key, &bytes).expect_err("it is not known").to_string();
        assert!(error.contains(named) && error.contains(key.as_str()), "{error}");
    }
    let (key, manifest) = of("manifest");
    let parts: Vec<&str> = key.split('/').collect();
    let home = Layout::new(&format!("duckdb/{}", parts[1]).into(), parts[2].parse().expect("a UUID"));
    Manifest::decode(key, &home, false, manifest).expect("it is one");
    let mut changed = header(manifest);
    changed["version"] = 7.into();
    let error = Manifest::decode(key, &home, false, &replica::record::encode(MANIFEST_MAGIC, &changed, &[]));
    assert!(error.expect_err("it is not known").to_string().contains("version 7"));
    let names = objects.values().find(|bytes| bytes.starts_with(RECORD_MAGIC) && header(bytes)["kind"] == "names");
    let names = names.expect("one");
    let mut json: Value = serde_json::to_value(Names::default()).expect("JSON");
    json["legal_holds"] = Value::from(1);
    let payload = zstd::bulk::compress(&serde_json::to_vec(&json).expect("JSON"), 1).expect("compresses");
    let record =
        Record::decode("names", &replica::record::encode(RECORD_MAGIC, &header(names), &payload)).expect("whole");
    let error = Names::decode(&record).expect_err("a field is not known").to_string();
    assert!(error.contains("legal_holds"), "{error}");
}

// Making them.

async fn freeze() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut marts = vec![("dev", long(&store).await)];
    marts.push(("dev", swept(&store).await));
    let child = Uuid::new_v4();
    branch(&store, marts[0].1, child).await;
    marts.push(("try", child));
    let gone = Mart::on(Arc::clone(&store));
    gone.replica.create("here").await.expect("creates");
    gone.replica.drop_mart().await.expect("drops");
    marts.push(("dev", gone.incarnation));
    let mut bytes = Vec::new();
    for (key, object) in all(&store).await {
        bytes.put_u32_le(u32::try_from(key.len()).expect("short"));
        bytes.put_slice(key.as_bytes());
        bytes.put_u32_le(u32::try_from(object.len()).expect("small"));
        bytes.put_slice(&object);
    }
    let mut frozen = Vec::new();
    for (mart, incarnation) in marts {
        frozen.push(read(&store, mart, incarnation).await);
    }
    std::fs::create_dir_all(folder()).expect("makes");
    std::fs::write(folder().join("store.zst"), zstd::bulk::compress(&bytes, 19).expect("compresses")).expect("writes");
    let json = serde_json::to_vec_pretty(&frozen).expect("JSON");
    std::fs::write(folder().join("moments.json"), json).expect("writes");
}

async fn started(store: &Arc<dyn ObjectStore>) -> (Mart, Opened) {
    let mart = Mart::on(Arc::clone(store));
    mart.replica.create("here").await.expect("creates");
    let mut opened = mart.open().await.expect("opens");
    for name in ["new", "small", "bulk", "mixed", "checkpoint", "small-after-checkpoint"] {
        advance(&mut opened, &step(name)).await.expect("ships");
    }
    (mart, opened)
}

async fn first_commit(mart: &Mart) -> Past {
    let looked = mart.replica.look().await.expect("looks");
    let moments = mart.replica.moments(&looked, 0..i64::MAX, usize::MAX).await.expect("lists");
    mart.replica.find(&looked, At::Position(moments[1].position)).await.expect("found")
}

async fn name(opened: &mut Opened, past: Past) {
    let mut names = opened.shipper.names().clone();
    names.snapshots.insert("monday".into(), Snapshot { past, created_us: 1, automatic: false });
    opened.shipper.set_names(names).await.expect("is named");
}

/// A log with a whole segment, then a rollback, then another writer.
async fn long(store: &Arc<dyn ObjectStore>) -> Uuid {
    let (mart, mut opened) = started(store).await;
    let past = first_commit(&mart).await;
    name(&mut opened, past.clone()).await;
    while store.head(&mart.key("segment/000000000000")).await.is_err() {
        opened.shipper.claim().await.expect("claims");
        // Segments are rolled on the side.
        tokio::task::yield_now().await;
    }
    let prepared = mart.replica.prepare(mart.root.path(), past).await.expect("fetches");
    opened.shipper.go_back(prepared, "here").await.expect("goes back");
    mart.elsewhere().open().await.expect("takes over");
    mart.incarnation
}

/// A log without its beginning, of which a snapshot holds a part.
async fn swept(store: &Arc<dyn ObjectStore>) -> Uuid {
    let (mart, mut opened) = started(store).await;
    let past = first_commit(&mart).await;
    name(&mut opened, past).await;
    advance(&mut opened, &step("bulk-after-checkpoint")).await.expect("ships");
    for turn in 1..=2 {
        let looked = mart.replica.look().await.expect("looks");
        let ledger = mart.replica.ledger(&looked).await.expect("reads");
        let terms = Terms { now_us: looked.newest_us() + turn, keep_us: 0, grace_us: 0 };
        opened.shipper.sweep(ledger, terms, &|| false).await.expect("sweeps");
    }
    mart.incarnation
}

async fn branch(store: &Arc<dyn ObjectStore>, parent: Uuid, child: Uuid) {
    let (parent, child) = (replica(store, "dev", parent), replica(store, "try", child));
    let root = tempfile::tempdir().expect("a directory");
    let mut opened = parent.open_writer(root.path(), "here").await.expect("opens");
    let looked = parent.look().await.expect("looks");
    let past = parent.find(&looked, At::Now).await.expect("found");
    let mut names = opened.shipper.names().clone();
    names.branches.push(Branch { child: child.owner().clone(), created_us: 1, past: past.clone() });
    opened.shipper.set_names(names).await.expect("is named");
    parent.branch(&past, &child, "there").await.expect("branches");
    let root = tempfile::tempdir().expect("a directory");
    let mut opened = child.open_writer(root.path(), "there").await.expect("opens");
    let after = step("small");
    assert_eq!(opened.shipper.durable().iteration, after.iteration);
    opened.shipper.claim().await.expect("claims");
}
