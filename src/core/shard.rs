//! One shard: its sessions, its workspaces, its log, as a state machine without IO.
//!
//! # Contract
//!
//! Any number of [`Shard::accept`], [`Shard::adopt`] and [`Shard::handle`], then one
//! [`Shard::flush`], then [`Shard::poll_output`] until it gives None. The caller carries the outputs
//! out and brings their outcomes back as inputs. Time is an argument ([`Clock`]) and may jump. The
//! ring's worker and the simulator are two callers of the same code. Inside, time is that during which
//! the shard was there ([`absence`](crate::core::shard::absence)): only these functions see the caller's.
//!
//! | output | brings the input |
//! | --- | --- |
//! | [`Output::Receive`] | [`Input::Received`] |
//! | [`Output::Send`] | [`Input::Sent`] |
//! | [`Output::Log`] | [`Input::LogWritten`], [`Input::LogSynced`] or [`Input::LogOpened`] |
//! | [`Output::Rebuild`] | [`Input::Rebuilt`] |
//!
//! # Rooms
//!
//! `handshake` (the request head, joining), `intake` (bytes to messages to the state), `delivery`
//! (who is sent what, and when), `lifetime` (timers, closing, drain), `encoding` (states as texts),
//! `eviction` (who is given up where a budget is full), `failure` (a log that cannot be written, a
//! panic) are parts of this type, a file each.

pub mod absence;
pub mod connection_log;
pub mod counters;
pub mod log_space;
pub mod rate;
pub mod session;
pub mod shedding;
pub mod timers;

mod aging;
mod delivery;
mod encoding;
mod eviction;
mod failure;
mod handshake;
mod held_writers;
mod http_read;
mod intake;
mod lifetime;
mod session_budget;
mod sessions;
mod shedding_queue;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use slab::Slab;

use crate::core::contract::{Clock, Handoff, Input, Output, PeerStatus, ShardConfig};
use crate::core::fanout::outbox::OutboxPool;
use crate::core::fanout::pacer::Pacer;
use crate::core::fanout::room::Room;
use crate::core::fanout::window::Chunk;
use crate::core::shard::absence::Absence;
use crate::core::shard::connection_log::{ConnectionLog, Party};
use crate::core::shard::counters::Counters;
use crate::core::shard::log_space::LogSpace;
use crate::core::shard::rate::Bucket;
use crate::core::shard::session::SessionId;
use crate::core::shard::session_budget::SessionBudget;
use crate::core::shard::sessions::Sessions;
use crate::core::shard::shedding_queue::SheddingQueue;
use crate::core::snapshot::snapshots::Snapshots;
use crate::core::state::segment_usage::{Dead, SegmentUsage};
use crate::core::state::workspace::Workspace;
use crate::limits::{REOPEN_WAIT_MIN_US, SEGMENT_LIVE_SHARE, SNAPSHOTS_SWEPT_PER_TURN};
use crate::log::commit::{Commit, Durability, LogStep, OpenSegment};
use crate::log::position::LogPosition;
use crate::wire::message::Parser;

/// One shard.
pub struct Shard {
    config: ShardConfig,
    /// Taken out while a message is handled, since the message borrows it.
    parser: Option<Box<Parser>>,
    peer_status: PeerStatus,
    sessions: Sessions,
    rooms: Slab<Room>,
    /// The list of users that somebody was sent last.
    kept_presence: Option<Chunk>,
    /// What is held for single sessions.
    budget: SessionBudget,
    /// Where bytes are joined with those that were left of a frame.
    joined_bytes: Vec<u8>,
    counters: Counters,
    /// None: nothing is logged of single connections.
    connection_log: Option<Box<ConnectionLog>>,
    /// Requests that wait for the state of the shard, by the numbers of their sessions.
    waiting: BTreeMap<u64, (SessionId, Handoff)>,
    /// The connections that give way when there are as many as there may be, by their door.
    yielding: [SheddingQueue; 2],
    /// The requests with a token.
    handshakes: Bucket,
    snapshots: Snapshots,
    pacer: Pacer,
    usage: SegmentUsage,
    room_index: HashMap<Box<str>, u32, FixedState>,
    commit: Commit,
    pool: OutboxPool,
    outputs: VecDeque<Output>,
    /// Those who are owed something.
    send_queue: VecDeque<SessionId>,
    /// Those of them who are owed so much that the others do not wait for them.
    bulk_queue: VecDeque<SessionId>,
    /// Those whose receive is to be armed again.
    receive_queue: Vec<SessionId>,
    /// Those who have bytes that wait to be read on.
    unread_queue: VecDeque<SessionId>,
    /// Those who have ops for which the log has no room, in the order in which they are tried again.
    held_queue: VecDeque<SessionId>,
    /// When they were tried last, and when the turn ended that left them waiting.
    held_tried_us: u64,
    held_since_us: Option<u64>,
    log_space: LogSpace,
    /// Those whose answers wait: for the log, or for a text.
    gated: Vec<SessionId>,
    /// Rooms with news, or with frames to let go.
    touched: Vec<u32>,
    /// Empty but while a window is trimmed: those who fall out of it.
    fallen: Vec<SessionId>,
    /// Who sent the ops that are not visible yet.
    senders: Vec<SessionId>,
    written_senders: usize,
    /// How often one of the send queue had its turn.
    served_count: u64,
    /// When the oldest op came of those that may be shown since the last commit.
    shown_since_us: Option<u64>,
    watch: Option<Watch>,
    visible_position: LogPosition,
    /// What the entries of all workspaces take in a log in which nothing is dead.
    live_bytes: u64,
    health: Health,
    /// The wait before the next try to open a failed log.
    reopen_wait_us: u64,
    /// How often the state was read back from the log since the start.
    rebuilds_count: u64,
    drain: Drain,
    absence: Absence,
}

