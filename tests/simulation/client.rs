//! A client with its connection: how it behaves, and what it may receive.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use etherply::core::fanout::window::Spans;
use etherply::core::shard::contract::Limits;
use etherply::core::shard::session::SessionId;

use crate::model::{Model, Write};
use crate::presence::PeerSide;
use crate::replica::Replica;
use crate::server::PANIC_KEY;
use crate::wire::{self, Stream, Told};

/// The location of the server's end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    At(usize, SessionId),
    /// In transit from one shard to another.
    Travelling,
    /// Closed by the server, or the server has exited.
    Gone,
}

/// The pace at which a client reads from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    Swift,
    Slow,
    Stopped,
    /// The connection is dead: the client neither reads nor sends.
    HalfOpen,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what may happen yet, or was seen"
)]
#[derive(Debug)]
pub struct Client {
    pub number: usize,
    pub workspace: usize,
    pub home: Home,
    pub reading: Reading,
    /// The offset of its clock from the true time.
    pub skew_us: i64,

    // The connection.
    pub outgoing: VecDeque<u8>,
    pub receiving: bool,
    /// A send in flight, and the bytes as they were when it began.
    pub sending: Option<(Spans, Vec<u8>)>,
    /// One of the ends vanished without a close, so whatever is in flight completes as broken.
    pub is_broken: bool,
    /// It sends nothing after `outgoing`.
    pub is_leaving: bool,
    pub stream: Stream,
    /// Messages sent to it but not read yet, each with its end offset in the stream.
    pub told: VecDeque<(u64, Told)>,
    pub sent_bytes: u64,
    pub read_bytes: u64,

    /// It speaks version 2.
    pub is_v2: bool,
    /// It was being served when its shard failed.
    pub was_answered: bool,
    /// The copy of the workspace of a version 2 client, until another connection takes it over.
    pub replica: Option<Box<Replica>>,
    /// What the client knows and says as a peer.
    pub peer: PeerSide,

    // The client's own knowledge.
    pub status_wanted: u16,
    pub status: Option<u16>,
    pub init: Option<BTreeMap<String, String>>,
    /// The number of wins up to the last one that it has received. Those that it skipped have been
    /// superseded or are in `left_out`.
    pub place: usize,
    /// The number of wins that `init` may contain: some may be deletes, which it does not show.
    pub init_until: usize,
    /// Whether it has received an op that comes after its state.
    pub has_followed: bool,
    /// Its own copy of the state.
    pub held: BTreeMap<String, (String, u64)>,
    /// All values that it has ever held: received (false), or written by the client itself (true).
    pub known: Vec<(Write, bool)>,
    /// The limits of the server to which it is connected.
    pub limits: Limits,
    /// The server's disk may be nearly full.
    pub has_little_room: bool,
    /// The ops that it sent, in order.
    pub sent: Vec<Write>,
    /// The values of the ops that the server has refused.
    pub refused: BTreeSet<String>,
    /// Ops that neither won nor lost, so they must have been refused, although the refusal may not
    /// have arrived yet.
    pub unexplained: Vec<Write>,
    /// The number of messages and pings that it has sent.
    pub messages: u64,
    /// The number of ops in `sent` that have been judged: won, lost, or `unexplained`.
    pub judged: usize,
    pub refusals_due: u64,
    pub refusals: u64,
    pub pongs_due: u64,
    pub pongs: u64,
    pub was_conflated: bool,
    /// The places of the ops that it has received.
    pub seen: BTreeSet<usize>,
    /// The places of ops that it has not received and whose keys have no later op in the log yet.
    pub left_out: Vec<usize>,
    /// The close codes that it may receive.
    pub codes: BTreeSet<u16>,
    pub code: Option<u16>,
    /// Whether an op that it sent was lost, or may have been lost.
    pub lost_an_op: bool,
    pub may_have_lost: bool,
    pub is_told_500: bool,
    /// At some point before its answer, the shard was not serving, or the server was starting or
    /// stopping.
    pub met_failure: bool,
    pub met_pause: bool,
    /// It connected before the log had been read.
    pub came_early: bool,
    pub was_corrected: u64,
    /// It has begun a message that it never finishes.
    pub is_mid_message: bool,
    /// The time when the server last had everything the client had sent, as complete messages.
    pub emptied_us: u64,
    /// The longest time without such a moment, as of the last delivery.
    pub unfinished_us: u64,
    /// It sent the op whose handling panics.
    pub has_planted: bool,
    /// It resent the last op of another connection.
    pub has_resent: bool,
    /// The times when the server last heard from it, and when its socket last accepted something or
    /// was last offered something.
    pub heard_us: u64,
    pub moved_us: u64,
    pub came_us: u64,
    /// The longest times without a sign of life, and without accepting anything.
    pub silence_us: u64,
    pub stalled_us: u64,
}

