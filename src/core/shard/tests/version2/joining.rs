//! Joining: `welcome`, the state in parts, `synced`.

use serde_json::json;

use super::{
    Replica, T, brief, delete, entries, join, joined, messages, op, put, request, send, told,
    workspace,
};
use crate::core::shard::contract::ShardConfig;
use crate::core::shard::tests::rig::Rig;
use crate::core::state::placement::shard_of;
use crate::core::testing::{self, START_UNIX_S};
use crate::limits::ANSWER_BYTES_MAX;
use crate::limits::{CONFLATED_BYTES_MAX, CONFLATED_STEPS_MAX, SECOND_US};

/// Returns a value of about this length.
fn long(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes))
}

/// P104, P131.
#[test]
fn welcome_has_what_a_client_needs_to_know() {
    for (limit, rate) in [(None, None), (Some(5000), Some(7))] {
        let mut rig = Rig::new(|config| {
            config.limits.workspace_bytes = limit;
            config.limits.ops_per_second = rate;
        });
        let _first = rig.join("w", None);
        let client = join(&mut rig, "w", "");
        let head = &rig.peers[client].client.head;
        assert!(
            head.contains("\r\nSec-WebSocket-Protocol: etherply.v2\r\n"),
            "{head}"
        );
        let welcome = messages(&mut rig, client).swap_remove(0);
        let generation = welcome["payload"]["generation"]
            .as_str()
            .expect("a generation");
        assert_eq!(generation.len(), 16);
        let expected = json!({"type": "welcome", "payload": {
            // Ids count from the time of the start, so that no later start repeats one.
            "connection": (START_UNIX_S * SECOND_US + 2).to_string(),
            "user": "client",
            "generation": generation,
            "time": START_UNIX_S * SECOND_US,
            "state": "full",
            "why": "first",
            "durability": "always",
            "ping_interval_ms": 10_000,
            "limits": {
                "message_bytes": 1 << 20,
                "key_bytes": 1024,
                "workspace_bytes": limit,
                "ops_per_second": rate,
            },
        }});
        assert_eq!(welcome, expected);
    }
}

/// P134.
#[test]
fn a_state_without_entries_is_synced_alone() {
    let mut rig = Rig::new(|_| ());
    let client = join(&mut rig, "w", "");
    assert_eq!(
        told(&mut rig, client),
        ["101", "welcome full first", "synced #0"]
    );
    // A workspace in which everything was deleted has no entries either.
    send(&mut rig, client, 0, &put("k", "1", 1));
    send(&mut rig, client, 0, &delete("k", 2));
    let client = join(&mut rig, "w", "");
    assert_eq!(
        told(&mut rig, client),
        ["101", "welcome full first", "synced #2"]
    );
}

/// P132, P133, P142.
#[test]
fn a_state_comes_in_the_order_of_each_keys_last_change_and_without_old_tombstones() {
    let changes = [
        ("a", Some("1")),
        ("b", Some("[2, 2.0]")),
        ("gone", Some("3")),
        ("a", Some("4")),
        ("gone", None),
        ("c", Some("5")),
    ];
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = join(&mut rig, "w", "");
    let state = "state b=[2,2.0]@2 a=4@4 c=5@6 #6";
    assert_eq!(
        told(&mut rig, client),
        ["101", "welcome full first", state, "synced #6"]
    );
}

/// P133: an empty list is present too, and values are passed on byte for byte (P47).
#[test]
fn a_state_message_has_both_lists() {
    let mut rig = Rig::with(vec![workspace(&[("k", Some("[1.0,  2]"))])], |_| ());
    let client = join(&mut rig, "w", "");
    let expected = format!(
        r#"{{"type":"state","payload":{{"entries":[["k",[1.0,  2],{}]],"deleted":[]}},"seq":1}}"#,
        T + 1
    );
    assert_eq!(rig.seen(client)[2], expected);
}