/// Whether a shard can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Serving,
    /// The server starts: the log is being read.
    Recovering,
    /// The log is to be opened again at this time.
    Failed {
        next_try_us: u64,
    },
    /// The log is being opened and the state read back.
    Rebuilding,
}

impl Health {
    pub fn is_serving(self) -> bool {
        self == Self::Serving
    }

    pub fn next_try_us(self) -> Option<u64> {
        match self {
            Self::Failed { next_try_us } => Some(next_try_us),
            Self::Serving | Self::Recovering | Self::Rebuilding => None,
        }
    }
}

/// Sends that are followed to their end.
#[derive(Debug, Clone, Copy)]
struct Watch {
    /// When the oldest of their ops came.
    pub since_us: u64,
    /// They are out when so many of the send queue have had their turn.
    pub end: u64,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    Closing { deadline_us: u64 },
    Sealing,
    Sealed,
}

impl Shard {
    /// A shard that serves `workspaces` and appends to `segment`.
    #[must_use]
    pub fn new(
        config: ShardConfig,
        segment: OpenSegment,
        workspaces: Vec<Workspace>,
        clock: Clock,
    ) -> Self {
        let mut shard = Self::recovering(config, clock);
        shard.open(segment, workspaces, clock);
        shard
    }

    /// A shard whose state is still being read: requests that need it wait until [`Input::Rebuilt`] brings that.
    #[must_use]
    pub fn recovering(config: ShardConfig, clock: Clock) -> Self {
        let commit = Commit::closed(config.durability, config.sync_interval_us, clock.now_us)
            .with_batch_bytes_max(config.batch_bytes_max);
        Self {
            parser: None,
            peer_status: PeerStatus::default(),
            sessions: Sessions::new(config.hash_seed, clock),
            rooms: Slab::new(),
            kept_presence: None,
            budget: SessionBudget::new(config.session_bytes_max),
            joined_bytes: Vec::new(),
            counters: Counters::default(),
            connection_log: config.has_journal.then(Box::default),
            waiting: BTreeMap::new(),
            yielding: Default::default(),
            handshakes: Bucket::default(),
            snapshots: Snapshots::new(config.snapshot_bytes_max, config.snapshot_part_bytes),
            pacer: Pacer::default(),
            usage: SegmentUsage::new(0),
            room_index: HashMap::with_hasher(FixedState::with_seed(config.hash_seed)),
            visible_position: commit.visible_position(),
            commit,
            log_space: LogSpace::new(config.log_spare_bytes),
            config,
            pool: OutboxPool::default(),
            outputs: VecDeque::new(),
            send_queue: VecDeque::new(),
            bulk_queue: VecDeque::new(),
            receive_queue: Vec::new(),
            unread_queue: VecDeque::new(),
            held_queue: VecDeque::new(),
            held_tried_us: 0,
            held_since_us: None,
            gated: Vec::new(),
            touched: Vec::new(),
            fallen: Vec::new(),
            senders: Vec::new(),
            written_senders: 0,
            served_count: 0,
            shown_since_us: None,
            watch: None,
            live_bytes: 0,
            health: Health::Recovering,
            reopen_wait_us: REOPEN_WAIT_MIN_US,
            rebuilds_count: 0,
            drain: Drain::No,
            absence: Absence::default(),
        }
    }

    /// Begins to serve.
    fn open(&mut self, segment: OpenSegment, workspaces: Vec<Workspace>, clock: Clock) {
        self.usage = SegmentUsage::new(segment.index);
        if self.health != Health::Recovering {
            self.close_segment();
        }
        self.commit.reopen(segment, clock.now_us);
        self.visible_position = self.commit.visible_position();
        self.health = Health::Serving;
        self.live_bytes = workspaces.iter().map(Workspace::log_bytes).sum();
        for workspace in workspaces {
            self.insert_room(Room::new(workspace));
        }
    }

