//! The checker: a correct stream passes in pieces of any size, and every fault is noticed.

use super::*;
use crate::load::op::{FieldOrder, Text, put_pong, put_server_frame};
use crate::load::protocol::ClientProtocol;

/// Returns a window with `count` ops, and their frames.
fn window(count: u64) -> (Window, Vec<Vec<u8>>) {
    let mut text = Text::new(FieldOrder::AsSent, 1_700_000_000_000_000);
    let mut window = Window::new(text.frame_layout(), 8);
    let mut frames = Vec::new();
    for number in 0..count {
        window.push(&frame_of(&mut text, number));
        frames.push(window.frame(number));
    }
    (window, frames)
}

fn frame_of(text: &mut Text, number: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    put_server_frame(&mut frame, text.of(1, number));
    frame
}

fn take(cursor: &mut Cursor, window: &Window, bytes: &[u8]) -> Result<Vec<u8>, Mismatch> {
    let mut answers = Vec::new();
    cursor.take(window, bytes, &mut answers)?;
    Ok(answers)
}

#[test]
fn a_stream_may_arrive_in_pieces_of_any_size() {
    for (protocol, piece) in [ClientProtocol::V1, ClientProtocol::V2]
        .into_iter()
        .flat_map(|protocol| (1..500).map(move |piece| (protocol, piece)))
    {
        let mut text = Text::received(protocol, FieldOrder::AsSent, 1_700_000_000_000_000);
        let mut window = Window::new(text.frame_layout(), 4);
        let mut cursor = Cursor::default();
        let (mut stream, mut taken) = (Vec::new(), 0);
        for number in 0..10 {
            window.push(&frame_of(&mut text, number));
            stream.extend_from_slice(&window.frame(number));
            // The window keeps four ops, some of which may still be held back by a piece.
            while stream.len() - taken >= piece {
                take(&mut cursor, &window, &stream[taken..taken + piece]).unwrap();
                taken += piece;
            }
            assert_eq!(cursor.count(), text.frame_layout().locate(taken as u64).0);
        }
    }
}

#[test]
fn control_frames_may_appear_between_ops_and_pings_are_answered() {
    let (window, frames) = window(3);
    let ping = [0x89, 2, b'h', b'i'];
    let stream = [&ping[..], &frames[0], &ping, &ping, &frames[1], &[0x8A, 0]].concat();
    for piece in [1, 2, 3, 7, 100, stream.len()] {
        let mut cursor = Cursor::default();
        let mut answers = Vec::new();
        for piece in stream.chunks(piece) {
            answers.extend(take(&mut cursor, &window, piece).unwrap());
        }
        assert_eq!(cursor.count(), 2);
        let mut answer = Vec::new();
        put_pong(&mut answer, b"hi");
        assert_eq!(answers, answer.repeat(3));
    }
}

#[test]
fn missing_duplicated_and_swapped_ops_are_detected() {
    let (window, frames) = window(4);
    for (order, number) in [
        (&[0, 2][..], 1),
        (&[1], 0),
        (&[0, 0], 1),
        (&[0, 1, 3], 2),
        (&[0, 1, 1], 2),
    ] {
        let stream: Vec<u8> = order
            .iter()
            .flat_map(|at: &usize| frames[*at].clone())
            .collect();
        let wrong = take(&mut Cursor::default(), &window, &stream).unwrap_err();
        let last = *order.last().unwrap();
        let expected = String::from_utf8_lossy(&frames[number][4..]).into_owned();
        let seen = String::from_utf8_lossy(&frames[last][4..]).into_owned();
        let number = number as u64;
        assert_eq!(
            wrong,
            Mismatch::Different {
                number,
                expected,
                seen
            }
        );
    }
}

#[test]
fn every_altered_byte_is_detected() {
    let (window, frames) = window(2);
    for at in 0..frames[1].len() {
        let mut altered = frames[1].clone();
        altered[at] ^= 1;
        let mut cursor = Cursor::default();
        take(&mut cursor, &window, &frames[0]).unwrap();
        let outcome = take(&mut cursor, &window, &altered);
        assert!(
            matches!(outcome, Err(Mismatch::Different { number: 1, .. })),
            "byte {at}: {outcome:?}"
        );
    }
}

#[test]
fn an_op_that_was_never_sent_is_detected() {
    let (window, frames) = window(2);
    let stream = [&frames[0][..], &frames[1], &frames[1]].concat();
    let outcome = take(&mut Cursor::default(), &window, &stream);
    assert!(matches!(outcome, Err(Mismatch::Extra { count: 2, .. })));
    let outcome = take(&mut Cursor::default(), &Window::empty(), &frames[0]);
    assert!(matches!(outcome, Err(Mismatch::Extra { count: 0, .. })));
}

#[test]
fn a_close_is_reported_with_its_reason() {
    let (window, _) = window(1);
    let close = [&[0x88, 5, 0x03, 0xF5][..], b"bye"].concat();
    let wrong = take(&mut Cursor::default(), &window, &close).unwrap_err();
    assert_eq!(wrong, Mismatch::Closed("1013 bye".to_owned()));
}
