//! A window, compared with all bytes that were ever pushed to it.

use proptest::prelude::*;

use super::*;

fn bytes(spans: &[Span]) -> Vec<u8> {
    spans
        .iter()
        .flat_map(|span| span.bytes().to_vec())
        .collect()
}

#[derive(Debug, Clone)]
enum WindowStep {
    Push(usize),
    Cast(usize),
    Send(usize),
    Finish,
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<WindowStep>> {
    let step = prop_oneof![
        4 => (1..300_usize).prop_map(WindowStep::Push),
        1 => (1..90_000_usize).prop_map(WindowStep::Push),
        2 => (1..300_usize).prop_map(WindowStep::Cast),
        3 => (1..400_usize).prop_map(WindowStep::Send),
        2 => Just(WindowStep::Finish),
        2 => (0..2000_usize).prop_map(WindowStep::Drop),
    ];
    prop::collection::vec(step, 0..60)
}

#[test]
fn sessions_at_the_same_offset_are_sent_the_same_piece() {
    let (mut window, mut pool) = (Window::new(Seq::NONE), WindowPool::default());
    let mut in_flight = Vec::new();
    for seq in 1..=3 {
        let start = window.end();
        let position = LogPosition::new(seq);
        window.push(&mut pool, Seq::new(seq), position, 10, |out| {
            out.resize(out.len() + 10, 7);
        });
        // A chunk in flight is never written to, so the next frame gets a new chunk.
        let mut spans = Spans::new();
        window.spans(start, window.end(), &mut pool, &mut spans);
        in_flight.push(spans);
    }
    let mut taken = |from, until| {
        let before = pool.frames_taken;
        let mut spans = Spans::new();
        let [first, last] = [from, until].map(WindowOffset::new);
        window.joined(first, last, &mut pool, &mut spans);
        let frames = pool.frames_taken - before;
        assert_eq!(frames, (until - from) / 10);
        spans
    };
    assert!(taken(0, 0).is_empty());
    let joined = taken(0, 30).pop().unwrap().into_chunk();
    assert_eq!(*joined, [7; 30]);
    for (from, until) in [(0, 30), (10, 30), (0, 20)] {
        let spans = taken(from, until);
        assert_eq!(spans_bytes(&spans) as u64, until - from);
        let chunk = spans.into_iter().next().unwrap().into_chunk();
        assert!(Rc::ptr_eq(&chunk, &joined), "{from}..{until}");
    }
    assert!(taken(30, 30).is_empty());
    window.drop_before(WindowOffset::new(30), &mut pool);
    assert_eq!(Rc::strong_count(&joined), 1, "no session needs it any more");
}

/// A send in flight: the range of the window that it carries, and its spans.
type WindowSend = (WindowOffset, WindowOffset, Spans);

/// Ends the sends in flight, in two parts each, and compares them with all bytes ever pushed.
fn finish(
    in_flight: &mut Vec<WindowSend>,
    all: &[u8],
    pool: &mut WindowPool,
) -> Result<(), TestCaseError> {
    let within = |offset: WindowOffset| offset.bytes_since(WindowOffset::START);
    for (from, until, mut spans) in in_flight.drain(..) {
        let expected = &all[within(from)..within(until)];
        prop_assert_eq!(&bytes(&spans), expected);
        let half = expected.len() / 2;
        skip_sent(&mut spans, half);
        prop_assert_eq!(&bytes(&spans), &expected[half..]);
        prop_assert_eq!(spans_bytes(&spans), expected.len() - half);
        pool.chunks.give_spans(spans);
    }
    Ok(())
}

proptest! {
    /// The model consists of all bytes ever pushed, and the end of each frame.
    #[test]
    fn a_cursor_reads_what_was_pushed(steps in steps()) {
        let (mut window, mut pool) = (Window::new(Seq::new(5)), WindowPool::default());
        let (mut all, mut ends) = (Vec::new(), vec![(WindowOffset::START, Seq::new(5))]);
        let (mut cursor, mut in_flight) = (WindowOffset::START, Vec::new());
        for step in steps {
            match step {
                WindowStep::Push(bytes) => {
                    let seq = ends.last().unwrap().1.next();
                    let fill = u8::try_from(seq.get() % 251).unwrap();
                    let position = LogPosition::new(seq.get() * 10);
                    window.push(&mut pool, seq, position, bytes, |out| {
                        out.resize(out.len() + bytes, fill);
                    });
                    all.resize(all.len() + bytes, fill);
                    ends.push((WindowOffset::START.advance(all.len()), seq));
                }
                WindowStep::Cast(bytes) => {
                    window.push_cast(&mut pool, bytes, |out| {
                        out.resize(out.len() + bytes, u8::MAX);
                    });
                    all.resize(all.len() + bytes, u8::MAX);
                    // It has the seq of the op before it, and becomes visible with it.
                    let seq = ends.last().unwrap().1;
                    ends.push((WindowOffset::START.advance(all.len()), seq));
                }
                WindowStep::Send(bytes_max) => {
                    let end = window.frame_end_within(cursor, window.end(), bytes_max);
                    prop_assert!(ends.iter().any(|known| known.0 == end));
                    let is_taken = |known: &&(WindowOffset, Seq)| {
                        known.0 > cursor && known.0 <= end
                    };
                    let is_single = ends.iter().filter(is_taken).count() == 1;
                    prop_assert!(end.bytes_since(cursor) <= bytes_max || is_single);
                    prop_assert!(end > cursor || cursor == window.end());
                    let mut spans = Spans::new();
                    if bytes_max % 2 == 0 {
                        window.joined(cursor, end, &mut pool, &mut spans);
                        let is_long = end.bytes_since(cursor) > JOINED_BYTES_MAX;
                        prop_assert!(spans.len() <= 1 || is_long);
                    } else {
                        window.spans(cursor, end, &mut pool, &mut spans);
                    }
                    let known = ends.iter().find(|known| known.0 == end);
                    prop_assert_eq!(window.seq_at(end), known.unwrap().1);
                    in_flight.push((cursor, end, spans));
                    cursor = end;
                }
                WindowStep::Finish => finish(&mut in_flight, &all, &mut pool)?,
                WindowStep::Drop(behind) => {
                    let offset = cursor.get().saturating_sub(behind as u64);
                    window.drop_before(WindowOffset::new(offset), &mut pool);
                    prop_assert!(window.start() <= cursor);
                }
            }
            window.invariants();
            prop_assert_eq!(window.capacity_bytes(), pool.window_bytes);
            for (_, seq) in ends.iter().filter(|known| known.0 >= window.start()) {
                let last = ends.iter().rfind(|known| known.1 == *seq).unwrap().0;
                prop_assert_eq!(window.visible_end(LogPosition::new(seq.get() * 10)), last);
                prop_assert_eq!(window.visible_end(LogPosition::new(seq.get() * 10 + 9)), last);
            }
        }
        let visible = window.visible_end(LogPosition::MAX);
        let overflow = window.overflow_end(100_000, visible);
        window.drop_before(overflow, &mut pool);
        prop_assert!(window.capacity_bytes() <= 100_000);
    }
}

/// P167.
#[test]
fn a_cast_is_sent_after_the_op_before_it_and_is_not_an_op() {
    let (mut window, mut pool) = (Window::new(Seq::new(4)), WindowPool::default());
    let cast = |window: &mut Window, pool: &mut WindowPool| {
        window.push_cast(pool, 10, |out| out.extend_from_slice(&[1; 10]));
    };
    cast(&mut window, &mut pool);
    let first = WindowOffset::new(10);
    assert_eq!(window.visible_end(LogPosition::NONE), first);
    let position = LogPosition::new(100);
    window.push(&mut pool, Seq::new(5), position, 10, |out| {
        out.extend_from_slice(&[2; 10]);
    });
    cast(&mut window, &mut pool);
    assert_eq!(window.visible_end(LogPosition::NONE), first);
    assert_eq!(window.visible_end(position), window.end());
    for (offset, seq) in [(0, 4), (10, 4), (20, 5), (30, 5)] {
        assert_eq!(window.seq_at(WindowOffset::new(offset)), Seq::new(seq));
    }
    let mut spans = Spans::new();
    window.joined(WindowOffset::START, window.end(), &mut pool, &mut spans);
    assert_eq!((spans_bytes(&spans), pool.frames_taken), (30, 1));
    // After all frames were sent and dropped, a cast waits for nothing.
    window.drop_before(window.end(), &mut pool);
    cast(&mut window, &mut pool);
    assert_eq!(window.visible_end(LogPosition::NONE), window.end());
    assert_eq!(window.seq_at(window.end()), Seq::new(5));
}

#[test]
fn frames_not_yet_sent_to_anyone_stay() {
    let (mut window, mut pool) = (Window::new(Seq::NONE), WindowPool::default());
    for seq in 1..=20 {
        window.push(
            &mut pool,
            Seq::new(seq),
            LogPosition::new(seq),
            CHUNK_BYTES_MAX,
            |out| {
                out.resize(out.len() + CHUNK_BYTES_MAX, 0);
            },
        );
    }
    let visible = window.visible_end(LogPosition::new(3));
    assert_eq!(visible, WindowOffset::START.advance(3 * CHUNK_BYTES_MAX));
    assert_eq!(window.overflow_end(1, visible), visible);
    assert_eq!(
        window.overflow_end(usize::MAX, visible),
        WindowOffset::START
    );
    // No more is dropped than necessary.
    let bound_bytes = window.capacity_bytes() - 2 * CHUNK_BYTES_MAX;
    for (bytes, chunks) in [(bound_bytes, 2), (bound_bytes + 1, 2), (bound_bytes - 1, 3)] {
        let end = window.overflow_end(bytes, visible);
        assert_eq!(end.get(), (chunks * CHUNK_BYTES_MAX) as u64);
    }
}

#[test]
fn frames_share_a_chunk_and_the_next_one_starts_as_large() {
    for (first_bytes, second_bytes, pieces) in [
        (300, 300, 1),
        (300, CHUNK_BYTES_MAX - 300, 1),
        (300, CHUNK_BYTES_MAX - 299, 2),
    ] {
        let (mut window, mut pool) = (Window::new(Seq::NONE), WindowPool::default());
        for (seq, bytes) in [(1, first_bytes), (2, second_bytes)] {
            window.push(
                &mut pool,
                Seq::new(seq),
                LogPosition::new(seq),
                bytes,
                |out| {
                    out.resize(out.len() + bytes, 0);
                },
            );
        }
        assert_eq!(window.pieces.len(), pieces, "{first_bytes} {second_bytes}");
    }
    let (mut window, mut pool) = (Window::new(Seq::NONE), WindowPool::default());
    let mut held = Vec::new();
    // A hint that is too large is halved with each chunk.
    for (seq, bytes, capacity_min) in [
        (1, 10_000, 0),
        (2, 10, 10_000),
        (3, 10, 5000),
        (4, 10, 2500),
    ] {
        window.push(
            &mut pool,
            Seq::new(seq),
            LogPosition::new(seq),
            bytes,
            |out| {
                out.resize(out.len() + bytes, 0);
            },
        );
        let chunk = &window.pieces.back().unwrap().chunk;
        assert!(
            chunk.capacity() >= capacity_min,
            "{seq}: {}",
            chunk.capacity()
        );
        held.push(Rc::clone(chunk));
    }
}

#[test]
fn an_empty_window_holds_no_memory_for_its_frames() {
    let mut pool = WindowPool::default();
    let fill = |window: &mut Window, pool: &mut WindowPool| {
        for seq in 1..=100 {
            window.push(pool, Seq::new(seq), LogPosition::new(seq), 1, |out| {
                out.push(0);
            });
        }
    };
    let mut window = Window::new(Seq::NONE);
    fill(&mut window, &mut pool);
    let capacity = window.frames.capacity();
    window.drop_before(WindowOffset::new(99), &mut pool);
    assert_eq!(
        window.frames.capacity(),
        capacity,
        "one frame is still held"
    );
    window.drop_before(WindowOffset::new(100), &mut pool);
    assert_eq!((window.frames.capacity(), window.capacity_bytes()), (0, 0));
    // Another window reuses the memory.
    let mut window = Window::new(Seq::NONE);
    window.push(&mut pool, Seq::new(1), LogPosition::NONE, 1, |out| {
        out.push(0);
    });
    assert_eq!(window.frames.capacity(), capacity);
}
