//! Resynchronization: finds the place where reading can continue after a fault.

use std::ops::Range;

use super::super::position::LogPosition;
use super::super::record::{
    BATCH_CRC_AT, BATCH_HEADER_BYTES, OP_HEADER_BYTES, RECORD_CRC_BYTES, ReadCursor, Reader,
    SegmentHeader, batches,
};

/// Moves a reader that has encountered a fault to the next place where checksums prove that the
/// data is intact. Returns the range of bytes that this skips, or `None` if nothing after the fault
/// can be proven intact. The reader must hold all bytes up to the end of the file.
///
/// Each batch header starts its own checksum chain, so the next valid one is such a place. Often
/// reading can continue earlier, at the record after the bad one: that record's checksum proves it
/// intact if seeded with the bad record's checksum, either as stored or as computed, whichever is
/// correct.
pub fn skip_damage(reader: &mut Reader<'_>) -> Option<Range<usize>> {
    let fault = reader.cursor();
    let near = if fault.offset() < fault.batch_end {
        after_record(reader)
    } else {
        after_batch_header(reader)
    };
    let next = near.or_else(|| {
        let next = next_batch_of(reader, fault.offset() + 1)?;
        Some(ReadCursor::at(next, next, 0))
    })?;
    reader.go_to(next);
    Some(fault.offset()..next.offset())
}

/// Tries the record after the bad one, assuming that the length of the bad record is correct.
fn after_record(reader: &Reader<'_>) -> Option<ReadCursor> {
    let fault = reader.cursor();
    let unread = reader.unread();
    let rest = &unread[..unread.len().min(fault.batch_end - fault.offset())];
    let header: &[u8; OP_HEADER_BYTES] = rest.first_chunk()?;
    let [stored, record_bytes] = [0, 4].map(|at| {
        u32::from_le_bytes(
            *header[at..]
                .first_chunk()
                .expect("the header has these bytes"),
        )
    });
    let record = rest.get(..record_bytes as usize)?;
    let body = record.get(RECORD_CRC_BYTES..)?;
    let computed = crc32c::crc32c_append(fault.crc, body);
    let next = |crc| ReadCursor::at(fault.offset() + record.len(), fault.batch_end, crc);
    [stored, computed]
        .map(next)
        .into_iter()
        .find(|next| matches!(at(reader, *next).read(), Ok(Some(_))))
}

/// Tries the first record after a bad batch header, and the one after that.
fn after_batch_header(reader: &Reader<'_>) -> Option<ReadCursor> {
    let header: &[u8; BATCH_HEADER_BYTES] = reader.unread().first_chunk()?;
    let offset = reader.offset() + BATCH_HEADER_BYTES;
    // The damage may be in the header's length field, so the batch may extend to the next header.
    let end = reader.base + reader.bytes.len();
    let batch_end = next_batch_of(reader, offset).unwrap_or(end);
    let stored = header[BATCH_CRC_AT..]
        .first_chunk()
        .expect("the CRC is in the header");
    let stored = u32::from_le_bytes(*stored);
    let computed = crc32c::crc32c_append(reader.salt, &header[..BATCH_CRC_AT]);
    let first = |crc| ReadCursor::at(offset, batch_end, crc);
    let proven = [stored, computed]
        .map(first)
        .into_iter()
        .find(|next| at(reader, *next).read_op().is_ok());
    proven.or_else(|| after_record(&at(reader, first(stored))))
}

fn at<'a>(reader: &Reader<'a>, cursor: ReadCursor) -> Reader<'a> {
    let mut reader = reader.clone();
    reader.go_to(cursor);
    reader
}

fn next_batch_of(reader: &Reader<'_>, from: usize) -> Option<usize> {
    next_batch(
        &reader.header,
        reader.bytes.get(from - reader.base..)?,
        from,
    )
}

/// Returns the offset of the first batch header that is valid at its place. `bytes` is the file's
/// content from the offset `base`.
#[must_use]
pub fn next_batch(header: &SegmentHeader, bytes: &[u8], base: usize) -> Option<usize> {
    let mut batches = batches(header, bytes, base);
    batches.next().map(|(offset, _)| offset)
}

/// Returns the log position up to which the batches of a segment prove that everything was on disk.
#[must_use]
pub fn durable_position(header: &SegmentHeader, bytes: &[u8]) -> LogPosition {
    batches(header, bytes, 0)
        .map(|(_, batch)| batch.durable_position)
        .fold(header.first_position, LogPosition::max)
}
