//! Tombstones that are dropped after their retention, and the floor that they leave behind.

use std::collections::BTreeMap;

use super::expiry::{apply, deleted, expiring, logged, workspace, write};
use super::rig::Rig;
use crate::core::state::workspace::Floor;
use crate::core::testing::Dice;
use crate::limits::{EXPIRIES_PER_TURN_MAX, SECOND_US};
use crate::log::record::Change;
use crate::seq::Seq;

fn retaining(seconds: u64) -> Rig {
    Rig::new(|config| config.tombstone_retention_us = seconds * SECOND_US)
}

/// P127.
#[test]
fn a_tombstone_is_dropped_after_its_retention_and_raises_the_floor() {
    let mut rig = retaining(10);
    write(&mut rig, "a", 50, deleted(0));
    write(&mut rig, "b", 40, Change::write("1"));
    rig.sleep_until(1.0);
    write(&mut rig, "b", 60, deleted(1));
    write(&mut rig, "kept", 30, Change::write("1"));
    rig.sleep_until(9.9);
    assert_eq!(rig.shard.counters().tombstones, 2);
    rig.sleep_until(10.0);
    let counters = rig.shard.counters();
    assert_eq!((counters.tombstones, counters.tombstones_dropped), (1, 1));
    rig.sleep_until(12.0);
    let counters = rig.shard.counters();
    assert_eq!((counters.tombstones, counters.tombstones_dropped), (0, 2));
    assert_eq!(counters.floors, 2);
    let floors: Vec<String> = logged(&mut rig).split_off(4);
    assert_eq!(
        floors,
        ["floor 50, dropped 1 of 4", "floor 60, dropped 3 of 4"]
    );
    assert!(workspace(&mut rig).get("a").is_none());
    let live_bytes = workspace(&mut rig).log_bytes();
    let generation_bytes = Rig::new(|_| ()).shard.live_bytes();
    assert_eq!(rig.shard.live_bytes(), live_bytes + generation_bytes);
    assert_eq!(rig.shard.next_deadline_us(), None, "nothing is left to do");
}

/// P127. P128.
///
/// The seq and the floor survive even if every entry is gone.
#[test]
fn an_empty_workspace_keeps_its_seq_and_its_floor_across_a_rebuild() {
    let mut rig = retaining(10);
    write(&mut rig, "a", 50, deleted(0));
    rig.sleep_until(10.0);
    assert_eq!(workspace(&mut rig).get("a").map(|_| ()), None);
    // The next op fails, and the state is read back.
    let client = rig.join("w", None);
    rig.log_fails = true;
    rig.op(client, "b", "1", 70);
    rig.log_fails = false;
    rig.sleep_until(12.0);
    let floor = workspace(&mut rig).floor().expect("it was logged");
    let Floor {
        timestamp,
        dropped_seq,
        ..
    } = floor;
    assert_eq!((timestamp, dropped_seq), (50, Seq::new(1)));
    assert_eq!(workspace(&mut rig).tombstones_count(), 0);
    let client = rig.join("w", None);
    // A client that was away does not bring the key back; a later write is accepted.
    rig.op(client, "a", "2", 50);
    assert!(workspace(&mut rig).get("a").is_none());
    rig.op(client, "a", "3", 51);
    assert_eq!(workspace(&mut rig).seq(), Seq::new(2));
}

/// Nothing supersedes a dropped tombstone, so the segment of its record must not be swept: an older
/// write may still be in an earlier segment.
#[test]
fn the_segment_of_a_dropped_tombstone_is_never_reported_dead() {
    let mut rig = Rig::new(|config| {
        config.tombstone_retention_us = 10 * SECOND_US;
        (config.segment_bytes_min, config.segment_bytes_max) = (300, 300);
    });
    write(&mut rig, "a", 50, deleted(0));
    let tombstone_segment = rig.shard.log.segment_index();
    for timestamp in 1..40 {
        write(&mut rig, "b", timestamp, Change::write("1"));
    }
    rig.sleep_until(10.0);
    assert_eq!(workspace(&mut rig).tombstones_count(), 0);
    for timestamp in 40..120 {
        write(&mut rig, "b", timestamp, Change::write("1"));
    }
    let dead_count = (1..rig.shard.log.segment_index())
        .filter(|index| rig.shard.dead_segments().has(&(*index..=*index)))
        .count();
    assert!(dead_count > 5, "{dead_count} segments with superseded ops");
    assert!(
        !rig.shard
            .dead_segments()
            .has(&(tombstone_segment..=tombstone_segment))
    );
}