impl Client {
    pub fn new(number: usize, workspace: usize, reading: Reading, skew_us: i64) -> Self {
        Self {
            number,
            workspace,
            home: Home::Travelling,
            reading,
            skew_us,
            outgoing: VecDeque::new(),
            receiving: false,
            sending: None,
            is_broken: false,
            is_leaving: false,
            stream: Stream::default(),
            told: VecDeque::new(),
            sent_bytes: 0,
            read_bytes: 0,
            is_v2: false,
            was_answered: false,
            replica: None,
            peer: PeerSide::default(),
            status_wanted: 101,
            status: None,
            init: None,
            place: 0,
            init_until: 0,
            has_followed: false,
            held: BTreeMap::new(),
            known: Vec::new(),
            limits: Limits::default(),
            sent: Vec::new(),
            has_little_room: false,
            refused: BTreeSet::new(),
            unexplained: Vec::new(),
            messages: 0,
            judged: 0,
            refusals_due: 0,
            refusals: 0,
            pongs_due: 0,
            pongs: 0,
            was_conflated: false,
            seen: BTreeSet::new(),
            left_out: Vec::new(),
            codes: BTreeSet::new(),
            code: None,
            lost_an_op: false,
            may_have_lost: false,
            is_told_500: false,
            met_failure: false,
            met_pause: false,
            came_early: false,
            was_corrected: 0,
            is_mid_message: false,
            emptied_us: 0,
            unfinished_us: 0,
            has_planted: false,
            has_resent: false,
            heard_us: 0,
            moved_us: 0,
            came_us: 0,
            silence_us: 0,
            stalled_us: 0,
        }
    }

    /// Returns whether its shard has failed and closes it. A request that waited in the meantime is
    /// served afterwards.
    pub fn is_cut_off(&self) -> bool {
        let is_closed = self.told.iter().any(|told| told.1 == Told::Close(1011));
        let is_ending = !self.is_v2 || self.was_answered || is_closed;
        self.codes.contains(&1011) && is_ending
    }

    pub fn is_gone(&self) -> bool {
        self.home == Home::Gone
    }

    /// Records that the server has received some or all of its bytes.
    pub fn note_delivery(&mut self, now_us: u64) {
        self.unfinished_us = self.unfinished_us.max(now_us - self.emptied_us);
        if self.outgoing.is_empty() && !self.is_mid_message {
            self.emptied_us = now_us;
        }
    }

    /// Returns whether it is a member of its workspace, as far as it knows.
    pub fn is_open(&self) -> bool {
        let is_connected = !self.is_gone() && !self.is_broken && !self.is_leaving;
        is_connected && !self.is_mid_message && self.init.is_some() && self.code.is_none()
    }

    /// Returns whether the server's messages reach it as a member of its workspace.
    pub fn is_reached(&self) -> bool {
        let is_connected = !self.is_gone() && !self.is_broken && !self.is_leaving;
        let is_member = self.init.is_some() && self.code.is_none();
        is_connected && is_member && self.reading != Reading::HalfOpen
    }

    /// Sends an op and immediately applies it locally.
    pub fn write(&mut self, write: Write) {
        self.hold(&write, true);
        self.outgoing.extend(wire::op_frame(&write));
        self.messages += 1;
        self.sent.push(write);
    }

    /// Records an op and applies it unless a newer one is held.
    fn hold(&mut self, write: &Write, is_own: bool) {
        self.known.push((write.clone(), is_own));
        self.prefer(write);
    }

    fn prefer(&mut self, write: &Write) {
        let held = self.held.get(&write.key);
        if held.is_none_or(|held| held.1 <= write.timestamp) {
            self.held
                .insert(write.key.clone(), (write.value.clone(), write.timestamp));
        }
    }

    /// Judges the ops in `sent` before `end`, once `model` has applied the last of them or all ops
    /// have been handled.
    pub fn judge_until(&mut self, end: usize, model: &Model) {
        for write in &self.sent[self.judged.min(end)..end] {
            let held = model.held(&write.key);
            let is_newer = held.is_some_and(|held| held.timestamp >= write.timestamp);
            let is_handled = is_newer || write.timestamp <= model.floor().0;
            let may_be_refused = self.limits.ops_per_second.is_some()
                || self.limits.workspace_bytes.is_some()
                || self.has_little_room;
            assert!(
                is_handled || may_be_refused,
                "client {}: {write:?} neither won nor lost; the server has {held:?}",
                self.number
            );
            if !is_handled {
                self.unexplained.push(write.clone());
            }
        }
        self.judged = self.judged.max(end);
    }

