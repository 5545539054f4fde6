//! Turns appends of any length into writes of whole blocks, as required for writes that bypass the
//! page cache (open(2), `O_DIRECT`).
//!
//! An append may begin and end anywhere in a block. The block in which it begins is rewritten, with
//! the bytes before the append unchanged, as the page cache would do. The block in which it ends is
//! padded with zeros.
//!
//! ```text
//!              ┌ end of what was appended before
//!   ── block ──┼────── block ──────┬────── block ──────┬── zeros that were claimed ahead ──
//!      │ tail  │ the append ...            │ zeros      │
//!      └────────────── one write ──────────────────────┘
//! ```
//!
//! A write that extends the file makes the file system commit its journal, whereas a write over
//! existing bytes does not. So a write past the end of the file also appends some zeros, which
//! later writes can overwrite.

use std::io;

use aligned_vec::{AVec, ConstAlign};

use super::record::SEGMENT_HEADER_BYTES;

/// The length and alignment of a block, in bytes: a multiple of what common disks require.
pub const BLOCK_BYTES: usize = 4096;
/// Appends of at least this many bytes add no zeros: extending the file adds comparatively little
/// to their cost, and the zeros would only be overwritten.
const LONG_BYTES: usize = 64 * 1024;
/// The largest buffer that is kept for the next write, in bytes.
const SPARE_BYTES: usize = 512 * 1024;

/// A byte buffer that is aligned like a block.
pub type Blocks = AVec<u8, ConstAlign<BLOCK_BYTES>>;

/// A write of whole blocks.
#[derive(Debug)]
pub struct BlockWrite {
    /// The offset in the file; a multiple of [`BLOCK_BYTES`], as is the length of `blocks`.
    pub offset: u64,
    /// The bytes to write.
    pub blocks: Blocks,
}

/// Turns the appends to one file into writes of whole blocks.
#[derive(Debug)]
pub struct BlockWriter {
    /// The offset of the next append.
    end: u64,
    /// The bytes that precede `end` in the same block.
    tail: Vec<u8>,
    /// The offset up to which the file is known to be filled in advance.
    filled_end: u64,
    /// The file grows to a multiple of this many bytes.
    fill_bytes: u64,
    /// The bytes being appended, and how many of them have been written so far.
    appended: Option<(Vec<u8>, usize)>,
    spare: Blocks,
}

impl BlockWriter {
    /// Returns a writer for a file that contains only this header. The file grows by `fill_bytes`
    /// at a time.
    ///
    /// # Panics
    /// If `fill_bytes` is zero or not a multiple of [`BLOCK_BYTES`].
    #[must_use]
    pub fn new(header: &[u8; SEGMENT_HEADER_BYTES], fill_bytes: u64) -> Self {
        assert!(
            fill_bytes > 0 && fill_bytes.is_multiple_of(BLOCK_BYTES as u64),
            "the file end is not at a block boundary"
        );
        Self {
            end: header.len() as u64,
            tail: header.to_vec(),
            filled_end: 0,
            fill_bytes,
            appended: None,
            spare: Blocks::new(BLOCK_BYTES),
        }
    }

    /// Returns the write that appends `bytes[from..]` at `offset`.
    ///
    /// # Panics
    /// If `offset` is not the end of the previous append, there is nothing to append, or another
    /// write is in progress.
    pub fn begin(&mut self, bytes: Vec<u8>, from: usize, offset: u64) -> BlockWrite {
        assert!(
            offset == self.end && from < bytes.len() && self.appended.is_none(),
            "the append does not start at the end"
        );
        let start = self.end - self.tail.len() as u64;
        let mut blocks = std::mem::replace(&mut self.spare, Blocks::new(BLOCK_BYTES));
        blocks.clear();
        blocks.extend_from_slice(&self.tail);
        blocks.extend_from_slice(&bytes[from..]);
        let end = start + blocks.len() as u64;
        let is_growing = end > self.filled_end && bytes.len() - from < LONG_BYTES;
        let unit = if is_growing {
            self.fill_bytes
        } else {
            BLOCK_BYTES as u64
        };
        let length = end.next_multiple_of(unit) - start;
        blocks.resize(
            usize::try_from(length).expect("the length fits in memory"),
            0,
        );
        self.appended = Some((bytes, from));
        BlockWrite {
            offset: start,
            blocks,
        }
    }

    /// Completes a write; `outcome` is the number of bytes of the blocks that were written. Returns
    /// the bytes of the append and how many of them were written. If none were, the error is
    /// `WriteZero`.
    ///
    /// # Panics
    /// If no write is in progress.
    pub fn finish(
        &mut self,
        blocks: Blocks,
        outcome: io::Result<usize>,
    ) -> (Vec<u8>, io::Result<usize>) {
        let (bytes, from) = self.appended.take().expect("a write is in flight");
        let outcome = outcome.and_then(|count| match self.took(&bytes[from..], count) {
            // The write only repeated bytes that were already in the file, so the disk has no room
            // for more.
            0 => Err(io::ErrorKind::WriteZero.into()),
            count => Ok(count),
        });
        if blocks.capacity() <= SPARE_BYTES {
            self.spare = blocks;
        }
        (bytes, outcome)
    }

