//! The deterministic simulation: the real shards, their log, its recovery and its compaction,
//! driven by a seeded scheduler with a simulated disk, network and clock. There are no threads and
//! no real time, so the same seed always produces the same run.
//!
//! - `cargo test --test simulation` runs a fixed set of seeds.
//! - `SEED=7 cargo test --test simulation seed` runs one and prints its events.
//! - `SEEDS=1000..2000 cargo test --test simulation seed` runs others.
//! - `SEED_BASE=<any text> SEEDS=200 cargo test --test simulation seed` runs 200 seeds derived from
//!   the text.
//!
//! A failure prints the seed, the kinds of faults it needs, the smallest number of steps with which
//! the seed still fails, and the events of those steps.

use std::panic::{AssertUnwindSafe, catch_unwind};

mod casts;
mod checks;
mod client;
mod crash;
mod detection;
mod disk;
mod inodes;
mod journal;
mod logs;
mod model;
mod peers;
mod plan;
mod presence;
mod process;
mod replica;
mod server;
mod settle;
mod turns;
mod version2;
mod wire;
mod world;

use journal::Journal;
use plan::{Coverage, Plan, Planted, faults};
use world::World;

/// The number of seeds that each of the fixed tests runs.
const SEEDS_PER_TEST: u64 = 150;

/// Runs a world to its end; panics if an invariant does not hold.
fn live(plan: Plan, journal: Journal) -> Coverage {
    let mut world = World::new(plan, journal);
    for step in 0..plan.steps {
        world.journal.note(|| format!("step {step}"));
        world.step();
        world.end_drained();
    }
    world.end();
    world.coverage
}

/// Runs a plan; returns the panic message if it fails.
fn run(plan: Plan, journal: Journal) -> Result<Coverage, String> {
    turns::count_panics();
    catch_unwind(AssertUnwindSafe(|| live(plan, journal))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

/// Runs a seed; if it fails, shrinks the run as far as possible and panics with a report.
fn run_and_report(seed: u64) -> Coverage {
    let plan = Plan::new(seed);
    let first = match run(plan, Journal::default()) {
        Ok(coverage) => return coverage,
        Err(first) => first,
    };
    eprintln!("seed {seed} fails, and is made smaller: {first}");
    let plan = shrink(plan, &kind(&first));
    let journal = Journal::kept();
    let last = run(plan, journal.clone()).expect_err("the run failed before");
    let needed: Vec<_> = (0..)
        .zip(faults::NAMES)
        .filter(|(bit, _)| plan.may(1 << bit))
        .map(|(_, name)| name)
        .collect();
    eprintln!("{}", journal.lines().join("\n"));
    panic!(
        "seed {seed} fails: {first}\n\
         The smallest run that fails has {} steps, and of the faults {}: {last}\n\
         Its events are above. Again: SEED={seed} cargo test --test simulation seed",
        plan.steps,
        needed.join(", "),
    );
}

/// Returns the start of a failure's first line without its digits, so that failures of the same
/// kind compare equal.
fn kind(failure: &str) -> String {
    let line = failure.lines().next().unwrap_or_default();
    line.chars()
        .filter(|letter| !letter.is_ascii_digit())
        .take(40)
        .collect()
}

/// Returns the plan with the fewest kinds of faults, and then the fewest steps, that still fails in
/// the same way.
fn shrink(mut plan: Plan, wanted: &str) -> Plan {
    let fails =
        |plan: Plan| run(plan, Journal::default()).is_err_and(|failure| kind(&failure) == wanted);
    for bit in 0..faults::NAMES.len() {
        let without = Plan {
            faults: plan.faults & !(1 << bit),
            ..plan
        };
        if without.faults != plan.faults && fails(without) {
            plan = without;
        }
    }
    let steps = (0..plan.steps).find(|steps| {
        fails(Plan {
            steps: *steps,
            ..plan
        })
    });
    Plan {
        steps: steps.unwrap_or(plan.steps),
        ..plan
    }
}

fn run_all(seeds: impl Iterator<Item = u64>) -> Coverage {
    let mut coverage = Coverage::default();
    for seed in seeds {
        coverage.add(&run_and_report(seed));
    }
    coverage
}

fn run_share(share: u64) {
    let coverage = run_all(share * SEEDS_PER_TEST..(share + 1) * SEEDS_PER_TEST);
    println!("{coverage:?}");
    assert_eq!(
        coverage.missing(),
        Vec::<String>::new(),
        "the simulation does not cover everything it should"
    );
}

#[test]
fn seeds_of_the_first_share() {
    run_share(0);
}

#[test]
fn seeds_of_the_second_share() {
    run_share(1);
}

#[test]
fn seeds_of_the_third_share() {
    run_share(2);
}

#[test]
fn seeds_of_the_fourth_share() {
    run_share(3);
}

/// Each planted bug is found by one of the first seeds, none of which fails without it.
#[test]
fn planted_bugs_are_found() {
    for planted in Planted::ALL {
        let finds = |seed: &u64| {
            let plan = Plan {
                planted: Some(planted),
                ..Plan::new(*seed)
            };
            run(plan, Journal::default()).is_err()
        };
        let seed = (0..4 * SEEDS_PER_TEST).find(finds);
        assert!(seed.is_some(), "nothing finds {planted:?}");
        println!("{planted:?} is found by seed {seed:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 5, 8] {
        let journals = [Journal::kept(), Journal::kept()];
        for journal in &journals {
            run(Plan::new(seed), journal.clone()).expect("a fixed seed");
        }
        let [first, second] = journals.map(|journal| journal.lines());
        assert!(first.len() > 1000);
        assert_eq!(first, second);
    }
}

/// Runs the seeds named in the environment or, if there are none, one that the fixed tests do not
/// run.
#[test]
fn seeds_from_the_environment() {
    let variable = |name: &str| std::env::var(name).ok();
    if let Some(seed) = variable("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        let journal = Journal::kept();
        let outcome = run(Plan::new(seed), journal.clone());
        println!("{}", journal.lines().join("\n"));
        println!("{outcome:?}");
        run_and_report(seed);
        return;
    }
    let base = variable("SEED_BASE").map_or(1 << 32, |base| {
        // FNV-1a (Fowler, Noll, Vo): any text becomes a seed.
        base.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        }) >> 8
    });
    let seeds = variable("SEEDS").unwrap_or_else(|| "1".to_owned());
    let number = |text: &str| {
        text.parse::<u64>()
            .expect("SEEDS is a number, or two with .. between")
    };
    let seeds = match seeds.split_once("..") {
        Some((from, until)) => number(from)..number(until),
        None => base..base + number(&seeds),
    };
    println!("{:?}", run_all(seeds));
}
