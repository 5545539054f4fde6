//! Tests of the peers of a room.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::core::fanout::chunk_pool::Chunk;

mod random;

pub(super) const SETTINGS: PresenceSettings = PresenceSettings {
    interval_us: 50_000,
    bytes_max: 1 << 20,
    shard_bytes_max: 1 << 20,
};

/// A client's copy of the table: the user and the value of each peer.
pub(super) type Replica = BTreeMap<String, Value>;

/// Returns the payload of a frame.
pub(super) fn payload(frame: &[u8]) -> Value {
    let header_bytes = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let message: Value = serde_json::from_slice(&frame[header_bytes..]).unwrap();
    assert_eq!(message["type"], "presence");
    message["payload"].clone()
}

/// Applies a message as a client does.
pub(super) fn apply(replica: &mut Replica, payload: &Value) {
    if payload["all"] == json!(true) {
        replica.clear();
    }
    for (connection, peer) in payload["peers"].as_object().unwrap() {
        replica.insert(connection.clone(), peer.clone());
    }
    for connection in payload["left"].as_array().into_iter().flatten() {
        replica.remove(connection.as_str().unwrap());
    }
}

/// A table, with the parts of a shard that it needs.
pub(super) struct PeersRig {
    pub peers: Peers,
    pub frame: PresenceFrame,
    pub pool: OutboxPool,
    pub now_us: u64,
}

impl PeersRig {
    pub fn new(settings: PresenceSettings) -> Self {
        Self {
            peers: Peers::new(settings),
            frame: PresenceFrame::new(),
            pool: OutboxPool::default(),
            now_us: 7,
        }
    }

    pub fn join(&mut self, connection: u64, user: Option<&str>, replaces: Option<u64>) {
        let new = NewPeer {
            connection,
            slot: u32::try_from(connection).unwrap() + 100,
            user: user.map(Rc::from),
            replaces,
        };
        self.peers.join(new, self.now_us);
        self.peers.invariants();
    }

    pub fn set(&mut self, connection: u64, value: &str) -> Result<(), PresenceFull> {
        let shard_bytes = self.peers.value_bytes();
        let outcome = self.peers.set(connection, value, shard_bytes, self.now_us);
        self.peers.invariants();
        outcome
    }

    pub fn leave(&mut self, connection: u64) {
        self.peers.leave(connection, self.now_us);
        self.peers.invariants();
    }

    pub fn announce(&mut self) -> bool {
        let bytes = self.peers.announce(&mut self.frame, &mut self.pool);
        self.peers.invariants();
        assert!(self.frame.is_empty());
        bytes.is_some()
    }

    pub fn take_chunk(&mut self, connection: u64) -> Option<Chunk> {
        let owed_bytes = self.peers.owed_bytes(connection);
        let message = self
            .peers
            .take_message(connection, &mut self.frame, &mut self.pool);
        self.peers.invariants();
        let chunk = message.map(|message| message.chunk);
        match (&chunk, owed_bytes) {
            (Some(chunk), Some(bytes)) => {
                // The frame and the commas are not counted before the message is encoded.
                let most_bytes = bytes + self.peers.len() + 100;
                assert!((bytes..most_bytes).contains(&chunk.len()));
            }
            (chunk, owed_bytes) => assert!(chunk.is_none() && owed_bytes.is_none()),
        }
        chunk
    }

    pub fn take(&mut self, connection: u64) -> Option<Value> {
        self.take_chunk(connection).map(|chunk| payload(&chunk))
    }
}

fn peer(user: Option<&str>, value: &Value) -> Value {
    json!({"user": user, "value": value})
}

/// P161, P163.
#[test]
fn a_peer_gets_all_and_then_changes() {
    let mut room = PeersRig::new(SETTINGS);
    room.join(5, Some("ann"), None);
    room.join(7, None, None);
    assert_eq!(room.take(5), None, "not before the interval has passed");
    assert!(room.announce());
    let both = json!({"all": true, "peers": {
        "5": peer(Some("ann"), &json!(null)), "7": peer(None, &json!(null)),
    }});
    assert_eq!(room.take(7), Some(both.clone()));
    assert_eq!(room.take(7), None, "only once");
    // The values of an interval are one message, with the latest of each peer.
    for value in ["1", "[1, 2]", r#"{"x":1}"#] {
        room.set(5, value).unwrap();
    }
    assert_eq!(room.take(7), None);
    assert!(room.announce());
    let changed = json!({"peers": {"5": peer(Some("ann"), &json!({"x": 1}))}});
    assert_eq!(room.take(7), Some(changed));
    // A peer that had not received the first message gets one that replaces it.
    let mut all = both;
    all["peers"]["5"]["value"] = json!({"x": 1});
    assert_eq!(room.take(5), Some(all));
    room.leave(5);
    assert!(room.announce());
    assert_eq!(room.take(7), Some(json!({"peers": {}, "left": ["5"]})));
    assert!(!room.announce(), "nothing has changed");
    assert_eq!(room.take(7), None);
}

