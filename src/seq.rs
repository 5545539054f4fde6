//! The order of a workspace's ops.

use std::fmt;

/// The position of an op in the order of its workspace: 1 for the first op that won, and one higher
/// for each later winner. It survives restarts, compaction and deletes.
///
/// Every layer uses it, from the log's records to the protocol, so it lives below all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(u64);

impl Seq {
    /// The seq of a workspace that has never been written to. It precedes the first op.
    pub const NONE: Self = Self(0);

    /// Returns the seq of the op with this number, counted from 1.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number of the op, counted from 1.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the seq of the next op.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns the seq of the previous op. Must not be called on [`Seq::NONE`], which has none.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0 - 1)
    }

    /// Returns the number of ops after `earlier`, up to this one.
    #[must_use]
    pub const fn ops_since(self, earlier: Self) -> u64 {
        self.0 - earlier.0
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
