//! The ring of the load generator: receives that go on by themselves into provided buffers, and one send at a time for each
//! socket. It knows nothing of what goes over the sockets.

#![allow(
    unsafe_code,
    reason = "memory that the kernel reads and writes; see SAFETY at each block"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

const ENTRIES: u32 = 1024;
const COMPLETIONS: u32 = 16 * 1024;
/// Few enough to stay in a cache: the kernel fills some and they are read before it goes on.
const BUFFERS: u16 = 128;
const BUFFER_BYTES: usize = 16 * 1024;
const GROUP: u16 = 0;
/// So long all operations may take to end when the ring does.
const PATIENCE: Duration = Duration::from_secs(5);

/// What happened at a socket.
pub enum Event<'a> {
    Received(&'a [u8]),
    /// It is over: the peer has closed it, or an error.
    Ended(Option<io::Error>),
}

struct Socket {
    stream: TcpStream,
    /// To be sent next.
    queued: Vec<u8>,
    /// The kernel reads it: neither moved nor changed until the completion.
    flying: Vec<u8>,
    /// How much of `flying` has been sent.
    sent_bytes: usize,
    has_ended: bool,
}

/// The ring, with the sockets that it serves.
pub struct Ring {
    queues: IoUring,
    buffers: Buffers,
    sockets: Vec<Socket>,
    /// Sockets with something queued and nothing in flight.
    ready: Vec<u32>,
    /// Operations that the kernel still has.
    in_flight: usize,
    completions: Vec<cqueue::Entry>,
}

