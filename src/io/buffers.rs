//! The provided receive buffers of a ring: one stretch of memory, lent to the kernel in pieces.
//!
//! A connection that waits for bytes holds no buffer. The kernel takes one when bytes are there
//! (`IORING_OP_PROVIDE_BUFFERS`, `io_uring_enter(2)`), fills it, and names it in the completion. From
//! then on it is ours, until it is provided again.
//!
//! ```text
//!   provided (the kernel's) ──completion──► Filled (ours) ──give_back──► to provide ──► provided
//! ```

#![allow(
    unsafe_code,
    reason = "memory that the kernel writes to; see SAFETY at each block"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::limits::{RECEIVE_BUFFERS, RECEIVE_BYTES_MAX};

/// A buffer that the kernel has filled and given up: whoever holds this holds the buffer.
#[derive(Debug)]
pub struct Filled {
    index: u16,
    bytes: usize,
}

/// A run of neighbouring buffers that are to be provided to the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub address: *mut u8,
    pub first: u16,
    pub count: u16,
}

/// The memory, alone: it must outlive the ring, which may write to it as long as it exists.
#[derive(Debug)]
pub(super) struct Memory {
    base: NonNull<u8>,
}

/// The receive buffers of a ring.
pub struct ReceiveBuffers {
    memory: Rc<Memory>,
    /// Given back and not provided yet.
    returned: Vec<u16>,
}

const BYTES: usize = RECEIVE_BUFFERS as usize * RECEIVE_BYTES_MAX;

impl Memory {
    fn layout() -> Layout {
        Layout::from_size_align(BYTES, 4096).expect("a constant that fits")
    }

    fn address(&self, index: u16) -> *mut u8 {
        assert!(
            index < RECEIVE_BUFFERS,
            "the kernel names a buffer that it was given"
        );
        // SAFETY:
        // - the allocation is BYTES long, and the offset is within it by the check above
        unsafe {
            self.base
                .as_ptr()
                .add(usize::from(index) * RECEIVE_BYTES_MAX)
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY:
        // - `base` came from alloc_zeroed with this very layout, and is freed only here
        // - the kernel does not write to it any more: ring::run holds it until its ring is gone
        unsafe { dealloc(self.base.as_ptr(), Self::layout()) }
    }
}

impl ReceiveBuffers {
    /// Buffers that are all still to be provided.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY:
        // - the layout has a size above zero
        let base = unsafe { alloc_zeroed(Memory::layout()) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(Memory::layout())
        };
        Self {
            memory: Rc::new(Memory { base }),
            returned: (0..RECEIVE_BUFFERS).collect(),
        }
    }

    /// The memory, to be held until the ring is gone.
    pub(super) fn memory(&self) -> Rc<Memory> {
        Rc::clone(&self.memory)
    }

    /// Takes over the buffer that a completion names, with so many bytes in it. Only the ring calls
    /// this, once for each completion.
    pub(super) fn filled(&self, index: u16, bytes: usize) -> Filled {
        assert!(
            index < RECEIVE_BUFFERS && bytes <= RECEIVE_BYTES_MAX,
            "a completion fits its buffer"
        );
        assert!(
            !self.returned.contains(&index),
            "the kernel fills a buffer only once it is provided"
        );
        Filled { index, bytes }
    }

    /// The bytes that were received.
    pub fn bytes<'a>(&'a mut self, filled: &'a mut Filled) -> &'a mut [u8] {
        // SAFETY:
        // - the address lies within the allocation; RECEIVE_BYTES_MAX bytes of it belong to this
        //   index, and `filled` was made with at most that many (checked in `filled`)
        // - the memory was zeroed at first, so all of it is initialized
        // - the kernel has given this buffer up with the completion that made `filled`, and gets it
        //   back only by `give_back`, which consumes `filled`; that cannot be cloned, and is
        //   borrowed mutably for as long as the slice lives, so nobody else has these bytes
        unsafe { std::slice::from_raw_parts_mut(self.memory.address(filled.index), filled.bytes) }
    }

    /// Lends a buffer to the kernel again, at the end of the turn.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "whoever gives a buffer back has it no more"
    )]
    pub fn give_back(&mut self, filled: Filled) {
        let Filled { index, .. } = filled;
        self.returned.push(index);
    }

    /// The next run of neighbours among the buffers that are to be provided now.
    pub(super) fn next_run(&mut self) -> Option<Run> {
        self.returned.sort_unstable_by(|one, other| other.cmp(one));
        let first = self.returned.pop()?;
        let mut count = 1;
        while self.returned.last() == Some(&(first + count)) {
            self.returned.pop();
            count += 1;
        }
        Some(Run {
            address: self.memory.address(first),
            first,
            count,
        })
    }
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_provided_in_runs_of_neighbours() {
        let mut buffers = ReceiveBuffers::new();
        let all = buffers.next_run().unwrap();
        assert_eq!((all.first, all.count), (0, RECEIVE_BUFFERS));
        for index in [7, 3, 4, 9, 8] {
            let mut filled = buffers.filled(index, 5);
            buffers.bytes(&mut filled).copy_from_slice(b"hello");
            buffers.give_back(filled);
        }
        let runs = std::iter::from_fn(|| buffers.next_run()).map(|run| (run.first, run.count));
        assert_eq!(runs.collect::<Vec<_>>(), [(3, 2), (7, 3)]);
    }

    #[test]
    #[should_panic(expected = "a completion fits its buffer")]
    fn a_buffer_that_does_not_exist_is_no_buffer() {
        let _ = ReceiveBuffers::new().filled(RECEIVE_BUFFERS, 1);
    }
}