/// P163.
#[test]
fn a_message_is_due_an_interval_after_the_first_change() {
    let mut room = PeersRig::new(SETTINGS);
    assert_eq!(room.peers.due_us(), None);
    room.join(1, None, None);
    let due_us = room.now_us + SETTINGS.interval_us;
    room.now_us += 100;
    room.set(1, "1").unwrap();
    room.join(2, None, None);
    assert_eq!(room.peers.due_us(), Some(due_us));
    assert_eq!(room.peers.take_due_us(), Some(due_us));
    assert_eq!(room.peers.take_due_us(), None, "it is queued once");
    room.announce();
    assert_eq!(room.peers.due_us(), None);
    room.set(1, "1").unwrap();
    room.leave(9);
    assert_eq!(room.peers.due_us(), None, "nothing has changed");
    room.set(1, "2").unwrap();
    let due_us = room.now_us + SETTINGS.interval_us;
    assert_eq!(room.peers.take_due_us(), Some(due_us));
}

/// P163.
#[test]
fn a_message_is_encoded_once_for_all_its_receivers() {
    let mut room = PeersRig::new(SETTINGS);
    for connection in 0..4 {
        room.join(connection, None, None);
    }
    for kind in ["all", "latest"] {
        room.announce();
        let first = room.take_chunk(0).unwrap();
        for connection in 1..4 {
            let chunk = room.take_chunk(connection).unwrap();
            assert!(Rc::ptr_eq(&first, &chunk), "{kind}");
        }
        assert_eq!(Rc::strong_count(&first), 1, "the room holds nothing");
        room.set(0, "1").unwrap();
    }
    // Two peers that have missed messages share theirs, although they have missed different ones.
    for value in ["2", "3"] {
        room.announce();
        room.take(0);
        room.set(0, value).unwrap();
        room.take(1);
    }
    room.announce();
    for connection in [2, 3] {
        let message = room
            .peers
            .take_message(connection, &mut room.frame, &mut room.pool)
            .unwrap();
        assert_eq!(message.is_first, connection == 2);
        assert_eq!(payload(&message.chunk)["all"], json!(true));
    }
}

/// P164.
#[test]
fn a_slow_peer_is_sent_the_latest_and_never_more_than_one_message() {
    let mut room = PeersRig::new(SETTINGS);
    room.join(1, None, None);
    room.join(2, None, None);
    room.announce();
    for _ in 0..2 {
        room.take(1);
        room.take(2);
        for value in 0..100 {
            room.set(1, &value.to_string()).unwrap();
            room.announce();
        }
        let all = room.take(2).unwrap();
        assert_eq!(all["all"], json!(true));
        assert_eq!(all["peers"]["1"]["value"], json!(99));
        assert_eq!(room.take(2), None);
        // It is up to date again, and needs only the next change.
        room.set(1, "100").unwrap();
        room.announce();
        let next = json!({"peers": {"1": peer(None, &json!(100))}});
        assert_eq!(room.take(2), Some(next));
    }
}

/// P161: the peer must neither miss a change between its `all` message and the next one, nor see a
/// peer that is gone.
#[test]
fn changes_around_an_all_message_are_not_missed() {
    let mut room = PeersRig::new(SETTINGS);
    for connection in [1, 2, 3] {
        room.join(connection, None, None);
    }
    room.announce();
    let mut replica = Replica::new();
    apply(&mut replica, &room.take(1).unwrap());
    room.set(2, "1").unwrap();
    room.announce();
    room.set(2, "2").unwrap();
    room.announce();
    // Its `all` message is built here, and contains the change that is not announced yet.
    room.set(2, "3").unwrap();
    apply(&mut replica, &room.take(1).unwrap());
    assert_eq!(replica["2"]["value"], json!(3));
    // Another peer would be given the same message, which must not be used again once a peer
    // leaves.
    room.set(2, "4").unwrap();
    room.leave(3);
    assert_eq!(room.take(2), None);
    room.announce();
    let all = room.take(2).unwrap();
    assert_eq!(all["all"], json!(true));
    assert_eq!(all["peers"].as_object().unwrap().len(), 2);
    apply(&mut replica, &room.take(1).unwrap());
    assert_eq!(json!(replica), all["peers"]);
}

