//! Clients that reconnect automatically: readers, and writers that resend each op until a reader
//! has received it.

use crate::support::client::{Client, Event, Op, op_text};
use crate::support::server::Server;
use crate::support::{eventually, stamp, within};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::{Error, Message};

const ROOMS: usize = 4;
const WRITERS_PER_ROOM: usize = 2;
const READERS_PER_ROOM: usize = 1;

/// The outcomes of the connections.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connection attempts that the kernel refused.
    pub refused: AtomicU64,
    /// Handshakes that were answered with 101.
    pub let_in: AtomicU64,
    /// Handshakes that were answered with 503.
    pub turned_away: AtomicU64,
    /// Connections that ended without a response or a close frame although no server was killed.
    pub cut: AtomicU64,
    pub may_be_cut: AtomicBool,
}

impl Tally {
    fn count_cut(&self, what: &str) {
        if !self.may_be_cut.load(Relaxed) {
            eprintln!("cut: {what}");
            self.cut.fetch_add(1, Relaxed);
        }
    }
}

struct Shared {
    addr: SocketAddr,
    tally: Arc<Tally>,
    /// The newest ops, by room and key.
    shown: Mutex<HashMap<(usize, String), Value>>,
    /// For each writer, the number of its newest op that a reader was shown.
    newest: Vec<watch::Sender<u64>>,
    is_ending: AtomicBool,
}

/// Running clients.
pub struct Load {
    shared: Arc<Shared>,
    pub tally: Arc<Tally>,
    writers: Vec<JoinHandle<u64>>,
    readers: Vec<JoinHandle<()>>,
}

/// The ops that the clients received, available once they have ended.
pub struct Ledger {
    pub shown: HashMap<(usize, String), Value>,
    /// For each writer, the number of ops that it kept sending until they were shown.
    written: Vec<u64>,
    pub tally: Arc<Tally>,
}

impl Load {
    pub fn start(addr: SocketAddr) -> Load {
        let writers_count = ROOMS * WRITERS_PER_ROOM;
        let tally = Arc::new(Tally::default());
        let shared = Arc::new(Shared {
            addr,
            tally: tally.clone(),
            shown: Mutex::new(HashMap::new()),
            newest: (0..writers_count).map(|_| watch::Sender::new(0)).collect(),
            is_ending: AtomicBool::new(false),
        });
        let readers = (0..ROOMS * READERS_PER_ROOM)
            .map(|reader| tokio::spawn(read(shared.clone(), reader % ROOMS)))
            .collect();
        let writers = (0..writers_count)
            .map(|writer| tokio::spawn(write(shared.clone(), writer)))
            .collect();
        Load {
            shared,
            tally,
            writers,
            readers,
        }
    }

    /// Waits until the readers have received `count` more ops.
    pub async fn until_more_is_shown(&self, count: usize) {
        let shown_count = || {
            self.shared
                .shown
                .lock()
                .expect("no client task panics")
                .len()
        };
        let goal = shown_count() + count;
        eventually("the readers receive more ops", async || {
            (shown_count() >= goal).then_some(())
        })
        .await;
    }

    /// Waits until each client has been let in once more.
    pub async fn until_all_are_back(&self, let_in_before: u64) {
        let clients_count = (self.writers.len() + self.readers.len()) as u64;
        eventually("all clients are reconnected", async || {
            let let_in = self.tally.let_in.load(Relaxed);
            (let_in >= let_in_before + clients_count).then_some(())
        })
        .await;
    }

    /// Lets each writer resend its last op until it is shown, then ends all clients.
    pub async fn finish(self) -> Ledger {
        self.shared.is_ending.store(true, Relaxed);
        let mut written = Vec::new();
        for writer in self.writers {
            let count = within("a writer's last op to be delivered", writer).await;
            written.push(count.expect("no client task panics"));
        }
        for reader in self.readers {
            reader.abort();
            assert!(
                reader.await.is_err_and(|error| error.is_cancelled()),
                "no reader task panics"
            );
        }
        let shown = std::mem::take(&mut *self.shared.shown.lock().expect("no client task panics"));
        Ledger {
            shown,
            written,
            tally: self.tally,
        }
    }
}

