//! The pending output of one session: a cursor into its workspace's window, and its own answers.
//!
//! Broadcasts are not queued here. The cursor says how far the session is, and the frames after it
//! are in the [`Window`], once for all sessions. Only what no other session gets is queued: the
//! answer to the handshake, the init message, corrections, errors, pings, pongs, the close frame.
//! Each carries the window offset after which it belongs, so a session receives everything in the
//! order in which it came to be.
//!
//! ```text
//!   start ──────────── cursor ──────────── visible_end ──────────── end      of the window
//!     sent, or passed over │ sent with the next │ waits for the log
//! ```
//!
//! `start ≤ cursor ≤ end` and `start ≤ visible_end ≤ end` always hold ([`Outbox::invariants`]). The
//! cursor is beyond `visible_end` only where nothing between them is sent out of the window: the
//! session's own ops, and the ops that the init message contains, which waits for the log itself.
//! So what is sent out of the window always ends at `visible_end` or before.
//!
//! A session whose cursor falls out of the window is *behind*. Instead of the frames it is owed the
//! latest op of each key that changed since, which `core::shard::delivery` reads from the workspace
//! when the socket drains.

use std::collections::VecDeque;
use std::ops::{AddAssign, Range, SubAssign};

use smallvec::SmallVec;

use crate::core::fanout::chunk_pool::{Chunk, Span, Spans, spans_bytes};
use crate::core::fanout::encoded_state::EncodedState;
use crate::core::fanout::free_lists::FreeLists;
use crate::core::fanout::window::{Window, WindowPool};
use crate::core::fanout::window_offset::WindowOffset;
use crate::limits::{
    ANSWER_SEND_BYTES_MAX, CHUNK_BYTES_MIN, OWN_FRAMES_MAX, SEND_BYTES_MAX, SEND_SPANS_MAX,
};
use crate::log::position::LogPosition;
use crate::seq::Seq;

/// A session that falls behind keeps the memory of this many own frames: it is soon needed again.
const OWN_FRAMES_KEPT: usize = 32;

/// The pending output of one session.
#[derive(Default)]
pub struct Outbox {
    cursor: WindowOffset,
    /// None if the session is owed what all others are owed and no more: nearly every session,
    /// nearly always.
    extras: Option<Box<Extras>>,
    in_flight: InFlight,
}

/// The pending output that a session does not share with the others of its workspace.
#[derive(Default)]
struct Extras {
    answers: VecDeque<QueuedAnswer>,
    /// The sum over `answers`.
    cost: AnswerCost,
    /// Frames after the cursor that are the session's own ops, which it is not sent.
    own: Vec<(WindowOffset, WindowOffset)>,
    behind: Option<Behind>,
}

/// A range of bytes that only this session is sent.
struct QueuedAnswer {
    bytes: EncodedState,
    start: usize,
    end: usize,
    /// A part of it was taken, so the rest must follow.
    is_begun: bool,
    due: Due,
    cost: AnswerCost,
}

/// When an answer may be sent: once all three conditions are met.
#[derive(Debug, Clone)]
pub struct Due {
    /// The session has received the window up to this offset.
    pub at: WindowOffset,
    /// This log position is visible.
    pub visible_from: LogPosition,
    /// This state is ready: one that another answer around this one is a part of. An HTTP answer
    /// has a head, fields and timestamps, of which all are sent or none.
    pub awaits: Option<EncodedState>,
}

/// The memory that an answer holds.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_field_names, reason = "a unit comes last in a name")]
struct AnswerCost {
    /// Memory that is there for the session alone.
    own_bytes: usize,
    /// Memory that other sessions may hold too: corrections and lists of users, which are in the
    /// budget of `core::shard::session_budget`.
    shared_bytes: usize,
    /// Memory of encoded states, which have a budget of their own.
    state_bytes: usize,
}

/// The memory of the answers that the send in flight has finished. It is the kernel's until the
/// send ends.
#[derive(Debug, Clone, Copy, Default)]
struct InFlight {
    own_bytes: u32,
    shared_bytes: u32,
}

/// How far a session is that fell out of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// All ops up to this one have reached the session.
    pub since: Seq,
    /// The slot of the entry with that seq, if it is known.
    pub hint: Option<u32>,
}

/// The part of a window that may leave.
pub struct View<'a> {
    /// The frames.
    pub window: &'a mut Window,
    /// The offset up to which frames may be shown.
    pub visible_end: WindowOffset,
}

/// Memory that the outboxes of a shard, and its windows, use again, and what they hold together.
#[derive(Default)]
pub struct OutboxPool {
    windows: WindowPool,
    extras: FreeLists<Box<Extras>>,
    /// The own memory of all answers that wait or are in flight.
    answer_bytes: usize,
}