/// P165: "presence of a dead peer kept" was a bug in other systems.
#[test]
fn a_peer_that_has_left_is_in_no_later_message() {
    // The message that is pending when the peer leaves: the latest, an `all` message, or none.
    for missed_count in 0..3 {
        let mut room = PeersRig::new(SETTINGS);
        room.join(1, None, None);
        room.join(2, None, None);
        room.announce();
        let mut replica = Replica::new();
        apply(&mut replica, &room.take(1).unwrap());
        room.take(2).unwrap();
        for value in 0..missed_count {
            room.set(2, &value.to_string()).unwrap();
            room.announce();
        }
        room.set(2, "true").unwrap();
        room.leave(2);
        let is_behind = missed_count == 2;
        if let Some(message) = room.take(1) {
            let lists_it = message["peers"].get("2").is_some();
            assert_eq!(lists_it, missed_count == 1, "{message}");
            apply(&mut replica, &message);
        }
        assert_eq!(replica.contains_key("2"), !is_behind);
        room.announce();
        apply(&mut replica, &room.take(1).unwrap());
        assert_eq!(replica.keys().collect::<Vec<_>>(), ["1"], "{missed_count}");
        let peers: Vec<u64> = room.peers.listed().map(|peer| peer.connection).collect();
        assert_eq!((peers, room.peers.len()), (vec![1], 1));
    }
}

/// P165: "a late presence update that revives a peer who left" was a bug in other systems.
#[test]
fn a_late_value_does_not_revive_a_peer() {
    let mut room = PeersRig::new(SETTINGS);
    room.join(1, None, None);
    room.join(2, Some("ann"), None);
    room.join(3, None, None);
    room.announce();
    room.take(1);
    room.leave(3);
    room.join(4, Some("ann"), Some(2));
    for late in [2, 3] {
        assert_eq!(room.set(late, "1"), Ok(()));
        assert!(!room.peers.contains(late));
        assert_eq!(room.take(late), None);
    }
    room.announce();
    let message = room.take(1).unwrap();
    assert_eq!(message["left"], json!(["3", "2"]));
    assert_eq!(
        message["peers"],
        json!({"4": peer(Some("ann"), &json!(null))})
    );
    for late in [2, 3] {
        assert_eq!(room.set(late, "2"), Ok(()));
    }
    assert!(!room.announce());
}

/// P166: "a peer shown twice after a reconnect" was a bug in other systems.
#[test]
fn a_peer_that_reconnects_replaces_itself_in_one_message() {
    for is_announced_before in [true, false] {
        let mut room = PeersRig::new(SETTINGS);
        room.join(1, None, None);
        room.join(2, Some("ann"), None);
        if is_announced_before {
            room.announce();
            room.take(1);
        }
        room.join(3, Some("ann"), Some(2));
        // The end of the old connection is noticed only now, and is not reported twice.
        room.leave(2);
        assert_eq!(room.peers.len(), 2);
        room.announce();
        let message = room.take(1).unwrap();
        assert!(message["peers"].get("3").is_some());
        assert!(message["peers"].get("2").is_none());
        if is_announced_before {
            assert_eq!(message["left"], json!(["2"]));
        }
        let due_us = room.peers.due_us();
        room.leave(2);
        assert!(!room.announce() && due_us.is_none());
    }
}

/// P166.
#[test]
fn only_a_peer_of_the_same_user_is_replaced() {
    for (old, new, is_replaced) in [
        (Some("ann"), Some("ann"), true),
        (Some("ann"), Some("ben"), false),
        (Some("ann"), None, false),
        (None, Some("ann"), false),
        (None, None, false),
    ] {
        let mut room = PeersRig::new(SETTINGS);
        room.join(1, old, None);
        room.join(2, new, Some(1));
        assert_eq!(room.peers.contains(1), !is_replaced, "{old:?} {new:?}");
        room.join(3, new, Some(99));
        room.join(4, new, Some(4));
        assert_eq!(room.peers.len(), 4 - usize::from(is_replaced));
    }
}

