//! Resuming: which resume points are honoured, and what is sent to a client that was away.

use super::{
    Replica, delete, drop_tombstones, generation, join, joined, messages, op, put, request, send,
    since, told, workspace,
};
use crate::core::shard::tests::rig::{Rig, head};
use crate::core::testing;
use crate::generation::Generation;

/// P137: each changed key is sent once, with its latest entry, including tombstones and the
/// client's own ops.
#[test]
fn changes_are_those_after_the_resume_point() {
    let mut rig = Rig::new(|_| ());
    let (away, writer) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    send(&mut rig, writer, 0, &put("a", "1", 1));
    send(&mut rig, writer, 0, &put("b", "1", 1));
    send(&mut rig, away, 0, &put("own", "1", 1));
    rig.peers[away].client.broken = true;
    rig.run();
    send(&mut rig, writer, 0, &delete("b", 2));
    send(&mut rig, writer, 0, &put("c", "1", 2));
    send(&mut rig, writer, 0, &put("c", "2", 3));
    let generation = generation(&mut rig);
    for (seq, expected) in [
        (6, &["synced #6"][..]),
        (5, &["state c=2@3 #6", "synced #6"]),
        (3, &["state c=2@3 -b@2 #6", "synced #6"]),
        (2, &["state own=1@1 c=2@3 -b@2 #6", "synced #6"]),
        (0, &["state a=1@1 own=1@1 c=2@3 -b@2 #6", "synced #6"]),
    ] {
        let client = join(&mut rig, "w", &since(seq, &generation));
        let seen = told(&mut rig, client);
        assert_eq!(seen[..2], ["101", "welcome changes resumed"]);
        assert_eq!(seen[2..], *expected, "{seq}");
    }
    // Broadcasts follow without a gap.
    let client = join(&mut rig, "w", &since(5, &generation));
    send(&mut rig, writer, 0, &put("later", "1", 9));
    assert_eq!(
        told(&mut rig, client)[2..],
        ["state c=2@3 #6", "synced #6", "later=1@9 #7"]
    );
}

/// P141, P127: a table of resume points.
#[test]
fn a_resume_point_is_honoured_only_if_nothing_can_be_missed() {
    let changes = [
        ("k", Some("1")),
        ("dead", Some("1")),
        ("dead", None),
        ("j", Some("2")),
    ];
    let mut held = workspace(&changes);
    drop_tombstones(&mut held);
    let mut rig = Rig::with(vec![held], |_| ());
    let current = generation(&mut rig);
    for (seq, generation, expected) in [
        (4, current.as_str(), "changes resumed"),
        // The dropped tombstone has the seq 3: a client that has seen it misses nothing.
        (3, &current, "changes resumed"),
        (2, &current, "full too_old"),
        (0, &current, "full too_old"),
        // Ahead of the server.
        (5, &current, "full other_generation"),
        (u64::MAX, &current, "full other_generation"),
        (4, "0123456789abcdef", "full other_generation"),
        // If both apply, the history takes precedence.
        (2, "0123456789abcdef", "full other_generation"),
    ] {
        let client = join(&mut rig, "w", &since(seq, generation));
        let seen = told(&mut rig, client);
        assert_eq!(seen[1], format!("welcome {expected}"), "{seq} {generation}");
        assert_eq!(seen.last().map(String::as_str), Some("synced #4"));
        let states: Vec<&String> = seen
            .iter()
            .filter(|text| text.starts_with("state"))
            .collect();
        let state = match (expected, seq) {
            ("changes resumed", 4) => None,
            ("changes resumed", _) => Some("state j=2@4 #4"),
            _ => Some("state k=1@1 j=2@4 #4"),
        };
        assert_eq!(states.first().map(|text| text.as_str()), state, "{seq}");
    }
}

/// P136: entries that a client holds from another history are replaced, even by older timestamps,
/// or dropped; none of them survives a full state.
#[test]
fn a_full_state_leaves_no_ghost_of_another_history() {
    let mut rig = Rig::with(vec![workspace(&[("k", Some("1"))])], |_| ());
    let mut replica = Replica::default();
    for (key, value) in [("k", "9"), ("ghost", "9")] {
        let newer = super::ShownChange {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            timestamp: super::T + 99,
        };
        replica.merge(newer);
    }
    (replica.seq, replica.generation) = (7, "0123456789abcdef".to_owned());
    let client = join(&mut rig, "w", &since(replica.seq, &replica.generation));
    replica.read_all(&messages(&mut rig, client));
    assert_eq!(replica.live().into_iter().collect::<Vec<_>>(), [("k", "1")]);
    assert_eq!(replica.seq, 1);
}

