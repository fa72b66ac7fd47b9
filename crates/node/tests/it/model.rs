//! Marts that live through everything that may happen to one, in random order, next to a model of what must be there.
//!
//! A seeded driver takes the real binary, on a directory and on a real S3 server, through definitions, writes, bulk loads, checkpoints,
//! snapshots, branches, restores in place, vacuums, sweeps, and the death of engines, nodes, disks and writers. After every phase each
//! mart must hold what was acknowledged and nothing of what was refused, and each moment that its history lists what it held when it was
//! the present.
//!
//! `TARN_TEST_MODEL_STEPS` sets the number of steps on each store (default 30; from 100 on, every moment is read at the end instead of a
//! sample), `TARN_TEST_SEED` repeats a run.

mod content;
mod ground;
mod life;

use rand::Rng;

use ground::Ground;
use life::World;

const STEPS: u64 = 30;
/// From so many steps on nothing is sampled at the end.
const LONG: u64 = 100;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn live_on(ground: Ground, name: &str) {
    let seed = variable("TARN_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let steps = variable("TARN_TEST_MODEL_STEPS").unwrap_or(STEPS);
    println!("{name}: TARN_TEST_SEED={seed} TARN_TEST_MODEL_STEPS={steps}");
    let mut world = World::start(ground, seed).await;
    for step in 0..steps {
        world.step(step).await;
    }
    world.check_moments(if steps >= LONG { usize::MAX } else { 6 }).await;
    println!("{name}: {}", world.summary());
    world.proves_something(steps);
}

#[tokio::test(flavor = "multi_thread")]
async fn marts_on_a_directory_are_what_the_model_says() {
    live_on(Ground::directory(), "directory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marts_on_s3_are_what_the_model_says() {
    live_on(Ground::s3().await, "s3").await;
}
