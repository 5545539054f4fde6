//! Who is given up when a budget is full: the heaviest session, or the states that nobody takes.
//!
//! Memory is to be free at once. What waits is dropped; what is on its way is the kernel's until
//! its send ends, so that connection is shut down, which ends the send. A client that is in the
//! middle of a frame then has no use for a close frame; all others are told 1013.

use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::contract::Clock;
use crate::core::fanout::window::Chunk;
use crate::core::shard::Shard;
use crate::core::shard::lifetime::TRY_AGAIN_LATER;
use crate::core::shard::session::{SessionId, State};
use crate::core::shard::session_budget::Held;
use crate::limits::{
    ANSWER_BYTES_MAX, RETRY_AFTER_S, SESSION_BYTES_SPARED, SNAPSHOT_PATIENCE_US,
    SNAPSHOT_SEARCH_INTERVAL_US,
};
use crate::wire::upgrade::Answer;

/// A state that sessions are sent, and how far the fastest of them is behind.
struct Candidate {
    text: Chunk,
    room: u32,
    lag_us: u64,
    holders: Vec<SessionId>,
}

impl Shard {
    // ---- what single sessions hold ----

    /// Takes what a session holds now. To be called whenever that may have changed.
    pub(super) fn weigh(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let (unfinished_bytes, spare_bytes) = session.unfinished();
        let held = Held {
            own_bytes: unfinished_bytes + session.outbox.own_answer_bytes(),
            shared_bytes: session.outbox.shared_answer_bytes(),
            spare_bytes,
            is_returning: session.is_aborted(),
        };
        let told = u32::try_from(unfinished_bytes).unwrap_or(u32::MAX);
        self.pool.held.unfinished_bytes += told as usize;
        self.pool.held.unfinished_bytes -=
            std::mem::replace(&mut session.unfinished_bytes, told) as usize;
        if session.has_account || !held.is_spared() {
            session.has_account = self.budget.weigh(id.slot, held);
        }
    }

    /// What may wait for a session, or be on its way to it, before its messages are left unread.
    pub(super) fn answer_bytes_max(&self) -> usize {
        if self.budget.is_tight() {
            SESSION_BYTES_SPARED
        } else {
            ANSWER_BYTES_MAX
        }
    }

    /// Closes the heaviest sessions while the budget is exceeded. The caller must not be handling a
    /// session: it could be the one that is closed.
    pub(super) fn keep_budget(&mut self, clock: Clock) {
        if !self.budget.is_over() {
            return;
        }
        self.kept_presence = None;
        self.budget.sweep_all();
        if !self.budget.is_over() {
            return;
        }
        while !self.budget.is_relieved() {
            let heaviest = self.budget.heaviest();
            let slot = heaviest.expect("what counts belongs to a session that holds much");
            let (id, _) = self.sessions.at(slot);
            self.give_up(id, clock);
            self.budget.sweep_all();
        }
    }

    fn give_up(&mut self, id: SessionId, clock: Clock) {
        self.counters.given_up_sessions += 1;
        let session = &mut self.sessions[id];
        if session.is_open() {
            let is_cut = session.outbox.drop_all(&mut self.pool);
            let in_flight_bytes = session.outbox.in_flight_bytes();
            if is_cut || in_flight_bytes > SESSION_BYTES_SPARED {
                self.abort(id);
            } else {
                let why = "the server has no memory left for this connection";
                self.close(id, TRY_AGAIN_LATER, why, clock);
            }
        } else if session.state() == State::Closing {
            self.abort(id);
        } else {
            let why = "the server holds as much for its clients as it may";
            self.answer(id, &Answer::unavailable(why, RETRY_AFTER_S), clock);
        }
        self.weigh(id);
    }

    // ---- states ----

    /// Makes room for a state of so many bytes, so that all take no more than `most_bytes`: gives
    /// up those that nobody takes at their pace, the slowest first. None of them if that were not
    /// enough.
    pub(super) fn give_up_states(&mut self, bytes: usize, most_bytes: usize, clock: Clock) {
        if clock.now_us < self.next_search_us {
            return;
        }
        let mut candidates = self.slow_states(clock);
        candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.lag_us));
        let slow_bytes: usize = candidates.iter().map(|slow| slow.text.len()).sum();
        if (self.snapshot_budget.bytes() + bytes).saturating_sub(slow_bytes) > most_bytes {
            self.next_search_us = clock.now_us + SNAPSHOT_SEARCH_INTERVAL_US;
            return;
        }
        for slow in candidates {
            if self.snapshot_budget.bytes() + bytes <= most_bytes {
                break;
            }
            self.counters.given_up_states += 1;
            for id in slow.holders {
                self.abort(id);
            }
            self.snapshot_budget.write_off(&slow.text);
            // Who asks for the same now must not be given a text that does not count.
            if let Some(room) = self.rooms.get_mut(slow.room as usize) {
                room.forget_text(&slow.text);
            }
        }
    }

    /// The states that all who are sent them take too slowly.
    fn slow_states(&self, clock: Clock) -> Vec<Candidate> {
        let mut states: Vec<Candidate> = Vec::new();
        let mut places = HashMap::with_hasher(FixedState::with_seed(0));
        for (id, session) in self.sessions.iter() {
            let Some(passage) = session.passage.as_ref().filter(|_| !session.is_aborted()) else {
                continue;
            };
            let in_flight_us = if session.sending {
                clock.now_us.saturating_sub(session.last_progress_us)
            } else {
                0
            };
            let lag_us = passage.lag_us(in_flight_us);
            for text in passage.texts.iter().filter_map(|text| text.chunk()) {
                let place = *places.entry(Rc::as_ptr(text)).or_insert(states.len());
                if place == states.len() {
                    states.push(Candidate {
                        text: Rc::clone(text),
                        room: passage.room,
                        lag_us,
                        holders: Vec::new(),
                    });
                }
                let state = &mut states[place];
                state.lag_us = state.lag_us.min(lag_us);
                state.holders.push(id);
            }
        }
        states.retain(|state| state.lag_us >= SNAPSHOT_PATIENCE_US);
        states
    }

    // ---- for tests ----

    /// Checks what is held against the sums and the budget.
    ///
    /// # Panics
    /// Where they differ, or more is held than may be.
    pub(super) fn audit(&self) {
        let (mut unfinished_bytes, mut answer_bytes, mut charged_bytes) = (0, 0, 0);
        for (id, session) in self.sessions.iter() {
            let (unfinished, _) = session.unfinished();
            let own_answer_bytes = session.outbox.own_answer_bytes();
            let own_bytes = unfinished + own_answer_bytes;
            unfinished_bytes += unfinished;
            answer_bytes += own_answer_bytes;
            let counts = !session.is_aborted();
            charged_bytes += own_bytes.saturating_sub(SESSION_BYTES_SPARED) * usize::from(counts);
            assert!(
                session.sending || session.outbox.in_flight_bytes() == 0,
                "nothing is on its way to {id:?}"
            );
        }
        let held = self.pool.held;
        assert_eq!(
            held.unfinished_bytes, unfinished_bytes,
            "unfinished messages"
        );
        assert_eq!(held.answer_bytes, answer_bytes, "answers");
        assert_eq!(self.budget.charged_bytes(), charged_bytes, "the budget");
        assert!(
            !self.budget.is_over(),
            "{} bytes are held",
            self.budget.bytes()
        );
    }
}
