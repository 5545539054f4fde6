//! The format of the log: how ops are encoded, and how the bytes are checked when they are read
//! back.
//!
//! The log of a shard is a sequence of *segments*, which are files written from front to back. A
//! segment is a header followed by *batches*. A batch is what one group commit writes: a header,
//! then one record for each op. All numbers are little-endian, and all checksums are CRC-32C.
//!
//! # Byte tables
//!
//! | segment header | bytes | |
//! | --- | --- | --- |
//! | magic | 0..8 | `89 45 50 4C 4F 47 0D 0A`; the same in every version, as is the version field |
//! | format version | 8..10 | [`FORMAT_VERSION`] in new segments; 1 is read, too |
//! | kind | 10..12 | 0: written by its shard; 1: *compacted*, made from other segments |
//! | shard | 12..16 | the shard that owns the folder |
//! | epoch | 16..32 | of the data directory; segments from other directories are refused |
//! | index | 32..40 | in the shard's sequence of segments; the number in the file name |
//! | first position | 40..48 | the log position of the first batch |
//! | end position | 48..56 | if compacted: where the next segment begins; otherwise zero |
//! | replaced | 56..60 | if compacted: number of earlier indexes it covers; otherwise zero |
//! | crc | 60..64 | of bytes 0..60: the segment's *salt* |
//!
//! | batch header | bytes | |
//! | --- | --- | --- |
//! | magic | 0..4 | `FF 45 50 42`: never in a key or a value, since no UTF-8 text holds FF |
//! | payload bytes | 4..8 | of all records of the batch |
//! | position | 8..16 | the log position of this header's first byte |
//! | durable position | 16..24 | everything before it was on disk when this batch was written |
//! | crc | 24..28 | of bytes 0..24, seeded by the salt |
//!
//! | op record | bytes | |
//! | --- | --- | --- |
//! | crc | 0..4 | of bytes 4.., seeded by the crc of the previous record or the batch header |
//! | record bytes | 4..8 | length of the whole record, including this field and the crc |
//! | seq | 8..16 | sequence number of the op in its workspace |
//! | timestamp | 16..24 | Unix microseconds |
//! | workspace id bytes | 24..26 | |
//! | key bytes | 26..28 | |
//! | kind | 28 | see the next table |
//! | extra field | 29.. | its length depends on the kind |
//! | workspace id, key, value | then | UTF-8; the value is the JSON text as sent |
//!
//! | kind | | extra field |
//! | --- | --- | --- |
//! | 1 | a write | none |
//! | 2 | a delete, without a value | 8 bytes: the server's time of the delete, Unix microseconds |
//! | 3 | a write that expires | 8 bytes: the time at which it expires, Unix microseconds |
//! | 4 | a *floor*: tombstones of the workspace were dropped | 8 bytes: their greatest seq |
//! | 5 | a *generation* of the shard began | 8 bytes: its id; 4 bytes: the number of shards |
//!
//! A write has a value, and a write and a delete have a workspace id and a key. A floor has an
//! empty key; its seq is that of the workspace's last op, and its timestamp is the greatest one
//! among the dropped tombstones. A generation has an empty workspace id, the shard's number in
//! decimal as its key, and its own number, from 1, as seq and timestamp. It has 0 shards if it was
//! begun by a repair, or by a server that sends ops before they are durable. So floors and
//! generations are records of keys that no client can write. Format version 1 has only kind 1. A
//! record that breaks one of these rules has invalid content.
//!
//! Zeros after the last batch of the last segment are not part of the log; they fill the file in
//! advance ([`super::blocks`]).
//!
//! A *position* counts the bytes of batches across the whole log of a shard: `first position +
//! (offset in the file - 64)`.
//!
//! # Assumptions about the disk
//!
//! 1. Bytes written before an `fdatasync` that returned success, or by a write with `RWF_DSYNC`,
//!    are on disk, as is the file's length, and stay there.
//! 2. Of the bytes written since then, a power cut can leave any subset of the sectors of
//!    [`SECTOR_BYTES`]. A sector is written completely or not at all: disks guarantee this for
//!    their own sectors, which are at least that large (`NVMe`: "Atomic Write Unit Power Fail"),
//!    and return an error when a damaged one is read. A sector that was not written still holds its
//!    previous content, followed by zeros, or lies past the end of the file. A file system that
//!    exposes blocks of other files there (ext4 with `data=writeback`) violates this: the server
//!    then reports a torn tail as damage at startup, and a repair cuts it off.
//! 3. A write does not corrupt neighbouring bytes, even in the same sector: they are written back
//!    unchanged. If a disk violates this, the damage is detected as described below, and no altered
//!    data is served.
//! 4. A rename is complete and permanent once an `fsync` of the folder has returned success. Until
//!    then, a crash may undo it and any later removals, each independently of the others.
//!
//! # What a crash can leave
//!
//! The writer follows four rules. A segment gets its final name only after its header is on disk. A
//! segment is completely on disk before the next one is created. A file that has been cut, or on
//! which a write or sync has failed, is never appended to again. A clean stop writes and syncs an
//! empty batch, which *seals* everything before it.
//!
//! - **Between commits.** All batches are intact, and nothing is cut.
//! - **During a write or before its sync, if the process is killed.** The kernel has a prefix of
//!   the last batch, and the file ends with it. If the file was filled in advance, any subset of
//!   the sectors may have been written, as after a power cut.
//! - **During a write or before its sync, in a power cut.** Any subset of the sectors of the
//!   unsynced batches may have been written: intact records may follow bad ones, and so may intact
//!   batches if several were written without a sync (`--durability interval` or `none`).
//! - **During the cut that follows.** The file has either its old or its new length; the next
//!   start cuts it again.
//! - **While a segment is being created.** There is either a file whose name ends in `.new`, which
//!   is removed at the next start, or a segment without batches.
//! - **During a compaction.** Segments `a` to `b` are merged into one, which is written under the
//!   name of `b` with `.new`, sealed, synced and renamed over `b`; the folder is synced; only then
//!   are the segments from `a` up to the one before `b` removed. Before the rename, and if a crash
//!   undoes it, the old segments are intact and the `.new` file is removed at the next start. After
//!   the rename, the header of the new `b` marks any of the other segments that still exist as
//!   *replaced*: they are not read, and the next start removes them.
//!
//! A compacted segment is completely on disk before it gets its name, and its last batch is empty.
//! So any bad byte in it is damage, as is a missing last batch. Of the ops in the segments that it
//! was made from, it contains at least those that no op in any closed segment of the data directory
//! supersedes. The op with a workspace's largest seq is the last change to its key, so it is always
//! kept, and the workspace's seqs continue from it.
//!
//! A valid record after a bad one therefore proves nothing: it is normal after a power cut. Bad
//! bytes prove damage only if they had been *synced*, and each batch header records how far the log
//! had been synced before it. This yields the rule for the first bad byte of a shard's last
//! segment, at position `p`: if any later batch header is valid at its exact offset and its durable
//! position is greater than `p`, then bytes that were on disk were lost or altered, and that is
//! **damage** ([`damage_behind`]).
//!
//! For the last batch, there is no later header that could prove anything, although its ops have
//! often been sent to all clients. But an interrupted write always leaves something *missing*: the
//! batch that holds the first bad byte was handed to the kernel in one piece, so all of it should
//! be there, and any byte that differs from what was written is in a sector that was not written.
//! So, by assumption 2, either the file ends within the batch, or one sector's part of the batch is
//! all zeros. Records contain no such run of zeros: a zero byte (U+0000) is possible only in a key,
//! and each key is followed by a JSON value. If neither is the case ([`is_interrupted`]), the write
//! was complete and its bytes have been altered since, and that is also **damage**. If the batch
//! header itself is bad, the length of the batch is unknown, so only the header is checked.
//!
//! Otherwise, the bytes from `p` on are a **torn tail**, which is cut off. Nothing proves that they
//! were ever acknowledged to a client. Everything valid before `p` is kept, even part of a batch,
//! because each op is complete in itself.
//!
//! A crash never makes a later batch header a false proof: the headers of unsynced batches were
//! written before the sync that would have moved the durable position past the unsynced part. So
//! the durable positions in them are at or before the start of that part, and thus at or before
//! `p`.
//!
//! In an earlier segment, any bad byte is damage, since the segment was synced before the next one
//! was created. The file may end between two records of a batch only if a recovery cut it there,
//! and the next segment confirms that: its first position is exactly the end of the previous
//! segment. If the two differ, something is missing, and that is damage. A record or header with a
//! correct checksum but invalid content was written that way, which no crash can cause, so it is
//! damage in any segment.
//!
//! # Damage that is not detected
//!
//! Damage is not detected in the following cases. In a log that was not stopped cleanly, a sector
//! of the last batches has turned into zeros, and no later batch proves that it was synced: this is
//! indistinguishable from a torn tail, so the log is cut off before it, without a message if only
//! zeros follow. A byte of these batches was altered, and either the batch begins or ends a byte or
//! two from a sector boundary and its checksum happens to have zeros up to that boundary, or the
//! batch contains a key with hundreds of U+0000 characters. Some segments, but not all, vanished
//! from the end of a folder (`meta.json` records which shards have begun a log,
//! [`super::directory`]). The last segment was truncated exactly at the end of a batch or record.
//! Finally, a change that spans more than 32 consecutive bits passes a checksum with a probability
//! of 1 in 2^32.
//!
//! Architecture invariant: this module uses no files, no clock and no randomness, and never panics
//! because of bytes read from disk.

