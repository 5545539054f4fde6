//! An op record, which is the log's representation of one change.

use super::header::{u16_at, u32_at, u64_at};
use crate::generation::Generation;
use crate::seq::Seq;

/// The length of an op record without its extra field and its texts.
pub const OP_HEADER_BYTES: usize = 29;
/// The length of the extra field of a delete, of a write that expires, and of a floor.
pub const EXTRA_BYTES: usize = 8;

const GENERATION_EXTRA_BYTES: usize = EXTRA_BYTES + 4;

const KIND_WRITE: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_EXPIRING_WRITE: u8 = 3;
const KIND_FLOOR: u8 = 4;
const KIND_GENERATION: u8 = 5;

/// An op in its logged form. Its strings are borrowed from a message when it is written, and from a
/// segment when it is read.
///
/// A floor and a generation are logged like ops on keys that no client can write: an empty key, and
/// a key of the workspace with the empty id. Code that counts, keeps or drops records by key
/// therefore handles them correctly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedOp<'a> {
    /// The workspace's id. Empty for a generation.
    pub workspace: &'a str,
    /// The key that was changed. Empty for a floor; the shard's number for a generation.
    pub key: &'a str,
    /// The change.
    pub change: Change<'a>,
    /// The op's sequence number in its workspace. For a floor, that of the workspace's last op; for
    /// a generation, its number in the shard's folder.
    pub seq: Seq,
    /// The client's timestamp, in Unix microseconds. For a floor, the floor; for a generation, its
    /// number in the shard's folder.
    pub timestamp: u64,
}

/// The change that a logged op makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// The key is set to this value.
    Write {
        /// The value's JSON text, as it was sent.
        value: &'a str,
        /// The Unix time in microseconds at which the key is deleted.
        expires_at_us: Option<u64>,
    },
    /// The key is deleted.
    Delete {
        /// The server's Unix time in microseconds, from which the retention of the tombstone is
        /// counted.
        deleted_at_us: u64,
    },
    /// Tombstones of the workspace were dropped.
    Floor {
        /// The greatest seq of a dropped tombstone. All tombstones up to it were dropped.
        dropped_seq: Seq,
    },
    /// The shard began a generation.
    Generation {
        /// Its id.
        id: Generation,
        /// The number of shards of the server.
        shards: u32,
    },
}

impl<'a> Change<'a> {
    /// Returns a write of a value that does not expire.
    #[must_use]
    pub const fn write(value: &'a str) -> Self {
        Self::Write {
            value,
            expires_at_us: None,
        }
    }

    /// Returns the value that is written. Empty if the change is not a write.
    #[must_use]
    pub const fn value(&self) -> &'a str {
        match self {
            Self::Write { value, .. } => value,
            Self::Delete { .. } | Self::Floor { .. } | Self::Generation { .. } => "",
        }
    }

    /// Returns whether this is an op in the user's sense: a write or a delete.
    #[must_use]
    pub const fn is_op(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Delete { .. })
    }

    /// Returns the change without the value that it borrows.
    #[must_use]
    pub const fn without_value(self) -> Change<'static> {
        match self {
            Self::Write { expires_at_us, .. } => Change::Write {
                value: "",
                expires_at_us,
            },
            Self::Delete { deleted_at_us } => Change::Delete { deleted_at_us },
            Self::Floor { dropped_seq } => Change::Floor { dropped_seq },
            Self::Generation { id, shards } => Change::Generation { id, shards },
        }
    }

    /// Returns the change with this value if it is a write, and otherwise the change itself.
    #[must_use]
    pub const fn with_value(self, value: &str) -> Change<'_> {
        match self.without_value() {
            Change::Write { expires_at_us, .. } => Change::Write {
                value,
                expires_at_us,
            },
            other => other,
        }
    }

    /// Returns the length of the record's extra field.
    #[must_use]
    pub const fn extra_bytes(&self) -> usize {
        match self {
            Self::Write {
                expires_at_us: None,
                ..
            } => 0,
            Self::Write { .. } | Self::Delete { .. } | Self::Floor { .. } => EXTRA_BYTES,
            Self::Generation { .. } => GENERATION_EXTRA_BYTES,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Write {
                expires_at_us: None,
                ..
            } => KIND_WRITE,
            Self::Write { .. } => KIND_EXPIRING_WRITE,
            Self::Delete { .. } => KIND_DELETE,
            Self::Floor { .. } => KIND_FLOOR,
            Self::Generation { .. } => KIND_GENERATION,
        }
    }

    /// Appends the extra field.
    fn put_extra(&self, out: &mut Vec<u8>) {
        let extra = match *self {
            Self::Write {
                expires_at_us: None,
                ..
            } => return,
            Self::Write {
                expires_at_us: Some(us),
                ..
            }
            | Self::Delete { deleted_at_us: us } => us,
            Self::Floor { dropped_seq } => dropped_seq.get(),
            Self::Generation { id, .. } => id.get(),
        };
        out.extend_from_slice(&extra.to_le_bytes());
        if let Self::Generation { shards, .. } = self {
            out.extend_from_slice(&shards.to_le_bytes());
        }
    }
}

