//! The ops of a load: one fixed layout in which only digits change. Pure.
//!
//! A server passes on exactly the text that it received, so a delivery is compared byte for byte
//! with the message that was sent.

use std::io::Write as _;

use super::layout::FrameLayout;
use super::protocol::ClientProtocol;

/// The length of a value in bytes, without its quotes.
pub const VALUE_BYTES: usize = 100;
/// The number of keys in a room; each op writes the next one.
pub const KEYS: u64 = 100;
/// The first byte of a frame that is a complete text message.
pub const TEXT: u8 = 0x81;

/// The length of the header of a server's op.
const HEADER_BYTES: usize = 4;
const KEY_DIGITS: usize = 4;
const NUMBER_DIGITS: usize = 12;
const ROOM: &str = " in room ";
const ROOM_DIGITS: usize = 6;
const TIMESTAMP_DIGITS: usize = 16;

/// The mask of every client; any mask causes a server the same work.
const MASK: [u8; 4] = [0xA5, 0x3C, 0x96, 0x0F];

/// The order of an op's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldOrder {
    /// The order in which the load generator sends them, and in which a server passes them on
    /// unchanged.
    AsSent,
    /// Sorted by name, as `serde_json` writes a `Value`.
    ByName,
}

/// The text of an op.
pub struct Text {
    bytes: Vec<u8>,
    key_at: usize,
    number_at: usize,
    room_at: usize,
    timestamp_at: usize,
    /// The position of the number at the end of the text, if there is one (version 2).
    end_number_at: Option<usize>,
    /// The timestamp of op 0; timestamps increase, so a later op always wins.
    first_timestamp_us: u64,
}

impl Text {
    /// Prepares the ops of a run that begins at this Unix time, as clients send them.
    pub fn sent(protocol: ClientProtocol, first_timestamp_us: u64) -> Self {
        let text = Self::new(FieldOrder::AsSent, first_timestamp_us);
        if protocol.has_ids() {
            text.numbered("id")
        } else {
            text
        }
    }

    /// Prepares the same ops in the form in which the server passes them on.
    pub fn received(protocol: ClientProtocol, order: FieldOrder, first_timestamp_us: u64) -> Self {
        let text = Self::new(order, first_timestamp_us);
        if protocol.is_v2() {
            text.numbered("seq")
        } else {
            text
        }
    }

    /// Prepares the ops of a run that begins at this Unix time.
    pub fn new(order: FieldOrder, first_timestamp_us: u64) -> Self {
        let padding = VALUE_BYTES - NUMBER_DIGITS - ROOM.len() - ROOM_DIGITS;
        let key = format!(r#""key":"k{}""#, "K".repeat(KEY_DIGITS));
        let value = format!(
            r#""value":"{}{ROOM}{}{}""#,
            "N".repeat(NUMBER_DIGITS),
            "R".repeat(ROOM_DIGITS),
            ".".repeat(padding)
        );
        let timestamp = format!(r#""timestamp":{}"#, "T".repeat(TIMESTAMP_DIGITS));
        let text = match order {
            FieldOrder::AsSent => {
                format!(r#"{{"type":"op","payload":{{{key},{value},{timestamp}}}}}"#)
            }
            FieldOrder::ByName => {
                format!(r#"{{"payload":{{{key},{timestamp},{value}}},"type":"op"}}"#)
            }
        };
        let place = |of: &str, count| {
            text.find(&of.repeat(count))
                .expect("the text was just inserted")
        };
        Self {
            key_at: place("K", KEY_DIGITS),
            number_at: place("N", NUMBER_DIGITS),
            room_at: place("R", ROOM_DIGITS),
            timestamp_at: place("T", TIMESTAMP_DIGITS),
            bytes: text.into_bytes(),
            end_number_at: None,
            first_timestamp_us,
        }
    }

    /// Appends a member with this name and the value `n + 1` to the text of op `n`.
    #[must_use]
    fn numbered(mut self, name: &str) -> Self {
        let end = self.bytes.pop();
        assert_eq!(end, Some(b'}'), "a text is an object");
        self.bytes
            .extend_from_slice(format!(r#","{name}":"#).as_bytes());
        self.end_number_at = Some(self.bytes.len());
        self
    }

    /// Returns the text of a room's op `number`.
    pub fn of(&mut self, room: u32, number: u64) -> &[u8] {
        let timestamp_us = self.first_timestamp_us + number;
        for (at, digits, value) in [
            (self.key_at, KEY_DIGITS, number % KEYS),
            (self.number_at, NUMBER_DIGITS, number),
            (self.room_at, ROOM_DIGITS, u64::from(room)),
            (self.timestamp_at, TIMESTAMP_DIGITS, timestamp_us),
        ] {
            put_digits(&mut self.bytes[at..at + digits], value);
        }
        if let Some(at) = self.end_number_at {
            self.bytes.truncate(at);
            write!(self.bytes, "{}}}", number + 1).expect("a vector grows");
        }
        &self.bytes
    }

    /// Returns the layout of the frames in which a server sends the ops.
    pub fn frame_layout(&self) -> FrameLayout {
        match self.end_number_at {
            Some(at) => FrameLayout::numbered(HEADER_BYTES + at + "}".len()),
            None => FrameLayout::fixed(HEADER_BYTES + self.bytes.len()),
        }
    }
}

/// Writes a number with leading zeros.
fn put_digits(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789"[usize::try_from(value % 10).expect("a digit")];
        value /= 10;
    }
    assert!(value == 0, "the number does not fit in the layout");
}

/// Appends text as a frame, as a server sends it.
pub fn put_server_frame(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&header_of(text, 0));
    out.extend_from_slice(text);
}

/// Appends text as a masked frame, as a client sends it.
pub fn put_client_frame(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&header_of(text, 0x80));
    out.extend_from_slice(&MASK);
    let masked = text.iter().zip(MASK.iter().cycle());
    out.extend(masked.map(|(byte, mask)| byte ^ mask));
}

/// Appends text of at most 125 bytes as a frame, as a client sends it.
pub fn put_short_client_frame(out: &mut Vec<u8>, text: &[u8]) {
    put_short_frame(out, TEXT, text);
}

/// Appends the answer to a ping.
pub fn put_pong(out: &mut Vec<u8>, payload: &[u8]) {
    put_short_frame(out, 0x8A, payload);
}

fn put_short_frame(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    let bytes = u8::try_from(payload.len())
        .ok()
        .filter(|bytes| *bytes <= 125);
    let bytes = bytes.expect("a short frame has at most 125 bytes");
    out.extend_from_slice(&[first, 0x80 | bytes]);
    out.extend_from_slice(&MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    out.extend(masked.map(|(byte, mask)| byte ^ mask));
}

/// Returns the shortest header of a text of 126 to 65,535 bytes (RFC 6455, section 5.2).
fn header_of(text: &[u8], mask_bit: u8) -> [u8; HEADER_BYTES] {
    assert!(text.len() >= 126, "the text is too short for this layout");
    let [high, low] = u16::try_from(text.len())
        .expect("an op is short")
        .to_be_bytes();
    [TEXT, mask_bit | 0x7E, high, low]
}

#[cfg(test)]
mod tests;
