//! Redis as a durable store: a client that keeps a number of commands in flight, and their cost to
//! the server.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherply_bench::process::Process;
use etherply_bench::resp;

pub use etherply_bench::resp::version;

/// The time at which redis syncs its append-only file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Redis syncs before it answers.
    Always,
    /// The kernel syncs when it decides to.
    No,
}

/// The command that writes an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteCommand {
    /// `SET key value`.
    Set,
    /// `XADD workspace * key value`.
    Xadd,
}

/// A load of commands.
#[derive(Clone, Copy, Debug)]
pub struct CommandLoad {
    pub shape: WriteCommand,
    /// The number of commands whose answer is outstanding, at all times.
    pub in_flight: usize,
    /// The number of distinct keys.
    pub keys: u64,
    pub key_bytes: usize,
    pub value_bytes: usize,
    /// The time before the measurement.
    pub warm_up: Duration,
    pub duration: Duration,
}

/// The outcome of a load.
#[derive(Clone, Debug)]
pub struct CommandFigures {
    pub ops: u64,
    pub clock_s: f64,
    /// The CPU time of the server.
    pub cpu_s: f64,
    /// The time from when each command was written to its answer.
    pub latencies_us: Vec<u32>,
}

/// A running `redis-server`.
pub struct Redis {
    process: Process,
    client: TcpStream,
    /// The number of the next op.
    next: u64,
}

impl Redis {
    /// Starts it on the cores that the calling thread may use.
    pub fn start(folder: &Path, fsync: Fsync) -> Self {
        let port = free_port();
        let fsync = match fsync {
            Fsync::Always => "always",
            Fsync::No => "no",
        };
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
            .arg(folder)
            .args(["--appendonly", "yes", "--appendfsync", fsync, "--save", ""])
            .args(["--auto-aof-rewrite-percentage", "0"])
            .stderr(Stdio::inherit());
        let (mut process, _) = Process::start(command);
        process.line_with("eady to accept connections");
        let client = TcpStream::connect(("127.0.0.1", port)).expect("redis listens");
        client.set_nodelay(true).expect("TCP_NODELAY can be set");
        Self {
            process,
            client,
            next: 0,
        }
    }

    /// Runs a load. Each answer is checked, and at the end the last values are read back.
    ///
    /// # Panics
    ///
    /// If an answer is wrong.
    pub fn run(&mut self, load: &CommandLoad) -> CommandFigures {
        let mut pipe = Pipe::new(load, self.next);
        let first = self.next;
        let begun = Instant::now();
        while begun.elapsed() < load.warm_up {
            pipe.turn(&mut self.client, load.in_flight);
        }
        pipe.latencies_us.clear();
        let (from, cpu_from_s) = (Instant::now(), self.process.cpu_s());
        while from.elapsed() < load.duration {
            pipe.turn(&mut self.client, load.in_flight);
        }
        let clock_s = from.elapsed().as_secs_f64();
        let cpu_s = self.process.cpu_s() - cpu_from_s;
        let latencies_us = std::mem::take(&mut pipe.latencies_us);
        while !pipe.sent.is_empty() {
            pipe.turn(&mut self.client, 0);
        }
        self.next = pipe.next;
        self.check(load, first);
        CommandFigures {
            ops: latencies_us.len() as u64,
            clock_s,
            cpu_s,
            latencies_us,
        }
    }

    fn check(&mut self, load: &CommandLoad, first: u64) {
        match load.shape {
            WriteCommand::Set => {
                for op in self.next.saturating_sub(load.keys).max(first)..self.next {
                    let key = key(load, op);
                    let held = resp::ask(&mut self.client, &["GET", &key]);
                    assert_eq!(held, [value(load, op)], "redis has another value of {key}");
                }
            }
            WriteCommand::Xadd => {
                let held = resp::ask(&mut self.client, &["XLEN", STREAM]);
                assert_eq!(held, [self.next.to_string()], "redis lost ops");
            }
        }
    }
}

const STREAM: &str = "bench";
/// The maximum number of bytes that one call reads.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

fn key(load: &CommandLoad, op: u64) -> String {
    format!("{:0width$}", op % load.keys, width = load.key_bytes)
}

fn value(load: &CommandLoad, op: u64) -> String {
    format!("{op:0width$}", width = load.value_bytes)
}

/// The commands in flight.
struct Pipe<'a> {
    load: &'a CommandLoad,
    next: u64,
    /// The time at which each was written, the oldest first.
    sent: VecDeque<Instant>,
    /// Answers that have not been checked yet.
    answers: Vec<u8>,
    buffer: Box<[u8]>,
    commands: Vec<u8>,
    latencies_us: Vec<u32>,
}

impl<'a> Pipe<'a> {
    fn new(load: &'a CommandLoad, next: u64) -> Self {
        Self {
            load,
            next,
            sent: VecDeque::new(),
            answers: Vec::new(),
            buffer: vec![0; ANSWER_BYTES_MAX].into(),
            commands: Vec::new(),
            latencies_us: Vec::new(),
        }
    }

    /// Fills the pipe, waits for an answer, and checks all answers that have arrived.
    fn turn(&mut self, client: &mut TcpStream, in_flight: usize) {
        self.commands.clear();
        let now = Instant::now();
        while self.sent.len() < in_flight {
            let (key, value) = (key(self.load, self.next), value(self.load, self.next));
            match self.load.shape {
                WriteCommand::Set => resp::put_command(&mut self.commands, &["SET", &key, &value]),
                WriteCommand::Xadd => {
                    let words = ["XADD", STREAM, "*", &key, &value];
                    resp::put_command(&mut self.commands, &words);
                }
            }
            self.sent.push_back(now);
            self.next += 1;
        }
        client
            .write_all(&self.commands)
            .expect("redis accepts the commands");
        let bytes = client.read(&mut self.buffer).expect("redis answers");
        assert!(bytes > 0, "redis closed the connection");
        self.answers.extend_from_slice(&self.buffer[..bytes]);
        self.take_answers();
    }

    fn take_answers(&mut self) {
        let now = Instant::now();
        let mut rest = self.answers.as_slice();
        while let Some(answer_bytes) = answer_bytes(self.load.shape, rest) {
            let sent = self.sent.pop_front().expect("an answer for each command");
            let latency_us = (now - sent).as_micros();
            self.latencies_us
                .push(u32::try_from(latency_us).unwrap_or(u32::MAX));
            rest = &rest[answer_bytes..];
        }
        let taken = self.answers.len() - rest.len();
        self.answers.drain(..taken);
    }
}

/// Returns the length of the answer at the start of `bytes`; `None` if it is incomplete.
fn answer_bytes(shape: WriteCommand, bytes: &[u8]) -> Option<usize> {
    let line_bytes = |bytes: &[u8]| Some(bytes.windows(2).position(|end| end == b"\r\n")? + 2);
    let first = line_bytes(bytes)?;
    let is_right = match shape {
        WriteCommand::Set => &bytes[..first] == b"+OK\r\n",
        WriteCommand::Xadd => bytes[0] == b'$',
    };
    let answer = String::from_utf8_lossy(&bytes[..first]);
    assert!(is_right, "redis answered {answer}");
    match shape {
        WriteCommand::Set => Some(first),
        WriteCommand::Xadd => Some(first + line_bytes(&bytes[first..])?),
    }
}

/// Returns a port that is free at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
    listener.local_addr().expect("the listener is bound").port()
}
