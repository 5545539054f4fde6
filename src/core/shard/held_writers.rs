//! Clients that wait for compaction: each workspace that writes much, while the log is long.
//!
//! Such a client's bytes stay unread from its next message on. What it is sent, its control frames before that message and all
//! other clients go on as ever.

use crate::core::contract::Clock;
use crate::core::shard::Shard;
use crate::core::shard::session::SessionId;
use crate::limits::HELD_RETRY_US;
use crate::wire::frame;

impl Shard {
    /// Finds out who may write in this turn.
    pub(super) fn look_at_log(&mut self, clock: Clock) {
        let written_bytes = self.commit.segment_bytes_written();
        let open_bytes = written_bytes.min(self.segment_bytes());
        self.log_space
            .update(open_bytes, self.live_bytes, clock.now_us);
        if let Some(since_us) = self.held_since_us.take() {
            self.counters.held_us += clock.now_us.saturating_sub(since_us);
        }
    }

    /// Whether the next frame is part of a message, and the session's workspace has to wait with those.
    pub(super) fn is_held(&mut self, id: SessionId, bytes: &[u8], clock: Clock) -> bool {
        frame::is_data(bytes) && !self.may_write(id, clock)
    }

    fn may_write(&mut self, id: SessionId, clock: Clock) -> bool {
        let room_slot = self.sessions[id].room();
        let room = &mut self.rooms[room_slot.expect("only an open session writes") as usize];
        self.log_space.may_write(&mut room.allowance, clock.now_us)
    }

    /// Reads on for those who waited and need not any more. Who still waits keeps its place before those who
    /// have had some of what there was.
    pub(super) fn read_held(&mut self, clock: Clock) {
        if self
            .held_due_us()
            .is_some_and(|due_us| due_us <= clock.now_us)
        {
            self.held_tried_us = clock.now_us;
            let mut waiting = std::mem::take(&mut self.held_queue);
            for _ in 0..waiting.len() {
                let id = waiting.pop_front().expect("it was counted");
                if !self.sessions.is_open(id) {
                    continue;
                }
                if self.may_read_on() && self.may_write(id, clock) {
                    self.read_bytes(id, &mut [], clock);
                    self.weigh(id);
                    self.keep_budget(clock);
                } else {
                    waiting.push_back(id);
                }
            }
            waiting.append(&mut self.held_queue);
            self.held_queue = waiting;
        }
        self.held_since_us = (!self.held_queue.is_empty()).then_some(clock.now_us);
    }

    /// When those who wait are tried again. None: only a new measurement of the log can help them.
    pub(super) fn held_due_us(&self) -> Option<u64> {
        if self.held_queue.is_empty() || self.log_space.is_stopped() {
            None
        } else if self.log_space.is_free() {
            Some(0)
        } else {
            Some(self.held_tried_us + HELD_RETRY_US)
        }
    }

    /// The open segment of a log that has failed ends.
    pub(super) fn close_segment(&mut self) {
        let (index, bytes) = (
            self.commit.segment_index(),
            self.commit.segment_bytes_written(),
        );
        self.log_space.closed(index, bytes);
    }
}
