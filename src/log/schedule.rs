//! When to compact which folders, and how hard; how much room the disk has for which shard.
//!
//! No file and no clock: the compactor and the simulation bring what they have measured.

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

/// A shard's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderUsage {
    /// The shard.
    pub shard: u32,
    /// The length of its closed segments.
    pub closed_bytes: u64,
    /// The size of the shard's state in a log without dead bytes, when the open segment was opened.
    /// 0 if the shard does not run.
    pub live_bytes: u64,
    /// The shard runs.
    pub is_running: bool,
}

/// When to compact.
#[derive(Debug)]
pub struct Schedule {
    /// Less than this in a folder is not worth it.
    floor_bytes: u64,
    /// The result of the last compaction of each folder.
    left: BTreeMap<u32, Left>,
    failure: Option<Failure>,
    /// The last compaction had too little room on the disk: the next one works in small steps.
    lacks_room: bool,
    is_over: bool,
}

/// The size of a folder after its last compaction.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// The live bytes besides the state of its own shard.
    foreign_bytes: u64,
    /// The length of the folder.
    closed_bytes: u64,
}

#[derive(Debug)]
struct Failure {
    not_before_us: u64,
    cause: String,
    /// The free bytes of the disk after it, if that was too little.
    free_bytes: Option<u64>,
}

impl Schedule {
    /// Returns a schedule for which folders with less than `floor_bytes` are not worth a
    /// compaction.
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

    /// Returns an upper bound of what a compaction would leave of a folder. Before the first
    /// compaction, that is no more than the folder holds, and no more than all live bytes, any of
    /// which may be in it.
    #[must_use]
    pub fn kept_bytes(&self, folder: &FolderUsage, all: &[FolderUsage]) -> u64 {
        if let Some(left) = self.left.get(&folder.shard) {
            return folder.live_bytes + left.foreign_bytes;
        }
        let live_bytes: u64 = all.iter().map(|folder| folder.live_bytes).sum();
        folder.closed_bytes.min(live_bytes).max(folder.live_bytes)
    }

    /// How long all logs are together, and what is known to be live of them, in percent.
    fn percent_of_all(&self, all: &[FolderUsage]) -> u64 {
        let closed_bytes = all.iter().map(|folder| folder.closed_bytes).sum();
        let live = all.iter().map(|folder| {
            let left = self.left.get(&folder.shard);
            folder.live_bytes + left.map_or(0, |left| left.foreign_bytes)
        });
        percent(closed_bytes, live.sum())
    }

    /// Returns whether a folder has grown since its last compaction: otherwise another one leaves
    /// the same.
    fn has_grown(&self, folder: &FolderUsage) -> bool {
        let left = self.left.get(&folder.shard);
        left.is_none_or(|left| folder.closed_bytes > left.closed_bytes)
    }

    /// The folders that are to be compacted, if one may begin now: each that holds too much beside
    /// its own live data, or all, if together they do. Where the disk is short of room, a little
    /// that is dead is too much.
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

    /// Returns whether a folder may hold enough dead bytes to look for them, when each byte counts.
    fn has_something(&self, folder: &FolderUsage) -> bool {
        let left = self.left.get(&folder.shard);
        let alive_bytes = left.map_or(folder.live_bytes, |left| left.closed_bytes);
        let dead_bytes = folder.closed_bytes.saturating_sub(alive_bytes);
        dead_bytes.saturating_mul(COMPACTION_DEAD_SHARE) >= folder.closed_bytes.max(1)
    }

    /// How long to pause after this much work: the longer the logs, the less.
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
        let pause_percent = u32::try_from((100 - share) * 100 / share).expect("a small number");
        worked * pause_percent / 100
    }

    /// Records that a folder was compacted: its state when that began, the bytes that were kept,
    /// and its length now.
    pub fn compacted(&mut self, begun: &FolderUsage, kept_bytes: u64, closed_bytes: u64) {
        let foreign_bytes = kept_bytes.saturating_sub(begun.live_bytes);
        self.left.insert(
            begun.shard,
            Left {
                foreign_bytes,
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

    /// Returns whether the last compaction had too little room: the next one should need little,
    /// and nothing else may use the free space.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.lacks_room
    }

    /// Records that a compaction failed; `free_bytes` is the free space if that was too little.
    /// Returns whether it is worth a warning: the last one failed for another reason or succeeded.
    pub fn failed(&mut self, cause: String, free_bytes: Option<u64>, now_us: u64) -> bool {
        let is_new = self.failure.as_ref().is_none_or(|last| last.cause != cause);
        self.failure = Some(Failure {
            not_before_us: now_us + COMPACTION_RETRY_US,
            cause,
            free_bytes,
        });
        is_new
    }

    /// Records how much of the disk is free: if the last compaction had too little, and there is a
    /// quarter more now, the next one need not wait.
    pub fn looked(&mut self, free_bytes: u64) {
        if let Some(failure) = &mut self.failure
            && failure
                .free_bytes
                .is_some_and(|had| had + had / 4 < free_bytes)
        {
            failure.not_before_us = 0;
        }
    }

    /// Records that nothing may be compacted any more.
    pub fn give_up(&mut self) {
        self.is_over = true;
    }

    /// Returns whether a shard that waits for a compaction will get one.
    #[must_use]
    pub fn is_working(&self) -> bool {
        self.failure.is_none() && !self.is_over
    }

    /// Nothing is compacted any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Before this nothing is compacted.
    #[must_use]
    pub fn not_before_us(&self) -> Option<u64> {
        let failure = self.failure.as_ref();
        failure.map(|failure| failure.not_before_us)
    }
}

fn percent(bytes: u64, of: u64) -> u64 {
    bytes.saturating_mul(100) / of.max(1)
}

/// The part of a disk that is left free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowMarks {
    /// The bytes left free of a large disk.
    pub bytes: u64,
    /// Of a smaller disk, one in this many bytes is left free.
    pub share: u64,
    /// The bytes left free for each shard in addition.
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

/// How much room the disk has for the logs.
#[derive(Debug)]
pub struct DiskRoom {
    marks: LowMarks,
    shards: u64,
    space: Option<Space>,
    is_short: bool,
    /// The bytes that are free, but reserved for compaction.
    withheld_bytes: u64,
}

impl DiskRoom {
    /// Returns the room of a disk with the logs of `shards` shards.
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

    /// Records the space of the disk. `None`: it is unknown, and nothing is limited.
    ///
    /// `lacks_room`: the last compaction had too little room, and the reserve was given up for the
    /// next one. Space that ops would use of it could never be reclaimed.
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
        // A little before the shards have used up their share, so that they stop together.
        let low_bytes = self.low_bytes();
        self.is_short = free_bytes
            < if self.is_short {
                low_bytes * DISK_ENOUGH_FACTOR
            } else {
                low_bytes + low_bytes / 4
            };
    }

    /// Records that compaction's reserve has grown by `bytes` since the disk was checked.
    pub fn reserved(&mut self, bytes: u64) {
        if let Some(space) = &mut self.space {
            space.free_bytes = space.free_bytes.saturating_sub(bytes);
        }
    }

    /// Returns whether ops that grow a log are refused.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// Returns the free bytes, if they are known.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.space.map(|space| space.free_bytes)
    }

    /// The log position up to which a shard may write whose log ended at `position` before the disk
    /// was looked at.
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

    /// How large the reserve is to be. None: there is no room for one, or not enough that is live.
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

    /// Returns the bytes that are free for ops.
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
