//! The rules for a session, one by one: joining, reading, falling behind.

use crate::core::fanout::room::RoomId;
use std::rc::Rc;

use super::rig::{Rig, failure, frame, head, op, pong};
use crate::core::fanout::outbox::{Outbox, OutboxPool};
use crate::core::fanout::window::Chunk;
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::shard::contract::{Input, PeerStatus};
use crate::core::shard::session::{Intake, State};
use crate::core::state::placement::shard_of;
use crate::core::testing::START_UNIX_S;
use crate::limits::{ANSWER_BYTES_MAX, BATCH_BYTES_MAX, MESSAGES_PER_TURN_MAX, SECOND_US};
use crate::log::position::LogPosition;

const PING: u8 = 9;

/// Brings a server into a particular state.
type Setup<'a> = &'a dyn Fn(&mut Rig);

// ---- joining ----

/// P12, P13.
#[test]
fn a_request_is_answered_according_to_the_state_of_the_server() {
    let health = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    let (healthz, readyz) = (health("/healthz"), health("/readyz"));
    let join = head("w", None);
    let as_it_is = |_: &mut Rig| ();
    let others_fail = |rig: &mut Rig| rig.shard.set_peer_status(PeerStatus::default());
    let drains = |rig: &mut Rig| rig.shard.handle(Input::Drain, rig.clock);
    let fails = |rig: &mut Rig| {
        rig.shard
            .handle(Input::LogSynced(Err(failure())), rig.clock);
    };
    let cases: [(&str, Setup<'_>, bool, &str, &str); 12] = [
        (&healthz, &as_it_is, false, "200", "ok"),
        (&readyz, &as_it_is, false, "200", "ready"),
        (&readyz, &as_it_is, true, "200", "ready"),
        (&join, &as_it_is, true, "503", "at its connection limit"),
        (&readyz, &others_fail, false, "503", "cannot write its log"),
        (&healthz, &others_fail, false, "200", "ok"),
        (&join, &others_fail, false, "101", ""),
        (&readyz, &drains, false, "503", "draining"),
        (&join, &drains, false, "503", "is stopping"),
        (&healthz, &drains, false, "200", "ok"),
        (&readyz, &fails, false, "503", "cannot write its log"),
        (&join, &fails, false, "500", "cannot take writes"),
    ];
    for (case, (request, change, over_limit, status, text)) in cases.into_iter().enumerate() {
        let mut rig = Rig::new(|_| ());
        let client = rig.accept(over_limit);
        change(&mut rig);
        rig.receive(client, request.as_bytes());
        let seen = rig.seen(client);
        assert_eq!(
            seen.first().map(String::as_str),
            Some(status),
            "case {case}"
        );
        let body = String::from_utf8_lossy(&rig.peers[client].client.incoming).into_owned();
        assert!(body.contains(text), "case {case}: {body}");
        assert_eq!(
            seen.contains(&"gone".to_owned()),
            status != "101",
            "case {case}"
        );
    }
}

/// P30.
#[test]
fn a_request_may_arrive_in_parts_with_frames_after_it() {
    let mut bytes = head("w", None).into_bytes();
    let head_bytes = bytes.len();
    bytes.extend(op("k", "1", 5));
    for cut in [
        1,
        head_bytes - 1,
        head_bytes,
        head_bytes + 1,
        bytes.len() - 1,
        bytes.len(),
    ] {
        let mut rig = Rig::new(|_| ());
        let (writer, reader) = (rig.accept(false), rig.join("w", None));
        rig.receive(writer, &bytes[..cut]);
        if cut < bytes.len() {
            rig.receive(writer, &bytes[cut..]);
        }
        assert_eq!(rig.seen(reader), ["101", "init 0", "k=1@5"], "{cut}");
        assert_eq!(rig.seen(writer), ["101", "init 0"], "{cut}");
        assert!(rig.session(writer).unparsed.is_empty());
    }
}

#[test]
fn a_client_of_another_shards_workspace_is_handed_off() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let elsewhere = names.iter().find(|name| shard_of(name, 2) == 1);
    let elsewhere = elsewhere.expect("some name maps to the other shard");
    for behind in [&b""[..], &op("k", "1", 5)] {
        let mut rig = Rig::new(|config| config.shards = 2);
        let mut other = Rig::new(|config| (config.shard, config.shards) = (1, 2));
        let reader = other.join(elsewhere, None);
        let client = rig.accept(false);
        rig.receive(
            client,
            &[head(elsewhere, Some(3)).as_bytes(), behind].concat(),
        );
        assert_eq!(rig.shard.connections(), 0);
        assert_eq!(rig.seen(client).len(), 0);
        let handed_off = rig.peers[client].handed_off.take();
        let (owner, handoff) = handed_off.expect("the connection was handed off");
        assert_eq!(owner, 1);
        let id = other.shard.adopt(handoff, other.clock);
        let client = other.add_peer(id);
        assert_eq!(other.seen(client), ["101", "init 0"]);
        assert!(other.session(client).expires_at_us < u64::MAX);
        let expected = if behind.is_empty() {
            vec!["101", "init 0"]
        } else {
            vec!["101", "init 0", "k=1@5"]
        };
        assert_eq!(other.seen(reader), expected);
        other.receive(client, &op("j", "2", 6));
        assert_eq!(other.seen(reader), ["j=2@6"]);
    }
}

