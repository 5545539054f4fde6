//! What one client is owed: a cursor into its workspace's window, and answers of its own.
//!
//! Broadcasts are not queued here: the cursor says how far the client is, and the frames behind it
//! stand in the [`Window`] once for all. Only what nobody else gets is queued: the handshake's
//! answer, init, corrections, errors, pings, pongs, the close frame. Each carries the window offset
//! behind which it belongs, so that a client sees all of it in the order in which it came to be.
//!
//! A client whose cursor falls out of the window is *behind*: it is owed, instead of the frames,
//! the latest op of each key that changed since, which `core::delivery` reads from the
//! workspace when its socket drains.

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::core::chunk::{Answer, Chunk, ChunkPool, Span, Spans, spans_bytes};
use crate::core::window::Window;
use crate::limits::{CHUNK_BYTES_MIN, OWN_STRETCHES_MAX, SEND_BYTES_MAX, SEND_SPANS_MAX};

/// The memory of so many stretches stays with a client that falls behind: it is soon needed again.
const OWN_STRETCHES_KEPT: usize = 32;

/// Where a client stands that fell out of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// All ops up to this seq reached it.
    pub since: u64,
    /// The slot of the entry with that seq, where it is known.
    pub hint: Option<u32>,
}

/// What one client is owed.
#[derive(Default)]
pub struct Outbox {
    answers: VecDeque<Answer>,
    answer_bytes: usize,
    cursor: u64,
    /// Stretches behind the cursor that are the client's own ops, which it is not sent.
    own: SmallVec<[(u64, u64); 1]>,
    behind: Option<Behind>,
}

/// The part of a window that may leave.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The frames.
    pub window: &'a Window,
    /// The offset up to which they may be shown.
    pub visible_end: u64,
}

impl Outbox {
    /// Starts following a window at `cursor`.
    pub fn follow(&mut self, cursor: u64) {
        self.cursor = cursor;
        self.own.clear();
        self.behind = None;
    }

