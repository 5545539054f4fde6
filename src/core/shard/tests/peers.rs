//! The environment of a shard in the simulation: a model, a disk, and clients with their sockets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::fanout::window::Spans;
use crate::core::shard::session::SessionId;
use crate::core::state::workspace::Workspace;
use crate::core::testing::HASH_SEED;
use crate::log::commit::{End, OpenSegment};
use crate::log::position::LogPosition;
use crate::log::record::{Change, Reader, SegmentHeader};

/// An op, as the model and the clients represent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub value: String,
    pub timestamp: u64,
}

/// The state of a workspace as a list of the ops that won, each with the client that sent it.
#[derive(Default)]
pub struct Model {
    pub wins: Vec<(Write, usize)>,
}

pub enum Verdict {
    Won,
    Same,
    Lost(Write),
}

impl Model {
    /// Returns the state after the first `count` wins.
    pub fn state(&self, count: usize) -> BTreeMap<&str, &Write> {
        let wins = self.wins[..count].iter();
        wins.map(|(write, _)| (write.key.as_str(), write)).collect()
    }

    pub fn apply(&mut self, write: &Write, client: usize) -> Verdict {
        let held = self.wins.iter().rev().find(|win| win.0.key == write.key);
        match held {
            Some((held, _)) if held.timestamp == write.timestamp && held.value == write.value => {
                Verdict::Same
            }
            Some((held, _)) if held.timestamp >= write.timestamp => Verdict::Lost(held.clone()),
            _ => {
                self.wins.push((write.clone(), client));
                Verdict::Won
            }
        }
    }
}

struct File {
    header: SegmentHeader,
    bytes: Vec<u8>,
    synced: usize,
}

/// The segments of the shard, and how much of each is synced.
pub struct Disk {
    files: Vec<File>,
    /// The values of all synced ops.
    pub synced: BTreeSet<String>,
}

impl Disk {
    pub fn new() -> (Self, OpenSegment) {
        let mut disk = Self {
            files: Vec::new(),
            synced: BTreeSet::new(),
        };
        let segment = disk.open(1, LogPosition::START);
        (disk, segment)
    }

    pub fn open(&mut self, index: u64, first_position: LogPosition) -> OpenSegment {
        let header = SegmentHeader::new(0, [1; 16], index, first_position);
        let bytes = header.encode().to_vec();
        let synced = bytes.len();
        self.files.push(File {
            header,
            bytes,
            synced,
        });
        OpenSegment {
            index,
            first_position,
            salt: header.salt(),
            writes_through: false,
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let file = self.files.last_mut().expect("a segment is open");
        assert_eq!(offset, file.bytes.len() as u64, "writes are contiguous");
        file.bytes.extend_from_slice(bytes);
    }

    pub fn sync(&mut self) {
        let file = self.files.last_mut().expect("a segment is open");
        file.synced = file.bytes.len();
        self.synced = BTreeSet::new();
        self.replay(|op| op.value().to_owned());
    }

    pub fn replay(&mut self, mut seen: impl FnMut(&crate::log::record::LoggedOp<'_>) -> String) {
        for file in &self.files {
            for op in Reader::new(&file.header, &file.bytes[..file.synced]) {
                let op = op.expect("the synced bytes are intact");
                self.synced.insert(seen(&op));
            }
        }
    }

    /// Ends the failed segment, opens the next one, and reads all workspaces back.
    pub fn rebuild(&mut self, end: End) -> (OpenSegment, Vec<Workspace>) {
        let file = self.files.last_mut().expect("a segment is open");
        assert_eq!(file.header.index, end.index);
        let offset = file
            .header
            .offset(end.durable)
            .expect("the position is in this segment");
        assert!(offset <= file.synced, "durable bytes were not synced");
        file.bytes.truncate(offset);
        file.synced = offset;
        let segment = self.open(end.index + 1, end.durable);
        let mut workspaces: BTreeMap<String, Workspace> = BTreeMap::new();
        self.synced = BTreeSet::new();
        self.replay(|op| {
            if let Change::Generation { .. } = op.change {
                return String::new();
            }
            workspaces
                .entry(op.workspace.to_owned())
                .or_insert_with(|| Workspace::new(op.workspace, HASH_SEED))
                .restore(op.key, &op.change, op.timestamp, op.seq);
            op.value().to_owned()
        });
        let mut workspaces: Vec<Workspace> = workspaces.into_values().collect();
        for workspace in &mut workspaces {
            workspace.finish_restore();
            workspace.begin_generation();
        }
        (segment, workspaces)
    }
}

/// A message that a client received.
#[derive(Debug)]
pub enum Told {
    Status(u16),
    Init(BTreeMap<String, String>),
    Op(Write),
    /// The code, and the key and timestamp of the op that it refers to, if any.
    Error(u64, Option<(String, u64)>),
    Close(u16),
    Control,
    /// The text of a version 2 message.
    Version2(String),
}

/// A client's socket.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what is in flight, or was seen"
)]
pub struct Client {
    pub id: SessionId,
    pub receiving: bool,
    pub sending: Option<Spans>,
    /// Whether either side has shut down the connection. Operations in flight then end as broken.
    pub broken: bool,
    /// Whether the shard has closed its side. The client then closes its own.
    pub finished: bool,
    /// Whether the shard no longer has a session for the client.
    pub closed: bool,
    pub incoming: Vec<u8>,
    /// The head of the answer to its request.
    pub head: String,
    pub status: Option<u16>,
}

