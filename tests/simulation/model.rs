//! A naive model of a workspace: the list of ops that won.

use std::collections::BTreeMap;

/// An op as a client writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub value: String,
    pub timestamp: u64,
}

/// The start of the value of each delete. No client writes such a value, because it is not JSON.
const DELETED: &str = "deleted ";

impl Write {
    /// Returns a delete. Its value is unique, like that of a write.
    pub fn delete(key: String, timestamp: u64) -> Self {
        let value = format!("{DELETED}{key} {timestamp}");
        Self {
            key,
            value,
            timestamp,
        }
    }

    pub fn is_delete(&self) -> bool {
        self.value.starts_with(DELETED)
    }

    /// Returns the timestamp that a conditional op must specify to win over this one.
    pub fn condition(&self) -> u64 {
        if self.is_delete() { 0 } else { self.timestamp }
    }
}

/// The expected content of a workspace.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The ops that won, in order: the seq of each is its place, counted from 1.
    pub wins: Vec<Write>,
    /// The place of each value, which is written only once.
    places: BTreeMap<String, usize>,
    latest: BTreeMap<String, usize>,
    /// The places of the writes that expire, with their deadlines in Unix microseconds.
    expiries: BTreeMap<usize, u64>,
    /// The floors that were logged: each with the seq up to which tombstones were dropped.
    floors: Vec<(u64, u64)>,
    /// The greatest floor that a client was shown.
    pub floor_shown: u64,
    /// Ops are shown before they are logged, so a client may have seen more of them.
    pub may_grow: bool,
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
    pub fn new(may_grow: bool) -> Self {
        Self {
            may_grow,
            ..Self::default()
        }
    }

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

    /// Records that the last op expires.
    pub fn expires(&mut self, at_us: u64) {
        self.expiries.insert(self.wins.len() - 1, at_us);
    }

    /// Returns the deadline of the key's register, if it has one.
    pub fn expiry_us(&self, key: &str) -> Option<u64> {
        self.expiries.get(self.latest.get(key)?).copied()
    }

    /// Returns the size of its registers in a log without dead ops, for a workspace id of
    /// `id_bytes` bytes.
    pub fn bytes(&self, id_bytes: usize) -> u64 {
        let record_bytes = |place: &usize| {
            let write = &self.wins[*place];
            let value_bytes = if write.is_delete() {
                8
            } else {
                write.value.len() + 8 * usize::from(self.expiries.contains_key(place))
            };
            (29 + id_bytes + write.key.len() + value_bytes) as u64
        };
        let (_, dropped_seq) = self.floor();
        let kept = self.latest.values();
        let kept = kept.filter(|place| !self.is_dropped_by(**place, dropped_seq));
        let floor_bytes = if dropped_seq > 0 {
            29 + 8 + id_bytes
        } else {
            0
        };
        kept.map(record_bytes).sum::<u64>() + floor_bytes as u64
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

    /// Returns the first and the last number of wins, up to `most`, after which the live keys match
    /// `data`. `None` if there is no such number.
    ///
    /// A state does not show its deletes, so it may match several moments.
    pub fn places_of(
        &self,
        data: &BTreeMap<String, String>,
        most: usize,
    ) -> Option<(usize, usize)> {
        let mut places = data.values().map(|value| self.place(value));
        let least = places.try_fold(0, |least, place| Some(least.max(place? + 1)))?;
        if least > most {
            return None;
        }
        let mut live = self.live(least);
        let is_same = |live: &BTreeMap<&str, &str>| {
            let live = live.iter().map(|(key, value)| (*key, *value));
            live.eq(data
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str())))
        };
        let mut found = is_same(&live).then_some((least, least));
        for (write, count) in self.wins[least..most].iter().zip(least + 1..) {
            if write.is_delete() {
                live.remove(write.key.as_str());
            } else {
                live.insert(&write.key, &write.value);
            }
            // The values are unique, so only a delete makes two states equal.
            if (write.is_delete() || live.len() <= data.len()) && is_same(&live) {
                found = Some((found.map_or(count, |found| found.0), count));
            }
        }
        found
    }

    /// Returns the values of the live keys after the first `count` wins.
    pub fn live(&self, count: usize) -> BTreeMap<&str, &str> {
        let state = self.state(count).into_iter();
        let writes = state.map(|(key, place)| (key, &self.wins[place]));
        let writes = writes.filter(|(_, write)| !write.is_delete());
        writes
            .map(|(key, write)| (key, write.value.as_str()))
            .collect()
    }

    /// Returns whether the answer to an op on a key without an entry is correct.
    pub fn is_absent(&self, answer: &Write) -> bool {
        let is_floor = self.floors.iter().any(|floor| floor.0 == answer.timestamp);
        answer.is_delete() && (answer.timestamp == 0 || is_floor)
    }

    /// Records that tombstones were dropped.
    pub fn raise_floor(&mut self, timestamp: u64, dropped_seq: u64) {
        let (floor, seq) = self.floor();
        assert!(
            timestamp >= floor && dropped_seq >= seq,
            "a floor of {timestamp} at {dropped_seq} is below {floor} at {seq}"
        );
        let tombstones = self.wins[place_after(seq)..place_after(dropped_seq)].iter();
        let most = tombstones.filter(|write| write.is_delete());
        let most = most.map(|write| write.timestamp).max().unwrap_or(0);
        assert!(
            timestamp <= most.max(floor),
            "a floor is that of a tombstone"
        );
        self.floors.push((timestamp, dropped_seq));
    }

    /// Returns the floor, and the seq of the newest tombstone that was dropped.
    pub fn floor(&self) -> (u64, u64) {
        self.floors.last().copied().unwrap_or_default()
    }

    /// Returns whether the op at `place` is a tombstone that is dropped up to `dropped_seq`.
    pub fn is_dropped_by(&self, place: usize, dropped_seq: u64) -> bool {
        (place as u64) < dropped_seq && self.wins[place].is_delete()
    }

    /// Drops all wins but the first `count`, which are on disk, and the floors after `floor`.
    pub fn cut(&mut self, count: usize, floor: (u64, u64)) {
        while self.floor().1 > floor.1 {
            self.floors.pop();
        }
        assert_eq!(self.floor(), floor, "a floor that was read back was logged");
        self.wins.truncate(count);
        self.places.retain(|_, place| *place < count);
        self.latest = self
            .state(count)
            .into_iter()
            .map(|(key, place)| (key.to_owned(), place))
            .collect();
        self.expiries.retain(|place, _| *place < count);
        self.shown = self.shown.min(count);
        (self.written, self.synced) = (count, count);
        (self.confirmed, self.covered) = (count, count);
    }
}

/// Returns the place in [`Model::wins`] of the op after the one with this seq.
pub fn place_after(seq: u64) -> usize {
    usize::try_from(seq).expect("the number is small")
}
