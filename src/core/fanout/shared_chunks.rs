//! The total memory of chunks that several sessions hold. Each chunk counts once, until its last
//! holder drops it.
//!
//! A chunk is freed by its last receiver, which knows nothing about budgets. So chunks are tracked
//! with weak references, and each turn sweeps a few of them to remove those that have been freed.

use std::rc::{Rc, Weak};

use crate::core::fanout::encoded_state::Chunk;

/// Chunks that may be alive, and the sum of their lengths.
///
/// Invariant: `bytes` is the sum over `tracked`, so it is never less than the number of bytes that
/// are alive, not counting written-off chunks.
#[derive(Default)]
pub(in crate::core) struct SharedChunks {
    tracked: Vec<(Weak<Vec<u8>>, usize)>,
    bytes: usize,
    /// The index at which the next sweep continues.
    next: usize,
    /// The number of chunks added since the last sweep.
    added: usize,
}

impl SharedChunks {
    /// Returns the number of bytes that are held, including those that were released but not swept
    /// yet.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of chunks that may be alive.
    pub fn len(&self) -> usize {
        self.tracked.len()
    }

    /// Adds a new chunk.
    pub fn add(&mut self, chunk: &Chunk) {
        self.added += 1;
        self.tracked.push((Rc::downgrade(chunk), chunk.len()));
        self.bytes += chunk.len();
    }

    /// Stops counting a chunk whose receivers were all aborted. Its memory is freed once the kernel
    /// has ended their sends, which the server cannot speed up.
    pub fn write_off(&mut self, chunk: &Chunk) {
        let is_it = |(tracked, _): &&mut (Weak<Vec<u8>>, usize)| {
            std::ptr::eq(tracked.as_ptr(), Rc::as_ptr(chunk))
        };
        if let Some((_, bytes)) = self.tracked.iter_mut().find(is_it) {
            self.bytes -= std::mem::take(bytes);
        }
    }

    /// Checks `count` chunks, or twice the number added since the last sweep if that is larger, and
    /// removes those without holders. So the list never grows faster than it is swept.
    pub fn sweep(&mut self, count: usize) {
        let count = count.max(2 * std::mem::take(&mut self.added));
        for _ in 0..count.min(self.tracked.len()) {
            if self.next >= self.tracked.len() {
                self.next = 0;
            }
            let (chunk, bytes) = &self.tracked[self.next];
            if chunk.strong_count() == 0 {
                self.bytes -= bytes;
                self.tracked.swap_remove(self.next);
            } else {
                self.next += 1;
            }
        }
    }

    /// Checks every chunk and removes those without holders.
    pub fn sweep_all(&mut self) {
        self.next = 0;
        self.sweep(self.tracked.len());
    }

    /// Checks the invariant.
    ///
    /// # Panics
    /// If `bytes` is not the sum over `tracked`.
    pub fn invariants(&self) {
        let bytes: usize = self.tracked.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(self.bytes, bytes, "the sum of the shared chunks");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_nobody_holds_are_forgotten() {
        let mut shared = SharedChunks::default();
        let mut chunks: Vec<Chunk> = (0..10).map(|_| Rc::new(vec![0; 100])).collect();
        for chunk in &chunks {
            shared.add(chunk);
        }
        assert_eq!(shared.bytes(), 1000);
        shared.sweep(0);
        assert_eq!(shared.bytes(), 1000);
        let mut is_kept = [false, true].into_iter().cycle();
        chunks.retain(|_| is_kept.next().expect("a cycle never ends"));
        for (count, bytes_left) in [(0, 1000), (1, 900), (1, 900), (20, 500), (20, 500)] {
            shared.sweep(count);
            assert_eq!(shared.bytes(), bytes_left, "{count}");
            shared.invariants();
        }
        chunks.clear();
        shared.sweep_all();
        assert_eq!((shared.bytes(), shared.len()), (0, 0));
    }

    #[test]
    fn sweeping_keeps_up_with_additions() {
        let mut shared = SharedChunks::default();
        for _ in 0..100 {
            shared.add(&Rc::new(vec![0; 100]));
            shared.sweep(1);
        }
        assert_eq!((shared.bytes(), shared.len()), (0, 0));
    }

    #[test]
    fn a_written_off_chunk_does_not_count() {
        let mut shared = SharedChunks::default();
        let chunks: Vec<Chunk> = (1..4).map(|bytes| Rc::new(vec![0; bytes])).collect();
        for chunk in &chunks {
            shared.add(chunk);
        }
        shared.write_off(&chunks[1]);
        shared.write_off(&chunks[1]);
        assert_eq!((shared.bytes(), shared.len()), (4, 3));
        shared.invariants();
        drop(chunks);
        shared.sweep_all();
        assert_eq!((shared.bytes(), shared.len()), (0, 0));
    }
}
