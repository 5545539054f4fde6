//! A segment written by the encoder, with one change: a flipped bit, a shorter file, a range of
//! zeros, a range that was written to the wrong place, or a range of another segment. Only the
//! intact part before the change is served. The fault is reported at its offset, and it counts as
//! damage if a later batch proves that it was on disk, or if its own batch has no missing sector.
//! After the fault, every unchanged batch is still read, but nothing that was never written.
//!
//! Input: the change (its kind, and three numbers of four bytes), then the batches. Each batch is a
//! byte with the number of ops and whether a sync follows it, then for each op its texts, the
//! repetitions of its value, its seq and its timestamp.
#![no_main]

use std::ops::Range;

use etherply::generation::Generation;
use etherply::log::position::LogPosition;
use etherply::log::record::{
    BATCH_HEADER_BYTES, Change, FaultKind, LoggedOp, Reader, SECTOR_BYTES, SEGMENT_HEADER_BYTES,
    SegmentHeader, begin_batch, damage_behind, is_interrupted, op_bytes, push_op, seal_batch,
};
use etherply::log::repair::recover::{HeaderHints, restore_header};
use etherply::log::repair::resync::skip_damage;
use etherply::seq::Seq;
use etherply_fuzz::{Script, segment_header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let mut change = Script(script.bytes(13));
    let batches = batches(&mut script);
    let written = Written::new(&segment_header(), &batches);
    assert_eq!(written.read(&written.bytes), (written.ops.clone(), None));

    let mut bytes = written.bytes.clone();
    let moved = apply(&mut change, &batches, &mut bytes);
    let change_at = (0..written.bytes.len()).find(|at| bytes.get(*at) != written.bytes.get(*at));
    match change_at {
        None => {}
        Some(at) if at < SEGMENT_HEADER_BYTES => written.check_header(&bytes),
        Some(at) => {
            written.check(&bytes, at);
            written.check_salvage(&bytes, &moved);
        }
    }
});

#[derive(Clone, Debug, PartialEq)]
struct OwnedOp {
    workspace: String,
    key: String,
    change: OwnedChange,
    seq: Seq,
    timestamp: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum OwnedChange {
    Write(String, Option<u64>),
    Delete(u64),
    Floor(Seq),
    Generation(Generation, u32),
}

impl OwnedOp {
    /// The next op of an input. A field that its kind does not allow is replaced.
    fn read(script: &mut Script<'_>, kind: usize) -> Self {
        let (workspace, key) = (script.text(), script.text());
        let value = script.text().repeat(1 + script.index::<1>(16));
        let (seq, timestamp) = (script.number::<8>(), script.number::<8>());
        let extra = if kind == 0 { 0 } else { script.number::<8>() };
        let or = |text: String, other: &str| {
            if text.is_empty() {
                other.to_owned()
            } else {
                text
            }
        };
        let value = or(value, "0");
        let op = Self {
            workspace: or(workspace, "w"),
            key: or(key, "k"),
            change: OwnedChange::Write(value.clone(), None),
            seq: Seq::new(seq),
            timestamp,
        };
        match kind {
            0 => op,
            1 => Self {
                change: OwnedChange::Delete(extra),
                ..op
            },
            2 => Self {
                change: OwnedChange::Write(value, Some(extra)),
                ..op
            },
            3 => Self {
                key: String::new(),
                change: OwnedChange::Floor(Seq::new(extra).min(op.seq)),
                ..op
            },
            _ => Self {
                workspace: String::new(),
                key: (timestamp as u32).to_string(),
                change: OwnedChange::Generation(Generation::new(extra), seq as u32),
                seq: Seq::new(seq.max(1)),
                timestamp: seq.max(1),
            },
        }
    }

