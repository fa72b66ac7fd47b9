//! Sweeps: what the window and names hold stays whole to the byte, what they let go is gone, and nothing else is touched.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use replica::history::{At, Moment};
use replica::names::{Branch, Past, Snapshot};
use replica::ship::{Swept, Terms};
use replica::{Adopt, Error, MartReplica, Opened, Position, Stores};
use uuid::Uuid;

use crate::life::{Mart, Step, advance, assert_files, step, steps};

type Copy = (Vec<u8>, Option<Vec<u8>>);

async fn copy(replica: &MartReplica, past: &Past) -> replica::Result<Copy> {
    let dir = tempfile::tempdir().expect("a directory");
    replica.copy(past, dir.path()).await?;
    let db = std::fs::read(dir.path().join("mart.db")).expect("a database");
    Ok((db, std::fs::read(dir.path().join("mart.db.wal")).ok()))
}

async fn moments(mart: &Mart) -> Vec<Moment> {
    let looked = mart.replica.look().await.expect("looks");
    mart.replica.moments(&looked, 0..i64::MAX, usize::MAX).await.expect("lists")
}

async fn find(mart: &Mart, position: Position) -> replica::Result<Past> {
    let looked = mart.replica.look().await?;
    mart.replica.find(&looked, At::Position(position)).await
}

async fn sweep(mart: &Mart, opened: &mut Opened, terms: Terms) -> Swept {
    let looked = mart.replica.look().await.expect("looks");
    let ledger = mart.replica.ledger(&looked).await.expect("reads");
    opened.shipper.sweep(ledger, terms, &|| false).await.expect("sweeps")
}

async fn keys(mart: &Mart) -> BTreeSet<String> {
    let objects: Vec<_> = mart.store.list(None).try_collect().await.expect("lists");
    objects.into_iter().map(|object| object.location.to_string()).collect()
}

async fn go_back(mart: &Mart, opened: &mut Opened, to: Position) {
    let past = find(mart, to).await.expect("found");
    let prepared = mart.replica.prepare(mart.root.path(), past).await.expect("fetches");
    opened.shipper.go_back(prepared, "here").await.expect("goes back");
    opened.dir = opened.shipper.dir().to_owned();
}

