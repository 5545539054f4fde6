//! A timer wheel with one current entry per session, in slots of one tick each.
//!
//! A session is woken at the earliest of its deadlines and then sets the next one, so activity
//! costs nothing, because it moves no timers. A stale entry, which expires earlier or later than
//! its session needs, is recognized because its tick differs from the one stored in the session.
//!
//! Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 4.

use crate::core::fanout::free_lists::FreeLists;
use crate::limits::{TIMER_SLOTS, TIMER_TICK_US};

/// The timers of one shard's sessions. `T` identifies a session.
pub struct Wheel<T> {
    slots: Vec<Vec<T>>,
    spare: FreeLists<Vec<T>>,
    occupied: usize,
    /// The first tick that has not expired yet.
    next_tick: u64,
}

/// Returns the tick of a time. An entry expires once its tick has passed completely.
#[must_use]
pub fn tick_of(at_us: u64) -> u64 {
    at_us.div_ceil(TIMER_TICK_US)
}

impl<T: Copy> Wheel<T> {
    /// Returns an empty wheel whose first tick is that of `now_us`.
    #[must_use]
    pub fn new(now_us: u64) -> Self {
        Self {
            slots: (0..TIMER_SLOTS).map(|_| Vec::new()).collect(),
            spare: FreeLists::default(),
            occupied: 0,
            next_tick: tick_of(now_us),
        }
    }

    /// Adds an entry and returns the tick at which it expires. That is at `at_us` or up to one tick
    /// later. An entry that lies more than one round of the wheel ahead expires early.
    pub fn insert(&mut self, at_us: u64, entry: T) -> u64 {
        let last = self.next_tick + TIMER_SLOTS as u64 - 1;
        let tick = tick_of(at_us).clamp(self.next_tick, last);
        let slot = &mut self.slots[slot_of(tick)];
        if slot.capacity() == 0 {
            *slot = self.spare.take();
        }
        slot.push(entry);
        self.occupied += 1;
        tick
    }

    /// Removes and returns the entries of the first expired tick, together with that tick. Returns
    /// `None` if there are no more.
    pub fn expire(&mut self, now_us: u64) -> Option<(u64, Vec<T>)> {
        if self.occupied == 0 {
            self.next_tick = self.next_tick.max(now_us / TIMER_TICK_US);
        }
        while self.next_tick * TIMER_TICK_US <= now_us {
            let tick = self.next_tick;
            self.next_tick += 1;
            let entries = std::mem::take(self.slot(tick));
            if !entries.is_empty() {
                self.occupied -= entries.len();
                return Some((tick, entries));
            }
        }
        None
    }

    /// Returns a list obtained from [`Wheel::expire`] to the wheel for reuse.
    pub fn give_back(&mut self, mut entries: Vec<T>) {
        entries.clear();
        let bytes = entries.capacity() * size_of::<T>();
        self.spare.give(entries, bytes);
    }

    /// Returns the number of entries.
    #[cfg(test)]
    #[must_use]
    pub fn entries_count(&self) -> usize {
        self.occupied
    }

    /// Returns the time at which the next entry expires.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        if self.occupied == 0 {
            return None;
        }
        let ticks = self.next_tick..self.next_tick + TIMER_SLOTS as u64;
        let first = ticks
            .into_iter()
            .find(|tick| !self.slots[slot_of(*tick)].is_empty());
        Some(first.expect("the entry is in a slot") * TIMER_TICK_US)
    }

    fn slot(&mut self, tick: u64) -> &mut Vec<T> {
        &mut self.slots[slot_of(tick)]
    }
}

fn slot_of(tick: u64) -> usize {
    usize::try_from(tick % TIMER_SLOTS as u64).expect("the slot number fits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUND_US: u64 = TIMER_TICK_US * TIMER_SLOTS as u64;

    proptest! {
        /// Compares the wheel with a naive model, a list of times.
        #[test]
        fn entries_expire_at_their_time(
            start in 0..1_000_000_000_u64,
            steps in prop::collection::vec((0..2 * ROUND_US, 0..ROUND_US / 3), 1..50),
        ) {
            let (mut now, mut wheel, mut waiting) = (start, Wheel::new(start), Vec::new());
            for (entry, (delay_us, pass_us)) in steps.into_iter().enumerate() {
                let tick = wheel.insert(now + delay_us, entry);
                waiting.push((entry, tick, now + delay_us.min(ROUND_US - 2 * TIMER_TICK_US)));
                let next = wheel.next_us().unwrap();
                prop_assert_eq!(next, waiting.iter().map(|w| w.1 * TIMER_TICK_US).min().unwrap());
                now += pass_us;
                while let Some((tick, entries)) = wheel.expire(now) {
                    for entry in entries {
                        let place = waiting.iter().position(|w| w.0 == entry).unwrap();
                        let (_, announced, due_us) = waiting.swap_remove(place);
                        prop_assert_eq!(tick, announced);
                        prop_assert!(due_us <= now, "an entry expired early");
                    }
                }
                let is_none_left = waiting.iter().all(|w| w.1 * TIMER_TICK_US > now);
                prop_assert!(is_none_left, "an entry is still in the wheel after its tick");
            }
        }
    }

    #[test]
    fn an_empty_wheel_has_no_next_time() {
        let mut wheel = Wheel::<u8>::new(5);
        assert_eq!(wheel.next_us(), None);
        wheel.insert(10, 1);
        assert!(wheel.expire(TIMER_TICK_US).is_some());
        assert_eq!(wheel.next_us(), None);
    }
}
