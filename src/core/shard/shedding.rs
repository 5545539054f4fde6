//! Connections that are shed when there are as many as there may be.
//!
//! A connection counts from the accept on, before it is known what it is for. So a client that
//! opens connections and sends nothing could keep all others out, health checks too. Instead of
//! refusing the new one, the shard ends the oldest connection that has the least to lose:
//!
//! 1. one that has not sent a whole request head: it is answered with 408, which says that the
//!    server was not prepared to wait any longer (RFC 9110 section 15.5.9), as far as its socket
//!    takes that at once, and is closed;
//! 2. if there is none, one that has its whole answer, and only has to close its side.
//!
//! A client with a token is never shed: neither a member of a workspace, nor one whose request
//! waits, nor one whose answer is on its way. A connection to `--admin-port` is shed for another
//! one there only, and the same for `--port`.
//!
//! The time for a head is not cut while there is room for more connections: a slow client that is
//! in nobody's way may have all of it.

use crate::core::contract::{Clock, ListenerKind};
use crate::core::shard::Shard;
use crate::core::shard::admission::SheddingChoice;
use crate::core::shard::session::SessionId;

/// A connection that was shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    /// Its session, which is being aborted.
    pub id: SessionId,
    /// It had not sent a whole head, and has no answer yet.
    pub is_silent: bool,
}

impl Shard {
    /// Returns whether a connection that came in by this listener may be shed.
    #[must_use]
    pub fn may_shed(&self, listener: ListenerKind) -> bool {
        self.admission.may_shed(listener)
    }

    /// Sheds a connection, of those that came in by this listener.
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
