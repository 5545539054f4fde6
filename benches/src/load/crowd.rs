//! Many clients that join at once or on a schedule. The bytes that each receives are checked
//! immediately or kept for a later check.

use std::rc::Rc;
use std::time::Duration;

use etherply::wire::frame::put_text_header;
use hdrhistogram::Histogram;

use super::endpoint::Endpoint;
use super::joiner::{Joiner, Welcome};
use super::ring::{Event, Ring};
use super::tracker::{Clock, histogram};

struct Client {
    due_ns: u64,
    joiner: Joiner,
}

/// The clients, numbered from 0.
pub struct Crowd {
    ring: Ring,
    endpoint: Endpoint,
    clock: Clock,
    clients: Vec<Client>,
    /// The number of clients that have received everything they were waiting for.
    served: usize,
    received_bytes: u64,
    latencies_ns: Histogram<u64>,
}

/// Returns the frame of a text, as a server sends it.
pub fn frame_of(text: &str) -> Rc<[u8]> {
    let mut frame = Vec::new();
    put_text_header(&mut frame, text.len());
    frame.extend_from_slice(text.as_bytes());
    frame.into()
}

impl Crowd {
    pub fn new(endpoint: &Endpoint, clock: Clock) -> Result<Self, String> {
        Ok(Self {
            ring: Ring::new()
                .map_err(|error| format!("the ring of the load generator: {error}"))?,
            endpoint: endpoint.clone(),
            clock,
            clients: Vec::new(),
            served: 0,
            received_bytes: 0,
            latencies_ns: histogram(),
        })
    }

    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// Returns how long each client has waited since it was due.
    pub fn latencies_ns(&self) -> &Histogram<u64> {
        &self.latencies_ns
    }

    /// Returns the number of bytes that all clients have received.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Discards the latencies measured so far.
    pub fn forget_latencies(&mut self) {
        self.latencies_ns.reset();
    }

    /// Lets another client join, which was due at `due_ns` and must receive `welcome` first.
    pub fn enter(&mut self, workspace: &str, due_ns: u64, welcome: Welcome) -> Result<(), String> {
        let connection = self.endpoint.connect();
        let joined = connection.and_then(|connection| self.ring.add(connection));
        let request = self.endpoint.request(workspace);
        let sent = joined.and_then(|number| {
            self.ring
                .send(number, |out| out.extend_from_slice(request.as_bytes()))
        });
        sent.map_err(|error| format!("client {}: {error}", self.count()))?;
        self.clients.push(Client {
            due_ns,
            joiner: Joiner::new(welcome),
        });
        Ok(())
    }

    /// Expects a client to receive this frame next, and nothing before it.
    pub fn expect(&mut self, client: usize, frame: &Rc<[u8]>) {
        let client = &mut self.clients[client];
        client.due_ns = self.clock.now_ns();
        client.joiner.expect(frame);
        self.served -= 1;
    }

    /// Moves out the first message of a client that accepted any message.
    pub fn take_message(&mut self, client: usize) -> String {
        self.clients[client].joiner.take_message()
    }

    /// Waits for events for at most `wait`, and checks the bytes that have arrived.
    pub fn turn(&mut self, wait: Duration) -> Result<(), String> {
        let Self {
            ring,
            clock,
            clients,
            served,
            received_bytes,
            latencies_ns,
            ..
        } = self;
        let mut outcome = Ok(());
        let turned = ring.turn(wait, &mut |number, event| {
            if outcome.is_err() {
                return;
            }
            let client = &mut clients[number as usize];
            let taken = match event {
                Event::Received(bytes) => {
                    *received_bytes += bytes.len() as u64;
                    client.joiner.take(bytes)
                }
                Event::Ended(error) => Err(error.map_or_else(
                    || "the server closed the connection".to_owned(),
                    |error| error.to_string(),
                )),
            };
            match taken {
                Ok(false) => {}
                Ok(true) => {
                    *served += 1;
                    let latency_ns = clock.now_ns().saturating_sub(client.due_ns);
                    latencies_ns.saturating_record(latency_ns.max(1));
                }
                Err(error) => outcome = Err(format!("client {number}: {error}")),
            }
        });
        turned.map_err(|error| format!("the ring of the load generator: {error}"))?;
        outcome
    }

    /// Waits until all clients have received what they are waiting for; fails after `patience`.
    pub fn finish(&mut self, patience: Duration) -> Result<(), String> {
        let limit_ns = self.clock.now_ns() + u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        while self.served < self.count() {
            self.turn(Duration::from_millis(50))?;
            if self.clock.now_ns() > limit_ns {
                let mut clients = self.clients.iter();
                let first = clients.position(|client| !client.joiner.is_served());
                return Err(format!(
                    "{} of {} clients are still waiting after {patience:?}, \
                     including client {}",
                    self.count() - self.served,
                    self.count(),
                    first.unwrap_or_default(),
                ));
            }
        }
        Ok(())
    }
}
