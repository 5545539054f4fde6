//! Version 2 presence and casts (P160 to P168): when peers in a room are shown to each other.
//!
//! Nothing here is logged, and nothing here delays an op: a presence message is appended to a send
//! that is about to start, and is built only after a turn's sends.

use std::rc::Rc;

use crate::core::fanout::chunk_pool::Spans;
use crate::core::fanout::peers::{NewPeer, Peers};
use crate::core::fanout::room::RoomId;
use crate::core::shard::Shard;
use crate::core::shard::apply::{Refused, TOO_LARGE};
use crate::core::shard::contract::{Clock, JoinRequest};
use crate::core::shard::session::SessionId;
use crate::limits::{SESSION_BYTES_SPARED, SNAPSHOT_PART_BYTES};
use crate::log::position::LogPosition;
use crate::wire::ProtocolVersion;
use crate::wire::message::v2;

impl Shard {
    /// Adds a client that has just become a member to the peers of its room, if it asked to be one.
    pub(super) fn join_peers(
        &mut self,
        id: SessionId,
        room_id: RoomId,
        request: &JoinRequest,
        clock: Clock,
    ) {
        if !request.has_presence || request.version == ProtocolVersion::V1 {
            return;
        }
        let session = &mut self.sessions[id];
        let v2 = session.v2_mut();
        v2.is_peer = true;
        let peer = NewPeer {
            connection: session.v2().connection,
            slot: id.slot,
            user: session.v2().user.as_ref().map(Rc::clone),
            replaces: request.replaces,
        };
        let presence = self.rooms[room_id].presence.get_or_insert_default();
        presence.peers_or_new(self.config.presence);
        self.change_peers(room_id, |peers, _| peers.join(peer, clock.now_us));
    }

    /// Changes the peers of a room, if it has any. `change` receives the total length of the values
    /// of all peers of the shard, which is kept current.
    fn change_peers<R>(
        &mut self,
        room_id: RoomId,
        change: impl FnOnce(&mut Peers, usize) -> R,
    ) -> Option<R> {
        let presence = self.rooms[room_id].presence.as_mut();
        let peers = presence.and_then(|presence| presence.peers_mut())?;
        let before_bytes = peers.value_bytes();
        let outcome = change(peers, self.presence_bytes);
        self.presence_bytes = self.presence_bytes - before_bytes + peers.value_bytes();
        self.presence_queue.add(room_id, peers);
        Some(outcome)
    }

    /// Removes a member that leaves from the peers of its room.
    pub(super) fn leave_peers(&mut self, room_id: RoomId, connection: u64) {
        let now_us = self.turn_us;
        self.change_peers(room_id, |peers, _| peers.leave(connection, now_us));
        self.rooms[room_id].drop_unused_presence();
    }

    fn peers_of(&mut self, room_id: RoomId) -> Option<&mut Peers> {
        self.rooms[room_id].presence.as_mut()?.peers_mut()
    }

    /// Handles a new value of a peer. A connection that is not a peer has no value (P162). A
    /// connection that was replaced may outlive all peers of its room, which then has no table of
    /// peers.
    pub(super) fn set_presence(
        &mut self,
        id: SessionId,
        value: &str,
        message_id: Option<u64>,
        clock: Clock,
    ) {
        let session = &self.sessions[id];
        let connection = session.v2().connection;
        let set = |peers: &mut Peers, shard_bytes: usize| {
            peers.set(connection, value, shard_bytes, clock.now_us)
        };
        if let Some(room_id) = session.peer_room()
            && let Some(Err(error)) = self.change_peers(room_id, set)
        {
            let refused = Refused::message(message_id);
            self.refuse(id, TOO_LARGE, &error.to_string(), refused);
        }
        self.settle(id, message_id, LogPosition::NONE);
    }

