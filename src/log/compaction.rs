//! Compaction of closed segments: they are rewritten without their superseded ops.
//!
//! Compaction runs in the background, on closed segments only, and shares nothing with the code
//! path of an op. It reads all closed segments of the data directory once, and indexes the winning
//! op of each key: the key and a few numbers, but not the value. Then it divides each folder's
//! chain into groups of segments whose winning ops fill one segment, and replaces each group that
//! has enough dead bytes with one segment. [`super::record`] describes what a crash can leave at
//! each step.
//!
//! Segments that are known to contain only superseded ops are not even read
//! ([`Compaction::sweep`]). If a few keys are overwritten again and again, that applies to nearly
//! all segments.
//!
//! An op is dropped only if an op in a closed segment of any folder, which is therefore on disk,
//! supersedes it. The order in which segments are read afterwards does not matter, because replay
//! merges by timestamp and seq.

use std::collections::VecDeque;
use std::io;
use std::ops::{ControlFlow, Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::chain::{Chain, Link, RecoveryError};
use super::directory::DataDirectory;
use super::disk::{Disk, DiskFile};
use super::position::LogPosition;
use super::record::{
    self, BATCH_HEADER_BYTES, Compacted, FORMAT_VERSION, LoggedOp, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use super::rewrite::Rewrite;
use super::segment;
use crate::limits::{
    COMPACTION_BATCH_BYTES, COMPACTION_DEAD_SHARE, COMPACTION_READ_BYTES, SEGMENT_LIVE_SHARE,
};
use crate::log::remedy::WithRemedy;

mod winners;

#[cfg(test)]
mod tests;

use winners::{DroppedTombstone, WinnerIndex};

/// The reason why a compaction ended early. Segments that were already replaced stay replaced; the
/// rest are unchanged.
#[derive(Debug, Error)]
pub enum CompactionError {
    /// A segment cannot be read.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The new segment cannot be written. The compaction may be retried.
    #[error("{path}: {}", WithRemedy(.source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The folder cannot be synced after a segment was replaced. The old segments are kept, since
    /// it is unknown whether the new name is on disk, and even a later successful sync may not
    /// prove that it is. Compaction must not be retried before the next start.
    #[error("{path} cannot be synced: {}", WithRemedy(.source))]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The caller stopped the compaction.
    #[error("stopped")]
    Stopped,
}

impl CompactionError {
    /// Returns whether the compaction failed because the disk had too little space for the new
    /// segment.
    #[must_use]
    pub fn is_for_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull, WriteZero};
        let Self::Write { source, .. } = self else {
            return false;
        };
        matches!(source.kind(), StorageFull | QuotaExceeded | WriteZero)
    }
}

/// The settings that determine which segments are rewritten, and how large the new ones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A group of segments is rewritten if at least one in `dead_share` of its bytes is dead.
    pub dead_share: u64,
    /// The minimum size of new segments, which otherwise hold about an eighth of the live bytes.
    pub segment_bytes_min: u64,
    /// The maximum size of new segments, in bytes.
    pub segment_bytes_max: u64,
}

impl Settings {
    /// Returns the settings of a running server, which leaves segments with few dead bytes alone.
    #[must_use]
    pub fn routine(segment_bytes_min: u64, segment_bytes_max: u64) -> Self {
        Self {
            dead_share: COMPACTION_DEAD_SHARE,
            segment_bytes_min,
            segment_bytes_max,
        }
    }

    /// Returns these settings without the threshold for dead bytes, so that every group that would
    /// shrink is rewritten.
    #[must_use]
    pub fn thorough(self) -> Self {
        Self {
            dead_share: u64::MAX,
            ..self
        }
    }
}

/// A callback that receives the number of bytes read after each piece of work. It may sleep, and it
/// may stop the compaction.
pub type Throttle<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// The work that a compaction has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactionOutcome {
    /// The number of closed segments at the start.
    pub segments: u64,
    /// The total length of these segments, in bytes.
    pub bytes: u64,
    /// The number of segments that were replaced.
    pub segments_replaced: u64,
    /// The number of segments that were written to replace them.
    pub segments_written: u64,
    /// The disk space that was freed, in bytes.
    pub bytes_freed: u64,
}

