//! Lets a world settle: everything that can happen happens, and the clock advances only when
//! nothing else can happen.

use etherply::limits::TIMER_TICK_US;

use crate::client::Reading;
use crate::server::Seat;
use crate::turns::CALM_US;
use crate::world::World;

/// The maximum number of rounds of events at one time: several for each client of a full workspace.
const ROUNDS_AT_ONCE_MAX: usize = 20_000;
/// The maximum number of deadlines until the world has settled: every tick of the timers, for
/// several times the longest timeout.
const CLOCK_MOVES_MAX: usize = 20_000;

impl World {
    /// Completes everything that is in flight, until nothing more happens.
    pub fn settle(&mut self) {
        self.settle_for(CALM_US);
    }

    /// Settles the world, including all deadlines within `quiet_us`.
    ///
    /// The number of events grows with that time: 500 clients that are pinged each second exchange
    /// 77,000 frames before a stall would be noticed. The bounds therefore apply to the events at
    /// one time and to the steps of the clock; an endless loop exceeds one of them.
    pub fn settle_for(&mut self, quiet_us: u64) {
        self.calm_down();
        let mut until_us = self.clock.now_us + quiet_us;
        let (mut rounds_at_once, mut moves) = (0, 0);
        let mut closed_count = self.closed_count();
        loop {
            assert!(
                rounds_at_once < ROUNDS_AT_ONCE_MAX,
                "the simulation does not settle"
            );
            assert!(moves < CLOCK_MOVES_MAX, "the clock is moved too often");
            rounds_at_once += 1;
            self.bury();
            if self.server.is_none() {
                self.boot();
                until_us = self.clock.now_us + quiet_us;
                continue;
            }
            self.happen_well();
            if self.server.is_none() || self.is_busy() {
                continue;
            }
            self.check_prompt();
            if self.closed_count() != closed_count {
                // The peers learn with the next presence message who was closed just now.
                closed_count = self.closed_count();
                until_us = until_us.max(self.clock.now_us + 2 * self.plan.presence().interval_us);
            }
            let server = self.server.as_ref().expect("it is idle");
            let running = server.seats.iter().filter(|seat| !seat.is_drained);
            let next_us = running
                .filter_map(|seat| seat.shard.next_deadline_us())
                .min();
            let next_us = next_us.filter(|next_us| *next_us <= until_us);
            let compacts_us = server.compacts_at_us();
            let next_us = next_us.into_iter().chain(compacts_us).min();
            let Some(next_us) = next_us else {
                return;
            };
            until_us = until_us.max(compacts_us.unwrap_or(0));
            let us = next_us.saturating_sub(self.clock.now_us).max(1);
            self.clock.now_us += us;
            self.clock.unix_us += us;
            (rounds_at_once, moves) = (0, moves + 1);
        }
    }

    /// Takes the network down for `us`: nothing arrives at the server, and its own sends stay in
    /// the sockets.
    pub fn hear_nobody(&mut self, us: u64) {
        self.journal
            .note(|| format!("no client is heard for {us} us"));
        let until_us = self.clock.now_us + us;
        while self.clock.now_us < until_us && !self.disk.is_dead() {
            self.go_on_with_log();
            self.finish_send();
            for shard in 0..self.shards as usize {
                if self.server.is_some() && !self.disk.is_dead() {
                    self.turn(shard);
                }
            }
            let seats = self.server.iter().flat_map(|server| &server.seats);
            let next_us = seats.filter_map(|seat| seat.shard.next_deadline_us()).min();
            // Work that waits for the log or another thread is checked again at the next tick.
            let next_us = next_us.unwrap_or(until_us);
            let next_us = next_us.max(self.clock.now_us + TIMER_TICK_US);
            let us = next_us.min(until_us) - self.clock.now_us;
            self.clock.now_us += us;
            self.clock.unix_us += us;
        }
    }

    fn closed_count(&self) -> usize {
        let clients = self.clients.iter();
        clients.filter(|client| client.code.is_some()).count()
    }

    /// Returns whether something is in progress that does not wait for the clock.
    fn is_busy(&self) -> bool {
        let Some(server) = &self.server else {
            return true;
        };
        let has_work = |seat: &Seat| seat.operation.is_some() || seat.errand.is_some();
        !server.is_serving()
            || !server.letters.is_empty()
            || server.compaction.is_some()
            || server.seats.iter().any(has_work)
            || (0..server.seats.len()).any(|shard| self.has_reason(shard))
            || self.may_move()
            || self.may_compact()
    }

    /// Runs everything that can happen.
    pub fn happen_well(&mut self) {
        self.deliver();
        self.finish_send();
        self.go_on_with_log();
        self.go_on();
        if self.server.is_none() {
            return;
        }
        self.look_at_log();
        self.try_inside(Self::compact);
        for shard in 0..self.shards as usize {
            self.turn(shard);
        }
        self.end_drained();
    }

    /// Returns whether a client has something to send or to receive.
    fn may_move(&self) -> bool {
        self.live
            .iter()
            .map(|place| &self.clients[*place])
            .any(|client| {
                let is_here = client.reading != Reading::HalfOpen;
                let has_news = !client.outgoing.is_empty() || client.is_leaving;
                let sends = client.receiving && (client.is_broken || has_news && is_here);
                sends || client.sending.is_some() && (client.is_broken || is_here)
            })
    }
}
