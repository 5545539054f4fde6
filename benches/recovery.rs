//! Measures how fast the log is read back at a start, compared with `redis-server`, which loads an
//! append-only file with the same keys and values.
//!
//! ```text
//! apt-get install redis-server    # to compare with; running this needs no root
//! # 3,000,000 records, 5 rounds, about 1.5 GB in $TMPDIR
//! cargo bench -p etherply-bench --bench recovery
//! cargo bench -p etherply-bench --bench recovery -- --records 1000000 --keys 400000 --rounds 3
//! ```
//!
//! The records have 100 bytes on disk, in random order over the workspaces and keys, in batches of
//! 1 to 128. Redis loads the same ops in the same order as plain commands, once as `SET
//! workspace:key value` and once as `HSET workspace key value`; the faster of the two counts. All
//! files are in the page cache, and the contestants take turns. Each is a real process, timed from
//! its start until it has printed that it is ready and has answered a request. On a machine with
//! other work, its CPU time until then is more meaningful than the clock. In each round a different
//! workspace is read and compared key by key, and the number of keys or ops is checked, too.
//!
//! `replay` is the library's recovery alone, in a separate process, on a log of one shard and thus
//! on one core. All flags: `-- --help`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use etherply::log::directory::DataDirectory;
use etherply::status::RecoveryProgress;

#[path = "recovery/contestants.rs"]
mod contestants;
#[path = "recovery/workload.rs"]
mod workload;

use contestants::{EtherplyLog, RedisLog, Run};
use etherply_bench::figures::Spread;
use etherply_bench::machine::Machine;
use etherply_bench::process::{self, Memory};
use etherply_bench::resp;
use workload::{RedisLayout, Workload};

#[derive(Parser)]
struct Settings {
    /// Records in the log
    #[arg(long, env = "RECOVERY_RECORDS", default_value_t = 3_000_000)]
    records: u32,
    /// Distinct keys; the other records overwrite one
    #[arg(long, env = "RECOVERY_KEYS", default_value_t = 2_000_000)]
    keys: u32,
    /// Workspaces that the keys are in
    #[arg(long, env = "RECOVERY_WORKSPACES", default_value_t = 10_000)]
    workspaces: u32,
    /// Rounds, in each of which every contestant starts once
    #[arg(long, env = "RECOVERY_ROUNDS", default_value_t = 5)]
    rounds: u32,
    /// Where the folder for the logs is created; it is removed at the end
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Read the log in this data directory back, print how long that took, and exit
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let settings = Settings::parse();
    if let Some(data) = &settings.replay {
        replay(data);
        return ExitCode::SUCCESS;
    }
    let Some(redis) = resp::version() else {
        eprintln!("redis-server is missing: apt-get install redis-server");
        return ExitCode::FAILURE;
    };
    let folder = tempfile::Builder::new()
        .prefix("etherply-recovery-")
        .tempdir_in(&settings.folder)
        .expect("the folder can be written");
    let workload = Workload::new(settings.records, settings.keys, settings.workspaces);
    println!("{}", Machine::read());
    println!("{redis}");
    println!(
        "{} records, {} keys, {} workspaces, {:.0} MB of live state; load {}",
        settings.records,
        settings.keys,
        settings.workspaces,
        workload.live_bytes() / 1e6,
        load_average(),
    );
    measure(&workload, settings.rounds, folder.path());
    ExitCode::SUCCESS
}

/// The contestants, in the order of the table.
const NAMES: [&str; 5] = [
    "etherply, 2 shards",
    "etherply, 1 shard",
    "replay, 1 shard",
    "redis, SET",
    "redis, HSET",
];

