//! Operations of a ring: the tokens that identify them, the memory that they own in flight, and
//! their completions.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;

use io_uring::{squeue, types};

use crate::core::fanout::chunk_pool::{Span, Spans};
use crate::io::buffers::Filled;
use crate::io::buffers::sanitizer::{Pointed, Stretch};
use crate::limits::{SEND_SPANS_MAX, SENDS_PER_TURN_MAX};
use crate::log::blocks::Blocks;

/// The tokens by which a ring's owner identifies its operations. There is one type for each kind of
/// completion, so that no completion can carry a token of another kind.
pub trait Tokens: 'static {
    /// Identifies a receive.
    type Receive: Copy + Debug + Unpin;
    /// Identifies a send.
    type Send: Copy + Debug + Unpin;
    /// Identifies an accept.
    type Accept: Copy + Debug + Unpin;
    /// Identifies a write of bytes or of blocks.
    type Write: Copy + Debug + Unpin;
    /// Identifies an operation whose completion carries no data: an fdatasync, a timer, a wait, a
    /// cancel or a no-op.
    type Signal: Copy + Debug + Unpin;
}

/// A completed operation.
#[derive(Debug)]
pub enum Completion<T: Tokens> {
    /// Bytes were received. The buffer must be given back after use.
    Received(T::Receive, Filled),
    /// The peer has closed its side, or the connection has failed.
    Ended(T::Receive, io::Result<()>),
    /// A send ended, with the number of bytes that were sent.
    Sent(T::Send, Spans, io::Result<usize>),
    /// A connection was accepted.
    Accepted(T::Accept, io::Result<OwnedFd>),
    /// A write ended, with the number of bytes that were written.
    Written(T::Write, Vec<u8>, io::Result<usize>),
    /// A write of whole blocks ended, with the number of bytes that are now on disk.
    BlocksWritten(T::Write, Blocks, io::Result<usize>),
    /// An operation without a result value ended.
    Signalled(T::Signal, io::Result<()>),
}

/// An operation: its token and the resources that it owns while in flight.
pub(super) enum Operation<T: Tokens> {
    Receive {
        fd: i32,
        token: T::Receive,
    },
    /// Waits until data is available, on kernels where a pending receive would hold a buffer.
    Readable {
        fd: i32,
        token: T::Receive,
    },
    Send(T::Send, Span),
    SendMany(T::Send, Box<Vectored>),
    Accept(T::Accept),
    Write(T::Write, Vec<u8>),
    WriteBlocks(T::Write, Blocks),
    Timer(T::Signal, Box<types::Timespec>),
    Wait(
        T::Signal,
        #[expect(dead_code, reason = "the kernel writes it")] Box<u64>,
    ),
    Signal(T::Signal),
    /// Internal to the ring: provides a buffer.
    Provide {
        index: u16,
    },
    /// Internal to the ring: triggers a turn, because there are receives to arm.
    Arm,
}

/// A message of several pieces in the form that sendmsg(2) expects. Boxed because the kernel is
/// given its address.
pub(super) struct Vectored {
    pub header: libc::msghdr,
    pub pieces: [libc::iovec; SEND_SPANS_MAX],
    pub spans: Spans,
}

impl Vectored {
    /// Returns the memory that the operation points to.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> {
        let pieces = &self.pieces[..self.header.msg_iovlen];
        let header = (&raw const self.header).cast();
        [
            (header, size_of::<libc::msghdr>()),
            (pieces.as_ptr().cast(), size_of_val(pieces)),
        ]
        .into_iter()
        .chain(
            pieces
                .iter()
                .map(|piece| (piece.iov_base.cast_const().cast(), piece.iov_len)),
        )
    }
}

/// An operation that is not in the submission queue yet.
pub(super) struct PendingOperation<T: Tokens> {
    /// Declared before the memory it points to, since fields are dropped in declaration order.
    pub pointed: Pointed,
    pub operation: Operation<T>,
    pub entry: squeue::Entry,
}

/// A completed operation with its result and its flags.
pub(super) type Outcome<T> = (Operation<T>, i32, u32);

/// Memory of completed operations, kept for reuse.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "the kernel holds pointers to the items")]
pub(super) struct Spare {
    pub messages: Vec<Box<Vectored>>,
    pub times: Vec<Box<types::Timespec>>,
}

/// Keeps memory for reuse, but no more of it than one turn can use.
pub(super) fn keep<M>(spare: &mut Vec<M>, memory: M) {
    if spare.len() < SENDS_PER_TURN_MAX {
        spare.push(memory);
    }
}
