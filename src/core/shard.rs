//! One shard as a state machine without IO: its sessions, its workspaces and its log.
//!
//! # Contract
//!
//! The caller makes any number of calls to [`Shard::accept`], [`Shard::adopt`] and
//! [`Shard::handle`], then one to [`Shard::flush`], then calls [`Shard::poll_output`] until it
//! returns `None`. It carries out the outputs and returns their outcomes as inputs. Time is an
//! argument ([`Clock`]) and may jump. The worker on its ring and the simulator both call the same
//! code. Internally, only the time during which the shard runs counts ([`shard_clock`]); only the
//! functions above see the caller's clock.
//!
//! | output | outcome |
//! | --- | --- |
//! | [`Output::Receive`] | [`Input::Received`] |
//! | [`Output::Send`] | [`Input::Sent`] |
//! | [`Output::Log`] | [`Input::LogWritten`], [`Input::LogSynced`] or [`Input::LogOpened`] |
//! | [`Output::Rebuild`] | [`Input::Rebuilt`] |
//!
//! # Parts
//!
//! The data is divided into parts. Each part is a file with private fields, an invariant that
//! [`Shard::invariants`] checks, and a `reset()` for a shard that has failed:
//!
//! | part | owns |
//! | --- | --- |
//! | `Sessions` | the table of connections, their user names, rate meters and timers |
//! | `Rooms` | the table of workspaces in memory, its index, and the rooms with new ops |
//! | `ExpiryQueue` | the rooms with expiring keys or tombstones, by their next deadline |
//! | `SendQueues` | the order of sends, pauses, and sessions that wait for the log |
//! | `ReadQueues` | sessions to read: from the socket, in turn, or once the log has room |
//! | `Generations` | the current generation and the one before it |
//! | `ShardLog` | the commit, the visible position, senders of pending ops, log size, health |
//! | `Admission` | requests that wait for the state, the handshake rate, shedding |
//! | `Snapshots` | encoded states, their budget, encodings in progress |
//! | `SessionBudget` | the memory held for individual sessions |
//!
//! # Steps
//!
//! The steps of a turn work on those parts, with one file per subject: `handshake` (the request
//! head, joining), `http_read` and `waiting` (answers without a WebSocket, requests that wait),
//! `intake` (from bytes to messages to the state), `held_writers` (clients that wait for
//! compaction), `expiry` (expiring keys, tombstones), `delivery` (what each session receives, and
//! when), `conflation` (clients that read too slowly), `deadlines` (timers), `closing` (closing,
//! drain), `encoding` (snapshots), `eviction` and `shedding` (which session is closed when memory
//! or connections run out), `clock_corrections` (after an absence), `failure` (a log that cannot be
//! written, a panic).

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
mod apply;
mod clock_corrections;
mod closing;
mod conflation;
mod deadlines;
mod delivery;
mod encoding;
mod eviction;
mod expiry;
mod expiry_queue;
mod failure;
mod generations;
mod handshake;
mod held_writers;
mod http_read;
mod intake;
mod messages_v2;
mod presence_turns;
mod read_queues;
mod rooms;
mod send_queues;
mod session_budget;
mod sessions;
mod settlement;
mod shard_log;
mod state_sync;
mod turn_encodings;
mod version2;
mod waiting;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::core::fanout::outbox::OutboxPool;
use crate::core::fanout::presence_queue::PresenceQueue;
use crate::core::fanout::room::Room;
use crate::core::fanout::window::Chunk;
use crate::core::shard::admission::Admission;
use crate::core::shard::connection_log::{ConnectionLog, Party};
use crate::core::shard::contract::{Clock, Input, Output, PeerStatus, RestoredState, ShardConfig};
use crate::core::shard::counters::Counters;
use crate::core::shard::expiry_queue::ExpiryQueue;
use crate::core::shard::generations::Generations;
use crate::core::shard::read_queues::ReadQueues;
use crate::core::shard::rooms::Rooms;
use crate::core::shard::send_queues::SendQueues;
use crate::core::shard::session::SessionId;
use crate::core::shard::session_budget::SessionBudget;
use crate::core::shard::sessions::Sessions;
use crate::core::shard::shard_clock::Absence;
use crate::core::shard::shard_log::ShardLog;
use crate::core::shard::turn_encodings::TurnEncodings;
use crate::core::snapshot::snapshots::Snapshots;
use crate::core::snapshot::state_chunks::StateChunkCache;
use crate::core::state::segment_usage::Dead;
use crate::core::state::workspace::Workspace;
use crate::limits::SNAPSHOTS_SWEPT_PER_TURN;
use crate::log::commit::{Durability, LogStep};
use crate::wire::message::Parser;
use crate::wire::message::v2::{PresenceFrame, StateChunk};

