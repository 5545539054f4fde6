//! Statistics of the shards, each written only by its own shard, and statistics of the log as a
//! whole.
//!
//! A shard writes with plain stores and reads back only what it has written itself, so that no core
//! waits for another. A tally that rarely changes is stored only when it has changed. The values do
//! not depend on each other, so each can be read independently of the rest.

use std::array;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::core::shard::counters::{
    CLOSE_CLASSES, Counters, DURATION_CLASSES, Durations, GROUP_CLASSES, RESPONSE_CLASSES, Tally,
    duration_class,
};
use crate::limits::LONGEST_TURN_WINDOW_US;

/// The number of recent fdatasyncs whose durations are kept, enough for the last seconds of a busy
/// shard.
const SYNCS_COUNT: usize = 256;

/// A [`Tally`] that one thread writes and others read.
#[derive(Debug)]
struct SharedTally<const CLASSES: usize> {
    counts: [AtomicU64; CLASSES],
    sum: AtomicU64,
    count: AtomicU64,
}

impl<const CLASSES: usize> Default for SharedTally<CLASSES> {
    fn default() -> Self {
        Self {
            counts: array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }
}

impl<const CLASSES: usize> SharedTally<CLASSES> {
    fn show(&self, tally: &Tally<CLASSES>) {
        if self.count.load(Ordering::Relaxed) == tally.count {
            return;
        }
        for (shared, count) in self.counts.iter().zip(&tally.counts) {
            shared.store(*count, Ordering::Relaxed);
        }
        self.sum.store(tally.sum, Ordering::Relaxed);
        self.count.store(tally.count, Ordering::Relaxed);
    }

    fn add(&self, class: usize, value: u64) {
        raise(&self.counts[class], 1);
        raise(&self.sum, value);
        raise(&self.count, 1);
    }

