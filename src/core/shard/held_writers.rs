//! Clients that must wait for compaction because their workspaces write a lot while the log is too
//! long.
//!
//! From its next message on, such a client's bytes are left unread. The ops sent to it, the control
//! frames before that message, and all other clients are not affected.

use crate::core::shard::Shard;
use crate::core::shard::contract::Clock;
use crate::core::shard::session::SessionId;
use crate::wire::frame;

impl Shard {
    /// Measures the log, which determines which workspaces may write in this turn.
    pub(super) fn measure_log(&mut self, clock: Clock) {
        self.log.measure(clock.now_us);
        self.counters.held_us += self.reads.take_held_us(clock.now_us);
    }

    /// Returns whether the next frame is part of a message and the session's workspace must wait
    /// before writing.
    pub(super) fn is_held(&mut self, id: SessionId, bytes: &[u8], clock: Clock) -> bool {
        frame::is_data(bytes) && !self.may_write(id, clock)
    }

    fn may_write(&mut self, id: SessionId, clock: Clock) -> bool {
        let room_id = self.sessions[id].room();
        let room = &mut self.rooms[room_id.expect("only an open session writes ops")];
        self.log.may_write(&mut room.allowance, clock.now_us)
    }

    /// Resumes reading from clients that no longer have to wait. The others keep their place in the
    /// queue, ahead of those that have just written.
    pub(super) fn read_held(&mut self, clock: Clock) {
        if self
            .held_due_us()
            .is_some_and(|due_us| due_us <= clock.now_us)
        {
            for _ in 0..self.reads.begin_tries(clock.now_us) {
                let id = self.reads.pop_held();
                if !self.sessions.is_open(id) {
                    continue;
                }
                if !self.log.is_full() && self.may_write(id, clock) {
                    self.read_bytes(id, &mut [], clock);
                    self.update_memory(id);
                    self.evict_over_budget(clock);
                } else {
                    self.reads.hold_on(id);
                }
            }
            self.reads.end_tries();
        }
        self.reads.end_turn(clock.now_us);
    }

    /// Returns the time at which the waiting clients are retried, or `None` if no clients wait or
    /// only a new measurement of the log can release them.
    pub(super) fn held_due_us(&self) -> Option<u64> {
        let due_us = self.reads.held_due_us(self.log.is_free());
        due_us.filter(|_| !self.log.is_stopped())
    }
}
