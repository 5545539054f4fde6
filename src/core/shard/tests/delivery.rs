//! Tests of what each session is sent, and when.

use super::rig::{Rig, frame, head, look, op};
use crate::core::fanout::room::RoomId;
use crate::core::fanout::window::spans_bytes;
use crate::core::shard::contract::Output;
use crate::core::shard::session::Session;
use crate::limits::{
    COMMIT_AGE_MIN_US, CONFLATED_BYTES_MAX, CONFLATED_STEPS_MAX, PACE_AFTER_US, PACE_SHARE,
    RELAXED_COMMIT_AGE_US, SENDS_PER_TURN_MAX,
};
use crate::log::commit::Durability;
use crate::wire::ProtocolVersion;

#[test]
fn a_turn_sends_to_a_bounded_number_of_sessions() {
    let mut rig = Rig::new(|config| config.durability = Durability::None);
    let writer = rig.join("w", None);
    let readers = 4 * SENDS_PER_TURN_MAX;
    for _ in 0..readers {
        let reader = rig.join("w", None);
        rig.peers[reader].reads = false;
    }
    let in_flight = |rig: &Rig| {
        let peers = rig.peers.iter();
        peers.filter(|peer| peer.client.sending.is_some()).count()
    };
    rig.receive_only(writer, &op("k", "1", 1));
    for turns in 1..=4 {
        rig.turn();
        assert_eq!(in_flight(&rig), turns * SENDS_PER_TURN_MAX);
        assert_eq!(rig.shard.has_work(), turns < 4);
    }
}

#[test]
fn a_session_is_queued_once_and_only_if_it_can_be_sent_to() {
    type Edit = fn(&mut Session);
    let changes: [Edit; 5] = [
        |_| {},
        |session| session.queued = true,
        |session| session.sending = true,
        |session| assert!(session.abort()),
        |session| assert!(session.finish()),
    ];
    for (case, change) in changes.into_iter().enumerate() {
        let mut rig = Rig::new(|config| config.durability = Durability::None);
        let (writer, reader) = (rig.join("w", None), rig.join("w", None));
        let id = rig.peers[reader].client.id;
        rig.receive_only(writer, &op("k", "1", 1));
        change(rig.session(reader));
        // Frames are announced to members, whereas an answer queues its own session.
        if case < 3 {
            rig.shard.announce();
            assert_eq!(
                rig.shard.sends.queued().contains(&id),
                case == 0,
                "case {case}"
            );
            let owner = rig.peers[writer].client.id;
            assert!(
                !rig.shard.sends.queued().contains(&owner),
                "the writer is queued for its own op"
            );
            rig.shard.sends.set_queued(&[]);
            rig.session(reader).queued = case == 1;
        }
        rig.shard.enqueue(id);
        let queued = usize::from(case == 0);
        assert_eq!(rig.shard.sends.queued().len(), queued, "case {case}");
        if case != 1 {
            rig.shard.sends.set_queued(&[id]);
            rig.shard.send_slice(rig.clock);
            let sends = rig.shard.outputs.iter();
            let sends = sends.filter(|output| matches!(output, Output::Send(..)));
            assert_eq!(sends.count(), queued, "case {case}");
        }
    }
}

#[test]
fn a_commit_waits_briefly_for_the_round_of_sends() {
    for (durability, passed_us, is_started) in [
        (Durability::Always, 0, false),
        (Durability::Always, COMMIT_AGE_MIN_US - 1, false),
        (Durability::Always, COMMIT_AGE_MIN_US, true),
        // No client waits for the batch.
        (Durability::Interval, RELAXED_COMMIT_AGE_US - 1, false),
        (Durability::Interval, RELAXED_COMMIT_AGE_US, true),
        (Durability::None, RELAXED_COMMIT_AGE_US - 1, false),
        (Durability::None, RELAXED_COMMIT_AGE_US, true),
    ] {
        let mut rig = Rig::new(|config| config.durability = durability);
        let (writer, reader) = (rig.join("w", None), rig.join("w", None));
        let id = rig.peers[reader].client.id;
        rig.receive_only(writer, &op("k", "1", 1));
        // The round of sends is not complete.
        rig.shard.enqueue(id);
        assert!(rig.shard.has_work(), "the queued session causes no turn");
        rig.clock.now_us += passed_us;
        rig.turn();
        let case = format!("{durability:?} {passed_us}");
        assert_eq!(rig.log.is_some(), is_started, "{case}");
        rig.run();
        assert_eq!(rig.seen(reader).last().map(String::as_str), Some("k=1@1"));
    }
}

