//! Many clients that come in at once, or on a schedule. What each is shown is checked byte by byte, or kept and looked at later.

use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use etherply::wire::frame::put_text_header;
use hdrhistogram::Histogram;

use super::book::{Clock, histogram};
use super::join::{Door, first_message, upgraded};
use super::ring::{Event, Ring};

/// What a client waits for.
enum Wanted {
    /// The answer to its upgrade; the first message comes behind it.
    Upgrade(Option<Rc<[u8]>>),
    /// These bytes, of which so many have come.
    Bytes(Rc<[u8]>, usize),
    /// A first message, whatever it says.
    AnyMessage,
    Nothing,
}

struct Client {
    due_ns: u64,
    wanted: Wanted,
    /// What has come and is not whole yet; and the first message, where any will do.
    held: Vec<u8>,
}

/// The clients, by their number: 0, 1, 2, …
pub struct Crowd {
    ring: Ring,
    door: Door,
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
    pub fn new(door: &Door, clock: Clock) -> Result<Self, String> {
        Ok(Self {
            ring: Ring::new()
                .map_err(|error| format!("the ring of the load generator: {error}"))?,
            door: door.clone(),
            clock,
            clients: Vec::new(),
            served: 0,
            latencies_ns: histogram(),
        })
    }

    pub fn len(&self) -> usize {
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
        let joined = TcpStream::connect(self.door.address).and_then(|stream| {
            stream.set_nodelay(true)?;
            self.ring.add(stream)
        });
        let number = joined.map_err(|error| format!("client {}: {error}", self.len()))?;
        let request = self.door.request(workspace);
        self.ring
            .send(number, |out| out.extend_from_slice(request.as_bytes()));
        self.clients.push(Client {
            due_ns,
            wanted: Wanted::Upgrade(init),
            held: Vec::new(),
        });
        Ok(())
    }

    /// From now on, a client must be sent this frame, and nothing else before it.
    pub fn expect(&mut self, client: usize, frame: &Rc<[u8]>) {
        let client = &mut self.clients[client];
        assert!(
            matches!(client.wanted, Wanted::Nothing),
            "it has got what it waited for"
        );
        client.due_ns = self.clock.now_ns();
        client.wanted = Wanted::Bytes(Rc::clone(frame), 0);
        self.served -= 1;
    }

    /// The first message of a client that took any; once.
    pub fn take_message(&mut self, client: usize) -> String {
        let held = std::mem::take(&mut self.clients[client].held);
        String::from_utf8_lossy(&held).into_owned()
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
                Event::Received(bytes) => client.take(bytes),
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
        while self.served < self.len() {
            self.turn(Duration::from_millis(50))?;
            if self.clock.now_ns() > limit_ns {
                let mut clients = self.clients.iter();
                let first = clients.position(|client| !matches!(client.wanted, Wanted::Nothing));
                return Err(format!(
                    "{} of {} clients have not got what they wait for after {patience:?}, client {} among them",
                    self.len() - self.served,
                    self.len(),
                    first.unwrap_or_default(),
                ));
            }
        }
        Ok(())
    }
}

impl Client {
    /// Takes what came; tells whether it has now got what it has waited for.
    fn take(&mut self, mut bytes: &[u8]) -> Result<bool, String> {
        if let Wanted::Upgrade(init) = &self.wanted {
            self.held.extend_from_slice(bytes);
            let end = upgraded(&self.held).map_err(|error| error.to_string())?;
            let Some(end) = end else { return Ok(false) };
            self.wanted = match init {
                Some(init) => Wanted::Bytes(Rc::clone(init), 0),
                None => Wanted::AnyMessage,
            };
            let rest = self.held.split_off(end);
            self.held = Vec::new();
            return self.take(&rest);
        }
        if bytes.is_empty() {
            return Ok(false);
        }
        match &mut self.wanted {
            Wanted::Upgrade(_) => unreachable!("it was just handled"),
            Wanted::Nothing if is_ping(bytes) => Ok(false),
            Wanted::Nothing => Err(format!("nothing was to come, and {} came", told(bytes))),
            Wanted::Bytes(expected, at) => {
                let rest = &expected[*at..];
                let length = rest.len().min(bytes.len());
                if rest[..length] != bytes[..length] {
                    let same = rest.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                    return Err(format!(
                        "byte {} is wrong\n  expected {}\n  seen     {}",
                        *at + same,
                        told(&rest[same..]),
                        told(&bytes[same..])
                    ));
                }
                *at += length;
                bytes = &bytes[length..];
                let is_whole = *at == expected.len();
                if is_whole {
                    self.wanted = Wanted::Nothing;
                }
                if !bytes.is_empty() {
                    self.take(bytes)?;
                }
                Ok(is_whole)
            }
            Wanted::AnyMessage => {
                self.held.extend_from_slice(bytes);
                let message = first_message(&self.held).map_err(|error| error.to_string())?;
                let Some((start, end)) = message else {
                    return Ok(false);
                };
                if self.held.len() > end {
                    return Err("something came behind the first message".to_owned());
                }
                self.held.drain(..start);
                self.wanted = Wanted::Nothing;
                Ok(true)
            }
        }
    }
}

/// A server may ask who is there for long; an answer is not needed for as long as a crowd is watched.
fn is_ping(bytes: &[u8]) -> bool {
    bytes[0] == 0x89
}

fn told(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(80)];
    format!("{:?}", String::from_utf8_lossy(shown))
}
