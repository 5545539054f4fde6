//! One shard and clients that a test controls, with a record of what each client receives and when.

use std::io;

use super::peers::{Client, Disk, Told};
use crate::core::fanout::window::Spans;
use crate::core::shard::Shard;
use crate::core::shard::connection_log::Note;
use crate::core::shard::contract::{
    Clock, Handoff, Input, LoggedGenerations, Output, PeerStatus, Received, RestoredState,
    ShardConfig,
};
use crate::core::shard::session::{Session, SessionId};
use crate::core::state::workspace::Workspace;
use crate::core::testing::{self, START_UNIX_S};
use crate::generation::Generation;
use crate::limits::{RELAXED_COMMIT_AGE_US, SECOND_US};
use crate::log::commit::{End, LogStep, OpenSegment};

/// The monotonic time at which every rig starts. It falls on a timer tick, so that deadlines on
/// ticks are exact.
pub const START_US: u64 = 1000 * SECOND_US;
/// The number of turns after which a rig is considered to be in an endless loop.
const TURNS_MAX: usize = 20_000;

/// Returns an error for a connection or a disk. The shard does not inspect it.
pub fn failure() -> io::Error {
    io::ErrorKind::Other.into()
}

/// A client and its behavior.
pub struct Peer {
    pub client: Client,
    /// Whether its socket accepts bytes.
    pub reads: bool,
    /// Whether it closes its side after the server has closed its own.
    pub closes: bool,
    pub handed_off: Option<(u32, Box<Handoff>)>,
}

/// The kind of a log operation: a step of a commit, or the rebuild after a failed commit.
pub enum LogOperation {
    Commit,
    Rebuild,
}

pub struct Rig {
    pub shard: Shard,
    pub clock: Clock,
    pub disk: Disk,
    /// The open segment that the shard receives once its log has been read. `None` from then on.
    recovers_to: Option<OpenSegment>,
    /// The latest generation, or the one that begins once the log has been read.
    pub generation: Generation,
    /// The earlier generations in the log.
    pub logged: LoggedGenerations,
    /// The log operation in flight.
    pub log: Option<Output>,
    /// Whether log operations stay in flight.
    pub log_hangs: bool,
    /// Whether log operations fail.
    pub log_fails: bool,
    pub peers: Vec<Peer>,
    /// Events that the test has not read yet: milliseconds since the start, the client, and the
    /// event.
    seen: Vec<(u64, usize, String)>,
    /// The readiness that the shard last reported. `None` if it has not reported any; it is then
    /// ready.
    pub ready: Option<bool>,
    pub drained: usize,
    /// Requests for web pages.
    pub pages: Vec<Output>,
    /// Notes for the connection log.
    pub notes: Vec<Note>,
}

impl Rig {
    pub fn new(change: impl FnOnce(&mut ShardConfig)) -> Self {
        Self::with(Vec::new(), change)
    }

    pub fn with(workspaces: Vec<Workspace>, change: impl FnOnce(&mut ShardConfig)) -> Self {
        let mut rig = Self::recovering(change);
        rig.recover(workspaces);
        // The record of the generation is on disk before a test makes the log hang or fail.
        rig.run();
        rig
    }

    /// Completes the initial read of the log, with `workspaces` as its result.
    pub fn recover(&mut self, workspaces: Vec<Workspace>) {
        let segment = self.recovers_to.take().expect("it is read once");
        let state = RestoredState {
            segment,
            workspaces,
            generation: self.generation,
            logged: Some(self.logged),
        };
        self.shard.handle(Input::Rebuilt(Ok(state)), self.clock);
    }

    /// Returns a rig whose shard is still reading its log.
    pub fn recovering(change: impl FnOnce(&mut ShardConfig)) -> Self {
        let (disk, segment) = Disk::new();
        let clock = Clock {
            now_us: START_US,
            unix_us: START_UNIX_S * SECOND_US,
        };
        let mut config = ShardConfig {
            ping_interval_us: 10 * SECOND_US,
            outbox_bytes_max: 64 * 1024,
            future_skew_us: 3600 * SECOND_US,
            drain_us: 8 * SECOND_US,
            ..testing::shard_config()
        };
        change(&mut config);
        let mut shard = Shard::recovering(config, clock);
        shard.set_peer_status(PeerStatus {
            ready: true,
            ..PeerStatus::default()
        });
        Self {
            shard,
            clock,
            disk,
            recovers_to: Some(segment),
            generation: Generation::new(1),
            logged: LoggedGenerations::default(),
            log: None,
            log_hangs: false,
            log_fails: false,
            peers: Vec::new(),
            seen: Vec::new(),
            ready: None,
            drained: 0,
            pages: Vec::new(),
            notes: Vec::new(),
        }
    }

