//! Keys that expire, and tombstones that are dropped after their retention.

use super::rig::{LogOperation, Rig, START_US, head, look};
use crate::core::fanout::room::{RoomId, ShownOp};
use crate::core::shard::contract::{Input, Output};
use crate::core::shard::log_space::LogSize;
use crate::core::shard::shard_log::Append;
use crate::core::state::workspace::{Edit, Source, Verdict, Workspace};
use crate::core::testing::START_UNIX_S;
use crate::limits::{EXPIRIES_PER_TURN_MAX, SECOND_US, WALL_CLOCK_CHECK_US};
use crate::log::commit::{Durability, LogStep};
use crate::log::position::LogPosition;
use crate::log::record::{Change, LoggedOp};
use crate::seq::Seq;

const BEGIN_UNIX_US: u64 = START_UNIX_S * SECOND_US;

/// Returns the Unix time `seconds` after the start of a rig.
fn unix_us(seconds: u64) -> u64 {
    BEGIN_UNIX_US + seconds * SECOND_US
}

pub fn expiring(seconds: u64) -> Change<'static> {
    Change::Write {
        value: "1",
        expires_at_us: Some(unix_us(seconds)),
    }
}

pub fn deleted(seconds: u64) -> Change<'static> {
    Change::Delete {
        deleted_at_us: unix_us(seconds),
    }
}

pub fn room(rig: &mut Rig) -> RoomId {
    rig.shard.rooms.find_or_insert("w")
}

pub fn workspace(rig: &mut Rig) -> &Workspace {
    let id = room(rig);
    &rig.shard.rooms[id].workspace
}

/// Applies and logs an op that no client sent to workspace `w`, without running a turn.
pub fn apply(rig: &mut Rig, key: &str, timestamp: u64, change: Change<'_>) {
    let id = room(rig);
    let shard = &mut rig.shard;
    let room = &mut shard.rooms[id];
    let live_bytes_before = room.workspace.log_bytes();
    let edit = Edit {
        key,
        change,
        timestamp,
        if_timestamp: None,
    };
    let source = Source {
        writer: 0,
        mark: shard.log.mark(),
    };
    let Verdict::Won { seq, replaced } = room.workspace.apply_within(u64::MAX, &edit, source)
    else {
        panic!("{key}@{timestamp} wins");
    };
    let append = Append {
        record: LoggedOp {
            workspace: "w",
            key,
            change,
            seq,
            timestamp,
        },
        replaced,
        live_bytes: (live_bytes_before, room.workspace.log_bytes()),
        sender: None,
    };
    let now_us = rig.clock.now_us;
    let position = shard.log.append(&append, &mut room.allowance, now_us);
    let shown = ShownOp {
        key,
        value: Some(change.value()).filter(|value| !value.is_empty()),
        timestamp,
    };
    room.broadcast(shown, position, shard.pool.windows());
    shard.expiry.update(id, room);
    shard.rooms.touch(id);
}

pub fn write(rig: &mut Rig, key: &str, timestamp: u64, change: Change<'_>) {
    apply(rig, key, timestamp, change);
    rig.run();
}

/// Returns the records of `w` on the disk as strings, in order.
pub fn logged(rig: &mut Rig) -> Vec<String> {
    let mut records = Vec::new();
    rig.disk.replay(|op| {
        let LoggedOp {
            key,
            timestamp,
            seq,
            ..
        } = op;
        match op.change {
            Change::Write { value, .. } => records.push(format!("{key}={value}@{timestamp}")),
            Change::Delete { deleted_at_us } => {
                let after_s = (deleted_at_us - BEGIN_UNIX_US) / SECOND_US;
                records.push(format!("{key} deleted@{timestamp} after {after_s} s"));
            }
            Change::Floor { dropped_seq } => {
                records.push(format!("floor {timestamp}, dropped {dropped_seq} of {seq}"));
            }
            Change::Generation { .. } => {}
        }
        op.value().to_owned()
    });
    records
}

/// Returns a workspace read from the log, with `count` keys that expired while the server was down
/// and one live key.
fn with_expired(count: u64) -> Vec<Workspace> {
    let mut workspace = Workspace::new("w", 5);
    for seq in 1..=count {
        let change = Change::Write {
            value: "1",
            expires_at_us: Some(BEGIN_UNIX_US - count + seq),
        };
        workspace.restore(&format!("k{seq}"), &change, 7, Seq::new(seq));
    }
    workspace.restore("live", &Change::write("1"), 7, Seq::new(count + 1));
    workspace.finish_restore();
    workspace.begin_generation();
    vec![workspace]
}