#[test]
fn a_batch_does_not_depend_on_another_event() {
    // A session is in the send queue when a commit could start, but no longer when the turn ends.
    for case in [
        "a correction",
        "an HTTP read",
        "a client that does not read",
    ] {
        let mut rig = Rig::new(|_| ());
        let (writer, slow) = (rig.join("w", None), rig.join("w", None));
        let loser = rig.join("w", None);
        let visitor = rig.accept(false);
        rig.run();
        rig.peers[slow].reads = false;
        rig.receive_only(writer, &op("k", "1", 2));
        match case {
            "a correction" => rig.receive_only(loser, &op("k", "2", 1)),
            "an HTTP read" => rig.receive_only(visitor, look("/v1/workspaces/w").as_bytes()),
            _ => rig.shard.enqueue(rig.peers[slow].client.id),
        }
        for _ in 0..3 {
            rig.turn();
            assert!(rig.log.is_some() || rig.shard.has_work(), "{case}");
        }
        assert!(rig.log.is_some(), "{case}: no batch is in flight");
    }
}

/// P61.
#[test]
fn ops_are_synced_within_the_interval() {
    let mut rig = Rig::new(|config| config.durability = Durability::Interval);
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    rig.op(writer, "k", "1", 1);
    assert_eq!(rig.seen(reader).last().map(String::as_str), Some("k=1@1"));
    assert!(!rig.disk.synced.contains("1"));
    rig.sleep_until(0.95);
    assert!(!rig.disk.synced.contains("1"));
    rig.sleep_until(1.0);
    assert!(rig.disk.synced.contains("1"));
}

/// P60.
#[test]
fn an_answer_that_contains_an_op_waits_for_the_log() {
    let mut rig = Rig::new(|_| ());
    let (writer, other) = (rig.join("w", None), rig.join("w", None));
    rig.seen(writer);
    rig.seen(other);
    rig.log_hangs = true;
    rig.op(writer, "k", "1", 10);
    rig.op(writer, "k", "2", 9);
    rig.op(other, "k", "3", 9);
    let late = rig.join("w", None);
    assert_eq!(rig.seen(writer), [""; 0]);
    assert_eq!(rig.seen(other), [""; 0]);
    assert_eq!(rig.seen(late), [""; 0]);
    rig.receive(writer, &frame(1, b"{}"));
    rig.log_hangs = false;
    rig.run();
    assert_eq!(rig.seen(writer), ["k=1@10", "error 400"]);
    assert_eq!(rig.seen(other), ["k=1@10", "k=1@10"]);
    assert_eq!(rig.seen(late), ["101", "init 1"]);
}

/// P60, P82.
#[test]
fn an_answer_delayed_by_the_log_is_sent_with_the_commit() {
    let mut rig = Rig::new(|_| ());
    let writer = rig.join("w", None);
    rig.seen(writer);
    // The correction is queued before the commit of the op that it shows has begun.
    rig.receive_only(writer, &[op("k", "1", 10), op("k", "2", 9)].concat());
    rig.turn();
    assert_eq!(rig.shard.sends.waiting(), [rig.peers[writer].client.id]);
    assert!(rig.peers[writer].client.sending.is_none());
    rig.sleep_until(0.01);
    assert_eq!(rig.seen(writer), ["k=1@10"]);
    assert!(rig.shard.sends.waiting().is_empty());
}

#[test]
fn a_zero_byte_send_ends_the_connection() {
    // Each case: whether the connection was already aborted, and whether the send accepted all
    // bytes.
    for (is_aborted, takes_all) in [(false, false), (true, false), (true, true)] {
        let mut rig = Rig::new(|_| ());
        let (client, writer) = (rig.join("w", None), rig.join("w", None));
        rig.peers[client].reads = false;
        rig.op(writer, "k", "1", 1);
        rig.seen(client);
        let spans = rig.peers[client].client.sending.take();
        let spans = spans.expect("a send is in flight");
        if is_aborted {
            let id = rig.peers[client].client.id;
            rig.shard.abort(id);
        }
        let bytes = if takes_all { spans_bytes(&spans) } else { 0 };
        rig.end_send_with(client, spans, Some(bytes));
        rig.run();
        let seen = rig.seen(client);
        assert_eq!(seen.last().map(String::as_str), Some("gone"), "{seen:?}");
        assert_eq!(rig.shard.connections(), 1);
    }
}

