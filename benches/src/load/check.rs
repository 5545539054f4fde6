//! The stream that a receiver must receive, and the check that it does. Pure.
//!
//! A room has one sender, so its ops have a single order, and each receiver must receive the same
//! stream of bytes: the frames of all ops, each once and in order. Deliveries are compared with
//! that stream, so an op that is missing, duplicated, out of order, altered or from another room is
//! detected at its first wrong byte. Frames of other kinds may come between two ops.

use thiserror::Error;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};

use super::layout::FrameLayout;
use super::op::{TEXT, put_pong};

/// A difference between a received stream and the expected one.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    #[error(
        "op {number} was expected, and something else was received\n  expected {expected}\n  \
         received {seen}"
    )]
    Different {
        number: u64,
        expected: String,
        seen: String,
    },
    #[error(
        "something was received that was not sent, or was received twice; {count} ops were sent\n  \
         received {seen}"
    )]
    Extra { count: u64, seen: String },
    #[error("the server closed the connection: {0}")]
    Closed(String),
    #[error("messages up to {sent} were sent, up to {saved} are saved, and then came\n  {seen}")]
    Saved { saved: u64, sent: u64, seen: String },
}

/// The stream of a room, as far back as a receiver may lag.
pub struct Window {
    bytes: Box<[u8]>,
    layout: FrameLayout,
    /// The number of ops that have been pushed.
    count: u64,
    /// The position at which the last of them ends.
    end: u64,
}

impl Window {
    /// Creates a window that keeps the last `frames` ops.
    pub fn new(layout: FrameLayout, frames: usize) -> Self {
        Self {
            bytes: vec![0; layout.frame_bytes_max() * frames].into(),
            layout,
            count: 0,
            end: 0,
        }
    }

    /// Creates the stream of a connection to which nothing is sent.
    pub fn empty() -> Self {
        Self::new(FrameLayout::fixed(1), 0)
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Writes the frame of the next op over the oldest.
    pub fn push(&mut self, frame: &[u8]) {
        let at = self.offset(self.end);
        self.count += 1;
        self.end += frame.len() as u64;
        assert_eq!(
            self.end,
            self.layout.start_of(self.count),
            "a frame has the length that the layout says"
        );
        let (first, rest) = frame.split_at(frame.len().min(self.bytes.len() - at));
        self.bytes[at..at + first.len()].copy_from_slice(first);
        self.bytes[..rest.len()].copy_from_slice(rest);
    }

    /// Returns the frame of an op that is still kept.
    pub fn frame(&self, number: u64) -> Vec<u8> {
        let positions = self.layout.start_of(number)..self.layout.start_of(number + 1);
        positions.map(|at| self.bytes[self.offset(at)]).collect()
    }

    fn offset(&self, position: u64) -> usize {
        usize::try_from(position % self.bytes.len() as u64)
            .expect("the remainder is smaller than the divisor")
    }

    /// Returns the contiguous part of the stream from a position on.
    fn rest(&self, position: u64) -> &[u8] {
        let ahead = self.end - position;
        if ahead == 0 {
            return &[];
        }
        let at = self.offset(position);
        let end = usize::try_from(ahead).map_or(self.bytes.len(), |ahead| {
            self.bytes.len().min(at.saturating_add(ahead))
        });
        &self.bytes[at..end]
    }
}

/// The position of a receiver in its room's stream.
#[derive(Default)]
pub struct Cursor {
    position: u64,
    /// The number of ops that have been received completely, and the number of bytes of the next.
    count: u64,
    offset: u64,
    /// The first bytes of an incomplete control frame.
    held: Vec<u8>,
}

impl Cursor {
    /// Returns the number of ops that have been received completely.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Checks received bytes. Answers to pings are appended to `answers`.
    pub fn take(
        &mut self,
        window: &Window,
        mut bytes: &[u8],
        answers: &mut Vec<u8>,
    ) -> Result<(), Mismatch> {
        while !bytes.is_empty() {
            if self.offset == 0 && (!self.held.is_empty() || bytes[0] != TEXT) {
                bytes = self.take_control(window, bytes, answers)?;
                continue;
            }
            let rest = window.rest(self.position);
            let length = rest.len().min(bytes.len());
            if length == 0 {
                let seen = describe(bytes);
                let count = window.count;
                return Err(Mismatch::Extra { count, seen });
            }
            let same = if rest[..length] == bytes[..length] {
                length
            } else {
                let mut pairs = rest.iter().zip(bytes);
                pairs
                    .position(|(one, other)| one != other)
                    .unwrap_or(length)
            };
            self.position += same as u64;
            (self.count, self.offset) = window.layout.locate(self.position);
            bytes = &bytes[same..];
            // A difference at the start of a frame may mean a frame of another kind.
            if same < length && !(self.offset == 0 && bytes[0] != TEXT) {
                return Err(self.different(window, bytes));
            }
        }
        Ok(())
    }

