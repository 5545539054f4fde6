//! Connections that give way when there are as many as there may be.
//!
//! A place is taken with the accept, before anybody knows what the connection is for. So whoever opens connections and says nothing
//! would keep everybody else out, health checks too. Instead of the new one, the oldest goes that has the least to lose:
//!
//! 1. one that has not sent a whole request head: it is answered with 408, which says that the server was not prepared to wait any
//!    longer (RFC 9110 section 15.5.9), as far as its socket takes that at once, and is closed;
//! 2. if there is none, one that has its whole answer, and only has to close its side.
//!
//! A client with a token never gives way: neither a member of a workspace, nor one whose request waits, nor one whose answer is on
//! its way. A connection to `--admin-port` gives way to another one there alone, and the same for `--port`.
//!
//! The time for a head is not cut while places are few: a slow client that is in nobody's way may take all of it.

use crate::core::contract::{Clock, ListenerKind};
use crate::core::shard::Shard;
use crate::core::shard::session::{Session, SessionId, State};
use crate::core::shard::shedding_queue::SheddingQueue;

/// A connection that has given way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    /// Its session, which is being aborted.
    pub id: SessionId,
    /// It had not sent a whole head, and was sent nothing.
    pub is_silent: bool,
}

impl Shard {
    /// A connection has just come.
    pub(super) fn is_silent(&mut self, id: SessionId) {
        let Session {
            listener: door,
            number,
            ..
        } = self.sessions[id];
        self.yielding_of(door).silent.insert(number, id);
    }

    /// A connection has its whole answer.
    pub(super) fn is_answered(&mut self, id: SessionId) {
        let Session {
            listener: door,
            number,
            ..
        } = self.sessions[id];
        self.yielding_of(door).answered.insert(number, id);
    }

    /// A connection has sent its head, or is over.
    pub(super) fn keeps_its_place(&mut self, id: SessionId) {
        let Session {
            listener: door,
            number,
            ..
        } = self.sessions[id];
        self.yielding_of(door).remove(number);
    }

    /// Whether a connection that came in by this door would give way.
    #[must_use]
    pub fn may_give_way(&self, door: ListenerKind) -> bool {
        let yielding = &self.yielding[door as usize];
        !yielding.silent.is_empty() || !yielding.answered.is_empty()
    }

    /// Ends the connection that is the first to give way, of those that came in by this door.
    pub fn give_way(&mut self, door: ListenerKind, clock: Clock) -> Option<Shed> {
        self.woke(clock);
        loop {
            let yielding = self.yielding_of(door);
            let (id, is_silent) = match yielding.silent.pop_first() {
                Some((_, id)) => (id, true),
                None => (yielding.answered.pop_first()?.1, false),
            };
            let expected = if is_silent {
                State::Handshake
            } else {
                State::Closing
            };
            // A panic may have come between, and left one that is over.
            let session = self.sessions.get_mut(id);
            if session.is_some_and(|session| session.state() == expected && !session.is_gone()) {
                self.counters.gave_way += 1;
                if is_silent {
                    self.counters.responses.answered(408);
                }
                self.abort(id);
                return Some(Shed { id, is_silent });
            }
        }
    }

    fn yielding_of(&mut self, door: ListenerKind) -> &mut SheddingQueue {
        &mut self.yielding[door as usize]
    }
}
