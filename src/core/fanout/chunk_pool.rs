//! Outgoing bytes, and a pool that reuses their memory.
//!
//! A chunk is an `Rc`, so it needs no lock. While it has one owner it may grow; once a send in
//! flight holds it too, it is sealed. Its last holder returns it to the pool; lists of spans are
//! returned as well. So nothing is allocated in the steady state, and an idle session holds no
//! chunks.

use std::array;
use std::rc::Rc;

use smallvec::SmallVec;

pub use crate::core::fanout::encoded_state::Chunk;
use crate::core::fanout::free_lists::FreeLists;
use crate::limits::{
    CHUNK_BYTES_KEPT_MAX, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNKS_KEPT_MAX, SEND_BYTES_MAX,
    SESSION_BYTES_SPARED,
};

/// A range of bytes in a chunk.
#[derive(Debug, Clone)]
pub struct Span {
    chunk: Chunk,
    start: usize,
    end: usize,
}

impl Span {
    /// Returns the bytes `start..end` of `chunk`.
    ///
    /// # Panics
    /// If the range is empty or not within the chunk.
    #[must_use]
    pub fn new(chunk: Chunk, start: usize, end: usize) -> Self {
        assert!(
            start < end && end <= chunk.len(),
            "a span lies within its chunk"
        );
        Self { chunk, start, end }
    }

    /// Returns the bytes of the span.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.chunk[self.start..self.end]
    }

    /// Returns the chunk, so that it can go back to the pool.
    #[must_use]
    pub fn into_chunk(self) -> Chunk {
        self.chunk
    }
}

/// The bytes of one send, in order.
pub type Spans = SmallVec<[Span; 2]>;

/// Returns the total length of all spans.
#[must_use]
pub fn spans_bytes(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.end - span.start).sum()
}

/// Removes the first `bytes` bytes, which were sent.
pub fn skip_sent(spans: &mut Spans, mut bytes: usize) {
    spans.retain(|span| {
        let skipped = bytes.min(span.end - span.start);
        span.start += skipped;
        bytes -= skipped;
        span.start < span.end
    });
    assert_eq!(bytes, 0, "the pieces exceed the send");
}

/// The number of size classes. The largest chunks of a class are almost twice as large as the
/// smallest.
const CLASSES: usize = (SEND_BYTES_MAX / CHUNK_BYTES_MIN).ilog2() as usize + 1;
/// The class of the largest chunk that several frames may share.
const CLASS_SHARED: usize = (CHUNK_BYTES_MAX / CHUNK_BYTES_MIN).ilog2() as usize;
/// A returned chunk may be this many classes larger than requested; more would waste too much
/// memory.
const CLASSES_ABOVE: usize = 4;

/// Returns the size class of `bytes`, which is [`CHUNK_BYTES_MIN`] or more.
fn class_of(bytes: usize) -> usize {
    (bytes / CHUNK_BYTES_MIN).ilog2() as usize
}

/// The largest capacity of a short list. A list grows by doubling, so its capacity may be twice its
/// length.
const UNPARSED_SHORT_BYTES: usize = 2 * SESSION_BYTES_SPARED;

/// Free chunks and free lists of bytes and spans, ready for reuse.
pub struct ChunkPool {
    /// Free chunks, by size class.
    free: [Vec<Chunk>; CLASSES],
    free_count: usize,
    free_bytes: usize,
    spans: FreeLists<Spans>,
    /// Lists for received bytes that do not yet form a complete frame.
    unparsed: FreeLists<Vec<u8>>,
    /// Short lists for the same purpose, so that a session with few bytes does not hold a long
    /// list.
    unparsed_short: FreeLists<Vec<u8>>,
}

impl Default for ChunkPool {
    fn default() -> Self {
        Self {
            free: array::from_fn(|_| Vec::new()),
            free_count: 0,
            free_bytes: 0,
            spans: FreeLists::default(),
            unparsed: FreeLists::default(),
            unparsed_short: FreeLists::default(),
        }
    }
}

