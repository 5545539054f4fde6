//! The limits on a shard's log and its disk: which clients wait for compaction, and which ops are
//! refused.
//!
//! A log of overwrites grows as fast as clients write, and shrinks as fast as compaction runs.
//! Between two marks, both relative to the live data, workspaces that write a lot are therefore
//! slowed down to a rate that compaction can sustain; at the second mark, they must wait.
//! Workspaces that write little continue up to a third mark.
//!
//! ```text
//!   0 ─── compaction begins ─── slow ═══ rate falls to 0 ═══ full ─── light writers only ─── stop
//! ```
//!
//! A waiting shard always makes progress: the length measured here, minus one segment that is not
//! closed, determines when a compaction is due ([`crate::limits`] has the assertion), and a
//! complete compaction leaves hardly more than the live data. If compaction is not working, no
//! client waits for it ([`LogSize::is_compacted`]): the log grows until the disk is nearly full,
//! and then ops are refused.

use std::collections::VecDeque;

use crate::core::state::write_allowance::WriteAllowance;
use crate::limits::{
    LOG_BURST_BYTES, LOG_BYTES_PER_SECOND, LOG_FULL_PERCENT, LOG_SLOW_PERCENT, LOG_STOP_PERCENT,
    SECOND_US,
};
use crate::log::position::LogPosition;
use crate::log::record::{self, LoggedOp};

/// The size of a shard's log, as measured by the compactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSize {
    /// The index of the segment that was open. All segments before it in the shard's folder were
    /// measured.
    pub open_index: u64,
    /// The length of the measured segments.
    pub closed_bytes: u64,
    /// The number of those bytes that a compaction would keep, as far as is known. It may exceed
    /// the shard's live data, because after a start with a different number of shards, its folder
    /// also holds ops of other shards.
    pub kept_bytes: u64,
    /// Whether compaction is working. If not, clients that waited for it would wait forever.
    pub is_compacted: bool,
    /// The log position up to which the disk has room for the shard's log.
    pub room_end: LogPosition,
}

impl LogSize {
    /// The size before anything has been measured, which imposes no limit.
    pub const UNKNOWN: Self = Self::unmeasured(LogPosition::MAX);

    /// Returns the size of a log that has not been measured yet, with the position up to which the
    /// disk has room.
    #[must_use]
    pub const fn unmeasured(room_end: LogPosition) -> Self {
        Self {
            open_index: 0,
            closed_bytes: 0,
            kept_bytes: 0,
            is_compacted: false,
            room_end,
        }
    }
}

/// The lengths of a log at which writers are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The length at which workspaces that write a lot are slowed down.
    pub slow_bytes: u64,
    /// The length at which those workspaces must wait.
    pub full_bytes: u64,
    /// The length at which all writers must wait.
    pub stop_bytes: u64,
}

impl Marks {
    /// Returns the marks of a log with `live_bytes` of live data. Each mark is a percentage of
    /// `live_bytes` plus a multiple of `spare_bytes`.
    #[must_use]
    pub fn new(live_bytes: u64, spare_bytes: u64) -> Self {
        let mark = |percent: u64, spares: u64| {
            let live = u128::from(live_bytes) * u128::from(percent) / 100;
            let live = u64::try_from(live).unwrap_or(u64::MAX);
            live.saturating_add(spares.saturating_mul(spare_bytes))
        };
        Self {
            slow_bytes: mark(LOG_SLOW_PERCENT, 1),
            full_bytes: mark(LOG_FULL_PERCENT, 2),
            stop_bytes: mark(LOG_STOP_PERCENT, 3),
        }
    }

    fn level(self, bytes: u64) -> Level {
        if bytes < self.slow_bytes {
            Level::Free
        } else if bytes < self.full_bytes {
            let (left, range) = (self.full_bytes - bytes, self.full_bytes - self.slow_bytes);
            // In thousandths, so that the square fits in an integer.
            let share = u128::from(left) * 1000 / u128::from(range);
            let rate = u128::from(LOG_BYTES_PER_SECOND) * share * share / 1_000_000;
            Level::Slow {
                bytes_per_second: u64::try_from(rate).expect("at most LOG_BYTES_PER_SECOND"),
            }
        } else if bytes < self.stop_bytes {
            Level::Slow {
                bytes_per_second: 0,
            }
        } else {
            Level::Stopped
        }
    }
}

/// The workspaces that are allowed to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// All of them.
    Free,
    /// Workspaces that write little without a limit, and all others at this rate in total.
    Slow { bytes_per_second: u64 },
    /// None of them.
    Stopped,
}

