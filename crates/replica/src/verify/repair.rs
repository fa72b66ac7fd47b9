//! Puts damaged objects back: records first, since they say what else there must be, then manifests, then packs.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use serde::Serialize;

use super::head::{older_bytes, older_object};
use super::survey::{Depth, Need, Survey};
use super::{Report, Scope, Versions, What, packs, segments};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::log::Log;
use crate::open::MartReplica;
use crate::record::Record;
use crate::restore;

/// An object that was put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Its key in the bucket.
    pub key: String,
    /// The version whose bytes it has now; none if they were made anew from others.
    pub version: Option<String>,
}

/// What a repair did, and what is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Objects that are whole again.
    pub repaired: Vec<Repaired>,
    /// What a verification finds now.
    #[serde(flatten)]
    pub report: Report,
}

/// One slot of one log, by the log's root.
type Place = (Key, u64);

/// Bytes that passed, and the version that they are of.
type Found = Option<(Bytes, Option<String>)>;

/// A record that is to be put back.
struct Wanted<'a> {
    key: &'a Key,
    what: What,
    log: &'a Log,
    hash: Option<Hash>,
    prev: Option<Hash>,
}

impl Wanted<'_> {
    fn is_known(&self) -> bool {
        self.hash.is_some() || self.prev.is_some()
    }

    /// What builds on a record says which it is; at the log's end it must continue the one before.
    fn is(&self, record: &Record) -> bool {
        match (self.hash, self.prev) {
            (Some(hash), _) => record.hash == hash,
            (None, Some(prev)) => record.header.prev == prev,
            (None, None) => false,
        }
    }
}

impl MartReplica {
    /// Puts back what is damaged from older versions, as far as one passes the check that failed. Never deletes, and never writes
    /// bytes that did not pass. What is left is in the report.
    pub async fn repair(&self, scope: Scope, versions: &dyn Versions) -> Result<Outcome> {
        let mut work = Work { replica: self, versions, done: HashSet::new(), repaired: Vec::new() };
        let mut depth = Depth::Records;
        loop {
            let survey = Survey::run(&self.log, Some(versions), scope, depth).await?;
            let changed = work.mend(&survey).await?;
            match depth {
                _ if changed => {}
                Depth::Records => depth = Depth::Manifests,
                Depth::Manifests => depth = Depth::Packs,
                Depth::Packs => return Ok(Outcome { repaired: work.repaired, report: survey.report() }),
            }
        }
    }
}

struct Work<'a> {
    replica: &'a MartReplica,
    versions: &'a dyn Versions,
    /// Nothing is put back twice: a store that gives back something else than it was given is beyond repair.
    done: HashSet<Key>,
    repaired: Vec<Repaired>,
}

