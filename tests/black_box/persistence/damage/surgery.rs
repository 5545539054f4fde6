//! Pieces of a segment that are missing, duplicated, swapped, or zeroed.

use super::format::{FIRST_OPS, GENERATION, Layout};

/// One way to move bytes within a segment, the offset of the first misplaced byte, and whether it
/// is detected in the last segment. In an earlier segment, any of them keeps the server from
/// starting.
pub struct Surgery {
    pub what: &'static str,
    pub damage: fn(&mut Vec<u8>, &Layout),
    pub bad_at: fn(&Layout) -> usize,
    pub is_found_in_the_last: bool,
}

/// Batches that moved are detected by the position in their headers. If records moved, no later
/// header is in the right place, yet no part of their batch is missing. An interrupted write leaves
/// zeros up to the end of the segment.
pub const SURGERIES: &[Surgery] = &[
    Surgery {
        what: "a batch in the middle is missing",
        damage: |bytes, layout| drop(bytes.drain(layout.range(FIRST_OPS + 1))),
        bad_at: |layout| layout.range(FIRST_OPS + 1).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "the generation's batch is missing",
        damage: |bytes, layout| drop(bytes.drain(layout.range(GENERATION))),
        bad_at: |layout| layout.range(GENERATION).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "a batch is duplicated",
        damage: |bytes, layout| {
            let range = layout.range(FIRST_OPS);
            let batch = bytes[range.clone()].to_vec();
            drop(bytes.splice(range.end..range.end, batch));
        },
        bad_at: |layout| layout.range(FIRST_OPS).end,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "the generation's batch is duplicated",
        damage: |bytes, layout| {
            let range = layout.range(GENERATION);
            let batch = bytes[range.clone()].to_vec();
            drop(bytes.splice(range.end..range.end, batch));
        },
        bad_at: |layout| layout.range(GENERATION).end,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "two batches are swapped",
        damage: |bytes, layout| {
            let range = layout.range(FIRST_OPS).start..layout.range(FIRST_OPS + 1).end;
            bytes[range].rotate_left(layout.range(FIRST_OPS).len());
        },
        bad_at: |layout| layout.range(FIRST_OPS).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "the generation's batch and the first op's are swapped",
        damage: |bytes, layout| {
            let range = layout.range(GENERATION).start..layout.range(FIRST_OPS).end;
            bytes[range].rotate_left(layout.range(GENERATION).len());
        },
        bad_at: |layout| layout.range(GENERATION).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "a batch in the middle is zeroed",
        damage: |bytes, layout| bytes[layout.range(FIRST_OPS + 1)].fill(0),
        bad_at: |layout| layout.range(FIRST_OPS + 1).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "the generation's batch is zeroed",
        damage: |bytes, layout| bytes[layout.range(GENERATION)].fill(0),
        bad_at: |layout| layout.range(GENERATION).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "everything from the generation onward is zeroed",
        damage: |bytes, layout| bytes[layout.generation().start..].fill(0),
        bad_at: |layout| layout.generation().start,
        is_found_in_the_last: false,
    },
    Surgery {
        what: "everything from the middle of a batch onward is zeroed",
        damage: |bytes, layout| bytes[layout.record(2).start..].fill(0),
        bad_at: |layout| layout.record(2).start,
        is_found_in_the_last: false,
    },
    Surgery {
        what: "a record in the middle is missing",
        damage: |bytes, layout| drop(bytes.drain(layout.record(2).start..layout.record(2).end)),
        bad_at: |layout| layout.record(2).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "two records are swapped",
        damage: |bytes, layout| {
            let range = layout.record(2).start..layout.record(3).end;
            bytes[range].rotate_left(layout.record(2).end - layout.record(2).start);
        },
        bad_at: |layout| layout.record(2).start,
        is_found_in_the_last: true,
    },
    Surgery {
        what: "a record has an extra byte",
        damage: |bytes, layout| bytes.insert(layout.record(2).end - 1, b'v'),
        bad_at: |layout| layout.record(2).start,
        is_found_in_the_last: true,
    },
];
