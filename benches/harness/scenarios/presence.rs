//! A room of peers that show each other their cursors.

use super::loads::{MAX, OWN_SHARE, P50, P99, RESIDENT};
use super::{Case, Scenario, Target};
use crate::config::{HarnessConfig, LATE};
use crate::contestant::Contestant;
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::peer_run::{self, PeerOutcome, PeerPlan};
use etherply_bench::load::protocol::ClientProtocol;

pub struct Presence;

const PEERS: usize = 1000;
const MOVERS: usize = 100;
const MOVES_PER_S: u32 = 20;

/// The server's CPU time as a share of the elapsed time: 100 is one fully used core.
const CORE: Figure = Figure {
    id: "server_core_percent",
    name: "server CPU",
    unit: "% of a core",
    decimals: 1,
};
const CPU_PER_MESSAGE: Figure = Figure {
    id: "cpu_us_per_message",
    name: "server CPU",
    unit: "µs/message",
    decimals: 2,
};
const MESSAGES: Figure = Figure {
    id: "messages_per_s",
    name: "messages/s",
    unit: "",
    decimals: 0,
};
/// The share of the values set that each peer was shown; the others were replaced before that.
const SHOWN: Figure = Figure {
    id: "values_shown_percent",
    name: "values shown",
    unit: "%",
    decimals: 0,
};
const MEGABYTES: Figure = Figure {
    id: "megabytes_per_s",
    name: "MB/s",
    unit: "",
    decimals: 1,
};

impl Scenario for Presence {
    fn name(&self) -> &'static str {
        "presence"
    }

    fn about(&self) -> &'static str {
        "version 2: 1 room of 1,000 peers, 100 of which move 20 times per second"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            CORE,
            CPU_PER_MESSAGE,
            MESSAGES,
            SHOWN,
            MEGABYTES,
            P50,
            P99,
            MAX,
            RESIDENT,
            OWN_SHARE,
        ]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let contestant = Contestant::etherply("none").speaking(ClientProtocol::V2);
        vec![Case {
            index: 0,
            title: format!("{PEERS} peers, {MOVERS} of them move {MOVES_PER_S} times a second"),
            contestants: vec![contestant],
            pairs: Vec::new(),
        }]
    }

    fn measure(
        &self,
        _: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        let server = contestant
            .start(config)
            .map_err(|error| error.to_string())?;
        let plan = PeerPlan {
            peers: PEERS,
            movers: MOVERS,
            moves_per_s: MOVES_PER_S,
            warm_up: config.warm_up,
            measured: config.measured,
            late: LATE,
        };
        let outcome = peer_run::run(&server.endpoint, &plan, &mut || server.cpu_s());
        let outcome = outcome.map_err(|failure| server.with_log(failure))?;
        let mut numbers = numbers_of(&outcome);
        if let Some(bytes) = server.resident_bytes() {
            numbers.insert(RESIDENT.id, bytes / 1e6);
        }
        Ok(numbers)
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target {
            case: 0,
            figure: CORE.id,
            of: "etherply none, v2",
            to: None,
            bound: AtMost(100.0),
        }]
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn numbers_of(outcome: &PeerOutcome) -> Numbers {
    let latencies = &outcome.latencies_ns;
    let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let (messages, seconds) = (outcome.messages as f64, outcome.seconds);
    let values = outcome.values as f64 / PEERS as f64;
    let mut numbers = Numbers::from([
        (MESSAGES.id, messages / seconds),
        (SHOWN.id, values / outcome.set as f64 * 100.0),
        (MEGABYTES.id, outcome.received_bytes as f64 / seconds / 1e6),
        (P50.id, us(latencies.value_at_quantile(0.5))),
        (P99.id, us(latencies.value_at_quantile(0.99))),
        (MAX.id, us(latencies.max())),
        (OWN_SHARE.id, outcome.own_share * 100.0),
    ]);
    if let Some(cpu_s) = outcome.server_cpu_s {
        numbers.insert(CORE.id, cpu_s / seconds * 100.0);
        numbers.insert(CPU_PER_MESSAGE.id, cpu_s * 1e6 / messages);
    }
    numbers
}