    fn read(&self) -> Tally<CLASSES> {
        let counts = array::from_fn(|class| self.counts[class].load(Ordering::Relaxed));
        Tally {
            counts,
            sum: self.sum.load(Ordering::Relaxed),
            // Computed from the classes so that the total matches them, whatever has been stored in
            // the meantime.
            count: counts.iter().sum(),
        }
    }
}

/// Adds to a number that only this thread writes.
fn raise(number: &AtomicU64, by: u64) {
    number.store(number.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

/// The longest turn of the current time window, and of the previous one.
#[derive(Debug, Default)]
struct Longest {
    window_began_us: AtomicU64,
    us: AtomicU64,
    before_us: AtomicU64,
}

impl Longest {
    fn note(&self, took_us: u64, now_us: u64) {
        if now_us - self.window_began_us.load(Ordering::Relaxed) >= LONGEST_TURN_WINDOW_US {
            // The previous window is dropped if it ended more than a whole window ago.
            let age_us = now_us - self.window_began_us.load(Ordering::Relaxed);
            let is_last = age_us < 2 * LONGEST_TURN_WINDOW_US;
            let us = self.us.load(Ordering::Relaxed);
            self.before_us
                .store(if is_last { us } else { 0 }, Ordering::Relaxed);
            self.us.store(took_us, Ordering::Relaxed);
            self.window_began_us.store(now_us, Ordering::Relaxed);
        } else if took_us > self.us.load(Ordering::Relaxed) {
            self.us.store(took_us, Ordering::Relaxed);
        }
    }

    /// Returns the longest turn of the current and the previous window. A shard starts a new window
    /// only with a turn, so the age of its last window is taken into account.
    fn read_us(&self, now_us: u64) -> u64 {
        let us = self.us.load(Ordering::Relaxed);
        let age_us = now_us.saturating_sub(self.window_began_us.load(Ordering::Relaxed));
        if age_us < LONGEST_TURN_WINDOW_US {
            us.max(self.before_us.load(Ordering::Relaxed))
        } else if age_us < 2 * LONGEST_TURN_WINDOW_US {
            us
        } else {
            0
        }
    }
}

/// The statistics of a shard.
#[derive(Debug)]
pub struct ShardStats {
    numbers: [AtomicU64; Counters::NUMBERS],
    groups: SharedTally<GROUP_CLASSES>,
    durable: SharedTally<DURATION_CLASSES>,
    sent: SharedTally<DURATION_CLASSES>,
    responses: SharedTally<RESPONSE_CLASSES>,
    closes: SharedTally<CLOSE_CLASSES>,
    writes: SharedTally<DURATION_CLASSES>,
    syncs: SharedTally<DURATION_CLASSES>,
    turns: SharedTally<DURATION_CLASSES>,
    longest_turn: Longest,
    ring_retries: AtomicU64,
    /// The durations of the most recent fdatasyncs, as a ring buffer.
    last_syncs_us: [AtomicU32; SYNCS_COUNT],
}

impl Default for ShardStats {
    fn default() -> Self {
        Self {
            numbers: array::from_fn(|_| AtomicU64::new(0)),
            groups: SharedTally::default(),
            durable: SharedTally::default(),
            sent: SharedTally::default(),
            responses: SharedTally::default(),
            closes: SharedTally::default(),
            writes: SharedTally::default(),
            syncs: SharedTally::default(),
            turns: SharedTally::default(),
            longest_turn: Longest::default(),
            ring_retries: AtomicU64::new(0),
            last_syncs_us: array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

/// The statistics of a shard at one point in time.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The counters of the shard.
    pub counters: Counters,
    /// The durations of log writes.
    pub writes: Durations,
    /// The durations of fdatasyncs of the log.
    pub syncs: Durations,
    /// The durations of turns of the event loop.
    pub turns: Durations,
    /// The longest turn within the last one to two windows.
    pub longest_turn_us: u64,
    /// The number of times that the kernel refused operations of the ring.
    pub ring_retries: u64,
}

impl ShardStats {
    /// Publishes the shard's counters.
    pub fn publish(&self, counters: &Counters) {
        for (shared, number) in self.numbers.iter().zip(counters.numbers()) {
            shared.store(number, Ordering::Relaxed);
        }
        self.groups.show(&counters.groups);
        self.durable.show(&counters.durable);
        self.sent.show(&counters.sent);
        self.responses.show(&counters.responses);
        self.closes.show(&counters.closes);
    }

    /// Records an fdatasync of the log.
    pub fn synced(&self, took_us: u64) {
        let count = self.syncs.count.load(Ordering::Relaxed);
        let place = usize::try_from(count % SYNCS_COUNT as u64).expect("the number is small");
        let short_us = u32::try_from(took_us).unwrap_or(u32::MAX);
        self.last_syncs_us[place].store(short_us, Ordering::Relaxed);
        self.syncs.add(duration_class(took_us), took_us);
    }

    /// Records a write to the log.
    pub fn written(&self, took_us: u64) {
        self.writes.add(duration_class(took_us), took_us);
    }

    /// Records the event loop turn that has just ended.
    pub fn turned(&self, took_us: u64, now_us: u64) {
        self.turns.add(duration_class(took_us), took_us);
        self.longest_turn.note(took_us, now_us);
    }

    /// Sets the number of times that the kernel refused operations, which were then submitted
    /// again.
    pub fn retried(&self, retries: u64) {
        self.ring_retries.store(retries, Ordering::Relaxed);
    }

    /// Reads the current statistics.
    #[must_use]
    pub fn read(&self, now_us: u64) -> Reading {
        let mut counters = Counters {
            groups: self.groups.read(),
            durable: self.durable.read(),
            sent: self.sent.read(),
            responses: self.responses.read(),
            closes: self.closes.read(),
            ..Counters::default()
        };
        counters.set_numbers(array::from_fn(|place| {
            self.numbers[place].load(Ordering::Relaxed)
        }));
        Reading {
            counters,
            writes: self.writes.read(),
            syncs: self.syncs.read(),
            turns: self.turns.read(),
            longest_turn_us: self.longest_turn.read_us(now_us),
            ring_retries: self.ring_retries.load(Ordering::Relaxed),
        }
    }

    /// Returns the median and the 99th percentile of the most recent fdatasyncs, in microseconds,
    /// and the total number of fdatasyncs.
    #[must_use]
    pub fn sync_percentiles(&self) -> SyncPercentiles {
        let count = self.syncs.count.load(Ordering::Relaxed);
        let known = usize::try_from(count).map_or(SYNCS_COUNT, |n| n.min(SYNCS_COUNT));
        let mut syncs_us: Vec<u32> = self.last_syncs_us[..known]
            .iter()
            .map(|took_us| took_us.load(Ordering::Relaxed))
            .collect();
        syncs_us.sort_unstable();
        let percentile = |percent: usize| {
            let rank = (known * percent).div_ceil(100).max(1) - 1;
            syncs_us.get(rank).copied().unwrap_or(0)
        };
        SyncPercentiles {
            count,
            p50_us: percentile(50),
            p99_us: percentile(99),
        }
    }
}

/// The durations of a shard's most recent fdatasyncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncPercentiles {
    /// The total number of fdatasyncs so far.
    pub count: u64,
    /// The median of the most recent ones, in microseconds.
    pub p50_us: u32,
    /// The 99th percentile of the most recent ones, in microseconds.
    pub p99_us: u32,
}

/// The statistics of the log as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// The number of segments, including open ones.
    pub segments: u64,
    /// The total length of the closed segments.
    pub closed_bytes: u64,
    /// The number of completed compactions.
    pub compactions: u64,
    /// The number of bytes freed by compactions.
    pub compaction_freed_bytes: u64,
    /// The number of failed compactions.
    pub compaction_failures: u64,
    /// The number of ops that were read at startup.
    pub recovered_ops: u64,
    /// The number of bytes cut off at startup, left by writes that a crash had interrupted.
    pub torn_bytes: u64,
    /// The time taken to read the log at startup.
    pub recovery_us: u64,
    /// Whether the last compaction failed, or compaction is no longer possible.
    pub compaction_is_broken: bool,
    /// The free space on the disk, if the file system reports it.
    pub disk_free_bytes: Option<u64>,
}

/// The shared statistics of the log. They change rarely, and never on the path of an op.
#[derive(Debug, Default)]
pub struct LogStats(Mutex<LogFigures>);

impl LogStats {
    /// Updates some of the statistics.
    pub fn update(&self, change: impl FnOnce(&mut LogFigures)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns the current statistics.
    #[must_use]
    pub fn read(&self) -> LogFigures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_cover_the_most_recent_fdatasyncs() {
        for (count, p50, p99) in [
            (0, 0, 0),
            (1, 1, 1),
            (2, 1, 2),
            (100, 50, 99),
            (1000, 872, 998),
        ] {
            let stats = ShardStats::default();
            for took_us in 1..=count {
                stats.synced(took_us);
            }
            let found = stats.sync_percentiles();
            assert_eq!((found.count, found.p50_us, found.p99_us), (count, p50, p99));
        }
    }

    #[test]
    fn published_values_are_read_back() {
        let stats = ShardStats::default();
        let mut counters = Counters::default();
        counters.set_numbers(array::from_fn(|place| place as u64 * 3));
        for us in [1, 30, 60_000_000] {
            counters.durable.took(us);
            counters.sent.took(us * 2);
            counters.groups.had(us);
            counters.responses.answered(401);
            counters.closes.closed(1013);
            stats.publish(&counters);
            stats.written(us);
            stats.synced(us + 1);
            stats.turned(us + 2, us);
            stats.retried(us + 3);
        }
        let reading = stats.read(60_000_000);
        assert_eq!(reading.counters, counters);
        assert_eq!(reading.writes, counters.durable);
        assert_eq!((reading.syncs.count, reading.syncs.sum), (3, 60_000_034));
        assert_eq!((reading.turns.count, reading.turns.sum), (3, 60_000_037));
        assert_eq!(reading.longest_turn_us, 60_000_002);
        assert_eq!(reading.ring_retries, 60_000_003);
    }

    #[test]
    fn the_longest_turn_is_forgotten_after_two_windows() {
        const WINDOW_US: u64 = LONGEST_TURN_WINDOW_US;
        let longest = Longest::default();
        longest.note(500, 1000);
        longest.note(100, WINDOW_US - 1);
        assert_eq!(longest.read_us(WINDOW_US - 1), 500);
        longest.note(200, WINDOW_US);
        assert_eq!(
            longest.read_us(WINDOW_US),
            500,
            "the previous window is not included"
        );
        longest.note(30, 2 * WINDOW_US);
        assert_eq!(longest.read_us(2 * WINDOW_US), 200);
        // Without turns, no new window starts.
        for (now_us, us) in [
            (3 * WINDOW_US - 1, 200),
            (3 * WINDOW_US, 30),
            (4 * WINDOW_US, 0),
        ] {
            assert_eq!(longest.read_us(now_us), us, "{now_us}");
        }
        longest.note(1, 9 * WINDOW_US);
        assert_eq!(
            longest.read_us(9 * WINDOW_US),
            1,
            "an older window is included"
        );
    }
}
