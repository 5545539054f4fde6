//! Figures of the shards, each written by its own shard alone and read by whoever shows them; figures of the log as a whole.
//!
//! A shard writes with plain stores, and reads again only what it has written itself, so that no processor waits for another
//! one; what seldom changes is stored only when it did. No figure depends on another: each is read as it stands.

use std::array;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::core::shard::counters::{
    CLOSE_CLASSES, Counters, DURATION_CLASSES, Durations, GROUP_CLASSES, RESPONSE_CLASSES, Tally,
    duration_class,
};
use crate::limits::LONGEST_TURN_WINDOW_US;

/// How many fdatasyncs are remembered: those of the last seconds, of a busy shard.
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
            // What is shown adds up, whatever was stored meanwhile.
            count: counts.iter().sum(),
        }
    }
}

/// Adds to a number that this thread alone writes.
fn raise(number: &AtomicU64, by: u64) {
    number.store(number.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

/// The longest turn of this window of time, and of the one before.
#[derive(Debug, Default)]
struct Longest {
    window_began_us: AtomicU64,
    us: AtomicU64,
    before_us: AtomicU64,
}

impl Longest {
    fn note(&self, took_us: u64, now_us: u64) {
        if now_us - self.window_began_us.load(Ordering::Relaxed) >= LONGEST_TURN_WINDOW_US {
            // Of a window that ended longer ago than one more, nothing is told any more.
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

    /// A shard without turns does not move its window on.
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

/// The figures of a shard.
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
    /// How long the last ones took, in turn.
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

/// What the figures of a shard were when they were read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// What the shard counts.
    pub counters: Counters,
    /// How long the log's writes took.
    pub writes: Durations,
    /// How long its fdatasyncs took.
    pub syncs: Durations,
    /// How long the turns of the loop took.
    pub turns: Durations,
    /// The longest of them of late.
    pub longest_turn_us: u64,
    /// How often the kernel had refused operations of the ring.
    pub ring_retries: u64,
}

impl ShardStats {
    /// Tells what the shard has done.
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

    /// Tells how long an fdatasync took.
    pub fn synced(&self, took_us: u64) {
        let count = self.syncs.count.load(Ordering::Relaxed);
        let place = usize::try_from(count % SYNCS_COUNT as u64).expect("a small number");
        let short_us = u32::try_from(took_us).unwrap_or(u32::MAX);
        self.last_syncs_us[place].store(short_us, Ordering::Relaxed);
        self.syncs.add(duration_class(took_us), took_us);
    }

    /// Tells how long a write of the log took.
    pub fn written(&self, took_us: u64) {
        self.writes.add(duration_class(took_us), took_us);
    }

    /// Tells how long a turn of the loop took that has just ended.
    pub fn turned(&self, took_us: u64, now_us: u64) {
        self.turns.add(duration_class(took_us), took_us);
        self.longest_turn.note(took_us, now_us);
    }

    /// Sets how often the kernel had refused operations, which were submitted again.
    pub fn retried(&self, retries: u64) {
        self.ring_retries.store(retries, Ordering::Relaxed);
    }

    /// The figures as they stand.
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

    fn figures(&self) -> Figures {
        let counters = self.read(0).counters;
        let sync_count = self.syncs.count.load(Ordering::Relaxed);
        let known = usize::try_from(sync_count).map_or(SYNCS_COUNT, |n| n.min(SYNCS_COUNT));
        let mut syncs_us: Vec<u32> = self.last_syncs_us[..known]
            .iter()
            .map(|took_us| took_us.load(Ordering::Relaxed))
            .collect();
        syncs_us.sort_unstable();
        let percentile = |percent: usize| {
            let rank = (known * percent).div_ceil(100).max(1) - 1;
            syncs_us.get(rank).copied().unwrap_or(0)
        };
        Figures {
            ops: counters.ops,
            deliveries: counters.deliveries,
            connections: counters.connections,
            workspaces: counters.workspaces,
            refused: Refused {
                ops_by_rate: counters.refused_rate,
                ops_by_workspace_bytes: counters.refused_workspace_bytes,
                connections_by_workspace: counters.refused_members,
                handshakes_by_rate: counters.refused_handshakes,
                snapshot_bytes: counters.refused_snapshot_bytes,
                closed_by_policy: counters.closes.of(1008),
            },
            sync_count,
            sync_us_p50: percentile(50),
            sync_us_p99: percentile(99),
        }
    }
}

/// What is known of the log as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// Segments, the open ones too.
    pub segments: u64,
    /// The length of those that are closed.
    pub closed_bytes: u64,
    /// Compactions that came to their end.
    pub compactions: u64,
    /// What they freed.
    pub compaction_freed_bytes: u64,
    /// Compactions that failed.
    pub compaction_failures: u64,
    /// Ops that were read at the start.
    pub recovered_ops: u64,
    /// What was cut off then: writes that a crash had interrupted.
    pub torn_bytes: u64,
    /// How long that took.
    pub recovery_us: u64,
    /// The last compaction failed, or none is possible any more.
    pub compaction_is_broken: bool,
    /// What is free on the disk, where that is known.
    pub disk_free_bytes: Option<u64>,
}

/// The figures of the log. They change seldom, and on no way of an op.
#[derive(Debug, Default)]
pub struct LogStats(Mutex<LogFigures>);

impl LogStats {
    /// Tells what has changed.
    pub fn tell(&self, change: impl FnOnce(&mut LogFigures)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The figures as they stand.
    #[must_use]
    pub fn read(&self) -> LogFigures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Figures {
    ops: u64,
    deliveries: u64,
    connections: u64,
    workspaces: u64,
    refused: Refused,
    sync_count: u64,
    sync_us_p50: u32,
    sync_us_p99: u32,
}

/// What the limits of a shard have kept out.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Refused {
    ops_by_rate: u64,
    ops_by_workspace_bytes: u64,
    connections_by_workspace: u64,
    handshakes_by_rate: u64,
    snapshot_bytes: u64,
    closed_by_policy: u64,
}

#[derive(Serialize)]
struct Stats {
    uptime_us: u64,
    shards: Vec<Figures>,
}

/// The figures of all shards: what the console plots.
pub(super) fn to_json(uptime_us: u64, shards: &[ShardStats]) -> Vec<u8> {
    let stats = Stats {
        uptime_us,
        shards: shards.iter().map(ShardStats::figures).collect(),
    };
    serde_json::to_vec(&stats).expect("numbers always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_last_fdatasyncs() {
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
            let figures = stats.figures();
            assert_eq!(
                (figures.sync_count, figures.sync_us_p50, figures.sync_us_p99),
                (count, p50, p99)
            );
        }
    }

    #[test]
    fn the_figures_are_the_counters() {
        let stats = ShardStats::default();
        stats.publish(&Counters {
            ops: 1,
            deliveries: 2,
            connections: 3,
            workspaces: 4,
            refused_rate: 5,
            refused_workspace_bytes: 6,
            refused_members: 7,
            refused_handshakes: 8,
            refused_snapshot_bytes: 9,
            ..Counters::default()
        });
        stats.synced(u64::from(u32::MAX) + 1);
        let json = String::from_utf8(to_json(9, &[stats])).unwrap();
        assert_eq!(
            json,
            r#"{"uptime_us":9,"shards":[{"ops":1,"deliveries":2,"connections":3,"workspaces":4,"refused":{"ops_by_rate":5,"ops_by_workspace_bytes":6,"connections_by_workspace":7,"handshakes_by_rate":8,"snapshot_bytes":9,"closed_by_policy":0},"sync_count":1,"sync_us_p50":4294967295,"sync_us_p99":4294967295}]}"#
        );
    }

    #[test]
    fn what_is_read_is_what_was_published() {
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
    fn the_longest_turn_is_forgotten_after_a_while() {
        const WINDOW_US: u64 = LONGEST_TURN_WINDOW_US;
        let longest = Longest::default();
        longest.note(500, 1000);
        longest.note(100, WINDOW_US - 1);
        assert_eq!(longest.read_us(WINDOW_US - 1), 500);
        longest.note(200, WINDOW_US);
        assert_eq!(longest.read_us(WINDOW_US), 500, "of the window before");
        longest.note(30, 2 * WINDOW_US);
        assert_eq!(longest.read_us(2 * WINDOW_US), 200);
        // No turn moves the window on.
        for (now_us, us) in [
            (3 * WINDOW_US - 1, 200),
            (3 * WINDOW_US, 30),
            (4 * WINDOW_US, 0),
        ] {
            assert_eq!(longest.read_us(now_us), us, "{now_us}");
        }
        longest.note(1, 9 * WINDOW_US);
        assert_eq!(longest.read_us(9 * WINDOW_US), 1, "nothing of long ago");
    }
}
