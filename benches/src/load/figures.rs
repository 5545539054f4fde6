//! The figures of a load, and how they are computed from its outcome.

use super::run::Outcome;
use crate::figures::{Figure, Numbers};

pub const CPU_PER_DELIVERY: Figure = Figure {
    id: "cpu_us_per_delivery",
    name: "server CPU",
    unit: "µs/delivery",
    decimals: 3,
};
/// The busy time of the server's cores. It includes the kernel threads that deliver its packets
/// (`ksoftirqd`) and write and sync its log, whose time is not charged to any process.
pub const CORES_PER_DELIVERY: Figure = Figure {
    id: "cores_us_per_delivery",
    name: "server's cores",
    unit: "µs/delivery",
    decimals: 3,
};
pub const CPU_PER_OP: Figure = Figure {
    id: "cpu_us_per_op",
    name: "server CPU",
    unit: "µs/op",
    decimals: 2,
};
pub const DELIVERIES: Figure = Figure {
    id: "deliveries_per_s",
    name: "deliveries/s",
    unit: "",
    decimals: 0,
};
pub const OPS: Figure = Figure {
    id: "ops_per_s",
    name: "ops/s",
    unit: "",
    decimals: 0,
};
/// The number of version 2 `saved` messages per op: below 1 if one covers several ops.
pub const SAVED: Figure = Figure {
    id: "saved_per_op",
    name: "saved messages/op",
    unit: "",
    decimals: 2,
};
pub const OPS_PER_CPU: Figure = Figure {
    id: "ops_per_cpu_s",
    name: "ops/s of server CPU",
    unit: "",
    decimals: 0,
};
/// Context switches of the server's threads, voluntary and involuntary.
pub const SWITCHES_PER_OP: Figure = Figure {
    id: "context_switches_per_op",
    name: "context switches/op",
    unit: "",
    decimals: 2,
};
/// The CPU time of the kernel's workers for the server's rings (`iou-wrk-*`), which is part of that
/// of the server.
pub const WORKERS_PER_OP: Figure = Figure {
    id: "kernel_workers_us_per_op",
    name: "of it kernel workers",
    unit: "µs/op",
    decimals: 2,
};
pub const P50: Figure = Figure {
    id: "p50_us",
    name: "p50",
    unit: "µs",
    decimals: 0,
};
pub const P99: Figure = Figure {
    id: "p99_us",
    name: "p99",
    unit: "µs",
    decimals: 0,
};
pub const MAX: Figure = Figure {
    id: "max_us",
    name: "max",
    unit: "µs",
    decimals: 0,
};
pub const RESIDENT: Figure = Figure {
    id: "resident_mb",
    name: "resident",
    unit: "MB",
    decimals: 1,
};
/// The share of its core that the load generator used.
pub const OWN_SHARE: Figure = Figure {
    id: "load_generator_percent",
    name: "load generator",
    unit: "% of its core",
    decimals: 0,
};

/// All figures above, in the order of a table.
pub const ALL: [Figure; 14] = [
    DELIVERIES,
    OPS,
    P50,
    P99,
    MAX,
    CPU_PER_DELIVERY,
    CORES_PER_DELIVERY,
    CPU_PER_OP,
    OPS_PER_CPU,
    SWITCHES_PER_OP,
    WORKERS_PER_OP,
    SAVED,
    RESIDENT,
    OWN_SHARE,
];

/// Above this share, the load generator itself may limit the figures.
pub const OWN_SHARE_LIMIT_PERCENT: f64 = 90.0;

/// The id of the time that the load generator used for each delivery.
const OWN_NS_PER_DELIVERY: &str = "load_generator_ns_per_delivery";

/// Computes the figures, omitting those of the server's CPU time if it could not be read.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn numbers_of(outcome: &Outcome) -> Numbers {
    let latencies = &outcome.latencies_ns;
    let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let (deliveries, ops) = (outcome.deliveries as f64, outcome.ops as f64);
    let mut numbers = Numbers::from([
        (DELIVERIES.id, deliveries / outcome.seconds),
        (OPS.id, ops / outcome.seconds),
        (OWN_SHARE.id, outcome.own_share * 100.0),
        (
            OWN_NS_PER_DELIVERY,
            outcome.own_share * outcome.seconds * 1e9 / deliveries,
        ),
    ]);
    if outcome.saved_messages > 0 {
        numbers.insert(SAVED.id, outcome.saved_messages as f64 / ops);
    }
    if !latencies.is_empty() {
        numbers.insert(P50.id, us(latencies.value_at_quantile(0.5)));
        numbers.insert(P99.id, us(latencies.value_at_quantile(0.99)));
        numbers.insert(MAX.id, us(latencies.max()));
    }
    if let Some(server) = &outcome.server {
        let cpu_s = server.cpu_s;
        numbers.insert(CPU_PER_DELIVERY.id, cpu_s * 1e6 / deliveries);
        numbers.insert(CPU_PER_OP.id, cpu_s * 1e6 / ops);
        numbers.insert(OPS_PER_CPU.id, ops / cpu_s);
        numbers.insert(SWITCHES_PER_OP.id, server.context_switches as f64 / ops);
        numbers.insert(WORKERS_PER_OP.id, server.kernel_workers_s * 1e6 / ops);
    }
    numbers
}
