//! The limits that protect a shard from its clients. Each limit is reached, reported and lifted
//! again, and does not affect clients that stay within it.

use super::rig::{Rig, frame, head, look, op, pong};
use crate::core::shard::contract::Limits;
use crate::core::shard::counters::Counters;
use crate::core::state::placement::shard_of;
use crate::limits::{MESSAGES_PER_TURN_MAX, PATIENCE_S, RATE_BURST_S, REFUSALS_MIN, SECOND_US};
use crate::log::record::OP_HEADER_BYTES;

const PING: u8 = 9;

fn rig(limits: Limits) -> Rig {
    Rig::new(|config| config.limits = limits)
}

fn ops_per_second(count: u32) -> Limits {
    Limits {
        ops_per_second: Some(count),
        ..Limits::default()
    }
}

fn workspace_bytes(bytes: u64) -> Limits {
    Limits {
        workspace_bytes: Some(bytes),
        ..Limits::default()
    }
}

/// The number of bytes that an entry of workspace `w` uses in addition to its key and value.
const ENTRY_BYTES: u64 = OP_HEADER_BYTES as u64 + 1;

// ---- messages per second ----

/// Returns five counts: ops refused because of the rate, ops refused because of the size of a
/// workspace, refused members, refused handshakes, and connections closed because they kept
/// exceeding their rate.
fn refused(rig: &Rig) -> [u64; 5] {
    let Counters {
        refused_rate,
        refused_workspace_bytes,
        refused_members,
        refused_handshakes,
        closes,
        ..
    } = rig.shard.counters();
    [
        *refused_rate,
        *refused_workspace_bytes,
        *refused_members,
        *refused_handshakes,
        closes.of(1008),
    ]
}

/// P39, P48.
#[test]
fn an_op_over_the_rate_is_refused_and_not_broadcast() {
    let mut rig = rig(ops_per_second(2));
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    rig.seen(writer);
    rig.seen(reader);
    for timestamp in 1..=5 {
        rig.op(writer, "k", "1", timestamp);
    }
    rig.receive(writer, &frame(1, b"{"));
    assert_eq!(rig.seen(writer), ["error 429 k@5", "error 429"]);
    assert_eq!(rig.seen(reader), ["k=1@1", "k=1@2", "k=1@3", "k=1@4"]);
    // The other client has its own rate limit.
    rig.op(reader, "k", "2", 9);
    assert_eq!(rig.seen(writer), ["k=2@9"]);
    // The limit is lifted after some time.
    rig.sleep_until(0.5);
    rig.op(writer, "k", "3", 10);
    rig.op(writer, "k", "4", 11);
    assert_eq!(rig.seen(writer), ["error 429 k@11"]);
    assert_eq!(rig.seen(reader), ["k=3@10"]);
    assert_eq!(refused(&rig), [3, 0, 0, 0, 0]);
}

/// P39.
#[test]
fn pings_count_and_pongs_do_not() {
    let text_ping = br#"{"type":"ping"}"#;
    for (first, expected) in [
        (pong(), &[][..]),
        (frame(1, text_ping), &["error 429 k@1"][..]),
        (frame(PING, b"a"), &["ping", "ping", "error 429 k@1"][..]),
    ] {
        let mut rig = rig(ops_per_second(1));
        let client = rig.join("w", None);
        rig.seen(client);
        for _ in 0..RATE_BURST_S {
            rig.receive(client, &first);
        }
        rig.op(client, "k", "1", 1);
        assert_eq!(rig.seen(client), expected);
        // Signs of life are never refused, even if they exceed the rate.
        rig.op(client, "k", "2", 2);
        rig.seen(client);
        rig.receive(client, &frame(1, text_ping));
        rig.receive(client, &frame(PING, b"a"));
        assert_eq!(rig.seen(client), ["ping"]);
    }
}

