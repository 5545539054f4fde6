//! Bytes on their way out, and the memory for them, which is used again.
//!
//! Chunks are `Rc`s without locks: a chunk with one owner may grow, one that a send in flight holds
//! too is sealed. Chunks that nobody holds any more go back to a pool, and so do the lists of what
//! stands in them, so that the steady state allocates nothing and what is idle holds nothing.

use std::array;
use std::collections::VecDeque;
use std::ops::{AddAssign, SubAssign};
use std::rc::Rc;

use smallvec::SmallVec;

pub use crate::core::fanout::encoded_state::Chunk;
use crate::core::fanout::encoded_state::EncodedState;
use crate::core::fanout::window_offset::WindowOffset;
use crate::limits::{
    CHUNK_BYTES_KEPT_MAX, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNKS_KEPT_MAX, LIST_BYTES_KEPT_MAX,
    LISTS_KEPT_MAX, SEND_BYTES_MAX, SESSION_BYTES_SPARED,
};
use crate::log::position::LogPosition;
use crate::seq::Seq;

/// A stretch of a chunk.
#[derive(Debug, Clone)]
pub struct Span {
    chunk: Chunk,
    start: usize,
    end: usize,
}

impl Span {
    /// A stretch of `chunk`.
    ///
    /// # Panics
    /// Where it is empty or not within the chunk.
    #[must_use]
    pub fn new(chunk: Chunk, start: usize, end: usize) -> Self {
        assert!(
            start < end && end <= chunk.len(),
            "a span lies within its chunk"
        );
        Self { chunk, start, end }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.chunk[self.start..self.end]
    }

    /// Gives the chunk back.
    #[must_use]
    pub fn into_chunk(self) -> Chunk {
        self.chunk
    }
}

/// What one send carries: all of it in order.
pub type Spans = SmallVec<[Span; 2]>;

/// The bytes of all spans.
#[must_use]
pub fn spans_bytes(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.end - span.start).sum()
}

/// Takes the first `bytes` off: they have been sent.
pub fn skip_sent(spans: &mut Spans, mut bytes: usize) {
    spans.retain(|span| {
        let skipped = bytes.min(span.end - span.start);
        span.start += skipped;
        bytes -= skipped;
        span.start < span.end
    });
    assert_eq!(bytes, 0, "a send carries no more than it was given");
}

/// A frame of a window.
#[derive(Debug, Clone, Copy)]
pub(in crate::core) struct Frame {
    /// The offset behind the frame's last byte.
    pub end: WindowOffset,
    pub seq: Seq,
    /// The log position that must be durable before the frame may leave.
    pub position: LogPosition,
}

/// When an answer may be sent.
#[derive(Debug, Clone)]
pub struct Due {
    /// Behind this window offset,
    pub at: WindowOffset,
    /// when this log position is visible,
    pub gate: LogPosition,
    /// and when this text is whole, which others stand around: all of them, or none, are sent.
    pub awaits: Option<EncodedState>,
}

/// What one client is sent, and not all the others too.
pub(in crate::core) struct Answer {
    pub text: EncodedState,
    pub start: usize,
    pub end: usize,
    /// A part of it was taken.
    pub is_begun: bool,
    pub due: Due,
    pub cost: Cost,
}

/// What an answer costs.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_field_names, reason = "a unit comes last in a name")]
pub(in crate::core) struct Cost {
    /// Memory that is there for the client alone.
    pub own_bytes: usize,
    /// Memory that others may hold too: corrections and the like, in [`crate::core::shard::session_budget`].
    pub shared_bytes: usize,
    /// The same of states, which have a budget of their own.
    pub state_bytes: usize,
}

impl Cost {
    /// All of it.
    pub fn bytes(self) -> usize {
        self.own_bytes + self.shared_bytes + self.state_bytes
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.own_bytes += other.own_bytes;
        self.shared_bytes += other.shared_bytes;
        self.state_bytes += other.state_bytes;
    }
}

impl SubAssign for Cost {
    fn sub_assign(&mut self, other: Self) {
        self.own_bytes -= other.own_bytes;
        self.shared_bytes -= other.shared_bytes;
        self.state_bytes -= other.state_bytes;
    }
}

/// Where a client stands that fell out of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// All ops up to this seq reached it.
    pub since: Seq,
    /// The slot of the entry with that seq, where it is known.
    pub hint: Option<u32>,
}

