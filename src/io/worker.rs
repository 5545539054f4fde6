//! The event loop of one shard: completions become inputs of the [`Shard`], and its outputs become
//! operations.
//!
//! Each turn drains the completions that have arrived, passes them to the shard, flushes it once,
//! and submits all resulting operations with one `io_uring_enter`. Everything that the shard must
//! not know about is in this module: the descriptors, the mailboxes of the other shards, and the
//! clock.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::{Shutdown, getpeername, shutdown};

use crate::admin::{Pages, Visitor};
use crate::core::shard::Shard;
use crate::core::shard::contract::{
    Clock, Input, ListenerKind, Output, PeerStatus, Received, RestoredState,
};
use crate::core::shard::session::SessionId;
use crate::io::background;
use crate::io::compactor::{CompactorEvent, Rotation};
use crate::io::directory_watch::DirectoryWatch;
use crate::io::event_log::{self, BatchLog};
use crate::io::handoff::{Connection, ConnectionHandoff};
use crate::io::listener::Listener;
use crate::io::mailbox::{Mailbox, RebuildError, ShardMessage, ShardSender};
use crate::io::ring::{Completion, Ring, Tokens};
use crate::log::commit::LogStep;
use crate::log::disk::HostDisk;
use crate::log::log_files::LogFiles;
use crate::status::Status;
use crate::status::stats::ShardStats;

mod accepts;

/// The tokens of a worker's operations. Only the log issues writes, one batch at a time.
#[derive(Debug)]
pub struct WorkerTokens;

impl Tokens for WorkerTokens {
    type Receive = SessionId;
    type Send = SessionId;
    type Accept = ListenerKind;
    type Write = ();
    type Signal = Signal;
}

/// An operation whose completion carries no data.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    /// All accepts have been cancelled.
    AcceptsCancelled,
    /// The mailbox has new messages.
    Bell,
    /// The timer set for this time has expired.
    Timer(u64),
    /// The no-op that requests another turn has completed.
    Again,
    /// The log's fdatasync has completed.
    LogSync,
}

/// The parts of the server that a worker uses.
pub struct WorkerContext {
    /// The state that all threads share.
    pub status: Arc<Status>,
    /// The listening socket for clients, shared by all shards.
    pub listener: Arc<Listener>,
    /// The listening socket of `--admin-port`.
    pub admin_listener: Option<Arc<Listener>>,
    /// The mailbox of this shard.
    pub mailbox: Mailbox,
    /// The senders to all shards in order, including this one.
    pub senders: Vec<ShardSender>,
    /// The channel on which new segments and log failures are reported to the compactor.
    pub compactor: Sender<CompactorEvent>,
    /// The hash seed for state that is read back from the log.
    pub hash_seed: u64,
    /// The pages that the server serves.
    pub pages: Arc<Pages>,
}

/// The state of one shard's event loop.
pub struct Worker {
    shard: Shard,
    number: u32,
    context: WorkerContext,
    /// `None` while the log is being read at startup; nothing uses it during that time.
    log: Option<LogFiles<HostDisk>>,
    /// The connections, indexed by the slots of their sessions.
    connections: Vec<Option<Connection>>,
    started: Instant,
    accepts_in_flight: usize,
    admin_accepts_in_flight: usize,
    accepts_paused_until_us: Option<u64>,
    /// The earliest time at which a pause in accepting is logged again.
    next_accept_warning_us: u64,
    is_accepting: bool,
    /// The expiration times of the timers in flight, in descending order.
    armed_timers_us: Vec<u64>,
    is_again_in_flight: bool,
    times: TurnTimes,
    completions: Vec<Completion<WorkerTokens>>,
    directory_watch: DirectoryWatch,
    /// The part of the shard's absence that has already been logged.
    logged_absent_us: u64,
}

/// The times from which durations are measured.
#[derive(Default)]
struct TurnTimes {
    turn_us: u64,
    /// The time at which the log's current write or fdatasync was submitted.
    log_us: u64,
    batch: BatchLog,
    /// Whether a write or an fdatasync was started in this turn.
    has_log: bool,
}