    /// Reads a message. Returns false if the model does not know the op yet, because the log
    /// reports it later.
    pub fn read(&mut self, told: &Told, model: &Model, is_sender: &dyn Fn(&str) -> bool) -> bool {
        assert!(
            self.code.is_none(),
            "client {}: {told:?} after a close frame",
            self.number
        );
        match told {
            Told::Status(status) => {
                self.read_status(*status);
                return true;
            }
            Told::State(data) => {
                if self.state_places(data, model).is_none() {
                    return false;
                }
                self.read_status(200);
                return true;
            }
            Told::Users(..) => {
                self.read_status(200);
                return true;
            }
            Told::Init(data) => return self.read_init(data, model),
            Told::Op(write) => return self.read_op(write, model, is_sender),
            Told::Error(429, Some(about)) => {
                assert!(
                    self.limits.ops_per_second.is_some(),
                    "no rate is configured"
                );
                self.undo(about, model);
            }
            Told::Error(413, Some(about)) => {
                assert!(
                    self.limits.workspace_bytes.is_some(),
                    "no size limit is configured"
                );
                self.undo(about, model);
            }
            Told::Error(500, Some(about)) => {
                assert!(
                    self.has_little_room,
                    "a client got 500 although the disk has space"
                );
                self.undo(about, model);
            }
            Told::Error(400 | 429, None) => self.count_refusal(),
            Told::Error(500, None) => {
                let is_right = self.lost_an_op || self.may_have_lost;
                assert!(
                    is_right,
                    "client {}: received 500 without losing an op",
                    self.number
                );
                self.is_told_500 = true;
            }
            Told::Error(..)
            | Told::Welcome(_)
            | Told::Part(..)
            | Told::Synced(_)
            | Told::Change(..)
            | Told::Correction(..)
            | Told::Saved(..)
            | Told::Refused(..)
            | Told::Presence(_)
            | Told::Cast(..)
            | Told::Answered(_) => panic!("client {}: {told:?}", self.number),
            Told::Ping => {
                if self.reading != Reading::HalfOpen {
                    self.outgoing.extend(wire::frame(wire::PONG, b""));
                }
            }
            Told::Pong => {
                self.pongs += 1;
                assert!(
                    self.pongs <= self.pongs_due,
                    "client {}: an unsolicited pong",
                    self.number
                );
            }
            Told::Close(code) => {
                assert!(
                    self.codes.contains(code),
                    "client {}: closed with {code}, not one of {:?}",
                    self.number,
                    self.codes
                );
                assert!(
                    *code != 1011 || self.is_told_500 || !self.lost_an_op,
                    "client {}: received no error for its lost op",
                    self.number
                );
                self.code = Some(*code);
                self.is_leaving = true;
            }
        }
        true
    }

    fn count_refusal(&mut self) {
        self.refusals += 1;
        assert!(
            self.refusals <= self.refusals_due,
            "client {}: an error for a valid message",
            self.number
        );
    }

    /// Reverts the key of a refused op to the value that it would otherwise hold.
    fn undo(&mut self, (key, timestamp): &(String, u64), model: &Model) {
        let number = self.number;
        if key == PANIC_KEY {
            return assert!(self.has_planted, "client {number} never sent that");
        }
        let is_it = |write: &Write| write.key == *key && write.timestamp == *timestamp;
        let write = self.sent.iter().find(|write| is_it(write));
        let Some(write) = write else {
            // The refused message was also invalid.
            return self.count_refusal();
        };
        assert!(
            self.has_resent || model.place(&write.value).is_none(),
            "client {number}: {write:?} was refused but won"
        );
        let is_first = self.refused.insert(write.value.clone());
        assert!(is_first, "client {number}: {write:?} is refused twice");
        let place = self
            .known
            .iter()
            .position(|(write, is_own)| *is_own && is_it(write));
        self.known.remove(place.expect("the client has its own op"));
        self.held.remove(key);
        for (write, _) in self.known.clone() {
            if write.key == *key {
                self.prefer(&write);
            }
        }
    }

    /// Checks that every op that it did not receive has been superseded by a newer one.
    pub fn check_left_out(&mut self, model: &Model) {
        self.left_out.retain(|place| !model.is_superseded(*place));
        let left_out: Vec<&Write> = self
            .left_out
            .iter()
            .map(|place| &model.wins[*place])
            .collect();
        assert!(
            left_out.is_empty(),
            "client {} did not receive {left_out:?}",
            self.number
        );
    }

    fn read_status(&mut self, status: u16) {
        let is_right = match status {
            500 => self.met_failure,
            503 => self.met_pause || self.may_be_put_off(),
            _ => status == self.status_wanted,
        };
        assert!(
            is_right,
            "client {}: {status} instead of {}",
            self.number, self.status_wanted
        );
        self.status = Some(status);
        self.is_leaving |= status != 101;
    }