impl OutboxPool {
    /// Returns the pool of the windows.
    pub fn windows(&mut self) -> &mut WindowPool {
        &mut self.windows
    }

    /// Returns the memory of all answers that wait or are in flight, without what several sessions
    /// share.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// Returns the memory of all windows.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.windows.window_bytes()
    }

    /// Returns how many frames were taken out of windows, once for each session.
    #[must_use]
    pub fn frames_taken(&self) -> u64 {
        self.windows.frames_taken()
    }

    /// Begins to count again: no window is left, and each outbox is to be counted
    /// ([`Outbox::count`]).
    pub fn reset(&mut self) {
        self.windows.forget_windows();
        self.answer_bytes = 0;
    }

    /// Returns a new chunk with what `write` appends, which is about `bytes` long.
    pub fn fill(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Chunk {
        self.windows.chunks.fill(bytes, write)
    }

    /// Takes a chunk back, unless another one holds it too.
    pub fn give(&mut self, chunk: Chunk) {
        self.windows.chunks.give(chunk);
    }

    /// Takes back all chunks of a send.
    pub fn give_spans(&mut self, spans: Spans) {
        self.windows.chunks.give_spans(spans);
    }

    /// Copies bytes that were received and are not a whole frame yet.
    pub(in crate::core) fn keep_unparsed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.windows.chunks.keep_unparsed(bytes)
    }

    /// Takes back a list that [`OutboxPool::keep_unparsed`] returned.
    pub(in crate::core) fn give_unparsed(&mut self, list: Vec<u8>) {
        self.windows.chunks.give_unparsed(list);
    }

    fn give_extras(&mut self, mut extras: Box<Extras>) {
        let Extras {
            answers,
            cost,
            own,
            behind,
        } = &mut *extras;
        answers.clear();
        own.clear();
        (*cost, *behind) = (AnswerCost::default(), None);
        let bytes = size_of::<Extras>()
            + answers.capacity() * size_of::<QueuedAnswer>()
            + own.capacity() * size_of::<(WindowOffset, WindowOffset)>();
        self.extras.give(extras, bytes);
    }
}

impl Outbox {
    /// Starts following a window at `cursor`.
    pub fn follow(&mut self, cursor: WindowOffset) {
        self.cursor = cursor;
        if let Some(extras) = &mut self.extras {
            extras.own.clear();
            extras.behind = None;
        }
    }

    /// Returns the offset of the next byte of the window that the session is owed.
    #[must_use]
    pub fn cursor(&self) -> WindowOffset {
        self.cursor
    }

