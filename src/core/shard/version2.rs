//! The state that only a version 2 session has.

use std::rc::Rc;

use crate::core::shard::settlement::Settlement;
use crate::limits::USER_ID_BYTES_MAX;
use crate::seq::Seq;

/// Returns the user of a client whose token has this `sub`: `None` if it is too long. Each peer of
/// a room is sent it, and a session holds it.
pub(super) fn user_of(subject: Option<&str>) -> Option<&str> {
    subject.filter(|subject| subject.len() <= USER_ID_BYTES_MAX)
}

/// The state of a session that speaks version 2.
#[derive(Debug, Default)]
pub(crate) struct Version2 {
    /// The id of its connection, as clients know it.
    pub connection: u64,
    /// The `sub` of its token, if it is not too long.
    pub user: Option<Rc<str>>,
    /// Tracks which of its messages are settled.
    pub(super) settlement: Settlement,
    /// Whether it is a peer of its room.
    pub is_peer: bool,
    /// The seq at the join while the session is sent a full state, which lists no tombstones up to
    /// it. `NONE` if the session holds a state, and is sent changes.
    pub cutoff: Seq,
}
