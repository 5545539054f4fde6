//! Presence messages: golden frames, and random frames compared with `serde_json`.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::wire::message::v2::testing::payload;

fn peer(connection: u64, user: Option<&str>, value: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    put_peer(&mut out, connection, user, value);
    out
}

/// P161, P163.
#[test]
fn golden_frames() {
    let ann = peer(7, Some("an\"n"), None);
    let nobody = peer(u64::MAX, None, Some("{ \"x\":1.0}"));
    let mut frame = PresenceFrame::new();
    for (is_all, peers, left, expected) in [
        (
            true,
            &[&ann][..],
            &[][..],
            concat!(
                r#"{"type":"presence","payload":{"all":true,"#,
                r#""peers":{"7":{"user":"an\"n","value":null}}}}"#,
            ),
        ),
        (
            false,
            &[&ann, &nobody],
            &[5, 6],
            concat!(
                r#"{"type":"presence","payload":{"peers":{"7":{"user":"an\"n","value":null},"#,
                r#""18446744073709551615":{"user":null,"value":{ "x":1.0}}},"left":["5","6"]}}"#,
            ),
        ),
        (
            false,
            &[],
            &[5],
            r#"{"type":"presence","payload":{"peers":{},"left":["5"]}}"#,
        ),
        (
            true,
            &[],
            &[],
            r#"{"type":"presence","payload":{"all":true,"peers":{}}}"#,
        ),
    ] {
        for peer in peers {
            frame.push_peer(peer);
        }
        for connection in left {
            frame.push_left(*connection);
        }
        assert_eq!(frame.is_empty(), peers.is_empty() && left.is_empty());
        let mut out = Vec::new();
        frame.finish(&mut out, is_all);
        assert_eq!(payload(&out), expected);
        assert!(frame.is_empty());
    }
}

#[test]
fn a_crowd_leaves_no_memory_behind() {
    let mut frame = PresenceFrame::new();
    let value = format!("\"{}\"", "x".repeat(4 * BYTES_KEPT_MAX));
    frame.push_peer(&peer(1, None, Some(&value)));
    frame.finish(&mut Vec::new(), true);
    assert!(frame.peers.capacity() <= BYTES_KEPT_MAX);
}

proptest! {
    /// P161, P163.
    #[test]
    fn any_frame_has_the_pushed_content_and_the_announced_length(
        peers in prop::collection::btree_map(
            any::<u64>(),
            (any::<Option<String>>(), any::<Option<i32>>()),
            0..300,
        ),
        left in prop::collection::vec(any::<u64>(), 0..300),
        is_all: bool,
    ) {
        let mut frame = PresenceFrame::new();
        let mut members = Map::new();
        for (connection, (user, value)) in &peers {
            let text = value.map(|value| value.to_string());
            frame.push_peer(&peer(*connection, user.as_deref(), text.as_deref()));
            members.insert(connection.to_string(), json!({"user": user, "value": value}));
        }
        let mut content = Map::new();
        content.insert("peers".into(), members.into());
        if is_all {
            content.insert("all".into(), true.into());
        }
        if !left.is_empty() {
            let left: Vec<_> = left.iter().map(u64::to_string).collect();
            content.insert("left".into(), left.into());
        }
        for connection in &left {
            frame.push_left(*connection);
        }
        let frame_bytes = frame.frame_bytes(is_all);
        let mut out = Vec::new();
        frame.finish(&mut out, is_all);
        prop_assert_eq!(out.len(), frame_bytes);
        let expected = json!({"type": "presence", "payload": content});
        prop_assert_eq!(serde_json::from_str::<Value>(payload(&out)).unwrap(), expected);
    }
}
