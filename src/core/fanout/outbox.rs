//! What one client is owed: a cursor into its workspace's window, and answers of its own.
//!
//! Broadcasts are not queued here: the cursor says how far the client is, and the frames behind it
//! stand in the [`Window`] once for all. Only what nobody else gets is queued: the handshake's
//! answer, init, corrections, errors, pings, pongs, the close frame. Each carries the window offset
//! behind which it belongs, so that a client sees all of it in the order in which it came to be.
//!
//! A client whose cursor falls out of the window is *behind*: it is owed, instead of the frames,
//! the latest op of each key that changed since, which `core::shard::delivery` reads from the
//! workspace when its socket drains.

use std::ops::Range;

use smallvec::SmallVec;

pub use crate::core::fanout::chunk_pool::Behind;
pub use crate::core::fanout::chunk_pool::Due;
use crate::core::fanout::chunk_pool::{
    Answer, Chunk, ChunkPool, Cost, Extras, Span, Spans, spans_bytes,
};
use crate::core::fanout::encoded_state::EncodedState;
use crate::core::fanout::window::Window;
use crate::core::fanout::window_offset::WindowOffset;
use crate::limits::{
    ANSWER_SEND_BYTES_MAX, CHUNK_BYTES_MIN, OWN_STRETCHES_MAX, SEND_BYTES_MAX, SEND_SPANS_MAX,
};
use crate::log::position::LogPosition;

/// The memory of so many stretches stays with a client that falls behind: it is soon needed again.
const OWN_STRETCHES_KEPT: usize = 32;

/// What one client is owed.
#[derive(Default)]
pub struct Outbox {
    cursor: WindowOffset,
    /// None for who is owed what all others are owed and no more: nearly everybody, nearly always.
    apart: Option<Box<Extras>>,
    in_flight: InFlight,
}

/// What the answers cost that a send in flight ends, or has ended: their memory is there until it
/// is done.
#[derive(Debug, Clone, Copy, Default)]
struct InFlight {
    own_bytes: u32,
    shared_bytes: u32,
}

impl InFlight {
    fn add(&mut self, cost: Cost) {
        // Each answer is shorter than a frame may be, and a send carries little more than one.
        let narrow = |bytes: usize| u32::try_from(bytes).expect("a send is shorter than 4 GiB");
        self.own_bytes += narrow(cost.own_bytes);
        self.shared_bytes += narrow(cost.shared_bytes);
    }
}

/// The part of a window that may leave.
pub struct View<'a> {
    /// The frames.
    pub window: &'a mut Window,
    /// The offset up to which they may be shown.
    pub visible_end: WindowOffset,
}

impl Outbox {
    /// Starts following a window at `cursor`.
    pub fn follow(&mut self, cursor: WindowOffset) {
        self.cursor = cursor;
        if let Some(apart) = &mut self.apart {
            apart.own.clear();
            apart.behind = None;
        }
    }

    /// The offset of the next byte of the window that the client is owed.
    #[must_use]
    pub fn cursor(&self) -> WindowOffset {
        self.cursor
    }