/// The state of a shard's log and disk relative to their limits.
#[derive(Debug)]
pub struct LogSpace {
    spare_bytes: u64,
    size: LogSize,
    /// The index and length of each segment that was closed since the last measurement.
    closed_since: VecDeque<(u64, u64)>,
    /// The length that is compared with the marks, as of the last update.
    log_bytes: u64,
    marks: Marks,
    level: Level,
    /// The number of bytes that the workspaces that write a lot may write now, in total, times
    /// [`SECOND_US`]. Negative after one of them has written more than that.
    tokens: i64,
    at_us: u64,
}

impl LogSpace {
    /// Returns the state of a log that has not been measured yet. Each of the log's marks includes
    /// a multiple of `spare_bytes`.
    #[must_use]
    pub fn new(spare_bytes: u64) -> Self {
        Self {
            spare_bytes,
            size: LogSize::UNKNOWN,
            closed_since: VecDeque::new(),
            log_bytes: 0,
            marks: Marks::new(0, spare_bytes),
            level: Level::Free,
            tokens: 0,
            at_us: 0,
        }
    }

    /// Records that a segment of length `bytes` was closed.
    pub fn closed(&mut self, index: u64, bytes: u64) {
        if index >= self.size.open_index {
            self.closed_since.push_back((index, bytes));
        }
    }

    /// Replaces the measurement. Segments that it includes are no longer counted separately.
    pub fn measured(&mut self, size: LogSize) {
        self.size = size;
        while let Some((index, _)) = self.closed_since.front()
            && *index < size.open_index
        {
            self.closed_since.pop_front();
        }
    }

    /// Compares the length of the log with its marks, once per turn. `open_bytes` is the counted
    /// part of the open segment.
    pub fn update(&mut self, open_bytes: u64, live_bytes: u64, now_us: u64) {
        let closed_since: u64 = self.closed_since.iter().map(|(_, bytes)| bytes).sum();
        self.log_bytes = self.size.closed_bytes + closed_since + open_bytes;
        self.marks = Marks::new(live_bytes.max(self.size.kept_bytes), self.spare_bytes);
        let was_free = self.level == Level::Free;
        self.level = if self.size.is_compacted {
            self.marks.level(self.log_bytes)
        } else {
            Level::Free
        };
        if let Level::Slow { bytes_per_second } = self.level {
            let passed_us = now_us.saturating_sub(self.at_us).min(SECOND_US);
            // A log that has just exceeded the first mark starts with a full burst.
            let passed_us = if was_free { SECOND_US } else { passed_us };
            let gained = i64::try_from(passed_us * bytes_per_second)
                .expect("2^28 times 10^6 fits in 64 bits");
            self.tokens = (self.tokens + gained).min(BURST_TOKENS);
        }
        self.at_us = self.at_us.max(now_us);
    }

    /// Returns whether all workspaces may write.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.level == Level::Free
    }

    /// Returns whether no workspace may write before a new measurement.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.level == Level::Stopped
    }

    /// Returns whether a workspace may write now.
    #[must_use]
    pub fn may_write(&self, allowance: &mut WriteAllowance, now_us: u64) -> bool {
        match self.level {
            Level::Free => true,
            Level::Slow { .. } => self.tokens > 0 || allowance.has_room(now_us),
            Level::Stopped => false,
        }
    }

    /// Charges a workspace for an op that it has written.
    pub fn wrote(&mut self, allowance: &mut WriteAllowance, op: &LoggedOp<'_>, now_us: u64) {
        if self.level != Level::Free {
            self.charge(allowance, record::op_bytes(op) as u64, now_us);
        }
    }

    fn charge(&mut self, allowance: &mut WriteAllowance, bytes: u64, now_us: u64) {
        if allowance.has_room(now_us) {
            allowance.spend(bytes);
        } else {
            self.tokens -=
                i64::try_from(bytes * SECOND_US).expect("a message is smaller than 4 GiB");
        }
    }

    /// Returns whether the disk has no room for a log that ends at `position`.
    #[must_use]
    pub fn is_disk_full(&self, position: LogPosition) -> bool {
        position >= self.size.room_end
    }

    /// Returns the length of the log, as of the last update.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Returns the length of the log at which all writers wait.
    #[must_use]
    pub fn stop_bytes(&self) -> u64 {
        self.marks.stop_bytes
    }
}

#[expect(clippy::cast_possible_wrap, reason = "2^20 times 10^6")]
const BURST_TOKENS: i64 = (LOG_BURST_BYTES * SECOND_US) as i64;

#[cfg(test)]
mod tests;
