//! Records beyond the end of a segment, which are in its file but at log positions that belong to
//! the next segment.
//!
//! Readers ignore them, and a healthy server leaves none behind. They can arise in two ways. Either
//! a write or an fdatasync failed and the shard continued in the next segment: the clients then
//! received an error for these ops, although with `--durability interval` or `none` the ops may
//! have been sent to other clients before that. Or a second server used the data directory and
//! truncated the segment while the first one was still writing to it: the ops were then sent to
//! clients of the first server, but are lost.

use super::chain::{Link, RecoveryError};
use super::disk::DiskFile;
use super::record::Reader;
use super::repair::resync::skip_damage;

/// The records beyond the end of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordsPastEnd {
    /// The offset where the segment ends.
    pub offset: u64,
    /// The number of intact records after it.
    pub records: u64,
}

impl Link {
    /// Searches the file for records beyond the end of the segment. `bytes` is a buffer for the
    /// file, which is read completely only if the bytes after the end are not all zeros. Returns
    /// `None` if there are no such records, or if the segment is compacted or is the last one.
    pub fn records_past_end<F: DiskFile>(
        &self,
        file: &F,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<RecordsPastEnd>, RecoveryError> {
        let end = self
            .end_position
            .filter(|_| self.header.compacted.is_none());
        let Some(end) = end.and_then(|end| self.header.offset(end)) else {
            return Ok(None);
        };
        let at = || RecoveryError::at(&self.path);
        let file_bytes = usize::try_from(file.bytes().map_err(at())?).unwrap_or(usize::MAX);
        bytes.resize(file_bytes.saturating_sub(end), 0);
        let count = file.read_full_at(bytes, end as u64).map_err(at())?;
        if bytes[..count].iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        file.read_whole(bytes).map_err(at())?;
        let mut records = 0;
        let mut reader = Reader::new(&self.header, bytes);
        loop {
            match reader.next() {
                Some(Ok(_)) => records += u64::from(reader.offset() > end),
                Some(Err(_)) if skip_damage(&mut reader).is_some() => {}
                Some(Err(_)) | None => break,
            }
        }
        Ok((records > 0).then_some(RecordsPastEnd {
            offset: end as u64,
            records,
        }))
    }
}
