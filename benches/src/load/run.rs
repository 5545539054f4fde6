//! A load from its first client to its last delivery.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::endpoint::Endpoint;
use super::failure::Failure;
use super::pace::{Pace, Schedule};
use super::plan::{LATENESS_CHECK, Plan};
use super::ring::{Event, Ring};
use super::tracker::{Clock, Tracker};
use crate::process::thread_cpu_ns;
use crate::process::usage::{Reading, Usage};

/// The outcome of a measured period.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub seconds: f64,
    pub deliveries: u64,
    /// The number of ops that all receivers of their room have received.
    pub ops: u64,
    /// The number of `saved` messages that the senders have received.
    pub saved_messages: u64,
    /// What the server used; `None` if it cannot be read.
    pub server: Option<Usage>,
    /// The share of its core that the load generator used.
    pub own_share: f64,
    pub latencies_ns: Histogram<u64>,
}

/// The readings at the beginning or the end of a measured period.
struct Mark {
    at_ns: u64,
    deliveries: u64,
    ops: u64,
    saved_messages: u64,
    server: Option<Reading>,
    own_cpu_ns: u64,
}

/// A running load.
pub struct Load {
    plan: Plan,
    endpoint: Endpoint,
    ring: Ring,
    tracker: Tracker,
    clock: Clock,
    /// The number of ops that the schedule has sent so far.
    scheduled: u64,
    done_rooms: Vec<u32>,
}

/// The time after the last delivery during which nothing may arrive.
const QUIET: Duration = Duration::from_millis(20);

/// Runs a load. `read_server` reads what the server has used so far.
pub fn run(
    endpoint: &Endpoint,
    plan: &Plan,
    read_server: &mut dyn FnMut() -> Option<Reading>,
) -> Result<Outcome, Failure> {
    let mut outcomes = run_in_parts(endpoint, plan, 1, read_server)?;
    Ok(outcomes.remove(0))
}

/// Runs a load whose measured time consists of `parts` parts of equal length; returns the outcome
/// of each.
pub fn run_in_parts(
    endpoint: &Endpoint,
    plan: &Plan,
    parts: u32,
    read_server: &mut dyn FnMut() -> Option<Reading>,
) -> Result<Vec<Outcome>, Failure> {
    let mut load = Load::join(endpoint, plan)?;
    let outcomes = load.measure(parts, read_server)?;
    load.finish()?;
    Ok(outcomes)
}

impl Outcome {
    /// Adds the outcome of another period.
    pub fn add(&mut self, other: &Self) {
        let both = self.server.zip(other.server);
        self.server = both.map(|(one, other)| one.plus(other));
        let own_s = self.own_share * self.seconds + other.own_share * other.seconds;
        self.seconds += other.seconds;
        self.own_share = own_s / self.seconds;
        self.deliveries += other.deliveries;
        self.ops += other.ops;
        self.saved_messages += other.saved_messages;
        let added = self.latencies_ns.add(&other.latencies_ns);
        added.expect("the histograms have the same layout");
    }

    fn between(begin: &Mark, end: &Mark, latencies_ns: Histogram<u64>) -> Self {
        let seconds = Duration::from_nanos(end.at_ns - begin.at_ns).as_secs_f64();
        let server = begin.server.as_ref().zip(end.server.as_ref());
        let own_cpu = Duration::from_nanos(end.own_cpu_ns - begin.own_cpu_ns);
        Self {
            seconds,
            deliveries: end.deliveries - begin.deliveries,
            ops: end.ops - begin.ops,
            saved_messages: end.saved_messages - begin.saved_messages,
            server: server.map(|(begin, end)| end.since(begin)),
            own_share: own_cpu.as_secs_f64() / seconds,
            latencies_ns,
        }
    }
}

impl Load {
    /// Lets all clients join; nothing is sent yet.
    fn join(endpoint: &Endpoint, plan: &Plan) -> Result<Self, Failure> {
        let mut ring = Ring::new()?;
        for room in 0..plan.rooms {
            for _ in 0..=plan.receivers {
                let (connection, state) = endpoint.join(&endpoint.workspace(room))?;
                if !state.holds(&serde_json::Map::new()) {
                    return Err(Failure::State {
                        room,
                        expected: "an empty state".to_owned(),
                        received: state.text(),
                    });
                }
                ring.add(connection)?;
            }
        }
        let clock = Clock::start();
        let tracker = Tracker::new(plan, clock);
        Ok(Self {
            plan: plan.clone(),
            endpoint: endpoint.clone(),
            ring,
            tracker,
            clock,
            scheduled: 0,
            done_rooms: Vec::new(),
        })
    }

