//! Checks that in the steady state nothing is allocated on the path of an op: a shard serves while
//! a counting allocator watches.
//!
//! Allocations are counted per thread, so that the tests can run side by side. Growing an
//! allocation counts as one.

#![allow(
    unsafe_code,
    reason = "an allocator is unsafe to implement; see SAFETY at each block"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use driver::{Driver, put_frame, put_op};
use etherply::config::RingChoice;
use etherply::io::ring::RingKind;
use etherply::limits::SECOND_US;
use etherply::log::commit::Durability;

mod driver;
mod peers;
mod version2;
mod worker;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    COUNT.set(COUNT.get() + 1);
}

// SAFETY:
// - every call is passed on unchanged to the system's allocator; counting allocates nothing
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY:
        // - the caller keeps the contract of this very function
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY:
        // - the caller keeps the contract of this very function
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY:
        // - the caller keeps the contract of this very function
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Returns the number of allocations by this thread during `part`.
fn allocations(part: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    part();
    COUNT.get() - before
}

const DURABILITIES: [Durability; 3] = [Durability::Always, Durability::Interval, Durability::None];
const KEYS: u64 = 12;
const LENGTHS: u64 = 7;
/// A slow client reads once in this many rounds.
const SLOW_ROUNDS: u64 = 12;
/// The number of rounds in which everything that varies has occurred in every combination.
const PERIOD: u64 = KEYS * LENGTHS;

/// A load whose rounds differ only in their keys and lengths.
#[derive(Clone, Copy)]
struct Load {
    workspaces: usize,
    /// The members of each workspace. The first `writers` of them write.
    members: usize,
    writers: usize,
    /// The number of members, the last of each workspace, that read nothing for many rounds.
    slow: usize,
    /// The number of ops that each writer sends in a round.
    ops: u64,
    /// The number of these ops that are older than the current value, so that the writer is
    /// corrected.
    losers: u64,
    /// A writer's bytes arrive in two parts, the first of which ends within a frame.
    is_cut: bool,
}

/// The usual load: all ops win, and all clients are fast.
const PLAIN: Load = Load {
    workspaces: 1,
    members: 10,
    writers: 1,
    slow: 0,
    ops: 3,
    losers: 0,
    is_cut: false,
};

struct Run {
    load: Load,
    driver: Driver,
    round: u64,
    won: u64,
    lost: u64,
    text: Vec<u8>,
}

impl Run {
    fn new(durability: Durability, load: Load) -> Self {
        let mut driver = Driver::new(durability, |config| {
            config.outbox_bytes_max = 16 * 1024;
            config.ping_interval_us = SECOND_US;
        });
        for workspace in 0..load.workspaces {
            for _ in 0..load.members {
                driver.join(&format!("workspace-{workspace}"));
            }
        }
        Self {
            load,
            driver,
            round: 0,
            won: 0,
            lost: 0,
            text: Vec::with_capacity(1 << 20),
        }
    }

    fn rounds(&mut self, count: u64) {
        for _ in 0..count {
            self.round();
        }
    }

    fn winners_per_round(&self) -> u64 {
        let writers = self.load.workspaces * self.load.writers;
        (self.load.ops - self.load.losers) * writers as u64
    }

    fn losers_per_round(&self) -> u64 {
        let writers = self.load.workspaces * self.load.writers;
        self.load.losers * writers as u64
    }

    /// Checks that every fast client received everything, and every slow one less.
    fn check_received(&self, durability: Durability) {
        let Load { members, slow, .. } = self.load;
        let each = self.won / self.load.workspaces as u64;
        let each_writer = self.load.writers as u64;
        for (place, member) in self.driver.members.iter().enumerate() {
            let number = place % members;
            let is_writer = number < self.load.writers;
            let (own, corrections) = if is_writer {
                let writers = each_writer * self.load.workspaces as u64;
                (self.won / writers, self.lost / writers)
            } else {
                (0, 0)
            };
            let owed = each - own + corrections;
            let what = format!(
                "{durability:?}: {} frames for {place}",
                member.counter.frames
            );
            if number >= members - slow {
                assert!(member.counter.frames < owed, "{what}, which reads slowly");
            } else {
                let pings = member.counter.frames - owed;
                assert!(
                    pings <= self.driver.seconds(),
                    "{what}, {owed} frames are expected"
                );
            }
        }
    }