impl Work<'_> {
    /// Tries every problem once; says whether anything was put back.
    async fn mend(&mut self, survey: &Survey<'_>) -> Result<bool> {
        let before = self.repaired.len();
        self.mend_records(survey).await?;
        for (key, (_, need)) in &survey.found {
            let found = match need {
                Need::Manifest { log, slot, name, hash, iteration } => {
                    let named = (name.as_str(), *hash, *iteration);
                    self.older(key, |bytes| restore::check_manifest(log, *slot, named, bytes).is_ok()).await?
                }
                Need::Pack(name) => self.pack(key, survey.blocks.get(name)).await?,
                Need::Segment { log, number } => {
                    let known = survey.hashes.get(log.layout.owner());
                    let fits = |bytes: &Bytes| segments::check(log, *number, bytes.clone(), known).is_ok();
                    match self.older(key, fits).await? {
                        Some(found) => Some(found),
                        None => segments::rebuild(log, *number).await?.map(|bytes| (bytes, None)),
                    }
                }
                Need::Record { .. } | Need::Person => None,
            };
            if let Some((bytes, version)) = found {
                self.put_back(key, bytes, version).await?;
            }
        }
        Ok(self.repaired.len() > before)
    }

    /// A record that was put back says what the one before it is, and at the log's end what the next one continues.
    async fn mend_records(&mut self, survey: &Survey<'_>) -> Result<()> {
        let mut open: BTreeMap<Place, Wanted> = BTreeMap::new();
        for (key, (problem, need)) in &survey.found {
            if let Need::Record { log, slot, hash, prev } = need {
                let wanted = Wanted { key, what: problem.what, log, hash: *hash, prev: *prev };
                open.insert((log.layout.root().clone(), *slot), wanted);
            }
        }
        while let Some(place) = open.iter().rev().find(|(_, wanted)| wanted.is_known()).map(|(place, _)| place.clone())
        {
            let Some(wanted) = open.remove(&place) else { return Ok(()) };
            let (root, slot) = place;
            let found = older_bytes(wanted.log, slot, self.versions, |record| wanted.is(record)).await?;
            let Some((record, bytes, version)) = found else { continue };
            let landed = match wanted.what {
                What::Missing if *wanted.key == wanted.log.layout.slot(slot) => {
                    self.fill(wanted.key, bytes, version).await?
                }
                _ => self.put_back(wanted.key, bytes, Some(version)).await?,
            };
            if !landed {
                continue;
            }
            if let Some(before) = open.get_mut(&(root.clone(), slot.saturating_sub(1))) {
                before.hash = before.hash.or(Some(record.header.prev));
            }
            if let Some(next) = open.get_mut(&(root, slot + 1)) {
                next.prev = Some(record.hash);
            }
        }
        Ok(())
    }

    /// The newest version of an object that passes.
    async fn older(&self, key: &Key, passes: impl Fn(&Bytes) -> bool) -> Result<Found> {
        let found = older_object(key, self.versions, |bytes| passes(bytes).then_some(())).await?;
        Ok(found.map(|((), bytes, version)| (bytes, Some(version))))
    }

    async fn pack(&self, key: &Key, blocks: Option<&BTreeMap<u32, super::survey::Stored>>) -> Result<Found> {
        let Some(blocks) = blocks else { return Ok(None) };
        for id in self.ids(key).await? {
            if let Some(bytes) = self.get(key, &id).await?
                && packs::holds(bytes.clone(), blocks).await?
            {
                return Ok(Some((bytes, Some(id))));
            }
        }
        Ok(None)
    }

    async fn ids(&self, key: &Key) -> Result<Vec<String>> {
        let all = self.versions.list(key.as_ref()).await.map_err(|error| Error::store(key, error))?;
        Ok(all
            .into_iter()
            .filter(|version| version.key == *key && !version.deleted)
            .map(|version| version.id)
            .collect())
    }

    /// A version whose lifetime has just ended is none.
    async fn get(&self, key: &Key, id: &str) -> Result<Option<Bytes>> {
        match self.versions.get(key, id).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::store(key, error)),
        }
    }

    async fn put_back(&mut self, key: &Key, bytes: Bytes, version: Option<String>) -> Result<bool> {
        if !self.done.insert(key.clone()) {
            return Ok(false);
        }
        let put = self.replica.log.stores.data.put(key, bytes.into()).await;
        put.map_err(|error| Error::store(key, error))?;
        self.note(key, version);
        Ok(true)
    }

    /// Fills a slot that is empty. If a writer has won it meanwhile, that stands.
    async fn fill(&mut self, key: &Key, bytes: Bytes, version: String) -> Result<bool> {
        if !self.done.insert(key.clone()) {
            return Ok(false);
        }
        match self.replica.log.stores.log.put_opts(key, bytes.into(), PutMode::Create.into()).await {
            Ok(_) => {
                self.note(key, Some(version));
                Ok(true)
            }
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(Error::store(key, error)),
        }
    }

    fn note(&mut self, key: &Key, version: Option<String>) {
        tracing::info!(%key, version, "put back");
        self.repaired.push(Repaired { key: key.to_string(), version });
    }
}
