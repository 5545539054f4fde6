//! The messages that a joining client must receive, and the check that it does. Pure.

use std::io;
use std::rc::Rc;

use super::protocol::ClientProtocol;
use super::state_parts::PartsCursor;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::FrameHeader;

/// The maximum number of bytes of a refusal's body to wait for.
const BODY_BYTES_MAX: usize = 1024;
/// The key of every handshake; the server's answer must be derived from it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The data that a client must receive after its upgrade.
pub enum Welcome {
    /// A first message with any content.
    AnyMessage,
    /// This frame.
    Frame(Rc<[u8]>),
    /// Version 2: a `welcome` that contains this text, and then the state.
    State(&'static str, PartsCursor),
}

/// The data that a client is waiting for.
enum Expected {
    /// The answer to its upgrade, followed by these messages.
    Upgrade(Welcome),
    /// A `welcome` that contains this text, followed by the state.
    Welcome(&'static str, PartsCursor),
    /// The rest of the state.
    Parts(PartsCursor),
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
    /// Expects an upgrade followed by this.
    pub fn new(welcome: Welcome) -> Self {
        Self {
            wanted: Expected::Upgrade(welcome),
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

    /// Checks received bytes. Returns whether the client has now received what it was waiting for.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<bool, String> {
        if matches!(self.wanted, Expected::Upgrade(_) | Expected::Welcome(..)) {
            self.held.extend_from_slice(bytes);
            let Some(end) = self.begin().map_err(|error| error.to_string())? else {
                return Ok(false);
            };
            let mut rest = std::mem::take(&mut self.held);
            rest.drain(..end);
            return self.take(&rest);
        }
        if bytes.is_empty() {
            return Ok(false);
        }
        match &mut self.wanted {
            Expected::Upgrade(_) | Expected::Welcome(..) => unreachable!("they were handled above"),
            Expected::Parts(parts) => {
                let rest = parts.take(bytes)?;
                let is_whole = parts.is_complete();
                if is_whole {
                    self.wanted = Expected::Nothing;
                }
                if !rest.is_empty() {
                    self.take(rest)?;
                }
                Ok(is_whole)
            }
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

impl Joiner {
    /// Checks the answer to the upgrade or the `welcome`, once it is complete, and expects what
    /// follows. Returns its length.
    fn begin(&mut self) -> io::Result<Option<usize>> {
        match &self.wanted {
            Expected::Upgrade(welcome) => {
                let protocol = match welcome {
                    Welcome::State(..) => ClientProtocol::V2,
                    Welcome::Frame(_) | Welcome::AnyMessage => ClientProtocol::V1,
                };
                let Some(end) = upgraded(&self.held, protocol)? else {
                    return Ok(None);
                };
                let wanted = std::mem::replace(&mut self.wanted, Expected::Nothing);
                let Expected::Upgrade(welcome) = wanted else {
                    unreachable!("it was matched above");
                };
                self.wanted = match welcome {
                    Welcome::AnyMessage => Expected::AnyMessage,
                    Welcome::Frame(frame) => Expected::Bytes(frame, 0),
                    Welcome::State(text, parts) => Expected::Welcome(text, parts),
                };
                Ok(Some(end))
            }
            Expected::Welcome(text, _) => {
                let Some((start, end)) = first_message(&self.held)? else {
                    return Ok(None);
                };
                let seen = String::from_utf8_lossy(&self.held[start..end]);
                if !seen.starts_with(r#"{"type":"welcome""#) || !seen.contains(text) {
                    let message = format!("a welcome with {text} was expected, not {seen}");
                    return Err(io::Error::other(message));
                }
                let wanted = std::mem::replace(&mut self.wanted, Expected::Nothing);
                let Expected::Welcome(_, parts) = wanted else {
                    unreachable!("it was matched above");
                };
                self.wanted = Expected::Parts(parts);
                Ok(Some(end))
            }
            _ => unreachable!("there is nothing to begin"),
        }
    }
}

/// Returns whether the bytes are a ping, which a server sends to idle clients. A crowd is never
/// observed for long enough to have to answer.
fn is_ping(bytes: &[u8]) -> bool {
    bytes[0] == 0x89
}

fn quoted(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(80)];
    format!("{:?}", String::from_utf8_lossy(shown))
}

/// Returns the end of the answer to the upgrade; `None` if more must arrive.
pub fn upgraded(seen: &[u8], protocol: ClientProtocol) -> io::Result<Option<usize>> {
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
    let named = header("sec-websocket-protocol");
    if named != protocol.subprotocol().map(str::as_bytes) {
        let named = named.map_or("no protocol".into(), String::from_utf8_lossy);
        let message = format!("the server names {named}, not {}", protocol.title());
        return Err(io::Error::other(message));
    }
    Ok(Some(end))
}

/// Returns the start and end of the first frame's payload, once the frame is complete.
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
