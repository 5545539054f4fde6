//! A start whose log takes long to read: the server's responses in the meantime, its progress
//! reports, and stopping it.
//!
//! Builds with debug assertions pause after each segment until a file exists, so the log can be
//! short.

use serde_json::{Map, Value, json};
use std::fs;
use std::path::PathBuf;

use crate::support::client::{Client, Op, state_of};
use crate::support::files::{append_to_log, segments};
use crate::support::raw::{Raw, TEXT, handshake_head};
use crate::support::server::{Server, Setup};
use crate::support::{PATIENCE, eventually, stamp, token};

/// Returns the path of the file that such a server waits for.
fn gate(setup: &Setup) -> PathBuf {
    setup.data_dir().with_extension("gate")
}

async fn write_some(server: &Server, round: u32, state: &mut Map<String, Value>) {
    let mut writer = Client::connect(server, "room").await;
    let mut witness = Client::connect(server, "room").await;
    for number in 0..20 {
        let key = format!("{round} {number}");
        let op = Op::new(&key, json!("x".repeat(500)), stamp());
        writer.send_op(&op).await;
        witness.expect_op(&op).await;
        state.insert(op.key, op.value);
    }
}

/// Starts a server that pauses after the first segment. Returns it with the percentage of the log
/// that it has read and the state in the log.
async fn half_way() -> (Server, u64, Map<String, Value>) {
    let mut state = Map::new();
    let mut server = Setup::new().shards(1).start().await;
    for round in 0..3 {
        write_some(&server, round, &mut state).await;
        server.stop().await;
        if round < 2 {
            server.restart(1).await;
        }
    }
    let files = segments(server.data_dir()).into_iter();
    // Without the zeros that they are preallocated with.
    let files = files.inspect(|path| append_to_log(path, &[]));
    let bytes: Vec<u64> = files
        .map(|path| path.metadata().expect("the segment exists").len())
        .collect();
    let percent = bytes[0] * 100 / bytes.iter().sum::<u64>();
    assert!((20..50).contains(&percent), "a third of {bytes:?}");
    let setup = server.setup().clone();
    let path = gate(&setup).display().to_string();
    let held = setup.env("ETHERPLY_FAULT_HOLD_RECOVERY", &path);
    (held.start_reading().await, percent, state)
}

/// Opens a connection and sends this request head on it.
async fn ask(server: &Server, head: &str) -> Raw {
    let mut raw = Raw::connect(server.addr()).await;
    raw.send(head.as_bytes()).await;
    raw
}

async fn until_it_reads(server: &Server, percent: u64) {
    let wanted = json!({"status": format!("the log is being read: {percent}%")});
    eventually(&format!("/readyz reports {wanted}"), async || {
        let answer = server.get("/readyz").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        (answer.json() == wanted).then_some(())
    })
    .await;
}

/// P14, P91.
#[tokio::test]
async fn the_server_answers_and_reports_progress_while_the_log_is_read() {
    let (mut server, percent, state) = half_way().await;
    until_it_reads(&server, percent).await;
    assert_eq!(server.get("/healthz").await.status, 200);
    assert_eq!(server.handshake("/v1/sync/room").await.status, 401);

    // The progress is logged repeatedly, not just once.
    let line = format!("reading the log: {percent}%");
    eventually("a second progress line is logged", async || {
        (server.log().matches(&line).count() > 1).then_some(())
    })
    .await;

    // Requests that need the state wait for it.
    let mut waiting = Vec::new();
    for path in ["room", "hall"].map(Server::sync_path) {
        waiting.push(ask(&server, &handshake_head(&path, "")).await);
    }
    let token = token::valid();
    let mut http_read = ask(
        &server,
        &format!("GET /v1/workspaces/room?token={token} HTTP/1.1\r\nHost: test\r\n\r\n"),
    )
    .await;
    // The requests below came later, so all of the above have been read once these are answered.
    for _ in 0..10 {
        assert_eq!(server.get("/healthz").await.status, 200);
    }
    assert_eq!(server.get("/readyz").await.status, 503);

    fs::write(gate(server.setup()), "").expect("the folder can be written");
    for raw in &mut waiting {
        assert_eq!(raw.answer().await.status, 101);
        assert_eq!(raw.frame().await.first_byte, TEXT);
    }
    let answer = http_read.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["data"], Value::Object(state.clone()));
    server.until_it_listens().await;
    server.until_ready_is(200).await;
    server.log_line(&["read the log", "ops=60"]).await;
    assert_eq!(state_of(&server, "room").await, state);
    server.stop().await;
}

#[tokio::test]
async fn the_server_can_be_stopped_while_the_log_is_read() {
    let (mut server, percent, state) = half_way().await;
    until_it_reads(&server, percent).await;
    let mut waits = ask(&server, &handshake_head(&Server::sync_path("room"), "")).await;
    for _ in 0..10 {
        assert_eq!(server.get("/healthz").await.status, 200);
    }
    let before = segments(server.data_dir());
    server.terminate();
    let answer = waits.answer().await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("5"));
    drop(waits);
    assert_eq!(server.exit_code_within(PATIENCE).await, Some(0));
    assert!(
        server.log().contains("stopped while reading the log"),
        "{}",
        server.log()
    );
    assert_eq!(segments(server.data_dir()), before, "a segment was created");

    fs::write(gate(server.setup()), "").expect("the folder can be written");
    server.restart(2).await;
    assert_eq!(state_of(&server, "room").await, state);
    server.stop().await;
}

/// P14.
#[tokio::test]
async fn clients_that_connect_as_soon_as_the_port_is_open_are_served() {
    for start in 0..20 {
        let (mut server, mut raw) = Setup::new().start_and_connect().await;
        let answer = raw.handshake(&Server::sync_path("room"), "").await;
        assert_eq!(answer.status, 101, "start {start}: {answer:?}");
        assert_eq!(raw.frame().await.payload, br#"{"type":"init","data":{}}"#);
        drop(raw);
        server.until_it_listens().await;
        server.kill9();
    }
}
