//! One pass over what restores need: records in order, manifests, then the blocks of all packs.
//!
//! A damaged record ends what can be said about the WAL up to the next base; everything else goes on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use object_store::path::Path as Key;

use super::head::{older, older_object};
use super::walk::Walk;
use super::{Problem, Report, Scope, Versions, What};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::log::Log;
use crate::names::Names;
use crate::pack::{self, BlockRef};
use crate::position::Position;
use crate::record::{Detour, Header, Kind, Owner, Record, Stretch};
use crate::restore;

const PARALLEL_READS: usize = 8;
/// What DuckDB uses; only asked when the manifest that says so is damaged.
const BLOCK_BYTES: u64 = 256 << 10;

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Depth {
    Records,
    Manifests,
    Packs,
}

/// What would make a damaged object whole.
#[derive(Debug, Clone)]
pub(super) enum Need {
    /// A record with this hash or, where nothing says that, with this predecessor.
    Record { log: Log, slot: u64, hash: Option<Hash>, prev: Option<Hash> },
    /// The manifest that a base names.
    Manifest { log: Log, slot: u64, name: String, hash: Hash, iteration: u64 },
    /// A pack with these blocks.
    Pack(Arc<str>),
    /// The records of a full range.
    Segment { log: Log, number: u64 },
    /// Nothing that may be done without a person.
    Person,
}

/// A block where it lies, and how long it is unpacked.
pub(super) type Stored = (BlockRef, u64);

/// What is known so far.
pub(super) struct Survey<'a> {
    pub log: &'a Log,
    pub versions: Option<&'a dyn Versions>,
    pub depth: Depth,
    pub found: BTreeMap<Key, (Problem, Need)>,
    /// Slots of this log that are listed.
    pub listed: BTreeSet<u64>,
    /// Hashes of records that were read whole, by log.
    pub hashes: BTreeMap<Owner, HashMap<u64, Hash>>,
    /// By pack and offset.
    pub blocks: BTreeMap<Arc<str>, BTreeMap<u32, Stored>>,
    pub objects: u64,
    pub bytes: u64,
    floor: u64,
    /// What names and routes say a slot's record is.
    named: HashMap<u64, Hash>,
    counted: HashSet<Key>,
    block_bytes: u64,
    position: Option<Position>,
}

/// A record, or why there is none.
pub(super) type Sight = std::result::Result<Record, Fault>;

/// An object that can't be used.
#[derive(Debug)]
pub(super) struct Fault {
    pub key: Key,
    pub what: What,
    pub reason: String,
}

/// What came before in the same log.
struct Before {
    slot: u64,
    /// Its hash, if it could be read, be it from an older version.
    hash: Option<Hash>,
    /// Its key, if it is damaged.
    damaged: Option<Key>,
}

impl<'a> Survey<'a> {
    pub(super) async fn run(
        log: &'a Log,
        versions: Option<&'a dyn Versions>,
        scope: Scope,
        depth: Depth,
    ) -> Result<Self> {
        let mut survey = Self {
            log,
            versions,
            depth,
            found: BTreeMap::new(),
            listed: BTreeSet::new(),
            hashes: BTreeMap::new(),
            blocks: BTreeMap::new(),
            objects: 0,
            bytes: 0,
            floor: 0,
            named: HashMap::new(),
            counted: HashSet::new(),
            block_bytes: BLOCK_BYTES,
            position: None,
        };
        let Some(head) = survey.find_head().await? else { return Ok(survey) };
        if matches!(head.header.kind, Kind::Drop {}) {
            return Err(Error::Dropped);
        }
        survey.position = head.header.tip.map(|tip| Position {
            epoch: head.header.epoch,
            iteration: tip.iteration,
            wal_bytes: tip.durable,
        });
        let names = survey.names(&head.header).await?;
        survey.floor = names.floor.max(1);
        match scope {
            Scope::Head => survey.route(&head.header.route(head.hash)).await?,
            Scope::Window => survey.window(&names, head.header.slot).await?,
        }
        // Fences are never swept and never copied.
        survey.single(head.header.fence_slot, 0).await?;
        survey.single(head.header.names_slot, survey.floor).await?;
        survey.check_segments(head.header.slot).await?;
        if depth == Depth::Packs {
            survey.check_packs().await?;
        }
        Ok(survey)
    }

    pub(super) fn report(&self) -> Report {
        let problems = self.found.values().map(|(problem, _)| problem.clone()).collect();
        Report { position: self.position, objects: self.objects, bytes: self.bytes, problems }
    }

