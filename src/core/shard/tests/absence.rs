//! A shard that was absent: stopped, paused with its machine, or without CPU time. No client is
//! closed because of messages that the shard could not receive in that time.

use super::rig::{Rig, START_US, frame, head, op, pong};
use crate::core::shard::contract::{Input, Limits};
use crate::core::shard::session::State;
use crate::limits::{LINGER_US, SECOND_US, STALL_TIMEOUT_US};
use crate::log::commit::Durability;

/// Stops the process for `seconds`, while its clients and the kernel continue. The shard has not
/// yet run again when this returns.
fn stop_for(rig: &mut Rig, seconds: u64) {
    rig.clock.now_us += seconds * SECOND_US;
    rig.clock.unix_us += seconds * SECOND_US;
}

/// Returns the number of seconds for which the shard's clock stopped.
fn absent_s(rig: &Rig) -> f64 {
    seconds(rig.shard.counters().absent_us)
}

fn seconds(us: u64) -> f64 {
    std::time::Duration::from_micros(us).as_secs_f64()
}

/// Sleeps until a deadline that was `due_s` seconds after the start and was postponed by the
/// absence. Checks that the client receives only pings until then.
fn sleep_until_due(rig: &mut Rig, client: usize, due_s: f64) {
    let due_s = due_s + absent_s(rig);
    rig.sleep_until(due_s - 0.1);
    let mut seen = rig.seen(client);
    seen.retain(|what| what != "ping");
    assert_eq!(
        seen,
        Vec::<String>::new(),
        "the session ended before its deadline"
    );
    rig.sleep_until(due_s + 0.1);
}

#[test]
fn a_client_that_was_not_pinged_in_an_absence_stays() {
    // Each case: whether the shard stops before a ping, at a ping or after one, and whether the
    // client sends a pong in the meantime.
    for (stopped_s, answers) in [(1.0, false), (9.0, false), (10.0, true), (12.0, true)] {
        let mut rig = Rig::new(|_| ());
        let clients: Vec<usize> = (0..20).map(|_| rig.join("w", None)).collect();
        rig.sleep_until(stopped_s);
        for client in &clients {
            rig.seen(*client);
        }
        stop_for(&mut rig, 70);
        for client in &clients {
            if answers {
                rig.receive_only(*client, &pong());
            }
        }
        rig.run();
        for client in &clients {
            assert!(matches!(rig.session(*client).state(), State::Open { .. }));
        }
        // They are pinged before anything else happens, and clients that answer stay connected.
        rig.sleep_until(stopped_s + 71.0 + 10.0);
        for client in &clients {
            assert!(rig.seen(*client).contains(&"ping".to_owned()));
            rig.receive(*client, &pong());
        }
        rig.sleep_until(stopped_s + 71.0 + 30.0);
        assert_eq!(rig.shard.connections(), clients.len(), "{stopped_s}");
    }
}

#[test]
fn a_dead_client_is_still_closed_after_an_absence() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    rig.sleep_until(5.0);
    rig.seen(client);
    stop_for(&mut rig, 70);
    rig.run();
    // The next ping was due at 10 s.
    assert!((absent_s(&rig) - 66.0).abs() < 0.001, "{}", absent_s(&rig));
    sleep_until_due(&mut rig, client, 25.0);
    assert_eq!(rig.seen(client), ["close 1001", "gone"]);
}

#[test]
fn a_socket_that_was_not_full_is_not_stalled() {
    let mut rig = Rig::new(|config| config.ping_interval_us = 40 * SECOND_US);
    let (slow, writer) = (rig.join("w", None), rig.join("w", None));
    rig.seen(slow);
    rig.peers[slow].reads = false;
    rig.op(writer, "k", "1", 1);
    rig.sleep_until(5.0);
    stop_for(&mut rig, 200);
    rig.run();
    assert!(absent_s(&rig) > 160.0);
    // The client still has the rest of its minute.
    sleep_until_due(&mut rig, slow, seconds(STALL_TIMEOUT_US));
    assert_eq!(rig.session(slow).state(), State::Closing);
}

#[test]
fn a_request_that_arrived_during_an_absence_is_answered() {
    let mut rig = Rig::new(|_| ());
    let (late, never) = (rig.accept(false), rig.accept(false));
    rig.sleep_until(1.0);
    stop_for(&mut rig, 60);
    // The receive may not end until after the first turn.
    rig.run();
    rig.receive(late, head("w", None).as_bytes());
    assert_eq!(rig.seen(late), ["101", "init 0"]);
    sleep_until_due(&mut rig, never, 10.0);
    assert_eq!(rig.seen(never), ["408", "gone"]);
}

