//! One shard: its sessions, its workspaces, its log, as a state machine without IO.
//!
//! # Contract
//!
//! Any number of [`Shard::accept`], [`Shard::adopt`] and [`Shard::handle`], then one
//! [`Shard::flush`], then [`Shard::poll_output`] until it returns None. The caller carries the
//! outputs out and brings their outcomes back as inputs. Time is an argument ([`Clock`]) and may
//! jump. The worker on its ring and the simulator are two callers of the same code. Inside, time is
//! that during which the shard was there ([`shard_clock`]): only these
//! functions see the caller's.
//!
//! | output | brings the input |
//! | --- | --- |
//! | [`Output::Receive`] | [`Input::Received`] |
//! | [`Output::Send`] | [`Input::Sent`] |
//! | [`Output::Log`] | [`Input::LogWritten`], [`Input::LogSynced`] or [`Input::LogOpened`] |
//! | [`Output::Rebuild`] | [`Input::Rebuilt`] |
//!
//! # Parts
//!
//! The data is cut into parts. Each is a file, with private fields, an invariant that
//! [`Shard::invariants`] checks, and a `reset()` for a shard that has failed:
//!
//! | part | owns |
//! | --- | --- |
//! | `Sessions` | the table of connections, their names, meters and timers |
//! | `Rooms` | the table of workspaces in memory, their index, which of them have news |
//! | `SendQueues` | the order of sends, pauses, sessions that wait for the log |
//! | `ReadQueues` | sessions to read: after a receive, in turn, or once the log has room |
//! | `ShardLog` | the commit, what is visible, the senders of what is not, room, health |
//! | `Admission` | requests that wait for the state, the rate of handshakes, shedding |
//! | `Snapshots` | encoded states, their budget, encodings in progress |
//! | `SessionBudget` | the memory that is held for single sessions |
//!
//! # Steps
//!
//! The steps of a turn work on those parts, a file for each subject: `handshake` (the request head,
//! joining), `http_read` and `waiting` (answers without a WebSocket, requests that wait), `intake`
//! (bytes to messages to the state), `held_writers` (clients that wait for compaction), `delivery`
//! (which session is sent what, and when), `conflation` (clients that read too slowly), `deadlines`
//! (timers), `closing` (closing, drain), `encoding` (snapshots), `eviction` and `shedding` (which
//! session ends where memory or connections run out), `clock_corrections` (after an absence),
//! `failure` (a log that cannot be written, a panic).

pub mod connection_log;
pub mod contract;
pub mod counters;
pub mod log_space;
pub mod rate;
pub mod session;
pub mod shard_clock;
pub mod shedding;
pub mod timers;

mod admission;
mod clock_corrections;
mod closing;
mod conflation;
mod deadlines;
mod delivery;
mod encoding;
mod eviction;
mod failure;
mod handshake;
mod held_writers;
mod http_read;
mod intake;
mod read_queues;
mod rooms;
mod send_queues;
mod session_budget;
mod sessions;
mod shard_log;
mod waiting;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::core::fanout::outbox::OutboxPool;
use crate::core::fanout::room::Room;
use crate::core::fanout::window::Chunk;
use crate::core::shard::admission::Admission;
use crate::core::shard::connection_log::{ConnectionLog, Party};
use crate::core::shard::contract::{Clock, Input, Output, PeerStatus, ShardConfig};
use crate::core::shard::counters::Counters;
use crate::core::shard::read_queues::ReadQueues;
use crate::core::shard::rooms::Rooms;
use crate::core::shard::send_queues::SendQueues;
use crate::core::shard::session::SessionId;
use crate::core::shard::session_budget::SessionBudget;
use crate::core::shard::sessions::Sessions;
use crate::core::shard::shard_clock::Absence;
use crate::core::shard::shard_log::ShardLog;
use crate::core::snapshot::snapshots::Snapshots;
use crate::core::state::segment_usage::Dead;
use crate::core::state::workspace::Workspace;
use crate::limits::SNAPSHOTS_SWEPT_PER_TURN;
use crate::log::commit::{Durability, LogStep, OpenSegment};
use crate::wire::message::Parser;

/// One shard.
pub struct Shard {
    config: ShardConfig,
    scratch: Rc<Scratch>,
    peer_status: PeerStatus,
    sessions: Sessions,
    rooms: Rooms,
    /// The list of users that was sent last, kept for the next request.
    kept_presence: Option<Chunk>,
    /// The memory held for single sessions.
    budget: SessionBudget,
    counters: Counters,
    /// None: nothing is logged of single connections.
    connection_log: Option<Box<ConnectionLog>>,
    admission: Admission,
    snapshots: Snapshots,
    log: ShardLog,
    reads: ReadQueues,
    sends: SendQueues,
    pool: OutboxPool,
    outputs: VecDeque<Output>,
    drain: Drain,
    absence: Absence,
}

