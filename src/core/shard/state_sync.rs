//! Sending the state to a version 2 client, part by part: when it joins, when it resumes, and when
//! it has fallen behind (P130 to P143).
//!
//! In all three cases the client must be sent the entries after some seq (0 for a join), in the
//! order of their last change. Each part is encoded once the socket has accepted the previous one,
//! until the parts reach the window. So no copy of the whole state is held in memory for a joining
//! client.

use std::rc::Rc;

use crate::core::fanout::outbox::{Behind, Due};
use crate::core::fanout::room::RoomId;
use crate::core::fanout::window::Chunk;
use crate::core::shard::Shard;
use crate::core::shard::closing::TRY_AGAIN_LATER;
use crate::core::shard::contract::{Clock, JoinRequest, ShardConfig};
use crate::core::shard::counters::Counters;
use crate::core::shard::session::SessionId;
use crate::core::shard::version2::{Version2, user_of};
use crate::core::snapshot::state_chunks::StatePart;
use crate::core::state::workspace::Workspace;
use crate::limits::{
    ANSWER_SEND_BYTES_MAX, CONFLATED_STEPS_MAX, SEND_BYTES_MAX, SHARED_FRAME_BYTES_MIN,
};
use crate::log::position::LogPosition;
use crate::seq::Seq;
use crate::wire::message::v2::{self, StateChunk, Welcome, WelcomeLimits, WelcomeReason};

/// The reason for closing a client that can no longer be sent all the deletes that it missed.
pub(super) const MISSED_DELETES_TEXT: &str =
    "the client fell behind deletes that are no longer kept";

/// The entries that were added to a part.
struct Walked {
    until: Seq,
    hint: u32,
    has_tombstones: bool,
    lacks_tombstones: bool,
    keys: u64,
    /// The length of the entries and tombstones that were encoded.
    bytes: usize,
    /// The number of entries that were examined.
    steps: usize,
}

impl Shard {
    /// Queues a 101, `welcome` and the first part of the state for a version 2 client that has just
    /// become a member.
    pub(super) fn queue_welcome(
        &mut self,
        id: SessionId,
        room_id: RoomId,
        answer: Chunk,
        request: &JoinRequest,
        clock: Clock,
    ) {
        let room = &self.rooms[room_id];
        let seq = room.workspace.seq();
        let reason = self
            .generations
            .welcome_reason(request.resume, Some(&room.workspace));
        let generation = self.generations.current();
        *joins_of(&mut self.counters, reason) += 1;
        let number = self.first_connection + self.sessions[id].number;
        let ShardConfig { shard, shards, .. } = self.config;
        // The shards count from about the same number, but no two of them may issue the same id.
        let connection = number * u64::from(shards) + u64::from(shard);
        let session = &mut self.sessions[id];
        let user: Option<Rc<str>> = user_of(request.subject.as_deref()).map(Rc::from);
        let welcome = Welcome {
            connection,
            user: user.as_deref(),
            generation,
            time_us: clock.unix_us,
            reason,
            durability: self.config.durability.name(),
            ping_interval_ms: self.config.ping_interval_us / 1000,
            limits: WelcomeLimits {
                message_bytes: self.config.message_bytes_max,
                workspace_bytes: self.config.limits.workspace_bytes,
                ops_per_second: self.config.limits.ops_per_second,
            },
        };
        let frame = self
            .pool
            .fill(welcome.frame_bytes(), |out| welcome.put(out));
        let at = session.outbox.cursor();
        let since = match request.resume {
            Some(resume) if !reason.is_full() => resume.since,
            _ => Seq::NONE,
        };
        session.v2 = Some(Box::new(Version2 {
            connection,
            user,
            cutoff: if reason.is_full() { seq } else { Seq::NONE },
            ..Version2::default()
        }));
        for chunk in [answer, frame] {
            session
                .outbox
                .push(chunk, at, LogPosition::NONE, &mut self.pool);
        }
        let behind = Behind { since, hint: None };
        self.change_progress(id, room_id, |session, pool| {
            session.outbox.fall_behind(behind, pool);
        });
        // A small state goes out with the welcome, in one send.
        if self.encodings.has_room_for_join() || self.has_shared_part(id) {
            self.send_state_parts(id, clock);
        }
    }