/// A compaction in progress.
pub struct Compaction<D: Disk> {
    directory: Arc<DataDirectory<D>>,
    settings: Settings,
    /// Whether to work in small steps, in increasing order of the disk space that they need.
    is_short_of_room: bool,
    /// The closed segments. Those of one folder are adjacent and in order.
    links: Vec<Link>,
    /// The number of `links` that are in the index. A sweep counts all of them, since it reads
    /// none.
    read_count: usize,
    index: WinnerIndex,
    /// Ranges of `links` that are to be replaced by one segment each.
    groups: VecDeque<Range<usize>>,
    outcome: CompactionOutcome,
    /// The disk space that was freed in each shard's folder, in bytes.
    freed_bytes: Vec<(u32, u64)>,
    /// See [`Compaction::blocked_bytes`].
    blocked_bytes: Vec<(u32, u64)>,
    bytes: Vec<u8>,
}

impl<D: Disk> Compaction<D> {
    /// Finds the closed segments. `open` holds the index of the open segment of each running shard;
    /// that segment and any later ones are left alone. The caller must run at most one compaction
    /// at a time.
    pub fn plan(
        directory: Arc<DataDirectory<D>>,
        open: &[(u32, u64)],
        settings: Settings,
    ) -> Result<Self, CompactionError> {
        let shards = directory.shards();
        let shards = shards.map_err(RecoveryError::at(directory.path()))?;
        let mut links = Vec::new();
        for shard in shards {
            let chain = Chain::read(directory.disk(), directory.path(), directory.epoch(), shard)?;
            remove_replaced(&directory, &chain)?;
            let open_index = open.iter().find(|open| open.0 == shard);
            let open_index = open_index.map_or(u64::MAX, |open| open.1);
            // A failed rebuild may have removed the open segment again. Only the next attempt
            // decides where the next segment begins, so the files do not show where the ops of the
            // last segment on disk end.
            let is_running = open_index != u64::MAX;
            let closed = |link: &Link| {
                link.header.index < open_index && (link.end_position.is_some() || !is_running)
            };
            links.extend(chain.links.into_iter().filter(closed));
        }
        Ok(Self {
            outcome: outcome_of(&links),
            index: WinnerIndex::new(links.len(), true),
            directory,
            settings,
            is_short_of_room: false,
            links,
            read_count: 0,
            groups: VecDeque::new(),
            freed_bytes: Vec::new(),
            blocked_bytes: Vec::new(),
            bytes: Vec::new(),
        })
    }

    /// Plans a compaction that replaces only closed segments without live ops, and reads none of
    /// them. `is_dead` returns whether all ops in a shard's segments with these indexes are
    /// superseded by ops in closed segments. `open` and `settings` are as in [`Compaction::plan`].
    pub fn sweep(
        directory: Arc<DataDirectory<D>>,
        open: &[(u32, u64)],
        settings: Settings,
        is_dead: impl Fn(u32, &RangeInclusive<u64>) -> bool,
    ) -> Result<Self, CompactionError> {
        let mut sweep = Self::plan(directory, open, settings)?;
        sweep.read_count = sweep.links.len();
        let mut begin = 0;
        for end in 1..=sweep.links.len() {
            let is_swept = |link: &Link| {
                let SegmentHeader { shard, index, .. } = link.header;
                is_dead(shard, &(link.header.first_index()..=index))
            };
            let last = &sweep.links[end - 1];
            let goes_on = |next: &Link| next.header.shard == last.header.shard && is_swept(next);
            if !is_swept(last) {
                begin = end;
            } else if !sweep.links.get(end).is_some_and(goes_on) {
                if sweep.is_worth_it(begin..end, 0) {
                    sweep.groups.push_back(begin..end);
                }
                begin = end;
            }
        }
        Ok(sweep)
    }

    /// Restricts the compaction to these shards. The folders of all other shards are not even read.
    /// This is safe because an op is dropped only if an op in one of the folders read supersedes
    /// it.
    ///
    /// # Panics
    /// If the compaction has already started.
    #[must_use]
    pub fn only(mut self, shards: &[u32]) -> Self {
        assert!(
            self.read_count == 0 && self.groups.is_empty(),
            "shards are selected after the first step"
        );
        let all_count = self.links.len();
        self.links
            .retain(|link| shards.contains(&link.header.shard));
        let has_all_folders = self.links.len() == all_count;
        self.index = WinnerIndex::new(self.links.len(), has_all_folders);
        self.outcome = outcome_of(&self.links);
        self
    }