    /// Where the client stands if it fell out of the window.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        self.apart.as_ref()?.behind
    }

    /// The client fell out of the window: its broadcasts are dropped.
    pub fn fall_behind(&mut self, behind: Behind, pool: &mut ChunkPool) {
        let apart = self.apart(pool);
        apart.own.clear();
        if apart.own.capacity() > OWN_STRETCHES_KEPT {
            apart.own.shrink_to_fit();
        }
        apart.behind = Some(behind);
    }

    /// The memory of the answers that wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.cost().bytes()
    }

    /// The same with those that are on their way; of a state only what waits: the one who reads it
    /// may write meanwhile.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        self.own_answer_bytes() + self.shared_answer_bytes() + self.cost().state_bytes
    }

    /// The memory of the answers that wait or are on their way, without what others may hold too.
    #[must_use]
    pub fn own_answer_bytes(&self) -> usize {
        self.cost().own_bytes + self.in_flight.own_bytes as usize
    }

    /// What others may hold too, but for states.
    #[must_use]
    pub fn shared_answer_bytes(&self) -> usize {
        self.cost().shared_bytes + self.in_flight.shared_bytes as usize
    }

    /// The memory of the answers that are on their way, but for states.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight.own_bytes as usize + self.in_flight.shared_bytes as usize
    }

    /// Whether a part of a state waits.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.cost().state_bytes > 0
    }

    /// The send in flight is done, and its memory is free.
    pub fn sent(&mut self, pool: &mut ChunkPool) {
        pool.held.answer_bytes -= self.in_flight.own_bytes as usize;
        self.in_flight = InFlight::default();
    }

    /// Whether answers wait.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        let apart = self.apart.as_ref();
        apart.is_some_and(|apart| !apart.answers.is_empty())
    }

    /// Whether an answer waits for what lies behind the visible position, or is not written yet.
    #[must_use]
    pub fn is_gated(&self, visible_position: LogPosition) -> bool {
        let mut answers = self.apart.iter().flat_map(|apart| &apart.answers);
        answers.any(|answer| answer.chunk(visible_position).is_none())
    }

    /// Queues bytes for this client alone: behind the window offset `at`, once `gate` is visible.
    pub fn push(
        &mut self,
        chunk: Chunk,
        at: WindowOffset,
        gate: LogPosition,
        pool: &mut ChunkPool,
    ) {
        let due = Due {
            at,
            gate,
            awaits: None,
        };
        self.push_due(chunk, due, pool);
    }

    /// Queues bytes for this client alone.
    pub fn push_due(&mut self, chunk: Chunk, due: Due, pool: &mut ChunkPool) {
        let end = chunk.len();
        let cost = Cost {
            own_bytes: cost_bytes(end),
            ..Cost::default()
        };
        self.push_answer(EncodedState::Ready(chunk), 0..end, due, cost, pool);
    }

    /// Queues what several are sent, and what is no state. Nothing where it is empty.
    pub fn push_shared(&mut self, chunk: Chunk, due: Due, pool: &mut ChunkPool) {
        let end = chunk.len();
        if end > 0 {
            let cost = Cost {
                own_bytes: size_of::<Answer>(),
                shared_bytes: end,
                state_bytes: 0,
            };
            self.push_answer(EncodedState::Ready(chunk), 0..end, due, cost, pool);
        }
    }

    /// Queues a stretch of a state. Nothing where it is empty.
    pub fn push_state(
        &mut self,
        text: EncodedState,
        stretch: Range<usize>,
        due: Due,
        pool: &mut ChunkPool,
    ) {
        if !stretch.is_empty() {
            let cost = Cost {
                own_bytes: size_of::<Answer>(),
                shared_bytes: 0,
                state_bytes: stretch.len(),
            };
            self.push_answer(text, stretch, due, cost, pool);
        }
    }

    /// The frame at `start..end` of the window is the client's own. False: it has too many apart to
    /// remember, and must be conflated instead.
    #[must_use]
    pub fn skip_own(
        &mut self,
        start: WindowOffset,
        end: WindowOffset,
        pool: &mut ChunkPool,
    ) -> bool {
        if self.behind().is_some() {
            return true;
        }
        if self.cursor == start {
            self.cursor = end;
            return true;
        }
        let own = &mut self.apart(pool).own;
        match own.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => own.push((start, end)),
        }
        own.len() <= OWN_STRETCHES_MAX
    }

    /// Drops all that is not visible yet, and what is not written with all behind it, and forgets the
    /// window: the connection is closing.
    pub fn leave(&mut self, visible_position: LogPosition, pool: &mut ChunkPool) {
        self.follow(WindowOffset::START);
        let Some(apart) = &mut self.apart else {
            return;
        };
        // What comes behind a state makes no sense without it.
        let answers = &mut apart.answers;
        let written = answers.iter().take_while(|answer| answer.is_written());
        answers.truncate(written.count());
        answers.retain(|answer| answer.chunk(visible_position).is_some());
        pool.held.answer_bytes -= apart.cost.own_bytes;
        apart.cost = Cost::default();
        for answer in &mut apart.answers {
            answer.due.at = WindowOffset::START;
            apart.cost += answer.cost;
        }
        pool.held.answer_bytes += apart.cost.own_bytes;
    }

    /// Drops all but what is on its way: nothing more is sent. Returns whether the client misses
    /// the rest of an answer that it was sent a part of.
    pub fn drop_all(&mut self, pool: &mut ChunkPool) -> bool {
        pool.held.answer_bytes -= self.cost().own_bytes;
        let apart = self.apart.take();
        self.cursor = WindowOffset::START;
        apart.is_some_and(|apart| apart.answers.front().is_some_and(|answer| answer.is_begun))
    }

    /// Takes what may be sent now, in order. Frames are taken up to [`SEND_BYTES_MAX`] in all, unless
    /// one is longer, since a send pins chunks of the window that may go before it is done. Answers
    /// are taken up to [`ANSWER_SEND_BYTES_MAX`]: their chunks are the client's from the moment they
    /// are queued until the last byte is out, in however many sends.
    /// `view` is None for a client without a workspace.
    pub fn take(
        &mut self,
        view: Option<View<'_>>,
        visible_position: LogPosition,
        pool: &mut ChunkPool,
    ) -> Spans {
        let mut spans = Spans::new();
        match (self.apart.take(), view) {
            (Some(mut apart), view) => {
                self.take_apart(
                    &mut apart,
                    view.as_ref(),
                    visible_position,
                    pool,
                    &mut spans,
                );
                if apart.is_over() {
                    pool.aparts.give(apart);
                } else {
                    self.apart = Some(apart);
                }
            }
            (
                None,
                Some(View {
                    window,
                    visible_end,
                }),
            ) if self.cursor < visible_end => {
                let end = window.frame_end_within(self.cursor, visible_end, SEND_BYTES_MAX);
                window.joined(self.cursor, end, pool, &mut spans);
                self.cursor = end;
            }
            (None, _) => {}
        }
        if spans.len() > SEND_SPANS_MAX {
            join(spans, pool)
        } else {
            spans
        }
    }

    fn cost(&self) -> Cost {
        self.apart
            .as_ref()
            .map_or_else(Cost::default, |apart| apart.cost)
    }

    fn push_answer(
        &mut self,
        text: EncodedState,
        stretch: Range<usize>,
        due: Due,
        cost: Cost,
        pool: &mut ChunkPool,
    ) {
        let answer = Answer {
            text,
            start: stretch.start,
            end: stretch.end,
            is_begun: false,
            due,
            cost,
        };
        let apart = self.apart(pool);
        apart.cost += cost;
        apart.answers.push_back(answer);
        pool.held.answer_bytes += cost.own_bytes;
    }

    fn apart(&mut self, pool: &mut ChunkPool) -> &mut Extras {
        self.apart.get_or_insert_with(|| pool.aparts.take())
    }

    fn take_apart(
        &mut self,
        apart: &mut Extras,
        view: Option<&View<'_>>,
        visible_position: LogPosition,
        pool: &mut ChunkPool,
        spans: &mut Spans,
    ) {
        let mut taken_bytes = 0;
        loop {
            let in_order = |answer: &Answer| {
                view.is_none() || apart.behind.is_some() || answer.due.at <= self.cursor
            };
            if apart.answers.front().is_some_and(in_order) {
                // What would be copied into one piece is not to be long.
                let bytes_max = if spans.len() < SEND_SPANS_MAX {
                    ANSWER_SEND_BYTES_MAX
                } else {
                    SEND_BYTES_MAX
                };
                let room_bytes = bytes_max.saturating_sub(taken_bytes);
                match apart.take_answer(visible_position, room_bytes, pool, spans) {
                    (0, _) => break,
                    (bytes, ended) => {
                        taken_bytes += bytes;
                        self.in_flight.add(ended);
                    }
                }
                continue;
            }
            let Some(view) = view.filter(|_| apart.behind.is_none()) else {
                break;
            };
            let until = apart.answers.front().map_or(view.visible_end, |answer| {
                answer.due.at.min(view.visible_end)
            });
            let room_bytes = SEND_BYTES_MAX.saturating_sub(taken_bytes);
            if self.cursor >= until || room_bytes == 0 {
                break;
            }
            let end = view.window.frame_end_within(self.cursor, until, room_bytes);
            let bytes = end.bytes_since(self.cursor);
            if bytes > room_bytes && !spans.is_empty() {
                break;
            }
            let before = spans.len();
            self.take_frames(&mut apart.own, view.window, end, pool, spans);
            // Own ops are passed over and take no room: what stands behind them is owed now.
            taken_bytes += spans_bytes(&spans[before..]);
        }
    }

    fn take_frames(
        &mut self,
        own: &mut Vec<(WindowOffset, WindowOffset)>,
        window: &Window,
        end: WindowOffset,
        pool: &mut ChunkPool,
        spans: &mut Spans,
    ) {
        let mut passed = 0;
        for (own_start, own_end) in own.iter() {
            if *own_start >= end {
                break;
            }
            if *own_start > self.cursor {
                window.spans(self.cursor, *own_start, pool, spans);
            }
            self.cursor = self.cursor.max(*own_end);
            passed += 1;
        }
        own.drain(..passed);
        if end > self.cursor {
            window.spans(self.cursor, end, pool, spans);
            self.cursor = end;
        }
    }
}

