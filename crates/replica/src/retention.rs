//! What of a mart's past may go: a pure plan over a ledger of the log, and the reading of that ledger.
//!
//! # Consistency
//! Everything that any position since the horizon needs stays, and what a snapshot or a branch holds. The log is cut only at its
//! front; records before the cut that something still needs are copied first (`kept/`). Fences stay for ever: they are what a frozen
//! writer must find in its next slot.
//!
//! # Crash consistency
//! The record of names with the new floor comes first: from then on nobody begins to use what is doomed. Deleting comes a grace period
//! later, of names in that record and of nothing else, and may be repeated.

mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

pub use ledger::Ledger;

use crate::layout::SLOTS_PER_SEGMENT;
use crate::names::Names;
use crate::record::{Detour, Owner, Stretch};

/// One slot, as far as retention cares.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Time of its first moment, if it has any.
    pub first_moment_us: Option<i64>,
    /// Fences and the tombstone are never deleted.
    pub forever: bool,
    /// What its moments build on.
    pub base_slot: u64,
    /// The same, if that is not one range.
    pub detour: Option<Box<Detour>>,
    /// The manifest that it names.
    pub manifest: Option<String>,
    /// Packs that it, or its manifest, names; own ones only. With the bytes it uses of each.
    pub packs: Vec<(Arc<str>, u64)>,
}

/// What a sweep would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Slots below go, but for those kept.
    pub floor: u64,
    /// Slots below the floor of which there must be copies.
    pub kept: Vec<(u64, u64)>,
    /// Of those, the ones to be copied now.
    pub copies: Vec<u64>,
    /// Keys below the incarnation's root that nothing needs any more.
    pub doomed: Vec<String>,
    /// How many of them are packs.
    pub packs: usize,
    /// Bytes of blocks in those packs, as far as dropped records name them.
    pub bytes: u64,
}

/// Plans a sweep of everything that only positions before `horizon_us` (microseconds since the Unix epoch) need.
pub fn plan(ledger: &Ledger, names: &Names, owner: &Owner, horizon_us: i64) -> Plan {
    let first = names.floor.max(1);
    let at_horizon = ledger
        .entries
        .range(first..)
        .rev()
        .find(|(_, entry)| entry.first_moment_us.is_some_and(|time_us| time_us <= horizon_us));
    let floor = at_horizon.map_or(first, |(_, entry)| entry.reads_from()).max(first);
    let needed = needed_below(ledger, names, owner, floor);
    let kept = ranges(&needed);
    let is_kept = |slot: &u64| *slot >= floor || needed.contains(slot);

    let mut doomed = BTreeSet::new();
    let copied_before = |slot: &u64| names.kept.iter().any(|(from, to)| (*from..=*to).contains(slot));
    for (slot, entry) in ledger.entries.range(..floor) {
        if *slot >= first && !entry.forever {
            doomed.insert(format!("log/{slot:020}"));
        }
        if copied_before(slot) && !needed.contains(slot) {
            doomed.insert(format!("kept/{slot:020}"));
        }
    }
    for number in first / SLOTS_PER_SEGMENT..floor / SLOTS_PER_SEGMENT {
        doomed.insert(format!("segment/{number:012}"));
    }
    let (stays, goes): (Vec<_>, Vec<_>) = ledger.entries.iter().partition(|(slot, _)| is_kept(slot));
    let used: BTreeSet<&Arc<str>> = stays.iter().flat_map(|(_, entry)| &entry.packs).map(|(pack, _)| pack).collect();
    let mut packs: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
    for (_, entry) in &goes {
        doomed.extend(entry.manifest.clone());
        for (pack, bytes) in entry.packs.iter().filter(|(pack, _)| !used.contains(pack)) {
            let most = packs.entry(pack).or_default();
            *most = (*most).max(*bytes);
        }
    }
    doomed.extend(packs.keys().map(|pack| pack.to_string()));
    let copies = needed.iter().filter(|slot| !copied_before(slot)).copied().collect();
    let already: BTreeSet<&String> = names.doomed.iter().flat_map(|doomed| &doomed.objects).collect();
    let doomed: Vec<String> = doomed.into_iter().filter(|object| !already.contains(object)).collect();
    Plan { floor, kept, copies, doomed, packs: packs.len(), bytes: packs.values().sum() }
}

