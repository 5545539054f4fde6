//! The start of a session: the request head, the token, and joining a workspace.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::smallvec;

use crate::core::fanout::outbox::Due;
use crate::core::fanout::room::RoomId;
use crate::core::fanout::window::Chunk;
use crate::core::shard::connection_log::Party;
use crate::core::shard::contract::{
    Acceptance, Clock, Handoff, Intent, JoinRequest, ListenerKind, Output,
};
use crate::core::shard::http_read::{ReadAnswer, for_allowed};
use crate::core::shard::rate::Rate;
use crate::core::shard::session::{Intake, SessionId, State, StateTransfer};
use crate::core::shard::shard_log::Health;
use crate::core::shard::{Drain, Shard};
use crate::core::snapshot::shared_snapshot::{Snapshot, SnapshotKind, SnapshotPoint};
use crate::core::state::placement::shard_of;
use crate::limits::{HEAD_TIMEOUT_US, RETRY_AFTER_S};
use crate::log::position::LogPosition;
use crate::wire::auth::{self, Grant, Verifier};
use crate::wire::upgrade::{self, Answer, Request, SyncRequest};
use crate::wire::{ProtocolVersion, frame};

/// The room that a client joins, and the state to send to it.
struct RoomEntry {
    room_id: RoomId,
    /// `None` for a version 2 client, which is sent the state part by part.
    snapshot: Option<Snapshot>,
}

impl Shard {
    /// Accepts a connection to `--port` and returns its session. With `over_limit`, there are too
    /// many connections, so its request to a workspace is refused.
    pub fn accept(&mut self, over_limit: bool, clock: Clock) -> SessionId {
        self.accept_at(ListenerKind::Public, over_limit, clock)
    }

    /// Accepts a connection to either listener and returns its session.
    pub fn accept_at(
        &mut self,
        listener: ListenerKind,
        over_limit: bool,
        clock: Clock,
    ) -> SessionId {
        let clock = self.woke(clock);
        let id = self.open_session(listener, over_limit, HEAD_TIMEOUT_US, clock);
        self.admission.accepted(id, &self.sessions[id]);
        self.reads.receive(id);
        id
    }

    /// Accepts a connection whose request was read and verified by another shard.
    pub fn adopt(&mut self, handoff: Box<Handoff>, clock: Clock) -> SessionId {
        let clock = self.woke(clock);
        let id = self.open_session(ListenerKind::Public, false, handoff.left_us, clock);
        self.guard(Some(id), clock, |shard| {
            shard.resume(id, *handoff, clock);
            shard.evict_over_budget(clock);
        });
        id
    }

    /// Opens a session whose client must receive an answer within `answer_us`, and returns the
    /// session's id.
    pub(super) fn open_session(
        &mut self,
        listener: ListenerKind,
        over_limit: bool,
        answer_us: u64,
        clock: Clock,
    ) -> SessionId {
        let deadline_us = clock.now_us + answer_us;
        let id = self.sessions.open(listener, over_limit, deadline_us, clock);
        if let Some(journal) = &mut self.connection_log {
            journal.begin(id, clock.now_us);
        }
        id
    }

