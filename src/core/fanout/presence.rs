//! The users connected to a workspace, by self-chosen name, and their list as JSON.
//!
//! The names are kept sorted, so the cost of an answer depends only on the number of names it
//! lists. The list is encoded once and shared by all requests until a user joins or leaves.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::core::fanout::window::Chunk;
use crate::limits::PRESENCE_NAMES_MAX;
use crate::wire::state;

/// The users of a workspace.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// The number of connections of each user.
    users: BTreeMap<Rc<str>, u32>,
    text: Weak<Vec<u8>>,
}

impl Presence {
    /// Adds a connection for this user.
    pub fn add(&mut self, user: Rc<str>) {
        let count = self.users.entry(user).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.text = Weak::new();
        }
    }

    /// Removes one of this user's connections.
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

    /// Returns the number of users.
    pub fn count(&self) -> usize {
        self.users.len()
    }

    /// Returns the encoded list, if a receiver still holds it.
    pub fn text(&self) -> Option<Chunk> {
        self.text.upgrade()
    }

    /// Encodes the first [`PRESENCE_NAMES_MAX`] users as JSON.
    pub fn encode(&mut self) -> Chunk {
        let mut text = Vec::new();
        let users = self.users.keys().take(PRESENCE_NAMES_MAX);
        state::put_presence(&mut text, users.map(|user| &**user));
        let text = Rc::new(text);
        self.text = Rc::downgrade(&text);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
