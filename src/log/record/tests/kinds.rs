//! The kinds of records, the rules for each, and formats.

use super::*;

#[test]
fn the_bytes_of_the_other_kinds_match_the_table() {
    let us = 0x0807_0605_0403_0201;
    let expiring = Change::Write {
        value: "true",
        expires_at_us: Some(us),
    };
    let delete = Change::Delete { deleted_at_us: us };
    let floor = Change::Floor {
        dropped_seq: Seq::new(5),
    };
    let generation = Change::Generation {
        id: Generation::new(us),
        shards: 0x0201,
    };
    let us = b"\x01\x02\x03\x04\x05\x06\x07\x08";
    let generation_extra = [&us[..], b"\x01\x02\0\0"].concat();
    for (workspace, key, change, seq, kind, extra) in [
        ("w", "k", delete, 6, 2, &us[..]),
        ("w", "k", expiring, 6, 3, us),
        ("w", "", floor, 6, 4, b"\x05\0\0\0\0\0\0\0"),
        ("", "12", generation, 9, 5, &generation_extra),
    ] {
        let op = LoggedOp {
            workspace,
            key,
            change,
            seq: Seq::new(seq),
            timestamp: 9,
        };
        let mut batch = Vec::new();
        begin_batch(&mut batch);
        push_op(&mut batch, &op);
        let record = &batch[BATCH_HEADER_BYTES..];
        assert_eq!(record.len(), op_bytes(&op));
        assert_eq!(
            record[8..24],
            [seq.to_le_bytes(), 9_u64.to_le_bytes()].concat()
        );
        let lengths = [workspace.len(), key.len()].map(|bytes| u8::try_from(bytes).unwrap());
        assert_eq!(record[24..29], [lengths[0], 0, lengths[1], 0, kind]);
        let texts = [workspace, key, change.value()].concat();
        assert_eq!(record[29..], [extra, texts.as_bytes()].concat());
    }
}

/// A change that sets no key's value and is not an op in the user's sense.
const FLOOR: Change<'_> = Change::Floor {
    dropped_seq: Seq::new(3),
};
const GENERATION: Change<'_> = Change::Generation {
    id: Generation::new(1),
    shards: 2,
};

/// The record of an op, header and rest, whether or not it follows the rules for its kind.
fn record_of(op: &LoggedOp<'_>) -> ([u8; OP_HEADER_BYTES], Vec<u8>) {
    let mut header = [0; OP_HEADER_BYTES];
    header[8..16].copy_from_slice(&op.seq.get().to_le_bytes());
    header[16..24].copy_from_slice(&op.timestamp.to_le_bytes());
    header[24] = u8::try_from(op.workspace.len()).unwrap();
    header[26] = u8::try_from(op.key.len()).unwrap();
    let (kind, extra): (u8, &[u8]) = match op.change {
        Change::Write { .. } => (1, &[]),
        Change::Delete { .. } => (2, &[1, 0, 0, 0, 0, 0, 0, 0]),
        Change::Floor { .. } => (4, &[3, 0, 0, 0, 0, 0, 0, 0]),
        Change::Generation { .. } => (5, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]),
    };
    header[28] = kind;
    let texts = [op.workspace, op.key, op.value()].concat();
    (header, [extra, texts.as_bytes()].concat())
}