use thiserror::Error;

mod header;
mod op;

#[cfg(test)]
mod tests;

pub use op::{Change, EXTRA_BYTES, FloorRecord, LoggedOp, OP_HEADER_BYTES, op_bytes, push_op};

pub use header::{
    Compacted, FORMAT_VERSION, FORMAT_VERSION_MIN, HeaderError, SEGMENT_HEADER_BYTES, SegmentHeader,
};

use super::position::LogPosition;
use header::{field, u32_at, u64_at};
use op::decode_op;

/// The length of a batch's header, which is also the length of an empty batch.
pub const BATCH_HEADER_BYTES: usize = 28;
/// The smallest unit that a disk writes completely or not at all. Larger units are multiples of it.
pub const SECTOR_BYTES: usize = 512;

const BATCH_MAGIC: [u8; 4] = *b"\xFFEPB";
pub(super) const BATCH_CRC_AT: usize = 24;

const _: () = assert!(
    BATCH_CRC_AT + 4 == BATCH_HEADER_BYTES,
    "the CRC is the last field of the batch header"
);

pub(super) const RECORD_CRC_BYTES: usize = 4;

/// The header of a batch.
pub(super) struct BatchHeader {
    /// The total length of its records, in bytes.
    pub payload_bytes: u32,
    /// The log position of its first byte.
    pub position: LogPosition,
    /// The position up to which the log was on disk when the batch was handed to the kernel.
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

