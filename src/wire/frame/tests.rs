//! Frames: tables, every cut of a stream, and tungstenite as the oracle.

use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::CloseCode;

use super::*;

mod oracles;

const MASK: [u8; 4] = [0xa5, 0x00, 0x3c, 0xff];
const BYTES_MAX: usize = 1000;

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

/// The events of a whole stream, the error that ended it, and the number of bytes consumed before
/// that.
type StreamOutcome = (Vec<Said>, Option<FrameError>, usize);

/// Decodes `stream` in pieces that end at `cuts` and at its end, as a connection does.
fn run(stream: &[u8], cuts: &[usize], bytes_max: usize) -> StreamOutcome {
    let mut decoder = Decoder::new();
    let mut held = Vec::new();
    let (mut said, mut taken, mut fed) = (Vec::new(), 0, 0);
    for end in cuts.iter().copied().chain([stream.len()]) {
        held.extend_from_slice(&stream[fed..end]);
        fed = end;
        loop {
            let step = match decoder.decode(&mut held, bytes_max) {
                Ok(step) => step,
                Err(error) => return (said, Some(error), taken),
            };
            said.extend(step.event.map(Said::from));
            let consumed = step.consumed;
            if consumed == 0 {
                break;
            }
            held.drain(..consumed);
            taken += consumed;
        }
        assert!(
            decoder
                .fragments
                .as_ref()
                .is_none_or(|fragments| !fragments.is_whole)
        );
    }
    (said, None, taken)
}

/// Decodes `stream` in one piece, cut at every byte, and byte by byte, and checks the outcome.
fn check(stream: &[u8], expected: &[Said], error: Option<FrameError>) {
    let whole = run(stream, &[], BYTES_MAX);
    assert_eq!((&whole.0[..], whole.1), (expected, error), "{stream:02x?}");
    assert!(
        error.is_some() || whole.2 == stream.len(),
        "{stream:02x?} is not fully consumed"
    );
    for cut in 0..=stream.len() {
        assert_eq!(
            run(stream, &[cut], BYTES_MAX),
            whole,
            "{stream:02x?} split at {cut}"
        );
    }
    let every: Vec<usize> = (0..stream.len()).collect();
    assert_eq!(
        run(stream, &every, BYTES_MAX),
        whole,
        "{stream:02x?} byte by byte"
    );
}

/// Returns a masked frame as tungstenite writes it. `first` is the first byte: FIN, RSV, opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Text),
        mask: Some(MASK),
        ..FrameHeader::default()
    };
    let mut out = Vec::new();
    Frame::from_payload(header, payload.to_vec().into())
        .format(&mut out)
        .unwrap();
    out[0] = first;
    out
}

fn close_frame(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes(), reason].concat())
}

fn said(text: &str) -> Said {
    Said::Text(text.into())
}

#[test]
fn single_frames() {
    let long = "x".repeat(BYTES_MAX);
    for text in [
        "",
        "a",
        "hello, world",
        "€",
        "\0",
        &long,
        &long[..125],
        &long[..126],
        &long[..127],
    ] {
        check(&frame(0x81, text.as_bytes()), &[said(text)], None);
        check(
            &frame(0x82, text.as_bytes()),
            &[Said::Binary(text.into())],
            None,
        );
    }
    for payload in [&b""[..], b"\xff\0", &[7; 125]] {
        check(&frame(0x89, payload), &[Said::Ping(payload.into())], None);
        check(&frame(0x8a, payload), &[Said::Pong(payload.into())], None);
    }
    check(&frame(0x88, b""), &[Said::Close(None)], None);
    check(
        &close_frame(1000, b""),
        &[Said::Close(Some((1000, String::new())))],
        None,
    );
    check(
        &close_frame(4999, "schön".as_bytes()),
        &[Said::Close(Some((4999, "schön".into())))],
        None,
    );
    let ten = [0x81, 0x80 | 3, 0, 0, 0, 0, b'a', b'b', b'c'].repeat(10);
    check(&ten, &vec![said("abc"); 10], None);
}