    /// Tells what the other shards do.
    pub fn set_peer_status(&mut self, peer_status: PeerStatus) {
        self.peer_status = peer_status;
    }

    /// Takes something that happened.
    pub fn handle(&mut self, input: Input<'_>, clock: Clock) {
        let clock = self.woke(clock);
        let culprit = match &input {
            Input::Received(id, _) | Input::Sent(id, ..) | Input::Page(id, _) => Some(*id),
            _ => None,
        };
        self.guard(culprit, clock, |shard| {
            shard.dispatch(input, clock);
            shard.keep_budget(clock);
        });
    }

    /// Ends a turn. The order of its steps is the argument for durability:
    ///
    /// 1. The log comes first: a batch is handed over when nothing of the log is in flight, and the
    ///    round of sends is done or the batch is old. From here on the batch is closed, so no op
    ///    can slip under an fdatasync that does not cover it.
    /// 2. Then sends, and only while no commit is in flight (`Commit::holds_sends`) and the shard does not rest. Each carries
    ///    what lies at or before the position that was durable when the turn began. A part of the
    ///    states that are being encoded comes before them, so that what is whole goes out at once.
    /// 3. Receives are armed after the sends: a client that answers at once is read in the next
    ///    turn, with all others who answered, so that batches grow with the load.
    pub fn flush(&mut self, clock: Clock) {
        let clock = self.woke(clock);
        self.answer_waiting(clock);
        self.guard(None, clock, |shard| {
            shard.expire_timers(clock);
            shard.keep_budget(clock);
            shard.look_at_log(clock);
            shard.read_on(clock);
            shard.read_held(clock);
            shard.announce();
            shard.watch_sends(clock);
            shard.start_commit(clock);
            shard.encode_states();
            shard.send_slice(clock);
            shard.trim_windows();
            shard.arm_receives();
            shard.go_on_draining(clock);
        });
        self.gauge();
        let due_us = if self.has_work() {
            Some(clock.now_us)
        } else {
            self.next_local_deadline_us()
        };
        self.absence.slept(clock.now_us, due_us);
    }