/// P133.
#[test]
fn a_large_state_comes_in_parts_as_the_client_reads() {
    let value = long(10_000);
    let keys: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
    let changes: Vec<_> = keys
        .iter()
        .map(|key| (key.as_str(), Some(value.as_str())))
        .collect();
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = rig.accept(false);
    rig.peers[client].reads = false;
    rig.receive(client, request("w", &testing::token(None), "").as_bytes());
    let (mut parts, mut next) = (0, 0);
    while rig.read_once(client) {
        assert!(rig.session(client).outbox.waiting_bytes() < 2 * CONFLATED_BYTES_MAX);
        for message in messages(&mut rig, client) {
            if message["type"] != "state" {
                continue;
            }
            let bytes = message.to_string().len();
            assert!(bytes < CONFLATED_BYTES_MAX + 1000, "{bytes}");
            for entry in entries(&message["payload"]) {
                assert_eq!(entry.key, keys[next]);
                next += 1;
            }
            assert_eq!(message["seq"], next, "the seq of its last entry");
            parts += 1;
        }
    }
    assert_eq!((parts, next), (7, 40));
}

/// P133: a part is longer only if it holds a single entry.
#[test]
fn a_long_entry_is_a_separate_part() {
    let (long, short) = (long(300_000), long(10));
    let changes = [
        ("a", Some(short.as_str())),
        ("b", Some(&long)),
        ("c", Some(&short)),
    ];
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = join(&mut rig, "w", "");
    let states = messages(&mut rig, client).into_iter();
    let states = states.filter(|message| message["type"] == "state");
    let keys: Vec<Vec<String>> = states
        .map(|state| {
            entries(&state["payload"])
                .into_iter()
                .map(|entry| entry.key)
                .collect()
        })
        .collect();
    assert_eq!(keys, [["a"], ["b"], ["c"]]);
}

/// P133, P135, P142: a key that changes while the state is being sent is sent again, as a tombstone
/// if it was deleted.
#[test]
fn a_key_that_changes_during_the_state_is_sent_again() {
    let value = long(30_000);
    let changes = ["a", "b", "c", "d", "e"].map(|key| (key, Some(value.as_str())));
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = rig.accept(false);
    rig.peers[client].reads = false;
    rig.receive(client, request("w", &testing::token(None), "").as_bytes());
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 0, &put("a", "1", 11));
    send(&mut rig, writer, 0, &delete("b", 12));
    send(&mut rig, writer, 0, &delete("never", 13));
    send(&mut rig, writer, 0, &delete("e", 14));
    rig.peers[client].reads = true;
    rig.run();
    send(&mut rig, writer, 0, &put("f", "2", 15));
    let all = messages(&mut rig, client);
    let mut replica = Replica::default();
    replica.read_all(&all);
    let short: Vec<String> = all
        .iter()
        .map(|message| brief(&message.to_string()))
        .collect();
    let short = short.iter().map(|text| text.replace(&value, "_"));
    assert_eq!(
        short.collect::<Vec<_>>(),
        [
            "welcome full first",
            "state a=_@1 b=_@2 #2",
            // Parts that were encoded for the writer's join, before the ops.
            "state c=_@3 d=_@4 #4",
            "state e=_@5 #5",
            "state a=1@11 -b@12 -never@13 -e@14 #9",
            "synced #9",
            "f=2@15 #10",
        ]
    );
    let live: Vec<&str> = replica.live().into_keys().collect();
    assert_eq!(live, ["a", "c", "d", "f"]);
}

/// P143: in `always` mode, neither an entry nor a resume point is sent before it is durable.
#[test]
fn a_state_waits_for_the_log() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    rig.log_hangs = true;
    send(&mut rig, writer, 0, &put("k", "1", 1));
    let client = join(&mut rig, "w", "");
    assert_eq!(told(&mut rig, client).len(), 0);
    let visible_position = rig.shard.log.visible_position();
    assert!(
        rig.session(client)
            .outbox
            .is_waiting_for_log(visible_position)
    );
    rig.log_hangs = false;
    rig.run();
    let expected = ["101", "welcome full first", "state k=1@1 #1", "synced #1"];
    assert_eq!(told(&mut rig, client), expected);
}

