//! Arbitrary bytes as a segment. Input: a byte that selects the repairs made before the bytes are
//! read (bit 0: a segment header is prepended; bit 1: the magic numbers and the checksums are
//! corrected; bit 2: the positions, too) and the number of bytes that are read at a time (the
//! remaining bits), then the bytes. Without corrected checksums, the fuzzer would never reach the
//! inside of a record.
#![no_main]

use etherply::log::record::{
    BATCH_HEADER_BYTES, FaultKind, LoggedOp, OP_HEADER_BYTES, ReadCursor, Reader,
    SEGMENT_HEADER_BYTES, SegmentHeader, begin_batch, damage_behind, op_bytes, push_op,
};
use etherply::log::repair::resync::{durable_position, next_batch, skip_damage};
use etherply_fuzz::{Script, segment_header};
use libfuzzer_sys::fuzz_target;

const BATCH_MAGIC: &[u8] = b"\xFFEPB";

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let whole = script.byte();
    let mut bytes = Vec::new();
    if whole & 1 != 0 {
        bytes.extend_from_slice(&segment_header().encode());
    }
    bytes.extend_from_slice(script.0);
    if whole & 2 != 0 && bytes.len() >= SEGMENT_HEADER_BYTES {
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        bytes[SEGMENT_HEADER_BYTES - 4..SEGMENT_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(header) = SegmentHeader::decode(&bytes) {
        assert_eq!(header.encode(), bytes[..SEGMENT_HEADER_BYTES]);
        assert!(header.first_index() <= header.index);
    }
    let header = SegmentHeader::decode(&bytes).unwrap_or_else(|_| segment_header());
    if whole & 2 != 0 {
        mend(&header, &mut bytes, whole & 4 != 0);
    }
    let read = check_reader(&header, &bytes);
    assert_eq!(
        read_in_parts(&header, &bytes, usize::from(whole >> 3) + 1),
        read
    );
    check_salvage(&header, &bytes);
    for fault_offset in [0, SEGMENT_HEADER_BYTES, bytes.len() / 2, bytes.len()] {
        check_damage(&header, &bytes, fault_offset);
    }
});

/// Walks the bytes as a segment and corrects every magic number and checksum.
fn mend(header: &SegmentHeader, bytes: &mut [u8], with_positions: bool) {
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(batch) = bytes
        .get_mut(at..)
        .and_then(|rest| rest.split_at_mut_checked(BATCH_HEADER_BYTES))
    {
        let (batch_header, rest) = batch;
        batch_header[..4].copy_from_slice(BATCH_MAGIC);
        if with_positions {
            let position = header.position(at as u64).get();
            batch_header[8..16].copy_from_slice(&position.to_le_bytes());
            let durable = number(batch_header, 16, 8).min(position);
            batch_header[16..24].copy_from_slice(&durable.to_le_bytes());
        }
        let mut crc = crc32c::crc32c_append(header.salt(), &batch_header[..24]);
        batch_header[24..].copy_from_slice(&crc.to_le_bytes());
        let payload_bytes = length(batch_header).min(rest.len());
        let mut payload = &mut rest[..payload_bytes];
        while payload.len() >= OP_HEADER_BYTES {
            let record_bytes = length(payload).clamp(OP_HEADER_BYTES, payload.len());
            let (record, behind) = payload.split_at_mut(record_bytes);
            crc = crc32c::crc32c_append(crc, &record[4..]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            payload = behind;
        }
        at += BATCH_HEADER_BYTES + payload_bytes;
    }
}

/// Returns the length field of a batch header or a record, which is at the same offset in both.
fn length(bytes: &[u8]) -> usize {
    usize::try_from(number(bytes, 4, 4)).expect("four bytes")
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    Script(&bytes[at..at + width]).number::<8>()
}

/// The ops, the fault that ended them, and the reader's final cursor.
type Read<'a> = (Vec<LoggedOp<'a>>, Option<FaultKind>, ReadCursor);

