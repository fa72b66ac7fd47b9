//! Faults of the store, one at every call of a whole life: nothing durable is lost, nothing half there is believed.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use replica::store::{Fault, FaultyStore, Op};
use replica::{Error, Opened, Result};

use crate::life::{Mart, Step, advance, assert_files, assert_restores, lived_until, step, steps};

/// Takes a mart through a life on a store that fails once; repeats calls that were `Unavailable`, as the node does.
async fn live(store: FaultyStore) -> Result<Mart> {
    let mart = Mart::on(Arc::new(store));
    while let Err(error) = mart.replica.create("here").await {
        retry(error)?;
    }
    let mut opened = loop {
        match mart.open().await {
            Ok(opened) => break opened,
            Err(error) => retry(error)?,
        }
    };
    for step in short_life() {
        while let Err(error) = advance_again(&mut opened, &step).await {
            retry(error)?;
        }
    }
    Ok(mart)
}

fn short_life() -> Vec<Step> {
    steps().into_iter().take_while(|step| step.name != "checkpoint-2").collect()
}

/// Like `advance`, but fit to be called again for the same step.
async fn advance_again(opened: &mut Opened, step: &Step) -> Result<()> {
    if step.checkpoint && opened.shipper.durable().iteration < step.iteration {
        let checkpointed = std::fs::read(opened.dir.join("mart.db")).is_ok_and(|db| db == step.db());
        if !checkpointed {
            opened.shipper.begin_checkpoint().await?;
            step.write(&opened.dir);
        }
        opened.shipper.ship_base(step.iteration).await?;
        return Ok(());
    }
    advance(opened, step).await.map(|_| ())
}

fn retry(error: Error) -> Result<()> {
    if error.is_transient() { Ok(()) } else { Err(error) }
}

async fn calls_of_a_life() -> usize {
    let store = FaultyStore::new(Arc::new(InMemory::new()), |_| None);
    live(store.clone()).await.expect("no faults");
    store.calls().len()
}

async fn survives(fault: Fault) {
    let last = short_life().pop().expect("has steps");
    for at in 0..calls_of_a_life().await {
        let store = FaultyStore::new(Arc::new(InMemory::new()), move |call| (call.index == at).then_some(fault));
        let mart = live(store).await.unwrap_or_else(|error| panic!("{fault:?} at call {at}: {error}"));
        assert_restores(&mart, &last).await;
    }
}

#[tokio::test]
async fn a_lost_acknowledgement_at_any_call_loses_and_doubles_nothing() {
    survives(Fault::LostAck).await;
}

#[tokio::test]
async fn a_503_at_any_call_loses_nothing() {
    survives(Fault::Unavailable).await;
}

#[tokio::test]
async fn a_412_or_409_that_was_a_lie_loses_nothing() {
    let last = short_life().pop().expect("has steps");
    for at in 0..calls_of_a_life().await {
        // Only log creates are conditional; elsewhere no store answers so.
        let store = FaultyStore::new(Arc::new(InMemory::new()), move |call| {
            let create = call.op == Op::Put && call.key.as_ref().contains("/log/");
            (call.index == at && create).then_some(if at % 2 == 0 { Fault::Refused } else { Fault::Conflict })
        });
        let mart = live(store).await.unwrap_or_else(|error| panic!("at call {at}: {error}"));
        assert_restores(&mart, &last).await;
    }
}

#[tokio::test]
async fn a_torn_upload_is_uploaded_again() {
    let last = short_life().pop().expect("has steps");
    for at in 0..calls_of_a_life().await {
        let store = FaultyStore::new(Arc::new(InMemory::new()), move |call| {
            let upload = call.op == Op::Put && !call.key.as_ref().contains("/log/");
            (call.index == at && upload).then_some(Fault::Torn)
        });
        let mart = live(store).await.unwrap_or_else(|error| panic!("at call {at}: {error}"));
        assert_restores(&mart, &last).await;
    }
}

