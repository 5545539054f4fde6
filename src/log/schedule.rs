//! Decides when to compact which folders and how fast, and how much disk space each shard may use.
//!
//! This module uses no files and no clock: the compactor and the simulation pass in their
//! measurements.

use std::collections::BTreeMap;
use std::time::Duration;

use super::disk::Space;
use super::position::LogPosition;
use crate::limits::{
    COMPACTION_DEAD_SHARE, COMPACTION_RETRY_US, COMPACTION_START_PERCENT,
    COMPACTION_TIME_PERCENT_MIN, COMPACTION_URGENT_PERCENT, DISK_ENOUGH_FACTOR, DISK_LOW_BYTES,
    DISK_LOW_SHARD_BYTES, DISK_LOW_SHARE, DISK_PLENTY_BYTES, RESERVE_BYTES_MAX, RESERVE_BYTES_MIN,
    RESERVE_LIVE_SHARE,
};

#[cfg(test)]
mod tests;

/// The space that a shard's folder uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderUsage {
    /// The shard.
    pub shard: u32,
    /// The total length of its closed segments, in bytes.
    pub closed_bytes: u64,
    /// The size that the shard's state would have had in a log without dead bytes when the open
    /// segment was opened. 0 if the shard is not running.
    pub live_bytes: u64,
    /// Whether the shard is running.
    pub is_running: bool,
}

/// Decides when to compact, from the folder sizes and the results of earlier compactions.
#[derive(Debug)]
pub struct Schedule {
    /// A folder with no more than this many closed bytes is not worth compacting.
    floor_bytes: u64,
    /// The result of the last compaction of each folder.
    left: BTreeMap<u32, Left>,
    failure: Option<Failure>,
    /// Whether the last compaction had too little room on the disk; if so, the next one works in
    /// small steps.
    lacks_room: bool,
    is_over: bool,
}

/// The size of a folder after its last compaction.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "each name ends in its unit")]
struct Left {
    /// The live bytes that do not belong to the state of the folder's own shard.
    foreign_bytes: u64,
    /// The part of these bytes that only a compaction of all folders can free: tombstones that the
    /// server has dropped.
    blocked_bytes: u64,
    /// The total length of its closed segments, in bytes.
    closed_bytes: u64,
}

#[derive(Debug)]
struct Failure {
    not_before_us: u64,
    cause: String,
    /// The disk's free bytes after the failure, if there was too little room.
    free_bytes: Option<u64>,
}

impl Schedule {
    /// Returns a schedule that does not compact folders of up to `floor_bytes`.
    #[must_use]
    pub fn new(floor_bytes: u64) -> Self {
        Self {
            floor_bytes,
            left: BTreeMap::new(),
            failure: None,
            lacks_room: false,
            is_over: false,
        }
    }

    /// Returns an upper bound on the number of bytes that a compaction would leave in a folder.
    /// Before its first compaction, the bound is either the size of the folder or the live bytes of
    /// all shards, any of which may be in the folder, whichever is smaller.
    #[must_use]
    pub fn kept_bytes(&self, folder: &FolderUsage, all: &[FolderUsage]) -> u64 {
        if let Some(left) = self.left.get(&folder.shard) {
            return folder.live_bytes + left.foreign_bytes;
        }
        let live_bytes: u64 = all.iter().map(|folder| folder.live_bytes).sum();
        folder.closed_bytes.min(live_bytes).max(folder.live_bytes)
    }

    /// Returns the total length of all logs, as a percentage of the bytes known to be live.
    fn percent_of_all(&self, all: &[FolderUsage]) -> u64 {
        let closed_bytes = all.iter().map(|folder| folder.closed_bytes).sum();
        let live = all.iter().map(|folder| {
            let left = self.left.get(&folder.shard);
            folder.live_bytes + left.map_or(0, |left| left.foreign_bytes - left.blocked_bytes)
        });
        percent(closed_bytes, live.sum())
    }

    /// Returns whether a folder has grown since its last compaction. If not, another compaction
    /// would change nothing.
    fn has_grown(&self, folder: &FolderUsage) -> bool {
        let left = self.left.get(&folder.shard);
        left.is_none_or(|left| folder.closed_bytes > left.closed_bytes)
    }

    /// Returns the shards whose folders should be compacted now, or none if a compaction must wait.
    /// These are the folders in which too small a share of the bytes is live, or all folders if
    /// that is true of their total. If the disk is short of room, even a few dead bytes are enough.
    #[must_use]
    pub fn due(&self, all: &[FolderUsage], is_short: bool, now_us: u64) -> Vec<u32> {
        let must_wait = self.failure.as_ref();
        if self.is_over || must_wait.is_some_and(|failure| now_us < failure.not_before_us) {
            return Vec::new();
        }
        let closed_bytes: u64 = all.iter().map(|folder| folder.closed_bytes).sum();
        let running = all.iter().filter(|folder| folder.is_running).count() as u64;
        let is_whole = closed_bytes > self.floor_bytes * running
            && self.percent_of_all(all) > COMPACTION_START_PERCENT
            && all.iter().any(|folder| self.has_grown(folder));
        let is_due = |folder: &&FolderUsage| {
            let is_over = folder.closed_bytes > self.floor_bytes
                && percent(folder.closed_bytes, self.kept_bytes(folder, all))
                    > COMPACTION_START_PERCENT
                && self.has_grown(folder);
            is_whole || is_over || (is_short || self.lacks_room) && self.has_something(folder)
        };
        let due = all.iter().filter(is_due);
        due.map(|folder| folder.shard).collect()
    }