/// P39.
#[test]
fn a_client_that_continues_over_its_rate_is_closed() {
    let per_second = 50;
    let refusals = u64::from(per_second) * PATIENCE_S;
    assert!(refusals > REFUSALS_MIN);
    let messages = [op("k", "1", 5), frame(1, b"{"), frame(PING, b"")];
    for message in &messages {
        let mut rig = rig(ops_per_second(per_second));
        let (flooder, other) = (rig.join("w", None), rig.join("w", None));
        rig.seen(flooder);
        let allowed = u64::from(per_second) * RATE_BURST_S + refusals;
        for _ in 0..allowed {
            rig.receive(flooder, message);
        }
        let seen = rig.seen(flooder);
        assert!(!seen.iter().any(|what| what.starts_with("close")));
        let is_refused = |what: &&String| what.starts_with("error 429");
        let refused_count = seen.iter().filter(is_refused).count() as u64;
        let is_ping = *message == frame(PING, b"");
        assert_eq!(refused_count, if is_ping { 0 } else { refusals });
        rig.receive(flooder, message);
        assert_eq!(rig.seen(flooder), ["close 1008", "gone"]);
        assert_eq!(refused(&rig)[4], 1);
        // The next session in its slot starts with a full burst, and the other client was not
        // affected.
        let next = rig.join("w", None);
        rig.op(next, "j", "2", 6);
        assert_eq!(rig.seen(next)[0], "101");
        assert_eq!(rig.seen(other).last().map(String::as_str), Some("j=2@6"));
    }
}

#[test]
fn a_flood_that_arrives_in_one_turn_is_closed() {
    let mut rig = rig(ops_per_second(1));
    let flooder = rig.join("w", None);
    rig.seen(flooder);
    let count = RATE_BURST_S + REFUSALS_MIN + 50;
    let flood: Vec<u8> = (0..count).flat_map(|at| op("k", "1", at + 1)).collect();
    // The shard has received the whole flood, and reads a part of it in each turn.
    assert!(count > MESSAGES_PER_TURN_MAX as u64);
    rig.receive(flooder, &flood);
    let mut seen = rig.seen(flooder);
    seen.retain(|what| !what.starts_with("error 429 k@"));
    assert_eq!(seen, ["close 1008", "gone"]);
    assert_eq!(refused(&rig)[0], REFUSALS_MIN);
    assert_eq!(rig.shard.counters().ops, RATE_BURST_S);
}

/// P39.
#[test]
fn a_client_within_its_rate_is_not_affected() {
    let mut rig = rig(ops_per_second(5));
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    rig.seen(writer);
    rig.seen(reader);
    for number in 1..=200_u64 {
        rig.clock.now_us += SECOND_US / 5;
        rig.clock.unix_us += SECOND_US / 5;
        rig.receive(reader, &pong());
        rig.op(writer, "k", "1", number);
    }
    let seen = rig.seen(writer);
    assert!(seen.iter().all(|what| what == "ping"), "{seen:?}");
    assert_eq!(rig.shard.counters().ops, 200);
    assert_eq!(refused(&rig), [0; 5]);
}

// ---- the size of a workspace ----

/// P38, P48, P49.
#[test]
fn an_op_over_the_size_is_refused_with_a_correction() {
    let mut rig = rig(workspace_bytes(2 * (ENTRY_BYTES + 3)));
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    rig.op(writer, "k", "12", 1);
    rig.op(writer, "j", "12", 2);
    rig.seen(writer);
    rig.seen(reader);
    // These ops would grow the workspace, add a key, keep its size, shrink it, and grow it beyond
    // the limit again.
    rig.op(writer, "k", "123", 3);
    rig.op(writer, "n", "1", 4);
    rig.op(writer, "k", "34", 5);
    rig.op(writer, "j", "1", 6);
    rig.op(writer, "j", "123", 7);
    assert_eq!(
        rig.seen(writer),
        [
            "k=12@1",
            "error 413 k@3",
            "error 413 n@4",
            "j=1@6",
            "error 413 j@7"
        ]
    );
    assert_eq!(rig.seen(reader), ["k=34@5", "j=1@6"]);
    // Space that was freed may be used again, and another workspace has its own limit.
    rig.op(reader, "j", "56", 8);
    let other = rig.join("v", None);
    rig.op(other, "n", "1", 9);
    assert_eq!(rig.seen(reader).len(), 0);
    assert_eq!(rig.seen(other), ["101", "init 0"]);
    let counters = rig.shard.counters();
    assert_eq!((counters.ops, counters.refused_workspace_bytes), (6, 3));
    let late = rig.join("w", None);
    assert_eq!(rig.seen(late), ["101", "init 2"]);
}

/// P49, P60.
#[test]
fn a_correction_is_sent_once_it_is_durable() {
    for (log_fails, expected) in [
        (false, &["k=1@1", "error 413 k@2"][..]),
        // The op that had won is lost, and so is the correction that shows it.
        (true, &["error 413 k@2", "error 500", "close 1011", "gone"]),
    ] {
        let mut rig = rig(workspace_bytes(ENTRY_BYTES + 2));
        let writer = rig.join("w", None);
        rig.seen(writer);
        // The correction is queued before the commit of the op that it shows has begun.
        rig.receive_only(writer, &[op("k", "1", 1), op("k", "12", 2)].concat());
        rig.turn();
        assert!(rig.peers[writer].client.sending.is_none());
        rig.log_fails = log_fails;
        rig.sleep_until(0.01);
        assert_eq!(rig.seen(writer), expected);
    }
}

