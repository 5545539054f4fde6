//! Reads back the log when the server starts and when a shard rebuilds itself.
//!
//! This module applies the rules derived in [`super::record`] to the files. Everything is read and
//! checked before anything is cut off or removed, so a damaged log is left as it was found.
//!
//! An op that is sent to a client after a start must be durable, even if the previous process was
//! killed between a write and its sync, or if one of its syncs failed and left pages in the cache
//! that never reached the disk. Each last segment is therefore synced, dropped from the cache and
//! only then read, so that the read returns what is really on disk.
//!
//! After an error, the ops visited so far must be discarded.

use std::path::PathBuf;

pub use super::chain::RecoveryError;
use super::chain::{Chain, Extent, FIRST_INDEX};
use super::directory::DataDirectory;
use super::disk::Disk;
use super::position::LogPosition;
use super::record::LoggedOp;
use super::segment;

#[cfg(test)]
mod tests;

/// The place where the next segment in a shard's folder begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The shard.
    pub shard: u32,
    /// The next segment's index.
    pub next_index: u64,
    /// The next segment's first position.
    pub next_position: LogPosition,
}

impl Tail {
    /// Returns the tail of a shard that has no segment yet.
    #[must_use]
    pub fn first(shard: u32) -> Self {
        Self {
            shard,
            next_index: FIRST_INDEX,
            next_position: LogPosition::START,
        }
    }
}

/// A torn tail that was cut off, consisting of the remains of writes that had not been synced
/// before a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// The length of the file after the cut.
    pub offset: u64,
    /// The number of bytes that were cut off.
    pub bytes: u64,
}

/// The result of a recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The tail of each shard folder that exists, in order.
    pub tails: Vec<Tail>,
    /// The torn tails that were cut off.
    pub torn: Vec<Torn>,
    /// The number of segments that were read.
    pub segments: u64,
    /// The number of ops that were visited.
    pub ops: u64,
    /// The total length of all segments after the cuts, in bytes.
    pub bytes: u64,
}

impl RecoveryReport {
    /// Returns the place where the next segment of `shard` begins, even if the shard has no folder
    /// yet.
    #[must_use]
    pub fn tail(&self, shard: u32) -> Tail {
        self.tails
            .iter()
            .copied()
            .find(|tail| tail.shard == shard)
            .unwrap_or(Tail::first(shard))
    }
}

/// A log whose segment headers have been read and checked. Its folders may be read in parallel.
pub struct Recovery<'a, D: Disk> {
    directory: &'a DataDirectory<D>,
    chains: Vec<Chain>,
}

/// The result of reading one folder.
pub struct FolderRead {
    ops: u64,
    whole_bytes: u64,
    last: Option<Extent>,
}

impl<'a, D: Disk> Recovery<'a, D> {
    /// Reads and checks the headers of all segments.
    pub fn open(directory: &'a DataDirectory<D>) -> Result<Self, RecoveryError> {
        let shards = directory.shards();
        let shards = shards.map_err(RecoveryError::at(directory.path()))?;
        let (disk, path, epoch) = (directory.disk(), directory.path(), directory.epoch());
        let chain = |shard| Chain::read(disk, path, epoch, shard);
        let chains: Vec<_> = shards.into_iter().map(chain).collect::<Result<_, _>>()?;
        Chain::check_begun(path, directory.identity().shards_begun, &chains)?;
        Ok(Self { directory, chains })
    }

    /// Returns the number of folders.
    #[must_use]
    pub fn folders(&self) -> usize {
        self.chains.len()
    }

