//! The format of the log: how ops become bytes, and how bytes are checked when they are read back.
//!
//! The log of a shard is a sequence of *segments*, files that are written from front to back. A
//! segment is a header followed by *batches*. A batch is what one group commit writes: a header,
//! then one record for each op. All numbers are little-endian, all checksums CRC-32C.
//!
//! # Byte tables
//!
//! | segment header | bytes | |
//! | --- | --- | --- |
//! | magic | 0..8 | `89 45 50 4C 4F 47 0D 0A`; fixed in every version, as is the version's place |
//! | format version | 8..10 | [`FORMAT_VERSION`] |
//! | kind | 10..12 | 0: written by its shard; 1: *compacted*, made from other segments |
//! | shard | 12..16 | of the folder |
//! | epoch | 16..32 | of the data directory: a segment of another one is refused |
//! | index | 32..40 | in the shard's row of segments, the number in the file's name |
//! | first position | 40..48 | the log position of the first batch |
//! | end position | 48..56 | of a compacted one: where the next one begins; else zero |
//! | replaced | 56..60 | of a compacted one: how many earlier indexes it covers too; else zero |
//! | crc | 60..64 | of bytes 0..60: the segment's *salt* |
//!
//! | batch header | bytes | |
//! | --- | --- | --- |
//! | magic | 0..4 | `FF 45 50 42`: never in a key or a value, since no UTF-8 text holds FF |
//! | payload bytes | 4..8 | of all records of the batch |
//! | position | 8..16 | the log position of this header's first byte |
//! | durable position | 16..24 | all before it was on disk when this batch was written |
//! | crc | 24..28 | of bytes 0..24, seeded by the salt |
//!
//! | op record | bytes | |
//! | --- | --- | --- |
//! | crc | 0..4 | of bytes 4.., seeded by that of the previous record or the batch header |
//! | record bytes | 4..8 | of the whole record, these included |
//! | seq | 8..16 | of the op in its workspace |
//! | timestamp | 16..24 | Unix microseconds |
//! | workspace id bytes | 24..26 | |
//! | key bytes | 26..28 | |
//! | kind | 28 | 1: an op |
//! | workspace id, key, value | 29.. | UTF-8; the value is the JSON text as sent, up to the end |
//!
//! Zeros after the last batch of the last segment are not part of the log: the file was filled with
//! them in advance ([`super::blocks`]).
//!
//! A *position* counts the bytes of batches over the whole log of a shard: `first position +
//! (offset in the file - 64)`.
//!
//! # Assumptions about the disk
//!
//! 1. Bytes written before an `fdatasync` that returned success, or by a write with `RWF_DSYNC`,
//!    are on disk, with the file's length, and stay there.
//! 2. Of the bytes written since, a power cut leaves any subset of the sectors of [`SECTOR_BYTES`].
//!    A sector is written completely or not at all: disks promise that for their own sectors, which
//!    are no smaller (`NVMe`: "Atomic Write Unit Power Fail"), and answer a read of a broken one
//!    with an error. A sector that was not written holds its previous content, followed by zeros,
//!    or lies past the end of the file. A file system that shows blocks of other files there (ext4
//!    with `data=writeback`) breaks this: then a start reports a torn tail as damage, and a repair
//!    cuts it off.
//! 3. A write does not harm neighbouring bytes, not even in the same sector: it writes again what
//!    was there. If a disk breaks this, the damage is found as described below, and nothing altered
//!    is served.
//! 4. A rename followed by an `fsync` of the folder that returned success is complete and stays.
//!    Before that, a crash may undo it, and any of the removals since, independently of each other.
//!
//! # What a crash can leave
//!
//! The writer keeps four rules. A segment gets its final name after its header is on disk. A
//! segment is completely on disk before the next one is created. A file that was cut, or that had a
//! failed write or sync, is never appended to. A clean stop writes and syncs an empty batch, which
//! *seals* everything before it.
//!
//! - **Between commits.** All batches are intact. Nothing is cut.
//! - **In a write or before its sync, the process killed.** The kernel has a prefix of the last
//!   batch, and the file ends with it; where it was filled ahead, any subset of the sectors, as in
//!   a power cut.
//! - **The same, with a power cut.** Any subset of the sectors of the unsynced batches is there:
//!   intact records may follow bad ones, even intact batches, if several were written without a
//!   sync (`--durability interval` or `none`).
//! - **In the cut that follows.** Either length of the file; the start after it does it again.
//! - **While a segment is created.** A file whose name ends in `.new`, which is removed at the next
//!   start; or a segment without batches.
//! - **In a compaction.** Segments `a` to `b` become one: it is written under the name of `b` with
//!   `.new`, sealed, synced and renamed over `b`; the folder is synced; only then are `a` up to the
//!   one before `b` removed. Before the rename, and if a crash undoes it, the old segments are
//!   intact and the `.new` file is removed at the next start. After it, the header of the new `b`
//!   marks those of the others that still exist as *replaced*: they are not read, and the next
//!   start removes them.
//!
//! A compacted segment is completely on disk before it has its name, and its last batch is empty.
//! So any bad byte in it is damage, and so is a missing last batch. Of the ops in the segments that
//! it was made from, it holds at least each one that no op in any closed segment of the data
//! directory supersedes. The op with a workspace's largest seq is the last change of its key, so it
//! is among these, and the seq of a workspace continues from it.
//!
//! So a valid record after a bad one proves nothing: after a power cut it is ordinary. Damage is
//! proven by bad bytes that had been *synced*, and each batch header records how far the log was
//! synced before it. Hence the rule for the first bad byte, at position `p`, of a shard's last
//! segment: if any later batch header is valid at its exact offset and its durable position is
//! greater than `p`, then bytes that were on disk were lost or altered, and that is **damage**
//! ([`damage_behind`]).
//!
//! The last batch has no later header to vouch for it, and is often one that was shown to every
//! client. But an interrupted write *lacks* something: the batch that holds the first bad byte was
//! handed over in one piece, so all of it should be there, and a byte that is not as it was written
//! is in a sector that was not written. So, by assumption 2, the file ends within the batch, or one
//! sector's part of the batch is all zeros. Records contain no such run of zeros: a zero byte
//! (U+0000) is possible only in a key, and each key is followed by a JSON value. If neither is the
//! case ([`is_interrupted`]), a write was complete and has been altered since, and that is
//! **damage** too. With a bad batch header, the length of the batch is unknown, so only the header
//! is checked.
//!
//! Otherwise it is a **torn tail**, and it is cut off. Nothing proves that the bytes after `p` were
//! ever promised to a client. What is valid before `p` is kept, even part of a batch: each op is
//! complete in itself.
//!
//! A crash never makes such a header a false proof: the headers of unsynced batches were written
//! before the sync that would move the durable position past the unsynced part, so their durable
//! position is at or below its beginning, and so at or below `p`.
//!
//! In an earlier segment, any bad byte is damage, since the segment was synced before the next one
//! began. The file may end between two records of a batch only if a recovery has cut it there, and
//! the next segment vouches for that: its first position is exactly the end of the previous one.
//! Where the two differ, something is missing, and that is damage. A record or a header with a
//! correct checksum and invalid content was written that way; no crash does that, and it is damage
//! everywhere.
//!
//! # What is not found
//!
//! A sector of the last batches that became zeros, in a log that was not stopped cleanly, if no
//! later batch proves that they were synced: this cannot be told from a torn tail, and the log is
//! cut before it, without a message if only zeros follow. An altered byte there, if the batch
//! begins or ends a byte or two from the edge of a sector and its checksum happens to have zeros up
//! to that edge, or in the batch of a key with hundreds of U+0000. Segments that vanished from the
//! end of a folder, unless all of them did (`meta.json` records which shards have begun,
//! [`super::directory`]), and a last segment that lost exactly its last batches or records. An
//! alteration of more than 32 consecutive bits passes a checksum once in 2^32 times.
//!
//! Architecture invariant: no file, no clock, no randomness in here. Bytes from disk never panic.

