//! The load generator: one thread on a ring of its own. It keeps the pace, checks every delivery, and times a part of them.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use thiserror::Error;

pub mod book;
pub mod check;
pub mod crowd;
pub mod guest;
pub mod join;
pub mod op;
pub mod pace;
pub mod ring;
pub mod state;

use book::{Book, Clock};
use check::Wrong;
use join::Door;
use op::Order;
use pace::{Pace, Schedule};
use ring::{Event, Ring};

/// A load.
#[derive(Debug, Clone)]
pub struct Plan {
    pub rooms: u32,
    /// In each room, beside its one sender.
    pub receivers: u32,
    pub pace: Pace,
    /// In which order the server writes the fields of an op.
    pub order: Order,
    /// Whether who joins is shown the state.
    pub has_state: bool,
    pub warm_up: Duration,
    pub measured: Duration,
    /// A delivery that takes longer is a failure.
    pub late: Duration,
}

impl Plan {
    /// How many ops may be on the way in a room: as many as are due until one is late, or as many as the pace allows.
    fn kept_ops(&self) -> usize {
        match self.pace {
            Pace::Open { ops_per_s } => {
                let each_s = f64::from(ops_per_s) / f64::from(self.rooms);
                ops_within(each_s, self.late + LATENESS_CHECK) + 1
            }
            Pace::Closed { in_flight } => in_flight as usize,
        }
    }

    /// One delivery of so many is timed: all of a light load, where a look at the clock costs nothing.
    fn sample(&self) -> u64 {
        match self.pace {
            Pace::Open { ops_per_s } if ops_per_s * self.receivers <= 100_000 => 1,
            _ => 16,
        }
    }
}

/// What a load came to, in the time that was measured.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub seconds: f64,
    pub deliveries: u64,
    /// Ops that all receivers of their room have got.
    pub ops: u64,
    /// CPU time of the server, where it can be read.
    pub server_cpu_s: Option<f64>,
    /// The share of its core that the load generator used.
    pub own_share: f64,
    pub latencies_ns: Histogram<u64>,
}

/// Why a run is worth nothing.
#[derive(Debug, Error)]
pub enum Failure {
    #[error("room {room}, receiver {place}: {wrong}")]
    Wrong { room: u32, place: u32, wrong: Wrong },
    #[error(
        "room {room}: op {number} of {sent} has not reached {missing} of {receivers} receivers after {after_ms} ms, receiver {first} among them\n  expected {expected}"
    )]
    Missing {
        room: u32,
        number: u64,
        sent: u64,
        missing: usize,
        receivers: u32,
        first: u32,
        after_ms: u64,
        expected: String,
    },
    #[error("room {room}, connection {place}: the connection is gone: {why}")]
    Gone { room: u32, place: u32, why: String },
    #[error("workspace {workspace}: a client cannot join: {error}")]
    Join { workspace: String, error: io::Error },
    #[error(
        "room {room}: who joins is shown a wrong state\n  expected {expected}\n  seen     {seen}"
    )]
    State {
        room: u32,
        expected: String,
        seen: String,
    },
    #[error("the ring of the load generator: {0}")]
    Ring(#[from] io::Error),
}

/// What is read at the beginning and at the end of the measured time.
struct Mark {
    at_ns: u64,
    deliveries: u64,
    ops: u64,
    server_cpu_s: Option<f64>,
    own_cpu_ns: u64,
}

/// A load that is on.
pub struct Load {
    plan: Plan,
    door: Door,
    ring: Ring,
    book: Book,
    clock: Clock,
    /// Ops that the schedule has put so far.
    scheduled: u64,
    done_rooms: Vec<u32>,
}

const LATENESS_CHECK: Duration = Duration::from_millis(100);
/// So long nothing may come after the last delivery.
const QUIET: Duration = Duration::from_millis(20);

/// Runs a load. `server_cpu_s` reads the CPU time that the server has used until then.
pub fn run(
    door: &Door,
    plan: &Plan,
    server_cpu_s: &mut dyn FnMut() -> Option<f64>,
) -> Result<Outcome, Failure> {
    let mut outcomes = run_in_parts(door, plan, 1, server_cpu_s)?;
    Ok(outcomes.remove(0))
}

