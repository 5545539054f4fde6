//! A log that is long compared with its live data, and a disk that is nearly full: which clients
//! wait, which are refused, and which are not affected.

use super::rig::{Rig, START_US, frame, look, op};
use crate::core::shard::contract::Input;
use crate::core::shard::log_space::{LogSize, Marks};
use crate::core::shard::session::Intake;
use crate::limits::{
    HELD_RETRY_US, LIGHT_BURST_BYTES, LIGHT_BYTES_PER_SECOND, LOG_SPARE_BYTES, SECOND_US,
};
use crate::log::position::LogPosition;

const PING: u8 = 9;

/// Returns a measurement with closed segments of this total length and a compaction that works.
fn size(closed_bytes: u64) -> LogSize {
    LogSize {
        open_index: 2,
        closed_bytes,
        kept_bytes: 0,
        is_compacted: true,
        room_end: LogPosition::MAX,
    }
}

fn measure(rig: &mut Rig, size: LogSize) {
    rig.shard.handle(Input::LogSize(size), rig.clock);
    rig.run();
}

/// Returns the marks of a shard with almost no live data.
fn marks() -> Marks {
    Marks::new(0, LOG_SPARE_BYTES)
}

/// Returns a burst of ops on one key, at least `bytes` long, and the number of those ops.
fn burst(from: u64, bytes: u64) -> (Vec<u8>, u64) {
    let value = format!("\"{}\"", "v".repeat(8000));
    let mut all = Vec::new();
    let mut timestamp = from;
    while (all.len() as u64) < bytes {
        timestamp += 1;
        all.extend(op("k", &value, timestamp));
    }
    (all, timestamp - from)
}

#[test]
fn a_flood_waits_while_a_light_writer_of_the_same_shard_is_served() {
    let mut rig = Rig::new(|_| ());
    let (flood, beside) = (rig.join("flood", None), rig.join("flood", None));
    let (light, witness) = (rig.join("light", None), rig.join("light", None));
    measure(&mut rig, size(marks().full_bytes));
    let (bytes, count) = burst(0, 4 * LIGHT_BURST_BYTES);
    rig.receive(flood, &bytes);
    // The flood may write as much as any light workspace, and then waits.
    assert_eq!(rig.session(flood).intake, Intake::Held);
    assert!(
        !rig.peers[flood].client.receiving,
        "the flood is still being read from the socket"
    );
    let taken = rig.shard.counters().ops;
    assert!(
        taken * 8000 <= LIGHT_BURST_BYTES + 8100 && taken < count,
        "{taken}"
    );
    for client in [beside, light, witness] {
        rig.seen(client);
    }

    // The light writer's op is applied in a single turn, without any time passing.
    rig.receive_only(light, &op("a", "1", 1));
    rig.turn();
    assert_eq!(rig.shard.counters().ops, taken + 1);
    rig.run();
    assert_eq!(rig.seen(witness), ["a=1@1"]);
    // The shard still receives from a client that writes no ops, even in the flooded workspace, and
    // serves new clients and requests.
    rig.receive(beside, &frame(PING, b"1"));
    assert_eq!(rig.seen(beside), ["ping"]);
    let newcomer = rig.join("flood", None);
    assert_eq!(rig.seen(newcomer), ["101", "init 1"]);
    let request = rig.accept(false);
    rig.receive(request, look("/v1/workspaces/flood").as_bytes());
    assert_eq!(rig.seen(request)[0], "200");

    // After a pause, some of the waiting ops are applied, and after a compaction, all of them.
    rig.sleep_until(1.0);
    let later = rig.shard.counters().ops - taken - 1;
    assert!(
        later * 8000 <= LIGHT_BYTES_PER_SECOND + 8100 && later > 0,
        "{later}"
    );
    assert_eq!(rig.session(flood).intake, Intake::Held);
    assert!(rig.shard.counters().held_us >= SECOND_US * 9 / 10);
    measure(&mut rig, size(0));
    assert_eq!(rig.shard.counters().ops, count + 1);
    assert_eq!(rig.session(flood).intake, Intake::Receiving);
    assert_eq!(
        rig.shard
            .next_deadline_us()
            .filter(|at_us| *at_us <= START_US + SECOND_US),
        None
    );
}

#[test]
fn floods_share_the_rate() {
    let mut rig = Rig::new(|_| ());
    let places: Vec<usize> = ["a", "b", "c"].map(|id| rig.join(id, None)).into();
    // Here the rate is a quarter of its maximum: 64 MB per second, or 320 KB in 5 ms.
    let Marks {
        slow_bytes,
        full_bytes,
        ..
    } = marks();
    measure(&mut rig, size(u64::midpoint(slow_bytes, full_bytes)));
    let (bytes, _) = burst(0, 3_000_000);
    for place in &places {
        rig.receive_only(*place, &bytes);
    }
    rig.run();
    for place in &places {
        assert_eq!(rig.session(*place).intake, Intake::Held);
    }
    let seqs = |rig: &Rig| -> Vec<u64> {
        let rooms = rig.shard.rooms.iter();
        rooms.map(|(_, room)| room.workspace.seq().get()).collect()
    };
    let before = seqs(&rig);
    rig.sleep_until(0.06);
    let gained: Vec<u64> = seqs(&rig)
        .iter()
        .zip(&before)
        .map(|(now, then)| now - then)
        .collect();
    let (least, most) = (gained.iter().min().unwrap(), gained.iter().max().unwrap());
    assert!(*least * 3 >= *most * 2 && *least > 20, "{gained:?}");
}

