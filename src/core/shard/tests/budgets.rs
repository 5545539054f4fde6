//! The memory that a shard holds for individual sessions. Each bound is reached, and the tests
//! check which session is evicted and that the others are not affected.

use std::rc::Rc;

use super::rig::{Rig, frame, head, look, op, pong};
use crate::core::fanout::window::spans_bytes;
use crate::core::shard::session::State;
use crate::limits::{MESSAGE_BYTES_DEFAULT, PRESENCE_NAMES_MAX, SECOND_US, SESSION_BYTES_SPARED};

mod transfers;

const TEXT: u8 = 1;

/// Returns an unfinished message: a text frame without FIN, with a payload of `bytes` bytes.
fn fragment(bytes: usize) -> Vec<u8> {
    let mut frame = frame(TEXT, &vec![b'x'; bytes]);
    frame[0] = TEXT;
    frame
}

fn unfinished(rig: &Rig) -> u64 {
    rig.shard.counters().unfinished_bytes
}

/// Joins `workspace` as a client that then stops reading, and returns the client.
fn stalled(rig: &mut Rig, workspace: &str) -> usize {
    let place = rig.join(workspace, None);
    rig.seen(place);
    rig.peers[place].reads = false;
    place
}

fn is_open(rig: &mut Rig, place: usize) -> bool {
    !rig.peers[place].client.closed && matches!(rig.session(place).state(), State::Open { .. })
}

// ---- unfinished messages ----

/// P76.
#[test]
fn unfinished_messages_share_a_budget_and_small_ones_are_never_dropped() {
    const BUDGET: usize = 200_000;
    // As fragments, as one long frame, and as heads.
    for kind in ["fragments", "frame", "head"] {
        let mut rig = Rig::new(|config| config.session_bytes_max = BUDGET);
        let small = rig.join("w", None);
        rig.receive(small, &fragment(SESSION_BYTES_SPARED - 100));
        let mut clients = Vec::new();
        for number in 0..100 {
            // Heads are the shortest, so filling the budget with them takes the most clients.
            let client = if kind == "head" {
                rig.accept(false)
            } else {
                rig.join("w", None)
            };
            rig.seen(client);
            clients.push(client);
            match kind {
                "fragments" => rig.receive(client, &fragment(20_000 + number)),
                "frame" => rig.receive(client, &frame(TEXT, &vec![b'x'; 60_000])[..20_000]),
                _ => {
                    let head = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(12_000));
                    rig.receive(client, head.as_bytes());
                }
            }
            rig.shard.invariants();
            let spared = (clients.len() + 1) * 2 * SESSION_BYTES_SPARED;
            let most = BUDGET + spared;
            assert!(
                unfinished(&rig) <= most as u64,
                "{kind}: {}",
                unfinished(&rig)
            );
        }
        let given_up = rig.shard.counters().given_up_sessions;
        assert!(given_up > 50, "{kind}: {given_up}");
        // The oldest was closed first, and the newest stays open.
        let events = rig.seen(clients[0]);
        let expected = if kind == "head" { "503" } else { "close 1013" };
        assert_eq!(events, [expected, "gone"], "{kind}");
        let last = clients[99];
        assert!(!rig.peers[last].client.closed, "{kind}");
        assert!(is_open(&mut rig, small), "{kind}");
        // This completes its message, which is not valid.
        rig.receive(small, &[0x80, 0x80, 0, 0, 0, 0]);
        assert_eq!(
            rig.seen(small).last().map(String::as_str),
            Some("error 400")
        );
        let left = unfinished(&rig);
        rig.sleep_until(120.0);
        assert!(left > 0 && unfinished(&rig) == 0, "{kind}");
    }
}

/// P76.
#[test]
fn one_legal_message_always_fits() {
    let message_bytes = 3 << 20;
    let mut rig = Rig::new(|config| {
        config.message_bytes_max = message_bytes;
        config.session_bytes_max = 4 * message_bytes;
    });
    let client = rig.join("w", None);
    rig.seen(client);
    // The message is sent in one frame, and then in many fragments. In both cases the buffer grows
    // by doubling.
    let header = |first: u8, bytes: usize| {
        let mut header = vec![first, 0xFF];
        header.extend((bytes as u64).to_be_bytes());
        header.extend([0; 4]);
        header
    };
    for count in [1, 48] {
        let part_bytes = message_bytes / count;
        for part in 0..count {
            let (first, last) = (part == 0, part == count - 1);
            let first_byte = u8::from(last) * 0x80 + u8::from(first);
            let mut bytes = header(first_byte, part_bytes);
            bytes.extend(vec![b'x'; part_bytes]);
            for received in bytes.chunks(16 * 1024) {
                rig.receive(client, received);
            }
        }
        assert_eq!(rig.seen(client), ["error 400"]);
        assert_eq!(rig.shard.counters().given_up_sessions, 0);
        assert_eq!(unfinished(&rig), 0);
    }
}

