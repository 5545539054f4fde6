//! Reads of a workspace over HTTP, and requests for web pages.

use std::collections::HashSet;

use super::rig::{Rig, head, look};
use crate::core::fanout::window::Span;
use crate::core::shard::contract::{Input, Output};
use crate::core::shard::session::SessionId;
use crate::generation::Generation;
use crate::log::commit::Durability;
use crate::wire::upgrade::{Answer, WebPage};

/// P82.
#[test]
fn an_http_read_contains_nothing_that_is_not_durable() {
    for (log_fails, status) in [(false, "200"), (true, "500")] {
        let mut rig = Rig::new(|_| ());
        let writer = rig.join("w", None);
        rig.log_hangs = true;
        rig.op(writer, "k", "1", 1);
        let (state, presence) = (rig.accept(false), rig.accept(false));
        rig.receive(state, look("/v1/workspaces/w").as_bytes());
        rig.receive(presence, look("/v1/presence/w").as_bytes());
        assert!(rig.seen(state).is_empty(), "the op is not durable");
        (rig.log_hangs, rig.log_fails) = (false, log_fails);
        rig.run();
        assert_eq!(rig.seen(state), [status, "gone"]);
        // Presence shows no ops, so it need not wait for the log.
        assert_eq!(rig.seen(presence), ["200", "gone"]);
    }
}

/// Sends a request on a new connection without reading the answer, and returns the client.
fn stalled(rig: &mut Rig, request: &str) -> usize {
    let client = rig.accept(false);
    rig.peers[client].reads = false;
    rig.receive(client, request.as_bytes());
    client
}

#[test]
fn an_http_read_may_take_long_if_it_makes_progress() {
    let mut rig = Rig::new(|_| ());
    let writer = rig.join("w", None);
    rig.op(writer, "k", "1", 1);
    let client = stalled(&mut rig, &look("/v1/workspaces/w"));
    for at_s in [50.0, 100.0, 150.0] {
        rig.sleep_until(at_s);
        let sending = rig.peers[client].client.sending.take();
        rig.end_send_with(client, sending.expect("a send is in flight"), Some(1));
        rig.run();
    }
    rig.sleep_until(209.0);
    assert!(
        rig.peers[client].client.sending.is_some(),
        "the client may continue reading"
    );
    assert!(rig.seen(client).is_empty());
    rig.sleep_until(212.0);
    let seen = rig.seen(client);
    assert_eq!(
        seen,
        ["aborted", "gone"],
        "a client that read nothing for a minute was not closed"
    );
}

