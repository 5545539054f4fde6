//! The comparison of two results files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use etherply_bench::figures::{Figure, Spread, grouped};
use etherply_bench::load::figures::ALL;
use etherply_bench::machine::Machine;
use etherply_bench::results::{CaseResults, ContestantResults, Results};

use crate::print;
use crate::table;

/// Prints the figures of both files and the ratio of their medians, for each load that both have.
pub fn run(one: &Path, other: &Path) -> Result<(), String> {
    let (a, b) = (read(one)?, read(other)?);
    let text = compare(&a, &b).ok_or_else(|| {
        format!(
            "no load in common: {} has {}; {} has {}",
            one.display(),
            loads(&a),
            other.display(),
            loads(&b)
        )
    })?;
    print(&format!(
        "A: {} ({})\nB: {} ({})\n{text}",
        one.display(),
        a.machine,
        other.display(),
        b.machine
    ));
    Ok(())
}

fn read(file: &Path) -> Result<Results<Machine>, String> {
    let name = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("{name} was not written by --save: {error}"))
}

fn loads(results: &Results<Machine>) -> String {
    let cases: Vec<&str> = results
        .cases
        .iter()
        .map(|case| case.case.as_str())
        .collect();
    cases.join(" and ")
}

/// Returns a table for each pair of servers under the same load; `None` if there are none.
fn compare(a: &Results<Machine>, b: &Results<Machine>) -> Option<String> {
    let mut out = String::new();
    for case in &a.cases {
        let same =
            |other: &&CaseResults| other.scenario == case.scenario && other.case == case.case;
        let Some(other) = b.cases.iter().find(same) else {
            continue;
        };
        for (one, other) in pairs(&case.contestants, &other.contestants) {
            let names = if one.name == other.name {
                one.name.clone()
            } else {
                format!("{} and {}", one.name, other.name)
            };
            let table = table_of(one, other);
            let _ = write!(out, "\n{}: {names}\n\n{table}", case.case);
        }
    }
    (!out.is_empty()).then_some(out)
}

/// Pairs servers by their names. If each side has only one, the names may differ.
fn pairs<'a>(
    ones: &'a [ContestantResults],
    others: &'a [ContestantResults],
) -> Vec<(&'a ContestantResults, &'a ContestantResults)> {
    if let ([one], [other]) = (ones, others) {
        return vec![(one, other)];
    }
    let pair = |one: &'a ContestantResults| {
        let other = others.iter().find(|other| other.name == one.name)?;
        Some((one, other))
    };
    ones.iter().filter_map(pair).collect()
}

fn table_of(one: &ContestantResults, other: &ContestantResults) -> String {
    let head = ["", "A", "B", "B : A"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for (id, decimals, title) in figures(&one.rounds) {
        let of = |rounds: &[BTreeMap<String, f64>]| {
            Spread::of(
                rounds
                    .iter()
                    .filter_map(|numbers| numbers.get(&id).copied()),
            )
        };
        let Some((a, b)) = of(&one.rounds).zip(of(&other.rounds)) else {
            continue;
        };
        let ratio = if a.median > 0.0 {
            grouped(b.median / a.median, 2)
        } else {
            "–".to_owned()
        };
        rows.push(vec![title, a.text(decimals), b.text(decimals), ratio]);
    }
    table::layout(&rows)
}

/// Returns the id, decimals and title of each figure: first those of a load in their order, then
/// any others.
fn figures(rounds: &[BTreeMap<String, f64>]) -> Vec<(String, usize, String)> {
    let known = |id: &str| ALL.iter().position(|figure| figure.id == id);
    let ids = rounds.iter().flat_map(BTreeMap::keys);
    let mut ids: Vec<(Option<usize>, &String)> = ids.map(|id| (known(id), id)).collect();
    ids.sort_by_key(|(place, id)| (place.is_none(), *place, *id));
    ids.dedup();
    let described = ids.into_iter().map(|(place, id)| {
        let figure: Option<&Figure> = place.map(|place| &ALL[place]);
        let decimals = figure.map_or(2, |figure| figure.decimals);
        let title = figure.map_or_else(|| id.clone(), Figure::title);
        (id.clone(), decimals, title)
    });
    described.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(case: &str, name: &str, rounds: &[&[(&str, f64)]]) -> Results<Machine> {
        let numbers = |pairs: &&[(&str, f64)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(id, number)| ((*id).to_owned(), *number))
                .collect()
        };
        Results {
            machine: Machine::read(),
            rounds: 1,
            warm_up_s: 1.0,
            measured_s: 1.0,
            cases: vec![CaseResults {
                scenario: "etherply-bench".to_owned(),
                case: case.to_owned(),
                contestants: vec![ContestantResults {
                    name: name.to_owned(),
                    rounds: rounds.iter().map(numbers).collect(),
                }],
            }],
        }
    }

    #[test]
    fn medians_of_two_servers_under_the_same_load_are_compared() {
        let rounds = [
            &[("p50_us", 100.0), ("ops_per_s", 500.0)][..],
            &[("p50_us", 300.0), ("ops_per_s", 500.0)],
            &[("p50_us", 200.0), ("ops_per_s", 500.0)],
        ];
        let a = results("a load", "ws://one", &rounds);
        let b = results("a load", "ws://two", &[&[("p50_us", 50.0), ("new", 1.0)]]);
        let expected = [
            "\na load: ws://one and ws://two\n",
            "                     A   B  B : A",
            "p50, µs  200 (100–300)  50   0.25\n",
        ];
        assert_eq!(compare(&a, &b).unwrap(), expected.join("\n"));
        // A file can be compared with itself, even after a round trip through JSON.
        let text = serde_json::to_string(&a).unwrap();
        let same = compare(&a, &serde_json::from_str(&text).unwrap()).unwrap();
        assert!(same.contains("1.00"), "{same}");
    }

    #[test]
    fn different_loads_are_not_compared() {
        let rounds = [&[("p50_us", 100.0)][..]];
        let (a, b) = (
            results("a load", "ws://one", &rounds),
            results("another", "ws://one", &rounds),
        );
        assert_eq!(compare(&a, &b), None);
    }
}
