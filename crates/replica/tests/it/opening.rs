//! Which local files are reused, and which are not.

use replica::{Adopt, Error, How};

use crate::life::{Mart, advance, assert_files, assert_restores, bytes, lived_until, step, steps};

#[tokio::test]
async fn intact_files_are_reused_in_the_same_epoch() {
    for at in steps() {
        let (mart, opened) = lived_until(&at.name).await;
        let (epoch, dir) = (opened.shipper.epoch(), opened.dir.clone());
        drop(opened);
        let mut again = mart.open().await.expect("opens");
        assert_eq!((again.how, again.shipper.epoch(), &again.dir), (How::Reused, epoch, &dir));
        assert_eq!(again.shipper.adopt(at.point()).await.expect("adopts"), Adopt::Match);
        assert_eq!(again.shipper.ship(&at.points()).await.expect("nothing to do"), again.shipper.durable());
    }
}

#[tokio::test]
async fn commits_that_only_the_disk_has_are_kept_and_shipped_later() {
    let (mart, opened) = lived_until("small").await;
    step("bulk").write(&opened.dir);
    drop(opened);
    let mut again = mart.open().await.expect("opens");
    assert_eq!(again.how, How::Reused);
    let bulk = step("bulk");
    assert_eq!(again.shipper.adopt(bulk.point()).await.expect("adopts"), Adopt::Match);
    again.shipper.ship(&[bulk.point()]).await.expect("ships");
    assert_restores(&mart, &bulk).await;
}

#[tokio::test]
async fn a_foreign_wal_of_the_same_iteration_is_quarantined() {
    let (mart, opened) = lived_until("small-after-checkpoint").await;
    let foreign = bytes("fork-small.wal").expect("fixture");
    assert_eq!(foreign.len(), step("small-after-checkpoint").wal().expect("has one").len(), "only the content differs");
    std::fs::write(opened.dir.join("mart.db.wal"), &foreign).expect("writes");
    drop(opened);
    let again = mart.open().await.expect("opens");
    assert!(matches!(again.how, How::Restored { .. }));
    assert_files(&again.dir, &step("small-after-checkpoint"));
    let kept = std::fs::read_dir(mart.root.path().join("quarantine")).expect("there").count();
    assert_eq!(kept, 1, "the foreign files are kept aside");
}

#[tokio::test]
async fn an_engine_on_a_foreign_wal_diverges() {
    let (_mart, mut opened) = lived_until("small-after-checkpoint").await;
    std::fs::write(opened.dir.join("mart.db.wal"), bytes("fork-small.wal").expect("fixture")).expect("writes");
    assert!(matches!(opened.shipper.adopt(step("small-after-checkpoint").point()).await, Err(Error::Diverged(_))));
}

#[tokio::test]
async fn a_crash_after_a_checkpoint_keeps_the_files_and_asks_for_their_base() {
    let (mart, mut opened) = lived_until("mixed").await;
    opened.shipper.begin_checkpoint().await.expect("begins");
    step("checkpoint").write(&opened.dir);
    drop(opened);
    let mut again = mart.open().await.expect("opens");
    assert_eq!(again.how, How::Reused);
    assert_eq!(again.shipper.adopt(step("checkpoint").point()).await.expect("adopts"), Adopt::NeedsBase);
    again.shipper.ship_base(1).await.expect("ships");
    assert_restores(&mart, &step("checkpoint")).await;
}

#[tokio::test]
async fn a_crash_before_an_announced_checkpoint_ran_goes_on_as_before() {
    let (mart, mut opened) = lived_until("small").await;
    opened.shipper.begin_checkpoint().await.expect("begins");
    drop(opened);
    let mut again = mart.open().await.expect("opens");
    assert_eq!(again.shipper.adopt(step("small").point()).await.expect("adopts"), Adopt::Match);
    advance(&mut again, &step("bulk")).await.expect("ships");
    assert_restores(&mart, &step("bulk")).await;
}

