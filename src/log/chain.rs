//! The chain of segments in one shard's folder: the segments, their order, and their contents.
//!
//! Every reader of a log uses this module: recovery, rebuilds, compaction and the tools. The rules
//! are those of [`super::record`]: the first segment covers [`FIRST_INDEX`] and begins at position
//! 0; each following segment covers the next index and begins where the previous one ends; only the
//! last may have a torn tail. A segment whose index another segment covers has been replaced by
//! that segment and is not read.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::directory::shard_folder;
use super::disk::{Disk, DiskFile};
use super::position::LogPosition;
use super::record::{
    Fault, FaultKind, HeaderError, LoggedOp, ReadCursor, Reader, SEGMENT_HEADER_BYTES,
    SegmentHeader, damage_behind, is_interrupted,
};
use super::segment;
use crate::limits::READ_BYTES;
use crate::log::remedy::WithRemedy;

/// The index of the first segment of every shard; its first position is 0.
pub const FIRST_INDEX: u64 = 1;

/// The reason why a log cannot be read.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// Bytes that had been on disk are lost or altered.
    #[error(
        "{path} is damaged at byte {offset}: {what}; run: etherply log repair --data-dir {}",
        data_path(.path).display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// The offset of the first bad byte, or of the record or header that contains it.
        offset: u64,
        /// The fault.
        what: String,
    },
    /// A newer server wrote the segment.
    #[error("{path}: {source}; start the newer server")]
    Newer {
        /// The segment.
        path: PathBuf,
        /// The header error, which contains the format version found.
        source: HeaderError,
    },
    /// A read, sync, cut or other file operation failed.
    #[error("{path}: {}", WithRemedy(.source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl RecoveryError {
    pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_path_buf(),
            offset,
            what: what.into(),
        }
    }

    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }
}

/// One segment of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The file.
    pub path: PathBuf,
    /// The segment's header.
    pub header: SegmentHeader,
    /// The log position where the next segment begins and this one ends. Bytes after it are ignored
    /// ([`super::past_end`]). `None` for the last segment.
    pub end_position: Option<LogPosition>,
    /// The length of the file.
    pub file_bytes: u64,
}

/// The segments of one shard.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The shard.
    pub shard: u32,
    /// The segments, in order.
    pub links: Vec<Link>,
    /// Segments that one of `links` has replaced but that still exist.
    pub replaced: Vec<PathBuf>,
}

impl Chain {
    /// Reads the headers of all segments of a shard in the data directory at `data`.
    ///
    /// If the directory is in use, the caller must ensure that no segment is replaced in the
    /// meantime ([`super::directory::DataDirectory::reading`]).
    pub fn read<D: Disk>(
        disk: &D,
        data: &Path,
        epoch: [u8; 16],
        shard: u32,
    ) -> Result<Self, RecoveryError> {
        Self::read_keeping(disk, data, epoch, shard, drop)
    }

    /// Like [`Chain::read`], but also passes the open file of each link to `keep`, starting with
    /// the last one.
    pub(super) fn read_keeping<D: Disk>(
        disk: &D,
        data: &Path,
        epoch: [u8; 16],
        shard: u32,
        mut keep: impl FnMut(D::File),
    ) -> Result<Self, RecoveryError> {
        let folder = data.join(shard_folder(shard));
        let listing = segment::scan(disk, &folder).map_err(RecoveryError::at(&folder))?;
        if let Some(stray) = listing.strays.first() {
            let what = "its name is not a segment name";
            return Err(RecoveryError::damaged(stray, 0, what));
        }
        let mut links: Vec<Link> = Vec::new();
        let mut replaced = Vec::new();
        // Reading backwards from the last segment identifies a replaced segment before its header
        // is read.
        for (index, path) in listing.segments.into_iter().rev() {
            let next = links.last();
            if next.is_some_and(|next| index >= next.header.first_index()) {
                replaced.push(path);
                continue;
            }
            let (file, header, file_bytes) = read_header(disk, &path, shard, index)?;
            if header.epoch != epoch {
                let what = "it belongs to another data directory";
                return Err(RecoveryError::damaged(&path, 16, what));
            }
            keep(file);
            links.push(Link {
                end_position: next.map(|next| next.header.first_position),
                path,
                header,
                file_bytes,
            });
        }
        links.reverse();
        let chain = Self {
            shard,
            links,
            replaced,
        };
        chain.check(&folder)?;
        Ok(chain)
    }

    fn check(&self, folder: &Path) -> Result<(), RecoveryError> {
        let mut next_index = FIRST_INDEX;
        for link in &self.links {
            if link.header.first_index() != next_index {
                let missing = folder.join(segment::file_name(next_index));
                let what = "the segment is missing";
                return Err(RecoveryError::damaged(&missing, 0, what));
            }
            next_index = link.header.index + 1;
        }
        match self.links.first() {
            Some(first) if first.header.first_position != LogPosition::START => {
                let what = "the log does not begin at position 0";
                Err(RecoveryError::damaged(&first.path, 40, what))
            }
            _ => Ok(()),
        }
    }

