//! RFC 6455 at the frame level: the responses, and the close code for each violation.

use crate::support::client::{Client, Op, op_text};
use crate::support::raw::{
    BINARY, CLOSE, END, Frame, MIDDLE, PING, PONG, Raw, TEXT, TEXT_BEGIN, length_bytes,
    masked_frame,
};
use crate::support::server::Server;
use crate::support::stamp;
use serde_json::json;

async fn open(server: &Server) -> Raw {
    Raw::open(server.addr(), &Server::sync_path("room")).await
}

/// Sends these bytes on a new connection, and expects it to be closed with this code, without any
/// effect on other clients.
async fn check_closed(code: u16, cases: &[(&str, Vec<u8>)]) {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for (case, bytes) in cases {
        println!("{case}: closes with {code}");
        let mut socket = open(&server).await;
        // The server may hang up before it has read all of a message that is too large.
        socket.send_lossy(bytes).await;
        socket.expect_close(code).await;
        other.expect_silence(&mut writer).await;
    }
}

/// Returns a frame without a mask.
fn unmasked(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    [&[first_byte][..], &length_bytes(payload.len(), 0), payload].concat()
}

fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

fn some_op() -> Op {
    Op::new("k", json!("value"), stamp())
}

// ---- 1003, 1007, 1009 ----

/// P41.
#[tokio::test]
async fn a_binary_frame_closes_1003() {
    let cases = [
        ("a binary frame", masked_frame(BINARY, b"\x01\x02")),
        ("an empty binary frame", masked_frame(BINARY, b"")),
        (
            "an op in a binary frame",
            masked_frame(BINARY, op_text(&some_op()).as_bytes()),
        ),
    ];
    check_closed(1003, &cases).await;
}

/// P41.
#[tokio::test]
async fn text_that_is_not_utf8_closes_1007() {
    let cases = [
        (
            "a byte that is never in UTF-8",
            masked_frame(TEXT, b"{\"type\":\"ping\",\"x\":\"\xFF\"}"),
        ),
        (
            "a truncated character at the end",
            masked_frame(TEXT, b"\"\xC3"),
        ),
        ("a surrogate", masked_frame(TEXT, b"\"\xED\xA0\x80\"")),
        ("an overlong form", masked_frame(TEXT, b"\"\xC0\xAF\"")),
        (
            "in the second fragment",
            [
                masked_frame(TEXT_BEGIN, b"{\"type\":"),
                masked_frame(END, b"\"\xFE\"}"),
            ]
            .concat(),
        ),
    ];
    check_closed(1007, &cases).await;
}

/// P41.
#[tokio::test]
async fn a_message_over_the_limit_closes_1009_complete_fragmented_or_announced() {
    let half = vec![b' '; 700 * 1024];
    let announced = [&[TEXT][..], &length_bytes(1 << 40, 0x80), &[0; 4]].concat();
    let cases = [
        ("announced only by its length", announced),
        (
            "in two fragments",
            [masked_frame(TEXT_BEGIN, &half), masked_frame(END, &half)].concat(),
        ),
    ];
    check_closed(1009, &cases).await;
}

// ---- 1002 ----

/// P41.
#[tokio::test]
async fn an_unmasked_frame_closes_1002() {
    let op = op_text(&some_op());
    let cases = [
        ("text", unmasked(TEXT, op.as_bytes())),
        ("ping", unmasked(PING, b"")),
        ("close", unmasked(CLOSE, &close_payload(1000, ""))),
    ];
    check_closed(1002, &cases).await;
}

/// P41.
#[tokio::test]
async fn a_reserved_bit_closes_1002() {
    let op = op_text(&some_op());
    for bit in [0x40, 0x20, 0x10] {
        let cases = [
            ("text", masked_frame(TEXT | bit, op.as_bytes())),
            ("ping", masked_frame(PING | bit, b"")),
        ];
        check_closed(1002, &cases).await;
    }
}

/// P41.
#[tokio::test]
async fn a_bad_opcode_closes_1002() {
    let cases: Vec<(&str, Vec<u8>)> = [0x83, 0x84, 0x87, 0x8B, 0x8C, 0x8F]
        .map(|first_byte| ("a reserved opcode", masked_frame(first_byte, b"")))
        .into();
    check_closed(1002, &cases).await;
}

