//! Lists whose memory is reused.

use crate::limits::{LIST_BYTES_KEPT_MAX, LISTS_KEPT_MAX};

/// A pool of empty lists.
///
/// Invariant: the pool holds at most [`LISTS_KEPT_MAX`] lists, with at most [`LIST_BYTES_KEPT_MAX`]
/// of memory.
pub(in crate::core) struct FreeLists<L> {
    /// Each list with its memory in bytes.
    free: Vec<(L, usize)>,
    free_bytes: usize,
}

impl<L> Default for FreeLists<L> {
    fn default() -> Self {
        Self {
            free: Vec::new(),
            free_bytes: 0,
        }
    }
}

impl<L: Default> FreeLists<L> {
    /// Returns an empty list, with reused memory if the pool is not empty.
    pub fn take(&mut self) -> L {
        let Some((list, bytes)) = self.free.pop() else {
            return L::default();
        };
        self.free_bytes -= bytes;
        list
    }

    /// Adds a list to the pool. The caller must have emptied it; `bytes` is the memory that it
    /// holds. The list is dropped if it has no memory, or if the pool is full.
    pub fn give(&mut self, emptied: L, bytes: usize) {
        if bytes > 0
            && self.free.len() < LISTS_KEPT_MAX
            && self.free_bytes + bytes <= LIST_BYTES_KEPT_MAX
        {
            self.free_bytes += bytes;
            self.free.push((emptied, bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_reused_and_bounded() {
        let mut lists: FreeLists<Vec<u8>> = FreeLists::default();
        lists.give(Vec::new(), 0);
        assert!(lists.free.is_empty(), "a list without memory is kept");
        lists.give(Vec::with_capacity(100), 100);
        let list = lists.take();
        assert_eq!((list.len(), list.capacity(), lists.free_bytes), (0, 100, 0));
        for (bytes, kept) in [(1, LISTS_KEPT_MAX), (LIST_BYTES_KEPT_MAX / 4, 4)] {
            let mut lists: FreeLists<Vec<u8>> = FreeLists::default();
            for _ in 0..=LISTS_KEPT_MAX {
                lists.give(Vec::with_capacity(bytes), bytes);
            }
            assert_eq!((lists.free.len(), lists.free_bytes), (kept, kept * bytes));
        }
    }
}
