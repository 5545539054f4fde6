//! Records: every cut and every flipped bit of a segment.

use proptest::prelude::*;

use super::*;
use crate::generation::Generation;
use crate::seq::Seq;

mod kinds;
mod torn;

const HEADER: SegmentHeader = SegmentHeader {
    format_version: 2,
    shard: 3,
    epoch: *b"0123456789abcdef",
    index: 7,
    first_position: LogPosition::new(1_000_000),
    compacted: None,
};

#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnedOp {
    workspace: String,
    key: String,
    change: OwnedChange,
    seq: Seq,
    timestamp: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum OwnedChange {
    Write(String, Option<u64>),
    Delete(u64),
    Floor(Seq),
    Generation(Generation, u32),
}

impl OwnedOp {
    fn of(op: &LoggedOp<'_>) -> Self {
        let change = match op.change {
            Change::Write {
                value,
                expires_at_us,
            } => OwnedChange::Write(value.to_owned(), expires_at_us),
            Change::Delete { deleted_at_us } => OwnedChange::Delete(deleted_at_us),
            Change::Floor { dropped_seq } => OwnedChange::Floor(dropped_seq),
            Change::Generation { id, shards } => OwnedChange::Generation(id, shards),
        };
        Self {
            workspace: op.workspace.to_owned(),
            key: op.key.to_owned(),
            change,
            seq: op.seq,
            timestamp: op.timestamp,
        }
    }

    fn op(&self) -> LoggedOp<'_> {
        let change = match &self.change {
            OwnedChange::Write(value, expires_at_us) => Change::Write {
                value,
                expires_at_us: *expires_at_us,
            },
            OwnedChange::Delete(deleted_at_us) => Change::Delete {
                deleted_at_us: *deleted_at_us,
            },
            OwnedChange::Floor(dropped_seq) => Change::Floor {
                dropped_seq: *dropped_seq,
            },
            OwnedChange::Generation(id, shards) => Change::Generation {
                id: *id,
                shards: *shards,
            },
        };
        LoggedOp {
            workspace: &self.workspace,
            key: &self.key,
            change,
            seq: self.seq,
            timestamp: self.timestamp,
        }
    }
}

/// A segment and its known structure, from which a test makes the image of a crash.
struct Built {
    bytes: Vec<u8>,
    ops: Vec<OwnedOp>,
    /// The lengths to which a cut may reduce the file: the end of each header and of each record.
    ends: Vec<usize>,
    batch_starts: Vec<usize>,
}

/// Builds a segment. Each of `batches` consists of its ops, and whether a sync follows it.
fn build(batches: &[(Vec<OwnedOp>, bool)]) -> Built {
    let mut built = Built {
        bytes: HEADER.encode().to_vec(),
        ops: Vec::new(),
        ends: vec![SEGMENT_HEADER_BYTES],
        batch_starts: Vec::new(),
    };
    let mut batch = Vec::new();
    let mut durable_bytes = SEGMENT_HEADER_BYTES;
    for (ops, synced) in batches {
        begin_batch(&mut batch);
        built.batch_starts.push(built.bytes.len());
        built.ends.push(built.bytes.len() + batch.len());
        for op in ops {
            push_op(&mut batch, &op.op());
            built.ends.push(built.bytes.len() + batch.len());
            built.ops.push(op.clone());
        }
        let position = HEADER.position(built.bytes.len() as u64);
        seal_batch(
            &mut batch,
            HEADER.salt(),
            position,
            HEADER.position(durable_bytes as u64),
        );
        built.bytes.extend_from_slice(&batch);
        if *synced {
            durable_bytes = built.bytes.len();
        }
    }
    built
}

/// Reads ops naively: checks no checksum chain and relies only on the offsets of the fields.
fn naive(bytes: &[u8]) -> Vec<OwnedOp> {
    let number = |at: usize, width: usize| {
        usize::try_from(
            bytes[at..at + width]
                .iter()
                .rev()
                .fold(0_u64, |n, &b| n << 8 | u64::from(b)),
        )
        .unwrap()
    };
    let text = |from: usize, to: usize| String::from_utf8(bytes[from..to].to_vec()).unwrap();
    let mut ops = Vec::new();
    let mut at = 64;
    while at < bytes.len() {
        let batch_end = at + 28 + number(at + 4, 4);
        at += 28;
        while at < batch_end {
            let (end, extra, kind) = (at + number(at + 4, 4), at + 29, bytes[at + 28]);
            let workspace = extra + [0, 8, 8, 8, 12][usize::from(kind) - 1];
            let key = workspace + number(at + 24, 2);
            let value = key + number(at + 26, 2);
            let extra_number = || number(extra, 8) as u64;
            ops.push(OwnedOp {
                workspace: text(workspace, key),
                key: text(key, value),
                change: match kind {
                    1 => OwnedChange::Write(text(value, end), None),
                    2 => OwnedChange::Delete(extra_number()),
                    3 => OwnedChange::Write(text(value, end), Some(extra_number())),
                    4 => OwnedChange::Floor(Seq::new(extra_number())),
                    _ => OwnedChange::Generation(
                        Generation::new(extra_number()),
                        u32::try_from(number(extra + 8, 4)).unwrap(),
                    ),
                },
                seq: Seq::new(number(at + 8, 8) as u64),
                timestamp: number(at + 16, 8) as u64,
            });
            at = end;
        }
    }
    ops
}

