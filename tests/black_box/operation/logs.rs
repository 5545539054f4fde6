//! The log at `debug` and `trace`, and the format of its JSON lines.

use crate::support::client::Client;
use crate::support::server::{Server, Setup};
use crate::support::{PATIENCE, token};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// Returns the lines of a JSON log that have this message.
fn lines_with(log: &str, message: &str) -> Vec<Value> {
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"));
    lines
        .filter(|line: &Value| line["message"] == message)
        .collect()
}

async fn server_at(level: &str) -> Server {
    Server::start_with(&["--log-level", level, "--log-format", "json"]).await
}

async fn member(server: &Server, workspace: &str, subject: &str) -> Client {
    let token = token::signed(
        &json!({"alg": "HS256"}),
        &json!({"sub": subject}),
        token::SECRET,
    );
    Client::connect_path(server, &format!("/v1/sync/{workspace}?token={token}")).await
}

#[tokio::test]
async fn a_json_line_has_its_message_and_fields_at_the_top_level() {
    let mut server = server_at("info").await;
    server.stop().await;
    let log = server.log();
    let lines = lines_with(&log, "listening");
    let [line] = &lines[..] else {
        panic!("expected one line: {log}");
    };
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["shards"], 2);
    assert_eq!(line["address"], server.addr().to_string());
    assert!(
        line["timestamp"].is_string() && line["target"].is_string(),
        "{line}"
    );
    assert!(line.get("fields").is_none(), "{line}");
}

#[tokio::test]
async fn at_debug_level_the_start_and_end_of_a_connection_are_logged() {
    let mut server = server_at("debug").await;
    let mut ann = member(&server, "room", "ann").await;
    let mut bob = member(&server, "room", "bob\u{1b}[31m\n").await;
    for number in 0..3 {
        let op = ann.write("k", json!(number)).await;
        bob.expect_op(&op).await;
    }
    ann.close().await;
    server.log_line(&["client disconnected", "ann"]).await;
    bob.send_text("x").await;
    bob.expect_error(400).await;
    bob.send(Message::Binary(b"not text".to_vec().into())).await;
    assert_eq!(bob.close_code().await, 1003);
    drop(bob);
    server.log_line(&["client disconnected", "bob"]).await;
    server.stop().await;
    let log = server.log();

    let starts = lines_with(&log, "client connected");
    assert_eq!(starts.len(), 2, "{log}");
    assert_eq!(starts[0]["sub"], "ann");
    assert_eq!(
        starts[1]["sub"], "bob\u{1b}[31m\n",
        "the field is not escaped"
    );
    let ends = lines_with(&log, "client disconnected");
    assert_eq!(ends.len(), 2, "{log}");
    for (start, end) in starts.iter().zip(&ends) {
        for field in ["shard", "connection", "workspace", "sub"] {
            assert_eq!(start[field], end[field], "{field}");
            assert!(!start[field].is_null(), "{field} in {start}");
        }
        assert_eq!(start["workspace"], "room");
        assert!(
            start["peer"]
                .as_str()
                .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
        );
        assert!(end["duration_ms"].is_u64(), "{end}");
    }
    let [ann, bob] = &ends[..] else {
        unreachable!()
    };
    assert_eq!(
        (&ann["code"], &ann["closed_by"]),
        (&json!(1005), &json!("client"))
    );
    assert_eq!(ann["ops"], 3);
    assert_eq!(
        (&bob["code"], &bob["closed_by"]),
        (&json!(1003), &json!("server"))
    );
    assert_eq!(bob["reason"], "messages are text frames");
    assert_eq!(bob["ops"], 0);
    // Three ops of some 60 bytes each, plus a head; for the other client, the ops, 101 and init.
    assert!(ann["bytes_received"].as_u64() > Some(180), "{ann}");
    assert!(bob["bytes_sent"].as_u64() > Some(180), "{bob}");
}

#[tokio::test]
async fn at_debug_level_a_request_is_logged_with_its_answer() {
    let mut server = server_at("debug").await;
    assert_eq!(server.handshake("/v1/sync/room?token=x").await.status, 401);
    assert_eq!(server.get("/healthz").await.status, 200);
    server.log_line(&["\"status\":401"]).await;
    server.log_line(&["\"status\":200"]).await;
    server.stop().await;
    let log = server.log();
    let lines = lines_with(&log, "request answered");
    let refused = lines.iter().find(|line| line["status"] == 401);
    let refused = refused.unwrap_or_else(|| panic!("{log}"));
    assert_eq!(refused["reason"], "the token is malformed");
    assert!(!log.contains("token=x"), "{log}");
}

#[tokio::test]
async fn lost_connections_and_a_stop_log_their_ends() {
    let mut server = server_at("debug").await;
    let lost = member(&server, "room", "lost").await;
    let stopped = member(&server, "room", "stopped").await;
    drop(lost);
    server.log_line(&["client disconnected", "\"lost\""]).await;
    server.terminate();
    drop(stopped);
    assert_eq!(server.exit_code_within(PATIENCE).await, Some(0));
    let ends = lines_with(&server.log(), "client disconnected");
    let codes: Vec<u64> = ends.iter().filter_map(|end| end["code"].as_u64()).collect();
    assert_eq!(codes[0], 1006, "{ends:?}");
    assert!([1001, 1006].contains(&codes[1]), "{ends:?}");
}

#[tokio::test]
async fn at_trace_level_a_batch_is_logged() {
    for durability in ["always", "interval", "none"] {
        let setup = Setup::new().shards(1).args(&["--durability", durability]);
        let setup = setup.args(&["--log-level", "trace", "--log-format", "json"]);
        let mut server = setup.start().await;
        let mut client = Client::connect(&server, "room").await;
        let mut other = Client::connect(&server, "room").await;
        for number in 0..5 {
            let op = client.write("k", json!(number)).await;
            other.expect_op(&op).await;
        }
        client.close().await;
        other.close().await;
        server.stop().await;
        let log = server.log();
        let batches = lines_with(&log, "batch written");
        let ops: u64 = batches
            .iter()
            .filter_map(|batch| batch["ops"].as_u64())
            .sum();
        assert_eq!(ops, 5, "{durability}: {log}");
        for batch in batches.iter().filter(|batch| batch["ops"] != 0) {
            assert!(batch["bytes"].as_u64() > Some(40), "{batch}");
            assert!(batch["took_us"].is_u64() && batch["shard"] == 0, "{batch}");
        }
    }
}

#[tokio::test]
async fn at_info_level_clients_are_not_logged() {
    let mut server = server_at("info").await;
    let mut client = Client::connect(&server, "room").await;
    client.write("k", json!(1)).await;
    client.close().await;
    server.get("/healthz").await;
    server.stop().await;
    let log = server.log();
    assert!(
        !log.contains("client") && !log.contains("batch written"),
        "{log}"
    );
}
