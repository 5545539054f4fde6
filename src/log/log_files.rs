//! The files of one shard's log: the open segment, and the slow work on the others, as errands for
//! another thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use thiserror::Error;

use super::blocks::BlockWriter;
use super::commit::{End, OpenSegment};
use super::directory::DataDirectory;
use super::disk::{Disk, DiskFile};
use super::position::LogPosition;
use super::record::{LoggedOp, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::recovery::{self, RecoveryError, RecoveryReport, Sources};
use super::segment::{self, Segment};
use crate::log::remedy::WithRemedy;

#[cfg(test)]
mod tests;

/// The log files of one shard.
#[derive(Debug)]
pub struct LogFiles<D: Disk> {
    directory: Arc<DataDirectory<D>>,
    /// Its file is shared with a rebuild, which syncs it.
    segment: Segment<Arc<D::File>>,
    /// If set, segments are written through where the file system can do that, and grow by this.
    fill_bytes: Option<u64>,
    sources: Sources,
    /// Where the open segment ends, once it has failed: the first try to rebuild decides, for all
    /// that follow.
    kept_position: Arc<OnceLock<LogPosition>>,
}

/// Why the next segment or the state of a shard is not there. It is tried again.
#[derive(Debug, Error)]
pub enum LogFilesError {
    /// The next segment cannot be created.
    #[error("{path}: {}", WithRemedy(.source))]
    Segment {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The open segment is not in its place any more. Nothing that the server could do brings its
    /// ops back there.
    #[error(
        "{path} was deleted or moved away under the running server: stop the server, \
         move the data directory back or put it back from a backup, and start it again"
    )]
    Deleted {
        /// The segment.
        path: PathBuf,
    },
    /// `LOCK` is not in its place any more: nothing keeps a server of an older version from using
    /// the directory, too.
    #[error(
        "{path} was deleted or replaced under the running server, and another server may use the \
         data directory by now: stop every server on it, and start one again"
    )]
    Unlocked {
        /// `LOCK`.
        path: PathBuf,
    },
    /// The log could not be read back.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

impl<D: Disk> LogFiles<D> {
    /// Creates the segment with which a shard begins, after everything that was recovered. With
    /// `fill_bytes`, this one and the following ones are [written through](Segment::write_through),
    /// if the file system supports it.
    pub fn open(
        directory: Arc<DataDirectory<D>>,
        shard: u32,
        recovered: &RecoveryReport,
        fill_bytes: Option<u64>,
    ) -> io::Result<Self> {
        let tail = recovered.tail(shard);
        let header = SegmentHeader::new(
            shard,
            directory.epoch(),
            tail.next_index,
            tail.next_position,
        );
        let folder = directory.shard_path(shard);
        let segment = create(&directory, &folder, header, 0, fill_bytes)?;
        let others = recovered.tails.iter().filter(|tail| tail.shard != shard);
        let others = others.map(|tail| (tail.shard, tail.next_index - 1));
        Ok(Self {
            sources: Sources {
                shard,
                others: others.collect(),
            },
            directory,
            segment: shared(segment),
            fill_bytes,
            kept_position: Arc::default(),
        })
    }

    /// The open segment, as the log's state machine knows it.
    #[must_use]
    pub fn open_segment(&self) -> OpenSegment {
        let header = self.segment.header;
        OpenSegment {
            index: header.index,
            first_position: header.first_position,
            salt: header.salt(),
            writes_through: self.segment.blocks.is_some(),
        }
    }

    /// Returns what turns appends to the open segment into whole blocks, if it is written through.
    pub fn blocks(&mut self) -> Option<&mut BlockWriter> {
        self.segment.blocks.as_mut()
    }

    /// The open segment's file.
    #[must_use]
    pub fn file(&self) -> &D::File {
        &self.segment.file
    }

    /// Fails where the open segment or `LOCK` has lost its name. Writes and fdatasyncs of the
    /// segment still end well, and what they kept is gone as soon as the file is closed; without
    /// `LOCK`, another server may cut it.
    pub fn check_linked(&self) -> Result<(), LogFilesError> {
        self.check(self.segment.file.is_linked())?;
        self.check_lock(self.directory.is_lock_linked().unwrap_or(true))
    }