/// P41.
#[test]
fn fragments() {
    let ping = || frame(0x89, b"p");
    for (frames, expected) in [
        (
            vec![frame(1, b"a"), frame(0, b"b"), frame(0x80, b"c")],
            vec![said("abc")],
        ),
        (
            vec![frame(1, b""), frame(0, b""), frame(0x80, b"")],
            vec![said("")],
        ),
        (
            vec![frame(2, b"\xff"), frame(0x80, b"\xfe")],
            vec![Said::Binary(vec![0xff, 0xfe])],
        ),
        // A character split across three fragments, one of them empty, with a ping in the middle.
        (
            vec![
                frame(1, b"\xe2"),
                ping(),
                frame(0, b""),
                frame(0, b"\x82"),
                frame(0x80, b"\xac"),
            ],
            vec![Said::Ping(b"p".into()), said("€")],
        ),
        (
            vec![
                frame(1, b"a"),
                frame(0x80, b"b"),
                frame(0x81, b"c"),
                frame(2, b""),
                frame(0x80, b"d"),
            ],
            vec![said("ab"), said("c"), Said::Binary(b"d".into())],
        ),
        (
            vec![frame(1, b"a"), frame(0x88, b"")],
            vec![Said::Close(None)],
        ),
    ] {
        check(&frames.concat(), &expected, None);
    }
}

/// P41.
#[test]
fn violations() {
    use FrameError::*;
    let length_of = |bytes: [u8; 8]| [&[0x82, 0xff][..], &bytes, &MASK].concat();
    for (stream, error) in [
        (frame(0x83, b""), ReservedOpcode),
        (frame(0x87, b""), ReservedOpcode),
        (frame(0x8b, b""), ReservedOpcode),
        (frame(0x8f, b""), ReservedOpcode),
        (frame(0xc1, b""), ReservedBits),
        (frame(0xa1, b""), ReservedBits),
        (frame(0x91, b""), ReservedBits),
        (frame(0xc9, b""), ReservedBits),
        (vec![0x81, 0x00], Unmasked),
        (vec![0x88, 0x00], Unmasked),
        (length_of((1_u64 << 63).to_be_bytes()), LengthTopBit),
        (length_of([0xff; 8]), LengthTopBit),
        (length_of((i64::MAX).to_be_bytes()), MessageTooBig),
        (length_of(0_u64.to_be_bytes()), LengthNotMinimal),
        (length_of(0xffff_u64.to_be_bytes()), LengthNotMinimal),
        (
            [&[0x82, 0xfe, 0, 125], &MASK[..]].concat(),
            LengthNotMinimal,
        ),
        ([&[0x89, 0xfe, 0, 5], &MASK[..]].concat(), LengthNotMinimal),
        (frame(0x09, b""), ControlFragmented),
        (frame(0x08, b""), ControlFragmented),
        (frame(0x89, &[0; 126]), ControlTooLong),
        (frame(0x88, &[0; 126]), ControlTooLong),
        (frame(0x80, b"a"), ContinuationWithoutStart),
        (frame(0x00, b"a"), ContinuationWithoutStart),
        (
            [frame(0x81, b""), frame(0x80, b"")].concat(),
            ContinuationWithoutStart,
        ),
        (
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
            StartInsideMessage,
        ),
        (
            [frame(0x02, b"a"), frame(0x01, b"b")].concat(),
            StartInsideMessage,
        ),
        (frame(0x88, b"x"), ClosePayload),
        (close_frame(1000, b"\xff"), NotUtf8),
        (close_frame(1000, b"\xe2\x82"), NotUtf8),
        (close_frame(1005, b"\xff"), CloseCode(1005)),
        (frame(0x81, b"\xff"), NotUtf8),
        (frame(0x81, b"\xe2\x82"), NotUtf8),
        (frame(0x81, b"\xed\xa0\x80"), NotUtf8),
        (frame(0x81, b"\xf4\x90\x80\x80"), NotUtf8),
        (frame(0x82, &[0; BYTES_MAX + 1]), MessageTooBig),
        (
            [frame(2, &[0; BYTES_MAX]), frame(0x80, b"x")].concat(),
            MessageTooBig,
        ),
    ] {
        let before: &[Said] =
            if stream.starts_with(&[0x81, 0x80]) && error == ContinuationWithoutStart {
                &[said("")]
            } else {
                &[]
            };
        check(&stream, before, Some(error));
    }
}

