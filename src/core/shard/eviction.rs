//! Eviction when a budget is exceeded: evicts the session that holds the most memory, or states
//! whose receivers are all slow.
//!
//! The memory must be freed immediately. Queued bytes are dropped. Bytes in flight belong to the
//! kernel until the send ends, so the connection is shut down, which ends the send. A client that
//! has received part of a frame could not parse a close frame after it, so it gets none; all others
//! are closed with 1013.

use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::fanout::peers::Peers;
use crate::core::fanout::room::RoomId;
use crate::core::fanout::window::Chunk;
use crate::core::shard::Shard;
use crate::core::shard::closing::TRY_AGAIN_LATER;
use crate::core::shard::contract::Clock;
use crate::core::shard::session::{SessionId, State};
use crate::core::shard::session_budget::SessionMemory;
use crate::core::snapshot::snapshots::SnapshotShortage;
use crate::limits::{ANSWER_BYTES_MAX, RETRY_AFTER_S, SESSION_BYTES_SPARED, SNAPSHOT_PATIENCE_US};
use crate::wire::upgrade::Answer;

/// A state whose receivers are all slow.
struct SlowState {
    chunk: Chunk,
    room: RoomId,
    /// The lag of the fastest receiver behind the expected pace.
    lag_us: u64,
    receivers: Vec<SessionId>,
}

impl Shard {
    // ---- memory of individual sessions ----

    /// Updates the budget with the memory that a session holds. Must be called after each change.
    pub(super) fn update_memory(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let (unfinished_bytes, spare_bytes) = session.unfinished();
        let memory = SessionMemory {
            own_bytes: unfinished_bytes + session.outbox.own_answer_bytes(),
            shared_bytes: session.outbox.shared_answer_bytes(),
            spare_bytes,
            is_being_freed: session.is_aborted(),
        };
        let unfinished_bytes = u32::try_from(unfinished_bytes).unwrap_or(u32::MAX);
        let before_bytes = std::mem::replace(&mut session.unfinished_bytes, unfinished_bytes);
        self.budget
            .update_unfinished(before_bytes as usize, unfinished_bytes as usize);
        // Nearly every session is exempt both before and after the change, and needs no lookup in
        // the budget.
        if session.is_tracked || !memory.is_exempt() {
            session.is_tracked = self.budget.update(id.slot, memory);
        }
    }

    /// Returns the number of bytes that may be queued for or in flight to a session before its
    /// messages are left unread.
    pub(super) fn answer_bytes_max(&self) -> usize {
        if self.budget.is_tight() {
            SESSION_BYTES_SPARED
        } else {
            ANSWER_BYTES_MAX
        }
    }

    /// Evicts sessions if the budget is exceeded. The caller must not be in the middle of handling
    /// a session, because that session might be evicted.
    pub(super) fn evict_over_budget(&mut self, clock: Clock) {
        if !self.budget.is_over() {
            return;
        }
        self.kept_presence = None;
        self.state_chunks.release();
        self.budget.sweep_all();
        if !self.budget.is_over() {
            return;
        }
        // Presence messages for slow peers count as well, but are held by the rooms. So there may
        // be no session left to evict.
        while !self.budget.is_relieved()
            && let Some(slot) = self.budget.next_to_evict()
        {
            let (id, _) = self.sessions.at(slot);
            self.evict(id, clock);
            self.budget.sweep_all();
        }
    }

    fn evict(&mut self, id: SessionId, clock: Clock) {
        self.counters.given_up_sessions += 1;
        let session = &self.sessions[id];
        if let Some(room_id) = session.room() {
            let is_mid_frame =
                self.change_progress(id, room_id, |session, pool| session.outbox.drop_all(pool));
            let in_flight_bytes = self.sessions[id].outbox.in_flight_bytes();
            if is_mid_frame || in_flight_bytes > SESSION_BYTES_SPARED {
                self.abort(id);
            } else {
                let why = "the server has no memory left for this connection";
                self.close(id, TRY_AGAIN_LATER, why, clock);
            }
        } else if session.state() == State::Closing {
            self.abort(id);
        } else {
            let why = "the memory for clients is used up, try again later";
            self.answer(id, &Answer::unavailable(why, RETRY_AFTER_S), clock);
        }
        self.update_memory(id);
    }