/// A shard; see the [module documentation](self).
pub struct Shard {
    config: ShardConfig,
    scratch: Rc<Scratch>,
    peer_status: PeerStatus,
    sessions: Sessions,
    rooms: Rooms,
    expiry: ExpiryQueue,
    /// A buffer for the expired key that is being deleted.
    expired_key: String,
    /// The most recently sent list of users, kept for the next request.
    kept_presence: Option<Chunk>,
    /// The memory held for individual sessions.
    budget: SessionBudget,
    counters: Counters,
    /// `None` if individual connections are not logged.
    connection_log: Option<Box<ConnectionLog>>,
    admission: Admission,
    snapshots: Snapshots,
    /// Parts of states for version 2 clients.
    state_chunks: StateChunkCache,
    /// The part that is being encoded, whose memory is reused.
    state_chunk: StateChunk,
    /// What this turn has encoded for clients one by one.
    encodings: TurnEncodings,
    log: ShardLog,
    generations: Generations,
    reads: ReadQueues,
    sends: SendQueues,
    pool: OutboxPool,
    outputs: VecDeque<Output>,
    /// The rooms whose peers have changed.
    presence_queue: PresenceQueue,
    /// The total length of the values of all peers.
    presence_bytes: usize,
    /// The presence message that is being encoded, whose memory is reused.
    presence_frame: PresenceFrame,
    /// The number from which connection ids are counted: the Unix time of this start, in
    /// microseconds, so that no id is used again after a restart.
    first_connection: u64,
    /// The shard's time when the current turn, or the current input, began.
    turn_us: u64,
    drain: Drain,
    absence: Absence,
}

/// Buffers that all sessions share while their bytes are read. The shard is modified while a
/// message borrows from them, so the reader holds its own reference in the meantime.
#[derive(Default)]
struct Scratch {
    parser: RefCell<Parser>,
    /// The buffer in which received bytes are appended to those of an incomplete frame.
    joined: RefCell<Vec<u8>>,
}

/// The progress of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    Closing { deadline_us: u64 },
    Sealing,
    Sealed,
}

impl Shard {
    /// Returns a shard that serves a state and continues its log.
    #[must_use]
    pub fn new(config: ShardConfig, state: RestoredState, clock: Clock) -> Self {
        let mut shard = Self::recovering(config, clock);
        shard.open(state, clock);
        shard
    }

