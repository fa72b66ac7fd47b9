//! The driver and the model of one run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::ObjectStore;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use replica::hash::Hash;
use replica::history::{At, Moment, What};
use replica::names::{Branch, Names, Past, Snapshot};
use replica::ship::Terms;
use replica::store::{Fault, FaultyStore, Op};
use replica::{Adopt, Error, MartReplica, Opened, Position, Result, Stores};
use uuid::Uuid;

use crate::life::{Mart, Step, assert_files, steps};

/// All positions are compared every so many operations.
const COMPARE_EVERY: u64 = 12;
/// Of the positions that were compared before, so many are compared again.
const AGAIN: usize = 6;
/// A writer waits for a store that fails no longer than this many tries.
const TRIES: u32 = 60;

/// What a position holds.
#[derive(Debug, Clone)]
struct Known {
    /// The WAL, whole.
    wal: Vec<u8>,
    /// The step whose end it is, if it is one.
    step: Option<usize>,
    /// Hashes of database and WAL as they were first copied.
    copied: Option<(Hash, Hash)>,
}

struct Run {
    seed: u64,
    operation: u64,
    random: StdRng,
    steps: Vec<Step>,
    /// The store without faults: what is really there.
    truth: Mart,
    faulty: FaultyStore,
    /// The writer's machine.
    here: Mart,
    opened: Opened,
    /// The step that the writer's files are at, and durable.
    at: usize,
    known: BTreeMap<Position, Known>,
    /// Positions that were acknowledged and not let go.
    durable: BTreeSet<Position>,
    /// The newest acknowledgement; an exchange of files may lower the iteration inside an epoch.
    last: Option<Position>,
    named: BTreeMap<String, Known>,
    branches: Vec<(MartReplica, Known)>,
    deposed: Vec<(Mart, Opened, usize)>,
    /// Times of moments never get behind it.
    clock_us: i64,
    compared: usize,
}

/// Runs so many operations; how many moments were compared?
pub async fn run(store: Arc<dyn ObjectStore>, seed: u64, operations: u64) -> usize {
    let truth = Mart::on(Arc::clone(&store));
    truth.replica.create("here").await.expect("creates");
    let faulty = FaultyStore::new(store, |_| None);
    let here = truth.through(Arc::new(faulty.clone()));
    let opened = here.open().await.expect("opens");
    let mut run = Run {
        seed,
        operation: 0,
        random: StdRng::seed_from_u64(seed),
        steps: steps().into_iter().filter(|step| !step.name.starts_with("fork")).collect(),
        truth,
        faulty,
        here,
        opened,
        at: 0,
        known: BTreeMap::new(),
        durable: BTreeSet::new(),
        last: None,
        named: BTreeMap::new(),
        branches: Vec::new(),
        deposed: Vec::new(),
        clock_us: 0,
        compared: 0,
    };
    run.take(0).await;
    run.fail_at_random();
    for operation in 0..operations {
        run.operation = operation;
        run.one().await;
        if operation % COMPARE_EVERY == COMPARE_EVERY - 1 {
            run.compare(AGAIN).await;
        }
    }
    run.reopen(true).await;
    run.compare(usize::MAX).await;
    run.compared
}

impl Run {
    fn when(&self) -> String {
        format!("seed {}, operation {}", self.seed, self.operation)
    }

    /// From now on, calls of the writer fail now and then.
    fn fail_at_random(&mut self) {
        let random = Mutex::new(StdRng::seed_from_u64(self.random.random()));
        self.faulty.set_rule(move |call| {
            let mut random = random.lock().expect("nobody panics with it");
            let roll = random.random_range(0..400);
            match (call.op, call.key.as_ref().contains("/log/")) {
                (Op::Put, true) => match roll {
                    0..12 => Some(Fault::LostAck),
                    12..16 => Some(Fault::Refused),
                    16..20 => Some(Fault::Conflict),
                    20..26 => Some(Fault::Unavailable),
                    26..30 => Some(Fault::Slow(Duration::from_millis(1))),
                    _ => None,
                },
                (Op::Put, false) => match roll {
                    0..6 => Some(Fault::LostAck),
                    6..10 => Some(Fault::Torn),
                    10..14 => Some(Fault::Unavailable),
                    _ => None,
                },
                _ => (roll < 3).then_some(Fault::Unavailable),
            }
        });
    }