/// P139: a client that was cut off in the middle of a full state continues where it left off.
#[test]
fn a_full_state_that_broke_off_is_resumed() {
    let value = format!("\"{}\"", "x".repeat(30_000));
    let changes = ["a", "b", "c", "d", "e"].map(|key| (key, Some(value.as_str())));
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = rig.accept(false);
    rig.peers[client].reads = false;
    let other = since(9, "0123456789abcdef");
    rig.receive(
        client,
        request("w", &testing::token(None), &other).as_bytes(),
    );
    // The entries that the client held before.
    let mut replica = Replica::default();
    for key in ["a", "e", "f", "ghost"] {
        replica.merge(super::ShownChange {
            key: key.to_owned(),
            value: Some("0".to_owned()),
            timestamp: super::T + 99,
        });
    }
    assert!(rig.read_once(client));
    replica.read_all(&messages(&mut rig, client));
    assert!(!replica.is_synced && replica.seq == 2, "{}", replica.seq);
    rig.peers[client].client.broken = true;
    rig.run();
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 0, &delete("a", 11));
    send(&mut rig, writer, 0, &put("b", "2", 12));
    send(&mut rig, writer, 0, &delete("f", 13));
    let client = join(&mut rig, "w", &since(replica.seq, &replica.generation));
    let all = messages(&mut rig, client);
    assert_eq!(all[0]["payload"]["why"], "resumed");
    replica.read_all(&all);
    let live = replica.live();
    assert_eq!(
        live.keys().copied().collect::<Vec<_>>(),
        ["b", "c", "d", "e"]
    );
    assert_eq!((live["b"], live["e"].len()), ("2", value.len()));
}

/// P144: in another history, a client lacks more than the changes after a part of a state. The part
/// left out what was written again later; of that, the other history has the former entry.
#[test]
fn a_state_that_broke_off_is_not_resumed_in_another_history() {
    let value = format!("\"{}\"", "x".repeat(30_000));
    let mut changes = ["a", "b", "c", "d", "e"]
        .map(|key| (key, Some(value.as_str())))
        .to_vec();
    let mut older = workspace(&changes);
    changes.push(("a", Some("2")));
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = rig.accept(false);
    rig.peers[client].reads = false;
    rig.receive(client, request("w", &testing::token(None), "").as_bytes());
    assert!(rig.read_once(client));
    let mut replica = Replica::default();
    replica.read_all(&messages(&mut rig, client));
    let keys: Vec<&str> = replica.live().into_keys().collect();
    assert_eq!((keys, replica.seq), (vec!["b", "c"], 3));
    // The server goes on with a copy that was made before the last op.
    older.begin_generation();
    let mut rig = Rig::recovering(|_| ());
    (rig.generation, rig.logged.previous) = (Generation::new(2), Some(Generation::new(1)));
    rig.recover(vec![older]);
    rig.run();
    let client = join(&mut rig, "w", &since(replica.seq, &replica.generation));
    let all = messages(&mut rig, client);
    assert_eq!(all[0]["payload"]["why"], "resumed");
    assert!(replica.must_begin_anew(&all[0]));
    let mut mixed = replica.clone();
    mixed.read_all(&all);
    let keys: Vec<&str> = mixed.live().into_keys().collect();
    assert_eq!((keys, mixed.seq), (vec!["b", "c", "d", "e"], 5));
    let client = join(&mut rig, "w", "");
    replica.read_all(&messages(&mut rig, client));
    let keys: Vec<&str> = replica.live().into_keys().collect();
    assert_eq!(keys, ["a", "b", "c", "d", "e"]);
    assert!(replica.is_exact);
}

// ---- bugs in other systems ----

/// P134, P141: the seq of a workspace that nobody has written to is 0, and a client may resume
/// there.
#[test]
fn an_empty_workspace_is_resumed() {
    let mut rig = Rig::new(|_| ());
    let generation = generation(&mut rig);
    let client = join(&mut rig, "w", &since(0, &generation));
    assert_eq!(
        told(&mut rig, client),
        ["101", "welcome changes resumed", "synced #0"]
    );
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 0, &put("k", "1", 1));
    assert_eq!(told(&mut rig, client), ["k=1@1 #1"]);
}

/// P141: a position ahead of the server is not silently taken for the current one.
#[test]
fn a_client_ahead_of_the_server_starts_over() {
    let mut rig = Rig::with(vec![workspace(&[("k", Some("1"))])], |_| ());
    let generation = generation(&mut rig);
    let client = join(&mut rig, "w", &since(2, &generation));
    let expected = [
        "101",
        "welcome full other_generation",
        "state k=1@1 #1",
        "synced #1",
    ];
    assert_eq!(told(&mut rig, client), expected);
}

/// P20, P141: an attempt to resume with an expired token is refused, and nothing is sent.
#[test]
fn an_expired_token_cannot_resume() {
    let mut rig = Rig::with(vec![workspace(&[("k", Some("1"))])], |_| ());
    let generation = generation(&mut rig);
    let token = testing::token(Some(5));
    rig.clock.unix_us += 3600 * crate::limits::SECOND_US;
    let client = rig.accept(false);
    rig.receive(
        client,
        request("w", &token, &since(1, &generation)).as_bytes(),
    );
    assert_eq!(told(&mut rig, client), ["401", "gone"]);
}

