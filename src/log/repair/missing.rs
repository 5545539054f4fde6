//! Finds the workspaces that have lost ops, to the extent that the seqs of the remaining ops reveal
//! it.
//!
//! As long as a workspace's ops go to the same folder, their seqs are consecutive there, until a
//! compaction drops superseded ops. So a gap was caused by the damage if it spans a lost range and
//! neither of its ends is in a compacted segment. A missing segment may itself have been compacted,
//! so some of the ops reported as missing may have been superseded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use super::super::record::LoggedOp;
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
        if is_known && !is_compacted && op.seq > before.next() {
            self.gaps.push(MissingOps {
                workspace: op.workspace.to_owned(),
                seqs: before.next()..=op.seq.previous(),
            });
        }
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

    /// Returns whether no ops are missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }

    /// Adds an op from any folder.
    pub fn visit(&mut self, op: &LoggedOp<'_>, is_compacted: bool) {
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

    #[test]
    fn a_gap_covers_only_seqs_missing_across_damage() {
        for (before, behind, gap) in [
            (1, 5, Some((2, 4))),
            (1, 3, Some((2, 2))),
            (1, 2, None),
            (7, 7, None),
            (7, 3, None),
        ] {
            let mut tracker = SeqTracker::default();
            let op = |seq| LoggedOp {
                workspace: "w",
                key: "k",
                value: "1",
                seq: Seq::new(seq),
                timestamp: 1,
            };
            tracker.visit(&op(before), false);
            tracker.note_damage();
            tracker.visit(&op(behind), false);
            let seqs: Vec<_> = tracker.finish().into_iter().map(|gap| gap.seqs).collect();
            let gap = gap.map(|(first, last)| Seq::new(first)..=Seq::new(last));
            assert_eq!(seqs, Vec::from_iter(gap), "{before}, {behind}");
        }
    }
}