/// P74.
#[test]
fn a_message_that_takes_too_long_closes_its_client() {
    let parts: [(&str, Vec<u8>); 3] = [
        ("a fragment", fragment(10)),
        (
            "a piece of a frame",
            frame(TEXT, b"1234567890")[..8].to_vec(),
        ),
        ("a piece of a header", vec![0x81]),
    ];
    for (what, part) in parts {
        let mut rig = Rig::new(|_| ());
        let client = rig.join("w", None);
        rig.seen(client);
        rig.sleep_until(7.0);
        rig.receive(client, &part);
        if what == "a fragment" {
            // Further fragments and signs of life do not extend the time limit.
            for at_s in [15.0, 25.0, 35.0] {
                rig.sleep_until(at_s);
                rig.receive(client, &pong());
                rig.receive(client, &[0, 0x81, 0, 0, 0, 0, b'x']);
            }
        } else {
            // The client cannot answer a ping in the middle of a frame, so no ping may be due.
            rig.shard.config.ping_interval_us = 1000 * SECOND_US;
        }
        rig.sleep_until(36.9);
        assert!(is_open(&mut rig, client), "{what}");
        rig.sleep_until(37.1);
        let seen = rig.seen_at(client);
        let closes: Vec<_> = seen
            .iter()
            .filter(|event| event.1 == "close 1008")
            .collect();
        assert_eq!(closes.len(), 1, "{what}: {seen:?}");
        assert_eq!(closes[0].0, 37_000, "{what}");
        assert_eq!(rig.shard.counters().given_up_messages, 1);
    }
}

/// P74.
#[test]
fn each_message_has_its_own_deadline_and_a_long_one_has_more_time() {
    let mut rig = Rig::new(|config| {
        config.message_bytes_max = 4 * MESSAGE_BYTES_DEFAULT;
        config.ping_interval_us = 1000 * SECOND_US;
    });
    let client = rig.join("w", None);
    rig.seen(client);
    // For two minutes, each receive ends in the middle of the next message.
    let message = op("k", "1", 1);
    let (begin, rest) = message.split_at(9);
    rig.receive(client, begin);
    for at_s in (10..120_u8).step_by(10) {
        rig.sleep_until(f64::from(at_s));
        rig.receive(client, &[rest, begin].concat());
        assert!(is_open(&mut rig, client));
    }
    rig.receive(client, rest);
    // Each mebibyte of a message extends its time limit by half a minute, and this one has two.
    for _ in 0..64 {
        let mut part = fragment(32 * 1024);
        part[0] = if rig.session(client).decoder.is_mid_message() {
            0
        } else {
            TEXT
        };
        rig.receive(client, &part);
    }
    rig.sleep_until(199.9);
    assert!(is_open(&mut rig, client));
    rig.sleep_until(200.1);
    assert_eq!(rig.seen(client), ["close 1008", "gone"]);
}

#[test]
fn a_timer_is_moved_at_most_once_per_message() {
    let mut rig = Rig::new(|config| config.ping_interval_us = 1000 * SECOND_US);
    let client = rig.join("w", None);
    let message = op("k", "1", 1);
    let (begin, rest) = message.split_at(9);
    rig.receive(client, begin);
    let tick = rig.session(client).timer_tick;
    for _ in 0..10 {
        rig.receive(client, &[rest, begin].concat());
        assert_eq!(rig.session(client).timer_tick, tick);
    }
}

// ---- answers ----

/// Returns a rig with `keys` values of 60 KB in workspace `w`, all written by client 0.
fn rig_with_values(keys: u64, budget: usize) -> Rig {
    let mut rig = Rig::new(|config| {
        config.session_bytes_max = budget;
        config.outbox_bytes_max = 1 << 20;
    });
    let writer = rig.join("w", None);
    for key in 0..keys {
        rig.op(writer, &format!("k{key}"), &value('v'), 100 + key);
    }
    rig.seen(writer);
    rig
}

fn value(letter: char) -> String {
    format!("\"{}\"", String::from(letter).repeat(60_000))
}

fn shared(rig: &Rig) -> u64 {
    rig.shard.counters().shared_answer_bytes
}

/// P57.
#[test]
fn all_senders_that_lose_to_an_op_share_one_frame() {
    let mut rig = rig_with_values(1, 10 << 20);
    let losers: Vec<usize> = (0..20).map(|_| stalled(&mut rig, "w")).collect();
    for loser in &losers {
        rig.op(*loser, "k0", "1", 1);
    }
    rig.run();
    assert!((60_000..61_000).contains(&shared(&rig)), "{}", shared(&rig));
    let own_bytes = rig.shard.counters().answer_bytes;
    assert!(own_bytes < 20 * 1000, "{own_bytes}");
    for loser in &losers {
        rig.peers[*loser].reads = true;
    }
    rig.run();
    let expected = format!("k0={}@100", value('v'));
    for loser in losers {
        assert_eq!(rig.seen(loser), [expected.as_str()]);
    }
    assert_eq!((shared(&rig), rig.shard.counters().answer_bytes), (0, 0));
}

