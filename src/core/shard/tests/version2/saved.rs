//! `saved`: which of a client's messages are settled, and when this is reported.

use super::{delete, entries, joined, messages, op, put, send, told};
use crate::core::shard::tests::rig::{Rig, frame};
use crate::limits::SEND_BYTES_MAX;
use crate::log::commit::Durability;

/// P150, P151: one `saved` per commit, however many ops it covers.
#[test]
fn saved_is_sent_once_per_commit() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    rig.log_hangs = true;
    send(&mut rig, writer, 1, &put("a", "1", 1));
    for id in 2..20 {
        send(&mut rig, writer, id, &put("b", "1", id));
    }
    assert_eq!(told(&mut rig, writer).len(), 0, "nothing is durable");
    rig.log_hangs = false;
    rig.run();
    assert_eq!(told(&mut rig, writer), ["saved 1 #1", "saved 19 #19"]);
    assert_eq!(rig.shard.counters().saved, 2);
}

/// P153: a client's own op is not sent back, so it is skipped even if its frame would not fit into
/// the send.
#[test]
fn saved_skips_an_own_op_that_is_longer_than_a_send() {
    let mut rig = Rig::new(|config| config.outbox_bytes_max = 4 * SEND_BYTES_MAX);
    let (writer, other) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    rig.log_hangs = true;
    send(&mut rig, other, 1, &put("a", "1", 1));
    // These two wait for the first, and become visible with one commit.
    send(&mut rig, other, 2, &put("a", "2", 2));
    let value = format!("\"{}\"", "x".repeat(SEND_BYTES_MAX));
    send(&mut rig, writer, 1, &put("b", &value, 3));
    rig.log_hangs = false;
    rig.run();
    assert_eq!(
        told(&mut rig, writer),
        ["a=1@1 #1", "a=2@2 #2", "saved 1 #3"]
    );
}

/// P153: an own op is not settled before the ops in front of it were sent, so that the resume point
/// is never before what the client holds.
#[test]
fn saved_does_not_pass_an_op_that_was_not_sent() {
    let mut rig = Rig::new(|config| config.outbox_bytes_max = 4 * SEND_BYTES_MAX);
    let (writer, other) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    rig.log_hangs = true;
    send(&mut rig, other, 1, &put("a", "1", 1));
    // These four wait for the first, and become visible with one commit. Only two fit a send.
    let value = format!("\"{}\"", "x".repeat(SEND_BYTES_MAX * 2 / 3));
    send(&mut rig, other, 2, &put("a", "2", 2));
    send(&mut rig, other, 3, &put("b", &value, 3));
    send(&mut rig, other, 4, &put("c", &value, 4));
    send(&mut rig, writer, 1, &put("d", "1", 5));
    rig.log_hangs = false;
    rig.run();
    let seen = told(&mut rig, writer).into_iter();
    let seen: Vec<String> = seen.map(|text| text.replace(&value, "_")).collect();
    let expected = ["a=1@1 #1", "a=2@2 #2", "b=_@3 #3", "c=_@4 #4", "saved 1 #5"];
    assert_eq!(seen, expected);
}

/// P150, P61: in the other modes an op is saved once it is visible, which is immediately.
#[test]
fn saved_does_not_wait_for_the_disk_in_the_other_modes() {
    for durability in [Durability::Interval, Durability::None] {
        let mut rig = Rig::new(|config| config.durability = durability);
        let writer = joined(&mut rig, "w");
        rig.log_hangs = true;
        send(&mut rig, writer, 1, &put("a", "1", 1));
        assert_eq!(told(&mut rig, writer), ["saved 1 #1"], "{durability:?}");
    }
}

/// P152: regardless of the order of the messages, answers come first, then the `saved` that covers
/// them.
#[test]
fn saved_follows_everything_that_it_covers() {
    let kinds = ["won", "lost", "same", "refused", "ping"];
    for first in kinds {
        for second in kinds {
            for third in kinds {
                check_order([first, second, third]);
            }
        }
    }
}