    /// Returns an error if a shard that has begun a log has no segment, because its folder was
    /// emptied or removed. `chains` must be the chains of all folders.
    pub(super) fn check_begun(
        data: &Path,
        shards_begun: u32,
        chains: &[Self],
    ) -> Result<(), RecoveryError> {
        for shard in 0..shards_begun {
            let is_there = |chain: &Self| chain.shard == shard && !chain.links.is_empty();
            if !chains.iter().any(is_there) {
                let missing = data.join(shard_folder(shard));
                let missing = missing.join(segment::file_name(FIRST_INDEX));
                let what =
                    "all segments of the shard are missing, although meta.json says it has some";
                return Err(RecoveryError::damaged(&missing, 0, what));
            }
        }
        Ok(())
    }

    /// Returns the total length of the segments in the chain, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.links.iter().map(|link| link.file_bytes).sum()
    }
}

/// The extent of a segment that was read up to its end or its first fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The number of records that were visited.
    pub records: u64,
    /// The length of the file, up to the point where the next segment begins, and without the zeros
    /// that it was filled with in advance.
    pub file_bytes: u64,
    /// The length of the valid part; any bytes after it are a torn tail.
    pub whole_bytes: u64,
    /// The log position where the segment ends.
    pub end_position: LogPosition,
}

impl Link {
    /// Visits the ops of the segment in order. `buffer` holds part of the file, and can be reused
    /// for the next segment. A fault that no crash can cause is an error in any segment. In all but
    /// the last segment, every fault is an error, except a cut between two records that matches the
    /// beginning of the next segment.
    ///
    /// # Errors
    ///
    /// After an error, the ops that were visited must be discarded.
    pub fn read<D: Disk>(
        &self,
        disk: &D,
        buffer: &mut Vec<u8>,
        visit: impl FnMut(&LoggedOp<'_>),
    ) -> Result<Extent, RecoveryError> {
        let file = disk.open(&self.path);
        let file = file.map_err(RecoveryError::at(&self.path))?;
        // The last segment may have unsynced pages in the cache, so they are synced and dropped,
        // and the reads below return what is really on disk.
        if self.end_position.is_none() {
            file.sync().map_err(RecoveryError::at(&self.path))?;
            file.drop_cache();
        }
        self.read_file(&file, buffer, visit)
    }

    /// Like [`Link::read`], but with a file that the caller has opened. Nothing is synced, so the
    /// ops are those that the kernel has in its cache.
    pub fn read_file<F: DiskFile>(
        &self,
        file: &F,
        buffer: &mut Vec<u8>,
        mut visit: impl FnMut(&LoggedOp<'_>),
    ) -> Result<Extent, RecoveryError> {
        let mut window = self.window(file, buffer)?;
        let (mut records, mut cursor) = (0, ReadCursor::begin());
        let fault = loop {
            let mut fault = None;
            let mut reader = Reader::resume(&self.header, window.bytes, window.base, cursor);
            for item in reader.by_ref() {
                match item {
                    Ok(op) => {
                        visit(&op);
                        records += 1;
                    }
                    Err(found) => fault = Some(found),
                }
            }
            cursor = reader.cursor();
            // A fault here may just mean that the rest of the file has not been read yet. It is
            // evaluated once everything after it is in memory.
            if window.is_at_end() {
                break fault;
            }
            window
                .go_on(cursor.offset())
                .map_err(RecoveryError::at(&self.path))?;
        };
        let whole_bytes = cursor.offset() as u64;
        let mut file_bytes = window.end as u64;
        if let Some(fault) = fault {
            let behind = window.from(fault.offset);
            self.judge(fault, cursor, behind)?;
            file_bytes = whole_bytes + unfilled_bytes(behind) as u64;
        }
        let end_position = match self.header.compacted {
            Some(_) if !cursor.is_sealed() => {
                let what = "the end of a compacted segment is missing";
                return Err(RecoveryError::damaged(&self.path, whole_bytes, what));
            }
            Some(compacted) => compacted.end_position,
            None => self.header.position(whole_bytes),
        };
        if let Some(next) = self.end_position
            && next != end_position
        {
            let what = format!(
                "the segment ends at log position {end_position}, and the next one begins at {next}"
            );
            return Err(RecoveryError::damaged(&self.path, whole_bytes, what));
        }
        Ok(Extent {
            records,
            file_bytes,
            whole_bytes,
            end_position,
        })
    }

    /// Returns a window at the beginning of the file, limited to the part that belongs to the log.
    fn window<'a, F: DiskFile>(
        &self,
        file: &'a F,
        bytes: &'a mut Vec<u8>,
    ) -> Result<ReadWindow<'a, F>, RecoveryError> {
        let at = || RecoveryError::at(&self.path);
        let file_bytes = file.bytes().map_err(at())?;
        let mut end =
            usize::try_from(file_bytes).map_err(|_| at()(io::ErrorKind::FileTooLarge.into()))?;
        if self.header.compacted.is_none()
            && let Some(next) = self.end_position.and_then(|next| self.header.offset(next))
        {
            end = end.min(next);
        }
        bytes.clear();
        let mut window = ReadWindow {
            file,
            bytes,
            base: 0,
            end,
        };
        window.go_on(0).map_err(at())?;
        if window.bytes.get(..SEGMENT_HEADER_BYTES) != Some(&self.header.encode()) {
            let what = "the segment header changed while it was read";
            return Err(RecoveryError::damaged(&self.path, 0, what));
        }
        Ok(window)
    }

