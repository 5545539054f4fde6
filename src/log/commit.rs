//! Group commit as a state machine without I/O: it fills a batch, writes it and syncs it.
//!
//! Ops are appended to the batch that is being filled. At most one log operation is in flight: the
//! write of a batch, the fdatasync that covers it, or the opening of the next segment. All ops that
//! arrive in the meantime go to the next batch, so the busier the shard is, the more ops share an
//! fdatasync.
//!
//! ```text
//!   push ──► filling ──start_write──► Writing ──written──► Syncing ──synced──► durable
//!                          ▲              │ (interval, none)                      │
//!                          └──────────────┴───────────────── Idle ◄───────────────┘
//! ```
//!
//! If the segment is *written through* ([`OpenSegment::writes_through`]), a write completes only
//! once all of it is on disk, so the batch is then durable and no sync follows.
//!
//! An op may be sent once [`Commit::visible_position`] has reached the position that
//! [`Commit::push`] returned for it. One inequality underlies every decision in this file, and
//! [`Commit::invariants`] asserts it:
//!
//! ```text
//!   first_position ≤ durable ≤ written ≤ handed ≤ end_position
//!   of the segment   on disk   taken by  given to  of all that
//!                              a write   a write   was pushed
//! ```
//!
//! A write or fdatasync that fails is never retried on the same file. After a failed fdatasync the
//! kernel may have dropped the dirty pages and marked them clean, so the next fdatasync would
//! succeed without having written them (Rebello et al., "Can Applications Recover from fsync
//! Failures?", USENIX ATC 2020). The log stays failed until [`Commit::reopen`] provides a new
//! segment.

use std::io;

use crate::limits::{
    BATCH_BYTES_MAX, COMMIT_AGE_MAX_US, COMMIT_AGE_MIN_US, RELAXED_COMMIT_AGE_US, SEGMENT_BYTES_MAX,
};
use crate::log::position::LogPosition;
use crate::log::record::{self, BATCH_HEADER_BYTES, SEGMENT_HEADER_BYTES};

/// The durability mode, which determines when an op may be sent to other clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Ops are sent once they are on disk.
    Always,
    /// Ops are sent immediately, and a timer triggers fdatasync.
    Interval,
    /// Ops are sent immediately, and the kernel decides when they are written to disk.
    None,
}

impl Durability {
    /// Returns the value of `--durability` that selects the mode.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "interval",
            Self::None => "none",
        }
    }
}

/// A segment that is open for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSegment {
    /// Its number within the shard.
    pub index: u64,
    /// The log position of its first batch.
    pub first_position: LogPosition,
    /// The checksum of its header, which seeds the checksums of its batches.
    pub salt: u32,
    /// Whether each write is on disk when it returns; if so, no fdatasync is needed.
    pub writes_through: bool,
}

/// An operation that the caller must perform on the log's files.
#[derive(Debug, PartialEq, Eq)]
pub enum LogStep {
    /// Write `bytes[from..]` at `offset`, then pass the bytes back to [`Commit::written`].
    Write {
        /// The file offset of `bytes[from]`.
        offset: u64,
        /// The whole batch.
        bytes: Vec<u8>,
        /// The number of bytes that earlier short writes have already written.
        from: usize,
    },
    /// Call fdatasync on the segment, then call [`Commit::synced`].
    Sync,
    /// Create the next segment, durably, then call [`Commit::opened`].
    Open {
        /// Its number.
        index: u64,
        /// The log position of its first batch.
        first_position: LogPosition,
    },
}

/// The end of a failed segment. Bytes after it in the file are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The segment.
    pub index: u64,
    /// The log position up to which the segment is on disk.
    pub durable: LogPosition,
    /// The log position up to which ops were sent to clients. In `interval` and `none` mode this
    /// may be after `durable`, and one fdatasync is attempted to save the ops in between. If an
    /// fdatasync was what failed, it equals `durable`, because another fdatasync would succeed
    /// without having written anything.
    pub shown: LogPosition,
}

/// The error returned when a write, an fdatasync or the opening of a segment fails; the log then
/// accepts no more ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log cannot be written")]
pub struct LogBroken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Writing { batch_bytes: usize, from: usize },
    Syncing,
    Opening,
    Failed { in_flight: bool },
}

