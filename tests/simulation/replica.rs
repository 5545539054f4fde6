//! The copy of a workspace that a version 2 client keeps across connections, a naive implementation
//! of the protocol's merge rule.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Model, Write, place_after};
use crate::presence::PeerIdentity;
use crate::wire::{Told, Welcome};

/// An op of the client that is not settled yet.
#[derive(Debug, Clone)]
pub struct Edit {
    pub write: Write,
    pub if_timestamp: Option<u64>,
    pub ttl_ms: Option<u64>,
    /// The id of its message on the current connection.
    pub id: u64,
    /// It was sent on an earlier connection, too.
    pub is_resent: bool,
    /// The server has shown an older op of its key, so its condition did not hold.
    pub has_lost: bool,
}

/// An entry or a tombstone.
#[derive(Debug, Clone)]
struct Held {
    write: Write,
    /// It is from before the full state that is being received, and has not been confirmed since.
    is_unconfirmed: bool,
}

/// The point from which a client resumes.
#[derive(Debug, Clone)]
pub struct Point {
    pub since: u64,
    pub generation: String,
    /// What the client holds is the state at that point. Otherwise it holds a mix of that state and
    /// later ones, and may resume in the same history only.
    is_exact: bool,
    /// The op with that seq, which identifies the history.
    last: Option<Write>,
}

/// A client's copy of its workspace.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    pub workspace: usize,
    pub skew_us: i64,
    held: BTreeMap<String, Held>,
    /// The unsettled ops, in the order in which they were made.
    pub edits: Vec<Edit>,
    /// The ids of the pings that have not been answered yet.
    pings: BTreeSet<u64>,
    pub point: Option<Point>,
    /// A full state is being received.
    pub is_full: bool,
    /// The resume point that it sent when it connected.
    pub asked: Option<Point>,
    generation: String,
    /// The seq up to which it knows all changes.
    pub seq: u64,
    last_id: u64,
    saved: u64,
    pub identity: PeerIdentity,
    /// It must start over on another connection.
    pub is_obsolete: bool,
    /// The number of each kind of welcome, by its reason.
    pub welcomes: BTreeMap<String, u64>,
}

/// The state that a replica is compared with while it reads.
pub struct Oracle<'a> {
    pub model: &'a Model,
    /// The connection, for messages.
    pub number: usize,
    /// Nothing is shown before it is durable, so the model knows everything that is shown.
    pub is_always: bool,
}

impl Replica {
    pub fn new(workspace: usize, skew_us: i64) -> Self {
        Self {
            workspace,
            skew_us,
            ..Self::default()
        }
    }

    // ---- sending ----

    /// Begins a connection that requests the changes since its resume point, or a full state.
    pub fn connect(&mut self, does_resume: bool) {
        self.asked = self.point.take().filter(|_| does_resume);
        (self.last_id, self.saved) = (0, 0);
        self.is_obsolete = false;
        self.pings.clear();
    }

    /// Returns the id of the next message.
    pub fn next_id(&mut self) -> u64 {
        // Ids increase, but need not be consecutive.
        self.last_id += 1 + self.last_id % 3;
        self.last_id
    }

    pub fn ping(&mut self) -> u64 {
        let id = self.next_id();
        self.pings.insert(id);
        id
    }

    /// Returns the timestamp that a conditional op on the key would name.
    pub fn condition(&self, key: &str) -> u64 {
        let held = self.held.get(key);
        held.map_or(0, |held| held.write.condition())
    }

    /// Adds an op and returns it in the form to send.
    pub fn edit(&mut self, mut edit: Edit) -> Edit {
        edit.id = self.next_id();
        self.edits.push(edit.clone());
        edit
    }

    /// Returns the unsettled ops, which are sent again on a new connection.
    pub fn resend(&mut self) -> Vec<Edit> {
        let mut edits = std::mem::take(&mut self.edits);
        for edit in &mut edits {
            edit.is_resent = true;
            edit.id = self.next_id();
        }
        self.edits.clone_from(&edits);
        edits
    }

    // ---- reading ----

