//! The parts of a state as a version 2 client receives it (P132).

use crate::limits::CONFLATED_BYTES_MAX;
use crate::seq::Seq;
use crate::wire::frame;
use crate::wire::json::{JsonSink, digits, json_string_bytes};

const START: &str = r#"{"type":"state","payload":{"entries":["#;
const DELETED: &str = r#"],"deleted":["#;
const SEQ: &str = r#"]},"seq":"#;
const END: &str = "}";

/// The memory that each list of an empty chunk keeps for the next one.
const BYTES_KEPT_MAX: usize = 2 * CONFLATED_BYTES_MAX;

/// A `state` message under construction: entries and tombstones, in any order.
///
/// It is reused: [`finish`](Self::finish) leaves it empty.
#[derive(Debug, Default)]
pub struct StateChunk {
    /// The entries, each followed by a comma.
    entries: Vec<u8>,
    /// The tombstones, each followed by a comma.
    deleted: Vec<u8>,
}

impl StateChunk {
    /// Creates an empty chunk without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns whether nothing has been added since the chunk was created or finished.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.deleted.is_empty()
    }

    /// Returns the number of bytes that [`push_entry`](Self::push_entry) adds to the frame.
    #[must_use]
    pub fn entry_bytes(key: &str, value: &str, timestamp: u64) -> usize {
        "[,,],".len() + json_string_bytes(key) + value.len() + digits(timestamp)
    }

    /// Returns the number of bytes that [`push_deleted`](Self::push_deleted) adds to the frame.
    #[must_use]
    pub fn deleted_bytes(key: &str, timestamp: u64) -> usize {
        "[,],".len() + json_string_bytes(key) + digits(timestamp)
    }

    /// Adds an entry.
    pub fn push_entry(&mut self, key: &str, value: &str, timestamp: u64) {
        self.entries.text("[");
        self.entries.string(key);
        self.entries.text(",");
        self.entries.text(value);
        self.entries.text(",");
        self.entries.number(timestamp);
        self.entries.text("],");
    }

    /// Adds a tombstone.
    pub fn push_deleted(&mut self, key: &str, timestamp: u64) {
        self.deleted.text("[");
        self.deleted.string(key);
        self.deleted.text(",");
        self.deleted.number(timestamp);
        self.deleted.text("],");
    }

    /// Returns the length of the frame that [`finish`](Self::finish) appends.
    #[must_use]
    pub fn frame_bytes(&self, seq: Seq) -> usize {
        let payload_bytes = self.payload_bytes(seq);
        frame::header_bytes(payload_bytes) + payload_bytes
    }

    fn payload_bytes(&self, seq: Seq) -> usize {
        let fixed = START.len() + DELETED.len() + SEQ.len() + END.len();
        fixed + items(&self.entries).len() + items(&self.deleted).len() + digits(seq.get())
    }

    /// Appends the chunk as a text frame, and empties it. `seq` is that of its last change: once
    /// applied, the client holds everything up to it.
    pub fn finish(&mut self, out: &mut Vec<u8>, seq: Seq) {
        frame::put_text_header(out, self.payload_bytes(seq));
        out.text(START);
        out.extend_from_slice(items(&self.entries));
        out.text(DELETED);
        out.extend_from_slice(items(&self.deleted));
        out.text(SEQ);
        out.number(seq.get());
        out.text(END);
        for list in [&mut self.entries, &mut self.deleted] {
            list.clear();
            // A single entry may be as long as the longest message.
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
