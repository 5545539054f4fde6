//! The peers of a workspace, as a version 2 client receives them (P161).

use super::server::write_nullable;
use crate::limits::CONFLATED_BYTES_MAX;
use crate::wire::frame;
use crate::wire::json::JsonSink;

const START: &str = r#"{"type":"presence","payload":{"#;
const ALL: &str = r#""all":true,"#;
const PEERS: &str = r#""peers":{"#;
const LEFT: &str = r#"},"left":["#;
const END_OF_PEERS: &str = "}}}";
const END_OF_LEFT: &str = "]}}";

/// The memory that each list of an empty frame keeps for the next one.
const BYTES_KEPT_MAX: usize = 2 * CONFLATED_BYTES_MAX;

/// Appends a peer as a field of `peers`: `"7":{"user":"ann","value":null}`. `value` is JSON text;
/// for a peer that has not set one, it is `null`.
///
/// A peer is encoded when it changes, and appears in frames with
/// [`PresenceFrame::push_peer`].
pub fn put_peer(out: &mut Vec<u8>, connection: u64, user: Option<&str>, value: Option<&str>) {
    out.text("\"");
    out.number(connection);
    out.text(r#"":{"user":"#);
    write_nullable(out, user);
    out.text(r#","value":"#);
    out.text(value.unwrap_or("null"));
    out.text("}");
}

/// A `presence` message under construction.
///
/// It is reused: [`finish`](Self::finish) leaves it empty.
#[derive(Debug, Default)]
pub struct PresenceFrame {
    /// The peers that joined or changed, each followed by a comma.
    peers: Vec<u8>,
    /// The connections that are no longer peers, each followed by a comma.
    left: Vec<u8>,
}

impl PresenceFrame {
    /// Creates an empty frame without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns whether nothing has been added since the frame was created or finished.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.left.is_empty()
    }

    /// Adds a peer that [`put_peer`] has encoded.
    pub fn push_peer(&mut self, peer: &[u8]) {
        self.peers.extend_from_slice(peer);
        self.peers.push(b',');
    }

    /// Adds a connection that is no longer a peer.
    pub fn push_left(&mut self, connection: u64) {
        self.left.text("\"");
        self.left.number(connection);
        self.left.text("\",");
    }

    /// Returns the length of the frame that [`finish`](Self::finish) appends.
    #[must_use]
    pub fn frame_bytes(&self, is_all: bool) -> usize {
        let payload_bytes = self.payload_bytes(is_all);
        frame::header_bytes(payload_bytes) + payload_bytes
    }

    fn payload_bytes(&self, is_all: bool) -> usize {
        let all_bytes = if is_all { ALL.len() } else { 0 };
        let left_bytes = if self.left.is_empty() {
            END_OF_PEERS.len()
        } else {
            LEFT.len() + items(&self.left).len() + END_OF_LEFT.len()
        };
        START.len() + all_bytes + PEERS.len() + items(&self.peers).len() + left_bytes
    }

    /// Appends the message as a text frame, and empties it. With `is_all`, the message lists all
    /// peers, and the client forgets others.
    pub fn finish(&mut self, out: &mut Vec<u8>, is_all: bool) {
        frame::put_text_header(out, self.payload_bytes(is_all));
        out.text(START);
        if is_all {
            out.text(ALL);
        }
        out.text(PEERS);
        out.extend_from_slice(items(&self.peers));
        if self.left.is_empty() {
            out.text(END_OF_PEERS);
        } else {
            out.text(LEFT);
            out.extend_from_slice(items(&self.left));
            out.text(END_OF_LEFT);
        }
        for list in [&mut self.peers, &mut self.left] {
            list.clear();
            list.shrink_to(BYTES_KEPT_MAX);
        }
    }
}

/// Returns a list without its last comma.
fn items(list: &[u8]) -> &[u8] {
    list.strip_suffix(b",").unwrap_or(list)
}

#[cfg(test)]
mod tests;