    /// Makes the compaction remove all dead bytes, in small steps. The steps that need the least
    /// disk space come first, so that the space they free is available to later ones.
    #[must_use]
    pub fn in_small_steps(mut self) -> Self {
        self.settings = self.settings.thorough();
        self.is_short_of_room = true;
        self
    }

    /// Returns the number of live bytes in a shard's folder; valid once all segments have been
    /// read.
    #[must_use]
    pub fn kept_bytes(&self, shard: u32) -> u64 {
        let live_bytes = self.links.iter().zip(self.index.live_bytes());
        live_bytes
            .filter(|(link, _)| link.header.shard == shard)
            .map(|(_, live_bytes)| live_bytes)
            .sum()
    }

    /// Returns the number of bytes of tombstones in a shard's folder that the server has dropped,
    /// but that a compaction of some folders may not drop, because another folder might still have
    /// an older op on the key. They are part of [`Compaction::kept_bytes`].
    #[must_use]
    pub fn blocked_bytes(&self, shard: u32) -> u64 {
        let blocked = self.blocked_bytes.iter().filter(|(of, _)| *of == shard);
        blocked.map(|(_, bytes)| bytes).sum()
    }

    /// Returns the number of bytes by which a shard's folder has shrunk.
    #[must_use]
    pub fn freed_bytes(&self, shard: u32) -> u64 {
        let freed = self.freed_bytes.iter().filter(|(of, _)| *of == shard);
        freed.map(|(_, bytes)| bytes).sum()
    }

