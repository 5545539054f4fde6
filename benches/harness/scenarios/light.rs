//! Light load, which is what most servers have: many small rooms and few ops.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::loads::{
    self, CPU_PER_DELIVERY, LoadShape, MAX, OWN_SHARE, P50, P99, RESIDENT, SAVED, SWITCHES_PER_OP,
    WORKERS_PER_OP,
};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{self, Contestant, Kind, Server};
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::pace::Pace;
use etherply_bench::load::protocol::ClientProtocol;
use etherply_bench::load::run;
use etherply_bench::process::system_calls::SystemCalls;

pub struct Light;

const SHAPE: LoadShape = LoadShape {
    title: "100 rooms of 10, 500 ops/s in all",
    rooms: 100,
    receivers: 9,
    pace: Pace::Open { ops_per_s: 500 },
};

/// Counted in a run of its own, since counting makes each system call slower.
const SYSTEM_CALLS_PER_OP: Figure = Figure {
    id: "system_calls_per_op",
    name: "system calls/op",
    unit: "",
    decimals: 2,
};
/// p50 relative to its target: the p50 of fdatasync on this disk plus 0.4 ms.
const P50_OF_DISK: Figure = Figure {
    id: "p50_over_disk_and_400_us",
    name: "p50 / (fdatasync p50 + 400 µs)",
    unit: "",
    decimals: 2,
};

/// The time for which system calls are counted.
const COUNTED: Duration = Duration::from_secs(1);
/// The time that perf has to start and to end, beside that.
const PERF_MARGIN: Duration = Duration::from_millis(500);

impl Scenario for Light {
    fn name(&self) -> &'static str {
        "light"
    }

    fn about(&self) -> &'static str {
        "100 rooms of 10, 500 ops/s in all: CPU, context switches and system calls"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            CPU_PER_DELIVERY,
            SWITCHES_PER_OP,
            SYSTEM_CALLS_PER_OP,
            WORKERS_PER_OP,
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
        let protocols = [ClientProtocol::V1, ClientProtocol::V2];
        let contestants = contestant::all_speaking(config, &protocols);
        vec![Case::against_peers(0, SHAPE.title, contestants)]
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
        let mut numbers = loads::measure_server(&SHAPE, contestant, &server, config)?;
        if let Some(count) = system_calls_per_op(contestant, &server, config)? {
            numbers.insert(SYSTEM_CALLS_PER_OP.id, count);
        }
        let waits_for_disk =
            matches!(&contestant.kind, Kind::Etherply { durability, .. } if durability == "always");
        if waits_for_disk {
            let disk_us = fdatasync_p50_us(&config.folder).map_err(|error| error.to_string())?;
            numbers.insert(P50_OF_DISK.id, numbers[P50.id] / (disk_us + 400.0));
            numbers.insert("fdatasync_p50_us", disk_us);
        }
        Ok(numbers)
    }

    fn note(&self, _: &HarnessConfig) -> Option<String> {
        let reason = SystemCalls::check().err()?;
        Some(format!("left out: system calls per op: {reason}"))
    }

    fn targets(&self) -> Vec<Target> {
        let (none, always) = ("etherply none", "etherply always");
        let (cpu, p50, p99) = (CPU_PER_DELIVERY.id, P50.id, P99.id);
        let (switches, calls) = (SWITCHES_PER_OP.id, SYSTEM_CALLS_PER_OP.id);
        [
            (cpu, none, Some("rival none"), 0.82),
            (cpu, none, Some("floor"), 1.05),
            (switches, none, None, 1.3),
            (calls, none, None, 5.0),
            (cpu, always, Some("rival always"), 0.82),
            (switches, always, None, 2.2),
            (calls, always, None, 8.0),
            (p50, none, Some("rival none"), 1.0),
            (p99, none, Some("rival none"), 1.0),
            (p50, always, Some("rival always"), 1.0),
            (p99, always, Some("rival always"), 1.0),
            (p50, none, Some("floor"), 1.2),
            (P50_OF_DISK.id, always, None, 1.0),
        ]
        .map(|(figure, of, to, bound)| Target {
            case: 0,
            figure,
            of,
            to,
            bound: AtMost(bound),
        })
        .into()
    }
}

/// Counts the system calls of the server under the same load in other rooms; `None` if they cannot
/// be counted.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn system_calls_per_op(
    contestant: &Contestant,
    server: &Server,
    config: &HarnessConfig,
) -> Result<Option<f64>, String> {
    let Some(process) = &server.process else {
        return Ok(None);
    };
    if SystemCalls::check().is_err() {
        return Ok(None);
    }
    let mut plan = loads::plan(&SHAPE, contestant, config);
    plan.measured = COUNTED + PERF_MARGIN;
    let endpoint = server.endpoint.clone().with_prefix("counted-".to_owned());
    let (mut counting, mut count) = (None, Ok(None));
    // Called at the beginning and at the end of the measured time.
    let outcome = run::run(&endpoint, &plan, &mut || {
        match counting.take() {
            None => counting = Some(process.count_system_calls(COUNTED)),
            Some(counting) => count = counting.and_then(SystemCalls::finish),
        }
        None
    });
    let outcome = outcome.map_err(|failure| server.with_log(failure))?;
    let count = count.map_err(|error| format!("perf: {error}"))?;
    let ops = outcome.ops as f64 / outcome.seconds * COUNTED.as_secs_f64();
    Ok(count.map(|count| count as f64 / ops))
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