fn read(bytes: &[u8]) -> (Vec<OwnedOp>, Option<Fault>, usize) {
    let mut reader = Reader::new(&HEADER, bytes);
    let mut ops = Vec::new();
    let mut fault = None;
    for item in reader.by_ref() {
        match item {
            Ok(op) => ops.push(OwnedOp::of(&op)),
            Err(error) => fault = Some(error),
        }
    }
    assert!(reader.next().is_none(), "an item after the end");
    if let Some(fault) = fault {
        assert_eq!(
            fault.offset,
            reader.offset(),
            "ops before the fault were lost"
        );
    }
    (ops, fault, reader.offset())
}

/// Returns whether the first fault is one that an interrupted write can leave.
fn is_torn(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(&HEADER, bytes);
    let fault = reader.by_ref().find_map(Result::err).expect("a fault");
    is_interrupted(reader.cursor(), &bytes[fault.offset..])
}

fn op(seq: u64, value: &str) -> OwnedOp {
    OwnedOp {
        workspace: "workspace-123".into(),
        key: "foo".into(),
        change: OwnedChange::Write(value.into(), None),
        seq: Seq::new(seq),
        timestamp: 1_700 + seq,
    }
}

/// One record of each of the other kinds, with fields that are mostly zeros.
fn others() -> Vec<OwnedOp> {
    let change = |seq, change| OwnedOp {
        change,
        ..op(seq, "")
    };
    vec![
        change(7, OwnedChange::Delete(0)),
        change(8, OwnedChange::Write("1".to_owned(), Some(1))),
        OwnedOp {
            key: String::new(),
            ..change(8, OwnedChange::Floor(Seq::new(0)))
        },
        OwnedOp {
            workspace: String::new(),
            key: "3".to_owned(),
            timestamp: 1,
            ..change(1, OwnedChange::Generation(Generation::new(0), 1))
        },
    ]
}

/// Four synced batches, followed by one that is not synced.
fn sample() -> Built {
    build(&[
        (vec![op(1, "\"bar\""), op(2, "null")], true),
        (vec![], true),
        (vec![op(3, "{\"a\":[1,2]}")], true),
        (others(), true),
        (
            [
                vec![op(4, "true"), op(5, "\"Grüße\""), op(6, "0")],
                others(),
            ]
            .concat(),
            false,
        ),
    ])
}

fn sealed_sample() -> Built {
    build(&[
        (vec![op(1, "\"bar\""), op(2, "null")], true),
        (vec![op(3, "{\"a\":[1,2]}"), op(4, "true")], true),
        (vec![], true),
    ])
}

fn any_op() -> impl Strategy<Value = OwnedOp> {
    let change = prop_oneof![
        3 => (".{1,600}", any::<Option<u64>>())
            .prop_map(|(value, expires_at_us)| OwnedChange::Write(value, expires_at_us)),
        1 => any::<u64>().prop_map(OwnedChange::Delete),
        1 => any::<u64>().prop_map(|seq| OwnedChange::Floor(Seq::new(seq))),
        1 => any::<(u64, u32)>()
            .prop_map(|(id, shards)| OwnedChange::Generation(Generation::new(id), shards)),
    ];
    let texts = ("\\PC{1,20}", ".{1,20}", any::<u32>());
    (texts, change, 1..u64::MAX, 1..u64::MAX).prop_map(
        |((workspace, key, shard), change, seq, timestamp)| {
            let op = OwnedOp {
                workspace,
                key,
                change,
                seq: Seq::new(seq),
                timestamp,
            };
            match op.change {
                OwnedChange::Write(..) | OwnedChange::Delete(_) => op,
                OwnedChange::Floor(dropped_seq) => OwnedOp {
                    key: String::new(),
                    change: OwnedChange::Floor(dropped_seq.min(op.seq)),
                    ..op
                },
                OwnedChange::Generation(..) => OwnedOp {
                    workspace: String::new(),
                    key: shard.to_string(),
                    timestamp: seq,
                    ..op
                },
            }
        },
    )
}

