//! Segments: they may be missing, but one that is there must hold exactly the records of its range, since restores read it instead.

use std::collections::{BTreeSet, HashMap};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::survey::{Need, Survey, corrupt, sight};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::layout::SLOTS_PER_SEGMENT;
use crate::log::Log;

impl Survey<'_> {
    /// Looks at the segments of all records that were looked at. `head` is the own log's.
    pub(super) async fn check_segments(&mut self, head: u64) -> Result<()> {
        let own = self.log.layout.owner().clone();
        let mut wanted: Vec<(Log, u64)> = Vec::new();
        for (owner, hashes) in &self.hashes {
            let numbers: BTreeSet<u64> = hashes.keys().map(|slot| slot / SLOTS_PER_SEGMENT).collect();
            let log = if *owner == own { self.log.clone() } else { self.log.of(owner) };
            // A relative's log ends where it ends; a segment is there or not.
            let full = |number: &u64| *owner != own || (number + 1) * SLOTS_PER_SEGMENT <= head + 1;
            wanted.extend(numbers.into_iter().filter(full).map(|number| (log.clone(), number)));
        }
        for (log, number) in wanted {
            let key = log.layout.segment(number);
            let Some(bytes) = log.fetch_object(&key).await? else { continue };
            self.count(&key, bytes.len() as u64);
            let known = self.hashes.get(log.layout.owner());
            if let Err(error) = check(&log, number, bytes, known) {
                self.blame(corrupt(key, &error), Need::Segment { log, number });
            }
        }
        Ok(())
    }
}

/// Whether a segment holds its records, and of those that are known exactly these.
pub(super) fn check(log: &Log, number: u64, mut bytes: Bytes, known: Option<&HashMap<u64, Hash>>) -> Result<()> {
    let key = log.layout.segment(number);
    let wrong = |reason: &str| Error::corrupt(key.as_ref(), reason);
    for slot in range(number) {
        let length = bytes.try_get_u32_le().map_err(|_| wrong("cut short"))? as usize;
        if bytes.len() < length {
            return Err(wrong("cut short"));
        }
        let record = log.check_as(key.as_ref(), slot, &bytes.split_to(length))?;
        if known.and_then(|known| known.get(&slot)).is_some_and(|hash| *hash != record.hash) {
            return Err(wrong("it holds another record than the log"));
        }
    }
    if bytes.is_empty() { Ok(()) } else { Err(wrong("longer than its records")) }
}

/// The same bytes as it had, made anew from the log's records; `None` unless all of them are there.
pub(super) async fn rebuild(log: &Log, number: u64) -> Result<Option<Bytes>> {
    let mut bytes = BytesMut::new();
    for slot in range(number) {
        let Ok(_) = sight(log, slot, 0).await? else { return Ok(None) };
        let record = log.fetch_anywhere(slot).await?;
        let Ok(length) = u32::try_from(record.len()) else { return Ok(None) };
        bytes.put_u32_le(length);
        bytes.put_slice(&record);
    }
    Ok(Some(bytes.freeze()))
}

fn range(number: u64) -> std::ops::Range<u64> {
    (number * SLOTS_PER_SEGMENT).max(1)..(number + 1) * SLOTS_PER_SEGMENT
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use object_store::memory::InMemory;
    use object_store::path::Path as Key;
    use object_store::{ObjectStore, ObjectStoreExt};
    use uuid::Uuid;

    use super::*;
    use crate::log::{Put, Stores};
    use crate::open::MartReplica;
    use crate::record::Kind;
    use crate::ship::{Draft, Head};
    use crate::verify::{Scope, Version, Versions};

    #[derive(Debug)]
    struct Forgetful;

    #[async_trait]
    impl Versions for Forgetful {
        async fn list(&self, _: &str) -> object_store::Result<Vec<Version>> {
            Ok(Vec::new())
        }

        async fn get(&self, key: &Key, _: &str) -> object_store::Result<Bytes> {
            Err(object_store::Error::NotFound { path: key.to_string(), source: "nothing is kept".into() })
        }
    }

    #[tokio::test]
    async fn a_damaged_segment_is_made_anew_from_its_records_if_all_are_there() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let stores = Stores { data: Arc::clone(&store), log: store };
        let replica = MartReplica::new(stores, "duckdb/dev".into(), Uuid::new_v4());
        let log = &replica.log;
        let mut head = Head::nowhere();
        for _ in 0..1010 {
            let kind = Kind::Fence { node: "test".into(), from: None };
            let draft = Draft { epoch: head.epoch + 1, base_slot: 0, tip: None, kind, time_us: 0, detour: None };
            let (header, bytes) = draft.encode(log.incarnation, &head, &[]);
            assert!(matches!(log.create(header.slot, &bytes).await, Ok(Put::Won)));
            log.roll_segment(header.slot).await;
            head = Head { slot: header.slot, hash: Hash::of(&bytes), epoch: header.epoch, ..head };
        }
        let key = log.layout.segment(0);
        let whole = log.fetch_object(&key).await.expect("reads").expect("was rolled");
        assert_eq!(replica.verify(Scope::Window, None).await.expect("answers").problems, []);
        for cut in [0, 4, whole.len() / 2, whole.len() - 1] {
            log.stores.data.put(&key, whole.slice(..cut).into()).await.expect("puts");
            let report = replica.verify(Scope::Window, None).await.expect("answers");
            assert_eq!(report.problems.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>(), [key.as_ref()]);
            let outcome = replica.repair(Scope::Window, &Forgetful).await.expect("repairs");
            assert_eq!((outcome.report.problems.len(), outcome.repaired.len()), (0, 1));
            assert_eq!(log.fetch_object(&key).await.expect("reads"), Some(whole.clone()));
        }
        log.stores.data.put(&key, whole.slice(1..).into()).await.expect("puts");
        log.stores.data.delete(&log.layout.slot(500)).await.expect("deletes");
        let outcome = replica.repair(Scope::Window, &Forgetful).await.expect("answers");
        assert_eq!((outcome.report.problems.len(), outcome.repaired.len()), (2, 0), "{outcome:?}");
    }
}