impl ChunkPool {
    /// Returns an empty chunk that has no other holder, with room for `bytes` bytes.
    pub fn take(&mut self, bytes: usize) -> Chunk {
        // Powers of two, so that a returned chunk fits later requests.
        let bytes = bytes.max(CHUNK_BYTES_MIN).next_power_of_two();
        let least = class_of(bytes);
        let bound = if least > CLASS_SHARED {
            CLASSES - 1
        } else {
            CLASS_SHARED
        };
        let most = bound.min(least + CLASSES_ABOVE);
        let classes = self.free.iter_mut().take(most + 1).skip(least);
        // The most recently returned chunk is the most likely to be in the CPU cache.
        if let Some(chunk) = classes.into_iter().find_map(Vec::pop) {
            self.free_count -= 1;
            self.free_bytes -= chunk.capacity();
            return chunk;
        }
        Rc::new(Vec::with_capacity(bytes))
    }

    /// Returns a chunk to the pool. If other references remain, the chunk's size is out of range,
    /// or the pool is full, this only drops the reference.
    pub fn give(&mut self, mut chunk: Chunk) {
        // Only the last holder of a chunk gets past this point.
        let Some(bytes) = Rc::get_mut(&mut chunk) else {
            return;
        };
        let capacity = bytes.capacity();
        if (CHUNK_BYTES_MIN..=SEND_BYTES_MAX).contains(&capacity)
            && self.free_count < CHUNKS_KEPT_MAX
            && self.free_bytes + capacity <= CHUNK_BYTES_KEPT_MAX
        {
            bytes.clear();
            self.free_count += 1;
            self.free_bytes += capacity;
            self.free[class_of(capacity)].push(chunk);
        }
    }

    /// Appends a span. If the list needs heap memory, it takes that from the pool.
    #[inline]
    pub(in crate::core) fn push_span(&mut self, spans: &mut Spans, span: Span) {
        if spans.len() == spans.capacity() && !spans.spilled() {
            self.spill(spans);
        }
        spans.push(span);
    }

    #[cold]
    fn spill(&mut self, spans: &mut Spans) {
        let mut list = self.spans.take();
        list.extend(spans.drain(..));
        *spans = list;
    }

    /// Returns all chunks of a send, and the list of its spans, to the pool.
    pub fn give_spans(&mut self, mut spans: Spans) {
        if !spans.spilled() {
            for span in spans {
                self.give(span.into_chunk());
            }
            return;
        }
        for span in spans.drain(..) {
            self.give(span.into_chunk());
        }
        let bytes = spans.capacity() * size_of::<Span>();
        self.spans.give(spans, bytes);
    }

    /// Returns a new chunk filled by `write`, which should append about `bytes` bytes.
    pub fn fill(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Chunk {
        let mut chunk = self.take(bytes);
        write(Rc::get_mut(&mut chunk).expect("a chunk in the pool has no other owner"));
        chunk
    }

    /// Copies the bytes of all spans into one new chunk.
    pub fn join(&mut self, spans: &[Span]) -> Chunk {
        self.fill(spans_bytes(spans), |out| {
            for span in spans {
                out.extend_from_slice(span.bytes());
            }
        })
    }

    /// Copies received bytes that do not yet form a complete frame.
    pub(in crate::core) fn keep_unparsed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let lists = match bytes.len() {
            0 => return Vec::new(),
            1..=SESSION_BYTES_SPARED => &mut self.unparsed_short,
            _ => &mut self.unparsed,
        };
        let mut list = lists.take();
        list.extend_from_slice(bytes);
        list
    }

    /// Returns a list obtained from [`ChunkPool::keep_unparsed`] to the pool.
    pub(in crate::core) fn give_unparsed(&mut self, mut list: Vec<u8>) {
        list.clear();
        let capacity = list.capacity();
        if capacity <= UNPARSED_SHORT_BYTES {
            self.unparsed_short.give(list, capacity);
        } else if capacity <= CHUNK_BYTES_MAX {
            self.unparsed.give(list, capacity);
        }
    }

