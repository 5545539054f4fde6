//! Random streams, compared with a naive model and with tungstenite's own reader.

use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;
use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

use super::*;

/// A message that the model has not finished: its first opcode and its bytes so far.
type Open = Option<(u8, Vec<u8>)>;

/// Decodes the whole stream at once, naively, a byte at a time, with every rule of RFC 6455.
///
/// An error is a close code: if a frame has two violations, either may be reported.
fn model(stream: &[u8], bytes_max: usize) -> (Vec<Said>, Option<u16>) {
    let (mut said, mut at, mut open) = (Vec::new(), 0, None);
    loop {
        let outcome = model_frame(&stream[at..], &open, bytes_max).and_then(|frame| match frame {
            Some((first, payload, end)) => {
                model_said(first, payload, &mut open).map(|now| Some((now, end)))
            }
            None => Ok(None),
        });
        match outcome {
            Ok(Some((now, end))) => {
                said.extend(now);
                at += end;
            }
            Ok(None) => return (said, None),
            Err(code) => return (said, Some(code)),
        }
    }
}

/// Reads one frame and returns its first byte, its payload and its end.
fn model_frame(
    rest: &[u8],
    open: &Open,
    bytes_max: usize,
) -> Result<Option<(u8, Vec<u8>, usize)>, u16> {
    let Some(&[first, second]) = rest.get(..2) else {
        return Ok(None);
    };
    let (length, mask_at, least) = match second & 0x7f {
        126 if rest.len() < 4 => return Ok(None),
        126 => (u64::from(rest[2]) << 8 | u64::from(rest[3]), 4, 126),
        127 if rest.len() < 10 => return Ok(None),
        127 => (
            rest[2..10]
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
            10,
            65536,
        ),
        short => (u64::from(short), 2, 0),
    };
    let (opcode, is_masked) = (first & 15, second & 0x80 != 0);
    if is_masked && rest.len() < mask_at + 4 {
        return Ok(None);
    }
    let is_control = opcode >= 8;
    let is_bad_order = !is_control && (opcode == 0) != open.is_some();
    let is_bad_control = is_control && (first & 0x80 == 0 || length > 125);
    let is_bad_opcode = !matches!(opcode, 0..=2 | 8..=10);
    let is_bad_length = length < least || length >= 1 << 63;
    let is_bad_bits = first & 0x70 != 0 || !is_masked;
    if is_bad_order || is_bad_control || is_bad_opcode || is_bad_length || is_bad_bits {
        return Err(1002);
    }
    let held = open.as_ref().map_or(0, |(_, bytes)| bytes.len()) as u64;
    if !is_control && held + length > bytes_max as u64 {
        return Err(1009);
    }
    let (start, end) = (mask_at + 4, mask_at + 4 + usize::try_from(length).unwrap());
    if rest.len() < end {
        return Ok(None);
    }
    let payload = (start..end)
        .map(|at| rest[at] ^ rest[mask_at + (at - start) % 4])
        .collect();
    Ok(Some((first, payload, end)))
}

/// Returns the event of a frame with a valid header.
fn model_said(first: u8, payload: Vec<u8>, open: &mut Open) -> Result<Option<Said>, u16> {
    match first & 15 {
        8 if payload.is_empty() => return Ok(Some(Said::Close(None))),
        8 if payload.len() == 1 => return Err(1002),
        8 => {
            let code = u16::from(payload[0]) << 8 | u16::from(payload[1]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(1002);
            }
            let reason = String::from_utf8(payload[2..].to_vec()).map_err(|_| 1007_u16)?;
            return Ok(Some(Said::Close(Some((code, reason)))));
        }
        9 => return Ok(Some(Said::Ping(payload))),
        10 => return Ok(Some(Said::Pong(payload))),
        _ => {}
    }
    let is_final = first & 0x80 != 0;
    let (kind, mut bytes) = open.take().unwrap_or((first & 15, Vec::new()));
    bytes.extend(payload);
    // Text is invalid as soon as no further bytes could make it valid.
    let is_bad = |error: std::str::Utf8Error| is_final || error.error_len().is_some();
    if kind == 1 && str::from_utf8(&bytes).is_err_and(is_bad) {
        return Err(1007);
    }
    if !is_final {
        *open = Some((kind, bytes));
        return Ok(None);
    }
    Ok(Some(if kind == 1 {
        Said::Text(String::from_utf8(bytes).unwrap())
    } else {
        Said::Binary(bytes)
    }))
}

/// Generates frames, most of them valid and in a valid order.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        6 => prop::sample::select(vec![0x81_u8, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a]),
        1 => Just(0x88),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        4 => "\\PC{0,12}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..12),
        1 => (3000_u16..5000, "[a-z€]{0,9}")
            .prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
        1 => prop::collection::vec(Just(b'x'), 120..140),
    ];
    (first, payload).prop_map(|(first, payload)| frame(first, &payload))
}