    /// Sends a value to all other members that speak version 2.
    ///
    /// Casts do not count towards a batch of the log. While an op in the window waits for a slow
    /// disk, clients could therefore fill memory with casts behind it, so excess casts are dropped.
    pub(super) fn cast(&mut self, id: SessionId, value: &str, message_id: Option<u64>) {
        let session = &mut self.sessions[id];
        let room_id = session.room().expect("only a member casts");
        let (from, user) = (session.v2().connection, session.v2().user.clone());
        let feed = self.rooms[room_id].feed_mut(session.version);
        let waits = feed.window.visible_end(self.log.visible_position()) < feed.window.end();
        if waits && feed.window.capacity_bytes() > self.config.outbox_bytes_max {
            return self.settle(id, message_id, LogPosition::NONE);
        }
        let bytes = v2::cast_frame_bytes(from, user.as_deref(), value);
        let start = feed.window.end();
        feed.window.push_cast(self.pool.windows(), bytes, |out| {
            v2::put_cast(out, from, user.as_deref(), value);
        });
        let end = feed.window.end();
        self.counters.casts += 1;
        if !session.outbox.skip_own(start, end, &mut self.pool) {
            self.conflate(id);
        }
        self.rooms.touch(room_id);
        self.settle(id, message_id, LogPosition::NONE);
    }

    /// Builds the presence messages that are due, and queues their receivers. The work of a turn is
    /// bounded in bytes.
    pub(super) fn announce_presence(&mut self, clock: Clock) {
        let is_round_done = self.sends.is_round_done();
        let mut bytes = 0;
        while bytes < SNAPSHOT_PART_BYTES
            && let Some((due_us, room_id)) = self.presence_queue.pop(is_round_done, clock.now_us)
        {
            let Some(room) = self.rooms.get_mut(room_id) else {
                continue;
            };
            let presence = room.presence.as_mut();
            let Some(peers) = presence.and_then(|presence| presence.peers_mut()) else {
                continue;
            };
            if peers.due_us() != Some(due_us) {
                continue;
            }
            let Some(message_bytes) = peers.announce(&mut self.presence_frame, &mut self.pool)
            else {
                continue;
            };
            bytes += message_bytes;
            self.counters.presence_messages += 1;
            for slot in peers.slots() {
                let (id, session) = self.sessions.at(slot);
                self.sends.queue(id, session);
            }
        }
    }

    /// Appends a peer's pending presence message to a send that is about to start.
    pub(super) fn append_presence(&mut self, id: SessionId, spans: &mut Spans) {
        let session = &mut self.sessions[id];
        let Some(room_id) = session.peer_room() else {
            return;
        };
        let connection = session.v2().connection;
        if !session.outbox.may_append(spans) {
            return;
        }
        let presence = self.rooms[room_id].presence.as_mut();
        let peers = presence.and_then(|presence| presence.peers_mut());
        // A connection that was replaced is no longer in the table, which may even be gone.
        let Some(peers) = peers else {
            return;
        };
        if !self.encodings.has_room() && peers.must_encode(connection) {
            // It follows this send, or in the next turn.
            if spans.is_empty() {
                self.sends.queue(id, session);
            }
            return;
        }
        let frame = &mut self.presence_frame;
        let Some(message) = peers.take_message(connection, frame, &mut self.pool) else {
            return;
        };
        if message.is_first {
            self.encodings.spend(message.chunk.len(), 0);
        }
        if message.is_first && message.chunk.len() > SESSION_BYTES_SPARED {
            self.budget.add_shared(&message.chunk);
        }
        session
            .outbox
            .append_shared(message.chunk, spans, &mut self.pool);
        self.update_memory(id);
    }

    /// Returns the length of a session's pending presence message, if it has one.
    pub(super) fn owed_presence_bytes(&mut self, id: SessionId) -> Option<usize> {
        let session = &self.sessions[id];
        let (room_id, connection) = (session.peer_room()?, session.v2().connection);
        self.peers_of(room_id)?.owed_bytes(connection)
    }
}
