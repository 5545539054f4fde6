//! A sparse index of the list of changes, which finds the place at which a resume begins without
//! walking the list from its end.
//!
//! It is a skip list with two levels: about one in [`ENTRIES_PER_MARK`] entries is a *mark*, and
//! the marks are in an ordered map. Whether an entry is a mark depends on a hash of its seq alone,
//! so an entry needs no memory for it. The hash is seeded, so that no client can choose where the
//! marks are, or overwrite only the marks. The number of entries between two marks is therefore
//! geometrically distributed, whatever clients write.
//!
//! Pugh, "Skip Lists: A Probabilistic Alternative to Balanced Trees" (1990).

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Bound;

use foldhash::fast::FixedState;

use crate::seq::Seq;

/// The average number of entries from one mark to the next. A mark costs about 25 bytes, and an
/// entry of a walk a cache miss.
pub(super) const ENTRIES_PER_MARK: usize = 128;

/// The marks of a workspace's list of changes.
///
/// Invariant: each mark is in the list. A workspace of up to [`ENTRIES_PER_MARK`] entries needs no
/// marks, so the entries that were linked while it was small are missing; they are few.
#[derive(Debug, Default)]
pub(super) struct SparseIndex {
    slots: BTreeMap<Seq, u32>,
}

impl SparseIndex {
    /// Adds an entry that was linked, if it is a mark.
    pub fn add(&mut self, seq: Seq, slot: u32, hasher: &FixedState) {
        if is_mark(seq, hasher) {
            self.slots.insert(seq, slot);
        }
    }

    /// Removes an entry that leaves the list, if it is a mark.
    pub fn remove(&mut self, seq: Seq, hasher: &FixedState) {
        if is_mark(seq, hasher) {
            self.slots.remove(&seq);
        }
    }

    /// Returns the slots of the marks.
    #[cfg(test)]
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.slots.values().copied()
    }

    /// Returns the slot of the last mark up to `seq`.
    pub fn last_until(&self, seq: Seq) -> Option<u32> {
        self.slots.range(..=seq).next_back().map(|(_, slot)| *slot)
    }

    /// Returns the slot of the first mark after `seq`.
    pub fn first_after(&self, seq: Seq) -> Option<u32> {
        let after = self
            .slots
            .range((Bound::Excluded(seq), Bound::Unbounded))
            .next();
        after.map(|(_, slot)| *slot)
    }
}

/// Returns whether the entry with this seq is a mark.
pub(super) fn is_mark(seq: Seq, hasher: &FixedState) -> bool {
    let hash = hasher.hash_one(seq.get());
    hash.is_multiple_of(ENTRIES_PER_MARK as u64)
}