    /// Notes an object that was read; each counts once.
    pub(super) fn count(&mut self, key: &Key, bytes: u64) {
        self.bytes += bytes;
        if self.counted.insert(key.clone()) {
            self.objects += 1;
        }
    }

    /// Notes a problem. The first thing found about an object stands.
    pub(super) fn blame(&mut self, fault: Fault, need: Need) {
        let Fault { key, what, reason } = fault;
        if self.counted.insert(key.clone()) {
            self.objects += 1;
        }
        let problem = Problem { key: key.to_string(), what, reason };
        self.found.entry(key).or_insert((problem, need));
    }

    /// The names that count; if they are damaged, the newest ones before them that can be read.
    async fn names(&mut self, head: &Header) -> Result<Names> {
        let mut slot = head.names_slot;
        while slot > 0 {
            let before = match sight(self.log, slot, self.floor).await? {
                Ok(record) => match Names::decode(&record) {
                    Ok(names) => return Ok(names),
                    Err(_) => self.log.header(slot - 1).await,
                },
                Err(fault) => {
                    self.blame(fault, self.record_need(slot));
                    if let Some(record) = self.instead(self.log, slot, None, None).await?
                        && let Ok(names) = Names::decode(&record)
                    {
                        return Ok(names);
                    }
                    self.log.header(slot - 1).await
                }
            };
            slot = match before {
                Ok(header) => header.map_or(0, |header| header.names_slot),
                Err(Error::Corrupt { .. }) => 0,
                Err(error) => return Err(error),
            };
        }
        Ok(Names::default())
    }

    fn record_need(&self, slot: u64) -> Need {
        Need::Record { log: self.log.clone(), slot, hash: self.named.get(&slot).copied(), prev: None }
    }

    /// All slots that are still in the log, and what is held of relatives.
    async fn window(&mut self, names: &Names, head: u64) -> Result<()> {
        let own = self.log.layout.owner().clone();
        let is_own = |stretch: &Stretch| stretch.owner.as_ref().is_none_or(|owner| *owner == own);
        let mut abroad: BTreeMap<(Option<Owner>, u64, u64), &[Stretch]> = BTreeMap::new();
        for past in names.held() {
            self.named.extend(past.route.iter().filter(|s| is_own(s)).map(|stretch| (stretch.last, stretch.hash)));
            let (Some(first), Some(last)) = (past.route.first(), past.route.last()) else { continue };
            if !is_own(first) {
                // Of ways that begin and end in the same logs at the same slots, the longest covers all.
                let longest = abroad.entry((first.owner.clone(), first.first, last.first)).or_insert(&past.route);
                if longest.last().is_some_and(|known| known.last < last.last) {
                    *longest = &past.route;
                }
            }
        }
        for slots in names.slots(head) {
            if !slots.is_empty() {
                self.range(&self.log.clone(), slots, &mut Walk::default()).await?;
            }
        }
        for route in abroad.into_values() {
            self.route(route).await?;
        }
        Ok(())
    }

    /// What one record builds on.
    async fn route(&mut self, stretches: &[Stretch]) -> Result<()> {
        let mut walk = Walk::default();
        self.stretches(stretches, &mut walk).await
    }

    async fn stretches(&mut self, stretches: &[Stretch], walk: &mut Walk) -> Result<()> {
        for (index, stretch) in stretches.iter().enumerate() {
            if index > 0 {
                walk.turn();
            }
            let relative = stretch.owner.as_ref().filter(|owner| *owner != self.log.layout.owner());
            let log = relative.map_or_else(|| self.log.clone(), |owner| self.log.of(owner));
            walk.read_from(relative.map(|_| log.layout.clone()));
            let end = Box::pin(self.range(&log, stretch.first..=stretch.last, walk)).await?;
            if let Some(end) = end {
                let reason = "it is not the one that is built on";
                if !self.is(&log, end, stretch.hash, reason) {
                    walk.lose();
                }
            }
        }
        Ok(())
    }