fn set_space(rig: &mut Rig, room_end: LogPosition) {
    let size = LogSize::unmeasured(room_end);
    rig.shard.handle(Input::LogSize(size), rig.clock);
}

// ---- expiry ----

/// P121. P124.
#[test]
fn a_key_expires_at_its_time_with_the_next_timestamp() {
    for durability in [Durability::Always, Durability::Interval, Durability::None] {
        let mut rig = Rig::new(|config| config.durability = durability);
        let reader = rig.join("w", None);
        write(&mut rig, "k", 5, expiring(3));
        write(&mut rig, "kept", 6, Change::write("2"));
        assert_eq!(rig.seen(reader), ["101", "init 0", "k=1@5", "kept=2@6"]);
        rig.sleep_until(2.999);
        assert_eq!(rig.seen(reader).len(), 0);
        rig.sleep_until(3.0);
        assert_eq!(rig.seen_at(reader), [(3000, "k=null@6".to_owned())]);
        rig.sleep_until(4.0);
        let records = ["k=1@5", "kept=2@6", "k deleted@6 after 3 s"];
        // In `none` mode nothing is synced, and the rig keeps only synced ops.
        if durability != Durability::None {
            assert_eq!(logged(&mut rig), records, "{durability:?}");
        }
        assert_eq!(workspace(&mut rig).seq(), Seq::new(3));
        let late = rig.join("w", None);
        assert_eq!(rig.seen(late), ["101", "init 1"]);
        let counters = rig.shard.counters();
        assert_eq!((counters.expiries, counters.expiring_keys), (1, 0));
        assert_eq!((counters.tombstones, counters.ops), (1, 0));
    }
}

/// P119.
#[test]
fn a_later_write_moves_the_expiry_or_ends_it() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    for key in ["permanent", "later", "sooner"] {
        write(&mut rig, key, 1, expiring(5));
    }
    write(&mut rig, "later", 2, expiring(9));
    write(&mut rig, "sooner", 2, expiring(2));
    rig.op(client, "permanent", "2", 2);
    rig.seen(client);
    rig.sleep_until(20.0);
    let seen = [
        (2000, "sooner=null@3".to_owned()),
        (9000, "later=null@3".to_owned()),
    ];
    let ops = rig.seen_at(client).into_iter();
    let ops: Vec<_> = ops.filter(|event| event.1 != "ping").collect();
    assert_eq!(ops, seen);
}

/// P124.
///
/// In `always` mode no client sees that a key has expired before the expiry is on disk.
#[test]
fn an_expiry_is_not_visible_before_it_is_durable() {
    let mut rig = Rig::new(|_| ());
    let reader = rig.join("w", None);
    write(&mut rig, "k", 5, expiring(3));
    rig.seen(reader);
    rig.log_hangs = true;
    rig.sleep_until(3.0);
    assert!(matches!(rig.log, Some(Output::Log(LogStep::Write { .. }))));
    let late = rig.join("w", None);
    let read = rig.accept(false);
    rig.receive(read, look("/v1/workspaces/w").as_bytes());
    rig.sleep_until(3.5);
    assert!(rig.seen(reader).is_empty() && rig.seen(read).is_empty());
    // Written, but not synced.
    rig.end_log_with(false, |left| left);
    rig.turn();
    assert!(matches!(rig.log, Some(Output::Log(LogStep::Sync))));
    assert!(rig.seen(reader).is_empty() && rig.seen(late).is_empty());
    rig.log_hangs = false;
    rig.run();
    assert_eq!(rig.seen(reader), ["k=null@6"]);
    assert_eq!(rig.seen(late), ["101", "init 0"]);
    assert_eq!(rig.seen(read), ["200", "gone"]);
}

/// P124. P125.
#[test]
fn an_expiry_that_is_lost_with_the_log_happens_again() {
    let mut rig = Rig::new(|_| ());
    let reader = rig.join("w", None);
    write(&mut rig, "k", 5, expiring(3));
    rig.seen(reader);
    rig.log_hangs = true;
    rig.sleep_until(3.0);
    assert!(workspace(&mut rig).get("k").unwrap().is_deleted());
    rig.log_hangs = false;
    let ended = rig.end_log_with(true, |left| left);
    assert!(matches!(ended, Some(LogOperation::Commit)));
    rig.run();
    // No client sent the op, so no client is notified that it was lost.
    assert_eq!(rig.seen(reader), ["close 1011", "gone"]);
    assert_eq!(rig.shard.counters().refused_log_failed, 0);
    assert_eq!(logged(&mut rig), ["k=1@5"]);
    // The key is back and has expired: no client sees it.
    rig.log_hangs = true;
    rig.sleep_until(3.05);
    let early = rig.join("w", None);
    rig.log_hangs = false;
    rig.sleep_until(4.0);
    let seen = rig.seen(early);
    assert_eq!(seen[..1], ["500"], "{seen:?}");
    let late = rig.join("w", None);
    assert_eq!(rig.seen(late), ["101", "init 0"]);
    assert_eq!(logged(&mut rig), ["k=1@5", "k deleted@6 after 3 s"]);
}

