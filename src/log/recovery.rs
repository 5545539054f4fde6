//! Reads back the log when the server starts and when a shard rebuilds itself.
//!
//! This module applies the rules derived in [`super::record`] to the files. Everything is read and
//! checked before anything is cut off or removed, so a damaged log is left untouched.
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
use super::record::{Change, LoggedOp};
use super::segment;
use crate::generation::Generation;

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

/// The last generation record of a shard's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderGeneration {
    /// The shard.
    pub shard: u32,
    /// The id of the generation.
    pub id: Generation,
    /// Its number, which is greater than that of every earlier start in any folder.
    pub number: u64,
    /// The number of shards of the server that began it.
    pub shards: u32,
}

impl FolderGeneration {
    /// Replaces `held`, the last generation found so far in a shard's folder, if this record begins
    /// a later one.
    pub fn update(held: &mut Option<Self>, op: &LoggedOp<'_>, shard: u32) {
        let number = op.seq.get();
        if let Change::Generation { id, shards } = op.change
            && held.is_none_or(|held| held.number < number)
        {
            *held = Some(Self {
                shard,
                id,
                number,
                shards,
            });
        }
    }
}

/// The result of a recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The tail of each shard folder that exists, in order.
    pub tails: Vec<Tail>,
    /// The last generation record of each folder that has one, in the order of the shards.
    pub generations: Vec<FolderGeneration>,
    /// The torn tails that were cut off.
    pub torn: Vec<Torn>,
    /// The number of segments that were read.
    pub segments: u64,
    /// The number of writes and deletes that were visited.
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

    /// Returns the number of the generations that all shards begin when the server starts. It
    /// exceeds all numbers in the log, which [`previous_generation`] relies on.
    #[must_use]
    pub fn next_generation_number(&self) -> u64 {
        let numbers = self.generations.iter().map(|last| last.number);
        numbers.max().unwrap_or(0) + 1
    }
}

/// Returns the generation that the next one of `shard` continues, in a server that starts with
/// `shards` shards: a client that was in that generation, and has no op from after it, holds a
/// prefix of the shard's history. `folders` are the last generations of all folders.
///
/// Returns `None` if that is not certain. Clients then receive the full state, which is always
/// correct.
///
/// A client may have seen ops that a crash then undid (`--durability interval` or `none`). Such a
/// client is recognised because the workspace's seq was lower when the next generation began. That
/// works only for the immediately preceding generation: two generations later, other ops may have
/// taken these seqs. So the question is which generation was the last to write ops of the shard's
/// workspaces. The log answers it in two cases.
///
/// 1. All folders end with the same generation. It belongs to the last start that wrote anything,
///    since the generation record is the first record that a start writes to a folder, and no shard
///    was rebuilt afterwards, since each rebuild has its own id. Whichever shard owned a workspace
///    then, the workspace was in this generation.
/// 2. The shard's own folder ends with a generation with the same number of shards as now. A
///    workspace's shard follows from its id and the number of shards, so the shard owned the same
///    workspaces then. No later generation with that number of shards has written to them, or its
///    record would be in this folder, where it precedes its ops. A later generation with a
///    different number of shards may have written to them in another folder. But each start gets a
///    number above all earlier ones, so a generation with a smaller number is not a later one.
///
/// A server that sends ops before they are durable records a generation of 0 shards, which is not
/// continued. So does a repair that loses ops: no client was ever in that generation, and its
/// number is above all others, so nothing continues an earlier one.
#[must_use]
pub fn previous_generation(
    folders: &[FolderGeneration],
    shard: u32,
    shards: u32,
) -> Option<Generation> {
    let first = folders.first()?;
    if folders.iter().all(|folder| folder.id == first.id) {
        return (first.shards > 0).then_some(first.id);
    }
    let own = folders.iter().find(|folder| folder.shard == shard)?;
    let is_later =
        |folder: &&FolderGeneration| folder.shards != own.shards && folder.number >= own.number;
    let is_last = own.shards == shards && !folders.iter().any(|folder| is_later(&folder));
    is_last.then_some(own.id)
}

/// A log whose segment headers have been read and checked. Its folders may be read in parallel.
pub struct Recovery<'a, D: Disk> {
    directory: &'a DataDirectory<D>,
    chains: Vec<Chain>,
}

/// The result of reading one folder.
pub struct FolderRead {
    ops: u64,
    generation: Option<FolderGeneration>,
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
            generation: None,
            whole_bytes: 0,
            last: None,
        };
        let mut bytes = Vec::new();
        let Chain { shard, links, .. } = &self.chains[folder];
        for link in links {
            let extent = link.read(self.directory.disk(), &mut bytes, |op| {
                read.ops += u64::from(op.change.is_op());
                FolderGeneration::update(&mut read.generation, op, *shard);
                visit(op);
            })?;
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
            report.generations.extend(read.generation);
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

/// Visits every op in every shard folder, regardless of the number of shards that wrote them, in
/// file order, and cuts the torn tails off the last segments. The caller must order ops across
/// folders by timestamp and seq.
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
/// Returns the number of writes and deletes. A closed segment cannot have a torn tail before the
/// point where the next one begins, so a torn tail is damage here.
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
            let extent = link.read(directory.disk(), &mut bytes, |op| {
                ops += u64::from(op.change.is_op());
                visit(op);
            })?;
            if extent.whole_bytes < extent.file_bytes {
                let what = "a closed segment has a torn tail";
                return Err(RecoveryError::damaged(&link.path, extent.whole_bytes, what));
            }
        }
    }
    Ok(ops)
}
