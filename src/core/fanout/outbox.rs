//! The pending output of one session: a cursor into its workspace's window, and the session's own
//! answers.
//!
//! Broadcasts are not queued here. The cursor marks how much the session has received, and the
//! frames after it are in the [`Window`], stored once for all sessions. An outbox queues only what
//! no other session receives: the answer to the handshake, the init message, corrections, errors,
//! pings, pongs, and the close frame. Each is tagged with the window offset that it follows, so a
//! session receives everything in the order in which it was produced.
//!
//! ```text
//!   start ──────────── cursor ──────────── visible_end ──────────── end      of the window
//!     sent, or passed over │ sent with the next │ waits for the log
//! ```
//!
//! `start ≤ cursor ≤ end` and `start ≤ visible_end ≤ end` always hold ([`Outbox::invariants`]). The
//! cursor is beyond `visible_end` only if no frame in between has to be sent from the window,
//! because each is one of the session's own ops, or an op in its init message, which waits for the
//! log separately. So no frame that is sent from the window extends past `visible_end`.
//!
//! A session whose cursor falls out of the window is *behind*. Instead of the frames, it receives
//! the latest op for each key that has changed since, which `core::shard::delivery` reads from the
//! workspace when the socket drains.

use std::collections::VecDeque;
use std::ops::Range;

use smallvec::SmallVec;

use crate::core::fanout::chunk_pool::{Chunk, Span, Spans, spans_bytes};
use crate::core::fanout::encoded_state::EncodedState;
use crate::core::fanout::free_lists::FreeLists;
use crate::core::fanout::outbox::answer_cost::{AnswerCost, InFlight};
use crate::core::fanout::window::{Window, WindowPool};
use crate::core::fanout::window_offset::WindowOffset;
use crate::limits::{
    ANSWER_SEND_BYTES_MAX, CHUNK_BYTES_MIN, OWN_FRAMES_MAX, SEND_BYTES_MAX, SEND_SPANS_MAX,
    SHORT_SEND_SPANS_MAX,
};
use crate::log::position::LogPosition;
use crate::seq::Seq;

mod answer_cost;

/// The maximum capacity of `Extras::own` that a session keeps when it falls behind, since it will
/// soon need that memory again.
const OWN_FRAMES_KEPT: usize = 32;

/// The pending output of one session.
#[derive(Default)]
pub struct Outbox {
    cursor: WindowOffset,
    /// `None` if only broadcasts are pending, which is almost always the case.
    extras: Option<Box<Extras>>,
    in_flight: InFlight,
}

/// The pending output that a session does not share with the others in its workspace.
#[derive(Default)]
struct Extras {
    answers: VecDeque<QueuedAnswer>,
    /// The total cost of `answers`.
    cost: AnswerCost,
    /// The session's own ops among the frames after the cursor, which are not sent to it.
    own: Vec<(WindowOffset, WindowOffset)>,
    behind: Option<Behind>,
}

/// A range of bytes to be sent to this session only.
struct QueuedAnswer {
    bytes: EncodedState,
    start: usize,
    end: usize,
    /// Whether part of the answer has already been sent or is in flight; if so, the rest must
    /// follow.
    is_begun: bool,
    due: Due,
    cost: AnswerCost,
}

/// The conditions for sending an answer, all three of which must be met.
#[derive(Debug, Clone)]
pub struct Due {
    /// The session has received the window up to this offset.
    pub at: WindowOffset,
    /// This log position is visible.
    pub visible_from: LogPosition,
    /// This state is ready. An HTTP response consists of a head, fields and timestamps. They are
    /// queued as separate answers, of which either all or none must be sent.
    pub awaits: Option<EncodedState>,
}

/// The progress of a session that fell out of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// All ops up to this one have reached the session.
    pub since: Seq,
    /// The slot of the entry with that seq, if known.
    pub hint: Option<u32>,
}

/// A window and the part of it that may be sent.
pub struct View<'a> {
    /// The window that contains the frames.
    pub window: &'a mut Window,
    /// The offset up to which frames may be sent.
    pub visible_end: WindowOffset,
}

