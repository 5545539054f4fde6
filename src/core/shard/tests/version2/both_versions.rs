//! Clients of both versions in one workspace.

use super::{T, delete, joined, messages, put, send, told, workspace};
use crate::core::fanout::room::RoomId;
use crate::core::shard::tests::rig::{Rig, look};
use crate::wire::ProtocolVersion::{V1, V2};

/// P100, P121: each client receives the ops of both in its own version; a delete is a `null` in
/// version 1.
#[test]
fn clients_of_both_versions_share_a_workspace() {
    let mut rig = Rig::new(|_| ());
    let (old, new) = (rig.join("w", None), joined(&mut rig, "w"));
    let (old_reader, new_reader) = (rig.join("w", None), joined(&mut rig, "w"));
    told(&mut rig, old_reader);
    rig.op(old, "k", "[1, 2]", T + 1);
    send(&mut rig, new, 0, &put("j", "2", 2));
    send(&mut rig, new, 0, &delete("k", 3));
    rig.op(old, "k", "null", T + 4);
    assert_eq!(
        rig.seen(old_reader),
        [
            format!("k=[1,2]@{}", T + 1),
            format!("j=2@{}", T + 2),
            format!("k=null@{}", T + 3),
            format!("k=null@{}", T + 4),
        ]
    );
    let expected = ["k=[1,2]@1 #1", "j=2@2 #2", "-k@3 #3", "k=null@4 #4"];
    assert_eq!(told(&mut rig, new_reader), expected);
}

/// P57, P121: a version 1 client that loses to a delete receives it as a `null`; it cannot resend
/// the delete, because its own `null` is a write.
#[test]
fn a_version_1_client_loses_to_a_delete() {
    let mut rig = Rig::new(|_| ());
    let (old, new) = (rig.join("w", None), joined(&mut rig, "w"));
    send(&mut rig, new, 0, &delete("k", 5));
    told(&mut rig, old);
    for value in ["1", "null"] {
        for timestamp in [4, 5] {
            rig.op(old, "k", value, T + timestamp);
            assert_eq!(told(&mut rig, old), ["k=null@5"], "{value} {timestamp}");
        }
    }
    assert_eq!(told(&mut rig, new).len(), 0);
}

/// P121, P80: a deleted key is missing from `init` and from the state over HTTP, but its seq
/// counts.
#[test]
fn a_deleted_key_is_missing_from_version_1_states() {
    let changes = [("k", Some("1")), ("dead", Some("2")), ("dead", None)];
    let mut rig = Rig::with(vec![workspace(&changes)], |_| ());
    let old = rig.join("w", None);
    assert_eq!(told(&mut rig, old), ["101", "init 1"]);
    let visitor = rig.accept(false);
    rig.receive(visitor, look("/v1/workspaces/w").as_bytes());
    let body = String::from_utf8_lossy(&rig.peers[visitor].client.incoming).into_owned();
    let expected = format!(
        r#"{{"data":{{"k":1}},"timestamps":{{"k":{}}},"seq":3,"connections":1}}"#,
        T + 1
    );
    assert_eq!(body, expected);
}

/// P46: an op is encoded once for each version in use, and a workspace with clients of only one
/// version pays for only one.
#[test]
fn an_op_is_encoded_for_the_versions_in_use() {
    let mut rig = Rig::new(|_| ());
    let ends = |rig: &Rig| {
        let room = &rig.shard.rooms[RoomId::new(0)];
        [V1, V2].map(|version| room.window_end(version).get())
    };
    let old = rig.join("w", None);
    rig.op(old, "k", "1", T + 1);
    let [first, none] = ends(&rig);
    assert!(first > 0 && none == 0);
    let new = joined(&mut rig, "w");
    rig.op(old, "k", "2", T + 2);
    let both = ends(&rig);
    assert!(both[0] > first && both[1] > 0, "{both:?}");
    rig.peers[old].client.broken = true;
    rig.run();
    send(&mut rig, new, 0, &put("k", "3", 3));
    let [left, kept] = ends(&rig);
    assert_eq!(left, both[0], "nobody reads it");
    assert!(kept > both[1]);
}

/// P45, P134: a version whose last member left, so that its window has a gap, starts over from the
/// state.
#[test]
fn a_window_restarts_when_its_version_is_used_again() {
    let mut rig = Rig::new(|_| ());
    let (old, new) = (rig.join("w", None), joined(&mut rig, "w"));
    let leaving = [joined(&mut rig, "w"), rig.join("w", None)];
    rig.op(old, "k", "1", T + 1);
    for client in [leaving[0], new] {
        rig.peers[client].client.broken = true;
        rig.run();
    }
    // No version 2 client is left.
    rig.op(old, "k", "2", T + 2);
    let new = super::join(&mut rig, "w", "");
    rig.op(old, "k", "3", T + 3);
    let expected = [
        "101",
        "welcome full first",
        "state k=2@2 #2",
        "synced #2",
        "k=3@3 #3",
    ];
    assert_eq!(told(&mut rig, new), expected);
    for client in [old, leaving[1]] {
        rig.peers[client].client.broken = true;
        rig.run();
    }
    // No version 1 client is left.
    send(&mut rig, new, 0, &put("k", "4", 4));
    let old = rig.join("w", None);
    send(&mut rig, new, 0, &put("k", "5", 5));
    assert_eq!(told(&mut rig, old), ["101", "init 1", "k=5@5"]);
}

/// P143: a window that restarts while an op waits for the log shows each op once.
#[test]
fn a_window_restarts_while_an_op_waits_for_the_log() {
    let mut rig = Rig::new(|_| ());
    let (old, new) = (rig.join("w", None), joined(&mut rig, "w"));
    rig.log_hangs = true;
    rig.op(old, "k", "1", T + 1);
    rig.peers[new].client.broken = true;
    rig.run();
    let new = super::join(&mut rig, "w", "");
    rig.op(old, "j", "2", T + 2);
    assert_eq!(told(&mut rig, new).len(), 0);
    rig.log_hangs = false;
    rig.run();
    let expected = [
        "101",
        "welcome full first",
        "state k=1@1 #1",
        "synced #1",
        "j=2@2 #2",
    ];
    assert_eq!(told(&mut rig, new), expected);
}

/// P72, P121: a version 1 client that falls behind is sent a delete as a `null`.
#[test]
fn a_conflated_version_1_client_is_sent_deletes() {
    let mut rig = Rig::new(|_| ());
    let (slow, new) = (rig.join("w", None), joined(&mut rig, "w"));
    told(&mut rig, slow);
    let value = format!("\"{}\"", "x".repeat(30_000));
    rig.peers[slow].reads = false;
    for after in 1..6 {
        send(&mut rig, new, 0, &put("k", &value, after));
    }
    assert!(rig.is_behind(slow));
    send(&mut rig, new, 0, &delete("k", 7));
    rig.peers[slow].reads = true;
    rig.run();
    assert_eq!(
        told(&mut rig, slow).last().map(String::as_str),
        Some("k=null@7")
    );
}

/// P108: in version 2, `userId` does not name a user, and version 2 members are not listed among
/// version 1 members.
#[test]
fn a_user_id_is_a_version_1_parameter() {
    let mut rig = Rig::new(|_| ());
    let new = super::join(&mut rig, "w", "&userId=eve");
    assert_eq!(messages(&mut rig, new)[0]["payload"]["user"], "client");
    let visitor = rig.accept(false);
    rig.receive(visitor, look("/v1/presence/w").as_bytes());
    let body = String::from_utf8_lossy(&rig.peers[visitor].client.incoming).into_owned();
    assert!(!body.contains("eve"), "{body}");
}
