//! All clients of a large workspace reconnect at once after a restart: those that resume are
//! compared with those that must be sent the whole state again.

use std::rc::Rc;
use std::time::Duration;

use super::crowds::{ALL_IN, CPU_PER_JOIN, JOINS, LARGE, Mark};
use super::loads::{MAX, OWN_SHARE, P50, P99, RESIDENT};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{Contestant, Server};
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::crowd::Crowd;
use etherply_bench::load::endpoint::Endpoint;
use etherply_bench::load::joiner::Welcome;
use etherply_bench::load::protocol::ClientProtocol;
use etherply_bench::load::state_parts::{ExpectedEntries, PartsCursor};
use etherply_bench::load::tracker::Clock;

pub struct Resume;

const BYTES: Figure = Figure {
    id: "bytes_per_join",
    name: "received",
    unit: "bytes/join",
    decimals: 0,
};

const ROOM: &str = "large";
/// The end of the name of a contestant whose clients resume.
const RESUMES: &str = ", resume";
const JOINS_FULLY: &str = ", full join";
/// The number of changes that a client has missed when it resumes: 1 % of the state.
const MISSED: u64 = 1;
/// 5 GB must go through the loopback device.
const PATIENCE: Duration = Duration::from_mins(1);

impl Scenario for Resume {
    fn name(&self) -> &'static str {
        "resume"
    }

    fn about(&self) -> &'static str {
        "version 2: 5,000 clients of a 1 MB state at once after a restart, some with full joins"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            CPU_PER_JOIN,
            BYTES,
            ALL_IN,
            JOINS,
            P50,
            P99,
            MAX,
            RESIDENT,
            OWN_SHARE,
        ]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let modes = config.durability.iter();
        let contestants: Vec<Contestant> = modes
            .flat_map(|mode| {
                [RESUMES, JOINS_FULLY].map(|end| Contestant {
                    name: format!("etherply {mode}{end}"),
                    protocol: ClientProtocol::V2,
                    ..Contestant::etherply(mode)
                })
            })
            .collect();
        let resuming = (0..contestants.len()).step_by(2);
        let title = format!("{} clients, 1 MB, 1 of 100 keys changed", clients(config));
        vec![Case {
            index: 0,
            title,
            pairs: resuming.map(|one| (one, one + 1)).collect(),
            contestants,
        }]
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
        let state = LARGE.put(&server.endpoint, ROOM);
        let state = state.map_err(|failure| server.with_log(failure))?;
        let query = state.resume_query(MISSED);
        let query = query.ok_or("a client that joins receives no resume point")?;
        let server = contestant.restart(server, config);
        let server = server.map_err(|error| error.to_string())?;
        let measured = if contestant.name.ends_with(RESUMES) {
            let endpoint = server.endpoint.clone().with_query(&query);
            joins(&server, &endpoint, MISSED, clients(config))
        } else {
            let all = u64::from(LARGE.keys);
            joins(&server, &server.endpoint, all, clients(config))
        };
        measured.map_err(|failure| server.with_log(failure))
    }

    fn targets(&self) -> Vec<Target> {
        let pairs = [
            ("etherply none, resume", "etherply none, full join"),
            ("etherply always, resume", "etherply always, full join"),
        ];
        let both = pairs.iter().flat_map(|(of, to)| {
            [CPU_PER_JOIN, BYTES].map(|figure| Target {
                case: 0,
                figure: figure.id,
                of,
                to: Some(to),
                bound: AtMost(0.1),
            })
        });
        both.collect()
    }
}

fn clients(config: &HarnessConfig) -> u64 {
    if config.quick { 500 } else { 5000 }
}

/// Lets all clients join at the same time. Each must receive the last `entries` entries of the
/// state.
fn joins(
    server: &Server,
    endpoint: &Endpoint,
    entries: u64,
    clients: u64,
) -> Result<Numbers, String> {
    let all: Rc<ExpectedEntries> = Rc::new(LARGE.entries(ROOM));
    let since = all.count() - usize::try_from(entries).expect("a state is small");
    let welcome = if since == 0 {
        r#""state":"full","why":"first""#
    } else {
        r#""state":"changes","why":"resumed""#
    };
    let clock = Clock::start();
    let mut crowd = Crowd::new(endpoint, clock)?;
    let before = Mark::new(server, clock);
    for _ in 0..clients {
        let parts = PartsCursor::new(Rc::clone(&all), since);
        crowd.enter(ROOM, before.at_ns, Welcome::State(welcome, parts))?;
        crowd.turn(Duration::ZERO)?;
    }
    crowd.finish(PATIENCE)?;
    let after = Mark::new(server, clock);
    let mut numbers = after.since(&before, clients, &crowd, server);
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let (all_in_ms, bytes) = (
        (after.at_ns - before.at_ns) as f64 / 1e6,
        crowd.received_bytes() as f64 / clients as f64,
    );
    numbers.insert(ALL_IN.id, all_in_ms);
    numbers.insert(BYTES.id, bytes);
    Ok(numbers)
}
