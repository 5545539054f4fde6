//! The list of completed operations. Each thread has one ring and one list.

use std::cell::RefCell;
use std::task::Waker;

thread_local! {
    pub(super) static READY: RefCell<Ready> = const { RefCell::new(Ready::EMPTY) };
}

/// The operations of this thread that have completed but have not been drained yet.
pub(super) struct Ready {
    pub indices: Vec<usize>,
    pub waker: Option<Waker>,
}

impl Ready {
    pub const EMPTY: Self = Self {
        indices: Vec::new(),
        waker: None,
    };

    /// Adds a completed operation and wakes the thread's future.
    pub fn push(index: usize) {
        READY.with_borrow_mut(|ready| {
            ready.indices.push(index);
            // Only the first entry wakes the future; after that it is already awake.
            if let (1, Some(waker)) = (ready.indices.len(), &ready.waker) {
                waker.wake_by_ref();
            }
        });
    }
}
