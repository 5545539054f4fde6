//! A completion queue: operations go in and completions come out, without a task per operation.
//!
//! Two rings implement it. Both submit everything that a turn has queued with one system call.
//!
//! - `native`, for Linux 6.1 and later. One system call submits, waits, and completes.
//! - `compat`, on top of tokio-uring, for Linux 5.10 and later.
//!
//! What operations are made of, and what becomes of their results, is the same for both and is in
//! this file. The interface knows nothing of sessions or logs.
//!
//! # How memory is kept alive while the kernel uses it
//!
//! Everything that an operation points to (bytes, a message header, a time) moves into its flight
//! and comes back with its completion. A flight ends only with its single completion, or when the
//! ring is dropped, which cancels all operations and waits for them. Receives point to no memory:
//! the kernel picks one of the ring's buffers. A completion is always matched to its own operation,
//! because no operation completes more than once (no multishot, no zero-copy send).
//!
//! The ring does not own descriptors. Their owner keeps them open until the completion; otherwise,
//! an operation that has not been submitted yet could act on another file that has since received
//! the same number.

#![allow(
    unsafe_code,
    reason = "the kernel's interface; see SAFETY at each block"
)]

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::task::Poll;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};

use crate::core::fanout::chunk_pool::Spans;
use crate::io::buffers::sanitizer::Pointed;
use crate::io::buffers::{Filled, KERNEL_LENDS_LATE, ReceiveBuffers, kernel};
use crate::limits::{RECEIVE_BYTES_MAX, SEND_SPANS_MAX};
use crate::log::blocks::BlockWrite;

mod advice;
mod calls;
mod compat;
mod flight;
mod native;
mod ready;
mod setup;
mod submissions;

use calls::{BUFFER_GROUP, enable, enter_of, poll_first, watch};
use compat::Compat;
use flight::{Operation, Outcome, PendingOperation, Spare, Vectored, keep};
use native::Native;
use ready::{READY, Ready};
use submissions::{EndingRuntime, Guard};

pub use advice::advice;
pub use flight::{Completion, Tokens};
pub use setup::{RingKind, locked_bytes, probe, try_all};

/// The ring of one thread.
pub struct Ring<T: Tokens> {
    /// Declared before the buffers, which the kernel may use until it is dropped.
    engine: Engine<T>,
    buffers: ReceiveBuffers,
    /// Receives to arm at the end of a turn, after the returned buffers are provided. Oldest first.
    unarmed: VecDeque<(T::Receive, i32)>,
    /// Whether a receive is submitted only once data is available, as on kernels before 5.19.
    waits_before_receive: bool,
    spare: Spare,
}

/// What submits the operations and takes their completions.
enum Engine<T: Tokens> {
    Native(Box<Native<T>>),
    Compat(Compat<T>),
}

impl<T: Tokens> Engine<T> {
    fn next_outcome(&mut self) -> Option<Outcome<T>> {
        match self {
            Self::Native(native) => native.next_outcome(),
            Self::Compat(compat) => compat.next_outcome(),
        }
    }

    fn native(&mut self) -> &mut Native<T> {
        match self {
            Self::Native(native) => native,
            Self::Compat(_) => unreachable!("the ring is not on top of tokio-uring"),
        }
    }

    fn compat(&mut self) -> &mut Compat<T> {
        match self {
            Self::Compat(compat) => compat,
            Self::Native(_) => unreachable!("the ring is on top of tokio-uring"),
        }
    }
}

/// Runs `turn` on a ring of this thread, once at the beginning and then whenever an operation has
/// completed, until it returns `Break`. `is_set_up` is called before that, as soon as the ring
/// exists; if it returns `Break`, no turn is run.
pub fn run<T: Tokens>(
    kind: RingKind,
    is_set_up: impl FnOnce() -> ControlFlow<()>,
    turn: impl FnMut(&mut Ring<T>) -> ControlFlow<()>,
) -> io::Result<()> {
    match kind {
        RingKind::Native => run_native(is_set_up, turn),
        RingKind::Compat {
            waits_before_receive,
        } => run_compat(waits_before_receive, is_set_up, turn),
    }
}

