//! Writes, deletes, conditions, expiry times, the floor, and the replies to the senders.

use super::{T, delete, drop_tombstones, join, joined, messages, op, put, send, told, workspace};
use crate::core::fanout::room::RoomId;
use crate::core::shard::tests::rig::{Rig, frame};
use crate::limits::{SECOND_US, TIMESTAMP_MIN_US};

/// P115, P120, P122: everyone except the sender receives an op, with its seq.
#[test]
fn writes_and_deletes_are_broadcast_to_the_others() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    send(&mut rig, writer, 0, &put("k", "[1, 2]", 5));
    send(&mut rig, writer, 0, &delete("k", 6));
    send(&mut rig, writer, 0, &delete("never", 1));
    send(&mut rig, writer, 0, &put("k", "null", 7));
    let expected = ["k=[1,2]@5 #1", "-k@6 #2", "-never@1 #3", "k=null@7 #4"];
    assert_eq!(told(&mut rig, reader), expected);
    assert_eq!(told(&mut rig, writer).len(), 0);
}

/// P116, P120, P123: last write wins, for deletes as for writes, and a loser receives the winner
/// without a seq.
#[test]
fn the_later_timestamp_wins() {
    for (first, second, expected) in [
        (put("k", "1", 5), delete("k", 6), &[][..]),
        (put("k", "1", 5), delete("k", 5), &["k=1@5"]),
        (put("k", "1", 5), delete("k", 4), &["k=1@5"]),
        (delete("k", 5), put("k", "1", 6), &[]),
        (delete("k", 5), put("k", "1", 5), &["-k@5"]),
        (delete("k", 5), put("k", "1", 4), &["-k@5"]),
        (delete("k", 5), delete("k", 6), &[]),
        (delete("k", 5), delete("k", 4), &["-k@5"]),
        // P129: a resend.
        (delete("k", 5), delete("k", 5), &[]),
        (put("k", "1", 5), put("k", "1", 5), &[]),
        // A null is a value, not a delete.
        (delete("k", 5), put("k", "null", 5), &["-k@5"]),
        (put("k", "null", 5), delete("k", 5), &["k=null@5"]),
    ] {
        let mut rig = Rig::new(|_| ());
        let (one, other) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
        send(&mut rig, one, 0, &first);
        told(&mut rig, other);
        send(&mut rig, other, 0, &second);
        assert_eq!(told(&mut rig, other), expected, "{first} {second}");
        let is_lost = !expected.is_empty();
        let is_resend = first == second;
        let seen = told(&mut rig, one);
        assert_eq!(seen.is_empty(), is_lost || is_resend, "{seen:?} {second}");
    }
}

/// P117: the error identifies the op and states the problem.
#[test]
fn a_timestamp_in_milliseconds_is_refused() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    for (timestamp, is_refused) in [
        (0, true),
        (1_700_000_000_000, true),
        (TIMESTAMP_MIN_US - 1, true),
        (TIMESTAMP_MIN_US, false),
    ] {
        let payload = format!(r#""key":"k","value":1,"timestamp":{timestamp}"#);
        send(&mut rig, writer, 0, &payload);
        let answers = messages(&mut rig, writer);
        assert_eq!(!answers.is_empty(), is_refused, "{timestamp}");
        if let Some(answer) = answers.first() {
            let payload = &answer["payload"];
            assert_eq!(
                (&payload["code"], &payload["key"]),
                (&400.into(), &"k".into())
            );
            assert!(
                payload["message"]
                    .as_str()
                    .expect("a text")
                    .contains("milliseconds")
            );
        }
        assert_eq!(told(&mut rig, reader).is_empty(), is_refused);
    }
}

