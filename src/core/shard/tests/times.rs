//! When sessions are pinged and closed, on a clock that the tests control.

use super::rig::{Rig, START_US, head, look, pong};
use crate::core::fanout::room::RoomId;
use crate::core::shard::contract::Input;
use crate::core::shard::session::State;
use crate::core::state::placement::shard_of;
use crate::limits::{SECOND_US, TIMER_TICK_US};

/// The time until the next timer tick, which is when an immediate deadline takes effect.
const NEXT_TICK_MS: u64 = TIMER_TICK_US / 1000;

fn events(of: &[(u64, &str)]) -> Vec<(u64, String)> {
    of.iter()
        .map(|(at_ms, what)| (*at_ms, (*what).to_owned()))
        .collect()
}

/// P70.
#[test]
fn a_silent_client_is_pinged_and_then_closed() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    rig.sleep_until(60.0);
    let expected = [
        (0, "101"),
        (0, "init 0"),
        (10_000, "ping"),
        (20_000, "ping"),
        (25_000, "close 1001"),
        (25_000, "gone"),
    ];
    assert_eq!(rig.seen_at(client), events(&expected));
    assert_eq!(rig.shard.connections(), 0);
    assert_eq!(
        rig.shard.next_deadline_us(),
        None,
        "an empty shard has a deadline"
    );
}

#[test]
fn an_idle_client_causes_no_turn_before_its_next_deadline() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    for next_s in [10, 20, 25] {
        assert_eq!(
            rig.shard.next_deadline_us(),
            Some(START_US + next_s * SECOND_US)
        );
        rig.clock.now_us = START_US + next_s * SECOND_US;
        rig.run();
    }
    assert_eq!(rig.seen(client).last().map(String::as_str), Some("gone"));
}

/// P70.
#[test]
fn a_client_that_answers_stays() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    rig.sleep_until(24.0);
    rig.receive(client, &pong());
    rig.sleep_until(48.95);
    assert_eq!(
        rig.session(client).state(),
        State::Open {
            room: RoomId::new(0),
            member: 0
        }
    );
    rig.sleep_until(49.0);
    assert_eq!(
        rig.seen_at(client).last().map(|event| event.0),
        Some(49_000)
    );
}

/// P70.
#[test]
fn pings_are_spread_over_the_interval() {
    let mut rig = Rig::new(|config| config.ping_interval_us = 25 * SECOND_US);
    // Fibonacci hashing: the first ping of session n is f / 2 intervals before the end of its first
    // interval, where f is the fractional part of n * 0.618….
    for at_ms in [25_000, 17_274, 22_049, 14_323] {
        let client = rig.join("w", None);
        let next_ping_us = rig.session(client).next_ping_us - START_US;
        let is_near = next_ping_us / 1000 == at_ms;
        assert!(is_near, "client {client}: {next_ping_us}");
    }
}

/// P25.
#[test]
fn an_expiring_token_closes_its_connection() {
    // A leeway of 30 s is added to the lifetime of a token.
    for (ttl_s, clock_is_ahead_s, closed_ms) in [(2, 0, 32_000), (2, 5, 27_000), (0, 29, 1_000)] {
        let mut rig = Rig::new(|config| config.ping_interval_us = 1000 * SECOND_US);
        let client = rig.join("w", Some(ttl_s));
        rig.clock.unix_us += clock_is_ahead_s * SECOND_US;
        // The next event of the session reads the clock again.
        let id = rig.peers[client].client.id;
        rig.shard.reschedule(id, rig.clock);
        rig.sleep_until(60.0);
        let expected = [
            (0, "101"),
            (0, "init 0"),
            (closed_ms, "close 4001"),
            (closed_ms, "gone"),
        ];
        assert_eq!(
            rig.seen_at(client),
            events(&expected),
            "{ttl_s} {clock_is_ahead_s}"
        );
    }
}

/// P10.
#[test]
fn a_request_that_takes_too_long_is_answered_with_408() {
    for (closes, gone) in [(true, "gone"), (false, "aborted")] {
        let mut rig = Rig::new(|_| ());
        let client = rig.accept(false);
        rig.peers[client].closes = closes;
        rig.receive(client, b"GET / HTTP/1.1\r\n");
        rig.sleep_until(30.0);
        let gone_ms = if closes { 10_000 } else { 12_000 };
        let mut expected = vec![(10_000, "408"), (gone_ms, gone)];
        if !closes {
            expected.push((gone_ms, "gone"));
        }
        assert_eq!(rig.seen_at(client), events(&expected));
    }
}

/// P73.
#[test]
fn a_client_whose_socket_accepts_nothing_is_closed_after_a_minute() {
    let mut rig = Rig::new(|_| ());
    let (slow, writer) = (rig.join("w", None), rig.join("w", None));
    rig.seen(slow);
    rig.sleep_until(5.0);
    rig.peers[slow].reads = false;
    rig.op(writer, "k", "1", 1);
    assert!(rig.peers[slow].client.sending.is_some());
    // Both clients show that they are alive.
    for at_s in 1..=7_u8 {
        rig.sleep_until(f64::from(at_s) * 9.25);
        rig.receive(slow, &pong());
        rig.receive(writer, &pong());
    }
    rig.sleep_until(64.95);
    assert_eq!(
        rig.session(slow).state(),
        State::Open {
            room: RoomId::new(0),
            member: 0
        }
    );
    rig.sleep_until(65.0);
    assert_eq!(rig.session(slow).state(), State::Closing);
    rig.sleep_until(79.95);
    assert_eq!(
        rig.seen_at(slow),
        events(&[]),
        "closed before its 15 s were over"
    );
    rig.sleep_until(80.0);
    assert_eq!(
        rig.seen_at(slow),
        events(&[(80_000, "aborted"), (80_000, "gone")])
    );
    assert_eq!(rig.shard.connections(), 1);
}

