//! Measures how fast the server is, compared with its peers, and whether its deliveries are
//! correct.
//!
//! ```text
//! cargo bench -p etherply-bench --bench harness -- [SCENARIO …] [flags]
//! cargo harness                       # the same, shorter: all scenarios, 5 rounds
//! cargo harness fanout --rounds 3
//! cargo harness --quick               # a minute in all
//! cargo harness --list
//! ```
//!
//! Each measurement starts a new server on the first half of the cores; the load generator has the
//! other half. It is one thread ([`etherply_bench::load`]), and it checks every delivery: each
//! receiver must receive each op once, in order, byte for byte. Anything wrong or missing ends the
//! run with exit code 1; a peer's failure is printed instead, and the peer has no figures for that
//! round. The contestants take turns, in a different order in each round; a ratio compares two
//! figures from the same round. The CPU time of the server process comes first: on a machine with
//! other work it is steadier than the wall clock.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use etherply_bench::results::Results;
use etherply_bench::selfcheck;

mod config;
mod contestant;
mod cores;
#[path = "../peers/mod.rs"]
mod peers;
mod picture;
mod report;
mod rounds;
mod scenarios;
mod server_process;

use config::{Environment, HarnessConfig, Settings};
use rounds::Progress;
use scenarios::{Case, Scenario};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name, rest @ ..] = &arguments[..]
        && word == "peer"
    {
        return peers::serve(name, rest);
    }
    let settings = Settings::parse();
    if settings.list {
        for scenario in scenarios::ALL {
            println!("{:10} {}", scenario.name(), scenario.about());
        }
        return ExitCode::SUCCESS;
    }
    match run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: &Settings) -> Result<(), String> {
    let chosen = chosen(settings)?;
    let mut config = HarnessConfig::new(settings)?;
    selfcheck::run()?;
    println!("self-check: every planted fault was detected");
    contestant::find_peers(&mut config, &settings.peers);
    let environment = Environment::read(&config);
    println!("{environment}");
    if config.target.is_some() {
        println!("the server is elsewhere: its CPU time and memory cannot be read");
    }
    let cases = |scenario: &dyn Scenario| {
        let mut cases = scenario.cases(&config);
        cases.retain(|case| {
            settings
                .only
                .as_ref()
                .is_none_or(|text| case.title.contains(text))
        });
        cases
    };
    let planned: Vec<(&dyn Scenario, Vec<Case>)> = chosen
        .into_iter()
        .map(|scenario| (scenario, cases(scenario)))
        .collect();
    let all = planned.iter().flat_map(|(scenario, cases)| {
        let rounds = scenario.rounds(&config) as usize;
        cases
            .iter()
            .map(move |case| case.contestants.len() * rounds)
    });
    let progress = Progress::new(all.sum());
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let stamp = now.expect("the clock is after 1970").as_secs();
    let mut results = Results {
        machine: environment,
        rounds: config.rounds,
        warm_up_s: config.warm_up.as_secs_f64(),
        measured_s: config.measured.as_secs_f64(),
        cases: Vec::new(),
    };
    for (scenario, cases) in planned {
        let mut done = Vec::new();
        for case in cases {
            let rounds = rounds::run(scenario, &case, &config, &progress)?;
            progress.print(report::text(scenario, &case, &rounds).trim_end());
            results
                .cases
                .push(report::case_results(scenario, &case, &rounds));
            done.push((case, rounds));
        }
        if let Some(note) = scenario.note(&config)
            && !done.is_empty()
        {
            progress.print(&format!("\n{note}"));
        }
        if let Some(picture) = scenario.picture() {
            let drawn = picture::draw(scenario, &picture, &done, &settings.output);
            let path = drawn.map_err(|error| format!("the picture: {error}"))?;
            progress.print(&format!("\n{}", path.display()));
        }
        let written = report::write(&results, &settings.output, stamp);
        let path = written.map_err(|error| format!("{}: {error}", settings.output.display()))?;
        progress.print(&path.display().to_string());
    }
    Ok(())
}

/// Returns the scenarios that were named, or all.
fn chosen(settings: &Settings) -> Result<Vec<&'static dyn Scenario>, String> {
    if settings.scenarios.is_empty() {
        return Ok(scenarios::ALL.to_vec());
    }
    let names = settings.scenarios.iter();
    let found = names.map(|name| {
        let mut all = scenarios::ALL.into_iter();
        let found = all.find(|scenario| scenario.name() == name);
        found.ok_or_else(|| format!("no scenario {name}: see --list"))
    });
    found.collect()
}