    fn of(op: &LoggedOp<'_>) -> Self {
        Self {
            workspace: op.workspace.into(),
            key: op.key.into(),
            change: match op.change {
                Change::Write {
                    value,
                    expires_at_us,
                } => OwnedChange::Write(value.into(), expires_at_us),
                Change::Delete { deleted_at_us } => OwnedChange::Delete(deleted_at_us),
                Change::Floor { dropped_seq } => OwnedChange::Floor(dropped_seq),
                Change::Generation { id, shards } => OwnedChange::Generation(id, shards),
            },
            seq: op.seq,
            timestamp: op.timestamp,
        }
    }

    fn op(&self) -> LoggedOp<'_> {
        LoggedOp {
            workspace: &self.workspace,
            key: &self.key,
            change: match &self.change {
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
            },
            seq: self.seq,
            timestamp: self.timestamp,
        }
    }

    /// Turns it into a different op of the same length.
    fn alter(&mut self) {
        match &mut self.change {
            OwnedChange::Generation(id, _) => *id = Generation::new(!id.get()),
            _ => self.timestamp = !self.timestamp,
        }
    }
}

/// The ops of a batch, and whether it was synced.
type Batch = (Vec<OwnedOp>, bool);

fn batches(script: &mut Script<'_>) -> Vec<Batch> {
    let mut batches = Vec::new();
    while !script.0.is_empty() {
        let shape = script.byte();
        let kinds = usize::from(shape >> 4);
        let op = |place: u8| {
            let kind = if kinds == 0 {
                0
            } else {
                (kinds + usize::from(place)) % 5
            };
            OwnedOp::read(script, kind)
        };
        batches.push(((0..shape & 7).map(op).collect(), shape & 8 != 0));
    }
    batches
}

/// A segment and the known structure of its bytes.
struct Written {
    bytes: Vec<u8>,
    ops: Vec<OwnedOp>,
    /// The batch headers and the records, in order, without a gap.
    units: Vec<Unit>,
}

struct Unit {
    at: Range<usize>,
    /// For a batch header, the durable position that it records.
    durable_position: Option<LogPosition>,
}

impl Written {
    fn new(header: &SegmentHeader, batches: &[Batch]) -> Self {
        let mut bytes = header.encode().to_vec();
        let (mut ops, mut units) = (Vec::new(), Vec::new());
        let mut durable_position = header.position(bytes.len() as u64);
        let mut batch = Vec::new();
        for (batch_ops, is_synced) in batches {
            let start = bytes.len();
            begin_batch(&mut batch);
            units.push(Unit {
                at: start..start + BATCH_HEADER_BYTES,
                durable_position: Some(durable_position),
            });
            for op in batch_ops {
                let from = start + batch.len();
                push_op(&mut batch, &op.op());
                let at = from..from + op_bytes(&op.op());
                assert_eq!(
                    at.end,
                    start + batch.len(),
                    "op_bytes differs from what push_op writes"
                );
                units.push(Unit {
                    at,
                    durable_position: None,
                });
                ops.push(op.clone());
            }
            seal_batch(
                &mut batch,
                header.salt(),
                header.position(start as u64),
                durable_position,
            );
            bytes.extend_from_slice(&batch);
            if *is_synced {
                durable_position = header.position(bytes.len() as u64);
            }
        }
        Self { bytes, ops, units }
    }

