//! A plain TCP socket, to send request heads and WebSocket frames exactly as the test writes them,
//! valid or not.

use super::within;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// First byte of an unfragmented text message: FIN and the opcode. The four below are for the other
/// opcodes.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8A;
/// First byte of a message's first text fragment. The two below are for its later fragments.
pub const TEXT_BEGIN: u8 = 0x01;
pub const MIDDLE: u8 = 0x00;
pub const END: u8 = 0x80;

/// An HTTP response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Returns the value of a header. `name` must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("the body is not JSON ({error}): {self:?}"))
    }
}

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub first_byte: u8,
    pub payload: Vec<u8>,
}

/// A TCP connection that speaks no protocol on its own.
pub struct Raw {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Raw {
        let stream = within("a TCP connection", TcpStream::connect(addr))
            .await
            .expect("the server listens");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        Raw {
            stream,
            unread: Vec::new(),
        }
    }

    /// Connects, performs the handshake and reads the init message.
    pub async fn open(addr: SocketAddr, path: &str) -> Raw {
        let mut raw = Raw::connect(addr).await;
        let answer = raw.handshake(path, "").await;
        assert_eq!(answer.status, 101, "the handshake failed: {answer:?}");
        let init = raw.frame().await;
        assert_eq!(
            init.first_byte, TEXT,
            "the first frame is not an init message: {init:?}"
        );
        raw
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        let outcome = within("space in the socket", self.stream.write_all(bytes)).await;
        outcome.expect("the server accepts the bytes");
    }

    /// Sends like [`Raw::send`], but to a server that may close before it has read everything.
    pub async fn send_lossy(&mut self, bytes: &[u8]) {
        // An error is ignored: the test asserts on the server's response instead.
        let _ = within("space in the socket", self.stream.write_all(bytes)).await;
    }

    /// Sends a valid handshake with additional header lines (each ending in CRLF).
    pub async fn handshake(&mut self, path: &str, headers: &str) -> Answer {
        let head = handshake_head(path, headers);
        self.send(head.as_bytes()).await;
        self.answer().await
    }

    /// Reads a response: the head, then a body of the stated length or, if none is stated, until
    /// the end of the connection.
    pub async fn answer(&mut self) -> Answer {
        let head_len = loop {
            if let Some(at) = self
                .unread
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at + 4;
            }
            assert!(
                self.fill().await,
                "the connection ended inside the head of an answer: {:?}",
                self.unread
            );
        };
        let head =
            String::from_utf8(self.unread.drain(..head_len).collect()).expect("a head is ASCII");
        let (status, headers) = parse_head(&head);
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length =
            length.map(|(_, value)| value.parse::<usize>().expect("Content-Length is a number"));
        let body = match length {
            _ if status == 101 => Vec::new(),
            Some(length) => self.take(length).await,
            None => self.rest().await,
        };
        Answer {
            status,
            headers,
            body: String::from_utf8(body).expect("a body is UTF-8"),
        }
    }

    /// Sends a masked frame, as clients do.
    pub async fn send_frame(&mut self, first_byte: u8, payload: &[u8]) {
        self.send(&masked_frame(first_byte, payload)).await;
    }

    /// Reads the next frame.
    pub async fn frame(&mut self) -> Frame {
        let first_byte = self.take(1).await[0];
        let length = self.take(1).await[0];
        assert!(length < 128, "the server masked a frame");
        let length = match length {
            126 => self.take_number(2).await,
            127 => self.take_number(8).await,
            short => usize::from(short),
        };
        Frame {
            first_byte,
            payload: self.take(length).await,
        }
    }

    /// Reads the next frame other than a ping.
    pub async fn frame_but_ping(&mut self) -> Frame {
        let reading = async {
            loop {
                let frame = self.frame().await;
                if frame.first_byte != PING {
                    return frame;
                }
            }
        };
        within("a frame other than a ping", reading).await
    }

    /// Expects a close frame with the given code, answers it, and expects the end of the
    /// connection.
    pub async fn expect_close(&mut self, code: u16) {
        let frame = self.frame_but_ping().await;
        assert_eq!(
            frame.first_byte, CLOSE,
            "expected a close frame with {code}, got {frame:?}"
        );
        let found = frame
            .payload
            .get(..2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        assert_eq!(found, Some(code), "{frame:?} has another close code");
        self.send_lossy(&masked_frame(CLOSE, &code.to_be_bytes()))
            .await;
        self.expect_end().await;
    }

    /// Expects the end of the connection, with no data before it.
    pub async fn expect_end(&mut self) {
        let rest = self.rest().await;
        assert!(
            rest.is_empty(),
            "data after the last answer: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }

    /// Reads until the connection ends and returns everything that arrived.
    pub async fn rest(&mut self) -> Vec<u8> {
        within("the end of the connection", async {
            while self.fill().await {}
        })
        .await;
        std::mem::take(&mut self.unread)
    }

    async fn take_number(&mut self, len: usize) -> usize {
        self.take(len)
            .await
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    async fn take(&mut self, len: usize) -> Vec<u8> {
        while self.unread.len() < len {
            let so_far = self.unread.len();
            assert!(
                self.fill().await,
                "the connection ended after {so_far} of {len} bytes"
            );
        }
        self.unread.drain(..len).collect()
    }

    /// Reads once. Returns false at the end of the connection, which may be a reset.
    async fn fill(&mut self) -> bool {
        let mut chunk = vec![0; 64 * 1024];
        let read = within("bytes from the server", self.stream.read(&mut chunk)).await;
        let len = read.unwrap_or(0);
        self.unread.extend_from_slice(&chunk[..len]);
        len > 0
    }
}

/// Returns the request head of a valid handshake.
pub fn handshake_head(path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// Returns the bytes of a masked frame.
pub fn masked_frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0xA1, 0x02, 0xF3, 0x5C];
    let mut frame = vec![first_byte];
    frame.extend(length_bytes(payload.len(), 0x80));
    frame.extend(MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

/// Returns the length field of a frame in its shortest form. `mask_bit` is 0x80 or 0.
pub fn length_bytes(len: usize, mask_bit: u8) -> Vec<u8> {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => vec![mask_bit + short],
        (_, Ok(medium)) => [&[mask_bit + 126][..], &medium.to_be_bytes()].concat(),
        _ => [&[mask_bit + 127][..], &(len as u64).to_be_bytes()].concat(),
    }
}

fn parse_head(head: &str) -> (u16, Vec<(String, String)>) {
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().expect("the head has a first line");
    assert!(
        status_line.starts_with("HTTP/1.1 "),
        "the answer is not HTTP/1.1: {status_line:?}"
    );
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("a status line has a status: {status_line:?}"));
    let headers = lines.map(|line| {
        let (name, value) = line
            .split_once(':')
            .unwrap_or_else(|| panic!("not a header line: {line:?}"));
        (name.to_ascii_lowercase(), value.trim().to_string())
    });
    (status, headers.collect())
}
