//! A naive model of a workspace: the list of ops that won.

use std::collections::BTreeMap;

/// An op as a client writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub value: String,
    pub timestamp: u64,
}

/// The expected content of a workspace.
#[derive(Debug, Default)]
pub struct Model {
    /// The ops that won, in order: the seq of each is its place, counted from 1.
    pub wins: Vec<Write>,
    /// The place of each value, which is written only once.
    places: BTreeMap<String, usize>,
    latest: BTreeMap<String, usize>,
    /// The number of `wins` that a client may have seen.
    pub shown: usize,
    /// The number of `wins` that the kernel was given.
    pub written: usize,
    /// The number of `wins` that a successful sync covers.
    pub synced: usize,
    /// The number of `wins` that the shard knows to be as durable as its mode requires.
    pub confirmed: usize,
    /// The number of `wins` that the shard knows to be synced.
    pub covered: usize,
}

impl Model {
    /// Applies the next op in the log.
    pub fn win(&mut self, write: Write, seq: u64) {
        assert_eq!(
            seq,
            self.wins.len() as u64 + 1,
            "the seqs have a gap: {write:?}"
        );
        if let Some(held) = self.held(&write.key) {
            assert!(
                write.timestamp > held.timestamp,
                "{write:?} does not win over {held:?}"
            );
        }
        self.places.insert(write.value.clone(), self.wins.len());
        self.latest.insert(write.key.clone(), self.wins.len());
        self.wins.push(write);
    }

    /// Returns the size of its registers in a log without dead ops, for a workspace id of
    /// `id_bytes` bytes.
    pub fn bytes(&self, id_bytes: usize) -> u64 {
        let held = self.latest.values().map(|place| &self.wins[*place]);
        held.map(|write| (29 + id_bytes + write.key.len() + write.value.len()) as u64)
            .sum()
    }

    /// Returns the register of a key.
    pub fn held(&self, key: &str) -> Option<&Write> {
        self.latest.get(key).map(|place| &self.wins[*place])
    }

    pub fn place(&self, value: &str) -> Option<usize> {
        self.places.get(value).copied()
    }

    /// Returns whether a later op has superseded the one at `place`.
    pub fn is_superseded(&self, place: usize) -> bool {
        self.latest[&self.wins[place].key] > place
    }

    /// Returns the state after the first `count` wins: for each key, the place of its op.
    pub fn state(&self, count: usize) -> BTreeMap<&str, usize> {
        let wins = self.wins[..count].iter().enumerate();
        wins.map(|(place, write)| (write.key.as_str(), place))
            .collect()
    }

    /// Drops all wins but the first `count`, which are on disk.
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
