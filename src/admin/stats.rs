//! Figures of the shards, each written by its own shard alone and read by whoever shows them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::Serialize;

use crate::core::contract::{Counters, Refused};

/// How many fdatasyncs are remembered: those of the last seconds, of a busy shard.
const SYNCS_COUNT: usize = 256;

/// The figures of a shard. No figure depends on another: each is read as it stands.
#[derive(Debug)]
pub struct ShardStats {
    ops: AtomicU64,
    deliveries: AtomicU64,
    connections: AtomicU64,
    workspaces: AtomicU64,
    refused: RefusedStats,
    sync_count: AtomicU64,
    /// How long the last ones took, in turn.
    syncs_us: [AtomicU32; SYNCS_COUNT],
}

/// What the limits of a shard kept out: [`Refused`], as its shard writes it.
#[derive(Debug, Default)]
struct RefusedStats {
    ops_by_rate: AtomicU64,
    ops_by_workspace_bytes: AtomicU64,
    connections_by_workspace: AtomicU64,
    handshakes_by_rate: AtomicU64,
    closed_by_policy: AtomicU64,
}

impl RefusedStats {
    fn publish(&self, refused: Refused) {
        self.ops_by_rate
            .store(refused.ops_by_rate, Ordering::Relaxed);
        self.ops_by_workspace_bytes
            .store(refused.ops_by_workspace_bytes, Ordering::Relaxed);
        self.connections_by_workspace
            .store(refused.connections_by_workspace, Ordering::Relaxed);
        self.handshakes_by_rate
            .store(refused.handshakes_by_rate, Ordering::Relaxed);
        self.closed_by_policy
            .store(refused.closed_by_policy, Ordering::Relaxed);
    }

    fn read(&self) -> Refused {
        Refused {
            ops_by_rate: self.ops_by_rate.load(Ordering::Relaxed),
            ops_by_workspace_bytes: self.ops_by_workspace_bytes.load(Ordering::Relaxed),
            connections_by_workspace: self.connections_by_workspace.load(Ordering::Relaxed),
            handshakes_by_rate: self.handshakes_by_rate.load(Ordering::Relaxed),
            closed_by_policy: self.closed_by_policy.load(Ordering::Relaxed),
        }
    }
}

impl Default for ShardStats {
    fn default() -> Self {
        Self {
            ops: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            workspaces: AtomicU64::new(0),
            refused: RefusedStats::default(),
            sync_count: AtomicU64::new(0),
            syncs_us: [const { AtomicU32::new(0) }; SYNCS_COUNT],
        }
    }
}

impl ShardStats {
    /// Tells what the shard has done.
    pub fn publish(&self, counters: Counters) {
        self.ops.store(counters.ops, Ordering::Relaxed);
        self.deliveries
            .store(counters.deliveries, Ordering::Relaxed);
        self.connections
            .store(counters.connections, Ordering::Relaxed);
        self.workspaces
            .store(counters.workspaces, Ordering::Relaxed);
        self.refused.publish(counters.refused);
    }

    /// Tells how long an fdatasync took.
    pub fn synced(&self, took_us: u64) {
        // Only its shard counts here.
        let count = self.sync_count.load(Ordering::Relaxed);
        let place = usize::try_from(count % SYNCS_COUNT as u64).expect("a small number");
        let took_us = u32::try_from(took_us).unwrap_or(u32::MAX);
        self.syncs_us[place].store(took_us, Ordering::Relaxed);
        self.sync_count.store(count + 1, Ordering::Relaxed);
    }

    /// What its limits kept out.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.refused.read()
    }

    fn figures(&self) -> Figures {
        let sync_count = self.sync_count.load(Ordering::Relaxed);
        let known = usize::try_from(sync_count).map_or(SYNCS_COUNT, |n| n.min(SYNCS_COUNT));
        let mut syncs_us: Vec<u32> = self.syncs_us[..known]
            .iter()
            .map(|took_us| took_us.load(Ordering::Relaxed))
            .collect();
        syncs_us.sort_unstable();
        let percentile = |percent: usize| {
            let rank = (known * percent).div_ceil(100).max(1) - 1;
            syncs_us.get(rank).copied().unwrap_or(0)
        };
        Figures {
            ops: self.ops.load(Ordering::Relaxed),
            deliveries: self.deliveries.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            workspaces: self.workspaces.load(Ordering::Relaxed),
            refused: self.refused(),
            sync_count,
            sync_us_p50: percentile(50),
            sync_us_p99: percentile(99),
        }
    }
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Figures {
    ops: u64,
    deliveries: u64,
    connections: u64,
    workspaces: u64,
    refused: Refused,
    sync_count: u64,
    sync_us_p50: u32,
    sync_us_p99: u32,
}

#[derive(Serialize)]
struct Stats {
    uptime_us: u64,
    shards: Vec<Figures>,
}

/// The figures of all shards: what the console plots.
pub(super) fn to_json(uptime_us: u64, shards: &[ShardStats]) -> Vec<u8> {
    let stats = Stats {
        uptime_us,
        shards: shards.iter().map(ShardStats::figures).collect(),
    };
    serde_json::to_vec(&stats).expect("numbers always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_last_fdatasyncs() {
        for (count, p50, p99) in [
            (0, 0, 0),
            (1, 1, 1),
            (2, 1, 2),
            (100, 50, 99),
            (1000, 872, 998),
        ] {
            let stats = ShardStats::default();
            for took_us in 1..=count {
                stats.synced(took_us);
            }
            let figures = stats.figures();
            assert_eq!(
                (figures.sync_count, figures.sync_us_p50, figures.sync_us_p99),
                (count, p50, p99)
            );
        }
    }

    #[test]
    fn the_figures_are_the_counters() {
        let stats = ShardStats::default();
        stats.publish(Counters {
            ops: 1,
            deliveries: 2,
            connections: 3,
            workspaces: 4,
            refused: Refused {
                ops_by_rate: 5,
                ops_by_workspace_bytes: 6,
                connections_by_workspace: 7,
                handshakes_by_rate: 8,
                closed_by_policy: 9,
            },
        });
        stats.synced(u64::MAX);
        let json = String::from_utf8(to_json(9, &[stats])).unwrap();
        assert_eq!(
            json,
            r#"{"uptime_us":9,"shards":[{"ops":1,"deliveries":2,"connections":3,"workspaces":4,"refused":{"ops_by_rate":5,"ops_by_workspace_bytes":6,"connections_by_workspace":7,"handshakes_by_rate":8,"closed_by_policy":9},"sync_count":1,"sync_us_p50":4294967295,"sync_us_p99":4294967295}]}"#
        );
    }
}