/// The same, with an outcome for each of so many parts of the time.
pub fn run_in_parts(
    door: &Door,
    plan: &Plan,
    parts: u32,
    server_cpu_s: &mut dyn FnMut() -> Option<f64>,
) -> Result<Vec<Outcome>, Failure> {
    let mut load = Load::join(door, plan)?;
    let outcomes = load.measure(parts, server_cpu_s)?;
    load.finish()?;
    Ok(outcomes)
}

impl Outcome {
    /// Takes what came in another time.
    pub fn add(&mut self, other: &Self) {
        let cpu = self.server_cpu_s.zip(other.server_cpu_s);
        self.server_cpu_s = cpu.map(|(one, other)| one + other);
        let own_s = self.own_share * self.seconds + other.own_share * other.seconds;
        self.seconds += other.seconds;
        self.own_share = own_s / self.seconds;
        self.deliveries += other.deliveries;
        self.ops += other.ops;
        let added = self.latencies_ns.add(&other.latencies_ns);
        added.expect("the histograms are alike");
    }

    fn between(begin: &Mark, end: &Mark, latencies_ns: Histogram<u64>) -> Self {
        let seconds = Duration::from_nanos(end.at_ns - begin.at_ns).as_secs_f64();
        let cpu = begin.server_cpu_s.zip(end.server_cpu_s);
        let own_cpu = Duration::from_nanos(end.own_cpu_ns - begin.own_cpu_ns);
        Self {
            seconds,
            deliveries: end.deliveries - begin.deliveries,
            ops: end.ops - begin.ops,
            server_cpu_s: cpu.map(|(begin, end)| end - begin),
            own_share: own_cpu.as_secs_f64() / seconds,
            latencies_ns,
        }
    }
}

impl Load {
    /// Everybody joins; nothing is sent yet.
    fn join(door: &Door, plan: &Plan) -> Result<Self, Failure> {
        let mut ring = Ring::new()?;
        for room in 0..plan.rooms {
            for _ in 0..=plan.receivers {
                let (stream, init) = door.join(&door.workspace(room))?;
                let empty = r#"{"type":"init","data":{}}"#;
                if !is_init(&init, &serde_json::Map::new()) {
                    return Err(Failure::State {
                        room,
                        expected: empty.to_owned(),
                        seen: init,
                    });
                }
                ring.add(stream)?;
            }
        }
        let clock = Clock::start();
        let book = Book::new(plan, clock);
        Ok(Self {
            plan: plan.clone(),
            door: door.clone(),
            ring,
            book,
            clock,
            scheduled: 0,
            done_rooms: Vec::new(),
        })
    }

    /// Warms up, then measures so many parts, one behind the other.
    fn measure(
        &mut self,
        parts: u32,
        server_cpu_s: &mut dyn FnMut() -> Option<f64>,
    ) -> Result<Vec<Outcome>, Failure> {
        let start_ns = self.clock.now_ns();
        let begin_ns = start_ns + whole_ns(self.plan.warm_up);
        let part_ns = whole_ns(self.plan.measured) / u64::from(parts);
        let schedule = match self.plan.pace {
            Pace::Open { ops_per_s } => Some(Schedule {
                start_ns,
                ops_per_s,
            }),
            Pace::Closed { in_flight } => {
                for _ in 0..in_flight {
                    self.done_rooms.extend(0..self.plan.rooms);
                }
                None
            }
        };
        self.book.time_only(begin_ns..begin_ns + part_ns);
        self.keep_pace(schedule, begin_ns)?;
        let mut begin = self.mark(server_cpu_s);
        let mut outcomes = Vec::new();
        for part in 1..=u64::from(parts) {
            let end_ns = begin_ns + part * part_ns;
            self.keep_pace(schedule, end_ns)?;
            let end = self.mark(server_cpu_s);
            let latencies_ns = self.book.time_only(end_ns..end_ns + part_ns);
            outcomes.push(Outcome::between(&begin, &end, latencies_ns));
            begin = end;
        }
        Ok(outcomes)
    }

    fn mark(&self, server_cpu_s: &mut dyn FnMut() -> Option<f64>) -> Mark {
        Mark {
            at_ns: self.clock.now_ns(),
            deliveries: self.book.deliveries(),
            ops: self.book.ops(),
            server_cpu_s: server_cpu_s(),
            own_cpu_ns: own_cpu_ns(),
        }
    }

