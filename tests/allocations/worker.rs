//! One shard's worker on this thread, with a real ring, log and sockets. Its clients run on another
//! thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use etherply::core::shard::Shard;
use etherply::core::shard::contract::LoggedGenerations;
use etherply::generation::Generation;
use etherply::io::listener::{AddressNames, Listener};
use etherply::io::mailbox::{RecoveredShard, ShardMessage, ShardSender, mailbox};
use etherply::io::ring::{self, RingKind};
use etherply::io::worker::{Worker, WorkerContext, clock};
use etherply::limits::{SECOND_US, SEGMENT_FILL_BYTES};
use etherply::log::commit::Durability;
use etherply::log::directory::DataDirectory;
use etherply::log::log_files::LogFiles;
use etherply::log::recovery::RecoveryReport;
use etherply::status::Status;

use crate::driver::{FrameCounter, config, head, put_op};

/// The number of windows, which are identical sections of the load.
pub const WINDOWS: u64 = 10;
const ROUNDS: u64 = 25;
const CLIENTS: usize = 4;
const WRITERS: usize = 2;
/// The number of ops that each writer sends in a round.
const OPS: u64 = 5;
const KEYS: u64 = 20;
/// The time that a client waits for anything; this is not a measure of speed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the load and returns how much `count` rose on the worker's thread in each window.
pub fn allocations_by_window(
    kind: RingKind,
    durability: Durability,
    count: impl Fn() -> u64,
) -> Vec<u64> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let directory = Arc::new(DataDirectory::open(folder.path()).expect("a data directory"));
    let fill_bytes = (durability == Durability::Always).then_some(SEGMENT_FILL_BYTES);
    let log = LogFiles::open(directory, 0, &RecoveryReport::default(), fill_bytes).expect("a log");
    let names = AddressNames {
        host: "--host",
        port: "--port",
    };
    let listener =
        Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), names).expect("a free port");
    listener.listen().expect("the port is free");
    let address = listener.address();
    let (post, mailbox) = mailbox().expect("the mailbox can be created");
    let (compactor, _taken) = channel();
    let (serves, ready) = channel();
    let ties = WorkerContext {
        status: Arc::new(Status::new(1, 100)),
        listener: Arc::new(listener),
        admin_listener: None,
        mailbox,
        senders: vec![post.clone()],
        compactor,
        hash_seed: 1,
        pages: Arc::new(etherply::admin::Pages::new(false, None)),
    };
    post.send(ShardMessage::Recovered(Box::new(RecoveredShard {
        log,
        workspaces: Vec::new(),
        generation: Generation::new(1),
        logged: LoggedGenerations::default(),
        serves,
    })));
    let started = Instant::now();
    let mut config = config(durability);
    // Without pings, a client receives exactly the expected frames.
    config.ping_interval_us = 3600 * SECOND_US;
    let shard = Shard::recovering(config, clock(started));
    let mut worker = Worker::new(shard, 0, ties, started);

    let window = Arc::new(AtomicU64::new(0));
    let clients = thread::spawn({
        let window = Arc::clone(&window);
        move || {
            let _stop = Stop(post);
            ready
                .recv_timeout(PATIENCE)
                .expect("the worker accepts connections");
            load(address, &window);
        }
    });
    let mut counts = Vec::with_capacity(usize::try_from(WINDOWS).expect("the value is small"));
    let (mut seen, mut before, mut is_started) = (0, 0, false);
    let go = || ControlFlow::Continue(());
    ring::run(kind, go, |ring| {
        if !is_started {
            is_started = true;
            worker.start(ring);
            return ControlFlow::Continue(());
        }
        let now = window.load(Ordering::Acquire);
        if now != seen {
            if seen > 0 {
                counts.push(count() - before);
            }
            (seen, before) = (now, count());
        }
        worker.turn(ring)
    })
    .expect("the ring can be set up");
    clients.join().expect("the client thread does not panic");
    counts
}

/// Ends the worker, no matter how the clients end.
struct Stop(ShardSender);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.send(ShardMessage::Drain);
        self.0.send(ShardMessage::Drain);
    }
}

struct Client {
    socket: TcpStream,
    counter: FrameCounter,
    owed: u64,
    buffer: Vec<u8>,
}

impl Client {
    fn join(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).expect("a connection");
        socket.set_nodelay(true).expect("a socket option");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket option");
        socket.write_all(head("w").as_bytes()).expect("a request");
        let mut client = Self {
            socket,
            counter: FrameCounter::new(),
            owed: 1,
            buffer: vec![0; 1 << 16],
        };
        client.read();
        client
    }

    /// Reads until everything that the client expects has arrived.
    fn read(&mut self) {
        while self.counter.frames < self.owed {
            let count = self
                .socket
                .read(&mut self.buffer)
                .expect("the bytes arrive in time");
            assert!(count > 0, "the worker accepts connections");
            self.counter.read(&self.buffer[..count]);
        }
        assert_eq!(self.counter.frames, self.owed);
    }
}

fn load(address: SocketAddr, window: &AtomicU64) {
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::join(address)).collect();
    let (mut op, mut text) = (0, Vec::new());
    for number in 1..=WINDOWS {
        window.store(number, Ordering::Release);
        for _ in 0..ROUNDS {
            for client in &mut clients[..WRITERS] {
                text.clear();
                for _ in 0..OPS {
                    op += 1;
                    put_op(&mut text, op % KEYS, 50, op);
                }
                // This op loses, and its correction makes a send of more than one piece.
                put_op(&mut text, op % KEYS, 50, 0);
                client.socket.write_all(&text).expect("the send succeeds");
            }
            for (place, client) in clients.iter_mut().enumerate() {
                let is_writer = place < WRITERS;
                let others = WRITERS - usize::from(is_writer);
                client.owed += OPS * others as u64 + u64::from(is_writer);
                client.read();
            }
        }
    }
    window.store(WINDOWS + 1, Ordering::Release);
}