    /// Reads a message. Returns false if the model does not know all of it yet, because the log
    /// reports it later.
    pub fn read(&mut self, told: &Told, oracle: &Oracle<'_>) -> bool {
        if self.is_obsolete {
            return true;
        }
        let known = oracle.model.wins.len() as u64;
        let seq = match told {
            Told::Part(_, seq) | Told::Synced(seq) | Told::Change(_, seq) => Some(*seq),
            Told::Saved(_, seq) => *seq,
            _ => None,
        };
        if seq.is_some_and(|seq| seq > known) {
            return false;
        }
        match told {
            Told::Welcome(welcome) => self.begin(welcome, oracle),
            Told::Part(writes, seq) => {
                let is_known = |write: &Write| oracle.model.place(&write.value).is_some();
                if !writes.iter().all(is_known) {
                    return false;
                }
                for write in writes {
                    self.merge(write);
                }
                // A part may omit an entry that was replaced by an op that is not durable yet.
                // After a crash, its seq is then not a valid resume point.
                if oracle.is_always {
                    self.advance(*seq, false, oracle);
                }
            }
            Told::Synced(seq) => {
                self.held.retain(|_, held| !held.is_unconfirmed);
                self.is_full = false;
                self.advance(*seq, true, oracle);
                self.check_state(oracle);
            }
            Told::Change(write, seq) => {
                assert_eq!(
                    *write,
                    oracle.model.wins[place_after(*seq) - 1],
                    "client {}: an op is what won",
                    oracle.number
                );
                self.merge(write);
                self.advance(*seq, true, oracle);
            }
            Told::Op(write) => return self.read_entry(write, oracle),
            Told::Correction(write, id) => return self.read_correction(write, *id, oracle),
            Told::Refused(code, id) => self.refuse(*code, *id, oracle),
            Told::Answered(id) => {
                let number = oracle.number;
                assert!(
                    self.pings.remove(id),
                    "client {number}: a pong without a ping"
                );
            }
            Told::Saved(id, seq) => return self.settle(*id, *seq, oracle),
            other => panic!("client {}: {other:?} in version 2", oracle.number),
        }
        true
    }

    fn begin(&mut self, welcome: &Welcome, oracle: &Oracle<'_>) {
        let number = oracle.number;
        *self.welcomes.entry(welcome.why.clone()).or_default() += 1;
        let asked = self.asked.take();
        assert_eq!(
            welcome.why == "first",
            asked.is_none(),
            "client {number}: {welcome:?} to {asked:?}"
        );
        assert_eq!(welcome.is_full, welcome.why != "resumed");
        self.generation.clone_from(&welcome.generation);
        if welcome.is_full {
            for held in self.held.values_mut() {
                held.is_unconfirmed = true;
            }
            self.is_full = true;
            self.seq = 0;
            return;
        }
        let Point {
            since,
            generation,
            is_exact,
            last,
        } = asked.expect("it resumes");
        let place = place_after(since).checked_sub(1);
        let found = place.map(|place| oracle.model.wins.get(place));
        assert_eq!(
            found.map(Option::<&Write>::cloned),
            place.map(|_| last.clone()),
            "client {number}: it resumes in a different history"
        );
        self.is_obsolete = !is_exact && generation != welcome.generation;
        if !self.is_obsolete {
            self.seq = since;
            self.keep_point(is_exact, oracle);
        }
    }

    /// Applies an op unless the client's entry is newer.
    fn merge(&mut self, write: &Write) {
        let held = self.held.get(&write.key);
        let is_newer = |held: &Held| !held.is_unconfirmed && held.write.timestamp > write.timestamp;
        if !held.is_some_and(is_newer) {
            let held = Held {
                write: write.clone(),
                is_unconfirmed: false,
            };
            self.held.insert(write.key.clone(), held);
        }
    }

    /// Reads the entry of a key for which the workspace or the disk has no room. An error follows.
    fn read_entry(&mut self, write: &Write, oracle: &Oracle<'_>) -> bool {
        if oracle.model.place(&write.value).is_none() {
            return false;
        }
        let mut edits = self.edits.iter();
        assert!(
            edits.any(|edit| edit.write.key == write.key),
            "client {}: {write:?} answers nothing",
            oracle.number
        );
        self.show(write);
        true
    }

    /// Reads the op that the client's op with this id has lost to.
    fn read_correction(&mut self, write: &Write, id: u64, oracle: &Oracle<'_>) -> bool {
        let number = oracle.number;
        let is_known = oracle.model.place(&write.value).is_some();
        // The key has no entry: this answers an op that expects one.
        let is_absent = write.is_delete() && !is_known;
        if !(is_known || is_absent && oracle.model.is_absent(write)) {
            return false;
        }
        let edit = self.edits.iter_mut().find(|edit| edit.id == id);
        let edit = edit.filter(|edit| edit.write.key == write.key);
        let edit = edit.unwrap_or_else(|| panic!("client {number}: {write:?} to message {id}"));
        let expected = edit.if_timestamp;
        let is_unmet = expected.is_some_and(|expected| expected != write.condition());
        assert!(
            is_unmet || write.timestamp >= edit.write.timestamp,
            "client {number}: {edit:?} did not lose to {write:?}"
        );
        edit.has_lost = true;
        if !is_absent || write.timestamp > 0 {
            self.show(write);
        }
        true
    }

    /// Applies an op that may be later than the point from which the client resumes.
    fn show(&mut self, write: &Write) {
        self.merge(write);
        self.point = self.point.take().map(|point| Point {
            is_exact: false,
            ..point
        });
    }

    fn refuse(&mut self, code: u64, id: u64, oracle: &Oracle<'_>) {
        let number = oracle.number;
        let at = self.edits.iter().position(|edit| edit.id == id);
        let at = at.unwrap_or_else(|| panic!("client {number}: error {code} to message {id}"));
        let edit = self.edits.remove(at);
        assert!(
            edit.is_resent || oracle.model.place(&edit.write.value).is_none(),
            "client {number}: {edit:?} was refused, and won"
        );
    }

