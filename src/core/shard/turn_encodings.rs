//! The limit on what a turn encodes for clients that receive a state or have fallen behind.

use crate::limits::{ENCODED_BYTES_PER_TURN, EXAMINED_ENTRY_BYTES};

/// The bytes that the current turn has encoded for clients one by one. Without a limit, the parts
/// for many clients would together make a long turn, however short each of them is.
#[derive(Debug, Default)]
pub(super) struct TurnEncodings {
    bytes: usize,
}

impl TurnEncodings {
    /// Returns whether more may be encoded in this turn.
    pub fn has_room(&self) -> bool {
        self.bytes < ENCODED_BYTES_PER_TURN
    }

    /// Returns whether more may be encoded in this turn for clients that join. Half of the limit is
    /// left to those that have joined already, so that they never wait for newcomers.
    pub fn has_room_for_join(&self) -> bool {
        self.bytes < ENCODED_BYTES_PER_TURN / 2
    }

    /// Counts `bytes`, for which `entries_count` entries were examined.
    pub fn spend(&mut self, bytes: usize, entries_count: usize) {
        self.bytes += bytes + entries_count * EXAMINED_ENTRY_BYTES;
    }
}
