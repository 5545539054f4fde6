//! The end of a session: closing, aborting, and draining when the server stops.

use crate::core::fanout::window::Chunk;
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::shard::contract::{Clock, Output};
use crate::core::shard::session::{Session, SessionId, State};
use crate::core::shard::{Drain, Shard};
use crate::limits::LINGER_US;
use crate::log::position::LogPosition;
use crate::wire::frame::Decoder;

/// RFC 6455 section 7.4.1: the server is stopping (in version 1), or is closing a connection that
/// has been silent for too long.
pub(super) const GOING_AWAY: u16 = 1001;
/// The IANA registry of close codes: "Service Restart". Replaces [`GOING_AWAY`] for a server that
/// is stopping in version 2 (P183).
pub(super) const SERVICE_RESTART: u16 = 1012;
/// The IANA registry of close codes: "Try Again Later".
pub(super) const TRY_AGAIN_LATER: u16 = 1013;
/// RFC 6455 section 7.4.1: "a message that violates its policy".
pub(super) const POLICY_VIOLATION: u16 = 1008;
/// protocol.md: the token of a live connection has expired.
pub(super) const TOKEN_EXPIRED: u16 = 4001;

impl Shard {
    /// Queues a session's last bytes after those that are visible or already queued, and removes
    /// the session from its room.
    pub(super) fn send_last(&mut self, id: SessionId, chunk: Chunk, clock: Clock) {
        let is_closing = |session: &Session| session.state() == State::Closing;
        if self.sessions.get(id).is_none_or(is_closing) {
            return;
        }
        self.leave_room(id);
        self.queue_last(id, chunk, LogPosition::NONE, clock);
    }

    /// Queues the last bytes of a session that has left its room. They are sent once `visible_from`
    /// is visible.
    pub(super) fn queue_last(
        &mut self,
        id: SessionId,
        chunk: Chunk,
        visible_from: LogPosition,
        clock: Clock,
    ) {
        self.begin_closing(id, clock);
        let outbox = &mut self.sessions[id].outbox;
        outbox.push(chunk, WindowOffset::START, visible_from, &mut self.pool);
        self.update_memory(id);
    }

    /// Begins to close a session that has left its room. Bytes that are visible and those queued
    /// next are still sent; then the session is closed.
    pub(super) fn begin_closing(&mut self, id: SessionId, clock: Clock) {
        self.admission.keep(&self.sessions[id]);
        let visible_position = self.log.visible_position();
        self.enter_closing(id);
        let session = &mut self.sessions[id];
        session.unparsed = Vec::new();
        session.decoder = Decoder::new();
        session.outbox.leave(visible_position, &mut self.pool);
        session.deadline_us = clock.now_us + LINGER_US;
        self.sessions.schedule(id, clock.now_us + LINGER_US);
        // Incoming bytes are still read and dropped, because bytes left unread would make the
        // kernel reset the connection, and the last bytes sent to the peer might be lost.
        self.reads.receive(id);
        self.update_memory(id);
        self.enqueue(id);
    }

    /// Closes the sending side after the last byte, or the whole connection if the peer has already
    /// closed its sending side.
    pub(super) fn finish(&mut self, id: SessionId) {
        if self.sessions[id].finish() {
            self.admission.answered(id, &self.sessions[id]);
            self.outputs.push_back(Output::Finish(id));
        } else {
            self.abort(id);
        }
    }

    /// Aborts a connection immediately. Its slot becomes free when nothing is in flight for it.
    pub(super) fn abort(&mut self, id: SessionId) {
        self.leave_room(id);
        if self.sessions.get(id).is_none_or(Session::is_gone) {
            return;
        }
        self.admission.keep(&self.sessions[id]);
        self.enter_closing(id);
        let session = &mut self.sessions[id];
        session.outbox.drop_all(&mut self.pool);
        session.unparsed = Vec::new();
        session.decoder = Decoder::new();
        session.transfer = None;
        let was_open = session.abort();
        self.update_memory(id);
        let session = &self.sessions[id];
        if !session.sending && !session.receiving {
            self.retire(id);
            self.outputs.push_back(Output::Close(id));
        } else if was_open {
            self.outputs.push_back(Output::Abort(id));
        }
    }

