//! The ring, its provided buffers, and sends.

#![allow(
    unsafe_code,
    reason = "the kernel's interface; see SAFETY at each block"
)]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::stream::PIECES_MAX;

const SUBMISSIONS: u32 = 4096;
/// Large enough for more than one completion per connection.
const COMPLETIONS: u32 = 32 * 1024;
const BUFFERS: u16 = 64;
const BUFFER_BYTES: u32 = 16 * 1024;
const BUFFER_GROUP: u16 = 0;
const PAGE_BYTES: usize = 4096;

/// The purpose of an operation.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Purpose {
    Accept,
    Receive,
    Send,
}

/// The end of an operation, or one more result of a multishot operation.
pub struct Completion {
    pub purpose: Purpose,
    pub connection: usize,
    pub result: i32,
    /// The buffer that holds the bytes.
    pub buffer: Option<u16>,
    /// More completions of the operation will follow.
    pub more: bool,
}

/// The message header and the pieces of one send; it must not move until the send has completed.
pub struct Message {
    header: libc::msghdr,
    stretches: [libc::iovec; PIECES_MAX],
}

impl Message {
    pub fn new() -> Box<Self> {
        // SAFETY: both are plain data of the C interface, for which zeros are valid.
        Box::new(unsafe { std::mem::zeroed() })
    }
}

pub struct Ring {
    ring: IoUring,
    buffers: Buffers,
}

impl Ring {
    pub fn new() -> io::Result<Self> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let buffers = Buffers::new();
        // SAFETY: the memory is never freed, and so outlives the ring.
        unsafe {
            ring.submitter().register_buf_ring(
                buffers.entries.as_ptr() as u64,
                BUFFERS,
                BUFFER_GROUP,
            )?;
        }
        Ok(Self { ring, buffers })
    }

    pub fn accept(&mut self, listener: RawFd) {
        let entry = opcode::AcceptMulti::new(Fd(listener)).build();
        // SAFETY: the operation names no memory.
        unsafe { self.push(entry, Purpose::Accept, 0) };
    }

    pub fn receive(&mut self, fd: RawFd, connection: usize) {
        let entry = opcode::RecvMulti::new(Fd(fd), BUFFER_GROUP).build();
        // SAFETY: the operation names no memory but the buffers, which live as long as the process.
        unsafe { self.push(entry, Purpose::Receive, connection) };
    }

    /// Sends all pieces, in order, in one operation.
    ///
    /// # Safety
    ///
    /// The pieces and the message must not move or be freed until the send has completed.
    pub unsafe fn send(
        &mut self,
        fd: RawFd,
        connection: usize,
        pieces: &[(*const u8, usize)],
        message: &mut Option<Box<Message>>,
    ) {
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = if let [(start, bytes)] = *pieces {
            let bytes = u32::try_from(bytes).expect("a piece is smaller than 4 GiB");
            opcode::Send::new(Fd(fd), start, bytes).flags(FLAGS).build()
        } else {
            let message = message.get_or_insert_with(Message::new);
            for (stretch, (start, bytes)) in message.stretches.iter_mut().zip(pieces) {
                stretch.iov_base = start.cast_mut().cast();
                stretch.iov_len = *bytes;
            }
            message.header.msg_iov = message.stretches.as_mut_ptr();
            message.header.msg_iovlen = pieces.len();
            opcode::SendMsg::new(Fd(fd), &raw const message.header)
                .flags(FLAGS.cast_unsigned())
                .build()
        };
        // SAFETY: the caller keeps the memory that the operation names.
        unsafe { self.push(entry, Purpose::Send, connection) };
    }

    /// # Safety
    ///
    /// The memory that the entry names must not move or be freed until the operation has completed.
    unsafe fn push(&mut self, entry: squeue::Entry, purpose: Purpose, connection: usize) {
        let entry = entry.user_data((purpose as u64) << 32 | connection as u64);
        // SAFETY: guaranteed by the caller.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit().expect("the kernel accepts submissions");
        }
    }

    /// Submits, waits for a completion, and appends all completions.
    pub fn turn(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => drop(other?),
        }
        completions.extend(self.ring.completion().map(|entry| {
            let purpose = match entry.user_data() >> 32 {
                0 => Purpose::Accept,
                1 => Purpose::Receive,
                _ => Purpose::Send,
            };
            Completion {
                purpose,
                connection: (entry.user_data() & 0xffff_ffff) as usize,
                result: entry.result(),
                buffer: cqueue::buffer_select(entry.flags()),
                more: cqueue::more(entry.flags()),
            }
        }));
        Ok(())
    }

    /// Returns the bytes that were received into a buffer.
    pub fn bytes(&self, buffer: u16, len: usize) -> &[u8] {
        assert!(buffer < BUFFERS && len <= BUFFER_BYTES as usize);
        // SAFETY: the buffer is the caller's until it gives it back, for which it needs exclusive
        // access to `self`.
        unsafe { std::slice::from_raw_parts(self.buffers.start(buffer), len) }
    }

    pub fn give_back(&mut self, buffer: u16) {
        self.buffers.give_back(buffer);
    }
}

/// The provided buffers of the receives.
struct Buffers {
    entries: NonNull<BufRingEntry>,
    bytes: NonNull<u8>,
    tail: u16,
}

impl Buffers {
    fn new() -> Self {
        let entries_bytes = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        let mut buffers = Self {
            entries: allocate(entries_bytes).cast(),
            bytes: allocate(usize::from(BUFFERS) * BUFFER_BYTES as usize),
            tail: 0,
        };
        for buffer in 0..BUFFERS {
            buffers.give_back(buffer);
        }
        buffers
    }

    fn start(&self, buffer: u16) -> *mut u8 {
        // SAFETY: all buffers lie in the one allocation; callers name only existing ones.
        unsafe {
            self.bytes
                .as_ptr()
                .add(usize::from(buffer) * BUFFER_BYTES as usize)
        }
    }

    fn give_back(&mut self, buffer: u16) {
        let start = self.start(buffer);
        let slot = usize::from(self.tail % BUFFERS);
        // SAFETY: the slot lies in the allocation, and is the kernel's only once the tail is beyond
        // it.
        let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
        entry.set_addr(start as u64);
        entry.set_len(BUFFER_BYTES);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is a field of the first entry, aligned, and read by the kernel at any
        // time.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

/// Allocates zeroed memory at the start of a page, which lives as long as the process.
fn allocate(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("the layout is valid");
    // SAFETY: callers ask for at least one byte.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}
