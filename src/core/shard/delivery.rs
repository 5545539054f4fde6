//! Sending: decides what each session receives, and when.
//!
//! Sessions with pending bytes are in a queue. Each turn serves a slice of it, and each session
//! receives everything that is pending for it at that moment, so the busier the shard, the larger
//! the batches. Once the queue is empty, the round is complete, and the windows drop the frames
//! that have been sent to all members. Sessions with a large individual backlog, usually a large
//! state, move to a separate queue.

use std::io;

use crate::core::fanout::room::Feed;
use crate::core::fanout::window::{Spans, skip_sent, spans_bytes};
use crate::core::shard::Shard;
use crate::core::shard::conflation::fall_behind;
use crate::core::shard::contract::{Clock, Output};
use crate::core::shard::session::{Intake, SessionId, State};
use crate::limits::{
    BULK_BYTES_PER_TURN, BULK_SENDS_PER_TURN_MAX, SECOND_US, SEND_BYTES_MAX, SENDS_PER_TURN_MAX,
};
use crate::log::commit::Durability;
use crate::wire::ProtocolVersion;

impl Shard {
    /// Queues a session so that its pending bytes are sent.
    pub(super) fn enqueue(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(id) {
            self.sends.queue(id, session);
        }
    }

    /// Makes visible the ops that a commit allows to be sent, and wakes the sessions that wait for
    /// the log.
    pub(super) fn show_committed(&mut self) {
        if self.log.show() {
            self.sends.wake(&mut self.sessions);
        }
    }

    /// Queues the members of all rooms in which ops became visible since the last turn.
    pub(super) fn announce(&mut self) {
        self.rooms
            .announce(self.log.visible_position(), |slot, visible_end| {
                let (id, session) = self.sessions.at(slot);
                let outbox = &session.outbox;
                // The sender of an op does not receive it, because the sender's cursor is already
                // past it.
                if outbox.cursor() < visible_end || outbox.behind().is_some() {
                    self.sends.queue(id, session);
                }
            });
    }