    /// Ends a session that has nothing in flight. No operation may be started for it afterwards.
    pub(super) fn retire(&mut self, id: SessionId) {
        self.enter_closing(id);
        if let Some(journal) = &mut self.connection_log
            && let Some(note) = journal.end(id)
        {
            self.outputs.push_back(Output::Note(id, Box::new(note)));
        }
        self.sessions.retire(id);
    }

    /// Moves a session that has left its room to its last state, and drops its request if one was
    /// waiting.
    fn enter_closing(&mut self, id: SessionId) {
        let session = &self.sessions[id];
        if session.state() == State::Waiting {
            self.admission.take_waiting(session);
        }
        self.sessions.enter(id, State::Closing);
    }

    fn leave_room(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let State::Open {
            room: room_id,
            member,
        } = session.state()
        else {
            return;
        };
        let version = session.version;
        let needed_after = session.tombstones_needed_after();
        let feed = self.rooms[room_id].feed_mut(version);
        feed.behind.update(id.slot, needed_after, None);
        let peer = session.v2.take().filter(|v2| v2.is_peer);
        let peer = peer.map(|v2| v2.connection);
        self.sessions.enter(id, State::Closing);
        if let Some(connection) = peer {
            self.leave_peers(room_id, connection);
        }
        if let Some(user) = self.sessions.take_user(id) {
            self.rooms[room_id].user_left(&user);
        }
        if let Some(moved) = self.rooms.remove_member(room_id, version, member) {
            // The room's last member has moved to the freed index.
            let (moved, _) = self.sessions.at(moved);
            let state = State::Open {
                room: room_id,
                member,
            };
            self.sessions.enter(moved, state);
        }
        if self.rooms.remove_if_unused(room_id) {
            self.snapshots.forget_room(room_id);
            self.state_chunks.forget_room(room_id);
        } else {
            // The window may now release frames that only this session still had to receive.
            self.rooms.touch(room_id);
        }
    }

    /// Begins the drain. New requests are refused, and members are closed one after another over
    /// the configured time. A second call closes all of them immediately.
    pub(super) fn start_drain(&mut self, clock: Clock) {
        let (first, total_us) = match self.drain {
            Drain::No => (true, self.config.drain_us),
            _ => (false, 0),
        };
        if first || matches!(self.drain, Drain::Closing { .. }) {
            self.drain = Drain::Closing {
                deadline_us: clock.now_us + total_us.max(LINGER_US),
            };
        }
        let open = self
            .sessions
            .iter()
            .filter(|(_, session)| session.is_open());
        let ids: Vec<SessionId> = open.map(|(id, _)| id).collect();
        // The last quarter of the time is reserved for the closing handshakes.
        let spread_us = total_us / 4 * 3;
        for (place, id) in ids.iter().enumerate() {
            let delay_us = spread_us * place as u64 / ids.len() as u64;
            self.sessions[*id].deadline_us = clock.now_us + delay_us;
            self.reschedule(*id, clock);
        }
    }

    /// Advances the drain. Once all sessions have ended, the log is synced and sealed.
    pub(super) fn go_on_draining(&mut self, clock: Clock) {
        match self.drain {
            Drain::No | Drain::Sealed => {}
            Drain::Closing { deadline_us } => {
                if deadline_us <= clock.now_us {
                    self.abort_all();
                }
                let is_empty = self.sessions.is_empty();
                // A failed log is neither synced nor sealed.
                if is_empty && self.log.is_failed() && self.log.is_quiet() {
                    self.drained();
                } else if is_empty && self.log.is_settled() {
                    let step = self.log.seal(clock.now_us);
                    self.push_step(step);
                    self.drain = Drain::Sealing;
                } else if is_empty && let Some(step) = self.log.settle(clock.now_us) {
                    self.push_step(step);
                }
            }
            Drain::Sealing => {
                if self.log.is_settled() || self.log.is_failed() {
                    self.drained();
                } else if let Some(step) = self.log.settle(clock.now_us) {
                    self.push_step(step);
                }
            }
        }
    }

    fn drained(&mut self) {
        self.drain = Drain::Sealed;
        self.outputs.push_back(Output::Drained);
    }

    fn abort_all(&mut self) {
        let ids: Vec<SessionId> = self.sessions.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.abort(id);
        }
    }
}
