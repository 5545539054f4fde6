//! Many small rooms, with one shard and with two.

use super::loads::{
    self, CPU_PER_OP, LoadShape, MAX, OPS, OPS_PER_CPU, OWN_SHARE, P50, P99, RESIDENT, SAVED,
};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{self, Contestant};
use crate::cores::{Cores, Halves};
use clap::ValueEnum as _;
use etherply_bench::figures::Bound::{AtLeast, AtMost};
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::pace::Pace;
use etherply_bench::load::protocol::ClientProtocol;

pub struct Rooms;
pub struct Shards;

const SHAPE: LoadShape = LoadShape {
    title: "1,000 rooms of 2, saturated, 1 in flight in each",
    rooms: 1000,
    receivers: 1,
    pace: Pace::Closed { in_flight: 1 },
};

fn contestants(config: &HarnessConfig) -> Vec<Contestant> {
    let protocols = ClientProtocol::value_variants();
    contestant::all_speaking(config, protocols)
}

impl Scenario for Rooms {
    fn name(&self) -> &'static str {
        "rooms"
    }

    fn about(&self) -> &'static str {
        "1,000 rooms of 2, saturated"
    }

    fn figures(&self) -> &'static [Figure] {
        &[CPU_PER_OP, OPS, P50, P99, MAX, SAVED, RESIDENT, OWN_SHARE]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        vec![Case::against_peers(0, SHAPE.title, contestants(config))]
    }

    fn measure(
        &self,
        _: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        loads::measure(&SHAPE, contestant, config)
    }

    fn targets(&self) -> Vec<Target> {
        let (none, always) = ("etherply none", "etherply always");
        let (none_v2, always_v2) = ("etherply none, v2", "etherply always, v2");
        let (none_unsaved, always_unsaved) = (
            "etherply none, v2 without ids",
            "etherply always, v2 without ids",
        );
        [
            (none, "axum", 0.35),
            (always, "axum", 0.45),
            (always, none, 1.3),
            (none_unsaved, none, 1.05),
            (always_unsaved, always, 1.05),
            (none_v2, none_unsaved, 1.1),
            (always_v2, always_unsaved, 1.1),
        ]
        .map(|(of, to, bound)| Target {
            case: 0,
            figure: CPU_PER_OP.id,
            of,
            to: Some(to),
            bound: AtMost(bound),
        })
        .into()
    }
}

impl Scenario for Shards {
    fn name(&self) -> &'static str {
        "shards"
    }

    fn about(&self) -> &'static str {
        "1,000 rooms of 2, saturated: 2 shards compared with 1"
    }

    fn figures(&self) -> &'static [Figure] {
        &[OPS, OPS_PER_CPU, CPU_PER_OP, P50, P99, OWN_SHARE]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let modes = config.durability.iter();
        let contestants: Vec<Contestant> = modes
            .flat_map(|mode| [1, 2].map(|shards| Contestant::sharded(mode, shards)))
            .collect();
        let both = (0..contestants.len()).step_by(2);
        vec![Case {
            index: 0,
            title: SHAPE.title.to_owned(),
            pairs: both.map(|one| (one + 1, one)).collect(),
            contestants,
        }]
    }

    fn note(&self, config: &HarnessConfig) -> Option<String> {
        let cores = cores(config);
        let cores_text = format!("server on cores {}, load on {}", cores.server, cores.load);
        let is_shared = cores
            .load
            .0
            .iter()
            .any(|core| cores.server.0.contains(core));
        is_shared.then(|| {
            format!(
                "{cores_text}: two shards and the load generator share these cores, \
                 which is the limit"
            )
        })
    }

    fn measure(
        &self,
        _: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        let config = HarnessConfig {
            cores: cores(config),
            ..config.clone()
        };
        loads::measure(&SHAPE, contestant, &config)
    }

    fn targets(&self) -> Vec<Target> {
        [
            ("etherply none, 2 shards", "etherply none, 1 shard"),
            ("etherply always, 2 shards", "etherply always, 1 shard"),
        ]
        .map(|(of, to)| Target {
            case: 0,
            figure: OPS.id,
            of,
            to: Some(to),
            bound: AtLeast(1.7),
        })
        .into()
    }
}

/// Returns the cores for two shards, which need two: if the server's half has only one, the server
/// also gets those of the load.
fn cores(config: &HarnessConfig) -> Halves {
    let Halves { server, load } = &config.cores;
    let mut server = server.0.clone();
    if server.len() < 2 {
        server.extend(
            load.0
                .iter()
                .copied()
                .filter(|core| !config.cores.server.0.contains(core)),
        );
    }
    Halves {
        server: Cores(server),
        load: load.clone(),
    }
}