    /// Returns how far the session is if it fell out of the window.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        self.extras.as_ref()?.behind
    }

    /// Drops the broadcasts that the session is owed: it fell out of the window.
    pub fn fall_behind(&mut self, behind: Behind, pool: &mut OutboxPool) {
        let extras = self.extras(pool);
        extras.own.clear();
        if extras.own.capacity() > OWN_FRAMES_KEPT {
            extras.own.shrink_to_fit();
        }
        extras.behind = Some(behind);
    }

    /// Checks what holds between any two calls. `view` is `None` for a session without a workspace.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn invariants(&self, view: Option<&View<'_>>) {
        let (start, end) = view.map_or((self.cursor, self.cursor), |view| {
            let (start, end) = (view.window.start(), view.window.end());
            assert!(start <= view.visible_end && view.visible_end <= end);
            (start, end)
        });
        let is_behind = self.behind().is_some();
        assert!(
            is_behind || start <= self.cursor && self.cursor <= end,
            "a session whose cursor is not in the window is behind"
        );
        let Some(extras) = &self.extras else { return };
        assert!(
            !is_behind || extras.own.is_empty(),
            "a session that is behind reads no window"
        );
        let mut passed = None;
        for (own_start, own_end) in &extras.own {
            assert!(own_start < own_end && self.cursor <= *own_start && *own_end <= end);
            assert!(passed < Some(*own_start), "own frames that touch are one");
            passed = Some(*own_end);
        }
        let mut cost = AnswerCost::default();
        let mut due = WindowOffset::START;
        for answer in &extras.answers {
            assert!(
                due <= answer.due.at,
                "answers are sent in the order of their offsets"
            );
            assert!(answer.start <= answer.end);
            due = answer.due.at;
            cost += answer.cost;
        }
        assert_eq!(cost.bytes(), extras.cost.bytes());
    }

    // ---- memory ----

    /// Returns the memory of the answers that wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.cost().bytes()
    }

    /// Returns the memory of the answers that wait or are in flight. A state in flight does not
    /// count: a client that reads one may write meanwhile.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        self.own_answer_bytes() + self.shared_answer_bytes() + self.cost().state_bytes
    }

    /// Returns the memory of the answers that wait or are in flight, without what other sessions
    /// may hold too.
    #[must_use]
    pub fn own_answer_bytes(&self) -> usize {
        self.cost().own_bytes + self.in_flight.own_bytes as usize
    }

    /// Returns the memory that other sessions may hold too, without states.
    #[must_use]
    pub fn shared_answer_bytes(&self) -> usize {
        self.cost().shared_bytes + self.in_flight.shared_bytes as usize
    }

    /// Returns the memory of the answers in flight, without states.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight.own_bytes as usize + self.in_flight.shared_bytes as usize
    }

    /// Adds its answers to the sum of a pool that was reset.
    pub fn count(&self, pool: &mut OutboxPool) {
        pool.answer_bytes += self.own_answer_bytes();
    }

    /// Ends the send in flight: its memory is free.
    pub fn sent(&mut self, pool: &mut OutboxPool) {
        pool.answer_bytes -= self.in_flight.own_bytes as usize;
        self.in_flight = InFlight::default();
    }

    fn cost(&self) -> AnswerCost {
        let extras = self.extras.as_ref();
        extras.map_or_else(AnswerCost::default, |extras| extras.cost)
    }

    // ---- what waits ----

    /// Whether a part of a state waits.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.cost().state_bytes > 0
    }

    /// Whether answers wait.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        let extras = self.extras.as_ref();
        extras.is_some_and(|extras| !extras.answers.is_empty())
    }

    /// Whether an answer waits for a log position that is not visible, or for a state that is not
    /// ready.
    #[must_use]
    pub fn is_waiting_for_log(&self, visible_position: LogPosition) -> bool {
        let mut answers = self.extras.iter().flat_map(|extras| &extras.answers);
        answers.any(|answer| answer.sendable(visible_position).is_none())
    }

    /// Queues bytes for this session alone: after the window offset `at`, once the log position
    /// `visible_from` is visible.
    pub fn push(
        &mut self,
        chunk: Chunk,
        at: WindowOffset,
        visible_from: LogPosition,
        pool: &mut OutboxPool,
    ) {
        let due = Due {
            at,
            visible_from,
            awaits: None,
        };
        self.push_due(chunk, due, pool);
    }

    /// Queues bytes for this session alone.
    pub fn push_due(&mut self, chunk: Chunk, due: Due, pool: &mut OutboxPool) {
        let end = chunk.len();
        let cost = AnswerCost {
            own_bytes: own_cost(end),
            ..AnswerCost::default()
        };
        self.push_answer(EncodedState::Ready(chunk), 0..end, due, cost, pool);
    }

    /// Queues bytes that several sessions are sent, and that are no state. Nothing if it is empty.
    pub fn push_shared(&mut self, chunk: Chunk, due: Due, pool: &mut OutboxPool) {
        let end = chunk.len();
        if end > 0 {
            let cost = AnswerCost {
                own_bytes: size_of::<QueuedAnswer>(),
                shared_bytes: end,
                state_bytes: 0,
            };
            self.push_answer(EncodedState::Ready(chunk), 0..end, due, cost, pool);
        }
    }

    /// Queues a range of an encoded state. Nothing if it is empty.
    pub fn push_state(
        &mut self,
        state: EncodedState,
        range: Range<usize>,
        due: Due,
        pool: &mut OutboxPool,
    ) {
        if !range.is_empty() {
            let cost = AnswerCost {
                own_bytes: size_of::<QueuedAnswer>(),
                shared_bytes: 0,
                state_bytes: range.len(),
            };
            self.push_answer(state, range, due, cost, pool);
        }
    }

    fn push_answer(
        &mut self,
        bytes: EncodedState,
        range: Range<usize>,
        due: Due,
        cost: AnswerCost,
        pool: &mut OutboxPool,
    ) {
        let answer = QueuedAnswer {
            bytes,
            start: range.start,
            end: range.end,
            is_begun: false,
            due,
            cost,
        };
        let extras = self.extras(pool);
        extras.cost += cost;
        extras.answers.push_back(answer);
        pool.answer_bytes += cost.own_bytes;
    }

    fn extras(&mut self, pool: &mut OutboxPool) -> &mut Extras {
        self.extras.get_or_insert_with(|| pool.extras.take())
    }

    /// Passes over the frame at `start..end` of the window: it is the session's own op. False: too
    /// many single ones are to be remembered, so the session must be conflated instead.
    #[must_use]
    pub fn skip_own(
        &mut self,
        start: WindowOffset,
        end: WindowOffset,
        pool: &mut OutboxPool,
    ) -> bool {
        // Its own ops are left out of what a session behind is sent, too.
        if self.behind().is_some() {
            return true;
        }
        // The usual case: the session has received everything, and nothing is remembered.
        if self.cursor == start {
            self.cursor = end;
            return true;
        }
        let own = &mut self.extras(pool).own;
        match own.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => own.push((start, end)),
        }
        own.len() <= OWN_FRAMES_MAX
    }

    /// Forgets the window, and drops what is not visible yet, or not ready: the connection is
    /// closing.
    pub fn leave(&mut self, visible_position: LogPosition, pool: &mut OutboxPool) {
        self.follow(WindowOffset::START);
        let Some(extras) = &mut self.extras else {
            return;
        };
        // What comes after a state makes no sense without it, so it goes with it. An answer that
        // is only not visible is left out alone: the ones after it are about other ops.
        let answers = &mut extras.answers;
        let ready = answers.iter().take_while(|answer| answer.is_ready());
        answers.truncate(ready.count());
        answers.retain(|answer| answer.sendable(visible_position).is_some());
        pool.answer_bytes -= extras.cost.own_bytes;
        extras.cost = AnswerCost::default();
        for answer in &mut extras.answers {
            answer.due.at = WindowOffset::START;
            extras.cost += answer.cost;
        }
        pool.answer_bytes += extras.cost.own_bytes;
    }

    /// Drops everything except what is in flight: nothing more is sent. Returns whether the session
    /// was sent a part of an answer and now misses the rest.
    pub fn drop_all(&mut self, pool: &mut OutboxPool) -> bool {
        pool.answer_bytes -= self.cost().own_bytes;
        let extras = self.extras.take();
        self.cursor = WindowOffset::START;
        let first = extras.as_ref().and_then(|extras| extras.answers.front());
        first.is_some_and(|answer| answer.is_begun)
    }

    // ---- sending ----

    /// Takes what may be sent now, in order. `view` is None for a session without a workspace.
    ///
    /// Frames are taken up to [`SEND_BYTES_MAX`] in all, unless a single one is longer: a send pins
    /// chunks of the window, which may drop them before the send is done. Answers are taken up to
    /// [`ANSWER_SEND_BYTES_MAX`]: their chunks are the session's from the moment they are queued
    /// until the last byte is out, in however many sends.
    pub fn take(
        &mut self,
        view: Option<View<'_>>,
        visible_position: LogPosition,
        pool: &mut OutboxPool,
    ) -> Spans {
        let mut spans = Spans::new();
        match (self.extras.take(), view) {
            (Some(mut extras), view) => {
                self.take_with_extras(
                    &mut extras,
                    view.as_ref(),
                    visible_position,
                    pool,
                    &mut spans,
                );
                if extras.is_empty() {
                    pool.give_extras(extras);
                } else {
                    self.extras = Some(extras);
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
                window.joined(self.cursor, end, &mut pool.windows, &mut spans);
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

    /// Takes answers and frames by turns: an answer once the cursor has reached the offset after
    /// which it belongs, frames up to the offset of the next answer.
    fn take_with_extras(
        &mut self,
        extras: &mut Extras,
        view: Option<&View<'_>>,
        visible_position: LogPosition,
        pool: &mut OutboxPool,
        spans: &mut Spans,
    ) {
        let mut taken_bytes = 0;
        loop {
            // A session that is behind, or in no workspace, is sent no frames: nothing comes
            // before its answers.
            let in_order = |answer: &QueuedAnswer| {
                view.is_none() || extras.behind.is_some() || answer.due.at <= self.cursor
            };
            if extras.answers.front().is_some_and(in_order) {
                // With more spans than a send may have, all are copied into one, which must not be
                // long.
                let bytes_max = if spans.len() < SEND_SPANS_MAX {
                    ANSWER_SEND_BYTES_MAX
                } else {
                    SEND_BYTES_MAX
                };
                let room_bytes = bytes_max.saturating_sub(taken_bytes);
                match extras.take_answer(visible_position, room_bytes, pool, spans) {
                    // It must wait, and with it all that comes after it.
                    (0, _) => break,
                    (bytes, finished) => {
                        taken_bytes += bytes;
                        self.in_flight.add(finished);
                    }
                }
                continue;
            }
            let Some(view) = view.filter(|_| extras.behind.is_none()) else {
                break;
            };
            let until = extras.answers.front().map_or(view.visible_end, |answer| {
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
            self.take_frames(&mut extras.own, view.window, end, pool, spans);
            // Own ops are passed over and take no room, so the loop goes on after them: nothing
            // else would wake a session whose own ops were all that this round took.
            taken_bytes += spans_bytes(&spans[before..]);
        }
    }

    /// Takes the frames up to `end`, without the session's own.
    fn take_frames(
        &mut self,
        own: &mut Vec<(WindowOffset, WindowOffset)>,
        window: &Window,
        end: WindowOffset,
        pool: &mut OutboxPool,
        spans: &mut Spans,
    ) {
        let mut passed = 0;
        for (own_start, own_end) in own.iter() {
            if *own_start >= end {
                break;
            }
            if *own_start > self.cursor {
                window.spans(self.cursor, *own_start, &mut pool.windows, spans);
            }
            // Own frames in a row are remembered as one, which may reach beyond `end`.
            self.cursor = self.cursor.max(*own_end);
            passed += 1;
        }
        own.drain(..passed);
        if end > self.cursor {
            window.spans(self.cursor, end, &mut pool.windows, spans);
            self.cursor = end;
        }
    }
}

impl Extras {
    /// Whether nothing sets the session apart from the others any more.
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.own.is_empty() && self.behind.is_none()
    }

    /// Takes what may be sent of the first answer, up to `bytes_max`. Returns how many bytes that
    /// is, and the cost of the answer if they were the rest of it.
    fn take_answer(
        &mut self,
        visible_position: LogPosition,
        bytes_max: usize,
        pool: &mut OutboxPool,
        spans: &mut Spans,
    ) -> (usize, AnswerCost) {
        let answer = self.answers.front_mut().expect("the caller saw an answer");
        let Some(chunk) = answer.sendable(visible_position).filter(|_| bytes_max > 0) else {
            return (0, AnswerCost::default());
        };
        let chunk = Chunk::clone(chunk);
        let bytes = (answer.end - answer.start).min(bytes_max);
        let span = Span::new(chunk, answer.start, answer.start + bytes);
        pool.windows.chunks.push_span(spans, span);
        answer.start += bytes;
        answer.is_begun = true;
        if answer.start < answer.end {
            return (bytes, AnswerCost::default());
        }
        let cost = answer.cost;
        self.cost -= cost;
        self.answers.pop_front();
        (bytes, cost)
    }
}

impl QueuedAnswer {
    /// Returns the chunk that the answer is a range of, if it may be sent.
    fn sendable(&self, visible_position: LogPosition) -> Option<&Chunk> {
        let is_due = self.due.visible_from <= visible_position && self.is_ready();
        self.bytes.chunk().filter(|_| is_due)
    }

    /// Whether its bytes are there, and those that it waits for.
    fn is_ready(&self) -> bool {
        let mut states = self.due.awaits.iter().chain([&self.bytes]);
        states.all(|state| state.chunk().is_some())
    }
}

impl InFlight {
    fn add(&mut self, cost: AnswerCost) {
        // Each answer is shorter than a frame may be, and a send carries little more than one.
        let narrow = |bytes: usize| u32::try_from(bytes).expect("a send is shorter than 4 GiB");
        self.own_bytes += narrow(cost.own_bytes);
        self.shared_bytes += narrow(cost.shared_bytes);
    }
}

impl AnswerCost {
    fn bytes(self) -> usize {
        self.own_bytes + self.shared_bytes + self.state_bytes
    }
}

impl AddAssign for AnswerCost {
    fn add_assign(&mut self, other: Self) {
        self.own_bytes += other.own_bytes;
        self.shared_bytes += other.shared_bytes;
        self.state_bytes += other.state_bytes;
    }
}

impl SubAssign for AnswerCost {
    fn sub_assign(&mut self, other: Self) {
        self.own_bytes -= other.own_bytes;
        self.shared_bytes -= other.shared_bytes;
        self.state_bytes -= other.state_bytes;
    }
}

/// Returns the memory of an answer of this length: its chunk, however short the answer is, and its
/// place in the queue.
fn own_cost(bytes: usize) -> usize {
    bytes.max(CHUNK_BYTES_MIN) + size_of::<QueuedAnswer>()
}

/// Copies many spans into one: the kernel's walk over them would cost more than the copy.
fn join(spans: Spans, pool: &mut OutboxPool) -> Spans {
    let chunk = pool.windows.chunks.join(&spans);
    let bytes = chunk.len();
    pool.give_spans(spans);
    SmallVec::from_iter([Span::new(chunk, 0, bytes)])
}

#[cfg(test)]
mod tests;
