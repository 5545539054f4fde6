//! Received bytes: decoding frames, parsing messages, applying ops.

use std::rc::Rc;

use crate::core::fanout::outbox::{Due, OutboxPool};
use crate::core::fanout::room::RoomId;
use crate::core::fanout::window::Chunk;
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::shard::Shard;
use crate::core::shard::contract::{Clock, Received};
use crate::core::shard::rate::Pace;
use crate::core::shard::session::{Intake, SessionId, State};
use crate::core::shard::session_budget::SessionBudget;
use crate::core::shard::shard_log::Append;
use crate::core::state::workspace::{Entry, Source, Verdict};
use crate::limits::{
    EMPTY_FRAMES_MAX, MESSAGES_PER_TURN_MAX, SECOND_US, SESSION_BYTES_SPARED,
    SHARED_FRAME_BYTES_MIN,
};
use crate::log::position::LogPosition;
use crate::log::record;
use crate::wire::frame::{self, FrameEvent};
use crate::wire::message::{self, Message, Op};

/// RFC 6455 section 7.4.1: "a type of data it cannot accept".
const UNSUPPORTED_DATA: u16 = 1003;
/// RFC 6455 section 7.4.1: "a message that is too big for it to process".
const MESSAGE_TOO_BIG: u16 = 1009;
/// RFC 6455 section 7.4.1: "a normal closure".
const NORMAL: u16 = 1000;
/// RFC 6455 section 7.4.1: "a message that violates its policy".
const POLICY_VIOLATION: u16 = 1008;
/// The code of an error message about a malformed message.
const BAD_MESSAGE: u16 = 400;
/// The code of an error message about an op that would make the workspace too large.
const TOO_LARGE: u16 = 413;
/// The code of an error message about an op for which there is no disk space.
const NO_ROOM: u16 = 500;
/// The text of an error message about an op for which there is no disk space.
const DISK_FULL_TEXT: &str = "the disk of the server is nearly full, and this op was not kept: \
                              send it again when there is room";
/// The code of an error message about a message that exceeds the client's rate.
const TOO_MANY: u16 = 429;

/// The result of reading a session's bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    /// The number of bytes in complete frames.
    consumed: usize,
    /// Whether one of the frames completed a message.
    has_ended: bool,
}

/// The frame of the entry that an op lost to. It is sent to the op's sender.
enum Correction {
    Own(Chunk),
    Shared(Chunk),
}

impl Shard {
    pub(super) fn received(&mut self, id: SessionId, received: Received<'_>, clock: Clock) {
        let session = self
            .sessions
            .get_mut(id)
            .expect("the session exists until its receive completes");
        session.receiving = false;
        let is_aborted = session.is_aborted();
        let bytes = match received {
            Received::Bytes(bytes) if !is_aborted => bytes,
            Received::Eof if !is_aborted => return self.ended(id),
            Received::Bytes(_) | Received::Eof | Received::Broken => return self.abort(id),
        };
        self.counters.bytes_received += bytes.len() as u64;
        if let Some(journal) = &mut self.connection_log {
            journal.received(id, bytes.len());
        }
        let session = &mut self.sessions[id];
        session.last_received_us = clock.now_us;
        match session.state() {
            State::Handshake => self.read_head(id, bytes, clock),
            State::Waiting => self.received_waiting(id, bytes),
            State::Open { .. } => self.read_bytes(id, bytes, clock),
            State::Closing => self.reads.receive(id),
        }
        self.update_memory(id);
    }

    /// Handles the end of the peer's sending side.
    fn ended(&mut self, id: SessionId) {
        let session = &mut self.sessions[id];
        session.close_by_peer();
        // A client may close its sending side after its request and still wait for the answer.
        match session.state() {
            State::Closing if !session.is_finished() => {}
            State::Waiting => self.received_waiting(id, &[]),
            State::Closing | State::Handshake | State::Open { .. } => self.abort(id),
        }
    }

    /// Continues reading from the sessions whose bytes were not all read in an earlier turn.
    pub(super) fn read_on(&mut self, clock: Clock) {
        for _ in 0..self.reads.unread_count() {
            if self.log.is_full() {
                break;
            }
            let Some(id) = self.reads.pop_unread() else {
                break;
            };
            if self.sessions.is_open(id) {
                self.read_bytes(id, &mut [], clock);
                self.update_memory(id);
                self.evict_over_budget(clock);
            }
        }
    }

