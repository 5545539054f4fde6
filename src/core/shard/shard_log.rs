//! The log of a shard: the commit in progress, the visible position, the senders of ops that are
//! lost if the log fails, the remaining space, and whether the log can be written to at all.

use std::io;

use crate::core::shard::contract::ShardConfig;
use crate::core::shard::generations::GenerationRecord;
use crate::core::shard::log_space::{LogSize, LogSpace};
use crate::core::shard::session::SessionId;
use crate::core::state::segment_usage::{Dead, Mark, SegmentUsage, UNMARKED};
use crate::core::state::write_allowance::WriteAllowance;
use crate::limits::{REOPEN_WAIT_MAX_US, REOPEN_WAIT_MIN_US, SEGMENT_LIVE_SHARE};
use crate::log::commit::{Commit, End, LogBroken, LogStep, OpenSegment};
use crate::log::position::LogPosition;
use crate::log::record;

/// Whether a shard can serve and, if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Serving,
    /// The server is starting: the log is being read.
    Recovering,
    /// The log has failed and will be reopened at `next_try_us`.
    Failed {
        next_try_us: u64,
    },
    /// The log is being reopened and the state is being read back.
    Rebuilding,
}

/// The change that a winning op makes to the log.
pub(super) struct Append<'a> {
    pub record: record::LoggedOp<'a>,
    /// The mark of the op that this op replaces.
    pub replaced: Mark,
    /// The size of the workspace in a log without superseded ops, before and after the op.
    pub live_bytes: (u64, u64),
    /// The session that is sent an error if the op is lost; `None` for one of the server's own ops.
    pub sender: Option<SessionId>,
}

/// The log of a shard.
///
/// Invariant: `durable ≤ written ≤ handed over`, which [`Commit`] guarantees. In `always` mode, no
/// op is visible before it is durable. The sender of each op that is not visible yet is in
/// `senders`, unless the op is the server's. The record of the current generation comes before its
/// ops. The log is open if and only if the shard serves.
pub(super) struct ShardLog {
    commit: Commit,
    usage: SegmentUsage,
    space: LogSpace,
    health: Health,
    /// The record of the current generation, until it is appended.
    unrecorded: Option<GenerationRecord>,
    /// The position up to which ops are visible. It does not move when the log fails.
    visible_position: LogPosition,
    /// The senders of the ops that are not visible yet: first those in the batch that is being
    /// written, then those in the batch that is being filled.
    senders: Vec<SessionId>,
    written_senders: usize,
    /// The time of the last append.
    appended_us: Option<u64>,
    /// The size of all workspaces in a log without superseded ops.
    live_bytes: u64,
    segment_bytes_min: u64,
    segment_bytes_max: u64,
    /// The delay before the next attempt to open a failed log.
    reopen_wait_us: u64,
}

impl ShardLog {
    /// Returns a log that is still being read.
    pub fn recovering(config: &ShardConfig, now_us: u64) -> Self {
        let commit = Commit::closed(config.durability, config.sync_interval_us, now_us)
            .with_batch_bytes_max(config.batch_bytes_max);
        Self {
            visible_position: commit.visible_position(),
            commit,
            usage: SegmentUsage::new(0),
            space: LogSpace::new(config.log_spare_bytes),
            health: Health::Recovering,
            unrecorded: None,
            senders: Vec::new(),
            written_senders: 0,
            appended_us: None,
            live_bytes: 0,
            segment_bytes_min: config.segment_bytes_min,
            segment_bytes_max: config.segment_bytes_max,
            reopen_wait_us: REOPEN_WAIT_MIN_US,
        }
    }

    // ---- health ----

    pub fn health(&self) -> Health {
        self.health
    }

    pub fn is_serving(&self) -> bool {
        self.health == Health::Serving
    }

    /// Starts appending to `segment`. The live data in the earlier segments takes up `live_bytes`.
    /// The generation that begins is recorded before the first op.
    pub fn open(
        &mut self,
        segment: OpenSegment,
        live_bytes: u64,
        generation: GenerationRecord,
        now_us: u64,
    ) {
        self.usage = SegmentUsage::new(segment.index);
        if self.health != Health::Recovering {
            self.close_segment();
        }
        self.commit.reopen(segment, now_us);
        self.visible_position = self.commit.visible_position();
        self.health = Health::Serving;
        self.live_bytes = live_bytes;
        self.unrecorded = Some(generation);
    }

    /// Abandons the log. All ops that are not visible are lost. Returns their senders, some of
    /// which may appear more than once. The log is retried after a delay that grows with each
    /// failure.
    pub fn reset(&mut self, now_us: u64) -> Vec<SessionId> {
        self.written_senders = 0;
        self.unrecorded = None;
        if !self.commit.is_failed() {
            self.commit.fail();
        }
        if self.is_serving() {
            self.fail_until(now_us);
        }
        std::mem::take(&mut self.senders)
    }

    fn fail_until(&mut self, now_us: u64) {
        self.health = Health::Failed {
            next_try_us: now_us + self.reopen_wait_us,
        };
    }

