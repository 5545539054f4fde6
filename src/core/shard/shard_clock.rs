//! The clock of a shard, which advances only while the shard is running.
//!
//! A process that is stopped (SIGSTOP, a paused virtual machine) or gets no CPU time receives
//! nothing, and no client may be closed for bytes that the server could not receive. A shard's
//! deadlines are therefore not times on its caller's clock, but on a separate clock that stops
//! while the shard is absent. All deadlines, including any added to the code later, move with that
//! clock without having to be adjusted individually.
//!
//! After each turn, a shard reports when the next one must begin. If that turn begins more than
//! [`LATENESS_US_MAX`] late, the shard was absent. A shorter delay is not an absence: timers are
//! accurate to a tick, and a busy machine is often a few milliseconds late. Three rules determine
//! the shard's time after an absence:
//!
//! - The time after the due time does not count.
//! - Neither does a period just before the due time that is as long as the time missed, but at most
//!   [`GRACE_US`]. It is unknown when during its sleep the shard was stopped, and reading what it
//!   would have received by then may take a turn or two. So the shard reads before it enforces
//!   deadlines.
//! - [`LATENESS_US_MAX`] always counts, so that time advances even for a shard that is late in
//!   every turn. So a server that is always overloaded still closes dead connections.
//!
//! A long turn is also an absence if something became due in the meantime. A deadline that passes
//! while it waits for an operation in flight is not an absence, since the shard keeps having turns.

use crate::core::shard::contract::Clock;
use crate::limits::{GRACE_US, LATENESS_US_MAX};

/// The difference between a shard's clock and its caller's clock.
#[derive(Debug, Default)]
pub struct Absence {
    total_us: u64,
    /// `None` if the shard has no deadline and waits only for inputs.
    sleep: Option<Sleep>,
}

/// The time from the end of a turn until the next one is due, by the shard's clock.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the unit")]
struct Sleep {
    from_us: u64,
    due_us: u64,
    /// The last time that the shard was known to be running.
    seen_us: u64,
}

/// The durations of an absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// The time during which the shard's clock stood still.
    pub us: u64,
    /// The time during which the shard received nothing, that is, the time since its last turn.
    pub deaf_us: u64,
}

impl Absence {
    /// Records the end of a turn and the time at which the next one must begin, both by the shard's
    /// clock.
    pub fn slept(&mut self, now_us: u64, due_us: Option<u64>) {
        self.sleep = due_us.map(|due_us| Sleep {
            from_us: now_us,
            due_us: due_us.max(now_us),
            seen_us: now_us,
        });
    }

    /// Records that the shard is running at the caller's `now_us`. Returns the time it missed; each
    /// absence is returned only once.
    pub fn woke(&mut self, now_us: u64) -> Option<Missed> {
        let sleep = self.sleep.as_mut()?;
        let now_us = now_us.saturating_sub(self.total_us);
        let Sleep {
            from_us,
            due_us,
            seen_us,
        } = *sleep;
        let missed_us = now_us.saturating_sub(due_us.saturating_add(LATENESS_US_MAX));
        if missed_us == 0 {
            sleep.seen_us = seen_us.max(now_us);
            return None;
        }
        let resumed_us = due_us.saturating_sub(missed_us.min(GRACE_US));
        let resumed_us = resumed_us.max(from_us + LATENESS_US_MAX).max(seen_us);
        self.total_us += now_us - resumed_us;
        self.slept(resumed_us, Some(resumed_us));
        Some(Missed {
            us: now_us - resumed_us,
            deaf_us: now_us - from_us,
        })
    }

    /// Converts the caller's clock into the shard's clock. The wall clock is unchanged, because
    /// token expiry depends on it.
    #[must_use]
    pub fn local(&self, clock: Clock) -> Clock {
        Clock {
            now_us: clock.now_us.saturating_sub(self.total_us),
            ..clock
        }
    }