    /// Returns an error if no crash can have caused the fault. `behind` contains the bytes from the
    /// fault on.
    fn judge(&self, fault: Fault, cursor: ReadCursor, behind: &[u8]) -> Result<(), RecoveryError> {
        let offset = fault.offset as u64;
        let damaged = |what: String| Err(RecoveryError::damaged(&self.path, offset, what));
        if let FaultKind::Content(_) = fault.kind {
            return damaged(fault.to_string());
        }
        if self.header.compacted.is_some() {
            return damaged(format!(
                "{fault}, but all of a compacted segment was on disk"
            ));
        }
        if let Some(proof) = damage_behind(&self.header, behind, fault.offset) {
            return damaged(format!(
                "{fault}, but the batch at byte {proof} proves that this was on disk"
            ));
        }
        if self.end_position.is_some() && fault.kind != FaultKind::Cut {
            return damaged(format!("{fault}, but all of a closed segment was on disk"));
        }
        if !is_interrupted(cursor, behind) {
            return damaged(format!(
                "{fault}, and no interrupted write can have caused it: no sector is missing"
            ));
        }
        Ok(())
    }
}

/// Returns the length of `bytes` without the zeros at the end, with which a segment is filled in
/// advance.
pub(super) fn unfilled_bytes(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

/// The part of a file that is in memory.
struct ReadWindow<'a, F> {
    file: &'a F,
    bytes: &'a mut Vec<u8>,
    /// The file offset of the first of `bytes`.
    base: usize,
    /// The end of the part of the file that belongs to the log.
    end: usize,
}

impl<F: DiskFile> ReadWindow<'_, F> {
    fn is_at_end(&self) -> bool {
        self.base + self.bytes.len() == self.end
    }

    /// Drops the bytes before `offset` and reads more. If little can be dropped, the window roughly
    /// doubles, because a record may be longer than one read.
    fn go_on(&mut self, offset: usize) -> io::Result<()> {
        self.bytes.drain(..offset - self.base);
        self.base = offset;
        let kept = self.bytes.len();
        let wanted = READ_BYTES.max(kept).min(self.end - offset - kept);
        self.bytes.resize(kept + wanted, 0);
        let at = (offset + kept) as u64;
        let count = self.file.read_full_at(&mut self.bytes[kept..], at)?;
        if count < wanted {
            // The file has been truncated in the meantime.
            self.bytes.truncate(kept + count);
            self.end = offset + kept + count;
        }
        Ok(())
    }

    fn from(&self, offset: usize) -> &[u8] {
        &self.bytes[offset - self.base..]
    }
}

/// Opens a segment and returns its file, its header and the length of the file. The header must
/// match the shard and the index in the file name.
fn read_header<D: Disk>(
    disk: &D,
    path: &Path,
    shard: u32,
    index: u64,
) -> Result<(D::File, SegmentHeader, u64), RecoveryError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let file = disk.open(path).map_err(RecoveryError::at(path))?;
    let count = file
        .read_full_at(&mut bytes, 0)
        .map_err(RecoveryError::at(path))?;
    let header = SegmentHeader::decode(&bytes[..count]).map_err(|error| match error {
        HeaderError::Version(_) => RecoveryError::Newer {
            path: path.to_path_buf(),
            source: error,
        },
        _ => RecoveryError::damaged(path, 0, error.to_string()),
    })?;
    if (header.shard, header.index) != (shard, index) {
        let what = format!(
            "its header names segment {} of shard {}",
            header.index, header.shard
        );
        return Err(RecoveryError::damaged(path, 0, what));
    }
    if header.index == u64::MAX {
        let what = "no index can follow this one";
        return Err(RecoveryError::damaged(path, 32, what));
    }
    let file_bytes = file.bytes().map_err(RecoveryError::at(path))?;
    Ok((file, header, file_bytes))
}

/// Returns the data directory that contains a segment.
fn data_path(segment: &Path) -> &Path {
    segment.parent().and_then(Path::parent).unwrap_or(segment)
}
