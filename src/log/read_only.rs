//! Reads a log without changing it, whether or not a server is using it: nothing is synced or cut,
//! and the data directory is not locked.
//!
//! A running server appends to the open segments, creates new ones, and replaces closed ones with
//! compacted ones. So the reader first opens all files and then checks that the directory still has
//! the same segments. If it does, the open files are the log at a single moment, because an open
//! file keeps its content even if its name is removed. The reader may or may not see bytes that are
//! appended in the meantime, and it treats the end of an open segment like that of any last
//! segment: an incomplete record there is not a fault. A single read may return zeros that pad the
//! file, followed by a batch that the server wrote over later zeros in the meantime. This looks
//! like a fault until the data is read again.
//!
//! A fault is reported only if it is found three times in a row, each time after the files were
//! reopened or reread. Everything that a running server does to the files takes them from one valid
//! state to another, so a fault that a read sees in between disappears.

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

/// The number of consecutive attempts that must find a fault before it is reported.
const FAULT_TRIES: usize = 3;

/// The reason why a log cannot be read.
#[derive(Debug, Error)]
pub enum ReadOnlyLogError {
    /// There is no log, or none that this program can read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The log is damaged, or cannot be read.
    #[error(transparent)]
    Log(#[from] RecoveryError),
}

/// The segments of a data directory at one moment, all of them open.
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
    /// Opens all segments in the data directory at `data`.
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

    /// Returns the folders of the shards, in order.
    #[must_use]
    pub fn folders(&self) -> &[ReadOnlyFolder<D>] {
        &self.folders
    }

    /// Returns the total length of all segments, in bytes.
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
            // A compaction frees the blocks of the segments that it has replaced, unless they are
            // locked by a reader.
            if matches!(file.share(), Ok(false)) {
                let gone = io::Error::from(io::ErrorKind::NotFound);
                return Err(RecoveryError::at(&link.path)(gone));
            }
        }
        Ok(Self { chain, files })
    }

    /// Returns whether these segments are the ones in `chain`, which was read later. A new segment
    /// counts as a difference, because a compaction may have dropped ops from another folder that
    /// ops in the new segment supersede.
    fn is_now(&self, chain: &Chain) -> bool {
        let (links, now) = (self.links(), &chain.links);
        let (Some((last, closed)), Some((last_now, closed_now))) =
            (links.split_last(), now.split_last())
        else {
            return self.shard() == chain.shard && links.len() == now.len();
        };
        // The last segment may have grown, so its length is not compared.
        let is_last = (&last.path, last.header) == (&last_now.path, last_now.header);
        self.shard() == chain.shard && is_last && closed == closed_now
    }

    /// Returns the shard.
    #[must_use]
    pub fn shard(&self) -> u32 {
        self.chain.shard
    }

    /// Returns its segments, in order.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.chain.links
    }

    /// Visits the ops of a segment, in order. `bytes` is a buffer for its contents. After an error,
    /// the ops visited so far must be discarded.
    ///
    /// # Panics
    /// If there is no segment at this index.
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
                // A second attempt rereads the same ops, so those already visited are skipped.
                if ops > visited {
                    visited = ops;
                    visit(op);
                }
            })
        })
    }
}

impl<D: Disk> ReadOnlyFolder<D> {
    /// Searches for records beyond the end of a segment ([`Link::records_past_end`]); `bytes` is a
    /// buffer for its contents.
    ///
    /// # Panics
    /// If there is no segment at this index.
    pub fn records_past_end(
        &self,
        place: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<RecordsPastEnd>, RecoveryError> {
        self.chain.links[place].records_past_end(&self.files[place], bytes)
    }
}

/// Retries `attempt` until it succeeds, fails in the same way [`FAULT_TRIES`] times in a row, or
/// returns an error that is not transient.
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
