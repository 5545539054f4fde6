//! Client ops, in either version of the protocol: applied to the state, answered with the entry
//! that they lost to, or refused with an error message.

use std::rc::Rc;

use crate::core::fanout::outbox::{Due, OutboxPool};
use crate::core::fanout::room::{RoomId, ShownOp};
use crate::core::fanout::window::Chunk;
use crate::core::shard::Shard;
use crate::core::shard::contract::Clock;
use crate::core::shard::session::SessionId;
use crate::core::shard::session_budget::SessionBudget;
use crate::core::shard::shard_log::Append;
use crate::core::state::segment_usage::Mark;
use crate::core::state::workspace::{Edit, Entry, Source, Verdict};
use crate::limits::{SECOND_US, SHARED_FRAME_BYTES_MIN};
use crate::log::position::LogPosition;
use crate::log::record::{Change, LoggedOp};
use crate::seq::Seq;
use crate::wire::ProtocolVersion;
use crate::wire::message::v2::{self, OpEnvelope};
use crate::wire::message::{self, Op};

/// The code of the error for a malformed message.
pub(super) const BAD_MESSAGE: u16 = 400;
/// The code of the error for something that is too large.
pub(super) const TOO_LARGE: u16 = 413;
/// The code of the error for an op for which there is no disk space.
const NO_ROOM: u16 = 500;
/// The text of the error for an op for which there is no disk space.
const DISK_FULL_TEXT: &str = "the disk of the server is nearly full, and this op was not kept: \
                              send it again when there is room";
/// The code of the error for a message that exceeds the client's rate.
const TOO_MANY: u16 = 429;

/// The parts of a refused message that its error repeats.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Refused<'a> {
    /// The message's id, which only version 2 has.
    id: Option<u64>,
    /// The op's key.
    key: Option<&'a str>,
    /// The op's timestamp, which only version 1 repeats.
    timestamp: u64,
}

impl<'a> Refused<'a> {
    /// Returns the parts of a message whose error repeats no key.
    pub fn message(id: Option<u64>) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }

    /// Returns the parts of a message with this key.
    pub fn with_key(id: Option<u64>, key: Option<&'a str>) -> Self {
        Self {
            id,
            key,
            timestamp: 0,
        }
    }

    /// Returns the parts of an op.
    pub fn op(edit: &Edit<'a>, id: Option<u64>) -> Self {
        Self {
            id,
            key: Some(edit.key),
            timestamp: edit.timestamp,
        }
    }
}

/// A frame that answers an op with the entry that it lost to.
enum Correction {
    Own(Chunk),
    Shared(Chunk),
    /// A start with the id of the op's message, and the shared frame, of which the rest begins at
    /// `rest`.
    Started {
        start: Chunk,
        frame: Chunk,
        rest: usize,
    },
}

/// An op that has won and is in the state, but neither in the log nor shown yet.
pub(super) struct WonOp<'a> {
    pub edit: Edit<'a>,
    pub seq: Seq,
    /// The mark of the entry that it replaced.
    pub replaced: Mark,
    /// The size of the workspace before the op.
    pub live_bytes_before: u64,
    /// The session that sent it. `None` for one of the server's own ops.
    pub sender: Option<SessionId>,
}

