//! Requests that wait for the state of a shard, and the reasons why other requests are answered
//! with 500 or 503.
//!
//! The server does not refuse a request that it may be able to serve a moment later. A request that
//! needs a state that is still being read, at startup or after a failure, waits in its session
//! until the state is available, but no longer than a handshake may take, counted from when the
//! connection was accepted ([`HEAD_TIMEOUT_US`](crate::limits::HEAD_TIMEOUT_US)). If the connection
//! ends, its request is dropped. At most one request waits per session, and a turn answers at most
//! [`WAITING_PER_TURN_MAX`] of them, so that thousands of waiting requests do not delay the turn.
//!
//! The reasons and their answers:
//!
//! - The log is being read at startup: the request waits, and is answered with 503 if it waits too
//!   long. Reading ends without intervention, usually soon.
//! - Keys of the workspace have expired and are not deleted yet, because there are many: the
//!   request waits ([`expiry`](crate::core::shard::expiry)), and is answered with 503 if it waits
//!   too long.
//! - The state is being read after a failure: the request waits for the same reason, and is
//!   answered with 500 if it waits too long. If the disk fails again, the answer is 500
//!   immediately.
//! - The log has failed and is not being retried yet: 500, since nothing indicates that the next
//!   attempt will succeed.
//! - The server is stopping: 503 immediately, since this process will not serve the request.
//! - The limit on connections or members is reached: 503 immediately, since it is unknown when a
//!   connection will end. Any silent connection has already been shed.
//! - Too many handshakes per second: 503 immediately. The limit exists to shed load, and a waiting
//!   request is load.
//! - Too many encoded states are being sent: 503 immediately. They have a budget with its own rules
//!   ([`encoding`](crate::core::shard::encoding)).
//! - The answer to an HTTP read contains an op that was lost with the log, or a request caused a
//!   panic: 500 immediately, since the queued answer is no longer correct.
//! - `/readyz` on a server that is not ready: 503 immediately, since reporting that is the purpose
//!   of the request.

use crate::core::shard::contract::{Clock, Handoff, Intent};
use crate::core::shard::session::{SessionId, State};
use crate::core::shard::shard_log::Health;
use crate::core::shard::{Drain, Shard};
use crate::limits::{HEAD_BYTES_MAX, RETRY_AFTER_S, WAITING_PER_TURN_MAX};
use crate::wire::upgrade::Answer;

impl Shard {
    /// Returns whether the state that requests need is still being read.
    pub(super) fn is_reading_state(&self) -> bool {
        let is_reading = matches!(self.log.health(), Health::Recovering | Health::Rebuilding);
        is_reading && self.drain == Drain::No
    }

    /// Returns whether there are waiting requests that can be answered now.
    pub(super) fn may_answer_waiting(&self) -> bool {
        self.admission.waiting_count() > 0 && !self.is_reading_state()
    }

    /// Makes a request wait until the state is available.
    pub(super) fn let_wait(&mut self, id: SessionId, mut handoff: Handoff) {
        self.begin_waiting(id, &mut handoff);
        self.admission.wait(id, &self.sessions[id], handoff);
        // Arm a receive so that the end of the connection is noticed while the request waits.
        self.reads.receive(id);
    }

    /// Moves a session to the state in which its request waits. The bytes that follow the request
    /// stay with the session meanwhile, so that they count towards the budget.
    pub(super) fn begin_waiting(&mut self, id: SessionId, handoff: &mut Handoff) {
        self.sessions.enter(id, State::Waiting);
        self.sessions[id].unparsed = std::mem::take(&mut handoff.unparsed);
        self.update_memory(id);
    }

    /// Answers some of the waiting requests, in order of arrival.
    pub(super) fn answer_waiting(&mut self, clock: Clock) {
        for _ in 0..WAITING_PER_TURN_MAX {
            if !self.may_answer_waiting() {
                break;
            }
            let Some((id, mut handoff)) = self.admission.pop_waiting() else {
                break;
            };
            handoff.unparsed = std::mem::take(&mut self.sessions[id].unparsed);
            self.guard(Some(id), clock, |shard| shard.resume(id, handoff, clock));
        }
    }

    /// Answers a request that has waited for as long as it may.
    pub(super) fn give_up_waiting(&mut self, id: SessionId, clock: Clock) {
        let handoff = self.admission.take_waiting(&self.sessions[id]);
        let mut handoff = handoff.expect("a session waits with its request");
        handoff.unparsed = std::mem::take(&mut self.sessions[id].unparsed);
        let refusal = self.refusal().or_else(|| {
            let why = "expired keys of the workspace are still being deleted, try again later";
            let is_expiring = self.awaits_expiry(&handoff.workspace, clock);
            is_expiring.then(|| Answer::unavailable(why, RETRY_AFTER_S))
        });
        self.fulfil(id, handoff, refusal, clock);
    }

    /// Stores the bytes that a client sends after a waiting request. If `bytes` is empty, the
    /// client has closed its sending side.
    pub(super) fn received_waiting(&mut self, id: SessionId, bytes: &[u8]) {
        let session = &mut self.sessions[id];
        if !bytes.is_empty() {
            session.unparsed.extend_from_slice(bytes);
            if session.unparsed.len() < HEAD_BYTES_MAX {
                self.reads.receive(id);
            }
            return;
        }
        let handoff = self.admission.waiting(session);
        let handoff = handoff.expect("a waiting session has a request");
        if matches!(handoff.intent, Intent::Join(_)) {
            // A client that reads over HTTP may close its sending side after the request.
            self.abort(id);
        }
    }
}