/// Generates streams that tungstenite accepts: messages in fragments, with pings between them.
fn good_stream() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let message = (
        any::<bool>(),
        "[a-z€\u{10348}]{0,60}",
        prop::collection::vec(0_usize..180, 0..4),
        any::<bool>(),
    );
    prop::collection::vec(message, 0..6).prop_map(|messages| {
        let mut frames = Vec::new();
        for (is_text, payload, mut cuts, has_ping) in messages {
            let bytes = payload.as_bytes();
            cuts.sort_unstable();
            let ends: Vec<usize> = cuts
                .into_iter()
                .map(|cut| cut.min(bytes.len()))
                .chain([bytes.len()])
                .collect();
            let mut start = 0;
            for (index, end) in ends.iter().copied().enumerate() {
                let kind = if index > 0 {
                    0
                } else if is_text {
                    1
                } else {
                    2
                };
                let fin = if index + 1 == ends.len() { 0x80 } else { 0 };
                frames.push(frame(fin | kind, &bytes[start..end]));
                start = end;
                if has_ping {
                    frames.push(frame(0x89, b"p"));
                }
            }
        }
        frames
    })
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

/// Returns everything that tungstenite reads from `stream`.
fn by_tungstenite(stream: Vec<u8>, role: Role) -> Vec<Said> {
    let mut socket = WebSocket::from_raw_socket(
        Incoming(Cursor::new(stream)),
        role,
        Some(WebSocketConfig::default()),
    );
    let mut said = Vec::new();
    while let Ok(message) = socket.read() {
        said.push(match message {
            Message::Text(text) => Said::Text(text.as_str().into()),
            Message::Binary(bytes) => Said::Binary(bytes.to_vec()),
            Message::Ping(payload) => Said::Ping(payload.to_vec()),
            Message::Pong(payload) => Said::Pong(payload.to_vec()),
            Message::Close(close) => {
                Said::Close(close.map(|close| (close.code.into(), close.reason.as_str().into())))
            }
            Message::Frame(_) => unreachable!("read returned part of a message"),
        });
    }
    said
}

proptest! {
    #[test]
    fn the_decoder_agrees_with_the_model(
        frames in prop::collection::vec(any_frame(), 0..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        bytes_max in prop_oneof![Just(20_usize), Just(BYTES_MAX)],
    ) {
        let mut stream = frames.concat();
        for (at, byte) in changes {
            if !stream.is_empty() {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
        }
        let mut cuts: Vec<usize> =
            cuts.into_iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let (said, error, taken) = run(&stream, &cuts, bytes_max);
        let actual = (said.clone(), error.map(|error| error.close_code()));
        prop_assert_eq!(actual, model(&stream, bytes_max));
        prop_assert_eq!((said, error, taken), run(&stream, &[], bytes_max));
    }

    #[test]
    fn any_bytes(stream in prop::collection::vec(any::<u8>(), 0..60)) {
        let (said, error, _) = run(&stream, &[], BYTES_MAX);
        prop_assert_eq!((said, error.map(|error| error.close_code())), model(&stream, BYTES_MAX));
    }

    #[test]
    fn tungstenite_decodes_the_same_messages(
        frames in good_stream(),
        code in 3000_u16..5000,
        reason in "[a-z€]{0,30}",
    ) {
        let stream = [frames.concat(), close_frame(code, reason.as_bytes())].concat();
        let (said, error, taken) = run(&stream, &[], BYTES_MAX);
        prop_assert_eq!((error, taken), (None, stream.len()));
        prop_assert_eq!(said, by_tungstenite(stream, Role::Server));
    }

    #[test]
    fn tungstenite_reads_what_the_server_writes(
        texts in prop::collection::vec("\\PC{0,200}", 0..5),
        payload in prop::collection::vec(any::<u8>(), 0..=125),
        reason in "\\PC{0,60}",
    ) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for text in texts {
            put_text_header(&mut stream, text.len());
            stream.extend_from_slice(text.as_bytes());
            expected.push(Said::Text(text));
        }
        put_ping(&mut stream);
        expected.push(Said::Ping(Vec::new()));
        put_pong(&mut stream, &payload);
        expected.push(Said::Pong(payload));
        put_close(&mut stream, 1001, &reason);
        let read = by_tungstenite(stream, Role::Client);
        let Some((Said::Close(Some((1001, read_reason))), before)) = read.split_last() else {
            return Err(TestCaseError::fail(format!("{read:?}")));
        };
        prop_assert_eq!(before, &expected[..]);
        prop_assert!(reason.starts_with(read_reason.as_str()));
        prop_assert!(read_reason.len() + 4 > reason.len().min(CLOSE_REASON_BYTES_MAX));
    }

    #[test]
    fn unmask_matches_the_naive_loop(
        mut bytes in prop::collection::vec(any::<u8>(), 0..100),
        mask in any::<[u8; 4]>(),
    ) {
        let each = bytes.iter().enumerate();
        let expected: Vec<u8> = each.map(|(at, byte)| byte ^ mask[at % 4]).collect();
        unmask(&mut bytes, mask);
        prop_assert_eq!(bytes, expected);
    }
}