    /// Returns the time at which a failed log is retried, if no operation on it is in flight.
    pub fn retry_due_us(&self) -> Option<u64> {
        match self.health {
            Health::Failed { next_try_us } if self.commit.is_quiet() => Some(next_try_us),
            Health::Failed { .. } | Health::Serving | Health::Recovering | Health::Rebuilding => {
                None
            }
        }
    }

    /// Begins reading the state back from a failed log. Returns the end of that log.
    pub fn rebuild(&mut self) -> End {
        self.health = Health::Rebuilding;
        self.commit.end()
    }

    /// Records the end of a rebuild, or of the initial reading. Returns whether it was a rebuild.
    ///
    /// # Panics
    /// If neither was in progress.
    pub fn end_rebuild(&mut self) -> bool {
        let is_rebuild = self.health == Health::Rebuilding;
        assert!(
            is_rebuild || self.health == Health::Recovering,
            "an outcome arrived without a rebuild"
        );
        if is_rebuild {
            self.reopen_wait_us = (self.reopen_wait_us * 2).min(REOPEN_WAIT_MAX_US);
        }
        is_rebuild
    }

    /// Records that the log could not be read, and schedules another attempt.
    pub fn rebuild_failed(&mut self, now_us: u64) {
        self.fail_until(now_us);
    }

    // ---- ops ----

    /// Returns the mark for an op applied now.
    pub fn mark(&self) -> Mark {
        self.usage.mark()
    }

    /// Appends the record of the current generation, unless that was done already. While the disk
    /// is full it waits: no op is appended then, and a failed write would close all clients.
    pub fn record_generation(&mut self, now_us: u64) {
        if self.unrecorded.is_some() && !self.is_disk_full() {
            self.append_generation(now_us);
        }
    }

    /// The record is never superseded within the generation, so its segment is never found to be
    /// dead and swept: [`SegmentUsage`] counts the record as live for as long as it counts the
    /// segment.
    fn append_generation(&mut self, now_us: u64) {
        if let Some(generation) = self.unrecorded.take() {
            let record = generation.op();
            self.usage.replaced(UNMARKED);
            self.live_bytes += record::op_bytes(&record) as u64;
            self.commit.push(&record, now_us);
        }
    }

    /// Appends an op and returns its log position; the op may be sent once that position is
    /// visible.
    pub fn append(
        &mut self,
        op: &Append<'_>,
        allowance: &mut WriteAllowance,
        now_us: u64,
    ) -> LogPosition {
        self.append_generation(now_us);
        self.usage.replaced(op.replaced);
        let (before, after) = op.live_bytes;
        self.live_bytes -= before;
        self.live_bytes += after;
        self.appended_us = Some(now_us);
        let position = self.commit.push(&op.record, now_us);
        self.space.wrote(allowance, &op.record, now_us);
        // The senders in the batch that is being written do not count, because they are removed
        // with that batch and this op is in the next one.
        let last = self.senders[self.written_senders..].last().copied();
        self.senders
            .extend(op.sender.filter(|id| last != Some(*id)));
        position
    }

    /// Returns whether the batch is full; if so, no more messages are read until it is written.
    pub fn is_full(&self) -> bool {
        self.commit.is_full()
    }

    /// Returns the position at which the batch that is being filled begins. Everything appended
    /// from here on becomes visible with a single commit.
    pub fn batch_start(&self) -> LogPosition {
        self.commit.handed_position()
    }

    /// Returns the position up to which ops are visible.
    pub fn visible_position(&self) -> LogPosition {
        self.visible_position
    }

    // ---- steps of a commit ----

    /// Starts the log step that is due, if none is in flight; see [`Commit::start`].
    pub fn start(&mut self, now_us: u64) -> Option<LogStep> {
        self.commit.set_segment_bytes(self.segment_bytes());
        self.commit.start(now_us)
    }

    /// Returns the time at which the batch is written even if the round of sends is not complete.
    pub fn batch_due_us(&self) -> Option<u64> {
        self.commit.batch_due_us()
    }

    /// Returns the time of the last append.
    pub fn appended_us(&self) -> Option<u64> {
        self.appended_us
    }

    /// Returns whether a batch can be written now.
    pub fn is_ready(&self) -> bool {
        self.commit.is_ready()
    }

    /// Returns whether the commit in flight prevents sends from starting.
    pub fn holds_sends(&self) -> bool {
        self.commit.holds_sends()
    }

    /// Records that a new batch was handed to the caller to be written. Returns the number of ops
    /// in it.
    pub fn batch_handed_over(&mut self) -> u64 {
        self.written_senders = self.senders.len();
        self.commit.take_group()
    }

    /// Records the outcome of a write; see [`Commit::written`].
    pub fn written(
        &mut self,
        bytes: Vec<u8>,
        outcome: io::Result<usize>,
        now_us: u64,
    ) -> Result<Option<LogStep>, LogBroken> {
        self.commit.written(bytes, outcome, now_us)
    }

    /// Records the outcome of an fdatasync.
    pub fn synced(&mut self, outcome: &io::Result<()>, now_us: u64) -> Result<(), LogBroken> {
        self.commit.synced(outcome, now_us)
    }