    async fn one(&mut self) {
        match self.random.random_range(0..100) {
            0..34 => self.go_on().await,
            34..40 => self.checkpoint_and_something().await,
            40..50 => self.name().await,
            50..60 => self.go_back().await,
            60..64 => self.branch().await,
            64..69 => self.replace().await,
            69..79 => self.sweep().await,
            79..89 => {
                let with_disk = self.random.random_bool(0.6);
                self.reopen(with_disk).await;
            }
            89..94 => self.depose().await,
            _ => self.let_the_deposed_try().await,
        }
    }

    // The writer's ordinary work.

    /// The next step of the fixture.
    async fn go_on(&mut self) {
        if self.at + 1 < self.steps.len() {
            self.take(self.at + 1).await;
        }
    }

    async fn take(&mut self, index: usize) {
        let step = self.steps[index].clone();
        if step.checkpoint {
            if self.begin_checkpoint().await {
                step.write(&self.opened.dir);
                self.at = index;
                self.ship_base().await;
            }
            return;
        }
        step.write(&self.opened.dir);
        self.at = index;
        if self.opened.shipper.needs_base() {
            self.ship_base().await;
        }
        self.ship().await;
    }

    async fn begin_checkpoint(&mut self) -> bool {
        for _ in 0..TRIES {
            match self.opened.shipper.begin_checkpoint().await {
                Ok(()) => return true,
                Err(error) if error.is_transient() => {}
                Err(error) => panic!("{}: {error}", self.when()),
            }
        }
        panic!("{}: no checkpoint can be begun", self.when())
    }

    async fn ship_base(&mut self) {
        let iteration = self.steps[self.at].iteration;
        for _ in 0..TRIES {
            match self.opened.shipper.ship_base(iteration).await {
                Ok(position) => return self.note(Position { wal_bytes: 0, ..position }, self.at),
                Err(error) if error.is_transient() => {}
                Err(error) => panic!("{}: {error}", self.when()),
            }
        }
        panic!("{}: no base can be shipped", self.when())
    }

    async fn ship(&mut self) {
        let points = self.steps[self.at].points();
        let before = self.opened.shipper.durable();
        for _ in 0..TRIES {
            match self.opened.shipper.ship(&points).await {
                Ok(position) => {
                    for point in points.iter().filter(|point| point.wal_end > before.wal_bytes) {
                        self.note(Position { wal_bytes: point.wal_end, ..position }, self.at);
                    }
                    return;
                }
                Err(error) if error.is_transient() => {}
                Err(error) => panic!("{}: {error}", self.when()),
            }
        }
        panic!("{}: nothing can be shipped", self.when())
    }

    /// A position was acknowledged.
    fn note(&mut self, position: Position, index: usize) {
        let known = self.content(position, index);
        self.durable.insert(position);
        self.last = Some(position);
        let before = self.known.insert(position, known.clone());
        if let Some(before) = before {
            assert_eq!(before.wal, known.wal, "{}: {position} is two things", self.when());
            self.known.insert(position, before);
        }
    }

    fn content(&self, position: Position, index: usize) -> Known {
        let step = &self.steps[index];
        let wal = step.wal().unwrap_or_default();
        let length = usize::try_from(position.wal_bytes).expect("small");
        let whole = step.iteration == position.iteration && wal.len() == length;
        Known { wal: wal[..length].to_vec(), step: whole.then_some(index), copied: None }
    }

