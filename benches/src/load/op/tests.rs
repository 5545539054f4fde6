//! The layout of the ops, and their frames.

use super::*;

#[test]
fn an_op_is_json_with_its_number_at_fixed_offsets() {
    for order in [FieldOrder::AsSent, FieldOrder::ByName] {
        let mut text = Text::new(order, 1_700_000_000_000_000);
        let length = text.of(0, 0).len();
        let op = text.of(17, 123_456).to_vec();
        assert_eq!(op.len(), length);
        let json: serde_json::Value = serde_json::from_slice(&op).unwrap();
        assert_eq!(json["type"], "op");
        assert_eq!(json["payload"]["key"], "k0056");
        let timestamp = json["payload"]["timestamp"].as_u64();
        assert_eq!(timestamp, Some(1_700_000_000_123_456));
        let value = json["payload"]["value"].as_str().unwrap();
        assert!(value.starts_with("000000123456 in room 000017."), "{value}");
        assert_eq!(value.len(), VALUE_BYTES);
    }
}

#[test]
fn fields_ordered_by_name_match_serde_json() {
    let sent = Text::new(FieldOrder::AsSent, 1_700_000_000_000_000)
        .of(3, 9)
        .to_vec();
    let json: serde_json::Value = serde_json::from_slice(&sent).unwrap();
    let sorted = Text::new(FieldOrder::ByName, 1_700_000_000_000_000)
        .of(3, 9)
        .to_vec();
    assert_eq!(json.to_string().as_bytes(), sorted);
}

#[test]
fn frames_match_the_protocol() {
    use tungstenite::protocol::{Role, WebSocket};
    let mut text = Text::new(FieldOrder::AsSent, 1_700_000_000_000_000);
    let op = text.of(3, 9).to_vec();

    let mut sent = Vec::new();
    put_client_frame(&mut sent, &op);
    put_pong(&mut sent, b"are you there");
    let mut server = WebSocket::from_raw_socket(std::io::Cursor::new(sent), Role::Server, None);
    assert_eq!(server.read().unwrap().into_data(), op);
    let pong = server.read().unwrap();
    assert!(pong.is_pong());
    assert_eq!(&pong.into_data()[..], b"are you there");

    let mut frame = Vec::new();
    put_server_frame(&mut frame, &op);
    assert_eq!(frame.len() as u64, text.frame_layout().start_of(1));
    let mut client = WebSocket::from_raw_socket(std::io::Cursor::new(frame), Role::Client, None);
    assert_eq!(client.read().unwrap().into_data(), op);
}

#[test]
fn version_2_numbers_messages_in_both_directions() {
    for (protocol, id, seq) in [
        (ClientProtocol::V1, None, None),
        (ClientProtocol::V2WithoutIds, None, Some(1000)),
        (ClientProtocol::V2, Some(1000), Some(1000)),
    ] {
        let mut sent = Text::sent(protocol, 1_700_000_000_000_000);
        let sent: serde_json::Value = serde_json::from_slice(sent.of(3, 999)).unwrap();
        let mut received = Text::received(protocol, FieldOrder::AsSent, 1_700_000_000_000_000);
        let layout = received.frame_layout();
        let text = received.of(3, 999).to_vec();
        let received: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((sent["id"].as_u64(), sent["seq"].as_u64()), (id, None));
        assert_eq!(
            (received["seq"].as_u64(), received["id"].as_u64()),
            (seq, None)
        );
        assert_eq!(sent["payload"], received["payload"]);
        let frame_bytes = layout.start_of(1000) - layout.start_of(999);
        assert_eq!(frame_bytes, 4 + text.len() as u64);
    }
}