    /// Consumes the bytes of one control frame, or as many of them as there are. Returns the rest.
    fn take_control<'a>(
        &mut self,
        window: &Window,
        bytes: &'a [u8],
        answers: &mut Vec<u8>,
    ) -> Result<&'a [u8], Mismatch> {
        let held = self.held.len();
        self.held.extend_from_slice(bytes);
        let mut reader = std::io::Cursor::new(&self.held);
        let parsed = FrameHeader::parse(&mut reader);
        let header_bytes = usize::try_from(reader.position()).expect("the header length is small");
        let (header, payload_bytes) = match parsed {
            Ok(Some((header, payload_bytes))) if payload_bytes <= 125 && header.is_final => (
                header,
                usize::try_from(payload_bytes).expect("the length is small"),
            ),
            Ok(None) => return Ok(&[]),
            Ok(Some(_)) | Err(_) => return Err(self.stranger(window)),
        };
        let end = header_bytes + payload_bytes;
        if self.held.len() < end {
            return Ok(&[]);
        }
        if !answer_control(header.opcode, &self.held[header_bytes..end], answers)? {
            return Err(self.stranger(window));
        }
        self.held.clear();
        Ok(&bytes[end - held..])
    }

    /// Describes a frame that is neither an op nor a control frame.
    fn stranger(&self, window: &Window) -> Mismatch {
        let seen = describe(&self.held);
        let number = self.count;
        if number == window.count {
            return Mismatch::Extra {
                count: number,
                seen,
            };
        }
        let expected = describe(&window.frame(number));
        Mismatch::Different {
            number,
            expected,
            seen,
        }
    }

    /// Describes a difference; `bytes` begins with the first wrong byte.
    fn different(&self, window: &Window, bytes: &[u8]) -> Mismatch {
        let number = self.count;
        let expected = window.frame(number);
        let so_far = usize::try_from(self.offset).expect("a frame is short");
        let so_far = &expected[..so_far];
        Mismatch::Different {
            number,
            expected: describe(&expected),
            seen: describe(&[so_far, bytes].concat()),
        }
    }
}

/// Answers a control frame. Returns false if it is not one.
pub(super) fn answer_control(
    opcode: OpCode,
    payload: &[u8],
    answers: &mut Vec<u8>,
) -> Result<bool, Mismatch> {
    match opcode {
        OpCode::Control(Control::Ping) => put_pong(answers, payload),
        OpCode::Control(Control::Pong) => {}
        OpCode::Control(Control::Close) => return Err(Mismatch::Closed(describe_close(payload))),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Describes the first frame of these bytes: its text, and its kind if it is not a text message.
pub(super) fn describe(bytes: &[u8]) -> String {
    let mut reader = std::io::Cursor::new(bytes);
    let Ok(Some((header, payload_bytes))) = FrameHeader::parse(&mut reader) else {
        return format!("no frame: {:?}", String::from_utf8_lossy(bytes));
    };
    let start = usize::try_from(reader.position()).expect("the header length is small");
    let payload = &bytes[start..];
    let payload_bytes = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
    let (payload, more) = match payload.get(..payload_bytes.min(1024)) {
        Some(payload) if payload.len() == payload_bytes => (payload, ""),
        Some(payload) => (payload, " …"),
        None => (payload, " …"),
    };
    let text = String::from_utf8_lossy(payload);
    match header.opcode {
        OpCode::Data(tungstenite::protocol::frame::coding::Data::Text) if header.is_final => {
            format!("{text}{more}")
        }
        opcode => format!("a frame of kind {opcode}: {text}{more}"),
    }
}

fn describe_close(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            format!("{code} {}", String::from_utf8_lossy(reason))
        }
        _ => "without a code".to_owned(),
    }
}

#[cfg(test)]
mod tests;