/// A client that is behind must still be sent the tombstone, or it would keep the key.
#[test]
fn a_tombstone_stays_while_a_slow_client_needs_it() {
    let mut rig = Rig::new(|config| {
        config.tombstone_retention_us = 2 * SECOND_US;
        config.outbox_bytes_max = 1024;
    });
    let (writer, slow) = (rig.join("w", None), rig.join("w", None));
    rig.op(writer, "a", "1", 1);
    rig.peers[slow].reads = false;
    for timestamp in 1..50 {
        rig.op(writer, "b", "\"a value of a certain length\"", timestamp);
    }
    write(&mut rig, "a", 2, deleted(0));
    assert!(rig.is_behind(slow));
    rig.sleep_until(5.0);
    assert!(!rig.shard.has_work());
    assert_eq!(rig.shard.counters().tombstones, 1);
    rig.peers[slow].client.broken = true;
    rig.sleep_until(7.0);
    assert_eq!(rig.seen(slow).last().map(String::as_str), Some("gone"));
    assert_eq!(rig.shard.counters().tombstones, 0);
}

/// Many tombstones that are due at once are dropped over several turns, each of which raises the
/// floor.
#[test]
fn due_tombstones_are_dropped_in_slices() {
    let mut rig = retaining(10);
    let count = EXPIRIES_PER_TURN_MAX as u64 * 2 + 10;
    for key in 0..count {
        apply(&mut rig, &format!("k{key}"), 1, deleted(0));
    }
    rig.run();
    rig.sleep_until(20.0);
    let counters = rig.shard.counters();
    assert_eq!(
        (counters.tombstones, counters.tombstones_dropped),
        (0, count)
    );
    assert_eq!(counters.floors, 3);
}

// ---- a naive model ----

/// A key in the model. Its times are in seconds after the start.
#[derive(Debug, Clone, Copy)]
struct ModelKey {
    timestamp: u64,
    expires_s: Option<u64>,
    deleted_s: Option<u64>,
}

const RETENTION_S: u64 = 20;

/// A shard, and the expected contents of its workspace.
struct Checked {
    rig: Rig,
    keys: BTreeMap<String, ModelKey>,
    now_s: u64,
    expired: usize,
    dropped: usize,
}

impl Checked {
    fn step(&mut self, dice: &mut Dice, timestamp: u64) {
        match dice.below(8) {
            0..5 => self.write(dice, timestamp),
            5..7 => self.sleep(1 + dice.below_u64(9)),
            _ => {
                // An op fails, and the shard serves again in the next second.
                self.rig.log_fails = true;
                apply(&mut self.rig, "lost", timestamp, Change::write("1"));
                self.rig.run();
                self.rig.log_fails = false;
                self.sleep(1);
            }
        }
    }

    fn write(&mut self, dice: &mut Dice, timestamp: u64) {
        let expires_s = self.now_s + 1 + dice.below_u64(15);
        let (change, expires_s, deleted_s) = match dice.below(4) {
            0 => (Change::write("1"), None, None),
            1 => (deleted(self.now_s), None, Some(self.now_s)),
            _ => (expiring(expires_s), Some(expires_s), None),
        };
        let name = format!("k{}", dice.below(6));
        write(&mut self.rig, &name, timestamp, change);
        let key = ModelKey {
            timestamp,
            expires_s,
            deleted_s,
        };
        self.keys.insert(name, key);
    }

    fn sleep(&mut self, seconds: u64) {
        self.now_s += seconds;
        let until_s = u32::try_from(self.now_s).expect("a short test");
        self.rig.sleep_until(until_s.into());
        self.keys.retain(|_, key| {
            if let Some(expires_s) = key.expires_s.filter(|at_s| *at_s <= self.now_s) {
                (key.expires_s, key.deleted_s) = (None, Some(expires_s));
                key.timestamp += 1;
                self.expired += 1;
            }
            let drop_s = key.deleted_s.map(|at_s| at_s + RETENTION_S);
            let is_kept = drop_s.is_none_or(|drop_s| drop_s > self.now_s);
            self.dropped += usize::from(!is_kept);
            is_kept
        });
    }

    fn check(&mut self) {
        let workspace = workspace(&mut self.rig);
        for (name, key) in &self.keys {
            let held = workspace.get(name).expect("the model has the key");
            let held = (held.timestamp(), held.is_deleted());
            assert_eq!(held, (key.timestamp, key.deleted_s.is_some()), "{name}");
        }
        let deleted = self.keys.values().filter(|key| key.deleted_s.is_some());
        let tombstones_count = deleted.count();
        assert_eq!(workspace.tombstones_count(), tombstones_count);
        let live_count = workspace.entries().count();
        assert_eq!(live_count + tombstones_count, self.keys.len());
    }
}

/// Random writes, deletes, waits and failures of the log: after each of them, the workspace has the
/// keys of the model, and keeps tombstones for their retention and no longer.
#[test]
fn keys_and_tombstones_live_as_long_as_in_the_model() {
    let (mut expired, mut dropped) = (0, 0);
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut checked = Checked {
            rig: retaining(RETENTION_S),
            keys: BTreeMap::new(),
            now_s: 0,
            expired: 0,
            dropped: 0,
        };
        for timestamp in (0..80).map(|step| step * 10 + 1) {
            checked.step(&mut dice, timestamp);
            checked.check();
        }
        expired += checked.expired;
        dropped += checked.dropped;
    }
    assert!(expired > 300 && dropped > 300, "{expired} {dropped}");
}
