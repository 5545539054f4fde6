//! Many joins: on a schedule into a room with a large state, and all at the same time after a
//! restart.

use std::rc::Rc;
use std::time::Duration;

use super::loads::{MAX, OWN_SHARE, P50, P99, RESIDENT};
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{self, Contestant, Kind, Server};
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::crowd::{Crowd, frame_of};
use etherply_bench::load::first_state::FirstState;
use etherply_bench::load::joiner::Welcome;
use etherply_bench::load::pace::Schedule;
use etherply_bench::load::protocol::ClientProtocol;
use etherply_bench::load::state::State;
use etherply_bench::load::state_parts::{ExpectedEntries, PartsCursor};
use etherply_bench::load::tracker::Clock;
use etherply_bench::process::thread_cpu_ns;

pub struct Join;
pub struct Reconnect;

pub(super) const CPU_PER_JOIN: Figure = Figure {
    id: "cpu_us_per_join",
    name: "server CPU",
    unit: "µs/join",
    decimals: 1,
};
pub(super) const JOINS: Figure = Figure {
    id: "joins_per_s",
    name: "joins/s",
    unit: "",
    decimals: 0,
};
pub(super) const ALL_IN: Figure = Figure {
    id: "all_in_ms",
    name: "until all have their state",
    unit: "ms",
    decimals: 0,
};

const ROOM: &str = "large";
/// 1 MB as a first message.
pub(super) const LARGE: State = State {
    keys: 100,
    value_bytes: 9984,
};
const JOINS_PER_S: u32 = 1000;
/// The maximum number of joins: all clients stay connected, and each is an open file.
const JOINS_MAX: u64 = 8000;
const PATIENCE: Duration = Duration::from_secs(20);

impl Scenario for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn about(&self) -> &'static str {
        "1,000 joins per second into a room with a 1 MB state; floor writes the same bytes"
    }

    fn figures(&self) -> &'static [Figure] {
        &[CPU_PER_JOIN, JOINS, P50, P99, MAX, RESIDENT, OWN_SHARE]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let protocols = [ClientProtocol::V1, ClientProtocol::V2];
        vec![Case::against_peers(
            0,
            "1,000 joins/s, 1 MB",
            contestant::all_speaking(config, &protocols),
        )]
    }

    fn measure(
        &self,
        _: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        let mut flags = Vec::new();
        let has_state = contestant.has_state();
        if !has_state {
            let bytes = LARGE.init_bytes(ROOM);
            flags.extend(["--join-bytes".to_owned(), bytes.to_string()]);
        }
        let server = contestant.start_with(config, &flags);
        let server = server.map_err(|error| error.to_string())?;
        let measured = joins(&server, config, has_state);
        measured.map_err(|failure| server.with_log(failure))
    }

    fn targets(&self) -> Vec<Target> {
        [
            ("etherply none", "floor", 1.5),
            ("etherply always", "floor", 1.5),
            ("etherply none, v2", "etherply none", 1.05),
            ("etherply always, v2", "etherply always", 1.05),
        ]
        .map(|(of, to, bound)| Target {
            case: 0,
            figure: CPU_PER_JOIN.id,
            of,
            to: Some(to),
            bound: AtMost(bound),
        })
        .into()
    }
}

fn joins(server: &Server, config: &HarnessConfig, has_state: bool) -> Result<Numbers, String> {
    let state = if has_state {
        LARGE.put(&server.endpoint, ROOM)?
    } else {
        let joined = server.endpoint.join(ROOM);
        joined.map_err(|error| error.to_string())?.1
    };
    let expected = if server.endpoint.protocol().is_v2() {
        ExpectedWelcome::Parts(Rc::new(LARGE.entries(ROOM)))
    } else {
        let bytes = LARGE.init_bytes(ROOM);
        if state.bytes() != bytes {
            let got = state.bytes();
            return Err(format!("a first message has {bytes} bytes, not {got}"));
        }
        ExpectedWelcome::Frame(frame_of(&state.text()))
    };
    let warm_up = u64::from(JOINS_PER_S) / 5;
    let wanted = config.measured.as_millis() * u128::from(JOINS_PER_S) / 1000;
    let count = u64::try_from(wanted).unwrap_or(u64::MAX);
    let count = count.clamp(1, JOINS_MAX - warm_up);
    let clock = Clock::start();
    let mut crowd = Crowd::new(&server.endpoint, clock)?;
    keep_schedule(&mut crowd, clock, warm_up, &expected)?;
    let before = Mark::new(server, clock);
    keep_schedule(&mut crowd, clock, count, &expected)?;
    let after = Mark::new(server, clock);
    Ok(after.since(&before, count, &crowd, server))
}

/// The messages that each client in a crowd must receive.
enum ExpectedWelcome {
    Frame(Rc<[u8]>),
    Parts(Rc<ExpectedEntries>),
}

