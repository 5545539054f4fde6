//! This crate's own ring, for Linux 6.1 and later.
//!
//! A turn is one system call: it submits what the previous turn has queued, waits until something
//! has completed or a timer has expired, and runs the completions of this thread
//! (`IORING_SETUP_DEFER_TASKRUN`). There is no epoll, no waker and no task: at a light load, they
//! cost more than the work of the shard (benches/README.md).
//!
//! - Timers are the wait's timeout (`IORING_ENTER_EXT_ARG`), and another turn right away is a wait
//!   that does not wait. Neither is an operation.
//! - Buffers are provided through shared memory (`IORING_REGISTER_PBUF_RING`).
//! - A receive is tried first, and waits for the socket if there is nothing to read. If the last
//!   receive had to wait, the next one is not tried first (`IORING_RECVSEND_POLL_FIRST`).
//! - Receives are not multishot: a multishot receive continues while the shard does not want to
//!   read from the client, and can fill all buffers with the bytes of a single one.
//!
//! # How memory is kept alive while the kernel uses it
//!
//! Dropping the ring cancels everything that is in flight and waits for it. If the kernel refuses
//! even that, the memory is leaked, and so are the receive buffers.
//!
//! # Why no completion is lost
//!
//! More operations may be in flight than the completion queue has entries. If the queue is full,
//! the kernel keeps the completion in its own memory (`IORING_FEAT_NODROP`), and each wait begins
//! with moving what it has kept into the queue. If it has no memory left for that, it drops the
//! completion and reports EBADR from then on, which ends the ring with an error.
//!
//! If the kernel accepts only some of the operations, or none (`io_uring_enter(2)`: EAGAIN, EBUSY),
//! the others stay in the queue. They are submitted again after the next completion, or after a
//! short time.

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, types};
use slab::Slab;

use super::calls::{Wait, enter, push};
use super::flight::{Operation, Outcome, PendingOperation, Tokens};
use crate::io::buffers::sanitizer::Pointed;
use crate::limits::{LAST_SUBMIT_US, RESUBMIT_US};

/// A ring without a runtime.
pub(super) struct Native<T: Tokens> {
    ring: IoUring,
    pub flights: Slab<NativeFlight<T>>,
    /// Operations that did not fit into the submission queue. Oldest first.
    pub pending: VecDeque<PendingOperation<T>>,
    timers: Vec<(Instant, T::Signal)>,
    /// The requests for another turn.
    again: VecDeque<T::Signal>,
    /// Whether the next turn follows right away.
    is_turn_due: bool,
    /// The number of entries in the submission queue.
    queued: u32,
    retries: u64,
    /// The number of waits so far.
    waits: u32,
    /// For each descriptor, whether its last receive had to wait for the socket.
    had_to_wait: Vec<bool>,
    /// The time of the drain in progress, if there are timers.
    drained_at: Option<Instant>,
    /// The number of submissions that are yet to be refused.
    #[cfg(test)]
    pub refusals: u32,
}

/// An operation that the kernel has accepted, or will be given with the next submission.
pub(super) struct NativeFlight<T: Tokens> {
    /// Declared before the operation, since fields are dropped in declaration order.
    _pointed: Pointed,
    operation: Operation<T>,
    /// The value of [`Native::waits`] when the operation was queued.
    queued_at: u32,
}

/// The user data of the operation that cancels all others.
const CANCEL: u64 = u64::MAX;

impl<T: Tokens> Native<T> {
    pub fn new(ring: IoUring) -> Self {
        Self {
            ring,
            flights: Slab::new(),
            pending: VecDeque::new(),
            timers: Vec::new(),
            again: VecDeque::new(),
            is_turn_due: false,
            queued: 0,
            retries: 0,
            waits: 0,
            had_to_wait: Vec::new(),
            drained_at: None,
            #[cfg(test)]
            refusals: 0,
        }
    }

    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Requests another turn right away, without a completion.
    pub fn turn_again(&mut self) {
        self.is_turn_due = true;
    }

    pub fn again(&mut self, token: T::Signal) {
        self.again.push_back(token);
    }

    pub fn timer(&mut self, after: Duration, token: T::Signal) {
        self.timers.push((Instant::now() + after, token));
    }

    /// Returns whether a receive on this descriptor is expected to find nothing at first.
    pub fn polls_first(&self, fd: i32) -> bool {
        let index = usize::try_from(fd).expect("a descriptor is not negative");
        self.had_to_wait.get(index).copied().unwrap_or(false)
    }

    pub fn submit(&mut self, pending: PendingOperation<T>) {
        if self.pending.is_empty() && self.has_room() {
            self.launch(pending);
        } else {
            self.pending.push_back(pending);
        }
    }

    fn launch(&mut self, pending: PendingOperation<T>) {
        let PendingOperation {
            pointed,
            operation,
            entry,
        } = pending;
        let index = self.flights.insert(NativeFlight {
            _pointed: pointed,
            operation,
            queued_at: self.waits,
        });
        let is_queued = push(&mut self.ring, &entry.user_data(index as u64));
        assert!(is_queued, "an operation was pushed into a full queue");
        self.queued += 1;
    }

