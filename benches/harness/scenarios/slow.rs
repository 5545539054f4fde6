//! The effect of stalled readers on the others.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::loads::{
    self, CPU_PER_DELIVERY, DELIVERIES, LoadShape, MAX, OPS, OWN_SHARE, P50, P99, RESIDENT,
};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{Contestant, Server};
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::endpoint::Connection;
use etherply_bench::load::join::read_more;
use etherply_bench::load::joiner::first_message;
use etherply_bench::load::pace::Pace;

pub struct Slow;

const STALLED: usize = 10;
/// The end of the name of a contestant in whose room some readers stall.
const WITH: &str = ", 10 stalled";
/// Long enough to fill a stalled reader's sockets (the kernel buffers up to 4 MB for the sender,
/// `net.ipv4.tcp_wmem`) and its outbox in the server.
const MEASURED_MIN: Duration = Duration::from_secs(15);
const ROUNDS_MAX: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(10);

const SHAPE: LoadShape = LoadShape {
    title: "2,000 ops/s, 1,000 receivers",
    rooms: 1,
    receivers: 1000,
    pace: Pace::Open { ops_per_s: 2000 },
};

/// The number of ops that a stalled reader received once it resumed reading.
const LEFT: Figure = Figure {
    id: "ops_for_stalled_reader",
    name: "ops sent to a stalled reader",
    unit: "",
    decimals: 0,
};

impl Scenario for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn about(&self) -> &'static str {
        "1,000 receivers at 2,000 ops/s, with and without 10 more that read nothing"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            P99,
            P50,
            MAX,
            CPU_PER_DELIVERY,
            DELIVERIES,
            RESIDENT,
            LEFT,
            OWN_SHARE,
        ]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let modes = config
            .durability
            .iter()
            .map(|mode| Contestant::etherply(mode));
        let contestants: Vec<Contestant> = modes
            .flat_map(|contestant| {
                let with = Contestant {
                    name: format!("{}{WITH}", contestant.name),
                    ..contestant.clone()
                };
                [contestant, with]
            })
            .collect();
        let without = (0..contestants.len()).step_by(2);
        vec![Case {
            index: 0,
            title: SHAPE.title.to_owned(),
            pairs: without.map(|without| (without + 1, without)).collect(),
            contestants,
        }]
    }

    fn rounds(&self, config: &HarnessConfig) -> u32 {
        config.rounds.min(ROUNDS_MAX)
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
        let count = if contestant.name.ends_with(WITH) {
            STALLED
        } else {
            0
        };
        let stalled: Result<Vec<Connection>, String> = (0..count).map(|_| stall(&server)).collect();
        let stalled = stalled?;
        let measured = if config.quick {
            config.measured
        } else {
            config.measured.max(MEASURED_MIN)
        };
        let config = HarnessConfig {
            measured,
            ..config.clone()
        };
        let mut numbers = loads::measure_server(&SHAPE, contestant, &server, &config)?;
        for reader in stalled {
            let ops = catch_up(&server, reader).map_err(|failure| server.with_log(failure))?;
            numbers.insert(LEFT.id, ops);
            if !config.quick && ops >= numbers[OPS.id] * measured.as_secs_f64() {
                return Err("the sockets held all that was sent: no reader was slow".to_owned());
            }
        }
        Ok(numbers)
    }

    fn targets(&self) -> Vec<Target> {
        [
            ("etherply none, 10 stalled", "etherply none"),
            ("etherply always, 10 stalled", "etherply always"),
        ]
        .map(|(of, to)| Target {
            case: 0,
            figure: P99.id,
            of,
            to: Some(to),
            bound: AtMost(1.2),
        })
        .into()
    }
}

/// Connects a client that joins and then reads nothing.
fn stall(server: &Server) -> Result<Connection, String> {
    let joined = server.endpoint.join(&server.endpoint.workspace(0));
    Ok(joined.map_err(|error| error.to_string())?.0)
}

/// Lets a stalled reader read until it has the state of the room. Returns the number of ops that it
/// received.
fn catch_up(server: &Server, mut stream: Connection) -> Result<f64, String> {
    let joined = server.endpoint.join(&server.endpoint.workspace(0));
    let (_, state) = joined.map_err(|error| error.to_string())?;
    let state = state
        .data()
        .ok_or("a client that joins receives no state")?;
    let (mut held, mut seen) = (Map::new(), Vec::new());
    let (mut ops, begun) = (0.0, Instant::now());
    let timeout = stream.set_read_timeout(Some(PATIENCE));
    timeout.map_err(|error| error.to_string())?;
    while state != held {
        let read = read_more(&mut stream, &mut seen);
        let late = (begun.elapsed() > PATIENCE).then(|| "it takes too long".to_owned());
        if let Some(why) = read.err().map(|error| error.to_string()).or(late) {
            let wrong = state
                .iter()
                .filter(|(key, value)| held.get(*key) != Some(*value));
            return Err(format!(
                "a stalled reader was sent {ops} ops, and not the last of {} keys: {why}",
                wrong.count()
            ));
        }
        let mut taken = 0;
        while let Some((start, end)) =
            first_message(&seen[taken..]).map_err(|error| error.to_string())?
        {
            // A ping may come between two ops.
            let op: Value =
                serde_json::from_slice(&seen[taken + start..taken + end]).unwrap_or_default();
            if let Some(key) = op["payload"]["key"].as_str() {
                held.insert(key.to_owned(), op["payload"]["value"].clone());
                ops += 1.0;
            }
            taken += end;
        }
        seen.drain(..taken);
    }
    Ok(ops)
}