/// Sends three messages while the log hangs, and again when it does not, and checks the order of
/// the messages that the client receives.
fn check_order(kinds: [&str; 3]) {
    for log_hangs in [false, true] {
        let mut rig = Rig::new(|_| ());
        let (writer, other) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
        send(&mut rig, other, 0, &put("held", "1", 5));
        told(&mut rig, writer);
        rig.log_hangs = log_hangs;
        let mut bytes = Vec::new();
        for (id, kind) in (1..).zip(kinds) {
            bytes.extend(match kind {
                "won" => op(id, &put("won", &id.to_string(), id)),
                "lost" => op(id, &put("held", "2", 4)),
                "same" => op(id, &put("held", "1", 5)),
                "refused" => op(id, r#""key":"k""#),
                _ => frame(1, format!(r#"{{"type":"ping","id":{id}}}"#).as_bytes()),
            });
        }
        rig.receive(writer, &bytes);
        let is_settled = |kind: &str| kind != "won" || !log_hangs;
        let early = kinds.iter().take_while(|kind| is_settled(kind)).count();
        let mut seen = told(&mut rig, writer);
        check_answers(&seen, &kinds, early);
        rig.log_hangs = false;
        rig.run();
        seen.extend(told(&mut rig, writer));
        check_answers(&seen, &kinds, 3);
        let last = seen.last().expect("there is a saved");
        assert!(last.starts_with("saved 3 #"), "{kinds:?} {seen:?}");
    }
}

/// Checks that each `saved` follows the answers to all messages that it covers, and that at most
/// the first `settled` messages are covered.
fn check_answers(seen: &[String], kinds: &[&str], settled: usize) {
    for (place, text) in seen.iter().enumerate() {
        let Some(text) = text.strip_prefix("saved ") else {
            continue;
        };
        let id: usize = text
            .split(' ')
            .next()
            .and_then(|id| id.parse().ok())
            .expect("an id");
        assert!(id <= settled, "{kinds:?} {seen:?}");
        let count = |word: &str| {
            let before = seen[..place].iter();
            before.filter(|text| text.starts_with(word)).count()
        };
        let owed = |kind: &str| kinds[..id].iter().filter(|held| **held == kind).count();
        assert!(count("held=1@5") >= owed("lost"), "{kinds:?} {seen:?}");
        assert!(count("error 400") >= owed("refused"), "{kinds:?} {seen:?}");
        assert!(count("pong") >= owed("ping"), "{kinds:?} {seen:?}");
    }
}

/// P151: a refused op and a resend are settled immediately, without a commit.
#[test]
fn saved_is_immediate_if_nothing_waits() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 1, &put("k", "1", 1));
    told(&mut rig, writer);
    rig.log_hangs = true;
    send(&mut rig, writer, 2, &put("k", "1", 1));
    send(&mut rig, writer, 3, r#""key":"k""#);
    let expected = ["saved 2 #1", "error 400 key k id 3", "saved 3 #1"];
    assert_eq!(told(&mut rig, writer), expected);
    assert!(rig.log.is_none());
}

/// P154.
#[test]
fn a_message_without_an_id_is_not_covered() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 0, &put("k", "1", 1));
    send(&mut rig, writer, 0, r#""key":"k""#);
    assert_eq!(told(&mut rig, writer), ["error 400 key k"]);
    send(&mut rig, writer, 7, &put("k", "1", 2));
    assert_eq!(told(&mut rig, writer), ["saved 7 #2"]);
}

/// P111, P112: ids may start anywhere and skip numbers, but must increase.
#[test]
fn an_id_that_does_not_increase_is_refused_and_changes_nothing() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    send(&mut rig, writer, 40, &put("k", "1", 1));
    send(&mut rig, writer, 40, &put("k", "2", 2));
    send(&mut rig, writer, 39, &put("k", "3", 3));
    rig.receive(writer, &frame(1, br#"{"type":"ping","id":40}"#));
    send(&mut rig, writer, 9_007_199_254_740_991, &put("k", "4", 4));
    let expected = [
        "saved 40 #1",
        "error 400 id 40",
        "error 400 id 39",
        "error 400 id 40",
        "saved 9007199254740991 #2",
    ];
    assert_eq!(told(&mut rig, writer), expected);
    assert_eq!(told(&mut rig, reader), ["k=1@1 #1", "k=4@4 #2"]);
}

/// P129, P155: on the next connection ids start over, and a resend is settled.
#[test]
fn a_resend_after_a_reconnect_is_settled() {
    let mut rig = Rig::new(|_| ());
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    rig.log_hangs = true;
    send(&mut rig, writer, 5, &put("k", "1", 1));
    send(&mut rig, writer, 6, &delete("j", 2));
    rig.peers[writer].client.broken = true;
    rig.run();
    assert!(
        !told(&mut rig, writer)
            .iter()
            .any(|text| text.starts_with("saved"))
    );
    rig.log_hangs = false;
    rig.run();
    assert_eq!(told(&mut rig, reader), ["k=1@1 #1", "-j@2 #2"]);
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 1, &put("k", "1", 1));
    send(&mut rig, writer, 2, &delete("j", 2));
    assert_eq!(told(&mut rig, writer), ["saved 1 #2", "saved 2 #2"]);
    assert_eq!(told(&mut rig, reader).len(), 0);
}

/// P62, P155: `saved` never covers ops that a failure undoes.
#[test]
fn ops_that_the_log_loses_are_not_saved() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 1, &put("k", "1", 1));
    rig.log_fails = true;
    send(&mut rig, writer, 2, &put("k", "2", 2));
    assert_eq!(
        told(&mut rig, writer),
        ["saved 1 #1", "error 500", "close 1011", "gone"]
    );
}