    /// Appends bytes to the request head, and handles the request once its head is complete.
    pub(super) fn read_head(&mut self, id: SessionId, bytes: &[u8], clock: Clock) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.unparsed.extend_from_slice(bytes);
        let parsed = upgrade::parse_head(&session.unparsed);
        if !matches!(parsed, Ok(None)) {
            // The head is complete or invalid: the connection is now waiting for an answer and must
            // not be shed.
            self.admission.keep(&self.sessions[id]);
        }
        let session = &mut self.sessions[id];
        match parsed {
            Ok(None) => self.reads.receive(id),
            Ok(Some((head_bytes, request))) => {
                session.unparsed.drain(..head_bytes);
                if let Err(answer) = self.requested(id, request, clock) {
                    self.answer(id, &answer, clock);
                }
            }
            Err(answer) => self.answer(id, &answer, clock),
        }
    }

    fn requested(&mut self, id: SessionId, request: Request, clock: Clock) -> Result<(), Answer> {
        match request {
            Request::Sync(request) => self.admit(id, request, clock),
            Request::State(request) => self.admit_http_read(id, request, clock),
            Request::Page(request) => {
                self.sessions[id].head_only = request.head_only;
                self.outputs.push_back(Output::Page(id, request));
                Ok(())
            }
            Request::Preflight { origin } => {
                Err(self.for_origin(Answer::preflight(), origin.as_deref()))
            }
            Request::Healthz { head_only } => Err(Answer::health(true, head_only, "ok")),
            Request::Readyz { head_only } => Err(self.readiness(head_only)),
        }
    }

    fn readiness(&self, head_only: bool) -> Answer {
        if self.drain != Drain::No {
            return Answer::health(false, head_only, "draining");
        }
        if self.log.health() == Health::Recovering {
            let percent = self.peer_status.recovered_percent;
            let text = format!("the log is being read: {percent}%");
            return Answer::health(false, head_only, &text);
        }
        let ready = self.peer_status.ready && self.log.is_serving();
        Answer::health(
            ready,
            head_only,
            if ready {
                "ready"
            } else {
                "a shard cannot write its log"
            },
        )
    }

    /// Verifies a request to join, and forwards it to the shard that owns the workspace.
    fn admit(&mut self, id: SessionId, request: SyncRequest, clock: Clock) -> Result<(), Answer> {
        let grant = self.verified(request.token.as_deref(), clock)?;
        // A client that is not a browser usually sends no origin, but can send any it likes.
        if let Some(origin) = &request.origin
            && !self.is_allowed(origin)
        {
            return Err(Answer::forbidden(
                "pages from this origin may not connect (--allow-origin)",
            ));
        }
        let needs_subject = self.connection_log.is_some() || request.version == ProtocolVersion::V2;
        let token = request.token.as_deref().filter(|_| needs_subject);
        let intent = Intent::Join(Box::new(JoinRequest {
            grant,
            subject: token.and_then(auth::subject),
            acceptance: Acceptance {
                key: request.accept_key,
                subprotocol: request.subprotocol,
            },
            // In version 2, a user is the `sub` of a token (P108).
            user: request
                .user
                .filter(|_| request.version == ProtocolVersion::V1)
                .map(Box::from),
            version: request.version,
            resume: request.resume,
            has_presence: request.has_presence,
            replaces: request.replaces,
        }));
        self.pass_on(id, request.workspace, intent, clock)
    }

    /// Replaces the secrets used to verify new tokens. Existing members are not affected.
    pub fn set_verifier(&mut self, verifier: Arc<Verifier>) {
        self.config.verifier = verifier;
    }

    /// Verifies a token. The handshake rate is checked first, because verification is the expensive
    /// part.
    pub(super) fn verified(&mut self, token: Option<&str>, clock: Clock) -> Result<Grant, Answer> {
        if let Some(per_second) = self.config.limits.handshakes_per_second {
            let rate = Rate::share(per_second, self.config.shards);
            if !self.admission.count_handshake(rate, clock.now_us) {
                self.counters.refused_handshakes += 1;
                // Not 429, which concerns the requests of a single client (RFC 6585 section 4):
                // this may be the client's first.
                return Err(Answer::unavailable(
                    "too many requests with a token at once, try again later",
                    RETRY_AFTER_S,
                ));
            }
        }
        let verified = self.config.verifier.verify(token, clock.unix_us);
        verified.map_err(|error| Answer::unauthorized(&error.to_string()))
    }

    /// Forwards a verified request to the shard that owns the workspace, or handles it here.
    pub(super) fn pass_on(
        &mut self,
        id: SessionId,
        workspace: String,
        intent: Intent,
        clock: Clock,
    ) -> Result<(), Answer> {
        // The shard that owns the workspace may have stopped already.
        if self.drain != Drain::No {
            return Err(stopping());
        }
        let session = &mut self.sessions[id];
        if session.over_limit {
            return Err(Answer::unavailable(
                "the server is at its connection limit, try again later",
                RETRY_AFTER_S,
            ));
        }
        let owner = shard_of(&workspace, self.config.shards);
        let unparsed = std::mem::take(&mut session.unparsed);
        let handoff = Handoff {
            workspace,
            intent,
            left_us: session.deadline_us.saturating_sub(clock.now_us),
            unparsed,
        };
        if owner == self.config.shard {
            self.resume(id, handoff, clock);
        } else {
            if let Some(journal) = &mut self.connection_log {
                journal.forget(id);
            }
            // The session has nothing in flight, because a request is parsed when a receive ends,
            // and the new owner arms the next receive.
            self.retire(id);
            self.outputs
                .push_back(Output::Handoff(id, owner, Box::new(handoff)));
        }
        Ok(())
    }

    /// Handles a request once the state that it needs has been read.
    pub(super) fn resume(&mut self, id: SessionId, handoff: Handoff, clock: Clock) {
        if self.is_reading_state() {
            return self.let_wait(id, handoff);
        }
        if self.awaits_expiry(&handoff.workspace, clock) {
            return self.let_wait_for_expiry(id, handoff);
        }
        let refusal = self.refusal();
        self.fulfil(id, handoff, refusal, clock);
    }

    /// Handles a request, or answers it with `refusal`.
    pub(super) fn fulfil(
        &mut self,
        id: SessionId,
        handoff: Handoff,
        refusal: Option<Answer>,
        clock: Clock,
    ) {
        let Handoff {
            workspace,
            intent,
            left_us: _,
            unparsed,
        } = handoff;
        match intent {
            Intent::Join(request) => {
                let entry = match refusal {
                    Some(refusal) => Err(refusal),
                    None => self.find_entry(&workspace, request.version, clock),
                };
                match entry {
                    Ok(entry) => {
                        let is_named = request.version == ProtocolVersion::V1;
                        let user = request.user.as_deref().filter(|_| is_named);
                        if let Some(user) = user.map(Rc::from) {
                            self.rooms[entry.room_id].user_came(Rc::clone(&user));
                            self.sessions.set_user(id, user);
                        }
                        if let Some(journal) = &mut self.connection_log {
                            let note = journal.joined(id, &workspace, request.subject.as_deref());
                            self.outputs.push_back(Output::Note(id, Box::new(note)));
                        }
                        self.join(id, entry, &request, unparsed, clock);
                    }
                    Err(refusal) => self.answer(id, &refusal, clock),
                }
            }
            Intent::Read {
                target,
                if_none_match,
                allow_origin,
                head_only,
            } => {
                let mut read_answer = match refusal {
                    Some(refusal) => ReadAnswer::from(refusal),
                    None => self.http_read(
                        target,
                        &workspace,
                        if_none_match.as_deref(),
                        head_only,
                        clock,
                    ),
                };
                let allow_origin = allow_origin.as_deref();
                read_answer.answer =
                    for_allowed(read_answer.answer, allow_origin).for_method(head_only);
                self.answer_read(id, read_answer, clock);
            }
        }
    }

    /// Returns the answer to all requests while the shard cannot serve any.
    pub(super) fn refusal(&self) -> Option<Answer> {
        if self.drain != Drain::No {
            return Some(stopping());
        }
        if self.log.health() == Health::Recovering {
            let why = "the server is still reading its log";
            return Some(Answer::unavailable(why, RETRY_AFTER_S));
        }
        (!self.log.is_serving()).then(Answer::internal_server_error)
    }

    /// Returns the answer to a client that cannot join a workspace because the workspace is full.
    fn full_room(&mut self, workspace: &str) -> Option<Answer> {
        let most = self.config.limits.connections_per_workspace?;
        let room = &self.rooms[self.rooms.find(workspace)?];
        if room.members_count() < most {
            return None;
        }
        self.counters.refused_members += 1;
        let why = "the workspace is at its connection limit, try again later";
        Some(Answer::unavailable(why, RETRY_AFTER_S))
    }

    /// Returns the room to join, creating it if necessary, and the state that a version 1 client
    /// receives.
    fn find_entry(
        &mut self,
        workspace: &str,
        version: ProtocolVersion,
        clock: Clock,
    ) -> Result<RoomEntry, Answer> {
        if let Some(refusal) = self.full_room(workspace) {
            return Err(refusal);
        }
        let room_id = self.rooms.find_or_insert(workspace);
        self.rooms[room_id].open_feed(version, self.pool.windows());
        let snapshot = match version {
            ProtocolVersion::V1 => Some(self.snapshot(room_id, SnapshotKind::Init, clock)?),
            ProtocolVersion::V2 => None,
        };
        Ok(RoomEntry { room_id, snapshot })
    }

    /// Makes a client a member of its workspace. The client receives a 101, then the state.
    fn join(
        &mut self,
        id: SessionId,
        entry: RoomEntry,
        request: &JoinRequest,
        unparsed: Vec<u8>,
        clock: Clock,
    ) {
        let RoomEntry { room_id, snapshot } = entry;
        let version = request.version;
        let member = self.rooms.add_member(room_id, version, id.slot);
        if self.config.limits.ops_per_second.is_some() {
            self.sessions.reset_meter(id);
        }
        self.counters.responses.answered(101);

        let state = State::Open {
            room: room_id,
            member,
        };
        self.sessions.enter(id, state);
        let session = &mut self.sessions[id];
        session.version = version;
        session.expires_at_us = request.grant.expires_at_us.unwrap_or(u64::MAX);
        session.deadline_us = u64::MAX;
        // Spread the first pings over the second half of the interval, using a Fibonacci hash of
        // the slot, so that sessions that join together are not pinged together.
        let spread =
            (u64::from(id.slot.wrapping_mul(0x9E37_79B9)) * self.config.ping_interval_us) >> 32;
        session.next_ping_us = clock.now_us + self.config.ping_interval_us - spread / 2;
        let at = self.rooms[room_id].window_end(version);
        session.outbox.follow(at);
        let Acceptance { key, subprotocol } = &request.acceptance;
        let answer = self.pool.fill(256, |out| {
            upgrade::switching_protocols(key, *subprotocol, out);
        });
        if let Some(snapshot) = snapshot {
            self.queue_init(id, room_id, answer, snapshot);
        } else {
            self.queue_welcome(id, room_id, answer, request, clock);
            self.join_peers(id, room_id, request, clock);
        }
        let session = &mut self.sessions[id];
        session.intake = if unparsed.is_empty() {
            Intake::Receiving
        } else {
            Intake::Unread
        };
        // Even an empty list may have capacity, but an idle session must not hold any memory.
        session.unparsed = if unparsed.is_empty() {
            Vec::new()
        } else {
            unparsed
        };
        self.reads.queue(id, session.intake);
        self.update_memory(id);
        self.enqueue(id);
        self.reschedule(id, clock);
    }

    /// Queues a 101 and the state for a version 1 client that has just become a member.
    fn queue_init(&mut self, id: SessionId, room_id: RoomId, answer: Chunk, snapshot: Snapshot) {
        let session = &mut self.sessions[id];
        let Snapshot { init, point, .. } = snapshot;
        let SnapshotPoint {
            at, visible_from, ..
        } = point;
        // The state contains every op up to `at`, and the window continues from there, so the
        // client misses no op and receives none twice.
        session.outbox.follow(at);
        session
            .outbox
            .push(answer, at, LogPosition::NONE, &mut self.pool);
        let all = 0..init.bytes();
        // Unlike the 101, the state may contain ops that are not durable yet.
        let due = Due {
            at,
            visible_from,
            awaits: None,
        };
        session.transfer = Some(Box::new(StateTransfer::new(
            room_id,
            smallvec![init.clone()],
        )));
        session.outbox.push_state(init, all, due, &mut self.pool);
    }

    /// Answers a request with a status other than 101, and closes the connection.
    pub(super) fn answer(&mut self, id: SessionId, answer: &Answer, clock: Clock) {
        self.note_answer(id, answer);
        self.counters.responses.answered(answer.status());
        let chunk = self.pool.fill(512, |out| answer.encode(clock.unix_us, out));
        self.send_last(id, chunk, clock);
    }

    pub(super) fn note_answer(&mut self, id: SessionId, answer: &Answer) {
        if self.connection_log.is_some() {
            self.note_ending(id, answer.status(), &answer.message(), Party::Server);
        }
    }

    /// Closes an open session with a close frame.
    pub(super) fn close(&mut self, id: SessionId, code: u16, reason: &str, clock: Clock) {
        self.note_ending(id, code, reason, Party::Server);
        self.counters.closes.closed(code);
        self.close_with(id, code, reason, clock);
    }

    pub(super) fn close_with(&mut self, id: SessionId, code: u16, reason: &str, clock: Clock) {
        let chunk = self
            .pool
            .fill(128, |out| frame::put_close(out, code, reason));
        self.send_last(id, chunk, clock);
    }
}

fn stopping() -> Answer {
    Answer::unavailable("the server is stopping", RETRY_AFTER_S)
}