    /// Handles a `saved`: all messages up to `id` are settled.
    fn settle(&mut self, id: u64, seq: Option<u64>, oracle: &Oracle<'_>) -> bool {
        let number = oracle.number;
        assert!(
            id > self.saved && id <= self.last_id,
            "client {number}: {id} is saved after {}, of {}",
            self.saved,
            self.last_id
        );
        let settled = |edit: &&Edit| edit.id <= id;
        let open = self.edits.iter().filter(settled);
        let open: Vec<&Edit> = open.filter(|edit| !self.is_settled(edit, oracle)).collect();
        if !open.is_empty() && !oracle.is_always {
            return false;
        }
        assert!(
            open.is_empty(),
            "client {number}: {id} is saved, but neither won, nor lost, nor refused is {open:?}"
        );
        let ping = self.pings.first();
        assert!(
            ping.is_none_or(|ping| *ping > id),
            "client {number}: {id} is saved, but {ping:?} was not answered"
        );
        self.saved = id;
        for edit in std::mem::take(&mut self.edits) {
            let place = oracle.model.place(&edit.write.value);
            if edit.id > id {
                self.edits.push(edit);
            } else if let Some(place) = place {
                assert!(
                    !oracle.is_always || seq.is_none_or(|seq| place < place_after(seq)),
                    "client {number}: {edit:?} is saved, and is not before op {seq:?}"
                );
                self.show(&edit.write);
            }
        }
        if let Some(seq) = seq {
            self.advance(seq, true, oracle);
        }
        true
    }

    /// Returns whether an op has won, or the client was sent the op that it lost to.
    fn is_settled(&self, edit: &Edit, oracle: &Oracle<'_>) -> bool {
        let held = self.held.get(&edit.write.key);
        let is_newer =
            |held: &Held| !held.is_unconfirmed && held.write.timestamp >= edit.write.timestamp;
        let has_won = oracle.model.place(&edit.write.value).is_some();
        has_won || edit.has_lost || held.is_some_and(is_newer)
    }

    // ---- checks ----

    /// Moves the seq up to which the client knows all changes, and checks that it does.
    fn advance(&mut self, seq: u64, is_exact: bool, oracle: &Oracle<'_>) {
        let number = oracle.number;
        assert!(
            seq >= self.seq,
            "client {number}: the seq goes back from {} to {seq}",
            self.seq
        );
        let model = oracle.model;
        for place in place_after(self.seq)..place_after(seq) {
            let write = &model.wins[place];
            let is_known = model.is_superseded(place) || self.knows(write);
            assert!(
                is_known,
                "client {number}: it is at {seq}, but misses {write:?} as op {}",
                place + 1
            );
        }
        self.seq = seq;
        self.keep_point(is_exact, oracle);
    }

    fn keep_point(&mut self, is_exact: bool, oracle: &Oracle<'_>) {
        let last = place_after(self.seq).checked_sub(1);
        self.point = Some(Point {
            since: self.seq,
            generation: self.generation.clone(),
            is_exact,
            last: last.map(|place| oracle.model.wins[place].clone()),
        });
    }

    fn knows(&self, write: &Write) -> bool {
        let held = self.held.get(&write.key);
        let held = held.filter(|held| !held.is_unconfirmed);
        let is_own = self.edits.iter().any(|edit| edit.write == *write);
        let is_newer = held.is_some_and(|held| held.write.timestamp >= write.timestamp);
        // A full state does not list keys that were deleted before it.
        is_newer || is_own || write.is_delete() && held.is_none()
    }

    /// Checks that a synced client holds the state: it misses nothing, and has no deleted keys.
    fn check_state(&self, oracle: &Oracle<'_>) {
        let model = oracle.model;
        for (key, place) in model.state(place_after(self.seq)) {
            let write = &model.wins[place];
            assert!(
                self.knows(write),
                "client {}: in the state after {}, {key} is {write:?}, and {:?} is held",
                oracle.number,
                self.seq,
                self.held.get(key)
            );
        }
        for held in self.held.values() {
            assert!(
                model.place(&held.write.value).is_some() || held.write.is_delete(),
                "client {}: {:?} never was",
                oracle.number,
                held.write
            );
        }
    }

    /// Checks that the client has the server's state, once everything has settled.
    pub fn check_quiet(&self, oracle: &Oracle<'_>) {
        let number = oracle.number;
        assert!(self.edits.is_empty(), "client {number}: {:?}", self.edits);
        assert!(self.pings.is_empty(), "client {number}: {:?}", self.pings);
        assert!(!self.is_full, "client {number} is synced");
        self.check_state(oracle);
        let model = oracle.model;
        let live = self.held.values().map(|held| &held.write);
        let live: BTreeMap<&str, &str> = live
            .filter(|write| !write.is_delete())
            .map(|write| (write.key.as_str(), write.value.as_str()))
            .collect();
        let count = model.wins.len();
        assert_eq!(
            live,
            model.live(count),
            "client {number} ends up in the right state"
        );
        assert_eq!(
            self.seq, count as u64,
            "client {number} can resume at the end"
        );
    }
}
