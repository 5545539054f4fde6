//! Where a resume begins in a large workspace, and how far the search for it walks.

use std::collections::BTreeMap;

use super::sparse_index::{ENTRIES_PER_MARK, is_mark};
use super::{UNMARKED, Workspace};
use crate::log::record::Change;
use crate::seq::Seq;

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

    /// Returns the slots of the marks.
    fn marks(&self) -> Vec<u32> {
        let marks = self.workspace.marks.iter();
        marks.flat_map(|marks| marks.slots()).collect()
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
    assert!(rig.marks().len() < 20);
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
    let marks_count = rig.marks().len();
    let dropped = rig
        .workspace
        .drop_tombstones((u64::MAX, 0), usize::MAX, None, UNMARKED);
    assert_eq!(dropped.map(|dropped| dropped.count), Some(1000));
    rig.keys.retain(|_, seq| *seq % 3 > 0);
    rig.check("dropped tombstones");
    assert!(rig.marks().len() < marks_count);
    for slot in rig.marks() {
        assert!(rig.workspace.entries.contains(slot as usize));
    }
}

#[test]
fn a_small_workspace_has_no_marks() {
    let mut rig = Rig::new();
    for number in 0..10_000 {
        rig.write(number % ENTRIES_PER_MARK as u64);
    }
    assert!(rig.workspace.marks.is_none());
    rig.check("a small workspace");
}