use thiserror::Error;

mod header;

#[cfg(test)]
mod tests;

pub use header::{Compacted, FORMAT_VERSION, HeaderError, SEGMENT_HEADER_BYTES, SegmentHeader};

use super::position::LogPosition;
use crate::seq::Seq;
use header::{field, u16_at, u32_at, u64_at};

/// The length of a batch's header, and of an empty batch.
pub const BATCH_HEADER_BYTES: usize = 28;
/// The smallest piece of a disk that is written whole or not at all. Larger ones are multiples of
/// it.
pub const SECTOR_BYTES: usize = 512;

const BATCH_MAGIC: [u8; 4] = *b"\xFFEPB";
pub(super) const BATCH_CRC_AT: usize = 24;

const _: () = assert!(
    BATCH_CRC_AT + 4 == BATCH_HEADER_BYTES,
    "the crc ends the batch header"
);

/// The length of an op record without its three texts.
pub const OP_HEADER_BYTES: usize = 29;

pub(super) const RECORD_CRC_BYTES: usize = 4;
const KIND_OP: u8 = 1;

/// An op as it is logged. Its texts are borrowed: from a message when it is written, from a segment
/// when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedOp<'a> {
    /// The workspace's id.
    pub workspace: &'a str,
    /// The key that was written.
    pub key: &'a str,
    /// The value's JSON text, as it was sent.
    pub value: &'a str,
    /// The op's place in the order of its workspace.
    pub seq: Seq,
    /// The client's timestamp, in Unix microseconds.
    pub timestamp: u64,
}

