//! Pacing: a saturated shard pauses between send slices so that each send carries more.
//!
//! A shard is saturated if it sends to the same session again before its queue has emptied. Each
//! send then carries only what has arrived since the previous one to that session. But a send with
//! few frames costs both ends nearly as much as one with many, and a busy receiver responds late.
//! So the shard pauses after each slice, which lets each send carry more. In `always` mode the
//! commits already act as pauses.

use crate::limits::{PACE_AFTER_US, PACE_PAUSE_US_MAX, PACE_SHARE};

/// The state that determines when a shard pauses between send slices.
#[derive(Debug)]
pub struct Pacer {
    /// The current busy period, or the next one.
    period: BusyPeriod,
    saturation: Option<Saturation>,
    paused_until_us: Option<u64>,
}

/// The number of a busy period, during which the send queue is never empty.
pub type BusyPeriod = u32;

/// The value for a session to which nothing has been sent yet.
pub const NEVER: BusyPeriod = 0;

/// A busy period in which a slice has left sessions in the queue.
#[derive(Debug)]
struct Saturation {
    /// When a slice first left a session in the queue.
    since_us: u64,
    /// The time of the last slice. Cleared once it is decided whether to pause after it.
    slice_us: Option<u64>,
    /// Whether any session received two sends in this period, which a pause would have merged into
    /// one. If each session in a long queue receives a single send, a pause gains nothing.
    is_repeated: bool,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            period: NEVER + 1,
            saturation: None,
            paused_until_us: None,
        }
    }
}

impl Pacer {
    /// Returns whether the next slice must wait. Starts the pause after the last slice if one is
    /// due.
    pub fn must_pause(&mut self, now_us: u64) -> bool {
        if let Some(saturation) = &mut self.saturation
            && let Some(slice_us) = saturation.slice_us.take()
            && saturation.is_repeated
            && now_us.saturating_sub(saturation.since_us) >= PACE_AFTER_US
        {
            // The time from slice to slice includes all other work of a turn, so the pause is
            // proportional to everything the shard does.
            let took_us = now_us.saturating_sub(slice_us);
            self.paused_until_us = Some(now_us + (took_us / PACE_SHARE).min(PACE_PAUSE_US_MAX));
        }
        self.paused_until_us = self.paused_until_us.filter(|until_us| now_us < *until_us);
        self.paused_until_us.is_some()
    }

    /// Records a send. `last` is the busy period of the previous send to this session.
    pub fn record_send(&mut self, last: &mut BusyPeriod) {
        let is_repeated = std::mem::replace(last, self.period) == self.period;
        if let Some(saturation) = &mut self.saturation {
            saturation.is_repeated |= is_repeated;
        }
    }

    /// Records the end of a slice, and whether any sessions are left in the queue.
    pub fn end_slice(&mut self, is_any_left: bool, now_us: u64) {
        if !is_any_left {
            self.saturation = None;
            self.period = self.period.wrapping_add(1).max(NEVER + 1);
            return;
        }
        let saturation = self.saturation.get_or_insert(Saturation {
            since_us: now_us,
            slice_us: None,
            is_repeated: false,
        });
        saturation.slice_us = Some(now_us);
    }

    /// Returns the time at which the current pause ends, if there is one.
    #[must_use]
    pub fn paused_until_us(&self) -> Option<u64> {
        self.paused_until_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves slices of `slice_us` to one session each; the queue is never empty. Returns the total
    /// time, and the part of it spent pausing.
    fn busy(
        pacer: &mut Pacer,
        sessions: &mut [BusyPeriod],
        mut now_us: u64,
        slice_us: u64,
        slices: usize,
    ) -> (u64, u64) {
        let (begun_us, mut paused_us) = (now_us, 0);
        for slice in 0..slices {
            pacer.record_send(&mut sessions[slice % sessions.len()]);
            pacer.end_slice(true, now_us);
            now_us += slice_us;
            while pacer.must_pause(now_us) {
                assert!(pacer.paused_until_us() > Some(now_us));
                now_us += 1;
                paused_us += 1;
            }
            assert_eq!(pacer.paused_until_us(), None);
        }
        (now_us - begun_us, paused_us)
    }

    #[test]
    fn a_shard_that_stays_saturated_pauses_for_a_share_of_its_time() {
        let (mut pacer, mut sessions) = (Pacer::default(), [NEVER; 2]);
        let slices = usize::try_from(PACE_AFTER_US / 1000).unwrap() - 1;
        let (took_us, paused_us) = busy(&mut pacer, &mut sessions, 7, 1000, slices);
        assert_eq!((took_us, paused_us), (PACE_AFTER_US - 1000, 0));
        let (_, paused_us) = busy(&mut pacer, &mut sessions, 7 + took_us, 1000, 101);
        assert_eq!(paused_us, 101 * 1000 / PACE_SHARE);
    }

    #[test]
    fn there_is_no_pause_until_a_session_is_sent_to_again() {
        let (mut pacer, mut sessions) = (Pacer::default(), [NEVER; 200]);
        for round in 0..3 {
            let begun_us = round * 1_000_000;
            let (_, paused_us) = busy(&mut pacer, &mut sessions, begun_us, 1000, 200);
            assert_eq!(paused_us, 0, "paused within one long round");
            pacer.end_slice(false, begun_us + 300_000);
        }
        busy(&mut pacer, &mut sessions, 9_000_000, 1000, 200);
        let (_, paused_us) = busy(&mut pacer, &mut sessions, 9_300_000, 1000, 10);
        assert_eq!(paused_us, 10 * 1000 / PACE_SHARE);
    }

    #[test]
    fn a_shard_that_has_caught_up_does_not_pause() {
        let (mut pacer, mut session) = (Pacer::default(), NEVER);
        for round in 0..100 {
            let now_us = round * PACE_AFTER_US;
            for _ in 0..2 {
                pacer.end_slice(true, now_us);
                pacer.record_send(&mut session);
            }
            assert!(!pacer.must_pause(now_us + PACE_AFTER_US / 2));
            pacer.end_slice(false, now_us + PACE_AFTER_US / 2);
            assert!(!pacer.must_pause(now_us + PACE_AFTER_US - 1));
        }
    }

    #[test]
    fn pauses_are_always_short() {
        let (mut pacer, mut session) = (Pacer::default(), NEVER);
        let mut serve = |pacer: &mut Pacer, now_us| {
            pacer.end_slice(true, now_us);
            pacer.record_send(&mut session);
            pacer.record_send(&mut session);
        };
        serve(&mut pacer, 0);
        assert!(pacer.must_pause(60_000_000));
        assert_eq!(
            pacer.paused_until_us(),
            Some(60_000_000 + PACE_PAUSE_US_MAX)
        );
        assert!(!pacer.must_pause(60_000_000 + PACE_PAUSE_US_MAX));
        // Another turn may have an earlier clock reading.
        serve(&mut pacer, 60_000_000);
        assert!(!pacer.must_pause(59_000_000));
    }
}