#[test]
fn fragmented_text_fails_at_the_first_bad_fragment() {
    for (first, second) in [
        (&b"\xed"[..], &b"\xa0"[..]),
        (b"\xe2\x82", b"\xffabc"),
        (b"\xf4", b"\x90"),
        (b"a\xc3", b"a"),
        (b"", b"\x80"),
    ] {
        check(
            &[frame(1, first), frame(0, second)].concat(),
            &[],
            Some(FrameError::NotUtf8),
        );
    }
    check(
        &[frame(1, b"\xe2"), frame(0x80, b"\x82")].concat(),
        &[],
        Some(FrameError::NotUtf8),
    );
}

/// P41: "as soon as a header announces it".
#[test]
fn a_bad_header_is_reported_before_its_payload_arrives() {
    let big = frame(0x82, &[0; BYTES_MAX + 1]);
    assert_eq!(
        run(&big[..8], &[], BYTES_MAX).1,
        Some(FrameError::MessageTooBig)
    );
    assert_eq!(run(&big[..7], &[], BYTES_MAX).1, None);
    let long_ping = frame(0x89, &[0; 126]);
    assert_eq!(
        run(&long_ping[..8], &[], BYTES_MAX).1,
        Some(FrameError::ControlTooLong)
    );
    let fragments = [frame(2, &[0; BYTES_MAX]), frame(0x80, b"x")].concat();
    assert_eq!(
        run(&fragments[..fragments.len() - 1], &[], BYTES_MAX).1,
        Some(FrameError::MessageTooBig)
    );
}

#[test]
fn close_codes() {
    for code in 0..=u16::MAX {
        let by_tungstenite = CloseCode::from(code).is_allowed();
        assert_eq!(may_be_sent(code), by_tungstenite || code == 1014, "{code}");
        let expected = if may_be_sent(code) {
            (vec![Said::Close(Some((code, String::new())))], None)
        } else {
            (vec![], Some(FrameError::CloseCode(code)))
        };
        let (said, error, _) = run(&close_frame(code, b""), &[], BYTES_MAX);
        assert_eq!((said, error), expected);
    }
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ] {
        assert!(!may_be_sent(code), "{code}");
    }
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999,
    ] {
        assert!(may_be_sent(code), "{code}");
    }
}

#[test]
fn error_texts_fit_a_close_frame() {
    for (error, code) in [
        (FrameError::NotUtf8, 1007),
        (FrameError::MessageTooBig, 1009),
        (FrameError::CloseCode(65535), 1002),
        (FrameError::StartInsideMessage, 1002),
        (FrameError::LengthNotMinimal, 1002),
    ] {
        assert_eq!(error.close_code(), code);
        assert!(error.to_string().len() < CLOSE_REASON_BYTES_MAX);
    }
}

#[test]
fn encoded_headers_and_control_frames() {
    for (payload_bytes, bytes) in [
        (0, vec![0x81, 0]),
        (125, vec![0x81, 125]),
        (126, vec![0x81, 126, 0, 126]),
        (65535, vec![0x81, 126, 0xff, 0xff]),
        (65536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut out = Vec::new();
        put_text_header(&mut out, payload_bytes);
        assert_eq!(out, bytes);
        assert_eq!(header_bytes(payload_bytes), bytes.len());
        assert!(bytes.len() <= HEADER_BYTES_MAX);
    }
    let written = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        out
    };
    assert_eq!(written(&|out| put_ping(out)), [0x89, 0]);
    assert_eq!(written(&|out| put_pong(out, b"ab")), [0x8a, 2, b'a', b'b']);
    assert_eq!(
        written(&|out| put_close(out, 1009, "no")),
        [0x88, 4, 3, 0xf1, b'n', b'o']
    );
    let long = written(&|out| put_close(out, 1000, &"€".repeat(50)));
    assert_eq!(
        (long.len(), &long[..4]),
        (2 + 2 + 123, &[0x88, 125, 3, 0xe8][..])
    );
    let uneven = written(&|out| put_close(out, 1000, &format!("a{}", "€".repeat(50))));
    assert_eq!(str::from_utf8(&uneven[4..]).unwrap().len(), 121);
}
