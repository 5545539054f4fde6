//! The limit on connections: silent connections are closed in favor of new ones, members never are.

use crate::support::client::Client;
use crate::support::raw::Raw;
use crate::support::server::{Server, Setup};
use crate::support::{eventually, eventually_in};
use serde_json::json;
use std::time::Duration;

/// A time limit that is shorter than the 10 s after which a silent connection is closed anyway.
const AT_ONCE: Duration = Duration::from_secs(7);

#[tokio::test]
async fn three_hundred_silent_connections_do_not_block_two_hundred_slots() {
    let server = Server::start_with(&["--max-connections", "200"]).await;
    let mut reader = Client::connect(&server, "room").await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(Raw::connect(server.addr()).await);
    }
    let mut members = Vec::new();
    for round in 0..20 {
        for path in ["/healthz", "/readyz"] {
            let status = server.get(path).await.status;
            assert_eq!(status, 200, "{path} in round {round}");
        }
        let mut member = Client::connect(&server, "room").await;
        let op = member.write("k", json!(round)).await;
        reader.expect_op(&op).await;
        members.push(member);
        // Others take the places of those that were closed.
        for _ in 0..5 {
            silent.push(Raw::connect(server.addr()).await);
        }
    }
    for member in &mut members {
        member.write("last", json!(0)).await;
    }
    assert!(
        server.open_sockets_count() < 300,
        "too many connections are open"
    );
}

/// P10.
#[tokio::test]
async fn the_oldest_silent_connection_is_shed_first_with_408() {
    let server = Setup::new()
        .shards(1)
        .args(&["--max-connections", "2"])
        .start()
        .await;
    let mut first = Raw::connect(server.addr()).await;
    // A partial head does not count as a request.
    first.send(b"GET /healthz HTTP/1.1\r\n").await;
    let mut second = Raw::connect(server.addr()).await;
    assert_eq!(server.get("/healthz").await.status, 200);
    let answer = first.answer().await;
    assert_eq!(answer.status, 408, "{answer:?}");
    first.expect_end().await;
    let answer = second.handshake(&Server::sync_path("room"), "").await;
    assert_eq!(answer.status, 101);
    let _member = Client::connect(&server, "room").await;
    // Both connections are now members, and members are never closed in favor of others.
    let answer = server.handshake(&Server::sync_path("room")).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn an_answered_connection_that_lingers_is_shed() {
    let server = Setup::new()
        .shards(1)
        .args(&["--max-connections", "1"])
        .start()
        .await;
    for path in ["/nowhere", "/client.mjs"] {
        let mut lingers = Raw::connect(server.addr()).await;
        lingers
            .send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .await;
        lingers.answer().await;
        let client = eventually_in(Duration::from_secs(1), "a client is admitted", async || {
            let path = Server::sync_path("room");
            Client::dial(server.addr(), &path).await.ok()
        })
        .await;
        client.close().await;
        lingers.expect_end().await;
    }
}

#[tokio::test]
async fn a_silent_connection_of_another_shard_is_shed() {
    let setup = Setup::new().shards(4).args(&["--max-connections", "1"]);
    let server = setup.start().await;
    for _ in 0..10 {
        let before = server.open_sockets_count();
        let _silent = Raw::connect(server.addr()).await;
        eventually("the connection is accepted", async || {
            (server.open_sockets_count() > before).then_some(())
        })
        .await;
        let client = eventually_in(AT_ONCE, "a client is admitted", async || {
            let path = Server::sync_path("room");
            Client::dial(server.addr(), &path).await.ok()
        })
        .await;
        client.close().await;
        eventually("the slot is free", async || {
            (server.open_sockets_count() <= before).then_some(())
        })
        .await;
    }
}
