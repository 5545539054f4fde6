//! Messages from version 2 clients, and `saved`, which reports that they are settled.

use std::borrow::Cow;

use crate::core::fanout::chunk_pool::Spans;
use crate::core::shard::Shard;
use crate::core::shard::apply::{BAD_MESSAGE, Refused};
use crate::core::shard::contract::Clock;
use crate::core::shard::rate::Pace;
use crate::core::shard::session::SessionId;
use crate::core::shard::version2::user_of;
use crate::core::state::workspace::Edit;
use crate::log::position::LogPosition;
use crate::log::record::Change;
use crate::wire::auth;
use crate::wire::message::v2::{
    self, ClientChange, ClientEnvelope, ClientMessage, ClientOp, RefusedMessage,
};

/// The code of the error for an invalid token.
const UNAUTHORIZED: u16 = 401;
/// The text of the error for an id that is not greater than the previous one.
const ID_TEXT: &str = "id must be greater than that of every earlier message on the connection";

impl Shard {
    /// Handles a message of a version 2 client.
    pub(super) fn read_v2(
        &mut self,
        id: SessionId,
        envelope: ClientEnvelope<'_>,
        pace: Pace,
        clock: Clock,
    ) {
        let message_id = envelope.id;
        let settlement = &self.sessions[id].v2().settlement;
        if message_id.is_some_and(|message_id| !settlement.accepts(message_id)) {
            self.counters.refused_bad_message += 1;
            return self.refuse(id, BAD_MESSAGE, ID_TEXT, Refused::message(message_id));
        }
        match envelope.content {
            Ok(ClientMessage::Ping) => {
                let unix_us = clock.unix_us;
                self.reply(id, v2::SHORT_FRAME_BYTES_MAX, |out| {
                    v2::put_pong(out, unix_us, message_id);
                });
                self.settle(id, message_id, LogPosition::NONE);
            }
            content if pace == Pace::Over => {
                let key = match &content {
                    Ok(ClientMessage::Op(op)) => Some(Cow::Borrowed(op.key)),
                    Err(refused) => refused.key.clone(),
                    Ok(_) => None,
                };
                self.refuse_too_many(id, Refused::with_key(message_id, key.as_deref()));
                self.settle(id, message_id, LogPosition::NONE);
            }
            Ok(ClientMessage::Op(op)) => {
                self.note_op(id);
                self.apply(id, &edit_of(&op, clock), message_id, clock);
            }
            Ok(ClientMessage::Token { token }) => self.read_token(id, token, message_id, clock),
            Ok(ClientMessage::Presence { value }) => {
                self.set_presence(id, value, message_id, clock);
            }
            Ok(ClientMessage::Cast { value }) => self.cast(id, value, message_id),
            Err(RefusedMessage { key, error }) => {
                self.counters.refused_bad_message += 1;
                let refused = Refused::with_key(message_id, key.as_deref());
                self.refuse(id, BAD_MESSAGE, &error.to_string(), refused);
                self.settle(id, message_id, LogPosition::NONE);
            }
        }
    }

    /// Replaces the token of a connection (P182). An invalid one changes nothing.
    fn read_token(&mut self, id: SessionId, token: &str, message_id: Option<u64>, clock: Clock) {
        let refused = Refused::message(message_id);
        let session = &mut self.sessions[id];
        match self.config.verifier.verify(Some(token), clock.unix_us) {
            Err(error) => self.refuse(id, UNAUTHORIZED, &error.to_string(), refused),
            Ok(_) if user_of(auth::subject(token).as_deref()) != session.v2().user.as_deref() => {
                let text = "the new token must have the same sub as the previous one";
                self.refuse(id, UNAUTHORIZED, text, refused);
            }
            Ok(grant) => {
                session.expires_at_us = grant.expires_at_us.unwrap_or(u64::MAX);
                let expires_s = grant.expires_s();
                self.reply(id, v2::SHORT_FRAME_BYTES_MAX, |out| {
                    v2::put_token(out, expires_s);
                });
                self.reschedule_earlier(id, clock);
            }
        }
        self.settle(id, message_id, LogPosition::NONE);
    }

    // ---- saved ----

    /// Records that a message was handled, and that it is settled once `position` is visible.
    pub(super) fn settle(&mut self, id: SessionId, message_id: Option<u64>, position: LogPosition) {
        let Some(message_id) = message_id else {
            return;
        };
        let visible = self.log.visible_position();
        let batch_start = self.log.batch_start();
        let Some(session) = self
            .sessions
            .get_mut(id)
            .filter(|session| session.is_open())
        else {
            return;
        };
        let settlement = &mut session.v2_mut().settlement;
        settlement.handled(message_id, position, visible, batch_start);
        if settlement.is_due(visible) {
            self.sends.queue(id, session);
        } else {
            self.sends.wait_for_log(id, session);
        }
    }

    /// Appends `saved` to a send that is about to start, if more of a client's messages are settled
    /// than were reported to it.
    ///
    /// The frame is not queued: it covers everything that the client has been sent, so it can only
    /// be built once that is known. Nor is it sent while answers are queued, since one of them may
    /// be an error that has to come first.
    pub(super) fn append_saved(&mut self, id: SessionId, spans: &mut Spans) {
        let visible = self.log.visible_position();
        let session = &mut self.sessions[id];
        let (Some(room_id), Some(v2)) = (session.room(), &mut session.v2) else {
            return;
        };
        if !v2.settlement.is_due(visible) || !session.outbox.may_append(spans) {
            return;
        }
        let room = &self.rooms[room_id];
        let cursor = session.outbox.cursor_after_own();
        // A client that is behind has not been sent everything up to any seq of the window. Any
        // other must not be told that an own op is settled before it has been sent the ops in front
        // of that one: its resume point would be before something that it holds, which another
        // history may lack (P144).
        let (sent_position, seq) = match session.outbox.behind() {
            Some(_) => (visible, None),
            None => (
                room.sent_position(session.version, cursor, visible),
                room.visible_seq(session.version, cursor, visible),
            ),
        };
        let Some(settled) = v2.settlement.take_settled(sent_position) else {
            return;
        };
        let frame = self.pool.fill(v2::SHORT_FRAME_BYTES_MAX, |out| {
            v2::put_saved(out, settled, seq);
        });
        session.outbox.append_shared(frame, spans, &mut self.pool);
        self.counters.saved += 1;
        self.update_memory(id);
    }
}

fn edit_of<'a>(op: &ClientOp<'a>, clock: Clock) -> Edit<'a> {
    let change = match op.change {
        ClientChange::Write { value, ttl_ms } => Change::Write {
            value,
            expires_at_us: ttl_ms.map(|ttl_ms| clock.unix_us.saturating_add(ttl_ms * 1000)),
        },
        ClientChange::Delete => Change::Delete {
            deleted_at_us: clock.unix_us,
        },
    };
    Edit {
        key: op.key,
        change,
        timestamp: op.timestamp,
        if_timestamp: op.if_timestamp,
    }
}