impl Answer {
    /// What it is a stretch of, if it may be sent.
    fn chunk(&self, visible_position: LogPosition) -> Option<&Chunk> {
        let is_due = self.due.gate <= visible_position && self.is_written();
        self.text.chunk().filter(|_| is_due)
    }

    fn is_written(&self) -> bool {
        let mut texts = self.due.awaits.iter().chain([&self.text]);
        texts.all(|text| text.chunk().is_some())
    }
}

impl Extras {
    /// Takes what may be sent of the first answer: how much that is, and what it cost if that was
    /// the rest of it.
    fn take_answer(
        &mut self,
        visible_position: LogPosition,
        bytes_max: usize,
        pool: &mut ChunkPool,
        spans: &mut Spans,
    ) -> (usize, Cost) {
        let answer = self.answers.front_mut().expect("the caller saw an answer");
        let Some(chunk) = answer.chunk(visible_position).filter(|_| bytes_max > 0) else {
            return (0, Cost::default());
        };
        let chunk = Chunk::clone(chunk);
        let bytes = (answer.end - answer.start).min(bytes_max);
        let span = Span::new(chunk, answer.start, answer.start + bytes);
        pool.push_span(spans, span);
        answer.start += bytes;
        answer.is_begun = true;
        if answer.start < answer.end {
            return (bytes, Cost::default());
        }
        let cost = answer.cost;
        self.cost -= cost;
        self.answers.pop_front();
        (bytes, cost)
    }
}

/// What an answer of so many bytes costs: its chunk, however short it is, and its place in the queue.
fn cost_bytes(bytes: usize) -> usize {
    bytes.max(CHUNK_BYTES_MIN) + size_of::<Answer>()
}

/// One piece instead of many: for so many, the kernel's walk costs more than this copy.
fn join(spans: Spans, pool: &mut ChunkPool) -> Spans {
    let chunk = pool.join(&spans);
    let bytes = chunk.len();
    pool.give_spans(spans);
    SmallVec::from_iter([Span::new(chunk, 0, bytes)])
}

#[cfg(test)]
mod tests;
