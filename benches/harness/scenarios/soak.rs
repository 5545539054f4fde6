//! Minutes of a mixed load: are memory and latency the same at the end as at the beginning?

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::loads::{self, CPU_PER_DELIVERY, DELIVERIES, LoadShape, MAX, OWN_SHARE, P50, P99};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{Contestant, Server};
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::endpoint::{Connection, Endpoint};
use etherply_bench::load::pace::Pace;
use etherply_bench::load::run::{self, Outcome};

pub struct Soak;

const SHAPE: LoadShape = LoadShape {
    title: "100 rooms of 10 at 2,000 ops/s in all, clients that come and go, 10 that read nothing",
    rooms: 100,
    receivers: 9,
    pace: Pace::Open { ops_per_s: 2000 },
};
/// The number of parts into which the measured time is divided. The latency of the last is compared
/// with that of the first, and the memory after the last with that after the third: by the end of
/// the third, the server has allocated its pools and dropped the clients that read nothing.
const PARTS: u32 = 10;
const STALLED: u32 = 10;
/// The length of a part below which memory is not compared.
const SETTLED_S: f64 = 25.0;
/// The pause between two short-lived clients.
const PAUSE: Duration = Duration::from_millis(20);

const RESIDENT_FIRST: Figure = megabytes("resident_mb_first", "resident after 3 of 10 parts");
const RESIDENT_LAST: Figure = megabytes("resident_mb_last", "resident after the last");
const P99_FIRST: Figure = Figure {
    id: "p99_us_first",
    name: "p99 of the first part",
    unit: "µs",
    decimals: 0,
};
const P99_LAST: Figure = Figure {
    id: "p99_us_last",
    name: "p99 of the last",
    unit: "µs",
    decimals: 0,
};
const RESIDENT_GROWTH: Figure = Figure {
    id: "resident_last_to_first",
    name: "resident",
    unit: "last : first",
    decimals: 2,
};
const CAME_AND_WENT: Figure = Figure {
    id: "came_and_went",
    name: "clients that came and went",
    unit: "",
    decimals: 0,
};

const fn megabytes(id: &'static str, name: &'static str) -> Figure {
    Figure {
        id,
        name,
        unit: "MB",
        decimals: 1,
    }
}

impl Scenario for Soak {
    fn name(&self) -> &'static str {
        "soak"
    }

    fn about(&self) -> &'static str {
        "minutes of a mixed load (--soak-minutes): do memory and latency stay constant?"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            RESIDENT_GROWTH,
            RESIDENT_FIRST,
            RESIDENT_LAST,
            P99_FIRST,
            P99_LAST,
            P50,
            MAX,
            CPU_PER_DELIVERY,
            DELIVERIES,
            CAME_AND_WENT,
            OWN_SHARE,
        ]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let modes = config.durability.iter();
        let contestants = modes.map(|mode| Contestant::etherply(mode)).collect();
        vec![Case {
            index: 0,
            title: SHAPE.title.to_owned(),
            contestants,
            pairs: Vec::new(),
        }]
    }

    /// Returns 1: a run takes minutes, and it is compared with itself.
    fn rounds(&self, _: &HarnessConfig) -> u32 {
        1
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
        let mut plan = loads::plan(&SHAPE, contestant, config);
        plan.measured = config.soak;
        let stalled: Result<Vec<Connection>, String> = (0..STALLED)
            .map(|room| {
                Ok(server
                    .endpoint
                    .join(&server.endpoint.workspace(room))
                    .map_err(|error| error.to_string())?
                    .0)
            })
            .collect();
        let stalled = stalled?;
        let mut resident_bytes = Vec::new();
        let is_over = AtomicBool::new(false);
        let (outcomes, visits) = thread::scope(|scope| {
            let visits = scope.spawn(|| visit_rooms(&server.endpoint, &is_over));
            let outcomes = run::run_in_parts(&server.endpoint, &plan, PARTS, &mut || {
                resident_bytes.extend(server.resident_bytes());
                server.usage()
            });
            is_over.store(true, Ordering::Relaxed);
            (outcomes, visits.join().expect("the thread does not panic"))
        });
        let outcomes = outcomes.map_err(|failure| server.with_log(failure))?;
        let visits = visits.map_err(|failure| server.with_log(failure))?;
        drop(stalled);
        numbers_of(&outcomes, &resident_bytes, visits, &server)
    }

    fn targets(&self) -> Vec<Target> {
        ["etherply none", "etherply always"]
            .map(|of| Target {
                case: 0,
                figure: RESIDENT_GROWTH.id,
                of,
                to: None,
                bound: AtMost(1.1),
            })
            .into()
    }
}

/// Lets clients join a room one after another, check its state, and leave. Returns their number.
fn visit_rooms(endpoint: &Endpoint, is_over: &AtomicBool) -> Result<u32, String> {
    let mut visits = 0;
    while !is_over.load(Ordering::Relaxed) {
        let name = endpoint.workspace(visits % SHAPE.rooms);
        let state = endpoint.visit(&name).map_err(|error| error.to_string())?;
        let data = state.data();
        if !data.is_some_and(|data| data.values().all(Value::is_string)) {
            return Err(format!(
                "a client that joins {name} receives a wrong state: {}",
                state.text()
            ));
        }
        visits += 1;
        thread::sleep(PAUSE);
    }
    Ok(visits)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn numbers_of(
    outcomes: &[Outcome],
    resident_bytes: &[f64],
    visits: u32,
    server: &Server,
) -> Result<Numbers, String> {
    let ([first, .., last], [_, _, _, resident_first, .., resident_last]) =
        (outcomes, resident_bytes)
    else {
        return Err(server.with_log("too few parts to compare"));
    };
    let mut all = first.clone();
    for outcome in &outcomes[1..] {
        all.add(outcome);
    }
    let p99_us = |outcome: &Outcome| outcome.latencies_ns.value_at_quantile(0.99) as f64 / 1e3;
    let mut numbers = loads::numbers_of(&all);
    if first.seconds >= SETTLED_S {
        numbers.insert(RESIDENT_GROWTH.id, resident_last / resident_first);
    }
    numbers.extend([
        (RESIDENT_FIRST.id, resident_first / 1e6),
        (RESIDENT_LAST.id, resident_last / 1e6),
        (P99_FIRST.id, p99_us(first)),
        (P99_LAST.id, p99_us(last)),
        (P99.id, p99_us(&all)),
        (CAME_AND_WENT.id, f64::from(visits)),
    ]);
    Ok(numbers)
}