/// P118, P123: an op whose condition does not hold is never applied.
#[test]
fn a_condition_must_hold() {
    let (absent, live, deleted) = (&[][..], &[put("k", "1", 5)][..], &[delete("k", 5)][..]);
    for (before, expected_after, after, answer) in [
        (absent, None, 6, None),
        (absent, Some(0), 6, None),
        (absent, Some(5), 6, Some("-k@(0)")),
        (live, Some(5), 6, None),
        (live, Some(0), 6, Some("k=1@5")),
        (live, Some(4), 6, Some("k=1@5")),
        // It must win by its timestamp, too.
        (live, Some(5), 4, Some("k=1@5")),
        (deleted, Some(0), 6, None),
        (deleted, Some(5), 6, Some("-k@5")),
        (deleted, Some(0), 4, Some("-k@5")),
    ] {
        for change in [put("k", "2", after), delete("k", after)] {
            let mut rig = Rig::new(|_| ());
            let (one, other) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
            for payload in before {
                send(&mut rig, one, 0, payload);
            }
            told(&mut rig, other);
            let expected = expected_after.map(|after: u64| if after > 0 { T + after } else { 0 });
            let condition = expected.map_or(String::new(), |at| format!(r#","if_timestamp":{at}"#));
            let payload = format!("{change}{condition}");
            send(&mut rig, other, 3, &payload);
            let seen = told(&mut rig, other);
            let seq = before.len() + usize::from(answer.is_none());
            let saved = format!("saved 3 #{seq}");
            let answer_text = answer.map(|answer| format!("{answer} id 3"));
            let all = answer_text.into_iter().chain([saved]);
            assert_eq!(seen, all.collect::<Vec<_>>(), "{before:?} {payload}");
            assert_eq!(
                told(&mut rig, one).is_empty(),
                answer.is_some(),
                "{payload}"
            );
        }
    }
}

/// P156: the winner has the id of the op that lost to it, if that had one, also if the frame is one
/// that others are sent, too. What is sent in front of an error has none.
#[test]
fn a_correction_has_the_id_of_the_op_that_lost() {
    let long = format!("\"{}\"", "x".repeat(5000));
    let changes = [
        ("short", Some("1")),
        ("long", Some(long.as_str())),
        ("gone", None),
    ];
    let mut held = workspace(&changes);
    drop_tombstones(&mut held);
    let bytes = held.log_bytes();
    let mut rig = Rig::with(vec![held], |config| {
        config.limits.workspace_bytes = Some(bytes);
    });
    let clients = [(); 2].map(|()| joined(&mut rig, "w"));
    let mut id = 0;
    let conditional = |key, at| format!(r#"{},"if_timestamp":{}"#, put(key, "0", 9), T + at);
    let larger = put("short", &format!("\"{}\"", "y".repeat(9000)), 9);
    for (payload, answer) in [
        (put("short", "0", 1), "short=1@1"),
        (put("long", "0", 1), "long=_@2"),
        (conditional("short", 5), "short=1@1"),
        (conditional("long", 5), "long=_@2"),
        (conditional("none", 5), "-none@3"),
        (put("gone", "0", 3), "-gone@3"),
        (delete("never", 2), "-never@3"),
        (larger, "short=1@1"),
    ] {
        let has_error = payload.len() > 9000;
        for (client, is_numbered) in [(clients[0], true), (clients[1], false), (clients[0], true)] {
            id += 1;
            send(&mut rig, client, if is_numbered { id } else { 0 }, &payload);
            let seen = told(&mut rig, client).into_iter();
            let seen = seen.map(|text| text.replace(&long, "_"));
            let seen: Vec<String> = seen.filter(|text| !text.starts_with("saved")).collect();
            let mark = if is_numbered {
                format!(" id {id}")
            } else {
                String::new()
            };
            let expected = if has_error {
                vec![answer.to_owned(), format!("error 413 key short{mark}")]
            } else {
                vec![format!("{answer}{mark}")]
            };
            assert_eq!(seen, expected, "{payload:.40}");
        }
    }
}

/// P129: a resend is accepted regardless of its condition.
#[test]
fn a_resend_needs_no_condition() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    let payload = format!(r#"{},"if_timestamp":0"#, put("k", "1", 5));
    send(&mut rig, writer, 1, &payload);
    send(&mut rig, writer, 2, &payload);
    assert_eq!(told(&mut rig, writer), ["saved 1 #1", "saved 2 #1"]);
    assert_eq!(told(&mut rig, reader), ["k=1@5 #1"]);
}

/// P119, P124: the deadline counts from when the server accepts the op; a later write without one
/// is permanent.
#[test]
fn a_deadline_is_stored_with_its_entry() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    let count = |rig: &Rig| rig.shard.rooms[RoomId::new(0)].workspace.expiries_count();
    let with_ttl = |after, ttl_ms: u64| format!(r#"{},"ttl_ms":{ttl_ms}"#, put("k", "1", after));
    send(&mut rig, writer, 0, &with_ttl(5, 2000));
    assert_eq!(count(&rig), 1);
    let now_us = rig.clock.unix_us;
    let workspace = &rig.shard.rooms[RoomId::new(0)].workspace;
    assert!(!workspace.has_expired(now_us + 2 * SECOND_US - 1));
    assert!(workspace.has_expired(now_us + 2 * SECOND_US));
    // P129: the deadline is that of the op that won.
    rig.clock.unix_us += SECOND_US;
    send(&mut rig, writer, 0, &with_ttl(5, 9000));
    let workspace = &rig.shard.rooms[RoomId::new(0)].workspace;
    assert!(workspace.has_expired(now_us + 2 * SECOND_US));
    send(&mut rig, writer, 0, &put("k", "2", 6));
    assert_eq!(count(&rig), 0);
    for ttl_ms in ["0", "-1", "1.5", "315360000001", "null", "\"1\""] {
        let payload = format!(r#"{},"ttl_ms":{ttl_ms}"#, put("k", "3", 7));
        send(&mut rig, writer, 0, &payload);
        assert_eq!(told(&mut rig, writer), ["error 400 key k"], "{ttl_ms}");
    }
    let payload = format!(r#"{},"ttl_ms":1000"#, delete("k", 8));
    send(&mut rig, writer, 0, &payload);
    assert_eq!(told(&mut rig, writer), ["error 400 key k"]);
    assert_eq!(count(&rig), 0);
}

/// P127: a client that was away does not bring a deleted key back, even though its tombstone was
/// dropped.
#[test]
fn an_op_at_or_below_the_floor_loses() {
    let mut held = workspace(&[("k", Some("1")), ("live", Some("2")), ("k", None)]);
    drop_tombstones(&mut held);
    let mut rig = Rig::with(vec![held], |_| ());
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    for (payload, answer) in [
        (put("k", "9", 2), Some("-k@3")),
        (put("k", "9", 3), Some("-k@3")),
        // The same holds for a key that never existed, and for a delete.
        (put("other", "9", 1), Some("-other@3")),
        (delete("k", 3), Some("-k@3")),
        // A key with an entry competes with that entry.
        (put("live", "9", 1), Some("live=2@2")),
        (put("live", "9", 3), None),
        (put("k", "9", 4), None),
    ] {
        send(&mut rig, writer, 0, &payload);
        let seen = told(&mut rig, writer);
        assert_eq!(seen.first().map(String::as_str), answer, "{payload}");
        assert_eq!(
            told(&mut rig, reader).is_empty(),
            answer.is_some(),
            "{payload}"
        );
    }
}

/// P126, P49: an error about the size comes after the key's current entry.
#[test]
fn a_delete_of_an_entry_is_never_refused_for_the_size() {
    let mut rig = Rig::new(|config| config.limits.workspace_bytes = Some(150));
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 1, &put("k", "1", 1));
    let long = format!("\"{}\"", "x".repeat(200));
    send(&mut rig, writer, 2, &put("k", &long, 2));
    send(&mut rig, writer, 3, &put("j", &long, 3));
    let expected = [
        "saved 1 #1",
        "k=1@1",
        "error 413 key k id 2",
        "saved 2 #1",
        "error 413 key j id 3",
        "saved 3 #1",
    ];
    assert_eq!(told(&mut rig, writer), expected);
    for (id, key) in [(4, "a"), (5, "b"), (6, "c"), (7, "k")] {
        send(&mut rig, writer, id, &delete(key, 10));
    }
    assert_eq!(
        told(&mut rig, writer),
        ["saved 4 #2", "saved 5 #3", "saved 6 #4", "saved 7 #5"]
    );
    // Tombstones count.
    send(&mut rig, writer, 8, &put("d", "1", 11));
    assert_eq!(
        told(&mut rig, writer),
        ["error 413 key d id 8", "saved 8 #5"]
    );
    // Up to twice the limit, also keys without an entry can be deleted.
    for (id, key) in (9..).zip('m'..='z') {
        send(&mut rig, writer, id, &delete(&key.to_string(), 12));
    }
    let workspace_bytes = rig.shard.rooms[RoomId::new(0)].workspace.log_bytes();
    assert!(workspace_bytes <= 300, "{workspace_bytes}");
    let seen = told(&mut rig, writer);
    assert_eq!(seen.last().map(String::as_str), Some("saved 22 #8"));
    let refused = "error 413 key z id 22".to_owned();
    assert!(seen.contains(&refused), "{seen:?}");
    send(&mut rig, writer, 23, &delete("k", 13));
    assert_eq!(told(&mut rig, writer), ["saved 23 #9"]);
}

/// P120, P143.
#[test]
fn a_delete_is_durable_before_it_is_shown() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    send(&mut rig, writer, 0, &put("k", "1", 1));
    told(&mut rig, reader);
    rig.log_hangs = true;
    send(&mut rig, writer, 1, &delete("k", 2));
    assert_eq!(
        (told(&mut rig, reader).len(), told(&mut rig, writer).len()),
        (0, 0)
    );
    rig.log_hangs = false;
    rig.run();
    assert_eq!(told(&mut rig, reader), ["-k@2 #2"]);
    assert_eq!(told(&mut rig, writer), ["saved 1 #2"]);
}

/// P111, P114, P115: anything that is not a version 2 message changes nothing.
#[test]
fn a_malformed_message_is_refused_with_its_id_and_key() {
    let at = T + 1;
    let both = |deleted: &str| {
        let fields = format!(r#""key":"k","value":1,"deleted":{deleted},"timestamp":{at}"#);
        format!(r#"{{"type":"op","id":3,"payload":{{{fields}}}}}"#)
    };
    for (text, expected) in [
        ("[]".to_owned(), "error 400"),
        (r#"{"type":"none","id":3}"#.to_owned(), "error 400 id 3"),
        (r#"{"id":3}"#.to_owned(), "error 400 id 3"),
        (
            r#"{"type":"op","id":0,"payload":{}}"#.to_owned(),
            "error 400",
        ),
        (
            r#"{"type":"op","id":"3","payload":{}}"#.to_owned(),
            "error 400",
        ),
        (
            r#"{"type":"op","id":9007199254740992,"payload":{}}"#.to_owned(),
            "error 400",
        ),
        (
            r#"{"type":"op","id":3,"payload":{"key":"k"}}"#.to_owned(),
            "error 400 key k id 3",
        ),
        (
            format!(r#"{{"type":"op","id":3,"payload":{{"key":"k","timestamp":{at}}}}}"#),
            "error 400 key k id 3",
        ),
        (both("true"), "error 400 key k id 3"),
        (both("false"), "error 400 key k id 3"),
    ] {
        let mut rig = Rig::new(|_| ());
        let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
        rig.receive(writer, &frame(1, text.as_bytes()));
        let seen = told(&mut rig, writer);
        assert_eq!(seen[0], expected, "{text}");
        // It is settled if it has an id.
        let is_settled = expected.contains("id 3");
        assert_eq!(seen.get(1).is_some(), is_settled, "{seen:?}");
        assert_eq!(told(&mut rig, reader).len(), 0);
        rig.receive(writer, &op(4, &put("k", "1", 1)));
        assert_eq!(
            told(&mut rig, reader),
            ["k=1@1 #1"],
            "the connection stays open"
        );
    }
}

/// P37, P116: a timestamp far ahead of the clock is refused in both versions.
#[test]
fn a_timestamp_far_in_the_future_is_refused() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    let latest = SECOND_US + 3600 * SECOND_US;
    send(&mut rig, writer, 1, &put("k", "1", latest + 1));
    send(&mut rig, writer, 2, &delete("k", latest + 1));
    send(&mut rig, writer, 3, &delete("k", latest));
    let expected = [
        "error 400 key k id 1",
        "saved 1 #0",
        "error 400 key k id 2",
        "saved 2 #0",
        "saved 3 #1",
    ];
    assert_eq!(told(&mut rig, writer), expected);
}

/// P62, P120: a delete is logged, so it survives a failure.
#[test]
fn a_delete_survives_a_rebuild() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 0, &put("k", "1", 1));
    send(&mut rig, writer, 0, &put("j", "1", 1));
    send(&mut rig, writer, 0, &delete("k", 2));
    rig.log_fails = true;
    send(
        &mut rig,
        writer,
        0,
        &put("j", "lost", 3).replace("lost", "2"),
    );
    rig.log_fails = false;
    rig.sleep_until(1.0);
    let client = join(&mut rig, "w", "");
    let expected = ["101", "welcome full first", "state j=1@1 #3", "synced #3"];
    assert_eq!(told(&mut rig, client), expected);
    send(&mut rig, client, 0, &put("k", "9", 2));
    assert_eq!(told(&mut rig, client), ["-k@2"]);
    let entry = rig.shard.rooms[RoomId::new(0)].workspace.get("k");
    assert!(entry.is_some_and(crate::core::state::workspace::Entry::is_deleted));
}
