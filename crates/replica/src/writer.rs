//! Who a log's writer is: what its newest fence says.
//!
//! It does not say whether that writer still lives; the log can't know.

use crate::error::{Error, Result};
use crate::open::MartReplica;
use crate::record::Kind;

/// The writer of a log, as of its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The name under which it fenced; empty if a log does not lead to its fence.
    pub node: String,
    /// Its reign.
    pub epoch: u64,
    /// The log's last slot when this was read: a fence right behind it deposes this writer and no other.
    pub slot: u64,
}

impl MartReplica {
    /// The writer of the log.
    ///
    /// Errors: `NotFound` (no log), `Dropped`, `Corrupt`, `Unavailable`.
    pub async fn writer(&self) -> Result<Writer> {
        let head = self.head().await?.header;
        let fence = match head.kind {
            Kind::Drop {} => return Err(Error::Dropped),
            Kind::Fence { node, .. } => return Ok(Writer { node, epoch: head.epoch, slot: head.slot }),
            _ if head.fence_slot == 0 => String::new(),
            _ => self.fenced_by(head.fence_slot).await?,
        };
        Ok(Writer { node: fence, epoch: head.epoch, slot: head.slot })
    }

    async fn fenced_by(&self, slot: u64) -> Result<String> {
        match self.log.get(slot).await?.map(|record| record.header.kind) {
            Some(Kind::Fence { node, .. }) => Ok(node),
            _ => Err(Error::corrupt(self.log.layout.slot(slot).as_ref(), "a later record calls it the newest fence")),
        }
    }
}
