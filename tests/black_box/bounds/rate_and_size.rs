//! The limits that protect the server from its clients: each is reached, reported and lifted again,
//! and no other client is affected.

use crate::support::client::{Client, Event, Op, op_text, state_of};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, stamp};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio_tungstenite::tungstenite::Message;

/// Returns the number of refusals by the limit `name`, summed over all shards.
async fn refused(server: &Server, name: &str) -> u64 {
    let stats = server.get("/console/stats.json").await.json();
    let shards = stats["shards"].as_array().expect("shards is an array");
    let counts = shards.iter().map(|shard| shard["refused"][name].as_u64());
    counts.map(|count| count.expect("a numeric stat")).sum()
}

/// Expects an error with this code about this op and returns its message.
async fn expect_refusal(client: &mut Client, code: u16, op: &Op) -> String {
    let message = client.next().await;
    let payload = &message["payload"];
    assert_eq!(message["type"], "error", "{message}");
    assert_eq!(payload["code"], code, "{message}");
    assert_eq!(payload["key"], op.key.as_str(), "{message}");
    assert_eq!(payload["timestamp"], op.timestamp, "{message}");
    payload["message"]
        .as_str()
        .expect("the message is a string")
        .to_owned()
}

// ---- messages per second ----

/// Sends a malformed message, which is answered after everything before it, and returns the keys of
/// the ops that were refused.
async fn refused_keys(client: &mut Client) -> BTreeSet<String> {
    client.send_text("no message").await;
    let mut keys = BTreeSet::new();
    loop {
        let message = client.next().await;
        let payload = &message["payload"];
        let Value::String(key) = &payload["key"] else {
            assert!(payload["code"] == 400 || payload["code"] == 429);
            return keys;
        };
        assert_eq!(payload["code"], 429, "{message}");
        assert!(keys.insert(key.clone()), "{key} is refused more than once");
    }
}

/// P39, P48.
#[tokio::test]
async fn a_burst_over_the_rate_is_refused_per_op_and_may_be_resent() {
    let setup = Setup::new().env("ETHERPLY_MAX_OPS_PER_SECOND", "50");
    let server = setup.args(&["--console"]).start().await;
    let mut reader = Client::connect(&server, "room").await;
    let mut writer = Client::connect(&server, "room").await;
    let ops: Vec<Op> = (0..400)
        .map(|number| Op::new(&format!("k{number}"), json!(number), stamp()))
        .collect();
    for op in &ops {
        writer.send_op(op).await;
    }
    let keys = refused_keys(&mut writer).await;
    let (kept_out, taken): (Vec<&Op>, Vec<&Op>) = ops.iter().partition(|op| keys.contains(&op.key));
    assert!(
        !kept_out.is_empty(),
        "400 ops at once did not exceed the rate"
    );
    assert!(
        taken.len() >= 100,
        "a burst of two seconds was not accepted"
    );
    for op in taken {
        reader.expect_op(op).await;
    }
    eventually("a refused op is accepted", async || {
        writer.send_op(kept_out[0]).await;
        refused_keys(&mut writer).await.is_empty().then_some(())
    })
    .await;
    reader.expect_op(kept_out[0]).await;
    assert!(refused(&server, "ops_by_rate").await >= kept_out.len() as u64);
    assert_eq!(refused(&server, "closed_by_policy").await, 0);
}

/// P39, P78.
#[tokio::test]
async fn a_client_that_stays_over_the_rate_is_closed_with_1008_and_may_reconnect() {
    let server = Server::start_with(&["--max-ops-per-second=1", "--console"]).await;
    let mut other = Client::connect(&server, "room").await;
    let mut flooder = Client::connect(&server, "room").await;
    let op = Op::new("k", json!(1), stamp());
    for _ in 0..2000 {
        // The server may have closed the connection in the meantime.
        if !flooder.try_send(Message::text(op_text(&op))).await {
            break;
        }
    }
    let mut refused_count = 0;
    let reason = loop {
        match flooder.event().await {
            Event::Text(text) => {
                assert!(text.contains("\"code\":429"), "{text}");
                refused_count += 1;
            }
            Event::Close(code, reason) => {
                assert_eq!(code, 1008);
                break reason;
            }
            Event::Lost(error) => panic!("expected a close frame, got {error}"),
        }
    };
    assert_eq!(reason, "too many messages");
    assert!(
        (256..2000).contains(&refused_count),
        "{refused_count} ops were refused"
    );
    assert_eq!(refused(&server, "closed_by_policy").await, 1);
    // No other client was affected, and a new connection has its own rate limit.
    other.expect_op(&op).await;
    let mut back = Client::connect(&server, "room").await;
    let op = back.write("k", json!(2)).await;
    other.expect_op(&op).await;
}

