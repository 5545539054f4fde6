use std::rc::Rc;

use etherply::wire::frame::put_text_header;
use etherply::wire::upgrade::switching_protocols;
use tungstenite::handshake::derive_accept_key;

use super::{Joiner, KEY};

const INIT: &str = r#"{"type":"init","data":{"key":"value"}}"#;

fn frame(text: &str) -> Rc<[u8]> {
    let mut frame = Vec::new();
    put_text_header(&mut frame, text.len());
    frame.extend_from_slice(text.as_bytes());
    frame.into()
}

fn upgrade(key: &str) -> Vec<u8> {
    let mut head = Vec::new();
    switching_protocols(&derive_accept_key(key.as_bytes()), &mut head);
    head
}

/// Feeds the stream in pieces of this size. Returns how often the client had what it waited for.
fn take(joiner: &mut Joiner, stream: &[u8], piece: usize) -> Result<u32, String> {
    let mut served = 0;
    for piece in stream.chunks(piece) {
        served += u32::from(joiner.take(piece)?);
    }
    Ok(served)
}

#[test]
fn a_join_completes_once_with_pieces_of_any_size() {
    let stream = [&upgrade(KEY)[..], &frame(INIT)].concat();
    for piece in 1..=stream.len() {
        let mut joiner = Joiner::new(Some(frame(INIT)));
        assert_eq!(take(&mut joiner, &stream, piece), Ok(1));
        assert!(joiner.is_served());

        let mut joiner = Joiner::new(None);
        assert_eq!(take(&mut joiner, &stream[..stream.len() - 1], piece), Ok(0));
        assert!(!joiner.is_served());
        assert_eq!(take(&mut joiner, &stream[stream.len() - 1..], piece), Ok(1));
        assert_eq!(joiner.take_message(), INIT);
    }
}

#[test]
fn every_altered_byte_is_detected() {
    let (head, init) = (upgrade(KEY), frame(INIT));
    for at in 0..init.len() {
        let mut altered = init.to_vec();
        altered[at] ^= 1;
        let stream = [&head[..], &altered].concat();
        let wrong = take(&mut Joiner::new(Some(frame(INIT))), &stream, stream.len()).unwrap_err();
        assert!(wrong.starts_with(&format!("byte {at} is wrong")), "{wrong}");
    }
}

#[test]
fn unsolicited_messages_are_detected() {
    let stream = [&upgrade(KEY)[..], &frame(INIT), &frame(INIT)].concat();
    for init in [Some(frame(INIT)), None] {
        for piece in [1, 7, stream.len()] {
            let outcome = take(&mut Joiner::new(init.clone()), &stream, piece);
            assert!(outcome.is_err(), "in pieces of {piece}: {outcome:?}");
        }
    }
}

#[test]
fn a_joiner_can_expect_further_frames() {
    let mut joiner = Joiner::new(Some(frame(INIT)));
    let stream = [&upgrade(KEY)[..], &frame(INIT)].concat();
    assert_eq!(take(&mut joiner, &stream, 5), Ok(1));
    joiner.expect(&frame("op"));
    assert_eq!(joiner.take(&frame("op")[..3]), Ok(false));
    assert_eq!(joiner.take(&frame("op")[3..]), Ok(true));
    joiner.expect(&frame("op"));
    assert!(joiner.take(&frame("no")).is_err());
}

#[test]
fn an_invalid_upgrade_answer_is_detected() {
    for head in [upgrade("another"), b"HTTP/1.1 503 Busy\r\n\r\n".to_vec()] {
        let outcome = Joiner::new(None).take(&head);
        assert!(outcome.is_err(), "{}", String::from_utf8_lossy(&head));
    }
}
