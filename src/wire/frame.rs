//! WebSocket frames (RFC 6455 sections 5 to 7): decoding bytes into [`FrameEvent`]s, and encoding
//! the frames that the server sends.
//!
//! tungstenite's [`FrameHeader`] reads and writes the bits of a frame header. This module decides
//! what a frame may contain and where in the stream it may appear (P41): the header codec itself
//! accepts unmasked frames, overlong length encodings, and fragments in any order.
//!
//! # How to call the decoder
//!
//! The caller keeps the received bytes and calls [`Decoder::decode`] repeatedly, each time on the
//! bytes after those already consumed, until a call consumes nothing. The remainder is the
//! beginning of a frame, which the caller passes again once more bytes have arrived. An incomplete
//! frame is neither consumed nor changed, so it does not matter where the network splits the
//! stream.
//!
//! Invariant: this module never answers a frame. Pongs, the closing handshake and time limits are
//! handled by the session.

use std::io::Cursor;

use thiserror::Error;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::limits::CONTROL_BYTES_MAX;

/// The longest header of a frame that the server sends, which has no mask.
pub const HEADER_BYTES_MAX: usize = 10;

/// The length of a masked frame without a payload: two bytes and the mask. Overlong length
/// encodings are refused.
const EMPTY_FRAME_BYTES: usize = 6;

/// The longest close reason: a control payload minus the two bytes of the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// A message or a control frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEvent<'a> {
    /// A complete text message.
    Text(&'a str),
    /// A complete binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered with a pong that has the same payload.
    Ping(&'a [u8]),
    /// A pong, requested or not.
    Pong(&'a [u8]),
    /// A close frame, with its code and reason if present.
    Close(Option<(u16, &'a str)>),
}

/// The result of one call to [`Decoder::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The number of input bytes that were consumed; 0 if the frame is incomplete.
    pub consumed: usize,
    /// The message or control frame that those bytes complete. `None` with `consumed > 0` means
    /// that they are a fragment of a message that is not complete yet.
    pub event: Option<FrameEvent<'a>>,
}

impl Decoded<'_> {
    /// Returns whether this is a fragment that neither extends its message nor completes it.
    #[must_use]
    pub fn is_empty_fragment(&self) -> bool {
        self.event.is_none() && (1..=EMPTY_FRAME_BYTES).contains(&self.consumed)
    }

    const INCOMPLETE: Self = Self {
        consumed: 0,
        event: None,
    };
}

/// A violation of RFC 6455 by a client.
///
/// The error's text is short enough to be the reason in a close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// An opcode from 3 to 7 or from 11 to 15.
    #[error("reserved opcode")]
    ReservedOpcode,
    /// RSV1, RSV2 or RSV3 is set. Only extensions may use these bits, and none are negotiated.
    #[error("reserved bits are set")]
    ReservedBits,
    /// A frame without a mask (section 5.1).
    #[error("client frames must be masked")]
    Unmasked,
    /// A 64-bit length with the most significant bit set.
    #[error("payload length over 63 bits")]
    LengthTopBit,
    /// A length encoded in more bytes than necessary.
    #[error("payload length is not minimally encoded")]
    LengthNotMinimal,
    /// A control frame without FIN.
    #[error("control frames must not be fragmented")]
    ControlFragmented,
    /// A control frame with more than 125 bytes.
    #[error("control frame payload over 125 bytes")]
    ControlTooLong,
    /// A continuation frame outside a message.
    #[error("continuation frame without a message")]
    ContinuationWithoutStart,
    /// A text or binary frame before the end of a fragmented message.
    #[error("new message inside a fragmented message")]
    StartInsideMessage,
    /// A close payload of one byte, which is too short for a code.
    #[error("close payload of one byte")]
    ClosePayload,
    /// A close code that must not be sent (section 7.4).
    #[error("close code {0} must not be sent")]
    CloseCode(u16),
    /// A text message or a close reason that is not UTF-8.
    #[error("text is not valid UTF-8")]
    NotUtf8,
    /// A message longer than the caller accepts.
    #[error("message too big")]
    MessageTooBig,
}

impl FrameError {
    /// Returns the close code for this error (section 7.4.1).
    #[must_use]
    pub fn close_code(&self) -> u16 {
        match self {
            Self::NotUtf8 => 1007,
            Self::MessageTooBig => 1009,
            _ => 1002,
        }
    }
}

/// The opcodes that are not reserved (section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// The next fragment of a message.
    Continuation,
    /// A text message, or its first fragment.
    Text,
    /// A binary message, or its first fragment.
    Binary,
    /// A close frame, part of the closing handshake.
    Close,
    /// A request for a pong.
    Ping,
    /// The answer to a ping.
    Pong,
}