impl Worker {
    /// Creates a worker for the shard `number`. Its clock starts at `started`.
    #[must_use]
    pub fn new(shard: Shard, number: u32, context: WorkerContext, started: Instant) -> Self {
        let is_accepting = !context.listener.is_inherited();
        Self {
            shard,
            number,
            context,
            log: None,
            connections: Vec::new(),
            started,
            accepts_in_flight: 0,
            admin_accepts_in_flight: 0,
            accepts_paused_until_us: None,
            next_accept_warning_us: 0,
            is_accepting,
            armed_timers_us: Vec::new(),
            is_again_in_flight: false,
            times: TurnTimes::default(),
            completions: Vec::new(),
            directory_watch: DirectoryWatch::default(),
            logged_absent_us: 0,
        }
    }

    /// Submits the operations that must always be in flight. Called before the first turn.
    pub fn start(&mut self, ring: &mut Ring<WorkerTokens>) {
        ring.wait(self.context.mailbox.bell(), Signal::Bell);
        self.arm_accepts(ring, 0);
        ring.finish_turn();
    }

    /// Runs one turn of the loop. Returns `Break` when the shard has drained.
    pub fn turn(&mut self, ring: &mut Ring<WorkerTokens>) -> ControlFlow<()> {
        let clock = clock(self.started);
        if self.is_again_in_flight {
            self.turned(clock.now_us);
        }
        self.times.turn_us = clock.now_us;
        self.shard.set_peer_status(PeerStatus {
            ready: self.context.status.is_ready(),
            recovered_percent: self.context.status.recovery.percent(),
        });
        let mut completions = std::mem::take(&mut self.completions);
        ring.drain(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion, ring, clock);
        }
        self.completions = completions;
        self.watch_directory(clock);
        self.shard.flush(clock);
        while let Some(output) = self.shard.poll_output() {
            self.perform(output, ring, clock)?;
        }
        self.stats().publish(self.shard.counters());
        self.stats().retried(ring.retries());
        self.log_absence();
        for kind in [ListenerKind::Public, ListenerKind::Admin] {
            let count = self.shard.sheddable_count(kind);
            self.context.status.set_sheddable(self.number, kind, count);
        }
        self.arm_accepts(ring, clock.now_us);
        self.arm_timer(ring, clock.now_us);
        ring.finish_turn();
        if self.shard.has_work() && !self.is_again_in_flight {
            self.is_again_in_flight = true;
            ring.again(Signal::Again);
        }
        self.end_turn();
        ControlFlow::Continue(())
    }

    /// Ends a turn. A single clock reading is the start time of everything begun in the turn,
    /// because it is all submitted right afterwards.
    fn end_turn(&mut self) {
        let ended_us = now_us(self.started);
        if std::mem::take(&mut self.times.has_log) {
            self.times.log_us = ended_us;
        }
        if !self.is_again_in_flight {
            self.turned(ended_us);
        }
    }

    fn turned(&self, ended_us: u64) {
        let took_us = ended_us.saturating_sub(self.times.turn_us);
        self.stats().turned(took_us, ended_us);
    }

    fn stats(&self) -> &ShardStats {
        &self.context.status.stats[self.number as usize]
    }

    fn complete(
        &mut self,
        completion: Completion<WorkerTokens>,
        ring: &mut Ring<WorkerTokens>,
        clock: Clock,
    ) {
        match completion {
            Completion::Received(id, mut filled) => {
                let received = Received::Bytes(filled.bytes());
                self.shard.handle(Input::Received(id, received), clock);
                ring.give_back(filled);
            }
            Completion::Ended(id, outcome) => {
                let received = match outcome {
                    Ok(()) => Received::Eof,
                    Err(_) => Received::Broken,
                };
                self.shard.handle(Input::Received(id, received), clock);
            }
            Completion::Sent(id, spans, outcome) => match outcome {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.send(id, spans, ring);
                }
                outcome => self.shard.handle(Input::Sent(id, spans, outcome), clock),
            },
            Completion::Accepted(kind, outcome) => self.accepted(kind, outcome, clock),
            Completion::Written((), bytes, outcome) => {
                self.stats().written(self.log_took_us(clock));
                self.written(bytes, outcome, clock);
            }
            Completion::BlocksWritten((), blocks, outcome) => {
                self.stats().written(self.log_took_us(clock));
                self.stats().synced(self.log_took_us(clock));
                let writer = self.log().blocks();
                let writer = writer.expect("the segment is not replaced during a write");
                let (bytes, outcome) = writer.finish(blocks, outcome);
                self.written(bytes, outcome, clock);
            }
            Completion::Signalled(signal, outcome) => self.signalled(signal, outcome, ring, clock),
        }
    }

    fn signalled(
        &mut self,
        signal: Signal,
        outcome: io::Result<()>,
        ring: &mut Ring<WorkerTokens>,
        clock: Clock,
    ) {
        match signal {
            Signal::LogSync => {
                self.stats().synced(self.log_took_us(clock));
                let outcome = self.check_kept(outcome, clock);
                let outcome = self.log_failure("fdatasync", outcome);
                event_log::log_sync(self.number, outcome.is_ok(), self.log_took_us(clock));
                self.shard.handle(Input::LogSynced(outcome), clock);
            }
            Signal::Bell => {
                while let Some(message) = self.context.mailbox.next() {
                    self.read(message, ring, clock);
                }
                ring.wait(self.context.mailbox.bell(), Signal::Bell);
            }
            Signal::Timer(at_us) => {
                self.armed_timers_us.retain(|armed_us| *armed_us != at_us);
            }
            Signal::Again => self.is_again_in_flight = false,
            // Any accept that had already taken a connection has completed by now.
            Signal::AcceptsCancelled => self.shard.handle(Input::Drain, clock),
        }
    }

    /// Returns the duration of the log operation that has just completed.
    fn log_took_us(&self, clock: Clock) -> u64 {
        clock.now_us.saturating_sub(self.times.log_us)
    }

    fn written(&mut self, bytes: Vec<u8>, outcome: io::Result<usize>, clock: Clock) {
        let outcome = self.check_kept(outcome, clock);
        let outcome = self.log_failure("write", outcome);
        let took_us = self.log_took_us(clock);
        let count = outcome.as_ref().ok().copied();
        self.times.batch.log_written(self.number, count, took_us);
        self.shard.handle(Input::LogWritten(bytes, outcome), clock);
    }

    /// Turns success into failure if the file has been deleted, because its bytes are lost anyway.
    /// Writes are checked too: in the modes that do not fdatasync every batch, the shard could
    /// otherwise accept ops for a long time before it noticed.
    fn check_kept<T>(&mut self, outcome: io::Result<T>, clock: Clock) -> Result<T, RebuildError> {
        let outcome = outcome?;
        self.directory_watch
            .committed(self.log.as_ref(), clock.now_us)?;
        Ok(outcome)
    }

    fn watch_directory(&mut self, clock: Clock) {
        if let Some(error) = self.directory_watch.tick(self.log.as_ref(), clock.now_us) {
            let _ = self.log_failure("data directory", Err::<(), _>(error));
            self.shard.handle(Input::LogDisplaced, clock);
        }
    }

    /// Logs the reason if an operation on the log failed, and converts the outcome for the shard.
    fn log_failure<T, E>(&self, what: &str, outcome: Result<T, E>) -> io::Result<T>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        outcome.map_err(|error| {
            tracing::error!(
                shard = self.number,
                "the log cannot be written ({what}: {error}); clients whose ops are lost receive \
                 error 500, all connections of the shard are closed with 1011, and the log is \
                 reopened as soon as possible"
            );
            io::Error::other(error)
        })
    }

    fn read(&mut self, message: ShardMessage, ring: &mut Ring<WorkerTokens>, clock: Clock) {
        match message {
            ShardMessage::Adopt(handoff, core_handoff) => {
                let id = self.shard.adopt(core_handoff, clock);
                self.keep(id, handoff.arrive());
            }
            ShardMessage::Shed(kind) => drop(self.shed(kind, clock)),
            ShardMessage::Accept => self.is_accepting = true,
            ShardMessage::Verify(verifier) => self.shard.set_verifier(verifier),
            ShardMessage::Drain => self.drain(ring, clock),
            ShardMessage::SegmentCreated(outcome) => {
                let segment = self.log_failure("new segment", outcome);
                let segment = segment.map(|segment| self.log().replace(segment));
                self.shard.handle(Input::LogOpened(segment), clock);
                self.report_rotation();
            }
            ShardMessage::Rebuilt(outcome) => {
                let outcome = outcome.inspect_err(|error| {
                    tracing::error!(shard = self.number, "the shard cannot serve yet: {error}");
                    self.report_failure();
                });
                let rebuilt = outcome
                    .map(|rebuilt| RestoredState {
                        segment: self.log().replace(rebuilt.segment),
                        workspaces: rebuilt.workspaces,
                        generation: rebuilt.generation,
                        logged: None,
                    })
                    .map_err(io::Error::other);
                self.directory_watch.rebuilt(rebuilt.is_ok());
                self.shard.handle(Input::Rebuilt(rebuilt), clock);
                self.report_rotation();
            }
            ShardMessage::LogSize(size) => self.shard.handle(Input::LogSize(size), clock),
            ShardMessage::Recovered(recovered) => {
                let log = self.log.insert(recovered.log);
                let state = RestoredState {
                    segment: log.open_segment(),
                    workspaces: recovered.workspaces,
                    generation: recovered.generation,
                    logged: Some(recovered.logged),
                };
                self.shard.handle(Input::Rebuilt(Ok(state)), clock);
                self.context.status.set_ready(self.number, true);
                self.report_rotation();
                // The main thread waits for this message from every shard before it announces that
                // the server is listening.
                let _ = recovered.serves.send(());
            }
        }
    }

    /// Stops accepting connections and starts draining.
    fn drain(&mut self, ring: &mut Ring<WorkerTokens>, clock: Clock) {
        let listener = &self.context.listener;
        if std::mem::replace(&mut self.is_accepting, false) {
            if let Some(listener) = &self.context.admin_listener {
                listener.end();
            }
            if !listener.is_inherited() {
                // All shards share the socket, so the first shard to get here ends the accepts of
                // all shards.
                listener.end();
            } else if ring.cancel(listener.as_fd(), Signal::AcceptsCancelled) {
                // Draining starts once no accept is pending. By then, the shard knows every
                // accepted client and will answer it; the others wait for the new server. If the
                // kernel cannot cancel accepts, one of them may still take a connection, which is
                // then answered with 503.
                return;
            }
        }
        self.shard.handle(Input::Drain, clock);
    }

    fn log(&mut self) -> &mut LogFiles<HostDisk> {
        self.log.as_mut().expect("the log has been read")
    }

    /// Reports to the compactor that the segments before the open one are complete.
    fn report_rotation(&mut self) {
        let open = self.log().open_segment();
        let rotation = Rotation {
            shard: self.number,
            index: open.index,
            first_position: open.first_position,
            live_bytes: self.shard.live_bytes(),
            dead: self.shard.dead_segments().clone(),
            sender: self.own_sender(),
        };
        // The compaction thread may have ended.
        let _ = self
            .context
            .compactor
            .send(CompactorEvent::Rotated(rotation));
    }

    /// Reports to the compactor that the log cannot be written: if the disk is full, it can free
    /// space.
    fn report_failure(&self) {
        let _ = self.context.compactor.send(CompactorEvent::Failed);
    }

    fn keep(&mut self, id: SessionId, connection: Connection) {
        let slot = id.slot as usize;
        if slot >= self.connections.len() {
            self.connections.resize_with(slot + 1, || None);
        }
        assert!(
            self.connections[slot].is_none(),
            "two connections in one slot"
        );
        self.connections[slot] = Some(connection);
    }

    fn socket(&self, id: SessionId) -> &OwnedFd {
        &self.connections[id.slot as usize]
            .as_ref()
            .expect("a session has a connection")
            .socket
    }

    fn visitor(&self, id: SessionId) -> Visitor {
        let connection = self.connections[id.slot as usize].as_ref();
        let Connection { permit, .. } = connection.expect("a session has a connection");
        Visitor {
            listener: permit.listener(),
            // An IPv4 address may be mapped into IPv6 (RFC 4291 section 2.5.5.2).
            is_local: self
                .peer(id)
                .is_some_and(|peer| peer.ip().to_canonical().is_loopback()),
        }
    }

    fn peer(&self, id: SessionId) -> Option<SocketAddr> {
        let peer = getpeername(self.socket(id)).ok().flatten()?;
        SocketAddr::try_from(peer).ok()
    }

    fn send(
        &self,
        id: SessionId,
        spans: crate::core::fanout::window::Spans,
        ring: &mut Ring<WorkerTokens>,
    ) {
        ring.send(self.socket(id).as_fd(), spans, id);
    }

    fn perform(
        &mut self,
        output: Output,
        ring: &mut Ring<WorkerTokens>,
        clock: Clock,
    ) -> ControlFlow<()> {
        match output {
            Output::Receive(id) => ring.receive(self.socket(id).as_fd(), id),
            Output::Send(id, spans) => self.send(id, spans, ring),
            // A socket that was reset by its peer cannot be shut down, and does not need to be.
            Output::Finish(id) => drop(shutdown(self.socket(id), Shutdown::Write)),
            Output::Abort(id) => drop(shutdown(self.socket(id), Shutdown::Both)),
            Output::Close(id) => drop(self.connections[id.slot as usize].take()),
            Output::Handoff(id, owner, core_handoff) => {
                let connection = self.connections[id.slot as usize].take();
                let connection = connection.expect("a session has a connection");
                let handoff = ConnectionHandoff::new(connection);
                self.context.senders[owner as usize]
                    .send(ShardMessage::Adopt(handoff, core_handoff));
            }
            Output::Note(id, note) => {
                event_log::log((self.number, id), self.peer(id), *note, clock.now_us);
            }
            Output::Page(id, request) => {
                let (visitor, status) = (self.visitor(id), &self.context.status);
                let pages = &self.context.pages;
                let answer = pages.answer(&request, visitor, clock.now_us, status);
                self.shard.handle(Input::Page(id, answer), clock);
            }
            Output::Log(step) => self.step_log(step, ring),
            Output::Rebuild(end) => {
                let shards =
                    u32::try_from(self.context.senders.len()).expect("SHARDS_MAX fits in 32 bits");
                let sender = self.own_sender();
                let hash_seed = self.context.hash_seed;
                match self.log().rebuild(end) {
                    Ok(rebuild) => {
                        background::rebuild(rebuild, (self.number, shards), hash_seed, sender);
                    }
                    Err(error) => sender.send(ShardMessage::Rebuilt(Err(error.into()))),
                }
            }
            Output::Ready(ready) => {
                self.context.status.set_ready(self.number, ready);
                if ready {
                    tracing::info!(shard = self.number, "the shard serves again");
                } else {
                    tracing::error!(shard = self.number, "the shard has stopped serving");
                    self.report_failure();
                }
            }
            Output::Drained => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn step_log(&mut self, step: LogStep, ring: &mut Ring<WorkerTokens>) {
        match step {
            LogStep::Write {
                offset,
                bytes,
                from,
            } => self.write_log(bytes, from, offset, ring),
            LogStep::Sync => {
                self.times.has_log = true;
                ring.sync(self.log().file().as_fd(), Signal::LogSync);
            }
            LogStep::Open {
                index,
                first_position,
            } => {
                let sender = self.own_sender();
                match self.log().next(index, first_position) {
                    Ok(creation) => background::create(creation, sender),
                    Err(error) => sender.send(ShardMessage::SegmentCreated(Err(error.into()))),
                }
            }
        }
    }

    fn write_log(
        &mut self,
        bytes: Vec<u8>,
        from: usize,
        offset: u64,
        ring: &mut Ring<WorkerTokens>,
    ) {
        self.times.has_log = true;
        let ops = self.shard.counters().groups.sum;
        self.times.batch.begin(ops);
        let log = self.log();
        if let Some(writer) = log.blocks() {
            let write = writer.begin(bytes, from, offset);
            ring.write_blocks(log.file().as_fd(), write, ());
        } else {
            ring.write(log.file().as_fd(), bytes, from, offset, ());
        }
    }

    fn own_sender(&self) -> ShardSender {
        self.context.senders[self.number as usize].clone()
    }

    fn arm_timer(&mut self, ring: &mut Ring<WorkerTokens>, now_us: u64) {
        let wanted = [
            self.shard.next_deadline_us(),
            self.accepts_paused_until_us,
            self.log.as_ref().map(|_| self.directory_watch.next_us()),
        ];
        let Some(wanted_us) = wanted.into_iter().flatten().min() else {
            return;
        };
        // A later timer that is already in flight is not cancelled, because it will be needed soon
        // anyway.
        if self
            .armed_timers_us
            .last()
            .is_none_or(|armed_us| wanted_us < *armed_us)
        {
            self.armed_timers_us.push(wanted_us);
            // A deadline that has already passed is waiting for an operation in flight, and must
            // not make the loop spin.
            let after_us = wanted_us.checked_sub(now_us).filter(|us| *us > 0);
            let after_us = after_us.unwrap_or(1000);
            ring.timer(after_us, Signal::Timer(wanted_us));
        }
    }
}

/// Returns the current time. The monotonic time starts at `started`.
#[must_use]
pub fn clock(started: Instant) -> Clock {
    // A system time before 1970 counts as 1970; ops are then refused for being too far in the
    // future.
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Clock {
        now_us: now_us(started),
        unix_us: micros(unix),
    }
}

fn now_us(started: Instant) -> u64 {
    micros(started.elapsed())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