impl Ledger {
    /// Checks that the state contains each op that was shown and each that was sent until it was
    /// shown.
    pub async fn check(&self, server: &Server) {
        let mut states = Vec::new();
        for room in 0..ROOMS {
            states.push(Client::connect(server, &room_name(room)).await.init);
        }
        for ((room, key), value) in &self.shown {
            assert_eq!(states[*room].get(key), Some(value), "{key} of room {room}");
        }
        for (writer, count) in self.written.iter().enumerate() {
            assert!(*count > 0, "writer {writer} wrote nothing");
            for number in 1..=*count {
                let (key, value) = (key_of(writer, number), json!(number));
                let held = states[writer % ROOMS].get(&key);
                assert_eq!(held, Some(&value), "writer {writer}");
            }
        }
    }
}

fn room_name(room: usize) -> String {
    format!("room {room}")
}

fn key_of(writer: usize, number: u64) -> String {
    format!("{writer} {number}")
}

impl Shared {
    /// Returns a client that has read its init message, retrying as often as necessary.
    async fn connect(&self, room: usize) -> Client {
        loop {
            if let Some(client) = self.try_to_connect(room).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn try_to_connect(&self, room: usize) -> Option<Client> {
        let Ok(stream) = TcpStream::connect(self.addr).await else {
            self.tally.refused.fetch_add(1, Relaxed);
            return None;
        };
        let path = Server::sync_path(&room_name(room));
        let mut client = match Client::dial_over(stream, &path).await {
            Ok(client) => client,
            Err(Error::Http(answer)) => {
                assert_eq!(answer.status(), 503, "{answer:?}");
                assert!(answer.headers().contains_key("Retry-After"), "{answer:?}");
                self.tally.turned_away.fetch_add(1, Relaxed);
                return None;
            }
            Err(error) => {
                self.tally.count_cut(&format!("a handshake: {error}"));
                return None;
            }
        };
        self.tally.let_in.fetch_add(1, Relaxed);
        match client.event().await {
            Event::Text(text) => client.take_init(&text),
            other => {
                self.ended(&other);
                return None;
            }
        }
        Some(client)
    }

    fn ended(&self, event: &Event) {
        if !matches!(event, Event::Close(1001, _)) {
            self.tally.count_cut(&format!("a connection: {event:?}"));
        }
    }

    fn record(&self, room: usize, key: &str, value: &Value) {
        let mut shown = self.shown.lock().expect("no client task panics");
        shown.insert((room, key.to_owned()), value.clone());
        let (writer, number) = key.split_once(' ').expect("the key belongs to this test");
        let writer: usize = writer.parse().expect("a number");
        let number: u64 = number.parse().expect("a number");
        self.newest[writer].send_if_modified(|newest| {
            let is_newer = number > *newest;
            *newest = number.max(*newest);
            is_newer
        });
    }

    fn record_all(&self, room: usize, state: &Map<String, Value>) {
        for (key, value) in state {
            self.record(room, key, value);
        }
    }
}

async fn read(shared: Arc<Shared>, room: usize) {
    loop {
        let mut client = shared.connect(room).await;
        shared.record_all(room, &client.init);
        loop {
            match client.event().await {
                Event::Text(text) => {
                    let op =
                        Op::parse(&text).unwrap_or_else(|| panic!("an op was refused: {text}"));
                    shared.record(room, &op.key, &op.value);
                }
                other => {
                    shared.ended(&other);
                    break;
                }
            }
        }
    }
}

/// Writes ops in sequence, each once the previous one was received. Returns their number.
async fn write(shared: Arc<Shared>, writer: usize) -> u64 {
    let room = writer % ROOMS;
    let mut newest = shared.newest[writer].subscribe();
    let mut number = 0;
    let mut client = shared.connect(room).await;
    while !shared.is_ending.load(Relaxed) {
        number += 1;
        let op = Op::new(&key_of(writer, number), json!(number), stamp());
        let mut is_sent = false;
        while *newest.borrow_and_update() < number {
            // If the send fails, the next event reports the cause.
            is_sent = is_sent || client.try_send(Message::text(op_text(&op))).await;
            tokio::select! {
                event = client.event() => if !matches!(event, Event::Text(_)) {
                    shared.ended(&event);
                    client = shared.connect(room).await;
                    is_sent = false;
                },
                changed = newest.changed() => changed.expect("the sender is alive"),
            }
        }
    }
    number
}
