//! Every moment that a log holds can be found, copied, read in place, gone back to and branched from.

use object_store::ObjectStoreExt;
use replica::history::{At, What};
use replica::names::{Past, Snapshot};
use replica::{Adopt, CommitPoint, Error, MartReplica, Opened, Position, Stores};
use uuid::Uuid;

use crate::life::{Mart, Step, advance, assert_files, lived_until, step, steps};

async fn find(mart: &Mart, at: At) -> replica::Result<Past> {
    let looked = mart.replica.look().await.expect("looks");
    mart.replica.find(&looked, at).await
}

async fn now(mart: &Mart) -> Past {
    find(mart, At::Now).await.expect("there is a commit")
}

/// A mart with all steps of the fixture, and where each step ended.
async fn lived() -> (Mart, Opened, Vec<(Step, Position)>) {
    let mart = Mart::create().await;
    let mut opened = mart.open().await.expect("opens");
    let mut positions = Vec::new();
    for step in steps() {
        positions.push((step.clone(), advance(&mut opened, &step).await.expect("ships")));
    }
    (mart, opened, positions)
}

async fn assert_copies(replica: &MartReplica, past: &Past, step: &Step) {
    let dir = tempfile::tempdir().expect("a directory");
    replica.copy(past, dir.path()).await.expect("copies");
    assert_files(dir.path(), step);
}

#[tokio::test]
async fn every_position_is_found_and_copied() {
    let (mart, _opened, positions) = lived().await;
    for (step, position) in &positions {
        let past = find(&mart, At::Position(*position)).await.expect("found");
        assert_eq!(past.position, *position);
        assert_copies(&mart.replica, &past, step).await;
    }
    assert_eq!(now(&mart).await.position, positions.last().expect("steps").1);
}

#[tokio::test]
async fn a_position_where_no_commit_ended_is_not_found() {
    let (mart, _opened, positions) = lived().await;
    let real = positions.last().expect("steps").1;
    for position in [
        Position { wal_bytes: real.wal_bytes + 1, ..real },
        Position { wal_bytes: real.wal_bytes.saturating_sub(1), ..real },
        Position { iteration: real.iteration + 1, ..real },
        Position { epoch: real.epoch + 1, ..real },
        Position { epoch: 0, iteration: 0, wal_bytes: 0 },
    ] {
        let error = find(&mart, At::Position(position)).await.expect_err("nothing is there");
        assert!(matches!(error, Error::NotFound(_)), "{position}: {error}");
    }
}

