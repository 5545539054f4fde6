//! The sessions to send to: their order, and the shard's pauses between slices.
//!
//! There are two queues, because a session with a large backlog would delay all others. A turn's
//! slice moves such sessions to the bulk queue, from which a turn serves only a few.

use std::collections::VecDeque;

use crate::core::fanout::pacer::Pacer;
use crate::core::shard::session::{Session, SessionId};
use crate::core::shard::sessions::Sessions;

/// The sessions to send to.
///
/// Invariant: a session marked as queued appears exactly once in exactly one of the queues, and has
/// no send in flight; a session marked as waiting for the log appears exactly once in
/// `waiting_for_log`.
#[derive(Default)]
pub(super) struct SendQueues {
    short: VecDeque<SessionId>,
    bulk: VecDeque<SessionId>,
    /// Sessions whose first answer waits for the log, or for a state that is being encoded.
    waiting_for_log: Vec<SessionId>,
    pacer: Pacer,
    /// The number of sessions taken from `short` since the start.
    served_count: u64,
    /// The arrival time of the oldest op that became visible with the last commit.
    shown_since_us: Option<u64>,
    watch: Option<Watch>,
}

/// Ops that are watched to measure how long it takes to send them.
#[derive(Debug, Clone, Copy)]
struct Watch {
    /// The arrival time of the oldest of these ops.
    since_us: u64,
    /// The value of `served_count` at which all sends of these ops have been handed to the caller.
    end: u64,
}

impl SendQueues {
    // ---- the queues ----

    /// Queues a session so that its pending bytes are sent, provided that it can be sent to and is
    /// not queued yet. A session with a send in flight is queued when that send ends.
    pub fn queue(&mut self, id: SessionId, session: &mut Session) {
        push(&mut self.short, id, session);
    }

    /// Removes the next session of a slice.
    pub fn pop(&mut self) -> Option<SessionId> {
        let id = self.short.pop_front()?;
        self.served_count += 1;
        Some(id)
    }

    /// Moves a popped session to the queue for large backlogs. It stays marked as queued.
    pub fn defer(&mut self, id: SessionId) {
        self.bulk.push_back(id);
    }

    /// Removes the next session with a large backlog.
    pub fn pop_bulk(&mut self) -> Option<SessionId> {
        self.bulk.pop_front()
    }

    /// Returns whether no sessions are queued except those with a large backlog.
    pub fn is_round_done(&self) -> bool {
        self.short.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.short.is_empty() && self.bulk.is_empty()
    }

    // ---- answers that wait for the log ----

    /// Makes a session wait for progress on the log or on a state that is being encoded.
    pub fn wait_for_log(&mut self, id: SessionId, session: &mut Session) {
        if !session.is_waiting_for_log {
            session.is_waiting_for_log = true;
            self.waiting_for_log.push(id);
        }
    }

    /// Queues all sessions that wait for the log. Some of them may have to wait again.
    pub fn wake(&mut self, sessions: &mut Sessions) {
        for id in self.waiting_for_log.drain(..) {
            if let Some(session) = sessions.get_mut(id) {
                session.is_waiting_for_log = false;
                push(&mut self.short, id, session);
            }
        }
    }

    // ---- pauses between slices ----

    /// Returns whether the shard is pausing now instead of serving the next slice.
    pub fn is_pausing(&mut self, now_us: u64) -> bool {
        self.pacer.must_pause(now_us)
    }

    /// Returns the time at which the current pause ends, if there is one.
    pub fn pause_until_us(&self) -> Option<u64> {
        self.pacer.paused_until_us()
    }

    /// Records the start of a send to a session.
    pub fn send_started(&mut self, session: &mut Session) {
        self.pacer.record_send(&mut session.last_busy_period);
    }

    /// Records that a slice has been served.
    pub fn end_slice(&mut self, now_us: u64) {
        self.pacer.end_slice(!self.short.is_empty(), now_us);
    }

    // ---- send latency ----

    /// Records that ops have become visible, the oldest of which arrived at `since_us`.
    pub fn show(&mut self, since_us: u64) {
        self.shown_since_us = Some(since_us);
    }

    /// Returns, once, the arrival time of the oldest op that became visible with the last commit.
    pub fn take_shown_since_us(&mut self) -> Option<u64> {
        self.shown_since_us.take()
    }

    /// Watches the ops that arrived since `since_us` until every session that is queued now has
    /// been served. Only the ops of one commit are watched at a time.
    pub fn watch(&mut self, since_us: u64) {
        if self.watch.is_none() && !self.short.is_empty() {
            let end = self.served_count + self.short.len() as u64;
            self.watch = Some(Watch { since_us, end });
        }
    }