/// The log of one shard as a state machine.
pub struct Commit {
    durability: Durability,
    sync_interval_us: u64,
    segment: OpenSegment,
    /// The size at which a segment is closed and the next one opened.
    segment_bytes: u64,
    /// The size at which a batch is full.
    batch_bytes_max: usize,
    phase: Phase,
    filling: Vec<u8>,
    spare: Vec<u8>,
    oldest_us: u64,
    filling_ops: u64,
    /// The number of ops in the last batch handed to a write, until [`Commit::take_group`] is
    /// called.
    group_ops: u64,
    /// The push time of the oldest op that has been handed to a write but may not be durable.
    unsynced_since_us: Option<u64>,
    /// The push time of the oldest op among those that most recently became durable, until
    /// [`Commit::take_synced_since_us`] is called.
    synced_since_us: Option<u64>,
    /// The time at which the last commit began.
    begun_us: u64,
    /// The time at which the last commit ended.
    idle_since_us: u64,
    /// The log position after the last byte that was handed to a write.
    handed: LogPosition,
    /// The log position after the last byte that has been written.
    written: LogPosition,
    durable: LogPosition,
    last_sync_us: u64,
    sync_failed: bool,
}

impl Commit {
    /// Returns a log at the beginning of `segment`. Everything before it is durable.
    #[must_use]
    pub fn new(
        durability: Durability,
        sync_interval_us: u64,
        segment: OpenSegment,
        now_us: u64,
    ) -> Self {
        let position = segment.first_position;
        Self {
            durability,
            sync_interval_us,
            segment,
            segment_bytes: SEGMENT_BYTES_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            phase: Phase::Idle,
            filling: Vec::new(),
            spare: Vec::new(),
            oldest_us: 0,
            filling_ops: 0,
            group_ops: 0,
            unsynced_since_us: None,
            synced_since_us: None,
            begun_us: now_us,
            idle_since_us: now_us,
            handed: position,
            written: position,
            durable: position,
            last_sync_us: now_us,
            sync_failed: false,
        }
    }

    /// Sets the size at which a batch is full; the default is [`BATCH_BYTES_MAX`].
    #[must_use]
    pub fn with_batch_bytes_max(mut self, bytes: usize) -> Self {
        self.batch_bytes_max = bytes;
        self
    }

    /// Returns a log without a segment, which accepts no ops until [`Commit::reopen`] is called.
    #[must_use]
    pub fn closed(durability: Durability, sync_interval_us: u64, now_us: u64) -> Self {
        let nowhere = OpenSegment {
            index: 0,
            first_position: LogPosition::START,
            salt: 0,
            writes_through: false,
        };
        Self {
            phase: Phase::Failed { in_flight: false },
            ..Self::new(durability, sync_interval_us, nowhere, now_us)
        }
    }

