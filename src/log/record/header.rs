//! The header of a segment.

use thiserror::Error;

use super::super::position::LogPosition;

/// The length of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// The format that this server writes.
pub const FORMAT_VERSION: u16 = 2;
/// The oldest format that this server reads. It reads all formats from this one on.
pub const FORMAT_VERSION_MIN: u16 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"\x89EPLOG\r\n";
const SEGMENT_CRC_AT: usize = 60;
const KIND_WRITTEN: u16 = 0;
const KIND_COMPACTED: u16 = 1;

const _: () = assert!(
    SEGMENT_CRC_AT + 4 == SEGMENT_HEADER_BYTES,
    "the CRC is the last field of the segment header"
);

/// The header of a segment: the log that it belongs to, and its place in that log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The format of the segment's records.
    pub format_version: u16,
    /// The shard that wrote it.
    pub shard: u32,
    /// The data directory's random id.
    pub epoch: [u8; 16],
    /// The segment's number in the shard's sequence of segments.
    pub index: u64,
    /// The log position of the first batch.
    pub first_position: LogPosition,
    /// The segments that this segment replaces, if it is a compacted one.
    pub compacted: Option<Compacted>,
}

/// The segments that a compacted segment replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// The number of indexes directly before its own that it also covers.
    pub replaced: u32,
    /// The log position where the replaced segments ended, although the compacted segment itself is
    /// shorter.
    pub end_position: LogPosition,
}

/// The reason why the first bytes of a file are not a valid segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The file is shorter than a header.
    #[error("it is too short to hold a segment header")]
    Short,
    /// The file does not start with the magic number of a segment.
    #[error("it does not start with the magic number of a segment")]
    Magic,
    /// The header is intact, but was written by a newer version of the server.
    #[error("it has format {0}, but this server reads {FORMAT_VERSION_MIN} to {FORMAT_VERSION}")]
    Version(u16),
    /// The header was altered.
    #[error("the checksum of the segment header is wrong")]
    Checksum,
    /// The checksum is correct, but the content is invalid.
    #[error("the content of the segment header is invalid")]
    Content,
}

impl SegmentHeader {
    /// Returns the header of a segment that a shard writes, as opposed to a compacted one.
    #[must_use]
    pub fn new(shard: u32, epoch: [u8; 16], index: u64, first_position: LogPosition) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            shard,
            epoch,
            index,
            first_position,
            compacted: None,
        }
    }

    /// Returns the first index that the segment covers.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.index
            - self
                .compacted
                .map_or(0, |compacted| compacted.replaced.into())
    }

    /// Returns the bytes of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..10].copy_from_slice(&self.format_version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.shard.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.epoch);
        bytes[32..40].copy_from_slice(&self.index.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_position.get().to_le_bytes());
        if let Some(compacted) = self.compacted {
            bytes[10..12].copy_from_slice(&KIND_COMPACTED.to_le_bytes());
            bytes[48..56].copy_from_slice(&compacted.end_position.get().to_le_bytes());
            bytes[56..60].copy_from_slice(&compacted.replaced.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..SEGMENT_CRC_AT]);
        bytes[SEGMENT_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the header of a segment; `bytes` may be longer than the header.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let bytes: &[u8; SEGMENT_HEADER_BYTES] = bytes.first_chunk().ok_or(HeaderError::Short)?;
        if field(bytes, 0) != SEGMENT_MAGIC {
            return Err(HeaderError::Magic);
        }
        // The checksum is checked first, so that a flipped bit in the version is not reported as a
        // file from a newer server.
        if u32_at(bytes, SEGMENT_CRC_AT) != crc32c::crc32c(&bytes[..SEGMENT_CRC_AT]) {
            return Err(HeaderError::Checksum);
        }
        let format_version = u16_at(bytes, 8);
        if format_version > FORMAT_VERSION {
            return Err(HeaderError::Version(format_version));
        }
        if format_version < FORMAT_VERSION_MIN {
            return Err(HeaderError::Content);
        }
        let position_at = |at| LogPosition::new(u64_at(bytes, at));
        let (index, first_position) = (u64_at(bytes, 32), position_at(40));
        let (end_position, replaced) = (position_at(48), u32_at(bytes, 56));
        let compacted = match u16_at(bytes, 10) {
            KIND_WRITTEN if (end_position, replaced) == (LogPosition::START, 0) => None,
            KIND_COMPACTED if first_position <= end_position && u64::from(replaced) < index => {
                Some(Compacted {
                    replaced,
                    end_position,
                })
            }
            _ => return Err(HeaderError::Content),
        };
        Ok(Self {
            format_version,
            shard: u32_at(bytes, 12),
            epoch: field(bytes, 16),
            index,
            first_position,
            compacted,
        })
    }

    /// Returns the checksum that seeds every batch header, so that a batch of another segment is
    /// never accepted as one of this segment.
    #[must_use]
    pub fn salt(&self) -> u32 {
        u32_at(&self.encode(), SEGMENT_CRC_AT)
    }

    /// Returns the log position of an offset in this segment's file, at or after the end of the
    /// header.
    #[must_use]
    pub fn position(&self, offset: u64) -> LogPosition {
        self.first_position
            .advance(offset.saturating_sub(SEGMENT_HEADER_BYTES as u64))
    }

    /// Returns the offset of a log position in this segment's file; `None` if the position is
    /// before the segment, or the offset does not fit a `usize`.
    #[must_use]
    pub fn offset(&self, position: LogPosition) -> Option<usize> {
        let after_header = usize::try_from(position.bytes_since(self.first_position)?).ok()?;
        after_header.checked_add(SEGMENT_HEADER_BYTES)
    }
}

// ---- little-endian numbers ----

/// Returns the `N` bytes at `at`. The caller must have checked that they exist.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..]
        .first_chunk()
        .expect("the caller has checked the length")
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}