    /// Makes room for `bytes` more bytes in a chunk that has no other holder.
    pub(in crate::core) fn grow(&mut self, chunk: &mut Chunk, bytes: usize) {
        let needed_bytes = chunk.len() + bytes;
        if needed_bytes > chunk.capacity() {
            let held = self.fill(needed_bytes, |out| out.extend_from_slice(chunk));
            self.give(std::mem::replace(chunk, held));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_spans_are_removed_and_their_chunks_returned() {
        for (sent_bytes, left) in [
            (0, vec![(0, 4), (1, 3)]),
            (1, vec![(1, 4), (1, 3)]),
            (4, vec![(1, 3)]),
            (5, vec![(2, 3)]),
            (6, vec![]),
        ] {
            let chunk = ChunkPool::default().fill(4, |out| out.resize(4, 0));
            let mut spans = Spans::new();
            spans.push(Span::new(Rc::clone(&chunk), 0, 4));
            spans.push(Span::new(Rc::clone(&chunk), 1, 3));
            skip_sent(&mut spans, sent_bytes);
            let held: Vec<_> = spans.iter().map(|span| (span.start, span.end)).collect();
            assert_eq!(held, left, "{sent_bytes}");
            drop(chunk);
            let (is_held, mut pool) = (!spans.is_empty(), ChunkPool::default());
            pool.give_spans(spans);
            assert_eq!(pool.free_count, usize::from(is_held), "{sent_bytes}");
        }
    }

    #[test]
    fn the_pool_keeps_chunks_that_nobody_holds() {
        let mut pool = ChunkPool::default();
        let chunk = pool.fill(10, |out| out.extend_from_slice(b"0123456789"));
        let held = Rc::clone(&chunk);
        pool.give(chunk);
        assert_eq!(pool.free_count, 0);
        pool.give(held);
        assert_eq!((pool.free_count, pool.free[0][0].len()), (1, 0));
        pool.give(Rc::new(Vec::with_capacity(SEND_BYTES_MAX + 1)));
        pool.give(Rc::new(Vec::with_capacity(CHUNK_BYTES_MIN - 1)));
        assert_eq!(pool.free_count, 1);
        assert_eq!(pool.take(10).len(), 0);
        assert_eq!(pool.free_bytes, 0);
    }

    #[test]
    fn the_pool_is_bounded() {
        for (capacity, kept) in [
            (CHUNK_BYTES_MIN, CHUNKS_KEPT_MAX),
            (CHUNK_BYTES_MAX, CHUNK_BYTES_KEPT_MAX / CHUNK_BYTES_MAX),
        ] {
            let mut pool = ChunkPool::default();
            for _ in 0..=CHUNKS_KEPT_MAX {
                pool.give(Rc::new(Vec::with_capacity(capacity)));
            }
            assert_eq!((pool.free_count, pool.free_bytes), (kept, kept * capacity));
        }
    }
    #[test]
    fn a_chunk_is_reused_if_it_fits_and_wastes_little() {
        for (held_bytes, wanted_bytes, is_used) in [
            (256, 1, true),
            (256, 257, false),
            (300, 257, false),
            (511, 256, true),
            (512, 257, true),
            (4096, 256, true),
            (8192, 256, false),
            (65_536, 4096, true),
            (131_072, 65_536, false),
            (131_072, 65_537, true),
            (262_144, 65_537, true),
            (262_144, 262_145, false),
        ] {
            let mut pool = ChunkPool::default();
            pool.give(Rc::new(Vec::with_capacity(held_bytes)));
            let chunk = pool.take(wanted_bytes);
            let case = format!("{held_bytes} for {wanted_bytes}");
            assert!(chunk.capacity() >= wanted_bytes, "{case}");
            assert_eq!(pool.free_count, usize::from(!is_used), "{case}");
            assert_eq!(chunk.capacity() == held_bytes, is_used, "{case}");
        }
    }

    #[test]
    fn a_growing_chunk_keeps_its_bytes_and_releases_the_smaller_one() {
        let mut pool = ChunkPool::default();
        let mut chunk = pool.fill(200, |out| out.resize(200, 7));
        pool.grow(&mut chunk, 56);
        assert_eq!((chunk.capacity(), pool.free_count), (256, 0));
        pool.grow(&mut chunk, 57);
        assert_eq!((chunk.capacity(), pool.free_count), (512, 1));
        assert_eq!(*chunk, [7; 200]);
    }
}