    /// Returns whether a folder may hold enough dead bytes to be worth a compaction when disk space
    /// is short.
    fn has_something(&self, folder: &FolderUsage) -> bool {
        let left = self.left.get(&folder.shard);
        let alive_bytes = left.map_or(folder.live_bytes, |left| left.closed_bytes);
        let dead_bytes = folder.closed_bytes.saturating_sub(alive_bytes);
        dead_bytes.saturating_mul(COMPACTION_DEAD_SHARE) >= folder.closed_bytes.max(1)
    }

    /// Returns how long to pause after working for `worked`. The longer the logs are, the shorter
    /// the pause.
    #[must_use]
    pub fn pause(&self, all: &[FolderUsage], is_short: bool, worked: Duration) -> Duration {
        let of_folder = |folder: &FolderUsage| {
            if folder.closed_bytes > self.floor_bytes {
                percent(folder.closed_bytes, self.kept_bytes(folder, all))
            } else {
                0
            }
        };
        let each = all.iter().filter(|folder| folder.is_running).map(of_folder);
        let most = each.fold(self.percent_of_all(all), u64::max);
        if is_short {
            return Duration::ZERO;
        }
        let over = most.saturating_sub(COMPACTION_START_PERCENT);
        let range = COMPACTION_URGENT_PERCENT - COMPACTION_START_PERCENT;
        let share = COMPACTION_TIME_PERCENT_MIN
            + (100 - COMPACTION_TIME_PERCENT_MIN) * over.min(range) / range;
        let pause_percent =
            u32::try_from((100 - share) * 100 / share).expect("the number is small");
        worked * pause_percent / 100
    }

    /// Records that a folder was compacted. `begun` is its state when the compaction began,
    /// `kept_bytes` its live bytes, `blocked_bytes` the part of them that a compaction of all
    /// folders would free, and `closed_bytes` its length now.
    pub fn compacted(
        &mut self,
        begun: &FolderUsage,
        kept_bytes: u64,
        blocked_bytes: u64,
        closed_bytes: u64,
    ) {
        let foreign_bytes = kept_bytes.saturating_sub(begun.live_bytes);
        self.left.insert(
            begun.shard,
            Left {
                foreign_bytes,
                blocked_bytes: blocked_bytes.min(foreign_bytes),
                closed_bytes,
            },
        );
    }

    /// Records that a compaction succeeded.
    pub fn succeeded(&mut self) {
        self.failure = None;
        self.lacks_room = false;
    }

    /// Records that a compaction had too little room on the disk.
    pub fn ran_out_of_room(&mut self) {
        self.lacks_room = true;
    }

    /// Returns whether the last compaction had too little room on the disk. If so, the next one
    /// should need little space, and nothing else may use the free space.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.lacks_room
    }

    /// Records that a compaction failed. `free_bytes` is the free space if there was too little of
    /// it. Returns whether the failure deserves a warning, because the previous compaction
    /// succeeded or failed for a different reason.
    pub fn failed(&mut self, cause: String, free_bytes: Option<u64>, now_us: u64) -> bool {
        let is_new = self.failure.as_ref().is_none_or(|last| last.cause != cause);
        self.failure = Some(Failure {
            not_before_us: now_us + COMPACTION_RETRY_US,
            cause,
            free_bytes,
        });
        is_new
    }

    /// Records the free space of the disk. If the last compaction had too little, and free space
    /// has since grown by more than a quarter, the next one need not wait.
    pub fn looked(&mut self, free_bytes: u64) {
        if let Some(failure) = &mut self.failure
            && failure
                .free_bytes
                .is_some_and(|had| had + had / 4 < free_bytes)
        {
            failure.not_before_us = 0;
        }
    }

    /// Records that no further compaction is allowed.
    pub fn give_up(&mut self) {
        self.is_over = true;
    }

    /// Returns whether compaction is operational: the last one did not fail, and further ones are
    /// allowed. A shard that is waiting for a compaction will then get one.
    #[must_use]
    pub fn is_working(&self) -> bool {
        self.failure.is_none() && !self.is_over
    }

    /// Returns whether no further compaction is allowed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Returns the time before which no compaction may start, if the last one failed.
    #[must_use]
    pub fn not_before_us(&self) -> Option<u64> {
        let failure = self.failure.as_ref();
        failure.map(|failure| failure.not_before_us)
    }
}