    /// Records of a log in order; says what the last one was.
    async fn range(&mut self, log: &Log, slots: RangeInclusive<u64>, walk: &mut Walk) -> Result<Option<Before>> {
        let own = log.layout.owner() == self.log.layout.owner();
        let floor = if own { self.floor } else { 0 };
        let mut before: Option<Before> = None;
        let reader = log.clone();
        let mut sights = stream::iter(slots)
            .map(move |slot| {
                let log = reader.clone();
                async move { (slot, sight(&log, slot, floor).await) }
            })
            .buffered(PARALLEL_READS);
        while let Some((slot, seen)) = sights.next().await {
            let prev = before.as_ref().and_then(|before| before.hash);
            let (record, damaged) = match seen? {
                Ok(record) => (Some(record), None),
                Err(fault) => {
                    let key = fault.key.clone();
                    let hash = self.named.get(&slot).copied().filter(|_| own);
                    self.blame(fault, Need::Record { log: log.clone(), slot, hash, prev });
                    (self.instead(log, slot, hash, prev).await?, Some(key))
                }
            };
            let now = Before { slot, hash: record.as_ref().map(|record| record.hash), damaged };
            if let (Some(before), Some(record)) = (before.replace(now), &record) {
                let reason = "the record after it was built on another one";
                if !self.is(log, before, record.header.prev, reason) {
                    walk.lose();
                }
            }
            let Some(record) = record else {
                walk.lose();
                continue;
            };
            if own && self.named.get(&slot).is_some_and(|hash| *hash != record.hash) {
                self.blame(fork(log, slot, "it is not the one that a snapshot or a branch builds on"), Need::Person);
                walk.lose();
            }
            self.take(log, record, walk).await?;
        }
        Ok(before)
    }

    /// What builds on a record says which it is. If it is another one, it is the wrong one.
    fn is(&mut self, log: &Log, found: Before, expected: Hash, reason: &str) -> bool {
        if let Some(key) = &found.damaged {
            self.expect(key, expected);
        }
        let another = found.hash.is_some_and(|hash| hash != expected);
        if another {
            self.blame(fork(log, found.slot, reason), Need::Person);
        }
        !another
    }

    /// An older version of a damaged record, to go on with: what it names must be looked at too.
    async fn instead(&self, log: &Log, slot: u64, hash: Option<Hash>, prev: Option<Hash>) -> Result<Option<Record>> {
        let Some(versions) = self.versions else { return Ok(None) };
        let fits = |record: &Record| match (hash, prev) {
            (Some(hash), _) => record.hash == hash,
            (None, Some(prev)) => record.header.prev == prev,
            (None, None) => true,
        };
        older(log, slot, versions, fits).await
    }

    /// A damaged record's hash is known from what builds on it.
    fn expect(&mut self, key: &Key, expected: Hash) {
        if let Some((_, Need::Record { hash, .. })) = self.found.get_mut(key) {
            *hash = Some(expected);
        }
    }

    /// Looks into a record that is whole.
    async fn take(&mut self, log: &Log, record: Record, walk: &mut Walk) -> Result<()> {
        let header = &record.header;
        let own = log.layout.owner() == self.log.layout.owner();
        self.count(&log.layout.slot(header.slot), record.payload.len() as u64);
        self.hashes.entry(log.layout.owner().clone()).or_default().insert(header.slot, record.hash);
        if let Some(detour) = header.detour.as_deref().filter(|detour| detour.resumes == header.slot && !walk.turned())
        {
            self.detour(log, detour, walk).await?;
        }
        let foreign = (!own).then(|| log.layout.clone());
        match &header.kind {
            Kind::Base { manifest, manifest_hash, iteration, .. } if self.depth >= Depth::Manifests => {
                self.manifest(log, header.slot, (manifest, *manifest_hash, *iteration)).await?;
            }
            Kind::Commits { table_bytes, .. } if *table_bytes > 0 => {
                let object = log.layout.slot(header.slot);
                let table = usize::try_from(*table_bytes).ok().and_then(|end| record.payload.get(..end));
                let table = table.ok_or_else(|| Error::corrupt(object.as_ref(), "block table longer than the payload"));
                match table.and_then(|table| pack::decode_table(object.as_ref(), table, foreign.as_ref())) {
                    Ok(blocks) => self.remember(log, blocks.into_values()),
                    Err(error) => self.blame(corrupt(object, &error), Need::Person),
                }
            }
            _ => {}
        }
        let key = log.layout.slot(header.slot);
        if let Err(error) = walk.take(record).await {
            match error {
                Error::Corrupt { .. } | Error::Dropped => self.blame(corrupt(key, &error), Need::Person),
                other => return Err(other),
            }
        }
        Ok(())
    }

    /// A fence that goes on elsewhere: what it goes on from is read first.
    async fn detour(&mut self, log: &Log, detour: &Detour, walk: &mut Walk) -> Result<()> {
        *walk = Walk::default();
        let own = log.layout.owner();
        // As this survey's own log names them.
        let before: Vec<Stretch> = detour
            .before
            .iter()
            .map(|stretch| Stretch { owner: Some(stretch.owner.as_ref().unwrap_or(own).clone()), ..stretch.clone() })
            .collect();
        self.stretches(&before, walk).await?;
        walk.turn();
        walk.read_from((own != self.log.layout.owner()).then(|| log.layout.clone()));
        Ok(())
    }

