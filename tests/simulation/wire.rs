//! The client's side of the wire, written naively: the bytes it sends, and how it reads the bytes
//! it receives.

use std::collections::BTreeMap;
use std::io;

use etherply::core::fanout::window::Span;
use etherply::core::testing;

use crate::model::Write;
use crate::presence::{self, PeersMessage, PeersTable};
use crate::replica::Edit;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Returns the error of a failed connection or disk operation. The shard does not inspect it.
pub fn failure() -> io::Error {
    io::ErrorKind::Other.into()
}

/// Returns a masked frame.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length).expect("the length is small")),
        length => {
            if let Ok(length) = u16::try_from(length) {
                frame.push(0x80 | 0x7E);
                frame.extend(length.to_be_bytes());
            } else {
                frame.push(0x80 | 0x7F);
                frame.extend((length as u64).to_be_bytes());
            }
        }
    }
    // A long payload has a mask of zeros, since masking it byte by byte is slow.
    if payload.len() > 4096 {
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        return frame;
    }
    let mask = [3, 1, 4, 1];
    frame.extend(mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

pub fn op_frame(write: &Write) -> Vec<u8> {
    let Write {
        key,
        value,
        timestamp,
    } = write;
    let text = format!(
        r#"{{"type":"op","payload":{{"key":"{key}","value":{value},"timestamp":{timestamp}}}}}"#
    );
    frame(TEXT, text.as_bytes())
}

/// Returns the request of a version 1 client.
pub fn head(path: &str) -> Vec<u8> {
    testing::upgrade_request(path).into_bytes()
}

/// Returns the request of a version 2 client.
pub fn head_v2(path: &str) -> Vec<u8> {
    let head = testing::upgrade_request(path);
    let offer = "\r\nSec-WebSocket-Protocol: etherply.v2\r\n\r\n";
    let head = head.strip_suffix("\r\n\r\n").expect("a head");
    format!("{head}{offer}").into_bytes()
}

/// Returns a version 2 op.
pub fn edit_frame(edit: &Edit) -> Vec<u8> {
    let Edit {
        write: Write {
            key,
            value,
            timestamp,
        },
        if_timestamp,
        ttl_ms,
        id,
        ..
    } = edit;
    let value = if edit.write.is_delete() {
        r#""deleted":true"#.to_owned()
    } else {
        format!(r#""value":{value}"#)
    };
    let member = |name: &str, value: &Option<u64>| {
        value.map_or(String::new(), |value| format!(r#","{name}":{value}"#))
    };
    let (condition, ttl) = (
        member("if_timestamp", if_timestamp),
        member("ttl_ms", ttl_ms),
    );
    let text = format!(
        r#"{{"type":"op","id":{id},"payload":{{"key":"{key}",{value},"timestamp":{timestamp}{condition}{ttl}}}}}"#
    );
    frame(TEXT, text.as_bytes())
}

/// Returns a version 2 `ping`.
pub fn ping_frame(id: u64) -> Vec<u8> {
    frame(TEXT, format!(r#"{{"type":"ping","id":{id}}}"#).as_bytes())
}

/// The first message to a version 2 client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The id of the connection.
    pub connection: u64,
    pub user: Option<String>,
    pub generation: String,
    pub is_full: bool,
    pub why: String,
}

/// A message or HTTP response that a client receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Status(u16),
    /// The state, as the answer to an HTTP read with status 200.
    State(BTreeMap<String, String>),
    Init(BTreeMap<String, String>),
    /// An op without a seq and an id: any version 1 op, or in version 2 what precedes an error.
    Op(Write),
    /// The op that the client's op with this id has lost to.
    Correction(Write, u64),
    Welcome(Welcome),
    /// Entries and deletes of a state, with the seq up to which the client then knows all changes.
    Part(Vec<Write>, u64),
    Synced(u64),
    /// An op with its seq.
    Change(Write, u64),
    /// The id up to which all messages are settled, and a seq.
    Saved(u64, Option<u64>),
    /// An error that answers the message with this id: its code, and the id.
    Refused(u64, u64),
    /// The answer to the message `ping` with this id.
    Answered(u64),
    Presence(PeersMessage),
    /// A cast: the connection and the user that sent it, and its value.
    Cast(u64, Option<String>, String),
    /// The peers of a workspace and their number, as the answer to an HTTP read.
    Users(PeersTable, usize),
    /// A code, and the key and timestamp of the op that it concerns.
    Error(u64, Option<(String, u64)>),
    Ping,
    Pong,
    Close(u16),
}

impl Told {
    /// Returns whether it shows ops.
    pub fn shows_state(&self) -> bool {
        matches!(
            self,
            Self::Op(_) | Self::Correction(..) | Self::Init(_) | Self::Part(..) | Self::Change(..)
        ) || matches!(self, Self::Synced(_) | Self::Saved(..))
    }

    /// Returns whether it concerns the workspace or the client's messages in version 2.
    pub fn is_of_workspace(&self) -> bool {
        let is_answer = matches!(self, Self::Refused(..) | Self::Answered(_));
        is_answer || matches!(self, Self::Welcome(_)) || self.shows_state()
    }
}

/// The bytes sent to a client, split into messages.
#[derive(Debug, Default)]
pub struct Stream {
    bytes: Vec<u8>,
    /// The number of bytes read so far.
    taken: u64,
    status: Option<u16>,
}

impl Stream {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns whether the last message is complete.
    pub fn is_whole(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the next complete message and its end in the stream.
    pub fn next(&mut self) -> Option<(u64, Told)> {
        let (length, told) = self.first()?;
        self.bytes.drain(..length);
        self.taken += length as u64;
        Some((self.taken, told))
    }

    fn first(&mut self) -> Option<(usize, Told)> {
        if self.status.is_none() {
            let head = self.bytes.windows(4).position(|at| at == b"\r\n\r\n")? + 4;
            let text = str::from_utf8(&self.bytes[..head]).expect("the head is UTF-8");
            let status = text[9..12].parse().expect("a status");
            let is_switch = status == 101;
            let lengths = text
                .lines()
                .filter_map(|line| line.strip_prefix("Content-Length: "));
            let body: usize = lengths
                .map(|length| length.parse::<usize>().expect("a length"))
                .sum();
            if self.bytes.len() < head + body {
                return None;
            }
            assert!(
                is_switch || head + body == self.bytes.len(),
                "data after an answer that ends the connection"
            );
            self.status = Some(status);
            let body = &self.bytes[head..head + body];
            let told = if body.starts_with(br#"{"data""#) {
                Told::State(look(body))
            } else if body.starts_with(b"[") {
                presence::users(text, body)
            } else {
                Told::Status(status)
            };
            return Some((head + body.len(), told));
        }
        let (start, length) = match *self.bytes.get(1)? {
            126 => (
                4,
                usize::from(u16::from_be_bytes(*self.bytes.get(2..)?.first_chunk()?)),
            ),
            127 => {
                let length = u64::from_be_bytes(*self.bytes.get(2..)?.first_chunk()?);
                (10, usize::try_from(length).expect("a length"))
            }
            length => (2, usize::from(length)),
        };
        let payload = self.bytes.get(start..start + length)?;
        let told = match self.bytes[0] {
            0x81 => message(payload),
            0x88 => Told::Close(u16::from_be_bytes([payload[0], payload[1]])),
            0x89 => Told::Ping,
            0x8A => Told::Pong,
            other => panic!("the server never sends such a frame: {other:#x}"),
        };
        Some((start + length, told))
    }
}

fn data(of: &serde_json::Value) -> BTreeMap<String, String> {
    let data = of["data"].as_object().expect("an object");
    let field = |(key, value): (&String, &serde_json::Value)| (key.clone(), value.to_string());
    data.iter().map(field).collect()
}

fn look(body: &[u8]) -> BTreeMap<String, String> {
    let state: serde_json::Value = serde_json::from_slice(body).expect("the body is JSON");
    let stamps = state["timestamps"].as_object().expect("an object");
    let data = data(&state);
    let has_null = data.values().any(|value| value == "null");
    assert!(!has_null, "a deleted key is missing from the state");
    assert!(stamps.keys().eq(data.keys()), "each key has a timestamp");
    data
}

fn message(text: &[u8]) -> Told {
    let message: serde_json::Value = serde_json::from_slice(text).expect("the message is JSON");
    let payload = &message["payload"];
    let seq = message["seq"].as_u64();
    let id = message["id"].as_u64();
    let saved_seq = || seq.expect("it has a seq");
    match message["type"].as_str() {
        Some("op") => match (seq, id) {
            (Some(seq), None) => Told::Change(op(payload), seq),
            (None, Some(id)) => Told::Correction(op(payload), id),
            (None, None) => Told::Op(op(payload)),
            (Some(_), Some(_)) => panic!("a correction has no seq: {message}"),
        },
        Some("error") => {
            let code = payload["code"].as_u64().expect("a code");
            let key = payload["key"].as_str().map(str::to_owned);
            let about = key.zip(payload["timestamp"].as_u64());
            id.map_or(Told::Error(code, about), |id| Told::Refused(code, id))
        }
        Some("init") => {
            let data = data(&message);
            let has_null = data.values().any(|value| value == "null");
            assert!(!has_null, "a deleted key is missing from the state");
            Told::Init(data)
        }
        Some("welcome") => Told::Welcome(Welcome {
            connection: presence::id(payload["connection"].as_str().expect("an id")),
            user: payload["user"].as_str().map(str::to_owned),
            generation: payload["generation"].as_str().expect("a generation").into(),
            is_full: payload["state"] == "full",
            why: payload["why"].as_str().expect("a reason").to_owned(),
        }),
        Some("state") => Told::Part(part(payload), saved_seq()),
        Some("synced") => Told::Synced(saved_seq()),
        Some("saved") => Told::Saved(payload["id"].as_u64().expect("an id"), seq),
        Some("presence") => Told::Presence(presence::peers_message(payload)),
        Some("cast") => Told::Cast(
            presence::id(payload["from"].as_str().expect("an id")),
            payload["user"].as_str().map(str::to_owned),
            payload["value"].to_string(),
        ),
        Some("pong") => Told::Answered(id.expect("the ping had an id")),
        other => panic!("no such message is sent: {other:?}"),
    }
}

/// Reads an op. Version 1 shows a delete as the value `null`.
fn op(payload: &serde_json::Value) -> Write {
    let key = payload["key"].as_str().expect("a key").to_owned();
    let timestamp = payload["timestamp"].as_u64().expect("a timestamp");
    if payload["deleted"] == true || payload["value"].is_null() {
        return Write::delete(key, timestamp);
    }
    Write {
        key,
        value: payload["value"].to_string(),
        timestamp,
    }
}

/// Reads a part of a state.
fn part(payload: &serde_json::Value) -> Vec<Write> {
    let key = |of: &serde_json::Value| of[0].as_str().expect("a key").to_owned();
    let timestamp = |of: &serde_json::Value| of.as_u64().expect("a timestamp");
    let entries = payload["entries"].as_array().expect("a list").iter();
    let entries = entries.map(|entry| Write {
        key: key(entry),
        value: entry[1].to_string(),
        timestamp: timestamp(&entry[2]),
    });
    let deleted = payload["deleted"].as_array().expect("a list").iter();
    let deleted = deleted.map(|entry| Write::delete(key(entry), timestamp(&entry[1])));
    entries.chain(deleted).collect()
}

/// Returns the bytes of a send.
pub fn bytes_of(spans: &[Span]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for span in spans {
        bytes.extend_from_slice(span.bytes());
    }
    bytes
}

/// A record in a batch of the log, laid out as in the byte table of `log::record`.
pub struct Record {
    pub workspace: String,
    pub logged: Logged,
    pub seq: u64,
}

/// The content of a record.
pub enum Logged {
    /// A write or a delete, with the time at which a write expires.
    Op(Write, Option<u64>),
    /// The floor, and the seq up to which tombstones were dropped.
    Floor(u64, u64),
    Generation,
}

pub const BATCH_HEADER_BYTES: usize = 28;

/// Reads the records of a batch, which begins at its header.
pub fn records(batch: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut rest = &batch[BATCH_HEADER_BYTES..];
    while !rest.is_empty() {
        let length = number(rest, 4, 4);
        let (workspace, key) = (number(rest, 24, 2), number(rest, 26, 2));
        let kind = rest[28];
        let texts = 29 + [0, 0, 8, 8, 8, 12][usize::from(kind)];
        let text = |from: usize, until: usize| {
            String::from_utf8(rest[from..until].to_vec()).expect("UTF-8")
        };
        let timestamp = number(rest, 16, 8) as u64;
        let extra = || number(rest, 29, 8) as u64;
        let key_end = texts + workspace + key;
        let key = text(texts + workspace, key_end);
        let write = |key| Write {
            key,
            value: text(key_end, length),
            timestamp,
        };
        let logged = match kind {
            1 => Logged::Op(write(key), None),
            2 => Logged::Op(Write::delete(key, timestamp), None),
            3 => Logged::Op(write(key), Some(extra())),
            4 => Logged::Floor(timestamp, extra()),
            _ => Logged::Generation,
        };
        records.push(Record {
            workspace: text(texts, texts + workspace),
            logged,
            seq: number(rest, 8, 8) as u64,
        });
        rest = &rest[length..];
    }
    records
}

/// Reads a little-endian number.
pub fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    let digits = bytes[at..at + length].iter().rev();
    digits.fold(0, |number, digit| number << 8 | usize::from(*digit))
}