    // ---- states ----

    /// Makes room for a state by evicting states whose receivers are all slow, the slowest first,
    /// and no more than necessary. Evicts none if evicting all of them would not be enough.
    pub(super) fn evict_slow_states(&mut self, shortage: SnapshotShortage, clock: Clock) {
        if !self.snapshots.may_search(clock.now_us) {
            return;
        }
        let SnapshotShortage { bytes, limit_bytes } = shortage;
        let mut slow_states = self.slow_states(clock);
        slow_states.sort_by_key(|slow| std::cmp::Reverse(slow.lag_us));
        let slow_bytes: usize = slow_states.iter().map(|slow| slow.chunk.len()).sum();
        if (self.snapshots.bytes() + bytes).saturating_sub(slow_bytes) > limit_bytes {
            return self.snapshots.searched_in_vain(clock.now_us);
        }
        for slow in slow_states {
            if self.snapshots.bytes() + bytes <= limit_bytes {
                break;
            }
            self.counters.given_up_states += 1;
            for id in slow.receivers {
                self.abort(id);
            }
            self.snapshots.give_up(slow.room, &slow.chunk);
        }
    }

    /// Returns the states whose receivers are all slow. A single fast receiver is enough to keep a
    /// state, because its memory will be freed soon.
    fn slow_states(&self, clock: Clock) -> Vec<SlowState> {
        let mut states: Vec<SlowState> = Vec::new();
        // The index in `states` of each chunk, by its address.
        let mut indices = HashMap::with_hasher(FixedState::with_seed(0));
        for (id, session) in self.sessions.iter() {
            let Some(transfer) = session.transfer.as_ref().filter(|_| !session.is_aborted()) else {
                continue;
            };
            let in_flight_us = if session.sending {
                clock.now_us.saturating_sub(session.last_progress_us)
            } else {
                0
            };
            let lag_us = transfer.lag_us(in_flight_us);
            for chunk in transfer.states.iter().filter_map(|state| state.chunk()) {
                let index = *indices.entry(Rc::as_ptr(chunk)).or_insert(states.len());
                if index == states.len() {
                    states.push(SlowState {
                        chunk: Rc::clone(chunk),
                        room: transfer.room,
                        lag_us,
                        receivers: Vec::new(),
                    });
                }
                let state = &mut states[index];
                state.lag_us = state.lag_us.min(lag_us);
                state.receivers.push(id);
            }
        }
        states.retain(|state| state.lag_us >= SNAPSHOT_PATIENCE_US);
        states
    }

    // ---- checks ----

    /// Checks the totals of the memory held against the sessions, and the budget against its limit.
    ///
    /// # Panics
    /// If a sum is wrong or a budget is exceeded.
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
                "{id:?} has bytes in flight without a send"
            );
        }
        assert_eq!(
            self.budget.unfinished_bytes(),
            unfinished_bytes,
            "unfinished bytes"
        );
        assert_eq!(self.pool.answer_bytes(), answer_bytes, "answers");
        assert_eq!(self.budget.charged_bytes(), charged_bytes, "charged bytes");
        let rooms = self
            .rooms
            .iter()
            .filter_map(|(_, room)| room.presence.as_ref());
        let peers = rooms.filter_map(|presence| presence.peers());
        let value_bytes: usize = peers.map(Peers::value_bytes).sum();
        assert_eq!(self.presence_bytes, value_bytes, "the values of all peers");
        assert!(
            !self.budget.is_over() || self.budget.next_to_evict().is_none(),
            "{} bytes are held",
            self.budget.bytes()
        );
    }
}