// ---- after a start ----

/// P125.
#[test]
fn keys_that_expired_while_the_server_was_down_are_never_served() {
    let mut rig = Rig::recovering(|_| ());
    let joiner = rig.join("w", None);
    let reader = rig.accept(false);
    rig.receive(reader, look("/v1/workspaces/w").as_bytes());
    rig.recover(with_expired(3));
    rig.run();
    assert_eq!(rig.seen(joiner), ["101", "init 1"]);
    assert_eq!(rig.seen(reader), ["200", "gone"]);
    let body = String::from_utf8_lossy(&rig.peers[reader].client.incoming).into_owned();
    assert!(body.contains(r#""data":{"live":1}"#), "{body}");
    assert_eq!(logged(&mut rig).len(), 3);
}

/// P125.
///
/// A restart after a long time, with many expiries due: each turn deletes some of the keys, and
/// other workspaces are served in the meantime.
#[test]
fn many_due_expiries_are_spread_over_turns() {
    const COUNT: usize = 50 * EXPIRIES_PER_TURN_MAX + 1;
    let mut rig = Rig::recovering(|_| ());
    rig.recover(with_expired(COUNT as u64));
    let joiner = rig.accept_only();
    let other = rig.accept_only();
    rig.receive_only(joiner, head("w", None).as_bytes());
    rig.receive_only(other, head("v", None).as_bytes());
    let mut turns = 0;
    while workspace(&mut rig).expiries_count() > 0 {
        assert!(rig.shard.has_work());
        let before = rig.shard.counters().expiries;
        rig.step();
        turns += 1;
        let step = rig.shard.counters().expiries - before;
        assert!((1..=EXPIRIES_PER_TURN_MAX as u64).contains(&step));
        if turns == 3 {
            assert_eq!(rig.seen(other), ["101", "init 0"]);
        }
        assert!(rig.seen(joiner).is_empty(), "after {turns} turns");
    }
    assert_eq!(turns, 51);
    rig.run();
    assert_eq!(rig.seen(joiner), ["101", "init 1"]);
    assert_eq!(rig.shard.counters().expiries, COUNT as u64);
}

/// The expiries fill a batch that is not written, so they cannot continue.
#[test]
fn a_request_waits_for_expiries_no_longer_than_a_handshake_may_take() {
    let mut rig = Rig::recovering(|config| {
        config.batch_bytes_max = 200;
        // In `always` mode nothing at all is sent while the log hangs.
        config.durability = Durability::None;
    });
    rig.recover(with_expired(100));
    rig.log_hangs = true;
    rig.run();
    let joiner = rig.join("w", None);
    let gone = rig.join("w", None);
    let other = rig.join("v", None);
    assert!(!rig.shard.has_work(), "it waits for the log");
    assert_eq!(rig.seen(other), ["101", "init 0"]);
    rig.receive(gone, b"");
    assert_eq!(rig.seen(gone), ["gone"]);
    rig.sleep_until(9.9);
    assert!(rig.seen(joiner).is_empty());
    rig.sleep_until(10.0);
    assert_eq!(rig.seen(joiner), ["503", "gone"]);
    let late = rig.join("w", None);
    rig.log_hangs = false;
    rig.run();
    assert_eq!(rig.seen(late), ["101", "init 1"]);
}

/// A full disk may stay full, and a state with an expired key in it is more useful than none.
#[test]
fn on_a_full_disk_nothing_expires_and_no_request_waits() {
    let mut rig = Rig::recovering(|_| ());
    set_space(&mut rig, LogPosition::NONE);
    rig.recover(with_expired(3));
    let joiner = rig.join("w", None);
    assert_eq!(rig.seen(joiner), ["101", "init 4"]);
    rig.sleep_until(5.0);
    assert!(rig.log.is_none() && !rig.shard.has_work());
    set_space(&mut rig, LogPosition::MAX);
    rig.run();
    let seen: Vec<String> = (1..=3).map(|key| format!("k{key}=null@8")).collect();
    assert_eq!(rig.seen(joiner), seen);
}

/// The same holds for a log that is so long that everything waits for compaction.
#[test]
fn while_the_log_is_too_long_nothing_expires_and_no_request_waits() {
    let mut rig = Rig::recovering(|_| ());
    let size = LogSize {
        closed_bytes: 1 << 30,
        is_compacted: true,
        ..LogSize::UNKNOWN
    };
    rig.shard.handle(Input::LogSize(size), rig.clock);
    rig.turn();
    rig.recover(with_expired(3));
    let joiner = rig.join("w", None);
    assert_eq!(rig.seen(joiner), ["101", "init 4"]);
    assert!(!rig.shard.has_work());
    set_space(&mut rig, LogPosition::MAX);
    rig.run();
    assert_eq!(rig.seen(joiner).len(), 3);
}

#[test]
fn a_request_that_waits_for_expiries_is_answered_when_the_server_stops() {
    let mut rig = Rig::recovering(|config| {
        config.batch_bytes_max = 200;
        // In `always` mode nothing at all is sent while the log hangs.
        config.durability = Durability::None;
    });
    rig.recover(with_expired(100));
    rig.log_hangs = true;
    let joiner = rig.join("w", None);
    rig.shard.handle(Input::Drain, rig.clock);
    rig.run();
    assert_eq!(rig.seen(joiner), ["503", "gone"]);
    rig.log_hangs = false;
    rig.run();
    assert_eq!(rig.drained, 1);
}

/// The ops that arrive before each turn fill its batch.
#[test]
fn clients_that_fill_every_batch_do_not_keep_keys_from_expiring() {
    let mut rig = Rig::new(|config| config.batch_bytes_max = 100);
    write(&mut rig, "k", 5, expiring(1));
    rig.clock.now_us += SECOND_US;
    rig.clock.unix_us += SECOND_US;
    let value = format!("\"{}\"", "x".repeat(100));
    for timestamp in 1..10 {
        if !rig.shard.log.is_full() {
            apply(&mut rig, "other", timestamp, Change::write(&value));
        }
        assert!(rig.shard.log.is_full());
        rig.turn();
        rig.end_log();
    }
    assert!(workspace(&mut rig).get("k").unwrap().is_deleted());
}

// ---- the wall clock ----

/// P125.
#[test]
fn a_wall_clock_that_is_set_forward_expires_keys_soon() {
    let mut rig = Rig::new(|_| ());
    write(&mut rig, "k", 5, expiring(3600));
    rig.sleep_until(1.0);
    rig.clock.unix_us += 7200 * SECOND_US;
    let begin_us = rig.clock.now_us;
    rig.sleep_until(1.0 + 10.0);
    assert!(workspace(&mut rig).get("k").unwrap().is_deleted());
    let Change::Delete { deleted_at_us } = last_change(&mut rig) else {
        panic!("the key was deleted");
    };
    let jumped_unix_us = unix_us(1) + 7200 * SECOND_US;
    assert!(
        deleted_at_us - jumped_unix_us <= WALL_CLOCK_CHECK_US,
        "{begin_us}"
    );
}

fn last_change(rig: &mut Rig) -> Change<'static> {
    let mut last = None;
    rig.disk.replay(|op| {
        last = Some(op.change.without_value());
        String::new()
    });
    last.expect("the log has ops")
}

/// P125.
#[test]
fn a_wall_clock_that_is_set_back_keeps_keys_and_causes_few_turns() {
    let mut rig = Rig::new(|_| ());
    write(&mut rig, "k", 5, expiring(3));
    rig.sleep_until(2.0);
    rig.clock.unix_us -= 3600 * SECOND_US;
    let mut turns = 0;
    while rig.clock.now_us < START_US + 60 * SECOND_US {
        rig.run();
        let next_us = rig.shard.next_deadline_us().expect("a key expires");
        assert!(next_us > rig.clock.now_us, "it sleeps");
        rig.clock.unix_us += next_us - rig.clock.now_us;
        rig.clock.now_us = next_us;
        turns += 1;
    }
    assert!(turns <= 2 + 60 * SECOND_US / WALL_CLOCK_CHECK_US, "{turns}");
    assert!(!workspace(&mut rig).get("k").unwrap().is_deleted());
    rig.clock.unix_us += 3600 * SECOND_US;
    rig.run();
    assert!(workspace(&mut rig).get("k").unwrap().is_deleted());
}