#[test]
fn an_op_that_breaks_a_rule_of_its_kind_is_neither_written_nor_read() {
    let delete = Change::Delete { deleted_at_us: 1 };
    let (write, no_value) = (Change::write("1"), Change::write(""));
    for (workspace, key, change, seq, timestamp, is_valid) in [
        ("w", "k", write, 0, 0, true),
        ("w", "k", no_value, 1, 1, false),
        ("", "k", write, 1, 1, false),
        ("w", "", write, 1, 1, false),
        ("w", "k", delete, 1, 1, true),
        ("", "k", delete, 1, 1, false),
        ("w", "", delete, 1, 1, false),
        ("w", "", FLOOR, 3, 1, true),
        ("w", "", FLOOR, 2, 1, false),
        ("w", "k", FLOOR, 3, 1, false),
        ("", "", FLOOR, 3, 1, false),
        ("", "0", GENERATION, 1, 1, true),
        ("", "4294967295", GENERATION, 7, 7, true),
        ("", "4294967296", GENERATION, 7, 7, false),
        ("", "00", GENERATION, 1, 1, false),
        ("", "+1", GENERATION, 1, 1, false),
        ("", "", GENERATION, 1, 1, false),
        ("w", "0", GENERATION, 1, 1, false),
        ("", "0", GENERATION, 0, 0, false),
        ("", "0", GENERATION, 2, 1, false),
    ] {
        let op = LoggedOp {
            workspace,
            key,
            change,
            seq: Seq::new(seq),
            timestamp,
        };
        let written = std::panic::catch_unwind(|| {
            let mut batch = Vec::new();
            begin_batch(&mut batch);
            push_op(&mut batch, &op);
            batch
        });
        assert_eq!(written.is_ok(), is_valid, "{op:?}");
        let (header, rest) = record_of(&op);
        let read = op::decode_op(2, &header, &rest);
        assert_eq!(read.ok(), is_valid.then_some(op), "{op:?}");
        let in_old = op::decode_op(1, &header, &rest);
        assert_eq!(in_old.is_ok(), is_valid && header[28] == 1, "{op:?}");
    }
}

#[test]
fn a_segment_of_format_1_is_read_and_has_only_writes() {
    let header = SegmentHeader {
        format_version: 1,
        ..HEADER
    };
    assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    assert_ne!(
        header.salt(),
        HEADER.salt(),
        "a batch belongs to one format"
    );
    for op in [vec![op(1, "1")], others()].concat() {
        let mut batch = Vec::new();
        begin_batch(&mut batch);
        push_op(&mut batch, &op.op());
        let first = header.first_position;
        seal_batch(&mut batch, header.salt(), first, first);
        let bytes = [&header.encode()[..], &batch].concat();
        let read = Reader::new(&header, &bytes).next().unwrap();
        if op.op().change == Change::write("1") {
            assert_eq!(read, Ok(op.op()));
        } else {
            let kind = FaultKind::Content("format 1 has only records of kind 1");
            assert_eq!(read.unwrap_err().kind, kind);
        }
    }
}

#[test]
fn a_floor_covers_another_if_none_of_its_fields_is_smaller() {
    let floor = |floor, seq, dropped_seq| FloorRecord {
        floor,
        seq: Seq::new(seq),
        dropped_seq: Seq::new(dropped_seq),
    };
    let held = floor(10, 20, 15);
    assert!(held.covers(&held) && held.covers(&FloorRecord::default()));
    for (other, merged) in [
        (floor(11, 20, 15), floor(11, 20, 15)),
        (floor(10, 21, 15), floor(10, 21, 15)),
        (floor(9, 20, 16), floor(10, 20, 16)),
    ] {
        assert!(!held.covers(&other), "{other:?}");
        assert_eq!(held.merged(other), merged);
        assert_eq!(other.merged(held), merged);
        assert!(merged.covers(&held) && merged.covers(&other));
    }
    for (timestamp, seq, has) in [(10, 15, true), (11, 15, false), (10, 16, false)] {
        assert_eq!(held.has_dropped(timestamp, Seq::new(seq)), has);
    }
}

#[test]
fn content_that_no_writer_produces_is_not_a_torn_tail() {
    // Each alters a field of a record and then seals the batch again, so that all checksums are
    // correct.
    let cases: [(usize, u8); 5] = [(28, 0), (28, 6), (24, 200), (27, 1), (29, 0xC0)];
    for (at, value) in cases {
        let mut batch = Vec::new();
        begin_batch(&mut batch);
        push_op(&mut batch, &op(1, "1").op());
        batch[BATCH_HEADER_BYTES + at] = value;
        seal_batch(
            &mut batch,
            HEADER.salt(),
            HEADER.first_position,
            HEADER.first_position,
        );
        let bytes = [&HEADER.encode()[..], &batch].concat();
        let (ops, fault, _) = read(&bytes);
        assert_eq!(ops, []);
        assert!(
            matches!(fault.unwrap().kind, FaultKind::Content(_)),
            "byte {at}"
        );
    }
}
