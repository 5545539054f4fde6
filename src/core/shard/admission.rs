//! Admission of connections: requests that wait for the state of the shard, the rate limit on
//! handshakes, and the choice of connections to shed when the connection limit is reached.

use std::collections::BTreeMap;

use crate::core::shard::contract::{Handoff, ListenerKind};
use crate::core::shard::rate::{Bucket, Rate};
use crate::core::shard::session::{Session, SessionId, State};
use crate::core::shard::sessions::Sessions;

/// Waiting requests, and connections that may be shed. They are keyed by session number, and are
/// therefore in order of arrival.
///
/// Invariant: each session that waits for the state of the shard has a request here; silent
/// connections have not sent a complete head, and answered connections have nothing left to
/// receive.
#[derive(Default)]
pub(super) struct Admission {
    waiting: BTreeMap<u64, (SessionId, Handoff)>,
    /// Requests that were examined and wait until expired keys of their workspace are deleted.
    expiring: BTreeMap<u64, (SessionId, Handoff)>,
    shedding: [SheddingQueue; 2],
    /// The token bucket that limits the rate of requests with a token.
    handshakes: Bucket,
}

/// The connections of one listener that may be shed.
#[derive(Default)]
struct SheddingQueue {
    silent: BTreeMap<u64, SessionId>,
    answered: BTreeMap<u64, SessionId>,
}

/// A connection to be shed.
pub(super) struct SheddingChoice {
    pub id: SessionId,
    /// Whether the connection has not sent a complete head.
    pub is_silent: bool,
}

impl Admission {
    // ---- requests that wait for the state of the shard ----

    /// Stores the request of a session until the state is available.
    pub fn wait(&mut self, id: SessionId, session: &Session, handoff: Handoff) {
        self.waiting.insert(session.number, (id, handoff));
    }

    /// Stores the request of a session until the expired keys of its workspace are deleted.
    pub fn wait_for_expiry(&mut self, id: SessionId, session: &Session, handoff: Handoff) {
        self.expiring.insert(session.number, (id, handoff));
    }

    /// Queues the requests that wait for expired keys to be examined again.
    pub fn examine_expiring(&mut self) {
        self.waiting.append(&mut self.expiring);
    }

    /// Returns the waiting request of a session.
    pub fn waiting(&mut self, session: &Session) -> Option<&mut Handoff> {
        let number = session.number;
        let waiting = self.waiting.get_mut(&number);
        let (_, handoff) = waiting.or_else(|| self.expiring.get_mut(&number))?;
        Some(handoff)
    }

    /// Removes and returns the waiting request of a session.
    pub fn take_waiting(&mut self, session: &Session) -> Option<Handoff> {
        let number = session.number;
        let waiting = self.waiting.remove(&number);
        let (_, handoff) = waiting.or_else(|| self.expiring.remove(&number))?;
        Some(handoff)
    }

    /// Removes and returns the request that has waited longest.
    pub fn pop_waiting(&mut self) -> Option<(SessionId, Handoff)> {
        let (_, request) = self.waiting.pop_first()?;
        Some(request)
    }

    /// Returns the number of requests to be examined once the state is available.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    // ---- connections that may be shed ----

    /// Records that a connection was accepted and has sent nothing yet.
    pub fn accepted(&mut self, id: SessionId, session: &Session) {
        let queue = &mut self.shedding[session.listener as usize];
        queue.silent.insert(session.number, id);
    }

    /// Records that a connection's complete answer has been sent.
    pub fn answered(&mut self, id: SessionId, session: &Session) {
        let queue = &mut self.shedding[session.listener as usize];
        queue.answered.insert(session.number, id);
    }

    /// Protects a connection from being shed, because its head is complete or it has ended.
    pub fn keep(&mut self, session: &Session) {
        let queue = &mut self.shedding[session.listener as usize];
        queue.silent.remove(&session.number);
        queue.answered.remove(&session.number);
    }

