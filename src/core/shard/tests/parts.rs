//! A large state that is encoded in parts: which clients wait for it, and what happens in the
//! meantime.

use super::rig::{Rig, frame, head, look, op};
use crate::core::fanout::room::RoomId;
use crate::core::shard::session::State;
use crate::core::state::workspace::Workspace;
use crate::limits::{ANSWER_SEND_BYTES_MAX, BULK_BYTES_PER_TURN, SECOND_US};

const KEYS: u64 = 20;
const PART_BYTES: usize = 1000;

fn value(mark: u64) -> String {
    format!("\"{mark:0500}\"")
}

/// Returns a rig with a state of about ten parts in room `w`, written by client 0, and `COUNT`
/// connections that have sent nothing yet.
fn rig<const COUNT: usize>(part_bytes: usize) -> (Rig, [usize; COUNT]) {
    let mut rig = Rig::new(|config| config.snapshot_part_bytes = part_bytes);
    let writer = rig.join("w", None);
    for key in 0..KEYS {
        rig.op(writer, &format!("k{key}"), &value(key), key + 1);
    }
    rig.seen(writer);
    let clients = [(); COUNT].map(|()| rig.accept(false));
    (rig, clients)
}

/// Sends a request on a connection.
fn ask(rig: &mut Rig, client: usize, request: &str) {
    rig.receive_only(client, request.as_bytes());
}

/// Runs turns until no state is being encoded, and returns the number of turns.
fn turns(rig: &mut Rig) -> usize {
    for turns in 1.. {
        rig.step();
        if !rig.shard.snapshots.is_encoding() {
            rig.run();
            return turns;
        }
    }
    unreachable!("the encoding never ends")
}

fn body(rig: &Rig, client: usize) -> serde_json::Value {
    serde_json::from_slice(&rig.peers[client].client.incoming).expect("the body is JSON")
}

/// P45.
#[test]
fn waiting_clients_receive_the_state_at_one_point_and_the_ops_after_it() {
    let (mut rig, [joiner, http_reader, elsewhere, late]) = rig(PART_BYTES);
    ask(&mut rig, joiner, &head("w", None));
    ask(&mut rig, http_reader, &look("/v1/workspaces/w"));
    ask(&mut rig, elsewhere, &head("v", None));
    rig.step();
    rig.step();
    assert_eq!(rig.seen(joiner), ["101"]);
    assert!(rig.seen(http_reader).is_empty());
    assert_eq!(
        rig.seen(elsewhere),
        ["101", "init 0"],
        "the other client is not served"
    );
    // One key that was already encoded, one that was not, and a new one.
    for (key, timestamp) in [(0, 100), (KEYS - 1, 101), (KEYS, 102)] {
        rig.receive_only(0, &op(&format!("k{key}"), "1", timestamp));
        rig.step();
    }
    ask(&mut rig, late, &look("/v1/workspaces/w"));
    // The joiner's own op is newer than the state that it is sent, and is not sent back to it.
    rig.receive_only(joiner, &op("own", "1", 103));
    assert!(turns(&mut rig) > 5);
    let follows = ["init 20", "k0=1@100", "k19=1@101", "k20=1@102"];
    assert_eq!(rig.seen(joiner), follows);
    assert_eq!(rig.seen(http_reader), ["200", "gone"]);
    let body_json = body(&rig, http_reader);
    assert_eq!(
        (&body_json["seq"], &body_json["connections"]),
        (&20.into(), &2.into())
    );
    for key in 0..KEYS {
        let name = format!("k{key}");
        assert_eq!(body_json["data"][&name].to_string(), value(key));
        assert_eq!(body_json["timestamps"][&name], key + 1);
    }
    assert_eq!(rig.seen(late), ["200", "gone"]);
    let body_json = body(&rig, late);
    assert_eq!(
        (&body_json["seq"], &body_json["data"]["k0"]),
        (&23.into(), &1.into())
    );
    assert_eq!(rig.seen(0), ["own=1@103"]);
    rig.run();
    let counters = rig.shard.counters();
    assert_eq!(counters.answer_bytes, 0);
    assert_eq!(counters.snapshot_bytes, 0);
}