    /// Fails where the open segment or `LOCK` is known not to be at its path: the data directory,
    /// the shard's folder or one of the two was deleted, moved or replaced. Costs a walk along each
    /// path, so it is not for every commit.
    pub fn check_place(&self) -> Result<(), LogFilesError> {
        // An error does not show that it moved; creating the next segment will meet the error.
        if !self.is_in_place().unwrap_or(true) {
            return self.check(Ok(false));
        }
        self.check_lock(self.directory.is_lock_in_place().unwrap_or(true))
    }

    fn check_lock(&self, is_there: bool) -> Result<(), LogFilesError> {
        if is_there {
            return Ok(());
        }
        let path = self.directory.lock_path().to_path_buf();
        Err(LogFilesError::Unlocked { path })
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let Segment { path, file, .. } = &self.segment;
        self.directory.disk().is_at(path, file.as_ref())
    }

    /// Fails if the open segment is not at its path: whatever is there now, nothing or a restored
    /// backup, does not continue this log, and must not be followed by its next segment.
    fn check_in_place(&self) -> Result<(), LogFilesError> {
        self.check(self.is_in_place())?;
        self.check_lock(self.directory.is_lock_in_place().unwrap_or(true))
    }

    fn check(&self, is_there: io::Result<bool>) -> Result<(), LogFilesError> {
        // Only for an error: this is asked for each commit.
        let path = || self.segment.path.clone();
        match is_there {
            Ok(true) => Ok(()),
            Ok(false) => Err(LogFilesError::Deleted { path: path() }),
            Err(source) => Err(LogFilesError::Segment {
                path: path(),
                source,
            }),
        }
    }

    /// Makes a new segment the open one. Nothing of the one before may be in flight.
    pub fn replace(&mut self, segment: Segment<D::File>) -> OpenSegment {
        self.segment = shared(segment);
        self.kept_position = Arc::default();
        self.open_segment()
    }

    /// The errand that creates the next segment.
    pub fn next(
        &self,
        index: u64,
        first_position: LogPosition,
    ) -> Result<Creation<D>, LogFilesError> {
        self.check_in_place()?;
        let Segment { path, header, .. } = &self.segment;
        let end = header.offset(first_position);
        let end = end.expect("a segment is followed where it ends") as u64;
        Ok(Creation {
            closed: Some((path.clone(), end)),
            ..self.creation(index, first_position)
        })
    }

    fn creation(&self, index: u64, first_position: LogPosition) -> Creation<D> {
        let SegmentHeader { shard, epoch, .. } = self.segment.header;
        Creation {
            directory: Arc::clone(&self.directory),
            header: SegmentHeader::new(shard, epoch, index, first_position),
            fill_bytes: self.fill_bytes,
            closed: None,
        }
    }

    /// Returns the errand that creates the segment after the failed one and reads the shard's state
    /// back. The failed file is no longer written: for its readers it ends where the next segment
    /// begins.
    pub fn rebuild(&self, end: End) -> Result<Rebuild<D>, LogFilesError> {
        if self.segment.header.index == end.index {
            self.check_in_place()?;
        } else {
            // The segment that was opened at the moment of the failure: it holds nothing, and a
            // previous try may have removed it.
            let failed = self.creation(end.index, LogPosition::START);
            self.check(self.directory.disk().exists(&failed.path()))?;
            self.check_lock(self.directory.is_lock_in_place().unwrap_or(true))?;
        }
        Ok(Rebuild {
            creation: self.creation(end.index + 1, end.durable),
            end,
            file: Arc::clone(&self.segment.file),
            kept_position: Arc::clone(&self.kept_position),
            sources: self.sources.clone(),
        })
    }
}

fn shared<F>(segment: Segment<F>) -> Segment<Arc<F>> {
    let Segment {
        file,
        path,
        header,
        blocks,
    } = segment;
    Segment {
        file: Arc::new(file),
        path,
        header,
        blocks,
    }
}

