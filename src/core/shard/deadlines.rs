//! The deadlines of a session: the request head, pings, silence, stalls, slow messages, expiry.

use crate::core::shard::Shard;
use crate::core::shard::closing::{
    GOING_AWAY, POLICY_VIOLATION, SERVICE_RESTART, TOKEN_EXPIRED, TRY_AGAIN_LATER,
};
use crate::core::shard::contract::Clock;
use crate::core::shard::session::{Session, SessionId, State};
use crate::limits::{STALL_LINGER_US, STALL_TIMEOUT_US};
use crate::wire::ProtocolVersion;
use crate::wire::frame;
use crate::wire::upgrade::Answer;

impl Shard {
    /// Schedules a check of a session for its next deadline.
    pub(super) fn reschedule(&mut self, id: SessionId, clock: Clock) {
        let ping_interval_us = self.config.ping_interval_us;
        if let Some(session) = self.sessions.get_mut(id) {
            let at_us = next_deadline_us(session, ping_interval_us, clock);
            self.sessions.schedule(id, at_us);
        }
    }

    /// Schedules a check of a session for its next deadline, unless it is checked before that
    /// anyway. So a client that changes its deadlines again and again does not fill the wheel.
    pub(super) fn reschedule_earlier(&mut self, id: SessionId, clock: Clock) {
        let at_us = next_deadline_us(&self.sessions[id], self.config.ping_interval_us, clock);
        self.sessions.schedule_by(id, at_us);
    }

    pub(super) fn expire_timers(&mut self, clock: Clock) {
        while let Some(id) = self.sessions.next_due(clock.now_us) {
            self.check_deadlines(id, clock);
        }
    }

    fn check_deadlines(&mut self, id: SessionId, clock: Clock) {
        let silence_us = silence_us(self.config.ping_interval_us);
        let session = &mut self.sessions[id];
        let past = |at_us: u64| at_us <= clock.now_us;
        match session.state() {
            State::Handshake if past(session.deadline_us) => {
                self.answer(id, &Answer::request_timeout(), clock);
            }
            State::Waiting if past(session.deadline_us) => self.give_up_waiting(id, clock),
            State::Closing if past(session.deadline_us) => {
                let stalled_us = session.last_progress_us + STALL_TIMEOUT_US;
                // A long last answer may exceed the deadline as long as its receiver keeps reading.
                if session.ends_long && session.sending && !past(stalled_us) {
                    session.deadline_us = stalled_us;
                    self.reschedule(id, clock);
                } else {
                    self.abort(id);
                }
            }
            State::Handshake | State::Waiting | State::Closing => self.reschedule(id, clock),
            State::Open { .. } => {
                if session.expires_at_us <= clock.unix_us {
                    self.close(id, TOKEN_EXPIRED, "token expired", clock);
                } else if past(session.deadline_us) {
                    let code = match session.version {
                        ProtocolVersion::V1 => GOING_AWAY,
                        ProtocolVersion::V2 => SERVICE_RESTART,
                    };
                    self.close(id, code, "the server is stopping", clock);
                } else if session.sending && past(session.last_progress_us + STALL_TIMEOUT_US) {
                    self.close(id, TRY_AGAIN_LATER, "the client reads too slowly", clock);
                    // This wait is longer than for other kinds of closing, because the close frame
                    // follows bytes that the slow client has not read yet.
                    self.sessions[id].deadline_us = clock.now_us + STALL_LINGER_US;
                    self.reschedule(id, clock);
                } else if past(session.message_deadline_us()) {
                    self.counters.given_up_messages += 1;
                    self.close(id, POLICY_VIOLATION, "a message took too long", clock);
                } else if session.is_read() && past(session.last_received_us + silence_us) {
                    self.close(id, GOING_AWAY, "the client did not respond", clock);
                } else {
                    self.ping_if_due(id, clock);
                    self.reschedule(id, clock);
                }
            }
        }
    }

    fn ping_if_due(&mut self, id: SessionId, clock: Clock) {
        let session = &mut self.sessions[id];
        if session.next_ping_us <= clock.now_us {
            session.next_ping_us = clock.now_us + self.config.ping_interval_us;
            (session.owes_pong, session.empty_frames) = (true, 0);
            self.reply(id, 2, frame::put_ping);
        }
    }
}

impl Session {
    /// Returns whether the socket is being read. Only then does silence mean anything.
    fn is_read(&self) -> bool {
        self.receiving
    }
}

/// Returns the silence after which a client is considered gone: two and a half ping intervals.
fn silence_us(ping_interval_us: u64) -> u64 {
    ping_interval_us * 5 / 2
}

fn next_deadline_us(session: &Session, ping_interval_us: u64, clock: Clock) -> u64 {
    if !session.is_open() {
        return session.deadline_us;
    }
    let expires_us = clock
        .now_us
        .saturating_add(session.expires_at_us.saturating_sub(clock.unix_us));
    let silent_us = session
        .is_read()
        .then(|| session.last_received_us + silence_us(ping_interval_us));
    // A send may start and stall at any time from now on.
    let stall_us = if session.sending {
        session.last_progress_us
    } else {
        clock.now_us
    } + STALL_TIMEOUT_US;
    [
        Some(session.next_ping_us),
        Some(session.deadline_us),
        Some(stall_us),
        Some(expires_us),
        Some(session.message_deadline_us()),
        silent_us,
    ]
    .into_iter()
    .flatten()
    .min()
    .expect("a deadline is set")
}