#[test]
fn a_turn_encodes_one_part() {
    let (mut rig, [joiner]) = rig(PART_BYTES);
    let bytes = rig.shard.rooms[RoomId::new(0)].workspace.init_bytes();
    ask(&mut rig, joiner, &head("w", None));
    let turns = turns(&mut rig);
    // A part ends after a field, so it may be longer than `PART_BYTES`.
    let expected = bytes / (PART_BYTES + 600)..=bytes / PART_BYTES + 1;
    assert!(expected.contains(&turns), "{turns}");
}

/// P72.
#[test]
fn a_waiting_client_that_falls_behind_is_conflated() {
    let (mut rig, [joiner]) = rig(1);
    ask(&mut rig, joiner, &head("w", None));
    rig.step();
    for count in 0..8 {
        let value = format!("\"{}\"", "x".repeat(20_000));
        rig.receive_only(0, &op("k3", &value, 100 + count));
        rig.step();
        rig.step();
    }
    rig.run();
    let seen = rig.seen(joiner);
    assert_eq!(seen[..2], ["101", "init 20"]);
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen[2].ends_with("@107"));
    assert_eq!(rig.shard.counters().conflations, 1);
}

#[test]
fn a_waiting_client_can_be_closed_and_leaves_nothing_behind() {
    for reason in ["peer", "expiry", "abort", "drain"] {
        let (mut rig, [joiner, http_reader]) = rig(PART_BYTES);
        ask(&mut rig, joiner, &head("w", Some(1)));
        ask(&mut rig, http_reader, &look("/v1/workspaces/w"));
        rig.step();
        rig.step();
        assert_eq!(rig.seen(joiner), ["101"]);
        match reason {
            "peer" | "abort" => {
                for client in [joiner, http_reader] {
                    rig.peers[client].client.broken |= reason == "abort" || client == http_reader;
                }
                if reason == "peer" {
                    let id = rig.peers[joiner].client.id;
                    rig.shard.close(id, 1000, "", rig.clock);
                }
            }
            "expiry" => {
                rig.clock.now_us += 40 * SECOND_US;
                rig.clock.unix_us += 40 * SECOND_US;
            }
            _ => rig.shard.start_drain(rig.clock),
        }
        rig.step();
        let is_open = matches!(rig.session(joiner).state(), State::Open { .. });
        assert!(!is_open || reason == "drain", "{reason}");
        rig.sleep_until(60.0);
        let seen = rig.seen(joiner);
        match reason {
            "peer" => assert_eq!(seen, ["close 1000", "gone"]),
            "expiry" => assert_eq!(seen, ["close 4001", "gone"]),
            "abort" => assert_eq!(seen.last().map(String::as_str), Some("gone")),
            _ => assert_eq!(seen, ["init 20", "close 1001", "gone"]),
        }
        assert!(!rig.shard.snapshots.is_encoding(), "{reason}");
        let counters = rig.shard.counters();
        assert_eq!(counters.answer_bytes, 0, "{reason}");
        assert_eq!(counters.snapshot_bytes, 0, "{reason}");
    }
}

#[test]
fn a_closed_waiting_client_receives_no_op_after_the_state() {
    let (mut rig, [joiner]) = rig(1);
    ask(&mut rig, joiner, &head("w", None));
    rig.step();
    // This op loses, so the client must be sent the op that won.
    rig.receive_only(joiner, &op("k0", "1", 0));
    rig.step();
    let id = rig.peers[joiner].client.id;
    rig.shard.close(id, 1000, "", rig.clock);
    rig.run();
    assert_eq!(rig.seen(joiner), ["101", "close 1000", "gone"]);
    assert_eq!(rig.shard.counters().answer_bytes, 0);
}

