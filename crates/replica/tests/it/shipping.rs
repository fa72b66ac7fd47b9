//! What was shipped comes back; what may not be shipped is not.

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use replica::store::{Fault, FaultyStore, Op};
use replica::{Adopt, CommitPoint, Error};

use crate::life::{Mart, advance, assert_files, assert_restores, lived_until, step, steps, write_pair};

#[tokio::test]
async fn after_every_step_an_empty_disk_gets_everything_back() {
    for step in steps() {
        let (mart, _) = lived_until(&step.name).await;
        assert_restores(&mart, &step).await;
    }
}

#[tokio::test]
async fn a_restored_mart_lives_on_and_is_restored_again() {
    let mart = Mart::create().await;
    for step in steps() {
        let here = mart.elsewhere();
        let mut opened = here.open().await.expect("restores");
        if step.name != "new" {
            assert_eq!(opened.shipper.adopt(opened_point(&opened)).await.expect("adopts"), Adopt::Match);
        }
        advance(&mut opened, &step).await.expect("ships");
        assert_restores(&here, &step).await;
    }
}

fn opened_point(opened: &replica::Opened) -> CommitPoint {
    let durable = opened.shipper.durable();
    CommitPoint { iteration: durable.iteration, wal_end: durable.wal_bytes, time_us: 0 }
}

#[tokio::test]
async fn only_reported_commits_are_shipped() {
    let (mart, mut opened) = lived_until("new").await;
    let small = step("small");
    small.write(&opened.dir);
    let position = opened.shipper.ship(&small.points()[..2]).await.expect("ships");
    assert_eq!(position.wal_bytes, small.ends[1]);
    let elsewhere = mart.elsewhere();
    let restored = elsewhere.open().await.expect("restores");
    assert_eq!(std::fs::metadata(restored.dir.join("mart.db.wal")).expect("there").len(), small.ends[1]);
}

#[tokio::test]
async fn a_torn_tail_is_neither_shipped_nor_in_the_way() {
    let (mart, mut opened) = lived_until("new").await;
    let small = step("small");
    let mut wal = small.wal().expect("has one");
    wal.extend_from_slice(&[7; 30]);
    write_pair(&opened.dir, &small.db(), Some(&wal));
    opened.shipper.ship(&small.points()).await.expect("ships");
    opened.shipper.begin_checkpoint().await.expect("everything whole is shipped");
    assert_restores(&mart, &small).await;
}

#[tokio::test]
async fn a_point_where_no_commit_ends_is_refused() {
    let (_mart, mut opened) = lived_until("new").await;
    let small = step("small");
    small.write(&opened.dir);
    let inside = CommitPoint { wal_end: small.ends[1] + 1, ..small.points()[1] };
    assert!(matches!(opened.shipper.ship(&[inside]).await, Err(Error::Diverged(_))));
    assert_eq!(opened.shipper.durable().wal_bytes, 0);
}

#[tokio::test]
async fn a_commit_that_was_cut_away_after_it_was_shipped_diverges_and_a_rebase_heals() {
    let (mart, mut opened) = lived_until("small").await;
    let small = step("small");
    // The engine reported it, we shipped it, and then the file lost it (or got another in its place).
    let mut wal = small.wal().expect("has one");
    let (start, end) = (small.ends[1] as usize, small.ends[2] as usize);
    wal.truncate(start);
    write_pair(&opened.dir, &small.db(), Some(&wal));
    let again = CommitPoint { wal_end: small.ends[2] + 200, ..small.points()[2] };
    assert!(matches!(opened.shipper.ship(&[again]).await, Err(Error::Diverged(_))));
    assert!(end > start);

    let before = opened.shipper.durable();
    opened.shipper.rebase("here").await.expect("fences");
    assert_eq!(
        opened.shipper.durable().wal_bytes,
        before.wal_bytes,
        "what was durable stays durable until the new base"
    );
    assert!(matches!(opened.shipper.ship(&small.points()[..2]).await, Err(Error::Misuse(_))));
    opened.shipper.ship_base(0).await.expect("ships");
    let position = opened.shipper.ship(&small.points()[..2]).await.expect("ships");
    assert!(position > before);
    let elsewhere = mart.elsewhere();
    let restored = elsewhere.open().await.expect("restores");
    assert_eq!(std::fs::read(restored.dir.join("mart.db.wal")).expect("there"), wal);
}

#[tokio::test]
async fn a_crash_between_rebase_and_its_base_restores_what_was_durable() {
    let (mart, mut opened) = lived_until("small").await;
    write_pair(&opened.dir, &step("small").db(), None);
    opened.shipper.rebase("here").await.expect("fences");
    drop(opened);
    let again = mart.open().await.expect("opens");
    assert!(matches!(again.how, replica::How::Restored { .. }));
    assert_files(&again.dir, &step("small"));
}

#[tokio::test]
async fn a_checkpoint_that_was_not_announced_is_not_shipped() {
    let (_mart, mut opened) = lived_until("mixed").await;
    step("checkpoint").write(&opened.dir);
    assert!(matches!(opened.shipper.ship_base(1).await, Err(Error::Diverged(_))));
}

#[tokio::test]
async fn a_checkpoint_may_not_begin_before_everything_is_shipped() {
    let (_mart, mut opened) = lived_until("small").await;
    step("bulk").write(&opened.dir);
    assert!(matches!(opened.shipper.begin_checkpoint().await, Err(Error::Misuse(_))));
}