    /// Records the outcome of opening the next segment.
    pub fn opened(&mut self, segment: &io::Result<OpenSegment>) -> Result<(), LogBroken> {
        if segment.is_ok() && !self.commit.is_failed() {
            self.close_segment();
            self.usage.rotate();
        }
        self.commit.opened(segment)
    }

    /// Returns, once, the push time of the oldest op among those that most recently became durable.
    pub fn take_synced_since_us(&mut self) -> Option<u64> {
        self.commit.take_synced_since_us()
    }

    /// Makes visible all ops that the durability mode allows. Returns `false` if the log has
    /// failed, in which case nothing more becomes visible.
    pub fn show(&mut self) -> bool {
        if self.commit.is_failed() {
            return false;
        }
        self.senders.drain(..self.written_senders);
        self.written_senders = 0;
        self.reopen_wait_us = REOPEN_WAIT_MIN_US;
        self.visible_position = self.commit.visible_position();
        true
    }

    /// Returns the time at which the timer's next fdatasync is due, if no operation on the log is
    /// in flight.
    pub fn sync_due_us(&self) -> Option<u64> {
        let sync_us = self.commit.sync_due_us();
        sync_us.filter(|_| self.commit.is_quiet())
    }

    // ---- shutdown ----

    /// Returns whether everything that was ever appended is on disk.
    pub fn is_settled(&self) -> bool {
        self.commit.is_settled()
    }

    /// Returns whether the log has failed.
    pub fn is_failed(&self) -> bool {
        self.commit.is_failed()
    }

    /// Returns whether no operation on the log is in flight.
    pub fn is_quiet(&self) -> bool {
        self.commit.is_quiet()
    }

    /// Starts an fdatasync of everything that was written, if there is anything to sync.
    pub fn settle(&mut self, now_us: u64) -> Option<LogStep> {
        self.commit.settle(now_us)
    }

    /// Starts the last step of a clean shutdown; see [`Commit::seal`].
    pub fn seal(&mut self, now_us: u64) -> LogStep {
        self.commit.seal(now_us)
    }

    // ---- space ----

    /// Compares the length of the log with its limits, once per turn.
    pub fn measure(&mut self, now_us: u64) {
        let written_bytes = self.commit.segment_bytes_written();
        let open_bytes = written_bytes.min(self.segment_bytes());
        self.space.update(open_bytes, self.live_bytes, now_us);
    }

    /// Records a measurement of the log's files.
    pub fn measured(&mut self, size: LogSize) {
        self.space.measured(size);
    }

    /// Returns whether all workspaces may write.
    pub fn is_free(&self) -> bool {
        self.space.is_free()
    }

    /// Returns whether no workspace may write before the log is measured again.
    pub fn is_stopped(&self) -> bool {
        self.space.is_stopped()
    }

    /// Returns whether a workspace may write now.
    pub fn may_write(&self, allowance: &mut WriteAllowance, now_us: u64) -> bool {
        self.space.may_write(allowance, now_us)
    }

    /// Returns whether the disk has no space left for ops.
    pub fn is_disk_full(&self) -> bool {
        self.space.is_disk_full(self.commit.end_position())
    }

    /// Returns the length at which a segment is closed.
    fn segment_bytes(&self) -> u64 {
        let share = self.live_bytes / SEGMENT_LIVE_SHARE;
        share.clamp(self.segment_bytes_min, self.segment_bytes_max)
    }

    fn close_segment(&mut self) {
        let bytes = self.commit.segment_bytes_written();
        self.space.closed(self.commit.segment_index(), bytes);
    }

    // ---- gauges ----

    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Returns the segments that may be deleted without being read.
    pub fn dead_segments(&self) -> &Dead {
        self.usage.dead()
    }

    pub fn open_bytes(&self) -> u64 {
        self.commit.segment_bytes_written()
    }

    /// Returns the log length to which the limits apply.
    pub fn bytes(&self) -> u64 {
        self.space.log_bytes()
    }

    /// Returns the length of the log at which no workspace may write.
    pub fn bytes_max(&self) -> u64 {
        self.space.stop_bytes()
    }

    /// Adds `us`, during which the clock stood still, to the age of everything that waits.
    pub fn has_aged(&mut self, us: u64) {
        self.commit.has_aged(us);
    }

    /// Checks the invariant.
    pub fn invariants(&self) {
        assert!(
            self.written_senders <= self.senders.len(),
            "more written senders than senders"
        );
        let is_open = !self.commit.is_failed();
        assert_eq!(is_open, self.is_serving(), "{:?}", self.health);
        if is_open {
            let visible = self.commit.visible_position();
            assert!(
                self.visible_position <= visible,
                "an op is visible too early"
            );
        } else {
            assert!(self.senders.is_empty(), "senders of lost ops are kept");
        }
    }

    #[cfg(test)]
    pub fn segment_index(&self) -> u64 {
        self.commit.segment_index()
    }

    #[cfg(test)]
    pub fn end_position(&self) -> LogPosition {
        self.commit.end_position()
    }
}
