//! A room of peers, some of which set their values on a schedule.

use std::time::Duration;

use hdrhistogram::Histogram;
use tungstenite::protocol::frame::FrameHeader;

use super::check::answer_control;
use super::endpoint::Endpoint;
use super::joiner::{first_message, upgraded};
use super::op::{TEXT, put_short_client_frame};
use super::pace::Schedule;
use super::peers::{Movers, ParsedMessages, PeerView, PresenceMessage, move_text};
use super::plan::LATENESS_CHECK;
use super::protocol::ClientProtocol;
use super::ring::{Event, Ring};
use super::tracker::{Clock, histogram};
use crate::process::thread_cpu_ns;

/// The parameters of a room of peers.
#[derive(Debug, Clone, Copy)]
pub struct PeerPlan {
    pub peers: usize,
    /// The number of peers that set their values.
    pub movers: usize,
    /// The rate at which each of them does so.
    pub moves_per_s: u32,
    pub warm_up: Duration,
    pub measured: Duration,
    /// A value that takes longer than this is a failure.
    pub late: Duration,
}

/// The outcome of a measured period.
#[derive(Debug)]
pub struct PeerOutcome {
    pub seconds: f64,
    /// The number of values that the movers set.
    pub set: u64,
    /// The numbers of messages that the peers received, and of values in them.
    pub messages: u64,
    pub values: u64,
    pub received_bytes: u64,
    /// CPU time of the server; `None` if it cannot be read.
    pub server_cpu_s: Option<f64>,
    /// The share of its core that the load generator used.
    pub own_share: f64,
    /// The times from when a value was due to its arrival at a peer, for one value in each message.
    pub latencies_ns: Histogram<u64>,
}

/// A client.
#[derive(Default)]
struct Peer {
    is_upgraded: bool,
    is_synced: bool,
    /// The first bytes of an incomplete message.
    held: Vec<u8>,
    view: PeerView,
    messages: u64,
}

struct Checks {
    peers: Vec<Peer>,
    parsed: ParsedMessages,
    movers: Movers,
    clock: Clock,
    schedule: Schedule,
    /// Values that were due before this moment are not timed.
    timed_from_ns: u64,
    latencies_ns: Histogram<u64>,
    messages: u64,
    values: u64,
    received_bytes: u64,
    /// The connection id of each peer, from its `welcome`.
    connections: Vec<Option<u64>>,
    answers: Vec<(u32, Vec<u8>)>,
}

struct PeerRoom {
    ring: Ring,
    checks: Checks,
    plan: PeerPlan,
    /// The number of values that the schedule has set so far.
    set: u64,
}

/// Lets the peers join a room, moves the movers, and checks the values that each peer is shown.
/// `server_cpu_s` reads the CPU time that the server has used so far.
pub fn run(
    endpoint: &Endpoint,
    plan: &PeerPlan,
    server_cpu_s: &mut dyn FnMut() -> Option<f64>,
) -> Result<PeerOutcome, String> {
    let mut room = PeerRoom::join(endpoint, plan)?;
    room.begin();
    let begin_ns = room.checks.schedule.start_ns + whole_ns(plan.warm_up);
    let end_ns = begin_ns + whole_ns(plan.measured);
    room.move_until(begin_ns)?;
    let (at_ns, cpu_s, own_ns) = (room.checks.clock.now_ns(), server_cpu_s(), thread_cpu_ns());
    let (set, messages) = (room.set, room.checks.messages);
    let (values, bytes) = (room.checks.values, room.checks.received_bytes);
    room.checks.timed_from_ns = begin_ns;
    room.move_until(end_ns)?;
    let took_ns = room.checks.clock.now_ns() - at_ns;
    let seconds = Duration::from_nanos(took_ns).as_secs_f64();
    let own = Duration::from_nanos(thread_cpu_ns() - own_ns);
    let outcome = PeerOutcome {
        seconds,
        set: room.set - set,
        messages: room.checks.messages - messages,
        values: room.checks.values - values,
        received_bytes: room.checks.received_bytes - bytes,
        server_cpu_s: server_cpu_s().zip(cpu_s).map(|(end, begin)| end - begin),
        own_share: own.as_secs_f64() / seconds,
        latencies_ns: room.checks.latencies_ns.clone(),
    };
    room.finish()?;
    Ok(outcome)
}