impl Ring {
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        let buffers = Buffers::new();
        // SAFETY:
        // - the address is that of BUFFERS entries, aligned to a page; `buffers` is freed after the ring is
        //   gone and nothing is in flight (Drop for Ring)
        unsafe {
            ring.submitter()
                .register_buf_ring(buffers.entries.as_ptr() as u64, BUFFERS, GROUP)?;
        }
        set_timer_slack();
        Ok(Self {
            queues: ring,
            buffers,
            sockets: Vec::new(),
            ready: Vec::new(),
            in_flight: 0,
            completions: Vec::with_capacity(COMPLETIONS as usize),
        })
    }

    /// Takes a socket over; events name it by this number: 0, 1, 2, …
    pub fn add(&mut self, stream: TcpStream) -> io::Result<u32> {
        let number = u32::try_from(self.sockets.len()).expect("a process has fewer sockets");
        self.sockets.push(Socket {
            stream,
            queued: Vec::new(),
            flying: Vec::new(),
            sent_bytes: 0,
            has_ended: false,
        });
        self.receive(number)?;
        Ok(number)
    }

    /// Appends to what is to be sent; it goes out with the next turn, or when what goes out now is gone.
    pub fn send(&mut self, socket: u32, put: impl FnOnce(&mut Vec<u8>)) {
        let Socket {
            queued,
            flying,
            has_ended,
            ..
        } = &mut self.sockets[socket as usize];
        let is_ready = queued.is_empty() && flying.is_empty() && !*has_ended;
        put(queued);
        if is_ready {
            self.ready.push(socket);
        }
    }

    /// Starts what is to be started, waits at most so long for something to happen, and tells all that did.
    pub fn turn(
        &mut self,
        wait: Duration,
        handle: &mut dyn FnMut(u32, Event<'_>),
    ) -> io::Result<()> {
        for socket in std::mem::take(&mut self.ready) {
            let socket_ref = &mut self.sockets[socket as usize];
            std::mem::swap(&mut socket_ref.queued, &mut socket_ref.flying);
            self.send_flying(socket)?;
        }
        self.enter(wait)?;
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.queues.completion());
        for completion in completions.drain(..) {
            self.complete(&completion, handle)?;
        }
        self.completions = completions;
        self.buffers.publish();
        Ok(())
    }

    fn enter(&mut self, wait: Duration) -> io::Result<()> {
        // A wait of no time still lets the kernel do its part of the work.
        let time = Timespec::new()
            .sec(wait.as_secs())
            .nsec(wait.subsec_nanos());
        let arguments = SubmitArgs::new().timespec(&time);
        match self.queues.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn complete(
        &mut self,
        completion: &cqueue::Entry,
        handle: &mut dyn FnMut(u32, Event<'_>),
    ) -> io::Result<()> {
        let (flags, result) = (completion.flags(), completion.result());
        let has_more = cqueue::more(flags);
        if !has_more {
            self.in_flight -= 1;
        }
        let (number, is_send) = parts(completion.user_data());
        if is_send {
            return self.complete_send(number, result, handle);
        }
        if let Some(buffer) = cqueue::buffer_select(flags) {
            let bytes = usize::try_from(result).unwrap_or(0);
            if bytes > 0 {
                handle(number, Event::Received(self.buffers.filled(buffer, bytes)));
            }
            self.buffers.give_back(buffer);
        }
        let socket = &mut self.sockets[number as usize];
        match result {
            // A receive also ends where the buffers or the queue had no room: it goes on with the next.
            1.. if !has_more => self.receive(number),
            _ if result == -libc::ENOBUFS => self.receive(number),
            ..=0 if !socket.has_ended => {
                socket.has_ended = true;
                handle(number, Event::Ended(error_of(result)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn complete_send(
        &mut self,
        number: u32,
        result: i32,
        handle: &mut dyn FnMut(u32, Event<'_>),
    ) -> io::Result<()> {
        let socket = &mut self.sockets[number as usize];
        let Ok(bytes) = usize::try_from(result) else {
            socket.flying.clear();
            if !std::mem::replace(&mut socket.has_ended, true) {
                handle(number, Event::Ended(error_of(result)));
            }
            return Ok(());
        };
        socket.sent_bytes += bytes;
        if socket.sent_bytes < socket.flying.len() {
            return self.send_flying(number);
        }
        socket.flying.clear();
        socket.sent_bytes = 0;
        if !socket.queued.is_empty() && !socket.has_ended {
            self.ready.push(number);
        }
        Ok(())
    }

    fn receive(&mut self, number: u32) -> io::Result<()> {
        let fd = self.fd(number);
        let entry = opcode::RecvMulti::new(Fd(fd), GROUP).build();
        self.push(&entry.user_data(data(number, false)))
    }

    fn send_flying(&mut self, number: u32) -> io::Result<()> {
        let fd = self.fd(number);
        let socket = &self.sockets[number as usize];
        let bytes = &socket.flying[socket.sent_bytes..];
        let length = u32::try_from(bytes.len()).expect("a load queues less than 4 GiB");
        let entry = opcode::Send::new(Fd(fd), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(&entry.user_data(data(number, true)))
    }

    fn fd(&self, number: u32) -> RawFd {
        self.sockets[number as usize].stream.as_raw_fd()
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.queues.submission().is_full() {
            self.queues.submit()?;
        }
        // SAFETY:
        // - the descriptor is that of a socket that lives as long as `self`, and the memory that a send names is
        //   `flying`, which is neither moved nor changed until its completion; both outlive what is in flight
        //   (Drop for Ring)
        unsafe {
            self.queues
                .submission()
                .push(entry)
                .expect("there is room in a queue that was just submitted");
        }
        self.in_flight += 1;
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // It fails where the peer was first.
            let _ = socket.stream.shutdown(Shutdown::Both);
        }
        // A kernel may end no more than twenty operations at a time (IO_LOCAL_TW_DEFAULT_MAX).
        let until = Instant::now() + PATIENCE;
        while self.in_flight > 0 && Instant::now() < until {
            let turned = self.turn(Duration::from_millis(50), &mut |_, _| {});
            if turned.is_err() {
                break;
            }
        }
        if self.in_flight > 0 {
            // What the kernel may still write to or read from is not given back to the allocator.
            self.buffers.is_leaked = true;
            std::mem::forget(std::mem::take(&mut self.sockets));
        }
    }
}

fn data(number: u32, is_send: bool) -> u64 {
    u64::from(number) << 1 | u64::from(is_send)
}

fn parts(data: u64) -> (u32, bool) {
    let number = u32::try_from(data >> 1).expect("it was made of one");
    (number, data & 1 == 1)
}

fn error_of(result: i32) -> Option<io::Error> {
    (result < 0).then(|| io::Error::from_raw_os_error(-result))
}

/// So that an op goes out when it is due, and not up to 50 µs later.
fn set_timer_slack() {
    // SAFETY:
    // - PR_SET_TIMERSLACK takes a number and touches no memory
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0_u64, 0_u64, 0_u64) };
    assert_eq!(result, 0, "a thread may always set its timer slack");
}

/// The provided buffers: entries that tell the kernel of them, and their memory.
struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
    is_leaked: bool,
}

impl Buffers {
    fn new() -> Self {
        let mut buffers = Self {
            entries: allocate(entries_layout()).cast(),
            memory: allocate(memory_layout()),
            tail: 0,
            is_leaked: false,
        };
        for buffer in 0..BUFFERS {
            buffers.give_back(buffer);
        }
        buffers.publish();
        buffers
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        assert!(buffer < BUFFERS, "the kernel names a buffer that it has");
        // SAFETY:
        // - the allocation is BUFFERS times BUFFER_BYTES long
        unsafe { self.memory.as_ptr().add(usize::from(buffer) * BUFFER_BYTES) }
    }

    /// What the kernel has put into a buffer.
    fn filled(&self, buffer: u16, bytes: usize) -> &[u8] {
        assert!(bytes <= BUFFER_BYTES, "a completion fits its buffer");
        // SAFETY:
        // - the memory was zeroed at first and belongs to this buffer; the kernel gave it up with the completion,
        //   and gets it back by `give_back`, which takes `self` mutably
        unsafe { std::slice::from_raw_parts(self.address(buffer), bytes) }
    }

    /// The kernel may have it again, once that is published.
    fn give_back(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let slot = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY:
        // - the slot is one of BUFFERS entries; the kernel reads it only after the tail was moved past it
        let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
        entry.set_addr(address);
        entry.set_len(u32::try_from(BUFFER_BYTES).expect("a constant that fits"));
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY:
        // - the tail lies within the first entry (io_uring_register_buf_ring(3)), is aligned for a u16, and is
        //   written by this thread alone
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.is_leaked {
            return;
        }
        // SAFETY:
        // - both were allocated with these layouts; the ring has nothing in flight that names them
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout());
            dealloc(self.memory.as_ptr(), memory_layout());
        }
    }
}

fn entries_layout() -> Layout {
    Layout::from_size_align(usize::from(BUFFERS) * size_of::<BufRingEntry>(), 4096)
        .expect("a constant that fits")
}

fn memory_layout() -> Layout {
    Layout::from_size_align(usize::from(BUFFERS) * BUFFER_BYTES, 4096)
        .expect("a constant that fits")
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY:
    // - the layout has a size above zero
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
