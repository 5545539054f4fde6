//! Many small rooms, with one shard and with two.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use super::loads::{
    self, CPU_PER_OP, LoadShape, MAX, OPS, OPS_PER_CPU, OWN_SHARE, P50, P99, RESIDENT, SAVED,
};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{self, Contestant, Kind};
use crate::cores::{Cores, Halves};
use clap::ValueEnum as _;
use etherply_bench::figures::Bound::{AtLeast, AtMost};
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::pace::Pace;
use etherply_bench::load::protocol::ClientProtocol;

pub struct Rooms;
pub struct Shards;

const SATURATED: usize = 0;
const LIGHT: usize = 1;

const SHAPES: [LoadShape; 2] = [
    LoadShape {
        title: "1,000 rooms of 2, saturated, 1 in flight in each",
        rooms: 1000,
        receivers: 1,
        pace: Pace::Closed { in_flight: 1 },
    },
    LoadShape {
        title: "100 rooms of 10, 500 ops/s in all",
        rooms: 100,
        receivers: 9,
        pace: Pace::Open { ops_per_s: 500 },
    },
];

/// p50 relative to its target: the p50 of fdatasync on this disk plus 0.4 ms.
const P50_OF_DISK: Figure = Figure {
    id: "p50_over_disk_and_400_us",
    name: "p50 / (fdatasync p50 + 400 µs)",
    unit: "",
    decimals: 2,
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
        "1,000 rooms of 2, saturated; 100 rooms of 10 at 500 ops/s in all"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            CPU_PER_OP,
            OPS,
            P50,
            P99,
            MAX,
            P50_OF_DISK,
            SAVED,
            RESIDENT,
            OWN_SHARE,
        ]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        let shapes = SHAPES.iter().enumerate();
        let cases = shapes
            .map(|(index, shape)| Case::against_peers(index, shape.title, contestants(config)));
        cases.collect()
    }

    fn measure(
        &self,
        case: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        let mut numbers = loads::measure(&SHAPES[case.index], contestant, config)?;
        let waits_for_disk =
            matches!(&contestant.kind, Kind::Etherply { durability, .. } if durability == "always");
        if case.index == LIGHT && waits_for_disk {
            let disk_us = fdatasync_p50_us(&config.folder).map_err(|error| error.to_string())?;
            numbers.insert(P50_OF_DISK.id, numbers[P50.id] / (disk_us + 400.0));
            numbers.insert("fdatasync_p50_us", disk_us);
        }
        Ok(numbers)
    }

    fn targets(&self) -> Vec<Target> {
        let (none, always) = ("etherply none", "etherply always");
        let (none_v2, always_v2) = ("etherply none, v2", "etherply always, v2");
        let (none_unsaved, always_unsaved) = (
            "etherply none, v2 without ids",
            "etherply always, v2 without ids",
        );
        [
            (SATURATED, CPU_PER_OP.id, none, Some("axum"), AtMost(0.35)),
            (SATURATED, CPU_PER_OP.id, always, Some("axum"), AtMost(0.45)),
            (LIGHT, P50.id, none, Some("floor"), AtMost(1.2)),
            (LIGHT, P50_OF_DISK.id, always, None, AtMost(1.0)),
            (
                SATURATED,
                CPU_PER_OP.id,
                none_unsaved,
                Some(none),
                AtMost(1.05),
            ),
            (
                SATURATED,
                CPU_PER_OP.id,
                always_unsaved,
                Some(always),
                AtMost(1.05),
            ),
            (
                SATURATED,
                CPU_PER_OP.id,
                none_v2,
                Some(none_unsaved),
                AtMost(1.1),
            ),
            (
                SATURATED,
                CPU_PER_OP.id,
                always_v2,
                Some(always_unsaved),
                AtMost(1.1),
            ),
        ]
        .map(|(case, figure, of, to, bound)| Target {
            case,
            figure,
            of,
            to,
            bound,
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
            title: SHAPES[SATURATED].title.to_owned(),
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
        loads::measure(&SHAPES[SATURATED], contestant, &config)
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

/// Measures the median time of a 200-byte write to a file in this folder, including its fdatasync.
fn fdatasync_p50_us(folder: &Path) -> io::Result<f64> {
    let folder = tempfile::tempdir_in(folder)?;
    let mut file = File::create(folder.path().join("file"))?;
    let mut times_us = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[7; 200])?;
        file.sync_data()?;
        times_us.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times_us.sort_by(f64::total_cmp);
    Ok(times_us[times_us.len() / 2])
}