    /// Decodes the header at the start of `bytes`. Returns `None` if its magic or its checksum is
    /// wrong.
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

/// Empties `batch` and leaves room for the header that [`seal_batch`] writes.
pub fn begin_batch(batch: &mut Vec<u8>) {
    batch.clear();
    batch.resize(BATCH_HEADER_BYTES, 0);
}

/// Fills in the header and the chain of checksums in one pass, after which the batch can be written
/// at `position`. A batch may be sealed again with other positions; only the last ones count. A
/// batch without ops is the empty batch that a clean stop writes.
///
/// # Panics
/// If `batch` was not built with [`begin_batch`] and [`push_op`], if it is 4 GiB or longer, or if
/// `durable_position` is after `position`.
pub fn seal_batch(
    batch: &mut [u8],
    salt: u32,
    position: LogPosition,
    durable_position: LogPosition,
) {
    assert!(
        durable_position <= position,
        "a batch cannot be durable before it is written"
    );
    let (header, mut rest) = batch
        .split_first_chunk_mut::<BATCH_HEADER_BYTES>()
        .expect("begin_batch leaves room for the header");
    let payload_bytes = u32::try_from(rest.len()).expect("a batch is smaller than 4 GiB");
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
            "some records were not written by push_op"
        );
        let (record, behind) = rest.split_at_mut(record_bytes);
        let (record_crc, body) = record.split_at_mut(RECORD_CRC_BYTES);
        crc = crc32c::crc32c_append(crc, body);
        record_crc.copy_from_slice(&crc.to_le_bytes());
        rest = behind;
    }
}