/// P57.
#[test]
fn no_op_is_corrected_before_the_previous_correction_is_sent() {
    let mut rig = rig_with_values(3, 10 << 20);
    let loser = stalled(&mut rig, "w");
    let ops = [
        op("k0", "1", 1),
        op("k1", "1", 1),
        op("k2", "1", 1),
        op("k0", "2", 2),
    ];
    rig.receive(loser, &ops.concat());
    // At most two corrections are held: the one in flight, and one queued while the queue is below
    // its bound.
    assert!(shared(&rig) <= 2 * 61_000, "{}", shared(&rig));
    assert!(rig.session(loser).outbox.waiting_bytes() == 0);
    rig.peers[loser].reads = true;
    rig.run();
    let expected = [100, 101, 102, 100].map(|at| format!("k{}={}@{at}", at - 100, value('v')));
    assert_eq!(rig.seen(loser), expected);
}

/// P76.
#[test]
fn unread_corrections_have_a_budget_and_clients_that_read_are_kept() {
    const BUDGET: usize = 600_000;
    let mut rig = rig_with_values(40, BUDGET);
    let innocent = rig.join("w", None);
    rig.seen(innocent);
    let mut losers = Vec::new();
    for key in 0..40 {
        let loser = stalled(&mut rig, "w");
        losers.push(loser);
        rig.op(loser, &format!("k{key}"), "1", 1);
        rig.shard.invariants();
        assert!(shared(&rig) <= (BUDGET + 61_000) as u64, "{}", shared(&rig));
        // A client that reads receives its correction, no matter how much others leave unread.
        rig.op(innocent, "k0", "1", 1);
        assert_eq!(rig.seen(innocent).len(), 1);
    }
    // The sessions that were corrected first were evicted, and the server did not wait for them.
    assert!(rig.peers[losers[0]].client.closed && rig.peers[losers[20]].client.closed);
    assert!(is_open(&mut rig, losers[39]));
    let given_up = rig.shard.counters().given_up_sessions;
    assert!((30..40).contains(&given_up), "{given_up}");
    assert!(is_open(&mut rig, innocent) && is_open(&mut rig, 0));
}

#[test]
fn under_memory_pressure_reads_pause_at_a_lower_bound() {
    let mut rig = rig_with_values(8, 600_000);
    for key in 0..6 {
        let loser = stalled(&mut rig, "w");
        rig.op(loser, &format!("k{key}"), "1", 1);
    }
    assert!(rig.shard.budget.is_tight());
    // Each answer is small, but together they exceed what a session may hold now.
    let talker = stalled(&mut rig, "w");
    let bad: Vec<u8> = (0..100).flat_map(|_| frame(TEXT, b"{")).collect();
    rig.receive(talker, &bad);
    let held_bytes = rig.session(talker).outbox.answer_bytes();
    let expected = SESSION_BYTES_SPARED..SESSION_BYTES_SPARED + 1000;
    assert!(expected.contains(&held_bytes), "{held_bytes}");
    rig.peers[talker].reads = true;
    rig.run();
    assert_eq!(rig.seen(talker).len(), 100);
}