impl ExpectedWelcome {
    fn welcome(&self) -> Welcome {
        match self {
            Self::Frame(frame) => Welcome::Frame(Rc::clone(frame)),
            Self::Parts(entries) => {
                let parts = PartsCursor::new(Rc::clone(entries), 0);
                Welcome::State(r#""state":"full","why":"first""#, parts)
            }
        }
    }
}

/// Lets `count` clients join on the schedule, and waits until all have the state.
fn keep_schedule(
    crowd: &mut Crowd,
    clock: Clock,
    count: u64,
    expected: &ExpectedWelcome,
) -> Result<(), String> {
    crowd.forget_latencies();
    let schedule = Schedule {
        start_ns: clock.now_ns(),
        ops_per_s: JOINS_PER_S,
    };
    let mut entered = 0;
    while entered < count {
        let now_ns = clock.now_ns();
        let due_ns = schedule.due_ns(entered);
        if due_ns <= now_ns {
            crowd.enter(ROOM, due_ns, expected.welcome())?;
            entered += 1;
        }
        let next_ns = schedule.due_ns(entered);
        crowd.turn(Duration::from_nanos(next_ns.saturating_sub(clock.now_ns())))?;
    }
    crowd.finish(PATIENCE)
}

impl Scenario for Reconnect {
    fn name(&self) -> &'static str {
        "reconnect"
    }

    fn about(&self) -> &'static str {
        "all 5,000 clients at once after a restart, 10 in each of 500 rooms with a state of 1 KB"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            CPU_PER_JOIN,
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
        let crowd = Rooms::of(config);
        let title = format!("{} clients in {} rooms", crowd.clients, crowd.rooms);
        vec![Case::against_peers(0, &title, contestant::all(config))]
    }

    fn note(&self, _: &HarnessConfig) -> Option<String> {
        Some("The peers have no state after a restart, and so less to send.".to_owned())
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
        let rooms = Rooms::of(config);
        let keeps = matches!(contestant.kind, Kind::Etherply { .. });
        if keeps {
            for room in 0..rooms.rooms {
                let put = SMALL.put(&server.endpoint, &Rooms::name(room));
                put.map_err(|failure| server.with_log(failure))?;
            }
        }
        let server = contestant.restart(server, config);
        let server = server.map_err(|error| error.to_string())?;
        let measured = reconnect(&server, &rooms, keeps);
        measured.map_err(|failure| server.with_log(failure))
    }
}

/// The state of each room.
const SMALL: State = State {
    keys: 10,
    value_bytes: 100,
};

struct Rooms {
    clients: usize,
    rooms: usize,
}

impl Rooms {
    fn of(config: &HarnessConfig) -> Self {
        let clients = if config.quick { 1000 } else { 5000 };
        Self {
            clients,
            rooms: clients / 10,
        }
    }

    fn name(room: usize) -> String {
        format!("room-{room}")
    }
}

fn reconnect(server: &Server, rooms: &Rooms, keeps: bool) -> Result<Numbers, String> {
    let clock = Clock::start();
    let mut crowd = Crowd::new(&server.endpoint, clock)?;
    let before = Mark::new(server, clock);
    for client in 0..rooms.clients {
        let name = Rooms::name(client % rooms.rooms);
        crowd.enter(&name, before.at_ns, Welcome::AnyMessage)?;
        crowd.turn(Duration::ZERO)?;
    }
    crowd.finish(PATIENCE)?;
    let after = Mark::new(server, clock);
    for client in 0..rooms.clients {
        let name = Rooms::name(client % rooms.rooms);
        let state = if keeps {
            SMALL.of(&name)
        } else {
            serde_json::Map::new()
        };
        let seen = crowd.take_message(client);
        let mut shown = FirstState::new(ClientProtocol::V1);
        shown.push(seen.clone());
        if !shown.holds(&state) {
            let expected = serde_json::Value::Object(state);
            return Err(format!(
                "client {client} is shown a wrong state\n  expected {expected}\n  seen     {seen}"
            ));
        }
    }
    let mut numbers = after.since(&before, rooms.clients as u64, &crowd, server);
    #[expect(clippy::cast_precision_loss, reason = "a time of seconds")]
    let all_in_ms = (after.at_ns - before.at_ns) as f64 / 1e6;
    numbers.insert(ALL_IN.id, all_in_ms);
    Ok(numbers)
}

/// The readings at the beginning or the end of a measurement.
pub(super) struct Mark {
    pub(super) at_ns: u64,
    server_cpu_s: Option<f64>,
    own_cpu_ns: u64,
}

impl Mark {
    pub(super) fn new(server: &Server, clock: Clock) -> Self {
        Self {
            at_ns: clock.now_ns(),
            server_cpu_s: server.cpu_s(),
            own_cpu_ns: thread_cpu_ns(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn since(
        &self,
        before: &Self,
        joins: u64,
        crowd: &Crowd,
        server: &Server,
    ) -> Numbers {
        let seconds = (self.at_ns - before.at_ns) as f64 / 1e9;
        let own_s = (self.own_cpu_ns - before.own_cpu_ns) as f64 / 1e9;
        let latencies = crowd.latencies_ns();
        let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let mut numbers = Numbers::from([
            (JOINS.id, joins as f64 / seconds),
            (P50.id, us(latencies.value_at_quantile(0.5))),
            (P99.id, us(latencies.value_at_quantile(0.99))),
            (MAX.id, us(latencies.max())),
            (OWN_SHARE.id, own_s / seconds * 100.0),
        ]);
        if let Some((cpu_s, before_s)) = self.server_cpu_s.zip(before.server_cpu_s) {
            numbers.insert(CPU_PER_JOIN.id, (cpu_s - before_s) * 1e6 / joins as f64);
        }
        if let Some(bytes) = server.resident_bytes() {
            numbers.insert(RESIDENT.id, bytes / 1e6);
        }
        numbers
    }
}