    /// Queues the parts of the state that go out in the next send. Does nothing if the client needs
    /// no state.
    ///
    /// That is one part, plus any following parts that are shared with other clients and fit into
    /// the send: shared bytes count once, and each send saved is one less pass through the ring and
    /// the kernel.
    pub(super) fn send_state_parts(&mut self, id: SessionId, clock: Clock) {
        self.send_state_part(id, clock);
        while self.has_shared_part(id) {
            self.send_state_part(id, clock);
        }
    }

    /// Returns whether the next part of a session's state is encoded already and fits into the send
    /// to which the parts before it were queued.
    pub(super) fn has_shared_part(&self, id: SessionId) -> bool {
        let session = &self.sessions[id];
        let (Some(room_id), Some(behind), Some(v2)) =
            (session.room(), session.outbox.behind(), &session.v2)
        else {
            return false;
        };
        let workspace = &self.rooms[room_id].workspace;
        let part = self
            .state_chunks
            .find(room_id, workspace, behind.since, v2.cutoff);
        let bytes_max = if self.budget.is_tight() {
            SEND_BYTES_MAX
        } else {
            ANSWER_SEND_BYTES_MAX
        };
        let queued_bytes = session.outbox.waiting_bytes();
        session.is_open() && part.is_some_and(|part| queued_bytes + part.chunk.len() <= bytes_max)
    }

    /// Queues the next part of the state for a version 2 client, and `synced` after the last one.
    /// Does nothing if the client needs no state.
    fn send_state_part(&mut self, id: SessionId, clock: Clock) {
        let session = &self.sessions[id];
        let Some(Behind { since, hint }) = session.outbox.behind() else {
            return;
        };
        let room_id = session.room().expect("only a member is behind");
        let cutoff = session.v2().cutoff;
        let workspace = &self.rooms[room_id].workspace;
        if misses_deletes(workspace, since.max(cutoff)) {
            return self.close(id, TRY_AGAIN_LATER, MISSED_DELETES_TEXT, clock);
        }
        let cached = self.state_chunks.find(room_id, workspace, since, cutoff);
        let part = match cached {
            Some(part) => Some(part),
            None => self.encode_state_part(room_id, Behind { since, hint }, cutoff),
        };
        let end = match part {
            Some(part) => {
                let end = (part.until, Some(part.hint));
                self.queue_state_part(id, part);
                end
            }
            None => (since, hint),
        };
        self.advance_sync(id, end.0, end.1);
    }

    /// Encodes the part of a room's state after `from`. Returns `None` if there is nothing to send.
    fn encode_state_part(
        &mut self,
        room_id: RoomId,
        from: Behind,
        cutoff: Seq,
    ) -> Option<StatePart> {
        let bytes_max = self.budget.part_bytes_max();
        let bytes_max = bytes_max.min(self.config.state_part_bytes);
        let room = &self.rooms[room_id];
        let workspace = &room.workspace;
        let walked = walk(workspace, &from, cutoff, bytes_max, &mut self.state_chunk)?;
        self.encodings.spend(walked.bytes, walked.steps);
        let mut frame = Vec::new();
        if walked.keys > 0 {
            frame.reserve_exact(self.state_chunk.frame_bytes(walked.until));
            self.state_chunk.finish(&mut frame, walked.until);
        }
        let part = StatePart {
            chunk: frame.into(),
            until: walked.until,
            encoded_at: workspace.seq(),
            cutoff,
            has_tombstones: walked.has_tombstones,
            lacks_tombstones: walked.lacks_tombstones,
            hint: walked.hint,
            visible_from: room.visible_from(),
            keys: walked.keys,
        };
        if is_shared(&part.chunk) {
            self.budget.add_shared(&part.chunk);
        }
        self.state_chunks.add(room_id, from.since, &part);
        Some(part)
    }

    fn queue_state_part(&mut self, id: SessionId, part: StatePart) {
        self.counters.state_chunks += u64::from(part.keys > 0);
        self.counters.conflated_keys += part.keys;
        let session = &mut self.sessions[id];
        let room_id = session.room().expect("only a member is sent a state");
        let due = Due {
            at: self.rooms[room_id].window_end(session.version),
            visible_from: part.visible_from,
            awaits: None,
        };
        let is_shared = is_shared(&part.chunk);
        session
            .outbox
            .push_part(part.chunk, is_shared, due, &mut self.pool);
    }

