//! The connections of a shard: their table, user names, rate meters and timers.
//!
//! A slot of the table is reused only when nothing in flight refers to it, so a session that has
//! ended keeps its slot until the caller has received the output that reports its end
//! ([`Sessions::remove`]). A [`SessionId`] also carries a generation, so that a handle kept beyond
//! that finds nothing.

use std::ops::{Index, IndexMut, Range};
use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use slab::Slab;

use crate::core::shard::contract::{Clock, ListenerKind};
use crate::core::shard::rate::Meter;
use crate::core::shard::session::{Session, SessionCounts, SessionId, State};
use crate::core::shard::timers::{Wheel, tick_of};

/// The connections of a shard.
///
/// Invariant: the counts match the table; a session that has ended has nothing in flight; only
/// members have user names.
pub(super) struct Sessions {
    table: Slab<Session>,
    counts: SessionCounts,
    /// The number of the newest session.
    last_number: u64,
    /// The user names of the clients that chose one, by slot.
    users: HashMap<u32, Rc<str>, FixedState>,
    /// The recent rate of each member, by slot. Empty if rates are not limited.
    meters: Vec<Meter>,
    wheel: Wheel<SessionId>,
    /// The entries of the tick that has expired. Those before `due_place` were already returned.
    due: Vec<SessionId>,
    due_place: usize,
    due_tick: u64,
}

impl Sessions {
    pub fn new(hash_seed: u64, clock: Clock) -> Self {
        Self {
            table: Slab::new(),
            counts: SessionCounts::default(),
            last_number: 0,
            users: HashMap::with_hasher(FixedState::with_seed(hash_seed)),
            meters: Vec::new(),
            wheel: Wheel::new(clock.now_us),
            due: Vec::new(),
            due_place: 0,
            due_tick: 0,
        }
    }

    // ---- the table ----

    /// Adds a session whose request head must arrive, or whose answer must be sent, by
    /// `deadline_us`.
    pub fn open(
        &mut self,
        listener: ListenerKind,
        over_limit: bool,
        deadline_us: u64,
        clock: Clock,
    ) -> SessionId {
        self.last_number += 1;
        let mut session = Session::new(self.last_number, over_limit, clock.now_us, deadline_us);
        session.listener = listener;
        self.counts.add(&session);
        let generation = session.generation();
        let slot = self.table.insert(session);
        let slot = u32::try_from(slot).expect("fewer sessions than descriptors");
        let id = SessionId { slot, generation };
        self.schedule(id, deadline_us);
        id
    }

    /// Frees the slot of a session that has ended. The slot may then be reused.
    pub fn remove(&mut self, id: SessionId) {
        let session = self.table.remove(id.slot as usize);
        assert!(session.is_gone(), "a session was removed before it ended");
        self.counts.remove(&session);
    }

    pub fn get(&self, id: SessionId) -> Option<&Session> {
        let session = self.table.get(id.slot as usize)?;
        (session.generation() == id.generation).then_some(session)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let session = self.table.get_mut(id.slot as usize)?;
        (session.generation() == id.generation).then_some(session)
    }

    /// Returns the session in a slot that is known to be in use.
    pub fn at(&mut self, slot: u32) -> (SessionId, &mut Session) {
        let session = &mut self.table[slot as usize];
        let generation = session.generation();
        (SessionId { slot, generation }, session)
    }

    /// Returns the id of the session in a slot, if the slot is in use.
    pub fn id_at(&self, slot: u32) -> Option<SessionId> {
        let generation = self.table.get(slot as usize)?.generation();
        Some(SessionId { slot, generation })
    }

