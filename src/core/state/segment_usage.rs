//! The segment usage table: in which segments of the log there still are ops that are the state.
//!
//! Each entry of a workspace is marked with the segment that was open when its op was applied. The op stands in that segment, or in
//! the next one, if its batch was still being filled when that was opened. So a segment is *dead*, all of it overwritten, when no entry has its
//! mark or that of the segment before it: its file may go without being read.
//!
//! What has overwritten it must be on disk by then. Only a closed segment is for sure, so what was dead when a segment was opened
//! is told when the next one is.
//!
//! Architecture invariant: absent here is the log itself. A table knows of the ops since its shard was opened, and of no other: what was read
//! back has no mark, and the segments before are never told dead.
//!
//! The name: Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File System" (1992), section 3.6.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use crate::limits::SEGMENTS_MARKED_MAX;

/// Which segment was open when an op was applied. [`UNMARKED`]: it was read from the log.
pub type Mark = u32;

/// The mark of what was read from the log.
pub const UNMARKED: Mark = 0;

/// Counts the entries of each mark, for one shard.
#[derive(Debug)]
pub struct SegmentUsage {
    /// The index of the segment whose mark is 0: the one before the first that is counted.
    origin: u64,
    /// The mark of the first count, less one. Entries with older marks are not counted any more.
    forgotten: u32,
    /// The last one is that of the open segment.
    counts: VecDeque<u64>,
    /// What was dead when the open segment was opened.
    dead_now: Dead,
    /// The same for the segment before it.
    dead: Dead,
}

/// Segments of which no op is the state: those of a range, but for those with a live one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dead {
    /// The first mark that is counted, as an index.
    counted_from: u64,
    /// The first index that is not in it.
    end: u64,
    /// The indices that are the mark of an entry, in order.
    live: Vec<u64>,
}

impl SegmentUsage {
    /// A table for a shard whose log goes on in the segment of this index.
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

    /// The mark of an op that is applied now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let count =
            u32::try_from(self.counts.len()).expect("SEGMENTS_MARKED_MAX is far below 2^32");
        self.forgotten + count
    }

    /// Takes an op that was applied: it has the mark of now, and what it replaced had that one.
    pub fn replaced(&mut self, mark: Mark) {
        *self.counts.back_mut().expect("the open segment is counted") += 1;
        if let Some(place) = mark.checked_sub(self.forgotten + 1) {
            self.counts[place as usize] -= 1;
        }
    }

    /// Takes that the log goes on in the next segment.
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

    /// What is dead, and overwritten by what is on disk. It stays so.
    #[must_use]
    pub fn dead(&self) -> &Dead {
        &self.dead
    }
}

impl Dead {
    /// Whether all these segments are dead.
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
    fn a_segment_is_told_dead_when_what_has_overwritten_it_is_on_disk() {
        let mut usage = SegmentUsage::new(7);
        usage.rotate();
        let in_8 = usage.mark();
        usage.replaced(UNMARKED);
        usage.rotate();
        let in_9 = usage.mark();
        usage.replaced(in_8);
        usage.rotate();
        assert!(!has(&usage, 8), "it was not dead when 9 was opened");
        usage.rotate();
        // Its second op may stand in 10, which is closed now that 11 is open.
        assert!(has(&usage, 8));
        assert!(!has(&usage, 9) && !has(&usage, 10));
        usage.replaced(in_9);
        usage.rotate();
        assert!(has(&usage, 8) && !has(&usage, 9) && !has(&usage, 10));
        usage.rotate();
        assert!(usage.dead().has(&(8..=10)));
        assert!(!usage.dead().has(&(8..=11)) && !has(&usage, 11));
        assert!(!has(&usage, 7), "what was before is not known");
    }

    #[test]
    fn what_is_too_old_is_forgotten_and_never_told_dead() {
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
        assert!(has(&usage, 100), "it is known of those that are counted");
    }

    proptest! {
        /// Against a model that knows where each op stands, and which one has overwritten it.
        #[test]
        fn nothing_that_is_live_or_not_on_disk_yet_is_told_dead(
            steps in prop::collection::vec((0_u8..12, any::<bool>()), 1..300),
        ) {
            struct Stands { segment: u64, mark: Mark, overwritten_by: Option<usize> }
            let first = 5;
            let (mut usage, mut open) = (SegmentUsage::new(first), first);
            let mut ops: Vec<Stands> = Vec::new();
            let mut entries: HashMap<u8, usize> = HashMap::new();
            let mut filling = 0;
            for (key, is_written) in steps {
                if key < 9 {
                    let mark = usage.mark();
                    let before = entries.insert(key, ops.len());
                    usage.replaced(before.map_or(UNMARKED, |before| ops[before].mark));
                    if let Some(before) = before {
                        ops[before].overwritten_by = Some(ops.len());
                    }
                    ops.push(Stands { segment: open, mark, overwritten_by: None });
                    if is_written {
                        filling = ops.len();
                    }
                } else {
                    usage.rotate();
                    open += 1;
                    // What was being filled is written to the new one.
                    for op in &mut ops[filling..] {
                        op.segment = open;
                    }
                    filling = ops.len();
                }
                for segment in first..=open {
                    if has(&usage, segment) {
                        for op in ops.iter().filter(|op| op.segment == segment) {
                            let by = op.overwritten_by.map(|by| ops[by].segment);
                            prop_assert!(by.is_some_and(|by| by < open), "{segment}: {by:?}");
                        }
                    }
                }
            }
        }
    }
}
