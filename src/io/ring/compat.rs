//! The ring on top of tokio-uring, for the kernels that the native ring does not support.
//!
//! Every operation is a [`tokio_uring::UnsubmittedOneshot`]. Its in-flight future is kept in a slab
//! and polled once, with a waker that holds nothing but the slab index. Waking it puts the index on
//! this thread's list and wakes the thread's only future. That future, created by
//! [`run`](super::run), lets the owner drain the completions, run its turn and queue new
//! operations. It then returns to tokio, which parks, and parking is what makes tokio-uring submit.
//! A future that woke itself would never park, and nothing would be submitted; to get another turn
//! right away, the owner submits a no-op.
//!
//! tokio polls the future once more before it takes the completions. That poll runs no turn,
//! because it would have nothing to do.
//!
//! # How memory is kept alive while the kernel uses it
//!
//! [`run`](super::run) drops the ring after the runtime, even on a panic, and the end of the
//! runtime cancels all operations and waits for them. That order is necessary. An in-flight future
//! that is dropped earlier hands its memory to tokio-uring, which keeps it until the completion
//! while the runtime lives, but frees it *before* it cancels the operation when the runtime ends.
//!
//! tokio-uring identifies an operation by a slot that it frees with the completion, and the slab
//! here does the same.
//!
//! # Why no completion is lost
//!
//! Since every idle client has a pending receive, more operations may be in flight than the
//! completion queue has entries, and the queue may be full when an operation completes. The kernel
//! then keeps the completion in its own memory (`IORING_FEAT_NODROP` in `io_uring_setup(2)`, since
//! Linux 5.5; [`probe`](super::probe) fails without it) and sets `IORING_SQ_CQ_OVERFLOW`.
//! tokio-uring submits whenever tokio parks, and if that flag is set it also asks for events
//! (`IORING_ENTER_GETEVENTS`): the kernel moves the completions it has kept into the queue, as far
//! as they fit, and wakes the thread. Older kernels, including 5.10, refuse new operations with
//! EBUSY in the meantime, and these stay in the submission queue (see `submissions`). One case
//! cannot be ruled out here: if the kernel has no memory left to keep a completion, it drops it. A
//! test overflows the queue and counts the completions.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use io_uring::cqueue;
use slab::Slab;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::calls::waker;
use super::flight::{Operation, Outcome, PendingOperation, Tokens};
use super::ready::READY;
use super::submissions::{Enter, Submissions};
use crate::io::buffers::sanitizer::Pointed;

/// A ring on top of tokio-uring.
pub(super) struct Compat<T: Tokens> {
    pub flights: Slab<CompatFlight<T>>,
    pub submissions: Submissions,
    /// Operations that did not fit into the submission queue. Oldest first.
    pub pending: VecDeque<PendingOperation<T>>,
    /// The operations that are being drained, and the number of those that have been.
    arrived: Vec<usize>,
    drained_count: usize,
}

/// An operation that the kernel has accepted, or will be given with the next submission.
pub(super) struct CompatFlight<T: Tokens> {
    /// Declared before the operation, since fields are dropped in declaration order.
    _pointed: Pointed,
    operation: InFlightOneshot<Operation<T>, RawOutcome<T>>,
}

/// Converts an entry of the completion queue into the operation, its result and its flags.
struct RawOutcome<T>(PhantomData<fn() -> T>);

impl<T: Tokens> OneshotOutputTransform for RawOutcome<T> {
    type Output = Outcome<T>;
    type StoredData = Operation<T>;

    fn transform_oneshot_output(
        self,
        operation: Operation<T>,
        entry: cqueue::Entry,
    ) -> Self::Output {
        (operation, entry.result(), entry.flags())
    }
}

impl<T: Tokens> Compat<T> {
    pub fn new(enter: Enter) -> Self {
        Self {
            flights: Slab::new(),
            submissions: Submissions::new(enter),
            pending: VecDeque::new(),
            arrived: Vec::new(),
            drained_count: 0,
        }
    }

    pub fn retries(&self) -> u64 {
        self.submissions.retries()
    }

    /// Submits the operations that the last park left unsubmitted. Returns whether there were any.
    pub fn submit_again(&mut self) -> bool {
        let is_left = self.submissions.retry();
        self.let_go();
        is_left
    }

    pub fn may_have_unsubmitted(&self) -> bool {
        !self.submissions.is_known_empty() || !self.pending.is_empty()
    }

    /// Moves as many pending operations into the submission queue as fit.
    fn let_go(&mut self) {
        while !self.pending.is_empty() && self.submissions.has_room() {
            let pending = self.pending.pop_front().expect("an operation is pending");
            self.launch(pending);
        }
    }

    /// Begins to drain the completions that have arrived.
    pub fn begin_drain(&mut self) {
        self.let_go();
        self.arrived.clear();
        self.drained_count = 0;
        // The two lists swap places so that the memory of both is reused.
        READY.with_borrow_mut(|ready| std::mem::swap(&mut ready.indices, &mut self.arrived));
    }

    /// Returns the next of the completions that are being drained.
    pub fn next_outcome(&mut self) -> Option<Outcome<T>> {
        let index = *self.arrived.get(self.drained_count)?;
        self.drained_count += 1;
        let flight = self
            .flights
            .get_mut(index)
            .expect("the flight exists until it completes");
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(outcome) = Pin::new(&mut flight.operation).poll(&mut context) else {
            unreachable!("the flight is still pending after its completion");
        };
        self.flights.remove(index);
        Some(outcome)
    }

    pub fn submit(&mut self, pending: PendingOperation<T>) {
        // Preserve the order: a receive may need a buffer that an earlier operation provides.
        if self.pending.is_empty() && self.submissions.has_room() {
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
        self.submissions.push();
        let outcome = RawOutcome(PhantomData);
        let mut operation = UnsubmittedOneshot::new(operation, outcome, entry).submit();
        let slot = self.flights.vacant_entry();
        let waker = waker(slot.key());
        let first_poll = Pin::new(&mut operation).poll(&mut Context::from_waker(&waker));
        // Completions are processed only when tokio polls the ring.
        assert!(first_poll.is_pending(), "the operation was submitted");
        slot.insert(CompatFlight {
            _pointed: pointed,
            operation,
        });
    }
}
