//! The recent frames of a workspace, encoded once, in shared chunks.
//!
//! Each byte of a window has an offset, counted from the first frame that the window ever
//! contained. The cursor in a session's outbox is such an offset, so a thousand slow sessions cost
//! no more memory than one. Frames stay until every cursor has passed them, or until the window
//! exceeds its bound. A session whose cursor would then fall out of the window is *behind*.
//!
//! Casts (P167) are frames among the ops, so a session that falls out of the window misses them.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::core::fanout::free_lists::FreeLists;
use crate::core::fanout::window_offset::WindowOffset;
use crate::limits::{CHUNK_BYTES_MAX, JOINED_BYTES_MAX};
use crate::log::position::LogPosition;
use crate::seq::Seq;

pub use crate::core::fanout::chunk_pool::{Chunk, ChunkPool, Span, Spans, skip_sent, spans_bytes};

/// Reusable memory for a shard's windows, and the total memory that they hold.
#[derive(Default)]
pub struct WindowPool {
    /// The pool of the windows' chunks.
    pub chunks: ChunkPool,
    frames: FreeLists<VecDeque<Frame>>,
    /// The memory of all windows.
    window_bytes: usize,
    /// The number of frames taken from windows. A frame counts once per session.
    frames_taken: u64,
}

impl WindowPool {
    /// Returns the memory of all windows.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// Returns the number of frames taken from windows. A frame counts once per session.
    #[must_use]
    pub fn frames_taken(&self) -> u64 {
        self.frames_taken
    }

    /// Resets the memory total after all windows have been dropped together with their rooms.
    pub fn forget_windows(&mut self) {
        self.window_bytes = 0;
    }
}

/// The end of a frame, and the condition for sending it.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// The offset after the frame's last byte.
    end: WindowOffset,
    seq: Seq,
    /// The log position that must be durable before the frame may be sent.
    position: LogPosition,
}

/// A chunk and the offset of its first byte.
struct Piece {
    start: WindowOffset,
    chunk: Chunk,
}

impl Piece {
    fn end(&self) -> WindowOffset {
        self.start.advance(self.chunk.len())
    }

    /// Returns the bytes `from..until` if the piece contains all of them.
    fn span(&self, from: WindowOffset, until: WindowOffset) -> Option<Span> {
        let within = |offset: WindowOffset| offset.bytes_since(self.start);
        let holds = self.start <= from && from < until && until <= self.end();
        holds.then(|| Span::new(Rc::clone(&self.chunk), within(from), within(until)))
    }
}

/// The recent frames of one workspace.
#[derive(Default)]
pub struct Window {
    pieces: VecDeque<Piece>,
    frames: VecDeque<Frame>,
    start: WindowOffset,
    end: WindowOffset,
    /// The seq at `start`, which is the seq of the last dropped frame.
    start_seq: Seq,
    capacity_bytes: usize,
    /// The initial size of the next chunk. It is the final size of the last one, which saves copies
    /// while the chunk grows. The hint is halved with each chunk, so that the effect of a single
    /// long frame soon wears off.
    chunk_bytes_hint: usize,
    /// Several pieces copied into one, shared by all sessions whose cursors are at the same offset.
    joined: Option<Piece>,
}

impl Window {
    /// Returns an empty window for a workspace whose last op has this seq.
    #[must_use]
    pub fn new(seq: Seq) -> Self {
        Self {
            start_seq: seq,
            ..Self::default()
        }
    }

    /// Empties the window, for a workspace whose last op has this seq. No cursor may be in the
    /// window. Its offsets continue after a gap, so that every earlier offset lies before the
    /// window.
    pub fn restart(&mut self, seq: Seq, pool: &mut WindowPool) {
        self.drop_before(self.end, pool);
        self.end = self.end.advance(1);
        (self.start, self.start_seq) = (self.end, seq);
    }

    /// Returns the offset of the oldest byte in the window.
    #[must_use]
    pub fn start(&self) -> WindowOffset {
        self.start
    }

    /// Returns the offset after the newest byte.
    #[must_use]
    pub fn end(&self) -> WindowOffset {
        self.end
    }

    /// Checks the invariants that hold between any two calls: `start ≤ end`, the frames lie between
    /// them in order of seq and log position, and the pieces cover them without a gap.
    ///
    /// # Panics
    /// If an invariant is violated.
    pub fn invariants(&self) {
        assert!(self.start <= self.end);
        let (mut end, mut seq, mut position) = (self.start, self.start_seq, LogPosition::NONE);
        for frame in &self.frames {
            // A cast has the seq of the op before it.
            assert!(end < frame.end && seq <= frame.seq && position <= frame.position);
            (end, seq, position) = (frame.end, frame.seq, frame.position);
        }
        assert_eq!(
            end, self.end,
            "the last frame does not end at the end of the window"
        );
        let mut pieces = self.pieces.iter().peekable();
        while let Some(piece) = pieces.next() {
            assert!(
                piece.end() > self.start,
                "a piece that no cursor needs is still held"
            );
            let next = pieces.peek().map_or(self.end, |next| next.start);
            assert_eq!(piece.end(), next, "the pieces are not contiguous");
        }
        let first = self.pieces.front().map_or(self.end, |piece| piece.start);
        assert!(first <= self.start, "the oldest frame is in no piece");
        let held: usize = self.pieces.iter().map(|piece| piece.chunk.capacity()).sum();
        assert_eq!(held, self.capacity_bytes);
    }