fn run_native<T: Tokens>(
    is_set_up: impl FnOnce() -> ControlFlow<()>,
    mut turn: impl FnMut(&mut Ring<T>) -> ControlFlow<()>,
) -> io::Result<()> {
    let (ring, buffers) = setup::native_with_buffers()?;
    let mut ring = Ring::native(Native::new(ring), buffers);
    if is_set_up().is_break() {
        return Ok(());
    }
    while turn(&mut ring).is_continue() {
        ring.engine.native().wait()?;
    }
    Ok(())
}

/// `waits_before_receive` selects the receive method for kernels before 5.19, which such kernels
/// always use.
fn run_compat<T: Tokens>(
    waits_before_receive: bool,
    is_set_up: impl FnOnce() -> ControlFlow<()>,
    mut turn: impl FnMut(&mut Ring<T>) -> ControlFlow<()>,
) -> io::Result<()> {
    // A previous ring on this thread may have left entries behind if a panic ended it.
    READY.set(Ready::EMPTY);
    let (runtime, descriptor) = setup::runtime(enable)?;
    let mut ring = Ring::compat(waits_before_receive, descriptor);
    // Declared after the ring so that it is dropped first, even on a panic: until the runtime has
    // waited for the kernel, the flights must hold the memory that the kernel is using.
    let runtime = EndingRuntime::new(runtime, enter_of(descriptor));
    let mut guard = runtime.block_on(async { Guard::new(watch) })?;
    if is_set_up().is_break() {
        return Ok(());
    }
    let mut is_begun = false;
    runtime.block_on(poll_fn(|context| {
        let is_news = READY.with_borrow_mut(|ready| {
            match &mut ready.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            !ready.indices.is_empty()
        });
        // If operations were left over, the owner gets a turn so that it can report them.
        let is_left = guard.is_due(context) && ring.engine.compat().submit_again();
        let is_turn = is_news || is_left || !std::mem::replace(&mut is_begun, true);
        let flow = if is_turn {
            turn(&mut ring)
        } else {
            ControlFlow::Continue(())
        };
        if ring.engine.compat().may_have_unsubmitted() {
            guard.arm(context);
        }
        match flow {
            ControlFlow::Continue(()) => Poll::Pending,
            ControlFlow::Break(()) => Poll::Ready(()),
        }
    }));
    drop(guard);
    drop(runtime);
    drop(ring);
    READY.set(Ready::EMPTY);
    Ok(())
}

impl<T: Tokens> Ring<T> {
    fn native(engine: Native<T>, buffers: ReceiveBuffers) -> Self {
        Self::new(Engine::Native(Box::new(engine)), buffers, false)
    }

    fn compat(waits_before_receive: bool, descriptor: RawFd) -> Self {
        let engine = Engine::Compat(Compat::new(enter_of(descriptor)));
        let waits = waits_before_receive || kernel() < KERNEL_LENDS_LATE;
        Self::new(engine, ReceiveBuffers::new(), waits)
    }

    fn new(engine: Engine<T>, buffers: ReceiveBuffers, waits_before_receive: bool) -> Self {
        Self {
            engine,
            buffers,
            unarmed: VecDeque::new(),
            waits_before_receive,
            spare: Spare::default(),
        }
    }

    /// Returns the number of times that the kernel has refused operations, which were then
    /// submitted again.
    #[must_use]
    pub fn retries(&self) -> u64 {
        match &self.engine {
            Engine::Native(native) => native.retries(),
            Engine::Compat(compat) => compat.retries(),
        }
    }

    /// Appends all completions that have arrived to `completions`. Their number is bounded by the
    /// length of the completion queue.
    pub fn drain(&mut self, completions: &mut Vec<Completion<T>>) {
        match &mut self.engine {
            Engine::Native(native) => native.begin_drain(),
            Engine::Compat(compat) => compat.begin_drain(),
        }
        while let Some(outcome) = self.engine.next_outcome() {
            completions.extend(self.complete(outcome));
        }
    }