    /// A checkpoint has run, and before its base something else comes and the writer may die.
    async fn checkpoint_and_something(&mut self) {
        let next = self.at + 1;
        if !self.steps.get(next).is_some_and(|step| step.checkpoint) || !self.begin_checkpoint().await {
            return;
        }
        self.steps[next].write(&self.opened.dir);
        let before = self.at;
        self.at = next;
        for _ in 0..self.random.random_range(0..3) {
            if self.random.random_bool(0.5) {
                let now = i64::try_from(self.operation).expect("small");
                self.set_names(|names| {
                    names.done.insert("sweep".into(), now);
                })
                .await;
                continue;
            }
            let claimed = self.opened.shipper.claim().await;
            assert!(claimed.is_ok() || claimed.is_err_and(|error| error.is_transient()), "{}", self.when());
        }
        if self.random.random_bool(0.5) {
            return self.ship_base().await;
        }
        if self.random.random_bool(0.3) {
            // With its disk everything since goes.
            self.at = before;
            return self.reopen(false).await;
        }
        self.reopen(true).await;
        assert!(
            matches!(self.opened.how, replica::How::Reused),
            "{}: files of a begun checkpoint were given up",
            self.when()
        );
    }

    // Names, restores, branches.

    async fn set_names(&mut self, change: impl Fn(&mut Names)) {
        for _ in 0..TRIES {
            let mut names = self.opened.shipper.names().clone();
            change(&mut names);
            match self.opened.shipper.set_names(names).await {
                Ok(()) => return,
                Err(error) if error.is_transient() => {}
                Err(error) => panic!("{}: {error}", self.when()),
            }
        }
        panic!("{}: nothing can be named", self.when())
    }

    async fn some_past(&mut self) -> Option<(Past, Known)> {
        let all = moments(&self.truth).await;
        let moment = all.choose(&mut self.random)?;
        let past = find(&self.truth, At::Position(moment.position)).await;
        let past = past.unwrap_or_else(|error| panic!("{}: {} is listed: {error}", self.when(), moment.position));
        self.learn(&all).await;
        Some((past, self.known[&moment.position].clone()))
    }

    async fn name(&mut self) {
        if self.named.len() > 3 {
            let first = self.named.keys().next().expect("some").clone();
            self.set_names(|names| drop(names.snapshots.remove(&first))).await;
            drop(self.named.remove(&first));
            return;
        }
        let Some((past, known)) = self.some_past().await else { return };
        let name = format!("s{:05}", self.operation);
        let snapshot = Snapshot { past, created_us: 0, automatic: false };
        self.set_names(|names| drop(names.snapshots.insert(name.clone(), snapshot.clone()))).await;
        self.named.insert(name, known);
    }

    async fn branch(&mut self) {
        let Some((past, known)) = self.some_past().await else { return };
        let stores = Stores { data: self.truth.store.clone(), log: self.truth.store.clone() };
        let child = MartReplica::new(stores, "duckdb/try".into(), Uuid::new_v4());
        let branch = Branch { child: child.owner().clone(), created_us: 0, past: past.clone() };
        self.set_names(|names| names.branches.push(branch.clone())).await;
        self.truth.replica.branch(&past, &child, "there").await.expect("branches");
        self.branches.push((child, known));
    }

    async fn go_back(&mut self) {
        let Some((past, known)) = self.some_past().await else { return };
        let Some(index) = known.step else { return };
        let Some(prepared) = self.prepare(&past).await else { return };
        match self.opened.shipper.go_back(prepared, "here").await {
            Ok(position) => {
                self.opened.dir = self.opened.shipper.dir().to_owned();
                self.at = index;
                self.note(position, index);
            }
            // The node then opens the mart anew: it went back, or it did not.
            Err(error) if error.is_transient() => self.open_either(index).await,
            Err(error) => panic!("{}: {error}", self.when()),
        }
        self.same_files().await;
    }

    async fn prepare(&mut self, past: &Past) -> Option<replica::ship::Prepared> {
        match self.here.replica.prepare(self.here.root.path(), past.clone()).await {
            Ok(prepared) => Some(prepared),
            Err(error) if error.is_transient() => None,
            Err(error) => panic!("{}: {error}", self.when()),
        }
    }