impl LoggedOp<'_> {
    /// Returns whether this op supersedes another op of its key: the rule of replay, where ops come
    /// in any order. On equal timestamps the op that was applied first stays, which is the one with
    /// the lower seq.
    #[must_use]
    pub fn wins_over(&self, timestamp: u64, seq: Seq) -> bool {
        self.timestamp > timestamp || (self.timestamp == timestamp && self.seq < seq)
    }
}

/// The header of a batch.
pub(super) struct BatchHeader {
    /// The length of all its records.
    pub payload_bytes: u32,
    /// The log position of its first byte.
    pub position: LogPosition,
    /// Everything before it was on disk when the batch was handed to the kernel.
    pub durable_position: LogPosition,
}

impl BatchHeader {
    /// Writes the header and returns its checksum.
    fn encode(&self, bytes: &mut [u8; BATCH_HEADER_BYTES], salt: u32) -> u32 {
        bytes[0..4].copy_from_slice(&BATCH_MAGIC);
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable_position.get().to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &bytes[..BATCH_CRC_AT]);
        bytes[BATCH_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads the header that `bytes` begin with, if its magic and its checksum are right.
    fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
        let bytes: &[u8; BATCH_HEADER_BYTES] = bytes.first_chunk()?;
        if field(bytes, 0) != BATCH_MAGIC
            || u32_at(bytes, BATCH_CRC_AT) != crc32c::crc32c_append(salt, &bytes[..BATCH_CRC_AT])
        {
            return None;
        }
        Some(Self {
            payload_bytes: u32_at(bytes, 4),
            position: LogPosition::new(u64_at(bytes, 8)),
            durable_position: LogPosition::new(u64_at(bytes, 16)),
        })
    }
}

/// Returns the length of an op's record.
#[must_use]
pub fn op_bytes(op: &LoggedOp<'_>) -> usize {
    OP_HEADER_BYTES + op.workspace.len() + op.key.len() + op.value.len()
}

/// Empties `batch` and leaves room for the header that [`seal_batch`] writes.
pub fn begin_batch(batch: &mut Vec<u8>) {
    batch.clear();
    batch.resize(BATCH_HEADER_BYTES, 0);
}

