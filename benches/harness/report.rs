//! The tables of a run, and the file with every number.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Environment;
use crate::rounds::Rounds;
use crate::scenarios::loads::{OTHERS_PERCENT, OWN_SHARE};
use crate::scenarios::{Case, Scenario};
use etherply_bench::figures::{Figure, Numbers, Spread, ratio};
use etherply_bench::load::figures::OWN_SHARE_LIMIT_PERCENT;
use etherply_bench::results::{CaseResults, ContestantResults, Results};

/// The limit above which other work on the machine affects the figures.
const OTHERS_LIMIT_PERCENT: f64 = 10.0;

/// Returns the text of a case: its table, the ratios, the targets.
pub fn text(scenario: &dyn Scenario, case: &Case, rounds: &Rounds) -> String {
    let mut out = format!("\n## {} · {}\n\n", scenario.name(), case.title);
    put_table(&mut out, scenario, case, rounds);
    put_ratios(&mut out, scenario, case, rounds);
    put_targets(&mut out, scenario, case, rounds);
    let limited = case.contestants.iter().zip(rounds).filter(|(_, rounds)| {
        spread(rounds, OWN_SHARE.id).is_some_and(|share| share.median > OWN_SHARE_LIMIT_PERCENT)
    });
    let limited: Vec<&str> = limited
        .map(|(contestant, _)| contestant.name.as_str())
        .collect();
    let others = rounds.iter().flatten();
    let others = Spread::of(others.filter_map(|numbers| numbers.get(OTHERS_PERCENT).copied()));
    if let Some(others) = others
        && others.median > OTHERS_LIMIT_PERCENT
    {
        let _ = writeln!(
            out,
            "\nOther processes used {} % of a core in the meantime: measure on a quiet machine.",
            others.text(0)
        );
    }
    if !limited.is_empty() {
        let _ = writeln!(
            out,
            "\nThe load generator was the limit (over {OWN_SHARE_LIMIT_PERCENT} % of its core) \
             with: {}.",
            limited.join("; ")
        );
    }
    out
}

fn spread(rounds: &[Numbers], id: &str) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(|numbers| numbers.get(id).copied()))
}

fn put_table(out: &mut String, scenario: &dyn Scenario, case: &Case, rounds: &Rounds) {
    let figures = scenario.figures().iter();
    // A figure without numbers has no column.
    let figures: Vec<_> = figures
        .filter(|figure| {
            rounds
                .iter()
                .any(|rounds| spread(rounds, figure.id).is_some())
        })
        .collect();
    let heads: Vec<String> = figures.iter().map(|figure| figure.title()).collect();
    let _ = writeln!(out, "| | {} |", heads.join(" | "));
    let _ = writeln!(out, "|{}", " --- |".repeat(heads.len() + 1));
    for (contestant, rounds) in case.contestants.iter().zip(rounds) {
        let cells = figures.iter().map(|figure| {
            spread(rounds, figure.id)
                .map_or_else(|| "–".to_owned(), |spread| spread.text(figure.decimals))
        });
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(out, "| {} | {} |", contestant.name, cells.join(" | "));
    }
}

fn put_ratios(out: &mut String, scenario: &dyn Scenario, case: &Case, rounds: &Rounds) {
    if case.pairs.is_empty() {
        return;
    }
    let figures = scenario
        .figures()
        .iter()
        .filter(|figure| **figure != OWN_SHARE);
    let figures: Vec<_> = figures
        .filter(|figure| {
            let mut pairs = case.pairs.iter();
            pairs.any(|(of, to)| ratio(&rounds[*of], &rounds[*to], figure.id).is_some())
        })
        .collect();
    let heads: Vec<&str> = figures.iter().map(|figure| figure.name).collect();
    let _ = writeln!(out, "\n| ratio | {} |", heads.join(" | "));
    let _ = writeln!(out, "|{}", " --- |".repeat(heads.len() + 1));
    for (of, to) in &case.pairs {
        let cells = figures.iter().map(|figure| {
            ratio(&rounds[*of], &rounds[*to], figure.id)
                .map_or_else(|| "–".to_owned(), |ratio| ratio.text(2))
        });
        let cells: Vec<String> = cells.collect();
        let (of, to) = (&case.contestants[*of].name, &case.contestants[*to].name);
        let _ = writeln!(out, "| {of} : {to} | {} |", cells.join(" | "));
    }
}

fn put_targets(out: &mut String, scenario: &dyn Scenario, case: &Case, rounds: &Rounds) {
    let of_name = |name: &str| {
        let mut contestants = case.contestants.iter();
        contestants.position(|contestant| contestant.name == name)
    };
    for target in scenario.targets() {
        if target.case != case.index {
            continue;
        }
        let Some(of) = of_name(target.of) else {
            continue;
        };
        let (value, versus) = match target.to {
            None => (spread(&rounds[of], target.figure), String::new()),
            Some(name) => match of_name(name) {
                Some(to) => (
                    ratio(&rounds[of], &rounds[to], target.figure),
                    format!(" × {name}"),
                ),
                None => continue,
            },
        };
        let title = scenario
            .figures()
            .iter()
            .find(|figure| figure.id == target.figure);
        let title = title.map_or_else(|| target.figure.to_owned(), Figure::title);
        let outcome = match &value {
            Some(value) if target.bound.is_met(value.median) => {
                format!("{}: met", value.text(2))
            }
            Some(value) => format!("{}: MISSED", value.text(2)),
            None => "not measured".to_owned(),
        };
        let _ = write!(
            out,
            "\ntarget: {}, {title}: {}{versus}: {outcome}",
            target.of, target.bound
        );
    }
    out.push('\n');
}

/// Returns the numbers of a case.
pub fn case_results(scenario: &dyn Scenario, case: &Case, rounds: &Rounds) -> CaseResults {
    let contestants = case.contestants.iter().zip(rounds);
    let contestants =
        contestants.map(|(contestant, rounds)| ContestantResults::new(&contestant.name, rounds));
    CaseResults {
        scenario: scenario.name().to_owned(),
        case: case.title.clone(),
        contestants: contestants.collect(),
    }
}

/// Writes a run to its own file, named by `stamp`, and returns its path.
pub fn write(results: &Results<Environment>, folder: &Path, stamp: u64) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("run-{stamp}.json"));
    let text = serde_json::to_string_pretty(results).map_err(io::Error::other)?;
    fs::write(&path, text)?;
    Ok(path)
}
