//! When a shard that has always somebody to send to rests.
//!
//! A shard whose rounds run into each other sends each session what has come since it was there last, and could go on so for ever. But a
//! send costs nearly the same with few frames as with many, on both ends, and who receives is as busy as the shard, and answers
//! late. So it rests for a while after each slice, and more gathers for each send. In `always` mode the commits are such rests.

use crate::limits::{REST_AFTER_US, REST_SHARE, REST_US_MAX};

/// Whether a shard rests.
#[derive(Debug, Default)]
pub struct Rest {
    busy: Option<Busy>,
    until_us: Option<u64>,
}

#[derive(Debug)]
struct Busy {
    /// Since when there was somebody left after each slice.
    since_us: u64,
    /// When the last slice was served, if the rest after it is still to come.
    slice_us: Option<u64>,
}

impl Rest {
    /// Whether to rest now, instead of the next slice.
    pub fn holds(&mut self, now_us: u64) -> bool {
        if let Some(busy) = &mut self.busy
            && let Some(slice_us) = busy.slice_us.take()
            && now_us.saturating_sub(busy.since_us) >= REST_AFTER_US
        {
            let took_us = now_us.saturating_sub(slice_us);
            self.until_us = Some(now_us + (took_us / REST_SHARE).min(REST_US_MAX));
        }
        self.until_us = self.until_us.filter(|until_us| now_us < *until_us);
        self.until_us.is_some()
    }

    /// Takes that a slice was served, and whether somebody is left.
    pub fn served(&mut self, is_left: bool, now_us: u64) {
        let before = self.busy.take();
        self.busy = is_left.then(|| Busy {
            since_us: before.map_or(now_us, |busy| busy.since_us),
            slice_us: Some(now_us),
        });
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

    /// Serves slices of so many microseconds, with somebody left; gives how long all of them took, and the rests.
    fn busy(rest: &mut Rest, mut now_us: u64, slice_us: u64, slices: usize) -> (u64, u64) {
        let (begun_us, mut rested_us) = (now_us, 0);
        for _ in 0..slices {
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
        let mut rest = Rest::default();
        let slices = usize::try_from(REST_AFTER_US / 1000).unwrap() - 1;
        let (took_us, rested_us) = busy(&mut rest, 7, 1000, slices);
        assert_eq!((took_us, rested_us), (REST_AFTER_US - 1000, 0));
        let (_, rested_us) = busy(&mut rest, 7 + took_us, 1000, 101);
        assert_eq!(rested_us, 101 * 1000 / REST_SHARE);
    }

    #[test]
    fn who_has_caught_up_does_not_rest() {
        let mut rest = Rest::default();
        for round in 0..100 {
            let now_us = round * REST_AFTER_US;
            rest.served(true, now_us);
            assert!(!rest.holds(now_us + REST_AFTER_US / 2));
            rest.served(false, now_us + REST_AFTER_US / 2);
            assert!(!rest.holds(now_us + REST_AFTER_US - 1));
        }
    }

    #[test]
    fn a_rest_is_never_long() {
        let mut rest = Rest::default();
        rest.served(true, 0);
        assert!(rest.holds(60_000_000));
        assert_eq!(rest.until_us(), Some(60_000_000 + REST_US_MAX));
        assert!(!rest.holds(60_000_000 + REST_US_MAX));
        // The clock of another turn.
        rest.served(true, 60_000_000);
        assert!(!rest.holds(59_000_000));
    }
}