    async fn manifest(&mut self, log: &Log, slot: u64, named: (&str, Hash, u64)) -> Result<()> {
        let Some(key) = log.layout.named(named.0) else {
            let fault =
                Fault { key: log.layout.slot(slot), what: What::Corrupt, reason: "it names no manifest".into() };
            self.blame(fault, Need::Person);
            return Ok(());
        };
        let (name, hash, iteration) = named;
        let need = || Need::Manifest { log: log.clone(), slot, name: name.to_owned(), hash, iteration };
        let checked = match log.fetch_object(&key).await? {
            Some(bytes) => {
                self.count(&key, bytes.len() as u64);
                restore::check_manifest(log, slot, named, &bytes).map_err(|error| corrupt(key.clone(), &error))
            }
            None => Err(missing(key.clone())),
        };
        let manifest = match checked {
            Ok(manifest) => Some(manifest),
            Err(fault) => {
                self.blame(fault, need());
                let check = |bytes: &Bytes| restore::check_manifest(log, slot, named, bytes).ok();
                match self.versions {
                    Some(versions) => older_object(&key, versions, check).await?.map(|(manifest, _, _)| manifest),
                    None => None,
                }
            }
        };
        if let Some(manifest) = manifest {
            self.block_bytes = manifest.block_bytes;
            // Of a relative it already names packs by their owner; its own are named as this log names them.
            self.remember(log, manifest.blocks.into_values());
        }
        Ok(())
    }

    /// Blocks to be looked at. Names are made those of this survey's log.
    fn remember(&mut self, log: &Log, blocks: impl Iterator<Item = BlockRef>) {
        let own = log.layout.owner() == self.log.layout.owner();
        for block in blocks {
            let name = if own { Arc::clone(&block.pack) } else { log.layout.qualified(&block.pack).into() };
            let block = BlockRef { pack: Arc::clone(&name), ..block };
            self.blocks.entry(name).or_default().insert(block.offset, (block, self.block_bytes));
        }
    }

    /// A record that is needed by itself.
    async fn single(&mut self, slot: u64, floor: u64) -> Result<()> {
        let known = self.hashes.get(self.log.layout.owner()).is_some_and(|known| known.contains_key(&slot));
        if slot == 0 || known {
            return Ok(());
        }
        match sight(self.log, slot, floor).await? {
            Ok(record) => self.count(&self.log.layout.slot(slot), record.payload.len() as u64),
            Err(fault) => {
                let mut need = self.record_need(slot);
                // Its successor is not part of what is looked at, but knows it.
                if let (Need::Record { hash, .. }, Ok(next)) = (&mut need, sight(self.log, slot + 1, self.floor).await?)
                {
                    *hash = Some(next.header.prev);
                }
                self.blame(fault, need);
            }
        }
        Ok(())
    }
}

/// The record in a slot, from where a restore would read it. Below the floor its copy must be there as well.
pub(super) async fn sight(log: &Log, slot: u64, floor: u64) -> Result<Sight> {
    let (single, kept) = (log.layout.slot(slot), log.layout.kept(slot));
    let found = log.fetch_object(&single).await?.map(|bytes| whole(log, &single, slot, &bytes));
    match found {
        Some(sight) if slot >= floor || sight.is_err() => return Ok(sight),
        _ => {}
    }
    match log.fetch_object(&kept).await? {
        Some(bytes) => Ok(whole(log, &kept, slot, &bytes)),
        None => Ok(Err(missing(if slot < floor { kept } else { single }))),
    }
}

fn whole(log: &Log, key: &Key, slot: u64, bytes: &Bytes) -> Sight {
    log.check_as(key.as_ref(), slot, bytes).map_err(|error| corrupt(key.clone(), &error))
}

pub(super) fn missing(key: Key) -> Fault {
    Fault { key, what: What::Missing, reason: "it is needed and not there".into() }
}

pub(super) fn corrupt(key: Key, error: &Error) -> Fault {
    let reason = match error {
        Error::Corrupt { reason, .. } => reason.clone(),
        other => other.to_string(),
    };
    Fault { key, what: What::Corrupt, reason }
}

/// A whole record that is not the one which others built on.
fn fork(log: &Log, slot: u64, reason: &str) -> Fault {
    Fault { key: log.layout.slot(slot), what: What::Corrupt, reason: reason.into() }
}
