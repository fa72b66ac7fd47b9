//! Opens a mart whose log has many records, and counts what that asks of the store: `long_log [RECORDS]` (100,000).
//!
//! Prints one line of JSON: requests by kind, and seconds. Every record is read, since nothing was ever folded into a base.

use std::sync::Arc;
use std::time::Instant;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use replica::store::{FaultyStore, Op};
use replica::{Error, MartReplica, Stores};
use uuid::Uuid;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let records: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let incarnation = Uuid::new_v4();
    let of = |store: Arc<dyn ObjectStore>| {
        MartReplica::new(Stores { data: store.clone(), log: store }, "duckdb/long".into(), incarnation)
    };
    let replica = of(store.clone());
    replica.create("here").await?;
    let root = std::env::temp_dir().join(format!("tarn-long-log-{}", Uuid::new_v4().simple()));
    let mut opened = replica.open_writer(&root.join("a"), "here").await?;
    for _ in 0..records {
        opened.shipper.claim().await?;
    }
    let calls = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = calls.clone();
    let counting = FaultyStore::new(store, move |call| {
        seen.lock().expect("nobody panics").push(call.op);
        None
    });
    let started = Instant::now();
    of(Arc::new(counting)).open_writer(&root.join("b"), "there").await?;
    let seconds = started.elapsed().as_secs_f64();
    let calls = calls.lock().expect("nobody panics");
    let of_kind = |op: Op| calls.iter().filter(|call| **call == op).count();
    println!(
        "{{\"records\":{records},\"lists\":{},\"gets\":{},\"heads\":{},\"puts\":{},\"seconds\":{seconds:.3}}}",
        of_kind(Op::List),
        of_kind(Op::Get),
        of_kind(Op::Head),
        of_kind(Op::Put)
    );
    // What is left in the temporary directory is small and nobody's.
    let _ = std::fs::remove_dir_all(root);
    Ok(())
}