    /// Warms up, then measures the parts in sequence.
    fn measure(
        &mut self,
        parts: u32,
        read_server: &mut dyn FnMut() -> Option<Reading>,
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
        self.tracker.time_only(begin_ns..begin_ns + part_ns);
        self.keep_pace(schedule, begin_ns)?;
        let mut begin = self.mark(read_server);
        let mut outcomes = Vec::new();
        for part in 1..=u64::from(parts) {
            let end_ns = begin_ns + part * part_ns;
            self.keep_pace(schedule, end_ns)?;
            let end = self.mark(read_server);
            let latencies_ns = self.tracker.time_only(end_ns..end_ns + part_ns);
            outcomes.push(Outcome::between(&begin, &end, latencies_ns));
            begin = end;
        }
        Ok(outcomes)
    }

    fn mark(&self, read_server: &mut dyn FnMut() -> Option<Reading>) -> Mark {
        Mark {
            at_ns: self.clock.now_ns(),
            deliveries: self.tracker.deliveries(),
            ops: self.tracker.ops(),
            saved_messages: self.tracker.saved_messages(),
            server: read_server(),
            own_cpu_ns: thread_cpu_ns(),
        }
    }

    /// Sends due ops and checks received ones until the given time.
    fn keep_pace(&mut self, schedule: Option<Schedule>, until_ns: u64) -> Result<(), Failure> {
        let mut lateness_check_ns = 0;
        loop {
            let now_ns = self.clock.now_ns();
            let mut wake_ns = until_ns;
            if let Some(schedule) = schedule {
                // Ops that are due by the end are sent even if this thread was kept from running.
                let last_ns = now_ns.min(until_ns - 1);
                wake_ns = wake_ns.min(self.put_scheduled(schedule, last_ns)?);
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            if schedule.is_none() {
                self.replace_done_ops(now_ns)?;
            }
            if now_ns >= lateness_check_ns {
                self.tracker.check_lateness(self.plan.late)?;
                lateness_check_ns = now_ns + whole_ns(LATENESS_CHECK);
            }
            wake_ns = wake_ns.min(lateness_check_ns);
            self.turn(Duration::from_nanos(
                wake_ns.saturating_sub(self.clock.now_ns()),
            ))?;
        }
    }

    /// Sends everything that is due; returns the time when the next op is due.
    fn put_scheduled(&mut self, schedule: Schedule, now_ns: u64) -> Result<u64, Failure> {
        loop {
            let due_ns = schedule.due_ns(self.scheduled);
            if due_ns > now_ns {
                return Ok(due_ns);
            }
            let room = self.scheduled % u64::from(self.plan.rooms);
            self.put(
                u32::try_from(room).expect("the remainder fits in 32 bits"),
                due_ns,
            )?;
            self.scheduled += 1;
        }
    }

    /// Sends a new op for each op that all receivers of its room have received.
    fn replace_done_ops(&mut self, now_ns: u64) -> Result<(), Failure> {
        let mut rooms = std::mem::take(&mut self.done_rooms);
        self.tracker.take_done_rooms(&mut rooms);
        for room in rooms.drain(..) {
            self.put(room, now_ns)?;
        }
        self.done_rooms = rooms;
        Ok(())
    }

    fn put(&mut self, room: u32, due_ns: u64) -> Result<(), Failure> {
        let Self { ring, tracker, .. } = self;
        let mut outcome = Ok(());
        ring.send(tracker.sender(room), |out| {
            outcome = tracker.put(room, due_ns, out);
        })?;
        outcome
    }

    fn turn(&mut self, wait: Duration) -> Result<(), Failure> {
        let Self { ring, tracker, .. } = self;
        let mut outcome = Ok(());
        ring.turn(wait, &mut |connection, event| {
            if outcome.is_ok() {
                outcome = match event {
                    Event::Received(bytes) => tracker.received(connection, bytes),
                    Event::Ended(error) => Err(tracker.gone(connection, error)),
                };
            }
        })?;
        outcome?;
        for (connection, answer) in tracker.answers.drain(..) {
            ring.send(connection, |out| out.extend_from_slice(&answer))?;
        }
        Ok(())
    }

    /// Waits until every receiver has every op, and checks that nothing follows and that a client
    /// that joins afterwards receives the last values.
    fn finish(&mut self) -> Result<(), Failure> {
        while !self.tracker.is_done() {
            self.tracker.check_lateness(self.plan.late)?;
            self.turn(LATENESS_CHECK)?;
        }
        let quiet_until_ns = self.clock.now_ns() + whole_ns(QUIET);
        while self.clock.now_ns() < quiet_until_ns {
            self.turn(QUIET)?;
        }
        if self.plan.has_state {
            for room in [0, self.tracker.rooms() - 1] {
                let (_connection, state) = self.endpoint.join(&self.endpoint.workspace(room))?;
                let expected = self.tracker.state(room);
                if !state.holds(&expected) {
                    let expected = serde_json::Value::Object(expected).to_string();
                    return Err(Failure::State {
                        room,
                        expected,
                        received: state.text(),
                    });
                }
            }
        }
        Ok(())
    }
}

fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("the duration fits in 64 bits of nanoseconds")
}