impl Shard {
    /// Applies an op to its workspace, and answers the sender if the op does not win. `message_id`
    /// is the id of its message, if the client assigned one.
    pub(super) fn apply(
        &mut self,
        id: SessionId,
        edit: &Edit<'_>,
        message_id: Option<u64>,
        clock: Clock,
    ) {
        assert!(
            self.config.fault_panic_key.as_deref() != Some(edit.key),
            "a planted fault"
        );
        if self.refuse_ahead(id, edit, message_id, clock)
            || self.refuse_disk_full(id, edit, message_id)
        {
            return;
        }
        let source = Source {
            writer: self.sessions[id].number,
            mark: self.log.mark(),
        };
        let version = self.sessions[id].version;
        let room_id = self.sessions[id].room();
        let room_id = room_id.expect("only an open session applies");
        let room = &mut self.rooms[room_id];
        let live_bytes_before = room.workspace.log_bytes();
        let bytes_max = self.config.limits.workspace_bytes.unwrap_or(u64::MAX);
        // A state that is being encoded in steps still needs the value that this op may replace.
        self.snapshots
            .preserve(room_id, &room.workspace, edit.key, edit.timestamp);
        // An answer shows the newest op of the key, or that the key has none, so it waits until all
        // ops of the workspace are visible.
        let mut visible_from = room.visible_from();
        match room.workspace.apply_within(bytes_max, edit, source) {
            Verdict::Same => self.counters.ops_duplicate += 1,
            Verdict::Lost(winner) => {
                self.counters.ops_lost += 1;
                let (budget, pool) = (&mut self.budget, &mut self.pool);
                let correction = correction(room_id, winner, version, message_id, budget, pool);
                self.correct(id, correction);
            }
            Verdict::Absent(floor) => self.correct_absent(id, edit, message_id, floor),
            Verdict::TooLarge(held) => {
                if let Some(held) = held {
                    let (budget, pool) = (&mut self.budget, &mut self.pool);
                    // The answer to the message is the error.
                    let correction = correction(room_id, held, version, None, budget, pool);
                    self.correct(id, correction);
                }
                self.refuse_too_large(id, bytes_max, edit, message_id);
            }
            Verdict::Won { seq, replaced } => {
                let won = WonOp {
                    edit: *edit,
                    seq,
                    replaced,
                    live_bytes_before,
                    sender: Some(id),
                };
                self.counters.ops += 1;
                visible_from = self.show_won(room_id, &won, clock);
            }
        }
        self.settle(id, message_id, visible_from);
    }

    /// Logs an op that has won, and encodes it for all members except its sender, if a client sent
    /// it. Returns the log position from which it is visible.
    ///
    /// The op is added to the batch before its frame is added to the windows, because the frame
    /// records that position, as does each answer that contains the op.
    pub(super) fn show_won(
        &mut self,
        room_id: RoomId,
        won: &WonOp<'_>,
        clock: Clock,
    ) -> LogPosition {
        let room = &mut self.rooms[room_id];
        let receivers_count = room.members_count() - usize::from(won.sender.is_some());
        self.counters.deliveries += receivers_count as u64;
        let Edit {
            key,
            change,
            timestamp,
            ..
        } = won.edit;
        let append = Append {
            record: LoggedOp {
                workspace: room.workspace.id(),
                key,
                change,
                seq: won.seq,
                timestamp,
            },
            replaced: won.replaced,
            live_bytes: (won.live_bytes_before, room.workspace.log_bytes()),
            sender: won.sender,
        };
        let allowance = &mut room.allowance;
        let position = self.log.append(&append, allowance, clock.now_us);
        let shown = ShownOp {
            key,
            value: match change {
                Change::Write { value, .. } => Some(value),
                Change::Delete { .. } | Change::Floor { .. } | Change::Generation { .. } => None,
            },
            timestamp,
        };
        self.expiry.update(room_id, &mut self.rooms[room_id]);
        self.broadcast(room_id, shown, position, won.sender);
        self.rooms.touch(room_id);
        position
    }

    /// Encodes an op for all members of a room except its sender.
    fn broadcast(
        &mut self,
        room_id: RoomId,
        shown: ShownOp<'_>,
        position: LogPosition,
        sender: Option<SessionId>,
    ) {
        let room = &mut self.rooms[room_id];
        let Some(id) = sender else {
            return room.broadcast(shown, position, self.pool.windows());
        };
        let session = &mut self.sessions[id];
        let start = room.window_end(session.version);
        room.broadcast(shown, position, self.pool.windows());
        let end = room.window_end(session.version);
        if !session.outbox.skip_own(start, end, &mut self.pool) {
            self.conflate(id);
        }
    }

    // ---- answers ----

    /// Queues the entry that an op lost to. The entry may not be durable yet, so the answer waits
    /// for the log.
    fn correct(&mut self, id: SessionId, correction: Correction) {
        let session = &mut self.sessions[id];
        let room_id = session.room().expect("only an open session applies");
        let room = &self.rooms[room_id];
        let due = Due {
            at: room.window_end(session.version),
            visible_from: room.visible_from(),
            awaits: None,
        };
        match correction {
            Correction::Own(chunk) => session.outbox.push_due(chunk, due, &mut self.pool),
            Correction::Shared(chunk) => session.outbox.push_shared(chunk, due, &mut self.pool),
            Correction::Started { start, frame, rest } => {
                let outbox = &mut session.outbox;
                outbox.push_started(start, frame, rest, due, &mut self.pool);
            }
        }
        self.update_memory(id);
        self.enqueue(id);
    }