    pub(super) fn read_bytes(&mut self, id: SessionId, bytes: &mut [u8], clock: Clock) {
        // The bytes are moved out of the session while they are read, because a message may close
        // the session, which drops its bytes, or cause an eviction, which must not count them.
        let mut unparsed = std::mem::take(&mut self.sessions[id].unparsed);
        // Only an incomplete frame is copied. A long one grows in a buffer of its own; a short one
        // is joined with the bytes that follow it in a buffer that all sessions share.
        if unparsed.is_empty() {
            let read = self.read_frames(id, bytes, clock);
            unparsed = self.pool.keep_unparsed(&bytes[read.consumed..]);
            return self.keep_unparsed(id, unparsed, read, clock);
        }
        if unparsed.len() <= SESSION_BYTES_SPARED && !bytes.is_empty() {
            let scratch = Rc::clone(&self.scratch);
            let mut joined = scratch.joined.borrow_mut();
            joined.clear();
            joined.extend_from_slice(&unparsed);
            joined.extend_from_slice(bytes);
            self.pool.give_unparsed(unparsed);
            let read = self.read_frames(id, &mut joined, clock);
            unparsed = self.pool.keep_unparsed(&joined[read.consumed..]);
            return self.keep_unparsed(id, unparsed, read, clock);
        }
        unparsed.extend_from_slice(bytes);
        let read = self.read_frames(id, &mut unparsed, clock);
        let rest = &unparsed[read.consumed..];
        if rest.len() <= SESSION_BYTES_SPARED {
            let rest = self.pool.keep_unparsed(rest);
            self.pool
                .give_unparsed(std::mem::replace(&mut unparsed, rest));
        } else {
            unparsed.drain(..read.consumed);
        }
        self.keep_unparsed(id, unparsed, read, clock);
    }

    fn keep_unparsed(&mut self, id: SessionId, unparsed: Vec<u8>, read: Read, clock: Clock) {
        let open = self
            .sessions
            .get_mut(id)
            .filter(|session| session.is_open());
        let Some(session) = open else {
            return;
        };
        session.unparsed = unparsed;
        self.reads.queue(id, session.intake);
        match session.intake {
            Intake::Receiving => self.time_message(id, read.has_ended, clock),
            // It is the server that delays the message here, so the client's time limit is
            // suspended.
            Intake::Unread | Intake::Held | Intake::Paused => session.message_since_us = u64::MAX,
        }
    }

    /// Records when an incomplete message began. Sets a timer only if the session has none that
    /// expires in time.
    fn time_message(&mut self, id: SessionId, has_ended: bool, clock: Clock) {
        let session = &mut self.sessions[id];
        if session.unparsed.is_empty() && !session.decoder.is_mid_message() {
            session.message_since_us = u64::MAX;
        // A message was completed, so the incomplete bytes belong to the next one, whose time
        // starts now.
        } else if has_ended || session.message_since_us == u64::MAX {
            session.message_since_us = clock.now_us;
            let deadline_us = session.message_deadline_us();
            self.sessions.schedule_by(id, deadline_us);
        }
    }

    /// Handles complete frames, at most [`MESSAGES_PER_TURN_MAX`] per session and turn.
    fn read_frames(&mut self, id: SessionId, bytes: &mut [u8], clock: Clock) -> Read {
        let message_bytes_max = self.config.message_bytes_max;
        // The decoder is moved out of the session for the same reason as the bytes, and is dropped
        // with them.
        let mut decoder = std::mem::take(&mut self.sessions[id].decoder);
        let (mut read, mut frames) = (Read::default(), 0);
        let intake = loop {
            let answer_bytes = self.sessions[id].outbox.answer_bytes();
            // Stop reading from a client that does not read its answers. Otherwise, the answers
            // would exhaust the memory.
            if answer_bytes > self.answer_bytes_max() {
                break Intake::Paused;
            }
            if frames == MESSAGES_PER_TURN_MAX || self.log.is_full() {
                break Intake::Unread;
            }
            if !self.log.is_free() && self.is_held(id, &bytes[read.consumed..], clock) {
                break Intake::Held;
            }
            match decoder.decode(&mut bytes[read.consumed..], message_bytes_max) {
                Ok(step) if step.consumed == 0 => break Intake::Receiving,
                Ok(step) => {
                    read.consumed += step.consumed;
                    let is_empty = step.is_empty_fragment();
                    if let Some(event) = step.event {
                        read.has_ended |=
                            matches!(event, FrameEvent::Text(_) | FrameEvent::Binary(_));
                        self.read_event(id, event, clock);
                    } else {
                        self.count_frame(id, is_empty, clock);
                    }
                }
                Err(error) => {
                    let code = error.close_code();
                    self.counters.refused_too_large += u64::from(code == MESSAGE_TOO_BIG);
                    self.close(id, code, &error.to_string(), clock);
                }
            }
            if !self.sessions.is_open(id) {
                // The frame closed the session. The remaining bytes are dropped, and so is this
                // decoder, which closing has already replaced.
                read.consumed = bytes.len();
                return read;
            }
            frames += 1;
        };
        decoder.let_go();
        let session = &mut self.sessions[id];
        session.decoder = decoder;
        session.intake = intake;
        read
    }

