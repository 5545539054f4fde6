//! The notes that a shard outputs about its connections, for the connection log.

use super::rig::{Rig, frame, head, look};
use crate::core::shard::connection_log::{Ended, Note, Party};
use crate::core::state::placement::shard_of;
use crate::limits::TIMESTAMP_MIN_US;

fn rig() -> Rig {
    Rig::new(|config| config.has_journal = true)
}

/// Returns the code, the reason and the side that closed first for each connection that has ended.
fn endings(rig: &mut Rig) -> Vec<(u16, String, Party)> {
    let notes = std::mem::take(&mut rig.notes);
    let ends = notes.into_iter().filter_map(|note| match note {
        Note::Ended(ended) => ended.ending,
        Note::Joined(_) | Note::EarlyTimestamp(_) => None,
    });
    ends.map(|end| (end.code, end.reason, end.closed_by))
        .collect()
}

#[test]
fn a_member_is_logged_at_its_start_and_its_end() {
    let mut rig = rig();
    let (writer, _) = (rig.join("w", None), rig.join("w", None));
    let [Note::Joined(one), Note::Joined(_)] = &rig.notes[..] else {
        panic!("{:?}", rig.notes);
    };
    assert_eq!(
        (one.workspace.as_str(), one.subject.as_deref()),
        ("w", Some("client"))
    );
    rig.notes.clear();
    rig.op(writer, "k", "1", TIMESTAMP_MIN_US + 1);
    rig.op(writer, "k", "0", TIMESTAMP_MIN_US);
    rig.receive(writer, &frame(1, b"{}"));
    rig.receive(
        writer,
        &frame(8, &[&1000_u16.to_be_bytes()[..], b"bye"].concat()),
    );
    let [Note::Ended(ended)] = &rig.notes[..] else {
        panic!("{:?}", rig.notes);
    };
    let Ended {
        member,
        ending,
        bytes_received,
        bytes_sent,
        ops,
        ..
    } = ended;
    let ending = ending.as_ref().expect("the member was closed");
    assert_eq!((ending.code, ending.reason.as_str()), (1000, "bye"));
    assert_eq!(ending.closed_by, Party::Client);
    assert_eq!(
        member.as_ref().map(|member| member.workspace.as_str()),
        Some("w")
    );
    assert_eq!(*ops, 2, "the losing op is not counted");
    assert_eq!(
        *bytes_received,
        rig.shard.counters().bytes_received - head("w", None).len() as u64
    );
    let all_sent = rig.shard.counters().bytes_sent;
    let range = 1..all_sent;
    assert!(range.contains(bytes_sent), "{bytes_sent} of {all_sent}");
}

#[test]
fn every_kind_of_disconnect_is_named() {
    let mut rig = rig();
    let binary = rig.join("w", None);
    rig.receive(binary, &frame(2, b"x"));
    let server = |code: u16, reason: &str| (code, reason.to_owned(), Party::Server);
    assert_eq!(
        endings(&mut rig),
        [server(1003, "messages are text frames")]
    );

    let lost = rig.join("w", None);
    rig.receive(lost, &[]);
    let expected = (1006, "the connection was lost".to_owned(), Party::Nobody);
    assert_eq!(endings(&mut rig), [expected]);

    let asking = rig.accept(false);
    rig.receive(asking, look("/v1/presence/w").as_bytes());
    let refused = rig.accept(false);
    rig.receive(
        refused,
        b"GET /v1/presence/w?token=x HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    let expected = [server(200, ""), server(401, "the token is malformed")];
    assert_eq!(endings(&mut rig), expected);

    let writer = rig.join("w", None);
    rig.log_fails = true;
    rig.op(writer, "k", "1", 1);
    assert_eq!(endings(&mut rig), [server(1011, "Internal Server Error")]);
}

#[test]
fn a_handed_off_connection_is_not_logged_by_the_accepting_shard() {
    let mut front = Rig::new(|config| (config.shards, config.has_journal) = (2, true));
    let elsewhere = ["a", "b", "c", "d", "e"]
        .into_iter()
        .find(|id| shard_of(id, 2) == 1);
    front.join(elsewhere.expect("some name maps to the other shard"), None);
    assert_eq!(front.notes, []);
}

#[test]
fn without_a_journal_nothing_is_logged() {
    let mut rig = Rig::new(|_| ());
    let client = rig.join("w", None);
    rig.op(client, "k", "1", 1);
    rig.receive(client, &[]);
    assert_eq!(rig.notes, []);
}

/// P117: version 1 accepts such timestamps, but the operator is warned.
#[test]
fn timestamps_before_2001_are_counted_and_reported_once_per_connection() {
    let mut rig = rig();
    let clients = [rig.join("w", None), rig.join("w", None)];
    rig.notes.clear();
    rig.op(clients[0], "k", "1", TIMESTAMP_MIN_US);
    assert_eq!(
        (rig.shard.counters().early_timestamps, &rig.notes[..]),
        (0, &[][..])
    );
    for timestamp in [TIMESTAMP_MIN_US - 1, 3, 4] {
        for client in clients {
            rig.op(client, "j", "1", timestamp);
        }
    }
    assert_eq!(rig.shard.counters().early_timestamps, 6);
    let note = || Note::EarlyTimestamp(TIMESTAMP_MIN_US - 1);
    assert_eq!(rig.notes, [note(), note()]);
}
