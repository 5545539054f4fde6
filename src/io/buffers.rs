//! The provided receive buffers of a ring: one block of memory, lent to the kernel piece by piece.
//!
//! A connection that is waiting for data holds no buffer. When data arrives, the kernel picks a
//! buffer, fills it, and names it in the completion. From then on the buffer is ours until it is
//! provided again: through memory shared with the kernel (`IORING_REGISTER_PBUF_RING`), or by an
//! operation (`IORING_OP_PROVIDE_BUFFERS`) on kernels before 6.1.
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
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::limits::{RECEIVE_BUFFERS, RECEIVE_BYTES_MAX};

/// The first kernel version on which a pending receive holds no provided buffer.
pub(super) const KERNEL_LENDS_LATE: (u32, u32) = (5, 19);

/// Returns the version of the running kernel.
pub(super) fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// A buffer that the kernel has filled and released; the owner of this value owns the buffer. It
/// keeps the memory alive and is not `Send`. A buffer that is dropped instead of being given back
/// is lost to its ring.
#[derive(Debug)]
pub struct Filled {
    memory: Rc<Memory>,
    index: u16,
    bytes: usize,
}

/// The buffer memory itself. The kernel may write to it as long as the ring exists.
#[derive(Debug)]
struct Memory {
    base: NonNull<u8>,
}

/// The receive buffers of a ring.
pub(super) struct ReceiveBuffers {
    memory: Rc<Memory>,
    /// Buffers that were given back but not yet provided again.
    returned: Vec<u16>,
    /// Whether the kernel holds each buffer. A buffer that it does not hold is in `returned` or is
    /// a [`Filled`].
    lent: [bool; RECEIVE_BUFFERS as usize],
    lent_count: usize,
    /// The memory through which buffers are lent, unless each is lent by an operation.
    lending: Option<LendingRing>,
}

/// A ring of buffers in memory that is shared with the kernel (`IORING_REGISTER_PBUF_RING`,
/// `io_uring_register(2)`). The kernel takes them from its head, which it does not publish.
struct LendingRing {
    entries: NonNull<BufRingEntry>,
    /// The number of buffers that were ever lent; wraps around.
    tail: u16,
}

const BYTES: usize = RECEIVE_BUFFERS as usize * RECEIVE_BYTES_MAX;

impl Memory {
    fn layout() -> Layout {
        Layout::from_size_align(BYTES, 4096).expect("the constant fits")
    }

    fn new() -> Self {
        // SAFETY:
        // - the layout has a nonzero size
        let base = unsafe { alloc_zeroed(Self::layout()) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(Self::layout())
        };
        sanitizer::hide(base.as_ptr(), BYTES);
        Self { base }
    }

