//! The ring of the load generator: multishot receives into provided buffers, and at most one send
//! in flight per socket. It encrypts and decrypts if a connection has TLS, and knows nothing else
//! about the bytes that it carries.

#![allow(
    unsafe_code,
    reason = "memory that the kernel reads and writes; see SAFETY at each block"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustls::ClientConnection;

use super::endpoint::Connection;

const ENTRIES: u32 = 1024;
const COMPLETIONS: u32 = 16 * 1024;
/// Few enough to stay in a cache: those that the kernel has filled are read before it fills more.
const BUFFERS: u16 = 128;
const BUFFER_BYTES: usize = 16 * 1024;
const GROUP: u16 = 0;
/// The time that operations in flight may take to end when the ring is dropped.
const PATIENCE: Duration = Duration::from_secs(5);

/// An event on a socket.
pub enum Event<'a> {
    Received(&'a [u8]),
    /// The connection has ended; `None` if the peer closed it.
    Ended(Option<io::Error>),
}

struct Socket {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// The bytes to be sent next, as they go over the wire.
    queued: Vec<u8>,
    /// The bytes that the kernel reads, neither moved nor changed until the completion.
    in_flight: Vec<u8>,
    /// The number of bytes of `in_flight` that have been sent.
    sent_bytes: usize,
    has_ended: bool,
}