/// Appends an op to a batch that was begun. Its checksum stays zero until [`seal_batch`], because
/// the checksum chain depends on the position, which is not known yet.
///
/// # Panics
/// If an id or a key is longer than 64 KiB or the whole op than 4 GiB, which the bounds in
/// [`crate::limits`] rule out.
pub fn push_op(batch: &mut Vec<u8>, op: &LoggedOp<'_>) {
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
    header[28] = KIND_OP;
    batch.reserve(bytes);
    batch.extend_from_slice(&header);
    batch.extend_from_slice(op.workspace.as_bytes());
    batch.extend_from_slice(op.key.as_bytes());
    batch.extend_from_slice(op.value.as_bytes());
}

/// Fills in the header and the chain of checksums in one pass: after it the batch can be written at
/// `position`. A batch may be sealed again with other positions; only the last ones count. Without
/// ops it is the empty batch of a clean stop.
///
/// # Panics
/// If `batch` was not made by [`begin_batch`] and [`push_op`], holds 4 GiB or more, or would itself
/// be durable.
pub fn seal_batch(
    batch: &mut [u8],
    salt: u32,
    position: LogPosition,
    durable_position: LogPosition,
) {
    assert!(
        durable_position <= position,
        "a batch is not on disk before it is written"
    );
    let (header, mut rest) = batch
        .split_first_chunk_mut::<BATCH_HEADER_BYTES>()
        .expect("begin_batch left room for the header");
    let payload_bytes = u32::try_from(rest.len()).expect("a batch is far smaller than 4 GiB");
    let mut crc = BatchHeader {
        payload_bytes,
        position,
        durable_position,
    }
    .encode(header, salt);
    while !rest.is_empty() {
        let record_bytes = rest
            .get(4..8)
            .map_or(0, |length| u32_at(length, 0) as usize);
        assert!(
            (OP_HEADER_BYTES..=rest.len()).contains(&record_bytes),
            "push_op wrote every record"
        );
        let (record, behind) = rest.split_at_mut(record_bytes);
        let (record_crc, body) = record.split_at_mut(RECORD_CRC_BYTES);
        crc = crc32c::crc32c_append(crc, body);
        record_crc.copy_from_slice(&crc.to_le_bytes());
        rest = behind;
    }
}

/// The first bad byte of a segment, as the start of the record or batch header that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{kind}")]
pub struct Fault {
    /// The offset in the file. All bytes before it are valid.
    pub offset: usize,
    /// The kind of fault.
    pub kind: FaultKind,
}

/// The kinds of [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FaultKind {
    /// The file ends between two records of a batch: what the cut of a torn tail leaves.
    #[error("the file ends inside a batch")]
    Cut,
    /// There is no complete batch header where one must begin.
    #[error("there is no valid batch header")]
    Batch,
    /// A record that runs over its batch or the file, or whose checksum is wrong.
    #[error("the length or the checksum of a record is wrong")]
    Record,
    /// The checksum is right, the content is not: this was written so, and no crash does that.
    #[error("the checksum is right, but {0}")]
    Content(&'static str),
}

/// Reads the ops of one segment in order, and checks each before returning it. It ends after the
/// first [`Fault`].
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    pub(super) header: SegmentHeader,
    pub(super) salt: u32,
    /// The bytes of the file from the offset `base` on.
    pub(super) bytes: &'a [u8],
    pub(super) base: usize,
    cursor: ReadCursor,
    ended: bool,
}

/// How far a [`Reader`] has read, so that another one can continue from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadCursor {
    /// In the file. Invariant: `offset <= batch_end`, and all bytes before `offset` are valid.
    offset: usize,
    pub(super) batch_end: usize,
    /// The last link of the chain of checksums.
    pub(super) crc: u32,
    /// The last batch that was entered is empty.
    is_sealed: bool,
}