    /// Serves a slice of the queue, unless a commit is in flight or the shard pauses.
    ///
    /// A slice is bounded so that receives and log completions never wait for a thousand sends. In
    /// `always` mode the commits already separate the slices, so the shard adds no pauses.
    pub(super) fn send_slice(&mut self, clock: Clock) {
        let has_commits = self.config.durability == Durability::Always;
        if self.log.holds_sends() || !has_commits && self.sends.is_pausing(clock.now_us) {
            return;
        }
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some(id) = self.sends.pop() else {
                break;
            };
            if self.is_owed_state(id) {
                self.queue_next_part(id, clock);
            }
            if self.is_owed_bulk(id) {
                self.sends.defer(id);
            } else {
                self.serve(id, clock);
            }
            self.evict_over_budget(clock);
        }
        self.sends.end_slice(clock.now_us);
        self.send_bulk(clock);
        // With no send in flight, no completion will measure the watched ops.
        if self.counters.sends == self.counters.sends_ended {
            self.sends.take_watched_since_us();
        }
    }

    /// Returns whether a session is behind, and none of the state that it is owed is queued.
    fn is_owed_state(&self, id: SessionId) -> bool {
        self.sessions.get(id).is_some_and(|session| {
            let outbox = &session.outbox;
            session.is_open() && outbox.behind().is_some() && !outbox.has_answers()
        })
    }

    /// Returns whether a session has more pending bytes than one send of frames may carry.
    fn is_owed_bulk(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get(id) else {
            return false;
        };
        session.outbox.waiting_bytes() > SEND_BYTES_MAX
            || self
                .owed_presence_bytes(id)
                .is_some_and(|bytes| bytes > SEND_BYTES_MAX)
    }

    /// Serves some of the sessions with a large backlog, but only a few per turn, since each of
    /// them may take as long as a whole slice.
    fn send_bulk(&mut self, clock: Clock) {
        let mut bytes = 0;
        for _ in 0..BULK_SENDS_PER_TURN_MAX {
            let Some(id) = self.sends.pop_bulk() else {
                break;
            };
            bytes += self.serve(id, clock);
            self.evict_over_budget(clock);
            if bytes >= BULK_BYTES_PER_TURN {
                break;
            }
        }
    }

    /// Starts measuring how long it takes to send the ops that became visible in this turn to all
    /// sessions that must now receive them. Only the ops of one commit are measured at a time.
    pub(super) fn watch_sends(&mut self, clock: Clock) {
        let since_us = if self.config.durability == Durability::Always {
            self.sends.take_shown_since_us()
        } else {
            let appended_us = self.log.appended_us();
            appended_us.filter(|appended_us| *appended_us == clock.now_us)
        };
        if let Some(since_us) = since_us {
            self.sends.watch(since_us);
        }
    }

    /// Sends a session its pending bytes, and returns the length of the send.
    ///
    /// A session has at most one send in flight, so whatever becomes pending in the meantime
    /// accumulates for the next send. A session with nothing to send leaves the queue for one of
    /// three reasons: its first answer is not visible yet, and the next commit will queue it again;
    /// it is closing and its last byte has been sent; or it is up to date, and the next op will
    /// queue it.
    fn serve(&mut self, id: SessionId, clock: Clock) -> usize {
        let Some(session) = self.sessions.get_mut(id) else {
            return 0;
        };
        session.queued = false;
        if session.sending || !session.may_send() {
            return 0;
        }
        let mut spans = self.take(id);
        self.append_saved(id, &mut spans);
        self.append_presence(id, &mut spans);
        let bytes = spans_bytes(&spans);
        let visible_position = self.log.visible_position();
        let session = &mut self.sessions[id];
        let outbox = &session.outbox;
        if spans.is_empty() && outbox.behind().is_some() && !outbox.has_answers() {
            // The parts of the state that were queued so far are empty, or none was queued because
            // this turn has encoded enough. The next one follows.
            self.sends.queue(id, session);
        }
        if !spans.is_empty() {
            session.sending = true;
            session.last_progress_us = clock.now_us;
            self.sends.send_started(session);
            self.counters.sends += 1;
            self.outputs.push_back(Output::Send(id, spans));
        } else if session.outbox.has_answers() || session.awaits_settlement(visible_position) {
            self.sends.wait_for_log(id, session);
        } else if session.state() == State::Closing {
            self.finish(id);
        }
        bytes
    }

    /// Queues the next part of the state for a session that is behind, unless this turn has encoded
    /// enough.
    fn queue_next_part(&mut self, id: SessionId, clock: Clock) {
        if !self.encodings.has_room() && !self.has_shared_part(id) {
            return;
        }
        match self.sessions[id].version {
            ProtocolVersion::V1 => self.send_conflated(id, clock),
            ProtocolVersion::V2 => self.send_state_parts(id, clock),
        }
    }

    fn take(&mut self, id: SessionId) -> Spans {
        let visible_position = self.log.visible_position();
        let session = &mut self.sessions[id];
        let room = session.room();
        let version = session.version;
        let view = room.map(|room| self.rooms[room].view(version, visible_position));
        session.outbox.take(view, visible_position, &mut self.pool)
    }

    /// Handles the completion of a send.
    pub(super) fn sent(
        &mut self,
        id: SessionId,
        mut spans: Spans,
        outcome: io::Result<usize>,
        clock: Clock,
    ) {
        self.counters.sends_ended += 1;
        if let Some(since_us) = self.sends.take_watched_since_us() {
            let took_us = clock.now_us.saturating_sub(since_us);
            self.counters.sent.took(took_us);
        }
        let taken = outcome.ok();
        let is_ended = taken.is_none_or(|bytes| bytes == 0 || bytes == spans_bytes(&spans));
        self.end_send(id, is_ended);
        let session = &mut self.sessions[id];
        let Some(bytes) = taken.filter(|bytes| *bytes > 0 && !session.is_aborted()) else {
            self.pool.give_spans(spans);
            return self.abort(id);
        };
        self.counters.bytes_sent += bytes as u64;
        if let Some(journal) = &mut self.connection_log {
            journal.sent(id, bytes);
        }
        let session = &mut self.sessions[id];
        if clock.now_us - session.last_progress_us > SECOND_US {
            // The socket was full and no longer is, so the peer has read something.
            session.last_received_us = clock.now_us;
        }
        if let Some(transfer) = &mut session.transfer {
            let took_us = clock.now_us.saturating_sub(session.last_progress_us);
            transfer.took(took_us, bytes);
        }
        session.last_progress_us = clock.now_us;
        let whole = bytes == spans_bytes(&spans);
        if !whole {
            skip_sent(&mut spans, bytes);
            session.sending = true;
            self.counters.sends += 1;
            self.outputs.push_back(Output::Send(id, spans));
            return;
        }
        self.pool.give_spans(spans);
        let session = &mut self.sessions[id];
        if !session.outbox.has_state() {
            session.transfer = None;
        }
        let is_owed_presence = self.owed_presence_bytes(id).is_some();
        let session = &mut self.sessions[id];
        let mut owed = session.outbox.has_answers()
            || session.outbox.behind().is_some()
            || session.is_owed_saved()
            || is_owed_presence;
        match session.room() {
            Some(room_id) => {
                let feed = self.rooms[room_id].feed(session.version);
                let current = session.outbox.cursor() >= feed.announced_end;
                owed |= !current;
                if current && feed.window.capacity_bytes() > 0 {
                    self.rooms.touch(room_id);
                }
            }
            None => owed = true,
        }
        if owed {
            self.enqueue(id);
        }
        self.unpause(id, clock);
    }

    /// Records the completion of a send, and frees its memory unless its remaining bytes are sent
    /// next.
    fn end_send(&mut self, id: SessionId, is_ended: bool) {
        let session = self
            .sessions
            .get_mut(id)
            .expect("the session exists until its send completes");
        session.sending = false;
        if is_ended || session.is_aborted() {
            let outbox = &mut self.sessions[id].outbox;
            outbox.sent(&mut self.pool);
            self.update_memory(id);
        }
    }

    /// Resumes reading from a paused session once its outbox has drained.
    fn unpause(&mut self, id: SessionId, clock: Clock) {
        let most_bytes = self.answer_bytes_max();
        let session = &mut self.sessions[id];
        if session.intake == Intake::Paused && session.outbox.answer_bytes() <= most_bytes / 2 {
            session.intake = Intake::Unread;
            // The server does not read from a paused session, so its silence so far does not count.
            session.last_received_us = clock.now_us;
            self.reads.queue(id, Intake::Unread);
        }
    }

    /// Drops the frames that have been sent to all members if a round of sends is complete. Until
    /// then, drops frames only from windows that exceed their limit.
    pub(super) fn trim_windows(&mut self) {
        let is_round_done = self.sends.is_round_done();
        let visible_position = self.log.visible_position();
        let window_bytes_max = self.config.outbox_bytes_max;
        self.rooms.retain_touched(|room| {
            let mut has_hidden_frames = false;
            for Feed {
                window,
                members,
                behind,
                ..
            } in room.feeds_mut()
            {
                let visible_end = window.visible_end(visible_position);
                has_hidden_frames |= visible_end < window.end();
                if !is_round_done && window.capacity_bytes() <= window_bytes_max {
                    continue;
                }
                // Members that are too far behind for the window's limit fall out of it. The window
                // then begins at the slowest cursor of the others.
                let overflow_end = window.overflow_end(window_bytes_max, visible_end);
                let mut start = window.end();
                for slot in members.iter() {
                    let (id, session) = self.sessions.at(*slot);
                    if session.outbox.behind().is_some() {
                        continue;
                    }
                    if session.outbox.cursor() < overflow_end {
                        fall_behind(id.slot, session, window, behind, &mut self.pool);
                        self.counters.conflations += 1;
                        self.sends.queue(id, session);
                    } else {
                        start = start.min(session.outbox.cursor());
                    }
                }
                // Hidden frames stay, even if all members have passed them: otherwise the window
                // would not know the seq up to which its frames are visible.
                let start = start.min(visible_end);
                window.drop_before(start.max(overflow_end), self.pool.windows());
            }
            // Ops that are not visible yet are sent later, and the window is trimmed again then.
            !is_round_done || has_hidden_frames
        });
    }

    /// Arms the receives that were queued in this turn.
    pub(super) fn arm_receives(&mut self) {
        for id in self.reads.drain_receives() {
            let Some(session) = self.sessions.get_mut(id) else {
                continue;
            };
            if !session.receiving && session.may_receive() {
                session.receiving = true;
                self.outputs.push_back(Output::Receive(id));
            }
        }
    }
}
