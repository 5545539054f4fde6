//! The naive model of a workspace: the list of the ops that won.

use std::collections::BTreeMap;

/// An op, as clients write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub value: String,
    pub timestamp: u64,
}

/// What a workspace should be.
#[derive(Debug, Default)]
pub struct Model {
    /// The ops that won, in order: the seq of each is its place, counted from 1.
    pub wins: Vec<Write>,
    /// By the values, each of which is written once.
    places: BTreeMap<String, usize>,
    latest: BTreeMap<String, usize>,
    /// So many of `wins` a client may have seen.
    pub shown: usize,
    /// So many the kernel was given.
    pub written: usize,
    /// So many a sync covers that ended well.
    pub synced: usize,
    /// So many the shard knows to be where its durability wants them.
    pub confirmed: usize,
    /// So many the shard knows to be synced.
    pub covered: usize,
}

impl Model {
    /// Takes the op that is logged next.
    pub fn win(&mut self, write: Write, seq: u64) {
        assert_eq!(seq, self.wins.len() as u64 + 1, "seq has no gap: {write:?}");
        if let Some(held) = self.held(&write.key) {
            assert!(
                write.timestamp > held.timestamp,
                "{write:?} wins over {held:?}"
            );
        }
        self.places.insert(write.value.clone(), self.wins.len());
        self.latest.insert(write.key.clone(), self.wins.len());
        self.wins.push(write);
    }

    /// What its registers take in a log in which nothing is dead, with an id of so many bytes.
    pub fn bytes(&self, id_bytes: usize) -> u64 {
        let held = self.latest.values().map(|place| &self.wins[*place]);
        held.map(|write| (29 + id_bytes + write.key.len() + write.value.len()) as u64)
            .sum()
    }

    /// The register of a key.
    pub fn held(&self, key: &str) -> Option<&Write> {
        self.latest.get(key).map(|place| &self.wins[*place])
    }

    pub fn place(&self, value: &str) -> Option<usize> {
        self.places.get(value).copied()
    }

    /// Whether a later op won over the one at `place`.
    pub fn is_superseded(&self, place: usize) -> bool {
        self.latest[&self.wins[place].key] > place
    }

    /// The state after the first `count` wins: for each key, the place of its op.
    pub fn state(&self, count: usize) -> BTreeMap<&str, usize> {
        let wins = self.wins[..count].iter().enumerate();
        wins.map(|(place, write)| (write.key.as_str(), place))
            .collect()
    }

    /// All behind the first `count` wins was lost, and those are on disk.
    pub fn cut(&mut self, count: usize) {
        self.wins.truncate(count);
        self.places.retain(|_, place| *place < count);
        self.latest = self
            .state(count)
            .into_iter()
            .map(|(key, place)| (key.to_owned(), place))
            .collect();
        self.shown = self.shown.min(count);
        (self.written, self.synced) = (count, count);
        (self.confirmed, self.covered) = (count, count);
    }
}