    /// Returns whether one more operation fits. Submits the queue first if necessary.
    fn has_room(&mut self) -> bool {
        if self.queued < self.ring.params().sq_entries() {
            return true;
        }
        // If this fails, the next wait tries again and counts it.
        let _ = self.enter(Wait::Submit);
        self.queued < self.ring.params().sq_entries()
    }

    /// Submits the queue, and waits until there is a reason for a turn.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            while !self.pending.is_empty() && self.has_room() {
                let pending = self.pending.pop_front().expect("an operation is pending");
                self.launch(pending);
            }
            self.waits = self.waits.wrapping_add(1);
            let is_left = self.submit_and_wait()?;
            let is_due = std::mem::take(&mut self.is_turn_due) || !self.again.is_empty();
            if is_left || is_due || self.has_completions() || self.is_timer_due() {
                return Ok(());
            }
        }
    }

    fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    fn is_timer_due(&self) -> bool {
        let first = self.timers.iter().map(|(at, _)| *at).min();
        first.is_some_and(|first| first <= Instant::now())
    }

    /// Returns whether the kernel has left operations in the queue.
    fn submit_and_wait(&mut self) -> io::Result<bool> {
        let wait = self.longest_wait();
        match self.enter(wait) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) if self.queued == 0 => return Ok(false),
                // The kernel reports the end of a wait only if it has accepted nothing.
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {}
                _ => return Err(error),
            },
        }
        if self.queued == 0 {
            return Ok(false);
        }
        self.retries += 1;
        // Wait for a completion, which may free what was missing, but not for long.
        if !self.has_completions() {
            let after = Duration::from_micros(RESUBMIT_US);
            let _ = enter(&self.ring, 0, Wait::For(Some(after)));
        }
        Ok(true)
    }

    /// Submits as much of the queue as the kernel accepts, and waits if it has accepted all.
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        #[cfg(test)]
        if self.refusals > 0 && self.queued > 0 {
            self.refusals -= 1;
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        self.queued -= enter(&self.ring, self.queued, wait)?;
        Ok(())
    }

    fn longest_wait(&mut self) -> Wait {
        let is_due = self.is_turn_due || !self.again.is_empty() || !self.pending.is_empty();
        if is_due || self.has_completions() {
            return Wait::Poll;
        }
        let Some(first) = self.timers.iter().map(|(at, _)| *at).min() else {
            return Wait::For(None);
        };
        let time = first.saturating_duration_since(Instant::now());
        if time.is_zero() {
            Wait::Poll
        } else {
            Wait::For(Some(time))
        }
    }

    /// Begins to drain the completions that have arrived.
    pub fn begin_drain(&mut self) {
        self.drained_at = (!self.timers.is_empty()).then(Instant::now);
    }

    /// Returns the next of the completions that are being drained.
    pub fn next_outcome(&mut self) -> Option<Outcome<T>> {
        let entry = self.ring.completion().next();
        if let Some(entry) = entry {
            let index = usize::try_from(entry.user_data()).expect("the data is a slab index");
            let flight = self.flights.remove(index);
            if let Operation::Receive { fd, .. } = &flight.operation {
                // Its entry was submitted with the last wait, and has completed at once.
                let has_waited = flight.queued_at.wrapping_add(1) != self.waits;
                let is_readable = cqueue::sock_nonempty(entry.flags());
                self.note_wait(*fd, has_waited && !is_readable && entry.result() > 0);
            }
            return Some((flight.operation, entry.result(), entry.flags()));
        }
        if let Some(token) = self.again.pop_front() {
            return Some((Operation::Signal(token), 0, 0));
        }
        let now = self.drained_at?;
        let due = self.timers.iter().position(|(at, _)| *at <= now)?;
        let (_, token) = self.timers.swap_remove(due);
        Some((Operation::Signal(token), -libc::ETIME, 0))
    }

    fn note_wait(&mut self, fd: i32, had_to_wait: bool) {
        let index = usize::try_from(fd).expect("a descriptor is not negative");
        if index >= self.had_to_wait.len() {
            if !had_to_wait {
                return;
            }
            self.had_to_wait.resize(index + 1, false);
        }
        self.had_to_wait[index] = had_to_wait;
    }

    /// Leaks the memory of the operations that are still in flight.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.flights));
    }

    /// Cancels all operations and waits for them.
    pub fn end(&mut self) -> io::Result<()> {
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        let cancel = cancel.user_data(CANCEL);
        let until = Instant::now() + Duration::from_micros(LAST_SUBMIT_US);
        let mut is_cancelled = false;
        while !self.flights.is_empty() {
            if !is_cancelled && push(&mut self.ring, &cancel) {
                is_cancelled = true;
                self.queued += 1;
            }
            let wait = Duration::from_micros(RESUBMIT_US);
            match self.enter(Wait::For(Some(wait))) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // An operation that was between two states may have been missed.
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => is_cancelled = false,
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => thread::sleep(Duration::from_micros(RESUBMIT_US)),
            }
            for entry in self.ring.completion() {
                if entry.user_data() != CANCEL {
                    let index = usize::try_from(entry.user_data()).expect("a slab index");
                    self.flights.remove(index);
                }
            }
        }
        Ok(())
    }
}
