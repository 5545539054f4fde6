//! Checks which values of other peers a version 2 peer is shown. Pure.
//!
//! The movers of a room set their value again and again, each time with a higher number. A peer may
//! miss values, because the server sends only the latest, and may see one twice, but it must never
//! be shown an older value after a newer one, a value that was not set, or a peer that leaves, and
//! it must be shown the last value. A message that lists all peers must list them all.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use serde_json::Value;

/// The number of parsed messages that are kept, since all peers are sent the same ones.
const PARSED_MAX: usize = 8;

/// Returns the text by which a mover sets its value. `number` counts from 1.
pub fn move_text(number: u64) -> String {
    let (x, y) = (number * 7 % 1920, number * 13 % 1080);
    format!(r#"{{"type":"presence","payload":{{"value":{{"n":{number},"x":{x},"y":{y}}}}}}}"#)
}

/// A parsed `presence` message.
#[derive(Debug, PartialEq)]
pub struct PresenceMessage {
    /// Whether it lists all peers.
    pub is_all: bool,
    /// The connection of each peer, and the number in its value, if it has set one.
    pub peers: Vec<(u64, Option<u64>)>,
    pub left: Vec<u64>,
}

impl PresenceMessage {
    /// Parses the text of a message; `None` if it is not a presence message.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let message: Value = serde_json::from_slice(text).ok()?;
        let payload = &message["payload"];
        let peers = payload["peers"].as_object()?.iter();
        let peers = peers.map(|(connection, peer)| {
            let value = &peer["value"];
            let number = match value {
                Value::Null => None,
                value => Some(value["n"].as_u64()?),
            };
            peer["user"].as_str()?;
            Some((connection.parse().ok()?, number))
        });
        let left = payload["left"].as_array().into_iter().flatten();
        let left = left.map(|connection| connection.as_str()?.parse().ok());
        (message["type"] == "presence").then_some(())?;
        Some(Self {
            is_all: payload["all"] == true,
            peers: peers.collect::<Option<_>>()?,
            left: left.collect::<Option<_>>()?,
        })
    }
}

/// The recently parsed messages, since each is sent to many peers.
#[derive(Default)]
pub struct ParsedMessages(VecDeque<(Vec<u8>, Rc<PresenceMessage>)>);

impl ParsedMessages {
    /// Parses a text, unless it was parsed recently.
    pub fn parse(&mut self, text: &[u8]) -> Option<Rc<PresenceMessage>> {
        if let Some((_, parsed)) = self.0.iter().find(|(seen, _)| seen == text) {
            return Some(Rc::clone(parsed));
        }
        let parsed = Rc::new(PresenceMessage::parse(text)?);
        self.0.truncate(PARSED_MAX - 1);
        self.0.push_front((text.to_owned(), Rc::clone(&parsed)));
        Some(parsed)
    }
}

/// The movers of a room, and the latest number that each has set.
#[derive(Default)]
pub struct Movers {
    /// The index of each connection.
    places: HashMap<u64, usize>,
    set: Vec<u64>,
}

impl Movers {
    pub fn add(&mut self, connection: u64) {
        self.places.insert(connection, self.set.len());
        self.set.push(0);
    }

    pub fn count(&self) -> usize {
        self.set.len()
    }

    /// Counts another value of a mover and returns its number.
    pub fn next_number(&mut self, place: usize) -> u64 {
        self.set[place] += 1;
        self.set[place]
    }
}

/// The values that one peer was shown.
#[derive(Default)]
pub struct PeerView {
    /// The latest number of each peer: 0 if it has set no value.
    shown: HashMap<u64, u64>,
}

impl PeerView {
    /// Returns the number of peers that it has been shown.
    pub fn count(&self) -> usize {
        self.shown.len()
    }

    /// Returns whether it was shown the last value of each mover.
    pub fn is_current(&self, movers: &Movers) -> bool {
        let mut places = movers.places.iter();
        places.all(|(connection, place)| self.shown.get(connection) == Some(&movers.set[*place]))
    }

