//! What a shard corrects after an absence ([`absence`](crate::core::shard::absence)).

use crate::core::contract::Clock;
use crate::core::shard::Shard;
use crate::core::shard::absence::Missed;
use crate::core::shard::timers::tick_of;

impl Shard {
    /// Reads the clock: the time of the shard, which begins a turn or goes on with it.
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
    /// That is how old ops are that the disk does not have yet (a crash of `interval` mode can lose no more than its interval),
    /// latencies, the end of tokens, and rates: a client may have sent all the time at its rate, and all of that comes at once.
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