/// P143: the same holds for the resume point of a client that needs no entries.
#[test]
fn a_client_that_resumes_waits_for_the_log() {
    let mut rig = Rig::new(|_| ());
    let generation = super::generation(&mut rig);
    let writer = joined(&mut rig, "w");
    rig.log_hangs = true;
    send(&mut rig, writer, 1, &put("k", "1", 1));
    let client = join(&mut rig, "w", &super::since(1, &generation));
    rig.log_fails = true;
    rig.log_hangs = false;
    rig.run();
    let expected = ["101", "welcome changes resumed", "close 1011", "gone"];
    assert_eq!(
        told(&mut rig, client),
        expected,
        "seq 1 was never confirmed"
    );
}

/// P133: the budget for encoded states refuses only version 1 clients.
#[test]
fn the_state_budget_never_refuses_a_version_2_client() {
    let value = long(100_000);
    let changes = [("a", Some(value.as_str())), ("b", Some(&value))];
    let mut rig = Rig::with(vec![workspace(&changes)], |config| {
        config.snapshot_bytes_max = 1000;
    });
    let slow = rig.accept(false);
    rig.peers[slow].reads = false;
    rig.receive(slow, super::super::rig::head("w", None).as_bytes());
    let refused = rig.accept(false);
    rig.receive(refused, super::super::rig::head("w", None).as_bytes());
    let client = join(&mut rig, "w", "");
    assert_eq!(
        told(&mut rig, client).last().map(String::as_str),
        Some("synced #2")
    );
}

/// P133.
#[test]
fn a_part_is_encoded_once_for_clients_that_join_together() {
    let value = long(30_000);
    let changes = ["a", "b", "c"].map(|key| (key, Some(value.as_str())));
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let clients = [rig.accept(false), rig.accept(false)];
    let longest = |rig: &Rig, client: usize| {
        let spans = rig.peers[client]
            .client
            .sending
            .as_ref()
            .expect("a send is in flight");
        let longest = spans.iter().max_by_key(|span| span.bytes().len());
        longest.expect("it is not empty").bytes().as_ptr()
    };
    for client in clients {
        rig.peers[client].reads = false;
        rig.receive(client, request("w", &testing::token(None), "").as_bytes());
    }
    assert_eq!(longest(&rig, clients[0]), longest(&rig, clients[1]));
    // An op does not change that: a part may be slightly old.
    let writer = rig.join("w", None);
    rig.op(writer, "a", "1", T + 10);
    let late = rig.accept(false);
    rig.peers[late].reads = false;
    rig.receive(late, request("w", &testing::token(None), "").as_bytes());
    assert_eq!(longest(&rig, clients[0]), longest(&rig, late));
    // But a delete does: the full state would show a deleted key, but never its tombstone.
    let deleter = joined(&mut rig, "w");
    send(&mut rig, deleter, 0, &delete("b", 11));
    let later = rig.accept(false);
    rig.peers[later].reads = false;
    rig.receive(later, request("w", &testing::token(None), "").as_bytes());
    assert_ne!(longest(&rig, clients[0]), longest(&rig, later));
}

/// P133: parts that were encoded for others go out in one send, and no turn sends more than its
/// share of them.
#[test]
fn parts_of_others_go_out_in_one_send() {
    let value = long(60_000);
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    let changes: Vec<_> = keys
        .iter()
        .map(|key| (key.as_str(), Some(value.as_str())))
        .collect();
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let first = join(&mut rig, "w", "");
    assert_eq!(told(&mut rig, first).len(), 23);
    let sends_before = rig.shard.counters().sends;
    let second = join(&mut rig, "w", "");
    assert_eq!(rig.shard.counters().sends, sends_before + 1);
    assert_eq!(told(&mut rig, second).len(), 23);
    // Each of these sends is 1.2 MB long.
    let others = [(); 9].map(|()| rig.accept(false));
    for other in others {
        rig.receive_only(other, request("w", &testing::token(None), "").as_bytes());
    }
    for sends in [4, 8, 9] {
        rig.turn();
        let is_sent = |other: &&usize| rig.peers[**other].client.sending.is_some();
        assert_eq!(others.iter().filter(is_sent).count(), sends);
    }
    rig.run();
    for other in others {
        assert_eq!(told(&mut rig, other).len(), 23);
    }
}

