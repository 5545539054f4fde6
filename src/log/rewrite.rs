//! Writes a compacted segment in pieces, syncs each piece, and seals the segment at the end.

use std::io;
use std::path::Path;

use super::disk::{Disk, DiskFile};
use super::record::{self, BATCH_HEADER_BYTES, LoggedOp, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::limits::COMPACTION_BATCH_BYTES;

/// A compacted segment that is being written.
pub(super) struct Rewrite<F> {
    file: F,
    header: SegmentHeader,
    offset: u64,
    batch: Vec<u8>,
}

impl<F: DiskFile> Rewrite<F> {
    /// Creates the file, replacing any existing file at `path`, and writes the header.
    pub(super) fn begin<D: Disk<File = F>>(
        disk: &D,
        path: &Path,
        header: SegmentHeader,
    ) -> io::Result<Self> {
        let file = disk.create(path)?;
        file.write_all_at(&header.encode(), 0)?;
        let mut batch = Vec::new();
        record::begin_batch(&mut batch);
        Ok(Self {
            file,
            header,
            offset: SEGMENT_HEADER_BYTES as u64,
            batch,
        })
    }

    /// Appends an op. Returns `true` if that completed a piece, which is then on disk. So syncs of
    /// other files never wait for more than one piece.
    pub(super) fn push(&mut self, op: &LoggedOp<'_>) -> io::Result<bool> {
        record::push_op(&mut self.batch, op);
        if self.batch.len() < COMPACTION_BATCH_BYTES {
            return Ok(false);
        }
        self.write()?;
        Ok(true)
    }

    /// Seals the segment and returns its length in bytes. The whole segment is then on disk.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        if self.batch.len() > BATCH_HEADER_BYTES {
            self.write()?;
        }
        self.write()?;
        Ok(self.offset)
    }

    fn write(&mut self) -> io::Result<()> {
        let position = self.header.position(self.offset);
        let durable_position = self.header.first_position;
        record::seal_batch(
            &mut self.batch,
            self.header.salt(),
            position,
            durable_position,
        );
        self.file.write_all_at(&self.batch, self.offset)?;
        self.file.sync()?;
        self.offset += self.batch.len() as u64;
        record::begin_batch(&mut self.batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::super::disk::HostDisk;
    use super::super::position::LogPosition;
    use super::*;
    use crate::log::record::Change;
    use crate::seq::Seq;

    #[test]
    fn a_rewrite_ends_with_its_only_empty_batch() {
        let folder = tempdir().unwrap();
        let header = SegmentHeader::new(0, [7; 16], 1, LogPosition::START);
        let op = LoggedOp {
            workspace: "w",
            key: "k",
            change: Change::write("1"),
            seq: Seq::new(1),
            timestamp: 1,
        };
        let batch_bytes = BATCH_HEADER_BYTES + record::op_bytes(&op);
        for (ops, batches_bytes) in [(0, 0), (1, batch_bytes)] {
            let path = folder.path().join(ops.to_string());
            let mut rewrite = Rewrite::begin(&HostDisk, &path, header).unwrap();
            for _ in 0..ops {
                assert!(!rewrite.push(&op).unwrap());
            }
            let bytes = SEGMENT_HEADER_BYTES + batches_bytes + BATCH_HEADER_BYTES;
            assert_eq!(rewrite.finish().unwrap(), bytes as u64, "{ops}");
            assert_eq!(HostDisk.file_bytes(&path).unwrap(), bytes as u64, "{ops}");
        }
    }
}
