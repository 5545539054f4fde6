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
    /// Its shard.
    pub shard: u32,
    /// The length of its closed segments.
    pub closed_bytes: u64,
    /// What the state of the shard took in a log in which nothing is dead when the open segment was opened: what closed
    /// segments hold. 0 where the shard does not run.
    pub live_bytes: u64,
    /// The shard runs.
    pub is_running: bool,
}

/// When to compact.
#[derive(Debug)]
pub struct Schedule {
    /// Less than this in a folder is not worth it.
    floor_bytes: u64,
    /// What the last compaction of each folder left.
    left: BTreeMap<u32, Left>,
    failure: Option<Failure>,
    /// The last compaction had too little room on the disk: the next one works in small steps.
    lacks_room: bool,
    is_over: bool,
}

/// What a compaction has left of a folder.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// What of it is live beside the state of its own shard.
    foreign_bytes: u64,
    /// Its length.
    closed_bytes: u64,
}

#[derive(Debug)]
struct Failure {
    not_before_us: u64,
    cause: String,
    /// What was free on the disk after it, where that was too little.
    free_bytes: Option<u64>,
}

impl Schedule {
    /// Of folders in which less than `floor_bytes` are not worth a compaction.
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

    /// What a compaction would leave of a folder, as far as that is known. Before the first one: not more than it
    /// holds, and not more than all that is live, of which any part may stand in it.
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

    /// Whether a folder has grown since its last compaction: else another one leaves the same.
    fn has_grown(&self, folder: &FolderUsage) -> bool {
        let left = self.left.get(&folder.shard);
        left.is_none_or(|left| folder.closed_bytes > left.closed_bytes)
    }

    /// The folders that are to be compacted, if one may begin now: each that holds too much beside its own live data, or
    /// all, if together they do. Where the disk is short of room, a little that is dead is too much.
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

    /// Whether a folder may hold enough dead bytes to look for them, where each byte counts.
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

    /// Takes that a folder was compacted that was so when it began: what is kept of it, and how long it is now.
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

    /// Takes that a compaction went well.
    pub fn succeeded(&mut self) {
        self.failure = None;
        self.lacks_room = false;
    }

    /// Takes that one had too little room on the disk.
    pub fn ran_out_of_room(&mut self) {
        self.lacks_room = true;
    }

    /// Whether the last one had too little room: the next one is to need little, and nothing else is to take what there is.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.lacks_room
    }

    /// Takes that one failed, for want of room where `free_bytes` tells how much there was. True: it is worth a warning,
    /// since the last one failed for another reason or went well.
    pub fn failed(&mut self, cause: String, free_bytes: Option<u64>, now_us: u64) -> bool {
        let is_new = self.failure.as_ref().is_none_or(|last| last.cause != cause);
        self.failure = Some(Failure {
            not_before_us: now_us + COMPACTION_RETRY_US,
            cause,
            free_bytes,
        });
        is_new
    }

    /// Takes how much is free on the disk: where the last compaction had too little, and there is a quarter more now,
    /// the next one need not wait.
    pub fn looked(&mut self, free_bytes: u64) {
        if let Some(failure) = &mut self.failure
            && failure
                .free_bytes
                .is_some_and(|had| had + had / 4 < free_bytes)
        {
            failure.not_before_us = 0;
        }
    }

    /// Takes that nothing may be compacted any more.
    pub fn give_up(&mut self) {
        self.is_over = true;
    }

    /// Whether a shard that waits for a compaction waits for something that comes.
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

/// What is left free of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowMarks {
    /// This much,
    pub bytes: u64,
    /// or one part in this many of a smaller disk,
    pub share: u64,
    /// and this much for each shard.
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
    /// What is free, but for compaction only.
    withheld_bytes: u64,
}

impl DiskRoom {
    /// Of a disk with the logs of so many shards.
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

    /// Takes what the disk has. None: it does not say, and nothing is limited.
    ///
    /// `lacks_room`: the last compaction had too little, and the reserve was given up for the next
    /// one. What ops would take of it now could never be reclaimed.
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
        // A little before the shards have used up what they were given, so that they stop together.
        let low_bytes = self.low_bytes();
        self.is_short = free_bytes
            < if self.is_short {
                low_bytes * DISK_ENOUGH_FACTOR
            } else {
                low_bytes + low_bytes / 4
            };
    }

    /// Takes that compaction's reserve has grown by so much since the disk was looked at.
    pub fn reserved(&mut self, bytes: u64) {
        if let Some(space) = &mut self.space {
            space.free_bytes = space.free_bytes.saturating_sub(bytes);
        }
    }

    /// Whether ops that grow a log are refused.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// What is free, where that is known.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.space.map(|space| space.free_bytes)
    }

    /// The log position up to which a shard may write whose log ended at `position` before the disk was looked at.
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

    /// What is free for ops.
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