fn any_batches() -> impl Strategy<Value = Vec<(Vec<OwnedOp>, bool)>> {
    prop::collection::vec((prop::collection::vec(any_op(), 0..5), any::<bool>()), 0..6)
}

#[test]
fn the_bytes_match_the_documented_tables() {
    let mut batch = Vec::new();
    begin_batch(&mut batch);
    let op = LoggedOp {
        workspace: "w",
        key: "k",
        change: Change::write("1"),
        seq: Seq::new(2),
        timestamp: 3,
    };
    push_op(&mut batch, &op);
    let durable = LogPosition::new(999_999);
    seal_batch(&mut batch, HEADER.salt(), HEADER.first_position, durable);
    assert_eq!(batch.len(), BATCH_HEADER_BYTES + op_bytes(&op));
    assert_eq!(batch[0..8], *b"\xFFEPB\x20\0\0\0");
    assert_eq!(
        batch[8..24],
        *b"\x40\x42\x0F\0\0\0\0\0\x3F\x42\x0F\0\0\0\0\0"
    );
    let crc = crc32c::crc32c_append(HEADER.salt(), &batch[..24]);
    assert_eq!(batch[24..28], crc.to_le_bytes());
    let record = &batch[28..];
    assert_eq!(
        record[4..],
        *b"\x20\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\x01\0\x01wk1"
    );
    assert_eq!(
        record[..4],
        crc32c::crc32c_append(crc, &record[4..]).to_le_bytes()
    );

    let header = HEADER.encode();
    assert_eq!(header[..16], *b"\x89EPLOG\r\n\x02\0\0\0\x03\0\0\0");
    assert_eq!(
        header[16..48],
        *b"0123456789abcdef\x07\0\0\0\0\0\0\0\x40\x42\x0F\0\0\0\0\0"
    );
    assert_eq!(header[48..60], [0; 12]);
    assert_eq!(header[60..], HEADER.salt().to_le_bytes());
}

#[test]
fn a_segment_header_is_intact_or_refused() {
    let bytes = HEADER.encode();
    assert_eq!(SegmentHeader::decode(&bytes), Ok(HEADER));
    for end in 0..SEGMENT_HEADER_BYTES {
        assert_eq!(
            SegmentHeader::decode(&bytes[..end]),
            Err(HeaderError::Short)
        );
        assert_eq!(read(&bytes[..end]).0, []);
    }
    for bit in 0..SEGMENT_HEADER_BYTES * 8 {
        let mut bytes = bytes;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let expected = if bit < 64 {
            HeaderError::Magic
        } else {
            HeaderError::Checksum
        };
        assert_eq!(SegmentHeader::decode(&bytes), Err(expected), "bit {bit}");
    }
    let cases = [
        (8, 3, HeaderError::Version(3)),
        (8, 0, HeaderError::Content),
        (10, 2, HeaderError::Content),
        (11, 1, HeaderError::Content),
        (48, 1, HeaderError::Content),
        (59, 1, HeaderError::Content),
    ];
    for (at, value, expected) in cases {
        let mut bytes = bytes;
        bytes[at] = value;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(expected), "byte {at}");
    }
}

#[test]
fn a_compacted_segment_sorts_after_those_it_replaced() {
    let (index, first_position) = (5, LogPosition::new(1000));
    for (replaced, end_position, is_whole) in [
        (4, 1000, true),
        (0, 2000, true),
        (5, 1000, false),
        (6, 1000, false),
        (4, 999, false),
    ] {
        let header = SegmentHeader {
            index,
            first_position,
            compacted: Some(Compacted {
                replaced,
                end_position: LogPosition::new(end_position),
            }),
            ..HEADER
        };
        let expected = if is_whole {
            Ok(header)
        } else {
            Err(HeaderError::Content)
        };
        assert_eq!(SegmentHeader::decode(&header.encode()), expected);
    }
}

#[test]
fn every_truncation_leaves_a_prefix_and_a_torn_tail() {
    let built = sample();
    for length in SEGMENT_HEADER_BYTES..=built.bytes.len() {
        let bytes = &built.bytes[..length];
        let (ops, fault, offset) = read(bytes);
        assert_eq!(ops, built.ops[..ops.len()]);
        let end = *built.ends.iter().rfind(|&&end| end <= length).unwrap();
        assert_eq!(offset, end, "intact records were lost at length {length}");
        let whole_batches = length == built.bytes.len() || built.batch_starts.contains(&length);
        assert_eq!(fault.is_none(), whole_batches, "length {length}");
        if let Some(fault) = fault {
            assert_eq!(
                fault.kind == FaultKind::Cut,
                offset == length,
                "the cut is not reported at length {length}"
            );
            assert_eq!(
                damage_behind(&HEADER, &bytes[fault.offset..], fault.offset),
                None
            );
            assert!(is_torn(bytes), "length {length}");
        }
    }
}

