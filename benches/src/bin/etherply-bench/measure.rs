//! A measurement: the rounds, their figures, and the file to which they are saved.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etherply_bench::figures::{Numbers, Spread};
use etherply_bench::load::endpoint::Endpoint;
use etherply_bench::load::figures::{
    ALL, OWN_SHARE, OWN_SHARE_LIMIT_PERCENT, RESIDENT, numbers_of,
};
use etherply_bench::load::plan::Plan;
use etherply_bench::load::run;
use etherply_bench::machine::Machine;
use etherply_bench::process::usage::Reading;
use etherply_bench::process::{memory, raise_open_files};
use etherply_bench::results::{CaseResults, ContestantResults, Results};
use etherply_bench::selfcheck;
use etherply_bench::tls;
use etherply_bench::url::Url;

use crate::credentials;
use crate::options::Options;
use crate::print;
use crate::table;

/// The name of the scenario in a run's results file.
const SCENARIO: &str = "etherply-bench";
/// The number of open files in addition to the connections.
const OTHER_FILES: u64 = 32;

/// Measures, prints the figures, and saves them if asked to.
pub fn run(options: &Options) -> Result<(), String> {
    let plan = options.plan()?;
    let url = url(options)?;
    // It is better to report this now than after the last round.
    if let Some(file) = &options.save
        && let Some(folder) = file.parent()
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        return Err(format!(
            "--save {}: its folder does not exist",
            file.display()
        ));
    }
    let endpoint = endpoint(options, &url)?;
    if let Some(limit) = raise_open_files()
        && options.clients() + OTHER_FILES > limit
    {
        return Err(format!(
            "{} clients need as many open files, and the limit is {limit} (ulimit -n): \
             lower --rooms or --members",
            options.clients()
        ));
    }
    selfcheck::run()?;
    let machine = Machine::read();
    print(&format!("{url}: {}\n", options.load()));
    let mut rounds = Vec::new();
    let mut deliveries = 0;
    for round in 1..=options.rounds {
        if io::stderr().is_terminal() {
            eprint!("round {round} of {} …\r", options.rounds);
        }
        let (numbers, count) = measure(options, &plan, &endpoint, round)
            .map_err(|failure| format!("{url}: {failure}{}", remedy(&failure)))?;
        rounds.push(numbers);
        deliveries += count;
    }
    print(&report(options, &rounds, deliveries));
    match &options.save {
        Some(file) => save(options, file, &url, machine, &rounds),
        None => Ok(()),
    }
}

fn url(options: &Options) -> Result<Url, String> {
    let text = options.url.as_deref().unwrap_or_default();
    // A query may hold a token.
    let shown = text.split('?').next().unwrap_or_default();
    text.parse().map_err(|error| format!("{shown}: {error}"))
}

/// Finds the server, and checks all the options that concern it.
fn endpoint(options: &Options, url: &Url) -> Result<Endpoint, String> {
    let token = credentials::token(options, duration(options))?;
    let tls = if url.has_tls {
        Some(tls::trusting(&url.host, options.ca.as_deref())?)
    } else if options.ca.is_some() {
        return Err(format!("--ca is for wss://, and {url} has no TLS"));
    } else {
        None
    };
    if let Some(pid) = options.pid {
        Reading::of(pid).map_err(|_| format!("--pid {pid}: no such process on this machine"))?;
    }
    let (address, is_local) = url
        .resolve()
        .map_err(|error| format!("{url}: cannot connect: {error}"))?;
    if let Some(pid) = options.pid
        && !is_local
    {
        return Err(format!(
            "--pid {pid}: {address} is another machine, whose processes cannot be read"
        ));
    }
    let endpoint = Endpoint::plain(address, token);
    Ok(endpoint
        .with_host(url.authority(), url.base_path.clone())
        .with_tls(tls)
        .with_protocol(options.protocol))
}

/// Returns how long the whole run takes, not counting the time that clients take to join.
fn duration(options: &Options) -> Duration {
    (options.warm_up + options.seconds) * options.rounds
}

/// Measures one round, in its own rooms. Returns its figures and the number of deliveries on which
/// they are based.
fn measure(
    options: &Options,
    plan: &Plan,
    endpoint: &Endpoint,
    round: u32,
) -> Result<(Numbers, u64), String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let prefix = format!("bench-{}-{round}-", now.as_millis());
    let endpoint = endpoint.clone().with_prefix(prefix);
    let mut read_server = || Reading::of(options.pid?).ok();
    let outcome = run::run(&endpoint, plan, &mut read_server);
    let outcome = outcome.map_err(|failure| failure.to_string())?;
    let mut numbers = numbers_of(&outcome);
    if let Some(memory) = options.pid.and_then(|pid| memory(pid).ok()) {
        numbers.insert(RESIDENT.id, memory.resident_bytes / 1e6);
    }
    Ok((numbers, outcome.deliveries))
}

/// Returns what to do about a certificate that is not trusted.
fn remedy(failure: &str) -> &'static str {
    if failure.contains("UnknownIssuer") {
        "; pass its CA certificate with --ca"
    } else if failure.contains("CaUsedAsEndEntity") {
        "; create a self-signed certificate with `-addext basicConstraints=CA:FALSE`"
    } else {
        ""
    }
}

fn report(options: &Options, rounds: &[Numbers], deliveries: u64) -> String {
    let spread =
        |id: &str| Spread::of(rounds.iter().filter_map(|numbers| numbers.get(id).copied()));
    let rows = ALL.iter().filter_map(|figure| {
        let text = spread(figure.id)?.text(figure.decimals);
        Some(vec![figure.title(), text])
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let mut out = format!(
        "{deliveries} deliveries in {} of {} s, each checked\n\n{}",
        if options.rounds == 1 {
            "1 round".to_owned()
        } else {
            format!("{} rounds", options.rounds)
        },
        options.seconds.as_secs_f64(),
        table::layout(&rows)
    );
    if spread(OWN_SHARE.id).is_some_and(|share| share.median > OWN_SHARE_LIMIT_PERCENT) {
        out.push_str(
            "\nThe load generator was saturated, so the server may be faster than this.\n",
        );
    }
    out
}

fn save(
    options: &Options,
    file: &Path,
    url: &Url,
    machine: Machine,
    rounds: &[Numbers],
) -> Result<(), String> {
    let results = Results {
        machine,
        rounds: options.rounds,
        warm_up_s: options.warm_up.as_secs_f64(),
        measured_s: options.seconds.as_secs_f64(),
        cases: vec![CaseResults {
            scenario: SCENARIO.to_owned(),
            case: options.load(),
            contestants: vec![ContestantResults::new(&url.to_string(), rounds)],
        }],
    };
    let text = serde_json::to_string_pretty(&results).map_err(|error| error.to_string())?;
    std::fs::write(file, text).map_err(|error| format!("--save {}: {error}", file.display()))
}