/// P130: the position advances only as changes are applied: the seq of each message is that of its
/// own content.
#[test]
fn a_resume_point_does_not_run_ahead_of_the_data() {
    let value = format!("\"{}\"", "x".repeat(40_000));
    let changes = ["a", "b", "c", "d"].map(|key| (key, Some(value.as_str())));
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = join(&mut rig, "w", "");
    let mut keys = 0;
    for message in messages(&mut rig, client) {
        match message["type"].as_str() {
            Some("state") => keys += super::entries(&message["payload"]).len(),
            Some("welcome") => assert_eq!(message.get("seq"), None),
            _ => {}
        }
        if message["type"] != "welcome" {
            assert_eq!(message["seq"], keys);
        }
    }
    assert_eq!(keys, 4);
}

/// P70, P133: a state that takes longer to send than the allowed silence does not end the
/// connection: bytes that the client accepts are a sign of life.
#[test]
fn a_state_that_takes_long_outlasts_the_liveness_timeout() {
    let value = format!("\"{}\"", "x".repeat(60_000));
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let changes = keys.map(|key| (key, Some(value.as_str())));
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let client = rig.accept(false);
    rig.peers[client].reads = false;
    rig.receive(client, request("w", &testing::token(None), "").as_bytes());
    // Silence ends a connection after 25 s. This client accepts 8 parts in 80 s.
    let mut seen = Vec::new();
    for tens in 1..12_u32 {
        rig.sleep_until(f64::from(tens) * 10.0);
        // One send is a ping, and the other is a part.
        rig.read_once(client);
        rig.read_once(client);
        seen.extend(told(&mut rig, client));
    }
    assert!(
        seen.contains(&"synced #8".to_owned()),
        "{} events",
        seen.len()
    );
    assert!(!seen.iter().any(|text| text.starts_with("close")));
}

/// P127, P141: a client whose state predates the dropped tombstones does not keep the deleted keys.
#[test]
fn a_client_older_than_the_dropped_tombstones_starts_over() {
    let changes = [("dead", Some("1")), ("k", Some("2")), ("dead", None)];
    let mut held = workspace(&changes);
    drop_tombstones(&mut held);
    let mut rig = Rig::with(vec![held], |_| ());
    let generation = generation(&mut rig);
    let mut replica = Replica::default();
    replica.merge(super::ShownChange {
        key: "dead".to_owned(),
        value: Some("1".to_owned()),
        timestamp: super::T + 1,
    });
    let client = join(&mut rig, "w", &since(1, &generation));
    replica.read_all(&messages(&mut rig, client));
    assert_eq!(replica.live().into_keys().collect::<Vec<_>>(), ["k"]);
}

/// P134: recovery from a resume point that cannot be honoured sends each entry once.
#[test]
fn a_full_state_after_a_failed_resume_repeats_nothing() {
    let mut rig = Rig::with(
        vec![workspace(&[("a", Some("1")), ("b", Some("2"))])],
        |_| (),
    );
    let generation = generation(&mut rig);
    let client = join(&mut rig, "w", &since(99, &generation));
    let expected = [
        "101",
        "welcome full other_generation",
        "state a=1@1 b=2@2 #2",
        "synced #2",
    ];
    assert_eq!(told(&mut rig, client), expected);
    rig.sleep_until(5.0);
    assert_eq!(told(&mut rig, client).len(), 0);
}

/// P150, P155: a `saved` on a new connection refers to that connection's ids, not to the previous
/// one's, wherever its messages were cut off.
#[test]
fn saved_is_correct_after_a_reconnect() {
    let mut rig = Rig::new(|_| ());
    let first = joined(&mut rig, "w");
    let generation = generation(&mut rig);
    send(&mut rig, first, 90, &put("a", "1", 1));
    // The next message breaks off halfway.
    let half = op(91, &put("b", "1", 2));
    rig.receive(first, &half[..half.len() / 2]);
    rig.peers[first].client.broken = true;
    rig.run();
    let second = join(&mut rig, "w", &since(0, &generation));
    told(&mut rig, second);
    send(&mut rig, second, 1, &put("a", "1", 1));
    send(&mut rig, second, 2, &put("b", "1", 2));
    assert_eq!(told(&mut rig, second), ["saved 1 #1", "saved 2 #2"]);
}

/// P124: only an op from the server deletes an expired key. Until then, an entry with a deadline is
/// listed like any other.
#[test]
fn clients_do_not_decide_expiries() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    send(
        &mut rig,
        writer,
        0,
        &format!(r#"{},"ttl_ms":60000"#, put("k", "1", 1)),
    );
    let client = join(&mut rig, "w", "");
    let state = &messages(&mut rig, client)[1];
    let entry = &state["payload"]["entries"][0];
    assert_eq!(
        entry.as_array().map(Vec::len),
        Some(3),
        "key, value, timestamp: {entry}"
    );
    let old = rig.accept(false);
    rig.receive(old, head("w", None).as_bytes());
    assert_eq!(told(&mut rig, old), ["101", "init 1"]);
}
