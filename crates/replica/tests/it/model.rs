//! A mart in random order next to a model of it: on stores that fail, with writers that die, take over, and go on though deposed.
//!
//! The driver takes the fixture's files through commits, checkpoints, names, restores, branches, exchanges of files, sweeps, and openings
//! with and without the disk. The model knows of every position which bytes it has. After every few operations all positions that
//! the history lists, and all that is named, are compared byte for byte.
//!
//! `TARN_TEST_MODEL_STEPS` sets the operations of each run (default 50), `TARN_TEST_MODEL_RUNS` the runs on each store (default 2),
//! `TARN_TEST_SEED` repeats one run.

mod driver;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::Rng;
use replica::FileStore;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs on fresh stores, each with a seed of its own.
async fn runs(what: &str, store: impl Fn() -> Arc<dyn ObjectStore>) {
    let first = variable("TARN_TEST_SEED");
    let runs = first.map_or_else(|| variable("TARN_TEST_MODEL_RUNS").unwrap_or(2), |_| 1);
    let steps = variable("TARN_TEST_MODEL_STEPS").unwrap_or(50);
    let mut done = 0;
    for _ in 0..runs {
        let seed = first.unwrap_or_else(|| u64::from(rand::rng().random::<u32>()));
        println!("{what}: TARN_TEST_SEED={seed} TARN_TEST_MODEL_STEPS={steps}");
        done += driver::run(store(), seed, steps).await;
    }
    assert!(done as u64 > runs * steps / 8, "hardly any moment was compared: the test proves nothing");
}

#[tokio::test]
async fn a_mart_in_memory_is_what_the_model_says() {
    runs("memory", || Arc::new(InMemory::new())).await;
}

#[tokio::test]
async fn a_mart_in_a_directory_is_what_the_model_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let number = std::cell::Cell::new(0);
    runs("directory", || {
        number.set(number.get() + 1);
        let own = dir.path().join(number.get().to_string());
        std::fs::create_dir(&own).expect("makes");
        Arc::new(FileStore::open(&own).expect("opens"))
    })
    .await;
}