    /// Returns the memory that the window holds.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Appends the frame that `write` produces, of exactly `bytes` bytes. It may be sent once
    /// `position` is durable.
    ///
    /// # Panics
    /// If the frame has a different length, `seq` does not increase, or `position` decreases.
    pub fn push(
        &mut self,
        pool: &mut WindowPool,
        seq: Seq,
        position: LogPosition,
        bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        assert!(
            self.frames
                .back()
                .is_none_or(|last| last.seq < seq && last.position <= position),
            "frames are pushed out of order"
        );
        self.append(pool, seq, position, bytes, write);
    }

    /// Appends a frame that is not an op, of exactly `bytes` bytes, for receivers that have not
    /// fallen out of the window by the time it is sent. It may be sent as soon as the frames before
    /// it.
    ///
    /// # Panics
    /// If the frame has a different length.
    pub fn push_cast(
        &mut self,
        pool: &mut WindowPool,
        bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let last = self.frames.back();
        let position = last.map_or(LogPosition::NONE, |last| last.position);
        self.append(pool, self.seq_at(self.end), position, bytes, write);
    }

    fn append(
        &mut self,
        pool: &mut WindowPool,
        seq: Seq,
        position: LogPosition,
        bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.frames.capacity() == 0 {
            self.frames = pool.frames.take();
        }
        let held_bytes = self.capacity_bytes;
        let chunk = self.open_chunk(&mut pool.chunks, bytes);
        let (old_bytes, old_capacity) = (chunk.len(), chunk.capacity());
        write(chunk);
        assert_eq!(
            chunk.len() - old_bytes,
            bytes,
            "the frame has another length than announced"
        );
        let (grown, filled) = (chunk.capacity() - old_capacity, chunk.len());
        self.capacity_bytes += grown;
        pool.window_bytes += self.capacity_bytes;
        pool.window_bytes -= held_bytes;
        self.chunk_bytes_hint = self.chunk_bytes_hint.max(filled.min(CHUNK_BYTES_MAX));
        self.end = self.end.advance(bytes);
        self.frames.push_back(Frame {
            end: self.end,
            seq,
            position,
        });
    }

    /// Returns a chunk that only this window holds, with room for `bytes` bytes.
    fn open_chunk(&mut self, pool: &mut ChunkPool, bytes: usize) -> &mut Vec<u8> {
        // A chunk that a send in flight holds is sealed, because the kernel is reading it.
        let open = self.pieces.back_mut().is_some_and(|piece| {
            Rc::get_mut(&mut piece.chunk).is_some() && piece.chunk.len() + bytes <= CHUNK_BYTES_MAX
        });
        if !open {
            let chunk = pool.take(bytes.max(self.chunk_bytes_hint));
            self.chunk_bytes_hint /= 2;
            self.capacity_bytes += chunk.capacity();
            self.pieces.push_back(Piece {
                start: self.end,
                chunk,
            });
        }
        let piece = self.pieces.back_mut().expect("a chunk was opened");
        self.capacity_bytes -= piece.chunk.capacity();
        pool.grow(&mut piece.chunk, bytes);
        self.capacity_bytes += piece.chunk.capacity();
        Rc::get_mut(&mut piece.chunk).expect("an open chunk has only one owner")
    }

    /// Returns the offset up to which frames may be sent if the log is durable up to `position`.
    #[must_use]
    pub fn visible_end(&self, position: LogPosition) -> WindowOffset {
        if self
            .frames
            .back()
            .is_none_or(|last| last.position <= position)
        {
            return self.end;
        }
        let visible = self
            .frames
            .partition_point(|frame| frame.position <= position);
        visible
            .checked_sub(1)
            .map_or(self.start, |last| self.frames[last].end)
    }

    /// Returns the seq of the last frame before `offset`, which must be the end of a frame.
    #[must_use]
    pub fn seq_at(&self, offset: WindowOffset) -> Seq {
        if offset >= self.end
            && let Some(last) = self.frames.back()
        {
            return last.seq;
        }
        let before = self.frames.partition_point(|frame| frame.end <= offset);
        before
            .checked_sub(1)
            .map_or(self.start_seq, |last| self.frames[last].seq)
    }

    /// Returns the log position of the first frame after `offset`, which must be the end of a
    /// frame.
    #[must_use]
    pub fn position_after(&self, offset: WindowOffset) -> Option<LogPosition> {
        let before = self.frames.partition_point(|frame| frame.end <= offset);
        self.frames.get(before).map(|frame| frame.position)
    }

