//! What an interrupted write leaves: whole sectors that were not written.

/// The smallest piece of a disk that is written whole or not at all. Larger ones are multiples of
/// it.
pub const SECTOR_BYTES: usize = 512;

/// Whether all of these bytes that are in one sector are zeros. They begin at `offset` of their
/// file.
pub fn misses_sector(offset: usize, mut bytes: &[u8]) -> bool {
    // The sectors are those of the file: the first part is shorter where the bytes do not begin at
    // their edge.
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
