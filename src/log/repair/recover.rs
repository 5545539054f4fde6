//! Recovers the intact ops of one damaged file.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::super::chain::{RecoveryError, unfilled_bytes};
use super::super::disk::{Disk, DiskFile};
use super::super::position::LogPosition;
use super::super::record::{
    self, Compacted, FORMAT_VERSION, FORMAT_VERSION_MIN, Fault, FaultKind, LoggedOp, Reader,
    SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::resync;

/// The size, in bytes, of the blocks in which a file is read if the disk cannot read all of it.
const BLOCK_BYTES: usize = 4096;
const EIO: i32 = 5;

/// A range of a file that is not intact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostRange {
    /// The offsets in the file. The range may extend past its end.
    pub bytes: Range<u64>,
    /// A description of what is wrong at the first byte.
    pub what: String,
    /// Whether an interrupted write may have caused this. If so, nothing proves that these bytes
    /// were ever on disk.
    pub is_torn: bool,
}

/// The intact and the lost parts of a damaged segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentRecovery {
    /// The number of intact writes and deletes.
    pub ops: u64,
    /// The number of them that follow a lost range.
    pub ops_after_loss: u64,
    /// The lost ranges, in order.
    pub lost: Vec<LostRange>,
}

/// A part of a damaged segment.
pub enum RecoveredItem<'a> {
    /// An intact op, or another intact record.
    Op(&'a LoggedOp<'a>),
    /// A lost range.
    Lost(&'a LostRange),
}

/// The properties of a segment's end that determine which bytes count as lost.
#[derive(Debug, Clone, Copy)]
pub struct SegmentEnd {
    /// Whether no segment follows, so that the end may be torn.
    pub is_last: bool,
    /// Whether zeros at the end may come from filling the file in advance.
    pub may_be_filled: bool,
    /// The end of the last block that the disk cannot read, or 0. Zeros before it may represent
    /// unreadable bytes, so they do not count as filled in advance.
    pub unreadable_end: usize,
}

impl SegmentEnd {
    /// The end of a segment that is followed by another one.
    pub const NEXT: Self = Self {
        is_last: false,
        may_be_filled: false,
        unreadable_end: 0,
    };
}

/// Visits the intact and the lost parts of a segment, in order. `bytes` must end where the next
/// segment begins.
pub fn recover(
    header: &SegmentHeader,
    bytes: &[u8],
    ending: SegmentEnd,
    mut visit: impl FnMut(RecoveredItem<'_>),
) -> SegmentRecovery {
    let durable_position = if ending.is_last && header.compacted.is_none() {
        resync::durable_position(header, bytes)
    } else {
        LogPosition::MAX
    };
    let mut recovery = SegmentRecovery::default();
    let mut reader = Reader::new(header, bytes);
    loop {
        let fault = match reader.next() {
            Some(Ok(op)) => {
                let count = u64::from(op.change.is_op());
                recovery.ops += count;
                recovery.ops_after_loss += count * u64::from(!recovery.lost.is_empty());
                visit(RecoveredItem::Op(&op));
                continue;
            }
            Some(Err(fault)) => fault,
            None => break,
        };
        let is_interrupted = record::is_interrupted(reader.cursor(), &bytes[fault.offset..]);
        let resumed = resync::skip_damage(&mut reader);
        let is_end = resumed.is_none();
        let end = if ending.may_be_filled {
            let end = fault.offset + unfilled_bytes(&bytes[fault.offset..]);
            end.max(ending.unreadable_end)
        } else {
            bytes.len()
        };
        let lost = resumed.unwrap_or(fault.offset..end);
        let lost = LostRange {
            is_torn: is_interrupted && header.position(lost.start as u64) >= durable_position,
            bytes: lost.start as u64..lost.end as u64,
            what: what(fault),
        };
        // The range is empty if a batch was cut between two of its records, which loses no
        // acknowledged op.
        if !lost.bytes.is_empty() {
            visit(RecoveredItem::Lost(&lost));
            recovery.lost.push(lost);
        }
        if is_end {
            break;
        }
    }
    recovery
}

fn what(fault: Fault) -> String {
    match fault.kind {
        // The usual text describes a whole file, but this one describes a range.
        FaultKind::Cut => "the end of a batch is missing".to_owned(),
        kind => kind.to_string(),
    }
}

/// Returns whether the error means that the disk cannot read its own data.
#[must_use]
pub fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EIO)
}

/// Reads a file into `bytes`. Blocks that the disk cannot read become zeros. Returns the end of the
/// last such block, or 0 if there is none.
pub fn load<D: Disk>(disk: &D, path: &Path, bytes: &mut Vec<u8>) -> Result<usize, RecoveryError> {
    let file = disk.open(path).map_err(RecoveryError::at(path))?;
    match file.read_whole(bytes) {
        Ok(()) => return Ok(0),
        Err(error) if is_unreadable(&error) => {}
        Err(error) => return Err(RecoveryError::at(path)(error)),
    }
    bytes.fill(0);
    let mut unreadable_end = 0;
    for (block, offset) in bytes
        .chunks_mut(BLOCK_BYTES)
        .zip((0..).step_by(BLOCK_BYTES))
    {
        match file.read_full_at(block, offset) {
            Ok(_) => {}
            Err(error) if is_unreadable(&error) => {
                block.fill(0);
                unreadable_end =
                    usize::try_from(offset).expect("the offset fits in memory") + block.len();
            }
            Err(error) => return Err(RecoveryError::at(path)(error)),
        }
    }
    Ok(unreadable_end)
}

