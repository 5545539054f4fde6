//! Compaction from an operator's point of view: disk usage stays bounded, the state stays complete,
//! and a kill at any moment does no harm.

use crate::support::client::{Client, state_of};
use crate::support::eventually;
use crate::support::files::segments;
use crate::support::server::{Server, Setup};
use serde_json::{Map, Value, json};
use std::path::Path;

const KEYS_COUNT: u64 = 40;
const VALUE_BYTES: usize = 32 * 1024;
/// The number of ops in a round of overwrites, whose data far exceeds the log's size bound.
const OPS_COUNT: u64 = 1200;
const LIVE_BYTES: u64 = KEYS_COUNT * VALUE_BYTES as u64;
/// The size that a small log may have regardless of how little of it is live (src/limits.rs): for
/// each shard, the amount that is not worth a compaction, the open segment, and another one that
/// was closed in the meantime.
const FLOOR_BYTES: u64 = (4 + 2 + 2) * 1024 * 1024;

fn disk_bytes(data_dir: &Path) -> u64 {
    let bytes = |path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    segments(data_dir).into_iter().map(bytes).sum()
}

/// Overwrites key after key and records the newest value of each that another client received.
async fn overwrite(server: &Server, shown: &mut Map<String, Value>, ops_count: u64) {
    let mut writer = Client::connect(server, "room").await;
    let mut reader = Client::connect(server, "room").await;
    for number in 0..ops_count {
        let key = format!("key-{}", number % KEYS_COUNT);
        let value = json!(format!("{number}-{}", "x".repeat(VALUE_BYTES)));
        let op = writer.write(&key, value.clone()).await;
        reader.expect_op(&op).await;
        shown.insert(key, value);
    }
}

#[tokio::test]
async fn a_log_of_overwrites_stays_small_and_intact() {
    let mut server = Setup::new().shards(1).start().await;
    let mut shown = Map::new();
    let bound = LIVE_BYTES * 5 / 2 + FLOOR_BYTES;
    assert!(
        OPS_COUNT * VALUE_BYTES as u64 > 2 * bound,
        "the load is too small"
    );
    for _ in 0..3 {
        overwrite(&server, &mut shown, OPS_COUNT).await;
        // The speed depends on the machine, but the log must shrink in the end.
        eventually("the log is small", async || {
            (disk_bytes(server.data_dir()) <= bound).then_some(())
        })
        .await;
    }
    let line = server.log_line(&["compacted the log", "bytes_freed"]).await;
    assert!(!line.contains("bytes_freed=0"), "{line}");
    assert_eq!(state_of(&server, "room").await, shown);
    for shards in [1, 3] {
        server.stop().await;
        server.restart(shards).await;
        assert_eq!(state_of(&server, "room").await, shown);
    }
}

#[tokio::test]
async fn a_kill_during_compaction_loses_nothing_and_leaves_nothing_behind() {
    let mut server = Setup::new().shards(1).start().await;
    let mut shown = Map::new();
    let mut compactions_begun = 0;
    for round in 0..8 {
        // A compaction becomes due somewhere in here, a little later in each round.
        overwrite(&server, &mut shown, 250 + 13 * round).await;
        server.kill9();
        compactions_begun += server.log().matches("compacting the log").count();
        server.restart(1).await;
        assert_eq!(state_of(&server, "room").await, shown, "round {round}");
        // A compaction or a segment that this start begins right away has a temporary name at
        // first.
        eventually("only segments are left", async || {
            let names = std::fs::read_dir(server.data_dir().join("shard-00"))
                .expect("the folder can be read");
            let mut names = names.flatten().map(|entry| entry.file_name());
            let is_segment = |name: std::ffi::OsString| name.to_string_lossy().ends_with(".aof");
            names.all(is_segment).then_some(())
        })
        .await;
    }
    assert!(compactions_begun > 0, "no compaction began before a kill");
}

#[tokio::test]
async fn a_stop_interrupts_a_compaction_and_leaves_nothing_half_done() {
    let mut server = Setup::new().shards(1).start().await;
    let mut shown = Map::new();
    for _ in 0..2 {
        overwrite(&server, &mut shown, 400).await;
        eventually("a compaction begins", async || {
            server.log().contains("compacting the log").then_some(())
        })
        .await;
        server.stop().await;
        let names =
            std::fs::read_dir(server.data_dir().join("shard-00")).expect("the folder can be read");
        for name in names.flatten().map(|entry| entry.file_name()) {
            assert!(name.to_string_lossy().ends_with(".aof"), "{name:?}");
        }
        server.restart(1).await;
        assert_eq!(state_of(&server, "room").await, shown);
    }
}