/// Checks that every op read is what the encoder would have written there, and that the reader
/// never leaves the bytes.
fn check_reader<'a>(header: &SegmentHeader, bytes: &'a [u8]) -> Read<'a> {
    let mut reader = Reader::new(header, bytes);
    let (mut ops, mut fault) = (Vec::new(), None);
    let mut offset = reader.offset();
    while let Some(item) = reader.next() {
        match item {
            Ok(op) => {
                let start = check_op(&op, bytes, reader.offset());
                assert!(start >= offset && (start - offset).is_multiple_of(BATCH_HEADER_BYTES));
                offset = reader.offset();
                ops.push(op);
            }
            Err(error) => {
                assert_eq!(
                    error.offset,
                    reader.offset(),
                    "ops before the fault were lost"
                );
                assert!(error.offset <= bytes.len() && !error.to_string().is_empty());
                check_damage(header, bytes, error.offset);
                fault = Some(error.kind);
            }
        }
    }
    assert!(reader.next().is_none());
    if fault.is_none() {
        assert_eq!(reader.offset(), bytes.len().max(SEGMENT_HEADER_BYTES));
    }
    (ops, fault, reader.cursor())
}

/// Reads the bytes like [`check_reader`], but in parts, each starting where the previous one ended.
/// A part that yields nothing is enlarged.
fn read_in_parts<'a>(header: &SegmentHeader, bytes: &'a [u8], mut part_bytes: usize) -> Read<'a> {
    let (mut ops, mut cursor) = (Vec::new(), ReadCursor::begin());
    if bytes.len() <= SEGMENT_HEADER_BYTES {
        return (ops, None, cursor);
    }
    loop {
        let base = cursor.offset();
        let end = bytes.len().min(base + part_bytes);
        let mut reader = Reader::resume(header, &bytes[base..end], base, cursor);
        let mut fault = None;
        for item in reader.by_ref() {
            match item {
                Ok(op) => ops.push(op),
                Err(error) => fault = Some(error.kind),
            }
        }
        cursor = reader.cursor();
        if end == bytes.len() {
            return (ops, fault, cursor);
        }
        if cursor.offset() == base {
            part_bytes *= 2;
        }
    }
}

/// Continues after every fault until the end.
fn check_salvage(header: &SegmentHeader, bytes: &[u8]) {
    let mut reader = Reader::new(header, bytes);
    while let Some(item) = reader.next() {
        match item {
            Ok(op) => {
                check_op(&op, bytes, reader.offset());
            }
            Err(fault) => match skip_damage(&mut reader) {
                Some(lost) => {
                    assert_eq!((lost.start, lost.end), (fault.offset, reader.offset()));
                    assert!(lost.start < lost.end && lost.end <= bytes.len());
                }
                None => break,
            },
        }
    }
}

/// Checks that an op read up to `end` is what the encoder would have written there, and that its
/// texts are borrowed from there. Returns its start.
fn check_op(op: &LoggedOp<'_>, bytes: &[u8], end: usize) -> usize {
    let start = end - op_bytes(op);
    let mut batch = Vec::new();
    begin_batch(&mut batch);
    push_op(&mut batch, op);
    assert_eq!(batch[BATCH_HEADER_BYTES + 4..], bytes[start + 4..end]);
    let outer = bytes[start..end].as_ptr_range();
    // An empty text may be borrowed from anywhere.
    for text in [op.workspace, op.key, op.value()]
        .into_iter()
        .filter(|text| !text.is_empty())
    {
        let inner = text.as_bytes().as_ptr_range();
        assert!(outer.start <= inner.start && inner.end <= outer.end);
    }
    start
}

/// Compares the search for batch headers with a naive one: the headers that are valid at their
/// offset, and the first that records a durable position past the fault, which proves damage.
fn check_damage(header: &SegmentHeader, bytes: &[u8], fault_offset: usize) {
    let is_batch = |offset: &usize| {
        let Some(batch) = bytes.get(*offset..*offset + BATCH_HEADER_BYTES) else {
            return false;
        };
        batch.starts_with(BATCH_MAGIC)
            && number(batch, 24, 4) == u64::from(crc32c::crc32c_append(header.salt(), &batch[..24]))
            && number(batch, 8, 8) == header.position(*offset as u64).get()
    };
    let durable = |offset: &usize| number(bytes, offset + 16, 8);
    let batches: Vec<usize> = (fault_offset..bytes.len()).filter(is_batch).collect();
    let behind = bytes.get(fault_offset..).unwrap_or_default();
    assert_eq!(
        next_batch(header, behind, fault_offset),
        batches.first().copied()
    );
    let fault_position = header.position(fault_offset as u64).get();
    let proof = batches
        .iter()
        .find(|offset| durable(offset) > fault_position);
    assert_eq!(damage_behind(header, behind, fault_offset), proof.copied());
    if fault_offset == 0 {
        let largest = batches
            .iter()
            .map(durable)
            .fold(header.first_position.get(), u64::max);
        assert_eq!(durable_position(header, bytes).get(), largest);
    }
}
