//! The specification itself: each Gherkin scenario, the state machine, the error dictionary and the
//! empty states.

use crate::support::client::{Client, state_of};
use crate::support::raw::Raw;
use crate::support::server::{Server, Setup};
use crate::support::token::{self, OTHER_SECRET};
use serde_json::json;
use std::io::ErrorKind;
use std::path::Path;

// ---- Feature: Real-time Workspace Synchronization ----

#[tokio::test]
async fn scenario_client_connects_successfully() {
    let server = Server::start().await;
    let path = format!("/v1/sync/workspace-123?token={}", token::valid());
    let answer = server.handshake(&path).await;
    assert_eq!(answer.status, 101);

    let mut client = Client::connect_path(&server, &path).await;
    let mut other = Client::connect_path(&server, &path).await;
    client.write("alive", json!(true)).await;
    assert_eq!(
        other.next_op().await.key,
        "alive",
        "ops of a connected client are not broadcast"
    );
}

#[tokio::test]
async fn scenario_client_fails_authentication_without_a_token() {
    let server = Server::start().await;
    let mut socket = Raw::connect(server.addr()).await;
    let answer = socket.handshake("/v1/sync/workspace-123", "").await;
    assert_eq!(answer.status, 401);
    socket.expect_end().await;
}

#[tokio::test]
async fn scenario_client_fails_authentication_with_an_invalid_token() {
    let server = Server::start().await;
    let forged = token::signed(
        &json!({"alg": "HS256"}),
        &json!({"sub": "mallory"}),
        OTHER_SECRET,
    );
    for token in ["invalid", &forged] {
        let mut socket = Raw::connect(server.addr()).await;
        let answer = socket
            .handshake(&format!("/v1/sync/workspace-123?token={token}"), "")
            .await;
        assert_eq!(answer.status, 401, "token {token}");
        socket.expect_end().await;
    }
}

#[tokio::test]
async fn scenario_client_sends_operation_and_all_others_in_the_workspace_receive_it() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "workspace-123").await;
    let mut others = [
        Client::connect(&server, "workspace-123").await,
        Client::connect(&server, "workspace-123").await,
    ];
    let mut stranger = Client::connect(&server, "workspace-124").await;
    let mut neighbour = Client::connect(&server, "workspace-124").await;

    let op = sender.write("foo", json!("bar")).await;
    for other in &mut others {
        other.expect_op(&op).await;
    }
    stranger.expect_silence(&mut neighbour).await;
}

#[tokio::test]
async fn scenario_client_sends_operation_and_the_server_persists_it_to_the_aof_file() {
    let mut server = Server::start().await;
    let mut sender = Client::connect(&server, "workspace-123").await;
    let mut other = Client::connect(&server, "workspace-123").await;
    let op = sender
        .write("foo", json!("a value to look for in the file"))
        .await;
    other.expect_op(&op).await;

    server.kill9();
    assert!(some_aof_file_contains(
        server.data_dir(),
        b"a value to look for in the file"
    ));
    server.restart(2).await;
    let state = state_of(&server, "workspace-123").await;
    assert_eq!(
        json!(state),
        json!({"foo": "a value to look for in the file"})
    );
}

fn some_aof_file_contains(folder: &Path, text: &[u8]) -> bool {
    std::fs::read_dir(folder)
        .expect("the data directory can be read")
        .any(|entry| {
            let path = entry.expect("the data directory can be read").path();
            if path.is_dir() {
                return some_aof_file_contains(&path, text);
            }
            let is_aof = path.extension().is_some_and(|extension| extension == "aof");
            is_aof
                && std::fs::read(path)
                    .expect("the segment can be read")
                    .windows(text.len())
                    .any(|window| window == text)
        })
}

// ---- the state machine ----

#[tokio::test]
async fn state_machine_a_connected_client_is_synced_by_the_initial_state() {
    let server = Server::start().await;
    let mut first = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    let op = first.write("foo", json!({"deep": [1, null]})).await;
    witness.expect_op(&op).await;
    let second = Client::connect(&server, "room").await;
    assert_eq!(json!(second.init), json!({"foo": {"deep": [1, null]}}));
}

// ---- data contracts ----

#[tokio::test]
async fn data_contract_value_is_a_string_number_boolean_object_or_null() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for value in [
        json!("text"),
        json!(42),
        json!(4.5),
        json!(true),
        json!(false),
        json!({"a": {"b": 1}}),
        json!(null),
    ] {
        let op = sender.write("foo", value).await;
        other.expect_op(&op).await;
    }
}

#[tokio::test]
async fn data_contract_the_server_does_not_interpret_values() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for value in [
        json!(""),
        json!({"type": "op", "payload": {}}),
        json!("<script>"),
        json!({"": {"": ""}}),
    ] {
        let op = sender.write("foo", value).await;
        other.expect_op(&op).await;
    }
}

// ---- the error dictionary ----

#[tokio::test]
async fn error_401_unauthorized_for_a_missing_token_parameter() {
    let server = Server::start().await;
    let answer = server.handshake("/v1/sync/room").await;
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (401, &json!("Unauthorized"))
    );
}

#[tokio::test]
async fn error_401_unauthorized_for_an_invalid_signature() {
    let server = Server::start().await;
    let forged = token::signed(
        &json!({"alg": "HS256"}),
        &json!({"sub": "mallory"}),
        OTHER_SECRET,
    );
    let answer = server
        .handshake(&format!("/v1/sync/room?token={forged}"))
        .await;
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (401, &json!("Unauthorized"))
    );
}

// The two triggers of 500, a panic and a failing write of the AOF file, are in faults.rs.

#[tokio::test]
async fn error_connection_refused_when_the_server_is_not_running() {
    let mut server = Server::start().await;
    let addr = server.addr();
    server.stop().await;
    let error = tokio::net::TcpStream::connect(addr)
        .await
        .expect_err("a connection was accepted");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_server_starts_immediately_on_the_port_of_a_killed_one() {
    let mut server = Server::start().await;
    let port = server.addr().port().to_string();
    let setup = server.setup().clone().args(&["--port", &port]);
    for _ in 0..10 {
        server.kill9();
        server = setup.clone().start().await;
    }
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn error_address_already_in_use_when_the_port_is_occupied() {
    let server = Server::start().await;
    let port = server.addr().port();
    let second = Setup::new()
        .args(&["--port", &port.to_string()])
        .run()
        .await;
    let line = second.expect_refusal();
    assert!(
        line.contains(&format!("address already in use: 127.0.0.1:{port}")),
        "the line does not name the address: {line}"
    );
    assert_eq!(
        server.get("/healthz").await.status,
        200,
        "the first server stopped serving"
    );
}

// ---- empty states ----

#[tokio::test]
async fn empty_state_an_unknown_workspace_starts_as_an_empty_map() {
    let server = Server::start().await;
    let client = Client::connect(&server, "never seen before").await;
    assert_eq!(client.init_text, r#"{"type":"init","data":{}}"#);
}