    fn read_event(&mut self, id: SessionId, event: FrameEvent<'_>, clock: Clock) {
        let pace = match event {
            FrameEvent::Text(_) | FrameEvent::Ping(_) => self.pace(id, clock),
            FrameEvent::Binary(_) | FrameEvent::Pong(_) | FrameEvent::Close(_) => Pace::Within,
        };
        if pace == Pace::Beyond {
            return self.close(id, POLICY_VIOLATION, "too many messages", clock);
        }
        match event {
            FrameEvent::Text(text) => self.read_message(id, text, pace, clock),
            FrameEvent::Binary(_) => {
                self.close(id, UNSUPPORTED_DATA, "messages are text frames", clock);
            }
            FrameEvent::Ping(payload) => {
                self.reply(id, payload.len() + 2, |out| frame::put_pong(out, payload));
            }
            FrameEvent::Pong(_) => self.read_pong(id, clock),
            FrameEvent::Close(code) => {
                self.counters.closed_by_peer += 1;
                if let Some(journal) = &mut self.connection_log {
                    journal.closed_by_client(id, code);
                }
                self.close_with(id, code.map_or(NORMAL, |(code, _)| code), "", clock);
            }
        }
    }

    /// Handles a pong. A pong that answers a ping is not counted; any other pong is a heartbeat
    /// (RFC 6455 section 5.5.3) and counts as a frame.
    fn read_pong(&mut self, id: SessionId, clock: Clock) {
        let session = &mut self.sessions[id];
        if !std::mem::take(&mut session.owes_pong) {
            self.count_frame(id, true, clock);
        }
    }

    /// Counts a frame that is not a message: a fragment or an unsolicited pong.
    ///
    /// Without a bound, a client could send such frames forever at no cost. RFC 6455 names "a long
    /// stream of small frames that are a part of a fragmented message" (section 10.4) among the
    /// attacks that an endpoint must withstand. Frames without content are therefore bounded for
    /// every client. All other frames are bounded by the length of a message, and by the rate limit
    /// if there is one. Within these bounds, a session takes turns with the others, since a turn
    /// reads at most [`MESSAGES_PER_TURN_MAX`] frames of any kind from each session.
    fn count_frame(&mut self, id: SessionId, is_empty: bool, clock: Clock) {
        let session = &mut self.sessions[id];
        session.empty_frames += u32::from(is_empty);
        let empty_frames = session.empty_frames;
        let is_within = match self.config.limits.ops_per_second {
            None => true,
            Some(per_second) => {
                let meter = self.sessions.meter(id);
                meter.count_frame(per_second, clock.now_us)
            }
        };
        if empty_frames > EMPTY_FRAMES_MAX || !is_within {
            self.close(id, POLICY_VIOLATION, "too many frames", clock);
        }
    }

    /// Counts a message against the session's rate limit.
    fn pace(&mut self, id: SessionId, clock: Clock) -> Pace {
        match self.config.limits.ops_per_second {
            None => Pace::Within,
            Some(per_second) => self.sessions.meter(id).count(per_second, clock.now_us),
        }
    }