fn percent(bytes: u64, of: u64) -> u64 {
    bytes.saturating_mul(100) / of.max(1)
}

/// The amount of disk space that is kept free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowMarks {
    /// The bytes that are kept free on a large disk.
    pub bytes: u64,
    /// On a smaller disk, one in `share` bytes is kept free.
    pub share: u64,
    /// The additional bytes that are kept free for each shard.
    pub shard_bytes: u64,
}

impl Default for LowMarks {
    fn default() -> Self {
        Self {
            bytes: DISK_LOW_BYTES,
            share: DISK_LOW_SHARE,
            shard_bytes: DISK_LOW_SHARD_BYTES,
        }
    }
}

/// The room that the disk has for the logs.
#[derive(Debug)]
pub struct DiskRoom {
    marks: LowMarks,
    shards: u64,
    space: Option<Space>,
    is_short: bool,
    /// The free bytes that are withheld for compaction.
    withheld_bytes: u64,
}

impl DiskRoom {
    /// Returns the room on a disk that holds the logs of `shards` shards.
    #[must_use]
    pub fn new(marks: LowMarks, shards: u64) -> Self {
        Self {
            marks,
            shards,
            space: None,
            is_short: false,
            withheld_bytes: 0,
        }
    }

    /// Records the space on the disk. `None` means that the space is unknown and that nothing is
    /// limited.
    ///
    /// `lacks_room` means that the last compaction had too little room, and that the reserve was
    /// released for the next one. If ops used that space, it could never be reclaimed.
    pub fn looked(&mut self, space: Option<Space>, lacks_room: bool, all: &[FolderUsage]) {
        self.space = space;
        if space.is_none() {
            self.is_short = false;
            return;
        }
        self.withheld_bytes = if lacks_room {
            self.reserve_wanted_bytes(all)
        } else {
            0
        };
        let free_bytes = self.usable_bytes();
        // The disk counts as short slightly before the shards have used up their shares, so that
        // they all stop at the same time.
        let low_bytes = self.low_bytes();
        self.is_short = free_bytes
            < if self.is_short {
                low_bytes * DISK_ENOUGH_FACTOR
            } else {
                low_bytes + low_bytes / 4
            };
    }

    /// Records that the reserve for compaction has grown by `bytes` since the disk was last
    /// checked.
    pub fn reserved(&mut self, bytes: u64) {
        if let Some(space) = &mut self.space {
            space.free_bytes = space.free_bytes.saturating_sub(bytes);
        }
    }

    /// Returns whether ops that make a log grow are refused.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// Returns the free bytes, if they are known.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.space.map(|space| space.free_bytes)
    }

    /// Returns the log position up to which a shard may write, if its log ended at `position`
    /// before the disk was checked.
    #[must_use]
    pub fn end(&self, position: LogPosition) -> LogPosition {
        if self.is_short {
            return LogPosition::NONE;
        }
        let usable_bytes = self.usable_bytes().saturating_sub(self.low_bytes());
        let room_bytes = usable_bytes / self.shards.max(1);
        if room_bytes >= DISK_PLENTY_BYTES {
            return LogPosition::MAX;
        }
        position.advance(room_bytes)
    }

    /// Returns the size that the reserve should have, or `None` if there is no room for one or the
    /// logs are shorter than `floor_bytes`.
    #[must_use]
    pub fn reserve_bytes(&self, all: &[FolderUsage], floor_bytes: u64) -> Option<u64> {
        let closed_bytes: u64 = all.iter().map(|folder| folder.closed_bytes).sum();
        let wanted = self.reserve_wanted_bytes(all);
        let free_bytes = self.space?.free_bytes;
        let has_room = free_bytes >= self.low_bytes() * DISK_ENOUGH_FACTOR + wanted;
        (closed_bytes >= floor_bytes && has_room && !self.is_short).then_some(wanted)
    }

    fn reserve_wanted_bytes(&self, all: &[FolderUsage]) -> u64 {
        let live_bytes: u64 = all.iter().map(|folder| folder.live_bytes).sum();
        let wanted = (live_bytes / RESERVE_LIVE_SHARE).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
        let total_bytes = self.space.map_or(u64::MAX, |space| space.total_bytes);
        wanted.min(total_bytes / self.marks.share.max(1))
    }

    /// Returns the free bytes that ops may use.
    fn usable_bytes(&self) -> u64 {
        self.space.map_or(u64::MAX, |space| {
            space.free_bytes.saturating_sub(self.withheld_bytes)
        })
    }

    fn low_bytes(&self) -> u64 {
        let LowMarks {
            bytes,
            share,
            shard_bytes,
        } = self.marks;
        let total_bytes = self.space.map_or(u64::MAX, |space| space.total_bytes);
        bytes.min(total_bytes / share.max(1)) + shard_bytes * self.shards
    }
}