impl<'a> LoggedOp<'a> {
    /// Returns the value that is written. Empty if the op is not a write.
    #[must_use]
    pub const fn value(&self) -> &'a str {
        self.change.value()
    }

    /// Returns whether this op supersedes another op on the same key, which has this `timestamp`
    /// and `seq`. Replay uses this rule because it sees ops in any order. If the timestamps are
    /// equal, the op that was applied first wins, which is the one with the lower seq. Of the
    /// generations of a shard, the one with the greatest number wins.
    ///
    /// Floors do not compete by this rule: none is superseded before another one
    /// [covers](FloorRecord::covers) it.
    #[must_use]
    pub fn wins_over(&self, timestamp: u64, seq: Seq) -> bool {
        self.timestamp > timestamp || (self.timestamp == timestamp && self.seq < seq)
    }

    /// Returns the floor, if this is one.
    #[must_use]
    pub const fn floor(&self) -> Option<FloorRecord> {
        match self.change {
            Change::Floor { dropped_seq } => Some(FloorRecord {
                floor: self.timestamp,
                seq: self.seq,
                dropped_seq,
            }),
            Change::Write { .. } | Change::Delete { .. } | Change::Generation { .. } => None,
        }
    }

    /// Checks the rules that checksums do not cover.
    ///
    /// # Errors
    /// Returns the rule that the op breaks.
    fn check(&self) -> Result<(), &'static str> {
        let is_write = matches!(self.change, Change::Write { .. });
        if is_write && self.value().is_empty() {
            return Err("this write has no value");
        }
        match self.change {
            Change::Write { .. } | Change::Delete { .. } => {
                if self.workspace.is_empty() || self.key.is_empty() {
                    return Err("this op has no workspace id or no key");
                }
            }
            Change::Floor { dropped_seq } => {
                if self.workspace.is_empty() || !self.key.is_empty() {
                    return Err("this floor has no workspace id, or has a key");
                }
                if dropped_seq > self.seq {
                    return Err("the workspace of this floor has dropped an op that it never had");
                }
            }
            Change::Generation { .. } => {
                let shard: Option<u32> = self.key.parse().ok();
                let is_number = shard.is_some_and(|shard| shard.to_string() == self.key);
                if !self.workspace.is_empty() || !is_number {
                    return Err("this generation has a workspace id, or no number of a shard");
                }
                if self.seq == Seq::NONE || self.seq.get() != self.timestamp {
                    return Err("the number of this generation is not a valid one");
                }
            }
        }
        Ok(())
    }
}

/// The fields of a floor record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FloorRecord {
    /// The greatest timestamp of a dropped tombstone, in Unix microseconds.
    pub floor: u64,
    /// The seq of the workspace's last op when the record was written.
    pub seq: Seq,
    /// The greatest seq of a dropped tombstone.
    pub dropped_seq: Seq,
}

impl FloorRecord {
    /// Returns whether this floor makes `other` redundant, because none of its fields is smaller.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.merged(*other) == *self
    }

    /// Returns the combination of both: the greater value of each field.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self {
            floor: self.floor.max(other.floor),
            seq: self.seq.max(other.seq),
            dropped_seq: self.dropped_seq.max(other.dropped_seq),
        }
    }

    /// Returns whether a tombstone with this `timestamp` and `seq` was dropped.
    #[must_use]
    pub fn has_dropped(&self, timestamp: u64, seq: Seq) -> bool {
        self.floor >= timestamp && self.dropped_seq >= seq
    }
}

/// Returns the length of an op's record.
#[must_use]
pub fn op_bytes(op: &LoggedOp<'_>) -> usize {
    let texts_bytes = op.workspace.len() + op.key.len() + op.value().len();
    OP_HEADER_BYTES + op.change.extra_bytes() + texts_bytes
}

