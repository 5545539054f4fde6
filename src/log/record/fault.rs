//! What is wrong with the bytes of a segment.

use thiserror::Error;

/// The first bad byte of a segment, or rather the begin of the record or batch header that it is
/// in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{kind}")]
pub struct Fault {
    /// In the file. All before it is valid.
    pub offset: usize,
    /// What is wrong with it.
    pub kind: FaultKind,
}

/// What is wrong with the bytes at a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FaultKind {
    /// The file ends between two records of a batch: what the cut of a torn tail leaves.
    #[error("the file ends inside of a batch")]
    Cut,
    /// No whole batch header, where one must begin.
    #[error("there is no valid batch header")]
    Batch,
    /// A record that runs over its batch or the file, or whose checksum is wrong.
    #[error("the length or the checksum of a record is wrong")]
    Record,
    /// The checksum is right, the content is not: this was written so, and no crash does that.
    #[error("the checksum is right, but {0}")]
    Content(&'static str),
}
