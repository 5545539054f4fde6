//! Compaction: closed segments are rewritten without superseded ops.
//!
//! It runs beside the server, on closed segments only, and shares nothing with the path of an op.
//! It reads all closed segments of the data directory once, and remembers which op of each key
//! wins: keys and numbers, no values. Then it divides each folder's chain into groups of segments
//! whose winning ops fill one segment, and replaces each group that has enough dead bytes by one
//! segment. [`super::record`] says what a crash leaves at each step.
//!
//! Segments that are known to be completely overwritten are not even read ([`Compaction::sweep`]):
//! where few keys are written again and again, that is nearly all of them.
//!
//! An op is left out only if another one, in any folder, supersedes it and is in a closed segment,
//! which is completely on disk. The order in which segments are read afterwards does not matter:
//! replay merges by timestamp and seq.

use std::collections::VecDeque;
use std::io;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use thiserror::Error;

use super::chain::{Chain, Link, RecoveryError};
use super::directory::DataDirectory;
use super::disk::{Disk, DiskFile};
use super::position::LogPosition;
use super::record::{
    self, BATCH_HEADER_BYTES, Compacted, LoggedOp, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::rewrite::Rewrite;
use super::segment;
use crate::limits::{
    COMPACTION_BATCH_BYTES, COMPACTION_DEAD_SHARE, COMPACTION_READ_BYTES, SEGMENT_LIVE_SHARE,
};
use crate::log::remedy::WithRemedy;
use crate::seq::Seq;

#[cfg(test)]
mod tests;

/// Why a compaction ended early. What it had replaced by then stays replaced; the rest is
/// unchanged.
#[derive(Debug, Error)]
pub enum CompactionError {
    /// A segment cannot be read.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The new segment cannot be written. It may be tried again.
    #[error("{path}: {}", WithRemedy(.source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The folder cannot be synced after a segment was replaced. The old segments are kept, since
    /// it is unknown whether the new name is on disk, and a later sync that succeeds may not mean
    /// that it is: compaction must not be tried again before the next start.
    #[error("{path} cannot be synced: {}", WithRemedy(.source))]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The caller asked it to stop.
    #[error("stopped")]
    Stopped,
}

impl CompactionError {
    /// Returns whether the disk had no room for the new segment.
    #[must_use]
    pub fn is_for_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull, WriteZero};
        let Self::Write { source, .. } = self else {
            return false;
        };
        matches!(source.kind(), StorageFull | QuotaExceeded | WriteZero)
    }
}

/// How much a compaction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A group of segments is rewritten if at least one in this many of its bytes is dead.
    pub dead_share: u64,
    /// New segments have about an eighth of the live bytes, but at least this many.
    pub segment_bytes_min: u64,
    /// New segments have at most this many bytes.
    pub segment_bytes_max: u64,
}

impl Settings {
    /// Returns the settings of a running server: segments with few dead bytes are left alone.
    #[must_use]
    pub fn routine(segment_bytes_min: u64, segment_bytes_max: u64) -> Self {
        Self {
            dead_share: COMPACTION_DEAD_SHARE,
            segment_bytes_min,
            segment_bytes_max,
        }
    }

    /// Returns settings with which everything dead is removed.
    #[must_use]
    pub fn thorough(self) -> Self {
        Self {
            dead_share: u64::MAX,
            ..self
        }
    }
}

/// Called after each piece of work with the number of bytes that were read. It may sleep, and may
/// stop the compaction.
pub type Throttle<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// The work of a compaction so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactionOutcome {
    /// Closed segments that there were.
    pub segments: u64,
    /// Their length.
    pub bytes: u64,
    /// Segments that were replaced.
    pub segments_replaced: u64,
    /// Segments that were written in their place.
    pub segments_written: u64,
    /// The bytes that were given back to the disk.
    pub bytes_freed: u64,
}

/// A compaction under way.
pub struct Compaction<D: Disk> {
    directory: Arc<DataDirectory<D>>,
    settings: Settings,
    /// Each step needs little room on the disk, and the first ones the least.
    is_short_of_room: bool,
    /// Closed segments, those of a folder in their order.
    links: Vec<Link>,
    /// How many of `links` are in the index; of a sweep, all, since none is read.
    read_count: usize,
    index: WinnerIndex,
    /// Ranges of `links`.
    groups: VecDeque<std::ops::Range<usize>>,
    outcome: CompactionOutcome,
    /// The bytes that were given back to the disk, by shard.
    freed_bytes: Vec<(u32, u64)>,
    bytes: Vec<u8>,
}

