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

use foldhash::fast::FixedState;

use super::{NONE, Workspace};
use crate::seq::Seq;

/// The average number of entries from one mark to the next. A mark costs about 25 bytes, and an
/// entry of a walk a cache miss.
pub(super) const ENTRIES_PER_MARK: usize = 128;

/// The marks of a workspace's list of changes.
///
/// Invariant: each mark is in the list. The entries that are not indexed although their seqs say
/// so were linked while the workspace was small.
#[derive(Debug, Default)]
pub(super) struct SparseIndex {
    slots: BTreeMap<Seq, u32>,
}

impl SparseIndex {
    /// Adds an entry that was linked as the newest of `entries_count`, if it is a mark.
    pub fn add(&mut self, seq: Seq, slot: u32, entries_count: usize, hasher: &FixedState) {
        // A small workspace needs no marks, and the entries that have none because of this are few.
        if entries_count > ENTRIES_PER_MARK && is_mark(seq, hasher) {
            self.slots.insert(seq, slot);
        }
    }

    /// Removes an entry that leaves the list, if it is a mark.
    pub fn remove(&mut self, seq: Seq, hasher: &FixedState) {
        if !self.slots.is_empty() && is_mark(seq, hasher) {
            self.slots.remove(&seq);
        }
    }

    /// Removes all marks.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    fn last_until(&self, seq: Seq) -> Option<u32> {
        self.slots.range(..=seq).next_back().map(|(_, slot)| *slot)
    }

    fn first_after(&self, seq: Seq) -> Option<u32> {
        let after = self.slots.range(seq.next()..).next();
        after.map(|(_, slot)| *slot)
    }
}

fn is_mark(seq: Seq, hasher: &FixedState) -> bool {
    hasher.hash_one(seq.get()) % ENTRIES_PER_MARK as u64 == 0
}

impl Workspace {
    /// Returns the slot of the first entry that changed after `since`, searching from both ends of
    /// the part of the list between two marks.
    pub(super) fn first_after(&self, since: Seq) -> u32 {
        let ((mut older, mut newer), mut first) = (self.ends_around(since), NONE);
        while let Some(entry) = self.entries.get(older as usize) {
            if entry.seq > since {
                return older;
            }
            older = entry.newer;
            let entry = &self.entries[newer as usize];
            if entry.seq <= since {
                return first;
            }
            (first, newer) = (newer, entry.older);
        }
        NONE
    }

    /// Returns the slots of the ends of a short part of the list that contains the first entry
    /// after `since`, if there is one, and the entry in front of it, if there is one.
    fn ends_around(&self, since: Seq) -> (u32, u32) {
        let older = self.marks.last_until(since).unwrap_or(self.oldest);
        let newer = self.marks.first_after(since).unwrap_or(self.newest);
        (older, newer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::log::record::Change;

    /// The longest part of a list that is searched in these tests: a longer gap between two marks
    /// has a probability of about e^-16.
    const WALK_MAX: usize = 16 * ENTRIES_PER_MARK;

    /// A workspace beside the seq of the last change of each key.
    struct Rig {
        workspace: Workspace,
        keys: BTreeMap<u64, u64>,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                workspace: Workspace::new("w", 5),
                keys: BTreeMap::new(),
            }
        }

        fn write(&mut self, key: u64) {
            let timestamp = self.workspace.seq().next().get();
            self.workspace.apply(&format!("k{key}"), "1", timestamp, 0);
            self.keys.insert(key, self.workspace.seq().get());
        }

        /// Checks for each `since` that the changes begin where they should, and that only a short
        /// part of the list is searched.
        fn check(&self, what: &str) {
            let mut seqs: Vec<u64> = self.keys.values().copied().collect();
            seqs.sort_unstable();
            for since in (0..=self.workspace.seq().get() + 1).step_by(7) {
                let expected = seqs.get(seqs.partition_point(|seq| *seq <= since));
                let since = Seq::new(since);
                let first = self.workspace.changed_since(since, None).next();
                let first = first.map(|(_, entry)| entry.seq().get());
                assert_eq!(first, expected.copied(), "{what}, after {since:?}");
                let (older, newer) = self.workspace.ends_around(since);
                let walk = self.workspace.entries_from(older);
                let steps = walk.take_while(|(slot, _)| *slot != newer).take(WALK_MAX);
                assert!(steps.count() < WALK_MAX, "{what}, after {since:?}");
            }
        }
    }

    #[test]
    fn a_resume_begins_after_a_short_walk_however_large_the_workspace() {
        let mut rig = Rig::new();
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            (state >> 33) % below
        };
        rig.check("an empty workspace");
        for key in 0..20_000 {
            rig.write(key);
        }
        rig.check("each key once");
        for _ in 0..20_000 {
            rig.write(random(20_000));
        }
        rig.check("at random");
        for key in (0..20_000).filter(|key| key % 3 > 0) {
            rig.write(key);
        }
        rig.check("two of three");
        for _ in 0..20_000 {
            rig.write(random(20));
        }
        rig.check("a few keys");
        // All marks so far are overwritten, as far as the keys are known to have been marks.
        let (workspace, hasher) = (&rig.workspace, rig.workspace.hasher.clone());
        let marks = workspace
            .entries()
            .filter(|entry| is_mark(entry.seq(), &hasher));
        let marks: Vec<u64> = marks
            .map(|entry| entry.key()[1..].parse().unwrap())
            .collect();
        assert!(marks.len() > 100);
        for key in marks {
            rig.write(key);
        }
        assert!(rig.workspace.marks.slots.len() < 20);
    }

    #[test]
    fn marks_survive_a_restart_and_dropped_tombstones() {
        let mut rig = Rig::new();
        for key in 0..3000 {
            rig.write(key);
        }
        let mut restored = Workspace::new("w", 5);
        for (_, entry) in rig.workspace.changed_since(Seq::NONE, None) {
            let change = match entry.seq().get() % 3 {
                0 => Change::Delete { deleted_at_us: 1 },
                _ => Change::write("1"),
            };
            restored.restore(entry.key(), &change, entry.timestamp(), entry.seq());
        }
        restored.finish_restore();
        rig.workspace = restored;
        rig.check("a restart");
        let marks_count = rig.workspace.marks.slots.len();
        let unmarked = crate::core::state::segment_usage::UNMARKED;
        let dropped = rig
            .workspace
            .drop_tombstones((u64::MAX, 0), usize::MAX, None, unmarked);
        assert_eq!(dropped.map(|dropped| dropped.count), Some(1000));
        rig.keys.retain(|_, seq| *seq % 3 > 0);
        rig.check("dropped tombstones");
        assert!(rig.workspace.marks.slots.len() < marks_count);
        let is_held = |slot| rig.workspace.entries.contains(slot);
        assert!(
            rig.workspace
                .marks
                .slots
                .values()
                .all(|slot| is_held(*slot as usize))
        );
    }

    #[test]
    fn a_small_workspace_has_no_marks() {
        let mut rig = Rig::new();
        for number in 0..10_000 {
            rig.write(number % ENTRIES_PER_MARK as u64);
        }
        assert!(rig.workspace.marks.slots.is_empty());
        rig.check("a small workspace");
    }
}
