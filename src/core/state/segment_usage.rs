//! The segment usage table, which shows which segments of the log still hold live ops.
//!
//! Each entry of a workspace is marked with the segment that was open when its op was applied. The
//! op is in that segment, or in the next one if the next one was opened while the op's batch was
//! still being filled. So a segment is *dead*, that is, all its ops are superseded, when no entry
//! has its mark or that of the segment before it. Its file may then be deleted without being read.
//!
//! By then, the ops that superseded its ops must be on disk. That is certain only for ops in a
//! closed segment, so segments that were dead when one segment was opened are reported when the
//! next one is opened.
//!
//! Architecture invariant: this module does not access the log. A table covers only the ops applied
//! since its shard was opened. Ops read from the log have no mark, and the segments that contain
//! them are never reported as dead.
//!
//! The name is from Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured
//! File System" (1992), section 3.6.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use crate::limits::SEGMENTS_MARKED_MAX;

/// The segment that was open when an op was applied, or [`UNMARKED`] if the op was read from the
/// log.
pub type Mark = u32;

/// The mark of ops that were read from the log.
pub const UNMARKED: Mark = 0;

/// The number of entries with each mark, for one shard.
#[derive(Debug)]
pub struct SegmentUsage {
    /// The index of the segment whose mark is 0, which is the segment before the first counted one.
    origin: u64,
    /// The mark of the first count, minus one. Entries with older marks are no longer counted.
    forgotten: u32,
    /// The number of entries with each mark. The last count is that of the open segment.
    counts: VecDeque<u64>,
    /// The segments that were dead when the open segment was opened.
    dead_now: Dead,
    /// The segments that were dead when the one before the open segment was opened.
    dead: Dead,
}

/// The dead segments of a range: all its segments except those with a live op.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dead {
    /// The segment index of the first counted mark.
    counted_from: u64,
    /// The first index after the range.
    end: u64,
    /// The indices of the segments that are the mark of some entry, in ascending order.
    live: Vec<u64>,
}

impl SegmentUsage {
    /// Returns the table of a shard whose log continues in the segment with this index.
    #[must_use]
    pub fn new(open_index: u64) -> Self {
        Self {
            origin: open_index.saturating_sub(1),
            forgotten: 0,
            counts: VecDeque::from([0]),
            dead_now: Dead::default(),
            dead: Dead::default(),
        }
    }

    /// Returns the mark of an op that is applied now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let count =
            u32::try_from(self.counts.len()).expect("SEGMENTS_MARKED_MAX is much less than 2^32");
        self.forgotten + count
    }

    /// Counts an applied op, which has the current mark and replaced an entry with `mark`.
    pub fn replaced(&mut self, mark: Mark) {
        *self.counts.back_mut().expect("the open segment is counted") += 1;
        if let Some(place) = mark.checked_sub(self.forgotten + 1) {
            self.counts[place as usize] -= 1;
        }
    }

    /// Starts a count for the segment that was just opened.
    pub fn rotate(&mut self) {
        let counted_from = self.origin + u64::from(self.forgotten) + 1;
        let end = counted_from + self.counts.len() as u64;
        let indexed = (counted_from..).zip(&self.counts);
        let dead_now = Dead {
            counted_from,
            end,
            live: indexed
                .filter(|(_, count)| **count > 0)
                .map(|(index, _)| index)
                .collect(),
        };
        self.dead = std::mem::replace(&mut self.dead_now, dead_now);
        self.counts.push_back(0);
        if self.counts.len() > SEGMENTS_MARKED_MAX {
            self.counts.pop_front();
            self.forgotten += 1;
        }
    }

    /// Returns the segments that are dead and whose ops are superseded by ops on disk. They stay
    /// dead.
    #[must_use]
    pub fn dead(&self) -> &Dead {
        &self.dead
    }
}

impl Dead {
    /// Returns whether all these segments are dead.
    #[must_use]
    pub fn has(&self, segments: &RangeInclusive<u64>) -> bool {
        let (first, last) = (*segments.start(), *segments.end());
        if first <= self.counted_from || last >= self.end {
            return false;
        }
        let next_live = self.live.partition_point(|index| *index < first - 1);
        self.live.get(next_live).is_none_or(|index| *index > last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn has(usage: &SegmentUsage, segment: u64) -> bool {
        usage.dead().has(&(segment..=segment))
    }

    #[test]
    fn a_segment_is_reported_dead_once_its_superseding_ops_are_on_disk() {
        let mut usage = SegmentUsage::new(7);
        usage.rotate();
        let in_8 = usage.mark();
        usage.replaced(UNMARKED);
        usage.rotate();
        let in_9 = usage.mark();
        usage.replaced(in_8);
        usage.rotate();
        assert!(!has(&usage, 8), "segment 8 was not dead when 9 was opened");
        usage.rotate();
        // The op that superseded it may be in 10, which is closed now that 11 is open.
        assert!(has(&usage, 8));
        assert!(!has(&usage, 9) && !has(&usage, 10));
        usage.replaced(in_9);
        usage.rotate();
        assert!(has(&usage, 8) && !has(&usage, 9) && !has(&usage, 10));
        usage.rotate();
        assert!(usage.dead().has(&(8..=10)));
        assert!(!usage.dead().has(&(8..=11)) && !has(&usage, 11));
        assert!(!has(&usage, 7), "an earlier segment is reported dead");
    }

    #[test]
    fn marks_that_are_too_old_are_dropped_and_never_reported_dead() {
        let mut usage = SegmentUsage::new(1);
        let old = usage.mark();
        usage.replaced(UNMARKED);
        for _ in 0..SEGMENTS_MARKED_MAX + 10 {
            usage.rotate();
        }
        assert_eq!(usage.counts.len(), SEGMENTS_MARKED_MAX);
        usage.replaced(old);
        usage.rotate();
        assert!(!has(&usage, 2));
        assert!(has(&usage, 100), "a counted segment is not reported dead");
    }

    proptest! {
        /// Compares the table with a model that knows the segment of each op and the op that
        /// superseded it.
        #[test]
        fn no_segment_is_reported_dead_before_its_ops_are_superseded_on_disk(
            steps in prop::collection::vec((0_u8..12, any::<bool>()), 1..300),
        ) {
            struct Placed {
                segment: u64,
                mark: Mark,
                superseded_by: Option<usize>,
            }
            let first = 5;
            let (mut usage, mut open) = (SegmentUsage::new(first), first);
            let mut ops: Vec<Placed> = Vec::new();
            let mut entries: HashMap<u8, usize> = HashMap::new();
            let mut filling = 0;
            for (key, is_written) in steps {
                if key < 9 {
                    let mark = usage.mark();
                    let before = entries.insert(key, ops.len());
                    usage.replaced(before.map_or(UNMARKED, |before| ops[before].mark));
                    if let Some(before) = before {
                        ops[before].superseded_by = Some(ops.len());
                    }
                    ops.push(Placed { segment: open, mark, superseded_by: None });
                    if is_written {
                        filling = ops.len();
                    }
                } else {
                    usage.rotate();
                    open += 1;
                    // The batch that was being filled is written to the new segment.
                    for op in &mut ops[filling..] {
                        op.segment = open;
                    }
                    filling = ops.len();
                }
                for segment in first..=open {
                    if has(&usage, segment) {
                        for op in ops.iter().filter(|op| op.segment == segment) {
                            let by = op.superseded_by.map(|by| ops[by].segment);
                            prop_assert!(by.is_some_and(|by| by < open), "{segment}: {by:?}");
                        }
                    }
                }
            }
        }
    }
}