    fn read_message(&mut self, id: SessionId, text: &str, pace: Pace, clock: Clock) {
        let scratch = Rc::clone(&self.scratch);
        let mut parser = scratch.parser.borrow_mut();
        let message = parser.parse(text);
        if let Some(journal) = &mut self.connection_log
            && let Ok(Message::Op(_)) = message
        {
            journal.op(id);
        }
        match message {
            // A ping that exceeds the rate is not refused, because it has already counted as a sign
            // of life.
            Ok(Message::Ping) => {}
            _ if pace == Pace::Over => self.refuse_too_many(id, message.ok()),
            Ok(Message::Op(op)) => self.apply(id, op, clock),
            Err(error) => {
                self.counters.refused_bad_message += 1;
                self.refuse(id, BAD_MESSAGE, &error.to_string());
            }
        }
    }

    fn refuse_too_many(&mut self, id: SessionId, message: Option<Message<'_>>) {
        self.counters.refused_rate += 1;
        let per_second = self.config.limits.ops_per_second.unwrap_or_default();
        let text = format!(
            "too many messages: at most {per_second} per second are allowed \
             (--max-ops-per-second); send this one again later"
        );
        match message {
            Some(Message::Op(op)) => self.refuse_op(id, TOO_MANY, &text, &op),
            _ => self.refuse(id, TOO_MANY, &text),
        }
    }

    /// Applies an op to its workspace, and answers the sender if the op does not win.
    ///
    /// An op that wins is added to the batch before its frame is added to the window, because the
    /// frame records the log position from which it may be sent, as does each answer that contains
    /// the op.
    fn apply(&mut self, id: SessionId, op: Op<'_>, clock: Clock) {
        assert!(
            self.config.fault_panic_key.as_deref() != Some(op.key),
            "a planted fault"
        );
        if self.refuse_ahead(id, &op, clock) || self.refuse_disk_full(id, &op) {
            return;
        }
        let source = self.source(id);
        let session = &mut self.sessions[id];
        let room_id = session.room().expect("only an open session applies ops");
        let room = &mut self.rooms[room_id];
        let live_bytes_before = room.workspace.log_bytes();
        let bytes_max = self.config.limits.workspace_bytes.unwrap_or(u64::MAX);
        // A state that is being encoded in steps still needs the value that this op may replace.
        self.snapshots
            .preserve(room_id, &room.workspace, op.key, op.timestamp);
        match room
            .workspace
            .apply_within(bytes_max, op.key, op.value, op.timestamp, source)
        {
            Verdict::Same => self.counters.ops_duplicate += 1,
            Verdict::Lost(winner) => {
                self.counters.ops_lost += 1;
                let correction = correction(room_id, winner, &mut self.budget, &mut self.pool);
                self.correct(id, correction);
            }
            Verdict::TooLarge(held) => {
                if let Some(held) = held {
                    let correction = correction(room_id, held, &mut self.budget, &mut self.pool);
                    self.correct(id, correction);
                }
                self.refuse_too_large(id, bytes_max, &op);
            }
            Verdict::Won { seq, replaced } => {
                self.counters.ops += 1;
                self.counters.deliveries += room.members.len() as u64 - 1;
                let workspace = room.workspace.id();
                let Op {
                    key,
                    value,
                    timestamp,
                } = op;
                let record = record::LoggedOp {
                    workspace,
                    key,
                    value,
                    seq,
                    timestamp,
                };
                let append = Append {
                    record,
                    replaced,
                    live_bytes: (live_bytes_before, room.workspace.log_bytes()),
                    sender: id,
                };
                let allowance = &mut room.allowance;
                let position = self.log.append(&append, allowance, clock.now_us);
                let (start, end) =
                    room.broadcast(key, value, timestamp, position, self.pool.windows());
                if !session.outbox.skip_own(start, end, &mut self.pool) {
                    self.conflate(id);
                }
                self.rooms.touch(room_id);
            }
        }
    }

    /// Refuses an op whose timestamp is too far ahead of the clock. Returns whether it was refused.
    fn refuse_ahead(&mut self, id: SessionId, op: &Op<'_>, clock: Clock) -> bool {
        let ahead_us = op.timestamp.saturating_sub(clock.unix_us);
        let is_ahead = ahead_us > self.config.future_skew_us;
        if is_ahead {
            self.counters.refused_future_skew += 1;
            let text = skew_text(ahead_us, self.config.future_skew_us);
            self.refuse(id, BAD_MESSAGE, &text);
        }
        is_ahead
    }

    fn source(&self, id: SessionId) -> Source {
        Source {
            writer: self.sessions[id].number,
            mark: self.log.mark(),
        }
    }