impl Opcode {
    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

impl From<Opcode> for OpCode {
    fn from(opcode: Opcode) -> Self {
        match opcode {
            Opcode::Continuation => OpCode::Data(Data::Continue),
            Opcode::Text => OpCode::Data(Data::Text),
            Opcode::Binary => OpCode::Data(Data::Binary),
            Opcode::Close => OpCode::Control(Control::Close),
            Opcode::Ping => OpCode::Control(Control::Ping),
            Opcode::Pong => OpCode::Control(Control::Pong),
        }
    }
}

/// A decoder for the frames of one client. It occupies a single pointer unless a fragmented message
/// is arriving.
#[derive(Debug, Default)]
pub struct Decoder {
    fragments: Option<Box<Fragments>>,
}

// Every session contains a decoder, but hardly any client sends fragments.
const _: () = assert!(size_of::<Decoder>() <= 8);

impl Decoder {
    /// Creates a decoder for the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of bytes held for a fragmented message, and the memory allocated for
    /// them.
    #[must_use]
    pub fn held_bytes(&self) -> (usize, usize) {
        let fragments = self.fragments.as_ref();
        fragments.map_or((0, 0), |fragments| {
            (fragments.bytes.len(), fragments.bytes.capacity())
        })
    }

    /// Returns whether a fragmented message has begun and is not complete yet.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        let fragments = self.fragments.as_ref();
        fragments.is_some_and(|fragments| !fragments.is_whole)
    }

    /// Releases a fragmented message that the last call to [`Decoder::decode`] completed.
    pub fn let_go(&mut self) {
        self.fragments.take_if(|fragments| fragments.is_whole);
    }

    /// Decodes one frame at the start of `input`, and unmasks its payload in place.
    ///
    /// A message longer than `message_bytes_max`, in one frame or in fragments, is refused as soon
    /// as a header announces it. After an error the rest of the stream cannot be decoded, so the
    /// connection must be closed.
    ///
    /// A message that arrived in fragments is held until the next call, so the caller must continue
    /// until a call consumes nothing.
    pub fn decode<'a>(
        &'a mut self,
        input: &'a mut [u8],
        message_bytes_max: usize,
    ) -> Result<Decoded<'a>, FrameError> {
        self.let_go();
        let Some(header) = Header::parse(input)? else {
            return Ok(Decoded::INCOMPLETE);
        };
        let payload_bytes = self.admit(&header, message_bytes_max)?;
        let after_header = &mut input[header.bytes..];
        let Some(payload) = after_header.get_mut(..payload_bytes) else {
            return Ok(Decoded::INCOMPLETE);
        };
        unmask(payload, header.mask);
        let event = match header.opcode {
            Opcode::Close => Some(close_event(payload)?),
            Opcode::Ping => Some(FrameEvent::Ping(payload)),
            Opcode::Pong => Some(FrameEvent::Pong(payload)),
            Opcode::Text if header.is_final => Some(FrameEvent::Text(text(payload)?)),
            Opcode::Binary if header.is_final => Some(FrameEvent::Binary(payload)),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                let is_text = header.opcode == Opcode::Text;
                let fragments = self
                    .fragments
                    .get_or_insert_with(|| Box::new(Fragments::new(is_text)));
                fragments.push(payload, header.is_final)?
            }
        };
        Ok(Decoded {
            consumed: header.bytes + payload_bytes,
            event,
        })
    }

    /// Checks a frame against the preceding frames, and returns the length of its payload.
    fn admit(&self, header: &Header, message_bytes_max: usize) -> Result<usize, FrameError> {
        if header.opcode.is_control() {
            return match usize::try_from(header.payload_bytes) {
                _ if !header.is_final => Err(FrameError::ControlFragmented),
                Ok(bytes) if bytes <= CONTROL_BYTES_MAX => Ok(bytes),
                _ => Err(FrameError::ControlTooLong),
            };
        }
        let held_bytes = match (&self.fragments, header.opcode) {
            (Some(fragments), Opcode::Continuation) => fragments.bytes.len(),
            (None, Opcode::Continuation) => return Err(FrameError::ContinuationWithoutStart),
            (Some(_), _) => return Err(FrameError::StartInsideMessage),
            (None, _) => 0,
        };
        match usize::try_from(header.payload_bytes) {
            Ok(bytes) if bytes <= message_bytes_max.saturating_sub(held_bytes) => Ok(bytes),
            _ => Err(FrameError::MessageTooBig),
        }
    }
}

