//! Corrections of a shard after an absence ([`absence`](crate::core::shard::absence)).

use crate::core::contract::Clock;
use crate::core::shard::Shard;
use crate::core::shard::absence::Missed;
use crate::core::shard::timers::tick_of;

impl Shard {
    /// Converts the time of the caller into that of the shard, at the begin of each call.
    pub(super) fn woke(&mut self, clock: Clock) -> Clock {
        let missed = self.absence.woke(clock.now_us);
        let clock = self.absence.local(clock);
        if let Some(missed) = missed {
            self.counters.absent_us += missed.us;
            self.allow_for_absence(missed, clock);
        }
        clock
    }

    /// Corrects what goes by the time that has really passed.
    ///
    /// That is the age of ops that the disk does not have yet (a crash in `interval` mode loses no
    /// more than an interval), latencies, the end of tokens, and rates: a client may have sent all
    /// the time at its rate, and all of that comes at once.
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
            if tick_of(clock.now_us.saturating_add(left_us)) < session.timer_tick {
                self.reschedule(id, clock);
            }
        }
    }
}