    /// Sends what is due and takes what comes, until then.
    fn keep_pace(&mut self, schedule: Option<Schedule>, until_ns: u64) -> Result<(), Failure> {
        let mut lateness_check_ns = 0;
        loop {
            let now_ns = self.clock.now_ns();
            let mut wake_ns = until_ns;
            if let Some(schedule) = schedule {
                // All that is due until then, also where this thread was kept from it for so long.
                let last_ns = now_ns.min(until_ns - 1);
                wake_ns = wake_ns.min(self.put_scheduled(schedule, last_ns)?);
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            if schedule.is_none() {
                self.put_in_place_of_done(now_ns)?;
            }
            if now_ns >= lateness_check_ns {
                self.book.check_lateness(self.plan.late)?;
                lateness_check_ns = now_ns + whole_ns(LATENESS_CHECK);
            }
            wake_ns = wake_ns.min(lateness_check_ns);
            self.turn(Duration::from_nanos(
                wake_ns.saturating_sub(self.clock.now_ns()),
            ))?;
        }
    }

    /// Sends all that is due; tells when the next is.
    fn put_scheduled(&mut self, schedule: Schedule, now_ns: u64) -> Result<u64, Failure> {
        loop {
            let due_ns = schedule.due_ns(self.scheduled);
            if due_ns > now_ns {
                return Ok(due_ns);
            }
            let room = self.scheduled % u64::from(self.plan.rooms);
            self.put(u32::try_from(room).expect("a remainder of one"), due_ns)?;
            self.scheduled += 1;
        }
    }

    fn put_in_place_of_done(&mut self, now_ns: u64) -> Result<(), Failure> {
        let mut rooms = std::mem::take(&mut self.done_rooms);
        self.book.take_done_rooms(&mut rooms);
        for room in rooms.drain(..) {
            self.put(room, now_ns)?;
        }
        self.done_rooms = rooms;
        Ok(())
    }

    fn put(&mut self, room: u32, due_ns: u64) -> Result<(), Failure> {
        let Self { ring, book, .. } = self;
        let mut outcome = Ok(());
        ring.send(book.sender(room), |out| {
            outcome = book.put(room, due_ns, out);
        });
        outcome
    }

    fn turn(&mut self, wait: Duration) -> Result<(), Failure> {
        let Self { ring, book, .. } = self;
        let mut outcome = Ok(());
        ring.turn(wait, &mut |connection, event| {
            if outcome.is_ok() {
                outcome = match event {
                    Event::Received(bytes) => book.received(connection, bytes),
                    Event::Ended(error) => Err(book.gone(connection, error)),
                };
            }
        })?;
        outcome?;
        for (connection, answer) in book.answers.drain(..) {
            ring.send(connection, |out| out.extend_from_slice(&answer));
        }
        Ok(())
    }

    /// Waits until everybody has everything, sees that nothing comes after that, and that who joins is shown the last values.
    fn finish(&mut self) -> Result<(), Failure> {
        while !self.book.is_done() {
            self.book.check_lateness(self.plan.late)?;
            self.turn(LATENESS_CHECK)?;
        }
        let quiet_until_ns = self.clock.now_ns() + whole_ns(QUIET);
        while self.clock.now_ns() < quiet_until_ns {
            self.turn(QUIET)?;
        }
        if self.plan.has_state {
            for room in [0, self.book.rooms() - 1] {
                let (_stream, init) = self.door.join(&self.door.workspace(room))?;
                let expected = self.book.state(room);
                if !is_init(&init, &expected) {
                    let expected = serde_json::Value::Object(expected).to_string();
                    return Err(Failure::State {
                        room,
                        expected,
                        seen: init,
                    });
                }
            }
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate and a time are positive, and their product is small"
)]
fn ops_within(ops_per_s: f64, time: Duration) -> usize {
    (ops_per_s * time.as_secs_f64()).ceil() as usize
}

/// Whether a first message shows this state.
pub fn is_init(text: &str, data: &serde_json::Map<String, serde_json::Value>) -> bool {
    let init: Result<serde_json::Value, _> = serde_json::from_str(text);
    init.is_ok_and(|init| init["type"] == "init" && init["data"].as_object() == Some(data))
}

/// The CPU time of this thread.
pub fn own_cpu_ns() -> u64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = told.split(' ').next();
    first.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a load ends within centuries")
}