    /// Returns the number of sheddable connections that `listener` accepted.
    pub fn sheddable_count(&self, listener: ListenerKind) -> usize {
        let queue = &self.shedding[listener as usize];
        queue.silent.len() + queue.answered.len()
    }

    /// Removes and returns the connection accepted by `listener` that should be shed first.
    pub fn take_to_shed(&mut self, listener: ListenerKind) -> Option<SheddingChoice> {
        let queue = &mut self.shedding[listener as usize];
        let silent = queue.silent.pop_first();
        let is_silent = silent.is_some();
        let (_, id) = silent.or_else(|| queue.answered.pop_first())?;
        Some(SheddingChoice { id, is_silent })
    }

    // ---- the rate of handshakes ----

    /// Counts a request with a token. Returns whether it is within the rate.
    pub fn count_handshake(&mut self, rate: Rate, now_us: u64) -> bool {
        self.handshakes.take(rate, now_us)
    }

    /// Accounts for time during which the clock stood still.
    pub fn has_aged(&mut self, us: u64) {
        self.handshakes.has_aged(us);
    }

    // ---- failures and checks ----

    /// Removes entries that a panic left behind for sessions that have moved to another state.
    /// Waiting requests continue to wait.
    pub fn reset(&mut self, sessions: &Sessions) {
        self.examine_expiring();
        self.waiting.retain(|_, (id, _)| is_waiting(sessions, *id));
        for queue in &mut self.shedding {
            queue.silent.retain(|_, id| is_silent(sessions, *id));
            queue.answered.retain(|_, id| is_answered(sessions, *id));
        }
    }

    /// Checks the invariant.
    pub fn invariants(&self, sessions: &Sessions) {
        let waiting = sessions.iter().filter(|(id, _)| is_waiting(sessions, *id));
        for (id, session) in waiting {
            let request = self.waiting.get(&session.number);
            let request = request.or_else(|| self.expiring.get(&session.number));
            assert!(
                request.is_some_and(|(of, _)| *of == id),
                "{id:?} is waiting without a request"
            );
        }
        for (id, _) in self.waiting.values().chain(self.expiring.values()) {
            assert!(
                is_waiting(sessions, *id),
                "{id:?} has a request but is not waiting"
            );
        }
        for queue in &self.shedding {
            let silent = queue.silent.values();
            assert!(
                silent.copied().all(|id| is_silent(sessions, id)),
                "a connection in the silent queue is not silent"
            );
            let answered = queue.answered.values();
            assert!(
                answered.copied().all(|id| is_answered(sessions, id)),
                "a connection in the answered queue is not answered"
            );
        }
    }
}

fn is_waiting(sessions: &Sessions, id: SessionId) -> bool {
    sessions
        .get(id)
        .is_some_and(|session| session.state() == State::Waiting)
}

fn is_silent(sessions: &Sessions, id: SessionId) -> bool {
    sessions
        .get(id)
        .is_some_and(|session| session.state() == State::Handshake)
}

fn is_answered(sessions: &Sessions, id: SessionId) -> bool {
    sessions.get(id).is_some_and(Session::is_finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::shard::contract::Clock;

    #[test]
    fn a_reset_forgets_connections_that_moved_on() {
        let clock = Clock::default();
        let mut sessions = Sessions::new(1, clock);
        let mut admission = Admission::default();
        let ids = [(); 3].map(|()| sessions.open(ListenerKind::Public, false, 1, clock));
        for id in ids {
            admission.accepted(id, &sessions[id]);
        }
        sessions.enter(ids[0], State::Closing);
        assert!(sessions[ids[0]].finish());
        admission.answered(ids[0], &sessions[ids[0]]);
        sessions.enter(ids[2], State::Closing);
        admission.reset(&sessions);
        admission.invariants(&sessions);
        let mut shed = || admission.take_to_shed(ListenerKind::Public);
        let order = [shed(), shed(), shed()]
            .map(|choice| choice.map(|SheddingChoice { id, is_silent }| (id, is_silent)));
        assert_eq!(order, [Some((ids[1], true)), Some((ids[0], false)), None]);
    }
}