#[test]
fn the_keys_examined_for_a_conflated_client_in_a_turn_are_bounded() {
    let own = CONFLATED_STEPS_MAX + 10;
    let mut rig = Rig::new(|config| {
        config.durability = Durability::None;
        config.outbox_bytes_max = 16 * 1024;
    });
    let (slow, writer) = (rig.join("w", None), rig.join("w", None));
    rig.peers[slow].reads = false;
    let value = format!("\"{}\"", "x".repeat(1000));
    for timestamp in 1..=100 {
        rig.op(writer, "k", &value, timestamp);
    }
    for key in 0..own {
        rig.receive_only(slow, &op(&format!("its own {key}"), "1", 1));
        rig.turn();
    }
    let since = |rig: &mut Rig| {
        let behind = rig.session(slow).outbox.behind();
        behind.map(|behind| behind.since.get())
    };
    assert!(since(&mut rig).expect("the client is behind") < 100);
    // The send in flight ends, and the next one carries the latest op of the one key.
    rig.peers[slow].reads = true;
    rig.end_send(slow);
    rig.turn();
    let examined = 99 + CONFLATED_STEPS_MAX as u64;
    assert_eq!(since(&mut rig), Some(examined), "own ops are not skipped");
    rig.run();
    assert_eq!(since(&mut rig), None);
    rig.seen(slow);
    rig.op(writer, "k", "2", 200);
    assert_eq!(rig.seen(slow), ["k=2@200"]);
}

/// P72.
#[test]
fn a_client_that_fell_behind_receives_the_latest_op_of_each_key() {
    let mut rig = Rig::new(|config| config.outbox_bytes_max = 16 * 1024);
    let (slow, writer) = (rig.join("w", None), rig.join("w", None));
    let value = format!("\"{}\"", "x".repeat(1000));
    rig.op(writer, "before", "1", 1);
    rig.op(slow, "its own", "1", 1);
    rig.peers[slow].reads = false;
    let keys = 200;
    for round in 1..=2 {
        for key in 0..keys {
            rig.op(writer, &format!("k{key}"), &value, round);
        }
    }
    rig.op(slow, "its own", "2", 2);
    rig.op(writer, "k0", "3", 3);
    assert!(rig.session(slow).outbox.behind().is_some());
    // The window holds at most its bound and the bytes in flight.
    let held_bytes = rig.shard.rooms[RoomId::new(0)]
        .feed(ProtocolVersion::V1)
        .window
        .capacity_bytes();
    assert!(held_bytes <= 2 * 16 * 1024, "{held_bytes}");
    rig.seen(slow);
    // The length of each send.
    let mut sends = Vec::new();
    while let Some(spans) = rig.peers[slow].client.sending.take() {
        let bytes = spans_bytes(&spans);
        sends.push(bytes);
        rig.end_send_with(slow, spans, Some(bytes));
        rig.run();
    }
    assert!(sends.len() >= 4, "{sends:?}");
    assert!(
        sends.iter().all(|bytes| *bytes <= CONFLATED_BYTES_MAX),
        "{sends:?}"
    );
    let frame_bytes = 1100;
    let full = sends[1..sends.len() - 1].iter();
    assert!(
        full.clone()
            .all(|bytes| *bytes > CONFLATED_BYTES_MAX - frame_bytes),
        "{sends:?}"
    );
    let seen = rig.seen(slow);
    let latest = &seen[seen.len() - keys..];
    for (key, received) in (1..keys).zip(latest) {
        assert_eq!(*received, format!("k{key}={value}@2"));
    }
    assert_eq!(latest.last().map(String::as_str), Some("k0=3@3"));
    assert!(rig.session(slow).outbox.behind().is_none());
    rig.peers[slow].reads = true;
    rig.op(writer, "k1", "4", 4);
    assert_eq!(rig.seen(slow), ["k1=4@4"]);
}

#[test]
fn a_window_releases_frames_once_all_members_have_them() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    // The reader pauses for a while, with one send in flight and the rest in the window.
    for timestamp in 1..=20 {
        rig.peers[reader].reads = timestamp < 10;
        rig.op(writer, "k", "1", timestamp);
    }
    assert!(
        rig.shard.rooms[RoomId::new(0)]
            .feed(ProtocolVersion::V1)
            .window
            .capacity_bytes()
            > 0
    );
    rig.peers[reader].reads = true;
    rig.run();
    assert_eq!(rig.seen(reader).len(), 22);
    let window = &rig.shard.rooms[RoomId::new(0)]
        .feed(ProtocolVersion::V1)
        .window;
    assert_eq!((window.capacity_bytes(), window.start()), (0, window.end()));
    assert!(rig.shard.rooms.touched().is_empty());
    assert!(!rig.shard.rooms[RoomId::new(0)].touched);
}