    /// Returns, once, the arrival time of the oldest watched op, if all watched ops have been
    /// handed to the caller to be sent.
    pub fn take_watched_since_us(&mut self) -> Option<u64> {
        let watch = self.watch.take_if(|watch| watch.end <= self.served_count)?;
        Some(watch.since_us)
    }

    /// Adds `us`, during which the clock stood still, to the age of everything that waits.
    pub fn has_aged(&mut self, us: u64) {
        let aged = |since_us: u64| since_us.saturating_sub(us);
        self.shown_since_us = self.shown_since_us.map(aged);
        if let Some(watch) = &mut self.watch {
            watch.since_us = aged(watch.since_us);
        }
    }

    // ---- failures and checks ----

    /// Makes queues and sessions consistent again, because a panic may have interrupted a change,
    /// and stops watching ops, because they may be lost.
    pub fn reset(&mut self, sessions: &mut Sessions) {
        for slot in sessions.slots() {
            if sessions.id_at(slot).is_some() {
                let (_, session) = sessions.at(slot);
                (session.queued, session.is_waiting_for_log) = (false, false);
            }
        }
        for queue in [&mut self.short, &mut self.bulk] {
            queue.retain(|id| {
                let session = sessions.get_mut(*id).filter(|session| !session.sending);
                session.is_some_and(|session| !std::mem::replace(&mut session.queued, true))
            });
        }
        self.waiting_for_log.retain(|id| {
            let session = sessions.get_mut(*id);
            session.is_some_and(|session| !std::mem::replace(&mut session.is_waiting_for_log, true))
        });
        (self.watch, self.shown_since_us) = (None, None);
    }

    /// Checks the invariant.
    pub fn invariants(&self, sessions: &Sessions) {
        let queued = self.short.iter().chain(&self.bulk);
        let is_marked = |id: &&SessionId| sessions.get(**id).is_some_and(|session| session.queued);
        let mut found: Vec<SessionId> = queued.filter(is_marked).copied().collect();
        let marked = sessions.iter().filter(|(_, session)| session.queued);
        assert_unique(&mut found, marked.count(), "queued");
        for (id, session) in sessions.iter() {
            assert!(
                !session.queued || !session.sending,
                "{id:?} is queued while a send is in flight"
            );
        }
        let is_marked = |id: &&SessionId| {
            let session = sessions.get(**id);
            session.is_some_and(|session| session.is_waiting_for_log)
        };
        let waiting = self.waiting_for_log.iter();
        let mut found: Vec<SessionId> = waiting.filter(is_marked).copied().collect();
        let marked = sessions
            .iter()
            .filter(|(_, session)| session.is_waiting_for_log);
        assert_unique(&mut found, marked.count(), "waiting for the log");
    }
}

fn push(queue: &mut VecDeque<SessionId>, id: SessionId, session: &mut Session) {
    if !session.queued && !session.sending && session.may_send() {
        session.queued = true;
        queue.push_back(id);
    }
}

fn assert_unique(found: &mut Vec<SessionId>, count: usize, what: &str) {
    let all = found.len();
    found.sort_unstable();
    found.dedup();
    assert_eq!(
        (all, found.len()),
        (count, count),
        "the sessions that are {what}"
    );
}

#[cfg(test)]
impl SendQueues {
    pub fn queued(&self) -> &VecDeque<SessionId> {
        &self.short
    }

    pub fn set_queued(&mut self, ids: &[SessionId]) {
        self.short = ids.iter().copied().collect();
    }

    pub fn waiting(&self) -> &[SessionId] {
        &self.waiting_for_log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::shard::contract::{Clock, ListenerKind};

    #[test]
    fn a_reset_makes_queues_and_sessions_agree() {
        let clock = Clock::default();
        let mut sessions = Sessions::new(1, clock);
        let mut sends = SendQueues::default();
        let ids = [(); 5].map(|()| sessions.open(ListenerKind::Public, false, 1, clock));
        for id in ids {
            sends.queue(id, &mut sessions[id]);
            sends.wait_for_log(id, &mut sessions[id]);
        }
        sends.invariants(&sessions);
        // The state that a panic may leave behind: a session that was taken but is still marked,
        // one with a send in flight, one that is in both queues, and one whose slot is free.
        assert_eq!(sends.pop(), Some(ids[0]));
        sessions[ids[1]].sending = true;
        sends.defer(ids[2]);
        sends.watch(0);
        sends.show(0);
        sessions.retire(ids[4]);
        sessions.remove(ids[4]);
        sends.reset(&mut sessions);
        sends.invariants(&sessions);
        assert_eq!(*sends.queued(), [ids[2], ids[3]]);
        assert_eq!(sends.waiting(), &ids[..4]);
        assert_eq!(sends.take_shown_since_us(), None);
        // The first session may be queued again.
        sends.queue(ids[0], &mut sessions[ids[0]]);
        assert_eq!(sends.queued().len(), 3);
        sends.invariants(&sessions);
    }
}
