//! A key of a workspace with the value and the timestamp of its winning op, or its tombstone.

use std::fmt;

use super::text_slabs::{TextPlace, TextSlabs};
use crate::core::state::index::Tag;
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
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    stored: &'a StoredEntry,
    texts: &'a TextSlabs,
}

/// What an entry consists of, apart from its key and its value.
#[derive(Debug)]
pub(super) struct StoredEntry {
    pub(super) timestamp: u64,
    pub(super) seq: Seq,
    /// The place of the key, which is followed by the JSON text of the value.
    pub(super) text: TextPlace,
    pub(super) value_bytes: u32,
    pub(super) tag: Tag,
    pub(super) mark: Mark,
    pub(super) older: u32,
    pub(super) newer: u32,
    /// The lower bits of the writer.
    pub(super) writer: [u8; WRITER_BYTES],
    pub(super) lifetime: Lifetime,
    pub(super) key_bytes: u16,
}

/// The number of bytes of a writer that an entry stores. The next session with the same lower bits
/// comes a trillion sessions later: at 10,000 a second, after three years.
const WRITER_BYTES: usize = 5;

/// Whether and how an entry changes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// A live entry that does not expire.
    Permanent,
    /// A live entry that expires.
    Expiring,
    /// A tombstone.
    Deleted,
}

impl Lifetime {
    pub fn of(change: &Change<'_>) -> Self {
        match change {
            Change::Write {
                expires_at_us: Some(_),
                ..
            } => Self::Expiring,
            Change::Delete { .. } => Self::Deleted,
            Change::Write { .. } | Change::Floor { .. } | Change::Generation { .. } => {
                Self::Permanent
            }
        }
    }
}

/// The memory that an entry takes up beside its key and its value, in bytes.
pub const ENTRY_BYTES: usize = size_of::<StoredEntry>();

const _: () = assert!(
    ENTRY_BYTES == 48 && size_of::<Option<StoredEntry>>() == ENTRY_BYTES,
    "a large workspace consists mostly of these"
);

impl StoredEntry {
    /// Sets what an op changes, apart from the text.
    pub fn set(&mut self, change: &Change<'_>, timestamp: u64, seq: Seq, source: Source) {
        self.value_bytes =
            u32::try_from(change.value().len()).expect("a message is shorter than 4 GiB");
        self.lifetime = Lifetime::of(change);
        (self.timestamp, self.seq) = (timestamp, seq);
        (self.writer, self.mark) = (stored_writer(source.writer), source.mark);
    }

    pub fn is_deleted(&self) -> bool {
        self.lifetime == Lifetime::Deleted
    }

    /// Returns whether the workspace knows a time of the entry: its expiry, or that of its
    /// deletion.
    pub fn is_timed(&self) -> bool {
        self.lifetime != Lifetime::Permanent
    }

    /// Returns the length of the key and the value, in bytes.
    pub fn text_bytes(&self) -> usize {
        usize::from(self.key_bytes) + self.value_bytes as usize
    }

    /// Returns whether an op wins over this entry.
    pub fn loses_to(&self, edit: &Edit<'_>) -> bool {
        let current = if self.is_deleted() { 0 } else { self.timestamp };
        let is_expected = edit.if_timestamp.is_none_or(|expected| expected == current);
        edit.timestamp > self.timestamp && is_expected
    }
}

fn stored_writer(writer: Writer) -> [u8; WRITER_BYTES] {
    let bytes = writer.to_le_bytes();
    std::array::from_fn(|place| bytes[place])
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Entry")
            .field("key", &self.key())
            .field("value", &self.value())
            .field("stored", self.stored)
            .finish()
    }
}

impl<'a> Entry<'a> {
    pub(super) fn new(stored: &'a StoredEntry, texts: &'a TextSlabs) -> Self {
        Self { stored, texts }
    }

    /// Returns the unescaped key.
    #[must_use]
    pub fn key(self) -> &'a str {
        let end = usize::from(self.stored.key_bytes);
        self.texts.get(self.stored.text, 0, end)
    }

    /// Returns whether the key was deleted, so that the entry is a tombstone.
    #[must_use]
    pub fn is_deleted(self) -> bool {
        self.stored.is_deleted()
    }

    /// Returns the value as JSON text. Empty if the key was deleted.
    #[must_use]
    pub fn value(self) -> &'a str {
        let begin = usize::from(self.stored.key_bytes);
        self.texts
            .get(self.stored.text, begin, self.stored.text_bytes())
    }

    /// Returns the key and the value, for less than both cost separately.
    #[must_use]
    pub fn key_and_value(self) -> (&'a str, &'a str) {
        let both = self
            .texts
            .get(self.stored.text, 0, self.stored.text_bytes());
        both.split_at(usize::from(self.stored.key_bytes))
    }

    fn value_bytes(self) -> &'a [u8] {
        let begin = usize::from(self.stored.key_bytes);
        &self.texts.bytes(self.stored.text)[begin..self.stored.text_bytes()]
    }

    /// Returns the timestamp that the writer chose, in Unix microseconds.
    #[must_use]
    pub fn timestamp(self) -> u64 {
        self.stored.timestamp
    }

    /// Returns the position of its last change in the sequence of the workspace's ops.
    #[must_use]
    pub fn seq(self) -> Seq {
        self.stored.seq
    }

    /// Returns whether a session, which must still be open, was the last one to write the entry.
    #[must_use]
    pub fn is_by(self, writer: Writer) -> bool {
        let writer = stored_writer(writer);
        writer != stored_writer(0) && self.stored.writer == writer
    }

    /// Returns whether an op is the one that this entry holds.
    pub(super) fn is(self, edit: &Edit<'_>) -> bool {
        let is_deleted = matches!(edit.change, Change::Delete { .. });
        edit.timestamp == self.timestamp()
            && is_deleted == self.is_deleted()
            && edit.change.value().as_bytes() == self.value_bytes()
    }
}
