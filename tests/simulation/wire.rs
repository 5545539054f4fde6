//! The client's side of the wire, written naively: the bytes it sends, and how it reads the bytes
//! it receives.

use std::collections::BTreeMap;
use std::io;

use etherply::core::fanout::window::Span;
use etherply::core::testing;

use crate::model::Write;

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

pub fn head(path: &str) -> Vec<u8> {
    testing::upgrade_request(path).into_bytes()
}

/// A message or HTTP response that a client receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Status(u16),
    /// The state, as the answer to an HTTP read with status 200.
    State(BTreeMap<String, String>),
    Init(BTreeMap<String, String>),
    Op(Write),
    /// A code, and the key and timestamp of the op that it is about.
    Error(u64, Option<(String, u64)>),
    Ping,
    Pong,
    Close(u16),
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
    assert!(stamps.keys().eq(data.keys()), "each key has a timestamp");
    data
}

fn message(text: &[u8]) -> Told {
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
        Some("init") => Told::Init(data(&message)),
        other => panic!("the server never sends such a message: {other:?}"),
    }
}

/// Returns the bytes of a send.
pub fn bytes_of(spans: &[Span]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for span in spans {
        bytes.extend_from_slice(span.bytes());
    }
    bytes
}

/// An op in a batch of the log, laid out as in the byte table of `log::record`.
pub struct Record {
    pub workspace: String,
    pub write: Write,
    pub seq: u64,
}

pub const BATCH_HEADER_BYTES: usize = 28;

/// Reads the records of a batch, which begins at its header.
pub fn records(batch: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut rest = &batch[BATCH_HEADER_BYTES..];
    while !rest.is_empty() {
        let length = number(rest, 4, 4);
        let (workspace, key) = (number(rest, 24, 2), number(rest, 26, 2));
        let text = |from: usize, until: usize| {
            String::from_utf8(rest[from..until].to_vec()).expect("UTF-8")
        };
        records.push(Record {
            workspace: text(29, 29 + workspace),
            write: Write {
                key: text(29 + workspace, 29 + workspace + key),
                value: text(29 + workspace + key, length),
                timestamp: number(rest, 16, 8) as u64,
            },
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