/// P113, P39: an op over the rate is refused with its id and key, and then settled.
///
/// P169, P181: presence, casts and tokens are refused as well, but a ping is not.
#[test]
fn an_op_over_the_rate_is_settled() {
    let mut rig = Rig::new(|config| config.limits.ops_per_second = Some(2));
    let writer = joined(&mut rig, "w");
    let mut id = 0;
    let refused = loop {
        id += 1;
        send(&mut rig, writer, id, &put("k", "1", id));
        let seen = told(&mut rig, writer);
        if seen.len() > 1 {
            break seen;
        }
    };
    let seq = id - 1;
    let error = format!("error 429 key k id {id}");
    assert_eq!(refused, [error, format!("saved {id} #{seq}")]);
    for (text, first) in [
        (
            r#"{"type":"cast","id":ID,"payload":{"value":1}}"#,
            "error 429",
        ),
        (
            r#"{"type":"presence","id":ID,"payload":{"value":1}}"#,
            "error 429",
        ),
        (
            r#"{"type":"token","id":ID,"payload":{"token":"t"}}"#,
            "error 429",
        ),
        (r#"{"type":"ping","id":ID}"#, "pong"),
    ] {
        id += 1;
        let text = text.replace("ID", &id.to_string());
        rig.receive(writer, &frame(1, text.as_bytes()));
        let expected = [format!("{first} id {id}"), format!("saved {id} #{seq}")];
        assert_eq!(told(&mut rig, writer), expected);
    }
}

/// P153: while a client receives a state, a `saved` has no seq.
#[test]
fn saved_has_no_seq_while_the_state_is_sent() {
    let mut rig = Rig::new(|_| ());
    let first = joined(&mut rig, "w");
    let value = format!("\"{}\"", "x".repeat(50_000));
    for (key, after) in [("a", 1), ("b", 2), ("c", 3)] {
        send(&mut rig, first, 0, &put(key, &value, after));
    }
    let writer = rig.accept(false);
    rig.peers[writer].reads = false;
    let token = crate::core::testing::token(None);
    rig.receive(writer, super::request("w", &token, "").as_bytes());
    send(&mut rig, writer, 1, &put("d", "1", 4));
    let mut all = Vec::new();
    while rig.read_once(writer) {
        all.extend(messages(&mut rig, writer));
    }
    let saved: Vec<_> = all
        .iter()
        .filter(|message| message["type"] == "saved")
        .collect();
    assert_eq!(saved.len(), 1);
    assert_eq!(saved[0].get("seq"), None, "{saved:?}");
    send(&mut rig, writer, 2, &put("d", "2", 5));
    rig.peers[writer].reads = true;
    rig.run();
    assert_eq!(told(&mut rig, writer), ["saved 2 #5"]);
}

/// P153: a `saved` queued behind more frames than one send carries must not promise them, because
/// they may never be sent: the client may fall behind first.
#[test]
fn saved_promises_no_frames_that_are_dropped() {
    let mut rig = Rig::new(|config| config.outbox_bytes_max = 4 * SEND_BYTES_MAX);
    let (writer, reader) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    rig.peers[reader].reads = false;
    let value = format!("\"{}\"", "x".repeat(50_000));
    let mut after = 0;
    let mut write = |rig: &mut Rig, count: u64| {
        for _ in 0..count {
            after += 1;
            send(rig, writer, 0, &put(&format!("k{after}"), &value, after));
        }
    };
    // A send is in flight, and more frames than fit into one more send are pending, with the
    // client's own op among them.
    write(&mut rig, 1);
    send(&mut rig, reader, 1, &put("own", "1", 1));
    write(&mut rig, 10);
    assert!(rig.read_once(reader));
    // So a `saved` is queued behind frames that are dropped here.
    write(&mut rig, 30);
    assert!(rig.is_behind(reader));
    // The client's own op has the seq 2, so that of `k1` is 1, and that of `kN` is N + 1.
    let seq_of = |number: u64| if number == 1 { 1 } else { number + 1 };
    let (mut seq, mut keys) = (0, std::collections::BTreeSet::new());
    while rig.read_once(reader) {
        for message in messages(&mut rig, reader) {
            let payload = &message["payload"];
            match message["type"].as_str() {
                Some("state") => keys.extend(entries(payload).into_iter().map(|entry| entry.key)),
                Some("op") => {
                    keys.insert(payload["key"].as_str().expect("a key").to_owned());
                }
                _ => {}
            }
            if let Some(promised) = message["seq"].as_u64() {
                let owed = (1..=after).filter(|number| seq_of(*number) <= promised);
                for number in owed {
                    assert!(
                        keys.contains(&format!("k{number}")),
                        "{number} {}",
                        message["type"]
                    );
                }
                seq = promised;
            }
        }
    }
    assert_eq!(seq, 42);
}

/// P25, P150: a client that is closed receives no `saved` for ops that are not durable.
#[test]
fn a_closed_client_receives_no_saved() {
    let mut rig = Rig::new(|_| ());
    let place = rig.accept(false);
    let token = crate::core::testing::token(Some(5));
    rig.receive(place, super::request("w", &token, "").as_bytes());
    told(&mut rig, place);
    rig.log_hangs = true;
    send(&mut rig, place, 1, &put("k", "1", 1));
    rig.sleep_until(60.0);
    let seen = told(&mut rig, place);
    assert!(
        !seen.iter().any(|text| text.starts_with("saved")),
        "{seen:?}"
    );
}