#[test]
fn clients_that_are_behind_share_a_long_op() {
    let mut rig = Rig::new(|config| config.outbox_bytes_max = 64 * 1024);
    let writer = rig.join("w", None);
    let slow: Vec<usize> = (0..10).map(|_| stalled(&mut rig, "w")).collect();
    let long = format!("\"{}\"", "y".repeat(300_000));
    let mut bytes = vec![0x81, 0xFF];
    let text =
        format!(r#"{{"type":"op","payload":{{"key":"long","value":{long},"timestamp":9}}}}"#);
    bytes.extend((text.len() as u64).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(text.as_bytes());
    for timestamp in 1..=3 {
        rig.op(writer, "k", &value('v'), timestamp);
    }
    for part in bytes.chunks(16 * 1024) {
        rig.receive(writer, part);
    }
    rig.op(writer, "k", &value('v'), 4);
    rig.op(writer, "k", &value('v'), 5);
    // Their sockets accept the first send and nothing more.
    for place in &slow {
        assert!(rig.session(*place).outbox.behind().is_some());
        let spans = rig.peers[*place].client.sending.take().unwrap();
        let bytes = spans_bytes(&spans);
        rig.end_send_with(*place, spans, Some(bytes));
    }
    rig.run();
    assert!(
        (300_000..301_000).contains(&shared(&rig)),
        "{}",
        shared(&rig)
    );
    for place in &slow {
        rig.peers[*place].reads = true;
    }
    rig.run();
    for place in slow {
        let seen = rig.seen(place);
        let long = format!("long={long}@9");
        assert_eq!(seen.iter().filter(|what| **what == long).count(), 1);
        assert_eq!(seen.last(), Some(&format!("k={}@5", value('v'))));
    }
    assert_eq!(shared(&rig), 0);
}

// ---- presence ----

/// P83.
#[test]
fn presence_is_encoded_once_and_lists_a_bounded_number() {
    let mut rig = Rig::new(|_| ());
    let users = PRESENCE_NAMES_MAX + 20;
    let join = |rig: &mut Rig, user: &str| {
        let place = rig.accept(false);
        let request = head("w", None).replace(" HTTP/1.1", &format!("&userId={user} HTTP/1.1"));
        rig.receive(place, request.as_bytes());
        place
    };
    for user in 0..users {
        join(&mut rig, &format!("{user:04}{}", "%22".repeat(200)));
    }
    let http_readers: Vec<usize> = (0..30)
        .map(|_| {
            let place = rig.accept(false);
            rig.peers[place].reads = false;
            rig.receive(place, look("/v1/presence/w").as_bytes());
            place
        })
        .collect();
    let text_bytes = shared(&rig);
    assert!((400_000..600_000).contains(&text_bytes), "{text_bytes}");
    let own_bytes = rig.shard.counters().answer_bytes;
    assert!(own_bytes < 30 * 2000, "{own_bytes}");
    // After another client joins, the list is encoded again. Lists that are already being sent do
    // not change.
    join(&mut rig, "0000a");
    let late = rig.accept(false);
    rig.receive(late, look("/v1/presence/w").as_bytes());
    rig.seen(late);
    let listed = |rig: &Rig, place: usize| -> Vec<serde_json::Value> {
        let body = &rig.peers[place].client.incoming;
        serde_json::from_slice(body).expect("the body is a JSON array")
    };
    let late = listed(&rig, late);
    assert_eq!(
        (late.len(), &late[1]["userId"]),
        (PRESENCE_NAMES_MAX, &"0000a".into())
    );
    for place in &http_readers {
        rig.peers[*place].reads = true;
    }
    rig.run();
    for place in http_readers {
        let all = rig.peers[place].client.incoming.clone();
        assert_eq!(rig.seen(place), ["200", "gone"]);
        assert!(all.len() > 400_000);
        let first = listed(&rig, place);
        assert_eq!(first.len(), PRESENCE_NAMES_MAX);
        assert!(first[1]["userId"].as_str().unwrap().starts_with("0001"));
    }
    // The latest list is kept for the next request.
    assert!(shared(&rig) < 600_000);
}

/// P83.
#[test]
fn head_and_get_return_the_number_of_users() {
    let mut rig = Rig::new(|_| ());
    for user in ["ann", "ben", "ann"] {
        let place = rig.accept(false);
        let request = head("w", None).replace(" HTTP/1.1", &format!("&userId={user} HTTP/1.1"));
        rig.receive(place, request.as_bytes());
    }
    for (path, count, body_bytes) in [("w", 2, 71), ("nowhere", 0, 2)] {
        for method in ["GET", "HEAD"] {
            let place = rig.accept(false);
            rig.peers[place].reads = false;
            let request = look(&format!("/v1/presence/{path}")).replace("GET", method);
            rig.receive(place, request.as_bytes());
            let spans = rig.peers[place].client.sending.clone().unwrap();
            let bytes: Vec<u8> = spans
                .iter()
                .flat_map(|span| span.bytes().to_vec())
                .collect();
            let text = String::from_utf8(bytes).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(
                head.contains(&format!("\r\nX-Total-Count: {count}")),
                "{head}"
            );
            assert!(
                head.contains(&format!("\r\nContent-Length: {body_bytes}\r\n")),
                "{head}"
            );
            assert!(
                head.contains("Expose-Headers: ETag, X-Total-Count"),
                "{head}"
            );
            assert_eq!(body.len(), if method == "GET" { body_bytes } else { 0 });
        }
    }
}

/// Memory that no client holds, such as a message that a room keeps for its slow peers, counts
/// towards the budget. If no client holds anything, none is evicted.
#[test]
fn no_client_is_evicted_for_memory_that_no_client_holds() {
    let mut rig = Rig::new(|config| config.session_bytes_max = 100_000);
    let client = rig.join("w", None);
    let message = Rc::new(vec![0; 200_000]);
    rig.shard.budget.add_shared(&message);
    let other = rig.join("w", None);
    rig.op(other, "k", "1", 1);
    assert!(is_open(&mut rig, client) && is_open(&mut rig, other));
    assert!(rig.seen(client).contains(&"k=1@1".to_owned()));
}