    /// Runs one round, in which all writers write in one turn.
    fn round(&mut self) {
        let Load { members, .. } = self.load;
        self.round += 1;
        for place in 0..self.driver.members.len() {
            let number = place % members;
            let is_slow = number >= members - self.load.slow;
            self.driver.members[place].reads = !is_slow || self.round.is_multiple_of(SLOW_ROUNDS);
            if number < self.load.writers {
                self.write(place);
            } else {
                self.driver.send(place, |out| put_frame(out, 10, |_| ()));
            }
        }
        self.driver.pass(20_000);
        self.driver.settle();
    }

    fn write(&mut self, place: usize) {
        self.text.clear();
        for op in 0..self.load.ops {
            let winners = self.load.ops - self.load.losers;
            let number = self.round * winners + op % winners;
            let value_bytes =
                usize::try_from(number % LENGTHS).expect("the value is small") * 20 + 10;
            let is_loser = op >= winners;
            let timestamp = if is_loser {
                self.lost += 1;
                1_000
            } else {
                self.won += 1;
                1_000_000 + self.won
            };
            put_op(&mut self.text, number % KEYS, value_bytes, timestamp);
        }
        let cut = if self.load.is_cut {
            self.text.len() - 40
        } else {
            0
        };
        for part in [&self.text[..cut], &self.text[cut..]] {
            if !part.is_empty() {
                self.driver.send(place, |out| out.extend_from_slice(part));
            }
            if cut > 0 {
                self.driver.turn();
            }
        }
    }
}

/// Checks that nothing is allocated once everything that varies has occurred.
fn check(load: Load) {
    for durability in DURABILITIES {
        let mut run = Run::new(durability, load);
        run.rounds(6 * PERIOD);
        let before = (run.won, run.lost);
        let count = allocations(|| run.rounds(PERIOD));
        assert_eq!(count, 0, "{durability:?}: allocations in {PERIOD} rounds");
        assert_eq!(run.won - before.0, run.winners_per_round() * PERIOD);
        assert_eq!(run.lost - before.1, run.losers_per_round() * PERIOD);
        run.check_received(durability);
    }
}

#[test]
fn one_writer() {
    check(PLAIN);
}

#[test]
fn many_concurrent_writers() {
    check(Load {
        members: 8,
        writers: 5,
        ..PLAIN
    });
}

#[test]
fn many_workspaces() {
    check(Load {
        workspaces: 10,
        members: 3,
        writers: 3,
        ..PLAIN
    });
}

#[test]
fn bursts() {
    check(Load {
        members: 4,
        writers: 2,
        ops: 30,
        ..PLAIN
    });
}

#[test]
fn losers_are_corrected() {
    for (ops, losers) in [(4, 2), (40, 25)] {
        check(Load {
            members: 4,
            writers: 2,
            ops,
            losers,
            ..PLAIN
        });
    }
}

#[test]
fn frames_that_arrive_in_two_parts() {
    for ops in [3, 40] {
        check(Load {
            members: 4,
            writers: 3,
            ops,
            is_cut: true,
            ..PLAIN
        });
    }
}

#[test]
fn slow_clients_are_conflated() {
    for writers in [1, 5] {
        check(Load {
            members: 5,
            writers,
            slow: 2,
            ops: 30,
            ..PLAIN
        });
    }
}

/// Covers the ring, the worker and the log's files. The kernel decides when operations complete, so
/// a buffer may grow late; but if every op, turn or commit allocated, no window would be free of
/// allocations.
#[test]
fn a_worker_on_its_ring() {
    let rings = RingKind::choose(RingChoice::Auto);
    for ring in rings.into_iter().chain([RingKind::COMPAT]) {
        for durability in DURABILITIES {
            let counts = worker::allocations_by_window(ring, durability, || COUNT.get());
            assert_eq!(counts.len() as u64, worker::WINDOWS);
            assert!(counts.contains(&0), "{ring} {durability:?}: {counts:?}");
        }
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(Box::new(7))), 1);
    let mut list = Vec::with_capacity(1);
    assert_eq!(allocations(|| list.extend([1])), 0);
    assert_eq!(allocations(|| list.extend([1])), 1, "growth is not counted");
}