/// Memory that the sessions share while their bytes are read. The shard is written while a message
/// borrows it, so the reader has a share of it for that time.
#[derive(Default)]
struct Scratch {
    parser: RefCell<Parser>,
    /// Where bytes are joined with those that were left of a frame.
    joined: RefCell<Vec<u8>>,
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
    /// Returns a shard that serves `workspaces` and appends to `segment`.
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

    /// Returns a shard whose state is still being read: requests that need it wait until
    /// [`Input::Rebuilt`] brings it.
    #[must_use]
    pub fn recovering(config: ShardConfig, clock: Clock) -> Self {
        Self {
            scratch: Rc::default(),
            peer_status: PeerStatus::default(),
            sessions: Sessions::new(config.hash_seed, clock),
            rooms: Rooms::new(config.hash_seed),
            kept_presence: None,
            budget: SessionBudget::new(config.session_bytes_max),
            counters: Counters::default(),
            connection_log: config.has_journal.then(Box::default),
            admission: Admission::default(),
            snapshots: Snapshots::new(config.snapshot_bytes_max, config.snapshot_part_bytes),
            log: ShardLog::recovering(&config, clock.now_us),
            reads: ReadQueues::default(),
            sends: SendQueues::default(),
            config,
            pool: OutboxPool::default(),
            outputs: VecDeque::new(),
            drain: Drain::No,
            absence: Absence::default(),
        }
    }

    /// Begins to serve.
    fn open(&mut self, segment: OpenSegment, workspaces: Vec<Workspace>, clock: Clock) {
        let live_bytes = workspaces.iter().map(Workspace::log_bytes).sum();
        self.log.open(segment, live_bytes, clock.now_us);
        for workspace in workspaces {
            self.rooms.insert(Room::new(workspace));
        }
    }

    /// Records what the other shards do.
    pub fn set_peer_status(&mut self, peer_status: PeerStatus) {
        self.peer_status = peer_status;
    }

    /// Handles something that happened.
    pub fn handle(&mut self, input: Input<'_>, clock: Clock) {
        let clock = self.woke(clock);
        let culprit = match &input {
            Input::Received(id, _) | Input::Sent(id, ..) | Input::Page(id, _) => Some(*id),
            _ => None,
        };
        self.guard(culprit, clock, |shard| {
            shard.dispatch(input, clock);
            shard.evict_over_budget(clock);
        });
    }

    /// Ends a turn. The order of its steps is the argument for durability:
    ///
    /// 1. Requests that have waited for the state are answered, timers expire, sessions are evicted
    ///    while too much is held, and the log is measured.
    /// 2. Bytes are read that an earlier turn left unread, so that their ops are in the batch of
    ///    this one.
    /// 3. Members are queued for the ops that became visible since the last turn, and the sends of
    ///    those are followed to measure them.
    /// 4. The log: a batch is handed over when nothing of the log is in flight, and the round of
    ///    sends is done or the batch is old. From here on the batch is closed, so no op can slip
    ///    under an fdatasync that does not cover it. A failed log is opened again.
    /// 5. A step of the large states that are being encoded, so that what is ready goes out at
    ///    once.
    /// 6. Sends, and only while no commit is in flight (`Commit::holds_sends`) and the shard does
    ///    not pause. Each carries what lies at or before the visible position, which does not move
    ///    within a turn once its inputs are handled.
    /// 7. Windows drop the frames that all members have been sent.
    /// 8. Receives are armed after the sends: a client that answers at once is read in the next
    ///    turn, with all others that answer, so that batches grow with the load.
    /// 9. A drain goes on: it ends when no session is left and the log is sealed.
    pub fn flush(&mut self, clock: Clock) {
        let clock = self.woke(clock);
        self.answer_waiting(clock);
        self.guard(None, clock, |shard| {
            shard.expire_timers(clock);
            shard.evict_over_budget(clock);
            shard.measure_log(clock);
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

    /// Returns the next thing to do. Only from here on is a session's slot free for the next one:
    /// before the caller has seen that a connection is gone, its id must not name another.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front()?;
        if let Output::Close(id) | Output::Handoff(id, ..) = &output {
            self.sessions.remove(*id);
        }
        Some(output)
    }

    /// Returns whether the next turn should come at once, even if nothing happens until then.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let may_send = !self.sends.is_empty()
            && !self.log.holds_sends()
            && self.sends.pause_until_us().is_none();
        // A round may have ended in this turn, after the step in which a commit starts.
        let may_commit = self.sends.is_empty() && self.log.is_ready();
        let may_encode = self.snapshots.is_encoding();
        let may_read = !self.log.is_full() && self.reads.unread_count() > 0;
        may_send || may_commit || may_encode || may_read || self.may_answer_waiting()
    }

    /// Returns when the next turn must come, if nothing happens until then.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        let local_us = self.next_local_deadline_us();
        local_us.map(|local_us| self.absence.caller_us(local_us))
    }