    // ---- client actions ----

    /// Opens a connection and runs the shard. The client sends nothing yet.
    pub fn accept(&mut self, over_limit: bool) -> usize {
        let id = self.shard.accept(over_limit, self.clock);
        self.add_peer(id)
    }

    /// Opens a connection without running a turn.
    pub fn accept_quietly(&mut self) -> usize {
        let id = self.shard.accept(false, self.clock);
        self.push_peer(id)
    }

    /// Opens a connection without running a turn, as if the shard were already receiving from it.
    pub fn accept_only(&mut self) -> usize {
        let place = self.accept_quietly();
        self.peers[place].client.receiving = true;
        self.session(place).receiving = true;
        place
    }

    pub fn add_peer(&mut self, id: SessionId) -> usize {
        let place = self.push_peer(id);
        self.run();
        place
    }

    fn push_peer(&mut self, id: SessionId) -> usize {
        self.peers.push(Peer {
            client: Client::new(id),
            reads: true,
            closes: true,
            handed_off: None,
        });
        self.peers.len() - 1
    }

    /// Joins `workspace` with a token that is valid for `ttl_s` seconds, or forever if `ttl_s` is
    /// `None`.
    pub fn join(&mut self, workspace: &str, ttl_s: Option<u64>) -> usize {
        let place = self.accept(false);
        self.receive(place, head(workspace, ttl_s).as_bytes());
        place
    }

    /// Delivers bytes to the shard, then runs turns until nothing more happens at this time.
    pub fn receive(&mut self, place: usize, bytes: &[u8]) {
        self.receive_only(place, bytes);
        self.run();
    }

    pub fn receive_only(&mut self, place: usize, bytes: &[u8]) {
        let client = &mut self.peers[place].client;
        assert!(client.receiving, "client {place} is not being read");
        client.receiving = false;
        let id = client.id;
        let mut bytes = bytes.to_vec();
        let received = if bytes.is_empty() {
            Received::Eof
        } else {
            Received::Bytes(&mut bytes)
        };
        self.shard.handle(Input::Received(id, received), self.clock);
    }

    pub fn op(&mut self, place: usize, key: &str, value: &str, timestamp: u64) {
        self.receive(place, &op(key, value, timestamp));
    }

    // ---- time ----

    /// Runs turns until nothing more happens at this time.
    pub fn run(&mut self) {
        for _ in 0..TURNS_MAX {
            self.turn();
            let moved = self.end_operations();
            if !moved && !self.shard.has_work() {
                return;
            }
        }
        panic!("the shard loops without end at {} µs", self.clock.now_us);
    }

    /// Lets the time pass after which a batch is written although no client waits for it.
    pub fn write_batch(&mut self) {
        self.advance(self.clock.now_us + RELAXED_COMMIT_AGE_US);
        self.run();
    }

    /// Runs one turn. Operations that it starts stay in flight.
    pub fn turn(&mut self) {
        self.shard.flush(self.clock);
        self.shard.invariants();
        while let Some(output) = self.shard.poll_output() {
            self.take(output);
        }
    }

    /// Runs one turn, then ends all operations in flight that can end.
    pub fn step(&mut self) {
        self.turn();
        self.end_operations();
    }