#[tokio::test]
async fn a_time_between_two_commits_means_the_earlier_one() {
    let (mart, _opened, _) = lived().await;
    let looked = mart.replica.look().await.expect("looks");
    let moments = mart.replica.moments(&looked, 0..i64::MAX, 10_000).await.expect("lists");
    assert!(moments.windows(2).all(|pair| pair[0].position < pair[1].position && pair[0].time_us <= pair[1].time_us));
    assert!(moments.iter().any(|moment| moment.what == What::Commit));
    for (index, moment) in moments.iter().enumerate() {
        let next = moments.get(index + 1);
        if next.is_some_and(|next| next.time_us == moment.time_us) {
            continue;
        }
        let found = find(&mart, At::Time(moment.time_us)).await.expect("found");
        assert_eq!(found.position, moment.position, "its own time");
        let before_next = next.map_or(i64::MAX, |next| next.time_us - 1);
        assert_eq!(find(&mart, At::Time(before_next)).await.expect("found").position, moment.position);
    }
    let first = moments.first().expect("some").time_us;
    assert!(matches!(find(&mart, At::Time(first - 1)).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_view_reads_what_a_copy_holds() {
    let (mart, _opened, positions) = lived().await;
    for (step, position) in &positions {
        let past = find(&mart, At::Position(*position)).await.expect("found");
        let dir = tempfile::tempdir().expect("a directory");
        mart.replica.copy(&past, dir.path()).await.expect("copies");
        let db = std::fs::read(dir.path().join("mart.db")).expect("there");
        let view = mart.replica.view(&past).await.expect("opens");
        let whole = view.read_db(0..db.len() as u64).await.expect("reads");
        assert!(view.db_bytes() >= db.len() as u64);
        assert!(whole == db, "{}", step.name);
        for range in [0..1, 12_000..12_300, 12_288..12_289, 274_431..274_433, 300_000..900_000] {
            if range.end > db.len() as u64 {
                continue;
            }
            let part = view.read_db(range.clone()).await.expect("reads");
            assert!(part == db[range.start as usize..range.end as usize]);
        }
        let wal = std::fs::read(dir.path().join("mart.db.wal")).unwrap_or_default();
        assert_eq!(view.wal_bytes(), wal.len() as u64);
        if !wal.is_empty() {
            assert!(view.read_wal(0..wal.len() as u64).await.expect("reads") == wal);
            let last = wal.len() as u64 - 1;
            assert!(view.read_wal(last..last + 1).await.expect("reads") == wal[wal.len() - 1..]);
        }
        assert!(view.read_db(0..view.db_bytes() + 1).await.is_err(), "outside");
    }
}

/// Goes back to where `to` ended.
async fn go_back(mart: &Mart, opened: &mut Opened, to: Position) -> Position {
    let past = find(mart, At::Position(to)).await.expect("found");
    let prepared = mart.replica.prepare(mart.root.path(), past).await.expect("fetches");
    let position = opened.shipper.go_back(prepared, "here").await.expect("goes back");
    opened.dir = opened.shipper.dir().to_owned();
    position
}

async fn ship_on(opened: &mut Opened, step: &Step) {
    step.write(&opened.dir);
    assert_eq!(opened.shipper.adopt(step.point()).await.expect("adopts"), Adopt::Match);
    opened.shipper.ship(&step.points()).await.expect("ships");
}

#[tokio::test]
async fn a_mart_goes_back_to_any_position_and_on_from_there() {
    let (_, _, all) = lived().await;
    for (index, (target, _)) in all.iter().enumerate() {
        let (mart, mut opened, positions) = lived().await;
        let last = positions.last().expect("steps").clone();
        let back = go_back(&mart, &mut opened, positions[index].1).await;
        assert_files(&opened.dir, target);
        assert_eq!((back.iteration, back.wal_bytes), (target.iteration, target.point().wal_end));
        assert!(back > last.1, "a new epoch is later than all before");
        assert_eq!(opened.shipper.adopt(target.point()).await.expect("adopts"), Adopt::Match);
        // Seen from anywhere else it is the same.
        assert_eq!(now(&mart).await.position, back);
        assert_copies(&mart.replica, &now(&mart).await, target).await;
        // It goes on in the same life of the file where the fixture does.
        if let Some((next, _)) = positions.get(index + 1).filter(|(next, _)| !next.checkpoint) {
            ship_on(&mut opened, next).await;
            assert_copies(&mart.replica, &now(&mart).await, next).await;
        }
        // What it was before is still there, and it can be gone back to as well.
        let undone = go_back(&mart, &mut opened, last.1).await;
        assert_files(&opened.dir, &last.0);
        assert!(undone > back);
        for (step, position) in &positions {
            let past = find(&mart, At::Position(*position)).await.expect("all positions are kept");
            assert_copies(&mart.replica, &past, step).await;
        }
        // A machine without the files restores it; the old writer is deposed.
        let elsewhere = mart.elsewhere();
        let taken = elsewhere.open().await.expect("restores");
        assert_files(&taken.dir, &last.0);
        assert!(matches!(opened.shipper.look().await, Err(Error::Fenced { .. })));
    }
}

#[tokio::test]
async fn a_mart_that_went_back_is_reopened_from_its_own_files_and_folds_its_log() {
    let (mart, mut opened, positions) = lived().await;
    let small = positions.iter().find(|(step, _)| step.name == "mixed").expect("a step").clone();
    go_back(&mart, &mut opened, small.1).await;
    let epoch = opened.shipper.epoch();
    drop(opened);
    let mut again = mart.open().await.expect("opens");
    assert_eq!((again.how, again.shipper.epoch()), (replica::How::Reused, epoch));
    assert_eq!(again.shipper.adopt(small.0.point()).await.expect("adopts"), Adopt::Match);
    again.shipper.begin_checkpoint().await.expect("begins");
    let folded = step("checkpoint");
    folded.write(&again.dir);
    again.shipper.ship_base(folded.iteration).await.expect("ships");
    crate::life::assert_restores(&mart, &folded).await;
}

#[tokio::test]
async fn a_branch_shares_its_parents_objects_and_lives_on_its_own() {
    let (mart, mut opened, positions) = lived().await;
    for (index, (at, position)) in positions.iter().enumerate() {
        let past = find(&mart, At::Position(*position)).await.expect("found");
        let stores = Stores { data: mart.store.clone(), log: mart.store.clone() };
        let child = MartReplica::new(stores.clone(), "duckdb/try".into(), Uuid::new_v4());
        let before = stored_bytes(&mart).await;
        child_of(&mart, &past, &child).await;
        let new = stored_bytes(&mart).await - before;
        assert!(new < 4_000, "{new} new bytes");
        let root = tempfile::tempdir().expect("a directory");
        let mut branch = child.open_writer(root.path(), "there").await.expect("opens");
        assert_files(&branch.dir, at);
        assert_eq!(branch.shipper.adopt(at.point()).await.expect("adopts"), Adopt::Match);
        // It is written, folded, and branched again, without its parent knowing.
        if let Some((next, _)) = positions.get(index + 1).filter(|(next, _)| !next.checkpoint) {
            ship_on(&mut branch, next).await;
        } else if let Some((next, _)) = positions.get(index + 1) {
            branch.shipper.begin_checkpoint().await.expect("begins");
            next.write(&branch.dir);
            branch.shipper.ship_base(next.iteration).await.expect("ships");
        } else {
            continue;
        }
        let next = &positions[index + 1].0;
        let looked = child.look().await.expect("looks");
        let past = child.find(&looked, At::Now).await.expect("found");
        assert_copies(&child, &past, next).await;
        let grandchild = MartReplica::new(stores, "duckdb/again".into(), Uuid::new_v4());
        child.branch(&past, &grandchild, "there").await.expect("branches");
        let root = tempfile::tempdir().expect("a directory");
        let second = grandchild.open_writer(root.path(), "there").await.expect("opens");
        assert_files(&second.dir, next);
    }
    let last = &positions.last().expect("steps").0;
    opened.shipper.adopt(last.point()).await.expect("the parent goes on");
    assert_copies(&mart.replica, &now(&mart).await, last).await;
}

async fn child_of(mart: &Mart, past: &Past, child: &MartReplica) {
    let position = mart.replica.branch(past, child, "there").await.expect("branches");
    assert_eq!((position.iteration, position.wal_bytes), (past.position.iteration, past.position.wal_bytes));
}

async fn stored_bytes(mart: &Mart) -> u64 {
    use futures::TryStreamExt;
    let objects: Vec<_> = mart.store.list(None).try_collect().await.expect("lists");
    objects.iter().map(|object| object.size).sum()
}

#[tokio::test]
async fn names_survive_a_change_of_writer_and_hold_their_moment() {
    let (mart, mut opened) = lived_until("mixed").await;
    let past = now(&mart).await;
    let mut names = opened.shipper.names().clone();
    names.snapshots.insert("monday".into(), Snapshot { past: past.clone(), created_us: 7, automatic: false });
    opened.shipper.set_names(names.clone()).await.expect("is named");
    // Commits go on, and the name is still known.
    let next = steps().into_iter().skip_while(|step| step.name != "mixed").nth(1).expect("a step");
    advance(&mut opened, &next).await.expect("ships");
    assert_eq!(opened.shipper.names(), &names);
    let elsewhere = mart.elsewhere();
    let taken = elsewhere.open().await.expect("opens");
    assert_eq!(taken.shipper.names(), &names);
    let found = taken.shipper.names().snapshots["monday"].past.clone();
    assert_copies(&mart.replica, &found, &step("mixed")).await;
    assert!(
        matches!(opened.shipper.set_names(names).await, Err(Error::Fenced { .. })),
        "a deposed writer names nothing"
    );
}

#[tokio::test]
async fn other_files_take_a_marts_place_only_with_their_base() {
    let (mart, mut opened) = lived_until("mixed").await;
    let before = now(&mart).await;
    let other = opened.dir.parent().expect("a mart's directory").join("compact");
    std::fs::create_dir(&other).expect("makes");
    let compact = step("checkpoint");
    compact.write(&other);
    opened.shipper.replace_files(&other, "here").await.expect("replaces");
    // Until the base is won, the mart is what it was.
    let looked = now(&mart).await;
    assert_copies(&mart.replica, &looked, &step("mixed")).await;
    assert!(opened.shipper.needs_base());
    let shipped = opened.shipper.ship_base(compact.iteration).await.expect("ships");
    assert!(shipped > before.position);
    assert_copies(&mart.replica, &now(&mart).await, &compact).await;
    let point = CommitPoint { iteration: compact.iteration, wal_end: 0, time_us: 0 };
    assert_eq!(opened.shipper.adopt(point).await.expect("adopts"), Adopt::Match);
    assert_copies(&mart.replica, &before, &step("mixed")).await;
}

#[tokio::test]
async fn a_changed_or_missing_record_on_the_way_is_noticed() {
    let (mart, _opened, positions) = lived().await;
    let past = find(&mart, At::Position(positions[2].1)).await.expect("found");
    let mut wrong = past.clone();
    wrong.route.last_mut().expect("a stretch").hash = replica::hash::Hash::of(b"another");
    let dir = tempfile::tempdir().expect("a directory");
    assert!(matches!(mart.replica.copy(&wrong, dir.path()).await, Err(Error::Corrupt { .. })));
    for slot in past.route[0].first..=past.route[0].last {
        let key = mart.key(&format!("log/{slot:020}"));
        let bytes = mart.store.get(&key).await.expect("there").bytes().await.expect("reads");
        mart.store.delete(&key).await.expect("deletes");
        let dir = tempfile::tempdir().expect("a directory");
        let error = mart.replica.copy(&past, dir.path()).await.expect_err("a record is missing");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        mart.store.put(&key, bytes.into()).await.expect("puts");
    }
}

#[tokio::test]
async fn every_moment_is_found_after_files_of_a_lower_iteration_took_a_marts_place() {
    let (mart, mut opened) = lived_until("bulk-into-free-blocks").await;
    let other = opened.dir.parent().expect("a mart's directory").join("compact");
    std::fs::create_dir(&other).expect("makes");
    // A compact copy counts its checkpoints anew.
    let compact = step("checkpoint");
    compact.write(&other);
    match opened.shipper.replace_files(&other, "here").await {
        Err(Error::Misuse(_)) => return,
        replaced => replaced.expect("replaces"),
    }
    opened.dir = opened.shipper.dir().to_owned();
    let mut held = vec![(opened.shipper.ship_base(compact.iteration).await.expect("ships"), compact)];
    for name in ["small-after-checkpoint", "checkpoint-2", "drop", "checkpoint-3", "bulk-into-free-blocks"] {
        let next = step(name);
        held.push((advance(&mut opened, &next).await.expect("ships"), next));
    }
    for (position, step) in held {
        let past = find(&mart, At::Position(position)).await.unwrap_or_else(|error| panic!("{}: {error}", step.name));
        assert_copies(&mart.replica, &past, &step).await;
    }
}

/// The checkpoint has run, its answer got lost, and then something is named. The files are still the log's own continuation.
#[tokio::test]
async fn names_between_a_checkpoint_and_its_base_do_not_give_up_the_files() {
    let (mart, mut opened) = lived_until("mixed").await;
    opened.shipper.begin_checkpoint().await.expect("begins");
    step("checkpoint").write(&opened.dir);
    let mut names = opened.shipper.names().clone();
    names.done.insert("sweep".into(), 1);
    opened.shipper.set_names(names).await.expect("is named");
    let after = step("small-after-checkpoint");
    after.write(&opened.dir);
    drop(opened);
    let mut again = mart.open().await.expect("opens");
    assert_eq!(again.how, replica::How::Reused, "commits that are only on this disk went to quarantine");
    assert_eq!(again.shipper.adopt(after.point()).await.expect("adopts"), Adopt::NeedsBase);
    again.shipper.ship_base(after.iteration).await.expect("ships");
    again.shipper.ship(&after.points()).await.expect("ships");
    crate::life::assert_restores(&mart, &after).await;
}