    /// Sets the size at which a segment is closed and the next one opened.
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes = bytes;
    }

    /// Appends an op to the batch that is being filled and returns its log position; the op may be
    /// sent once that position is visible.
    ///
    /// # Panics
    /// If the log has failed. The caller must not apply ops in that case.
    pub fn push(&mut self, op: &record::LoggedOp<'_>, now_us: u64) -> LogPosition {
        assert!(!self.is_failed(), "an op was pushed to a failed log");
        if self.filling.is_empty() {
            self.oldest_us = now_us;
            record::begin_batch(&mut self.filling);
        }
        record::push_op(&mut self.filling, op);
        self.filling_ops += u64::from(op.change.is_op());
        self.end_position()
    }

    /// Returns the position up to which ops may be sent.
    #[must_use]
    pub fn visible_position(&self) -> LogPosition {
        match self.durability {
            Durability::Always => self.durable,
            Durability::Interval | Durability::None => LogPosition::MAX,
        }
    }

    /// Returns whether sends must not start, because a batch is being written or synced in `always`
    /// mode. The commit needs the kernel's worker threads, and a core that is busy sending makes
    /// them wait for a scheduler tick.
    #[must_use]
    pub fn holds_sends(&self) -> bool {
        self.durability == Durability::Always
            && matches!(self.phase, Phase::Writing { .. } | Phase::Syncing)
    }

    /// Returns whether ops are waiting to be written.
    #[must_use]
    pub fn has_ops(&self) -> bool {
        !self.filling.is_empty()
    }

    /// Returns whether the batch is full. The shard then reads no more messages until the batch has
    /// been handed to a write.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.filling.len() >= self.batch_bytes_max
    }

    /// Returns whether the log has failed.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed { .. })
    }

    /// Returns whether no log operation is in flight.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Failed { in_flight: false })
    }

    /// Returns whether a batch can be written now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Idle && self.has_ops()
    }

    /// Returns whether every op that was ever pushed is on disk.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Idle && self.filling.is_empty() && self.durable == self.handed
    }

    /// Returns the time at which the batch must be written even if the current round of sends has
    /// not finished. The delay is counted from the push of its oldest op or the end of the previous
    /// commit, whichever was later.
    ///
    /// No send starts during a commit. A batch therefore waits for a quarter of the time that the
    /// previous commit took, up to [`COMMIT_AGE_MAX_US`]. So even a shard whose rounds never finish
    /// has a fifth of its time for sends, as long as that limit is not reached.
    ///
    /// In the other modes no client waits for the batch, and it is written once its oldest op is
    /// [`RELAXED_COMMIT_AGE_US`] old.
    #[must_use]
    pub fn batch_due_us(&self) -> Option<u64> {
        if self.durability != Durability::Always {
            return Some(self.oldest_us()? + RELAXED_COMMIT_AGE_US);
        }
        let took_us = self.idle_since_us.saturating_sub(self.begun_us);
        let age_us = (took_us / 4).clamp(COMMIT_AGE_MIN_US, COMMIT_AGE_MAX_US);
        self.has_ops()
            .then(|| self.oldest_us.max(self.idle_since_us) + age_us)
    }

    /// Returns the push time of the oldest op in the batch that is being filled.
    #[must_use]
    pub fn oldest_us(&self) -> Option<u64> {
        self.has_ops().then_some(self.oldest_us)
    }

    /// Returns the number of writes and deletes in the last batch handed to a write, and resets it
    /// to 0. Used for the metrics.
    pub fn take_group(&mut self) -> u64 {
        std::mem::take(&mut self.group_ops)
    }

    /// Returns the push time of the oldest op among those that most recently became durable, and
    /// clears it. Used for the metrics.
    pub fn take_synced_since_us(&mut self) -> Option<u64> {
        self.synced_since_us.take()
    }

    /// Returns the log position after the last byte that was handed to a write.
    #[must_use]
    pub fn handed_position(&self) -> LogPosition {
        self.handed
    }

    /// Returns the log position after the last op that was pushed.
    #[must_use]
    pub fn end_position(&self) -> LogPosition {
        self.handed.advance(self.filling.len() as u64)
    }

    /// Returns the index of the open segment within its shard.
    #[must_use]
    pub fn segment_index(&self) -> u64 {
        self.segment.index
    }

    /// Returns the number of bytes written to the open segment, including its header.
    #[must_use]
    pub fn segment_bytes_written(&self) -> u64 {
        self.offset(self.written)
    }

    /// Returns the time at which [`Commit::start`] must be called in `interval` mode to sync what
    /// has been written.
    #[must_use]
    pub fn sync_due_us(&self) -> Option<u64> {
        let unsynced = self.durability == Durability::Interval && self.durable < self.written;
        (unsynced && !self.is_failed()).then_some(self.last_sync_us + self.sync_interval_us)
    }

    /// Starts whatever is due, if nothing is in flight: the opening of the next segment, the
    /// fdatasync that the timer triggers, or the write of the batch.
    pub fn start(&mut self, now_us: u64) -> Option<LogStep> {
        self.debug_invariants();
        if self.phase != Phase::Idle {
            return None;
        }
        // A full segment is closed only once there is an op for the next one, so an idle shard
        // keeps its segment. The whole segment is synced first, because readers accept a torn tail
        // as the result of a crash only in the last segment, and treat it as damage in any other.
        let full = self.bytes_in_segment(self.written) >= self.segment_bytes;
        if full && self.has_ops() {
            return Some(if self.durable < self.written {
                self.sync(now_us)
            } else {
                self.open_next()
            });
        }
        if self.sync_due_us().is_some_and(|due_us| due_us <= now_us) {
            return Some(self.sync(now_us));
        }
        self.has_ops().then(|| self.write(now_us))
    }

    /// Starts an fdatasync, in any mode, if nothing is in flight and some of the written bytes are
    /// not synced.
    pub fn settle(&mut self, now_us: u64) -> Option<LogStep> {
        (self.phase == Phase::Idle && self.durable < self.written).then(|| self.sync(now_us))
    }

    /// Starts the write of an empty batch, which marks everything before it as synced. It is the
    /// last step of a clean stop.
    ///
    /// # Panics
    /// If the log is not settled.
    pub fn seal(&mut self, now_us: u64) -> LogStep {
        assert!(self.is_settled(), "an unsettled log was sealed");
        record::begin_batch(&mut self.filling);
        self.write(now_us)
    }

    /// Handles the outcome of a [`LogStep::Write`], the number of bytes written. Returns the step
    /// that must follow immediately, if any.
    pub fn written(
        &mut self,
        bytes: Vec<u8>,
        outcome: io::Result<usize>,
        now_us: u64,
    ) -> Result<Option<LogStep>, LogBroken> {
        self.debug_invariants();
        let Phase::Writing { batch_bytes, from } = self.phase else {
            self.late();
            return Ok(None);
        };
        let possible = 1..=batch_bytes - from;
        let Some(count) = outcome.ok().filter(|count| possible.contains(count)) else {
            return self.broken();
        };
        let from = from + count;
        if from < batch_bytes {
            // A short write is not an error (write(2)); another write continues it.
            self.phase = Phase::Writing { batch_bytes, from };
            let offset = self.offset(self.written) + from as u64;
            return Ok(Some(LogStep::Write {
                offset,
                bytes,
                from,
            }));
        }
        self.written = self.written.advance(batch_bytes as u64);
        self.spare = bytes;
        self.spare.clear();
        self.spare.shrink_to(self.batch_bytes_max);
        self.phase = Phase::Idle;
        if self.segment.writes_through {
            self.settled(now_us);
            return Ok(None);
        }
        match self.durability {
            Durability::Always => Ok(Some(self.sync(now_us))),
            Durability::Interval | Durability::None => Ok(None),
        }
    }

    /// Handles the outcome of a [`LogStep::Sync`].
    pub fn synced(&mut self, outcome: &io::Result<()>, now_us: u64) -> Result<(), LogBroken> {
        let ok = outcome.is_ok();
        // Recorded even if the log has failed in the meantime: after a failed fdatasync, a later
        // one that succeeds on this file proves nothing.
        self.sync_failed |= !ok;
        if self.phase != Phase::Syncing {
            self.late();
            return Ok(());
        }
        if !ok {
            return self.broken().map(|_| ());
        }
        self.phase = Phase::Idle;
        self.settled(now_us);
        Ok(())
    }

    /// Handles the outcome of a [`LogStep::Open`].
    ///
    /// # Panics
    /// If the segment is not the one that was requested.
    pub fn opened(&mut self, segment: &io::Result<OpenSegment>) -> Result<(), LogBroken> {
        if self.phase != Phase::Opening {
            self.late();
            return Ok(());
        }
        let Ok(segment) = *segment else {
            return self.broken().map(|_| ());
        };
        assert_eq!(
            (segment.index, segment.first_position),
            (self.segment.index + 1, self.handed)
        );
        self.segment = segment;
        self.phase = Phase::Idle;
        Ok(())
    }

    /// Asserts the invariants that hold between any two calls.
    ///
    /// # Panics
    /// If an invariant is violated.
    pub fn invariants(&self) {
        assert!(
            self.segment.first_position <= self.durable,
            "a segment was opened before everything before it was on disk"
        );
        assert!(
            self.durable <= self.written && self.written <= self.handed,
            "bytes must be handed over, then written, then durable"
        );
        let in_flight_bytes = self.handed.bytes_since(self.written);
        match self.phase {
            Phase::Writing { batch_bytes, from } => {
                assert!(from < batch_bytes, "a complete batch is written again");
                assert_eq!(in_flight_bytes, Some(batch_bytes as u64));
            }
            Phase::Idle | Phase::Syncing | Phase::Opening => {
                assert_eq!(
                    in_flight_bytes,
                    Some(0),
                    "bytes are in flight without a write"
                );
            }
            Phase::Failed { .. } => assert!(!self.has_ops(), "an op was pushed to a failed log"),
        }
        if self.durability == Durability::Always {
            assert_eq!(self.visible_position(), self.durable);
        }
    }

    /// Marks the log as failed. Ops that are not visible yet are lost, and no further write is
    /// started.
    pub fn fail(&mut self) {
        let in_flight = !self.is_quiet();
        self.filling.clear();
        self.filling_ops = 0;
        self.phase = Phase::Failed { in_flight };
    }

    /// Returns the end of the failed segment.
    #[must_use]
    pub fn end(&self) -> End {
        let keeps_written = self.durability != Durability::Always && !self.sync_failed;
        let shown = if keeps_written {
            self.written
        } else {
            self.durable
        };
        End {
            index: self.segment.index,
            durable: self.durable,
            shown,
        }
    }

    /// Restarts the log with a new segment after a failure.
    ///
    /// # Panics
    /// If an operation of the old segment is still in flight.
    pub fn reopen(&mut self, segment: OpenSegment, now_us: u64) {
        assert_eq!(
            self.phase,
            Phase::Failed { in_flight: false },
            "a log was reopened with an operation in flight"
        );
        *self = Self::new(self.durability, self.sync_interval_us, segment, now_us)
            .with_batch_bytes_max(self.batch_bytes_max);
    }

    /// Moves all stored times back by `us`, to account for time during which the shard's clock
    /// stood still.
    pub fn has_aged(&mut self, us: u64) {
        let aged = |at_us: u64| at_us.saturating_sub(us);
        self.oldest_us = aged(self.oldest_us);
        self.begun_us = aged(self.begun_us);
        self.idle_since_us = aged(self.idle_since_us);
        self.last_sync_us = aged(self.last_sync_us);
        self.unsynced_since_us = self.unsynced_since_us.map(aged);
        self.synced_since_us = self.synced_since_us.map(aged);
    }

    /// Calls [`Commit::invariants`] in tests and debug builds, where its cost does not matter.
    fn debug_invariants(&self) {
        if cfg!(debug_assertions) {
            self.invariants();
        }
    }

    /// Records that everything written so far is on disk.
    fn settled(&mut self, now_us: u64) {
        self.durable = self.written;
        self.synced_since_us = self.unsynced_since_us.take();
        self.idle_since_us = now_us;
    }

    fn write(&mut self, now_us: u64) -> LogStep {
        self.begun_us = now_us;
        let mut bytes = std::mem::replace(&mut self.filling, std::mem::take(&mut self.spare));
        record::seal_batch(&mut bytes, self.segment.salt, self.handed, self.durable);
        self.phase = Phase::Writing {
            batch_bytes: bytes.len(),
            from: 0,
        };
        self.handed = self.handed.advance(bytes.len() as u64);
        self.group_ops = std::mem::take(&mut self.filling_ops);
        if self.group_ops > 0 {
            self.unsynced_since_us.get_or_insert(self.oldest_us);
        }
        LogStep::Write {
            offset: self.offset(self.written),
            bytes,
            from: 0,
        }
    }

    fn sync(&mut self, now_us: u64) -> LogStep {
        self.phase = Phase::Syncing;
        self.last_sync_us = now_us;
        LogStep::Sync
    }

    fn open_next(&mut self) -> LogStep {
        self.phase = Phase::Opening;
        LogStep::Open {
            index: self.segment.index + 1,
            first_position: self.handed,
        }
    }

    fn offset(&self, position: LogPosition) -> u64 {
        SEGMENT_HEADER_BYTES as u64 + self.bytes_in_segment(position)
    }

    fn bytes_in_segment(&self, position: LogPosition) -> u64 {
        let bytes = position.bytes_since(self.segment.first_position);
        bytes.expect("all written bytes are in the open segment")
    }

    fn broken(&mut self) -> Result<Option<LogStep>, LogBroken> {
        self.phase = Phase::Failed { in_flight: false };
        self.filling.clear();
        self.filling_ops = 0;
        Err(LogBroken)
    }

    /// Handles an outcome that arrives after the log was marked as failed. The log may be reopened
    /// only now that the kernel is no longer working on the old file.
    fn late(&mut self) {
        assert_eq!(
            self.phase,
            Phase::Failed { in_flight: true },
            "an outcome arrived without a step"
        );
        self.phase = Phase::Failed { in_flight: false };
    }
}

const _: () = assert!(BATCH_HEADER_BYTES < BATCH_BYTES_MAX);

#[cfg(test)]
mod tests;