/// P100, P104.
#[test]
fn a_client_of_another_shards_workspace_keeps_its_version() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let elsewhere = names.iter().find(|name| shard_of(name, 2) == 1);
    let elsewhere = elsewhere.expect("half of the names are");
    let mut rig = Rig::new(|config| config.shards = 2);
    let mut other = Rig::new(|config| (config.shard, config.shards) = (1, 2));
    let client = rig.accept(false);
    let mut bytes = request(elsewhere, &testing::token(None), "").into_bytes();
    bytes.extend(op(1, &put("k", "1", 1)));
    rig.receive(client, &bytes);
    let (_, handoff) = rig.peers[client]
        .handed_off
        .take()
        .expect("it was handed off");
    let id = other.shard.adopt(handoff, other.clock);
    let client = other.add_peer(id);
    let expected = ["101", "welcome full first", "synced #0", "saved 1 #1"];
    assert_eq!(told(&mut other, client), expected);
}

/// P133, P142: empty parts of a state, in which everything was deleted before the join, are
/// skipped, even by clients that share the parts after them.
#[test]
fn empty_parts_are_skipped() {
    let deleted: Vec<String> = (0..=2 * CONFLATED_STEPS_MAX)
        .map(|number| format!("k{number}"))
        .collect();
    let mut changes: Vec<(&str, Option<&str>)> =
        deleted.iter().map(|key| (key.as_str(), None)).collect();
    changes.push(("live", Some("1")));
    let keep = |config: &mut ShardConfig| config.tombstone_retention_us = u64::MAX;
    let mut rig = Rig::with(vec![workspace(&changes)], keep);
    for _ in 0..3 {
        let client = join(&mut rig, "w", "");
        let received = messages(&mut rig, client);
        let kinds = received.iter().map(|message| message["type"].as_str());
        let expected = ["welcome", "state", "synced"].map(Some);
        assert!(kinds.eq(expected), "{received:?}");
    }
}

/// P133: a client that is being sent a long state may write meanwhile, and what it is owed for that
/// is bounded as ever.
#[test]
fn a_client_writes_while_it_is_sent_a_state() {
    let value = format!("\"{}\"", "x".repeat(300_000));
    let changes = ["a", "b", "c"].map(|key| (key, Some(value.as_str())));
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    // It shares no part of the state with the client, so that each part is sent by itself.
    let other = rig.join("w", None);
    told(&mut rig, other);
    let client = rig.accept(false);
    rig.peers[client].reads = false;
    rig.receive(client, request("w", &testing::token(None), "").as_bytes());
    assert!(rig.is_behind(client), "the parts are longer than a send");
    send(&mut rig, client, 1, &put("k", "1", 9));
    assert_eq!(told(&mut rig, other), ["k=1@9"]);
    // Each of these is answered.
    let mut id = 1;
    while rig.peers[client].client.receiving {
        id += 1;
        send(&mut rig, client, id, &put("k", "2", 1));
        let outbox = &rig.session(client).outbox;
        let answers = outbox.answer_bytes();
        let all = outbox.own_answer_bytes() + outbox.shared_answer_bytes();
        assert!(
            answers <= ANSWER_BYTES_MAX + 1000 && all <= answers + 400_000,
            "{all}"
        );
        assert!(id < 10_000, "it is never paused");
    }
    rig.peers[client].reads = true;
    rig.run();
    assert!(rig.peers[client].client.receiving);
    let mut replica = Replica::default();
    replica.read_all(&messages(&mut rig, client));
    assert!(replica.is_synced && replica.is_exact);
    assert_eq!((replica.live().len(), replica.saved), (4, id));
}