    /// The offset of the next byte of the window that the client is owed.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Where the client stands if it fell out of the window.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        self.behind
    }

    /// The client fell out of the window: its broadcasts are dropped.
    pub fn fall_behind(&mut self, behind: Behind) {
        self.own.clear();
        if self.own.capacity() > OWN_STRETCHES_KEPT {
            self.own.shrink_to_fit();
        }
        self.behind = Some(behind);
    }

    /// The memory of the answers that wait.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// Whether answers wait.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Whether an answer waits for what lies behind the visible position.
    #[must_use]
    pub fn is_gated(&self, visible_position: u64) -> bool {
        let mut gates = self.answers.iter().map(|answer| answer.gate);
        gates.any(|gate| gate > visible_position)
    }

    /// Queues bytes for this client alone: behind the window offset `at`, once `gate` is visible.
    pub fn push(&mut self, chunk: Chunk, at: u64, gate: u64, pool: &mut ChunkPool) {
        if self.answers.capacity() == 0 {
            self.answers = pool.answers.take();
        }
        let (start, end) = (0, chunk.len());
        self.answer_bytes += cost_bytes(end);
        pool.held.answer_bytes += cost_bytes(end);
        self.answers.push_back(Answer {
            chunk,
            start,
            end,
            at,
            gate,
        });
    }

    /// The frame at `start..end` of the window is the client's own. False: it has too many apart to
    /// remember, and must be conflated instead.
    #[must_use]
    pub fn skip_own(&mut self, start: u64, end: u64) -> bool {
        if self.behind.is_some() {
            return true;
        }
        if self.cursor == start {
            self.cursor = end;
            return true;
        }
        match self.own.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.own.push((start, end)),
        }
        self.own.len() <= OWN_STRETCHES_MAX
    }

    /// Drops all that is not visible yet and forgets the window: the connection is closing.
    pub fn leave(&mut self, visible_position: u64, pool: &mut ChunkPool) {
        pool.held.answer_bytes -= self.answer_bytes;
        self.answers
            .retain(|answer| answer.gate <= visible_position);
        self.answer_bytes = self
            .answers
            .iter()
            .map(|answer| cost_bytes(answer.end))
            .sum();
        pool.held.answer_bytes += self.answer_bytes;
        for answer in &mut self.answers {
            answer.at = 0;
        }
        self.follow(0);
    }

    /// Drops all: nothing more is sent.
    pub fn drop_all(&mut self, pool: &mut ChunkPool) {
        pool.held.answer_bytes -= self.answer_bytes;
        *self = Self::default();
    }

    /// Takes what may be sent now, in order, at most [`SEND_BYTES_MAX`] unless one frame is longer.
    /// `view` is None for a client without a workspace.
    pub fn take(
        &mut self,
        view: Option<View<'_>>,
        visible_position: u64,
        pool: &mut ChunkPool,
    ) -> Spans {
        let mut spans = Spans::new();
        let mut room_bytes = SEND_BYTES_MAX;
        while room_bytes > 0 {
            let in_order = |answer: &Answer| {
                view.is_none() || self.behind.is_some() || answer.at <= self.cursor
            };
            if self.answers.front().is_some_and(in_order) {
                match self.take_answer(visible_position, room_bytes, pool, &mut spans) {
                    0 => break,
                    bytes => room_bytes -= bytes,
                }
                continue;
            }
            let Some(view) = view.filter(|_| self.behind.is_none()) else {
                break;
            };
            let until = self
                .answers
                .front()
                .map_or(view.visible_end, |answer| answer.at.min(view.visible_end));
            if self.cursor >= until {
                break;
            }
            let end = view.window.frame_end_within(self.cursor, until, room_bytes);
            let bytes = usize::try_from(end - self.cursor).expect("a window fits memory");
            if bytes > room_bytes && !spans.is_empty() {
                break;
            }
            let before = spans.len();
            self.take_frames(view.window, end, pool, &mut spans);
            // Own ops are passed over and take no room: what stands behind them is owed now.
            room_bytes = room_bytes.saturating_sub(spans_bytes(&spans[before..]));
        }
        if spans.len() > SEND_SPANS_MAX {
            join(spans, pool)
        } else {
            spans
        }
    }

    fn take_answer(
        &mut self,
        visible_position: u64,
        bytes_max: usize,
        pool: &mut ChunkPool,
        spans: &mut Spans,
    ) -> usize {
        let answer = self.answers.front_mut().expect("the caller saw an answer");
        if answer.gate > visible_position {
            return 0;
        }
        let bytes = (answer.end - answer.start).min(bytes_max);
        let span = Span::new(answer.chunk.clone(), answer.start, answer.start + bytes);
        pool.push_span(spans, span);
        answer.start += bytes;
        if answer.start == answer.end {
            self.answer_bytes -= cost_bytes(answer.end);
            pool.held.answer_bytes -= cost_bytes(answer.end);
            self.answers.pop_front();
        }
        if self.answers.is_empty() {
            pool.answers.give(std::mem::take(&mut self.answers));
        }
        bytes
    }

    fn take_frames(&mut self, window: &Window, end: u64, pool: &mut ChunkPool, spans: &mut Spans) {
        let mut passed = 0;
        for (own_start, own_end) in &self.own {
            if *own_start >= end {
                break;
            }
            if *own_start > self.cursor {
                window.spans(self.cursor, *own_start, pool, spans);
            }
            self.cursor = self.cursor.max(*own_end);
            passed += 1;
        }
        self.own.drain(..passed);
        if end > self.cursor {
            window.spans(self.cursor, end, pool, spans);
            self.cursor = end;
        }
    }
}

/// What an answer of so many bytes costs: its chunk, however short it is, and its place in the queue.
fn cost_bytes(bytes: usize) -> usize {
    bytes.max(CHUNK_BYTES_MIN) + size_of::<Answer>()
}

/// One piece instead of many: for so many, the kernel's walk costs more than this copy.
fn join(spans: Spans, pool: &mut ChunkPool) -> Spans {
    let bytes = spans_bytes(&spans);
    let chunk = pool.fill(bytes, |out| {
        for span in &spans {
            out.extend_from_slice(span.bytes());
        }
    });
    pool.give_spans(spans);
    SmallVec::from_iter([Span::new(chunk, 0, bytes)])
}

#[cfg(test)]
mod tests;