/// Calls `check` with each image of `built` in which one bit, or a whole byte, differs after the
/// segment header.
fn for_each_flip(built: &Built, mut check: impl FnMut(usize, &[u8])) {
    let mut bytes = built.bytes.clone();
    for at in SEGMENT_HEADER_BYTES..bytes.len() {
        for mask in (0..8).map(|bit| 1 << bit).chain([0xFF]) {
            bytes[at] ^= mask;
            check(at, &bytes);
            bytes[at] ^= mask;
        }
    }
}

#[test]
fn a_flipped_bit_is_proven_damage_by_a_later_header_or_by_complete_sectors() {
    let built = sample();
    let unsynced = *built.batch_starts.last().unwrap();
    for_each_flip(&built, |at, bytes| {
        let (ops, fault, offset) = read(bytes);
        assert!(offset <= at, "altered byte {at} was skipped");
        assert_eq!(ops, built.ops[..ops.len()], "altered byte {at} was served");
        let fault = fault.expect("the flip is reported as a fault");
        assert!(!matches!(fault.kind, FaultKind::Content(_)), "byte {at}");
        let proof = (at < unsynced).then_some(unsynced);
        // The first intact header after the flip that was written once the flipped bytes were
        // durable.
        let found = damage_behind(&HEADER, &bytes[fault.offset..], fault.offset);
        assert_eq!(found.is_some(), proof.is_some(), "byte {at}");
        if at >= unsynced {
            assert!(!is_torn(bytes), "byte {at}: no sector is missing");
        }
    });
}

#[test]
fn a_sealed_tail_has_no_blind_spot() {
    let built = sealed_sample();
    let seal = *built.batch_starts.last().unwrap();
    for_each_flip(&built, |at, bytes| {
        let (ops, fault, offset) = read(bytes);
        let fault_offset = fault.expect("the flip is reported as a fault").offset;
        let proof = damage_behind(&HEADER, &bytes[fault_offset..], fault_offset);
        if at < seal {
            assert!(proof.is_some(), "byte {at}");
        } else {
            assert_eq!(
                (proof, offset, ops),
                (None, seal, built.ops.clone()),
                "byte {at}"
            );
            assert!(!is_torn(bytes), "byte {at}");
        }
    });
}

#[test]
fn a_batch_is_valid_only_in_its_segment_and_at_its_offset() {
    let built = build(&[(vec![op(1, "1")], true), (vec![op(2, "2")], true)]);
    let [first, second] = built.batch_starts[..] else {
        unreachable!()
    };
    let (whole, rest) = (
        built.bytes[first..second].to_vec(),
        built.bytes[second..].to_vec(),
    );

    let swapped = [&built.bytes[..first], &rest, &whole].concat();
    let (ops, fault, _) = read(&swapped);
    assert_eq!(ops, []);
    assert!(
        matches!(fault.unwrap().kind, FaultKind::Content(_)),
        "invalid content is reported as torn"
    );
    let shifted = [&built.bytes[..first], &[0], &whole, &rest].concat();
    let proof = damage_behind(&HEADER, &shifted[first..], first);
    assert_eq!(
        proof, None,
        "a header at another offset was accepted as proof"
    );

    let other = SegmentHeader { index: 8, ..HEADER };
    let reader = Reader::new(&other, &built.bytes).next();
    assert_eq!(
        reader,
        Some(Err(Fault {
            offset: first,
            kind: FaultKind::Batch
        }))
    );
}

#[test]
fn sealing_again_is_sealing_once() {
    let mut batch = Vec::new();
    begin_batch(&mut batch);
    push_op(&mut batch, &op(1, "1").op());
    push_op(&mut batch, &op(2, "2").op());
    let mut again = batch.clone();
    let [first, second, third] = [4, 5, 9].map(LogPosition::new);
    seal_batch(&mut again, 77, second, first);
    seal_batch(&mut again, HEADER.salt(), HEADER.first_position, third);
    seal_batch(&mut batch, HEADER.salt(), HEADER.first_position, third);
    assert_eq!(again, batch);
}

