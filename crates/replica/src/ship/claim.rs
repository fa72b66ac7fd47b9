//! Says in the next slot that this writer still writes: what a writer does that could not show a sign of life for a while, or
//! opened files that it had left.
//!
//! Whoever found it dead fences right behind the head it saw then. So either that fence is in the slot that the claim wants, and
//! this writer is fenced; or the claim is, and the fence is lost.

use super::{Draft, Effect, Pending, Shipper, blocking, now_us};
use crate::error::Result;
use crate::hash::Hash;
use crate::local::Local;
use crate::record::Kind;

impl Shipper {
    /// Wins a slot that nobody had when this was called. Changes nothing else: no position, no durable state.
    ///
    /// Errors: `Fenced`, `Dropped`, `Unavailable` (call again).
    pub async fn claim(&mut self) -> Result<()> {
        // What was under way may have landed long ago, and proves nothing about now.
        self.settle().await?;
        let draft = Draft {
            epoch: self.head.epoch,
            base_slot: self.head.base_slot,
            tip: self.head.tip,
            kind: Kind::Claim {},
            time_us: now_us(),
            detour: None,
        };
        self.append_beside(draft, &[], Effect::Head).await
    }

    /// Appends a record that says nothing of the files, and so may come between a checkpoint and its base.
    pub(super) async fn append_beside(&mut self, draft: Draft, payload: &[u8], effect: Effect) -> Result<()> {
        let (header, bytes) = draft.encode(self.log.incarnation, &self.head, payload);
        let hash = Hash::of(&bytes);
        self.intend_from(header.slot, hash).await?;
        self.pending = Some(Pending { header, bytes, hash, effect });
        self.settle().await
    }

    /// A checkpoint that was begun at the head, and may have run, was begun at the next record too: nothing comes between.
    async fn intend_from(&self, slot: u64, hash: Hash) -> Result<()> {
        let Some(mut local) = Local::read(&self.dir) else { return Ok(()) };
        let Some(intent) = &mut local.intent else { return Ok(()) };
        if !intent.covers(self.head.slot, self.head.hash) {
            return Ok(());
        }
        intent.heads.push((slot, hash));
        let dir = self.dir.clone();
        blocking(move || local.write(&dir)).await
    }
}
