//! The log of one incarnation: numbered slots, each won once by create-if-absent, each record naming its predecessor's hash.
//!
//! Does not know what records mean; `plan` and `ship` do.
//!
//! # Consistency
//! A create is won, lost or unknown. Whatever the store answers other than success, the slot is read: the very bytes → won; nothing →
//! the same bytes again; another's record → lost. A slot is never given up on and reused for other bytes: a delayed request
//! could still land.
//!
//! # Crash consistency
//! A record that a dead writer left in flight can land later; then the next writer's create of that slot is lost and it looks
//! again. The hint is advisory. **Invariant:** a hint never names a fence, and only a prefix of the log (without fences and
//! tombstone) may ever be swept, so a hinted slot that exists has every later slot still in place.
//!
//! # Cancellation
//! Every call may be dropped at any await; the caller keeps the bytes it wanted to append and settles them later.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::layout::{Layout, SLOTS_PER_SEGMENT};
use crate::names::Names;
use crate::plan::Plan;
use crate::record::{self, Header, Kind, Owner, Peeked, Record, Stretch};

const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const CREATE_DEADLINE: Duration = Duration::from_secs(30);
const PARALLEL_READS: usize = 8;
/// Fewer records than this are read one by one even if a segment might hold them.
const WORTH_A_SEGMENT: u64 = 8;
/// Enough for most headers.
const HEADER_GUESS_BYTES: u64 = 8 << 10;
/// Larger ranges stay single records: they are efficient to read as they are.
const MAX_SEGMENT_BYTES: usize = 64 << 20;

/// Two clients of the same place.
#[derive(Debug, Clone)]
pub struct Stores {
    /// For everything whose repetition is harmless.
    pub data: Arc<dyn ObjectStore>,
    /// For creates of log slots: a client with retries **off**, so that an answer is about one request.
    pub log: Arc<dyn ObjectStore>,
}

/// One incarnation's log.
#[derive(Debug, Clone)]
pub struct Log {
    /// Where it is.
    pub stores: Stores,
    /// How its objects are called.
    pub layout: Layout,
    /// Whose it is.
    pub incarnation: Uuid,
}

/// Outcome of a create.
#[derive(Debug)]
pub enum Put {
    /// The slot holds our bytes.
    Won,
    /// The slot holds this other record.
    Lost(Box<Record>),
}

#[derive(Serialize, Deserialize)]
struct Hint {
    slot: u64,
    base_slot: u64,
}

impl Log {
    /// The log of another mart of the same tenant.
    pub fn of(&self, owner: &Owner) -> Self {
        Self { stores: self.stores.clone(), layout: self.layout.of(owner), incarnation: owner.incarnation }
    }

    /// Reads what a record builds on, itself last, and folds it.
    pub async fn fold(&self, stretches: &[Stretch], keep_wal: bool) -> Result<Plan> {
        let mut plan = Plan::new(keep_wal);
        for (index, stretch) in stretches.iter().enumerate() {
            let relative = stretch.owner.as_ref().filter(|owner| *owner != self.layout.owner());
            let log = relative.map_or_else(|| self.clone(), |owner| self.of(owner));
            plan.read_from(relative.map(|_| log.layout.clone()));
            let mut records = log.read(stretch.first..=stretch.last, stretch.last);
            while let Some(record) = records.try_next().await? {
                plan.push(&record)?;
            }
            plan.ends_with(stretch.hash)?;
            if index + 1 < stretches.len() {
                plan.turn();
            }
        }
        Ok(plan)
    }

