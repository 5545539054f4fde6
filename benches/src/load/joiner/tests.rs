use std::rc::Rc;

use etherply::wire::frame::put_text_header;
use etherply::wire::upgrade::switching_protocols;
use tungstenite::handshake::derive_accept_key;

use super::{Joiner, KEY, Welcome};
use crate::load::state_parts::{ExpectedEntries, PartsCursor};

const INIT: &str = r#"{"type":"init","data":{"key":"value"}}"#;

fn frame(text: &str) -> Rc<[u8]> {
    let mut frame = Vec::new();
    put_text_header(&mut frame, text.len());
    frame.extend_from_slice(text.as_bytes());
    frame.into()
}

fn upgrade(key: &str) -> Vec<u8> {
    upgrade_to(key, None)
}

fn upgrade_to(key: &str, subprotocol: Option<&'static str>) -> Vec<u8> {
    let mut head = Vec::new();
    switching_protocols(&derive_accept_key(key.as_bytes()), subprotocol, &mut head);
    head
}

/// Feeds the stream in pieces of this size. Returns how often the client had received what it was
/// waiting for.
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
        let mut joiner = Joiner::new(Welcome::Frame(frame(INIT)));
        assert_eq!(take(&mut joiner, &stream, piece), Ok(1));
        assert!(joiner.is_served());

        let mut joiner = Joiner::new(Welcome::AnyMessage);
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
        let wrong = take(
            &mut Joiner::new(Welcome::Frame(frame(INIT))),
            &stream,
            stream.len(),
        )
        .unwrap_err();
        assert!(wrong.starts_with(&format!("byte {at} is wrong")), "{wrong}");
    }
}

#[test]
fn unsolicited_messages_are_detected() {
    let stream = [&upgrade(KEY)[..], &frame(INIT), &frame(INIT)].concat();
    for piece in [1, 7, stream.len()] {
        for welcome in [Welcome::Frame(frame(INIT)), Welcome::AnyMessage] {
            let outcome = take(&mut Joiner::new(welcome), &stream, piece);
            assert!(outcome.is_err(), "in pieces of {piece}: {outcome:?}");
        }
    }
}

#[test]
fn a_joiner_can_expect_further_frames() {
    let mut joiner = Joiner::new(Welcome::Frame(frame(INIT)));
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
        let outcome = Joiner::new(Welcome::AnyMessage).take(&head);
        assert!(outcome.is_err(), "{}", String::from_utf8_lossy(&head));
    }
}

#[test]
fn a_version_2_state_may_arrive_in_pieces_of_any_size() {
    let entries = Rc::new(ExpectedEntries::new([("\"k\"".into(), "1".into())], 5));
    let welcome = r#"{"type":"welcome","payload":{"state":"full"}}"#;
    let part = r#"{"type":"state","payload":{"entries":[["k",1,5]],"deleted":[]},"seq":1}"#;
    let synced = r#"{"type":"synced","payload":{},"seq":1}"#;
    let joiner = |text| {
        let parts = PartsCursor::new(Rc::clone(&entries), 0);
        Joiner::new(Welcome::State(text, parts))
    };
    let head = upgrade_to(KEY, Some("etherply.v2"));
    let stream = [&head[..], &frame(welcome), &frame(part), &frame(synced)].concat();
    for piece in 1..=stream.len() {
        let mut client = joiner("\"full\"");
        assert_eq!(take(&mut client, &stream, piece), Ok(1));
        assert!(client.is_served());
        assert!(take(&mut joiner("\"changes\""), &stream, piece).is_err());
    }
    let unnamed = [
        &upgrade(KEY)[..],
        &frame(welcome),
        &frame(part),
        &frame(synced),
    ]
    .concat();
    assert!(joiner("\"full\"").take(&unnamed).is_err());
}
