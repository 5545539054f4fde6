//! A state of many megabytes, requested by many clients that do not read: it is held in memory only
//! once, delays no other client, and eventually reaches each of them in full.

use crate::support::client::Client;
use crate::support::eventually;
use crate::support::raw::{Raw, TEXT, handshake_head};
use crate::support::server::{Server, Setup};
use crate::support::token;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const VALUE_BYTES: usize = 300_000;
const KEYS: usize = 30;
const STATE_BYTES: u64 = (VALUE_BYTES * KEYS) as u64;
/// The number of clients that join, and the number of those that read over HTTP.
const CLIENTS: usize = 12;

/// Writes a large state and returns the client that wrote it.
async fn fill(server: &Server, workspace: &str) -> Client {
    let mut writer = Client::connect(server, workspace).await;
    let mut reader = Client::connect(server, workspace).await;
    for key in 0..KEYS {
        let value = json!(format!("{key}-{}", "x".repeat(VALUE_BYTES)));
        let op = writer.write(&format!("k{key}"), value).await;
        reader.expect_op(&op).await;
    }
    reader.close().await;
    writer
}

async fn ask(server: &Server, head: &str) -> Raw {
    let mut socket = Raw::connect(server.addr()).await;
    socket.send(head.as_bytes()).await;
    socket
}

fn http_read_head(workspace: &str) -> String {
    let token = token::valid();
    format!(
        "GET /v1/workspaces/{workspace} HTTP/1.1\r\n\
         Host: test\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
}

async fn figure(server: &Server, name: &str) -> u64 {
    let stats = server.get("/console/stats.json").await.json();
    stats["shards"][0][name].as_u64().expect("a numeric stat")
}

#[tokio::test]
async fn a_large_state_is_held_once_and_delays_nobody() {
    let server = Setup::new().shards(1).args(&["--console"]).start().await;
    let mut writer = fill(&server, "large").await;
    let (mut ann, mut ben) = (
        Client::connect(&server, "small").await,
        Client::connect(&server, "small").await,
    );
    let before_bytes = server.resident_bytes();
    let mut http_readers = Vec::new();
    let mut joiners = Vec::new();
    let join = handshake_head(&Server::sync_path("large"), "");
    let begin = Instant::now();
    for _ in 0..CLIENTS {
        http_readers.push(ask(&server, &http_read_head("large")).await);
        joiners.push(ask(&server, &join).await);
    }
    let mut longest = Duration::ZERO;
    for round in 0..50 {
        let asked = Instant::now();
        let op = ann.write("k", json!(round)).await;
        ben.expect_op(&op).await;
        longest = longest.max(asked.elapsed());
    }
    let members = CLIENTS as u64 + 3;
    eventually("all clients are members", async || {
        (figure(&server, "connections").await == members).then_some(())
    })
    .await;
    let grown_bytes = server.resident_bytes().saturating_sub(before_bytes);
    println!(
        "{} clients: {} MB more, another room's longest round trip {longest:?}, all within {:?}",
        2 * CLIENTS,
        grown_bytes / 1_000_000,
        begin.elapsed()
    );
    // The init message, the timestamps, and the remaining memory of the process for these clients.
    assert!(grown_bytes < 3 * STATE_BYTES, "{grown_bytes} bytes");
    let late = writer.write("late", json!(true)).await;
    let mut bodies = Vec::new();
    for mut http_reader in http_readers {
        let answer = http_reader.answer().await;
        assert_eq!(answer.status, 200);
        let (state, rest) = answer
            .body
            .split_once(r#","connections":"#)
            .expect("the answer has connections");
        assert!(rest.len() <= 4, "{rest}");
        bodies.push(state.to_owned());
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    let state: Value = serde_json::from_str(&format!("{}}}", bodies[0])).expect("the text is JSON");
    assert_eq!(state["seq"], KEYS);
    let mut inits = Vec::new();
    for mut joiner in joiners {
        assert_eq!(joiner.answer().await.status, 101);
        let init = joiner.frame_but_ping().await;
        assert_eq!(init.first_byte, TEXT);
        inits.push(init.payload);
        let op: Value = serde_json::from_slice(&joiner.frame_but_ping().await.payload)
            .expect("the message is JSON");
        assert_eq!(op["payload"]["timestamp"], late.timestamp);
    }
    assert!(inits.iter().all(|init| *init == inits[0]));
    let init: Value = serde_json::from_slice(&inits[0]).expect("the message is JSON");
    assert_eq!(init["data"], state["data"]);
    for key in 0..KEYS {
        let expected = format!("{key}-{}", "x".repeat(VALUE_BYTES));
        assert_eq!(init["data"][format!("k{key}")], expected);
    }
}
