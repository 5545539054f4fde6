//! A second reader of the log's format, written from the byte tables in `src/log/record.rs` alone.

pub const SEGMENT_HEADER_BYTES: usize = 64;
/// The batch of the generation's record, which a shard writes at each start before any op.
pub const GENERATION: usize = 0;
/// The batch of the first op.
pub const FIRST_OPS: usize = 1;
const BATCH_HEADER_BYTES: usize = 28;
const EXTRA_AT: usize = 29;

const SEGMENT_FIELDS: &[(&str, usize)] = &[
    ("magic", 0),
    ("version", 8),
    ("reserved", 10),
    ("shard", 12),
    ("epoch", 16),
    ("index", 32),
    ("first position", 40),
    ("second reserved", 48),
    ("crc", 60),
];
const BATCH_FIELDS: &[(&str, usize)] = &[
    ("magic", 0),
    ("payload bytes", 4),
    ("position", 8),
    ("durable position", 16),
    ("crc", 24),
];
const RECORD_FIELDS: &[(&str, usize)] = &[
    ("crc", 0),
    ("record bytes", 4),
    ("seq", 8),
    ("timestamp", 16),
    ("workspace id bytes", 24),
    ("key bytes", 26),
    ("kind", 28),
];

/// The kinds of records, each with the length of its extra field and whether it is an op.
const RECORD_KINDS: &[(u8, usize, bool)] = &[
    (1, 0, true),
    (2, 8, true),
    (3, 8, true),
    (4, 8, false),
    (5, 12, false),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    SegmentHeader,
    BatchHeader,
    Record,
}

/// A section of a segment that is valid or invalid as a whole.
#[derive(Debug, Clone)]
pub struct Unit {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
    /// The name and the first offset of each field.
    pub fields: Vec<(&'static str, usize)>,
    /// Whether it is the record of an op.
    is_op: bool,
    /// The number of ops before it.
    pub ops_before: usize,
    /// The batch that contains it, counted from zero.
    pub batch: usize,
}

impl Unit {
    fn new(kind: Kind, start: usize, len: usize, fields: &[(&'static str, usize)]) -> Unit {
        let fields = fields.iter().map(|(name, at)| (*name, start + at));
        Unit {
            kind,
            start,
            end: start + len,
            fields: fields.collect(),
            is_op: false,
            ops_before: 0,
            batch: 0,
        }
    }

    pub fn field(&self, name: &str) -> usize {
        let field = self.fields.iter().find(|(known, _)| *known == name);
        field
            .unwrap_or_else(|| panic!("{name} is not a field of {self:?}"))
            .1
    }
}

/// The parsed structure of a segment.
#[derive(Debug, Clone)]
pub struct Layout {
    pub units: Vec<Unit>,
    pub batches_count: usize,
    pub ops_count: usize,
    pub len: usize,
}

impl Layout {
    /// Reads an undamaged segment. After its last batch there may only be the zeros that it was
    /// preallocated with.
    pub fn of(bytes: &[u8]) -> Layout {
        let header = Unit::new(Kind::SegmentHeader, 0, SEGMENT_HEADER_BYTES, SEGMENT_FIELDS);
        let mut layout = Layout {
            units: vec![header],
            batches_count: 0,
            ops_count: 0,
            len: 0,
        };
        let mut at = SEGMENT_HEADER_BYTES;
        while bytes[at..].iter().any(|byte| *byte != 0) {
            assert_eq!(&bytes[at..at + 4], b"\xFFEPB", "no batch starts at {at}");
            layout.push(Unit::new(
                Kind::BatchHeader,
                at,
                BATCH_HEADER_BYTES,
                BATCH_FIELDS,
            ));
            let batch_end = at + BATCH_HEADER_BYTES + u32_at(bytes, at + 4);
            at += BATCH_HEADER_BYTES;
            while at < batch_end {
                let len = u32_at(bytes, at + 4);
                let mut record = Unit::new(Kind::Record, at, len, RECORD_FIELDS);
                let kind = RECORD_KINDS.iter().find(|kind| kind.0 == bytes[at + 28]);
                let (_, extra_bytes, is_op) = *kind.expect("the kind is known");
                record.is_op = is_op;
                let workspace = at + EXTRA_AT + extra_bytes;
                let key = workspace + u16_at(bytes, at + 24);
                let value = key + u16_at(bytes, at + 26);
                let ends = [workspace, key, value, at + len];
                let names = ["extra", "workspace id", "key", "value"];
                let mut start = at + EXTRA_AT;
                // An empty field has no byte to damage.
                for (name, end) in names.into_iter().zip(ends) {
                    if start < end {
                        record.fields.push((name, start));
                    }
                    start = end;
                }
                layout.push(record);
                at += len;
            }
            assert_eq!(at, batch_end, "the records do not fill their batch");
            layout.batches_count += 1;
        }
        layout.len = at;
        layout
    }

    fn push(&mut self, mut unit: Unit) {
        unit.batch = self.batches_count;
        unit.ops_before = self.ops_count;
        self.ops_count += usize::from(unit.is_op);
        self.units.push(unit);
    }

    /// Returns the unit that contains this byte.
    pub fn unit_at(&self, offset: usize) -> &Unit {
        let holds = |unit: &&Unit| (unit.start..unit.end).contains(&offset);
        let unit = self.units.iter().find(holds);
        unit.unwrap_or_else(|| panic!("offset {offset} is not in the segment"))
    }

    /// Returns the header of a batch.
    pub fn batch(&self, batch: usize) -> &Unit {
        let units = &mut self.units.iter();
        let unit = units.find(|unit| unit.kind == Kind::BatchHeader && unit.batch == batch);
        unit.expect("the batch exists")
    }

    /// Returns the record of an op.
    pub fn record(&self, op: usize) -> &Unit {
        let units = &mut self.units.iter();
        let unit = units.find(|unit| unit.is_op && unit.ops_before == op);
        unit.expect("there is such an op")
    }

    /// Returns the record of the generation, which precedes the ops.
    pub fn generation(&self) -> &Unit {
        let units = &mut self.units.iter();
        let unit = units.find(|unit| unit.kind == Kind::Record);
        let generation = unit.expect("a shard logs its generation first");
        assert!(!generation.is_op, "the first record is an op");
        generation
    }

    /// Returns the range of a batch, including its records.
    pub fn range(&self, batch: usize) -> std::ops::Range<usize> {
        let in_batch = |unit: &&Unit| unit.kind != Kind::SegmentHeader && unit.batch == batch;
        let last = self.units.iter().rfind(in_batch);
        self.batch(batch).start..last.expect("the batch exists").end
    }
}

/// Recomputes all checksums of a segment.
pub fn reseal(bytes: &mut [u8], layout: &Layout) {
    let mut crc = 0;
    for unit in &layout.units {
        let (start, end) = (unit.start, unit.end);
        let (crc_at, body) = match unit.kind {
            Kind::SegmentHeader => (60, start..60),
            Kind::BatchHeader => (start + 24, start..start + 24),
            Kind::Record => (start, start + 4..end),
        };
        let seed = match unit.kind {
            Kind::SegmentHeader => 0,
            Kind::BatchHeader => u32::from_le_bytes(bytes[60..64].try_into().expect("four bytes")),
            Kind::Record => crc,
        };
        crc = crc32c::crc32c_append(seed, &bytes[body]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    let field = bytes[at..at + 4].try_into().expect("four bytes");
    usize::try_from(u32::from_le_bytes(field)).expect("the number is small")
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes")).into()
}