/// Returns whether the next frame is a data frame rather than a control frame, based on its first
/// byte.
#[must_use]
pub fn is_data(input: &[u8]) -> bool {
    // RFC 6455 section 5.2: "opcodes … 0x8 to 0xF" are control frames.
    input.first().is_some_and(|first| first & 0x08 == 0)
}

/// A frame header that is valid in itself, regardless of the preceding frames.
struct Header {
    opcode: Opcode,
    is_final: bool,
    mask: [u8; 4],
    bytes: usize,
    payload_bytes: u64,
}

impl Header {
    /// Parses a header. Returns `None` if it is incomplete.
    fn parse(input: &[u8]) -> Result<Option<Self>, FrameError> {
        let mut cursor = Cursor::new(input);
        let (raw, payload_bytes) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(None),
            // Reading from memory cannot fail, so a reserved opcode is the only error.
            Err(_) => return Err(FrameError::ReservedOpcode),
        };
        let opcode = match raw.opcode {
            OpCode::Data(Data::Continue) => Opcode::Continuation,
            OpCode::Data(Data::Text) => Opcode::Text,
            OpCode::Data(Data::Binary) => Opcode::Binary,
            OpCode::Control(Control::Close) => Opcode::Close,
            OpCode::Control(Control::Ping) => Opcode::Ping,
            OpCode::Control(Control::Pong) => Opcode::Pong,
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
                return Err(FrameError::ReservedOpcode);
            }
        };
        if raw.rsv1 || raw.rsv2 || raw.rsv3 {
            return Err(FrameError::ReservedBits);
        }
        let mask = raw.mask.ok_or(FrameError::Unmasked)?;
        if payload_bytes > i64::MAX as u64 {
            return Err(FrameError::LengthTopBit);
        }
        let bytes = raw.len(payload_bytes);
        if cursor.position() != bytes as u64 {
            return Err(FrameError::LengthNotMinimal);
        }
        Ok(Some(Self {
            opcode,
            is_final: raw.is_final,
            mask,
            bytes,
            payload_bytes,
        }))
    }
}

/// A message that arrives in fragments.
#[derive(Debug)]
struct Fragments {
    bytes: Vec<u8>,
    is_text: bool,
    /// For a text message, `bytes[..checked_bytes]` is valid UTF-8. At most three bytes follow,
    /// which are the beginning of a character.
    checked_bytes: usize,
    is_whole: bool,
}

impl Fragments {
    fn new(is_text: bool) -> Self {
        Self {
            bytes: Vec::new(),
            is_text,
            checked_bytes: 0,
            is_whole: false,
        }
    }

