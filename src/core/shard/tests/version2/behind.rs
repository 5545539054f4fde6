//! Version 2 clients that read too slowly.

use super::{Replica, delete, joined, messages, put, send, told};
use crate::core::fanout::room::RoomId;
use crate::core::shard::tests::rig::Rig;
use crate::core::state::segment_usage::UNMARKED;

/// Makes a client fall behind: it reads nothing while others write a lot. Returns the value that
/// they wrote.
fn let_fall_behind(rig: &mut Rig, slow: usize, writer: usize) -> String {
    let value = format!("\"{}\"", "x".repeat(30_000));
    rig.peers[slow].reads = false;
    for after in 10..16 {
        send(rig, writer, 0, &put("busy", &value, after));
    }
    assert!(rig.is_behind(slow));
    value
}

/// P138: a client that is behind is sent the latest entry of each changed key, `synced`, and then
/// broadcasts again. There is no new `welcome`.
#[test]
fn a_client_that_fell_behind_receives_state_messages() {
    let mut rig = Rig::new(|_| ());
    let (slow, writer) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    send(&mut rig, writer, 0, &put("before", "1", 1));
    told(&mut rig, slow);
    let value = let_fall_behind(&mut rig, slow, writer);
    send(&mut rig, writer, 0, &delete("before", 20));
    // Its own ops are among them, since they have not been reported as saved yet.
    send(&mut rig, slow, 7, &put("own", "1", 21));
    send(&mut rig, writer, 0, &put("last", "1", 22));
    rig.peers[slow].reads = true;
    rig.run();
    let mut seen: Vec<String> = told(&mut rig, slow);
    for text in &mut seen {
        *text = text.replace(&value, "_");
    }
    let first = seen.remove(0);
    assert_eq!(first, "busy=_@10 #2", "the op that was in flight");
    let state = "state busy=_@15 own=1@21 last=1@22 -before@20 #10";
    assert_eq!(seen, [state, "synced #10", "saved 7 #10"]);
    send(&mut rig, writer, 0, &put("live", "1", 23));
    assert_eq!(told(&mut rig, slow), ["live=1@23 #11"]);
}

/// P138, P142: a client that is behind is sent tombstones even if it joined with a full state.
#[test]
fn a_client_that_falls_behind_misses_no_delete() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    send(&mut rig, writer, 0, &put("k", "1", 1));
    let slow = super::join(&mut rig, "w", "");
    let mut replica = Replica::default();
    replica.read_all(&messages(&mut rig, slow));
    let_fall_behind(&mut rig, slow, writer);
    send(&mut rig, writer, 0, &delete("k", 30));
    rig.peers[slow].reads = true;
    rig.run();
    replica.read_all(&messages(&mut rig, slow));
    assert_eq!(replica.live().into_keys().collect::<Vec<_>>(), ["busy"]);
    assert!(replica.is_synced && replica.unconfirmed.is_empty());
}

/// P127, P141: a client that fell behind before tombstones were dropped can no longer be sent them,
/// so it must start over, in either version.
#[test]
fn a_client_behind_dropped_tombstones_is_closed() {
    let mut rig = Rig::new(|_| ());
    let writer = joined(&mut rig, "w");
    let slow = [joined(&mut rig, "w"), rig.join("w", None)];
    send(&mut rig, writer, 0, &put("k", "1", 1));
    for client in slow {
        told(&mut rig, client);
        rig.peers[client].reads = false;
    }
    let_fall_behind(&mut rig, slow[0], writer);
    assert!(rig.is_behind(slow[1]));
    send(&mut rig, writer, 0, &delete("k", 30));
    // The shard itself keeps a tombstone for as long as a member is behind it.
    let room = &mut rig.shard.rooms[RoomId::new(0)];
    let dropped = room
        .workspace
        .drop_tombstones((u64::MAX, 0), 9, None, UNMARKED);
    assert!(dropped.is_some());
    rig.shard.expiry.update(RoomId::new(0), room);
    for client in slow {
        rig.peers[client].reads = true;
    }
    rig.run();
    for client in slow {
        let seen = told(&mut rig, client);
        let seen: Vec<&String> = seen
            .iter()
            .filter(|text| !text.starts_with("busy"))
            .collect();
        assert_eq!(seen, ["close 1013", "gone"], "client {client}");
    }
}

/// P138: a client that falls behind again while it is catching up loses nothing.
#[test]
fn a_client_may_fall_behind_again_and_again() {
    let mut rig = Rig::new(|_| ());
    let (slow, writer) = (super::join(&mut rig, "w", ""), joined(&mut rig, "w"));
    let mut replica = Replica::default();
    let value = format!("\"{}\"", "x".repeat(20_000));
    rig.peers[slow].reads = false;
    let mut synced = 0;
    for after in 1..60 {
        send(
            &mut rig,
            writer,
            0,
            &put(&format!("k{}", after % 7), &value, after),
        );
        if after % 10 == 0 {
            for _ in 0..4 {
                rig.read_once(slow);
            }
        }
        for message in messages(&mut rig, slow) {
            synced += usize::from(message["type"] == "synced");
            replica.read(&message);
        }
    }
    rig.peers[slow].reads = true;
    rig.run();
    for message in messages(&mut rig, slow) {
        replica.read(&message);
    }
    assert_eq!((replica.live().len(), replica.seq), (7, 59));
    assert!(
        replica
            .held
            .values()
            .all(|held| held.timestamp > super::T + 52)
    );
    assert!(synced > 0 && rig.shard.counters().conflations > 1);
}
