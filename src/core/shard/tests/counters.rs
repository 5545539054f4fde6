//! The counters of a shard.

use super::rig::{Rig, frame, head};
use crate::log::commit::Durability;

const MS_US: u64 = 1000;

fn pass(rig: &mut Rig, us: u64) {
    rig.clock.now_us += us;
    rig.clock.unix_us += us;
}

/// Returns the count and the sum of the batches, and of the latencies until they were durable.
fn totals(rig: &Rig) -> ((u64, u64), (u64, u64)) {
    let counters = rig.shard.counters();
    let (groups, durable) = (&counters.groups, &counters.durable);
    ((groups.count, groups.sum), (durable.count, durable.sum))
}

#[test]
fn latency_is_measured_from_the_oldest_op_of_a_commit() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    let (groups, durable) = totals(&rig);
    rig.log_hangs = true;
    rig.op(writer, "k", "1", 1);
    // The next batch has two ops.
    pass(&mut rig, 3 * MS_US);
    rig.op(reader, "k", "2", 2);
    pass(&mut rig, 2 * MS_US);
    rig.op(writer, "k", "3", 3);
    assert_eq!(totals(&rig), ((groups.0 + 1, groups.1 + 1), durable));
    let counters = rig.shard.counters();
    assert_eq!(counters.sent.count, 0);
    assert!(counters.window_bytes > 0);
    pass(&mut rig, MS_US);
    rig.log_hangs = false;
    rig.run();
    // 6 ms since the first op, 3 ms since the second.
    let durable = (durable.0 + 2, durable.1 + 9 * MS_US);
    assert_eq!(totals(&rig), ((groups.0 + 2, groups.1 + 3), durable));
    let counters = rig.shard.counters();
    assert_eq!((counters.sent.count, counters.sent.sum), (2, 9 * MS_US));
    assert_eq!((counters.deliveries, counters.frames_sent), (3, 3));
    assert_eq!((counters.window_bytes, counters.answer_bytes), (0, 0));
    assert_eq!(counters.sends, counters.sends_ended);
}

#[test]
fn a_timed_fdatasync_is_measured_from_the_oldest_op_since_the_previous_one() {
    let mut rig = Rig::new(|config| config.durability = Durability::Interval);
    let (writer, _reader) = (rig.join("w", None), rig.join("w", None));
    let (groups, _) = totals(&rig);
    rig.op(writer, "k", "1", 1);
    rig.write_batch();
    pass(&mut rig, 100 * MS_US);
    rig.op(writer, "k", "2", 2);
    rig.write_batch();
    assert_eq!(totals(&rig), ((groups.0 + 2, groups.1 + 2), (0, 0)));
    let counters = rig.shard.counters();
    assert_eq!((counters.sent.count, counters.sent.sum), (2, 0), "at once");
    rig.sleep_until(2.0);
    let counters = rig.shard.counters();
    assert_eq!(counters.durable.count, 1);
    assert!(counters.durable.sum >= 900 * MS_US, "{counters:?}");
    assert!(counters.durable.sum <= 1000 * MS_US, "{counters:?}");
}

#[test]
fn no_client_waits_for_one_that_reads_nothing() {
    let mut rig = Rig::new(|_| ());
    let (writer, stalled) = (rig.join("w", None), rig.join("w", None));
    rig.peers[stalled].reads = false;
    let (_, (durable_count, _)) = totals(&rig);
    rig.op(writer, "k", "1", 1);
    let first = rig.shard.counters().clone();
    assert_eq!((first.sent.count, first.sends - first.sends_ended), (0, 1));
    let reader = rig.join("w", None);
    rig.op(writer, "k", "2", 2);
    pass(&mut rig, 10 * MS_US);
    rig.op(reader, "k", "3", 3);
    let counters = rig.shard.counters();
    // The first op's round ended when the next send ended.
    assert!(counters.sent.count >= 1, "{:?}", counters.sent);
    assert!(counters.sent.sum <= 10 * MS_US, "{:?}", counters.sent);
    assert_eq!(counters.durable.count, durable_count + 3);
}

#[test]
fn sessions_are_counted_by_state_even_after_a_panic() {
    let mut rig = Rig::new(|config| config.fault_panic_key = Some("boom".to_owned()));
    let states = |rig: &Rig| {
        let counters = rig.shard.counters();
        [
            counters.sessions_handshake,
            counters.connections,
            counters.sessions_closing,
        ]
    };
    let clients: Vec<usize> = (0..3).map(|_| rig.join("w", None)).collect();
    let silent = rig.accept(false);
    assert_eq!(states(&rig), [1, 3, 0]);
    rig.peers[clients[0]].reads = false;
    rig.receive(clients[0], &frame(8, b""));
    assert_eq!(states(&rig), [1, 2, 1]);
    rig.op(clients[1], "boom", "1", 1);
    assert_eq!(states(&rig), [1, 0, 1], "sessions are still counted");
    let counters = rig.shard.counters();
    assert_eq!((counters.failures, counters.refused_log_failed), (1, 1));
    assert_eq!((counters.window_bytes, counters.closed_by_peer), (0, 1));
    rig.sleep_until(0.2);
    rig.receive(silent, head("w", None).as_bytes());
    assert_eq!(states(&rig)[..2], [0, 1]);
    rig.peers[clients[0]].reads = true;
    rig.sleep_until(5.0);
    assert_eq!(states(&rig), [0, 1, 0]);
    assert_eq!(rig.shard.counters().answer_bytes, 0);
}