    /// Returns whether there is nothing left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.read_count == self.links.len() && self.groups.is_empty()
    }

    /// Performs the next step: reads a segment, or replaces a group. Returns whether there is more
    /// to do.
    pub fn step(&mut self, throttle: &mut Throttle<'_>) -> Result<bool, CompactionError> {
        if self.read_count < self.links.len() {
            self.read_next(throttle)?;
            if self.read_count == self.links.len() {
                self.group();
            }
        } else if let Some(group) = self.groups.pop_front() {
            self.replace(group, throttle)?;
        }
        Ok(!self.is_done())
    }

    /// Returns the work done so far.
    #[must_use]
    pub fn outcome(&self) -> CompactionOutcome {
        self.outcome
    }

    fn read_next(&mut self, throttle: &mut Throttle<'_>) -> Result<(), CompactionError> {
        let place = self.read_count;
        let mut pieces = ReadThrottle::default();
        self.links[place].read(self.directory.disk(), &mut self.bytes, |op| {
            self.index.note(op, place);
            pieces.add(op, throttle);
        })?;
        pieces.end(throttle)?;
        self.read_count += 1;
        Ok(())
    }

    /// Divides the segments into groups. A group consists of adjacent segments of one folder whose
    /// winning ops fit in one new segment.
    fn group(&mut self) {
        let mut dropped = self.index.dropped_tombstones();
        if !self.index.has_all_folders() {
            let shard = |place: usize| self.links[place].header.shard;
            let blocked = dropped.drain(..);
            let blocked = blocked.map(|tombstone| (shard(tombstone.place), tombstone.bytes));
            self.blocked_bytes = blocked.collect();
        }
        dropped.sort_unstable_by_key(|tombstone| tombstone.place);
        let live_bytes: u64 = self.index.live_bytes().iter().sum();
        let segment_bytes = if self.is_short_of_room {
            self.settings.segment_bytes_min
        } else {
            (live_bytes / SEGMENT_LIVE_SHARE).clamp(
                self.settings.segment_bytes_min,
                self.settings.segment_bytes_max,
            )
        };
        let mut begin = 0;
        let mut live = 0;
        for end in 1..=self.links.len() {
            live += self.index.live_bytes()[end - 1];
            let next = self.links.get(end);
            let is_last = next.is_none_or(|next| {
                next.header.shard != self.links[begin].header.shard
                    || live + self.index.live_bytes()[end] > segment_bytes
            });
            if is_last {
                self.push_if_worth_it(begin..end, live, &dropped);
                (begin, live) = (end, 0);
            }
        }
        if self.is_short_of_room {
            let live_bytes = self.index.live_bytes();
            let needed_bytes =
                |group: &Range<usize>| -> u64 { live_bytes[group.clone()].iter().sum() };
            self.groups.make_contiguous().sort_by_key(needed_bytes);
        }
    }

    /// Adds a group with `live_bytes`, from which its rewrite also drops some of the `dropped`
    /// tombstones, if that frees enough. `dropped` is in order of place.
    fn push_if_worth_it(
        &mut self,
        group: Range<usize>,
        live_bytes: u64,
        dropped: &[DroppedTombstone],
    ) {
        let first = dropped.partition_point(|tombstone| tombstone.place < group.start);
        let end = dropped.partition_point(|tombstone| tombstone.place < group.end);
        let in_group = || dropped[first..end].iter().filter(|it| it.goes_with(&group));
        let dropped_bytes: u64 = in_group().map(|tombstone| tombstone.bytes).sum();
        if self.is_worth_it(group.clone(), live_bytes - dropped_bytes) {
            in_group().for_each(|tombstone| self.index.drop_tombstone(tombstone));
            self.groups.push_back(group);
        }
    }

    fn is_worth_it(&self, group: Range<usize>, live_bytes: u64) -> bool {
        let bytes: u64 = self.links[group].iter().map(|link| link.file_bytes).sum();
        let batches = live_bytes / COMPACTION_BATCH_BYTES as u64 + 2;
        let needed = SEGMENT_HEADER_BYTES as u64 + live_bytes + batches * BATCH_HEADER_BYTES as u64;
        let dead = bytes.saturating_sub(needed);
        dead > 0 && dead.saturating_mul(self.settings.dead_share) >= bytes
    }

    fn replace(
        &mut self,
        group: Range<usize>,
        throttle: &mut Throttle<'_>,
    ) -> Result<(), CompactionError> {
        let (first, last) = (&self.links[group.start], &self.links[group.end - 1]);
        let path_new = segment::new_path(
            &self.directory.shard_path(last.header.shard),
            last.header.index,
        );
        let replaced = last.header.index - first.header.first_index();
        let header = SegmentHeader {
            format_version: FORMAT_VERSION,
            first_position: first.header.first_position,
            compacted: Some(Compacted {
                replaced: u32::try_from(replaced).expect("fewer than 2^32 segments in a group"),
                end_position: last.end_position.unwrap_or(end_of(last)),
            }),
            ..last.header
        };
        let written = self.write(group.clone(), &path_new, &header, throttle);
        if written.is_err() {
            // The first error is the one to report. A file that cannot be removed now is removed at
            // the next start.
            let _ = self.directory.disk().remove(&path_new);
        }
        let written_bytes = written?;
        self.swap(group.clone(), &path_new, throttle)?;
        let links = &self.links[group];
        let old_bytes: u64 = links.iter().map(|link| link.file_bytes).sum();
        self.outcome.segments_replaced += links.len() as u64;
        self.outcome.segments_written += 1;
        let freed_bytes = old_bytes.saturating_sub(written_bytes);
        self.outcome.bytes_freed += freed_bytes;
        self.freed_bytes.push((header.shard, freed_bytes));
        Ok(())
    }

    /// Writes the live ops of a group piece by piece and syncs each piece, so that a sync of the
    /// log never waits for more than a small part of this data.
    fn write(
        &mut self,
        group: Range<usize>,
        path: &Path,
        header: &SegmentHeader,
        throttle: &mut Throttle<'_>,
    ) -> Result<u64, CompactionError> {
        let failed = |source| CompactionError::Write {
            path: path.to_path_buf(),
            source,
        };
        let disk = self.directory.disk();
        let mut rewrite = Rewrite::begin(disk, path, *header).map_err(failed)?;
        let is_live = |place: &usize| self.index.live_bytes()[*place] > 0;
        for place in group.clone().filter(is_live) {
            // Each segment is read to its end even after an error or a stop, so the extra work is
            // at most one segment.
            let mut outcome = Ok(());
            let mut pieces = ReadThrottle::default();
            self.links[place].read(disk, &mut self.bytes, |op| {
                pieces.add(op, throttle);
                if outcome.is_ok() && self.index.keeps(op, place, &group) {
                    outcome = match rewrite.push(op) {
                        Ok(false) => Ok(()),
                        Ok(true) => yield_to(throttle, 0),
                        Err(source) => Err(failed(source)),
                    };
                }
            })?;
            outcome?;
            pieces.end(throttle)?;
        }
        let written_bytes = rewrite.finish().map_err(failed)?;
        yield_to(throttle, 0)?;
        Ok(written_bytes)
    }

    /// Replaces the group with the new segment. This is safe because the old segments are removed
    /// only once the rename of the new one is on disk.
    fn swap(
        &self,
        group: Range<usize>,
        path_new: &Path,
        throttle: &mut Throttle<'_>,
    ) -> Result<(), CompactionError> {
        let disk = self.directory.disk();
        // If the lock has been lost, the files at these paths may belong to another server or to a
        // restored backup by now.
        if !self.directory.is_lock_in_place().unwrap_or(true) {
            return Err(CompactionError::Stopped);
        }
        let (last, before) = self.links[group]
            .split_last()
            .expect("a group has at least one segment");
        // If the file cannot be opened here, the kernel frees all of its blocks at once.
        let last_old = disk.open_writable(&last.path).ok();
        let nobody_reads = self.directory.replacing();
        if let Err(source) = disk.rename(path_new, &last.path) {
            let _ = disk.remove(path_new);
            return Err(CompactionError::Write {
                path: last.path.clone(),
                source,
            });
        }
        let folder = self.directory.shard_path(last.header.shard);
        if let Err(source) = disk.sync_folder(&folder) {
            return Err(CompactionError::Folder {
                path: folder,
                source,
            });
        }
        drop(nobody_reads);
        for link in before {
            let file = disk.open_writable(&link.path).ok();
            let nobody_reads = self.directory.replacing();
            // If a segment cannot be removed, it is still marked as replaced, and the next start
            // removes it.
            let removed = disk.remove(&link.path);
            drop(nobody_reads);
            if let (Ok(()), Some(file)) = (removed, file) {
                shrink(&file, throttle)?;
            }
        }
        last_old.map_or(Ok(()), |file| shrink(&file, throttle))
    }
}