/// Facts about a segment with a damaged header, from which the header is reconstructed.
#[derive(Debug, Clone, Copy)]
pub struct HeaderHints {
    /// The epoch of the log.
    pub epoch: [u8; 16],
    /// The shard that the folder belongs to.
    pub shard: u32,
    /// The index in the file's name.
    pub index: u64,
    /// The index of the nearest segment before it.
    pub index_before: u64,
    /// The position where the next segment begins.
    pub position_behind: Option<LogPosition>,
}

/// Reconstructs the header of a segment. Of the headers that its place, its bytes and its
/// neighbours suggest, returns the one for which a batch is valid; the checksum of that batch
/// proves that the header is correct.
#[must_use]
pub fn restore_header(bytes: &[u8], place: HeaderHints) -> Option<SegmentHeader> {
    let number = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let short = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    // The first position according to the header, and according to the first batch.
    let first_positions = [number(40)?, number(SEGMENT_HEADER_BYTES + 8)?].map(LogPosition::new);
    let ends = [number(48).map(LogPosition::new), place.position_behind];
    let before = u32::try_from(place.index - 1 - place.index_before).ok();
    let compacted = ends.into_iter().flatten().flat_map(|end_position| {
        let compacted = move |replaced| Compacted {
            replaced,
            end_position,
        };
        [short(56), before].into_iter().flatten().map(compacted)
    });
    let kinds = [None].into_iter().chain(compacted.map(Some));
    let formats = || (FORMAT_VERSION_MIN..=FORMAT_VERSION).rev();
    kinds
        .flat_map(|compacted| {
            first_positions.map(|first_position| SegmentHeader {
                compacted,
                ..SegmentHeader::new(place.shard, place.epoch, place.index, first_position)
            })
        })
        .flat_map(|header| {
            formats().map(move |format_version| SegmentHeader {
                format_version,
                ..header
            })
        })
        // Only valid headers can be decoded.
        .filter(|header| SegmentHeader::decode(&header.encode()) == Ok(*header))
        .find(|header| resync::next_batch(header, bytes, 0).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::super::record::{Change, LoggedOp};
    use super::*;
    use crate::seq::Seq;

    const FIRST: LogPosition = LogPosition::new(1000);

    #[test]
    fn unreadable_bytes_at_the_end_are_reported_but_zeros_are_not() {
        let header = SegmentHeader::new(2, [9; 16], 9, FIRST);
        let mut batch = Vec::new();
        record::begin_batch(&mut batch);
        record::seal_batch(&mut batch, header.salt(), FIRST, FIRST);
        let mut bytes = [&header.encode()[..], &batch[..]].concat();
        let whole_bytes = bytes.len();
        bytes.resize(3 * BLOCK_BYTES, 0);
        for (may_be_filled, unreadable_end, lost_end) in [
            (true, 0, None),
            (true, 2 * BLOCK_BYTES, Some(2 * BLOCK_BYTES)),
            (false, 0, Some(3 * BLOCK_BYTES)),
        ] {
            let ending = SegmentEnd {
                is_last: true,
                may_be_filled,
                unreadable_end,
            };
            let recovery = recover(&header, &bytes, ending, |_| ());
            let lost: Vec<_> = recovery
                .lost
                .iter()
                .map(|lost| lost.bytes.clone())
                .collect();
            let expected = lost_end.map(|end| whole_bytes as u64..end as u64);
            assert_eq!(lost, Vec::from_iter(expected), "{ending:?}");
        }
    }

    #[test]
    fn a_damaged_header_is_recovered_from_its_location_and_first_batch() {
        let compacted = Compacted {
            replaced: 3,
            end_position: LogPosition::new(5000),
        };
        for (compacted, format_version) in [
            (None, 1),
            (None, 2),
            (Some(compacted), 1),
            (Some(compacted), 2),
        ] {
            let header = SegmentHeader {
                format_version,
                compacted,
                ..SegmentHeader::new(2, [9; 16], 9, FIRST)
            };
            let mut batch = Vec::new();
            record::begin_batch(&mut batch);
            let op = LoggedOp {
                workspace: "w",
                key: "k",
                change: Change::write("1"),
                seq: Seq::new(1),
                timestamp: 1,
            };
            record::push_op(&mut batch, &op);
            record::seal_batch(&mut batch, header.salt(), FIRST, FIRST);
            let bytes = [&header.encode()[..], &batch[..]].concat();
            let place = HeaderHints {
                epoch: [9; 16],
                shard: 2,
                index: 9,
                index_before: 5,
                position_behind: Some(LogPosition::new(5000)),
            };
            for damage in [
                0..8,
                8..12,
                12..32,
                32..40,
                40..48,
                48..56,
                56..60,
                60..64,
                0..64,
            ] {
                for fill in [0x00, 0xAA, 0xFF] {
                    let mut bytes = bytes.clone();
                    bytes[damage.clone()].fill(fill);
                    assert_eq!(restore_header(&bytes, place), Some(header), "{damage:?}");
                }
            }
            // Without a batch that proves it, no header is returned.
            let stranger = HeaderHints {
                epoch: [8; 16],
                ..place
            };
            assert_eq!(restore_header(&bytes, stranger), None);
            assert_eq!(restore_header(&bytes[..SEGMENT_HEADER_BYTES], place), None);
        }
    }
}