    /// Returns the total length of all segments, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chains.iter().map(Chain::bytes).sum()
    }

    /// Visits every op in a folder, in order. Calls `progress` with the length of each segment
    /// after reading it.
    pub fn read(
        &self,
        folder: usize,
        mut visit: impl FnMut(&LoggedOp<'_>),
        mut progress: impl FnMut(u64),
    ) -> Result<FolderRead, RecoveryError> {
        let mut read = FolderRead {
            ops: 0,
            whole_bytes: 0,
            last: None,
        };
        let mut bytes = Vec::new();
        for link in &self.chains[folder].links {
            let extent = link.read(self.directory.disk(), &mut bytes, &mut visit)?;
            read.ops += extent.ops;
            read.whole_bytes += extent.whole_bytes;
            read.last = Some(extent);
            progress(link.file_bytes);
        }
        Ok(read)
    }

    /// Cuts off the torn tails and removes the files that crashes have left behind. Must be called
    /// only once all folders have been read successfully. `folders` contains one result for each
    /// folder, in order.
    ///
    /// # Panics
    ///
    /// If `folders` does not have exactly one result for each folder.
    pub fn finish(self, folders: &[FolderRead]) -> Result<RecoveryReport, RecoveryError> {
        let disk = self.directory.disk();
        let mut report = RecoveryReport::default();
        assert_eq!(
            folders.len(),
            self.chains.len(),
            "each folder has been read"
        );
        for (chain, read) in self.chains.iter().zip(folders) {
            let folder = self.directory.shard_path(chain.shard);
            // The result depends on the names that were found, so they are made durable first. The
            // rename that replaced segments may not be on disk yet, nor may the removal of an empty
            // segment; if that segment reappeared, the previous one would end earlier.
            disk.sync_folder(&folder)
                .map_err(RecoveryError::at(&folder))?;
            segment::sweep(disk, &folder).map_err(RecoveryError::at(&folder))?;
            for path in &chain.replaced {
                disk.remove(path).map_err(RecoveryError::at(path))?;
            }
            report.ops += read.ops;
            report.bytes += read.whole_bytes;
            report.segments += chain.links.len() as u64;
            let (Some(link), Some(last)) = (chain.links.last(), &read.last) else {
                report.tails.push(Tail::first(chain.shard));
                continue;
            };
            report.tails.push(Tail {
                shard: chain.shard,
                next_index: link.header.index + 1,
                next_position: last.end_position,
            });
            // Cut even if nothing is torn, because that releases the disk space that the segment
            // had reserved.
            segment::cut(disk, &link.path, last.whole_bytes)
                .map_err(RecoveryError::at(&link.path))?;
            if last.file_bytes > last.whole_bytes {
                report.torn.push(Torn {
                    path: link.path.clone(),
                    offset: last.whole_bytes,
                    bytes: last.file_bytes - last.whole_bytes,
                });
            }
        }
        Ok(report)
    }
}

/// Visits every op in every shard folder, however many shards wrote them, in file order, and cuts
/// the torn tails off the last segments. The caller must order ops across folders by timestamp and
/// seq.
pub fn recover<D: Disk>(
    directory: &DataDirectory<D>,
    mut visit: impl FnMut(&LoggedOp<'_>),
) -> Result<RecoveryReport, RecoveryError> {
    let recovery = Recovery::open(directory)?;
    let read = |folder| recovery.read(folder, &mut visit, |_| {});
    let folders: Vec<_> = (0..recovery.folders())
        .map(read)
        .collect::<Result<_, _>>()?;
    recovery.finish(&folders)
}

/// The folders that may contain ops of a shard's workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The shard. All segments of its own folder are read.
    pub shard: u32,
    /// The other folders, each with the index of its last segment from before this server started.
    /// Later segments contain only workspaces of the shards that wrote them.
    pub others: Vec<(u32, u64)>,
}

/// Reads closed segments again, so that a shard can rebuild itself while others are running.
/// Returns the number of ops. A closed segment cannot have a torn tail before the point where the
/// next one begins, so a torn tail is damage here.
pub fn replay<D: Disk>(
    directory: &DataDirectory<D>,
    sources: &Sources,
    mut visit: impl FnMut(&LoggedOp<'_>),
) -> Result<u64, RecoveryError> {
    let _unchanged = directory.reading();
    let (mut ops, mut bytes) = (0, Vec::new());
    let own = (sources.shard, u64::MAX);
    for &(shard, last_index) in sources.others.iter().chain([&own]) {
        let chain = Chain::read(directory.disk(), directory.path(), directory.epoch(), shard)?;
        for link in chain.links {
            if link.header.first_index() > last_index {
                break;
            }
            let extent = link.read(directory.disk(), &mut bytes, &mut visit)?;
            if extent.whole_bytes < extent.file_bytes {
                let what = "a closed segment has a torn tail";
                return Err(RecoveryError::damaged(&link.path, extent.whole_bytes, what));
            }
            ops += extent.ops;
        }
    }
    Ok(ops)
}