    fn took(&mut self, bytes: &[u8], blocks_count: usize) -> usize {
        let start = self.end - self.tail.len() as u64;
        self.filled_end = self.filled_end.max(start + blocks_count as u64);
        // The bytes before the append were already there.
        let count = blocks_count
            .saturating_sub(self.tail.len())
            .min(bytes.len());
        self.end += count as u64;
        let tail_bytes = usize::try_from(self.end % BLOCK_BYTES as u64).expect("less than a block");
        if count >= tail_bytes {
            self.tail.clear();
            self.tail
                .extend_from_slice(&bytes[count - tail_bytes..count]);
        } else {
            self.tail.extend_from_slice(&bytes[..count]);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: [u8; SEGMENT_HEADER_BYTES] = [b'h'; SEGMENT_HEADER_BYTES];

    /// A file that accepts only whole, aligned blocks.
    #[derive(Default)]
    struct File {
        bytes: Vec<u8>,
        grown_count: usize,
    }

    impl File {
        fn write(&mut self, write: &BlockWrite, count: usize) {
            let offset = usize::try_from(write.offset).unwrap();
            assert!(offset.is_multiple_of(BLOCK_BYTES));
            assert!(write.blocks.len().is_multiple_of(BLOCK_BYTES));
            assert!(write.blocks.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
            assert!(offset <= self.bytes.len(), "the write leaves a hole");
            let end = (offset + count).max(self.bytes.len());
            self.grown_count += usize::from(end > self.bytes.len());
            self.bytes.resize(end, 0);
            self.bytes[offset..offset + count].copy_from_slice(&write.blocks[..count]);
        }
    }

    fn append(writer: &mut BlockWriter, file: &mut File, end: &mut u64, bytes: &[u8]) {
        let write = writer.begin(bytes.to_vec(), 0, *end);
        let count = write.blocks.len();
        file.write(&write, count);
        let (back, outcome) = writer.finish(write.blocks, Ok(count));
        assert_eq!(
            (back.as_slice(), outcome.unwrap()),
            (bytes, bytes.len()),
            "bytes are missing"
        );
        *end += bytes.len() as u64;
    }

    #[test]
    fn short_appends_grow_the_file_rarely_and_long_ones_without_zeros() {
        const FILL_BYTES: u64 = 16 * BLOCK_BYTES as u64;
        for (bytes, appends, grown_count, file_bytes) in [
            (100, 600, 1, FILL_BYTES),
            (100, 700, 2, 2 * FILL_BYTES),
            (BLOCK_BYTES, 15, 1, FILL_BYTES),
            (LONG_BYTES, 1, 1, FILL_BYTES + BLOCK_BYTES as u64),
            (LONG_BYTES - 1, 1, 1, FILL_BYTES * 2),
        ] {
            let (mut file, mut end) = (File::default(), SEGMENT_HEADER_BYTES as u64);
            let mut writer = BlockWriter::new(&HEADER, FILL_BYTES);
            for _ in 0..appends {
                append(&mut writer, &mut file, &mut end, &vec![b'x'; bytes]);
            }
            assert_eq!(
                (file.grown_count, file.bytes.len() as u64),
                (grown_count, file_bytes),
                "{appends} of {bytes}"
            );
        }
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let mut writer = BlockWriter::new(&HEADER, BLOCK_BYTES as u64);
        let write = writer.begin(b"abc".to_vec(), 1, 64);
        let (bytes, outcome) = writer.finish(write.blocks, Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(
            (bytes.as_slice(), outcome.is_err(), writer.end),
            (&b"abc"[..], true, 64)
        );
    }

    proptest! {
        /// The file contains what was appended, whatever the lengths and wherever writes are cut
        /// short.
        #[test]
        fn the_file_contains_exactly_what_was_appended(
            appends in prop::collection::vec(
                (1..20_000_usize, prop::collection::vec(0..6_usize, 0..4)),
                1..20,
            ),
            fill_blocks in 1..5_u64,
        ) {
            let (mut file, mut naive) = (File::default(), HEADER.to_vec());
            let mut writer = BlockWriter::new(&HEADER, fill_blocks * BLOCK_BYTES as u64);
            for (number, (length, cuts)) in appends.into_iter().enumerate() {
                let bytes = vec![b'0' + u8::try_from(number).unwrap(); length];
                let (mut from, mut cuts) = (0, cuts.into_iter());
                while from < length {
                    let write = writer.begin(bytes.clone(), from, naive.len() as u64);
                    let most = write.blocks.len();
                    let count = cuts.next().map_or(most, |cut| most.min(cut * BLOCK_BYTES));
                    file.write(&write, count);
                    let (_, outcome) = writer.finish(write.blocks, Ok(count));
                    prop_assert_eq!(outcome.is_err(), count <= naive.len() % BLOCK_BYTES);
                    let taken = outcome.unwrap_or(0);
                    naive.extend_from_slice(&bytes[from..from + taken]);
                    from += taken;
                    // Before the first write, this file does not contain the header yet.
                    if !file.bytes.is_empty() {
                        prop_assert_eq!(&file.bytes[..naive.len()], naive.as_slice());
                        let mut rest = file.bytes[naive.len()..].iter();
                        prop_assert!(rest.all(|byte| *byte == 0 || taken == 0));
                    }
                }
            }
        }
    }
}
