//! Handling of failures: a log that cannot be written, or a panic. The shard closes its members,
//! discards everything that is not on disk, and starts over from what is on disk, without
//! restarting the server.
//!
//! In `always` mode, none of the discarded ops have been sent to other clients, and their senders
//! receive error 500.

use std::io;

use std::rc::Rc;

use crate::core::shard::connection_log::Party;
use crate::core::shard::contract::{Clock, Output, RestoredState};
use crate::core::shard::session::{SessionId, State};
use crate::core::shard::{Drain, Shard};
use crate::log::position::LogPosition;
use crate::wire::frame;
use crate::wire::message;
use crate::wire::message::v2::{PresenceFrame, StateChunk};
use crate::wire::upgrade::Answer;

/// RFC 6455 section 7.4.1: "an unexpected condition that prevented it from fulfilling the request".
const INTERNAL_ERROR: u16 = 1011;
const INTERNAL_SERVER_ERROR: &str = "Internal Server Error";

impl Shard {
    /// Stops serving. Everything that is not on disk is discarded, and the state is rebuilt after a
    /// delay that grows with each failure. The senders of lost ops and the culprit (the session
    /// whose input caused a panic) receive error 500; all members are closed with 1011.
    pub(super) fn fail(&mut self, culprit: Option<SessionId>, clock: Clock) {
        let was_serving = self.log.is_serving();
        let mut losers = self.log.reset(clock.now_us);
        losers.extend(culprit);
        losers.sort_unstable();
        self.counters.refused_log_failed += losers.len() as u64;
        self.reset();
        for slot in self.sessions.slots() {
            if let Some(id) = self.sessions.id_at(slot) {
                let is_loser = losers.binary_search(&id).is_ok();
                self.end_after_failure(id, is_loser, culprit == Some(id), clock);
            }
        }
        if was_serving {
            self.counters.failures += 1;
            self.outputs.push_back(Output::Ready(false));
        }
    }

    /// Resets all parts except the log. A panic may have interrupted a change to any of them, so
    /// only the sessions themselves are trusted. All counts and queues are made consistent with
    /// them again. The rooms are read back from the log.
    fn reset(&mut self) {
        self.rooms.reset();
        self.expiry.reset();
        self.sessions.reset();
        self.sends.reset(&mut self.sessions);
        self.reads.reset();
        self.admission.reset(&self.sessions);
        self.snapshots.reset();
        self.state_chunks.reset();
        self.state_chunk = StateChunk::new();
        self.pool.reset();
        self.budget.reset();
        self.kept_presence = None;
        self.presence_queue.reset();
        self.presence_bytes = 0;
        self.presence_frame = PresenceFrame::new();
        self.scratch = Rc::default();
        for slot in self.sessions.slots() {
            if let Some(id) = self.sessions.id_at(slot) {
                let session = &mut self.sessions[id];
                session.outbox.count(&mut self.pool);
                if !session.sending {
                    session.outbox.sent(&mut self.pool);
                }
                self.update_memory(id);
            }
        }
    }

    /// Closes a session if the failure requires it; otherwise, lets it continue.
    fn end_after_failure(&mut self, id: SessionId, is_loser: bool, is_culprit: bool, clock: Clock) {
        let session = &self.sessions[id];
        match session.state() {
            State::Open { .. } => self.dismiss(id, is_loser, clock),
            State::Handshake | State::Waiting if is_culprit => {
                self.answer(id, &Answer::internal_server_error(), clock);
            }
            State::Closing if is_culprit => self.abort(id),
            // The answer contains an op that was lost.
            State::Closing
                if session
                    .outbox
                    .is_waiting_for_log(self.log.visible_position()) =>
            {
                let answer = Answer::internal_server_error();
                self.note_answer(id, &answer);
                self.counters.responses.answered(answer.status());
                let chunk = self.pool.fill(512, |out| answer.encode(clock.unix_us, out));
                self.queue_last(id, chunk, LogPosition::NONE, clock);
            }
            // A panic may have occurred after one timer expired and before the next was set.
            State::Handshake | State::Waiting => self.reschedule(id, clock),
            State::Closing => {
                self.reschedule(id, clock);
                // It may also have occurred after the session was dequeued and before the send.
                self.enqueue(id);
            }
        }
    }

    fn dismiss(&mut self, id: SessionId, is_loser: bool, clock: Clock) {
        let last = self.pool.fill(256, |out| {
            if is_loser {
                message::put_error(out, 500, INTERNAL_SERVER_ERROR);
            }
            frame::put_close(out, INTERNAL_ERROR, INTERNAL_SERVER_ERROR);
        });
        self.note_ending(id, INTERNAL_ERROR, INTERNAL_SERVER_ERROR, Party::Server);
        self.counters.closes.closed(INTERNAL_ERROR);
        self.queue_last(id, last, LogPosition::NONE, clock);
    }

    /// Reopens a failed log once the retry is due and no operation on the old one is in flight.
    pub(super) fn retry_log(&mut self, clock: Clock) {
        let due_us = self.log.retry_due_us();
        if due_us.is_some_and(|due_us| due_us <= clock.now_us) && self.drain == Drain::No {
            self.outputs.push_back(Output::Rebuild(self.log.rebuild()));
        }
    }

    /// Handles the outcome of a rebuild, or of the initial reading of the log.
    pub(super) fn rebuilt(&mut self, outcome: io::Result<RestoredState>, clock: Clock) {
        let is_rebuild = self.log.end_rebuild();
        let Ok(state) = outcome else {
            return self.log.rebuild_failed(clock.now_us);
        };
        self.open(state, clock);
        if is_rebuild {
            self.outputs.push_back(Output::Ready(true));
        }
    }
}