/// What sets a client apart from the others of its workspace.
#[derive(Default)]
pub(in crate::core) struct Extras {
    pub answers: VecDeque<Answer>,
    /// Of all answers.
    pub cost: Cost,
    /// Stretches behind the cursor that are the client's own ops, which it is not sent.
    pub own: Vec<(WindowOffset, WindowOffset)>,
    pub behind: Option<Behind>,
}

impl Extras {
    /// Nothing sets it apart any more.
    pub fn is_over(&self) -> bool {
        self.answers.is_empty() && self.own.is_empty() && self.behind.is_none()
    }
}

/// A list that can be emptied and filled again in the memory that it has.
pub(in crate::core) trait List: Default {
    fn clear(&mut self);
    /// The memory that it holds beside itself.
    fn bytes(&self) -> usize;
}

impl<T> List for Vec<T> {
    fn clear(&mut self) {
        Vec::clear(self);
    }

    fn bytes(&self) -> usize {
        self.capacity() * size_of::<T>()
    }
}

impl<T> List for VecDeque<T> {
    fn clear(&mut self) {
        VecDeque::clear(self);
    }

    fn bytes(&self) -> usize {
        self.capacity() * size_of::<T>()
    }
}

impl List for Spans {
    fn clear(&mut self) {
        Spans::clear(self);
    }

    fn bytes(&self) -> usize {
        if self.spilled() {
            self.capacity() * size_of::<Span>()
        } else {
            0
        }
    }
}

impl List for Box<Extras> {
    fn clear(&mut self) {
        self.answers.clear();
        self.cost = Cost::default();
        self.own.clear();
        self.behind = None;
    }

    fn bytes(&self) -> usize {
        let Extras { answers, own, .. } = &**self;
        size_of::<Extras>() + List::bytes(answers) + List::bytes(own)
    }
}

/// Lists that wait for their next use.
#[derive(Default)]
pub(in crate::core) struct Lists<L> {
    free: Vec<L>,
    free_bytes: usize,
}

impl<L: List> Lists<L> {
    /// An empty list, which has memory if there is any to be had.
    pub fn take(&mut self) -> L {
        let Some(list) = self.free.pop() else {
            return L::default();
        };
        self.free_bytes -= list.bytes();
        list
    }

    /// Takes a list's memory back, if it has any and there is not too much of it.
    pub fn give(&mut self, mut list: L) {
        list.clear();
        let bytes = list.bytes();
        if bytes > 0
            && self.free.len() < LISTS_KEPT_MAX
            && self.free_bytes + bytes <= LIST_BYTES_KEPT_MAX
        {
            self.free_bytes += bytes;
            self.free.push(list);
        }
    }
}

/// The sizes of the chunks that are kept: each class has those up to twice as large as the one before.
const CLASSES: usize = (SEND_BYTES_MAX / CHUNK_BYTES_MIN).ilog2() as usize + 1;
/// The class of the largest chunk that frames share.
const CLASS_SHARED: usize = (CHUNK_BYTES_MAX / CHUNK_BYTES_MIN).ilog2() as usize;
/// A chunk that is so many classes larger than what was asked for would waste too much.
const CLASSES_ABOVE: usize = 4;

/// The class of the chunks that have at least `bytes`, which is [`CHUNK_BYTES_MIN`] or more.
fn class_of(bytes: usize) -> usize {
    (bytes / CHUNK_BYTES_MIN).ilog2() as usize
}

/// A short list may be this long: it grows by doubling.
const UNPARSED_SHORT_BYTES: usize = 2 * SESSION_BYTES_SPARED;

/// Memory that waits for its next use.
pub struct ChunkPool {
    /// By their class.
    free: [Vec<Chunk>; CLASSES],
    free_count: usize,
    free_bytes: usize,
    spans: Lists<Spans>,
    pub(in crate::core) frames: Lists<VecDeque<Frame>>,
    pub(in crate::core) aparts: Lists<Box<Extras>>,
    /// Of bytes that came in and are no whole frame yet.
    unparsed: Lists<Vec<u8>>,
    /// The same where they are few: a session with a few bytes must not hold a long list.
    unparsed_short: Lists<Vec<u8>>,
    pub(in crate::core) held: Held,
}

/// What the windows and outboxes of a shard hold, and what left them: they all count here, since all take their chunks here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// The memory of the windows.
    pub window_bytes: usize,
    /// The memory of the answers that wait or are on their way, without what they share.
    pub answer_bytes: usize,
    /// The memory of what came in and is no whole message or head yet.
    pub unfinished_bytes: usize,
    /// Frames that were taken out of windows, once for each session.
    pub frames_taken: u64,
}

