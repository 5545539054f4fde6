//! The speed at which a log is read back at a start, compared with redis: a small version of the
//! bench `recovery`.

use super::loads::RESIDENT;
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{Contestant, Kind};
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::protocol::ClientProtocol;
use etherply_bench::resp;

#[path = "../../recovery/contestants.rs"]
#[allow(dead_code, reason = "the bench `recovery` uses the rest")]
mod contestants;
#[path = "../../recovery/workload.rs"]
#[allow(dead_code, reason = "the bench `recovery` uses the rest")]
mod workload;

use contestants::{EtherplyLog, RedisLog, Run};
use workload::{RedisLayout, Workload};

pub struct Recovery;

const CPU: Figure = Figure {
    id: "cpu_s",
    name: "server CPU",
    unit: "s",
    decimals: 2,
};
const CLOCK: Figure = Figure {
    id: "clock_s",
    name: "until it serves",
    unit: "s",
    decimals: 2,
};
const REDIS: &str = "redis, SET";
const WORKSPACES: u32 = 10_000;

impl Scenario for Recovery {
    fn name(&self) -> &'static str {
        "recovery"
    }

    fn about(&self) -> &'static str {
        "a start with 1,000,000 records of 100 bytes in the log (more: the bench `recovery`)"
    }

    fn figures(&self) -> &'static [Figure] {
        &[CPU, CLOCK, RESIDENT]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let mut contestants = vec![Contestant::sharded("always", 1)];
        if resp::version().is_some() {
            contestants.push(Contestant {
                name: REDIS.to_owned(),
                kind: Kind::Peer("redis".to_owned()),
                protocol: ClientProtocol::V1,
            });
        }
        let title = format!("{} records", records(config));
        vec![Case::against_peers(0, &title, contestants)]
    }

    fn measure(
        &self,
        _: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        let folder = tempfile::Builder::new()
            .prefix("etherply-harness-")
            .tempdir_in(&config.folder)
            .map_err(|error| error.to_string())?;
        let records = records(config);
        let workload = Workload::new(records, records / 3 * 2, WORKSPACES.min(records / 10));
        let data = folder.path().join("data");
        let cores = &config.cores;
        // A child inherits the cores of the thread that starts it.
        let run = if contestant.name == REDIS {
            let redis = RedisLog::new(&workload, data, RedisLayout::Set);
            on(cores, || redis.run(&workload, 0))
        } else {
            let etherply = EtherplyLog::new(&workload, data, 1);
            on(cores, || etherply.run(&workload, 0))
        };
        let run = run.map_err(|error| error.to_string())?;
        Ok(Numbers::from([
            (CPU.id, run.cpu_s),
            (CLOCK.id, run.clock_s),
            (RESIDENT.id, run.memory.resident_bytes / 1e6),
        ]))
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target {
            case: 0,
            figure: CPU.id,
            of: "etherply always, 1 shard",
            to: Some(REDIS),
            bound: AtMost(1.0),
        }]
    }
}

fn records(config: &HarnessConfig) -> u32 {
    if config.quick { 100_000 } else { 1_000_000 }
}

fn on(cores: &crate::cores::Halves, run: impl FnOnce() -> Run) -> std::io::Result<Run> {
    cores.server.take()?;
    let run = run();
    cores.load.take()?;
    Ok(run)
}
