//! The cost of making an op durable, compared with redis.

use std::io;

use hdrhistogram::Histogram;

use super::loads::{self, CPU_PER_OP, LoadShape, MAX, OPS, OPS_PER_CPU, OWN_SHARE, P50, P99};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{Contestant, Kind};
use crate::peers::redis::{self, CommandLoad, Fsync, Redis};
use etherply_bench::figures::Bound::AtLeast;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::op::{KEYS, VALUE_BYTES};
use etherply_bench::load::pace::Pace;
use etherply_bench::load::protocol::ClientProtocol;
use etherply_bench::load::tracker::histogram;

pub struct Durable;

const BUSY: usize = 0;
const IN_FLIGHT: [u32; 2] = [256, 1];
const TITLES: [&str; 2] = ["256 in flight", "1 in flight"];

/// The contestants that run redis.
const REDIS: [(&str, redis::WriteCommand, Fsync); 3] = [
    ("redis always, SET", redis::WriteCommand::Set, Fsync::Always),
    (
        "redis always, XADD",
        redis::WriteCommand::Xadd,
        Fsync::Always,
    ),
    ("redis no, SET", redis::WriteCommand::Set, Fsync::No),
];

impl Scenario for Durable {
    fn name(&self) -> &'static str {
        "durable"
    }

    fn about(&self) -> &'static str {
        "each durability mode, 1 sender and 1 receiver, and redis with as many commands in flight"
    }

    fn figures(&self) -> &'static [Figure] {
        &[OPS_PER_CPU, OPS, CPU_PER_OP, P50, P99, MAX, OWN_SHARE]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let modes = ["always", "interval", "none"].map(Contestant::etherply);
        let mut contestants = Vec::from(modes);
        if redis::version().is_some() {
            contestants.extend(REDIS.map(|(name, ..)| Contestant {
                name: name.to_owned(),
                kind: Kind::Peer("redis".to_owned()),
                protocol: ClientProtocol::V1,
            }));
        }
        let titles = TITLES.iter().enumerate();
        titles
            .map(|(index, title)| Case::against_peers(index, title, contestants.clone()))
            .collect()
    }

    fn note(&self, _: &HarnessConfig) -> Option<String> {
        let note = redis::version().map_or_else(
            || "skipped: redis-server is not installed".to_owned(),
            |version| {
                format!(
                    "{version}\nAn op of the server counts when a second client has received it, \
                     one of redis when it is answered."
                )
            },
        );
        Some(note)
    }

    fn measure(
        &self,
        case: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        let in_flight = IN_FLIGHT[case.index];
        let found = REDIS.iter().find(|(name, ..)| *name == contestant.name);
        if let Some((_, shape, fsync)) = found {
            let measured = measure_redis(*shape, *fsync, in_flight, config);
            return measured.map_err(|error| error.to_string());
        }
        let shape = LoadShape {
            title: TITLES[case.index],
            rooms: 1,
            receivers: 1,
            pace: Pace::Closed { in_flight },
        };
        loads::measure(&shape, contestant, config)
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target {
            case: BUSY,
            figure: OPS_PER_CPU.id,
            of: "etherply always",
            to: Some("redis always, SET"),
            bound: AtLeast(1.0),
        }]
    }
}

fn measure_redis(
    shape: redis::WriteCommand,
    fsync: Fsync,
    in_flight: u32,
    config: &HarnessConfig,
) -> io::Result<Numbers> {
    let folder = tempfile::Builder::new()
        .prefix("etherply-harness-")
        .tempdir_in(&config.folder)?;
    // A child inherits the cores of the thread that starts it.
    config.cores.server.take()?;
    let server = Redis::start(folder.path(), fsync);
    config.cores.load.take()?;
    let mut server = server;
    let figures = server.run(&CommandLoad {
        shape,
        in_flight: in_flight as usize,
        keys: KEYS,
        key_bytes: 5,
        // A JSON value has two quotes.
        value_bytes: VALUE_BYTES + 2,
        warm_up: config.warm_up,
        duration: config.measured,
    });
    let mut latencies_us: Histogram<u64> = histogram();
    for latency_us in &figures.latencies_us {
        latencies_us.saturating_record(u64::from(*latency_us).max(1));
    }
    Ok(numbers_of(&figures, &latencies_us))
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn numbers_of(figures: &redis::CommandFigures, latencies_us: &Histogram<u64>) -> Numbers {
    let ops = figures.ops as f64;
    Numbers::from([
        (OPS.id, ops / figures.clock_s),
        (OPS_PER_CPU.id, ops / figures.cpu_s),
        (CPU_PER_OP.id, figures.cpu_s * 1e6 / ops),
        (P50.id, latencies_us.value_at_quantile(0.5) as f64),
        (P99.id, latencies_us.value_at_quantile(0.99) as f64),
        (MAX.id, latencies_us.max() as f64),
    ])
}
