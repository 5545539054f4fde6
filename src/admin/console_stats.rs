//! The statistics that the console plots, as JSON.

use serde::Serialize;

use crate::status::stats::ShardStats;

/// The statistics of one shard.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct ShardFigures {
    ops: u64,
    deliveries: u64,
    connections: u64,
    workspaces: u64,
    refused: RefusedFigures,
    sync_count: u64,
    sync_us_p50: u32,
    sync_us_p99: u32,
}

/// The refusals by one shard, counted by cause.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct RefusedFigures {
    ops_by_rate: u64,
    ops_by_workspace_bytes: u64,
    connections_by_workspace: u64,
    handshakes_by_rate: u64,
    snapshot_bytes: u64,
    closed_by_policy: u64,
}

#[derive(Serialize)]
struct ConsoleStats {
    uptime_us: u64,
    shards: Vec<ShardFigures>,
}

/// Returns the statistics of all shards as JSON.
pub(super) fn to_json(uptime_us: u64, shards: &[ShardStats]) -> Vec<u8> {
    let stats = ConsoleStats {
        uptime_us,
        shards: shards.iter().map(figures).collect(),
    };
    serde_json::to_vec(&stats).expect("numbers can always be serialized")
}

fn figures(stats: &ShardStats) -> ShardFigures {
    let counters = stats.read(0).counters;
    let syncs = stats.sync_percentiles();
    ShardFigures {
        ops: counters.ops,
        deliveries: counters.deliveries,
        connections: counters.connections,
        workspaces: counters.workspaces,
        refused: RefusedFigures {
            ops_by_rate: counters.refused_rate,
            ops_by_workspace_bytes: counters.refused_workspace_bytes,
            connections_by_workspace: counters.refused_members,
            handshakes_by_rate: counters.refused_handshakes,
            snapshot_bytes: counters.refused_snapshot_bytes,
            closed_by_policy: counters.closes.of(1008),
        },
        sync_count: syncs.count,
        sync_us_p50: syncs.p50_us,
        sync_us_p99: syncs.p99_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::shard::counters::Counters;

    #[test]
    fn console_stats_match_the_counters() {
        let stats = ShardStats::default();
        stats.publish(&Counters {
            ops: 1,
            deliveries: 2,
            connections: 3,
            workspaces: 4,
            refused_rate: 5,
            refused_workspace_bytes: 6,
            refused_members: 7,
            refused_handshakes: 8,
            refused_snapshot_bytes: 9,
            ..Counters::default()
        });
        stats.synced(u64::from(u32::MAX) + 1);
        let json = String::from_utf8(to_json(9, &[stats])).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"uptime_us":9,"shards":[{"ops":1,"deliveries":2,"connections":3,"#,
                r#""workspaces":4,"refused":{"ops_by_rate":5,"ops_by_workspace_bytes":6,"#,
                r#""connections_by_workspace":7,"handshakes_by_rate":8,"snapshot_bytes":9,"#,
                r#""closed_by_policy":0},"sync_count":1,"sync_us_p50":4294967295,"#,
                r#""sync_us_p99":4294967295}]}"#
            )
        );
    }
}