#[tokio::test]
async fn a_torn_log_record_is_corrupt_and_never_believed() {
    let (mart, opened) = lived_until("small").await;
    drop(opened);
    let faulty = FaultyStore::new(Arc::clone(&mart.store), |call| {
        (call.op == Op::Put && call.key.as_ref().contains("/log/")).then_some(Fault::Torn)
    });
    let through = mart.through(Arc::new(faulty));
    assert!(matches!(through.open().await, Err(Error::Corrupt { object, .. }) if object.contains("/log/")));
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_durable_and_afterwards_everything_is() {
    let store = FaultyStore::new(Arc::new(InMemory::new()), |_| None);
    let mart = Mart::on(Arc::new(store.clone()));
    mart.replica.create("here").await.expect("creates");
    let mut opened = mart.open().await.expect("opens");
    advance(&mut opened, &step("new")).await.expect("ships");
    let before = opened.shipper.durable();
    // Applied, but every answer is lost, and reading back fails too: the outcome stays unknown.
    store.set_rule(|call| Some(if call.op == Op::Put { Fault::LostAck } else { Fault::Unavailable }));
    let error = advance(&mut opened, &step("small")).await.expect_err("unknown");
    assert!(error.is_transient());
    assert_eq!(opened.shipper.durable(), before);
    store.set_rule(|_| None);
    // What landed unheard is found to be ours, and is not written twice.
    advance(&mut opened, &step("bulk")).await.expect("ships");
    assert_restores(&mart, &step("bulk")).await;
}

#[tokio::test]
async fn a_dropped_call_is_finished_by_the_next() {
    let (mart, mut opened) = lived_until("new").await;
    drop(opened);
    let store = FaultyStore::new(Arc::clone(&mart.store), |_| None);
    let here = mart.through(Arc::new(store.clone()));
    opened = here.open().await.expect("opens");
    let small = step("small");
    small.write(&opened.dir);
    store.set_rule(|call| Some(if call.op == Op::Put { Fault::LostAck } else { Fault::Unavailable }));
    let (points, before) = (small.points(), store.calls().len());
    let mut ship = Box::pin(opened.shipper.ship(&points));
    // Poll until the record is on its way, then give up.
    while !store.calls()[before..].iter().any(|call| call.op == Op::Put && call.key.as_ref().contains("/log/")) {
        assert!(futures::poll!(ship.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    drop(ship);
    store.set_rule(|_| None);
    advance(&mut opened, &step("bulk")).await.expect("ships");
    assert_restores(&mart, &step("bulk")).await;
}

#[tokio::test]
async fn a_restore_with_any_bit_flipped_fails_or_is_right() {
    restore_with(Fault::BitFlip).await;
}

#[tokio::test]
async fn a_restore_with_any_object_missing_fails_or_is_right() {
    restore_with(Fault::Missing).await;
}

#[tokio::test]
async fn a_restore_with_any_call_refused_fails_or_is_right() {
    restore_with(Fault::Unavailable).await;
}

async fn restore_with(fault: Fault) {
    let last = step("bulk-after-checkpoint");
    let (mut failed, mut at) = (0, 0);
    loop {
        let (mart, _) = lived_until(&last.name).await;
        let store = FaultyStore::new(Arc::clone(&mart.store), move |call| {
            (call.index == at && call.op != Op::Put).then_some(fault)
        });
        let through = mart.through(Arc::new(store.clone()) as Arc<dyn ObjectStore>);
        match through.open().await {
            Ok(opened) => assert_files(&opened.dir, &last),
            Err(Error::Corrupt { .. } | Error::Unavailable { .. } | Error::NotFound(_)) => {
                failed += 1;
                let left: Vec<_> = std::fs::read_dir(through.root.path()).expect("lists").collect();
                assert!(left.is_empty(), "{fault:?} at call {at} left {left:?}");
                assert_restores(&mart, &last).await;
            }
            Err(other) => panic!("{fault:?} at call {at}: {other}"),
        }
        if at >= store.calls().len() {
            break;
        }
        at += 1;
    }
    assert!(failed > 3, "the fault was met");
}
