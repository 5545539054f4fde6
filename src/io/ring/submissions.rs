//! Tracking of the submission queue from outside tokio-uring, and a guard against operations that
//! get stuck in it.
//!
//! tokio-uring submits when tokio parks, and does not report whether that worked: if the kernel
//! refuses (`io_uring_enter(2)`: EAGAIN if there is no memory for a request, EBUSY until
//! completions are drained), the operations stay in the queue while the thread sleeps. Therefore,
//! shortly after operations have been queued, the guard wakes the loop once and enters the kernel
//! itself. It almost always finds nothing left to submit. A server without operations arms no
//! guard.
//!
//! tokio-uring also submits when the queue is full, and panics if that fails. Therefore, operations
//! are handed to it only if they are certain to fit.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::limits::{LAST_SUBMIT_US, RESUBMIT_US, RING_ENTRIES};

/// A function that submits the queue and returns the number of entries that the kernel accepted.
pub(super) type Enter = Box<dyn FnMut() -> io::Result<u32>>;

/// The submission queue of a ring.
pub(super) struct Submissions {
    pub(super) enter: Enter,
    /// An upper bound on the number of operations in the queue: the number queued since it was last
    /// known to be empty.
    queued: u32,
    retries: u64,
}

impl Submissions {
    pub fn new(enter: Enter) -> Self {
        Self {
            enter,
            queued: 0,
            retries: 0,
        }
    }

    /// Returns whether one more operation is certain to fit. Submits the queue first if necessary.
    pub fn has_room(&mut self) -> bool {
        self.queued < RING_ENTRIES || self.submit_all().is_ok()
    }

    /// Records that an operation is being queued.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn push(&mut self) {
        assert!(
            self.queued < RING_ENTRIES,
            "an operation was pushed into a full queue"
        );
        self.queued += 1;
    }

    /// Returns whether nothing has been queued since the queue was last known to be empty.
    pub fn is_known_empty(&self) -> bool {
        self.queued == 0
    }

    /// Submits the operations that the last park left unsubmitted, and returns whether there were
    /// any. Must be called only between a park and the following turn.
    pub fn retry(&mut self) -> bool {
        let first = (self.enter)();
        if let Ok(0) = first {
            self.queued = 0;
            return false;
        }
        self.retries += 1;
        if first.is_ok() {
            // Submit the rest if only part was accepted. If that fails, the guard tries again.
            let _ = self.submit_all();
        }
        true
    }

    /// Returns the number of times that operations were left unsubmitted.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    fn submit_all(&mut self) -> io::Result<()> {
        while (self.enter)()? > 0 {}
        self.queued = 0;
        Ok(())
    }
}

/// A wrapper that submits everything before the runtime ends, because tokio-uring panics if it
/// cannot do so.
pub(super) struct EndingRuntime {
    /// `None` once the runtime has ended.
    runtime: Option<tokio_uring::Runtime>,
    enter: Enter,
}

impl EndingRuntime {
    pub fn new(runtime: tokio_uring::Runtime, enter: Enter) -> Self {
        Self {
            runtime: Some(runtime),
            enter,
        }
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime
            .as_ref()
            .expect("the runtime is running")
            .block_on(future)
    }
}

impl Drop for EndingRuntime {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_micros(LAST_SUBMIT_US);
        loop {
            match (self.enter)() {
                Ok(0) => break,
                Ok(_) => {}
                // tokio-uring drains the completions that block the queue.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => break,
                Err(_) if Instant::now() > until => break,
                Err(_) => thread::sleep(Duration::from_micros(RESUBMIT_US)),
            }
        }
        drop(self.runtime.take());
    }
}

/// A timerfd(2) outside the ring, so that a full queue does not delay it. It is set once for all
/// operations that are queued until it expires; limiting each sleep of the thread instead would
/// mean setting a timer on every turn.
pub(super) struct Guard {
    timer: AsyncFd<OwnedFd>,
    is_armed: bool,
}

impl Guard {
    /// Creates a guard. `watch` registers the timer with the runtime.
    pub fn new(watch: impl FnOnce(OwnedFd) -> io::Result<AsyncFd<OwnedFd>>) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            timer: watch(timer)?,
            is_armed: false,
        })
    }

    /// Wakes the loop after a short delay, unless a wakeup is already scheduled.
    pub fn arm(&mut self, context: &mut Context<'_>) {
        if std::mem::replace(&mut self.is_armed, true) {
            return;
        }
        let at = |nanoseconds| Timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds,
        };
        let once = Itimerspec {
            it_interval: at(0),
            it_value: at(RESUBMIT_US.cast_signed() * 1000),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).expect("the time is valid");
        if self.timer.poll_read_ready(context).is_ready() {
            context.waker().wake_by_ref();
        }
    }

    /// Returns whether the delay has passed; true only once for each [`Self::arm`].
    pub fn is_due(&mut self, context: &mut Context<'_>) -> bool {
        if !self.is_armed {
            return false;
        }
        // There is no need to read the timer: setting it again resets the expiration count.
        if let Poll::Ready(Ok(mut ready)) = self.timer.poll_read_ready(context) {
            ready.clear_ready();
            self.is_armed = false;
        }
        !self.is_armed
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use super::*;

    /// Returns a queue whose simulated kernel returns these values and then reports an empty queue.
    fn queue(answers: &[Result<u32, i32>]) -> (Submissions, Rc<RefCell<u32>>) {
        let mut answers = VecDeque::from(answers.to_vec());
        let calls = Rc::new(RefCell::new(0));
        let counted = Rc::clone(&calls);
        let enter = move || {
            *counted.borrow_mut() += 1;
            let answer = answers.pop_front().unwrap_or(Ok(0));
            answer.map_err(io::Error::from_raw_os_error)
        };
        (Submissions::new(Box::new(enter)), calls)
    }

    #[test]
    fn a_full_queue_has_room_once_the_kernel_has_consumed_all_entries() {
        let (mut queue, calls) = queue(&[Err(libc::EAGAIN), Ok(1000), Err(libc::EINTR), Ok(24)]);
        for _ in 0..RING_ENTRIES {
            assert!(queue.has_room());
            queue.push();
        }
        assert_eq!(
            *calls.borrow(),
            0,
            "a system call was made while there was room"
        );
        assert!(!queue.has_room(), "no entry was consumed");
        assert!(!queue.has_room(), "only some entries were consumed");
        assert!(queue.has_room());
        assert!(queue.is_known_empty());
        assert_eq!(*calls.borrow(), 5);
        assert_eq!(queue.retries(), 0, "a full queue was counted as a retry");
    }

    #[test]
    #[should_panic(expected = "an operation was pushed into a full queue")]
    fn pushing_into_a_full_queue_panics() {
        let (mut queue, _) = queue(&[]);
        for _ in 0..=RING_ENTRIES {
            queue.push();
        }
    }

    #[test]
    fn entries_left_by_a_park_are_submitted_and_counted() {
        for (answers, is_left, is_empty) in [
            (&[][..], false, true),
            (&[Ok(3)], true, true),
            (&[Ok(3), Err(libc::EAGAIN)], true, false),
            (&[Err(libc::ENOMEM)], true, false),
        ] {
            let (mut queue, _) = queue(answers);
            queue.push();
            assert_eq!(queue.retry(), is_left, "{answers:?}");
            assert_eq!(queue.is_known_empty(), is_empty, "{answers:?}");
            assert_eq!(queue.retries(), u64::from(is_left), "{answers:?}");
        }
    }
}
