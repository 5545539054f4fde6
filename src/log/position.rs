//! A position in the log of a shard.

use std::fmt;

/// A position in the log of a shard: the total length of all batches before it, in bytes. See
/// [`record`](crate::log::record) for how it relates to offsets in a segment's file.
///
/// An op may be sent once its own position is visible
/// ([`Commit::visible_position`](crate::log::commit::Commit::visible_position)), so comparing two
/// positions is all it takes to prove durability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition(u64);

impl LogPosition {
    /// The beginning of the log.
    pub const START: Self = Self(0);
    /// A position that is visible from the start, for bytes that contain no ops or only ops
    /// recovered from the disk.
    pub const NONE: Self = Self::START;
    /// A position after every op. It is the visible position if ops are sent without waiting for
    /// the disk.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the position after `bytes` bytes of batches.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes of batches before this position.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the position `bytes` bytes later, at most [`LogPosition::MAX`]. It saturates because
    /// a position read from disk may have any value, and no real position equals the maximum.
    #[must_use]
    pub const fn advance(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Returns the position one byte earlier, or the beginning of the log.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Returns the number of bytes from `earlier` to this position, or `None` if `earlier` is after
    /// it.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