/// The first fault in a segment, located by the start of the record or batch header that contains
/// it.
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
    /// The file ends between two records of a batch, as it does once a torn tail has been cut off.
    #[error("the file ends inside a batch")]
    Cut,
    /// There is no valid batch header where one must begin.
    #[error("there is no valid batch header")]
    Batch,
    /// A record extends past the end of its batch or the file, or its checksum is wrong.
    #[error("the length or the checksum of a record is wrong")]
    Record,
    /// The checksum is correct but the content is invalid: it was written that way, which no crash
    /// can cause.
    #[error("the checksum is right, but {0}")]
    Content(&'static str),
}

/// An iterator over the ops of one segment, in order. Each op is checked before it is returned, and
/// iteration ends after the first [`Fault`].
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    pub(super) header: SegmentHeader,
    pub(super) salt: u32,
    /// The file's content from the offset `base` on.
    pub(super) bytes: &'a [u8],
    pub(super) base: usize,
    cursor: ReadCursor,
    ended: bool,
}

/// The position of a [`Reader`] in its segment, from which another one can continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadCursor {
    /// An offset in the file. Invariant: `offset <= batch_end`, and all bytes before `offset` are
    /// valid.
    offset: usize,
    pub(super) batch_end: usize,
    /// The last checksum in the chain, which seeds the next one.
    pub(super) crc: u32,
    /// Whether the most recently entered batch is empty.
    is_sealed: bool,
}

impl ReadCursor {
    /// Returns the cursor right after the segment header.
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
    /// Returns a reader of `bytes`, a whole segment including the header that `header` was decoded
    /// from.
    #[must_use]
    pub fn new(header: &SegmentHeader, bytes: &'a [u8]) -> Self {
        Self {
            ended: bytes.len() <= SEGMENT_HEADER_BYTES,
            ..Self::resume(header, bytes, 0, ReadCursor::begin())
        }
    }

    /// Returns a reader that continues at `cursor` with part of a segment: `bytes` begins at the
    /// file offset `base`, which is at or before the cursor. If it ends before the file does, a
    /// fault at its end may be due only to the missing bytes.
    ///
    /// # Panics
    /// If the cursor is not within the bytes.
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

    /// Returns the current position, from which another reader can continue.
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

    /// Continues at another cursor, even after a fault.
    pub(super) fn go_to(&mut self, cursor: ReadCursor) {
        self.cursor = cursor;
        self.ended = false;
    }

    pub(super) fn unread(&self) -> &'a [u8] {
        &self.bytes[self.cursor.offset - self.base..]
    }

    pub(super) fn read(&mut self) -> Result<Option<LoggedOp<'a>>, Fault> {
        // Batches without ops are valid anywhere.
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
        let op = decode_op(self.header.format_version, header, texts)
            .map_err(|what| self.fault(FaultKind::Content(what)))?;
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

/// Searches for proof that the bytes at `fault_offset` had been on disk, and returns the offset of
/// a later batch header that is valid at its place and was written after those bytes were synced.
/// If there is none, the segment is the last one and the fault is not a [`FaultKind::Content`],
/// then [`is_interrupted`] decides whether the fault is a torn tail. `bytes` is the file's content
/// from the fault on.
///
/// Runs in linear time: it checks one byte at each offset, and a 24-byte checksum wherever it finds
/// the magic.
#[must_use]
pub fn damage_behind(header: &SegmentHeader, bytes: &[u8], fault_offset: usize) -> Option<usize> {
    let fault_position = header.position(fault_offset as u64);
    batches(header, bytes, fault_offset)
        .find(|(_, batch)| batch.durable_position > fault_position)
        .map(|(offset, _)| offset)
}

/// Returns whether an interrupted write can have left the bytes at `cursor`, where the reader found
/// a fault: the file ends before the batch does, or one sector's part of the batch is all zeros.
/// `bytes` is the file's content from the cursor on.
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

/// Returns whether one sector's part of `bytes`, which begins at `offset` in its file, is all
/// zeros.
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

/// Returns the batch headers that are valid at exactly their offsets, together with those offsets.
/// `bytes` is the file's content from the offset `base` on.
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