    /// The files are the step's, and continue the log.
    async fn same_files(&mut self) {
        assert_files(&self.opened.dir, &self.steps[self.at]);
        self.adopt().await;
    }

    async fn adopt(&mut self) -> Adopt {
        let point = self.steps[self.at].point();
        for _ in 0..TRIES {
            match self.opened.shipper.adopt(point).await {
                Ok(adopt) => return adopt,
                Err(error) if error.is_transient() => {}
                Err(error) => panic!("{}: {error}", self.when()),
            }
        }
        panic!("{}: the files can't be compared", self.when())
    }

    /// Other files, of a later checkpoint, take the mart's place.
    async fn replace(&mut self) {
        let now = self.steps[self.at].iteration;
        let is_later = |index: &usize| self.steps[*index].checkpoint && self.steps[*index].iteration > now;
        let bases: Vec<usize> = (0..self.steps.len()).filter(is_later).collect();
        let Some(index) = bases.choose(&mut self.random).copied() else { return };
        let other = self.here.root.path().join(format!("compact-{}", self.operation));
        std::fs::create_dir(&other).expect("makes");
        self.steps[index].write(&other);
        let replaced = self.opened.shipper.replace_files(&other, "here").await;
        match replaced {
            Ok(()) => {
                self.opened.dir = self.opened.shipper.dir().to_owned();
                if self.random.random_bool(0.2) {
                    // The machine dies before the base: the mart is what it was.
                    return self.reopen(false).await;
                }
                self.at = index;
                self.ship_base().await;
            }
            Err(error) if error.is_transient() => self.reopen(false).await,
            Err(error) => panic!("{}: {error}", self.when()),
        }
    }

    async fn sweep(&mut self) {
        let all = moments(&self.truth).await;
        self.learn(&all).await;
        let Some(horizon) = (0..all.len()).collect::<Vec<_>>().choose(&mut self.random).copied() else { return };
        // The clock of sweeps goes on faster, so that what is doomed is deleted some time.
        self.clock_us = self.clock_us.max(all.last().expect("some").time_us) + 10;
        let keep_us = self.clock_us - all[horizon].time_us;
        let grace_us = *[0, 1, 15, 1000].choose(&mut self.random).expect("some");
        let terms = Terms { now_us: self.clock_us, keep_us, grace_us };
        let look = async {
            let looked = self.here.replica.look().await?;
            self.here.replica.ledger(&looked).await
        };
        let ledger = match look.await {
            Ok(ledger) => ledger,
            Err(error) if error.is_transient() => return,
            Err(error) => panic!("{}: {error}", self.when()),
        };
        match self.opened.shipper.sweep(ledger, terms, &|| false).await {
            Ok(_) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => panic!("{}: {error}", self.when()),
        }
        let at_horizon = all.iter().rposition(|moment| moment.time_us == all[horizon].time_us).expect("itself");
        let left: BTreeSet<Position> = moments(&self.truth).await.iter().map(|moment| moment.position).collect();
        for moment in &all[at_horizon..] {
            assert!(left.contains(&moment.position), "{}: {} is in the window and gone", self.when(), moment.position);
        }
        self.durable
            .retain(|position| left.contains(position) || all[at_horizon..].iter().any(|m| m.position == *position));
    }

    // Machines and other writers.

    /// The writer dies and is opened again, with its disk or without.
    async fn reopen(&mut self, with_disk: bool) {
        if !with_disk {
            self.here = self.truth.through(Arc::new(self.faulty.clone()));
        }
        self.open().await;
        if !matches!(self.opened.how, replica::How::Reused) {
            self.find_step();
        }
        match self.adopt().await {
            Adopt::Match => {
                let step = &self.steps[self.at];
                if !step.ends.is_empty() {
                    self.ship().await;
                }
            }
            Adopt::NeedsBase => self.ship_base().await,
        }
    }