// ---- the size of a workspace ----

/// P38, P48, P49.
#[tokio::test]
async fn an_op_that_makes_a_workspace_too_large_is_refused_with_the_current_value() {
    let mut server =
        Server::start_with(&["--max-workspace-bytes=1000", "--drain-ms=100", "--console"]).await;
    let mut reader = Client::connect(&server, "room").await;
    let mut writer = Client::connect(&server, "room").await;
    let held = writer.write("k", json!("x".repeat(800))).await;
    reader.expect_op(&held).await;
    // An op that would grow the value: the retained op is sent first, and is older than the refused
    // one.
    let grown = writer.write("k", json!("y".repeat(1000))).await;
    writer.expect_op(&held).await;
    let text = expect_refusal(&mut writer, 413, &grown).await;
    assert!(
        text.contains("1000 bytes") && text.contains("--max-workspace-bytes"),
        "{text}"
    );
    // A new key, for which no op is retained.
    let new = writer.write("j", json!("z".repeat(200))).await;
    expect_refusal(&mut writer, 413, &new).await;
    reader.expect_silence(&mut writer).await;
    // An op that shrinks the state is accepted and makes room.
    let small = writer.write("k", json!("x".repeat(500))).await;
    reader.expect_op(&small).await;
    let new = writer.write("j", json!("z".repeat(200))).await;
    reader.expect_op(&new).await;
    // Another workspace has its own limit.
    let mut elsewhere = Client::connect(&server, "hall").await;
    elsewhere.write("k", json!("x".repeat(800))).await;
    elsewhere.expect_no_answer().await;
    assert_eq!(refused(&server, "ops_by_workspace_bytes").await, 2);

    // Under a lower limit the whole state is retained, but it may only shrink.
    server.stop().await;
    let setup = server
        .setup()
        .clone()
        .env("ETHERPLY_MAX_WORKSPACE_BYTES", "100");
    let server = setup.without_args().start().await;
    let state = state_of(&server, "room").await;
    assert_eq!((&state["k"], &state["j"]), (&small.value, &new.value));
    let mut reader = Client::connect(&server, "room").await;
    let mut writer = Client::connect(&server, "room").await;
    let grown = writer.write("j", json!("z".repeat(201))).await;
    writer.expect_op(&new).await;
    expect_refusal(&mut writer, 413, &grown).await;
    for value in [json!("w".repeat(200)), json!(null)] {
        let op = writer.write("j", value).await;
        reader.expect_op(&op).await;
    }
}

// ---- connections per workspace ----

/// P12.
#[tokio::test]
async fn a_full_workspace_admits_nobody_until_a_client_leaves() {
    for shards in [1, 3] {
        let setup = Setup::new().shards(shards);
        let arguments = ["--max-connections-per-workspace=2", "--console"];
        let server = setup.args(&arguments).start().await;
        let first = Client::connect(&server, "room").await;
        let _second = Client::connect(&server, "room").await;
        for _ in 0..5 {
            let answer = server.handshake(&Server::sync_path("room")).await;
            assert_eq!(answer.status, 503);
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            let body = answer.json();
            assert_eq!(body["error"], "Service Unavailable", "{body}");
            assert!(
                body["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("workspace"))
            );
        }
        assert_eq!(refused(&server, "connections_by_workspace").await, 5);
        let _elsewhere = Client::connect(&server, "hall").await;
        first.close().await;
        eventually("there is space again", async || {
            let path = Server::sync_path("room");
            (server.handshake(&path).await.status == 101).then_some(())
        })
        .await;
    }
}

// ---- handshakes per second ----

/// P12.
#[tokio::test]
async fn handshakes_over_the_rate_are_refused_until_later() {
    let setup = Setup::new().shards(1);
    let arguments = ["--max-handshakes-per-second=5", "--console"];
    let server = setup.args(&arguments).start().await;
    let mut member = Client::connect(&server, "room").await;
    let path = Server::sync_path("room");
    let answer = eventually("a handshake is refused", async || {
        // Faster than five per second, so that the burst is used up.
        for _ in 0..20 {
            let answer = server.handshake(&path).await;
            if answer.status != 101 {
                return Some(answer);
            }
        }
        None
    })
    .await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert_eq!(server.get("/healthz").await.status, 200);
    // Members are not affected, and later handshakes are within the rate again.
    member.write("k", json!(1)).await;
    member.expect_no_answer().await;
    eventually("a handshake is accepted again", async || {
        (server.handshake(&path).await.status == 101).then_some(())
    })
    .await;
    assert!(refused(&server, "handshakes_by_rate").await >= 1);
}