#[test]
fn a_shard_counts_the_bytes_of_accepted_ops() {
    let mut rig = rig(workspace_bytes(ENTRY_BYTES + 3));
    let writer = rig.join("w", None);
    let generation_bytes = rig.shard.live_bytes();
    for (value, live_bytes) in [("12", 2), ("123", 2), ("1", 1), ("34", 2)] {
        let timestamp = rig.shard.counters().ops + 1;
        rig.op(writer, "k", value, timestamp);
        let entry_bytes = rig.shard.live_bytes() - generation_bytes;
        assert_eq!(entry_bytes, ENTRY_BYTES + 1 + live_bytes);
    }
}

// ---- members of a workspace ----

/// P12.
#[test]
fn a_full_workspace_admits_no_client_until_one_leaves() {
    let limits = Limits {
        connections_per_workspace: Some(2),
        ..Limits::default()
    };
    let elsewhere = ["a", "b", "c", "d", "e", "f"];
    let elsewhere = elsewhere.iter().find(|name| shard_of(name, 2) == 1);
    let elsewhere = elsewhere.expect("some name maps to the other shard");
    // The shard that owns the workspace decides, no matter which shard accepted the connection.
    let mut front = Rig::new(|config| (config.shards, config.limits) = (2, limits));
    let mut owner = Rig::new(|config| {
        (config.shard, config.shards, config.limits) = (1, 2, limits);
    });
    let mut hand_over = |owner: &mut Rig| {
        let client = front.join(elsewhere, None);
        assert_eq!(front.seen(client).len(), 0);
        let (_, handoff) = front.peers[client]
            .handed_off
            .take()
            .expect("the session is handed off to the owner");
        let id = owner.shard.adopt(handoff, owner.clock);
        owner.add_peer(id)
    };
    let (first, second) = (owner.join(elsewhere, None), hand_over(&mut owner));
    let third = hand_over(&mut owner);
    assert_eq!(owner.seen(second), ["101", "init 0"]);
    assert_eq!(owner.seen(third), ["503", "gone"]);
    let text = String::from_utf8_lossy(&owner.peers[third].client.incoming).into_owned();
    assert!(
        text.contains("the workspace is at its connection limit"),
        "{text}"
    );
    // A client that reads over HTTP is not a member.
    let client = owner.accept(false);
    owner.receive(
        client,
        look(&format!("/v1/presence/{elsewhere}")).as_bytes(),
    );
    assert_eq!(owner.seen(client), ["200", "gone"]);
    owner.receive(first, &frame(8, &1000_u16.to_be_bytes()));
    let fourth = hand_over(&mut owner);
    assert_eq!(owner.seen(fourth), ["101", "init 0"]);
    assert_eq!(refused(&owner), [0, 0, 1, 0, 0]);
    assert_eq!(owner.shard.counters().connections, 2);
}

// ---- handshakes per second ----

/// P1, P12.
#[test]
fn a_token_over_the_rate_is_not_even_checked() {
    let limits = Limits {
        handshakes_per_second: Some(2),
        ..Limits::default()
    };
    // With two shards, each has half of the rate.
    for (shards, burst) in [(1, 4), (2, 2)] {
        let mut rig = Rig::new(|config| (config.shards, config.limits) = (shards, limits));
        let forged = "GET /v1/presence/w?token=forged HTTP/1.1\r\nHost: h\r\n\r\n";
        let answer = |rig: &mut Rig, request: &str| {
            let client = rig.accept(false);
            rig.receive(client, request.as_bytes());
            rig.seen(client).first().cloned().unwrap_or_default()
        };
        for _ in 0..burst {
            assert_eq!(answer(&mut rig, forged), "401");
        }
        let requests = [forged.to_owned(), head("w", None), look("/v1/workspaces/w")];
        for request in &requests {
            assert_eq!(answer(&mut rig, request), "503", "{request}");
        }
        // Requests that need no token do not count.
        let health = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
        assert_eq!(answer(&mut rig, health), "200");
        rig.sleep_until(1.0);
        for status in ["401", if shards == 1 { "401" } else { "503" }, "503"] {
            assert_eq!(answer(&mut rig, forged), status);
        }
        assert_eq!(refused(&rig)[3], if shards == 1 { 4 } else { 5 });
    }
}