/// Appends an op to a batch started with [`begin_batch`](super::begin_batch). Its checksum stays
/// zero until [`seal_batch`](super::seal_batch), because the checksum chain depends on the log
/// position, which is not known yet.
///
/// # Panics
/// If a workspace id or a key is longer than 64 KiB, or the whole op is longer than 4 GiB. The
/// bounds in [`crate::limits`] rule this out. Also if the op breaks a rule for its kind, such as
/// having an empty key: no reader would accept the record.
pub fn push_op(batch: &mut Vec<u8>, op: &LoggedOp<'_>) {
    if let Err(rule) = op.check() {
        panic!("{rule}");
    }
    let bytes = op_bytes(op);
    let bytes_u32 = u32::try_from(bytes).expect("an op is far smaller than 4 GiB");
    let workspace_bytes =
        u16::try_from(op.workspace.len()).expect("WORKSPACE_ID_BYTES_MAX fits 16 bits");
    let key_bytes = u16::try_from(op.key.len()).expect("KEY_BYTES_MAX fits 16 bits");
    let mut header = [0; OP_HEADER_BYTES];
    header[4..8].copy_from_slice(&bytes_u32.to_le_bytes());
    header[8..16].copy_from_slice(&op.seq.get().to_le_bytes());
    header[16..24].copy_from_slice(&op.timestamp.to_le_bytes());
    header[24..26].copy_from_slice(&workspace_bytes.to_le_bytes());
    header[26..28].copy_from_slice(&key_bytes.to_le_bytes());
    header[28] = op.change.kind();
    batch.reserve(bytes);
    batch.extend_from_slice(&header);
    op.change.put_extra(batch);
    batch.extend_from_slice(op.workspace.as_bytes());
    batch.extend_from_slice(op.key.as_bytes());
    batch.extend_from_slice(op.value().as_bytes());
}

/// Decodes a record whose checksum is correct, from a segment of the given format. `rest` are the
/// bytes after the record's header.
///
/// # Errors
/// Returns the reason why the content is invalid.
pub(super) fn decode_op<'a>(
    format_version: u16,
    header: &[u8; OP_HEADER_BYTES],
    rest: &'a [u8],
) -> Result<LoggedOp<'a>, &'static str> {
    let overrun = "the strings in this record extend past its end";
    let kind = header[28];
    if format_version == 1 && kind != KIND_WRITE {
        return Err("format 1 has only records of kind 1");
    }
    let extra_bytes = match kind {
        KIND_WRITE => 0,
        KIND_DELETE | KIND_EXPIRING_WRITE | KIND_FLOOR => EXTRA_BYTES,
        KIND_GENERATION => GENERATION_EXTRA_BYTES,
        _ => return Err("the kind of this record is unknown"),
    };
    let (extra, texts) = rest.split_at_checked(extra_bytes).ok_or(overrun)?;
    let (workspace, texts) = texts
        .split_at_checked(u16_at(header, 24).into())
        .ok_or(overrun)?;
    let (key, value) = texts
        .split_at_checked(u16_at(header, 26).into())
        .ok_or(overrun)?;
    let text = |bytes| str::from_utf8(bytes).map_err(|_| "a string in this record is not UTF-8");
    let (workspace, key, value) = (text(workspace)?, text(key)?, text(value)?);
    let is_write = matches!(kind, KIND_WRITE | KIND_EXPIRING_WRITE);
    if !is_write && !value.is_empty() {
        return Err("this record has a value although it is not a write");
    }
    let extra_number = || u64_at(extra, 0);
    let change = match kind {
        KIND_WRITE => Change::write(value),
        KIND_EXPIRING_WRITE => Change::Write {
            value,
            expires_at_us: Some(extra_number()),
        },
        KIND_DELETE => Change::Delete {
            deleted_at_us: extra_number(),
        },
        KIND_FLOOR => Change::Floor {
            dropped_seq: Seq::new(extra_number()),
        },
        _ => Change::Generation {
            id: Generation::new(extra_number()),
            shards: u32_at(extra, EXTRA_BYTES),
        },
    };
    let op = LoggedOp {
        workspace,
        key,
        change,
        seq: Seq::new(u64_at(header, 8)),
        timestamp: u64_at(header, 16),
    };
    op.check().map(|()| op)
}
