//! One key of a workspace.

use crate::core::state::segment_usage::{Mark, UNMARKED};
use crate::seq::Seq;

/// Who wrote an entry last, so that a writer is not sent its own op. Zero: nobody who is connected.
pub type Writer = u64;

/// Where an op comes from, and where it will stand.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Who wrote it.
    pub writer: Writer,
    /// The segment of the log that is open now.
    pub mark: Mark,
}

impl Source {
    /// The log.
    pub(super) const LOG: Self = Self {
        writer: 0,
        mark: UNMARKED,
    };
}

/// One register.
#[derive(Debug)]
pub struct Entry {
    /// The key, and behind it the JSON text of the value: one allocation, and one line of the cache for both.
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
    "an entry is no longer than a line of the cache"
);

impl Entry {
    /// The key, unescaped.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.texts[..self.key_bytes as usize]
    }

    /// The JSON text of the value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.texts[self.key_bytes as usize..]
    }

    /// Unix microseconds, as its writer gave them.
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        self.timestamp
    }

    /// The place of its last change in the order of the workspace's ops.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Who wrote it last.
    #[must_use]
    pub fn writer(&self) -> Writer {
        self.writer
    }

    /// How long a value may be without another allocation.
    pub(super) fn value_capacity(&self) -> usize {
        self.texts.capacity() - self.key_bytes as usize
    }

    pub(super) fn set_value(&mut self, value: &str) {
        self.texts.truncate(self.key_bytes as usize);
        // A value that was large once must not hold its memory for ever.
        if self.value_capacity() / 4 > value.len().max(64) {
            self.texts.shrink_to(self.texts.len() + value.len());
        }
        // Not by doubling: the next value need not be longer than this one.
        self.texts.reserve_exact(value.len());
        self.texts.push_str(value);
    }
}