    /// Returns the range of all slots, including free ones.
    pub fn slots(&self) -> Range<u32> {
        0..u32::try_from(self.table.capacity()).expect("slots fit in 32 bits")
    }

    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.table.iter().map(|(slot, session)| {
            let slot = u32::try_from(slot).expect("slots fit in 32 bits");
            let generation = session.generation();
            (SessionId { slot, generation }, session)
        })
    }

    pub fn is_open(&self, id: SessionId) -> bool {
        self.get(id).is_some_and(Session::is_open)
    }

    // ---- the life of a session ----

    /// Moves a session to another state.
    pub fn enter(&mut self, id: SessionId, state: State) {
        let session = &mut self.table[id.slot as usize];
        assert_eq!(
            session.generation(),
            id.generation,
            "the slot holds another session"
        );
        session.enter(state, &mut self.counts);
    }

    /// Ends a session that has nothing in flight. No operation may be started for it afterwards.
    pub fn retire(&mut self, id: SessionId) {
        let session = &mut self.table[id.slot as usize];
        assert_eq!(
            session.generation(),
            id.generation,
            "the slot holds another session"
        );
        session.retire(&mut self.counts);
    }

    /// Returns the number of sessions, including those that have ended but still occupy their
    /// slots.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns whether all sessions have ended.
    pub fn is_empty(&self) -> bool {
        self.table.len() as u64 == self.counts.gone
    }

    pub fn counts(&self) -> SessionCounts {
        self.counts
    }

    // ---- names and meters ----

    /// Sets the user name that a session's client chose.
    pub fn set_user(&mut self, id: SessionId, user: Rc<str>) {
        self.users.insert(id.slot, user);
    }

    pub fn take_user(&mut self, id: SessionId) -> Option<Rc<str>> {
        self.users.remove(&id.slot)
    }

    /// Resets the rate meter of a session that has sent nothing yet.
    pub fn reset_meter(&mut self, id: SessionId) {
        let slot = id.slot as usize;
        if slot >= self.meters.len() {
            self.meters.resize_with(slot + 1, Meter::default);
        }
        self.meters[slot] = Meter::default();
    }

    /// Returns the rate meter of a session. [`Sessions::reset_meter`] must have been called first.
    pub fn meter(&mut self, id: SessionId) -> &mut Meter {
        &mut self.meters[id.slot as usize]
    }

    /// Allows each client the messages and frames that it may have sent during a period of `us` in
    /// which no bytes were read.
    pub fn allow_for(&mut self, per_second: u32, us: u64) {
        for meter in &mut self.meters {
            meter.allow_for(per_second, us);
        }
    }

    // ---- timers ----

    /// Schedules a session for `at_us`, or earlier if that is too far in the future. Any existing
    /// entry of the session becomes stale.
    pub fn schedule(&mut self, id: SessionId, at_us: u64) {
        let tick = self.wheel.insert(at_us, id);
        if let Some(session) = self.get_mut(id) {
            session.timer_tick = tick;
        }
    }

    /// Schedules a session for `at_us`, unless it is already due by then.
    pub fn schedule_by(&mut self, id: SessionId, at_us: u64) {
        if tick_of(at_us) < self[id].timer_tick {
            self.schedule(id, at_us);
        }
    }

    /// Removes the next session that is due.
    pub fn next_due(&mut self, now_us: u64) -> Option<SessionId> {
        loop {
            while let Some(id) = self.due.get(self.due_place).copied() {
                self.due_place += 1;
                if self
                    .get(id)
                    .is_some_and(|session| session.timer_tick == self.due_tick)
                {
                    return Some(id);
                }
            }
            self.end_tick();
            (self.due_tick, self.due) = self.wheel.expire(now_us)?;
        }
    }

    fn end_tick(&mut self) {
        self.due_place = 0;
        if self.due.capacity() > 0 {
            self.wheel.give_back(std::mem::take(&mut self.due));
        }
    }

    /// Returns the time at which the next session is due.
    pub fn next_due_us(&self) -> Option<u64> {
        self.wheel.next_us()
    }

    // ---- failures and checks ----

    /// Recounts the sessions, because a panic may have left the counts inconsistent, and removes
    /// all user names, because no session stays a member. The memory of each session must be
    /// counted again.
    pub fn reset(&mut self) {
        self.users.clear();
        for (_, session) in &mut self.table {
            (session.is_tracked, session.unfinished_bytes) = (false, 0);
        }
        self.end_tick();
        self.counts = self.counted();
    }

    /// Returns the number of entries in the timer wheel, stale ones included.
    #[cfg(test)]
    pub fn timers_count(&self) -> usize {
        self.wheel.entries_count()
    }

    /// Sets the number of the next session, as if all sessions before it had existed.
    #[cfg(test)]
    pub fn skip_numbers_to(&mut self, number: u64) {
        self.last_number = number - 1;
    }

    fn counted(&self) -> SessionCounts {
        let mut counts = SessionCounts::default();
        for (_, session) in &self.table {
            counts.add(session);
        }
        counts
    }

    /// Checks the invariant.
    pub fn invariants(&self) {
        assert_eq!(self.counts, self.counted(), "the session counts are wrong");
        for (id, session) in self.iter() {
            session.invariants();
            assert!(
                session.number <= self.last_number,
                "{id:?} has a number that was never issued"
            );
        }
        for slot in self.users.keys() {
            let id = self.id_at(*slot);
            assert!(
                id.is_some_and(|id| self.is_open(id)),
                "slot {slot} has a user id but is not a member's"
            );
        }
    }
}

impl Index<SessionId> for Sessions {
    type Output = Session;

    fn index(&self, id: SessionId) -> &Session {
        self.get(id).expect("the session exists")
    }
}

impl IndexMut<SessionId> for Sessions {
    fn index_mut(&mut self, id: SessionId) -> &mut Session {
        self.get_mut(id).expect("the session exists")
    }
}
