//! Corrections after an absence of a shard ([`shard_clock`](crate::core::shard::shard_clock)).

use crate::core::shard::Shard;
use crate::core::shard::contract::Clock;
use crate::core::shard::shard_clock::Missed;
use crate::core::shard::timers::tick_of;

impl Shard {
    /// Converts the caller's clock into the shard's clock, at the beginning of a turn or during it,
    /// and makes the corrections if the shard was absent.
    pub(super) fn woke(&mut self, clock: Clock) -> Clock {
        let missed = self.absence.woke(clock.now_us);
        let clock = self.absence.local(clock);
        self.turn_us = clock.now_us;
        if let Some(missed) = missed {
            self.counters.absent_us += missed.us;
            self.allow_for_absence(missed, clock);
        }
        clock
    }

    /// Corrects everything that depends on the time that has actually passed.
    ///
    /// These are the age of ops that are not on disk yet (a crash in `interval` mode may lose no
    /// more than its interval), latencies, the expiry of tokens, and rates: a client may have sent
    /// at its full rate during the absence, and all those bytes arrive at once.
    pub(super) fn allow_for_absence(&mut self, missed: Missed, clock: Clock) {
        self.log.has_aged(missed.us);
        self.sends.has_aged(missed.us);
        self.admission.has_aged(missed.us);
        if let Some(per_second) = self.config.limits.ops_per_second {
            self.sessions.allow_for(per_second, missed.deaf_us);
        }
        for slot in self.sessions.slots() {
            let Some(id) = self.sessions.id_at(slot) else {
                continue;
            };
            let session = &self.sessions[id];
            let left_us = session.expires_at_us.saturating_sub(clock.unix_us);
            // Tokens expire by the wall clock, which did not stop, so the session's timer may now
            // fire too late.
            if tick_of(clock.now_us.saturating_add(left_us)) < session.timer_tick {
                self.reschedule(id, clock);
            }
        }
    }
}