#[test]
fn a_workspace_without_ops_is_forgotten() {
    for (writes, rooms) in [(false, 0), (true, 1)] {
        let mut rig = Rig::new(|_| ());
        let clients = [rig.join("w", None), rig.join("w", None)];
        assert_eq!(rig.shard.rooms.len(), 1);
        if writes {
            rig.op(clients[0], "k", "1", 1);
        }
        for client in clients {
            assert_eq!(rig.shard.rooms.len(), 1);
            rig.receive(client, &frame(8, b""));
        }
        assert_eq!(rig.shard.rooms.len(), rooms, "{writes}");
        assert_eq!(rig.shard.rooms.find("w").is_some(), writes);
        let late = rig.join("w", None);
        assert_eq!(rig.seen(late), ["101".to_owned(), format!("init {rooms}")]);
    }
}

#[test]
fn members_may_leave_in_any_order() {
    for leaving in [[0, 1], [1, 0], [2, 0], [0, 2], [1, 2], [2, 1]] {
        let mut rig = Rig::new(|_| ());
        let clients: Vec<usize> = (0..3).map(|_| rig.join("w", None)).collect();
        for place in leaving {
            rig.receive(clients[place], &frame(8, b""));
        }
        let stays = clients[3 - leaving[0] - leaving[1]];
        let writer = rig.join("w", None);
        rig.seen(stays);
        rig.op(writer, "k", "1", 1);
        assert_eq!(rig.seen(stays), ["k=1@1"], "{leaving:?}");
        assert_eq!(rig.shard.rooms[RoomId::new(0)].members_count(), 2);
    }
}

#[test]
fn an_init_is_encoded_once_for_consecutive_joins() {
    let mut rig = Rig::new(|_| ());
    let kept = |rig: &Rig| rig.shard.snapshots.kept_init().map(Rc::as_ptr);
    let writer = rig.join("w", None);
    rig.op(writer, "k", "1", 1);
    let (first, second) = (rig.join("w", None), rig.join("w", None));
    let encoded = kept(&rig).expect("the small init message is kept");
    assert_eq!(rig.seen(first), ["101", "init 1"]);
    let third = rig.join("w", None);
    assert_eq!(kept(&rig), Some(encoded));
    assert_eq!(
        (rig.seen(second), rig.seen(third)),
        (
            vec!["101".to_owned(), "init 1".to_owned()],
            vec!["101".to_owned(), "init 1".to_owned()]
        )
    );
    // Only one init message is kept at a time.
    let elsewhere = rig.join("v", None);
    assert_eq!(rig.seen(elsewhere), ["101", "init 0"]);
    assert_ne!(kept(&rig), Some(encoded));
}

// ---- reading ----

/// P41, P42.
#[test]
fn a_frame_is_answered_according_to_its_kind() {
    let skew_us = 3600 * SECOND_US;
    let latest = (START_UNIX_S * SECOND_US) + skew_us;
    for (bytes, expected) in [
        (frame(1, br#"{"type":"ping"}"#), &[][..]),
        (pong(), &[]),
        (frame(PING, b"abc"), &["ping"]),
        (frame(1, b"{}"), &["error 400"]),
        (frame(2, b"abc"), &["close 1003", "gone"]),
        (frame(1, b"\xff"), &["close 1007", "gone"]),
        (frame(3, b""), &["close 1002", "gone"]),
        (frame(8, b""), &["close 1000", "gone"]),
        (frame(8, &3001_u16.to_be_bytes()), &["close 3001", "gone"]),
        (op("k", "1", 10), &["k=2@11"]),
        (op("k", "1", 11), &["k=2@11"]),
        (op("k", "2", 11), &[]),
        (op("j", "1", latest), &[]),
        (op("j", "1", latest + 1), &["error 400"]),
    ] {
        let mut rig = Rig::new(|_| ());
        let (client, other) = (rig.join("w", None), rig.join("w", None));
        rig.op(other, "k", "2", 11);
        rig.seen(client);
        rig.receive(client, &bytes);
        assert_eq!(rig.seen(client), expected, "{bytes:?}");
    }
}

#[test]
fn a_turn_reads_a_bounded_number_of_frames_per_session() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    let frames = 2 * MESSAGES_PER_TURN_MAX + 10;
    rig.receive_only(client, &pong().repeat(frames));
    for left in [frames - MESSAGES_PER_TURN_MAX, 10, 0] {
        assert_eq!(rig.session(client).unparsed.len(), left * pong().len());
        assert_eq!(rig.session(client).intake == Intake::Unread, left > 0);
        assert_eq!(rig.shard.has_work(), left > 0);
        assert_eq!(rig.peers[client].client.receiving, left == 0);
        rig.turn();
    }
}

#[test]
fn a_client_that_reads_no_answers_is_no_longer_read_from() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    rig.seen(client);
    rig.peers[client].reads = false;
    let mut pings = 0;
    while rig.session(client).intake != Intake::Paused {
        rig.receive(client, &frame(PING, &[7; 100]));
        pings += 1;
        assert!(pings < 1000, "the client is still being read from");
        // One answer is in flight, and the others wait.
        let waiting_bytes = rig.session(client).outbox.answer_bytes();
        let is_over = waiting_bytes > ANSWER_BYTES_MAX;
        assert_eq!(rig.session(client).intake == Intake::Paused, is_over);
        assert_eq!(rig.peers[client].client.receiving, !is_over);
    }
    // No sign of life is expected from it while the server does not read from it.
    rig.sleep_until(40.0);
    assert!(matches!(rig.session(client).state(), State::Open { .. }));
    rig.peers[client].reads = true;
    rig.run();
    let answers = rig.seen(client);
    assert!(answers.iter().all(|answer| answer == "ping"));
    assert!(answers.len() > pings);
    assert!(rig.peers[client].client.receiving);
    let now_us = rig.clock.now_us;
    assert_eq!(rig.session(client).last_received_us, now_us);
}

