//! An outbox, compared with a plain list of everything that its client still has to receive.

use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::core::fanout::window::spans_bytes;
use crate::seq::Seq;

fn bytes(spans: &[Span]) -> Vec<u8> {
    spans
        .iter()
        .flat_map(|span| span.bytes().to_vec())
        .collect()
}

/// An item that the client still has to receive.
struct OwedBytes {
    bytes: Vec<u8>,
    is_frame: bool,
    /// The position that must be visible before the item may be sent.
    visible_from: LogPosition,
    /// The position that makes the item due once it is visible, because everything before the item
    /// is then visible, too.
    due: LogPosition,
}

/// A client's outbox and window, and a list of the items that the client still has to receive,
/// oldest first.
#[derive(Default)]
struct OutboxRig {
    window: Window,
    outbox: Outbox,
    pool: OutboxPool,
    owed: Vec<OwedBytes>,
    /// The number of bytes of the first item in `owed` that were already sent.
    sent_bytes: usize,
    position: LogPosition,
    visible_position: LogPosition,
    count: u64,
}

impl OutboxRig {
    fn content(&mut self, length: usize) -> Vec<u8> {
        self.count += 1;
        let fill = u8::try_from(self.count % 251).expect("a byte");
        vec![fill; length]
    }

    fn frame(&mut self, length: usize, is_own: bool) -> bool {
        let content = self.content(length);
        self.position = self.position.advance(10);
        let start = self.window.end();
        let Self { window, pool, .. } = self;
        window.push(
            pool.windows(),
            Seq::new(self.count),
            self.position,
            length,
            |out| {
                out.extend_from_slice(&content);
            },
        );
        if is_own {
            return self
                .outbox
                .skip_own(start, self.window.end(), &mut self.pool);
        }
        let (visible_from, due) = (self.position, self.position);
        let bytes = content;
        self.owed.push(OwedBytes {
            bytes,
            is_frame: true,
            visible_from,
            due,
        });
        true
    }

    fn answer(&mut self, length: usize, waits: bool) {
        let bytes = self.content(length);
        let visible_from = if waits {
            self.position
        } else {
            LogPosition::NONE
        };
        let chunk = self.pool.fill(length, |out| out.extend_from_slice(&bytes));
        self.outbox
            .push(chunk, self.window.end(), visible_from, &mut self.pool);
        let due = self.position;
        self.owed.push(OwedBytes {
            bytes,
            is_frame: false,
            visible_from,
            due,
        });
    }

    /// Performs the next send and checks it. Returns false if there is nothing to send.
    fn send(&mut self) -> bool {
        let visible_end = self.window.visible_end(self.visible_position);
        let Self {
            window,
            outbox,
            pool,
            ..
        } = self;
        let view = View {
            window,
            visible_end,
        };
        let spans = outbox.take(Some(view), self.visible_position, pool);
        let mut taken = &bytes(&spans)[..];
        assert!(spans.len() <= SEND_SPANS_MAX);
        let first_bytes = self.owed.first().map_or(0, |item| item.bytes.len());
        let mut frames_bytes = 0;
        assert!(taken.len() <= ANSWER_SEND_BYTES_MAX.max(first_bytes));
        assert_eq!(taken.len(), spans_bytes(&spans));
        if taken.is_empty() {
            let is_due = |item: &OwedBytes| item.due <= self.visible_position;
            assert!(
                !self.owed.first().is_some_and(is_due),
                "something due was not sent"
            );
            return false;
        }
        while !taken.is_empty() {
            let item = self.owed.first().expect("everything sent was expected");
            assert!(
                item.visible_from <= self.visible_position,
                "something was sent early"
            );
            let left = &item.bytes[self.sent_bytes..];
            let (part, rest) = taken.split_at(left.len().min(taken.len()));
            assert_eq!(part, &left[..part.len()]);
            if item.is_frame {
                frames_bytes += part.len();
            }
            self.sent_bytes += part.len();
            taken = rest;
            if self.sent_bytes == self.owed[0].bytes.len() {
                self.owed.remove(0);
                self.sent_bytes = 0;
            }
        }
        assert!(frames_bytes <= SEND_BYTES_MAX.max(first_bytes));
        self.pool.give_spans(spans);
        self.outbox.sent(&mut self.pool);
        self.window
            .drop_before(self.outbox.cursor().min(visible_end), self.pool.windows());
        true
    }

