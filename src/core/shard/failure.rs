//! A log that cannot be written, and a panic: the shard tells its clients, forgets all that is not
//! on disk, and starts over from what is, without a restart.
//!
//! In `always` mode nobody was shown an op that is forgotten here; those who sent them get a 500.

use std::io;

use crate::core::contract::{Clock, Output};
use crate::core::shard::connection_log::Party;
use crate::core::shard::session::{SessionId, State};
use crate::core::shard::{Drain, Shard};
use crate::core::state::workspace::Workspace;
use crate::log::commit::OpenSegment;
use crate::log::position::LogPosition;
use crate::wire::frame;
use crate::wire::message;
use crate::wire::upgrade::Answer;

/// RFC 6455 section 7.4.1: "an unexpected condition that prevented it from fulfilling the request".
const INTERNAL_ERROR: u16 = 1011;
const INTERNAL_SERVER_ERROR: &str = "Internal Server Error";

impl Shard {
    /// Stops serving: 500 to the senders of what is lost and to the culprit, 1011 to all, and a
    /// rebuild after a wait that grows from failure to failure.
    pub(super) fn fail(&mut self, culprit: Option<SessionId>, clock: Clock) {
        let was_serving = self.log.is_serving();
        let mut told = self.log.reset(clock.now_us);
        told.extend(culprit);
        told.sort_unstable();
        self.rooms.reset();
        self.sessions.reset();
        self.sends.reset(&mut self.sessions);
        self.reads.reset();
        self.admission.reset(&self.sessions);
        self.snapshots.reset();
        self.budget.forget_frames();
        self.counters.refused_log_failed += told.len() as u64;
        self.parser = None;
        self.count_anew();
        for slot in self.sessions.slots() {
            let Some(id) = self.sessions.id_at(slot) else {
                continue;
            };
            let is_told = told.binary_search(&id).is_ok();
            let session = &self.sessions[id];
            match session.state() {
                State::Open { .. } => self.dismiss(id, is_told, clock),
                State::Handshake | State::Waiting if culprit == Some(id) => {
                    self.answer(id, &Answer::internal_server_error(), clock);
                }
                State::Closing if culprit == Some(id) => self.abort(id),
                // What it was to be shown is lost.
                State::Closing if session.outbox.is_waiting(self.log.visible_position()) => {
                    let answer = Answer::internal_server_error();
                    self.note_answer(id, &answer);
                    self.counters.responses.answered(answer.status());
                    let chunk = self.pool.fill(512, |out| answer.encode(clock.unix_us, out));
                    self.queue_last(id, chunk, LogPosition::NONE, clock);
                }
                // A panic may have come between a timer and its next one.
                State::Handshake | State::Waiting => self.reschedule(id, clock),
                State::Closing => {
                    self.reschedule(id, clock);
                    self.enqueue(id);
                }
            }
        }
        if was_serving {
            self.counters.failures += 1;
            self.outputs.push_back(Output::Ready(false));
        }
    }

    /// A panic may have left the sums over all sessions half done, too.
    fn count_anew(&mut self) {
        self.pool.reset();
        self.budget.forget_sessions();
        self.kept_presence = None;
        for slot in self.sessions.slots() {
            let Some(id) = self.sessions.id_at(slot) else {
                continue;
            };
            let session = &mut self.sessions[id];
            (session.is_tracked, session.unfinished_bytes) = (false, 0);
            session.outbox.count(&mut self.pool);
            if !session.sending {
                session.outbox.sent(&mut self.pool);
            }
            self.weigh(id);
        }
    }

    fn dismiss(&mut self, id: SessionId, is_told: bool, clock: Clock) {
        let last = self.pool.fill(256, |out| {
            if is_told {
                message::put_error(out, 500, INTERNAL_SERVER_ERROR);
            }
            frame::put_close(out, INTERNAL_ERROR, INTERNAL_SERVER_ERROR);
        });
        self.note_ending(id, INTERNAL_ERROR, INTERNAL_SERVER_ERROR, Party::Server);
        self.counters.closes.closed(INTERNAL_ERROR);
        self.queue_last(id, last, LogPosition::NONE, clock);
    }

    /// Opens a failed log again when it is time and nothing of the old one is in flight.
    pub(super) fn retry_log(&mut self, clock: Clock) {
        let due_us = self.log.retry_due_us();
        if due_us.is_some_and(|due_us| due_us <= clock.now_us) && self.drain == Drain::No {
            self.outputs.push_back(Output::Rebuild(self.log.rebuild()));
        }
    }

    /// Takes the outcome of a rebuild, or of the reading at the start.
    pub(super) fn rebuilt(
        &mut self,
        outcome: io::Result<(OpenSegment, Vec<Workspace>)>,
        clock: Clock,
    ) {
        let is_rebuild = self.log.end_rebuild();
        let Ok((segment, workspaces)) = outcome else {
            return self.log.rebuild_failed(clock.now_us);
        };
        self.open(segment, workspaces, clock);
        if is_rebuild {
            self.outputs.push_back(Output::Ready(true));
        }
    }
}