#[test]
fn a_client_is_read_from_while_its_answers_are_within_their_bound() {
    let mut cost = Outbox::default();
    let mut pool = OutboxPool::default();
    cost.push(
        Chunk::new(vec![0; 1000]),
        WindowOffset::START,
        LogPosition::NONE,
        &mut pool,
    );
    let chunk_bytes = ANSWER_BYTES_MAX - (cost.answer_bytes() - 1000);
    for (more_bytes, intake) in [
        (-1, Intake::Receiving),
        (0, Intake::Receiving),
        (1, Intake::Paused),
    ] {
        let mut rig = Rig::new(|_| ());
        let client = rig.join("w", None);
        let chunk = Chunk::new(vec![0; chunk_bytes.strict_add_signed(more_bytes)]);
        rig.session(client).outbox.push(
            chunk,
            WindowOffset::START,
            LogPosition::NONE,
            &mut OutboxPool::default(),
        );
        rig.receive_only(client, &pong());
        assert_eq!(rig.session(client).intake, intake, "{more_bytes}");
    }
}

#[test]
fn a_paused_client_is_resumed_once_half_of_its_answers_are_sent() {
    let mut cost = Outbox::default();
    let mut pool = OutboxPool::default();
    cost.push(
        Chunk::new(vec![0; 1000]),
        WindowOffset::START,
        LogPosition::NONE,
        &mut pool,
    );
    let chunk_bytes = ANSWER_BYTES_MAX / 2 - (cost.answer_bytes() - 1000);
    for (more_bytes, intake) in [(0, Intake::Unread), (1, Intake::Paused)] {
        let mut rig = Rig::new(|_| ());
        let (client, writer) = (rig.join("w", None), rig.join("w", None));
        rig.peers[client].reads = false;
        rig.op(writer, "k", "1", 1);
        let chunk = Chunk::new(vec![0; chunk_bytes + more_bytes]);
        rig.session(client).outbox.push(
            chunk,
            WindowOffset::START,
            LogPosition::NONE,
            &mut OutboxPool::default(),
        );
        rig.session(client).intake = Intake::Paused;
        rig.peers[client].reads = true;
        assert!(rig.end_send(client));
        assert_eq!(rig.session(client).intake, intake, "{more_bytes}");
        let queued = usize::from(intake == Intake::Unread);
        assert_eq!(rig.shard.reads.unread_count(), queued);
    }
}

#[test]
fn a_full_batch_is_written_before_more_is_read() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    rig.log_hangs = true;
    let value = format!("\"{}\"", "x".repeat(60_000));
    rig.op(writer, "k", "0", 1);
    assert!(rig.log.is_some(), "no batch is in flight");
    let (mut count, mut written) = (1, 0);
    while rig.session(writer).intake == Intake::Receiving {
        (count, written) = (count + 1, written + 1);
        rig.op(writer, "k", &value, count);
        assert!(count < 100, "the client is still being read from");
    }
    let count_max = BATCH_BYTES_MAX / value.len() + 2;
    assert!((count_max - 1..=count_max).contains(&written));
    assert!(
        !rig.shard.has_work(),
        "the shard has work while it waits for the log"
    );
    rig.seen(reader);
    rig.log_hangs = false;
    rig.run();
    assert_eq!(rig.session(writer).intake, Intake::Receiving);
    assert!(rig.peers[writer].client.receiving);
    assert_eq!(rig.seen(reader).last(), Some(&format!("k={value}@{count}")));
}
