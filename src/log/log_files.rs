//! The files of one shard's log: the open segment, and slow work on other segments, packaged as
//! jobs for another thread.

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
    /// The open segment. Its file is shared with a rebuild, which syncs it.
    segment: Segment<Arc<D::File>>,
    /// If set, segments are written through where the file system supports it, and grow by this
    /// many bytes at a time.
    fill_bytes: Option<u64>,
    sources: Sources,
    /// The position where the open segment ends, once it has failed. The first attempt to rebuild
    /// determines it for all later ones.
    kept_position: Arc<OnceLock<LogPosition>>,
}

/// The reason why a shard's next segment could not be created or its state could not be read. The
/// operation is retried.
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
    /// The open segment is no longer at its path, and the server cannot restore its ops there.
    #[error(
        "{path} was deleted or moved while the server was running: stop the server, move the data \
         directory back or restore it from a backup, and start the server again"
    )]
    Deleted {
        /// The segment.
        path: PathBuf,
    },
    /// `LOCK` is no longer at its path, so nothing prevents an older server from using the
    /// directory, too.
    #[error(
        "{path} was deleted or replaced while the server was running, and another server may be \
         using the data directory: stop every server on it, and start one again"
    )]
    Unlocked {
        /// `LOCK`.
        path: PathBuf,
    },
    /// The log could not be read.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

impl<D: Disk> LogFiles<D> {
    /// Creates the first segment that a shard writes, which follows everything that was recovered.
    /// With `fill_bytes`, this segment and the following ones are [written
    /// through](Segment::write_through), if the file system supports it.
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

    /// Returns the open segment in the form that the log's state machine uses.
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

    /// Returns the writer that turns appends to the open segment into whole blocks, if the segment
    /// is written through.
    pub fn blocks(&mut self) -> Option<&mut BlockWriter> {
        self.segment.blocks.as_mut()
    }

    /// Returns the file of the open segment.
    #[must_use]
    pub fn file(&self) -> &D::File {
        &self.segment.file
    }

    /// Returns an error if the open segment or `LOCK` has lost its name. Writes and fdatasyncs of a
    /// nameless segment still succeed, but its data is gone as soon as the file is closed. Without
    /// `LOCK`, another server may cut the segment.
    pub fn check_linked(&self) -> Result<(), LogFilesError> {
        self.check(self.segment.file.is_linked())?;
        self.check_lock(self.directory.is_lock_linked().unwrap_or(true))
    }

    /// Returns an error if the open segment or `LOCK` is known not to be at its path, because the
    /// data directory, the shard's folder or the file itself was deleted, moved or replaced. This
    /// resolves both paths, which is too expensive to do for every commit.
    pub fn check_place(&self) -> Result<(), LogFilesError> {
        // An I/O error does not prove that the file was moved; creating the next segment will run
        // into it too.
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

    /// Returns an error if the open segment or `LOCK` is not at its path, or if this cannot be
    /// checked for the segment. Whatever is there now, whether nothing or a restored backup, is not
    /// this log, so this log's next segment must not be created there.
    fn check_in_place(&self) -> Result<(), LogFilesError> {
        self.check(self.is_in_place())?;
        self.check_lock(self.directory.is_lock_in_place().unwrap_or(true))
    }

    fn check(&self, is_there: io::Result<bool>) -> Result<(), LogFilesError> {
        // The path is cloned only if there is an error, because this check runs on every commit.
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

    /// Makes a new segment the open one. No operation on the previous segment may be in flight.
    pub fn replace(&mut self, segment: Segment<D::File>) -> OpenSegment {
        self.segment = shared(segment);
        self.kept_position = Arc::default();
        self.open_segment()
    }

    /// Returns the job that creates the next segment.
    pub fn next(
        &self,
        index: u64,
        first_position: LogPosition,
    ) -> Result<Creation<D>, LogFilesError> {
        self.check_in_place()?;
        let Segment { path, header, .. } = &self.segment;
        let end = header.offset(first_position);
        let end = end.expect("the position is in the segment") as u64;
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

    /// Returns the job that creates the segment after the failed one and reads the shard's state
    /// back. The failed file is no longer written to; for readers, it ends where the next segment
    /// begins.
    pub fn rebuild(&self, end: End) -> Result<Rebuild<D>, LogFilesError> {
        if self.segment.header.index == end.index {
            self.check_in_place()?;
        } else {
            // The log failed while `end.index + 1`, the current open segment, was being created:
            // that segment holds no ops, and a previous attempt may have removed it.
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

/// A job that creates a segment.
#[derive(Debug)]
pub struct Creation<D: Disk> {
    directory: Arc<DataDirectory<D>>,
    header: SegmentHeader,
    fill_bytes: Option<u64>,
    /// The path of the previous segment, and its length without the space claimed in advance.
    closed: Option<(PathBuf, u64)>,
}

impl<D: Disk> Creation<D> {
    /// Creates the segment, with `reserve_bytes` of disk space claimed in advance.
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
            // Readers stop at this length anyway, so if this fails, only some disk space is wasted.
            let _ = segment::trim(directory.disk(), path, *bytes);
        }
        Ok(segment)
    }

    /// Removes the empty segment that an earlier attempt may have created.
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

/// A job that rebuilds a shard from its log.
#[derive(Debug)]
pub struct Rebuild<D: Disk> {
    creation: Creation<D>,
    end: End,
    /// The file of the segment that was open when the job was created.
    file: Arc<D::File>,
    kept_position: Arc<OnceLock<LogPosition>>,
    sources: Sources,
}

impl<D: Disk> Rebuild<D> {
    /// Creates the next segment and visits the ops. This blocks on the disk, so it must not run on
    /// a shard's thread.
    pub fn run(&self, visit: impl FnMut(&LoggedOp<'_>)) -> Result<Segment<D::File>, LogFilesError> {
        let header = SegmentHeader {
            first_position: self.kept_position(),
            ..self.creation.header
        };
        self.creation.remove_unused()?;
        // No space is reserved beyond what a segment without ops needs, so that on a nearly full
        // disk, the shard can still serve its state while refusing ops.
        let segment = self.creation.create(header, 0)?;
        recovery::replay(&self.creation.directory, &self.sources, visit)?;
        Ok(segment)
    }

    /// Returns the position up to which the failed segment is kept: up to the last op that was sent
    /// to clients, if that can still be made durable.
    ///
    /// All attempts share one fdatasync. After a failed fdatasync, the next would succeed without
    /// having written anything; after a successful one, a failure of the next would drop ops that
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
