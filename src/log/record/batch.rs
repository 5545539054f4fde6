//! The header of a batch.

use super::super::position::LogPosition;
use super::number::{field, u32_at, u64_at};

/// The length of a batch's header, and of an empty batch.
pub const BATCH_HEADER_BYTES: usize = 28;
/// What every batch begins with.
pub const BATCH_MAGIC: [u8; 4] = *b"\xFFEPB";
/// Where its checksum is.
pub const BATCH_CRC_AT: usize = 24;

const _: () = assert!(
    BATCH_CRC_AT + 4 == BATCH_HEADER_BYTES,
    "the crc ends the batch header"
);

/// A batch's header.
pub struct BatchHeader {
    /// Of all its records.
    pub payload_bytes: u32,
    /// The log position of its first byte.
    pub position: LogPosition,
    /// Everything before it was on disk when the batch was handed to the kernel.
    pub durable_position: LogPosition,
}

impl BatchHeader {
    /// Writes the header and returns its checksum.
    pub fn encode(&self, bytes: &mut [u8; BATCH_HEADER_BYTES], salt: u32) -> u32 {
        bytes[0..4].copy_from_slice(&BATCH_MAGIC);
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable_position.get().to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &bytes[..BATCH_CRC_AT]);
        bytes[BATCH_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// The header that `bytes` begin with, if its magic and its checksum are right.
    pub fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
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