fn create<D: Disk>(
    directory: &DataDirectory<D>,
    folder: &Path,
    header: SegmentHeader,
    reserve_bytes: u64,
    fill_bytes: Option<u64>,
) -> io::Result<Segment<D::File>> {
    let segment = segment::create(directory.disk(), folder, header, reserve_bytes)?;
    let Some(fill_bytes) = fill_bytes else {
        return Ok(segment);
    };
    let path = segment.path.clone();
    segment.write_through(fill_bytes).inspect_err(|_| {
        // The new segment has no ops. The first error is the one to report.
        let _ = directory.disk().remove(&path);
    })
}

/// The creation of a segment.
#[derive(Debug)]
pub struct Creation<D: Disk> {
    directory: Arc<DataDirectory<D>>,
    header: SegmentHeader,
    fill_bytes: Option<u64>,
    /// The previous segment, and its length without the space claimed in advance.
    closed: Option<(PathBuf, u64)>,
}

impl<D: Disk> Creation<D> {
    /// Creates the segment, with `reserve_bytes` of disk claimed ahead.
    pub fn run(&self, reserve_bytes: u64) -> Result<Segment<D::File>, LogFilesError> {
        self.create(self.header, reserve_bytes)
    }

    fn create(
        &self,
        header: SegmentHeader,
        reserve_bytes: u64,
    ) -> Result<Segment<D::File>, LogFilesError> {
        let directory = &self.directory;
        let folder = directory.shard_path(header.shard);
        let segment = create(directory, &folder, header, reserve_bytes, self.fill_bytes)
            .map_err(|source| self.failed(source))?;
        if let Some((path, bytes)) = &self.closed {
            // Readers stop there anyway: where this fails, some disk is taken for nothing.
            let _ = segment::trim(directory.disk(), path, *bytes);
        }
        Ok(segment)
    }

    /// A try before this one may have got as far as an empty segment.
    fn remove_unused(&self) -> Result<(), LogFilesError> {
        let (disk, path) = (self.directory.disk(), self.path());
        match disk.file_bytes(&path) {
            Ok(bytes) if bytes <= SEGMENT_HEADER_BYTES as u64 => disk.remove(&path),
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|source| self.failed(source))
    }

    fn path(&self) -> PathBuf {
        let folder = self.directory.shard_path(self.header.shard);
        folder.join(segment::file_name(self.header.index))
    }

    fn failed(&self, source: io::Error) -> LogFilesError {
        LogFilesError::Segment {
            path: self.path(),
            source,
        }
    }
}

/// An errand that rebuilds a shard from its log.
#[derive(Debug)]
pub struct Rebuild<D: Disk> {
    creation: Creation<D>,
    end: End,
    /// The open segment's file, when the errand was made.
    file: Arc<D::File>,
    kept_position: Arc<OnceLock<LogPosition>>,
    sources: Sources,
}

impl<D: Disk> Rebuild<D> {
    /// Creates the next segment and visits the ops. Waits for the disk, so it is not for a shard's
    /// thread.
    pub fn run(&self, visit: impl FnMut(&LoggedOp<'_>)) -> Result<Segment<D::File>, LogFilesError> {
        let header = SegmentHeader {
            first_position: self.kept_position(),
            ..self.creation.header
        };
        self.creation.remove_unused()?;
        // No more room is asked for than a segment without ops needs: on a disk that is nearly full
        // the shard serves what it has, and refuses ops.
        let segment = self.creation.create(header, 0)?;
        recovery::replay(&self.creation.directory, &self.sources, visit)?;
        Ok(segment)
    }

    /// Returns the position up to which the failed segment is kept: what was shown, if it can still
    /// be made durable.
    ///
    /// There is one fdatasync for all tries. After one that failed, the next would succeed without
    /// having written anything; after one that succeeded, a failure of the next would drop ops that
    /// are on disk.
    fn kept_position(&self) -> LogPosition {
        *self.kept_position.get_or_init(|| {
            if self.end.shown == self.end.durable || self.file.sync().is_ok() {
                self.end.shown
            } else {
                self.end.durable
            }
        })
    }
}
