//! Shedding of connections when the connection limit is reached.
//!
//! A connection counts from the moment it is accepted, before its purpose is known. A client that
//! opens connections and sends nothing could therefore keep out all others, including health
//! checks. Instead of refusing a new connection, the shard closes the oldest of the connections
//! that have the least to lose:
//!
//! - A connection that has not sent a complete request head. If its socket accepts an answer
//!   immediately, the client receives a 408, which says that the server was not prepared to wait
//!   any longer (RFC 9110 section 15.5.9). Then the connection is closed.
//! - If there is none, a connection that has received its complete answer and only has to close its
//!   own side.
//!
//! A client with a token is never shed, whether it is a member of a workspace, its request is
//! waiting, or its answer is being sent. A connection to `--admin-port` is shed only to make room
//! for another connection to that port, and the same applies to `--port`.
//!
//! The time limit for a head is not shortened while there is room for more connections, so a slow
//! client that does not keep others out may use its full time.

use crate::core::shard::Shard;
use crate::core::shard::admission::SheddingChoice;
use crate::core::shard::contract::{Clock, ListenerKind};
use crate::core::shard::session::SessionId;

/// A connection that was shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    /// The session of the connection, which is being aborted.
    pub id: SessionId,
    /// Whether the client had not sent a complete head, and therefore has not received an answer.
    pub is_silent: bool,
}

impl Shard {
    /// Returns the number of connections to `listener` that may be shed.
    #[must_use]
    pub fn sheddable_count(&self, listener: ListenerKind) -> usize {
        self.admission.sheddable_count(listener)
    }

    /// Sheds a connection to `listener`. Returns `None` if none may be shed.
    pub fn shed(&mut self, listener: ListenerKind, clock: Clock) -> Option<Shed> {
        self.woke(clock);
        let SheddingChoice { id, is_silent } = self.admission.take_to_shed(listener)?;
        self.counters.shed += 1;
        if is_silent {
            self.counters.responses.answered(408);
        }
        self.abort(id);
        Some(Shed { id, is_silent })
    }
}
