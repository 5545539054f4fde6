//! The last batch: the states that an interrupted write may leave it in, and those that only damage
//! can cause.

use super::*;

/// Returns a segment whose first batch has a value of `before_bytes` bytes, and whose last batch
/// has a long record between two short ones. It is preallocated with zeros.
fn filled_sample(before_bytes: usize) -> Built {
    let before = op(1, &"b".repeat(before_bytes + 1));
    let mut last = others();
    last.extend([op(2, "true"), op(3, &"v".repeat(1000)), op(4, "0")]);
    last.extend(others());
    let mut built = build(&[(vec![before], true), (last, false)]);
    built.bytes.resize(8 * SECTOR_BYTES, 0);
    built
}

#[test]
fn a_flipped_bit_in_the_last_batch_is_damage_at_any_sector_alignment() {
    for before_bytes in 0..SECTOR_BYTES {
        let built = filled_sample(before_bytes);
        let (start, end) = (built.batch_starts[1], built.ends.last().copied().unwrap());
        // True if a checksum at a sector boundary in the batch happens to be zeros up to the
        // boundary.
        let is_unlucky = (start..end)
            .filter(|at| at.is_multiple_of(SECTOR_BYTES))
            .any(|edge| {
                let units = built.ends.iter().chain([&start]);
                let mut near = units.filter(|unit| unit.abs_diff(edge) <= 4);
                near.any(|&unit| {
                    built.bytes[unit.min(edge)..unit.max(edge)]
                        .iter()
                        .all(|byte| *byte == 0)
                })
            });
        let mut bytes = built.bytes.clone();
        for at in (start..end).step_by(if before_bytes.is_multiple_of(64) {
            1
        } else {
            37
        }) {
            bytes[at] ^= 4;
            assert!(
                is_unlucky || !is_torn(&bytes),
                "byte {at} after {before_bytes}"
            );
            bytes[at] ^= 4;
        }
    }
}

#[test]
fn a_last_batch_with_any_missing_sectors_is_torn() {
    for before_bytes in 0..SECTOR_BYTES {
        let built = filled_sample(before_bytes);
        let (start, end) = (built.batch_starts[1], built.ends.last().copied().unwrap());
        let sectors = start / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES;
        let count = sectors.clone().count();
        for missing in 1..1 << count {
            let mut bytes = built.bytes.clone();
            for (bit, sector) in sectors.clone().enumerate() {
                if missing >> bit & 1 == 1 {
                    let begin = start.max(sector * SECTOR_BYTES);
                    bytes[begin..(sector + 1) * SECTOR_BYTES].fill(0);
                }
            }
            assert!(is_torn(&bytes), "after {before_bytes}, sectors {missing:b}");
        }
    }
}

#[test]
fn a_flipped_bit_right_after_the_last_batch_is_damage_and_later_ones_are_truncated() {
    let built = filled_sample(0);
    let end = built.ends.last().copied().unwrap();
    for at in end..built.bytes.len() {
        let mut bytes = built.bytes.clone();
        bytes[at] ^= 1;
        let is_in_header = at < end + BATCH_HEADER_BYTES;
        assert_eq!(is_torn(&bytes), !is_in_header, "byte {at} after {end}");
    }
}
