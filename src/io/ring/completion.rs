//! What a ring reports to its owner.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;

use crate::core::fanout::chunk_pool::Spans;
use crate::io::buffers::Filled;
use crate::log::blocks::Blocks;

/// The tokens by which the owner of a ring knows its operations: one type for each kind of
/// completion, so that no completion can carry the token of another kind.
pub trait Tokens: 'static {
    /// Names a receive.
    type Receive: Copy + Debug + Unpin;
    /// Names a send.
    type Send: Copy + Debug + Unpin;
    /// Names an accept.
    type Accept: Copy + Debug + Unpin;
    /// Names a write of bytes or of blocks.
    type Write: Copy + Debug + Unpin;
    /// Names an operation whose completion carries nothing: an fdatasync, a timer, a wait, a cancel
    /// or a no-op.
    type Signal: Copy + Debug + Unpin;
}

/// The end of an operation.
#[derive(Debug)]
pub enum Completion<T: Tokens> {
    /// Bytes came in. Give the buffer back after use.
    Received(T::Receive, Filled),
    /// The peer has closed its side, or the connection is broken.
    Ended(T::Receive, io::Result<()>),
    /// A send took this many bytes.
    Sent(T::Send, Spans, io::Result<usize>),
    /// A connection was accepted.
    Accepted(T::Accept, io::Result<OwnedFd>),
    /// A write took this many bytes.
    Written(T::Write, Vec<u8>, io::Result<usize>),
    /// A write of whole blocks took this many bytes, which are on disk.
    BlocksWritten(T::Write, Blocks, io::Result<usize>),
    /// An operation ended that has nothing to give back.
    Signalled(T::Signal, io::Result<()>),
}
