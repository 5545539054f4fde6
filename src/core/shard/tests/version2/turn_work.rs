//! The work of a turn is bounded, however many clients wait for something.

use super::{Rig, T, joined, request, send, told};
use crate::core::state::workspace::Workspace;
use crate::core::testing::{self, HASH_SEED};
use crate::limits::{CONFLATED_BYTES_MAX, ENCODED_BYTES_PER_TURN, SEND_BYTES_MAX};

const KEYS: usize = 10;
const VALUE_BYTES: usize = 10_000;
const ROOMS: usize = 60;

fn value() -> String {
    format!("\"{}\"", "x".repeat(VALUE_BYTES - 2))
}

/// Returns workspaces whose states have several parts each.
fn workspaces() -> Vec<Workspace> {
    let value = value();
    let workspaces = (0..ROOMS).map(|number| {
        let mut workspace = Workspace::new(&format!("w{number}"), HASH_SEED);
        for key in 0..KEYS {
            workspace.apply(&format!("k{key}"), &value, T, 0);
        }
        workspace
    });
    workspaces.collect()
}

/// Returns the number of bytes that were encoded for clients since `before_keys` keys were.
fn encoded_bytes(rig: &Rig, before_keys: u64) -> usize {
    let keys = rig.shard.counters().conflated_keys - before_keys;
    usize::try_from(keys).expect("few keys") * VALUE_BYTES
}

/// Runs turns until nothing more happens, and checks what each of them encodes.
fn run_bounded(rig: &mut Rig) -> usize {
    for turns_count in 1..200 {
        let before_keys = rig.shard.counters().conflated_keys;
        rig.step();
        let bytes = encoded_bytes(rig, before_keys);
        assert!(bytes < ENCODED_BYTES_PER_TURN + SEND_BYTES_MAX, "{bytes}");
        let is_moving = bytes > 0 || rig.shard.has_work();
        if !is_moving {
            rig.run();
            return turns_count;
        }
    }
    panic!("the clients are never served");
}

#[test]
fn states_of_many_rooms_are_encoded_over_several_turns() {
    let mut rig = Rig::with(workspaces(), |_| ());
    let mut clients = Vec::new();
    for number in 0..ROOMS {
        let client = rig.accept_only();
        let request = request(&format!("w{number}"), &testing::token(None), "");
        rig.receive_only(client, request.as_bytes());
        clients.push(client);
    }
    let bytes = encoded_bytes(&rig, 0);
    assert!(bytes > 0, "the first are served at once");
    let most = ENCODED_BYTES_PER_TURN / 2 + CONFLATED_BYTES_MAX;
    assert!(bytes <= most, "joins leave room to others: {bytes}");
    assert!(run_bounded(&mut rig) > 4);
    for client in clients {
        let seen = told(&mut rig, client);
        assert_eq!(seen.last().map(String::as_str), Some("synced #10"));
    }
}

/// The same holds for clients that have fallen behind, in either version.
#[test]
fn clients_behind_in_many_rooms_are_served_over_several_turns() {
    let mut rig = Rig::with(workspaces(), |_| ());
    let value = value();
    let mut slow = Vec::new();
    for number in 0..ROOMS {
        let workspace = format!("w{number}");
        let writer = joined(&mut rig, &workspace);
        let reader = match number % 2 {
            0 => joined(&mut rig, &workspace),
            _ => rig.join(&workspace, None),
        };
        told(&mut rig, reader);
        rig.peers[reader].reads = false;
        for key in 0..KEYS {
            let payload = super::put(&format!("k{key}"), &value, 1);
            send(&mut rig, writer, 0, &payload);
        }
        assert!(rig.is_behind(reader));
        slow.push(reader);
    }
    for reader in &slow {
        rig.peers[*reader].reads = true;
    }
    rig.end_operations();
    assert!(run_bounded(&mut rig) > 4);
    for reader in slow {
        assert!(!rig.is_behind(reader));
        assert!(!told(&mut rig, reader).is_empty());
    }
}
