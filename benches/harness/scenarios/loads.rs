//! The code shared by the scenarios that put a load on a server and count deliveries.

use crate::config::{HarnessConfig, LATE};
use crate::contestant::{Contestant, Server};
use etherply_bench::figures::Numbers;
use etherply_bench::load::pace::Pace;
use etherply_bench::load::plan::Plan;
use etherply_bench::load::run;

pub use etherply_bench::load::figures::{
    CORES_PER_DELIVERY, CPU_PER_DELIVERY, CPU_PER_OP, DELIVERIES, MAX, OPS, OPS_PER_CPU, OWN_SHARE,
    P50, P99, RESIDENT, SAVED, SWITCHES_PER_OP, WORKERS_PER_OP, numbers_of,
};

/// The share of the server's and the load's cores that other processes used, as a percentage of one
/// core.
pub const OTHERS_PERCENT: &str = "other_work_percent";

/// The shape of a load.
#[derive(Debug, Clone, Copy)]
pub struct LoadShape {
    pub title: &'static str,
    pub rooms: u32,
    /// The number of receivers in each room, in addition to its sender.
    pub receivers: u32,
    pub pace: Pace,
}

/// Starts a server, puts it under the load, and returns all figures of a load.
pub fn measure(
    shape: &LoadShape,
    contestant: &Contestant,
    config: &HarnessConfig,
) -> Result<Numbers, String> {
    let server = contestant
        .start(config)
        .map_err(|error| error.to_string())?;
    measure_server(shape, contestant, &server, config)
}

/// Puts a running server under the load; its rooms must be empty.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn measure_server(
    shape: &LoadShape,
    contestant: &Contestant,
    server: &Server,
    config: &HarnessConfig,
) -> Result<Numbers, String> {
    let plan = plan(shape, contestant, config);
    let (all, cores) = (config.cores.all(), &config.cores.server);
    let mut busy_s = Vec::new();
    let outcome = run::run(&server.endpoint, &plan, &mut || {
        busy_s.push((all.busy_s(), cores.busy_s()));
        server.usage()
    });
    let outcome = outcome.map_err(|failure| server.with_log(failure))?;
    let mut numbers = numbers_of(&outcome);
    if let (Some(used), [begin, .., end]) = (outcome.server, &busy_s[..]) {
        let own_s = outcome.own_share * outcome.seconds;
        let others_s = (end.0 - begin.0 - used.cpu_s - own_s).max(0.0);
        numbers.insert(OTHERS_PERCENT, others_s * 100.0 / outcome.seconds);
        if !config.cores.overlap() {
            let (cores_s, deliveries) = (end.1 - begin.1, outcome.deliveries as f64);
            numbers.insert(CORES_PER_DELIVERY.id, cores_s * 1e6 / deliveries);
        }
    }
    if let Some(bytes) = server.resident_bytes() {
        numbers.insert(RESIDENT.id, bytes / 1e6);
    }
    Ok(numbers)
}

pub fn plan(shape: &LoadShape, contestant: &Contestant, config: &HarnessConfig) -> Plan {
    Plan {
        rooms: shape.rooms,
        receivers: shape.receivers,
        pace: shape.pace,
        protocol: contestant.protocol,
        field_order: contestant.field_order(),
        has_state: contestant.has_state(),
        warm_up: config.warm_up,
        measured: config.measured,
        late: LATE,
    }
}