#[test]
fn a_window_over_its_bound_does_not_wait_for_the_round() {
    for (over_bytes, falls_behind) in [(-1, false), (0, false), (1, true)] {
        let mut rig = Rig::new(|config| config.durability = Durability::None);
        let (writer, reader) = (rig.join("w", None), rig.join("w", None));
        rig.receive_only(writer, &op("k", "1", 1));
        let held_bytes = rig.shard.rooms[RoomId::new(0)]
            .feed(ProtocolVersion::V1)
            .window
            .capacity_bytes();
        rig.shard.config.outbox_bytes_max = held_bytes.strict_sub_signed(over_bytes);
        rig.shard.announce();
        assert!(!rig.shard.sends.is_round_done());
        rig.shard.trim_windows();
        assert_eq!(rig.session(reader).outbox.behind().is_some(), falls_behind);
        let held_bytes = rig.shard.rooms[RoomId::new(0)]
            .feed(ProtocolVersion::V1)
            .window
            .capacity_bytes();
        assert_eq!(held_bytes == 0, falls_behind, "{over_bytes}");
        assert_eq!(
            rig.shard.rooms.touched(),
            [RoomId::new(0)],
            "the room is not examined again"
        );
        rig.run();
        assert!(rig.shard.rooms.touched().is_empty());
        assert_eq!(rig.seen(reader).last().map(String::as_str), Some("k=1@1"));
    }
}

#[test]
fn a_saturated_shard_pauses_between_slices() {
    for durability in [Durability::None, Durability::Interval, Durability::Always] {
        let mut rig = Rig::new(|config| config.durability = durability);
        let writer = rig.join("w", None);
        let readers: Vec<_> = (0..SENDS_PER_TURN_MAX + 40)
            .map(|_| rig.join("w", None))
            .collect();
        let (mut pauses, mut paused_us, begun_us) = (0, 0, rig.clock.now_us);
        for timestamp in 1..=200 {
            rig.receive_only(writer, &op("k", "1", timestamp));
            rig.step();
            let until_us = rig.shard.sends.pause_until_us();
            if let Some(until_us) = until_us {
                assert!(rig.clock.now_us - begun_us >= PACE_AFTER_US);
                assert!(!rig.shard.has_work(), "the shard has work during a pause");
                assert_eq!(rig.shard.next_deadline_us(), Some(until_us));
                pauses += 1;
                paused_us += until_us - rig.clock.now_us;
            }
            rig.clock.now_us = until_us.unwrap_or(rig.clock.now_us + 1000);
        }
        if durability == Durability::Always {
            assert_eq!(pauses, 0, "paused although commits already pause the shard");
        } else {
            assert!(
                pauses > 50 && paused_us == pauses * 1000 / PACE_SHARE,
                "{pauses}"
            );
        }
        rig.sleep_until(1.0);
        assert_eq!(rig.shard.sends.pause_until_us(), None);
        for reader in readers {
            assert_eq!(rig.seen(reader).last().map(String::as_str), Some("k=1@200"));
        }
    }
}

#[test]
fn a_stale_own_op_mark_hides_no_op_from_a_new_client() {
    let mut rig = Rig::new(|config| config.outbox_bytes_max = 128 * 1024);
    let (writer, old) = (rig.join("w", None), rig.join("w", None));
    let value = |letter: &str, bytes| format!("\"{}\"", letter.repeat(bytes));
    // An init message fills a send, so the frames that follow it are sent later.
    for key in 0..5 {
        rig.op(writer, &format!("k{key}"), &value("x", 60_000), 1);
    }
    // The init message of this client stays in flight, so a client that joins later is sent the
    // same one, followed by the ops since then.
    let holder = stalled_join(&mut rig);
    rig.op(old, "own", "1", 2);
    let number = rig.session(old).number;
    rig.receive(old, &frame(8, &1000_u16.to_be_bytes()));
    // After 2^32 connections, a session has the same slot and generation as the old one.
    rig.shard.sessions.skip_numbers_to(number + (1 << 32));
    let new = stalled_join(&mut rig);
    let [old_id, new_id] = [old, new].map(|place| rig.peers[place].client.id);
    assert_eq!(old_id, new_id);
    for timestamp in 3..=8 {
        rig.op(writer, "k0", &value("y", 60_000), timestamp);
    }
    assert!(rig.session(new).outbox.behind().is_some());
    for place in [holder, new] {
        rig.peers[place].reads = true;
    }
    rig.run();
    let seen = rig.seen(new);
    assert_eq!(seen[..3], ["101", "init 5", "own=1@2"]);
}

/// Joins `w` as a client that reads nothing, and returns the client.
fn stalled_join(rig: &mut Rig) -> usize {
    let place = rig.accept(false);
    rig.peers[place].reads = false;
    rig.receive(place, head("w", None).as_bytes());
    place
}