/// A ring and its sockets.
pub struct Ring {
    queues: IoUring,
    buffers: Buffers,
    sockets: Vec<Socket>,
    /// Sockets with something queued and nothing in flight.
    ready: Vec<u32>,
    /// The number of operations that the kernel still has.
    operations: usize,
    completions: Vec<cqueue::Entry>,
    /// Bytes that were decrypted or are to be encrypted; empty between two calls.
    plaintext: Vec<u8>,
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
        // - the address is that of BUFFERS entries, aligned to a page; `buffers` is freed after the
        //   ring is gone and nothing is in flight (Drop for Ring)
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
            operations: 0,
            completions: Vec::with_capacity(COMPLETIONS as usize),
            plaintext: Vec::new(),
        })
    }

    /// Adds a connection; events name it by the number returned: 0, 1, 2, …
    pub fn add(&mut self, connection: Connection) -> io::Result<u32> {
        let number = u32::try_from(self.sockets.len()).expect("the socket count fits in 32 bits");
        let Connection { stream, tls } = connection;
        self.sockets.push(Socket {
            stream,
            tls,
            queued: Vec::new(),
            in_flight: Vec::new(),
            sent_bytes: 0,
            has_ended: false,
        });
        self.receive(number)?;
        Ok(number)
    }

    /// Appends what `put` writes to the bytes to be sent. They go out in the next turn, or after
    /// the send in flight.
    pub fn send(&mut self, number: u32, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let socket = &mut self.sockets[number as usize];
        let was_idle = socket.is_idle();
        if let Some(tls) = &mut socket.tls {
            put(&mut self.plaintext);
            tls.writer().write_all(&self.plaintext)?;
            self.plaintext.clear();
            put_records(tls, &mut socket.queued)?;
        } else {
            put(&mut socket.queued);
        }
        if was_idle && !socket.queued.is_empty() {
            self.ready.push(number);
        }
        Ok(())
    }

    /// Starts the queued sends, waits for completions for at most `wait`, and reports all events.
    pub fn turn(
        &mut self,
        wait: Duration,
        handle: &mut dyn FnMut(u32, Event<'_>),
    ) -> io::Result<()> {
        for number in std::mem::take(&mut self.ready) {
            let socket = &mut self.sockets[number as usize];
            std::mem::swap(&mut socket.queued, &mut socket.in_flight);
            self.send_in_flight(number)?;
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
        // Even if there is no time to wait, the call lets the kernel do its part of the work.
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
            self.operations -= 1;
        }
        let (number, is_send) = parts(completion.user_data());
        if is_send {
            return self.complete_send(number, result, handle);
        }
        if let Some(buffer) = cqueue::buffer_select(flags) {
            let bytes = usize::try_from(result).unwrap_or(0);
            if bytes > 0 {
                self.received(number, buffer, bytes, handle);
            }
            self.buffers.give_back(buffer);
        }
        let socket = &mut self.sockets[number as usize];
        match result {
            // A receive also ends when the buffers or the queue run out: the next one continues.
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

    /// Reports the bytes that have arrived in a buffer, decrypted if the socket has TLS.
    fn received(
        &mut self,
        number: u32,
        buffer: u16,
        bytes: usize,
        handle: &mut dyn FnMut(u32, Event<'_>),
    ) {
        let bytes = self.buffers.filled(buffer, bytes);
        let socket = &mut self.sockets[number as usize];
        let was_idle = socket.is_idle();
        let Some(tls) = &mut socket.tls else {
            handle(number, Event::Received(bytes));
            return;
        };
        let outcome = decrypt(tls, bytes, &mut self.plaintext);
        if !self.plaintext.is_empty() {
            handle(number, Event::Received(&self.plaintext));
            self.plaintext.clear();
        }
        // A handshake or a key update may have to be answered.
        let outcome = outcome.and_then(|is_closed| {
            put_records(tls, &mut socket.queued)?;
            Ok(is_closed)
        });
        if was_idle && !socket.queued.is_empty() {
            self.ready.push(number);
        }
        let error = match outcome {
            Ok(false) => return,
            Ok(true) => None,
            Err(error) => Some(error),
        };
        if !std::mem::replace(&mut socket.has_ended, true) {
            handle(number, Event::Ended(error));
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
            socket.in_flight.clear();
            if !std::mem::replace(&mut socket.has_ended, true) {
                handle(number, Event::Ended(error_of(result)));
            }
            return Ok(());
        };
        socket.sent_bytes += bytes;
        if socket.sent_bytes < socket.in_flight.len() {
            return self.send_in_flight(number);
        }
        socket.in_flight.clear();
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

    fn send_in_flight(&mut self, number: u32) -> io::Result<()> {
        let fd = self.fd(number);
        let socket = &self.sockets[number as usize];
        let bytes = &socket.in_flight[socket.sent_bytes..];
        let length = u32::try_from(bytes.len()).expect("less than 4 GiB are queued");
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
        // - the descriptor is that of a socket that lives as long as `self`; the memory of a send
        //   is `in_flight`, which is neither moved nor changed until its completion; both outlive
        //   what is in flight (Drop for Ring)
        unsafe {
            self.queues
                .submission()
                .push(entry)
                .expect("a queue has room after it is submitted");
        }
        self.operations += 1;
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // This fails if the peer has already closed the connection.
            let _ = socket.stream.shutdown(Shutdown::Both);
        }
        // A kernel may end no more than twenty operations at a time (IO_LOCAL_TW_DEFAULT_MAX).
        let until = Instant::now() + PATIENCE;
        while self.operations > 0 && Instant::now() < until {
            let turned = self.turn(Duration::from_millis(50), &mut |_, _| {});
            if turned.is_err() {
                break;
            }
        }
        if self.operations > 0 {
            // The kernel may still write to or read from this memory: it is never freed.
            self.buffers.is_leaked = true;
            std::mem::forget(std::mem::take(&mut self.sockets));
        }
    }
}

impl Socket {
    /// Returns whether queuing a byte would make it ready to send.
    fn is_idle(&self) -> bool {
        self.queued.is_empty() && self.in_flight.is_empty() && !self.has_ended
    }
}

/// Decrypts the bytes from a peer and appends them to `plaintext`. Returns whether the peer has
/// closed.
fn decrypt(
    tls: &mut ClientConnection,
    mut bytes: &[u8],
    plaintext: &mut Vec<u8>,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let start = plaintext.len();
        plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
        tls.reader().read_exact(&mut plaintext[start..])?;
        if state.peer_has_closed() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Appends the records that the session wants to send.
fn put_records(tls: &mut ClientConnection, out: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(out)?;
    }
    Ok(())
}

fn data(number: u32, is_send: bool) -> u64 {
    u64::from(number) << 1 | u64::from(is_send)
}

fn parts(data: u64) -> (u32, bool) {
    let number = u32::try_from(data >> 1).expect("the value came from a u32");
    (number, data & 1 == 1)
}

fn error_of(result: i32) -> Option<io::Error> {
    (result < 0).then(|| io::Error::from_raw_os_error(-result))
}

/// Lets an op go out when it is due, rather than up to 50 µs later.
fn set_timer_slack() {
    // SAFETY:
    // - PR_SET_TIMERSLACK takes a number and touches no memory
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0_u64, 0_u64, 0_u64) };
    assert_eq!(result, 0, "a thread can always set its timer slack");
}

/// The provided buffers: the entries by which the kernel finds them, and their memory.
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
        assert!(buffer < BUFFERS, "the kernel named an unknown buffer");
        // SAFETY:
        // - the allocation is BUFFERS times BUFFER_BYTES long
        unsafe { self.memory.as_ptr().add(usize::from(buffer) * BUFFER_BYTES) }
    }

    /// Returns the bytes that the kernel has put into a buffer.
    fn filled(&self, buffer: u16, bytes: usize) -> &[u8] {
        assert!(bytes <= BUFFER_BYTES, "a completion fits in its buffer");
        // SAFETY:
        // - the memory was zeroed when it was allocated and belongs to this buffer; the kernel gave
        //   it up with the completion, and gets it back by `give_back`, which borrows `self`
        //   mutably
        unsafe { std::slice::from_raw_parts(self.address(buffer), bytes) }
    }

    /// Returns a buffer to the kernel, which sees it once that is published.
    fn give_back(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let slot = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY:
        // - the slot is one of BUFFERS entries; the kernel reads it only after the tail was moved
        //   past it
        let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
        entry.set_addr(address);
        entry.set_len(u32::try_from(BUFFER_BYTES).expect("the constant fits"));
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY:
        // - the tail lies within the first entry (io_uring_register_buf_ring(3)), is aligned for a
        //   u16, and is written by this thread alone
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
        .expect("the constant fits")
}

fn memory_layout() -> Layout {
    Layout::from_size_align(usize::from(BUFFERS) * BUFFER_BYTES, 4096).expect("the constant fits")
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY:
    // - the layout has a size above zero
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