    /// Converts a time on the shard's clock into a time on its caller's clock.
    #[must_use]
    pub fn caller_us(&self, local_us: u64) -> u64 {
        local_us.saturating_add(self.total_us)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(now_us: u64) -> Clock {
        Clock { now_us, unix_us: 7 }
    }

    /// Runs a turn at `now_us` on the caller's clock, with the next one due `after_us` later.
    /// Returns the shard's time.
    fn turn(absence: &mut Absence, now_us: u64, after_us: Option<u64>) -> u64 {
        absence.woke(now_us);
        let local = absence.local(at(now_us));
        assert_eq!(local.unix_us, 7);
        absence.slept(
            local.now_us,
            after_us.map(|after_us| local.now_us + after_us),
        );
        local.now_us
    }

    #[test]
    fn lateness_beyond_the_tolerance_counts_as_absence() {
        const MAX_US: u64 = LATENESS_US_MAX;
        // The due time, the time of waking, and the shard's time then, all relative to the previous
        // turn.
        for (due_us, woke_us, resumed_us) in [
            (Some(500), 100, 100),
            (Some(500), 500 + MAX_US, 500 + MAX_US),
            (Some(500_000), 500_000 + MAX_US + 1, 500_000 - 1),
            (Some(500_000), 500_000 + MAX_US + 7_000, 500_000 - 7_000),
            (Some(0), 60_000_000, MAX_US),
            (Some(5_000_000), 60_000_000, 5_000_000 - GRACE_US),
            (Some(GRACE_US + MAX_US / 2), 60_000_000, MAX_US),
            (None, 60_000_000, 60_000_000),
        ] {
            let mut absence = Absence::default();
            turn(&mut absence, 1000, due_us);
            let case = format!("{due_us:?} {woke_us}");
            let missed = (resumed_us < woke_us).then_some(Missed {
                us: woke_us - resumed_us,
                deaf_us: woke_us,
            });
            assert_eq!(absence.woke(1000 + woke_us), missed, "{case}");
            assert_eq!(absence.woke(1000 + woke_us), None, "reported twice: {case}");
            let local_us = absence.local(at(1000 + woke_us)).now_us;
            assert_eq!(local_us, 1000 + resumed_us, "{case}");
            assert_eq!(absence.caller_us(local_us), 1000 + woke_us, "{case}");
        }
    }

    #[test]
    fn a_passed_deadline_that_waits_for_work_in_flight_is_not_an_absence() {
        let mut absence = Absence::default();
        turn(&mut absence, 10_000_000, Some(0));
        for turns in 1..1000 {
            let now_us = 10_000_000 + turns * 1000;
            assert_eq!(absence.woke(now_us), None);
            absence.slept(absence.local(at(now_us)).now_us, Some(10_000_000));
        }
    }

    proptest! {
        /// The shard's time never goes back, advances in late turns, and never runs faster than the
        /// caller's.
        #[test]
        fn time_never_goes_backward_or_runs_fast(
            turns in prop::collection::vec(
                (0..3_000_000_u64, any::<bool>(), prop::option::of(0..2_000_000_u64)),
                1..100,
            ),
        ) {
            let (mut absence, mut now_us) = (Absence::default(), 0);
            let mut local_us = turn(&mut absence, 0, Some(0));
            let mut turn_us = (0, local_us);
            for (passed_us, is_whole, due_us) in turns {
                now_us += passed_us;
                let next_us = if is_whole {
                    turn(&mut absence, now_us, due_us)
                } else {
                    absence.woke(now_us);
                    absence.local(at(now_us)).now_us
                };
                prop_assert!(next_us >= local_us && next_us <= local_us + passed_us);
                local_us = next_us;
                prop_assert!(local_us - turn_us.1 >= (now_us - turn_us.0).min(LATENESS_US_MAX));
                if is_whole {
                    turn_us = (now_us, local_us);
                }
            }
        }
    }
}