/// A mart that lived through all steps, went back to one, and went on from there.
async fn lived() -> (Mart, Opened, Step) {
    let mart = Mart::create().await;
    let mut opened = mart.open().await.expect("opens");
    let mut ended = BTreeMap::new();
    for step in steps() {
        ended.insert(step.name.clone(), advance(&mut opened, &step).await.expect("ships"));
        // Moments have different times.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    go_back(&mart, &mut opened, ended["mixed"]).await;
    assert_eq!(opened.shipper.adopt(step("mixed").point()).await.expect("adopts"), Adopt::Match);
    let last = step("checkpoint");
    advance(&mut opened, &last).await.expect("ships");
    (mart, opened, last)
}

#[tokio::test]
async fn after_a_sweep_every_moment_in_the_window_is_what_it_was_and_earlier_ones_are_gone() {
    let count = {
        let (mart, _, _) = lived().await;
        moments(&mart).await.len()
    };
    for horizon in 0..count {
        let (mart, mut opened, last) = lived().await;
        let all = moments(&mart).await;
        let mut before = BTreeMap::new();
        for moment in &all {
            let past = find(&mart, moment.position).await.expect("found");
            before.insert(moment.position, copy(&mart.replica, &past).await.expect("copies"));
        }
        let stranger = mart.key("pack/stranger");
        mart.store.put(&stranger, "not ours to delete".into()).await.expect("puts");
        let now_us = all.last().expect("moments").time_us;
        let terms = Terms { now_us, keep_us: now_us - all[horizon].time_us, grace_us: 1 };
        let there = keys(&mart).await;
        let first = sweep(&mart, &mut opened, terms).await;
        assert_eq!(first.deleted, 0, "nothing goes before its grace is over");
        assert!(there.is_subset(&keys(&mart).await), "nothing is gone yet");
        let second = sweep(&mart, &mut opened, Terms { now_us: now_us + 1, keep_us: terms.keep_us + 1, ..terms }).await;
        assert!(second.plan.doomed.is_empty(), "{:?}", second.plan);
        assert_eq!(second.deleted > 0, !first.plan.doomed.is_empty());
        assert!(keys(&mart).await.contains(stranger.as_ref()), "what nobody knows is left alone");

        // The same time may mean several moments; the last of them is at the horizon.
        let time = all[horizon].time_us;
        let at_horizon = all.iter().rposition(|moment| moment.time_us == time).expect("itself");
        for (index, moment) in all.iter().enumerate() {
            let found = find(&mart, moment.position).await;
            match found {
                Ok(past) => {
                    let copied = copy(&mart.replica, &past).await;
                    if index >= at_horizon {
                        assert!(copied.expect("copies") == before[&moment.position], "{moment:?} changed");
                    } else if let Ok(copied) = copied {
                        assert!(copied == before[&moment.position], "what is found is right or not found");
                    }
                }
                Err(Error::NotFound(_)) => {
                    assert!(index < at_horizon, "{moment:?} is gone with the horizon at {horizon}")
                }
                Err(other) => panic!("{moment:?}: {other}"),
            }
        }
        // It goes on, and comes back elsewhere.
        opened.shipper.begin_checkpoint().await.expect("begins");
        let elsewhere = mart.elsewhere();
        let restored = elsewhere.open().await.expect("restores");
        assert_files(&restored.dir, &last);
    }
}

#[tokio::test]
async fn snapshots_and_branches_hold_their_moments_until_they_are_let_go() {
    let (mart, mut opened, _) = lived().await;
    let all = moments(&mart).await;
    let mut held = BTreeMap::new();
    let mut names = opened.shipper.names().clone();
    for (index, moment) in all.iter().enumerate().filter(|(index, _)| index % 3 == 0) {
        let past = find(&mart, moment.position).await.expect("found");
        held.insert(index, copy(&mart.replica, &past).await.expect("copies"));
        names.snapshots.insert(format!("s{index:03}"), Snapshot { past, created_us: 0, automatic: false });
    }
    let stores = Stores { data: mart.store.clone(), log: mart.store.clone() };
    let child = MartReplica::new(stores, "duckdb/try".into(), Uuid::new_v4());
    let parents = find(&mart, all[4].position).await.expect("found");
    let of_branch = copy(&mart.replica, &parents).await.expect("copies");
    names.branches.push(Branch { child: child.owner().clone(), created_us: 0, past: parents.clone() });
    opened.shipper.set_names(names).await.expect("is named");
    mart.replica.branch(&parents, &child, "there").await.expect("branches");

    let now_us = all.last().expect("moments").time_us;
    for turn in 1..=3 {
        sweep(&mart, &mut opened, Terms { now_us: now_us + turn, keep_us: 0, grace_us: 0 }).await;
    }
    let names = opened.shipper.names().clone();
    assert!(!names.kept.is_empty() && names.doomed.is_empty(), "{names:?}");
    for (index, before) in &held {
        let past = &names.snapshots[&format!("s{index:03}")].past;
        assert!(copy(&mart.replica, past).await.expect("is held") == *before, "moment {index}");
    }
    let looked = child.look().await.expect("looks");
    let now = child.find(&looked, At::Now).await.expect("found");
    assert!(copy(&child, &now).await.expect("is held") == of_branch);
    let root = tempfile::tempdir().expect("a directory");
    child.open_writer(root.path(), "there").await.expect("a branch opens whatever its parent swept");

    // A swept mart goes back to a moment that only a snapshot holds, and forgets it afterwards.
    let (index, before) = held.iter().next().expect("some");
    let past = names.snapshots[&format!("s{index:03}")].past.clone();
    let prepared = mart.replica.prepare(mart.root.path(), past).await.expect("fetches");
    opened.shipper.go_back(prepared, "here").await.expect("goes back");
    let mut none = opened.shipper.names().clone();
    none.snapshots.clear();
    none.branches.clear();
    opened.shipper.set_names(none).await.expect("is named");
    for turn in 4..=6 {
        sweep(&mart, &mut opened, Terms { now_us: now_us + turn * 1_000_000_000, keep_us: 0, grace_us: 0 }).await;
    }
    let looked = mart.replica.look().await.expect("looks");
    let now = mart.replica.find(&looked, At::Now).await.expect("found");
    assert!(copy(&mart.replica, &now).await.expect("its own moment stays") == *before);
}

#[tokio::test]
async fn a_hint_from_before_a_sweep_does_not_lead_astray() {
    let (mart, mut opened, _) = lived().await;
    let head = mart.store.get(&mart.key("head")).await.expect("there").bytes().await.expect("reads");
    let all = moments(&mart).await;
    let now_us = all.last().expect("moments").time_us;
    for turn in 1..=3 {
        sweep(&mart, &mut opened, Terms { now_us: now_us + turn, keep_us: 0, grace_us: 0 }).await;
    }
    let looked = mart.replica.look().await.expect("looks");
    let now = mart.replica.find(&looked, At::Now).await.expect("found").position;
    for hint in
        [head.to_vec(), br#"{"slot":1,"base_slot":0}"#.to_vec(), br#"{"slot":3,"base_slot":0}"#.to_vec(), vec![]]
    {
        mart.store.put(&mart.key("head"), hint.into()).await.expect("puts");
        let looked = mart.replica.look().await.expect("looks");
        assert_eq!(mart.replica.find(&looked, At::Now).await.expect("found").position, now);
    }
}

/// A deposed writer's sweep is refused at its slot, before anything is deleted.
#[tokio::test]
async fn a_deposed_writer_sweeps_nothing() {
    let (mart, mut opened, _) = lived().await;
    let looked = mart.replica.look().await.expect("looks");
    let ledger = mart.replica.ledger(&looked).await.expect("reads");
    let elsewhere = mart.elsewhere();
    let _taken = elsewhere.open().await.expect("takes over");
    let before = keys(&mart).await;
    let terms = Terms { now_us: i64::MAX / 2, keep_us: 0, grace_us: 0 };
    let error = opened.shipper.sweep(ledger, terms, &|| false).await.expect_err("it is deposed");
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert!(before.is_subset(&keys(&mart).await));
}

#[tokio::test]
async fn what_is_being_read_is_let_go_but_not_deleted() {
    let (mart, mut opened, _) = lived().await;
    let all = moments(&mart).await;
    let past = find(&mart, all[0].position).await.expect("found");
    let before = copy(&mart.replica, &past).await.expect("copies");
    let terms = Terms { now_us: all.last().expect("moments").time_us + 1, keep_us: 0, grace_us: 0 };
    let looked = mart.replica.look().await.expect("looks");
    let ledger = mart.replica.ledger(&looked).await.expect("reads");
    let swept = opened.shipper.sweep(ledger, terms, &|| true).await.expect("sweeps");
    assert!(!swept.plan.doomed.is_empty() && swept.deleted == 0);
    assert!(matches!(find(&mart, all[0].position).await, Err(Error::NotFound(_))), "nobody begins to read it");
    assert!(copy(&mart.replica, &past).await.expect("whoever had begun goes on") == before);
    assert!(sweep(&mart, &mut opened, terms).await.deleted > 0, "afterwards it goes");
}

/// Fetching takes a while, and a sweep may come between: what the mart then builds on is not deleted, however late.
#[tokio::test]
async fn a_moment_that_was_swept_while_it_was_fetched_is_not_gone_back_to_or_stays() {
    let (mart, mut opened, _) = lived().await;
    let all = moments(&mart).await;
    let past = find(&mart, all[1].position).await.expect("found");
    let before = copy(&mart.replica, &past).await.expect("copies");
    let prepared = mart.replica.prepare(mart.root.path(), past).await.expect("fetches");
    let (now_us, grace_us) = (all.last().expect("moments").time_us + 1, 1_000_000);
    sweep(&mart, &mut opened, Terms { now_us, keep_us: 0, grace_us }).await;
    if opened.shipper.go_back(prepared, "here").await.is_err() {
        return;
    }
    // Once a day: the next one deletes what the first let go.
    for turn in 1..=2 {
        let now_us = now_us + turn * grace_us;
        sweep(&mart, &mut opened, Terms { now_us, keep_us: 0, grace_us }).await;
    }
    let looked = mart.replica.look().await.expect("looks");
    let now = mart.replica.find(&looked, At::Now).await.expect("found");
    assert!(copy(&mart.replica, &now).await.expect("the mart can be restored") == before);
}
