//! The log and its disk under a flood of overwrites: the log stays within its bound, and a server
//! whose disk is nearly full recovers.
//!
//! These tests measure the size of the folder and check the responses, but never how long anything
//! takes.

use crate::support::client::{Client, Op, op_text, state_of};
use crate::support::disk::{Ballast, Journal, MemoryDisk, Mount, may_mount};
use crate::support::eventually;
use crate::support::files::segments;
use crate::support::raw::{PING, PONG, Raw, TEXT, masked_frame};
use crate::support::server::{Server, Setup};
use crate::support::stamp;
use serde_json::{Map, Value, json};
use std::path::Path;

const VALUE_BYTES: usize = 8 * 1024;
/// The number of ops that are sent at once.
const BURST: u64 = 100;
const MIB: u64 = 1024 * 1024;

/// Returns the length of all segments, including those being written.
fn log_bytes(data_dir: &Path) -> u64 {
    let bytes = |path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    segments(data_dir).into_iter().map(bytes).sum()
}

/// A client that overwrites keys as fast as it can and reads all responses.
struct Flood {
    socket: Raw,
    keys_count: u64,
    ops_count: u64,
    /// The number of errors received.
    refused_count: u64,
}

impl Flood {
    async fn open(server: &Server, keys_count: u64) -> Flood {
        let socket = Raw::open(server.addr(), &Server::sync_path("flood")).await;
        Flood {
            socket,
            keys_count,
            ops_count: 0,
            refused_count: 0,
        }
    }

    /// Writes a burst. When this returns, the server has handled all of it.
    async fn burst(&mut self) {
        let mut bytes = Vec::new();
        for _ in 0..BURST {
            let key = format!("key-{}", self.ops_count % self.keys_count);
            let value = format!("{}-{}", self.ops_count, "x".repeat(VALUE_BYTES));
            let op = Op::new(&key, json!(value), stamp());
            bytes.extend(masked_frame(TEXT, op_text(&op).as_bytes()));
            self.ops_count += 1;
        }
        bytes.extend(masked_frame(PING, b"all"));
        self.socket.send(&bytes).await;
        loop {
            let frame = self.socket.frame_but_ping().await;
            match frame.first_byte {
                PONG => return,
                TEXT if frame.payload.starts_with(br#"{"type":"error""#) => {
                    let text = String::from_utf8_lossy(&frame.payload);
                    assert!(
                        text.contains("500") && text.contains("disk of the server is nearly full"),
                        "{text}"
                    );
                    self.refused_count += 1;
                }
                TEXT => {}
                other => panic!("{other:#x}: the connection stays open"),
            }
        }
    }
}

/// Returns one figure from `/metrics`, for the only shard.
async fn figure(server: &Server, name: &str) -> u64 {
    let page = server.get("/metrics").await.body;
    let line = page.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not exported"));
    let number = line.rsplit(' ').next().and_then(|text| text.parse().ok());
    number.expect("a number")
}

#[tokio::test]
async fn a_flood_of_overwrites_never_grows_the_log_beyond_its_bound() {
    let server = Setup::new().shards(1).start().await;
    let mut flood = Flood::open(&server, 40).await;
    // src/limits.rs: 2.75 times the live data and 24 MiB, an open segment, one that is being
    // written, and the data in flight.
    let live_bytes = 40 * VALUE_BYTES as u64;
    let bound = live_bytes * 3 + (24 + 2 + 4 + 8) * MIB;
    let (mut most, mut written) = (0, 0);
    let mut light = Client::connect(&server, "another").await;
    let mut witness = Client::connect(&server, "another").await;
    while written < 4 * bound {
        flood.burst().await;
        written += BURST * VALUE_BYTES as u64;
        most = most.max(log_bytes(server.data_dir()));
        let op = light.write("k", json!(written)).await;
        witness.expect_op(&op).await;
    }
    assert!(most <= bound, "{most} bytes exceed {bound}");
    assert_eq!(flood.refused_count, 0);
    assert!(figure(&server, "etherply_log_limit_bytes{").await <= bound);
    assert!(figure(&server, "etherply_log_bytes{").await > 0);
}

/// Writes ops that are known to be written, since another client received them, and records their
/// values.
async fn write_some(server: &Server, shown: &mut Map<String, Value>) {
    let mut writer = Client::connect(server, "room").await;
    let mut witness = Client::connect(server, "room").await;
    for number in 0..20 {
        let op = writer.write(&format!("k{number}"), json!(stamp())).await;
        witness.expect_op(&op).await;
        shown.insert(op.key, op.value);
    }
}

#[tokio::test]
async fn a_disk_filled_by_floods_empties_again_without_a_restart() {
    if !may_mount() {
        return;
    }
    let Some(disk) = MemoryDisk::ext4("48M", Journal::Yes) else {
        return;
    };
    let Some(mount) = Mount::disk(&disk) else {
        return;
    };
    let setup = Setup::new()
        .shards(1)
        .in_data_dir(&mount.path().join("data"));
    let mut server = setup.start().await;
    let mut shown = Map::new();
    write_some(&server, &mut shown).await;
    // 12 MiB are live, and on a larger disk the log could be five times as large.
    let mut flood = Flood::open(&server, 1500).await;
    for _ in 0..3 {
        for _ in 0..60 {
            flood.burst().await;
        }
        // The load has ended.
        server.until_ready_is(200).await;
        eventually("ops are accepted again", async || {
            (figure(&server, "etherply_disk_full{").await == 0).then_some(())
        })
        .await;
        write_some(&server, &mut shown).await;
    }
    assert_eq!(figure(&server, "etherply_shard_failures_total{").await, 0);
    assert_eq!(state_of(&server, "room").await, shown);
    let state = state_of(&server, "flood").await;
    server.stop().await;
    server.restart(1).await;
    assert_eq!(state_of(&server, "room").await, shown);
    assert_eq!(state_of(&server, "flood").await, state);
}

/// P40, P48, P49.
#[tokio::test]
async fn a_disk_filled_by_others_refuses_ops_and_everything_else_continues() {
    if !may_mount() {
        return;
    }
    let Some(disk) = Mount::tmpfs("16m") else {
        return;
    };
    let setup = Setup::new()
        .shards(1)
        .in_data_dir(&disk.path().join("data"));
    let server = setup.start().await;
    let mut shown = Map::new();
    write_some(&server, &mut shown).await;
    let mut writer = Client::connect(&server, "room").await;
    let ballast = Ballast::fill(disk.path());
    eventually("the server notices", async || {
        (figure(&server, "etherply_disk_full{").await == 1).then_some(())
    })
    .await;
    let op = writer.write("new", json!(1)).await;
    let text = writer.expect_error(500).await;
    assert!(text.contains("disk of the server is nearly full"), "{text}");
    // An older op is still corrected as usual.
    let old = Op::new("k0", json!("old"), 1);
    writer.send_op(&old).await;
    assert_eq!(Some(&writer.next_op().await.value), shown.get("k0"));
    assert_eq!(server.get("/readyz").await.status, 200);
    assert_eq!(state_of(&server, "room").await, shown);
    ballast.remove();
    eventually("ops are accepted again", async || {
        (figure(&server, "etherply_disk_full{").await == 0).then_some(())
    })
    .await;
    let mut witness = Client::connect(&server, "room").await;
    let again = writer.write(&op.key, json!(2)).await;
    witness.expect_op(&again).await;
    assert_eq!(figure(&server, "etherply_shard_failures_total{").await, 0);
}