    fn complete(&mut self, (operation, result, flags): Outcome<T>) -> Option<Completion<T>> {
        let count = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some(match operation {
            Operation::Provide { index } if count.is_err() => {
                self.buffers.take_back(index);
                return None;
            }
            Operation::Provide { .. } | Operation::Arm => return None,
            Operation::Readable { fd, token } if result >= 0 => {
                self.unarmed.push_back((token, fd));
                return None;
            }
            Operation::Receive { fd, token }
                if [-libc::EINTR, -libc::EAGAIN, -libc::ENOBUFS].contains(&result) =>
            {
                // Kernels before 5.19 may name a buffer that an operation took but did not use.
                if let Some(index) = cqueue::buffer_select(flags) {
                    self.buffers.take_back(index);
                }
                self.unarmed.push_back((token, fd));
                return None;
            }
            Operation::Receive { token, .. } | Operation::Readable { token, .. } => {
                let filled = cqueue::buffer_select(flags)
                    .map(|index| self.buffers.filled(index, *count.as_ref().unwrap_or(&0)));
                match (filled, count) {
                    (Some(filled), Ok(1..)) => Completion::Received(token, filled),
                    (filled, count) => {
                        if let Some(filled) = filled {
                            self.buffers.give_back(filled);
                        }
                        Completion::Ended(token, count.map(|_| ()))
                    }
                }
            }
            Operation::Accept(token) => {
                let accepted = count.map(|_| {
                    // SAFETY:
                    // - the kernel has just opened this descriptor for us, and nothing else owns it
                    unsafe { OwnedFd::from_raw_fd(result) }
                });
                Completion::Accepted(token, accepted)
            }
            Operation::Send(token, span) => {
                let mut spans = Spans::new();
                spans.push(span);
                Completion::Sent(token, spans, count)
            }
            Operation::SendMany(token, mut message) => {
                let spans = std::mem::take(&mut message.spans);
                keep(&mut self.spare.messages, message);
                Completion::Sent(token, spans, count)
            }
            Operation::Write(token, bytes) => Completion::Written(token, bytes, count),
            Operation::WriteBlocks(token, blocks) => {
                Completion::BlocksWritten(token, blocks, count)
            }
            Operation::Timer(token, time) => {
                keep(&mut self.spare.times, time);
                Completion::Signalled(token, count.map(|_| ()))
            }
            Operation::Signal(token) | Operation::Wait(token, _) => {
                Completion::Signalled(token, count.map(|_| ()))
            }
        })
    }

    /// Returns a buffer to the ring, which lends it to the kernel again at the end of the turn.
    pub fn give_back(&mut self, filled: Filled) {
        self.buffers.give_back(filled);
    }

    /// Ends a turn: provides the returned buffers to the kernel again, and arms receives, oldest
    /// first.
    pub fn finish_turn(&mut self) {
        match &self.engine {
            Engine::Native(_) => self.buffers.lend_all(),
            Engine::Compat(_) => self.provide_buffers(),
        }
        // Arm no more receives than there can be buffers for: a receive that finds none costs
        // another operation and ends up behind later receives.
        let count = self.unarmed.len().min(self.buffers.lent_count());
        for _ in 0..count {
            let (token, fd) = self
                .unarmed
                .pop_front()
                .expect("at least this many are waiting");
            self.submit_receive(fd, token);
        }
        // The armed receives may wait for a long time, so the next turn must not.
        if count > 0 && !self.unarmed.is_empty() {
            match &mut self.engine {
                Engine::Native(native) => native.turn_again(),
                Engine::Compat(_) => self.submit(Operation::Arm, opcode::Nop::new().build()),
            }
        }
    }

    fn provide_buffers(&mut self) {
        // One buffer at a time: if a kernel that is short of memory is offered several at once, it
        // accepts only some of them, and newer kernels then report 0 as if they had accepted them
        // all.
        while let Some((index, address)) = self.buffers.lend_next() {
            let length =
                i32::try_from(RECEIVE_BYTES_MAX).expect("the buffer length fits in 32 bits");
            // The ring holds the memory until the kernel is done with it, and nothing reads or
            // writes a buffer that was given back until a completion names it.
            let entry = opcode::ProvideBuffers::new(address, length, 1, BUFFER_GROUP, index);
            self.submit(Operation::Provide { index }, entry.build());
        }
    }

    /// Requests another turn right away.
    pub fn again(&mut self, token: T::Signal) {
        match &mut self.engine {
            Engine::Native(native) => native.again(token),
            Engine::Compat(_) => self.submit(Operation::Signal(token), opcode::Nop::new().build()),
        }
    }