#[test]
fn a_closing_connection_keeps_its_time_after_an_absence() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    rig.peers[client].closes = false;
    rig.receive(client, &frame(8, b""));
    rig.seen(client);
    stop_for(&mut rig, 30);
    rig.run();
    // The client's close may already be on its way.
    assert_eq!(rig.session(client).state(), State::Closing);
    sleep_until_due(&mut rig, client, seconds(LINGER_US));
    assert_eq!(rig.seen(client), ["aborted", "gone"]);
}

/// P77.
#[test]
fn a_drain_keeps_its_time_after_an_absence() {
    let mut rig = Rig::new(|_| ());
    let clients: Vec<usize> = (0..4).map(|_| rig.join("w", None)).collect();
    rig.shard.handle(Input::Drain, rig.clock);
    rig.sleep_until(1.0);
    for client in &clients {
        rig.seen(*client);
    }
    stop_for(&mut rig, 60);
    rig.run();
    assert_eq!(rig.drained, 0);
    rig.sleep_until(100.0);
    for client in &clients[1..] {
        let seen = rig.seen(*client);
        assert_eq!(seen, ["close 1001", "gone"], "a client was cut off");
    }
    assert_eq!(rig.drained, 1);
}

/// P25.
#[test]
fn a_token_expires_by_the_wall_clock() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", Some(5));
    rig.sleep_until(1.0);
    rig.seen(client);
    stop_for(&mut rig, 60);
    rig.sleep_until(61.1);
    let seen = rig.seen(client);
    assert!(seen.contains(&"close 4001".to_owned()), "{seen:?}");
}

/// P39.
#[test]
fn messages_sent_at_the_rate_are_accepted_when_they_arrive_at_once() {
    let limits = Limits {
        ops_per_second: Some(10),
        ..Limits::default()
    };
    let mut rig = Rig::new(|config| config.limits = limits);
    let writer = rig.join("w", None);
    rig.sleep_until(1.0);
    rig.seen(writer);
    stop_for(&mut rig, 60);
    let ops: Vec<u8> = (1..=600).flat_map(|at| op("k", "1", at)).collect();
    for part in ops.chunks(10_000) {
        rig.receive(writer, part);
    }
    let mut seen = rig.seen(writer);
    seen.retain(|what| what != "ping");
    assert_eq!(seen, Vec::<String>::new(), "an op was refused");
    assert_eq!(rig.shard.counters().ops, 600);
    // The extra allowance covers only messages that arrived in the meantime.
    let more: Vec<u8> = (601..=700).flat_map(|at| op("k", "1", at)).collect();
    rig.receive(writer, &more);
    let refused = rig.seen(writer).len();
    assert!((10..=100).contains(&refused), "{refused}");
}

#[test]
fn unsynced_ops_are_not_older_than_the_sync_interval() {
    let mut rig = Rig::new(|config| config.durability = Durability::Interval);
    let (writer, _reader) = (rig.join("w", None), rig.join("w", None));
    rig.op(writer, "k", "1", 1);
    assert_eq!(rig.shard.counters().durable.count, 0);
    rig.sleep_until(0.2);
    stop_for(&mut rig, 60);
    rig.run();
    let durable = rig.shard.counters().durable;
    assert_eq!(durable.count, 1, "no fdatasync was counted");
    assert_eq!(durable.sum, 60_200_000, "the latency excludes the absence");
}

#[test]
fn a_shard_that_is_always_late_still_closes_dead_connections() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    let mut turns = 0;
    while rig.shard.connections() > 0 {
        turns += 1;
        assert!(turns < 100, "the time does not advance");
        let due_us = rig.shard.next_deadline_us().unwrap();
        let late_us = due_us.saturating_sub(rig.clock.now_us) + 3 * SECOND_US;
        rig.clock.now_us += late_us;
        rig.run();
    }
    let seen = rig.seen(client);
    assert_eq!(seen[seen.len() - 2..], ["close 1001", "gone"]);
}

#[test]
fn a_stop_that_waits_for_the_log_is_not_an_absence() {
    let mut rig = Rig::new(|_| ());
    let writer = rig.join("w", None);
    rig.log_hangs = true;
    rig.op(writer, "k", "1", 1);
    rig.shard.handle(Input::Drain, rig.clock);
    // As with the worker, a deadline that has passed causes a turn every millisecond.
    for _ in 0..30_000 {
        rig.clock.now_us += 1000;
        rig.run();
    }
    assert_eq!(rig.clock.now_us, START_US + 30 * SECOND_US);
    assert_eq!(rig.drained, 0);
    assert_eq!(rig.shard.counters().absent_us, 0);
    rig.log_hangs = false;
    rig.run();
    assert_eq!(rig.drained, 1);
}