/// Slots before the floor that something at or after it, or something named, builds on.
fn needed_below(ledger: &Ledger, names: &Names, owner: &Owner, floor: u64) -> BTreeSet<u64> {
    let own = |stretch: &&Stretch| stretch.owner.as_ref().is_none_or(|found| found == owner);
    let of_detours = ledger.entries.range(floor..).filter_map(|(_, entry)| entry.detour.as_ref());
    let stretches =
        of_detours.flat_map(|detour| &detour.before).chain(names.held().flat_map(|past| &past.route)).filter(own);
    let mut needed: BTreeSet<u64> =
        stretches.flat_map(|stretch| stretch.first..=stretch.last.min(floor.saturating_sub(1))).collect();
    // The newest names themselves.
    needed.extend(Some(ledger.names_slot).filter(|slot| *slot > 0 && *slot < floor));
    needed
}

fn ranges(slots: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some((_, to)) if *to + 1 == *slot => *to = *slot,
            _ => ranges.push((*slot, *slot)),
        }
    }
    ranges
}

impl Entry {
    /// The first slot of this log that its moments need in one piece.
    fn reads_from(&self) -> u64 {
        self.detour.as_ref().map_or(self.base_slot.max(1), |detour| detour.resumes)
    }
}

impl Names {
    /// Slots that are still in a log that ends at `head`.
    pub(crate) fn slots(&self, head: u64) -> Vec<RangeInclusive<u64>> {
        let kept = self.kept.iter().map(|(from, to)| *from..=*to);
        kept.chain(std::iter::once(self.floor.max(1)..=head)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;
    use crate::names::{Past, Snapshot};
    use crate::position::Position;

    fn owner() -> Owner {
        Owner { mart: "dev".into(), incarnation: uuid::Uuid::nil() }
    }

    /// A log of bases every `life` slots with commits between; each slot is a minute. Each base names its own pack and the one before.
    fn ledger(slots: u64, life: u64) -> Ledger {
        let entry = |slot: u64| {
            let base_slot = (slot - 2) / life * life + 2;
            let base = base_slot == slot;
            let pack = |number: u64| (Arc::from(format!("pack/{number}")), 100);
            Entry {
                first_moment_us: Some(slot as i64 * 60),
                forever: false,
                base_slot,
                detour: None,
                manifest: base.then(|| format!("manifest/{slot}")),
                packs: if base { vec![pack(slot), pack(slot.saturating_sub(life))] } else { Vec::new() },
            }
        };
        let fence =
            Entry { first_moment_us: None, forever: true, base_slot: 0, detour: None, manifest: None, packs: vec![] };
        let entries = std::iter::once((1, fence)).chain((2..=slots).map(|slot| (slot, entry(slot)))).collect();
        Ledger { entries, names_slot: 0 }
    }

    fn past(first: u64, last: u64) -> Past {
        let position = Position { epoch: 1, iteration: 1, wal_bytes: 1 };
        Past { position, time_us: 0, route: vec![Stretch { owner: None, first, last, hash: Hash::ZERO }] }
    }

    #[test]
    fn nothing_goes_before_the_horizon_has_passed_a_base() {
        let ledger = ledger(40, 10);
        for horizon in [0, 60, 2 * 60, 11 * 60] {
            let plan = plan(&ledger, &Names::default(), &owner(), horizon);
            assert!(plan.doomed.is_empty() && plan.floor <= 2, "{plan:?}");
        }
    }

    #[test]
    fn what_the_position_at_the_horizon_needs_stays_whole() {
        let ledger = ledger(40, 10);
        // Slot 25 is the last before the horizon; its base is slot 22, which shares a pack with base 12.
        let plan = plan(&ledger, &Names::default(), &owner(), 25 * 60 + 1);
        assert_eq!(plan.floor, 22);
        for kept in ["manifest/22", "pack/22", "pack/12", "log/00000000000000000022", "log/00000000000000000001"] {
            assert!(!plan.doomed.iter().any(|object| object == kept), "{kept}");
        }
        for gone in ["manifest/2", "manifest/12", "pack/2", "log/00000000000000000021"] {
            assert!(plan.doomed.iter().any(|object| object == gone), "{gone}");
        }
        assert_eq!((plan.packs, plan.bytes), (2, 200), "packs 2 and 0");
    }

    #[test]
    fn a_snapshot_holds_its_records_and_their_packs_and_lets_them_go() {
        let ledger = ledger(40, 10);
        let mut names = Names::default();
        names.snapshots.insert("s".into(), Snapshot { past: past(12, 15), created_us: 0, automatic: false });
        let held = plan(&ledger, &names, &owner(), 35 * 60);
        assert_eq!(
            (held.floor, held.kept.as_slice(), held.copies.as_slice()),
            (32, &[(12, 15)][..], &[12, 13, 14, 15][..])
        );
        assert!(!held.doomed.iter().any(|object| object == "manifest/12" || object == "pack/12" || object == "pack/2"));
        assert!(held.doomed.iter().any(|object| object == "manifest/2"));
        assert!(held.doomed.iter().any(|object| object == "log/00000000000000000013"), "its copy stays");

        let mut after = Names { floor: held.floor, kept: held.kept, ..Names::default() };
        let mut left = ledger.clone();
        left.entries.retain(|slot, _| *slot >= 32 || (12..=15).contains(slot));
        let released = plan(&left, &after, &owner(), 35 * 60);
        assert!(released.kept.is_empty());
        for gone in ["kept/00000000000000000012", "manifest/12", "pack/12", "pack/2"] {
            assert!(released.doomed.iter().any(|object| object == gone), "{gone}");
        }
        after.doomed.push(crate::names::Doomed { since_us: 0, objects: released.doomed });
        assert!(plan(&left, &after, &owner(), 35 * 60).doomed.is_empty(), "nothing is doomed twice");
    }

    #[test]
    fn a_rollback_inside_the_window_holds_what_it_went_back_to() {
        let mut ledger = ledger(40, 10);
        let detour = Box::new(Detour {
            before: vec![Stretch { owner: None, first: 2, last: 7, hash: Hash::ZERO }],
            resumes: 36,
        });
        for slot in 36..=40 {
            let entry = ledger.entries.get_mut(&slot).expect("a slot");
            (entry.detour, entry.base_slot) = (Some(detour.clone()), 2);
        }
        let before = plan(&ledger, &Names::default(), &owner(), 34 * 60);
        assert_eq!((before.floor, before.kept.as_slice()), (32, &[(2, 7)][..]));
        let after = plan(&ledger, &Names::default(), &owner(), 39 * 60);
        assert_eq!((after.floor, after.kept.as_slice()), (36, &[(2, 7)][..]));
        assert!(after.doomed.iter().any(|object| object == "manifest/32"), "the abandoned future goes");
        assert!(!after.doomed.iter().any(|object| object == "manifest/2" || object == "pack/2"));
    }

    #[test]
    fn a_stretch_of_a_relative_holds_nothing_here() {
        let ledger = ledger(40, 10);
        let mut names = Names::default();
        let mut foreign = past(12, 15);
        foreign.route[0].owner = Some(Owner { mart: "other".into(), incarnation: uuid::Uuid::nil() });
        names.snapshots.insert("s".into(), Snapshot { past: foreign, created_us: 0, automatic: false });
        assert!(plan(&ledger, &names, &owner(), 35 * 60).kept.is_empty());
    }
}