    async fn open(&mut self) {
        for _ in 0..TRIES {
            match self.here.open().await {
                Ok(opened) => {
                    self.opened = opened;
                    return;
                }
                Err(error) if error.is_transient() => {}
                Err(error) => panic!("{}: {error}", self.when()),
            }
        }
        panic!("{}: the mart can't be opened", self.when())
    }

    /// After an exchange whose outcome is unknown.
    async fn open_either(&mut self, index: usize) {
        let before = self.at;
        self.here = self.truth.through(Arc::new(self.faulty.clone()));
        self.open().await;
        let durable = self.opened.shipper.durable();
        let is = |step: &Step| (step.iteration, step.point().wal_end) == (durable.iteration, durable.wal_bytes);
        self.at = if is(&self.steps[index]) { index } else { before };
        assert!(is(&self.steps[self.at]), "{}: neither before nor after: {durable}", self.when());
    }

    /// What was restored is what was durable last.
    fn find_step(&mut self) {
        let durable = self.opened.shipper.durable();
        let last = self.last.expect("something was durable");
        assert_eq!(
            (durable.iteration, durable.wal_bytes),
            (last.iteration, last.wal_bytes),
            "{}: durable and lost",
            self.when()
        );
        self.at = self.known[&last].step.expect("a step was shipped whole");
        assert_files(&self.opened.dir, &self.steps[self.at]);
    }

    async fn depose(&mut self) {
        let next = self.truth.through(Arc::new(self.faulty.clone()));
        let old = std::mem::replace(&mut self.here, next);
        let at = self.at;
        for _ in 0..TRIES {
            match self.here.open().await {
                Ok(opened) => {
                    let deposed = std::mem::replace(&mut self.opened, opened);
                    self.deposed.push((old, deposed, at));
                    self.find_step();
                    self.adopt().await;
                    return;
                }
                Err(error) if error.is_transient() => {}
                Err(error) => panic!("{}: {error}", self.when()),
            }
        }
        panic!("{}: nobody can take over", self.when())
    }

    /// Deposed writers try what they can; nothing of it lands.
    async fn let_the_deposed_try(&mut self) {
        let head = |mart: &Mart| {
            let replica = mart.replica.clone();
            async move { replica.look().await.expect("looks") }
        };
        let before = head(&self.truth).await;
        let when = self.when();
        for (mart, opened, at) in &mut self.deposed {
            let shipper = &mut opened.shipper;
            let tried: Result<()> = match self.random.random_range(0..5) {
                0 => shipper.claim().await,
                1 => shipper.set_names(Names::default()).await,
                2 => match self.steps.get(*at + 1).filter(|step| !step.checkpoint) {
                    Some(step) => {
                        step.write(&opened.dir);
                        shipper.ship(&step.points()).await.map(drop)
                    }
                    None => shipper.rebase("deposed").await,
                },
                3 => shipper.rebase("deposed").await,
                _ => match mart.replica.look().await {
                    Ok(looked) => {
                        let past = mart.replica.find(&looked, At::Now).await;
                        match past {
                            Ok(past) => match mart.replica.prepare(mart.root.path(), past).await {
                                Ok(prepared) => shipper.go_back(prepared, "deposed").await.map(drop),
                                Err(error) => Err(error),
                            },
                            Err(error) => Err(error),
                        }
                    }
                    Err(error) => Err(error),
                },
            };
            match tried {
                Err(Error::Fenced { .. } | Error::Diverged(_) | Error::Misuse(_)) => {}
                Err(error) if error.is_transient() => {}
                other => panic!("{when}: a deposed writer was told {other:?}"),
            }
        }
        let after = head(&self.truth).await;
        assert_eq!(
            (before.newest_us(), &before.names),
            (after.newest_us(), &after.names),
            "{when}: something deposed landed"
        );
    }

    // Comparing.

