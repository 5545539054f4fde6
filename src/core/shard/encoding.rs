//! States for the sessions that join or read, and the encodings in progress, a step in each turn.

use crate::core::fanout::room::RoomId;
use crate::core::shard::Shard;
use crate::core::shard::contract::Clock;
use crate::core::snapshot::shared_snapshot::{Snapshot, SnapshotKind};
use crate::limits::RETRY_AFTER_S;
use crate::wire::upgrade::Answer;

impl Shard {
    /// Returns the state of a room for a session that joins or reads. A large state is still being
    /// encoded.
    ///
    /// # Errors
    /// 503 if the budget has no room for it, even after slow receivers were given up.
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
            let why = "the server has as much on its way as it may";
            Answer::unavailable(why, RETRY_AFTER_S)
        })
    }

    /// Goes on with the states that are being encoded.
    pub(super) fn encode_states(&mut self) {
        let workspace_of = |id: RoomId| &self.rooms[id].workspace;
        if self.snapshots.step(workspace_of) {
            self.sends.wake(&mut self.sessions);
        }
    }
}