/// Removes segments that an earlier compaction replaced but could not remove.
fn remove_replaced<D: Disk>(
    directory: &DataDirectory<D>,
    chain: &Chain,
) -> Result<(), CompactionError> {
    if chain.replaced.is_empty() {
        return Ok(());
    }
    let (disk, path) = (directory.disk(), directory.shard_path(chain.shard));
    // The segment that replaced them must survive a crash.
    disk.sync_folder(&path)
        .map_err(|source| CompactionError::Folder { path, source })?;
    let _nobody_reads = directory.replacing();
    for path in &chain.replaced {
        // The next compaction or the next start tries again.
        let _ = disk.remove(path);
    }
    Ok(())
}

fn outcome_of(links: &[Link]) -> CompactionOutcome {
    CompactionOutcome {
        segments: links.len() as u64,
        bytes: links.iter().map(|link| link.file_bytes).sum(),
        ..CompactionOutcome::default()
    }
}

/// Frees the blocks of a deleted file in pieces. Freeing a large file at once delays every sync on
/// the disk, especially on ext4 mounted with `discard`. A file that is being read is not truncated.
fn shrink<F: DiskFile>(file: &F, throttle: &mut Throttle<'_>) -> Result<(), CompactionError> {
    let Ok(mut bytes) = file.bytes() else {
        return Ok(());
    };
    while bytes > 0 && matches!(file.claim(), Ok(true)) {
        let piece_bytes = bytes.min(COMPACTION_BATCH_BYTES as u64);
        bytes -= piece_bytes;
        if file.set_bytes(bytes).is_err() {
            break;
        }
        yield_to(throttle, 0)?;
    }
    Ok(())
}

/// Returns the log position at the end of the last segment of a shard that is no longer running.
fn end_of(link: &Link) -> LogPosition {
    match link.header.compacted {
        Some(compacted) => compacted.end_position,
        None => link.header.position(link.file_bytes),
    }
}

fn yield_to(throttle: &mut Throttle<'_>, bytes: u64) -> Result<(), CompactionError> {
    match throttle(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(CompactionError::Stopped),
    }
}

/// Yields between the pieces of a segment that is being read, so that a shared core is released
/// soon.
#[derive(Default)]
struct ReadThrottle {
    bytes: usize,
    is_stopped: bool,
}

impl ReadThrottle {
    fn add(&mut self, op: &LoggedOp<'_>, throttle: &mut Throttle<'_>) {
        self.bytes += record::op_bytes(op);
        if self.bytes >= COMPACTION_READ_BYTES && !self.is_stopped {
            self.is_stopped = yield_to(throttle, self.bytes as u64).is_err();
            self.bytes = 0;
        }
    }

    /// Yields after the last piece. Returns an error if the compaction was stopped.
    fn end(self, throttle: &mut Throttle<'_>) -> Result<(), CompactionError> {
        if self.is_stopped {
            return Err(CompactionError::Stopped);
        }
        yield_to(throttle, self.bytes as u64)
    }
}