    /// Positions that no operation acknowledged: of epochs, and of commits whose acknowledgement got lost.
    async fn learn(&mut self, all: &[Moment]) {
        for (index, moment) in all.iter().enumerate() {
            if self.known.contains_key(&moment.position) {
                continue;
            }
            let before = index.checked_sub(1).map(|before| all[before].position);
            let known = match before.and_then(|before| self.known.get(&before)) {
                Some(before) if moment.what == What::Epoch && before.wal.len() as u64 == moment.position.wal_bytes => {
                    before.clone()
                }
                _ => {
                    let past = find(&self.truth, At::Position(moment.position)).await.expect("it is listed");
                    let (db, wal) = copy(&self.truth.replica, &past).await.expect("it is listed");
                    let step = self.steps.iter().position(|step| {
                        step.iteration == moment.position.iteration && step.wal().unwrap_or_default() == wal
                    });
                    Known { copied: Some((Hash::of(&db), Hash::of(&wal))), wal, step }
                }
            };
            self.known.insert(moment.position, known);
        }
    }

    async fn compare(&mut self, again: usize) {
        let all = moments(&self.truth).await;
        assert!(all.windows(2).all(|pair| pair[0].time_us <= pair[1].time_us), "{}: times go back", self.when());
        let listed: BTreeSet<Position> = all.iter().map(|moment| moment.position).collect();
        let gone: Vec<_> = self.durable.difference(&listed).collect();
        assert!(gone.is_empty(), "{}: durable, not let go, and not listed: {gone:?}", self.when());
        self.learn(&all).await;
        let (old, new): (Vec<Moment>, Vec<Moment>) =
            all.into_iter().partition(|moment| self.known[&moment.position].copied.is_some());
        let old: Vec<Moment> = old.choose_multiple(&mut self.random, again).copied().collect();
        for moment in old.iter().chain(&new) {
            let past = find(&self.truth, At::Position(moment.position)).await;
            let past = past.unwrap_or_else(|error| panic!("{}: {} is listed: {error}", self.when(), moment.position));
            let known = self.known[&moment.position].clone();
            let copied = self.same(&self.truth.replica.clone(), &past, &known).await;
            self.known.get_mut(&moment.position).expect("known").copied = Some(copied);
        }
        for (name, known) in self.named.clone() {
            let past = self.truth.replica.look().await.expect("looks").names.snapshots[&name].past.clone();
            self.same(&self.truth.replica.clone(), &past, &known).await;
        }
        for (child, known) in self.branches.clone() {
            let looked = child.look().await.expect("looks");
            let past = child.find(&looked, At::Now).await.expect("a branch has a moment");
            self.same(&child, &past, &known).await;
        }
    }

    async fn same(&mut self, replica: &MartReplica, past: &Past, known: &Known) -> (Hash, Hash) {
        let when = format!("{}: {}", self.when(), past.position);
        let dir = tempfile::tempdir().expect("a directory");
        replica.copy(past, dir.path()).await.unwrap_or_else(|error| panic!("{when}: {error}"));
        if let Some(index) = known.step {
            assert_files(dir.path(), &self.steps[index]);
        }
        let (db, wal) = files(dir.path());
        assert!(wal == known.wal, "{when}: the WAL is another");
        let copied = (Hash::of(&db), Hash::of(&wal));
        assert_eq!(copied, known.copied.unwrap_or(copied), "{when} is not what it was");
        self.compared += 1;
        copied
    }
}

async fn moments(mart: &Mart) -> Vec<Moment> {
    let looked = mart.replica.look().await.expect("looks");
    mart.replica.moments(&looked, 0..i64::MAX, usize::MAX).await.expect("lists")
}

async fn find(mart: &Mart, at: At) -> Result<Past> {
    let looked = mart.replica.look().await?;
    mart.replica.find(&looked, at).await
}

async fn copy(replica: &MartReplica, past: &Past) -> Result<(Vec<u8>, Vec<u8>)> {
    let dir = tempfile::tempdir().expect("a directory");
    replica.copy(past, dir.path()).await?;
    Ok(files(dir.path()))
}

fn files(dir: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
    let db = std::fs::read(dir.join("mart.db")).expect("a database");
    (db, std::fs::read(dir.join("mart.db.wal")).unwrap_or_default())
}
