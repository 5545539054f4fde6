//! The frames of a client, in pieces of any size, compared with tungstenite's own reader. Input:
//! two bytes that choose the size of the longest message, eight sizes of pieces, used in turn, then
//! the stream.
#![no_main]

use std::io::{self, Cursor, Read, Write};

use etherply::limits::CONTROL_BYTES_MAX;
use etherply::wire::frame::{
    CLOSE_REASON_BYTES_MAX, Decoder, FrameError, FrameEvent, Opcode, put_close, put_header,
    put_pong,
};
use etherply_fuzz::Script;
use libfuzzer_sys::fuzz_target;
use tungstenite::Error;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

/// More bytes than can be missing from the end of any frame.
const FILLER: &[u8] = &[0; (1 << 16) + 256];

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    // tungstenite has one limit for all frames, so ours is never below that of control frames.
    let bytes_max = CONTROL_BYTES_MAX + script.index::<2>(1 << 16);
    let sizes = script.bytes(8);
    let stream = script.0;

    let ours = decode(stream, &[stream.len()], bytes_max);
    assert_eq!(
        decode(stream, sizes_of(sizes).as_slice(), bytes_max),
        ours,
        "in pieces"
    );
    check_oracle(stream, &ours, bytes_max);
    check_writer(&ours.0);
});

#[derive(Clone, Debug, PartialEq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<FrameEvent<'_>> for Said {
    fn from(event: FrameEvent<'_>) -> Self {
        match event {
            FrameEvent::Text(text) => Self::Text(text.into()),
            FrameEvent::Binary(bytes) => Self::Binary(bytes.into()),
            FrameEvent::Ping(payload) => Self::Ping(payload.into()),
            FrameEvent::Pong(payload) => Self::Pong(payload.into()),
            FrameEvent::Close(close) => {
                Self::Close(close.map(|(code, reason)| (code, reason.into())))
            }
        }
    }
}

fn sizes_of(bytes: &[u8]) -> Vec<usize> {
    let sizes: Vec<usize> = bytes.iter().map(|size| usize::from(*size).max(1)).collect();
    if sizes.is_empty() { vec![1] } else { sizes }
}

/// Returns the events of the stream up to a close frame, an error or its end, and the error.
fn decode(stream: &[u8], sizes: &[usize], bytes_max: usize) -> (Vec<Said>, Option<FrameError>) {
    let mut decoder = Decoder::new();
    let (mut held, mut rest) = (Vec::new(), stream);
    let mut said = Vec::new();
    for size in sizes.iter().cycle() {
        let (piece, behind) = rest.split_at((*size).min(rest.len()));
        held.extend_from_slice(piece);
        rest = behind;
        loop {
            let before = held.clone();
            let step = match decoder.decode(&mut held, bytes_max) {
                Ok(step) => step,
                Err(error) => return (said, Some(error)),
            };
            let consumed = step.consumed;
            said.extend(step.event.map(Said::from));
            if matches!(said.last(), Some(Said::Close(_))) {
                return (said, None);
            }
            if consumed == 0 {
                assert_eq!(held, before, "an incomplete frame was changed");
                break;
            }
            held.drain(..consumed);
        }
        if rest.is_empty() {
            break;
        }
    }
    (said, None)
}

/// A connection whose output is discarded.
struct Incoming(Cursor<Vec<u8>>);

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decodes the stream like [`decode`], with tungstenite. There is no error if the stream ends, or
/// ends in a close frame.
fn by_tungstenite(stream: Vec<u8>, role: Role, bytes_max: usize) -> (Vec<Said>, Option<Error>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(bytes_max))
        .max_frame_size(Some(bytes_max));
    let incoming = Incoming(Cursor::new(stream));
    let mut socket = WebSocket::from_raw_socket(incoming, role, Some(config));
    let mut said = Vec::new();
    loop {
        said.push(match socket.read() {
            Ok(Message::Text(text)) => Said::Text(text.as_str().into()),
            Ok(Message::Binary(bytes)) => Said::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Said::Ping(payload.to_vec()),
            Ok(Message::Pong(payload)) => Said::Pong(payload.to_vec()),
            Ok(Message::Close(close)) => {
                let close = close.map(|close| (close.code.into(), close.reason.as_str().into()));
                said.push(Said::Close(close));
                return (said, None);
            }
            Ok(Message::Frame(_)) => unreachable!("read returned part of a message"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (said, None);
            }
            Err(error) => return (said, Some(error)),
        });
    }
}

fn check_oracle(stream: &[u8], ours: &(Vec<Said>, Option<FrameError>), bytes_max: usize) {
    let (said, error) = ours;
    let mut oracle = stream.to_vec();
    if error.is_some() {
        // Our decoder judges a frame by its header, tungstenite only once the whole frame has
        // arrived.
        oracle.extend_from_slice(FILLER);
    }
    let (mut theirs, their_error) = by_tungstenite(oracle, Role::Server, bytes_max);
    let violation = Said::Close(Some((1002, "Protocol violation".into())));
    if let (Some(ours), Some(theirs)) = (said.last(), theirs.last_mut())
        && matches!(ours, Said::Close(Some((1014, _))))
        && *theirs == violation
    {
        // Bad gateway, a code that was registered later than tungstenite's table.
        *theirs = ours.clone();
    }
    match error {
        None => assert!(their_error.is_none(), "tungstenite reports {their_error:?}"),
        // tungstenite accepts it.
        Some(FrameError::LengthNotMinimal) => return assert!(theirs.starts_with(said)),
        Some(FrameError::CloseCode(_)) if their_error.is_none() => {
            assert_eq!(theirs.pop(), Some(violation));
        }
        Some(FrameError::NotUtf8) => assert!(matches!(their_error, Some(Error::Utf8(_)))),
        Some(FrameError::MessageTooBig) => assert!(matches!(their_error, Some(Error::Capacity(_)))),
        Some(error) => assert!(their_error.is_some(), "tungstenite does not report {error}"),
    }
    assert_eq!(*said, theirs);
}

/// Checks that a client correctly reads everything that the server would send back.
fn check_writer(said: &[Said]) {
    let mut stream = Vec::new();
    for event in said {
        let (opcode, payload) = match event {
            Said::Text(text) => (Opcode::Text, text.as_bytes()),
            Said::Binary(bytes) => (Opcode::Binary, &bytes[..]),
            Said::Ping(payload) => (Opcode::Ping, &payload[..]),
            Said::Pong(payload) => {
                put_pong(&mut stream, payload);
                continue;
            }
            // A received reason always fits into a close frame of the server.
            Said::Close(Some((code, reason))) if *code != 1014 => {
                assert!(reason.len() <= CLOSE_REASON_BYTES_MAX);
                put_close(&mut stream, *code, reason);
                continue;
            }
            Said::Close(_) => {
                put_header(&mut stream, Opcode::Close, 0);
                continue;
            }
        };
        put_header(&mut stream, opcode, payload.len());
        stream.extend_from_slice(payload);
    }
    let (theirs, error) = by_tungstenite(stream, Role::Client, usize::MAX);
    assert!(error.is_none(), "tungstenite reports {error:?}");
    let without_code = |event: &Said| match event {
        Said::Close(Some((1014, _))) => Said::Close(None),
        event => event.clone(),
    };
    assert_eq!(theirs, said.iter().map(without_code).collect::<Vec<_>>());
}