#[tokio::test]
async fn a_checkpoint_on_another_history_is_quarantined() {
    // Announced when `small` was the head; then the log went on without these files.
    let (mart, mut opened) = lived_until("small").await;
    opened.shipper.begin_checkpoint().await.expect("begins");
    let kept = std::fs::read(opened.dir.join("local.json")).expect("there");
    advance(&mut opened, &step("bulk")).await.expect("ships");
    step("checkpoint").write(&opened.dir);
    std::fs::write(opened.dir.join("local.json"), kept).expect("writes");
    drop(opened);
    let again = mart.open().await.expect("opens");
    assert!(matches!(again.how, How::Restored { .. }));
    assert_files(&again.dir, &step("bulk"));
}

#[tokio::test]
async fn of_two_copies_of_a_disk_only_one_goes_on() {
    let (mart, opened) = lived_until("small").await;
    let copy = mart.elsewhere();
    let name = opened.dir.file_name().expect("has one").to_owned();
    std::fs::create_dir(copy.root.path().join(&name)).expect("creates");
    for file in ["mart.db", "mart.db.wal", "local.json"] {
        std::fs::copy(opened.dir.join(file), copy.root.path().join(&name).join(file)).expect("copies");
    }
    drop(opened);
    let (mut first, mut second) = (mart.open().await.expect("opens"), copy.open().await.expect("opens"));
    assert_eq!((first.how, second.how), (How::Reused, How::Reused));
    advance(&mut first, &step("bulk")).await.expect("ships");
    assert!(matches!(advance(&mut second, &step("bulk")).await, Err(Error::Fenced { .. })));
    assert!(matches!(second.shipper.begin_checkpoint().await, Err(Error::Fenced { .. })), "and stays fenced");

    // Both run their own checkpoint: the same iteration, and files that are not the same.
    advance(&mut first, &step("mixed")).await.expect("ships");
    advance(&mut first, &step("checkpoint")).await.expect("ships");
    step("checkpoint").write(&second.dir);
    drop(second);
    let again = copy.open().await.expect("opens");
    assert!(matches!(again.how, How::Restored { .. }), "an equal iteration is no proof");
}

#[tokio::test]
async fn a_new_machine_fences_the_old_writer() {
    let (mart, mut old) = lived_until("small").await;
    let elsewhere = mart.elsewhere();
    let mut new = elsewhere.open().await.expect("restores");
    assert_eq!(new.shipper.epoch(), old.shipper.epoch() + 1);
    let epoch = new.shipper.epoch();
    let bulk = step("bulk");
    bulk.write(&old.dir);
    match old.shipper.ship(&bulk.points()).await {
        Err(Error::Fenced { epoch: by }) => assert_eq!(by, epoch),
        other => panic!("{other:?}"),
    }
    advance(&mut new, &bulk).await.expect("the new writer goes on");
    assert_restores(&mart, &bulk).await;
}

#[tokio::test]
async fn an_old_machine_that_comes_back_restores_and_keeps_its_files_aside() {
    let (mart, old) = lived_until("small").await;
    let elsewhere = mart.elsewhere();
    let mut new = elsewhere.open().await.expect("restores");
    advance(&mut new, &step("bulk")).await.expect("ships");
    drop(old);
    let back = mart.open().await.expect("opens");
    assert!(matches!(back.how, How::Restored { .. }));
    assert_files(&back.dir, &step("bulk"));
}

