//! Many clients that come in at once, or on a schedule. What each is shown is checked byte by byte, or kept and looked at later.

use std::rc::Rc;
use std::time::Duration;

use etherply::wire::frame::put_text_header;
use hdrhistogram::Histogram;

use super::endpoint::Endpoint;
use super::joiner::Joiner;
use super::ring::{Event, Ring};
use super::tracker::{Clock, histogram};

struct Client {
    due_ns: u64,
    joiner: Joiner,
}

/// The clients, by their number: 0, 1, 2, …
pub struct Crowd {
    ring: Ring,
    endpoint: Endpoint,
    clock: Clock,
    clients: Vec<Client>,
    /// Those who have got all that they wait for.
    served: usize,
    latencies_ns: Histogram<u64>,
}

/// The frame of a text, as a server sends it.
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
            latencies_ns: histogram(),
        })
    }

    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// How long each has waited from when it was due.
    pub fn latencies_ns(&self) -> &Histogram<u64> {
        &self.latencies_ns
    }

    /// Starts to count anew.
    pub fn forget_latencies(&mut self) {
        self.latencies_ns.reset();
    }

    /// Sends another client in, who was due then. `init`: the frame that it must be shown; `None`: any.
    pub fn enter(
        &mut self,
        workspace: &str,
        due_ns: u64,
        init: Option<Rc<[u8]>>,
    ) -> Result<(), String> {
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
            joiner: Joiner::new(init),
        });
        Ok(())
    }

    /// From now on, a client must be sent this frame, and nothing else before it.
    pub fn expect(&mut self, client: usize, frame: &Rc<[u8]>) {
        let client = &mut self.clients[client];
        client.due_ns = self.clock.now_ns();
        client.joiner.expect(frame);
        self.served -= 1;
    }

    /// The first message of a client that took any; once.
    pub fn take_message(&mut self, client: usize) -> String {
        self.clients[client].joiner.take_message()
    }

    /// Waits at most so long for something to happen, and checks what has come.
    pub fn turn(&mut self, wait: Duration) -> Result<(), String> {
        let Self {
            ring,
            clock,
            clients,
            served,
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
                Event::Received(bytes) => client.joiner.take(bytes),
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

    /// Waits until all have got what they wait for; who is not served in this time is a failure.
    pub fn finish(&mut self, patience: Duration) -> Result<(), String> {
        let limit_ns = self.clock.now_ns() + u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        while self.served < self.count() {
            self.turn(Duration::from_millis(50))?;
            if self.clock.now_ns() > limit_ns {
                let mut clients = self.clients.iter();
                let first = clients.position(|client| !client.joiner.is_served());
                return Err(format!(
                    "{} of {} clients have not got what they wait for after {patience:?}, client {} among them",
                    self.count() - self.served,
                    self.count(),
                    first.unwrap_or_default(),
                ));
            }
        }
        Ok(())
    }
}