    /// Returns whether it may hit a limit on members or handshakes.
    pub fn may_be_put_off(&self) -> bool {
        let asks = [101, 200, 401].contains(&self.status_wanted);
        let Limits {
            connections_per_workspace,
            handshakes_per_second,
            ..
        } = self.limits;
        asks && (connections_per_workspace.is_some() || handshakes_per_second.is_some())
    }

    /// Returns the first and the last number of wins after which the state is `data`, or `None` if
    /// one of its ops did not win.
    fn state_places(
        &self,
        data: &BTreeMap<String, String>,
        model: &Model,
    ) -> Option<(usize, usize)> {
        let places = model.places_of(data, model.wins.len());
        let is_known = data.values().all(|value| model.place(value).is_some());
        assert!(
            places.is_some() || !is_known || model.may_grow,
            "client {}: {data:?} is no state of {:?}",
            self.number,
            model.wins
        );
        places
    }

    /// Reads the init message and checks that it is the state after some number of wins. Ops
    /// continue from there.
    fn read_init(&mut self, data: &BTreeMap<String, String>, model: &Model) -> bool {
        assert!(self.init.is_none(), "client {}: a second init", self.number);
        let Some(places) = self.state_places(data, model) else {
            return false;
        };
        (self.place, self.init_until) = places;
        (self.held, self.known) = (BTreeMap::new(), Vec::new());
        for (key, value) in data {
            let write = Write {
                key: key.clone(),
                value: value.clone(),
                timestamp: 0,
            };
            self.hold(&write, false);
        }
        self.init = Some(data.clone());
        // Ops that it wrote before it received the state come after that state.
        for write in self.sent.clone() {
            self.hold(&write, true);
        }
        true
    }

    /// Advances the end of the ops that `init` may contain, before an op at `place` is read. If ops
    /// are shown before they are logged, `init` may be from a moment that the log has not reached
    /// yet, even though it equals an earlier state, as when both are empty.
    fn extend_init(&mut self, place: usize, model: &Model) {
        let init = self.init.as_ref().filter(|_| model.may_grow);
        if let Some((_, until)) = init.and_then(|init| model.places_of(init, place)) {
            self.init_until = self.init_until.max(until);
        }
    }

    fn read_op(&mut self, write: &Write, model: &Model, is_sender: &dyn Fn(&str) -> bool) -> bool {
        assert!(
            self.init.is_some(),
            "client {}: a message arrived before init",
            self.number
        );
        let Some(place) = model.place(&write.value) else {
            // The key has no entry, and the op is not later than the floor.
            let is_late = |sent: &Write| sent.key == write.key && sent.timestamp <= write.timestamp;
            let is_absent = model.is_absent(write) && self.sent.iter().any(is_late);
            if is_absent {
                self.was_corrected += 1;
                self.hold(write, false);
            }
            return is_absent;
        };
        assert_eq!(
            *write, model.wins[place],
            "client {}: received an op that did not win",
            self.number
        );
        let lost_to = |sent: &Write| {
            sent.key == write.key && sent.timestamp <= write.timestamp && sent.value != write.value
        };
        // Before it refuses an op that would have won, the server sends the value that the key
        // keeps. The same op may have won since then, if another client resent it.
        let is_refused_for = |sent: &Write| {
            (self.limits.workspace_bytes.is_some() || self.has_little_room)
                && sent.key == write.key
                && sent.timestamp > write.timestamp
                && model.place(&sent.value).is_none_or(|won| won > place)
        };
        let is_answer = |sent: &Write| lost_to(sent) || is_refused_for(sent);
        let is_correction = self.sent.iter().any(is_answer);
        if !self.has_followed {
            self.extend_init(place, model);
        }
        let skipped = self.place..place.max(self.place);
        let is_owed = |at: &usize| {
            let is_new = *at >= self.init_until && !self.seen.contains(at);
            is_new && !is_sender(&model.wins[*at].value)
        };
        if place < self.place || is_sender(&write.value) && is_correction {
            assert!(
                is_correction,
                "client {}: {write:?} arrived twice or too late",
                self.number
            );
            self.was_corrected += 1;
        } else if is_correction && skipped.clone().any(|at| is_owed(&at)) {
            // The winning op may overtake the broadcasts that were dropped.
            self.was_corrected += 1;
            self.was_conflated = true;
        } else {
            // If two connections of the same client sent it, the op may be either's.
            assert!(
                self.has_resent || !is_sender(&write.value),
                "client {}: its own op was sent back: {write:?}",
                self.number
            );
            let left_out: Vec<usize> = skipped.filter(is_owed).collect();
            self.was_conflated |= !left_out.is_empty();
            self.left_out
                .extend(left_out.into_iter().filter(|at| !model.is_superseded(*at)));
            (self.place, self.has_followed) = (place + 1, true);
        }
        self.seen.insert(place);
        self.hold(write, false);
        true
    }
}