impl Default for ChunkPool {
    fn default() -> Self {
        Self {
            free: array::from_fn(|_| Vec::new()),
            free_count: 0,
            free_bytes: 0,
            spans: Lists::default(),
            frames: Lists::default(),
            aparts: Lists::default(),
            unparsed: Lists::default(),
            unparsed_short: Lists::default(),
            held: Held::default(),
        }
    }
}

impl ChunkPool {
    /// An empty chunk that nobody else holds, with room for `bytes`.
    pub fn take(&mut self, bytes: usize) -> Chunk {
        // Powers of two, so that what is given back fits what is asked for next.
        let bytes = bytes.max(CHUNK_BYTES_MIN).next_power_of_two();
        let least = class_of(bytes);
        let bound = if least > CLASS_SHARED {
            CLASSES - 1
        } else {
            CLASS_SHARED
        };
        let most = bound.min(least + CLASSES_ABOVE);
        let classes = self.free.iter_mut().take(most + 1).skip(least);
        // The last ones in are the likeliest to be in the processor's cache.
        if let Some(chunk) = classes.into_iter().find_map(Vec::pop) {
            self.free_count -= 1;
            self.free_bytes -= chunk.capacity();
            return chunk;
        }
        Rc::new(Vec::with_capacity(bytes))
    }

    /// Takes a chunk back; one that somebody still holds, or that is large, is let go.
    pub fn give(&mut self, mut chunk: Chunk) {
        // All who are sent the same but the last come no further.
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

    /// Appends a span.
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

    /// Takes back all chunks of a send.
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
        self.spans.give(spans);
    }

    /// A chunk of its own for what `write` appends, which is about `bytes` long.
    pub fn fill(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Chunk {
        let mut chunk = self.take(bytes);
        write(Rc::get_mut(&mut chunk).expect("a chunk of the pool has one owner"));
        chunk
    }

    /// The bytes of all spans in a chunk of their own.
    pub fn join(&mut self, spans: &[Span]) -> Chunk {
        self.fill(spans_bytes(spans), |out| {
            for span in spans {
                out.extend_from_slice(span.bytes());
            }
        })
    }

    /// A list of bytes that came in and are no whole frame yet.
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

    /// Takes the memory of such a list back.
    pub(in crate::core) fn give_unparsed(&mut self, list: Vec<u8>) {
        let capacity = list.capacity();
        if capacity <= UNPARSED_SHORT_BYTES {
            self.unparsed_short.give(list);
        } else if capacity <= CHUNK_BYTES_MAX {
            self.unparsed.give(list);
        }
    }

    /// Makes room for `bytes` more in a chunk that has one owner.
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
    fn what_was_sent_is_taken_off_and_its_chunks_go_back() {
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
    fn the_pool_keeps_what_nobody_holds() {
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
    fn a_chunk_is_used_again_where_it_fits_and_wastes_little() {
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
    fn a_chunk_that_grows_keeps_its_bytes_and_leaves_the_smaller_one() {
        let mut pool = ChunkPool::default();
        let mut chunk = pool.fill(200, |out| out.resize(200, 7));
        pool.grow(&mut chunk, 56);
        assert_eq!((chunk.capacity(), pool.free_count), (256, 0));
        pool.grow(&mut chunk, 57);
        assert_eq!((chunk.capacity(), pool.free_count), (512, 1));
        assert_eq!(*chunk, [7; 200]);
    }

    #[test]
    fn lists_are_used_again_and_bounded() {
        let mut lists: Lists<Vec<u8>> = Lists::default();
        lists.give(Vec::new());
        assert!(lists.free.is_empty(), "one without memory is no gain");
        let mut list = Vec::with_capacity(100);
        list.push(1);
        lists.give(list);
        let list = lists.take();
        assert_eq!((list.len(), list.capacity(), lists.free_bytes), (0, 100, 0));
        for (bytes, kept) in [(1, LISTS_KEPT_MAX), (LIST_BYTES_KEPT_MAX / 4, 4)] {
            let mut lists: Lists<Vec<u8>> = Lists::default();
            for _ in 0..=LISTS_KEPT_MAX {
                lists.give(Vec::with_capacity(bytes));
            }
            assert_eq!((lists.free.len(), lists.free_bytes), (kept, kept * bytes));
        }
    }
}
