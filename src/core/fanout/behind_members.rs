//! The members of a feed that are behind, in the order of what they still need.

use std::collections::BTreeSet;

use crate::seq::Seq;

/// The members of a feed that have to be sent a state, or have fallen behind. Each of them needs
/// the tombstones after some seq. The lowest of these seqs is at hand, however many members there
/// are.
#[derive(Debug, Default)]
pub(crate) struct BehindMembers {
    /// The seqs, each with the slot of the member's session.
    needs: BTreeSet<(Seq, u32)>,
}

impl BehindMembers {
    /// Records that the member in a slot needs the tombstones after another seq than before.
    /// `None` is a member that is not behind.
    ///
    /// # Panics
    /// If `before` is not what was recorded last.
    pub fn update(&mut self, slot: u32, before: Option<Seq>, after: Option<Seq>) {
        if before == after {
            return;
        }
        if let Some(seq) = before {
            let was_there = self.needs.remove(&(seq, slot));
            assert!(was_there, "a member that is behind is recorded");
        }
        if let Some(seq) = after {
            self.needs.insert((seq, slot));
        }
    }

    /// Returns the lowest seq after which a member needs the tombstones.
    pub fn first(&self) -> Option<Seq> {
        self.needs.first().map(|(seq, _)| *seq)
    }

    /// Checks that the members that are behind are exactly those of `expected`.
    pub fn invariants(&self, expected: impl Iterator<Item = (Seq, u32)>) {
        let expected: BTreeSet<(Seq, u32)> = expected.collect();
        assert_eq!(self.needs, expected, "the members that are behind");
    }
}