    /// Records that everything up to `until` has been queued for a client. If nothing is left, the
    /// client follows the window from here on.
    fn advance_sync(&mut self, id: SessionId, until: Seq, hint: Option<u32>) {
        let session = &self.sessions[id];
        let room_id = session.room().expect("only a member is sent a state");
        let room = &self.rooms[room_id];
        let has_more = room.workspace.changed_since(until, hint).next().is_some();
        let at = room.window_end(session.version);
        self.change_progress(id, room_id, |session, pool| {
            if has_more {
                let behind = Behind { since: until, hint };
                session.outbox.fall_behind(behind, pool);
            } else {
                session.outbox.follow(at);
                session.v2_mut().cutoff = Seq::NONE;
            }
        });
        if !has_more {
            let room = &self.rooms[room_id];
            let due = Due {
                at,
                visible_from: room.visible_from(),
                awaits: None,
            };
            let seq = room.workspace.seq();
            let synced = self
                .pool
                .fill(v2::SHORT_FRAME_BYTES_MAX, |out| v2::put_synced(out, seq));
            let outbox = &mut self.sessions[id].outbox;
            outbox.push_due(synced, due, &mut self.pool);
        }
        self.update_memory(id);
    }
}

/// Returns the number of joins with this reason.
fn joins_of(counters: &mut Counters, reason: WelcomeReason) -> &mut u64 {
    match reason {
        WelcomeReason::First => &mut counters.joins_first,
        WelcomeReason::Resumed => &mut counters.joins_resumed,
        WelcomeReason::OtherGeneration => &mut counters.joins_other_generation,
        WelcomeReason::TooOld => &mut counters.joins_too_old,
    }
}

/// Returns whether a part counts only once, however many sessions it is sent to. A short part
/// counts for each of them: a session that holds only that is exempt from the budget, so if it
/// counted, there might be no session left to evict.
fn is_shared(chunk: &Chunk) -> bool {
    chunk.len() >= SHARED_FRAME_BYTES_MIN
}

/// Returns whether tombstones after `known` were dropped, so that a client whose state dates from
/// `known` would keep deleted keys.
pub(super) fn misses_deletes(workspace: &Workspace, known: Seq) -> bool {
    let floor = workspace.floor();
    floor.is_some_and(|floor| floor.dropped_seq > known)
}

/// Puts the entries after `from` into a part of about `bytes_max` bytes, except tombstones at or
/// before `cutoff`. Returns `None` if there are no entries.
///
/// The walk is bounded in bytes and in steps, because skipped tombstones cost steps but no bytes.
fn walk(
    workspace: &Workspace,
    from: &Behind,
    cutoff: Seq,
    bytes_max: usize,
    chunk: &mut StateChunk,
) -> Option<Walked> {
    let mut walked = None;
    let mut bytes = 0;
    let entries = workspace.changed_since(from.since, from.hint);
    for (slot, entry) in entries.take(CONFLATED_STEPS_MAX) {
        let ((key, value), timestamp) = (entry.key_and_value(), entry.timestamp());
        let is_skipped = entry.is_deleted() && entry.seq() <= cutoff;
        let entry_bytes = if is_skipped {
            0
        } else if entry.is_deleted() {
            StateChunk::deleted_bytes(key, timestamp)
        } else {
            StateChunk::entry_bytes(key, value, timestamp)
        };
        if bytes > 0 && bytes + entry_bytes > bytes_max {
            break;
        }
        bytes += entry_bytes;
        let walked = walked.get_or_insert(Walked {
            until: from.since,
            hint: slot,
            has_tombstones: false,
            lacks_tombstones: false,
            keys: 0,
            bytes: 0,
            steps: 0,
        });
        if is_skipped {
            walked.lacks_tombstones = true;
        } else if entry.is_deleted() {
            chunk.push_deleted(key, timestamp);
            walked.has_tombstones = true;
        } else {
            chunk.push_entry(key, value, timestamp);
        }
        walked.keys += u64::from(!is_skipped);
        (walked.bytes, walked.steps) = (bytes, walked.steps + 1);
        (walked.until, walked.hint) = (entry.seq(), slot);
    }
    walked
}