impl PeerRoom {
    /// Lets all peers join, and waits until each has been shown all others.
    fn join(endpoint: &Endpoint, plan: &PeerPlan) -> Result<Self, String> {
        let clock = Clock::start();
        let schedule = Schedule {
            start_ns: 0,
            ops_per_s: plan.moves_per_s * u32::try_from(plan.movers).expect("a small number"),
        };
        let ring = Ring::new().map_err(|error| error.to_string())?;
        let checks = Checks {
            peers: Vec::new(),
            parsed: ParsedMessages::default(),
            movers: Movers::default(),
            clock,
            schedule,
            timed_from_ns: u64::MAX,
            latencies_ns: histogram(),
            messages: 0,
            values: 0,
            received_bytes: 0,
            connections: Vec::new(),
            answers: Vec::new(),
        };
        let mut room = Self {
            ring,
            checks,
            plan: *plan,
            set: 0,
        };
        let endpoint = endpoint.clone().with_query("presence=1");
        for _ in 0..plan.peers {
            let added = endpoint.connect().and_then(|connection| {
                let request = endpoint.request(&endpoint.workspace(0));
                let number = room.ring.add(connection)?;
                room.ring
                    .send(number, |out| out.extend_from_slice(request.as_bytes()))
            });
            added.map_err(|error| format!("peer {}: {error}", room.checks.peers.len()))?;
            room.checks.peers.push(Peer::default());
            room.checks.connections.push(None);
            room.turn(Duration::ZERO)?;
        }
        let count = plan.peers;
        room.wait_until("know all others", |peer, _| {
            peer.is_synced && peer.view.count() == count
        })?;
        Ok(room)
    }

    /// Starts the schedule; the first peers are the movers.
    fn begin(&mut self) {
        for connection in &self.checks.connections[..self.plan.movers] {
            let connection = connection.expect("a peer that knows all has been welcomed");
            self.checks.movers.add(connection);
        }
        self.checks.schedule.start_ns = self.checks.clock.now_ns();
    }

    fn move_until(&mut self, until_ns: u64) -> Result<(), String> {
        loop {
            let now_ns = self.checks.clock.now_ns();
            // Values that are due by the end are set even if this thread was kept from running.
            let last_ns = now_ns.min(until_ns - 1);
            while self.checks.schedule.due_ns(self.set) <= last_ns {
                let place = self.set % self.plan.movers as u64;
                let place = usize::try_from(place).expect("a remainder of one");
                let text = move_text(self.checks.movers.next_number(place));
                let number = u32::try_from(place).expect("a small number");
                self.ring
                    .send(number, |out| put_short_client_frame(out, text.as_bytes()))
                    .map_err(|error| error.to_string())?;
                self.set += 1;
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            let due_ns = self.checks.schedule.due_ns(self.set).min(until_ns);
            self.turn(Duration::from_nanos(due_ns.saturating_sub(now_ns)))?;
        }
    }

    /// Waits until each peer is shown the last value of each mover.
    fn finish(&mut self) -> Result<(), String> {
        self.wait_until("see the last values", |peer, movers| {
            peer.view.is_current(movers)
        })
    }

    fn wait_until(
        &mut self,
        what: &str,
        is_done: impl Fn(&Peer, &Movers) -> bool,
    ) -> Result<(), String> {
        let limit_ns = self.checks.clock.now_ns() + whole_ns(self.plan.late);
        loop {
            let Checks { peers, movers, .. } = &self.checks;
            let waiting = peers.iter().filter(|peer| !is_done(peer, movers)).count();
            if waiting == 0 {
                return Ok(());
            }
            if self.checks.clock.now_ns() > limit_ns {
                let late = self.plan.late;
                return Err(format!("{waiting} peers do not {what} after {late:?}"));
            }
            self.turn(LATENESS_CHECK)?;
        }
    }

    fn turn(&mut self, wait: Duration) -> Result<(), String> {
        let Self { ring, checks, .. } = self;
        let mut outcome = Ok(());
        let turned = ring.turn(wait, &mut |number, event| {
            if outcome.is_ok() {
                let taken = match event {
                    Event::Received(bytes) => checks.received(number as usize, bytes),
                    Event::Ended(error) => Err(error.map_or_else(
                        || "the server closed the connection".to_owned(),
                        |error| error.to_string(),
                    )),
                };
                outcome = taken.map_err(|error| format!("peer {number}: {error}"));
            }
        });
        turned.map_err(|error| error.to_string())?;
        for (number, answer) in checks.answers.drain(..) {
            let sent = ring.send(number, |out| out.extend_from_slice(&answer));
            sent.map_err(|error| error.to_string())?;
        }
        outcome
    }
}

impl Checks {
    fn received(&mut self, number: usize, bytes: &[u8]) -> Result<(), String> {
        self.received_bytes += bytes.len() as u64;
        let mut held = std::mem::take(&mut self.peers[number].held);
        held.extend_from_slice(bytes);
        let mut taken = 0;
        if !self.peers[number].is_upgraded {
            let end = upgraded(&held, ClientProtocol::V2);
            if let Some(end) = end.map_err(|error| error.to_string())? {
                self.peers[number].is_upgraded = true;
                taken = end;
            }
        }
        if self.peers[number].is_upgraded {
            let next = |taken: usize| first_message(&held[taken..]);
            while let Some((start, end)) = next(taken).map_err(|error| error.to_string())? {
                let frame = &held[taken..taken + end];
                self.message(number, frame, start)?;
                taken += end;
            }
        }
        held.drain(..taken);
        self.peers[number].held = held;
        Ok(())
    }