#[test]
fn one_encoding_serves_all_joins_and_http_reads() {
    let mut rig = Rig::new(|_| ());
    let writer = rig.join("w", None);
    let value = format!("\"{}\"", "x".repeat(50_000));
    rig.op(writer, "k", &value, 1);
    let requests = [head("w", None), look("/v1/workspaces/w")];
    let clients = [0, 1, 1, 0, 1].map(|kind| stalled(&mut rig, &requests[kind]));
    let mut held = HashSet::new();
    for client in clients {
        let spans = rig.peers[client].client.sending.clone();
        let chunks = spans.unwrap().into_iter().map(Span::into_chunk);
        held.extend(
            chunks
                .filter(|chunk| chunk.len() > 1000)
                .map(|chunk| chunk.as_ptr()),
        );
    }
    assert_eq!(held.len(), 1, "the state is held more than once");
    assert!(rig.shard.counters().answer_bytes < 10_000);
    for client in clients {
        rig.peers[client].reads = true;
    }
    rig.run();
    assert_eq!(rig.seen(clients[0]), ["101", "init 1"]);
    assert_eq!(rig.seen(clients[1]), ["200", "gone"]);
    let body = String::from_utf8(rig.peers[clients[1]].client.incoming.clone()).unwrap();
    let state =
        format!(r#"{{"data":{{"k":{value}}},"timestamps":{{"k":1}},"seq":1,"connections":2}}"#);
    assert_eq!(body, state);
}

/// Returns a rig with these rooms, each with a state of about 100 KB.
fn large_rooms(rooms: &[&str], snapshot_bytes_max: usize) -> Rig {
    let mut rig = Rig::new(|config| config.snapshot_bytes_max = snapshot_bytes_max);
    let value = format!("\"{}\"", "x".repeat(50_000));
    for room in rooms {
        let writer = rig.join(room, None);
        for (key, timestamp) in [("k", 1), ("l", 2)] {
            rig.op(writer, key, &value, timestamp);
        }
    }
    rig
}

/// P12.
#[test]
fn states_in_flight_are_bounded() {
    let mut rig = large_rooms(&["a", "b", "c"], 250_000);
    let held = |rig: &Rig| {
        let counters = rig.shard.counters();
        (counters.snapshot_bytes, counters.refused_snapshot_bytes)
    };
    assert_eq!(held(&rig).1, 0);
    let a = stalled(&mut rig, &head("a", None));
    let b = stalled(&mut rig, &look("/v1/workspaces/b"));
    assert!(
        (200_000..201_000).contains(&held(&rig).0),
        "{:?}",
        held(&rig)
    );
    for request in [head("c", None), look("/v1/workspaces/c")] {
        let client = stalled(&mut rig, &request);
        rig.peers[client].reads = true;
        rig.run();
        assert_eq!(rig.seen(client), ["503", "gone"]);
    }
    assert_eq!(held(&rig).1, 2);
    // States that are already being sent and answers that are small are still served.
    let others = [
        (head("a", None), &["101", "init 2"][..]),
        (look("/v1/workspaces/b"), &["200", "gone"]),
        (head("new", None), &["101", "init 0"]),
        (
            look("/v1/workspaces/c").replace("GET", "HEAD"),
            &["200", "gone"],
        ),
    ];
    for (request, seen) in others {
        let client = rig.accept(false);
        rig.receive(client, request.as_bytes());
        assert_eq!(rig.seen(client), seen);
    }
    rig.peers[a].reads = true;
    rig.run();
    assert_eq!(rig.seen(a), ["101", "init 2"]);
    let late = rig.join("c", None);
    assert_eq!(rig.seen(late), ["101", "init 2"]);
    rig.peers[b].reads = true;
    rig.run();
    assert_eq!(rig.seen(b), ["200", "gone"]);
    assert_eq!(held(&rig).1, 2);
}

#[test]
fn a_single_state_larger_than_the_budget_is_served() {
    let mut rig = large_rooms(&["a", "b"], 1000);
    for _ in 0..2 {
        let client = rig.join("a", None);
        assert_eq!(rig.seen(client), ["101", "init 2"]);
    }
    // An HTTP read adds the timestamps of the state, which all reads of the state share.
    let clients = [0, 0].map(|_| stalled(&mut rig, &look("/v1/workspaces/a")));
    let other = rig.join("b", None);
    assert_eq!(rig.seen(other), ["503", "gone"]);
    for client in clients {
        rig.peers[client].reads = true;
    }
    rig.run();
    for client in clients {
        assert_eq!(rig.seen(client), ["200", "gone"]);
    }
    let client = rig.join("b", None);
    assert_eq!(rig.seen(client), ["101", "init 2"]);
    assert_eq!(rig.shard.counters().refused_snapshot_bytes, 1);
}

/// P80.
#[test]
fn head_answers_like_get_without_the_body() {
    let mut rig = Rig::new(|_| ());
    let writer = rig.join("w", None);
    for state in 0..2 {
        let answers = ["GET", "HEAD"].map(|method| {
            let client = stalled(&mut rig, &look("/v1/workspaces/w").replace("GET", method));
            let spans = rig.peers[client].client.sending.as_ref().unwrap();
            let bytes: Vec<u8> = spans
                .iter()
                .flat_map(|span| span.bytes().to_vec())
                .collect();
            String::from_utf8(bytes).unwrap()
        });
        let (head, body) = answers[0].split_at(answers[1].len());
        assert_eq!(head, answers[1]);
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{head}{body}"
        );
        let is_json = serde_json::from_str::<serde_json::Value>(body).is_ok();
        assert!(is_json, "{body}");
        rig.op(writer, "k", "{}", state + 1);
    }
}

/// Returns the head of the answer to a read of the state of `w`.
fn head_of_state(rig: &mut Rig) -> String {
    let client = stalled(rig, &look("/v1/workspaces/w").replace("GET", "HEAD"));
    let spans = rig.peers[client].client.sending.as_ref().unwrap();
    let bytes = spans.iter().flat_map(|span| span.bytes().to_vec());
    String::from_utf8(bytes.collect()).unwrap()
}

fn tag_of_state(rig: &mut Rig) -> String {
    let head = head_of_state(rig);
    let line = head.lines().find(|line| line.starts_with("ETag: "));
    line.unwrap().to_owned()
}

/// P81.
#[test]
fn a_tag_names_the_generation_and_the_seq() {
    let mut tags = HashSet::new();
    for generation in [0, 1, u64::MAX] {
        let mut rig = Rig::recovering(|_| ());
        rig.generation = Generation::new(generation);
        rig.recover(Vec::new());
        let writer = rig.join("w", None);
        for seq in 0..3 {
            rig.op(writer, "k", "1", seq + 1);
            assert_eq!(tag_of_state(&mut rig), tag_of_state(&mut rig));
            tags.insert(tag_of_state(&mut rig));
        }
    }
    assert_eq!(tags.len(), 9, "{tags:?}");
}

