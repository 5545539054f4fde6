//! States for sessions that join or read, and encodings in progress, which advance by one step per
//! turn.

use crate::core::fanout::room::RoomId;
use crate::core::shard::Shard;
use crate::core::shard::contract::Clock;
use crate::core::snapshot::shared_snapshot::{Snapshot, SnapshotKind};
use crate::limits::RETRY_AFTER_S;
use crate::wire::upgrade::Answer;

impl Shard {
    /// Returns the state of a room for a session that joins or reads. A large state may still be
    /// being encoded.
    ///
    /// # Errors
    /// Returns a 503 if the budget has no room for the state, even after states of slow receivers
    /// were evicted.
    pub(super) fn snapshot(
        &mut self,
        room_id: RoomId,
        kind: SnapshotKind,
        clock: Clock,
    ) -> Result<Snapshot, Answer> {
        let room = &self.rooms[room_id];
        let shortage = match self.snapshots.request(room_id, room, kind) {
            Ok(snapshot) => return Ok(snapshot),
            Err(shortage) => shortage,
        };
        self.evict_slow_states(shortage, clock);
        let room = &self.rooms[room_id];
        let outcome = self.snapshots.request_again(room_id, room, kind);
        outcome.map_err(|_| {
            self.counters.refused_snapshot_bytes += 1;
            let why = "the memory reserved for sending states is used up, try again later";
            Answer::unavailable(why, RETRY_AFTER_S)
        })
    }

    /// Encodes the next part of the states that are being encoded.
    pub(super) fn encode_states(&mut self) {
        let workspace_of = |id: RoomId| &self.rooms[id].workspace;
        if self.snapshots.step(workspace_of) {
            self.sends.wake(&mut self.sessions);
        }
    }
}
