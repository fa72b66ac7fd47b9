//! Reads what each slot of a log needs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::Entry;
use crate::error::Result;
use crate::history::moments;
use crate::log::Log;
use crate::names::Names;
use crate::pack::{self, BlockMap};
use crate::record::{Header, Kind};
use crate::restore;

const PARALLEL_READS: usize = 16;

/// What each slot that is still there needs.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// By slot.
    pub entries: BTreeMap<u64, Entry>,
    /// Where the newest names are.
    pub names_slot: u64,
}

impl Ledger {
    /// Reads all slots of a log up to `head`.
    pub(crate) async fn read(log: &Log, names: &Names, head: u64) -> Result<Self> {
        let mut ledger = Self::default();
        for slots in names.slots(head) {
            ledger.extend(log, slots).await?;
        }
        Ok(ledger)
    }

    /// Reads more slots.
    pub(crate) async fn extend(&mut self, log: &Log, slots: std::ops::RangeInclusive<u64>) -> Result<()> {
        let mut entries = stream::iter(slots).map(|slot| entry(log, slot)).buffered(PARALLEL_READS);
        while let Some((slot, header, entry)) = entries.try_next().await? {
            self.names_slot = self.names_slot.max(header.names_slot);
            self.entries.insert(slot, entry);
        }
        Ok(())
    }
}

async fn entry(log: &Log, slot: u64) -> Result<(u64, Header, Entry)> {
    let header = log.header_anywhere(slot).await?;
    let (mut manifest, mut blocks) = (None, BlockMap::new());
    match &header.kind {
        Kind::Base { manifest: name, manifest_hash, iteration, .. } => {
            blocks = restore::load_named_manifest(log, slot, name, *manifest_hash, *iteration).await?.blocks;
            manifest = Some(name.clone());
        }
        Kind::Commits { table_bytes, .. } if *table_bytes > 0 => {
            let record = log.must_get(slot).await?;
            let table = record.payload.get(..usize::try_from(*table_bytes).unwrap_or(usize::MAX)).unwrap_or_default();
            blocks = pack::decode_table(&format!("log record {slot}"), table, None)?;
        }
        _ => {}
    }
    let mut packs: HashMap<Arc<str>, u64> = HashMap::new();
    for reference in blocks.values().filter(|reference| !reference.pack.starts_with('@')) {
        *packs.entry(Arc::clone(&reference.pack)).or_default() += u64::from(reference.length);
    }
    let entry = Entry {
        first_moment_us: moments(&header).first().map(|moment| moment.time_us),
        forever: matches!(header.kind, Kind::Fence { .. } | Kind::Drop {}),
        base_slot: header.base_slot,
        detour: header.detour.clone(),
        manifest,
        packs: packs.into_iter().collect(),
    };
    Ok((slot, header, entry))
}