    /// Reads everything that can still be proven. `moved` are the ops that may be found in a place
    /// other than their own.
    fn check_salvage(&self, bytes: &[u8], moved: &[OwnedOp]) {
        let is_same =
            |unit: &Unit| bytes.get(unit.at.clone()) == Some(&self.bytes[unit.at.clone()]);
        let mut reader = Reader::new(&segment_header(), bytes);
        let mut found = Vec::new();
        loop {
            match reader.next() {
                Some(Ok(op)) => {
                    let start = reader.offset() - op_bytes(&op);
                    let unit = self
                        .units
                        .iter()
                        .position(|unit| unit.at == (start..reader.offset()));
                    match unit.filter(|unit| is_same(&self.units[*unit])) {
                        Some(unit) => found.push(unit),
                        None => assert!(moved.iter().any(|moved| moved.op() == op), "{op:?}"),
                    }
                }
                Some(Err(fault)) => match skip_damage(&mut reader) {
                    Some(lost) => {
                        assert_eq!((lost.start, lost.end), (fault.offset, reader.offset()));
                        assert!(lost.start < lost.end && lost.end <= bytes.len());
                    }
                    None => break,
                },
                None => break,
            }
        }
        assert!(
            found.is_sorted_by(|one, next| one < next),
            "an op was read twice"
        );
        let is_header = |unit: &Unit| unit.durable_position.is_some();
        let starts = (0..self.units.len()).filter(|at| is_header(&self.units[*at]));
        for start in starts {
            let ops = self.units[start + 1..]
                .iter()
                .take_while(|unit| !is_header(unit))
                .count();
            let batch = start..=start + ops;
            if self.units[batch.clone()].iter().all(is_same) {
                let mut ops = batch.skip(1);
                assert!(
                    ops.all(|op| found.binary_search(&op).is_ok()),
                    "a partial batch was read"
                );
            }
        }
    }

    /// Reads these bytes, an altered version of those written, and returns the ops and the first
    /// fault.
    fn read(&self, bytes: &[u8]) -> (Vec<OwnedOp>, Option<(usize, FaultKind)>) {
        let header = SegmentHeader::decode(bytes).expect("the header is intact");
        assert_eq!(header, segment_header());
        let mut reader = Reader::new(&header, bytes);
        let (mut ops, mut fault) = (Vec::new(), None);
        for item in reader.by_ref() {
            match item {
                Ok(op) => ops.push(OwnedOp::of(&op)),
                Err(error) => fault = Some((error.offset, error.kind)),
            }
        }
        let end = fault.map_or(bytes.len(), |(offset, _)| offset);
        assert_eq!(reader.offset(), end);
        assert_eq!(reader.cursor().is_sealed(), self.is_sealed(end));
        (ops, fault)
    }

    /// Returns whether the last batch header before `end` is that of an empty batch.
    fn is_sealed(&self, end: usize) -> bool {
        let is_header = |unit: &Unit| unit.durable_position.is_some();
        let entered = self
            .units
            .iter()
            .rposition(|unit| is_header(unit) && unit.at.end <= end);
        entered.is_some_and(|entered| self.units.get(entered + 1).is_none_or(is_header))
    }

    /// Checks that a segment header with a change is refused, and that it is restored with the help
    /// of a batch that it makes valid.
    fn check_header(&self, bytes: &[u8]) {
        assert!(SegmentHeader::decode(bytes).is_err());
        let header = segment_header();
        let place = HeaderHints {
            epoch: header.epoch,
            shard: header.shard,
            index: header.index,
            index_before: header.index - 1,
            position_behind: None,
        };
        let found = restore_header(bytes, place);
        let is_rest_whole =
            bytes.get(SEGMENT_HEADER_BYTES..) == Some(&self.bytes[SEGMENT_HEADER_BYTES..]);
        let is_found = !self.units.is_empty() && is_rest_whole;
        assert!(
            found == Some(header) || found.is_none() && !is_found,
            "{found:?}"
        );
    }

    /// Checks the result of reading `bytes`, whose first difference from the written bytes is at
    /// `first`.
    fn check(&self, bytes: &[u8], first: usize) {
        let (ops, fault) = self.read(bytes);
        let bad = self.units.iter().position(|unit| unit.at.contains(&first));
        let bad = bad.expect("the units cover the segment");
        let is_record = |unit: &&Unit| unit.durable_position.is_none();
        let whole_ops = self.units[..bad].iter().filter(is_record).count();
        assert_eq!(
            ops,
            self.ops[..whole_ops],
            "exactly the ops before the change are read"
        );

        let unit = &self.units[bad];
        let is_header = unit.durable_position.is_some();
        let Some((offset, kind)) = fault else {
            assert!(
                is_header && bytes.len() == unit.at.start,
                "the fault is not reported"
            );
            return;
        };
        assert_eq!(
            offset, unit.at.start,
            "the fault is reported at another offset"
        );
        let is_right = match kind {
            FaultKind::Cut => !is_header && bytes.len() == offset,
            FaultKind::Record => !is_header && bytes.len() > offset,
            FaultKind::Batch => is_header,
            // An intact batch header that comes from elsewhere in the segment.
            FaultKind::Content(_) => is_header && first >= unit.at.start + 4,
        };
        assert!(is_right, "{kind:?} at {offset}, changed at {first}");
        if !matches!(kind, FaultKind::Content(_)) {
            self.check_damage(bytes, offset);
        }
    }