/// P73.
#[test]
fn a_stalled_client_that_reads_again_receives_the_reason() {
    let mut rig = Rig::new(|config| config.ping_interval_us = 40 * SECOND_US);
    let (slow, writer) = (rig.join("w", None), rig.join("w", None));
    rig.seen(slow);
    rig.peers[slow].reads = false;
    rig.op(writer, "k", "1", 1);
    rig.sleep_until(70.0);
    assert_eq!(rig.session(slow).state(), State::Closing);
    rig.peers[slow].reads = true;
    rig.run();
    assert_eq!(rig.seen(slow), ["k=1@1", "ping", "close 1013", "gone"]);
}

/// P70.
#[test]
fn a_socket_that_accepts_bytes_again_is_a_sign_of_life() {
    let mut rig = Rig::new(|_| ());
    let (slow, writer) = (rig.join("w", None), rig.join("w", None));
    for (after_s, is_sign) in [(1, false), (2, true)] {
        let before_us = rig.session(slow).last_received_us;
        rig.peers[slow].reads = false;
        rig.op(writer, "k", "1", after_s);
        rig.clock.now_us += after_s * SECOND_US;
        rig.peers[slow].reads = true;
        rig.end_send(slow);
        let now_us = rig.clock.now_us;
        let session = rig.session(slow);
        let expected_us = if is_sign { now_us } else { before_us };
        assert_eq!(session.last_received_us, expected_us, "after {after_s} s");
        assert_eq!(session.last_progress_us, now_us);
        rig.run();
    }
}

/// P77.
#[test]
fn closes_during_a_stop_are_spread_over_the_drain_time() {
    let mut rig = Rig::new(|_| ());
    let clients: Vec<usize> = (0..4).map(|_| rig.join("w", None)).collect();
    rig.op(clients[0], "k", "1", 1);
    for client in &clients {
        rig.seen(*client);
    }
    let not_joined = rig.accept(false);
    rig.peers[clients[3]].closes = false;
    rig.shard.handle(Input::Drain, rig.clock);
    rig.run();
    assert_eq!(rig.drained, 0);
    // A request that arrives now is refused.
    rig.receive(not_joined, head("w", None).as_bytes());
    assert_eq!(rig.seen_at(not_joined), events(&[(0, "503"), (0, "gone")]));
    rig.sleep_until(30.0);
    // The four clients are spread over three quarters of the 8 s.
    for (place, client) in clients.iter().enumerate() {
        let at_ms = NEXT_TICK_MS.max(1500 * place as u64);
        let mut expected = vec![(at_ms, "close 1001")];
        if place == 3 {
            expected.extend([(at_ms + 2000, "aborted"), (at_ms + 2000, "gone")]);
        } else {
            expected.push((at_ms, "gone"));
        }
        assert_eq!(rig.seen_at(*client), events(&expected), "client {place}");
    }
    assert_eq!(rig.drained, 1);
    assert!(rig.shard.log.is_settled());
}

#[test]
fn a_second_stop_closes_all_clients_at_once() {
    let mut rig = Rig::new(|_| ());
    let clients: Vec<usize> = (0..3).map(|_| rig.join("w", None)).collect();
    for client in &clients {
        rig.seen(*client);
    }
    rig.shard.handle(Input::Drain, rig.clock);
    rig.run();
    rig.sleep_until(1.0);
    rig.shard.handle(Input::Drain, rig.clock);
    rig.sleep_until(1.1);
    for (client, at_ms) in
        clients
            .into_iter()
            .zip([NEXT_TICK_MS, 1000 + NEXT_TICK_MS, 1000 + NEXT_TICK_MS])
    {
        let expected = [(at_ms, "close 1001"), (at_ms, "gone")];
        assert_eq!(rig.seen_at(client), events(&expected));
    }
    assert_eq!(rig.drained, 1);
}

#[test]
fn a_stop_waits_no_longer_than_the_drain_time() {
    // Even a drain time of zero leaves enough time for a closing handshake.
    for (drain_s, over_ms) in [(8, 8000), (0, 2000)] {
        let mut rig = Rig::new(|config| config.drain_us = drain_s * SECOND_US);
        let client = rig.join("w", None);
        rig.seen(client);
        let silent = rig.accept(false);
        rig.peers[silent].closes = false;
        rig.shard.handle(Input::Drain, rig.clock);
        rig.sleep_until(20.0);
        assert_eq!(
            rig.seen_at(client),
            events(&[(NEXT_TICK_MS, "close 1001"), (NEXT_TICK_MS, "gone")])
        );
        let expected = [(over_ms, "aborted"), (over_ms, "gone")];
        assert_eq!(rig.seen_at(silent), events(&expected), "{drain_s}");
        assert_eq!(rig.drained, 1);
    }
}

#[test]
fn no_connection_is_handed_off_during_a_stop() {
    let mut names = (0..).map(|number| format!("w{number}"));
    let of_other = names.find(|name| shard_of(name, 2) == 1).unwrap();
    let requests = [
        head(&of_other, None),
        look(&format!("/v1/presence/{of_other}")),
    ];
    for request in requests {
        let mut rig = Rig::new(|config| config.shards = 2);
        let (before, after) = (rig.accept(false), rig.accept(false));
        rig.receive(before, request.as_bytes());
        assert!(rig.peers[before].handed_off.is_some());
        rig.shard.handle(Input::Drain, rig.clock);
        rig.receive(after, request.as_bytes());
        assert!(rig.peers[after].handed_off.is_none());
        assert_eq!(rig.seen(after), ["503", "gone"]);
    }
}