    /// Answers an op that lost although its key has no entry: its timestamp is not above the floor,
    /// or its condition requires an entry.
    fn correct_absent(
        &mut self,
        id: SessionId,
        edit: &Edit<'_>,
        message_id: Option<u64>,
        floor: u64,
    ) {
        if edit.timestamp <= floor {
            self.counters.refused_floor += 1;
        } else {
            self.counters.ops_lost += 1;
        }
        let version = self.sessions[id].version;
        let absent = ShownOp {
            key: edit.key,
            value: None,
            timestamp: floor,
        };
        let envelope = answer_to(message_id);
        let bytes = absent.frame_bytes(version, envelope);
        let frame = self
            .pool
            .fill(bytes, |out| absent.put(out, version, envelope));
        self.correct(id, Correction::Own(frame));
    }

    /// Refuses an op whose timestamp is too far ahead of the clock. Returns whether it was refused.
    fn refuse_ahead(
        &mut self,
        id: SessionId,
        edit: &Edit<'_>,
        message_id: Option<u64>,
        clock: Clock,
    ) -> bool {
        let ahead_us = edit.timestamp.saturating_sub(clock.unix_us);
        let is_ahead = ahead_us > self.config.future_skew_us;
        if is_ahead {
            self.counters.refused_future_skew += 1;
            let text = skew_text(ahead_us, self.config.future_skew_us);
            let refused = match self.sessions[id].version {
                ProtocolVersion::V1 => Refused::message(None),
                ProtocolVersion::V2 => Refused::op(edit, message_id),
            };
            self.refuse(id, BAD_MESSAGE, &text, refused);
            self.settle(id, message_id, LogPosition::NONE);
        }
        is_ahead
    }

    /// Refuses an op that would win but for which there is no disk space. Returns whether it was
    /// refused.
    fn refuse_disk_full(
        &mut self,
        id: SessionId,
        edit: &Edit<'_>,
        message_id: Option<u64>,
    ) -> bool {
        if !self.log.is_disk_full() {
            return false;
        }
        let version = self.sessions[id].version;
        let room_id = self.sessions[id].room();
        let room_id = room_id.expect("only an open session applies");
        let room = &self.rooms[room_id];
        let visible_from = room.visible_from();
        // An op that loses or was resent does not grow the log, so it receives its usual answer.
        if !room.workspace.would_win(edit) {
            return false;
        }
        self.counters.refused_disk_full += 1;
        if let Some(held) = room.workspace.get(edit.key) {
            let (budget, pool) = (&mut self.budget, &mut self.pool);
            let correction = correction(room_id, held, version, None, budget, pool);
            self.correct(id, correction);
        }
        self.refuse(id, NO_ROOM, DISK_FULL_TEXT, Refused::op(edit, message_id));
        self.settle(id, message_id, visible_from);
        true
    }

    fn refuse_too_large(
        &mut self,
        id: SessionId,
        bytes_max: u64,
        edit: &Edit<'_>,
        message_id: Option<u64>,
    ) {
        self.counters.refused_workspace_bytes += 1;
        let text = format!(
            "the workspace is full: its limit is {bytes_max} bytes (--max-workspace-bytes), \
             and this op would exceed it"
        );
        self.refuse(id, TOO_LARGE, &text, Refused::op(edit, message_id));
    }

    /// Refuses a message that exceeds the client's rate.
    pub(super) fn refuse_too_many(&mut self, id: SessionId, refused: Refused<'_>) {
        self.counters.refused_rate += 1;
        let per_second = self.config.limits.ops_per_second.unwrap_or_default();
        let text = format!(
            "too many messages: at most {per_second} per second are allowed \
             (--max-ops-per-second); send this one again later"
        );
        self.refuse(id, TOO_MANY, &text, refused);
    }

