//! The messages that a joining client must receive, and the check that it does. Pure.

use std::io;
use std::rc::Rc;

use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::FrameHeader;

/// The maximum number of bytes of a refusal's body to wait for.
const BODY_BYTES_MAX: usize = 1024;
/// The key of every handshake; the server's answer must be derived from it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The data that a client is waiting for.
enum Expected {
    /// The answer to its upgrade, followed by the first message.
    Upgrade(Option<Rc<[u8]>>),
    /// These bytes, of which the given number have arrived.
    Bytes(Rc<[u8]>, usize),
    /// A first message with any content.
    AnyMessage,
    Nothing,
}

/// A client, from its upgrade on.
pub struct Joiner {
    wanted: Expected,
    /// An incomplete answer or message; afterwards, the first message if any content was accepted.
    held: Vec<u8>,
}

impl Joiner {
    /// Expects the frame `init` as the first message; `None` accepts any message.
    pub fn new(init: Option<Rc<[u8]>>) -> Self {
        Self {
            wanted: Expected::Upgrade(init),
            held: Vec::new(),
        }
    }

    /// Expects this frame next, and nothing before it.
    pub fn expect(&mut self, frame: &Rc<[u8]>) {
        assert!(self.is_served(), "the previous frame has not arrived");
        self.wanted = Expected::Bytes(Rc::clone(frame), 0);
    }

    /// Returns whether it has received everything that it was waiting for.
    pub fn is_served(&self) -> bool {
        matches!(self.wanted, Expected::Nothing)
    }

    /// Moves out the first message of a client that accepted any message.
    pub fn take_message(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }

    /// Checks received bytes. Returns whether the client now has what it was waiting for.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<bool, String> {
        if let Expected::Upgrade(init) = &self.wanted {
            self.held.extend_from_slice(bytes);
            let end = upgraded(&self.held).map_err(|error| error.to_string())?;
            let Some(end) = end else { return Ok(false) };
            self.wanted = match init {
                Some(init) => Expected::Bytes(Rc::clone(init), 0),
                None => Expected::AnyMessage,
            };
            let rest = self.held.split_off(end);
            self.held = Vec::new();
            return self.take(&rest);
        }
        if bytes.is_empty() {
            return Ok(false);
        }
        match &mut self.wanted {
            Expected::Upgrade(_) => unreachable!("the upgrade was handled above"),
            Expected::Nothing if is_ping(bytes) => Ok(false),
            Expected::Nothing => Err(format!(
                "nothing was expected, and {} was received",
                quoted(bytes)
            )),
            Expected::Bytes(expected, at) => {
                let rest = &expected[*at..];
                let length = rest.len().min(bytes.len());
                if rest[..length] != bytes[..length] {
                    let same = rest.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                    return Err(format!(
                        "byte {} is wrong\n  expected {}\n  seen     {}",
                        *at + same,
                        quoted(&rest[same..]),
                        quoted(&bytes[same..])
                    ));
                }
                *at += length;
                bytes = &bytes[length..];
                let is_whole = *at == expected.len();
                if is_whole {
                    self.wanted = Expected::Nothing;
                }
                if !bytes.is_empty() {
                    self.take(bytes)?;
                }
                Ok(is_whole)
            }
            Expected::AnyMessage => {
                self.held.extend_from_slice(bytes);
                let message = first_message(&self.held).map_err(|error| error.to_string())?;
                let Some((start, end)) = message else {
                    return Ok(false);
                };
                if self.held.len() > end {
                    return Err("something came after the first message".to_owned());
                }
                self.held.drain(..start);
                self.wanted = Expected::Nothing;
                Ok(true)
            }
        }
    }
}

/// Returns whether the bytes are a ping, which a server sends to idle clients. A crowd is never
/// watched for long enough to have to answer.
fn is_ping(bytes: &[u8]) -> bool {
    bytes[0] == 0x89
}

fn quoted(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(80)];
    format!("{:?}", String::from_utf8_lossy(shown))
}

/// Returns the end of the answer to the upgrade; `None` if more must arrive.
pub fn upgraded(seen: &[u8]) -> io::Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = response.parse(seen).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let mut headers = response.headers.iter();
        let found = headers.find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value)
    };
    let code = response.code.unwrap_or_default();
    if code != 101 {
        // The body holds the reason.
        let length = header("content-length").and_then(|value| std::str::from_utf8(value).ok());
        let length = length.and_then(|length| length.trim().parse::<usize>().ok());
        let body = &seen[end..];
        if body.len() < length.unwrap_or(0).min(BODY_BYTES_MAX) {
            return Ok(None);
        }
        let body = String::from_utf8_lossy(body);
        let body: Vec<&str> = body.split_whitespace().collect();
        let message = format!("the server answered {code} {}", body.join(" "));
        return Err(io::Error::other(message.trim_end().to_owned()));
    }
    let accept = derive_accept_key(KEY.as_bytes());
    if header("sec-websocket-accept") != Some(accept.as_bytes()) {
        return Err(io::Error::other(
            "the server's Sec-WebSocket-Accept is wrong",
        ));
    }
    Ok(Some(end))
}

/// Returns where the payload of the first frame begins and ends, once the frame is complete.
pub fn first_message(seen: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let mut reader = io::Cursor::new(seen);
    let Some((_, bytes)) = FrameHeader::parse(&mut reader).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let start = usize::try_from(reader.position()).map_err(io::Error::other)?;
    let end = start + usize::try_from(bytes).map_err(io::Error::other)?;
    Ok((seen.len() >= end).then_some((start, end)))
}

#[cfg(test)]
mod tests;