proptest! {
    #[test]
    fn written_records_are_read_back(batches in any_batches()) {
        let built = build(&batches);
        let (ops, fault, offset) = read(&built.bytes);
        prop_assert_eq!(&ops, &built.ops);
        prop_assert_eq!(&ops, &naive(&built.bytes));
        prop_assert_eq!(fault, None);
        prop_assert_eq!(offset, built.bytes.len());
    }

    /// After a power cut, the synced bytes are intact, any of the other sectors contain zeros, and
    /// the file may have lost any part of its unsynced end.
    #[test]
    fn a_power_cut_leaves_only_a_torn_tail(
        batches in any_batches(),
        lost in prop::collection::vec(any::<bool>(), 64),
        length_lost in 0_usize..4096,
    ) {
        let built = build(&batches);
        let last_synced = batches.iter().rposition(|(_, synced)| *synced);
        let durable_batches = last_synced.map_or(0, |last| last + 1);
        let durable_end = built.batch_starts.get(durable_batches);
        let durable_bytes = durable_end.map_or(built.bytes.len(), |&start| start);
        let durable_ops: usize = batches[..durable_batches].iter().map(|(ops, _)| ops.len()).sum();
        let mut bytes = built.bytes.clone();
        bytes.truncate((bytes.len().saturating_sub(length_lost)).max(durable_bytes));
        for (sector, chunk) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
            let kept = durable_bytes.saturating_sub(sector * SECTOR_BYTES).min(chunk.len());
            if lost[sector % lost.len()] {
                chunk[kept..].fill(0);
            }
        }
        let (ops, fault, offset) = read(&bytes);
        prop_assert!(ops.len() >= durable_ops && offset >= durable_bytes, "a synced op was lost");
        prop_assert_eq!(&ops[..], &built.ops[..ops.len()]);
        if let Some(fault) = fault {
            prop_assert!(!matches!(fault.kind, FaultKind::Content(_)));
            prop_assert_eq!(damage_behind(&HEADER, &bytes[fault.offset..], fault.offset), None);
            prop_assert!(is_torn(&bytes), "a power cut was reported as damage");
        }
    }

    /// Altered synced bytes that a later batch proves were on disk are damage, and no altered op is
    /// read.
    #[test]
    fn altered_synced_bytes_are_damage(
        mut batches in any_batches(),
        at in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        batches.push((vec![op(1, "1")], true));
        batches.push((vec![op(2, "2")], false));
        let built = build(&batches);
        let synced = SEGMENT_HEADER_BYTES..*built.batch_starts.last().unwrap();
        let at = synced.start + at.index(synced.len());
        let end = (at + garbage.len()).min(synced.end);
        let mut bytes = built.bytes.clone();
        bytes[at..end].copy_from_slice(&garbage[..end - at]);
        prop_assume!(bytes != built.bytes);
        let (ops, fault, _) = read(&bytes);
        prop_assert_eq!(&ops[..], &built.ops[..ops.len()]);
        let offset = fault.unwrap().offset;
        prop_assert!(damage_behind(&HEADER, &bytes[offset..], offset).is_some());
    }

    #[test]
    fn arbitrary_bytes_cause_no_panic(
        garbage in prop::collection::vec(any::<u8>(), 0..400),
        from in 0_usize..500,
    ) {
        let _ = SegmentHeader::decode(&garbage);
        let bytes = [&HEADER.encode()[..], &BATCH_MAGIC, &garbage].concat();
        prop_assert_eq!(read(&bytes).0, []);
        prop_assert_eq!(damage_behind(&HEADER, bytes.get(from..).unwrap_or_default(), from), None);
        let extreme = SegmentHeader { first_position: LogPosition::MAX, ..HEADER };
        prop_assert!(Reader::new(&extreme, &bytes).all(|item| item.is_err()));
    }
}

#[test]
fn a_segment_read_in_parts_yields_the_same_ops() {
    let built = sample();
    let whole = read(&built.bytes);
    for part_bytes in (1..200).chain([1000]) {
        let (mut ops, mut cursor, mut end) =
            (Vec::new(), ReadCursor::begin(), SEGMENT_HEADER_BYTES);
        while end < built.bytes.len() {
            end = (end + part_bytes).min(built.bytes.len());
            let base = cursor.offset();
            let mut reader = Reader::resume(&HEADER, &built.bytes[base..end], base, cursor);
            ops.extend(
                reader
                    .by_ref()
                    .map_while(Result::ok)
                    .map(|op| OwnedOp::of(&op)),
            );
            cursor = reader.cursor();
        }
        assert_eq!(
            (ops, cursor.offset()),
            (whole.0.clone(), whole.2),
            "{part_bytes}"
        );
    }
}
