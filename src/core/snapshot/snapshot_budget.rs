//! The limit on the memory of a shard's encoded states, and the accounting of that memory.

use crate::core::fanout::encoded_state::Chunk;
use crate::core::fanout::shared_chunks::SharedChunks;
use crate::limits::{SNAPSHOT_RESERVE_SHARE, SNAPSHOT_SMALL_BYTES};

/// The memory budget of the encoded states that are being sent to sessions, and of those that are
/// still being encoded.
///
/// Invariant: bytes held ≤ `bytes_max`, unless [`SnapshotBudget::admit_over`] has admitted a state
/// beyond it. In that case, the bytes held never exceed the total right after that admission.
pub(in crate::core) struct SnapshotBudget {
    bytes_max: usize,
    chunks: SharedChunks,
    /// The lengths of the states that are still being encoded.
    pending_bytes: usize,
    /// The total that the latest exception allows.
    excepted_bytes: usize,
}

impl SnapshotBudget {
    /// Returns an empty budget of `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            chunks: SharedChunks::default(),
            pending_bytes: 0,
            excepted_bytes: 0,
        }
    }

    // ---- accounting ----

    /// Returns the number of bytes that are held or promised, including those that have been
    /// released but not swept yet.
    pub fn bytes(&self) -> usize {
        self.chunks.bytes() + self.pending_bytes
    }

    /// Returns the number of encoded states that may be alive.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Counts bytes that will be encoded.
    pub fn promise(&mut self, bytes: usize) {
        self.pending_bytes += bytes;
    }

    /// Withdraws a promise, either because the bytes were encoded and added, or because no session
    /// wants them anymore.
    pub fn release(&mut self, bytes: usize) {
        self.pending_bytes -= bytes;
    }

    /// Withdraws all promises. States that are being sent to sessions still count.
    pub fn release_all(&mut self) {
        self.pending_bytes = 0;
    }

    /// Counts a newly encoded chunk.
    pub fn add(&mut self, chunk: &Chunk) {
        self.chunks.add(chunk);
    }

    /// Stops counting a state whose receivers were all aborted.
    pub fn write_off(&mut self, chunk: &Chunk) {
        self.chunks.write_off(chunk);
    }

    /// Checks at least `count` states, and stops counting those without holders.
    pub fn sweep(&mut self, count: usize) {
        self.chunks.sweep(count);
        self.end_exception();
    }

    /// Checks all states, and stops counting those without holders.
    pub fn sweep_all(&mut self) {
        self.chunks.sweep_all();
        self.end_exception();
    }

    fn end_exception(&mut self) {
        if self.bytes() <= self.bytes_max {
            self.excepted_bytes = 0;
        }
    }

    // ---- limits ----

    /// Returns the limit on the memory of all states, including a new one of `bytes` bytes. Large
    /// states leave a reserve, so that a few of them cannot keep clients out of small workspaces.
    pub fn limit_with(&self, bytes: usize) -> usize {
        if bytes <= SNAPSHOT_SMALL_BYTES {
            self.bytes_max
        } else {
            self.bytes_max - self.bytes_max / SNAPSHOT_RESERVE_SHARE
        }
    }

    /// Returns whether another state of `bytes` bytes is within the budget.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes() + bytes <= self.limit_with(bytes)
    }

    /// Admits a state of `bytes` bytes that exceeds the budget.
    pub fn admit_over(&mut self, bytes: usize) {
        self.excepted_bytes = self.bytes() + bytes;
    }

    /// Checks the invariant, given the number of bytes that the encodings in progress will produce.
    ///
    /// # Panics
    /// If a sum is wrong or the budget is exceeded.
    pub fn invariants(&self, pending_bytes: usize) {
        self.chunks.invariants();
        assert_eq!(
            self.pending_bytes, pending_bytes,
            "the sum of the states being encoded"
        );
        let most = self.bytes_max.max(self.excepted_bytes);
        assert!(
            self.bytes() <= most,
            "encoded states hold {} bytes of {most}",
            self.bytes()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn promised_bytes_count_until_they_are_released() {
        let mut budget = SnapshotBudget::new(100);
        budget.promise(30);
        budget.release(10);
        assert_eq!(budget.bytes(), 20);
        budget.invariants(20);
        let chunk: Chunk = Rc::new(vec![0; 50]);
        budget.add(&chunk);
        assert_eq!((budget.bytes(), budget.len()), (70, 1));
        assert!(budget.has_room_for(30) && !budget.has_room_for(31));
        budget.release_all();
        assert_eq!(budget.bytes(), 50);
        drop(chunk);
        budget.sweep_all();
        assert_eq!((budget.bytes(), budget.len()), (0, 0));
        budget.invariants(0);
    }

    #[test]
    fn large_states_leave_a_reserve() {
        let bytes_max = 10 * SNAPSHOT_SMALL_BYTES;
        let budget = SnapshotBudget::new(bytes_max);
        assert_eq!(budget.limit_with(SNAPSHOT_SMALL_BYTES), bytes_max);
        let reserve = bytes_max / SNAPSHOT_RESERVE_SHARE;
        assert_eq!(
            budget.limit_with(SNAPSHOT_SMALL_BYTES + 1),
            bytes_max - reserve
        );
    }

    #[test]
    #[should_panic(expected = "hold 101 bytes of 100")]
    fn an_exception_ends_once_usage_is_within_the_budget_again() {
        let mut budget = SnapshotBudget::new(100);
        budget.admit_over(150);
        let chunk: Chunk = Rc::new(vec![0; 150]);
        budget.add(&chunk);
        budget.invariants(0);
        drop(chunk);
        budget.sweep_all();
        budget.promise(101);
        budget.invariants(101);
    }
}
