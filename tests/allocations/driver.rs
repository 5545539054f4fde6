//! Drives one shard and its clients without IO. In the steady state nothing here allocates, so that
//! only the shard is counted or timed. The micro-benches include this file.

use std::io::Write;

use etherply::core::fanout::window::{Spans, spans_bytes};
use etherply::core::shard::Shard;
use etherply::core::shard::contract::{Clock, Input, Output, Received, RestoredState, ShardConfig};
use etherply::core::shard::session::SessionId;
use etherply::core::testing::{self, START_UNIX_S};
use etherply::generation::Generation;
use etherply::limits::SECOND_US;
use etherply::log::commit::{Durability, LogStep, OpenSegment};
use etherply::log::position::LogPosition;

/// More turns than this mean an endless loop.
const TURNS_MAX: usize = 100_000;
const START_S: u64 = 1000;
/// The mask of the clients' frames.
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A client of the shard.
pub struct Member {
    pub id: SessionId,
    /// Its socket accepts all bytes that are sent to it.
    pub reads: bool,
    pub counter: FrameCounter,
    sending: Option<Spans>,
    is_receiving: bool,
}

/// Counts the frames that a client receives.
pub struct FrameCounter {
    /// The number of frames since the response to its request.
    pub frames: u64,
    /// The incomplete header of the next frame.
    header: Vec<u8>,
    missing_bytes: usize,
    is_joined: bool,
}

/// Returns the settings of a shard without limits on time and timestamps.
pub fn config(durability: Durability) -> ShardConfig {
    ShardConfig {
        durability,
        segment_bytes_min: 1 << 30,
        segment_bytes_max: 1 << 30,
        future_skew_us: u64::MAX / 2,
        drain_us: 0,
        ..testing::shard_config()
    }
}

/// Returns the request of a client that joins.
pub fn head(workspace: &str) -> String {
    testing::join_request(workspace, &testing::token(None))
}

/// A shard and its clients.
pub struct Driver {
    pub shard: Shard,
    /// Whether frames are counted; off if only the shard is timed.
    pub counts_frames: bool,
    pub clock: Clock,
    pub members: Vec<Member>,
    /// The members' indexes, by the slots of their sessions.
    places: Vec<usize>,
    log: Option<Output>,
    outgoing: Vec<u8>,
}

impl Driver {
    /// Starts a shard; `change` adjusts its settings.
    pub fn new(durability: Durability, change: impl FnOnce(&mut ShardConfig)) -> Self {
        let clock = Clock {
            now_us: START_S * SECOND_US,
            unix_us: START_UNIX_S * SECOND_US,
        };
        let mut config = config(durability);
        change(&mut config);
        let segment = OpenSegment {
            index: 1,
            first_position: LogPosition::START,
            salt: 7,
            writes_through: false,
        };
        let state = RestoredState {
            segment,
            workspaces: Vec::new(),
            generation: Generation::new(1),
            logged: None,
        };
        Self {
            shard: Shard::new(config, state, clock),
            counts_frames: true,
            clock,
            members: Vec::new(),
            places: Vec::new(),
            log: None,
            outgoing: Vec::with_capacity(1 << 20),
        }
    }

    /// Lets a client join and returns its index among the members.
    pub fn join(&mut self, workspace: &str) -> usize {
        self.join_with(head(workspace), 1)
    }

    /// Lets a client join that sends `head` and receives `frames` frames after the 101.
    pub fn join_with(&mut self, head: String, frames: u64) -> usize {
        let id = self.shard.accept(false, self.clock);
        let place = self.members.len();
        self.members.push(Member {
            id,
            reads: true,
            counter: FrameCounter::new(),
            sending: None,
            is_receiving: false,
        });
        let slot = id.slot as usize;
        if slot >= self.places.len() {
            self.places.resize(slot + 1, usize::MAX);
        }
        self.places[slot] = place;
        self.settle();
        self.receive(place, &mut head.into_bytes());
        self.settle();
        let counter = &mut self.members[place].counter;
        assert_eq!(
            (counter.is_joined, counter.frames),
            (true, frames),
            "the member received 101 and the state"
        );
        counter.frames = 0;
        place
    }

    /// Hands the shard the bytes that `write` writes.
    pub fn send(&mut self, place: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.clear();
        write(&mut outgoing);
        self.receive(place, &mut outgoing);
        self.outgoing = outgoing;
    }

    fn receive(&mut self, place: usize, bytes: &mut [u8]) {
        let member = &mut self.members[place];
        assert!(member.is_receiving, "member {place} is not being read");
        member.is_receiving = false;
        let id = member.id;
        self.shard
            .handle(Input::Received(id, Received::Bytes(bytes)), self.clock);
    }

    pub fn pass(&mut self, us: u64) {
        self.clock.now_us += us;
        self.clock.unix_us += us;
    }

