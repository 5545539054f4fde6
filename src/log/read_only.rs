//! A log that is only read, whether a server uses it or not: nothing is locked, synced or cut.
//!
//! A running server appends to the open segments, begins new ones, and replaces closed ones by
//! compacted ones. So the reader first opens all files, and then checks that the directory still
//! has the same segments: then it holds the log of one moment. An open file keeps its content when
//! its name is removed. Bytes that are appended in the meantime may or may not be seen, and the end
//! of an open segment is treated like that of any last segment: an incomplete record there is not a
//! fault. A read that finds zeros, which the file was filled with, and then a batch that was
//! written a moment later looks like a fault until it is repeated.
//!
//! A fault is reported only if it is found three times in a row, in files that were opened or read
//! again: everything that a running server does to files takes them from one legal state to
//! another, so a fault that is seen in between disappears.

use std::io;
use std::path::Path;

use thiserror::Error;

use super::chain::{Chain, Extent, Link, RecoveryError};
use super::directory::{self, DirectoryError, Identity};
use super::disk::{Disk, DiskFile, HostDisk};
use super::past_end::RecordsPastEnd;
use super::record::LoggedOp;

#[cfg(test)]
mod tests;

/// How often in a row a fault must be found to be reported.
const FAULT_TRIES: usize = 3;

/// Why a log cannot be read.
#[derive(Debug, Error)]
pub enum ReadOnlyLogError {
    /// There is no log, or not one that this program reads.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The log is damaged, or cannot be read.
    #[error(transparent)]
    Log(#[from] RecoveryError),
}

/// The segments of a data directory at one moment, each one open.
#[derive(Debug)]
pub struct ReadOnlyLog<D: Disk = HostDisk> {
    folders: Vec<ReadOnlyFolder<D>>,
}

/// The segments of one shard's folder.
#[derive(Debug)]
pub struct ReadOnlyFolder<D: Disk = HostDisk> {
    chain: Chain,
    /// The open files of the chain's links, in order.
    files: Vec<D::File>,
}

impl<D: Disk> ReadOnlyLog<D> {
    /// Opens all segments.
    pub fn take(disk: &D, data: &Path) -> Result<Self, ReadOnlyLogError> {
        let identity = directory::identity(disk, data)?;
        let folders = settled(|| Self::open(disk, data, identity))?;
        Ok(Self { folders })
    }

    fn open(
        disk: &D,
        data: &Path,
        identity: Identity,
    ) -> Result<Vec<ReadOnlyFolder<D>>, RecoveryError> {
        let epoch = identity.epoch;
        loop {
            let shards = || directory::shards(disk, data).map_err(RecoveryError::at(data));
            let open = |shard| ReadOnlyFolder::open(disk, data, epoch, shard);
            let folders: Vec<_> = shards()?.into_iter().map(open).collect::<Result<_, _>>()?;
            let read = |shard| Chain::read(disk, data, epoch, shard);
            let now: Vec<_> = shards()?.into_iter().map(read).collect::<Result<_, _>>()?;
            let is_same = |(folder, chain): (&ReadOnlyFolder<D>, &Chain)| folder.is_now(chain);
            if folders.len() == now.len() && folders.iter().zip(&now).all(is_same) {
                Chain::check_begun(data, identity.shards_begun, &now)?;
                return Ok(folders);
            }
        }
    }

    /// The folders of the shards, in order.
    #[must_use]
    pub fn folders(&self) -> &[ReadOnlyFolder<D>] {
        &self.folders
    }

    /// The length of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.folders.iter().map(|folder| folder.chain.bytes()).sum()
    }
}

impl<D: Disk> ReadOnlyFolder<D> {
    fn open(disk: &D, data: &Path, epoch: [u8; 16], shard: u32) -> Result<Self, RecoveryError> {
        let mut files = Vec::new();
        let chain = Chain::read_keeping(disk, data, epoch, shard, |file| files.push(file))?;
        files.reverse();
        for (link, file) in chain.links.iter().zip(&files) {
            // A compaction gives back the blocks of the segments that it has replaced, and nobody
            // may be reading them.
            if matches!(file.share(), Ok(false)) {
                let gone = io::Error::from(io::ErrorKind::NotFound);
                return Err(RecoveryError::at(&link.path)(gone));
            }
        }
        Ok(Self { chain, files })
    }

    /// Returns whether these segments are still the chain. A new segment may have ops that a
    /// compaction has dropped from another folder in the meantime.
    fn is_now(&self, chain: &Chain) -> bool {
        let (links, now) = (self.links(), &chain.links);
        let (Some((last, closed)), Some((last_now, closed_now))) =
            (links.split_last(), now.split_last())
        else {
            return self.shard() == chain.shard && links.len() == now.len();
        };
        // The last one may have grown.
        let is_last = (&last.path, last.header) == (&last_now.path, last_now.header);
        self.shard() == chain.shard && is_last && closed == closed_now
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> u32 {
        self.chain.shard
    }

    /// Returns its segments, in order.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.chain.links
    }

    /// Visits the ops of a segment, in order; `bytes` is room for it. On an error the ops that were
    /// visited are worth nothing.
    ///
    /// # Panics
    /// When there is no such segment.
    pub fn read(
        &self,
        place: usize,
        bytes: &mut Vec<u8>,
        mut visit: impl FnMut(&LoggedOp<'_>),
    ) -> Result<Extent, RecoveryError> {
        let (link, file) = (&self.chain.links[place], &self.files[place]);
        let mut visited = 0_u64;
        settled(|| {
            let mut ops = 0_u64;
            link.read_file(file, bytes, |op| {
                ops += 1;
                // A second attempt reads the same ops again.
                if ops > visited {
                    visited = ops;
                    visit(op);
                }
            })
        })
    }
}

impl<D: Disk> ReadOnlyFolder<D> {
    /// Looks for records beyond the end of a segment ([`Link::records_past_end`]); `bytes` is room
    /// for it.
    ///
    /// # Panics
    /// When there is no such segment.
    pub fn records_past_end(
        &self,
        place: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<RecordsPastEnd>, RecoveryError> {
        self.chain.links[place].records_past_end(&self.files[place], bytes)
    }
}

/// Tries until it succeeds, or fails in the same way several times.
fn settled<T>(mut attempt: impl FnMut() -> Result<T, RecoveryError>) -> Result<T, RecoveryError> {
    let mut told = (String::new(), 0);
    loop {
        let error = match attempt() {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        let is_transient = match &error {
            RecoveryError::Damaged { .. } => true,
            RecoveryError::Newer { .. } => false,
            RecoveryError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        };
        let line = error.to_string();
        told = (line.clone(), if told.0 == line { told.1 + 1 } else { 1 });
        if !is_transient || told.1 >= FAULT_TRIES {
            return Err(error);
        }
    }
}