    fn push(
        &mut self,
        payload: &[u8],
        is_final: bool,
    ) -> Result<Option<FrameEvent<'_>>, FrameError> {
        self.bytes.extend_from_slice(payload);
        self.is_whole = is_final;
        match (self.is_text, is_final) {
            (true, true) => text(&self.bytes).map(|whole| Some(FrameEvent::Text(whole))),
            (true, false) => self.check_text().map(|()| None),
            (false, true) => Ok(Some(FrameEvent::Binary(&self.bytes))),
            (false, false) => Ok(None),
        }
    }

    /// Checks the new bytes of a text message. A character may be split between fragments, so an
    /// incomplete one at the end is not yet an error.
    fn check_text(&mut self) -> Result<(), FrameError> {
        self.checked_bytes += match str::from_utf8(&self.bytes[self.checked_bytes..]) {
            Ok(valid) => valid.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(FrameError::NotUtf8),
        };
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Result<&str, FrameError> {
    str::from_utf8(bytes).map_err(|_| FrameError::NotUtf8)
}

fn close_event(payload: &[u8]) -> Result<FrameEvent<'_>, FrameError> {
    match payload {
        [] => Ok(FrameEvent::Close(None)),
        [_] => Err(FrameError::ClosePayload),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(FrameError::CloseCode(code));
            }
            Ok(FrameEvent::Close(Some((code, text(reason)?))))
        }
    }
}

/// Returns whether a close frame may carry `code` (section 7.4, and the IANA registry).
///
/// 1004 has no meaning; 1005, 1006 and 1015 are only for use within an endpoint; 1016 to 2999 are
/// unassigned. tungstenite's `CloseCode::is_allowed` differs for one code: it refuses 1014 (bad
/// gateway), which is registered.
#[must_use]
pub fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// XORs `payload` with the repeated `mask` (section 5.3), eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide_mask = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide_mask).to_ne_bytes();
    }
    // The tail starts at a multiple of eight, so it starts with the first byte of the mask.
    for (byte, key) in tail.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Returns the length of the header of an unmasked frame: 2, 4 or 10 bytes.
#[must_use]
pub fn header_bytes(payload_bytes: usize) -> usize {
    FrameHeader::default().len(payload_bytes as u64)
}

/// Returns the length of the header of an unmasked frame that has `frame_bytes` bytes in total.
#[must_use]
pub fn header_bytes_of(frame_bytes: usize) -> usize {
    let mut headers = [2, 4, 10].into_iter();
    let header = headers
        .find(|header| frame_bytes >= *header && header_bytes(frame_bytes - *header) == *header);
    header.expect("each frame has a header")
}

/// Appends the header of an unfragmented, unmasked frame. The caller appends the payload.
pub fn put_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    let header = FrameHeader {
        opcode: opcode.into(),
        ..FrameHeader::default()
    };
    let written = header.format(payload_bytes as u64, out);
    debug_assert!(written.is_ok(), "writing to a Vec cannot fail");
}

/// Appends the header of a text message. The caller appends the payload.
pub fn put_text_header(out: &mut Vec<u8>, payload_bytes: usize) {
    put_header(out, Opcode::Text, payload_bytes);
}

/// Appends a ping without payload.
pub fn put_ping(out: &mut Vec<u8>) {
    put_header(out, Opcode::Ping, 0);
}

/// Appends a pong with the payload of the ping that it answers.
///
/// # Panics
///
/// If `payload` is longer than a control frame allows. The payload of a received ping never is.
pub fn put_pong(out: &mut Vec<u8>, payload: &[u8]) {
    assert!(
        payload.len() <= CONTROL_BYTES_MAX,
        "a pong is a control frame"
    );
    put_header(out, Opcode::Pong, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame. A reason that does not fit is truncated at a character boundary.
///
/// # Panics
///
/// If `code` must not be sent. The code of a [`FrameEvent::Close`] may always be sent.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    assert!(may_be_sent(code), "close code {code} must not be sent");
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    put_header(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

#[cfg(test)]
mod tests;
