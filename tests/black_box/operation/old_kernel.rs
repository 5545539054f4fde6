//! The rings for older kernels: `--ring compat`, and the code path before 5.19, on which a pending
//! receive would hold a buffer, so that the server polls before each receive. On newer kernels,
//! only builds with debug assertions can use the latter.

use serde_json::json;

use crate::support::client::{Client, Op};
use crate::support::server::Setup;
use crate::support::stamp;

#[tokio::test]
async fn more_idle_clients_than_buffers_can_all_write() {
    for variable in [
        ("ETHERPLY_RING", "compat"),
        ("ETHERPLY_FAULT_OLD_KERNEL", "1"),
    ] {
        let setup = Setup::new().shards(1).env(variable.0, variable.1);
        let mut server = setup.start().await;
        if variable.0 == "ETHERPLY_RING" {
            assert!(server.log().contains("ring=compat"), "{}", server.log());
        }
        // A shard has 128 receive buffers.
        let mut clients = Vec::new();
        for _ in 0..300 {
            clients.push(Client::connect(&server, "room").await);
        }
        for number in 0..5 {
            let key = format!("k{number}");
            let op = Op::new(&key, json!("x".repeat(50_000)), stamp());
            clients[number * 60].send_op(&op).await;
            for (place, client) in clients.iter_mut().enumerate() {
                if place != number * 60 {
                    client.expect_op(&op).await;
                }
            }
        }
        server.stop().await;
    }
}