fn measure(workload: &Workload, rounds: u32, folder: &Path) {
    let two = EtherplyLog::new(workload, folder.join("two"), 2);
    let one = EtherplyLog::new(workload, folder.join("one"), 1);
    let set = RedisLog::new(workload, folder.join("set"), RedisLayout::Set);
    let hset = RedisLog::new(workload, folder.join("hset"), RedisLayout::Hset);
    let mut runs: [Vec<Run>; NAMES.len()] = Default::default();
    for round in 0..rounds {
        runs[0].push(two.run(workload, round));
        runs[3].push(set.run(workload, round));
        runs[1].push(one.run(workload, round));
        runs[4].push(hset.run(workload, round));
        runs[2].push(replayed(&one, workload));
        eprintln!("round {} of {rounds}; load {}", round + 1, load_average());
    }
    print_table(workload, &runs);
}

fn print_table(workload: &Workload, runs: &[Vec<Run>; NAMES.len()]) {
    let records = f64::from(workload.records());
    println!(
        "\n| | clock, s | CPU, s | records/s by the clock | records/s of CPU | resident, MB \
         | most resident, MB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (name, runs) in NAMES.iter().zip(runs) {
        let [clock, cpu] =
            [|run: &Run| run.clock_s, |run: &Run| run.cpu_s].map(|of| spread(runs, of));
        println!(
            "| {name} | {} | {} | {:.2} M | {:.2} M | {:.0} | {:.0} |",
            clock.text(2),
            cpu.text(2),
            records / clock.median / 1e6,
            records / cpu.median / 1e6,
            spread(runs, |run| run.memory.resident_bytes).median / 1e6,
            spread(runs, |run| run.memory.most_bytes).median / 1e6,
        );
    }
    let [two, one, _, set, hset] = runs;
    for (what, of) in [
        ("the clock", (|run| run.clock_s) as fn(&Run) -> f64),
        ("CPU", |run| run.cpu_s),
    ] {
        let [two, one, set, hset] = [two, one, set, hset].map(|runs| spread(runs, of).median);
        let redis = set.min(hset);
        println!(
            "by {what}, times as fast as redis: {:.2} with 2 shards, {:.2} with 1",
            redis / two,
            redis / one
        );
    }
    let own = |runs: &[Run]| spread(runs, |run| run.own_s);
    println!(
        "by their own account, seconds: etherply {}, redis {}",
        own(two).text(2),
        [own(set), own(hset)]
            .into_iter()
            .min_by(|a, b| a.median.total_cmp(&b.median))
            .expect("there are two candidates")
            .text(2),
    );
}

fn spread(runs: &[Run], of: impl Fn(&Run) -> f64) -> Spread {
    Spread::of(runs.iter().map(of)).expect("there is at least one round")
}

/// Runs [`replay`] in a separate process, whose memory is untouched.
fn replayed(log: &EtherplyLog, workload: &Workload) -> Run {
    log.warm();
    let binary = std::env::current_exe().expect("the current executable is known");
    let mut command = Command::new(binary);
    command.arg("--replay").arg(log.data());
    let output = command.output().expect("the executable can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [ops, clock_s, cpu_s, resident_bytes, most_bytes] = numbers[..] else {
        panic!(
            "the replay failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    assert!(
        (ops - f64::from(workload.records())).abs() < 0.5,
        "some records were not read"
    );
    Run {
        clock_s,
        cpu_s,
        own_s: clock_s,
        memory: Memory {
            resident_bytes,
            most_bytes,
        },
    }
}

fn replay(data: &Path) {
    let directory = DataDirectory::open(data).expect("a data directory");
    let own_cpu_s = || process::cpu_s(std::process::id()).expect("the current executable is known");
    let cpu_before_s = own_cpu_s();
    let begun = Instant::now();
    let progress = RecoveryProgress::default();
    let (report, dealt) =
        etherply::io::recovery::recover(&directory, 1, 1, &progress).expect("the log is intact");
    let clock_s = begun.elapsed().as_secs_f64();
    let cpu_s = own_cpu_s() - cpu_before_s;
    let memory = process::memory(std::process::id()).expect("the current executable is known");
    println!(
        "{} {clock_s} {cpu_s} {} {}",
        report.ops, memory.resident_bytes, memory.most_bytes
    );
    drop(dealt);
}

fn load_average() -> String {
    Machine::read().load_average
}