    fn next_local_deadline_us(&self) -> Option<u64> {
        // What waits for something in flight is looked at when that comes back. A batch that waits
        // for a round of sends is looked at in each turn of the round and in the one after it
        // (`has_work`).
        let retry_us = self.log.retry_due_us();
        let retry_us = retry_us.filter(|_| self.drain == Drain::No);
        let drain_us = match self.drain {
            Drain::Closing { deadline_us } => Some(deadline_us),
            _ => None,
        };
        [
            self.sessions.next_due_us(),
            self.log.sync_due_us(),
            retry_us,
            drain_us,
            self.sends.pause_until_us(),
            self.held_due_us(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Returns what the state takes in a log in which nothing is dead.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.log.live_bytes()
    }

    /// Returns the segments of the log that may be deleted without being read.
    #[must_use]
    pub fn dead_segments(&self) -> &Dead {
        self.log.dead_segments()
    }

    /// Returns what the shard had done, and what it held, when its last turn ended.
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
        self.rooms.invariants(&self.sessions);
        self.sends.invariants(&self.sessions);
        self.reads.invariants(&self.sessions);
        self.log.invariants();
        self.admission.invariants(&self.sessions);
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
        counters.log_live_bytes = self.log.live_bytes();
        counters.log_open_bytes = self.log.open_bytes();
        counters.log_bytes = self.log.bytes();
        counters.log_bytes_max = self.log.bytes_max();
        counters.disk_is_full = u64::from(self.log.is_disk_full());
        counters.sessions_held = self.reads.held_count() as u64;
    }

    /// Returns the number of connections, closing ones included.
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
                match self.log.written(bytes, outcome, clock.now_us) {
                    Ok(Some(step)) => self.push_step(step),
                    Ok(None) => self.committed(clock),
                    Err(_) => self.fail(None, clock),
                }
            }
            Input::LogSynced(outcome) => match self.log.synced(&outcome, clock.now_us) {
                Ok(()) => self.committed(clock),
                Err(_) => self.fail(None, clock),
            },
            Input::LogOpened(segment) => {
                if self.log.opened(&segment).is_err() {
                    self.fail(None, clock);
                }
            }
            Input::Rebuilt(outcome) => self.rebuilt(outcome, clock),
            Input::LogDisplaced if self.log.is_serving() => self.fail(None, clock),
            // Each try to open the log again finds it out.
            Input::LogDisplaced => {}
            Input::LogSize(size) => self.log.measured(size),
            Input::Page(id, answer) => self.paged(id, answer, clock),
            Input::Drain => self.start_drain(clock),
        }
    }

    /// Continues after a commit: its batch is as durable as the mode asks.
    fn committed(&mut self, clock: Clock) {
        if let Some(since_us) = self.log.take_synced_since_us() {
            let took_us = clock.now_us.saturating_sub(since_us);
            self.counters.durable.took(took_us);
            self.sends.show(since_us);
        }
        self.show_committed();
    }

    /// Runs a part of a turn. A panic in it is a fault of this server that need not end the
    /// process: the client whose input caused it is answered with 500, and the shard starts over
    /// from its log.
    fn guard(&mut self, culprit: Option<SessionId>, clock: Clock, part: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| part(self))).is_err() {
            self.fail(culprit, clock);
        }
    }

    /// Hands a batch over, if its time has come. In `always` mode that is when the round of sends
    /// is done: a commit and sends beside each other are slower than one after the other, since
    /// both want the core. But a round may never end, and a batch may be full, so its age and its
    /// size have the last word.
    fn start_commit(&mut self, clock: Clock) {
        let due_us = self.log.batch_due_us();
        let is_old = due_us.is_some_and(|due_us| due_us <= clock.now_us);
        let takes_turns = self.config.durability == Durability::Always;
        let is_due = self.sends.is_empty() || !takes_turns || is_old || self.log.is_full();
        if let Some(step) = is_due.then(|| self.log.start(clock.now_us)).flatten() {
            self.push_step(step);
        }
        self.retry_log(clock);
    }

    fn push_step(&mut self, step: LogStep) {
        if let LogStep::Write { from: 0, .. } = step {
            let ops = self.log.batch_handed_over();
            if ops > 0 {
                self.counters.groups.had(ops);
            }
        }
        self.outputs.push_back(Output::Log(step));
    }

    /// Records in the connection log why a connection is about to end, if there is such a log.
    fn note_ending(&mut self, id: SessionId, code: u16, reason: &str, by: Party) {
        if let Some(journal) = &mut self.connection_log {
            journal.ending(id, code, reason, by);
        }
    }
}

#[cfg(test)]
mod tests;
