//! When a shard that has always somebody to send to rests.
//!
//! A shard whose rounds run into each other, so that somebody is sent to again before the queue was empty, sends each session what
//! has come since it was there last, and could go on so for ever. But a send costs nearly the same with few frames as with
//! many, on both ends, and who receives is as busy as the shard, and answers late. So it rests for a while after each slice, and
//! more gathers for each send. In `always` mode the commits are such rests.

use crate::limits::{REST_AFTER_US, REST_SHARE, REST_US_MAX};

/// Whether a shard rests.
#[derive(Debug)]
pub struct Pacer {
    /// That of now.
    stretch: BusyPeriod,
    busy: Option<Busy>,
    until_us: Option<u64>,
}

/// A time during which there was always somebody left, by its number.
pub type BusyPeriod = u32;

/// That of a session which was not sent to yet.
pub const NEVER: BusyPeriod = 0;

#[derive(Debug)]
struct Busy {
    /// Since when there was somebody left after each slice.
    since_us: u64,
    /// When the last slice was served, if the rest after it is still to come.
    slice_us: Option<u64>,
    /// Somebody was sent to twice: more gathers for each.
    is_again: bool,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            stretch: NEVER + 1,
            busy: None,
            until_us: None,
        }
    }
}

impl Pacer {
    /// Whether to rest now, instead of the next slice.
    pub fn holds(&mut self, now_us: u64) -> bool {
        if let Some(busy) = &mut self.busy
            && let Some(slice_us) = busy.slice_us.take()
            && busy.is_again
            && now_us.saturating_sub(busy.since_us) >= REST_AFTER_US
        {
            let took_us = now_us.saturating_sub(slice_us);
            self.until_us = Some(now_us + (took_us / REST_SHARE).min(REST_US_MAX));
        }
        self.until_us = self.until_us.filter(|until_us| now_us < *until_us);
        self.until_us.is_some()
    }

    /// Takes that somebody is sent to, who was last sent to in that stretch.
    pub fn sends(&mut self, last: &mut BusyPeriod) {
        let is_again = std::mem::replace(last, self.stretch) == self.stretch;
        if let Some(busy) = &mut self.busy {
            busy.is_again |= is_again;
        }
    }

    /// Takes that a slice was served, and whether somebody is left.
    pub fn served(&mut self, is_left: bool, now_us: u64) {
        if !is_left {
            self.busy = None;
            self.stretch = self.stretch.wrapping_add(1).max(NEVER + 1);
            return;
        }
        let busy = self.busy.get_or_insert(Busy {
            since_us: now_us,
            slice_us: None,
            is_again: false,
        });
        busy.slice_us = Some(now_us);
    }

    /// When it ends, if there is one.
    #[must_use]
    pub fn until_us(&self) -> Option<u64> {
        self.until_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves slices of so many microseconds to one session each, with somebody left; gives how long all of them took, and the rests.
    fn busy(
        rest: &mut Pacer,
        sessions: &mut [BusyPeriod],
        mut now_us: u64,
        slice_us: u64,
        slices: usize,
    ) -> (u64, u64) {
        let (begun_us, mut rested_us) = (now_us, 0);
        for slice in 0..slices {
            rest.sends(&mut sessions[slice % sessions.len()]);
            rest.served(true, now_us);
            now_us += slice_us;
            while rest.holds(now_us) {
                assert!(rest.until_us() > Some(now_us));
                now_us += 1;
                rested_us += 1;
            }
            assert_eq!(rest.until_us(), None);
        }
        (now_us - begun_us, rested_us)
    }

    #[test]
    fn it_rests_for_a_part_of_its_time_once_it_was_busy_for_long() {
        let (mut rest, mut sessions) = (Pacer::default(), [NEVER; 2]);
        let slices = usize::try_from(REST_AFTER_US / 1000).unwrap() - 1;
        let (took_us, rested_us) = busy(&mut rest, &mut sessions, 7, 1000, slices);
        assert_eq!((took_us, rested_us), (REST_AFTER_US - 1000, 0));
        let (_, rested_us) = busy(&mut rest, &mut sessions, 7 + took_us, 1000, 101);
        assert_eq!(rested_us, 101 * 1000 / REST_SHARE);
    }

    #[test]
    fn it_does_not_rest_before_somebody_is_sent_to_again() {
        let (mut rest, mut sessions) = (Pacer::default(), [NEVER; 200]);
        for round in 0..3 {
            let begun_us = round * 1_000_000;
            let (_, rested_us) = busy(&mut rest, &mut sessions, begun_us, 1000, 200);
            assert_eq!(rested_us, 0, "one long round");
            rest.served(false, begun_us + 300_000);
        }
        busy(&mut rest, &mut sessions, 9_000_000, 1000, 200);
        let (_, rested_us) = busy(&mut rest, &mut sessions, 9_300_000, 1000, 10);
        assert_eq!(rested_us, 10 * 1000 / REST_SHARE);
    }

    #[test]
    fn who_has_caught_up_does_not_rest() {
        let (mut rest, mut session) = (Pacer::default(), NEVER);
        for round in 0..100 {
            let now_us = round * REST_AFTER_US;
            for _ in 0..2 {
                rest.served(true, now_us);
                rest.sends(&mut session);
            }
            assert!(!rest.holds(now_us + REST_AFTER_US / 2));
            rest.served(false, now_us + REST_AFTER_US / 2);
            assert!(!rest.holds(now_us + REST_AFTER_US - 1));
        }
    }

    #[test]
    fn a_rest_is_never_long() {
        let (mut rest, mut session) = (Pacer::default(), NEVER);
        let mut serve = |rest: &mut Pacer, now_us| {
            rest.served(true, now_us);
            rest.sends(&mut session);
            rest.sends(&mut session);
        };
        serve(&mut rest, 0);
        assert!(rest.holds(60_000_000));
        assert_eq!(rest.until_us(), Some(60_000_000 + REST_US_MAX));
        assert!(!rest.holds(60_000_000 + REST_US_MAX));
        // The clock of another turn.
        serve(&mut rest, 60_000_000);
        assert!(!rest.holds(59_000_000));
    }
}