    /// Returns a shard whose state is still being read. Requests that need the state wait until
    /// [`Input::Rebuilt`] delivers it.
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
            state_chunks: StateChunkCache::default(),
            state_chunk: StateChunk::new(),
            encodings: TurnEncodings::default(),
            log: ShardLog::recovering(&config, clock.now_us),
            generations: Generations::default(),
            reads: ReadQueues::default(),
            sends: SendQueues::default(),
            expiry: ExpiryQueue::new(config.tombstone_retention_us),
            expired_key: String::new(),
            config,
            pool: OutboxPool::default(),
            outputs: VecDeque::new(),
            presence_queue: PresenceQueue::default(),
            presence_bytes: 0,
            presence_frame: PresenceFrame::new(),
            first_connection: clock.unix_us,
            turn_us: clock.now_us,
            drain: Drain::No,
            absence: Absence::default(),
        }
    }

    /// Starts serving a state and continuing its log.
    fn open(&mut self, state: RestoredState, clock: Clock) {
        let live_bytes = state.workspaces.iter().map(Workspace::log_bytes).sum();
        let is_durable = self.config.durability == Durability::Always;
        self.generations.begin(&state, is_durable);
        let ShardConfig { shard, shards, .. } = self.config;
        let record = self.generations.record(shard, shards);
        self.log
            .open(state.segment, live_bytes, record, clock.now_us);
        for workspace in state.workspaces {
            let id = self.rooms.insert(Room::new(workspace));
            self.expiry.update(id, &mut self.rooms[id]);
        }
    }

    /// Records the status of the other shards.
    pub fn set_peer_status(&mut self, peer_status: PeerStatus) {
        self.peer_status = peer_status;
    }

    /// Handles an event.
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

    /// Ends a turn. Durability depends on the order of its steps:
    ///
    /// 1. Expired keys are deleted and old tombstones are dropped, up to a limit per turn. Requests
    ///    that wait for this are then answered in the same turn. The deletes join this turn's
    ///    batch, and are visible only once it is durable. If the batch is full, because clients
    ///    fill every batch, this step is repeated once the batch has been handed over.
    /// 2. Waiting requests are answered once the state is available, timers expire, sessions are
    ///    evicted while too much memory is held, and the log is measured. A generation that has
    ///    begun is recorded.
    /// 3. Bytes that an earlier turn left unread are read, so that their ops join this turn's
    ///    batch.
    /// 4. Members are queued to receive the ops that became visible since the last turn, and the
    ///    sends of those ops are watched to measure their latency.
    /// 5. The log: a batch is handed over when no log operation is in flight and either the round
    ///    of sends is complete or the batch is old. From here on the batch is closed, so no op can
    ///    end up counted as synced by an fdatasync that does not cover it. A failed log is
    ///    reopened.
    /// 6. The large states being encoded advance by one step, so that finished ones are sent in
    ///    this turn.
    /// 7. Sends start, within a limit on what is encoded for them, but only while no commit is in
    ///    flight (`Commit::holds_sends`) and the shard is not pausing. Each send carries only ops
    ///    at or before the visible position, which does not move again within a turn once the
    ///    inputs have been handled.
    /// 8. Windows drop the frames that have been sent to all members.
    /// 9. Receives are armed after the sends, so a client that responds immediately is read in the
    ///    next turn together with all others that respond, and batches grow with the load.
    /// 10. A drain advances. It ends once no session is left and the log is sealed.
    pub fn flush(&mut self, clock: Clock) {
        let clock = self.woke(clock);
        self.guard(None, clock, |shard| shard.expire(clock));
        self.answer_waiting(clock);
        self.guard(None, clock, |shard| {
            shard.expire_timers(clock);
            shard.evict_over_budget(clock);
            shard.measure_log(clock);
            shard.log.record_generation(clock.now_us);
            shard.read_on(clock);
            shard.read_held(clock);
            shard.announce();
            shard.watch_sends(clock);
            let was_full = shard.log.is_full();
            shard.start_commit(clock);
            if was_full {
                shard.expire(clock);
            }
            shard.encode_states();
            shard.send_slice(clock);
            shard.announce_presence(clock);
            shard.trim_windows();
            shard.arm_receives();
            shard.go_on_draining(clock);
        });
        self.encodings = TurnEncodings::default();
        self.gauge();
        let due_us = if self.has_work() {
            Some(clock.now_us)
        } else {
            self.next_local_deadline_us()
        };
        self.absence.slept(clock.now_us, due_us);
    }

    /// Returns the next output to carry out. A session's slot becomes free only when its last
    /// output is returned, because its id must not refer to another connection until the caller has
    /// seen that this one is gone.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front()?;
        if let Output::Close(id) | Output::Handoff(id, ..) = &output {
            self.sessions.remove(*id);
        }
        Some(output)
    }

    /// Returns whether the next turn should follow immediately, even if there is no new input.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let may_send = !self.sends.is_empty()
            && !self.log.holds_sends()
            && self.sends.pause_until_us().is_none();
        // The round may have ended in this turn, after the step in which a commit starts.
        let is_unhurried = self.config.durability != Durability::Always && self.drain == Drain::No;
        let may_commit = self.sends.is_empty() && self.log.is_ready() && !is_unhurried;
        let may_encode = self.snapshots.is_encoding();
        let may_read = !self.log.is_full() && self.reads.unread_count() > 0;
        let may_read = may_read || self.has_due_room();
        may_send || may_commit || may_encode || may_read || self.may_answer_waiting()
    }

    /// Returns the time by which the next turn must begin if there is no input before then.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        let local_us = self.next_local_deadline_us();
        local_us.map(|local_us| self.absence.caller_us(local_us))
    }

    fn next_local_deadline_us(&self) -> Option<u64> {
        // Anything that waits for an operation in flight is checked when that operation completes.
        // A batch that waits for a round of sends is checked in each turn of the round and in the
        // one after it (`has_work`).
        let retry_us = self.log.retry_due_us();
        let retry_us = retry_us.filter(|_| self.drain == Drain::No);
        let drain_us = match self.drain {
            Drain::Closing { deadline_us } => Some(deadline_us),
            _ => None,
        };
        [
            self.sessions.next_due_us(),
            self.log.sync_due_us(),
            self.unhurried_commit_us(),
            retry_us,
            drain_us,
            self.sends.pause_until_us(),
            self.presence_queue.next_due_us(self.sends.is_round_done()),
            self.held_due_us(),
            self.expiry.next_turn_us(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Returns the time at which the batch is written if no client waits for it.
    fn unhurried_commit_us(&self) -> Option<u64> {
        let is_unhurried = self.config.durability != Durability::Always && self.log.is_ready();
        is_unhurried.then(|| self.log.batch_due_us()).flatten()
    }

    /// Returns the size that the log would have without superseded ops.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.log.live_bytes()
    }

    /// Returns the segments of the log that may be deleted without being read.
    #[must_use]
    pub fn dead_segments(&self) -> &Dead {
        self.log.dead_segments()
    }

    /// Returns the counters and gauges as of the end of the last turn.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Checks everything that must hold between calls: the invariant of each part, and the memory
    /// held by sessions against the totals and the budget.
    ///
    /// # Panics
    /// If any of them is violated.
    pub fn invariants(&self) {
        self.sessions.invariants();
        self.rooms.invariants(&self.sessions);
        self.expiry.invariants(&self.rooms);
        self.sends.invariants(&self.sessions);
        self.reads.invariants(&self.sessions);
        self.log.invariants();
        self.admission.invariants(&self.sessions);
        self.snapshots.invariants();
        self.state_chunks.invariants();
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
        counters.tombstones = self.expiry.tombstones_count();
        counters.expiring_keys = self.expiry.expiries_count();
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

    /// Returns the number of connections, including closing ones.
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
            // The log has already failed, and each attempt to reopen it detects the displacement.
            Input::LogDisplaced => {}
            Input::LogSize(size) => self.log.measured(size),
            Input::Page(id, answer) => self.paged(id, answer, clock),
            Input::Drain => self.start_drain(clock),
        }
    }

    /// Handles the end of a commit, whose batch is now as durable as the mode requires.
    fn committed(&mut self, clock: Clock) {
        if let Some(since_us) = self.log.take_synced_since_us() {
            let took_us = clock.now_us.saturating_sub(since_us);
            self.counters.durable.took(took_us);
            self.sends.show(since_us);
        }
        self.show_committed();
    }

    /// Runs a part of a turn. A panic in it is a bug in this server, but need not end the process:
    /// the client whose input caused it receives error 500, and the shard starts over from its log.
    fn guard(&mut self, culprit: Option<SessionId>, clock: Clock, part: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| part(self))).is_err() {
            self.fail(culprit, clock);
        }
    }

    /// Hands over a batch if it is due. In `always` mode it is due when the round of sends is
    /// complete, because overlapping a commit with sends is slower than running them in sequence:
    /// both need the core. But a round may never complete, and a batch may become full, so the
    /// batch's age and size override that rule.
    fn start_commit(&mut self, clock: Clock) {
        let due_us = self.log.batch_due_us();
        let is_old = due_us.is_some_and(|due_us| due_us <= clock.now_us);
        let is_due = if self.config.durability == Durability::Always {
            self.sends.is_empty() || is_old || self.log.is_full()
        } else {
            let sync_us = self.log.sync_due_us();
            let is_sync_due = sync_us.is_some_and(|sync_us| sync_us <= clock.now_us);
            is_old || is_sync_due || self.log.is_full() || self.drain != Drain::No
        };
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

    /// Records in the connection log, if enabled, why a connection is about to end.
    fn note_ending(&mut self, id: SessionId, code: u16, reason: &str, by: Party) {
        if let Some(journal) = &mut self.connection_log {
            journal.ending(id, code, reason, by);
        }
    }
}

#[cfg(test)]
mod tests;
