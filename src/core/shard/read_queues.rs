//! The queues of sessions to read from: for new bytes, for bytes left from earlier turns, and for
//! ops that wait for room in the log.

use std::collections::VecDeque;

use crate::core::shard::session::{Intake, SessionId};
use crate::core::shard::sessions::Sessions;
use crate::limits::HELD_RETRY_US;

/// The queues of sessions to read from.
///
/// Invariant: a member whose [`Intake`] is `Unread` or `Held` is in the corresponding queue exactly
/// once. Entries of closed sessions are skipped.
#[derive(Default)]
pub(super) struct ReadQueues {
    /// Sessions whose receive is to be armed at the end of the turn.
    receives: Vec<SessionId>,
    /// Sessions with bytes that were received but not read in their turn.
    unread: VecDeque<SessionId>,
    /// Sessions with ops for which the log has no room, in the order in which they are retried.
    held: VecDeque<SessionId>,
    /// Sessions that were retried in the current round and still have to wait.
    still_held: VecDeque<SessionId>,
    /// The time of the last round of retries.
    held_tried_us: u64,
    /// The time at which the previous turn ended, if sessions were waiting then.
    held_since_us: Option<u64>,
}

impl ReadQueues {
    // ---- receives ----

    /// Queues a session so that its receive is armed at the end of the turn.
    pub fn receive(&mut self, id: SessionId) {
        self.receives.push(id);
    }

    /// Removes the sessions whose receives are to be armed, in the order in which they were queued.
    pub fn drain_receives(&mut self) -> impl Iterator<Item = SessionId> {
        self.receives.drain(..)
    }

    // ---- bytes that were received and not read ----

    /// Queues a session according to its [`Intake`], once its bytes have been read as far as
    /// possible.
    pub fn queue(&mut self, id: SessionId, intake: Intake) {
        match intake {
            Intake::Receiving => self.receives.push(id),
            Intake::Unread => self.unread.push_back(id),
            Intake::Held => self.held.push_back(id),
            Intake::Paused => {}
        }
    }

    pub fn pop_unread(&mut self) -> Option<SessionId> {
        self.unread.pop_front()
    }

    pub fn unread_count(&self) -> usize {
        self.unread.len()
    }

    // ---- sessions that wait for room in the log ----

    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Begins a round of retries of the sessions that wait for the log. Returns their number.
    pub fn begin_tries(&mut self, now_us: u64) -> usize {
        self.held_tried_us = now_us;
        self.held.len()
    }

    /// Removes the next session to be retried.
    pub fn pop_held(&mut self) -> SessionId {
        self.held
            .pop_front()
            .expect("a round retries at most the waiting sessions")
    }

    /// Keeps a session that was retried in this round waiting.
    pub fn hold_on(&mut self, id: SessionId) {
        self.still_held.push_back(id);
    }

    /// Ends a round of retries. Sessions that still cannot write are placed before those that
    /// could.
    pub fn end_tries(&mut self) {
        self.still_held.append(&mut self.held);
        std::mem::swap(&mut self.held, &mut self.still_held);
    }

    /// Returns the time at which the waiting sessions are retried, or `None` if there are none.
    pub fn held_due_us(&self, is_log_free: bool) -> Option<u64> {
        if self.held.is_empty() {
            None
        } else if is_log_free {
            Some(0)
        } else {
            Some(self.held_tried_us + HELD_RETRY_US)
        }
    }

    /// Records, at the end of a turn, whether any sessions are waiting for the log.
    pub fn end_turn(&mut self, now_us: u64) {
        self.held_since_us = (!self.held.is_empty()).then_some(now_us);
    }

    /// Returns, once, how long sessions have waited for the log since the previous turn ended.
    pub fn take_held_us(&mut self, now_us: u64) -> u64 {
        let since_us = self.held_since_us.take();
        since_us.map_or(0, |since_us| now_us.saturating_sub(since_us))
    }

    // ---- failures and checks ----

    /// Removes all queued sessions, because none of them stays a member after a failure.
    pub fn reset(&mut self) {
        self.unread.clear();
        self.held.clear();
        self.still_held.clear();
    }

    /// Checks the invariant against the sessions.
    pub fn invariants(&self, sessions: &Sessions) {
        assert!(
            self.still_held.is_empty(),
            "a round of retries did not end in its turn"
        );
        for (queue, intake) in [(&self.unread, Intake::Unread), (&self.held, Intake::Held)] {
            let members = || sessions.iter().filter(|(_, session)| session.is_open());
            let queued = members()
                .filter(|(_, session)| session.intake == intake)
                .count();
            let is_it = |id: &&SessionId| {
                let session = sessions.get(**id).filter(|session| session.is_open());
                session.is_some_and(|session| session.intake == intake)
            };
            let mut found: Vec<SessionId> = queue.iter().filter(is_it).copied().collect();
            found.sort_unstable();
            found.dedup();
            assert_eq!(found.len(), queued, "the members with intake {intake:?}");
        }
    }
}
