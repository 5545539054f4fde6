//! Records beyond the end of a segment: they are in its file, after the place where the next
//! segment begins.
//!
//! No reader counts them, and a healthy server leaves none. There are two ways to them. A write or
//! an fdatasync failed, and the shard went on in the next segment: then the clients received an
//! error for these ops, and with `--durability interval` or `none` they may have been shown before.
//! Or a second server used the data directory and cut the segment, while the first one went on
//! writing to it: then clients of the first were shown them, and they are lost.

use super::chain::{Link, RecoveryError};
use super::disk::DiskFile;
use super::record::Reader;
use super::repair::resync::skip_damage;

/// Records beyond the end of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordsPastEnd {
    /// The offset where the segment ends.
    pub offset: u64,
    /// The number of intact records after it.
    pub records: u64,
}

impl Link {
    /// Looks for records beyond the segment's end in its file. `bytes` is room for the file, which
    /// is read only if something other than zeros is there. None: there are none, or the segment is
    /// the last one.
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
