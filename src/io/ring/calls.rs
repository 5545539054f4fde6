//! The system calls and the other unsafe parts of both rings.

#![allow(
    unsafe_code,
    reason = "the kernel's interface; see SAFETY at each block"
)]

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::task::{RawWaker, RawWakerVTable, Waker};
use std::time::Duration;

use io_uring::{IoUring, squeue, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ready::Ready;
use super::submissions::Enter;
use crate::io::buffers::ReceiveBuffers;
use crate::limits::{RECEIVE_BUFFERS, RING_ENTRIES};

/// The buffer group of the provided buffers; a ring has one.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Enables a ring that was set up disabled. Returns false for any other ring or file.
pub(super) fn enable(descriptor: RawFd) -> bool {
    /// `io_uring_register(2)`.
    const IORING_REGISTER_ENABLE_RINGS: libc::c_uint = 12;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY:
    // - no argument of the call is a pointer to memory
    // - it has no effect on a descriptor that is not a disabled ring, and only `setup::runtime`
    //   sets up such a ring, one at a time
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            descriptor,
            IORING_REGISTER_ENABLE_RINGS,
            none,
            0,
        )
    };
    result == 0
}

/// Registers a timer with this thread's runtime.
pub(super) fn watch(timer: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY:
    // - an OwnedFd owns one descriptor, which stays open for as long as the OwnedFd lives
    let watched = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
    Ok(watched?)
}

/// Returns a function that submits everything in the submission queue of a ring on this thread and
/// returns the number of entries that the kernel accepted.
pub(super) fn enter_of(descriptor: RawFd) -> Enter {
    let none = std::ptr::null::<libc::c_void>();
    Box::new(move || {
        // SAFETY:
        // - no argument points anywhere: the call does not wait, so it has no signal mask
        // - tokio-uring has written all entries up to the queue's tail, as for its own calls, and
        //   reads the head that the kernel moves before it writes the next entry
        // - the memory that the entries point to is owned by their flights, as for its own calls
        // - the closure is dropped before the runtime that holds the descriptor, or with its ring,
        //   which no longer enters the kernel by then
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                descriptor,
                RING_ENTRIES,
                0,
                0,
                none,
                0,
            )
        };
        u32::try_from(taken).map_err(|_| io::Error::last_os_error())
    })
}

/// Sets `IORING_RECVSEND_POLL_FIRST` on a receive: it is not tried before the socket is readable.
pub(super) fn poll_first(receive: &mut squeue::Entry) {
    /// `io_uring_enter(2)`, in the field `ioprio`.
    const IORING_RECVSEND_POLL_FIRST: u16 = 1;
    /// The place of `ioprio` in an entry, in units of two bytes.
    const IOPRIO_AT: usize = 1;
    let fields = std::ptr::from_mut(receive).cast::<u16>();
    // SAFETY:
    // - an entry is the kernel's `struct io_uring_sqe` (repr(C), 64 bytes aligned to 8), in which
    //   the field is an integer of two bytes at this offset; any value is valid
    // - the pointer comes from an exclusive reference
    unsafe { fields.add(IOPRIO_AT).write(IORING_RECVSEND_POLL_FIRST) };
}

/// Registers the ring through which buffers are lent to the kernel.
pub(super) fn register_buffers(ring: &IoUring, buffers: &ReceiveBuffers) -> io::Result<()> {
    let address = buffers.lending_address();
    // SAFETY:
    // - the memory has room for this many entries and starts at a page
    // - the kernel pins its pages until the ring has ended, and the owner of the ring keeps it for
    //   longer (the order of the fields of `Ring`)
    unsafe {
        ring.submitter()
            .register_buf_ring(address, RECEIVE_BUFFERS, BUFFER_GROUP)
    }
}

/// Puts an entry into the submission queue. Returns false if the queue is full.
pub(super) fn push(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY:
    // - the memory that the entry points to is owned by its flight, which lives until the
    //   operation has completed; see the documentation of `super`
    unsafe { ring.submission().push(entry) }.is_ok()
}

/// How long a system call waits for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Not at all; completions are not even looked for.
    Submit,
    /// Not at all.
    Poll,
    /// Until there is one, or until the time is over.
    For(Option<Duration>),
}

/// Submits `count` entries of the queue, and then waits. Returns the number of entries that the
/// kernel has accepted.
pub(super) fn enter(ring: &IoUring, count: u32, wait: Wait) -> io::Result<u32> {
    /// `struct io_uring_getevents_arg`, `io_uring_enter(2)`.
    #[repr(C)]
    struct Argument {
        signal_mask: u64,
        signal_mask_bytes: u32,
        min_wait_us: u32,
        time: u64,
    }
    const IORING_ENTER_GETEVENTS: u32 = 1;
    const IORING_ENTER_EXT_ARG: u32 = 1 << 3;
    let time = match wait {
        Wait::For(time) => time.map(types::Timespec::from),
        Wait::Submit | Wait::Poll => None,
    };
    let argument = Argument {
        signal_mask: 0,
        signal_mask_bytes: 0,
        min_wait_us: 0,
        time: time.as_ref().map_or(0, |time| {
            std::ptr::from_ref(time).expose_provenance() as u64
        }),
    };
    let (least, flags) = match wait {
        Wait::Submit => (0, 0),
        Wait::Poll => (0, IORING_ENTER_GETEVENTS),
        Wait::For(_) => (1, IORING_ENTER_GETEVENTS),
    };
    let flags = flags | IORING_ENTER_EXT_ARG;
    // SAFETY:
    // - the argument and the time that it points to live until the call returns
    // - the memory that the entries point to is owned by their flights; see the
    //   documentation of `super`
    let taken = unsafe { ring.submitter().enter(count, least, flags, Some(&argument)) }?;
    Ok(u32::try_from(taken).expect("no more entries are taken than there are"))
}

/// Returns a waker whose data is a slab index, never a pointer.
pub(super) fn waker(index: usize) -> Waker {
    const TABLE: RawWakerVTable = RawWakerVTable::new(
        |data| RawWaker::new(data, &TABLE),
        |data| Ready::push(data.addr()),
        |data| Ready::push(data.addr()),
        |_| (),
    );
    // SAFETY:
    // - the data is a number that is never dereferenced, so clone and drop have nothing to do
    // - all four functions may be called on any thread: on another thread, waking only puts a
    //   number on that thread's list (tokio-uring wakes on the thread of its ring)
    unsafe { Waker::from_raw(RawWaker::new(std::ptr::without_provenance(index), &TABLE)) }
}