    /// The next thing to do. A session's slot is free for the next one only from here on: before the
    /// caller has seen that a connection is gone, its name must not stand for another.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front()?;
        if let Output::Close(id) | Output::Handoff(id, ..) = &output {
            self.sessions.remove(*id);
        }
        Some(output)
    }

    /// Whether the next turn should come at once, even if nothing happens until then.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let may_send =
            self.is_round() && !self.commit.holds_sends() && self.pacer.until_us().is_none();
        // A round may have ended in this turn, behind the step in which a commit starts.
        let may_commit = !self.is_round() && self.commit.is_ready();
        let may_encode = self.snapshots.is_encoding();
        let may_read = self.may_read_on() && !self.unread_queue.is_empty();
        may_send || may_commit || may_encode || may_read || self.may_answer_waiting()
    }

    /// When the next turn must come, if nothing happens until then.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        let local_us = self.next_local_deadline_us();
        local_us.map(|local_us| self.absence.caller_us(local_us))
    }

    fn next_local_deadline_us(&self) -> Option<u64> {
        // What waits for something in flight is looked at when that comes back, and a batch that waits for a round of sends in the
        // turns that the round takes, or in the one behind it (`has_work`).
        let quiet = self.commit.is_quiet();
        let sync_us = self.commit.sync_due_us().filter(|_| quiet);
        let retry_us = self
            .health
            .next_try_us()
            .filter(|_| quiet && self.drain == Drain::No);
        let drain_us = match self.drain {
            Drain::Closing { deadline_us } => Some(deadline_us),
            _ => None,
        };
        let rest_us = self.pacer.until_us();
        let held_us = self.held_due_us();
        [
            self.sessions.next_due_us(),
            sync_us,
            retry_us,
            drain_us,
            rest_us,
            held_us,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What the state takes in a log in which nothing is dead.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Which segments of the log may go without being read.
    #[must_use]
    pub fn dead_segments(&self) -> &Dead {
        self.usage.dead()
    }

    /// What it had done, and what it had, when its last turn ended.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Checks what always holds between two calls: the invariant of each part, and what is held
    /// against the sums and the budget.
    ///
    /// # Panics
    /// Where one of them is broken.
    pub fn invariants(&self) {
        self.sessions.invariants();
        self.snapshots.invariants();
        self.audit();
    }

    fn gauge(&mut self) {
        let sessions = self.sessions.counts();
        let counters = &mut self.counters;
        counters.connections = sessions.members;
        counters.sessions_handshake = sessions.unanswered;
        counters.sessions_closing =
            self.sessions.len() as u64 - sessions.gone - sessions.members - sessions.unanswered;
        counters.workspaces = self.rooms.len() as u64;
        counters.window_bytes = self.pool.window_bytes() as u64;
        counters.answer_bytes = self.pool.answer_bytes() as u64;
        counters.unfinished_bytes = self.budget.unfinished_bytes() as u64;
        self.budget.sweep(SNAPSHOTS_SWEPT_PER_TURN);
        counters.shared_answer_bytes = self.budget.shared_bytes() as u64;
        counters.snapshot_bytes = self.snapshots.sweep() as u64;
        counters.frames_sent = self.pool.frames_taken() + counters.conflated_keys;
        counters.log_live_bytes = self.live_bytes;
        counters.log_open_bytes = self.commit.segment_bytes_written();
        counters.log_bytes = self.log_space.log_bytes();
        counters.log_bytes_max = self.log_space.stop_bytes();
        counters.disk_is_full = u64::from(self.log_space.is_disk_full(self.commit.end_position()));
        counters.sessions_held = self.held_queue.len() as u64;
    }

    /// The number of connections, closing ones included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.sessions.len()
    }

    fn dispatch(&mut self, input: Input<'_>, clock: Clock) {
        match input {
            Input::Received(id, received) => self.received(id, received, clock),
            Input::Sent(id, spans, outcome) => self.sent(id, spans, outcome, clock),
            Input::LogWritten(bytes, outcome) => {
                self.counters.log_bytes_written += *outcome.as_ref().unwrap_or(&0) as u64;
                match self.commit.written(bytes, outcome, clock.now_us) {
                    Ok(Some(step)) => self.push_step(step),
                    Ok(None) => self.committed(clock),
                    Err(_) => self.fail(None, clock),
                }
            }
            Input::LogSynced(outcome) => match self.commit.synced(outcome, clock.now_us) {
                Ok(()) => self.committed(clock),
                Err(_) => self.fail(None, clock),
            },
            Input::LogOpened(segment) => {
                let is_closed = segment.is_ok() && !self.commit.is_failed();
                if is_closed {
                    self.close_segment();
                    self.usage.rotate();
                }
                if self.commit.opened(segment).is_err() {
                    self.fail(None, clock);
                }
            }
            Input::Rebuilt(outcome) => self.rebuilt(outcome, clock),
            Input::LogDisplaced if self.health.is_serving() => self.fail(None, clock),
            // Each try to open the log again finds it out.
            Input::LogDisplaced => {}
            Input::LogSize(size) => self.log_space.measured(size),
            Input::Page(id, answer) => self.paged(id, answer, clock),
            Input::Drain => self.start_drain(clock),
        }
    }

    /// A batch is where its durability wants it.
    fn committed(&mut self, clock: Clock) {
        if let Some(since_us) = self.commit.take_synced_since_us() {
            let took_us = clock.now_us.saturating_sub(since_us);
            self.counters.durable.took(took_us);
            self.shown_since_us = Some(since_us);
        }
        self.show_committed();
    }

    /// Runs a part of a turn. A panic in it is a fault of this server, not of the process: the one
    /// whose input caused it is told 500, and the shard starts over from its log.
    fn guard(&mut self, culprit: Option<SessionId>, clock: Clock, part: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| part(self))).is_err() {
            self.fail(culprit, clock);
        }
    }

    /// Whether somebody waits for the turn to be sent to.
    fn is_round(&self) -> bool {
        !self.send_queue.is_empty() || !self.bulk_queue.is_empty()
    }

    fn start_commit(&mut self, clock: Clock) {
        let due_us = self.commit.batch_due_us();
        let old = due_us.is_some_and(|due_us| due_us <= clock.now_us);
        let turn = !self.is_round() || self.config.durability != Durability::Always;
        let is_due = turn || old || self.commit.is_full();
        self.commit.set_segment_bytes(self.segment_bytes());
        if let Some(step) = is_due.then(|| self.commit.start(clock.now_us)).flatten() {
            self.push_step(step);
        }
        self.retry_log(clock);
    }

    /// The length at which a segment is closed.
    fn segment_bytes(&self) -> u64 {
        (self.live_bytes / SEGMENT_LIVE_SHARE)
            .clamp(self.config.segment_bytes_min, self.config.segment_bytes_max)
    }

    fn push_step(&mut self, step: LogStep) {
        if let LogStep::Write { from: 0, .. } = step {
            self.written_senders = self.senders.len();
            let ops = self.commit.take_group();
            if ops > 0 {
                self.counters.groups.had(ops);
            }
        }
        self.outputs.push_back(Output::Log(step));
    }

    /// Records in the journal why a connection is about to end, if there is a journal.
    fn note_ending(&mut self, id: SessionId, code: u16, reason: &str, by: Party) {
        if let Some(journal) = &mut self.connection_log {
            journal.ending(id, code, reason, by);
        }
    }
}

#[cfg(test)]
mod tests;
