//! An operation in flight: how the ring knows it, and the memory that the kernel is pointed to.

use std::marker::PhantomData;

use io_uring::{cqueue, squeue, types};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform};

use crate::core::fanout::chunk_pool::{Span, Spans};
use crate::io::buffers::sanitizer::{Pointed, Stretch};
use crate::io::ring::completion::Tokens;
use crate::limits::{SEND_SPANS_MAX, SENDS_PER_TURN_MAX};
use crate::log::blocks::Blocks;

/// An operation: its token, and what it owns while it is in flight.
pub(super) enum Operation<T: Tokens> {
    Receive {
        fd: i32,
        token: T::Receive,
    },
    /// Waits until bytes are there, on a kernel on which a waiting receive would hold a buffer.
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
    /// The ring's own: a buffer is provided.
    Provide {
        index: u16,
    },
    /// The ring's own: there are receives to arm.
    Arm,
}

/// A message of several pieces, as sendmsg(2) wants it. Boxed, since the kernel has its address.
pub(super) struct Vectored {
    pub header: libc::msghdr,
    pub pieces: [libc::iovec; SEND_SPANS_MAX],
    pub spans: Spans,
}

impl Vectored {
    /// Returns the memory that the kernel is pointed to.
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
    /// Before what is pointed to, since fields are dropped in order.
    pub pointed: Pointed,
    pub operation: Operation<T>,
    pub entry: squeue::Entry,
}

/// An operation that the kernel has, or will have with the next submission.
pub(super) struct Flight<T: Tokens> {
    /// Before the operation, since fields are dropped in order.
    pub _pointed: Pointed,
    pub operation: InFlightOneshot<Operation<T>, RawOutcome<T>>,
}

/// Turns an entry of the completion queue into the operation, its result and its flags.
pub(super) struct RawOutcome<T>(pub PhantomData<fn() -> T>);

impl<T: Tokens> OneshotOutputTransform for RawOutcome<T> {
    type Output = (Operation<T>, i32, u32);
    type StoredData = Operation<T>;

    fn transform_oneshot_output(
        self,
        operation: Operation<T>,
        entry: cqueue::Entry,
    ) -> Self::Output {
        (operation, entry.result(), entry.flags())
    }
}

/// Memory that the kernel is done with, for its next use.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "what the kernel is given does not move")]
pub(super) struct Spare {
    pub messages: Vec<Box<Vectored>>,
    pub times: Vec<Box<types::Timespec>>,
}

/// Keeps memory for its next use, but no more of it than a turn needs.
pub(super) fn keep<M>(spare: &mut Vec<M>, memory: M) {
    if spare.len() < SENDS_PER_TURN_MAX {
        spare.push(memory);
    }
}