impl<D: Disk> Compaction<D> {
    /// Finds the closed segments. `open` has the index of the open segment of each running shard:
    /// that one and later ones are left alone. At most one compaction runs at a time.
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
            // A rebuild that failed may have removed the open segment again. The last segment on
            // disk is then continued at a position that only the next try knows, so where its ops
            // end cannot be told from its file.
            let is_running = open_index != u64::MAX;
            let closed = |link: &Link| {
                link.header.index < open_index && (link.end_position.is_some() || !is_running)
            };
            links.extend(chain.links.into_iter().filter(closed));
        }
        Ok(Self {
            outcome: outcome_of(&links),
            index: WinnerIndex::new(links.len()),
            directory,
            settings,
            is_short_of_room: false,
            links,
            read_count: 0,
            groups: VecDeque::new(),
            freed_bytes: Vec::new(),
            bytes: Vec::new(),
        })
    }

    /// Finds the closed segments that hold nothing live, and reads none: `is_dead` returns whether
    /// all ops of a shard's segments with these indexes are superseded by ops in closed segments.
    /// Otherwise the same as [`Compaction::plan`].
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

    /// Restricts the compaction to these shards: the folders of all others are not even read. An op
    /// is left out only if an op in one of these folders supersedes it, so nothing depends on what
    /// was not read.
    ///
    /// # Panics
    /// If the compaction has begun.
    #[must_use]
    pub fn only(mut self, shards: &[u32]) -> Self {
        assert!(
            self.read_count == 0 && self.groups.is_empty(),
            "what is read is decided before the first step"
        );
        self.links
            .retain(|link| shards.contains(&link.header.shard));
        self.index = WinnerIndex::new(self.links.len());
        self.outcome = outcome_of(&self.links);
        self
    }

    /// Removes everything dead, in steps that need little room on the disk: those that need least
    /// come first, and each frees more than the next ones need.
    #[must_use]
    pub fn in_small_steps(mut self) -> Self {
        self.settings = self.settings.thorough();
        self.is_short_of_room = true;
        self
    }

    /// Returns the bytes of a shard's folder that are live, once all segments have been read.
    #[must_use]
    pub fn kept_bytes(&self, shard: u32) -> u64 {
        let live_bytes = self.links.iter().zip(&self.index.live_bytes);
        live_bytes
            .filter(|(link, _)| link.header.shard == shard)
            .map(|(_, live_bytes)| live_bytes)
            .sum()
    }

    /// By how much a shard's folder is shorter than it was.
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

    /// Does the next part: reads a segment, or replaces a group. False: all is done.
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

    /// Segments of one folder whose winners fill a segment are a group.
    fn group(&mut self) {
        let live_bytes: u64 = self.index.live_bytes.iter().sum();
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
            live += self.index.live_bytes[end - 1];
            let next = self.links.get(end);
            let is_last = next.is_none_or(|next| {
                next.header.shard != self.links[begin].header.shard
                    || live + self.index.live_bytes[end] > segment_bytes
            });
            if is_last {
                if self.is_worth_it(begin..end, live) {
                    self.groups.push_back(begin..end);
                }
                (begin, live) = (end, 0);
            }
        }
        if self.is_short_of_room {
            let index = &self.index;
            let needed_bytes = |group: &std::ops::Range<usize>| -> u64 {
                index.live_bytes[group.clone()].iter().sum()
            };
            self.groups.make_contiguous().sort_by_key(needed_bytes);
        }
    }

    fn is_worth_it(&self, group: std::ops::Range<usize>, live_bytes: u64) -> bool {
        let bytes: u64 = self.links[group].iter().map(|link| link.file_bytes).sum();
        let batches = live_bytes / COMPACTION_BATCH_BYTES as u64 + 2;
        let needed = SEGMENT_HEADER_BYTES as u64 + live_bytes + batches * BATCH_HEADER_BYTES as u64;
        let dead = bytes.saturating_sub(needed);
        dead > 0 && dead.saturating_mul(self.settings.dead_share) >= bytes
    }

    fn replace(
        &mut self,
        group: std::ops::Range<usize>,
        throttle: &mut Throttle<'_>,
    ) -> Result<(), CompactionError> {
        let (first, last) = (&self.links[group.start], &self.links[group.end - 1]);
        let path_new = segment::new_path(
            &self.directory.shard_path(last.header.shard),
            last.header.index,
        );
        let replaced = last.header.index - first.header.first_index();
        let header = SegmentHeader {
            first_position: first.header.first_position,
            compacted: Some(Compacted {
                replaced: u32::try_from(replaced).expect("fewer than 2^32 segments in a group"),
                end_position: last.end_position.unwrap_or(end_of(last)),
            }),
            ..last.header
        };
        let written = self.write(group.clone(), &path_new, &header, throttle);
        if written.is_err() {
            // The first error is the one to report. A file that cannot be removed is removed by the
            // next start.
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

    /// Writes the live ops of a group in pieces, each synced, so that no sync of the log has to
    /// wait for much of it.
    fn write(
        &mut self,
        group: std::ops::Range<usize>,
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
        for place in group.filter(|place| self.index.live_bytes[*place] > 0) {
            // A segment is read completely before its live ops are written, so a piece is bounded
            // by a segment.
            let mut outcome = Ok(());
            let mut pieces = ReadThrottle::default();
            self.links[place].read(disk, &mut self.bytes, |op| {
                pieces.add(op, throttle);
                if outcome.is_ok() && self.index.wins(op, place) {
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

    /// Replaces the group by the new segment. The order is what makes it safe: the old segments are
    /// removed once the new one has its name on disk.
    fn swap(
        &self,
        group: std::ops::Range<usize>,
        path_new: &Path,
        throttle: &mut Throttle<'_>,
    ) -> Result<(), CompactionError> {
        let disk = self.directory.disk();
        // Without its lock, what is at these paths may be another server's by now, or a backup.
        if !self.directory.is_lock_in_place().unwrap_or(true) {
            return Err(CompactionError::Stopped);
        }
        let (last, before) = self.links[group]
            .split_last()
            .expect("a group has a segment");
        // A file that cannot be opened is freed at once, by the kernel.
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
            // A segment that remains is known to be replaced, and removed by the next start.
            let removed = disk.remove(&link.path);
            drop(nobody_reads);
            if let (Ok(()), Some(file)) = (removed, file) {
                shrink(&file, throttle)?;
            }
        }
        last_old.map_or(Ok(()), |file| shrink(&file, throttle))
    }
}

/// Removes what was replaced and could not be removed then.
fn remove_replaced<D: Disk>(
    directory: &DataDirectory<D>,
    chain: &Chain,
) -> Result<(), CompactionError> {
    if chain.replaced.is_empty() {
        return Ok(());
    }
    let (disk, path) = (directory.disk(), directory.shard_path(chain.shard));
    // The segment that replaced them must be found after a crash.
    disk.sync_folder(&path)
        .map_err(|source| CompactionError::Folder { path, source })?;
    let _nobody_reads = directory.replacing();
    for path in &chain.replaced {
        // It is tried again by the next compaction, and by the next start.
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

/// Gives back the blocks of a deleted file in pieces: freed at once, a large file delays every sync
/// of the disk, above all if ext4 is mounted with `discard`. A file that is being read is kept.
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

/// Returns the end of the last segment in the folder of a shard that no longer runs.
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

/// Yields between pieces of the reading, so that a shared core is given back soon.
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

    /// Yields for the last piece. The error is that the compaction was stopped.
    fn end(self, throttle: &mut Throttle<'_>) -> Result<(), CompactionError> {
        if self.is_stopped {
            return Err(CompactionError::Stopped);
        }
        yield_to(throttle, self.bytes as u64)
    }
}

/// Which op of each key wins, and how much of each segment is such ops.
struct WinnerIndex {
    workspaces: HashMap<String, HashMap<Box<str>, Winner, RandomState>, RandomState>,
    /// By the place of the segment.
    live_bytes: Vec<u64>,
}

struct Winner {
    timestamp: u64,
    seq: Seq,
    bytes: u32,
    place: u32,
}

impl WinnerIndex {
    fn new(segments: usize) -> Self {
        Self {
            workspaces: HashMap::default(),
            live_bytes: vec![0; segments],
        }
    }

    /// Adds an op of the segment at `place`.
    fn note(&mut self, op: &LoggedOp<'_>, place: usize) {
        let bytes = u32::try_from(record::op_bytes(op)).expect("a record is below 4 GiB");
        let winner = Winner {
            timestamp: op.timestamp,
            seq: op.seq,
            bytes,
            place: u32::try_from(place).expect("fewer than 2^32 segments"),
        };
        let keys = self.workspaces.entry_ref(op.workspace).or_default();
        if let Some(held) = keys.get_mut(op.key) {
            // The rule of Workspace::restore, which reads what is left.
            if !op.wins_over(held.timestamp, held.seq) {
                return;
            }
            self.live_bytes[held.place as usize] -= u64::from(held.bytes);
            *held = winner;
        } else {
            keys.insert(op.key.into(), winner);
        }
        self.live_bytes[place] += u64::from(bytes);
    }

    fn wins(&self, op: &LoggedOp<'_>, place: usize) -> bool {
        let winner = self
            .workspaces
            .get(op.workspace)
            .and_then(|keys| keys.get(op.key));
        let winner = winner.expect("each op was noted before");
        (winner.place as usize, winner.timestamp, winner.seq) == (place, op.timestamp, op.seq)
    }
}
