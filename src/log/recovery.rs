//! Reading the log back: at the start of the server, and when a shard rebuilds itself.
//!
//! Here the rules that [`super::record`] argues meet the files. Everything is read and judged
//! before anything is cut or removed, so a damaged log is left as it was found.
//!
//! An op that a start shows to a client must be durable, also where the process before was killed
//! between a write and its sync, or had a sync fail and left pages in the cache that the disk does
//! not hold. So a last segment is synced, dropped from the cache and then read: what is read is
//! what the disk has.
//!
//! On any error the ops that were visited so far are worth nothing: they are to be dropped.

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

/// Where the next segment of a shard's folder begins.
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
    /// The tail of a shard that has no segment yet.
    #[must_use]
    pub fn first(shard: u32) -> Self {
        Self {
            shard,
            next_index: FIRST_INDEX,
            next_position: LogPosition::START,
        }
    }
}

/// A torn tail that was cut off: what a crash left of writes that nothing had synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// The length after the cut.
    pub offset: u64,
    /// How much was cut off.
    pub bytes: u64,
}

/// The result of a recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// One for each shard folder there is, in order.
    pub tails: Vec<Tail>,
    /// The tails that were cut off.
    pub torn: Vec<Torn>,
    /// The segments that were read.
    pub segments: u64,
    /// The ops that were visited.
    pub ops: u64,
    /// The length of all segments, after the cuts.
    pub bytes: u64,
}

impl RecoveryReport {
    /// Returns where the next segment of `shard` begins, even if it has no folder yet.
    #[must_use]
    pub fn tail(&self, shard: u32) -> Tail {
        self.tails
            .iter()
            .copied()
            .find(|tail| tail.shard == shard)
            .unwrap_or(Tail::first(shard))
    }
}

/// A log whose headers have been read and judged. Its folders may be read side by side.
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
    /// Reads the headers of all segments.
    pub fn open(directory: &'a DataDirectory<D>) -> Result<Self, RecoveryError> {
        let shards = directory.shards();
        let shards = shards.map_err(RecoveryError::at(directory.path()))?;
        let (disk, path, epoch) = (directory.disk(), directory.path(), directory.epoch());
        let chain = |shard| Chain::read(disk, path, epoch, shard);
        let chains: Vec<_> = shards.into_iter().map(chain).collect::<Result<_, _>>()?;
        Chain::check_begun(path, directory.identity().shards_begun, &chains)?;
        Ok(Self { directory, chains })
    }

    /// The number of folders.
    #[must_use]
    pub fn folders(&self) -> usize {
        self.chains.len()
    }

    /// The length of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chains.iter().map(Chain::bytes).sum()
    }

    /// Visits every op of a folder, in order. `progress` is called with the length of each segment
    /// that has been read.
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

    /// Cuts the torn tails off and removes what crashes left, once all folders have been read well;
    /// one for each folder, in order.
    pub fn finish(self, folders: &[FolderRead]) -> Result<RecoveryReport, RecoveryError> {
        let disk = self.directory.disk();
        let mut report = RecoveryReport::default();
        assert_eq!(folders.len(), self.chains.len(), "each folder was read");
        for (chain, read) in self.chains.iter().zip(folders) {
            let folder = self.directory.shard_path(chain.shard);
            // The result depends on the names that were found: the rename that replaced segments
            // may not be durable yet, nor the removal of an empty segment, which would end the
            // previous one earlier if it reappeared.
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
            // Also if nothing is torn: the cut gives back the disk that the segment had reserved.
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

/// Reads every op of every shard folder, whatever the number of shards that wrote them, in file
/// order, and cuts the torn tails off the last segments. The op order across folders is the
/// caller's to make, by timestamp and seq.
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

/// The folders that may have ops of a shard's workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The shard. All segments of its own folder are read.
    pub shard: u32,
    /// The other folders: what was there before this server began, up to the segment of that index.
    /// What came later is of the workspaces of the shards that wrote it.
    pub others: Vec<(u32, u64)>,
}

/// Reads closed segments again: a shard rebuilds itself while others run. Returns the number of
/// ops. A closed segment has no torn tail before the place where the next one begins, so that is
/// damage here.
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