    fn address(&self, index: u16) -> *mut u8 {
        assert!(
            index < RECEIVE_BUFFERS,
            "the kernel named an unknown buffer"
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

impl LendingRing {
    fn layout() -> Layout {
        // The kernel requires that it starts at a page.
        Layout::from_size_align(
            usize::from(RECEIVE_BUFFERS) * size_of::<BufRingEntry>(),
            4096,
        )
        .expect("the constant fits")
    }

    fn new() -> Self {
        // SAFETY:
        // - the layout has a nonzero size
        let entries = unsafe { alloc_zeroed(Self::layout()) };
        let Some(entries) = NonNull::new(entries) else {
            handle_alloc_error(Self::layout())
        };
        Self {
            entries: entries.cast(),
            tail: 0,
        }
    }

    /// Adds a buffer, which the kernel sees once it is published.
    fn push(&mut self, index: u16, address: *mut u8) {
        let place = usize::from(self.tail % RECEIVE_BUFFERS);
        // SAFETY:
        // - the place lies in the allocation, which was zeroed, and any bytes are a valid entry
        // - no other reference to it exists, and the kernel reads it only once the tail is after it
        // - it is not before the head: there are as many places as buffers, and this buffer is not
        //   in the ring
        let entry = unsafe { self.entries.add(place).as_mut() };
        entry.set_addr(address.expose_provenance() as u64);
        entry.set_len(u32::try_from(RECEIVE_BYTES_MAX).expect("the length fits in 32 bits"));
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lends the buffers that were added to the kernel.
    fn publish(&mut self) {
        // SAFETY:
        // - the tail is a field of the first entry, which `entries` points to; it is aligned, and
        //   it is not one of those that `push` writes
        // - the kernel reads it at any time, so it is written as an atomic
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for LendingRing {
    fn drop(&mut self) {
        // SAFETY:
        // - `entries` came from alloc_zeroed with this same layout, and is freed only here
        // - the kernel does not read it: its ring is dropped before the buffers, and no receive is
        //   in flight by then
        unsafe { dealloc(self.entries.as_ptr().cast(), Self::layout()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        sanitizer::show(self.base.as_ptr(), BYTES);
        // SAFETY:
        // - `base` came from alloc_zeroed with this same layout, and is freed only here
        // - the kernel no longer writes to it: a ring holds it, and drops it after it has waited
        //   for all receives to end
        unsafe { dealloc(self.base.as_ptr(), Self::layout()) }
    }
}

impl Filled {
    /// Returns the received bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY:
        // - the address lies within the allocation, which `memory` keeps alive; RECEIVE_BYTES_MAX
        //   bytes of it belong to this index, and `self` was created with at most that many bytes
        //   (checked in ReceiveBuffers::filled)
        // - the memory was zeroed on allocation, so all of it is initialized
        // - the kernel released this buffer with the completion that created `self`, and gets it
        //   back only through `give_back`, which consumes `self`
        // - there is no second Filled for this index: it is created only from a lent buffer, which
        //   then no longer counts as lent, and it cannot be cloned; the slice borrows it mutably
        unsafe { std::slice::from_raw_parts_mut(self.memory.address(self.index), self.bytes) }
    }
}

impl ReceiveBuffers {
    /// Allocates the buffers, none of which is provided yet.
    pub fn new() -> Self {
        Self {
            memory: Rc::new(Memory::new()),
            returned: (0..RECEIVE_BUFFERS).collect(),
            lent: [false; RECEIVE_BUFFERS as usize],
            lent_count: 0,
            lending: None,
        }
    }

    /// Allocates buffers that are lent through shared memory.
    pub fn with_lending_ring() -> Self {
        Self {
            lending: Some(LendingRing::new()),
            ..Self::new()
        }
    }

    /// Returns the address of the shared memory, which has room for [`RECEIVE_BUFFERS`].
    ///
    /// # Panics
    /// If each buffer is lent by an operation.
    pub fn lending_address(&self) -> u64 {
        let lending = self.lending.as_ref();
        let lending = lending.expect("the buffers are lent through shared memory");
        lending.entries.as_ptr().expose_provenance() as u64
    }

    /// Leaks the memory, which the kernel may still use.
    pub fn leak(&mut self) {
        std::mem::forget(Rc::clone(&self.memory));
        std::mem::forget(self.lending.take());
    }

    /// Lends all returned buffers to the kernel through the shared memory.
    ///
    /// # Panics
    /// If each buffer is lent by an operation.
    pub fn lend_all(&mut self) {
        if self.returned.is_empty() {
            return;
        }
        let mut lending = self.lending.take();
        let ring = lending.as_mut();
        let ring = ring.expect("the buffers are lent through shared memory");
        while let Some((index, address)) = self.lend_next() {
            ring.push(index, address);
        }
        ring.publish();
        self.lending = lending;
    }

    /// Takes ownership of the buffer that a completion names, which holds `bytes` bytes. Called
    /// only by the ring, once per completion.
    pub fn filled(&mut self, index: u16, bytes: usize) -> Filled {
        assert!(
            index < RECEIVE_BUFFERS && bytes <= RECEIVE_BYTES_MAX,
            "a completion fits in its buffer"
        );
        self.end_loan(index);
        sanitizer::show(self.memory.address(index), bytes);
        Filled {
            memory: Rc::clone(&self.memory),
            index,
            bytes,
        }
    }

    /// Returns a buffer to the ring, which lends it to the kernel again at the end of the turn.
    pub fn give_back(&mut self, filled: Filled) {
        let Filled {
            memory,
            index,
            bytes,
        } = filled;
        assert!(
            Rc::ptr_eq(&memory, &self.memory),
            "the buffer belongs to another ring"
        );
        sanitizer::hide(memory.address(index), bytes);
        self.returned.push(index);
    }

    /// Takes back a buffer that the kernel did not accept or did not use.
    pub fn take_back(&mut self, index: u16) {
        self.end_loan(index);
        self.returned.push(index);
    }

    fn end_loan(&mut self, index: u16) {
        let was_lent = std::mem::take(&mut self.lent[usize::from(index)]);
        assert!(
            was_lent,
            "the kernel returned a buffer that it does not have"
        );
        self.lent_count -= 1;
    }

    /// Returns the number of buffers that the kernel holds, including those it has filled but whose
    /// completions the ring has not seen yet.
    pub fn lent_count(&self) -> usize {
        self.lent_count
    }

    /// Returns the index and the address of the next buffer to provide, and marks it as lent.
    pub fn lend_next(&mut self) -> Option<(u16, *mut u8)> {
        let index = self.returned.pop()?;
        let was_lent = std::mem::replace(&mut self.lent[usize::from(index)], true);
        assert!(!was_lent, "the buffer is already lent");
        self.lent_count += 1;
        Some((index, self.memory.address(index)))
    }
}

/// Reports the kernel's reads and writes to `AddressSanitizer`, which cannot see them. Other builds
/// compile this to nothing (`.ci/sanitize` sets the cfg).
pub(super) mod sanitizer {
    /// A range of memory that an operation points the kernel to.
    pub type Stretch = (*const u8, usize);

    /// The memory that an operation points the kernel to. It is read when the operation's flight
    /// ends, so that the sanitizer reports an error if it was freed earlier.
    #[cfg(address_sanitizer)]
    pub struct Pointed(Vec<Stretch>);
    #[cfg(not(address_sanitizer))]
    pub struct Pointed;

    #[cfg(address_sanitizer)]
    unsafe extern "C" {
        fn __asan_poison_memory_region(address: *const libc::c_void, bytes: usize);
        fn __asan_unpoison_memory_region(address: *const libc::c_void, bytes: usize);
    }

    /// Marks memory as held by the kernel: the sanitizer reports any access to it from now on.
    #[cfg_attr(not(address_sanitizer), expect(unused_variables))]
    pub fn hide(address: *const u8, bytes: usize) {
        #[cfg(address_sanitizer)]
        // SAFETY:
        // - the memory belongs to this process, and only the sanitizer's record of it changes
        unsafe {
            __asan_poison_memory_region(address.cast(), bytes);
        }
    }

    /// Undoes [`hide`].
    #[cfg_attr(not(address_sanitizer), expect(unused_variables))]
    pub fn show(address: *const u8, bytes: usize) {
        #[cfg(address_sanitizer)]
        // SAFETY:
        // - the memory belongs to this process, and only the sanitizer's record of it changes
        unsafe {
            __asan_unpoison_memory_region(address.cast(), bytes);
        }
    }

    #[cfg(not(address_sanitizer))]
    impl Pointed {
        pub fn to(_: impl IntoIterator<Item = Stretch>) -> Self {
            Self
        }
    }

    #[cfg(address_sanitizer)]
    impl Pointed {
        pub fn to(stretches: impl IntoIterator<Item = Stretch>) -> Self {
            Self(stretches.into_iter().collect())
        }
    }

    #[cfg(address_sanitizer)]
    impl Drop for Pointed {
        fn drop(&mut self) {
            for (address, bytes) in &self.0 {
                // The sanitizer tracks memory in units of eight bytes.
                for offset in (0..*bytes).step_by(8).chain(bytes.checked_sub(1)) {
                    // SAFETY:
                    // - the range lies within memory that the flight owns and drops after this; if
                    //   it does not, the sanitizer is meant to report it
                    unsafe { address.add(offset).read_volatile() };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_lent() -> ReceiveBuffers {
        let mut buffers = ReceiveBuffers::new();
        while buffers.lend_next().is_some() {}
        buffers
    }

    #[test]
    fn returned_buffers_are_provided_again() {
        let mut buffers = ReceiveBuffers::new();
        let all = std::iter::from_fn(|| buffers.lend_next());
        let mut all: Vec<u16> = all.map(|(index, _)| index).collect();
        all.sort_unstable();
        assert_eq!(all, (0..RECEIVE_BUFFERS).collect::<Vec<_>>());
        assert_eq!(buffers.lent_count(), usize::from(RECEIVE_BUFFERS));
        for index in [7, 3, 9] {
            let mut filled = buffers.filled(index, 5);
            filled.bytes().copy_from_slice(b"hello");
            buffers.give_back(filled);
        }
        buffers.take_back(4);
        let again = std::iter::from_fn(|| buffers.lend_next());
        let mut again: Vec<u16> = again.map(|(index, _)| index).collect();
        again.sort_unstable();
        assert_eq!(again, [3, 4, 7, 9]);
    }

    #[test]
    #[should_panic(expected = "the kernel returned a buffer that it does not have")]
    fn a_buffer_cannot_be_filled_twice() {
        let mut buffers = all_lent();
        let _held = buffers.filled(3, 5);
        let _ = buffers.filled(3, 5);
    }

    #[test]
    #[should_panic(expected = "the kernel returned a buffer that it does not have")]
    fn a_buffer_cannot_be_returned_twice() {
        let mut buffers = all_lent();
        buffers.take_back(3);
        buffers.take_back(3);
    }

    #[test]
    #[should_panic(expected = "the buffer belongs to another ring")]
    fn a_buffer_cannot_be_returned_to_another_ring() {
        let (mut one, mut other) = (all_lent(), ReceiveBuffers::new());
        other.give_back(one.filled(3, 5));
    }

    #[test]
    fn a_held_buffer_outlives_its_ring() {
        let mut buffers = all_lent();
        let mut filled = buffers.filled(3, 5);
        drop(buffers);
        filled.bytes().copy_from_slice(b"hello");
        assert_eq!(filled.bytes(), b"hello");
    }

    #[test]
    #[should_panic(expected = "a completion fits in its buffer")]
    fn an_unknown_buffer_index_is_rejected() {
        let _ = ReceiveBuffers::new().filled(RECEIVE_BUFFERS, 1);
    }
}
