//! Sweeps what retention lets go. Only the writer does it: its record of names is the order between a sweep and everything else.

use std::collections::HashSet;
use std::sync::Arc;

use object_store::ObjectStoreExt;

use super::Shipper;
use crate::error::{Error, Result};
use crate::names::Doomed;
use crate::retention::{self, Ledger, Plan};

/// When things go.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The time, in microseconds since the Unix epoch.
    pub now_us: i64,
    /// How long every position is kept.
    pub keep_us: i64,
    /// How long what is doomed stays after nobody can begin to use it.
    pub grace_us: i64,
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// What it let go; deleted after the grace period.
    pub plan: Plan,
    /// Objects of earlier sweeps that it deleted.
    pub deleted: usize,
}

impl Shipper {
    /// Lets go what only positions before the window need, and deletes what was let go a grace period ago. `ledger` is of some
    /// earlier look at this log. Nothing is deleted while somebody reads what was let go: `is_read` is asked when nobody can begin to any more.
    pub async fn sweep(
        &mut self,
        mut ledger: Ledger,
        terms: Terms,
        is_read: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Swept> {
        self.settle().await?;
        let known = ledger.entries.keys().next_back().map_or(0, |last| last + 1).max(self.names.floor.max(1));
        ledger.extend(&self.log, known..=self.head.slot).await?;
        let plan = self.let_go(&mut ledger, terms).await?;
        let deleted = if is_read() { 0 } else { self.delete(&ledger, terms).await? };
        Ok(Swept { plan, deleted })
    }

    async fn let_go(&mut self, ledger: &mut Ledger, terms: Terms) -> Result<Plan> {
        let keep_us = self.names.keep_us.unwrap_or(terms.keep_us);
        let horizon_us = terms.now_us.saturating_sub(keep_us);
        let mut plan = retention::plan(ledger, &self.names, self.log.layout.owner(), horizon_us);
        let unread: Vec<u64> = plan.copies.iter().filter(|slot| !ledger.entries.contains_key(slot)).copied().collect();
        if !unread.is_empty() {
            // What is needed must be known before anything is let go.
            for slot in unread {
                ledger.extend(&self.log, slot..=slot).await?;
            }
            plan = retention::plan(ledger, &self.names, self.log.layout.owner(), horizon_us);
        }
        if plan.doomed.is_empty() && plan.floor == self.names.floor.max(1) && plan.kept == self.names.kept {
            return Ok(plan);
        }
        for slot in &plan.copies {
            self.keep(*slot).await?;
        }
        // From here on no base names them again.
        let doomed: HashSet<&str> = plan.doomed.iter().map(String::as_str).collect();
        Arc::make_mut(&mut self.base.stale).retain(|_, reference| !doomed.contains(reference.pack.as_ref()));
        let mut names = self.names.clone();
        names.floor = plan.floor;
        names.kept.clone_from(&plan.kept);
        names.doomed.push(Doomed { since_us: terms.now_us, objects: plan.doomed.clone() });
        self.set_names(names).await?;
        Ok(plan)
    }

    /// Copies a record to where it stays.
    async fn keep(&self, slot: u64) -> Result<()> {
        let record = self.log.fetch_anywhere(slot).await?;
        let key = self.log.layout.kept(slot);
        self.log.stores.data.put(&key, record.into()).await.map(|_| ()).map_err(|error| Error::store(&key, error))
    }

    async fn delete(&mut self, ledger: &Ledger, terms: Terms) -> Result<usize> {
        let due = |doomed: &Doomed| doomed.since_us.saturating_add(terms.grace_us) <= terms.now_us;
        if !self.names.doomed.iter().any(due) {
            return Ok(0);
        }
        // The hint must not name a slot that goes.
        let head = self.log.get(self.head.slot).await?;
        if let Some(head) = &head {
            self.log.write_hint(&head.header).await;
        }
        let used = self.used(ledger);
        let mut deleted = 0;
        for object in self.names.doomed.iter().filter(|doomed| due(doomed)).flat_map(|doomed| &doomed.objects) {
            if used.contains(object.as_str()) {
                tracing::error!(object, "doomed, but in use: not deleted");
                continue;
            }
            let key = self.log.layout.below(object);
            match self.log.stores.data.delete(&key).await {
                Ok(()) => deleted += 1,
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(Error::store(&key, error)),
            }
        }
        let mut names = self.names.clone();
        names.doomed.retain(|doomed| !due(doomed));
        self.set_names(names).await?;
        Ok(deleted)
    }

    /// Everything that must not be deleted: named by slots that stay, or by what comes next.
    fn used<'a>(&'a self, ledger: &'a Ledger) -> HashSet<&'a str> {
        let floor = self.names.floor;
        let stays = |slot: u64| slot >= floor || self.names.kept.iter().any(|(from, to)| (*from..=*to).contains(&slot));
        let entries = ledger.entries.iter().filter(|(slot, _)| stays(**slot)).map(|(_, entry)| entry);
        let mut used = HashSet::new();
        for entry in entries {
            used.extend(entry.manifest.as_deref());
            used.extend(entry.packs.iter().map(|(pack, _)| pack.as_ref()));
        }
        used.extend(self.base.blocks.values().map(|reference| reference.pack.as_ref()));
        used.extend(self.base.stale.values().map(|reference| reference.pack.as_ref()));
        used
    }
}
