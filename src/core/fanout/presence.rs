//! The users of a workspace as an answer over HTTP lists them: the version 1 clients by self-chosen
//! name, and the version 2 peers.
//!
//! The names are kept sorted, so the cost of an answer depends only on the number of names that it
//! lists. The list is encoded once and shared by all requests until a user joins or leaves, or the
//! next presence message is built.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::core::fanout::peers::{Peers, PresenceSettings};
use crate::core::fanout::window::Chunk;
use crate::limits::{PRESENCE_NAMES_MAX, PRESENCE_PEERS_MAX};
use crate::wire::state;

/// The users of a workspace.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// The number of version 1 connections of each user.
    users: BTreeMap<Rc<str>, u32>,
    peers: Option<Peers>,
    text: Weak<Vec<u8>>,
    /// The edition of the peers that the text lists.
    text_edition: u64,
}

impl Presence {
    /// Adds a version 1 connection for this user.
    pub fn add(&mut self, user: Rc<str>) {
        let count = self.users.entry(user).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.text = Weak::new();
        }
    }

    /// Removes one of this user's version 1 connections.
    ///
    /// # Panics
    /// If the user has no connection.
    pub fn remove(&mut self, user: &str) {
        let count = self
            .users
            .get_mut(user)
            .expect("the leaving user is present");
        *count -= 1;
        if *count == 0 {
            self.users.remove(user);
            self.text = Weak::new();
        }
    }

    /// Returns the peers, if there have been any.
    pub fn peers(&self) -> Option<&Peers> {
        self.peers.as_ref()
    }

    /// Returns the peers, if there have been any.
    pub fn peers_mut(&mut self) -> Option<&mut Peers> {
        self.peers.as_mut()
    }

    /// Returns the peers, creating an empty table for the first one.
    pub fn peers_or_new(&mut self, settings: PresenceSettings) -> &mut Peers {
        self.peers.get_or_insert_with(|| Peers::new(settings))
    }

    /// Returns the number of users and peers.
    pub fn count(&self) -> usize {
        self.users.len() + self.peers.as_ref().map_or(0, Peers::len)
    }

    /// Returns the encoded list, if it is current and a receiver still holds it.
    pub fn text(&self) -> Option<Chunk> {
        let is_current = self.text_edition == self.edition();
        self.text.upgrade().filter(|_| is_current)
    }

    /// Encodes the first [`PRESENCE_NAMES_MAX`] users and the first [`PRESENCE_PEERS_MAX`] peers as
    /// JSON.
    pub fn encode(&mut self) -> Chunk {
        let mut text = Vec::new();
        let users = self.users.keys().take(PRESENCE_NAMES_MAX);
        let peers = self.peers.iter().flat_map(Peers::listed);
        let peers = peers.take(PRESENCE_PEERS_MAX);
        state::put_presence(&mut text, users.map(|user| &**user), peers);
        let text = Rc::new(text);
        self.text = Rc::downgrade(&text);
        self.text_edition = self.edition();
        text
    }

    fn edition(&self) -> u64 {
        self.peers.as_ref().map_or(0, Peers::edition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fanout::outbox::OutboxPool;
    use crate::core::fanout::peers::NewPeer;
    use crate::wire::message::v2::PresenceFrame;

    const SETTINGS: PresenceSettings = PresenceSettings {
        interval_us: 50_000,
        bytes_max: 1 << 20,
        shard_bytes_max: 1 << 20,
    };

    fn text(presence: &mut Presence) -> Chunk {
        presence.text().unwrap_or_else(|| presence.encode())
    }

    #[test]
    fn users_are_listed_once_and_in_order() {
        let mut presence = Presence::default();
        for user in ["ben", "ann", "ben"] {
            presence.add(user.into());
        }
        let both = text(&mut presence);
        let expected = r#"[{"userId":"ann","status":"online"},{"userId":"ben","status":"online"}]"#;
        assert_eq!(str::from_utf8(&both).unwrap(), expected);
        assert_eq!(presence.count(), 2);
        // Closing one of two connections makes no difference.
        presence.remove("ben");
        assert!(Rc::ptr_eq(&text(&mut presence), &both));
        presence.remove("ben");
        let ann = text(&mut presence);
        assert_eq!(&**ann, br#"[{"userId":"ann","status":"online"}]"#);
        presence.remove("ann");
        assert_eq!((&**text(&mut presence), presence.count()), (&b"[]"[..], 0));
    }

    #[test]
    fn at_most_the_maximum_is_listed_but_all_are_counted() {
        let mut presence = Presence::default();
        for user in 0..PRESENCE_NAMES_MAX + 5 {
            presence.add(format!("{user:05}").into());
        }
        let text = text(&mut presence);
        let named: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        assert_eq!(named.len(), PRESENCE_NAMES_MAX);
        assert_eq!(named[999]["userId"], "00999");
        assert_eq!(presence.count(), PRESENCE_NAMES_MAX + 5);
    }

    fn join(presence: &mut Presence, connection: u64) {
        let new = NewPeer {
            connection,
            slot: 0,
            user: Some("ann".into()),
            replaces: None,
        };
        presence.peers_or_new(SETTINGS).join(new, 0);
    }

    /// P168.
    #[test]
    fn peers_are_listed_after_version_1_users() {
        let mut presence = Presence::default();
        presence.add("ben".into());
        let users = r#"{"userId":"ben","status":"online"}"#;
        let peer = |value: &str| {
            format!(r#",{{"userId":"ann","status":"online","connection":"7","value":{value}}}"#)
        };
        join(&mut presence, 7);
        assert_eq!(presence.count(), 2);
        let both = text(&mut presence);
        assert_eq!(
            str::from_utf8(&both).unwrap(),
            format!("[{users}{}]", peer("null"))
        );
        // A new value is listed from the next message on, so that the list is shared until then.
        let peers = presence.peers_mut().unwrap();
        peers.set(7, "1", 4, 0).unwrap();
        assert!(Rc::ptr_eq(&text(&mut presence), &both));
        let peers = presence.peers_mut().unwrap();
        peers.announce(&mut PresenceFrame::new(), &mut OutboxPool::default());
        let changed = text(&mut presence);
        assert_eq!(
            str::from_utf8(&changed).unwrap(),
            format!("[{users}{}]", peer("1"))
        );
        presence.peers_mut().unwrap().leave(7, 0);
        let left = text(&mut presence);
        assert_eq!(str::from_utf8(&left).unwrap(), format!("[{users}]"));
        assert_eq!(presence.count(), 1);
    }

    /// P168.
    #[test]
    fn at_most_the_maximum_number_of_peers_is_listed_but_all_are_counted() {
        let mut presence = Presence::default();
        for connection in 0..PRESENCE_PEERS_MAX as u64 + 5 {
            join(&mut presence, connection);
        }
        let text = text(&mut presence);
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        assert_eq!(listed.len(), PRESENCE_PEERS_MAX);
        assert_eq!(listed[999]["connection"], "999");
        assert_eq!(presence.count(), PRESENCE_PEERS_MAX + 5);
    }
}