#[tokio::test]
async fn a_checkpoint_that_did_nothing_needs_no_base() {
    let (_mart, mut opened) = lived_until("checkpoint").await;
    opened.shipper.begin_checkpoint().await.expect("begins");
    let before = opened.shipper.durable();
    assert_eq!(opened.shipper.ship_base(1).await.expect("nothing to do"), before);
}

#[tokio::test]
async fn the_blocks_of_a_bulk_commit_are_needed_and_their_loss_is_named() {
    let (mart, _) = lived_until("bulk").await;
    let packs: Vec<_> =
        mart.store.list(Some(&mart.key("pack"))).map_ok(|meta| meta.location).try_collect().await.expect("lists");
    assert!(!packs.is_empty(), "the WAL alone does not hold a bulk commit");
    for pack in &packs {
        mart.store.delete(pack).await.expect("deletes");
    }
    let elsewhere = mart.elsewhere();
    match elsewhere.open().await {
        Err(Error::Corrupt { object, .. }) => assert!(packs.iter().any(|pack| pack.as_ref() == object), "{object}"),
        other => panic!("{other:?}"),
    }
    let left = std::fs::read_dir(elsewhere.root.path()).expect("lists").count();
    assert_eq!(left, 0, "never a half-restored mart");
}

#[tokio::test]
async fn only_changed_blocks_are_uploaded() {
    let (mart, mut opened) = lived_until("checkpoint").await;
    let bytes = |mart: &Mart| {
        let list = mart.store.list(Some(&mart.key("pack")));
        async move { list.try_fold(0, |sum, meta| async move { Ok(sum + meta.size) }).await.expect("lists") }
    };
    let before = bytes(&mart).await;
    advance(&mut opened, &step("small-after-checkpoint")).await.expect("ships");
    assert_eq!(bytes(&mart).await, before, "a small commit uploads no block");
}

#[tokio::test]
async fn what_free_blocks_still_hold_is_named_again_but_not_uploaded_again() {
    let (mart, mut opened) = lived_until("checkpoint-3").await;
    let packs =
        |mart: &Mart| mart.store.list(Some(&mart.key("pack"))).map_ok(|meta| meta.location).try_collect::<Vec<_>>();
    let before = packs(&mart).await.expect("lists");
    // As if the bulk commit had written to the freed blocks exactly what they held: a nightly reload does.
    let (base, bulk) = (step("checkpoint-3"), step("bulk-into-free-blocks"));
    write_pair(&opened.dir, &base.db(), bulk.wal().as_deref());
    opened.shipper.ship(&bulk.points()).await.expect("ships");
    assert_eq!(packs(&mart).await.expect("lists"), before);
    let elsewhere = mart.elsewhere();
    let restored = elsewhere.open().await.expect("restores");
    assert!(std::fs::read(restored.dir.join("mart.db")).expect("there") == base.db(), "but they are restored");
}

#[tokio::test]
async fn a_checkpoint_while_the_store_is_away_is_covered_by_its_base() {
    let mart = Mart::create().await;
    let store = FaultyStore::new(mart.store.clone(), |_| None);
    let here = mart.through(std::sync::Arc::new(store.clone()));
    let mut opened = here.open().await.expect("opens");
    for name in ["new", "small"] {
        advance(&mut opened, &step(name)).await.expect("ships");
    }
    // The last record landed, but nobody could say so.
    store.set_rule(|call| Some(if call.op == Op::Put { Fault::LostAck } else { Fault::Unavailable }));
    assert!(advance(&mut opened, &step("bulk")).await.expect_err("away").is_transient());
    opened.shipper.begin_checkpoint_behind().await.expect("begins");
    step("checkpoint").write(&opened.dir);
    store.set_rule(|_| None);
    // The files alone hold the commits between: a crash now must keep them.
    drop(opened);
    let mut again = here.open().await.expect("opens");
    assert_eq!(again.how, replica::How::Reused);
    assert_eq!(again.shipper.adopt(step("checkpoint").point()).await.expect("adopts"), Adopt::NeedsBase);
    again.shipper.ship_base(1).await.expect("ships");
    assert_restores(&mart, &step("checkpoint")).await;
}

#[tokio::test]
async fn a_live_block_rewritten_between_checkpoints_is_still_shipped() {
    // DuckDB leaves a freed block out of the written free list while a reader holds it, and may reuse it before the next checkpoint.
    // Bytes of such a race can't be had at will, so a block written by the last checkpoint plays the part.
    let (mart, mut opened) = lived_until("checkpoint").await;
    let bulk = step("bulk-after-checkpoint");
    let mut db = bulk.db();
    let at = 12288 + 262_144;
    db[at..at + 64].copy_from_slice(&[0xab; 64]);
    write_pair(&opened.dir, &db, bulk.wal().as_deref());
    opened.shipper.ship(&[bulk.point()]).await.expect("ships");
    let elsewhere = mart.elsewhere();
    let restored = elsewhere.open().await.expect("restores");
    let found = std::fs::read(restored.dir.join("mart.db")).expect("there");
    assert!(found[at..at + 262_144] == db[at..at + 262_144]);
}

#[tokio::test]
async fn a_dropped_mart_takes_no_more_commits_and_is_not_opened() {
    let (mart, mut opened) = lived_until("small").await;
    mart.replica.drop_mart().await.expect("drops");
    mart.replica.drop_mart().await.expect("dropping twice is harmless");
    let bulk = step("bulk");
    bulk.write(&opened.dir);
    assert!(matches!(opened.shipper.ship(&bulk.points()).await, Err(Error::Dropped)));
    assert!(matches!(mart.open().await, Err(Error::Dropped)));
    assert!(matches!(mart.elsewhere().open().await, Err(Error::Dropped)));
}