/// With durability `none`, clients see ops that a failure may lose and whose seqs are then reused.
#[test]
fn an_entity_tag_from_before_a_rebuild_is_never_reused() {
    let mut rig = Rig::new(|config| config.durability = Durability::None);
    let mut tags = HashSet::new();
    for round in 1..=3 {
        let writer = rig.join("w", None);
        (rig.log_hangs, rig.log_fails) = (true, true);
        rig.op(writer, "k", &format!("\"shown in round {round}\""), round);
        assert!(tags.insert(tag_of_state(&mut rig)), "{tags:?}");
        rig.write_batch();
        rig.log_hangs = false;
        rig.run();
        rig.log_fails = false;
        rig.sleep_until(f64::from(u32::try_from(round).unwrap()) * 60.0);
        let head = head_of_state(&mut rig);
        assert!(head.contains(" 200 OK") && head.contains(".0\""), "{head}");
    }
}

/// P3.
#[test]
fn every_answer_has_a_date() {
    let mut rig = Rig::new(|_| ());
    let head = head_of_state(&mut rig);
    let unix_us = rig.clock.unix_us;
    let mut expected = Vec::new();
    Answer::json(Vec::new()).encode(unix_us, &mut expected);
    let expected = String::from_utf8(expected).unwrap();
    let date = |head: &str| head.lines().nth(1).unwrap().to_owned();
    assert_eq!(date(&head), date(&expected));
}

/// P80.
#[test]
fn an_http_read_creates_no_workspace() {
    let mut rig = Rig::new(|_| ());
    for path in ["/v1/workspaces/w", "/v1/presence/w"] {
        let client = rig.accept(false);
        rig.receive(client, look(path).as_bytes());
        assert_eq!(rig.seen(client), ["200", "gone"]);
    }
    assert_eq!(rig.shard.counters().workspaces, 0);
}

/// P12, P20.
#[test]
fn an_http_read_is_refused_for_the_same_reasons_as_a_handshake() {
    let mut rig = Rig::new(|_| ());
    let over = rig.accept(true);
    rig.receive(over, look("/v1/workspaces/w").as_bytes());
    assert_eq!(rig.seen(over), ["503", "gone"]);
    let head_only = rig.accept(true);
    let request = look("/v1/workspaces/w").replace("GET", "HEAD");
    rig.receive(head_only, request.as_bytes());
    assert_eq!(rig.seen(head_only), ["503", "gone"]);
    let answer = &rig.peers[head_only].client.incoming;
    assert!(answer.is_empty(), "the answer to HEAD has a body");
    let client = rig.accept(false);
    rig.receive(client, b"GET /v1/workspaces/w HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(rig.seen(client), ["401", "gone"]);
    let writer = rig.join("w", None);
    rig.log_fails = true;
    rig.op(writer, "k", "1", 1);
    let client = rig.accept(false);
    rig.receive(client, look("/v1/workspaces/w").as_bytes());
    assert_eq!(rig.seen(client), ["500", "gone"]);
}

#[test]
fn a_page_is_provided_from_outside_the_shard() {
    let mut rig = Rig::new(|_| ());
    let client = rig.accept(false);
    rig.receive(client, b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
    let Some(Output::Page(id, request)) = rig.pages.pop() else {
        panic!("the console was requested");
    };
    assert_eq!((request.page, request.head_only), (WebPage::Console, true));
    // The first answer arrives late, for a session that has ended in the meantime.
    let stranger = SessionId {
        generation: id.generation + 1,
        ..id
    };
    for (id, seen) in [(stranger, &[][..]), (id, &["200", "gone"])] {
        let input = Input::Page(id, Answer::json(b"{}".to_vec()));
        rig.shard.handle(input, rig.clock);
        rig.run();
        assert_eq!(rig.seen(client), seen);
    }
}

#[test]
fn ops_and_deliveries_are_counted() {
    let mut rig = Rig::new(|_| ());
    let clients: Vec<usize> = (0..3).map(|_| rig.join("w", None)).collect();
    rig.op(clients[0], "k", "1", 2);
    rig.op(clients[1], "k", "2", 3);
    // An op that loses is not counted.
    rig.op(clients[2], "k", "3", 1);
    let counters = rig.shard.counters();
    assert_eq!((counters.ops, counters.deliveries), (2, 4));
    assert_eq!((counters.connections, counters.workspaces), (3, 1));
}