    fn invariants(&mut self) {
        self.window.invariants();
        let visible_end = self.window.visible_end(self.visible_position);
        let window = &mut self.window;
        self.outbox.invariants(Some(&View {
            window,
            visible_end,
        }));
    }

    fn show(&mut self, part: u64) {
        let hidden = self.position.bytes_since(self.visible_position);
        let shown = hidden.expect("everything is pushed first") * part / 4;
        self.visible_position = self.visible_position.advance(shown);
    }
}

#[derive(Debug, Clone)]
enum OutboxStep {
    Other(usize),
    Own(usize),
    Answer(usize, bool),
    Show(u64),
    Send,
}

fn steps() -> impl Strategy<Value = Vec<OutboxStep>> {
    let answer = |length_end: usize| {
        (1..length_end, any::<bool>()).prop_map(|(length, waits)| OutboxStep::Answer(length, waits))
    };
    let step = prop_oneof![
        6 => (1..300_usize).prop_map(OutboxStep::Other),
        1 => (1..300_000_usize).prop_map(OutboxStep::Other),
        6 => (1..300_usize).prop_map(OutboxStep::Own),
        3 => answer(300),
        1 => answer(3_000_000),
        4 => (0..=4_u64).prop_map(OutboxStep::Show),
        3 => Just(OutboxStep::Send),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn a_session_receives_everything_in_order(steps in steps()) {
        let mut rig = OutboxRig::default();
        for step in steps {
            match step {
                OutboxStep::Other(length) => _ = rig.frame(length, false),
                OutboxStep::Own(length) => prop_assert!(rig.frame(length, true)),
                OutboxStep::Answer(length, waits) => rig.answer(length, waits),
                OutboxStep::Show(part) => rig.show(part),
                OutboxStep::Send => _ = rig.send(),
            }
            rig.invariants();
        }
        rig.show(4);
        while rig.send() {}
        prop_assert!(rig.owed.is_empty());
        prop_assert!(!rig.outbox.has_answers());
        prop_assert_eq!(rig.outbox.answer_bytes(), 0);
        prop_assert_eq!(rig.pool.answer_bytes, 0);
    }
}

#[test]
fn small_pieces_are_merged_into_one() {
    for (pieces, spans_expected) in [
        (SHORT_SEND_SPANS_MAX, SHORT_SEND_SPANS_MAX),
        (SHORT_SEND_SPANS_MAX + 1, 1),
        (5 * SHORT_SEND_SPANS_MAX, 1),
    ] {
        let mut outbox = Outbox::default();
        let mut pool = OutboxPool::default();
        let mut expected = Vec::new();
        for piece in 0..pieces {
            let text = format!("answer {piece};");
            expected.extend_from_slice(text.as_bytes());
            outbox.push(
                Chunk::new(text.into_bytes()),
                WindowOffset::START,
                LogPosition::NONE,
                &mut pool,
            );
        }
        let spans = outbox.take(None, LogPosition::NONE, &mut pool);
        assert_eq!(spans.len(), spans_expected);
        assert_eq!(bytes(&spans), expected);
    }
}

#[test]
fn one_send_carries_as_much_as_fits() {
    // The offsets in the window are far beyond the length of one send.
    let far = 3 * SEND_BYTES_MAX;
    for (answer_bytes, frame_bytes, sent_bytes) in [
        (100, 200, 300),
        (100, SEND_BYTES_MAX - 100, SEND_BYTES_MAX),
        (100, SEND_BYTES_MAX - 99, 100),
        (SEND_BYTES_MAX, 10, SEND_BYTES_MAX),
        (SEND_BYTES_MAX + 1, 10, SEND_BYTES_MAX + 1),
        (ANSWER_SEND_BYTES_MAX, 10, ANSWER_SEND_BYTES_MAX),
        (ANSWER_SEND_BYTES_MAX + 1, 10, ANSWER_SEND_BYTES_MAX),
    ] {
        let mut rig = OutboxRig::default();
        assert!(rig.frame(far, true));
        rig.answer(answer_bytes, false);
        rig.frame(frame_bytes, false);
        rig.visible_position = rig.position;
        let view = View {
            visible_end: rig.window.end(),
            window: &mut rig.window,
        };
        let position = rig.visible_position;
        let spans = rig.outbox.take(Some(view), position, &mut rig.pool);
        assert_eq!(
            spans_bytes(&spans),
            sent_bytes,
            "{answer_bytes} {frame_bytes}"
        );
    }
}

#[test]
fn long_answers_are_not_copied() {
    for (short_count, sent_bytes) in [
        (1, ANSWER_SEND_BYTES_MAX),
        (SHORT_SEND_SPANS_MAX - 1, ANSWER_SEND_BYTES_MAX),
        (SHORT_SEND_SPANS_MAX, SEND_BYTES_MAX),
        (2 * SHORT_SEND_SPANS_MAX, SEND_BYTES_MAX),
    ] {
        let (mut outbox, mut pool) = (Outbox::default(), OutboxPool::default());
        for _ in 0..short_count {
            outbox.push(
                Chunk::new(vec![1]),
                WindowOffset::START,
                LogPosition::NONE,
                &mut pool,
            );
        }
        let long = Chunk::new(vec![2; 2 * ANSWER_SEND_BYTES_MAX]);
        outbox.push(
            Chunk::clone(&long),
            WindowOffset::START,
            LogPosition::NONE,
            &mut pool,
        );
        let spans = outbox.take(None, LogPosition::NONE, &mut pool);
        assert_eq!(spans_bytes(&spans), sent_bytes, "{short_count}");
        let last = spans.into_iter().next_back().unwrap().into_chunk();
        let is_shared = Chunk::ptr_eq(&last, &long);
        assert_eq!(is_shared, sent_bytes > SEND_BYTES_MAX, "{short_count}");
    }
    // Nor are many of them, such as the parts of a state.
    for (part_bytes, spans_count) in [
        (60_000, ANSWER_SEND_BYTES_MAX / 60_000 + 1),
        (20_000, SEND_SPANS_MAX),
        (10_000, 1),
    ] {
        let (mut outbox, mut pool) = (Outbox::default(), OutboxPool::default());
        for _ in 0..=ANSWER_SEND_BYTES_MAX / part_bytes {
            let part = Chunk::new(vec![1; part_bytes]);
            outbox.push(part, WindowOffset::START, LogPosition::NONE, &mut pool);
        }
        let spans = outbox.take(None, LogPosition::NONE, &mut pool);
        assert_eq!(spans.len(), spans_count, "{part_bytes}");
        let bytes = spans_bytes(&spans);
        assert!((SEND_BYTES_MAX..=ANSWER_SEND_BYTES_MAX).contains(&bytes));
    }
}

#[test]
fn too_many_separate_own_frames_require_conflation() {
    let mut rig = OutboxRig::default();
    assert!(rig.frame(10, false));
    for _ in 0..OWN_FRAMES_MAX {
        // Two consecutive own frames are remembered as one.
        assert!(rig.frame(10, true));
        assert!(rig.frame(10, true));
        assert!(rig.frame(10, false));
    }
    assert!(!rig.frame(10, true));
    let behind = Behind {
        since: Seq::NONE,
        hint: None,
    };
    rig.outbox.fall_behind(behind, &mut rig.pool);
    assert!(
        rig.frame(10, true),
        "a session that is behind remembers own frames"
    );
}

#[test]
fn own_frames_already_passed_are_forgotten() {
    let mut rig = OutboxRig::default();
    for _ in 0..=OWN_FRAMES_MAX {
        rig.frame(10, false);
        assert!(rig.frame(10, true));
        rig.frame(10, false);
        rig.show(4);
        assert!(rig.send());
    }
    assert!(rig.outbox.extras.is_none());
}

#[test]
fn a_leaving_client_still_receives_visible_answers() {
    let mut rig = OutboxRig::default();
    rig.frame(10, false);
    rig.answer(3, true);
    rig.visible_position = rig.position;
    rig.frame(10, false);
    rig.answer(5, true);
    rig.answer(7, false);
    let all_bytes = rig.outbox.answer_bytes();
    assert!(all_bytes >= 3 * CHUNK_BYTES_MIN);
    rig.outbox.leave(rig.visible_position, &mut rig.pool);
    assert_eq!(
        rig.outbox.answer_bytes() * 3,
        all_bytes * 2,
        "two of three short answers are left, each at the cost of its chunk"
    );
    let spans = rig.outbox.take(None, rig.visible_position, &mut rig.pool);
    assert_eq!(
        spans_bytes(&spans),
        10,
        "the spans are not exactly the answers"
    );
    assert_eq!(rig.outbox.waiting_bytes(), 0);
    assert_eq!(rig.outbox.in_flight_bytes() * 3, all_bytes * 2);
    rig.outbox.sent(&mut rig.pool);
    assert_eq!(rig.outbox.answer_bytes(), 0);
}

#[test]
fn a_long_run_of_own_frames_delays_nothing() {
    let mut rig = OutboxRig::default();
    rig.frame(10, false);
    rig.frame(300_000, true);
    rig.frame(10, false);
    rig.show(4);
    while rig.send() {}
    assert!(rig.owed.is_empty());
}

#[test]
fn a_message_is_appended_to_a_send_unless_answers_are_queued() {
    let mut rig = OutboxRig::default();
    let message = Chunk::new(vec![9; 5]);
    let take = |rig: &mut OutboxRig| {
        let visible_end = rig.window.visible_end(rig.visible_position);
        let view = View {
            window: &mut rig.window,
            visible_end,
        };
        rig.outbox
            .take(Some(view), rig.visible_position, &mut rig.pool)
    };
    // The answer waits for the log, and everything after it must wait as well.
    rig.frame(10, false);
    rig.visible_position = rig.position;
    rig.frame(10, false);
    rig.answer(3, true);
    let spans = take(&mut rig);
    assert_eq!(spans_bytes(&spans), 10);
    assert!(!rig.outbox.may_append(&spans));
    rig.visible_position = rig.position;
    let mut spans = take(&mut rig);
    assert!(rig.outbox.may_append(&spans));
    let before_bytes = rig.outbox.shared_answer_bytes();
    rig.outbox
        .append_shared(Chunk::clone(&message), &mut spans, &mut rig.pool);
    assert_eq!(bytes(&spans)[13..], [9; 5]);
    assert_eq!(rig.outbox.shared_answer_bytes(), before_bytes + 5);
    rig.outbox.sent(&mut rig.pool);
    assert_eq!(rig.outbox.shared_answer_bytes(), 0);
    // The message may be sent alone, but is not appended to a long send.
    let mut spans = Spans::new();
    assert!(rig.outbox.may_append(&spans));
    spans.push(Span::new(
        Chunk::new(vec![0; SEND_BYTES_MAX]),
        0,
        SEND_BYTES_MAX,
    ));
    assert!(!rig.outbox.may_append(&spans));
    let short = Span::new(message, 0, 1);
    assert!(
        !rig.outbox
            .may_append(&Spans::from_elem(short, SEND_SPANS_MAX))
    );
}

fn due_now() -> Due {
    Due {
        at: WindowOffset::START,
        visible_from: LogPosition::NONE,
        awaits: None,
    }
}

#[test]
fn the_rest_of_a_started_frame_must_follow_its_start() {
    let frame: Chunk = Rc::new(vec![7; 9000]);
    let (mut outbox, mut pool) = (Outbox::default(), OutboxPool::default());
    // The start is the last thing that fits into a send.
    let long: Chunk = Rc::new(vec![1; ANSWER_SEND_BYTES_MAX - 3]);
    outbox.push_shared(long, due_now(), &mut pool);
    let start: Chunk = Rc::new(vec![2; 3]);
    outbox.push_started(start, Rc::clone(&frame), 8990, due_now(), &mut pool);
    outbox.invariants(None);
    let spans = outbox.take(None, LogPosition::NONE, &mut pool);
    assert_eq!(spans_bytes(&spans), ANSWER_SEND_BYTES_MAX);
    outbox.sent(&mut pool);
    assert!(outbox.drop_all(&mut pool), "a frame is cut off");
    // Before its start is sent, nothing is.
    let start: Chunk = Rc::new(vec![2; 3]);
    outbox.push_started(start, Rc::clone(&frame), 8990, due_now(), &mut pool);
    assert!(!outbox.drop_all(&mut pool));
    let start: Chunk = Rc::new(vec![2; 3]);
    outbox.push_started(start, frame, 8990, due_now(), &mut pool);
    let spans = outbox.take(None, LogPosition::NONE, &mut pool);
    assert_eq!(bytes(&spans), [[2_u8; 3].as_slice(), &[7; 10]].concat());
    outbox.sent(&mut pool);
    assert_eq!((outbox.answer_bytes(), pool.answer_bytes()), (0, 0));
}

#[test]
fn a_part_of_a_state_is_memory_but_no_answer() {
    for is_shared in [true, false] {
        let (mut outbox, mut pool) = (Outbox::default(), OutboxPool::default());
        let part: Chunk = Rc::new(vec![1; 5000]);
        outbox.push_part(part, is_shared, due_now(), &mut pool);
        let held = |outbox: &Outbox| outbox.own_answer_bytes() + outbox.shared_answer_bytes();
        for _ in 0..2 {
            outbox.invariants(None);
            assert!(held(&outbox) >= 5000, "queued, and then in flight");
            assert_eq!(outbox.answer_bytes(), 0);
            let taken = outbox.take(None, LogPosition::NONE, &mut pool);
            assert!(taken.is_empty() || spans_bytes(&taken) == 5000);
        }
        outbox.push(
            Rc::new(vec![2; 600]),
            WindowOffset::START,
            LogPosition::NONE,
            &mut pool,
        );
        assert!((600..1000).contains(&outbox.answer_bytes()));
        outbox.sent(&mut pool);
        assert!((600..1000).contains(&held(&outbox)));
    }
}

/// P130: the client would take the entries of the first part for known, and resume after them.
#[test]
fn a_part_that_follows_one_that_is_dropped_is_dropped_too() {
    let (mut outbox, mut pool) = (Outbox::default(), OutboxPool::default());
    let hidden = Due {
        visible_from: LogPosition::new(9),
        ..due_now()
    };
    outbox.push_part(Rc::new(vec![1; 50]), false, hidden, &mut pool);
    // It was encoded earlier, for another session.
    outbox.push_part(Rc::new(vec![2; 60]), false, due_now(), &mut pool);
    // An error is about something else.
    outbox.push_due(Rc::new(vec![3; 70]), due_now(), &mut pool);
    outbox.leave(LogPosition::new(8), &mut pool);
    let spans = outbox.take(None, LogPosition::new(8), &mut pool);
    assert_eq!(bytes(&spans), [3; 70]);
}
