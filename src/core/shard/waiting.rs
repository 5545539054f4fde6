//! Requests that wait for the state of a shard, and what else is answered with 500 or 503.
//!
//! The server does not refuse what it could serve a moment later. So a request that needs a state
//! which is just being read, at a start or after a failure, waits in its session until that is
//! there: as long as a handshake may take, counted from the accept
//! ([`HEAD_TIMEOUT_US`](crate::limits::HEAD_TIMEOUT_US)). A connection that ends in the meantime
//! takes its request along. There are no more of them than sessions, and a turn answers
//! [`WAITING_PER_TURN_MAX`] at most, so that thousands do not hold it up.
//!
//! | what is in the way | answer | because |
//! | --- | --- | --- |
//! | the log is being read at the start | waits, then 503 | it ends by itself, mostly soon |
//! | the state is being read back after a failure | waits, then 500 | the same |
//! | the log has failed, and is not tried yet | 500 | it may fail again the next time |
//! | the server is stopping | 503 at once | the request will not be served here |
//! | too many connections, or members | 503 at once | nothing says when one will end |
//! | too many handshakes in a second | 503 at once | the limit sheds load, and waiting is load |
//! | too many states in flight to others | 503 at once | their budget has a rule of its own |
//! | a read whose op was lost, a panic over a request | 500 at once | its answer is wrong by now |
//! | `/readyz` of a server that is not ready | 503 at once | that is its answer |

use crate::core::contract::{Clock, Handoff, Intent};
use crate::core::shard::session::{SessionId, State};
use crate::core::shard::shard_log::Health;
use crate::core::shard::{Drain, Shard};
use crate::limits::{HEAD_BYTES_MAX, WAITING_PER_TURN_MAX};

impl Shard {
    /// Returns whether the state that requests need is being read.
    pub(super) fn is_reading_state(&self) -> bool {
        let is_reading = matches!(self.log.health(), Health::Recovering | Health::Rebuilding);
        is_reading && self.drain == Drain::No
    }

    /// Returns whether requests wait that can be answered now.
    pub(super) fn may_answer_waiting(&self) -> bool {
        self.admission.waiting_count() > 0 && !self.is_reading_state()
    }

    /// Lets a request wait until the state is there.
    pub(super) fn let_wait(&mut self, id: SessionId, handoff: Handoff) {
        self.sessions.enter(id, State::Waiting);
        self.admission.wait(id, &self.sessions[id], handoff);
        // So that the end of the connection is noticed.
        self.reads.receive(id);
    }

    /// Answers some of those that wait, in the order in which they came.
    pub(super) fn answer_waiting(&mut self, clock: Clock) {
        for _ in 0..WAITING_PER_TURN_MAX {
            if !self.may_answer_waiting() {
                break;
            }
            let Some((id, handoff)) = self.admission.pop_waiting() else {
                break;
            };
            self.guard(Some(id), clock, |shard| shard.resume(id, handoff, clock));
        }
    }

    /// Answers a request that has waited for as long as it may.
    pub(super) fn give_up_waiting(&mut self, id: SessionId, clock: Clock) {
        let handoff = self.admission.take_waiting(&self.sessions[id]);
        let handoff = handoff.expect("a session waits with its request");
        let refusal = self.refusal();
        self.fulfil(id, handoff, refusal, clock);
    }

    /// Keeps what a client sends after a request that waits. Empty: it has closed its side.
    pub(super) fn received_waiting(&mut self, id: SessionId, bytes: &[u8]) {
        let handoff = self.admission.waiting(&self.sessions[id]);
        let handoff = handoff.expect("a session waits with its request");
        if !bytes.is_empty() {
            handoff.unparsed.extend_from_slice(bytes);
            if handoff.unparsed.len() < HEAD_BYTES_MAX {
                self.reads.receive(id);
            }
        } else if matches!(handoff.intent, Intent::Join { .. }) {
            // A client that only reads may have sent all that it has to send.
            self.abort(id);
        }
    }
}
