//! Shedding of connections at the limit of their number.
//!
//! A connection counts from the accept on, before its purpose is known. A client that opens
//! connections and sends nothing could therefore keep all others out, including health checks.
//! Instead of refusing the new connection, the shard ends the oldest one that has the least to
//! lose:
//!
//! - One that has not sent a complete request head. It is answered with 408, which says that the
//!   server was not prepared to wait any longer (RFC 9110 section 15.5.9), if its socket accepts
//!   that at once, and is closed.
//! - If there is none, one that has its complete answer and only has to close its side.
//!
//! A client with a token is never shed: neither a member of a workspace, nor a client whose request
//! waits or whose answer is being sent. A connection to `--admin-port` is shed only for another one
//! there, and the same is true of `--port`.
//!
//! The time for a head is not cut while there is room for more connections: a slow client that
//! keeps nobody out may use all of it.

use crate::core::shard::Shard;
use crate::core::shard::admission::SheddingChoice;
use crate::core::shard::contract::{Clock, ListenerKind};
use crate::core::shard::session::SessionId;

/// A connection that was shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    /// Its session, which is being aborted.
    pub id: SessionId,
    /// Whether it had not sent a complete head, and has no answer yet.
    pub is_silent: bool,
}

impl Shard {
    /// Returns whether a connection to this listener may be shed.
    #[must_use]
    pub fn may_shed(&self, listener: ListenerKind) -> bool {
        self.admission.may_shed(listener)
    }

    /// Sheds a connection to this listener. Returns `None` if none may be shed.
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
