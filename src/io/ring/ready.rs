//! The list of completed operations: a thread has one ring, and one list.

use std::cell::RefCell;
use std::task::Waker;

thread_local! {
    pub(super) static READY: RefCell<Ready> = const { RefCell::new(Ready::EMPTY) };
}

/// The operations of this thread that have completed and were not taken yet.
pub(super) struct Ready {
    pub indices: Vec<usize>,
    pub waker: Option<Waker>,
}

impl Ready {
    pub const EMPTY: Self = Self {
        indices: Vec::new(),
        waker: None,
    };

    /// Adds an operation that has completed, and wakes the thread's future.
    pub fn push(index: usize) {
        READY.with_borrow_mut(|ready| {
            ready.indices.push(index);
            // Awake already, if it was not the first.
            if let (1, Some(waker)) = (ready.indices.len(), &ready.waker) {
                waker.wake_by_ref();
            }
        });
    }
}
