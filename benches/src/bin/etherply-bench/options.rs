//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap_complete::Shell;
use etherply_bench::load::op::FieldOrder;
use etherply_bench::load::pace::Pace;
use etherply_bench::load::plan::Plan;
use etherply_bench::load::protocol::ClientProtocol;

/// The bound on ops in flight in all rooms together, since each is kept until it has arrived
/// everywhere.
const OPS_IN_FLIGHT_MAX: u64 = 1_000_000;
const SECONDS_MIN: f64 = 0.01;
/// A day.
const SECONDS_MAX: f64 = 86_400.0;

/// Puts a load on a sync server, checks every delivery, and prints how fast it was
///
/// In each room, one client sends ops, and all others must receive each op once, in order and
/// unaltered. A latency is the time from when an op was due to its arrival at a receiver. Anything
/// wrong, missing or late ends the run with exit code 1.
///
/// A run leaves its rooms on the server: workspaces whose ids start with `bench-`, each with up to
/// 100 keys of 100 bytes.
#[derive(Debug, Parser)]
#[command(name = "etherply-bench", version)]
pub struct Options {
    /// The server's URL
    #[arg(help = "The server, such as ws://127.0.0.1:8080 or wss://sync.example.com")]
    #[arg(required_unless_present_any = ["compare", "completions", "manual"])]
    pub url: Option<String>,

    /// Rooms (workspaces)
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rooms: u32,

    /// Clients in each room; one of them sends
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub members: u32,

    /// Ops per second, in all rooms together
    #[arg(long, value_name = "OPS", default_value_t = 500)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,

    /// Instead of a rate, keep this many ops in flight in each room: as fast as they are delivered
    #[arg(long, value_name = "OPS", conflicts_with = "rate")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: Option<u32>,

    /// The version of the protocol that the clients speak
    #[arg(long, value_name = "VERSION", value_enum, default_value_t)]
    pub protocol: ClientProtocol,

    /// Duration of each round, after its warm-up
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub seconds: Duration,

    /// Duration of the warm-up before each round
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,

    /// Rounds; with more than one, the figures are medians with minimum and maximum
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// A delivery that takes longer than this is a failure
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub timeout: Duration,

    /// The token; other users of this machine can see it
    #[arg(help = "The token, which other users can see here [default: $ETHERPLY_TOKEN]")]
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,

    /// The file of the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,

    /// The file of the server's secret, used to sign a token for this run
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token", "token_file"])]
    pub secret_file: Option<PathBuf>,

    /// The file (PEM) of the CA certificates to trust, instead of those of the system
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// The server's process id, if it runs on this machine: adds its CPU time and memory
    #[arg(long, value_name = "PID")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,

    /// Write all figures to this file, for --compare
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,

    /// Compare two --save files instead of measuring, and print the ratios of B to A
    #[arg(long, num_args = 2, value_names = ["A", "B"], exclusive = true)]
    pub compare: Vec<PathBuf>,

    /// Print the completions of a shell, for the package
    #[arg(long, hide = true, value_name = "SHELL", exclusive = true)]
    pub completions: Option<Shell>,

    /// Print the manual page, for the package
    #[arg(long, hide = true, exclusive = true)]
    pub manual: bool,
}

impl Options {
    /// Returns the load of each round.
    pub fn plan(&self) -> Result<Plan, String> {
        let plan = Plan {
            rooms: self.rooms,
            receivers: self.members - 1,
            pace: match self.in_flight {
                Some(in_flight) => Pace::Closed { in_flight },
                None => Pace::Open {
                    ops_per_s: self.rate,
                },
            },
            protocol: self.protocol,
            field_order: FieldOrder::AsSent,
            has_state: true,
            warm_up: self.warm_up,
            measured: self.seconds,
            late: self.timeout,
        };
        let in_flight = plan.ops_in_flight_max() as u64 * u64::from(self.rooms);
        if in_flight > OPS_IN_FLIGHT_MAX {
            let flags = match self.in_flight {
                Some(_) => "--in-flight or --rooms",
                None => "--rate or --timeout",
            };
            return Err(format!(
                "up to {in_flight} ops would be in flight, more than {OPS_IN_FLIGHT_MAX}: \
                 lower {flags}"
            ));
        }
        Ok(plan)
    }

    /// Returns the number of clients in a round.
    pub fn clients(&self) -> u64 {
        u64::from(self.rooms) * u64::from(self.members)
    }

    /// Describes the load in the form that `--compare` uses to distinguish loads.
    pub fn load(&self) -> String {
        let Self { rooms, members, .. } = self;
        let rooms_unit = if *rooms == 1 { "room" } else { "rooms" };
        let pace = match self.in_flight {
            Some(in_flight) => format!("{in_flight} ops in flight in each"),
            None => format!("{} ops/s in all", self.rate),
        };
        let protocol = match self.protocol {
            ClientProtocol::V1 => String::new(),
            other => format!(", {}", other.title()),
        };
        format!("{rooms} {rooms_unit} of {members} clients, {pace}{protocol}")
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().unwrap_or(f64::NAN);
    if (SECONDS_MIN..=SECONDS_MAX).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(format!(
        "it must be a number of seconds from {SECONDS_MIN} to {SECONDS_MAX}"
    ))
}

/// Returns one line that says what is wrong with the command line and where to find help.
pub fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let wrong = paragraphs.first().map_or("error", String::as_str);
    let tip = paragraphs
        .iter()
        .find(|paragraph| paragraph.starts_with("tip: "));
    let tip = tip.map_or_else(String::new, |tip| format!("; {tip}"));
    format!("{wrong}{tip} (see etherply-bench --help)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> String {
        let arguments = [&["etherply-bench"], arguments].concat();
        usage_line(&Options::try_parse_from(arguments).unwrap_err())
    }

    #[test]
    fn a_command_line_error_is_one_line_that_names_the_flag() {
        for (arguments, flag) in [
            (&[][..], "<URL>"),
            (&["ws://x", "--rooms", "0"], "--rooms"),
            (&["ws://x", "--members", "1"], "--members"),
            (&["ws://x", "--rate", "-1"], "-1"),
            (&["ws://x", "--seconds", "NaN"], "--seconds"),
            (
                &["ws://x", "--rate", "1", "--in-flight", "1"],
                "--in-flight",
            ),
            (&["ws://x", "--romos", "1"], "--rooms"),
            (&["--compare", "a.json"], "--compare"),
            (&["ws://x", "--compare", "a.json", "b.json"], "--compare"),
        ] {
            let line = line(arguments);
            assert!(line.starts_with("error: "), "{line}");
            assert!(
                line.contains(flag) && !line.contains('\n'),
                "{arguments:?}: {line}"
            );
        }
    }

    #[test]
    fn a_load_that_needs_too_much_memory_is_refused() {
        let plan = |arguments: &[&str]| {
            let arguments = [&["etherply-bench", "ws://x"], arguments].concat();
            Options::try_parse_from(arguments).unwrap().plan()
        };
        assert!(plan(&[]).is_ok());
        assert!(plan(&["--rate", "100000"]).is_ok());
        assert!(plan(&["--rate", "1000000"]).unwrap_err().contains("--rate"));
        let crowded = plan(&["--rooms", "100000", "--in-flight", "100"]);
        assert!(crowded.unwrap_err().contains("--in-flight"));
    }
}
