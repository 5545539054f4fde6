//! What the scenarios share that put a load on a server and count deliveries.

use crate::contestant::{Contestant, Server};
use crate::house::{House, LATE};
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::pace::Pace;
use etherply_bench::load::{self, Outcome, Plan};

pub const CPU_PER_DELIVERY: Figure = Figure {
    id: "cpu_us_per_delivery",
    name: "server CPU",
    unit: "µs/delivery",
    decimals: 3,
};
/// What the cores of the server were busy, with whatever: the kernel's threads that deliver packets for it (`ksoftirqd`), write its log
/// and sync it count here, and nowhere in the process.
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
pub const OPS_PER_CPU: Figure = Figure {
    id: "ops_per_cpu_s",
    name: "ops/s of server CPU",
    unit: "",
    decimals: 0,
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

/// What others used of the cores of the server and of the load, in percent of one core.
pub const OTHERS_PERCENT: &str = "other_work_percent";

/// The shape of a load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub title: &'static str,
    pub rooms: u32,
    /// In each room, beside its one sender.
    pub receivers: u32,
    pub pace: Pace,
}

/// Starts a server, puts it under the load, and gives all the figures above.
pub fn measure(shape: &Shape, contestant: &Contestant, house: &House) -> Result<Numbers, String> {
    let server = contestant.start(house).map_err(|error| error.to_string())?;
    measure_server(shape, contestant, &server, house)
}

/// The same with a server that runs, in whose rooms nothing was said yet.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn measure_server(
    shape: &Shape,
    contestant: &Contestant,
    server: &Server,
    house: &House,
) -> Result<Numbers, String> {
    let plan = plan(shape, contestant, house);
    let (all, cores) = (house.cores.all(), &house.cores.server);
    let mut busy_s = Vec::new();
    let outcome = load::run(&server.door, &plan, &mut || {
        busy_s.push((all.busy_s(), cores.busy_s()));
        server.cpu_s()
    });
    let outcome = outcome.map_err(|failure| server.blamed(failure))?;
    let mut numbers = numbers_of(&outcome);
    if let (Some(server_s), [begin, .., end]) = (outcome.server_cpu_s, &busy_s[..]) {
        let own_s = outcome.own_share * outcome.seconds;
        let others_s = (end.0 - begin.0 - server_s - own_s).max(0.0);
        numbers.insert(OTHERS_PERCENT, others_s * 100.0 / outcome.seconds);
        if !house.cores.overlap() {
            let (cores_s, deliveries) = (end.1 - begin.1, outcome.deliveries as f64);
            numbers.insert(CORES_PER_DELIVERY.id, cores_s * 1e6 / deliveries);
        }
    }
    if let Some(bytes) = server.resident_bytes() {
        numbers.insert(RESIDENT.id, bytes / 1e6);
    }
    Ok(numbers)
}

pub fn plan(shape: &Shape, contestant: &Contestant, house: &House) -> Plan {
    Plan {
        rooms: shape.rooms,
        receivers: shape.receivers,
        pace: shape.pace,
        order: contestant.order(),
        has_state: contestant.has_state(),
        warm_up: house.warm_up,
        measured: house.measured,
        late: LATE,
    }
}

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
            "load_generator_ns_per_delivery",
            outcome.own_share * outcome.seconds * 1e9 / deliveries,
        ),
    ]);
    if !latencies.is_empty() {
        numbers.insert(P50.id, us(latencies.value_at_quantile(0.5)));
        numbers.insert(P99.id, us(latencies.value_at_quantile(0.99)));
        numbers.insert(MAX.id, us(latencies.max()));
    }
    if let Some(cpu_s) = outcome.server_cpu_s {
        numbers.insert(CPU_PER_DELIVERY.id, cpu_s * 1e6 / deliveries);
        numbers.insert(CPU_PER_OP.id, cpu_s * 1e6 / ops);
        numbers.insert(OPS_PER_CPU.id, ops / cpu_s);
    }
    numbers
}
