//! The answers to clients after a log failure and after a panic, and how the shard recovers.

use super::peers::Told;
use super::rig::{Rig, frame, head};
use crate::core::fanout::window::spans_bytes;
use crate::core::shard::contract::{Input, Output};
use crate::core::shard::session::State;

/// P13.
#[test]
fn a_panic_in_a_request_is_answered_with_500() {
    let mut rig = Rig::new(|_| ());
    let (culprit, other) = (rig.accept(false), rig.accept(false));
    // This simulates a bug in the server: the index refers to a room that does not exist.
    rig.shard.rooms.break_index("w");
    rig.receive(culprit, head("w", None).as_bytes());
    assert_eq!(rig.seen(culprit), ["500", "gone"]);
    assert_eq!(rig.session(other).state(), State::Handshake);
    rig.sleep_until(0.1);
    rig.receive(other, head("w", None).as_bytes());
    assert_eq!(rig.seen(other), ["101", "init 0"]);
}

#[test]
fn a_panic_in_a_closing_connection_ends_only_that_connection() {
    let mut rig = Rig::new(|_| ());
    let (culprit, other) = (rig.join("w", None), rig.join("w", None));
    for client in [culprit, other] {
        rig.seen(client);
        rig.peers[client].reads = false;
        rig.receive(client, &frame(8, b""));
        assert_eq!(rig.session(client).state(), State::Closing);
    }
    // A socket cannot accept more bytes than it was given, so this simulates a bug.
    let spans = rig.peers[culprit].client.sending.take();
    let spans = spans.expect("the close frame is in flight");
    let (id, bytes) = (rig.peers[culprit].client.id, spans_bytes(&spans));
    let input = Input::Sent(id, spans, Ok(bytes + 1));
    rig.shard.handle(input, rig.clock);
    rig.run();
    assert_eq!(rig.seen(culprit), ["aborted", "gone"]);
    rig.peers[other].reads = true;
    rig.run();
    assert_eq!(rig.seen(other), ["close 1000", "gone"]);
}

/// P63.
#[test]
fn a_panic_is_reported_and_the_shard_restarts() {
    let mut rig = Rig::new(|config| config.fault_panic_key = Some("boom".to_owned()));
    let (culprit, other) = (rig.join("w", None), rig.join("v", None));
    let silent = rig.accept(false);
    rig.op(culprit, "k", "1", 1);
    for client in [culprit, other] {
        rig.seen(client);
    }
    rig.op(culprit, "boom", "1", 2);
    assert_eq!(rig.seen(culprit), ["error 500", "close 1011", "gone"]);
    assert_eq!(rig.seen(other), ["close 1011", "gone"]);
    assert_eq!(rig.ready, Some(false));
    rig.sleep_until(0.05);
    assert_eq!(rig.ready, Some(false));
    rig.sleep_until(0.1);
    assert_eq!(rig.ready, Some(true));
    rig.receive(silent, head("w", None).as_bytes());
    assert_eq!(rig.seen(silent), ["101", "init 1"]);
}

/// P62.
#[test]
fn the_log_is_retried_at_growing_intervals() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    rig.seen(client);
    rig.log_fails = true;
    rig.op(client, "k", "1", 1);
    assert_eq!(rig.seen(client), ["error 500", "close 1011", "gone"]);
    let mut waits_ms = Vec::new();
    for _ in 0..8 {
        waits_ms.push(rebuild_after_ms(&mut rig));
        rig.run();
    }
    assert_eq!(waits_ms, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    rig.log_fails = false;
    rebuild_after_ms(&mut rig);
    rig.run();
    assert_eq!(rig.ready, Some(true));
    assert_eq!(rig.shard.next_deadline_us(), None);
    // The generation that began was recorded, which proves that the disk works again. The record of
    // the next one is never written, and only the rebuild succeeds.
    for wait_ms in [100, 200] {
        rig.log_hangs = true;
        let client = rig.join("w", None);
        rig.op(client, "j", "1", 1);
        (rig.log_hangs, rig.log_fails) = (false, true);
        rig.run();
        assert_eq!(rebuild_after_ms(&mut rig), wait_ms);
        rig.end_log_with(false, |left| left);
    }
}

/// Sleeps until the next attempt to rebuild, and returns the time until then in milliseconds.
fn rebuild_after_ms(rig: &mut Rig) -> u64 {
    let before_us = rig.clock.now_us;
    while !matches!(rig.log, Some(Output::Rebuild(_))) {
        assert!(!rig.shard.has_work());
        let next_us = rig.shard.next_deadline_us();
        let next_us = next_us.expect("a retry is scheduled");
        assert!(next_us > rig.clock.now_us, "the retry is not in the future");
        rig.clock.now_us = next_us;
        rig.turn();
    }
    (rig.clock.now_us - before_us) / 1000
}

/// P62.
#[test]
fn only_clients_whose_ops_are_lost_receive_an_error() {
    // The batch that is being written fails, and so do the ops that followed it.
    let mut rig = Rig::new(|_| ());
    let clients: Vec<usize> = (0..4).map(|_| rig.join("w", None)).collect();
    rig.op(clients[3], "k", "0", 1);
    for client in &clients {
        rig.seen(*client);
    }
    rig.log_hangs = true;
    rig.op(clients[0], "k", "1", 2);
    rig.op(clients[1], "k", "2", 3);
    rig.op(clients[2], "k", "2", 3);
    (rig.log_hangs, rig.log_fails) = (false, true);
    rig.run();
    for (client, receives_error) in clients.into_iter().zip([true, true, false, false]) {
        let seen = rig.seen(client);
        assert_eq!(
            seen.contains(&"error 500".to_owned()),
            receives_error,
            "{client}: {seen:?}"
        );
        assert!(
            seen.ends_with(&["close 1011".to_owned(), "gone".to_owned()]),
            "{seen:?}"
        );
    }
    assert!(!matches!(
        rig.peers[0].client.next_told(),
        Some(Told::Op(_))
    ));
}