    /// Receives into a provided buffer. The receive is armed at the end of this turn, or of a later
    /// one if there are not enough buffers.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, token: T::Receive) {
        let fd = fd.as_raw_fd();
        if self.waits_before_receive {
            let readable = u32::from(libc::POLLIN.unsigned_abs());
            let entry = opcode::PollAdd::new(types::Fd(fd), readable).build();
            self.submit(Operation::Readable { fd, token }, entry);
        } else {
            self.unarmed.push_back((token, fd));
        }
    }

    fn submit_receive(&mut self, fd: i32, token: T::Receive) {
        let length = u32::try_from(RECEIVE_BYTES_MAX).expect("the buffer length fits in 32 bits");
        let mut entry = opcode::Recv::new(types::Fd(fd), std::ptr::null_mut(), length)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        if let Engine::Native(native) = &self.engine
            && native.polls_first(fd)
        {
            poll_first(&mut entry);
        }
        self.submit(Operation::Receive { fd, token }, entry);
    }

    /// Sends the spans in order. The kernel may send only part of them.
    ///
    /// # Panics
    /// If there is no span, or more than [`SEND_SPANS_MAX`].
    pub fn send(&mut self, fd: BorrowedFd<'_>, mut spans: Spans, token: T::Send) {
        let fd = types::Fd(fd.as_raw_fd());
        assert!(
            (1..=SEND_SPANS_MAX).contains(&spans.len()),
            "a send has a bounded number of pieces"
        );
        // There are many flights, so each has room for only one span. A list that has spilled to
        // the heap is sent as a message so that its memory is reused.
        if spans.len() == 1
            && !spans.spilled()
            && let Some(span) = spans.pop()
        {
            let bytes = span.bytes();
            let length = u32::try_from(bytes.len()).expect("a send is smaller than 4 GiB");
            // The bytes are on the heap, in an Rc that `span` holds: they do not move when `span`
            // does, and a chunk with two owners is never written to.
            let entry = opcode::Send::new(fd, bytes.as_ptr(), length)
                .flags(libc::MSG_NOSIGNAL)
                .build();
            let pointed = Pointed::to([(bytes.as_ptr(), bytes.len())]);
            return self.submit_pointing(pointed, Operation::Send(token, span), entry);
        }
        let message = vectored(spans, self.spare.messages.pop());
        let pointed = Pointed::to(message.stretches());
        let entry = opcode::SendMsg::new(fd, &raw const message.header)
            .flags(libc::MSG_NOSIGNAL.unsigned_abs())
            .build();
        self.submit_pointing(pointed, Operation::SendMany(token, message), entry);
    }

    /// Accepts one connection.
    pub fn accept(&mut self, listener: BorrowedFd<'_>, token: T::Accept) {
        let fd = types::Fd(listener.as_raw_fd());
        let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build();
        self.submit(Operation::Accept(token), entry);
    }

    /// Cancels all operations on this descriptor, which then end with an error; the cancellation
    /// itself completes too. On a kernel that does not support this (before 5.19), returns false:
    /// nothing is cancelled, and no completion follows.
    pub fn cancel(&mut self, fd: BorrowedFd<'_>, token: T::Signal) -> bool {
        let is_known = !self.waits_before_receive;
        if is_known {
            let of_descriptor = types::CancelBuilder::fd(types::Fd(fd.as_raw_fd())).all();
            let entry = opcode::AsyncCancel2::new(of_descriptor).build();
            self.submit(Operation::Signal(token), entry);
        }
        is_known
    }

    /// Writes `bytes[from..]` at a file offset. The kernel may write only part of it.
    pub fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes: Vec<u8>,
        from: usize,
        offset: u64,
        token: T::Write,
    ) {
        let part = &bytes[from..];
        let length = u32::try_from(part.len()).expect("a batch is smaller than 4 GiB");
        let entry = opcode::Write::new(types::Fd(fd.as_raw_fd()), part.as_ptr(), length)
            .offset(offset)
            .build();
        let pointed = Pointed::to([(part.as_ptr(), part.len())]);
        self.submit_pointing(pointed, Operation::Write(token, bytes), entry);
    }

    /// Writes whole blocks at a file offset and completes when they are on disk (`RWF_DSYNC`,
    /// pwritev2(2)). The kernel may write only part of them.
    pub fn write_blocks(&mut self, fd: BorrowedFd<'_>, write: BlockWrite, token: T::Write) {
        let BlockWrite { offset, blocks } = write;
        let length = u32::try_from(blocks.len()).expect("a batch is smaller than 4 GiB");
        let entry = opcode::Write::new(types::Fd(fd.as_raw_fd()), blocks.as_ptr(), length)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        let pointed = Pointed::to([(blocks.as_ptr(), blocks.len())]);
        self.submit_pointing(pointed, Operation::WriteBlocks(token, blocks), entry);
    }

    /// Makes a file's data durable with fdatasync(2).
    pub fn sync(&mut self, fd: BorrowedFd<'_>, token: T::Signal) {
        let entry = opcode::Fsync::new(types::Fd(fd.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.submit(Operation::Signal(token), entry);
    }

    /// Starts a timer, which completes after `after_us` microseconds with the error ETIME.
    pub fn timer(&mut self, after_us: u64, token: T::Signal) {
        if let Engine::Native(native) = &mut self.engine {
            return native.timer(Duration::from_micros(after_us), token);
        }
        let nanoseconds = u32::try_from(after_us % 1_000_000 * 1000).expect("below a second");
        let mut time = self.spare.times.pop().unwrap_or_default();
        *time = types::Timespec::new()
            .sec(after_us / 1_000_000)
            .nsec(nanoseconds);
        let entry = opcode::Timeout::new(&raw const *time).build();
        let pointed = Pointed::to([((&raw const *time).cast(), size_of::<types::Timespec>())]);
        self.submit_pointing(pointed, Operation::Timer(token, time), entry);
    }

    /// Waits for an eventfd(2) to be signalled, and resets it.
    pub fn wait(&mut self, event: BorrowedFd<'_>, token: T::Signal) {
        let mut count = Box::new(0_u64);
        let address = (&raw mut *count).cast();
        let entry = opcode::Read::new(types::Fd(event.as_raw_fd()), address, 8).build();
        let pointed = Pointed::to([(address.cast_const(), 8)]);
        self.submit_pointing(pointed, Operation::Wait(token, count), entry);
    }

    /// Submits an operation that points to no memory.
    fn submit(&mut self, operation: Operation<T>, entry: squeue::Entry) {
        self.submit_pointing(Pointed::to([]), operation, entry);
    }

    /// Submits an operation that points into memory that it owns.
    fn submit_pointing(&mut self, pointed: Pointed, operation: Operation<T>, entry: squeue::Entry) {
        let pending = PendingOperation {
            pointed,
            operation,
            entry,
        };
        match &mut self.engine {
            Engine::Native(native) => native.submit(pending),
            Engine::Compat(compat) => compat.submit(pending),
        }
    }
}

impl<T: Tokens> Drop for Ring<T> {
    fn drop(&mut self) {
        // The other ring ends with its runtime, before this.
        if let Engine::Native(native) = &mut self.engine
            && native.end().is_err()
        {
            native.leak();
            self.buffers.leak();
        }
    }
}

fn vectored(spans: Spans, spare: Option<Box<Vectored>>) -> Box<Vectored> {
    const NONE: libc::iovec = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut message = spare.unwrap_or_else(|| {
        Box::new(Vectored {
            // SAFETY:
            // - msghdr is a C struct of integers and pointers, for which all zeroes is a valid
            //   value
            header: unsafe { std::mem::zeroed() },
            pieces: [NONE; SEND_SPANS_MAX],
            spans: Spans::new(),
        })
    });
    for (piece, span) in message.pieces.iter_mut().zip(&spans) {
        let bytes = span.bytes();
        // sendmsg(2) takes mutable pointers but only reads.
        *piece = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
    }
    // The box never moves its contents, so the header may point to the field beside it.
    message.header.msg_iov = message.pieces.as_mut_ptr();
    message.header.msg_iovlen = spans.len();
    message.spans = spans;
    message
}

#[cfg(test)]
mod tests;