/// A client that acts at random, and the expectations for it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what is expected, or was seen"
)]
pub struct Member {
    pub workspace: usize,
    /// Messages on their way to the shard, each with its op. The request has none.
    pub outgoing: VecDeque<(Vec<u8>, Option<Write>)>,
    pub is_slow: bool,
    /// Whether the client is a member of its workspace.
    pub joined: bool,
    pub was_behind: bool,
    pub status_expected: Option<u16>,
    /// Whether its request waits for the state.
    pub waits: bool,
    pub has_init: bool,
    /// The number of ops that had won when the client joined.
    pub joined_at: usize,
    /// The ops that the client must still receive, in order, unless it falls behind.
    pub expected: VecDeque<Write>,
    pub corrections: Vec<Write>,
    pub last_place: Option<usize>,
    /// The client's own copy of the state.
    pub held: BTreeMap<String, (String, u64)>,
    pub close_code: Option<u16>,
    pub close_expected: Option<u16>,
    pub has_error: bool,
    /// Whether the disk failed and lost an op of this client.
    pub lost_an_op: bool,
}

impl Member {
    /// Returns a client whose first message is the request `head`.
    pub fn new(workspace: usize, head: Vec<u8>, is_slow: bool) -> Self {
        Self {
            workspace,
            outgoing: VecDeque::from([(head, None)]),
            is_slow,
            joined: false,
            was_behind: false,
            status_expected: None,
            waits: false,
            has_init: false,
            joined_at: 0,
            expected: VecDeque::new(),
            corrections: Vec::new(),
            last_place: None,
            held: BTreeMap::new(),
            close_code: None,
            close_expected: None,
            has_error: false,
            lost_an_op: false,
        }
    }

    /// Updates the client's copy of the state, unless it holds a newer write to the key.
    pub fn hold(&mut self, write: &Write) {
        let held = self.held.get(&write.key);
        if held.is_none_or(|held| held.1 <= write.timestamp) {
            let value = (write.value.clone(), write.timestamp);
            self.held.insert(write.key.clone(), value);
        }
    }

    /// Queues an op as a masked frame.
    pub fn send_op(&mut self, write: Write) {
        self.hold(&write);
        let Write {
            key,
            value,
            timestamp,
        } = &write;
        let text = format!(
            r#"{{"type":"op","payload":{{"key":"{key}","value":{value},"timestamp":{timestamp}}}}}"#
        );
        let length = u8::try_from(text.len()).expect("a short message");
        let mut frame = if length < 126 {
            vec![0x81, 0x80 | length]
        } else {
            vec![0x81, 0x80 | 0x7e, 0, length]
        };
        let mask = [3, 1, 4, 1];
        frame.extend_from_slice(&mask);
        let masked = text.bytes().zip(mask.iter().cycle());
        frame.extend(masked.map(|(byte, mask)| byte ^ mask));
        self.outgoing.push_back((frame, Some(write)));
    }
}

impl Client {
    pub fn new(id: SessionId) -> Self {
        Self {
            id,
            receiving: false,
            sending: None,
            broken: false,
            finished: false,
            closed: false,
            incoming: Vec::new(),
            head: String::new(),
            status: None,
        }
    }

    /// Removes the next complete head or frame from the bytes that were received, and returns it.
    pub fn next_told(&mut self) -> Option<Told> {
        if self.status.is_none() {
            let end = self.incoming.windows(4).position(|at| at == b"\r\n\r\n")? + 4;
            let status = str::from_utf8(&self.incoming[9..12]).ok()?.parse().ok()?;
            let head = self.incoming.drain(..end).collect();
            self.head = String::from_utf8(head).expect("the head is UTF-8");
            self.status = Some(status);
            return Some(Told::Status(status));
        }
        if self.status != Some(101) {
            return None;
        }
        let (start, length) = match *self.incoming.get(1)? {
            126 => (
                4,
                usize::from(u16::from_be_bytes(*self.incoming.get(2..)?.first_chunk()?)),
            ),
            127 => {
                let length = u64::from_be_bytes(*self.incoming.get(2..)?.first_chunk()?);
                (10, usize::try_from(length).expect("a length"))
            }
            length => (2, usize::from(length)),
        };
        let payload = self.incoming.get(start..start + length)?.to_vec();
        let opcode = self.incoming[0] & 15;
        self.incoming.drain(..start + length);
        Some(match opcode {
            1 if self.head.contains("etherply.v2") => {
                Told::Version2(String::from_utf8(payload).expect("a message is text"))
            }
            1 => parse_message(&payload),
            8 => Told::Close(u16::from_be_bytes([payload[0], payload[1]])),
            _ => Told::Control,
        })
    }
}

fn parse_message(text: &[u8]) -> Told {
    let message: serde_json::Value = serde_json::from_slice(text).expect("the message is JSON");
    let payload = &message["payload"];
    match message["type"].as_str() {
        Some("op") => Told::Op(Write {
            key: payload["key"].as_str().expect("a key").to_owned(),
            value: payload["value"].to_string(),
            timestamp: payload["timestamp"].as_u64().expect("a timestamp"),
        }),
        Some("error") => {
            let key = payload["key"].as_str().map(str::to_owned);
            let about = key.zip(payload["timestamp"].as_u64());
            Told::Error(payload["code"].as_u64().expect("a code"), about)
        }
        Some("init") => {
            let data = message["data"].as_object().expect("an object");
            let field =
                |(key, value): (&String, &serde_json::Value)| (key.clone(), value.to_string());
            Told::Init(data.iter().map(field).collect())
        }
        _ => unreachable!("the message type is known"),
    }
}
