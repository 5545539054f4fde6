//! Conflation: a session that reads too slowly receives only the latest op for each changed key
//! instead of every op.

use crate::core::fanout::behind_members::BehindMembers;
use crate::core::fanout::outbox::{Behind, Due, OutboxPool};
use crate::core::fanout::room::{RoomId, ShownOp};
use crate::core::fanout::window::{Chunk, Window};
use crate::core::shard::Shard;
use crate::core::shard::apply::shared_frame;
use crate::core::shard::closing::TRY_AGAIN_LATER;
use crate::core::shard::contract::Clock;
use crate::core::shard::session::{Session, SessionId};
use crate::core::shard::state_sync::{MISSED_DELETES_TEXT, misses_deletes};
use crate::limits::CONFLATED_STEPS_MAX;
use crate::wire::ProtocolVersion;
use crate::wire::message::v2::OpEnvelope;

impl Shard {
    /// Queues the next part of a conflated session's backlog, like [`Shard::encode_conflated`], or
    /// closes the session if it would miss deletes that way.
    pub(super) fn send_conflated(&mut self, id: SessionId, clock: Clock) {
        let session = &self.sessions[id];
        if let Some(behind) = session.outbox.behind()
            && let Some(room_id) = session.room()
            && misses_deletes(&self.rooms[room_id].workspace, behind.since)
        {
            return self.close(id, TRY_AGAIN_LATER, MISSED_DELETES_TEXT, clock);
        }
        self.encode_conflated(id);
    }

    /// Encodes the next part of a conflated session's backlog: the latest op for each key that has
    /// changed in the meantime, except the session's own ops. Does nothing if the session is not
    /// conflated, or if the previous part is still queued.
    ///
    /// The walk is bounded in bytes and in steps, because entries that the session itself wrote
    /// cost steps but no bytes. If the walk stops before the newest entry, the session stays
    /// behind, at the last entry examined. Otherwise, the session follows the window again from its
    /// end: the entries cover everything in the window, so no frame is missed or sent twice.
    fn encode_conflated(&mut self, id: SessionId) {
        let session = &mut self.sessions[id];
        let number = session.number;
        let Some(Behind {
            mut since,
            mut hint,
        }) = session.outbox.behind()
        else {
            return;
        };
        if session.outbox.has_answers() {
            return;
        }
        let room_id = session.room().expect("only a member can be behind");
        let room = &self.rooms[room_id];
        let bytes_max = self.budget.part_bytes_max();
        let (mut more, mut steps, mut long) = (false, 0, None);
        let chunk = self.pool.fill(bytes_max, |out| {
            for (slot, entry) in room.workspace.changed_since(since, hint) {
                steps += 1;
                more = steps > CONFLATED_STEPS_MAX;
                if more {
                    break;
                }
                if !entry.is_by(number) {
                    let shown = ShownOp::of(entry);
                    let bytes = shown.frame_bytes(ProtocolVersion::V1, OpEnvelope::default());
                    more = !out.is_empty() && out.len() + bytes > bytes_max;
                    if more {
                        break;
                    }
                    self.counters.conflated_keys += 1;
                    if bytes > bytes_max {
                        // The frame is sent on its own, and all sessions that have reached the same
                        // entry share it.
                        long = Some(shared_frame(
                            room_id,
                            entry,
                            ProtocolVersion::V1,
                            &mut self.budget,
                        ));
                        more = true;
                    } else {
                        shown.put(out, ProtocolVersion::V1, OpEnvelope::default());
                    }
                }
                (since, hint) = (entry.seq(), Some(slot));
                if more {
                    break;
                }
            }
        });
        let encoded_bytes = long.as_ref().map_or(chunk.len(), |long| long.len());
        self.encodings.spend(encoded_bytes, steps);
        let end = room.window_end(session.version);
        self.change_progress(id, room_id, |session, pool| {
            if more {
                session.outbox.fall_behind(Behind { since, hint }, pool);
            } else {
                session.outbox.follow(end);
            }
        });
        if chunk.is_empty() && long.is_none() && more {
            self.enqueue(id);
        }
        self.push_conflated(id, room_id, chunk, long);
    }

    /// Queues a part of a conflated session's backlog: several short ops, or a single long one.
    fn push_conflated(
        &mut self,
        id: SessionId,
        room_id: RoomId,
        short: Chunk,
        long: Option<Chunk>,
    ) {
        let room = &self.rooms[room_id];
        let due = Due {
            at: room.window_end(self.sessions[id].version),
            visible_from: room.visible_from(),
            awaits: None,
        };
        let outbox = &mut self.sessions[id].outbox;
        if let Some(frame) = long {
            self.pool.give(short);
            outbox.push_shared(frame, due, &mut self.pool);
        } else if short.is_empty() {
            self.pool.give(short);
        } else {
            outbox.push_due(short, due, &mut self.pool);
        }
        self.update_memory(id);
    }

    /// Changes how much of the state a member has been sent, and lets its feed know.
    pub(super) fn change_progress<R>(
        &mut self,
        id: SessionId,
        room_id: RoomId,
        change: impl FnOnce(&mut Session, &mut OutboxPool) -> R,
    ) -> R {
        let session = &mut self.sessions[id];
        let before = session.tombstones_needed_after();
        let outcome = change(session, &mut self.pool);
        let after = session.tombstones_needed_after();
        let feed = self.rooms[room_id].feed_mut(session.version);
        feed.behind.update(id.slot, before, after);
        outcome
    }

    /// Conflates a session whose backlog of frames exceeds the limit. It receives the latest op for
    /// each key instead.
    pub(super) fn conflate(&mut self, id: SessionId) {
        let session = &mut self.sessions[id];
        let room_id = session.room().expect("only a member falls behind");
        let feed = self.rooms[room_id].feed_mut(session.version);
        fall_behind(
            id.slot,
            session,
            &feed.window,
            &mut feed.behind,
            &mut self.pool,
        );
        self.counters.conflations += 1;
        self.sends.queue(id, session);
    }
}

/// Makes a session fall out of its room's window. It then receives only the latest op for each key,
/// starting with the op after its cursor.
pub(super) fn fall_behind(
    slot: u32,
    session: &mut Session,
    window: &Window,
    behind: &mut BehindMembers,
    pool: &mut OutboxPool,
) {
    let since = window.seq_at(session.outbox.cursor());
    let before = session.tombstones_needed_after();
    session
        .outbox
        .fall_behind(Behind { since, hint: None }, pool);
    behind.update(slot, before, session.tombstones_needed_after());
}
