//! What the owner of a ring is told.

use std::io;
use std::os::fd::OwnedFd;

use crate::core::fanout::chunk_pool::Spans;
use crate::io::buffers::Filled;
use crate::log::blocks::Blocks;

/// The end of an operation.
#[derive(Debug)]
pub enum Completion<T> {
    /// Bytes came in. Give the buffer back after use.
    Received(T, Filled),
    /// The peer has closed its side, or the connection is broken.
    Ended(T, io::Result<()>),
    /// A send took so many bytes.
    Sent(T, Spans, io::Result<usize>),
    /// A connection was accepted.
    Accepted(T, io::Result<OwnedFd>),
    /// A write took so many bytes.
    Written(T, Vec<u8>, io::Result<usize>),
    /// A write of whole blocks took so many bytes, which are on disk.
    BlocksWritten(T, Blocks, io::Result<usize>),
    /// An fdatasync, a timer, a wait or a no-op ended.
    Done(T, io::Result<()>),
}
