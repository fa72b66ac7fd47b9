//! Where a damaged log ends: at its newest record that is whole, and beyond it what the store still has as older versions.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path as Key;

use super::survey::{Fault, Need, Survey, missing, sight};
use super::{Versions, What};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::log::Log;
use crate::record::Record;

impl Survey<'_> {
    /// The newest record that can be read. Notes everything above it that is damaged or gone.
    pub(super) async fn find_head(&mut self) -> Result<Option<Record>> {
        // Before the list: a slot that a writer wins meanwhile is then in the list at least.
        let once = match self.versions {
            Some(versions) => once(self.log, versions).await?,
            None => self.log.read_hint().await?.into_iter().collect(),
        };
        self.listed = list(self.log).await?;
        if self.listed.is_empty() && (once.is_empty() || self.versions.is_none()) {
            return Err(Error::NotFound(format!("log of incarnation {}", self.log.incarnation)));
        }
        let mut head = None;
        for slot in self.listed.clone().into_iter().rev() {
            match sight(self.log, slot, 0).await? {
                Ok(record) => {
                    head = Some(record);
                    break;
                }
                Err(fault) => self.blame(fault, self.lost(slot, None)),
            }
        }
        match (head, self.versions) {
            (Some(head), Some(versions)) => self.look_beyond(head, &once, versions).await.map(Some),
            (Some(head), None) => {
                self.compare_hint(&head, &once);
                Ok(Some(head))
            }
            (None, Some(versions)) => self.look_below(&once, versions).await,
            (None, None) => Ok(None),
        }
    }

    fn lost(&self, slot: u64, prev: Option<Hash>) -> Need {
        Need::Record { log: self.log.clone(), slot, hash: None, prev }
    }

    /// Records after the head that older versions prove to have been part of this history. The last of them is the head.
    async fn look_beyond(&mut self, head: Record, once: &BTreeSet<u64>, versions: &dyn Versions) -> Result<Record> {
        let mut head = head;
        loop {
            let (slot, prev) = (head.header.slot + 1, head.hash);
            if !once.contains(&slot) && !self.listed.contains(&slot) {
                return Ok(head);
            }
            let continues = |record: &Record| record.header.prev == prev;
            let Some(record) = older(self.log, slot, versions, continues).await? else { return Ok(head) };
            let key = self.log.layout.slot(slot);
            let need = self.lost(slot, Some(prev));
            match self.found.get_mut(&key) {
                Some((_, known)) => *known = need,
                None => {
                    let reason = "the newest records are not there any more, only older versions of them";
                    self.blame(Fault { key, what: What::Missing, reason: reason.into() }, need);
                }
            }
            head = record;
        }
    }

    /// Nothing in the log can be read: its newest record that was whole once is the one to begin with.
    async fn look_below(&mut self, once: &BTreeSet<u64>, versions: &dyn Versions) -> Result<Option<Record>> {
        for slot in once.iter().rev() {
            if let Some(record) = older(self.log, *slot, versions, |_| true).await? {
                let need = Need::Record { log: self.log.clone(), slot: *slot, hash: Some(record.hash), prev: None };
                let key = self.log.layout.slot(*slot);
                match self.found.get_mut(&key) {
                    Some((_, known)) => *known = need,
                    None => self.blame(missing(key), need),
                }
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The hint names a slot that was won. It may be old, not ahead.
    fn compare_hint(&mut self, head: &Record, hinted: &BTreeSet<u64>) {
        for slot in hinted {
            if *slot > head.header.slot && !self.listed.contains(slot) {
                self.blame(missing(self.log.layout.slot(*slot)), self.lost(*slot, None));
            }
        }
    }
}

/// The newest version of a slot's record, or of its copy, that is a record of this slot and is wanted.
pub(super) async fn older(
    log: &Log,
    slot: u64,
    versions: &dyn Versions,
    wanted: impl Fn(&Record) -> bool,
) -> Result<Option<Record>> {
    Ok(older_bytes(log, slot, versions, wanted).await?.map(|(record, _, _)| record))
}

/// The same with its bytes and what the store calls the version.
pub(super) async fn older_bytes(
    log: &Log,
    slot: u64,
    versions: &dyn Versions,
    wanted: impl Fn(&Record) -> bool,
) -> Result<Option<(Record, Bytes, String)>> {
    for key in [log.layout.slot(slot), log.layout.kept(slot)] {
        let check = |bytes: &Bytes| log.check_as(key.as_ref(), slot, bytes).ok().filter(&wanted);
        let found = older_object(&key, versions, check).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What the newest version of an object is that passes a check, with its bytes and what the store calls it.
pub(super) async fn older_object<T>(
    key: &Key,
    versions: &dyn Versions,
    check: impl Fn(&Bytes) -> Option<T>,
) -> Result<Option<(T, Bytes, String)>> {
    let unavailable = |error| Error::store(key, error);
    let all = versions.list(key.as_ref()).await.map_err(unavailable)?;
    for version in all.into_iter().filter(|version| version.key == *key && !version.deleted) {
        let bytes = match versions.get(key, &version.id).await {
            Ok(bytes) => bytes,
            // Its lifetime ended between the two questions.
            Err(object_store::Error::NotFound { .. }) => continue,
            Err(error) => return Err(unavailable(error)),
        };
        if let Some(checked) = check(&bytes) {
            return Ok(Some((checked, bytes, version.id)));
        }
    }
    Ok(None)
}

async fn list(log: &Log) -> Result<BTreeSet<u64>> {
    let prefix = log.layout.log();
    let mut objects = log.stores.data.list(Some(&prefix));
    let mut slots = BTreeSet::new();
    while let Some(object) = objects.try_next().await.map_err(|error| Error::store(&prefix, error))? {
        slots.extend(log.layout.parse_slot(&object.location));
    }
    Ok(slots)
}

/// Slots that were ever won, as far as the store remembers.
async fn once(log: &Log, versions: &dyn Versions) -> Result<BTreeSet<u64>> {
    let prefix = log.layout.log();
    let all = versions.list(&format!("{prefix}/")).await.map_err(|error| Error::store(&prefix, error))?;
    Ok(all
        .iter()
        .filter(|version| !version.deleted)
        .filter_map(|version| log.layout.parse_slot(&version.key))
        .collect())
}