    /// Sleeps from deadline to deadline, as the worker does, until `after_s` seconds after the
    /// start.
    pub fn sleep_until(&mut self, after_s: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a few seconds"
        )]
        let until_us = START_US + (after_s * 1e6) as u64;
        for _ in 0..TURNS_MAX {
            self.run();
            let next_us = self.shard.next_deadline_us().unwrap_or(u64::MAX);
            let done = next_us > until_us;
            self.advance(next_us.clamp(self.clock.now_us, until_us));
            if done {
                return self.run();
            }
        }
        panic!("the shard never sleeps at {} µs", self.clock.now_us);
    }

    fn advance(&mut self, now_us: u64) {
        self.clock.unix_us += now_us - self.clock.now_us;
        self.clock.now_us = now_us;
    }

    // ---- outputs of the shard ----

    fn place(&self, id: SessionId) -> usize {
        let is_it = |peer: &Peer| peer.client.id == id && !peer.client.closed;
        let place = self.peers.iter().position(is_it);
        place.expect("the session of an output exists")
    }

    fn take(&mut self, output: Output) {
        let place = match &output {
            Output::Receive(id)
            | Output::Send(id, _)
            | Output::Finish(id)
            | Output::Abort(id)
            | Output::Close(id)
            | Output::Handoff(id, ..) => self.place(*id),
            _ => usize::MAX,
        };
        match output {
            Output::Receive(_) => {
                assert!(
                    !self.peers[place].client.receiving,
                    "only one receive is in flight"
                );
                self.peers[place].client.receiving = true;
            }
            Output::Send(_, spans) => {
                let sending = self.peers[place].client.sending.replace(spans);
                assert!(sending.is_none(), "only one send is in flight");
            }
            Output::Finish(_) => self.peers[place].client.finished = true,
            Output::Abort(_) => {
                self.peers[place].client.broken = true;
                self.see(place, "aborted");
            }
            Output::Close(_) => {
                let client = &mut self.peers[place].client;
                assert!(!client.receiving && client.sending.is_none());
                client.closed = true;
                self.see(place, "gone");
            }
            Output::Handoff(_, shard, handoff) => {
                self.peers[place].client.closed = true;
                self.peers[place].handed_off = Some((shard, handoff));
            }
            Output::Page(..) => self.pages.push(output),
            Output::Note(_, note) => self.notes.push(*note),
            Output::Ready(ready) => {
                assert_ne!(self.ready, Some(ready), "an unchanged value was reported");
                self.ready = Some(ready);
            }
            Output::Drained => self.drained += 1,
            Output::Log(_) | Output::Rebuild(_) => {
                assert!(self.log.is_none(), "only one log operation is in flight");
                self.log = Some(output);
            }
        }
    }

    fn see(&mut self, place: usize, what: impl Into<String>) {
        let after_ms = (self.clock.now_us - START_US) / 1000;
        self.seen.push((after_ms, place, what.into()));
    }

    /// Ends all operations in flight that can end. Returns whether there were any.
    pub fn end_operations(&mut self) -> bool {
        let mut moved = self.end_log();
        for place in 0..self.peers.len() {
            moved |= self.end_send(place);
            moved |= self.end_receive(place);
        }
        moved
    }

    /// Ends the send in flight, if it can end. The socket accepts all of its bytes, unless the
    /// connection is broken. Returns whether a send ended.
    pub fn end_send(&mut self, place: usize) -> bool {
        let Peer { client, reads, .. } = &mut self.peers[place];
        if !(*reads || client.broken) {
            return false;
        }
        let Some(spans) = client.sending.take() else {
            return false;
        };
        let taken = (!client.broken).then(|| crate::core::fanout::window::spans_bytes(&spans));
        self.end_send_with(place, spans, taken);
        true
    }

    /// Lets a client read once: ends the send in flight, and runs the shard until the next one is
    /// in flight. Returns whether a send ended.
    pub fn read_once(&mut self, place: usize) -> bool {
        self.peers[place].reads = true;
        let has_ended = self.end_send(place);
        self.peers[place].reads = false;
        self.run();
        has_ended
    }

    pub fn end_send_with(&mut self, place: usize, spans: Spans, taken: Option<usize>) {
        self.complete_send(place, spans, taken);
        self.read(place);
    }

    /// Ends a send without processing what the client receives. The client's socket accepts `taken`
    /// bytes, or the send fails if `taken` is `None`.
    pub fn complete_send(&mut self, place: usize, spans: Spans, taken: Option<usize>) {
        let client = &mut self.peers[place].client;
        let all = spans.iter().flat_map(|span| span.bytes().iter().copied());
        client.incoming.extend(all.take(taken.unwrap_or(0)));
        let id = client.id;
        let outcome = taken.ok_or_else(failure);
        self.shard
            .handle(Input::Sent(id, spans, outcome), self.clock);
    }

    /// Ends the receive in flight if the connection has ended. Returns whether a receive ended.
    pub fn end_receive(&mut self, place: usize) -> bool {
        let Peer { client, closes, .. } = &mut self.peers[place];
        let ends = client.broken || client.finished && *closes;
        if !(client.receiving && ends) {
            return false;
        }
        client.receiving = false;
        let id = client.id;
        let received = if client.broken {
            Received::Broken
        } else {
            Received::Eof
        };
        self.shard.handle(Input::Received(id, received), self.clock);
        true
    }

    /// Ends the log operation in flight, if there is one and it can end. Returns whether one ended.
    pub fn end_log(&mut self) -> bool {
        !self.log_hangs && self.end_log_with(self.log_fails, |left| left).is_some()
    }

    /// Ends the log operation in flight and returns its kind, or `None` if there is none. If
    /// `fails` is true, the operation fails. `part` returns how many of the remaining bytes are
    /// written.
    pub fn end_log_with(
        &mut self,
        fails: bool,
        part: impl FnOnce(usize) -> usize,
    ) -> Option<LogOperation> {
        let outcome = || if fails { Err(failure()) } else { Ok(()) };
        let (operation, input) = match self.log.take()? {
            Output::Log(LogStep::Write {
                offset,
                bytes,
                from,
            }) => {
                let count = part(bytes.len() - from);
                self.disk.write(offset, &bytes[from..from + count]);
                let written = outcome().map(|()| count);
                (LogOperation::Commit, Input::LogWritten(bytes, written))
            }
            Output::Log(LogStep::Sync) => {
                if !fails {
                    self.disk.sync();
                }
                (LogOperation::Commit, Input::LogSynced(outcome()))
            }
            Output::Log(LogStep::Open {
                index,
                first_position,
            }) => {
                let opened = outcome().map(|()| self.disk.open(index, first_position));
                (LogOperation::Commit, Input::LogOpened(opened))
            }
            Output::Rebuild(end) => {
                let rebuilt = outcome().map(|()| self.rebuild(end));
                (LogOperation::Rebuild, Input::Rebuilt(rebuilt))
            }
            output => unreachable!("{output:?} is not an operation of this log"),
        };
        self.shard.handle(input, self.clock);
        Some(operation)
    }

    fn rebuild(&mut self, end: End) -> RestoredState {
        let (segment, workspaces) = self.disk.rebuild(end);
        self.generation = Generation::new(self.generation.get() + 1);
        RestoredState {
            segment,
            workspaces,
            generation: self.generation,
            logged: None,
        }
    }

    // ---- what clients receive ----

    fn read(&mut self, place: usize) {
        while let Some(told) = self.peers[place].client.next_told() {
            let what = match told {
                Told::Status(status) => status.to_string(),
                Told::Init(data) => format!("init {}", data.len()),
                Told::Op(write) => format!("{}={}@{}", write.key, write.value, write.timestamp),
                Told::Error(code, None) => format!("error {code}"),
                Told::Error(code, Some((key, timestamp))) => {
                    format!("error {code} {key}@{timestamp}")
                }
                Told::Close(code) => format!("close {code}"),
                Told::Control => "ping".to_owned(),
                Told::Version2(text) => text,
            };
            self.see(place, what);
        }
    }

    /// Returns a client's events since the last call, each with the milliseconds since the start.
    pub fn seen_at(&mut self, place: usize) -> Vec<(u64, String)> {
        let all = std::mem::take(&mut self.seen);
        let (its, rest) = all.into_iter().partition(|event| event.1 == place);
        self.seen = rest;
        let its: Vec<(u64, usize, String)> = its;
        its.into_iter().map(|(at, _, what)| (at, what)).collect()
    }

    /// Returns a client's events since the last call, without the times.
    pub fn seen(&mut self, place: usize) -> Vec<String> {
        let its = self.seen_at(place);
        its.into_iter().map(|(_, what)| what).collect()
    }

    /// Returns whether a client is connected and has fallen behind.
    pub fn is_behind(&self, place: usize) -> bool {
        let client = &self.peers[place].client;
        let session = self.shard.sessions.get(client.id);
        !client.closed && session.is_some_and(|session| session.outbox.behind().is_some())
    }

    pub fn session(&mut self, place: usize) -> &mut Session {
        let id = self.peers[place].client.id;
        &mut self.shard.sessions[id]
    }
}

/// Returns a request to join `workspace`.
pub fn head(workspace: &str, ttl_s: Option<u64>) -> String {
    testing::join_request(workspace, &testing::token(ttl_s))
}

/// Returns a request to read `path`, with a token.
pub fn look(path: &str) -> String {
    let token = testing::token(None);
    format!("GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n")
}

/// Returns a client's frame, masked with zeros.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    let length = payload.len().to_be_bytes();
    match payload.len() {
        0..126 => frame.push(0x80 | length[7]),
        126..65_536 => {
            frame.push(0xFE);
            frame.extend_from_slice(&length[6..]);
        }
        _ => {
            frame.push(0xFF);
            frame.extend_from_slice(&length);
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

pub fn op(key: &str, value: &str, timestamp: u64) -> Vec<u8> {
    let text = format!(
        r#"{{"type":"op","payload":{{"key":"{key}","value":{value},"timestamp":{timestamp}}}}}"#
    );
    frame(1, text.as_bytes())
}

/// Returns a pong, which is a sign of life.
pub fn pong() -> Vec<u8> {
    frame(10, b"")
}