    /// Checks one frame, whose payload begins at `start`.
    fn message(&mut self, number: usize, frame: &[u8], start: usize) -> Result<(), String> {
        let payload = &frame[start..];
        if frame[0] != TEXT {
            let header = FrameHeader::parse(&mut std::io::Cursor::new(frame));
            let (header, _) = header.ok().flatten().ok_or("no frame")?;
            let mut answer = Vec::new();
            let is_control = answer_control(header.opcode, payload, &mut answer);
            if !is_control.map_err(|error| error.to_string())? {
                return Err(format!("a frame of kind {} was received", header.opcode));
            }
            if !answer.is_empty() {
                let number = u32::try_from(number).expect("a small number");
                self.answers.push((number, answer));
            }
            return Ok(());
        }
        if let Some(message) = self.parsed.parse(payload) {
            return self.presence(number, &message);
        }
        let message: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
        match message["type"].as_str() {
            Some("welcome") => {
                let connection = message["payload"]["connection"].as_str();
                self.connections[number] = connection.and_then(|text| text.parse().ok());
            }
            Some("synced") => self.peers[number].is_synced = true,
            _ => {
                return Err(format!(
                    "nobody asked for {}",
                    String::from_utf8_lossy(payload)
                ));
            }
        }
        Ok(())
    }

    fn presence(&mut self, number: usize, message: &PresenceMessage) -> Result<(), String> {
        let peer = &mut self.peers[number];
        self.messages += 1;
        peer.messages += 1;
        // At each peer, a different value of each message is timed.
        let count = message.peers.len().max(1) as u64;
        let timed = (peer.messages + number as u64) % count;
        let (mut place, mut found) = (0, None);
        peer.view.take(message, &self.movers, |mover, value| {
            if place == timed {
                found = Some((mover, value));
            }
            place += 1;
        })?;
        self.values += place;
        if let Some((mover, value)) = found {
            let due_ns = self.due_ns(mover, value);
            if due_ns >= self.timed_from_ns {
                let latency_ns = self.clock.now_ns().saturating_sub(due_ns);
                self.latencies_ns.saturating_record(latency_ns.max(1));
            }
        }
        Ok(())
    }

    /// Returns the time at which a mover was due to set its value to this number.
    fn due_ns(&self, mover: usize, value: u64) -> u64 {
        let movers = self.movers.count() as u64;
        self.schedule.due_ns((value - 1) * movers + mover as u64)
    }
}

fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a load ends within centuries")
}