    /// Sends an error message; the connection stays open.
    fn refuse(&mut self, id: SessionId, code: u16, text: &str) {
        self.reply(id, text.len() + 64, |out| {
            message::put_error(out, code, text);
        });
    }

    /// Queues the entry that an op lost to. The entry may not be durable yet, so the answer waits
    /// for the log.
    fn correct(&mut self, id: SessionId, correction: Correction) {
        let session = &mut self.sessions[id];
        let room_id = session.room().expect("only an open session applies ops");
        let room = &self.rooms[room_id];
        let due = Due {
            at: room.window.end(),
            visible_from: room.visible_from(),
            awaits: None,
        };
        match correction {
            Correction::Own(chunk) => session.outbox.push_due(chunk, due, &mut self.pool),
            Correction::Shared(chunk) => session.outbox.push_shared(chunk, due, &mut self.pool),
        }
        self.update_memory(id);
        self.enqueue(id);
    }

    /// Refuses an op that would win but for which there is no disk space. Returns whether it was
    /// refused.
    fn refuse_disk_full(&mut self, id: SessionId, op: &Op<'_>) -> bool {
        if !self.log.is_disk_full() {
            return false;
        }
        let room_id = self.sessions[id].room();
        let room_id = room_id.expect("only an open session applies ops");
        let held = self.rooms[room_id].workspace.get(op.key);
        // An op that loses or was resent does not grow the log, so it receives its usual answer.
        if held.is_some_and(|held| op.timestamp <= held.timestamp()) {
            return false;
        }
        self.counters.refused_disk_full += 1;
        if let Some(held) = held {
            let correction = correction(room_id, held, &mut self.budget, &mut self.pool);
            self.correct(id, correction);
        }
        self.refuse_op(id, NO_ROOM, DISK_FULL_TEXT, op);
        true
    }

    fn refuse_too_large(&mut self, id: SessionId, bytes_max: u64, op: &Op<'_>) {
        self.counters.refused_workspace_bytes += 1;
        let text = format!(
            "the workspace is full: its limit is {bytes_max} bytes (--max-workspace-bytes), \
             and this op would exceed it"
        );
        self.refuse_op(id, TOO_LARGE, &text, op);
    }

    /// Sends an error message that identifies the op; the connection stays open.
    fn refuse_op(&mut self, id: SessionId, code: u16, text: &str, op: &Op<'_>) {
        self.reply(id, text.len() + op.key.len() + 128, |out| {
            message::put_op_error(out, code, text, op);
        });
    }

    /// Queues an answer that contains no op and therefore need not wait for the log.
    pub(super) fn reply(&mut self, id: SessionId, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let chunk = self.pool.fill(bytes, write);
        let session = &mut self.sessions[id];
        let at = session
            .room()
            .map_or(WindowOffset::START, |room| self.rooms[room].window.end());
        session
            .outbox
            .push(chunk, at, LogPosition::NONE, &mut self.pool);
        self.update_memory(id);
        self.enqueue(id);
    }
}

/// Encodes the entry that an op lost to, for the op's sender. A long frame is encoded only once for
/// all clients whose ops lose to the same op.
fn correction(
    room_id: RoomId,
    entry: &Entry,
    budget: &mut SessionBudget,
    pool: &mut OutboxPool,
) -> Correction {
    let bytes = message::op_frame_bytes(entry.key(), entry.value(), entry.timestamp());
    if bytes >= SHARED_FRAME_BYTES_MIN {
        return Correction::Shared(shared_frame(room_id, entry, budget));
    }
    let chunk = pool.fill(bytes, |out| {
        message::put_op(out, entry.key(), entry.value(), entry.timestamp());
    });
    Correction::Own(chunk)
}

/// Returns the frame of a key's winning op, encoding it only if it is not already being sent to
/// some session.
pub(super) fn shared_frame(room_id: RoomId, entry: &Entry, budget: &mut SessionBudget) -> Chunk {
    let key = (room_id, entry.seq());
    budget.frame(key).unwrap_or_else(|| {
        let (name, value, timestamp) = (entry.key(), entry.value(), entry.timestamp());
        let mut frame = Vec::with_capacity(message::op_frame_bytes(name, value, timestamp));
        message::put_op(&mut frame, name, value, timestamp);
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
    fn the_error_says_how_far_ahead_a_timestamp_is() {
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
