//! The damage that the log's format promises to detect (`log::record`, "Damage that is not
//! detected"), computed naively.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::wire::{BATCH_HEADER_BYTES, number};

const SEGMENT_HEADER_BYTES: usize = 64;
const SECTOR_BYTES: usize = 512;

/// Returns whether a flipped bit in the byte `at` of a file must be detected, given all files of
/// the log as they were before.
pub fn is_provable(
    path: &Path,
    bytes: &[u8],
    (at, bit): (usize, u32),
    files: &[&(PathBuf, Vec<u8>)],
) -> bool {
    if !path.to_string_lossy().ends_with(".aof") || at < SEGMENT_HEADER_BYTES {
        // A replaced segment is not read, and an empty file holds nothing, so neither can change a
        // state.
        return true;
    }
    let is_compacted = number(bytes, 10, 2) == 1;
    let is_last = files.iter().all(|(other, _)| {
        other.parent() != path.parent()
            || other <= &path.to_path_buf()
            || !other.to_string_lossy().ends_with(".aof")
    });
    if is_compacted || !is_last {
        return true;
    }
    // In the last segment, damage is provable if a later batch header shows that the altered record
    // was on disk, or if the batch has no missing sector.
    let first_position = number(bytes, 40, 8);
    let mut batch = SEGMENT_HEADER_BYTES;
    let mut bad = None;
    let mut is_proven = false;
    let mut altered = bytes.to_vec();
    altered[at] ^= 1 << bit;
    while batch + BATCH_HEADER_BYTES <= bytes.len() {
        let end = batch + BATCH_HEADER_BYTES + number(bytes, batch + 4, 4);
        let is_here = number(bytes, batch + 8, 8) == first_position + batch - SEGMENT_HEADER_BYTES;
        if !is_here || !is_header(bytes, batch) || end > bytes.len() {
            break;
        }
        if let Some(bad) = bad {
            let durable_position = number(bytes, batch + 16, 8);
            is_proven |= durable_position > first_position + bad - SEGMENT_HEADER_BYTES;
        } else if at < batch + BATCH_HEADER_BYTES {
            bad = Some(batch);
            is_proven = !misses_a_sector(&altered, batch..batch + BATCH_HEADER_BYTES);
        } else if at < end {
            let mut record = batch + BATCH_HEADER_BYTES;
            // A crash may have left something other than a record, in which case there already is a
            // fault.
            let mut length = number(bytes, record + 4, 4);
            while length > 0 && record + length <= at && record + length + 8 <= end {
                record += length;
                length = number(bytes, record + 4, 4);
            }
            bad = Some(record);
            is_proven = !misses_a_sector(&altered, record..end);
        }
        batch = end;
    }
    is_proven
}

/// Returns whether the range's bytes in any one sector are all zeros.
fn misses_a_sector(bytes: &[u8], range: Range<usize>) -> bool {
    let sectors = range.start / SECTOR_BYTES..=(range.end - 1) / SECTOR_BYTES;
    sectors
        .map(|sector| sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES)
        .map(|sector| sector.start.max(range.start)..sector.end.min(range.end))
        .any(|part| bytes[part].iter().all(|byte| *byte == 0))
}

/// Returns whether there is a batch header at `at`; its checksum is seeded with the segment's.
fn is_header(bytes: &[u8], at: usize) -> bool {
    let salt = u32::try_from(number(bytes, 60, 4)).expect("four bytes");
    let crc = crc32c::crc32c_append(salt, &bytes[at..at + 24]);
    number(bytes, at + 24, 4) == crc as usize
}