    /// Checks a message and applies it. Calls `moved` with the index and number of each new value.
    pub fn take(
        &mut self,
        message: &PresenceMessage,
        movers: &Movers,
        mut moved: impl FnMut(usize, u64),
    ) -> Result<(), String> {
        if let Some(left) = message.left.first() {
            return Err(format!("peer {left} is said to have left"));
        }
        if message.is_all && message.peers.len() < self.shown.len() {
            return Err("a message that lists all peers lacks some".to_owned());
        }
        for (connection, number) in &message.peers {
            let Some(number) = *number else {
                if *self.shown.entry(*connection).or_insert(0) > 0 {
                    return Err(format!("peer {connection} has lost its value"));
                }
                continue;
            };
            let place = movers.places.get(connection).copied();
            let place = place.filter(|place| number <= movers.set[*place]);
            let place =
                place.ok_or_else(|| format!("peer {connection} never had the value {number}"))?;
            let shown = self.shown.insert(*connection, number);
            let shown = shown.unwrap_or(0);
            if shown > number {
                return Err(format!(
                    "peer {connection} is shown with the value {number} after {shown}"
                ));
            }
            if shown < number {
                moved(place, number);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(peers: &str, rest: &str) -> PresenceMessage {
        let text = format!(r#"{{"type":"presence","payload":{{"peers":{{{peers}}}{rest}}}}}"#);
        PresenceMessage::parse(text.as_bytes()).unwrap()
    }

    fn peer(connection: u64, value: &str) -> String {
        format!(r#""{connection}":{{"user":"ann","value":{value}}}"#)
    }

    fn movers() -> Movers {
        let mut movers = Movers::default();
        movers.add(7);
        for number in 1..=3 {
            assert_eq!(movers.next_number(0), number);
        }
        movers
    }

    #[test]
    fn newer_values_are_shown_and_the_last_one_at_the_end() {
        let (movers, mut view, mut seen) = (movers(), PeerView::default(), Vec::new());
        let all = [peer(7, "null"), peer(8, "null")].join(",");
        for (peers, is_current) in [
            (message(&all, r#","all":true"#), false),
            (message(&peer(7, r#"{"n":1}"#), ""), false),
            (message(&peer(7, r#"{"n":3}"#), ""), true),
            (message(&peer(7, r#"{"n":3}"#), ""), true),
        ] {
            view.take(&peers, &movers, |place, number| seen.push((place, number)))
                .unwrap();
            assert_eq!(view.is_current(&movers), is_current);
        }
        assert_eq!((view.count(), seen), (2, vec![(0, 1), (0, 3)]));
    }

    #[test]
    fn impossible_messages_are_detected() {
        for (peers, rest) in [
            (peer(7, r#"{"n":4}"#), ""),
            (peer(7, r#"{"n":1}"#), ""),
            (peer(7, "null"), ""),
            (peer(9, r#"{"n":1}"#), ""),
            (String::new(), r#","left":["7"]"#),
            (String::new(), r#","all":true"#),
        ] {
            let (movers, mut view) = (movers(), PeerView::default());
            let first = message(&peer(7, "null"), r#","all":true"#);
            view.take(&first, &movers, |_, _| ()).unwrap();
            let second = message(&peer(7, r#"{"n":2}"#), "");
            view.take(&second, &movers, |_, _| ()).unwrap();
            let wrong = message(&peers, rest);
            assert!(
                view.take(&wrong, &movers, |_, _| ()).is_err(),
                "{peers}{rest}"
            );
        }
    }

    #[test]
    fn a_move_is_a_version_2_message_and_is_read_back_unchanged() {
        let sent: Value = serde_json::from_str(&move_text(12)).unwrap();
        let value = sent["payload"]["value"].to_string();
        assert_eq!(message(&peer(7, &value), "").peers, [(7, Some(12))]);
        let mut parsed = ParsedMessages::default();
        assert_eq!(parsed.parse(br#"{"type":"pong","payload":{}}"#), None);
        let text = br#"{"type":"presence","payload":{"peers":{}}}"#;
        let (first, again) = (parsed.parse(text).unwrap(), parsed.parse(text).unwrap());
        assert!(Rc::ptr_eq(&first, &again));
    }
}
