//! Finds the workspaces that have lost ops, to the extent that the seqs of the remaining ops reveal
//! it.
//!
//! As long as a workspace's ops go to the same folder, their seqs are consecutive there, until a
//! compaction drops superseded ops. So a gap was caused by the damage if it spans a lost range and
//! neither of its ends is in a compacted segment. A missing segment may itself have been compacted,
//! so some of the ops reported as missing may have been superseded.
//!
//! A floor is not an op, but its seq is that of the last op before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use super::super::record::{Change, LoggedOp};
use crate::seq::Seq;

/// A range of consecutive seqs whose ops are missing from one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingOps {
    /// The workspace.
    pub workspace: String,
    /// The seqs of these ops.
    pub seqs: RangeInclusive<Seq>,
}

/// A tracker of the seqs of all workspaces in one folder.
#[derive(Default)]
pub struct SeqTracker {
    last: HashMap<String, Last>,
    /// The number of lost ranges so far.
    damages: u64,
    had_compacted: bool,
    /// The greatest number of a generation, or 0.
    generation_number: u64,
    gaps: Vec<MissingOps>,
}

struct Last {
    seq: Seq,
    damages: u64,
    is_compacted: bool,
}

impl SeqTracker {
    /// Adds the next op, which may have been added before.
    pub fn visit(&mut self, op: &LoggedOp<'_>, is_compacted: bool) {
        self.had_compacted |= is_compacted;
        if let Change::Generation { .. } = op.change {
            self.generation_number = self.generation_number.max(op.seq.get());
            return;
        }
        let now = Last {
            seq: op.seq,
            damages: self.damages,
            is_compacted,
        };
        let (before, is_known) = match self.last.get_mut(op.workspace) {
            Some(last) if op.seq <= last.seq => return,
            Some(last) => {
                let last = std::mem::replace(last, now);
                (last.seq, last.damages < self.damages && !last.is_compacted)
            }
            None => {
                self.last.insert(op.workspace.to_owned(), now);
                (Seq::NONE, self.damages > 0 && !self.had_compacted)
            }
        };
        let end = if op.change.is_op() {
            op.seq
        } else {
            op.seq.next()
        };
        if is_known && !is_compacted && end > before.next() {
            self.gaps.push(MissingOps {
                workspace: op.workspace.to_owned(),
                seqs: before.next()..=end.previous(),
            });
        }
    }

    /// Returns the greatest number of a generation in the folder, or 0 if there is none.
    #[must_use]
    pub fn generation_number(&self) -> u64 {
        self.generation_number
    }

    /// Records that bytes are lost between the previous op and the next one.
    pub fn note_damage(&mut self) {
        self.damages += 1;
    }

    /// Returns the missing ops, without taking other folders into account.
    #[must_use]
    pub fn finish(self) -> Vec<MissingOps> {
        self.gaps
    }
}

/// A filter that removes ops that exist in other folders from the missing ones. A workspace's ops
/// are in several folders if the server was restarted with a different number of shards.
#[derive(Default)]
pub struct MissingFilter {
    missing: BTreeMap<String, WorkspaceMissing>,
}

#[derive(Default)]
struct WorkspaceMissing {
    gaps: Vec<RangeInclusive<Seq>>,
    found: BTreeSet<Seq>,
    /// Whether a compaction may have dropped some of these ops.
    is_unclear: bool,
}

impl MissingFilter {
    /// Returns a filter for all the gaps that were found.
    #[must_use]
    pub fn new(gaps: Vec<MissingOps>) -> Self {
        let mut missing: BTreeMap<String, WorkspaceMissing> = BTreeMap::new();
        for gap in gaps {
            missing
                .entry(gap.workspace)
                .or_default()
                .gaps
                .push(gap.seqs);
        }
        Self { missing }
    }

    /// Returns `true` if no ops are missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }

    /// Adds an op from any folder.
    pub fn visit(&mut self, op: &LoggedOp<'_>, is_compacted: bool) {
        if !op.change.is_op() {
            return;
        }
        let Some(missing) = self.missing.get_mut(op.workspace) else {
            return;
        };
        if missing.gaps.iter().any(|gap| gap.contains(&op.seq)) {
            missing.found.insert(op.seq);
            missing.is_unclear |= is_compacted;
        }
    }

    /// Returns the missing ops, ordered by workspace and seq.
    #[must_use]
    pub fn finish(self) -> Vec<MissingOps> {
        let mut all = Vec::new();
        for (workspace, mut missing) in self.missing {
            if missing.is_unclear {
                continue;
            }
            missing.gaps.sort_by_key(|gap| *gap.start());
            for gap in missing.gaps {
                let (mut begin, behind) = (*gap.start(), gap.end().next());
                for seq in missing.found.range(gap).copied().chain([behind]) {
                    if begin < seq {
                        all.push(MissingOps {
                            workspace: workspace.clone(),
                            seqs: begin..=seq.previous(),
                        });
                    }
                    begin = seq.next();
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Generation;

    fn record(change: Change<'_>, seq: u64) -> LoggedOp<'_> {
        let is_generation = matches!(change, Change::Generation { .. });
        LoggedOp {
            workspace: if is_generation { "" } else { "w" },
            key: if change.is_op() { "k" } else { "" },
            change,
            seq: Seq::new(seq),
            timestamp: seq,
        }
    }

    #[test]
    fn a_gap_is_exactly_the_ops_missing_across_damage() {
        let (write, delete) = (Change::write("1"), Change::Delete { deleted_at_us: 1 });
        let floor = Change::Floor {
            dropped_seq: Seq::new(1),
        };
        for (before, behind, change, gap) in [
            (1, 5, write, Some((2, 4))),
            (1, 3, delete, Some((2, 2))),
            (1, 2, write, None),
            (7, 7, write, None),
            (7, 3, write, None),
            (1, 5, floor, Some((2, 5))),
            (1, 2, floor, Some((2, 2))),
            (1, 1, floor, None),
        ] {
            let mut tracker = SeqTracker::default();
            tracker.visit(&record(write, before), false);
            tracker.note_damage();
            tracker.visit(&record(change, behind), false);
            let seqs: Vec<_> = tracker.finish().into_iter().map(|gap| gap.seqs).collect();
            let gap = gap.map(|(first, last)| Seq::new(first)..=Seq::new(last));
            assert_eq!(seqs, Vec::from_iter(gap), "{before}, {behind}");
        }
    }

    #[test]
    fn a_generation_is_in_no_gap_and_a_floor_fills_none() {
        let generation = |seq| {
            let id = Generation::new(1);
            record(Change::Generation { id, shards: 1 }, seq)
        };
        let mut tracker = SeqTracker::default();
        tracker.visit(&generation(1), false);
        tracker.note_damage();
        tracker.visit(&generation(9), false);
        tracker.visit(&generation(4), false);
        assert_eq!(tracker.generation_number(), 9);
        assert_eq!(tracker.finish(), []);

        let gap = MissingOps {
            workspace: "w".to_owned(),
            seqs: Seq::new(2)..=Seq::new(3),
        };
        let mut filter = MissingFilter::new(vec![gap.clone()]);
        let dropped_seq = Seq::new(1);
        filter.visit(&record(Change::Floor { dropped_seq }, 3), true);
        assert_eq!(filter.finish(), [gap]);
    }
}