    /// Returns the end of the last frame that ends within `bytes` bytes after `from`. The range
    /// includes at least one frame, and ends at `until` at the latest.
    #[must_use]
    pub fn frame_end_within(
        &self,
        from: WindowOffset,
        until: WindowOffset,
        bytes: usize,
    ) -> WindowOffset {
        let most = from.advance(bytes);
        if until <= most {
            return until;
        }
        let first = self.frames.partition_point(|frame| frame.end <= from);
        let after = self.frames.partition_point(|frame| frame.end <= most);
        self.frames[first.max(after.saturating_sub(1))].end
    }

    /// Returns the number of frames between two frame ends. Each op that won has one frame, so the
    /// difference between their seqs is the count.
    fn frames_between(&self, from: WindowOffset, until: WindowOffset) -> u64 {
        self.seq_at(until).ops_since(self.seq_at(from))
    }

    /// Appends the bytes `from..until` to `out`.
    ///
    /// # Panics
    /// If the bytes are not in the window.
    pub fn spans(
        &self,
        from: WindowOffset,
        until: WindowOffset,
        pool: &mut WindowPool,
        out: &mut Spans,
    ) {
        assert!(
            self.start <= from && from <= until && until <= self.end,
            "the cursor is in the window"
        );
        pool.frames_taken += self.frames_between(from, until);
        let mut from = from;
        let first = self
            .pieces
            .partition_point(|piece| piece.start <= from)
            .saturating_sub(1);
        for piece in self.pieces.range(first..) {
            if from == until {
                break;
            }
            let end = piece.end().min(until);
            if end > from {
                let span = piece.span(from, end).expect("the pieces are adjacent");
                pool.chunks.push_span(out, span);
                from = end;
            }
        }
    }

    /// Appends the bytes `from..until` to `out`, as one span unless they are too long for that.
    /// Each extra span of a send costs the kernel more than this copy, which is made once for all
    /// sessions whose cursors are at `from`.
    ///
    /// # Panics
    /// If the bytes are not in the window.
    pub fn joined(
        &mut self,
        from: WindowOffset,
        until: WindowOffset,
        pool: &mut WindowPool,
        out: &mut Spans,
    ) {
        let is_short = until.bytes_since(from) <= JOINED_BYTES_MAX;
        if let Some(span) = self
            .joined
            .as_ref()
            .and_then(|piece| piece.span(from, until))
        {
            pool.frames_taken += self.frames_between(from, until);
            return pool.chunks.push_span(out, span);
        }
        let before = out.len();
        self.spans(from, until, pool, out);
        if out.len() - before < 2 || !is_short {
            return;
        }
        let chunk = pool.chunks.join(&out[before..]);
        out.truncate(before);
        pool.chunks
            .push_span(out, Span::new(Rc::clone(&chunk), 0, chunk.len()));
        self.drop_joined(&mut pool.chunks);
        self.joined = Some(Piece { start: from, chunk });
    }

    fn drop_joined(&mut self, pool: &mut ChunkPool) {
        if let Some(piece) = self.joined.take() {
            pool.give(piece.chunk);
        }
    }

    /// Drops the frames that end at or before `offset`.
    pub fn drop_before(&mut self, offset: WindowOffset, pool: &mut WindowPool) {
        while let Some(frame) = self.frames.front().filter(|frame| frame.end <= offset) {
            (self.start, self.start_seq) = (frame.end, frame.seq);
            self.frames.pop_front();
        }
        while let Some(piece) = self.pieces.front() {
            if piece.end() > self.start {
                break;
            }
            self.capacity_bytes -= piece.chunk.capacity();
            pool.window_bytes -= piece.chunk.capacity();
            let piece = self.pieces.pop_front().expect("the piece was just checked");
            pool.chunks.give(piece.chunk);
        }
        if self
            .joined
            .as_ref()
            .is_some_and(|piece| piece.end() <= self.start)
        {
            self.drop_joined(&mut pool.chunks);
        }
        if self.frames.is_empty() {
            let frames = std::mem::take(&mut self.frames);
            let bytes = frames.capacity() * size_of::<Frame>();
            pool.frames.give(frames, bytes);
        }
    }

    /// Returns the offset up to which frames must be dropped for the window to hold at most `bytes`
    /// bytes. Only whole chunks are dropped, oldest first, and none that ends after `visible_end`,
    /// because frames beyond it have not been sent to any session yet.
    #[must_use]
    pub fn overflow_end(&self, bytes: usize, visible_end: WindowOffset) -> WindowOffset {
        let (mut held, mut end) = (self.capacity_bytes, self.start);
        for piece in &self.pieces {
            let piece_end = piece.end();
            if held <= bytes || piece_end > visible_end {
                break;
            }
            held -= piece.chunk.capacity();
            end = piece_end;
        }
        end
    }
}

#[cfg(test)]
mod tests;
