//! Every block of every pack that is needed, read once, unpacked and compared with its hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use object_store::ObjectStoreExt;

use super::What;
use super::survey::{Fault, Need, Stored, Survey, corrupt, missing};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::pack::{self, BlockMap};
use crate::restore;
use crate::ship::blocking;

/// Each holds at most 8 MiB.
const PARALLEL_READS: usize = 8;

impl Survey<'_> {
    /// Reads all blocks that were remembered.
    pub(super) async fn check_packs(&mut self) -> Result<()> {
        let log = self.log;
        let packs: Vec<(Arc<str>, Vec<Stored>)> =
            self.blocks.iter().map(|(name, blocks)| (Arc::clone(name), blocks.values().cloned().collect())).collect();
        let mut checked = stream::iter(packs)
            .map(|(name, blocks)| async move { (name.clone(), check(log, &name, blocks).await) })
            .buffer_unordered(PARALLEL_READS);
        while let Some((name, outcome)) = checked.next().await {
            let (bytes, fault) = outcome?;
            match (fault, log.layout.named(&name)) {
                (Some(fault), _) => {
                    self.bytes += bytes;
                    self.blame(fault, Need::Pack(name));
                }
                (None, Some(key)) => self.count(&key, bytes),
                (None, None) => {}
            }
        }
        Ok(())
    }
}

/// Bytes that were read, and what is wrong first.
async fn check(log: &Log, name: &Arc<str>, blocks: Vec<Stored>) -> Result<(u64, Option<Fault>)> {
    let Some(key) = log.layout.named(name) else {
        let fault =
            Fault { key: log.layout.below("pack"), what: What::Corrupt, reason: "no pack can be called so".into() };
        return Ok((0, Some(fault)));
    };
    let numbered: BlockMap = (0..).zip(blocks.iter().map(|(block, _)| block.clone())).collect();
    let sizes: Arc<Vec<u64>> = Arc::new(blocks.iter().map(|(_, block_bytes)| *block_bytes).collect());
    let (mut total, mut bytes) = (0, Vec::new());
    for read in restore::reads(&numbered) {
        bytes.clear();
        match restore::fetch_range(log, &read, &mut bytes).await {
            Ok(()) => {}
            Err(error @ Error::Corrupt { .. }) => {
                let gone = matches!(log.stores.data.head(&key).await, Err(object_store::Error::NotFound { .. }));
                let fault = if gone { missing(key.clone()) } else { corrupt(key.clone(), &error) };
                return Ok((total, Some(fault)));
            }
            Err(error) => return Err(error),
        }
        total += bytes.len() as u64;
        let (whole, sizes) = (std::mem::take(&mut bytes), Arc::clone(&sizes));
        let unpacked = blocking(move || {
            for (number, reference) in &read.blocks {
                let start = u64::from(reference.offset) - read.range.start;
                let size = sizes[usize::try_from(*number).unwrap_or_default()];
                unpack_at(&whole, start, reference, size)?;
            }
            Ok(whole)
        });
        match unpacked.await {
            Ok(buffer) => bytes = buffer,
            Err(error @ Error::Corrupt { .. }) => return Ok((total, Some(corrupt(key.clone(), &error)))),
            Err(error) => return Err(error),
        }
    }
    Ok((total, None))
}

/// Whether a whole pack holds all these blocks.
pub(super) async fn holds(bytes: Bytes, blocks: &BTreeMap<u32, Stored>) -> Result<bool> {
    let blocks: Vec<Stored> = blocks.values().cloned().collect();
    let unpacked = blocking(move || {
        blocks.iter().try_for_each(|(block, size)| unpack_at(&bytes, u64::from(block.offset), block, *size))
    });
    match unpacked.await {
        Ok(()) => Ok(true),
        Err(Error::Corrupt { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn unpack_at(bytes: &[u8], start: u64, block: &pack::BlockRef, size: u64) -> Result<()> {
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let stored = bytes.get(start..start.saturating_add(block.length as usize)).unwrap_or_default();
    pack::unpack(block, stored, size).map(drop)
}