/// P62.
#[test]
fn a_client_waiting_when_the_log_fails_receives_an_error() {
    let (mut rig, [joiner, http_reader]) = rig(PART_BYTES);
    ask(&mut rig, joiner, &head("w", None));
    ask(&mut rig, http_reader, &look("/v1/workspaces/w"));
    rig.step();
    rig.log_fails = true;
    rig.receive_only(0, &op("k0", "1", 100));
    rig.run();
    assert_eq!(rig.seen(joiner)[..2], ["101", "close 1011"]);
    assert_eq!(rig.seen(http_reader)[..1], ["500"]);
    assert!(!rig.shard.snapshots.is_encoding());
    let held_bytes = rig.shard.snapshots.bytes();
    assert!(held_bytes < 100, "more than the first, empty init is kept");
    rig.log_fails = false;
    rig.sleep_until(2.0);
    let again = rig.join("w", None);
    assert_eq!(rig.seen(again), ["101", "init 20"]);
}

#[test]
fn an_http_read_is_sent_completely_or_not_at_all() {
    let (mut rig, [joiner, http_reader]) = rig(PART_BYTES);
    rig.peers[joiner].reads = false;
    // The init message is completely encoded, but the timestamps are not.
    ask(&mut rig, joiner, &head("w", None));
    turns(&mut rig);
    rig.shard.snapshots.set_step_bytes(1);
    ask(&mut rig, http_reader, &look("/v1/workspaces/w"));
    rig.step();
    assert!(rig.shard.snapshots.is_encoding());
    assert!(rig.seen(http_reader).is_empty());
    rig.log_fails = true;
    rig.receive_only(0, &op("k0", "1", 100));
    rig.run();
    assert_eq!(rig.seen(http_reader), ["500", "gone"]);
}

#[test]
fn bytes_after_a_request_wait_for_the_state() {
    let mut rig = Rig::new(|config| config.snapshot_part_bytes = 20_000);
    let writer = rig.join("w", None);
    for key in 0..3 {
        let value = format!("\"{}\"", "x".repeat(50_000));
        rig.op(writer, &format!("k{key}"), &value, 1);
    }
    rig.seen(writer);
    let mut request = head("w", None).into_bytes();
    request.extend_from_slice(&op("k", "1", 1));
    request.extend_from_slice(&frame(9, b"ping"));
    let joiner = rig.accept(false);
    rig.receive_only(joiner, &request);
    rig.step();
    assert!(rig.seen(writer).is_empty());
    rig.run();
    assert_eq!(rig.seen(joiner), ["101", "init 3", "ping"]);
    assert_eq!(rig.seen(writer), ["k=1@1"]);
}

#[test]
fn sending_large_states_does_not_delay_other_clients() {
    const SENDS: usize = BULK_BYTES_PER_TURN / ANSWER_SEND_BYTES_MAX;
    let mut workspace = Workspace::new("w", 5);
    let value = format!("\"{}\"", "x".repeat(ANSWER_SEND_BYTES_MAX));
    workspace.apply("k", &value, 1, 0);
    let mut rig = Rig::with(vec![workspace], |config| {
        config.snapshot_part_bytes = usize::MAX;
    });
    let clients: Vec<usize> = (0..=2 * SENDS).map(|_| rig.accept(false)).collect();
    let other = rig.accept(false);
    for client in &clients {
        ask(&mut rig, *client, &head("w", None));
    }
    ask(&mut rig, other, &head("v", None));
    for sends in [SENDS, 2 * SENDS, 2 * SENDS + 1] {
        assert!(rig.shard.has_work());
        rig.turn();
        let is_sent = |client: &&usize| rig.peers[**client].client.sending.is_some();
        assert_eq!(clients.iter().filter(is_sent).count(), sends);
        assert!(rig.peers[other].client.sending.is_some());
    }
    rig.run();
    for client in clients {
        assert_eq!(rig.seen(client), ["101", "init 1"]);
    }
}
