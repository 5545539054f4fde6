//! The floor of a workspace: what remains of the tombstones that it has dropped.

use crate::core::state::segment_usage::Mark;
use crate::seq::Seq;

/// The bound that dropped tombstones leave behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// The greatest timestamp of a dropped tombstone, 0 if none was dropped. An op on a key without
    /// an entry loses unless its timestamp is greater.
    pub timestamp: u64,
    /// The greatest seq of a dropped tombstone. A client that has not seen it cannot be sent the
    /// changes since then, because they include tombstones that no longer exist.
    pub dropped_seq: Seq,
    /// The mark of the segment that holds the floor's record.
    pub mark: Mark,
}

impl Floor {
    /// Returns whether an op with this timestamp loses if its key has no entry.
    #[must_use]
    pub fn covers(&self, timestamp: u64) -> bool {
        self.dropped_seq > Seq::NONE && timestamp <= self.timestamp
    }
}

/// The result of dropping tombstones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The number of tombstones.
    pub count: u64,
    /// The mark of the previous floor's record, which the new record supersedes.
    pub replaced: Mark,
}
