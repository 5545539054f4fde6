//! Received bytes: decoding frames and parsing messages.

use std::rc::Rc;

use crate::core::fanout::window_offset::WindowOffset;
use crate::core::shard::Shard;
use crate::core::shard::apply::{BAD_MESSAGE, Refused};
use crate::core::shard::contract::{Clock, Output, Received};
use crate::core::shard::rate::Pace;
use crate::core::shard::session::{Intake, SessionId, State};
use crate::core::state::workspace::Edit;
use crate::limits::{
    EMPTY_FRAMES_MAX, MESSAGES_PER_TURN_MAX, SESSION_BYTES_SPARED, TIMESTAMP_MIN_US,
};
use crate::log::position::LogPosition;
use crate::log::record::Change;
use crate::wire::ProtocolVersion;
use crate::wire::frame::{self, FrameEvent};
use crate::wire::message::{Message, MessageError};

/// RFC 6455 section 7.4.1: "a type of data it cannot accept".
const UNSUPPORTED_DATA: u16 = 1003;
/// RFC 6455 section 7.4.1: "a message that is too big for it to process".
const MESSAGE_TOO_BIG: u16 = 1009;
/// RFC 6455 section 7.4.1: "a normal closure".
const NORMAL: u16 = 1000;
/// RFC 6455 section 7.4.1: "a message that violates its policy".
const POLICY_VIOLATION: u16 = 1008;
/// The result of reading a session's bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    /// The number of bytes in complete frames.
    consumed: usize,
    /// Whether one of the frames completed a message.
    has_ended: bool,
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
        // Only an incomplete frame is copied. A long one grows in its own buffer; a short one is
        // joined with the bytes that follow it in a buffer that all sessions share.
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
        match self.sessions[id].version {
            ProtocolVersion::V1 => {
                let message = parser.parse(text);
                self.read_v1(id, message, pace, clock);
            }
            ProtocolVersion::V2 => {
                let envelope = parser.parse_v2(text);
                self.read_v2(id, envelope, pace, clock);
            }
        }
    }

    /// Handles a message of a version 1 client.
    fn read_v1(
        &mut self,
        id: SessionId,
        message: Result<Message<'_>, MessageError>,
        pace: Pace,
        clock: Clock,
    ) {
        match message {
            // A ping that exceeds the rate is not refused, because it has already counted as a sign
            // of life.
            Ok(Message::Ping) => {}
            Ok(Message::Op(op)) => {
                self.note_op(id);
                if op.timestamp < TIMESTAMP_MIN_US {
                    self.note_early_timestamp(id, op.timestamp);
                }
                let edit = Edit {
                    key: op.key,
                    change: Change::write(op.value),
                    timestamp: op.timestamp,
                    if_timestamp: None,
                };
                if pace == Pace::Over {
                    self.refuse_too_many(id, Refused::op(&edit, None));
                } else {
                    self.apply(id, &edit, None, clock);
                }
            }
            Err(_) if pace == Pace::Over => self.refuse_too_many(id, Refused::message(None)),
            Err(error) => {
                self.counters.refused_bad_message += 1;
                self.refuse(id, BAD_MESSAGE, &error.to_string(), Refused::message(None));
            }
        }
    }

    /// Counts an op in the connection log, if there is one.
    pub(super) fn note_op(&mut self, id: SessionId) {
        if let Some(journal) = &mut self.connection_log {
            journal.op(id);
        }
    }

    /// Counts a version 1 op with a timestamp before 2001, which version 2 refuses (P117), and
    /// reports the first one of each connection in the connection log, if there is one.
    fn note_early_timestamp(&mut self, id: SessionId, timestamp: u64) {
        self.counters.early_timestamps += 1;
        if let Some(journal) = &mut self.connection_log
            && let Some(note) = journal.early_timestamp(id, timestamp)
        {
            self.outputs.push_back(Output::Note(id, Box::new(note)));
        }
    }

    /// Queues an answer that contains no op and therefore need not wait for the log.
    pub(super) fn reply(&mut self, id: SessionId, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let chunk = self.pool.fill(bytes, write);
        let session = &mut self.sessions[id];
        let at = session.room().map_or(WindowOffset::START, |room| {
            self.rooms[room].window_end(session.version)
        });
        session
            .outbox
            .push(chunk, at, LogPosition::NONE, &mut self.pool);
        self.update_memory(id);
        self.enqueue(id);
    }
}