#[test]
fn at_the_last_mark_all_writers_wait_until_a_measurement() {
    let mut rig = Rig::new(|_| ());
    let (light, witness) = (rig.join("w", None), rig.join("w", None));
    measure(&mut rig, size(marks().stop_bytes));
    rig.seen(witness);
    rig.receive(light, &op("k", "1", 1));
    assert_eq!(rig.seen(witness), [""; 0]);
    let next_us = rig.shard.next_deadline_us();
    assert!(
        next_us.is_none_or(|at_us| at_us > START_US + 100 * HELD_RETRY_US),
        "{next_us:?}"
    );
    assert!(!rig.shard.has_work());
    // The client is silent only because the shard does not receive from it.
    rig.sleep_until(120.0);
    let seen = rig.seen(light);
    assert!(seen.iter().all(|what| what != "close 1001"), "{seen:?}");
    // The witness has been closed, because it did not answer pings.
    let witness = rig.join("w", None);
    rig.seen(witness);
    measure(&mut rig, size(marks().stop_bytes - 1000));
    assert_eq!(rig.seen(witness), ["k=1@1"]);
}

#[test]
fn no_client_waits_for_an_abandoned_compaction() {
    let mut rig = Rig::new(|_| ());
    let (writer, witness) = (rig.join("w", None), rig.join("w", None));
    measure(&mut rig, size(marks().stop_bytes));
    rig.seen(witness);
    rig.receive(writer, &op("k", "1", 1));
    assert_eq!(rig.seen(witness), [""; 0]);
    let is_compacted = false;
    measure(
        &mut rig,
        LogSize {
            is_compacted,
            ..size(marks().stop_bytes)
        },
    );
    assert_eq!(rig.seen(witness), ["k=1@1"]);
}

/// P40.
#[test]
fn ops_that_would_grow_the_log_are_refused_if_the_disk_is_nearly_full() {
    let mut rig = Rig::new(|_| ());
    let (writer, witness) = (rig.join("w", None), rig.join("w", None));
    rig.op(writer, "k", "1", 5);
    for client in [writer, witness] {
        rig.seen(client);
    }
    let full = LogSize {
        room_end: LogPosition::NONE,
        ..size(0)
    };
    measure(&mut rig, full);
    // The correction comes first, and then the refusal.
    rig.op(writer, "k", "2", 6);
    assert_eq!(rig.seen(writer), ["k=1@5", "error 500 k@6"]);
    rig.op(writer, "new", "2", 7);
    assert_eq!(rig.seen(writer), ["error 500 new@7"]);
    // An op that loses and an op that is resent need no room.
    rig.op(writer, "k", "3", 4);
    assert_eq!(rig.seen(writer), ["k=1@5"]);
    rig.op(writer, "k", "1", 5);
    assert_eq!(rig.seen(writer), [""; 0]);
    assert_eq!(rig.seen(witness), [""; 0], "another client was affected");
    let newcomer = rig.join("w", None);
    assert_eq!(rig.seen(newcomer), ["101", "init 1"]);
    let counters = rig.shard.counters();
    assert_eq!(
        (
            counters.refused_disk_full,
            counters.disk_is_full,
            counters.failures
        ),
        (2, 1, 0)
    );
    assert_eq!(rig.ready, None, "the shard is still ready");

    measure(&mut rig, size(0));
    rig.op(writer, "k", "4", 8);
    assert_eq!(rig.seen(writer), [""; 0]);
    assert_eq!(rig.seen(witness), ["k=4@8"]);
    assert_eq!(rig.shard.counters().disk_is_full, 0);
}

#[test]
fn a_shard_accepts_no_more_than_the_disk_has_room_for() {
    let mut rig = Rig::new(|_| ());
    let writer = rig.join("w", None);
    rig.seen(writer);
    let room_end = LogPosition::new(10_000);
    measure(
        &mut rig,
        LogSize {
            room_end,
            ..size(0)
        },
    );
    for timestamp in 1..100 {
        rig.op(writer, "k", &format!("\"{}\"", "v".repeat(500)), timestamp);
    }
    let end = rig.shard.log.end_position();
    assert!((room_end..room_end.advance(700)).contains(&end), "{end}");
    assert_eq!(
        rig.shard.counters().refused_disk_full,
        99 - rig.shard.counters().ops
    );
}

#[test]
fn free_disk_space_is_known_before_the_log_is_read() {
    let mut rig = Rig::recovering(|_| ());
    measure(&mut rig, LogSize::unmeasured(LogPosition::NONE));
    rig.recover(Vec::new());
    let writer = rig.join("w", None);
    rig.seen(writer);
    rig.op(writer, "k", "1", 5);
    assert_eq!(rig.seen(writer), ["error 500 k@5"]);
}
