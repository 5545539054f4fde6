//! What the log's format promises to find (`log::record`, "What is not found"), worked out naively.

use std::path::{Path, PathBuf};

use crate::wire::{BATCH_HEADER_BYTES, number};

const SEGMENT_HEADER_BYTES: usize = 64;

/// Whether an alteration of the byte `at` of a file must be found, given all files of the log as they were.
pub fn is_provable(path: &Path, bytes: &[u8], at: usize, files: &[&(PathBuf, Vec<u8>)]) -> bool {
    if !path.to_string_lossy().ends_with(".aof") || at < SEGMENT_HEADER_BYTES {
        // A replaced segment is not read, and a file of no shard that holds anything tells nothing: both change no state.
        return true;
    }
    let is_compacted = number(bytes, 10, 2) == 1;
    let is_last = files.iter().all(|(other, _)| other.parent() != path.parent() || other <= &path.to_path_buf() || !other.to_string_lossy().ends_with(".aof"));
    if is_compacted || !is_last {
        return true;
    }
    // The last segment: a batch header behind the altered record tells that it was on disk.
    let first_position = number(bytes, 40, 8);
    let mut batch = SEGMENT_HEADER_BYTES;
    let mut bad = None;
    let mut is_proven = false;
    while batch + BATCH_HEADER_BYTES <= bytes.len() {
        let end = batch + BATCH_HEADER_BYTES + number(bytes, batch + 4, 4);
        let is_header = bytes[batch..batch + 4] == *b"\xFFEPB" && number(bytes, batch + 8, 8) == first_position + batch - SEGMENT_HEADER_BYTES;
        if !is_header || end > bytes.len() {
            break;
        }
        if let Some(bad) = bad {
            let durable_position = number(bytes, batch + 16, 8);
            is_proven |= durable_position > first_position + bad - SEGMENT_HEADER_BYTES;
        } else if at < batch + BATCH_HEADER_BYTES {
            bad = Some(batch);
        } else if at < end {
            let mut record = batch + BATCH_HEADER_BYTES;
            while record + number(bytes, record + 4, 4) <= at {
                record += number(bytes, record + 4, 4);
            }
            bad = Some(record);
        }
        batch = end;
    }
    is_proven
}