/// Reusable memory for a shard's outboxes and windows, and the total memory that they hold.
#[derive(Default)]
pub struct OutboxPool {
    windows: WindowPool,
    extras: FreeLists<Box<Extras>>,
    /// The memory of all queued and in-flight answers, excluding memory shared between sessions.
    answer_bytes: usize,
}

impl OutboxPool {
    /// Returns the memory pool of the windows.
    pub fn windows(&mut self) -> &mut WindowPool {
        &mut self.windows
    }

    /// Returns the memory of all queued and in-flight answers, excluding memory shared between
    /// sessions.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// Returns the memory of all windows.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.windows.window_bytes()
    }

    /// Returns the number of frames taken from windows. A frame counts once per session.
    #[must_use]
    pub fn frames_taken(&self) -> u64 {
        self.windows.frames_taken()
    }

    /// Resets the accounting. All windows must have been dropped, and the caller must count each
    /// outbox again ([`Outbox::count`]).
    pub fn reset(&mut self) {
        self.windows.forget_windows();
        self.answer_bytes = 0;
    }

    /// Returns a new chunk filled by `write`, which should append about `bytes` bytes.
    pub fn fill(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Chunk {
        self.windows.chunks.fill(bytes, write)
    }

    /// Returns a chunk to the pool unless it is still referenced elsewhere.
    pub fn give(&mut self, chunk: Chunk) {
        self.windows.chunks.give(chunk);
    }

    /// Returns all chunks of a send to the pool.
    pub fn give_spans(&mut self, spans: Spans) {
        self.windows.chunks.give_spans(spans);
    }

    /// Copies received bytes that do not yet form a complete frame.
    pub(in crate::core) fn keep_unparsed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.windows.chunks.keep_unparsed(bytes)
    }

    /// Returns a buffer obtained from [`OutboxPool::keep_unparsed`] to the pool.
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

    /// Returns the offset of the next byte of the window to send to the session.
    #[must_use]
    pub fn cursor(&self) -> WindowOffset {
        self.cursor
    }

    /// Returns the offset up to which the window has nothing left for the session: the cursor, or
    /// the end of the session's own frames that begin there.
    #[must_use]
    pub fn cursor_after_own(&self) -> WindowOffset {
        let own = self.extras.as_ref().and_then(|extras| extras.own.first());
        own.filter(|(start, _)| *start == self.cursor)
            .map_or(self.cursor, |(_, end)| *end)
    }

    /// Returns the session's progress if it fell out of the window.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        self.extras.as_ref()?.behind
    }

    /// Drops the pending broadcasts of a session that fell out of the window.
    pub fn fall_behind(&mut self, behind: Behind, pool: &mut OutboxPool) {
        let extras = self.extras(pool);
        extras.own.clear();
        if extras.own.capacity() > OWN_FRAMES_KEPT {
            extras.own.shrink_to_fit();
        }
        extras.behind = Some(behind);
    }

    /// Checks the invariants that hold between any two calls. `view` is `None` for a session
    /// without a workspace.
    ///
    /// # Panics
    /// If an invariant is violated.
    pub fn invariants(&self, view: Option<&View<'_>>) {
        let (start, end) = view.map_or((self.cursor, self.cursor), |view| {
            let (start, end) = (view.window.start(), view.window.end());
            assert!(start <= view.visible_end && view.visible_end <= end);
            (start, end)
        });
        let is_behind = self.behind().is_some();
        assert!(
            is_behind || start <= self.cursor && self.cursor <= end,
            "the cursor is outside the window, but the session is not behind"
        );
        let Some(extras) = &self.extras else { return };
        assert!(
            !is_behind || extras.own.is_empty(),
            "a session that is behind has a cursor"
        );
        let mut passed = None;
        for (own_start, own_end) in &extras.own {
            assert!(own_start < own_end && self.cursor <= *own_start && *own_end <= end);
            assert!(
                passed < Some(*own_start),
                "adjacent own frames are not merged"
            );
            passed = Some(*own_end);
        }
        let mut cost = AnswerCost::default();
        let mut due = WindowOffset::START;
        for answer in &extras.answers {
            assert!(
                due <= answer.due.at,
                "answers must be in the order of their offsets"
            );
            assert!(answer.start <= answer.end);
            due = answer.due.at;
            cost += answer.cost;
        }
        assert_eq!(cost.bytes(), extras.cost.bytes());
    }

    // ---- memory ----

    /// Returns the memory of the queued answers.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.cost().bytes()
    }

    /// Returns the memory of the queued and in-flight answers. A state in flight does not count,
    /// nor does a part of a state, because a client may keep sending ops while it receives one.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        let part_bytes = self.cost().part_bytes + self.in_flight.part_bytes as usize;
        let bytes = self.own_answer_bytes() + self.shared_answer_bytes();
        bytes - part_bytes + self.cost().state_bytes
    }

    /// Returns the memory of the queued and in-flight answers, excluding memory that other sessions
    /// may hold too.
    #[must_use]
    pub fn own_answer_bytes(&self) -> usize {
        self.cost().own_bytes + self.in_flight.own_bytes as usize
    }

    /// Returns the memory of the queued and in-flight answers that other sessions may hold too,
    /// excluding states.
    #[must_use]
    pub fn shared_answer_bytes(&self) -> usize {
        self.cost().shared_bytes + self.in_flight.shared_bytes as usize
    }

    /// Returns the memory of the answers in flight, excluding states.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight.own_bytes as usize + self.in_flight.shared_bytes as usize
    }

    /// Adds this outbox's answers to the total of a pool that was reset.
    pub fn count(&self, pool: &mut OutboxPool) {
        pool.answer_bytes += self.own_answer_bytes();
    }

    /// Records that the send in flight has completed, and stops counting its memory.
    pub fn sent(&mut self, pool: &mut OutboxPool) {
        pool.answer_bytes -= self.in_flight.own_bytes as usize;
        self.in_flight = InFlight::default();
    }

    fn cost(&self) -> AnswerCost {
        let extras = self.extras.as_ref();
        extras.map_or_else(AnswerCost::default, |extras| extras.cost)
    }

    // ---- queueing ----

    /// Returns whether any part of a state is queued.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.cost().state_bytes > 0
    }

    /// Returns whether any answers are queued.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        let extras = self.extras.as_ref();
        extras.is_some_and(|extras| !extras.answers.is_empty())
    }

    /// Returns whether a queued answer waits for a log position that is not visible, or for a state
    /// that is not ready.
    #[must_use]
    pub fn is_waiting_for_log(&self, visible_position: LogPosition) -> bool {
        let mut answers = self.extras.iter().flat_map(|extras| &extras.answers);
        answers.any(|answer| answer.sendable(visible_position).is_none())
    }

    /// Queues bytes for this session only. They are sent after the window offset `at`, once the log
    /// position `visible_from` is visible.
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

    /// Queues bytes for this session only, to be sent when `due` allows.
    pub fn push_due(&mut self, chunk: Chunk, due: Due, pool: &mut OutboxPool) {
        let end = chunk.len();
        let cost = AnswerCost {
            own_bytes: own_cost(end),
            ..AnswerCost::default()
        };
        self.push_answer(EncodedState::Ready(chunk), 0..end, due, cost, pool);
    }

    /// Queues bytes that several sessions share and that are not part of a state. Does nothing if
    /// `chunk` is empty.
    pub fn push_shared(&mut self, chunk: Chunk, due: Due, pool: &mut OutboxPool) {
        let end = chunk.len();
        if end > 0 {
            let cost = AnswerCost {
                own_bytes: size_of::<QueuedAnswer>(),
                shared_bytes: end,
                ..AnswerCost::default()
            };
            self.push_answer(EncodedState::Ready(chunk), 0..end, due, cost, pool);
        }
    }

    /// Queues a frame that several sessions share from `rest` on, and whose start is `start`.
    pub fn push_started(
        &mut self,
        start: Chunk,
        frame: Chunk,
        rest: usize,
        due: Due,
        pool: &mut OutboxPool,
    ) {
        self.push_due(start, due.clone(), pool);
        let end = frame.len();
        let cost = AnswerCost {
            own_bytes: size_of::<QueuedAnswer>(),
            shared_bytes: end,
            ..AnswerCost::default()
        };
        self.push_answer(EncodedState::Ready(frame), rest..end, due, cost, pool);
        // Once the start has been sent, the rest must follow.
        let extras = self.extras(pool);
        let answer = extras.answers.back_mut().expect("it was just queued");
        answer.is_begun = true;
    }

    /// Queues a part of a state for a client of version 2, which several sessions may share if
    /// `is_shared`. It is memory of the session, but no answer ([`Outbox::answer_bytes`]). Does
    /// nothing if `chunk` is empty.
    pub fn push_part(&mut self, chunk: Chunk, is_shared: bool, due: Due, pool: &mut OutboxPool) {
        let end = chunk.len();
        if end == 0 {
            return;
        }
        let (own_bytes, shared_bytes) = if is_shared {
            (size_of::<QueuedAnswer>(), end)
        } else {
            (own_cost(end), 0)
        };
        let cost = AnswerCost {
            own_bytes,
            shared_bytes,
            part_bytes: own_bytes + shared_bytes,
            state_bytes: 0,
        };
        // A part that was encoded for another session may be visible although the one in front of
        // it is not. If that one is dropped because the connection is closed, this one must be,
        // too, or the client would pass the other's entries.
        let last = self.extras(pool).answers.back();
        let last_visible_from = last.map_or(LogPosition::NONE, |last| last.due.visible_from);
        let due = Due {
            visible_from: due.visible_from.max(last_visible_from),
            ..due
        };
        self.push_answer(EncodedState::Ready(chunk), 0..end, due, cost, pool);
    }

    /// Queues a range of an encoded state. Does nothing if the range is empty.
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
                state_bytes: range.len(),
                ..AnswerCost::default()
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

    /// Skips the frame at `start..end` of the window, which is the session's own op. Returns
    /// `false` if there are too many separate frames to track; the session must then be conflated
    /// instead.
    #[must_use]
    pub fn skip_own(
        &mut self,
        start: WindowOffset,
        end: WindowOffset,
        pool: &mut OutboxPool,
    ) -> bool {
        // A conflated session does not receive its own ops either.
        if self.behind().is_some() {
            return true;
        }
        // Usually the session is up to date, so there is nothing to track.
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

    /// Detaches a closing connection from the window, and drops answers that are not yet visible or
    /// not ready.
    pub fn leave(&mut self, visible_position: LogPosition, pool: &mut OutboxPool) {
        self.follow(WindowOffset::START);
        let Some(extras) = &mut self.extras else {
            return;
        };
        // Answers that follow a state that is not ready make no sense without it, so they are
        // dropped too. An answer that is ready but not yet visible is dropped alone, because those
        // after it concern other ops.
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

    /// Drops everything except the send in flight. Returns whether that cuts off an answer that has
    /// been partly sent.
    pub fn drop_all(&mut self, pool: &mut OutboxPool) -> bool {
        pool.answer_bytes -= self.cost().own_bytes;
        let extras = self.extras.take();
        self.cursor = WindowOffset::START;
        let first = extras.as_ref().and_then(|extras| extras.answers.front());
        first.is_some_and(|answer| answer.is_begun)
    }

    // ---- sending ----

    /// Removes and returns the bytes that may be sent now, in order. `view` is `None` for a session
    /// without a workspace.
    ///
    /// Frames are limited to [`SEND_BYTES_MAX`] in total, unless a single one is longer: a send
    /// keeps its chunks alive even after the window has dropped them. Answers are limited to
    /// [`ANSWER_SEND_BYTES_MAX`]: the session holds their chunks from the moment they are queued
    /// until their last byte has been sent, however many sends that takes.
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
        if spans.len() > SHORT_SEND_SPANS_MAX && spans_bytes(&spans) <= SEND_BYTES_MAX {
            join(spans, pool)
        } else {
            spans
        }
    }

    /// Returns whether a message may be appended to a send that is about to start. It may not if
    /// the send is full, or if answers are queued: one of them may have been partly sent, and the
    /// rest of it must come next.
    #[must_use]
    pub fn may_append(&self, spans: &Spans) -> bool {
        let is_full = spans.len() >= SEND_SPANS_MAX || spans_bytes(spans) >= SEND_BYTES_MAX;
        !is_full && !self.has_answers()
    }

    /// Appends a message to a send that is about to start. Several sessions may share it.
    ///
    /// # Panics
    /// If [`Outbox::may_append`] returns `false`.
    pub fn append_shared(&mut self, chunk: Chunk, spans: &mut Spans, pool: &mut OutboxPool) {
        assert!(self.may_append(spans), "the rest of an answer comes first");
        let end = chunk.len();
        self.in_flight.add(AnswerCost {
            shared_bytes: end,
            ..AnswerCost::default()
        });
        let span = Span::new(chunk, 0, end);
        pool.windows.chunks.push_span(spans, span);
    }

    /// Interleaves answers and frames: takes the frames up to the offset that the next answer
    /// follows, then the answer.
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
            // A session that is behind or in no workspace receives no frames, so nothing precedes
            // its answers.
            let in_order = |answer: &QueuedAnswer| {
                view.is_none() || extras.behind.is_some() || answer.due.at <= self.cursor
            };
            if extras.answers.front().is_some_and(in_order) {
                // The spans of a short send are copied into one if there are many, so such a send
                // must stay short. Those of a long send are not, so their number is limited.
                let spans_max = if taken_bytes > SEND_BYTES_MAX {
                    SEND_SPANS_MAX
                } else {
                    SHORT_SEND_SPANS_MAX
                };
                let bytes_max = if spans.len() < spans_max {
                    ANSWER_SEND_BYTES_MAX
                } else {
                    SEND_BYTES_MAX
                };
                let room_bytes = bytes_max.saturating_sub(taken_bytes);
                match extras.take_answer(visible_position, room_bytes, pool, spans) {
                    // The answer must wait, and so must everything after it.
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
            // Skipped own ops take no room in the send, so the loop continues after them. If it
            // stopped after a round that only skipped own ops, nothing would wake the session
            // again.
            taken_bytes += spans_bytes(&spans[before..]);
        }
    }

    /// Advances the cursor to `end`, and appends the frames up to there to `spans`, except the
    /// session's own.
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
            // Adjacent own frames are stored as one range, which may extend beyond `end`.
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
    /// Returns whether only broadcasts are still pending.
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.own.is_empty() && self.behind.is_none()
    }

    /// Moves up to `bytes_max` bytes of the first answer to `spans` if the answer may be sent.
    /// Returns the number of bytes moved and, if that completed the answer, its cost.
    fn take_answer(
        &mut self,
        visible_position: LogPosition,
        bytes_max: usize,
        pool: &mut OutboxPool,
        spans: &mut Spans,
    ) -> (usize, AnswerCost) {
        let answer = self
            .answers
            .front_mut()
            .expect("the caller checked that there is an answer");
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
    /// Returns the answer's chunk if the answer may be sent now.
    fn sendable(&self, visible_position: LogPosition) -> Option<&Chunk> {
        let is_due = self.due.visible_from <= visible_position && self.is_ready();
        self.bytes.chunk().filter(|_| is_due)
    }

    /// Returns whether both the answer's bytes and the state that it awaits are encoded.
    fn is_ready(&self) -> bool {
        let mut states = self.due.awaits.iter().chain([&self.bytes]);
        states.all(|state| state.chunk().is_some())
    }
}

/// Returns the memory of an answer of this length: its chunk, which has a minimum size, and its
/// slot in the queue.
fn own_cost(bytes: usize) -> usize {
    bytes.max(CHUNK_BYTES_MIN) + size_of::<QueuedAnswer>()
}

/// Copies many spans into one, which costs less than having the kernel send them separately.
fn join(spans: Spans, pool: &mut OutboxPool) -> Spans {
    let chunk = pool.windows.chunks.join(&spans);
    let bytes = chunk.len();
    pool.give_spans(spans);
    SmallVec::from_iter([Span::new(chunk, 0, bytes)])
}

#[cfg(test)]
mod tests;