#[tokio::test]
async fn a_mart_without_a_log_is_not_found() {
    let mart = Mart::on(std::sync::Arc::new(object_store::memory::InMemory::new()));
    assert!(matches!(mart.open().await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn creating_twice_is_creating_once() {
    let mart = Mart::create().await;
    mart.replica.create("there").await.expect("harmless");
    assert_eq!(mart.open().await.expect("opens").how, How::Fresh);
}

#[tokio::test]
async fn a_missing_old_or_garbage_hint_does_not_matter() {
    use object_store::ObjectStoreExt;
    for hint in [None, Some("garbage"), Some(r#"{"slot":2,"base_slot":0}"#), Some(r#"{"slot":9000,"base_slot":0}"#)] {
        let (mart, _) = lived_until("bulk-into-free-blocks").await;
        match hint {
            Some(text) => drop(mart.store.put(&mart.key("head"), text.into()).await.expect("puts")),
            None => mart.store.delete(&mart.key("head")).await.expect("deletes"),
        }
        assert_restores(&mart, &step("bulk-into-free-blocks")).await;
    }
}

#[tokio::test]
async fn a_writer_that_only_looks_finds_out_that_it_was_fenced_or_dropped() {
    let (mart, old) = lived_until("small").await;
    old.shipper.look().await.expect("nobody else is there");
    let elsewhere = mart.elsewhere();
    let new = elsewhere.open().await.expect("restores");
    match old.shipper.look().await {
        Err(Error::Fenced { epoch }) => assert_eq!(epoch, new.shipper.epoch()),
        other => panic!("{other:?}"),
    }
    mart.replica.drop_mart().await.expect("drops");
    assert!(matches!(new.shipper.look().await, Err(Error::Dropped)));
}

#[tokio::test]
async fn a_writer_that_claimed_a_slot_is_not_deposed_by_a_look_from_before() {
    let (mart, mut old) = lived_until("small").await;
    let elsewhere = mart.elsewhere();
    let seen = elsewhere.replica.writer().await.expect("there");
    assert_eq!((seen.node.as_str(), seen.epoch), ("here", old.shipper.epoch()));
    old.shipper.claim().await.expect("nobody has the slot");
    let late = elsewhere.replica.open_writer_behind(Some(seen.slot), elsewhere.root.path(), "there").await;
    assert!(matches!(late, Err(Error::Unavailable { .. })), "{late:?}");
    advance(&mut old, &step("bulk")).await.expect("still the writer");

    let seen = elsewhere.replica.writer().await.expect("there");
    let new = elsewhere.replica.open_writer_behind(Some(seen.slot), elsewhere.root.path(), "there").await;
    assert_eq!(new.expect("nothing came between").shipper.epoch(), seen.epoch + 1);
    assert!(matches!(old.shipper.claim().await, Err(Error::Fenced { .. })));
    let writer = mart.replica.writer().await.expect("there");
    assert_eq!((writer.node.as_str(), writer.epoch), ("there", seen.epoch + 1));
    assert_restores(&mart, &step("bulk")).await;
}

#[tokio::test]
async fn a_claim_between_a_checkpoint_and_its_base_keeps_the_files() {
    let (mart, mut opened) = lived_until("mixed").await;
    opened.shipper.begin_checkpoint().await.expect("begins");
    step("checkpoint").write(&opened.dir);
    opened.shipper.claim().await.expect("nobody has the slot");
    drop(opened);
    let mut again = mart.open().await.expect("opens");
    assert_eq!(again.how, How::Reused);
    let checkpoint = step("checkpoint");
    assert_eq!(again.shipper.adopt(checkpoint.point()).await.expect("adopts"), Adopt::NeedsBase);
    again.shipper.claim().await.expect("nobody has the slot");
    again.shipper.ship_base(checkpoint.iteration).await.expect("ships");
    assert_restores(&mart, &checkpoint).await;
}

#[tokio::test]
async fn the_writer_is_found_from_the_head() {
    let mart = crate::life::Mart::create().await;
    assert_eq!(mart.replica.writer().await.expect("there").slot, 1);
    let mut opened = mart.open().await.expect("opens");
    for _ in 0..20 {
        opened.shipper.claim().await.expect("nobody has the slot");
        let writer = mart.replica.writer().await.expect("there");
        assert_eq!((writer.node.as_str(), writer.epoch), ("here", opened.shipper.epoch()));
    }
    mart.replica.drop_mart().await.expect("drops");
    assert!(matches!(mart.replica.writer().await, Err(Error::Dropped)));
}