    /// Sends an error message; the connection stays open.
    pub(super) fn refuse(&mut self, id: SessionId, code: u16, text: &str, refused: Refused<'_>) {
        let Refused {
            id: message_id,
            key,
            timestamp,
        } = refused;
        match (self.sessions[id].version, key) {
            (ProtocolVersion::V2, key) => {
                let bytes = v2::error_frame_bytes(code, text, message_id, key);
                self.reply(id, bytes, |out| {
                    v2::put_error(out, code, text, message_id, key);
                });
            }
            (ProtocolVersion::V1, Some(key)) => {
                let op = Op {
                    key,
                    value: "",
                    timestamp,
                };
                self.reply(id, text.len() + key.len() + 128, |out| {
                    message::put_op_error(out, code, text, &op);
                });
            }
            (ProtocolVersion::V1, None) => {
                self.reply(id, text.len() + 64, |out| {
                    message::put_error(out, code, text);
                });
            }
        }
    }
}

/// Returns what a correction that answers the message with this id has next to its `type`.
fn answer_to(message_id: Option<u64>) -> OpEnvelope {
    OpEnvelope {
        id: message_id,
        ..OpEnvelope::default()
    }
}

/// Encodes the entry that an op lost to, for the op's sender. A long frame is encoded only once for
/// all clients whose ops lose to the same op, except for its start, which has the id.
fn correction(
    room_id: RoomId,
    entry: Entry<'_>,
    version: ProtocolVersion,
    message_id: Option<u64>,
    budget: &mut SessionBudget,
    pool: &mut OutboxPool,
) -> Correction {
    let shown = ShownOp::of(entry);
    let plain_bytes = shown.frame_bytes(version, OpEnvelope::default());
    if plain_bytes < SHARED_FRAME_BYTES_MIN {
        let envelope = answer_to(message_id);
        let bytes = shown.frame_bytes(version, envelope);
        return Correction::Own(pool.fill(bytes, |out| shown.put(out, version, envelope)));
    }
    let frame = shared_frame(room_id, entry, version, budget);
    let Some(message_id) = message_id else {
        return Correction::Shared(frame);
    };
    let mut rest = 0;
    let start = pool.fill(v2::SHORT_FRAME_BYTES_MAX, |out| {
        rest = v2::put_op_start(out, message_id, frame.len());
    });
    Correction::Started { start, frame, rest }
}

/// Returns the frame of a key's winning op, encoding it only if it is not already being sent to
/// some session.
pub(super) fn shared_frame(
    room_id: RoomId,
    entry: Entry<'_>,
    version: ProtocolVersion,
    budget: &mut SessionBudget,
) -> Chunk {
    let key = (room_id, entry.seq(), version);
    budget.frame(key).unwrap_or_else(|| {
        let shown = ShownOp::of(entry);
        let envelope = OpEnvelope::default();
        let mut frame = Vec::with_capacity(shown.frame_bytes(version, envelope));
        shown.put(&mut frame, version, envelope);
        let frame = Rc::new(frame);
        budget.add_frame(key, &frame);
        frame
    })
}

fn skew_text(ahead_us: u64, most_us: u64) -> String {
    let text = |us: u64| {
        humantime::format_duration(std::time::Duration::from_secs(us / SECOND_US)).to_string()
    };
    format!(
        "payload.timestamp must be Unix microseconds and at most {} ahead of the server's clock, \
         but it is {} ahead",
        text(most_us),
        text(ahead_us.max(SECOND_US)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_says_how_far_a_timestamp_is_ahead() {
        for (ahead_us, most_us, most, ahead) in [
            (SECOND_US * 86_401, SECOND_US * 86_400, "1day", "1day 1s"),
            (SECOND_US * 7262, SECOND_US * 60, "1m", "2h 1m 2s"),
            // Less than a second is reported as one second.
            (5, 0, "0s", "1s"),
        ] {
            let text = skew_text(ahead_us, most_us);
            let expected = [
                format!("at most {most} ahead of"),
                format!("it is {ahead} ahead"),
            ];
            assert!(text.contains(&expected[0]), "{text}");
            assert!(text.ends_with(&expected[1]), "{text}");
        }
    }
}