/// P162: a value that does not fit is refused, and the peer keeps its last one.
#[test]
fn the_entries_of_all_peers_are_limited() {
    let entry_bytes = r#""1":{"user":null,"value":null}"#.len();
    let mut room = PeersRig::new(PresenceSettings {
        bytes_max: 2 * entry_bytes + 10,
        ..SETTINGS
    });
    for connection in [1, 2, 3, 4] {
        room.join(connection, None, None);
    }
    let listed = |room: &PeersRig| -> Vec<(u64, String)> {
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        let listed = room.peers.listed();
        listed
            .map(|peer| (peer.connection, text(peer.value)))
            .collect()
    };
    let entry = |connection: u64, value: &str| (connection, value.to_owned());
    assert_eq!(room.peers.len(), 4, "all are counted");
    assert_eq!(listed(&room), [entry(1, "null"), entry(2, "null")]);
    let full = Err(PresenceFull::Workspace);
    assert_eq!(room.set(3, "1"), full, "it is not listed");
    assert_eq!(room.set(1, "12345678901234"), Ok(()));
    assert_eq!(room.set(2, "12345"), full);
    assert_eq!(room.set(2, "1234"), Ok(()));
    assert_eq!(room.set(1, "123456789012345"), full);
    assert_eq!(
        listed(&room),
        [entry(1, "12345678901234"), entry(2, "1234")]
    );
    room.announce();
    assert_eq!(room.take(3).unwrap()["peers"].as_object().unwrap().len(), 2);
    // An unlisted peer leaves unnoticed; a listed one makes room for the next.
    room.leave(3);
    room.announce();
    assert_eq!(room.take(1).unwrap()["left"], json!(null));
    room.leave(1);
    assert_eq!(listed(&room), [entry(2, "1234"), entry(4, "null")]);
    assert_eq!(room.set(4, "12345678901234"), Ok(()));
    room.announce();
    let message = room.take(2).unwrap();
    assert_eq!(message["all"], json!(true));
    assert_eq!(
        message["peers"]["4"]["value"],
        json!(12_345_678_901_234_u64)
    );
}

/// P162: a long entry that does not fit keeps no other peer from being listed.
#[test]
fn a_peer_that_does_not_fit_does_not_keep_others_from_being_listed() {
    let entry_bytes = r#""1":{"user":"a","value":null}"#.len();
    let mut room = PeersRig::new(PresenceSettings {
        bytes_max: 3 * entry_bytes,
        ..SETTINGS
    });
    let listed = |room: &PeersRig| -> Vec<u64> {
        let listed = room.peers.listed();
        listed.map(|peer| peer.connection).collect()
    };
    let long = "x".repeat(3 * entry_bytes);
    room.join(1, Some("a"), None);
    room.join(2, Some(&long), None);
    room.join(3, Some("aaaaaaaaaa"), None);
    room.join(4, Some("a"), None);
    assert_eq!(listed(&room), [1, 3]);
    room.leave(3);
    assert_eq!(listed(&room), [1, 4]);
    room.join(5, Some("aa"), None);
    room.join(6, Some("a"), None);
    assert_eq!(listed(&room), [1, 4, 6]);
    room.leave(4);
    room.leave(1);
    assert_eq!(listed(&room), [5, 6]);
    assert_eq!(room.peers.len(), 3, "all are counted");
}

/// P162: the values of all peers of a shard are limited, too.
#[test]
fn a_value_that_does_not_fit_the_shard_is_refused() {
    let mut room = PeersRig::new(PresenceSettings {
        shard_bytes_max: 100,
        ..SETTINGS
    });
    room.join(1, None, None);
    let (peers, now_us) = (&mut room.peers, room.now_us);
    for (value, shard_bytes, expected) in [
        ("12345", 99, Ok(())),
        ("123456", 100, Err(PresenceFull::Shard)),
        ("54321", 110, Ok(())),
        ("1", 110, Ok(())),
        ("12", 110, Err(PresenceFull::Shard)),
    ] {
        assert_eq!(
            peers.set(1, value, shard_bytes, now_us),
            expected,
            "{value}"
        );
        peers.invariants();
    }
    assert_eq!(peers.value_bytes(), 1);
}

/// P165.
#[test]
fn a_room_without_peers_holds_nothing() {
    let mut room = PeersRig::new(SETTINGS);
    for round in 0..3 {
        room.join(2 * round, None, None);
        room.join(2 * round + 1, None, None);
        room.announce();
        room.take(2 * round);
        room.set(2 * round, "1").unwrap();
        room.leave(2 * round + 1);
        room.leave(2 * round);
        assert_eq!(room.peers.due_us(), None);
        assert!(!room.announce());
        assert!(room.peers.is_empty());
        assert_eq!(room.peers.slots().count(), 0);
    }
    room.join(9, None, None);
    assert_eq!(room.peers.slots().collect::<Vec<_>>(), [109]);
    room.announce();
    let all = json!({"all": true, "peers": {"9": peer(None, &json!(null))}});
    assert_eq!(room.take(9), Some(all));
}

#[test]
fn a_short_entry_does_not_keep_the_memory_of_a_long_one() {
    let mut room = PeersRig::new(SETTINGS);
    room.join(1, None, None);
    let long = format!("\"{}\"", "x".repeat(4000));
    room.set(1, &long).unwrap();
    assert!(room.peers.table[&1].entry.capacity() >= long.len());
    room.set(1, "1").unwrap();
    assert!(room.peers.table[&1].entry.capacity() <= PEER_BYTES_KEPT);
}
