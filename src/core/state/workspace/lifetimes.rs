//! The entries of a workspace that change merely because time passes: keys that expire, and
//! tombstones, which are dropped after their retention.
//!
//! Each entry costs memory, but nothing per turn: the earliest deadline is at the front of an
//! ordered set.

use std::collections::BTreeSet;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::seq::Seq;

/// The times of the entries that expire and of the tombstones, by slot.
///
/// Invariant: each slot in `times` is in exactly one of the two sets, and each slot of a set is in
/// `times`.
#[derive(Debug, Default)]
pub(super) struct Lifetimes {
    /// The expiry of a live entry, or the time at which a tombstone was created, in Unix
    /// microseconds.
    times: HashMap<u32, u64, FixedState>,
    /// The live entries that expire, in the order of their expiry.
    expiries: BTreeSet<(u64, u32)>,
    /// The tombstones, in the order of their seqs.
    tombstones: BTreeSet<(Seq, u32)>,
}

impl Lifetimes {
    /// Returns the time of a slot that is known to have one.
    pub fn time_us(&self, slot: u32) -> u64 {
        self.times[&slot]
    }

    /// Adds a live entry that expires.
    pub fn add_expiry(&mut self, slot: u32, expires_at_us: u64) {
        self.times.insert(slot, expires_at_us);
        self.expiries.insert((expires_at_us, slot));
    }

    /// Adds a tombstone.
    pub fn add_tombstone(&mut self, slot: u32, seq: Seq, deleted_at_us: u64) {
        self.times.insert(slot, deleted_at_us);
        self.tombstones.insert((seq, slot));
    }

    /// Removes a slot that is known to have a time. `seq` is the seq of its entry.
    pub fn remove(&mut self, slot: u32, seq: Seq) {
        let time_us = self.times.remove(&slot).expect("the slot has a time");
        if !self.tombstones.remove(&(seq, slot)) {
            let was_there = self.expiries.remove(&(time_us, slot));
            assert!(was_there, "a slot with a time expires or is a tombstone");
        }
    }

    /// Returns the slot that expires next, with its expiry.
    pub fn next_expiry(&self) -> Option<(u64, u32)> {
        self.expiries.first().copied()
    }

    /// Returns the slot of the tombstone with the lowest seq, and the time at which it was created.
    pub fn oldest_tombstone(&self) -> Option<(u64, u32)> {
        let (_, slot) = *self.tombstones.first()?;
        Some((self.times[&slot], slot))
    }

    /// Returns the number of tombstones.
    pub fn tombstones_count(&self) -> usize {
        self.tombstones.len()
    }

    /// Returns the number of live entries that expire.
    pub fn expiries_count(&self) -> usize {
        self.expiries.len()
    }

    /// Checks the invariant.
    #[cfg(test)]
    pub fn invariants(&self) {
        assert_eq!(
            self.times.len(),
            self.expiries.len() + self.tombstones.len()
        );
        let slots = self.expiries.iter().map(|(_, slot)| slot);
        let mut slots = slots.chain(self.tombstones.iter().map(|(_, slot)| slot));
        assert!(slots.all(|slot| self.times.contains_key(slot)));
    }
}