    fn check_damage(&self, bytes: &[u8], fault_offset: usize) {
        let header = segment_header();
        let fault_position = header.position(fault_offset as u64);
        let proof = self.units.iter().find(|unit| {
            unit.at.start >= fault_offset
                && unit
                    .durable_position
                    .is_some_and(|durable| durable > fault_position)
                && bytes.get(unit.at.clone()) == Some(&self.bytes[unit.at.clone()])
        });
        let proof = proof.map(|unit| unit.at.start);
        let behind = &bytes[fault_offset..];
        assert_eq!(damage_behind(&header, behind, fault_offset), proof);

        let mut reader = Reader::new(&header, bytes);
        reader.by_ref().for_each(drop);
        let is_torn = is_interrupted(reader.cursor(), behind);
        assert_eq!(is_torn, self.misses_a_sector(bytes, fault_offset));
    }

    /// Returns whether the data expected at the fault is incomplete: a batch header, or the rest of
    /// the batch after an intact one.
    fn misses_a_sector(&self, bytes: &[u8], fault_offset: usize) -> bool {
        let at = self
            .units
            .iter()
            .position(|unit| unit.at.start == fault_offset);
        let at = at.expect("the fault is at the start of a unit");
        let is_header = |unit: &&Unit| unit.durable_position.is_some();
        let end = if is_header(&&self.units[at]) {
            self.units[at].at.end
        } else {
            let next = self.units[at..].iter().find(is_header);
            next.map_or(self.bytes.len(), |unit| unit.at.start)
        };
        let sector_of = |at: usize| at / SECTOR_BYTES;
        bytes.len() < end
            || (sector_of(fault_offset)..=sector_of(end - 1)).any(|sector| {
                let mut part = (fault_offset..end).filter(|at| sector_of(*at) == sector);
                part.all(|at| bytes[at] == 0)
            })
    }
}

/// Applies a change and returns the ops that may now be elsewhere: if records were copied, a chain
/// of checksums may continue from bad data.
fn apply(change: &mut Script<'_>, batches: &[Batch], bytes: &mut Vec<u8>) -> Vec<OwnedOp> {
    let ops = |batches: &[Batch]| batches.iter().flat_map(|(ops, _)| ops.clone()).collect();
    let kind = change.byte();
    let from = change.index::<4>(bytes.len());
    let range = from..from + change.index::<4>(bytes.len() - from + 1);
    match kind % 5 {
        0 => bytes[from] ^= 1 << (kind / 5 % 8),
        1 => bytes.truncate(from),
        2 => bytes[range].fill(0),
        3 => {
            let to = change.index::<4>(bytes.len() - range.len() + 1);
            bytes.copy_within(range, to);
            return ops(batches);
        }
        _ => {
            // Stale content of the disk: other ops of the same size, in the segment before this
            // one. Its header is intact as well, and only the file name distinguishes the two.
            let before = SegmentHeader {
                index: segment_header().index - 1,
                ..segment_header()
            };
            let mut other = batches.to_vec();
            for op in other.iter_mut().flat_map(|(ops, _)| ops) {
                op.alter();
            }
            let stale = Written::new(&before, &other).bytes;
            let range = range.start.max(SEGMENT_HEADER_BYTES)..range.end.max(SEGMENT_HEADER_BYTES);
            bytes[range.clone()].copy_from_slice(&stale[range]);
            return ops(&other);
        }
    }
    Vec::new()
}
