//! A key of a workspace with the value and the timestamp of its winning op, or its tombstone.

use crate::core::state::segment_usage::{Mark, UNMARKED};
use crate::log::record::Change;
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

/// An op that may become the state of its key.
#[derive(Debug, Clone, Copy)]
pub struct Edit<'a> {
    /// The key.
    pub key: &'a str,
    /// A write or a delete.
    pub change: Change<'a>,
    /// The timestamp that the writer chose, in Unix microseconds.
    pub timestamp: u64,
    /// The timestamp that the key's entry must have for the op to win; 0 if the key must be absent
    /// or deleted.
    pub if_timestamp: Option<u64>,
}

/// A last-write-wins register: a key with its value, or its tombstone.
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
    pub(super) key_bytes: u16,
    /// Whether the entry is a tombstone, which has no value.
    pub(super) is_deleted: bool,
    /// Whether the workspace stores a time for the entry: its expiry, or the time of its deletion.
    pub(super) is_timed: bool,
}

const _: () = assert!(
    size_of::<Entry>() <= 64,
    "an entry must fit in a cache line"
);

impl Entry {
    /// Returns the unescaped key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.texts[..usize::from(self.key_bytes)]
    }

    /// Returns whether the key was deleted, so that the entry is a tombstone.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.is_deleted
    }

    /// Returns the value as JSON text. Empty if the key was deleted.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.texts[usize::from(self.key_bytes)..]
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

    /// Returns whether this entry holds exactly this op.
    pub(super) fn is(&self, edit: &Edit<'_>) -> bool {
        let is_deleted = matches!(edit.change, Change::Delete { .. });
        edit.timestamp == self.timestamp
            && is_deleted == self.is_deleted
            && edit.change.value() == self.value()
    }

    /// Returns whether an op wins over this entry.
    pub(super) fn loses_to(&self, edit: &Edit<'_>) -> bool {
        let current = if self.is_deleted { 0 } else { self.timestamp };
        let is_expected = edit.if_timestamp.is_none_or(|expected| expected == current);
        edit.timestamp > self.timestamp && is_expected
    }

    /// Returns the length of the longest value that fits without another allocation.
    pub(super) fn value_capacity(&self) -> usize {
        self.texts.capacity() - usize::from(self.key_bytes)
    }

    pub(super) fn set_value(&mut self, value: &str) {
        self.texts.truncate(usize::from(self.key_bytes));
        // A value that was once large must not hold its memory forever.
        if self.value_capacity() / 4 > value.len().max(64) {
            self.texts.shrink_to(self.texts.len() + value.len());
        }
        // Do not double the capacity, since the next value need not be longer than this one.
        self.texts.reserve_exact(value.len());
        self.texts.push_str(value);
    }
}
