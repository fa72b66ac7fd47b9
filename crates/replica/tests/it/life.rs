//! The one owner of the fixture: steps of a mart's life, and a mart that is taken through them as an engine would.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use replica::image::Image;
use replica::{CommitPoint, MartReplica, Opened, Position, Result, Stores};
use serde::Deserialize;
use uuid::Uuid;

/// A moment of the fixture's life.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    pub name: String,
    pub iteration: u64,
    /// Ends of the commits of this step.
    pub ends: Vec<u64>,
    pub checkpoint: bool,
    pub total_blocks: u64,
    pub free_blocks: u64,
}

impl Step {
    pub fn db(&self) -> Vec<u8> {
        bytes(&format!("{}.db", self.name)).expect("every step has a database")
    }

    pub fn wal(&self) -> Option<Vec<u8>> {
        bytes(&format!("{}.wal", self.name))
    }

    /// The last commit, as an engine reports it.
    pub fn point(&self) -> CommitPoint {
        CommitPoint { iteration: self.iteration, wal_end: self.wal().map_or(0, |wal| wal.len() as u64), time_us: 1_000 }
    }

    pub fn points(&self) -> Vec<CommitPoint> {
        self.ends
            .iter()
            .map(|end| CommitPoint { iteration: self.iteration, wal_end: *end, time_us: *end as i64 })
            .collect()
    }

    /// Writes the files as DuckDB had left them.
    pub fn write(&self, dir: &Path) {
        write_pair(dir, &self.db(), self.wal().as_deref());
    }
}

pub fn write_pair(dir: &Path, db: &[u8], wal: Option<&[u8]>) {
    std::fs::write(dir.join("mart.db"), db).expect("writes");
    match wal {
        Some(wal) => std::fs::write(dir.join("mart.db.wal"), wal).expect("writes"),
        None => drop(std::fs::remove_file(dir.join("mart.db.wal"))),
    }
}

pub fn steps() -> Vec<Step> {
    serde_json::from_slice(&std::fs::read(folder().join("life.json")).expect("fixture")).expect("fixture")
}

pub fn step(name: &str) -> Step {
    steps().into_iter().find(|step| step.name == name).expect("a step of the fixture")
}

/// A fixture file, unpacked; `None` if there is no such file.
pub fn bytes(name: &str) -> Option<Vec<u8>> {
    let packed = std::fs::read(folder().join(format!("{name}.zst"))).ok()?;
    Some(zstd::stream::decode_all(packed.as_slice()).expect("fixture"))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/life")
}

/// A mart on some store, with a directory of its own on "this machine".
pub struct Mart {
    pub replica: MartReplica,
    pub root: tempfile::TempDir,
    pub store: Arc<dyn ObjectStore>,
    pub incarnation: Uuid,
}

impl Mart {
    pub async fn create() -> Self {
        let mart = Self::on(Arc::new(InMemory::new()));
        mart.replica.create("here").await.expect("creates");
        mart
    }

    pub fn on(store: Arc<dyn ObjectStore>) -> Self {
        Self::of(store, Uuid::new_v4())
    }

    fn of(store: Arc<dyn ObjectStore>, incarnation: Uuid) -> Self {
        let stores = Stores { data: Arc::clone(&store), log: Arc::clone(&store) };
        let replica = MartReplica::new(stores, "duckdb/dev".into(), incarnation);
        Self { replica, root: tempfile::tempdir().expect("a directory"), store, incarnation }
    }

    /// The same mart seen from a machine with an empty disk.
    pub fn elsewhere(&self) -> Self {
        Self::of(Arc::clone(&self.store), self.incarnation)
    }

    /// The same mart and disk, but through another store (a faulty one).
    pub fn through(&self, store: Arc<dyn ObjectStore>) -> Self {
        Self::of(store, self.incarnation)
    }

    pub async fn open(&self) -> Result<Opened> {
        self.replica.open_writer(self.root.path(), "here").await
    }

    pub fn key(&self, name: &str) -> object_store::path::Path {
        object_store::path::Path::parse(format!("duckdb/dev/{}/{name}", self.incarnation)).expect("a key")
    }
}

/// Takes an opened mart through one step, as the node does.
pub async fn advance(opened: &mut Opened, step: &Step) -> Result<Position> {
    if step.checkpoint {
        opened.shipper.begin_checkpoint().await?;
        step.write(&opened.dir);
        return opened.shipper.ship_base(step.iteration).await;
    }
    step.write(&opened.dir);
    if opened.shipper.needs_base() {
        opened.shipper.ship_base(step.iteration).await?;
    }
    opened.shipper.ship(&step.points()).await
}

/// A new mart, opened and taken through all steps up to and including `name`.
pub async fn lived_until(name: &str) -> (Mart, Opened) {
    let mart = Mart::create().await;
    let mut opened = mart.open().await.expect("opens");
    for step in steps() {
        advance(&mut opened, &step).await.expect("ships");
        if step.name == name {
            return (mart, opened);
        }
    }
    panic!("no step {name}");
}

/// Restores on an empty disk and proves that nothing of `step` is missing.
pub async fn assert_restores(mart: &Mart, step: &Step) {
    let elsewhere = mart.elsewhere();
    let opened = elsewhere.open().await.expect("restores");
    assert_files(&opened.dir, step);
    assert_eq!(opened.shipper.durable().iteration, step.iteration);
    assert_eq!(opened.shipper.durable().wal_bytes, step.point().wal_end);
}

/// The WAL is byte for byte the step's, and so is every block that a checkpoint or a commit of the step can refer to.
pub fn assert_files(dir: &Path, step: &Step) {
    let wal = std::fs::read(dir.join("mart.db.wal")).ok();
    assert_eq!(wal.as_ref().map(Vec::len), step.wal().as_ref().map(Vec::len), "{}", step.name);
    assert!(wal == step.wal(), "WAL of {} differs", step.name);
    let (expected, found) = (step.db(), std::fs::read(dir.join("mart.db")).expect("restored"));
    assert!(found[..12288] == expected[..12288], "header of {} differs", step.name);
    let base = base_of(step);
    let copy = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(copy.path(), &base).expect("writes");
    let image = Image::read(copy.as_file()).expect("parses");
    for (block, content) in expected[12288..].chunks(262_144).enumerate() {
        let at = 12288 + block * 262_144;
        let changed_since_base = base.get(at..at + 262_144) != Some(content);
        // After a bulk commit any block may be meant, also one that was free and got the same content again.
        if image.is_live(block as u64) || changed_since_base || step.name.starts_with("bulk") {
            assert!(found.get(at..at + 262_144) == Some(content), "block {block} of {} differs", step.name);
        }
    }
}

/// The database as it was at the step's checkpoint.
fn base_of(step: &Step) -> Vec<u8> {
    steps().iter().find(|base| base.iteration == step.iteration).expect("a base").db()
}