    /// Returns the number of seconds since the start, including the current one.
    pub fn seconds(&self) -> u64 {
        self.clock.now_us / SECOND_US - START_S + 1
    }

    /// Runs turns until only sends to clients that do not read are in flight.
    pub fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let moved = self.turn();
            if !moved && !self.shard.has_work() {
                return;
            }
        }
        panic!("the shard loops without end");
    }

    /// Runs one turn and completes all operations that it started. Returns whether there were any.
    pub fn turn(&mut self) -> bool {
        self.shard.flush(self.clock);
        while let Some(output) = self.shard.poll_output() {
            self.take(output);
        }
        let mut moved = self.end_log();
        for place in 0..self.members.len() {
            moved |= self.members[place].reads && self.end_send(place);
        }
        moved
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Receive(id) => {
                let place = self.places[id.slot as usize];
                self.members[place].is_receiving = true;
            }
            Output::Send(id, spans) => {
                let place = self.places[id.slot as usize];
                let before = self.members[place].sending.replace(spans);
                assert!(before.is_none(), "only one send is in flight");
            }
            Output::Log(LogStep::Write { .. } | LogStep::Sync) => {
                assert!(self.log.is_none(), "only one log operation is in flight");
                self.log = Some(output);
            }
            output => panic!("unexpected output {output:?}"),
        }
    }

    fn end_log(&mut self) -> bool {
        let input = match self.log.take() {
            None => return false,
            Some(Output::Log(LogStep::Write { bytes, from, .. })) => {
                let count = bytes.len() - from;
                Input::LogWritten(bytes, Ok(count))
            }
            Some(_) => Input::LogSynced(Ok(())),
        };
        self.shard.handle(input, self.clock);
        true
    }

    /// Completes a send in full. Returns whether there was one.
    pub fn end_send(&mut self, place: usize) -> bool {
        let member = &mut self.members[place];
        let Some(spans) = member.sending.take() else {
            return false;
        };
        if self.counts_frames {
            for span in &spans {
                member.counter.read(span.bytes());
            }
        }
        let (id, bytes) = (member.id, spans_bytes(&spans));
        self.shard
            .handle(Input::Sent(id, spans, Ok(bytes)), self.clock);
        true
    }
}

impl FrameCounter {
    pub fn new() -> Self {
        Self {
            frames: 0,
            header: Vec::with_capacity(16),
            missing_bytes: 0,
            is_joined: false,
        }
    }

    pub fn read(&mut self, mut bytes: &[u8]) {
        if !self.is_joined {
            let head_bytes = bytes
                .windows(4)
                .position(|end| end == b"\r\n\r\n")
                .expect("the answer is in one piece");
            self.is_joined = bytes.starts_with(b"HTTP/1.1 101");
            bytes = &bytes[head_bytes + 4..];
        }
        while let Some((first, rest)) = bytes.split_first() {
            if self.missing_bytes > 0 {
                let passed = self.missing_bytes.min(bytes.len());
                self.missing_bytes -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            self.header.push(*first);
            bytes = rest;
            let length = match (&self.header[..], self.header.get(1)) {
                ([_, short], _) if *short < 126 => usize::from(*short),
                ([_, _, high, low], Some(126)) => usize::from(u16::from_be_bytes([*high, *low])),
                ([_, _, long @ ..], Some(127)) if long.len() == 8 => {
                    usize::try_from(u64::from_be_bytes(long.try_into().expect("eight bytes")))
                        .expect("the value fits")
                }
                _ => continue,
            };
            self.header.clear();
            self.missing_bytes = length;
            self.frames += 1;
        }
    }
}

/// Appends a masked frame with the payload that `write` writes, at most 64 KiB.
pub fn put_frame(out: &mut Vec<u8>, opcode: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0x80 | opcode, 0x80 | 0x7E, 0, 0]);
    out.extend_from_slice(&MASK);
    let payload_start = out.len();
    write(out);
    let payload_bytes = out.len() - payload_start;
    if payload_bytes < 126 {
        out[start + 1] = 0x80 | u8::try_from(payload_bytes).expect("the length is small");
        out.drain(start + 2..start + 4);
    } else {
        let length = u16::try_from(payload_bytes).expect("at most 64 KiB");
        out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    }
    let payload_start = out.len() - payload_bytes;
    for (byte, key) in out[payload_start..].iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends the frame of an op whose value is a string of `value_bytes` bytes.
pub fn put_op(out: &mut Vec<u8>, key: u64, value_bytes: usize, timestamp: u64) {
    put_frame(out, 1, |out| {
        write!(
            out,
            r#"{{"type":"op","payload":{{"key":"key-{key}","value":"{:0value_bytes$}","timestamp":{timestamp}}}}}"#,
            timestamp % 1_000_000_000,
        )
        .expect("writing to a Vec cannot fail");
    });
}
