use std::rc::Rc;

use etherply::wire::frame::put_text_header;
use etherply::wire::upgrade::switching_protocols;
use tungstenite::handshake::derive_accept_key;

use super::{Guest, KEY};

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

/// How often it was served, when the stream comes in pieces of this size.
fn take(guest: &mut Guest, stream: &[u8], piece: usize) -> Result<u32, String> {
    let mut served = 0;
    for piece in stream.chunks(piece) {
        served += u32::from(guest.take(piece)?);
    }
    Ok(served)
}

#[test]
fn it_is_served_once_in_pieces_of_any_size() {
    let stream = [&upgrade(KEY)[..], &frame(INIT)].concat();
    for piece in 1..=stream.len() {
        let mut guest = Guest::new(Some(frame(INIT)));
        assert_eq!(take(&mut guest, &stream, piece), Ok(1));
        assert!(guest.is_served());

        let mut guest = Guest::new(None);
        assert_eq!(take(&mut guest, &stream[..stream.len() - 1], piece), Ok(0));
        assert!(!guest.is_served());
        assert_eq!(take(&mut guest, &stream[stream.len() - 1..], piece), Ok(1));
        assert_eq!(guest.take_message(), INIT);
    }
}

#[test]
fn every_altered_byte_is_seen() {
    let (head, init) = (upgrade(KEY), frame(INIT));
    for at in 0..init.len() {
        let mut altered = init.to_vec();
        altered[at] ^= 1;
        let stream = [&head[..], &altered].concat();
        let wrong = take(&mut Guest::new(Some(frame(INIT))), &stream, stream.len()).unwrap_err();
        assert!(wrong.starts_with(&format!("byte {at} is wrong")), "{wrong}");
    }
}

#[test]
fn what_comes_unasked_is_seen() {
    let stream = [&upgrade(KEY)[..], &frame(INIT), &frame(INIT)].concat();
    for init in [Some(frame(INIT)), None] {
        for piece in [1, 7, stream.len()] {
            let outcome = take(&mut Guest::new(init.clone()), &stream, piece);
            assert!(outcome.is_err(), "in pieces of {piece}: {outcome:?}");
        }
    }
}

#[test]
fn it_is_served_again_with_what_it_expects() {
    let mut guest = Guest::new(Some(frame(INIT)));
    let stream = [&upgrade(KEY)[..], &frame(INIT)].concat();
    assert_eq!(take(&mut guest, &stream, 5), Ok(1));
    guest.expect(&frame("op"));
    assert_eq!(guest.take(&frame("op")[..3]), Ok(false));
    assert_eq!(guest.take(&frame("op")[3..]), Ok(true));
    guest.expect(&frame("op"));
    assert!(guest.take(&frame("no")).is_err());
}

#[test]
fn an_upgrade_that_proves_nothing_is_seen() {
    for head in [upgrade("another"), b"HTTP/1.1 503 Busy\r\n\r\n".to_vec()] {
        let outcome = Guest::new(None).take(&head);
        assert!(outcome.is_err(), "{}", String::from_utf8_lossy(&head));
    }
}
