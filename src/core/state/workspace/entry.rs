//! A key of a workspace with the value and the timestamp of its winning op.

use crate::core::state::segment_usage::{Mark, UNMARKED};
use crate::seq::Seq;

/// The number of the session that last wrote an entry, used to avoid sending that session its own
/// op. 0 if no connected session wrote it.
pub type Writer = u64;

/// The origin of an op: its writer, and its place in the log.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The session that sent the op.
    pub writer: Writer,
    /// The mark of the segment that is open now.
    pub mark: Mark,
}

impl Source {
    /// The source of an op that was read from the log.
    pub(super) const LOG: Self = Self {
        writer: 0,
        mark: UNMARKED,
    };
}

/// A last-write-wins register.
#[derive(Debug)]
pub struct Entry {
    /// The key followed by the JSON text of the value: one allocation, and one cache line for both.
    pub(super) texts: String,
    pub(super) timestamp: u64,
    pub(super) seq: Seq,
    pub(super) writer: Writer,
    pub(super) mark: Mark,
    pub(super) older: u32,
    pub(super) newer: u32,
    pub(super) key_bytes: u32,
}

const _: () = assert!(
    size_of::<Entry>() <= 64,
    "an entry must fit in a cache line"
);

impl Entry {
    /// Returns the unescaped key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.texts[..self.key_bytes as usize]
    }

    /// Returns the value as JSON text.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.texts[self.key_bytes as usize..]
    }

    /// Returns the timestamp that the writer chose, in Unix microseconds.
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        self.timestamp
    }

    /// Returns the position of its last change in the sequence of the workspace's ops.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Returns the session that last wrote the entry.
    #[must_use]
    pub fn writer(&self) -> Writer {
        self.writer
    }

    /// Returns the length of the longest value that fits without another allocation.
    pub(super) fn value_capacity(&self) -> usize {
        self.texts.capacity() - self.key_bytes as usize
    }

    pub(super) fn set_value(&mut self, value: &str) {
        self.texts.truncate(self.key_bytes as usize);
        // A value that was once large must not hold its memory forever.
        if self.value_capacity() / 4 > value.len().max(64) {
            self.texts.shrink_to(self.texts.len() + value.len());
        }
        // Do not double the capacity, since the next value need not be longer than this one.
        self.texts.reserve_exact(value.len());
        self.texts.push_str(value);
    }
}