    /// The record in a slot; `None` if nobody won it yet.
    pub async fn get(&self, slot: u64) -> Result<Option<Record>> {
        match self.fetch(slot).await? {
            Some(bytes) => self.check(slot, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// The header in a slot, read by range: for finding one's way, not checked by hash.
    pub async fn header(&self, slot: u64) -> Result<Option<Header>> {
        self.header_at(&self.layout.slot(slot)).await
    }

    /// The same for a slot that may only be left as a copy.
    pub(crate) async fn header_anywhere(&self, slot: u64) -> Result<Header> {
        let key = self.layout.slot(slot);
        if let Some(header) = self.header_at(&key).await? {
            return Ok(header);
        }
        let missing = || Error::corrupt(key.as_ref(), "a later record exists but this one is missing");
        self.header_at(&self.layout.kept(slot)).await?.ok_or_else(missing)
    }

    async fn header_at(&self, key: &object_store::path::Path) -> Result<Option<Header>> {
        let mut wanted = HEADER_GUESS_BYTES;
        loop {
            let options = GetOptions { range: Some(GetRange::Bounded(0..wanted)), ..GetOptions::default() };
            let read = async { self.stores.data.get_opts(key, options).await?.bytes().await };
            let bytes = match read.await {
                Ok(bytes) => bytes,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(Error::store(key, error)),
            };
            match record::peek(key.as_ref(), &bytes)? {
                Peeked::Header(header) => return Ok(Some(*header)),
                Peeked::Needs(more) if more > wanted => wanted = more,
                Peeked::Needs(_) => return Err(Error::corrupt(key.as_ref(), "cut short")),
            }
        }
    }

    /// The names as of a record.
    pub async fn names(&self, head: &Header) -> Result<Names> {
        match head.names_slot {
            0 => Ok(Names::default()),
            slot => Names::decode(&self.must_get(slot).await?),
        }
    }

    /// The last record; `None` if there is no log.
    pub async fn find_head(&self) -> Result<Option<Record>> {
        let hinted = self.read_hint().await?;
        let known = match hinted {
            Some(slot) if self.leads_on(slot).await? => Some(slot),
            _ => self.list_last().await?,
        };
        let Some(mut low) = known else { return Ok(None) };
        let mut step = 1;
        while self.exists(low + step).await? {
            low += step;
            step *= 2;
        }
        let mut high = low + step;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.exists(middle).await? { low = middle } else { high = middle }
        }
        let object = self.layout.slot(low);
        self.get(low).await?.map(Some).ok_or_else(|| Error::corrupt(object.as_ref(), "it was there a moment ago"))
    }

    /// Creates a slot's record and finds out what became of it. `Unavailable` means still unknown: call again with the same bytes.
    pub async fn create(&self, slot: u64, bytes: &Bytes) -> Result<Put> {
        let key = self.layout.slot(slot);
        let mut pause = FIRST_PAUSE;
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            let put = self.stores.log.put_opts(&key, bytes.clone().into(), PutOptions::from(PutMode::Create));
            match tokio::time::timeout(CREATE_DEADLINE, put).await {
                Ok(Ok(_)) => return Ok(Put::Won),
                Ok(Err(error)) => last = Some(error),
                Err(_elapsed) => {}
            }
            match self.fetch(slot).await {
                Ok(Some(found)) if found == *bytes => return Ok(Put::Won),
                Ok(Some(found)) => return self.check(slot, &found).map(|record| Put::Lost(Box::new(record))),
                Ok(None) => {}
                Err(Error::Unavailable { source, .. }) => last = source.or(last),
                Err(other) => return Err(other),
            }
        }
        Err(Error::Unavailable { what: format!("create of `{key}`"), source: last })
    }

    /// Records of the range in order. `head` is the last slot known to be won. Does not check the chain of hashes.
    pub fn read(&self, slots: RangeInclusive<u64>, head: u64) -> BoxStream<'static, Result<Record>> {
        let chunks = chunks(slots, head);
        let log = self.clone();
        stream::iter(chunks)
            .map(move |chunk| log.clone().load(chunk))
            .buffered(PARALLEL_READS)
            .map_ok(|records| stream::iter(records.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    /// Leaves a hint where the log's end is. Failure is harmless, and logged only.
    pub async fn write_hint(&self, record: &Header) {
        if matches!(record.kind, Kind::Fence { .. } | Kind::Drop {}) {
            return;
        }
        let hint = serde_json::to_vec(&Hint { slot: record.slot, base_slot: record.base_slot }).expect("two numbers");
        if let Err(error) = self.stores.data.put(&self.layout.head(), hint.into()).await {
            tracing::debug!(%error, "head hint not written");
        }
    }

    /// Rolls the full segment that ends at `last_slot`, if it does. Failure is harmless: readers fall back to single records.
    pub async fn roll_segment(&self, last_slot: u64) {
        if !ends_segment(last_slot) {
            return;
        }
        let number = last_slot / SLOTS_PER_SEGMENT;
        if let Err(error) = self.try_roll(number, last_slot).await {
            tracing::warn!(%error, number, "log segment not rolled");
        }
    }

    async fn try_roll(&self, number: u64, last_slot: u64) -> Result<()> {
        let first = (number * SLOTS_PER_SEGMENT).max(1);
        let mut singles = stream::iter(first..=last_slot).map(|slot| self.fetch(slot)).buffered(PARALLEL_READS);
        let mut bytes = BytesMut::new();
        while let Some(record) = singles.try_next().await? {
            let record = record.ok_or_else(|| Error::NotFound(format!("a record of segment {number}")))?;
            if bytes.len() + record.len() > MAX_SEGMENT_BYTES {
                return Ok(());
            }
            bytes.put_u32_le(u32::try_from(record.len()).map_err(|_| Error::Misuse("record over 4 GiB".into()))?);
            bytes.put_slice(&record);
        }
        drop(singles);
        let key = self.layout.segment(number);
        match self.stores.data.put_opts(&key, bytes.freeze().into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(Error::store(&key, error)),
        }
    }

    async fn load(self, chunk: Chunk) -> Result<Vec<Record>> {
        match chunk {
            Chunk::Single(slot) => Ok(vec![self.must_get(slot).await?]),
            Chunk::Segment(number, slots) => match self.load_segment(number, slots.clone()).await? {
                Some(records) => Ok(records),
                None => {
                    stream::iter(slots).map(|slot| self.must_get(slot)).buffered(PARALLEL_READS).try_collect().await
                }
            },
        }
    }

    async fn load_segment(&self, number: u64, slots: RangeInclusive<u64>) -> Result<Option<Vec<Record>>> {
        let key = self.layout.segment(number);
        let Some(mut bytes) = self.fetch_object(&key).await? else { return Ok(None) };
        let cut_short = || Error::corrupt(key.as_ref(), "cut short");
        let mut records = Vec::new();
        for slot in (number * SLOTS_PER_SEGMENT).max(1)..=*slots.end() {
            let length = bytes.try_get_u32_le().map_err(|_| cut_short())? as usize;
            if bytes.len() < length {
                return Err(cut_short());
            }
            let record = bytes.split_to(length);
            if slots.contains(&slot) {
                records.push(self.check_as(key.as_ref(), slot, &record)?);
            }
        }
        Ok(Some(records))
    }

    pub(crate) async fn must_get(&self, slot: u64) -> Result<Record> {
        self.check(slot, &self.fetch_anywhere(slot).await?)
    }

    fn check(&self, slot: u64, bytes: &Bytes) -> Result<Record> {
        self.check_as(self.layout.slot(slot).as_ref(), slot, bytes)
    }

    pub(crate) fn check_as(&self, object: &str, slot: u64, bytes: &Bytes) -> Result<Record> {
        let record = Record::decode(object, bytes)?;
        if record.header.slot != slot || record.header.incarnation != self.incarnation {
            return Err(Error::corrupt(object, "it belongs elsewhere"));
        }
        Ok(record)
    }

    pub(crate) async fn read_hint(&self) -> Result<Option<u64>> {
        let Some(bytes) = self.fetch_object(&self.layout.head()).await? else { return Ok(None) };
        Ok(serde_json::from_slice::<Hint>(&bytes).ok().map(|hint| hint.slot))
    }

    async fn list_last(&self) -> Result<Option<u64>> {
        let prefix = self.layout.log();
        let mut objects = self.stores.data.list(Some(&prefix));
        let mut last = None;
        while let Some(object) = objects.try_next().await.map_err(|error| Error::store(&prefix, error))? {
            last = last.max(self.layout.parse_slot(&object.location));
        }
        Ok(last)
    }

    /// `Corrupt` if there are records after the head that was found, but not the next one: the search for the head met a hole, and a
    /// fence in it would give up what lies behind.
    pub(crate) async fn ends_at(&self, head: u64) -> Result<()> {
        let prefix = self.layout.log();
        let mut after = self.stores.data.list_with_offset(Some(&prefix), &self.layout.slot(head));
        let mut next = None;
        while let Some(object) = after.try_next().await.map_err(|error| Error::store(&prefix, error))? {
            let slot = self.layout.parse_slot(&object.location).filter(|slot| *slot > head);
            next = next.into_iter().chain(slot).min();
        }
        match next {
            Some(slot) if slot > head + 1 => {
                let missing = self.layout.slot(head + 1);
                Err(Error::corrupt(missing.as_ref(), "a later record exists but this one is missing"))
            }
            // Nothing, or a writer that was faster: the next create will tell.
            _ => Ok(()),
        }
    }

    /// Whether every slot from here to the end is there. Fences stay when what is around them was swept.
    async fn leads_on(&self, hinted: u64) -> Result<bool> {
        match self.header(hinted).await {
            Ok(header) => Ok(header.is_some_and(|found| !matches!(found.kind, Kind::Fence { .. } | Kind::Drop {}))),
            Err(Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn exists(&self, slot: u64) -> Result<bool> {
        let key = self.layout.slot(slot);
        match self.stores.data.head(&key).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(Error::store(&key, error)),
        }
    }

    /// The bytes of a record that must be there, in its slot or as a copy.
    pub(crate) async fn fetch_anywhere(&self, slot: u64) -> Result<Bytes> {
        if let Some(bytes) = self.fetch(slot).await? {
            return Ok(bytes);
        }
        let kept = self.fetch_object(&self.layout.kept(slot)).await?;
        let key = self.layout.slot(slot);
        kept.ok_or_else(|| Error::corrupt(key.as_ref(), "a later record exists but this one is missing"))
    }

    async fn fetch(&self, slot: u64) -> Result<Option<Bytes>> {
        self.fetch_object(&self.layout.slot(slot)).await
    }

    pub(crate) async fn fetch_object(&self, key: &object_store::path::Path) -> Result<Option<Bytes>> {
        let read = async { self.stores.data.get(key).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::store(key, error)),
        }
    }
}

enum Chunk {
    Single(u64),
    Segment(u64, RangeInclusive<u64>),
}

/// True for the last slot of a segment.
pub fn ends_segment(slot: u64) -> bool {
    (slot + 1).is_multiple_of(SLOTS_PER_SEGMENT)
}

/// How to read a range of slots: from segments where they can exist and pay, else one by one.
fn chunks(slots: RangeInclusive<u64>, head: u64) -> Vec<Chunk> {
    let (mut slot, end) = slots.into_inner();
    let mut chunks = Vec::new();
    while slot <= end {
        let number = slot / SLOTS_PER_SEGMENT;
        let last = number * SLOTS_PER_SEGMENT + SLOTS_PER_SEGMENT - 1;
        let until = last.min(end);
        if last <= head && until - slot >= WORTH_A_SEGMENT {
            chunks.push(Chunk::Segment(number, slot..=until));
        } else {
            chunks.extend((slot..=until).map(Chunk::Single));
        }
        slot = until + 1;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::hash::Hash;
    use crate::ship::{Draft, Head};

    async fn log_of(records: u64) -> Log {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let incarnation = Uuid::new_v4();
        let layout = Layout::new(&"duckdb/dev".into(), incarnation);
        let log = Log { stores: Stores { data: Arc::clone(&store), log: store }, layout, incarnation };
        let mut head = Head::nowhere();
        for _ in 0..records {
            let kind = Kind::Fence { node: "test".into(), from: None };
            let (header, bytes) =
                Draft { epoch: head.epoch + 1, base_slot: 0, tip: None, kind, time_us: 0, detour: None }.encode(
                    incarnation,
                    &head,
                    &[],
                );
            assert!(matches!(log.create(header.slot, &bytes).await, Ok(Put::Won)));
            log.roll_segment(header.slot).await;
            head = Head { slot: header.slot, hash: Hash::of(&bytes), epoch: header.epoch, ..head };
        }
        log
    }

    #[tokio::test]
    async fn a_full_range_is_read_from_its_segment_and_the_rest_one_by_one() {
        let log = log_of(2100).await;
        for slot in (1..=998).chain(1000..=1998) {
            log.stores.data.delete(&log.layout.slot(slot)).await.expect("deletes");
        }
        let records: Vec<Record> = log.read(1..=2100, 2100).try_collect().await.expect("reads");
        assert_eq!(records.iter().map(|record| record.header.slot).collect::<Vec<_>>(), (1..=2100).collect::<Vec<_>>());
        assert!(records.windows(2).all(|pair| pair[1].header.prev == pair[0].hash));
        let part: Vec<Record> = log.read(990..=1500, 2100).try_collect().await.expect("reads");
        assert_eq!(part.len(), 511);
        assert_eq!(log.find_head().await.expect("finds").map(|record| record.header.slot), Some(2100));
    }

    #[tokio::test]
    async fn a_missing_segment_is_no_loss_and_a_damaged_one_is_noticed() {
        let log = log_of(1010).await;
        let key = log.layout.segment(0);
        let mut bytes = log.fetch_object(&key).await.expect("reads").expect("was rolled").to_vec();
        log.stores.data.delete(&key).await.expect("deletes");
        assert_eq!(log.read(1..=1010, 1010).try_collect::<Vec<_>>().await.expect("reads").len(), 1010);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        log.stores.data.put(&key, bytes.into()).await.expect("puts");
        assert!(matches!(log.read(1..=1010, 1010).try_collect::<Vec<_>>().await, Err(Error::Corrupt { .. })));
    }

    #[tokio::test]
    async fn a_hole_in_the_log_is_corrupt() {
        let log = log_of(5).await;
        log.stores.data.delete(&log.layout.slot(3)).await.expect("deletes");
        assert!(matches!(log.read(1..=5, 5).try_collect::<Vec<_>>().await, Err(Error::Corrupt { .. })));
    }

    #[tokio::test]
    async fn a_slot_is_won_once_and_winning_again_with_the_same_bytes_is_the_same_win() {
        let log = log_of(1).await;
        let head = Head::of(&log.get(1).await.expect("reads").expect("there"));
        let draft = || Draft { epoch: 2, base_slot: 0, tip: None, kind: Kind::Drop {}, time_us: 0, detour: None };
        let (_, mine) = draft().encode(log.incarnation, &head, &[]);
        let (_, theirs) = draft().encode(log.incarnation, &head, &[]);
        assert!(matches!(log.create(2, &mine).await, Ok(Put::Won)));
        assert!(matches!(log.create(2, &mine).await, Ok(Put::Won)));
        assert!(matches!(log.create(2, &theirs).await, Ok(Put::Lost(_))), "only the nonce differs");
    }
}