/// P41.
#[tokio::test]
async fn bad_fragmentation_closes_1002() {
    let cases = [
        ("a continuation without a start", masked_frame(END, b"{}")),
        ("a fragment without a start", masked_frame(MIDDLE, b"{}")),
        (
            "text inside a fragmented text",
            [masked_frame(TEXT_BEGIN, b"{"), masked_frame(TEXT, b"{}")].concat(),
        ),
        ("a fragmented ping", masked_frame(PING & 0x7F, b"")),
        (
            "a fragmented close",
            masked_frame(CLOSE & 0x7F, &close_payload(1000, "")),
        ),
        ("a ping of 126 bytes", masked_frame(PING, &[0; 126])),
    ];
    check_closed(1002, &cases).await;
}

/// P41.
#[tokio::test]
async fn a_bad_close_code_closes_1002() {
    let mut cases = vec![("a close of one byte", masked_frame(CLOSE, b"\x03"))];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        cases.push((
            "a close code that must not be sent",
            masked_frame(CLOSE, &close_payload(code, "")),
        ));
    }
    check_closed(1002, &cases).await;
}

// ---- valid frames are answered ----

/// P42.
#[tokio::test]
async fn a_close_frame_is_answered_and_the_connection_ends() {
    let server = Server::start().await;
    for (code, reason) in [
        (1000, ""),
        (1001, "going"),
        (1011, ""),
        (3000, "mine"),
        (4999, "Grüße"),
    ] {
        let mut socket = open(&server).await;
        socket.send_frame(CLOSE, &close_payload(code, reason)).await;
        let answer = socket.frame().await;
        assert_eq!(
            (answer.first_byte, &answer.payload[..2]),
            (CLOSE, &code.to_be_bytes()[..])
        );
        socket.expect_end().await;
    }
    let mut socket = open(&server).await;
    socket.send_frame(CLOSE, b"").await;
    assert_eq!(socket.frame().await.first_byte, CLOSE);
    socket.expect_end().await;
}

/// P42.
#[tokio::test]
async fn a_ping_frame_is_answered_with_its_payload() {
    let server = Server::start().await;
    let mut socket = open(&server).await;
    for payload in [&b""[..], b"hello", &[0xFF; 125]] {
        socket.send_frame(PING, payload).await;
        assert_eq!(
            socket.frame().await,
            Frame {
                first_byte: PONG,
                payload: payload.to_vec()
            }
        );
    }
}

#[tokio::test]
async fn an_unsolicited_pong_is_ignored() {
    let server = Server::start().await;
    let mut other = Client::connect(&server, "room").await;
    let mut socket = open(&server).await;
    socket.send_frame(PONG, b"unasked").await;
    let op = some_op();
    socket.send_frame(TEXT, op_text(&op).as_bytes()).await;
    other.expect_op(&op).await;
}

/// P30, P42.
#[tokio::test]
async fn a_fragmented_message_with_a_ping_in_between_is_one_message() {
    let server = Server::start().await;
    let mut other = Client::connect(&server, "room").await;
    let mut socket = open(&server).await;
    let op = Op::new("k", json!("a character cut in two: é"), stamp());
    let text = op_text(&op);
    let cut = text.find('é').expect("the value contains it") + 1;
    let (head, tail) = text.as_bytes().split_at(cut);
    socket.send_frame(TEXT_BEGIN, &head[..5]).await;
    socket.send_frame(PING, b"between").await;
    socket.send_frame(MIDDLE, &head[5..]).await;
    socket.send_frame(MIDDLE, b"").await;
    socket.send_frame(END, tail).await;
    assert_eq!(
        socket.frame().await,
        Frame {
            first_byte: PONG,
            payload: b"between".to_vec()
        }
    );
    other.expect_op(&op).await;
}

#[tokio::test]
async fn frames_are_the_same_whether_split_at_every_byte_or_sent_in_one_piece() {
    let server = Server::start().await;
    let mut other = Client::connect(&server, "room").await;
    let mut socket = open(&server).await;
    let ops: Vec<Op> = (0..100)
        .map(|number| Op::new("k", json!(number), stamp()))
        .collect();
    let frames: Vec<Vec<u8>> = ops
        .iter()
        .map(|op| masked_frame(TEXT, op_text(op).as_bytes()))
        .collect();
    for byte in frames[..3].concat() {
        socket.send(&[byte]).await;
    }
    socket.send(&frames[3..].concat()).await;
    for op in &ops {
        other.expect_op(op).await;
    }
}

#[tokio::test]
async fn frames_after_a_close_frame_are_not_served() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let mut socket = open(&server).await;
    let after = masked_frame(TEXT, op_text(&some_op()).as_bytes());
    socket
        .send(&[masked_frame(CLOSE, &close_payload(1000, "")), after].concat())
        .await;
    assert_eq!(socket.frame().await.first_byte, CLOSE);
    other.expect_silence(&mut writer).await;
}