impl ReadCursor {
    /// Behind the segment header.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            offset: SEGMENT_HEADER_BYTES,
            batch_end: SEGMENT_HEADER_BYTES,
            crc: 0,
            is_sealed: false,
        }
    }

    pub(super) fn at(offset: usize, batch_end: usize, crc: u32) -> Self {
        Self {
            offset,
            batch_end,
            crc,
            is_sealed: false,
        }
    }

    /// Returns the offset of the next unread byte in the file: after the last valid record or batch
    /// header.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Returns whether the last batch before the offset is the empty one that seals everything
    /// before it.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.is_sealed
    }
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, a whole segment including the header that `header` was decoded from.
    #[must_use]
    pub fn new(header: &SegmentHeader, bytes: &'a [u8]) -> Self {
        Self {
            ended: bytes.len() <= SEGMENT_HEADER_BYTES,
            ..Self::resume(header, bytes, 0, ReadCursor::begin())
        }
    }

    /// Continues at `cursor` with part of a segment: `bytes` begin at the offset `base` of the
    /// file, at or before the cursor. If they end before the file does, the last fault may only be
    /// due to the missing rest.
    ///
    /// # Panics
    /// When the cursor is not within the bytes.
    #[must_use]
    pub fn resume(
        header: &SegmentHeader,
        bytes: &'a [u8],
        base: usize,
        cursor: ReadCursor,
    ) -> Self {
        Self {
            header: *header,
            salt: header.salt(),
            bytes,
            base,
            cursor,
            ended: false,
        }
    }

    /// Returns how far it has read.
    #[must_use]
    pub fn cursor(&self) -> ReadCursor {
        self.cursor
    }

    /// Returns the offset of the next unread byte in the file: after the last valid record or batch
    /// header.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.cursor.offset
    }

    /// Goes on at another cursor, also after a fault.
    pub(super) fn go_to(&mut self, cursor: ReadCursor) {
        self.cursor = cursor;
        self.ended = false;
    }

    pub(super) fn unread(&self) -> &'a [u8] {
        &self.bytes[self.cursor.offset - self.base..]
    }

    pub(super) fn read(&mut self) -> Result<Option<LoggedOp<'a>>, Fault> {
        // Batches without ops are legal anywhere.
        while self.cursor.offset == self.cursor.batch_end {
            if self.unread().is_empty() {
                return Ok(None);
            }
            self.enter_batch()?;
        }
        self.read_op().map(Some)
    }

    fn enter_batch(&mut self) -> Result<(), Fault> {
        let bytes = self.unread();
        let header = BatchHeader::decode(bytes, self.salt).ok_or(self.fault(FaultKind::Batch))?;
        if header.position != self.header.position(self.cursor.offset as u64) {
            return Err(self.fault(FaultKind::Content("this batch belongs at another position")));
        }
        if header.durable_position > header.position {
            return Err(self.fault(FaultKind::Content(
                "this batch was durable before it was written",
            )));
        }
        let offset = self.cursor.offset + BATCH_HEADER_BYTES;
        self.cursor = ReadCursor {
            offset,
            batch_end: offset.saturating_add(header.payload_bytes as usize),
            crc: u32_at(bytes, BATCH_CRC_AT),
            is_sealed: header.payload_bytes == 0,
        };
        Ok(())
    }

    pub(super) fn read_op(&mut self) -> Result<LoggedOp<'a>, Fault> {
        let ReadCursor {
            offset, batch_end, ..
        } = self.cursor;
        let unread = self.unread();
        let rest = &unread[..unread.len().min(batch_end - offset)];
        if rest.is_empty() {
            return Err(self.fault(FaultKind::Cut));
        }
        let bad_record = self.fault(FaultKind::Record);
        let header: &[u8; OP_HEADER_BYTES] = rest.first_chunk().ok_or(bad_record)?;
        let record = rest.get(..u32_at(header, 4) as usize).ok_or(bad_record)?;
        let texts = record.get(OP_HEADER_BYTES..).ok_or(bad_record)?;
        let crc = crc32c::crc32c_append(self.cursor.crc, &record[RECORD_CRC_BYTES..]);
        if crc != u32_at(header, 0) {
            return Err(bad_record);
        }
        let op = decode_op(header, texts).map_err(|what| self.fault(FaultKind::Content(what)))?;
        self.cursor.crc = crc;
        self.cursor.offset += record.len();
        Ok(op)
    }

    fn fault(&self, kind: FaultKind) -> Fault {
        Fault {
            offset: self.cursor.offset,
            kind,
        }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<LoggedOp<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.read().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

impl std::iter::FusedIterator for Reader<'_> {}

/// Looks for proof that the fault at `fault_offset` is in bytes that were on disk: returns the
/// offset of a later batch header that is valid at its place and was written after them. `None`:
/// the fault is a torn tail, if the segment is the last one and the fault is not a
/// [`FaultKind::Content`]. `bytes` are those of the file from the fault on.
///
/// Linear in the bytes: one byte is checked at each offset, and a checksum of 24 bytes where the
/// magic is found.
#[must_use]
pub fn damage_behind(header: &SegmentHeader, bytes: &[u8], fault_offset: usize) -> Option<usize> {
    let fault_position = header.position(fault_offset as u64);
    batches(header, bytes, fault_offset)
        .find(|(_, batch)| batch.durable_position > fault_position)
        .map(|(offset, _)| offset)
}

/// Returns whether an interrupted write can have left the bytes at `cursor`, where reading has met
/// a fault: the file ends before the batch does, or one sector's part of the batch is all zeros.
/// `bytes` are those of the file from the cursor on.
#[must_use]
pub fn is_interrupted(cursor: ReadCursor, bytes: &[u8]) -> bool {
    let unread_bytes = match cursor.batch_end - cursor.offset {
        0 => BATCH_HEADER_BYTES,
        unread_bytes => unread_bytes,
    };
    let Some(unread) = bytes.get(..unread_bytes) else {
        return true;
    };
    misses_sector(cursor.offset, unread)
}

/// Returns whether one sector's part of these bytes is all zeros. They begin at `offset` of their
/// file.
fn misses_sector(offset: usize, mut bytes: &[u8]) -> bool {
    // Sectors are counted from the start of the file, so the first part may be shorter.
    let mut part_bytes = SECTOR_BYTES - offset % SECTOR_BYTES;
    while !bytes.is_empty() {
        let (part, rest) = bytes.split_at(part_bytes.min(bytes.len()));
        if part.iter().all(|byte| *byte == 0) {
            return true;
        }
        (bytes, part_bytes) = (rest, SECTOR_BYTES);
    }
    false
}

/// Returns the batch headers that are valid at their very offset, and these offsets. `bytes` are
/// those of the file from the offset `base` on.
pub(super) fn batches(
    header: &SegmentHeader,
    bytes: &[u8],
    base: usize,
) -> impl Iterator<Item = (usize, BatchHeader)> {
    let salt = header.salt();
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let behind = bytes.get(from..)?;
            let at = from + behind.iter().position(|&byte| byte == BATCH_MAGIC[0])?;
            from = at + 1;
            if let Some(batch) = BatchHeader::decode(&bytes[at..], salt)
                && batch.position == header.position((base + at) as u64)
            {
                return Some((base + at, batch));
            }
        }
    })
}

fn decode_op<'a>(
    header: &[u8; OP_HEADER_BYTES],
    texts: &'a [u8],
) -> Result<LoggedOp<'a>, &'static str> {
    if header[28] != KIND_OP {
        return Err("the kind of this record is unknown");
    }
    let overrun = "the texts of this record extend past its end";
    let (workspace, texts) = texts
        .split_at_checked(u16_at(header, 24).into())
        .ok_or(overrun)?;
    let (key, value) = texts
        .split_at_checked(u16_at(header, 26).into())
        .ok_or(overrun)?;
    let text = |bytes| str::from_utf8(bytes).map_err(|_| "a text of this record is not UTF-8");
    Ok(LoggedOp {
        workspace: text(workspace)?,
        key: text(key)?,
        value: text(value)?,
        seq: Seq::new(u64_at(header, 8)),
        timestamp: u64_at(header, 16),
    })
}
