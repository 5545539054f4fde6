//! A simulation of one shard. Clients, sockets and a disk delay, split and fail operations as the
//! seed dictates, and the outcome is checked against a naive model.

use std::collections::BTreeSet;

use super::*;
use crate::core::fanout::window::{skip_sent, spans_bytes};
use crate::core::testing::{self, Dice, START_UNIX_S};
use crate::limits::SECOND_US;

mod absence;
mod budgets;
mod counters;
mod delivery;
mod expiry;
mod failures;
mod frames;
mod generations;
mod http_read;
mod limits;
mod notes;
mod parts;
mod peers;
mod received;
mod regressions;
mod retention;
mod rig;
mod rules;
mod shedding;
mod space;
mod times;
mod version2;
mod waiting;

use peers::{Client, Member, Model, Verdict, Write};
use rig::{LogOperation, Peer, Rig};

const SEEDS: u64 = 200;
const STEPS: usize = 500;
const WORKSPACES: [&str; 2] = ["one", "two"];

/// A shard on its rig, with clients that act at random, and the model of each workspace.
struct World {
    dice: Dice,
    rig: Rig,
    token: String,
    /// The expectations for each of the rig's peers, in the same order.
    members: Vec<Member>,
    models: [Model; 2],
    /// The values of all ops that were part of a send.
    shown: BTreeSet<String>,
    count: u64,
    may_fail: bool,
    is_draining: bool,
    failures: usize,
    conflated: usize,
    waited: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let rig = Rig::new(|config| {
            config.outbox_bytes_max = 1024;
            config.message_bytes_max = 4096;
            config.ping_interval_us = 25 * SECOND_US;
            config.drain_us = 5 * SECOND_US;
        });
        Self {
            dice: Dice::new(seed),
            rig,
            token: testing::token(None),
            members: Vec::new(),
            models: [Model::default(), Model::default()],
            shown: BTreeSet::new(),
            count: 0,
            may_fail: seed % 2 == 1,
            is_draining: false,
            failures: 0,
            conflated: 0,
            waited: 0,
        }
    }

    fn step(&mut self) {
        for _ in 0..=self.dice.below(3) {
            match self.dice.below(20) {
                0 => self.connect(),
                1..=5 => self.write(),
                6..=11 => self.deliver(),
                12..=15 => self.finish_send(),
                16..=18 => {
                    if self.finish_log() {
                        break;
                    }
                }
                _ => self.vanish(),
            }
        }
        self.turn();
    }

    /// Ends the turn, checks the sends that it started, and lets some time pass.
    fn turn(&mut self) {
        let sending = |peer: &Peer| peer.client.sending.is_some();
        let before: Vec<bool> = self.rig.peers.iter().map(sending).collect();
        self.rig.turn();
        for (place, was_sending) in before.into_iter().enumerate() {
            if !was_sending {
                self.check_send(place);
            }
            if self.rig.peers[place].client.closed {
                self.members[place].joined = false;
            }
        }
        self.note_conflation();
        let has_other_outputs = !(self.rig.pages.is_empty() && self.rig.notes.is_empty());
        assert!(!has_other_outputs, "unexpected page or journal entry");
        let pass_us = if self.dice.one_in(30) { 40_000 } else { 500 };
        self.rig.clock.now_us += self.dice.below(pass_us) as u64;
        // Occasionally, the wall clock is set to another time.
        if self.dice.one_in(40) {
            let jump_us = self.dice.below_u64(3_600_000_000);
            self.rig.clock.unix_us = START_UNIX_S * SECOND_US + jump_us;
        }
    }

    /// Checks that every op in the send that was just started is durable.
    fn check_send(&mut self, place: usize) {
        let Some(spans) = &self.rig.peers[place].client.sending else {
            return;
        };
        let sent: Vec<u8> = spans
            .iter()
            .flat_map(|span| span.bytes().to_vec())
            .collect();
        for value in String::from_utf8_lossy(&sent).split('"') {
            let is_value = value.len() > 2 && value.starts_with('<') && value.ends_with('>');
            if is_value {
                let value = format!("\"{value}\"");
                let is_durable = self.rig.disk.synced.contains(&value);
                assert!(is_durable, "{value} is not durable");
                self.shown.insert(value);
            }
        }
    }

    fn note_conflation(&mut self) {
        for (place, member) in self.members.iter_mut().enumerate() {
            if !member.was_behind && self.rig.is_behind(place) {
                member.was_behind = true;
                self.conflated += 1;
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.rig.ready != Some(false)
    }

    // ---- events ----

    /// Returns a random connected client that satisfies `fits`, or `None` if there is none.
    fn any_client(&mut self, fits: impl Fn(&Client, &Member) -> bool) -> Option<usize> {
        let all = self.rig.peers.iter().zip(&self.members).enumerate();
        let fitting: Vec<usize> = all
            .filter(|(_, (peer, member))| !peer.client.closed && fits(&peer.client, member))
            .map(|(place, _)| place)
            .collect();
        (!fitting.is_empty()).then(|| fitting[self.dice.below(fitting.len())])
    }

    fn connect(&mut self) {
        let open = self.rig.peers.iter().filter(|peer| !peer.client.closed);
        if open.count() >= 8 {
            return;
        }
        self.rig.accept_quietly();
        let workspace = self.dice.below(2);
        let head = testing::join_request(WORKSPACES[workspace], &self.token);
        let is_slow = self.dice.one_in(3);
        let member = Member::new(workspace, head.into_bytes(), is_slow);
        self.members.push(member);
    }

    fn write(&mut self) {
        let Some(place) = self.any_client(|_, member| member.has_init && member.joined) else {
            return;
        };
        for _ in 0..=self.dice.below(3) {
            self.count += 1;
            let key = format!("k{}", self.dice.below(6));
            // The timestamps grow slowly, so that ties are common.
            let timestamp = self.count / 8 + self.dice.below(4) as u64;
            let value = format!("\"<{:0width$}>\"", self.count, width = self.dice.below(60));
            self.members[place].send_op(Write {
                key,
                value,
                timestamp,
            });
        }
    }

    /// Delivers bytes from a random client to the shard. The last message may be cut off anywhere.
    fn deliver(&mut self) {
        let wants = |client: &Client, member: &Member| {
            client.receiving && (client.broken || client.finished || !member.outgoing.is_empty())
        };
        let Some(place) = self.any_client(wants) else {
            return;
        };
        if self.rig.end_receive(place) {
            return;
        }
        let outgoing = &mut self.members[place].outgoing;
        let (mut bytes, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..=self.dice.below(4) {
            let Some((message, write)) = outgoing.pop_front() else {
                break;
            };
            if self.dice.one_in(3) && message.len() > 1 {
                let cut = 1 + self.dice.below(message.len() - 1);
                bytes.extend_from_slice(&message[..cut]);
                let rest = message[cut..].to_vec();
                outgoing.push_front((rest, write));
                break;
            }
            bytes.extend_from_slice(&message);
            whole.push(write);
            if whole == [None] {
                break;
            }
        }
        self.rig.receive_only(place, &bytes);
        for write in whole {
            match write {
                Some(write) => self.apply(place, &write),
                None => self.join(place),
            }
        }
    }

    /// Updates the expectations for a client whose request head has reached the shard.
    fn join(&mut self, place: usize) {
        let is_reading = self.rig.shard.is_reading_state();
        let is_ready = self.is_ready();
        let member = &mut self.members[place];
        member.status_expected = match (self.is_draining, is_ready) {
            (true, _) => Some(503),
            (false, true) => Some(101),
            // The status depends on whether the state can be read back.
            (false, false) if is_reading => None,
            (false, false) => Some(500),
        };
        member.waits = member.status_expected.is_none();
        member.joined = member.status_expected == Some(101);
        member.joined_at = self.models[member.workspace].wins.len();
    }

    /// Applies an op that has reached the shard to the model, and updates the expectations.
    fn apply(&mut self, place: usize, write: &Write) {
        if !self.members[place].joined {
            return;
        }
        let workspace = self.members[place].workspace;
        match self.models[workspace].apply(write, place) {
            Verdict::Same => {}
            Verdict::Lost(winner) => {
                let member = &mut self.members[place];
                member.expected.push_back(winner.clone());
                member.corrections.push(winner);
            }
            Verdict::Won => {
                let members = self.members.iter_mut().enumerate();
                for (_, member) in members.filter(|(other, member)| {
                    *other != place && member.joined && member.workspace == workspace
                }) {
                    member.expected.push_back(write.clone());
                }
            }
        }
    }

    fn finish_send(&mut self) {
        let patience = self.dice.one_in(12);
        let Some(place) = self.any_client(|client, member| {
            client.sending.is_some() && (patience || client.broken || !member.is_slow)
        }) else {
            return;
        };
        let client = &mut self.rig.peers[place].client;
        let spans = client.sending.take().expect("a send is in flight");
        let bytes = spans_bytes(&spans);
        let taken = match self.dice.below(4) {
            _ if client.broken => None,
            0 => Some(1 + self.dice.below(bytes)),
            _ => Some(bytes),
        };
        if let Some(taken) = taken {
            let mut rest = spans.clone();
            skip_sent(&mut rest, taken);
            assert_eq!(spans_bytes(&rest), bytes - taken);
        }
        self.rig.complete_send(place, spans, taken);
        self.read(place);
    }

    fn vanish(&mut self) {
        if let Some(place) = self.any_client(|client, member| !client.broken && member.has_init)
            && self.dice.one_in(6)
        {
            self.rig.peers[place].client.broken = true;
        }
    }

    /// Ends the log operation in flight. Returns true if the turn must end, because the log has
    /// failed or an attempt to rebuild has ended.
    fn finish_log(&mut self) -> bool {
        let fails = self.may_fail && self.dice.one_in(15);
        let dice = &mut self.dice;
        let part = |left| {
            if dice.one_in(4) {
                1 + dice.below(left)
            } else {
                left
            }
        };
        match self.rig.end_log_with(fails, part) {
            Some(LogOperation::Commit) if fails => {
                self.failures += 1;
                self.dismiss_all();
                true
            }
            None | Some(LogOperation::Commit) => false,
            Some(LogOperation::Rebuild) => {
                if !fails {
                    self.forget_what_was_lost();
                }
                self.answer_waiting(!fails);
                true
            }
        }
    }

    /// Updates the expectations for the clients that waited for the state. They are answered in
    /// this turn, whether or not the state could be read back.
    fn answer_waiting(&mut self, is_read: bool) {
        for (peer, member) in self.rig.peers.iter().zip(&mut self.members) {
            if member.waits {
                member.waits = false;
                member.status_expected = Some(if is_read { 101 } else { 500 });
                member.joined = is_read && !peer.client.broken;
                member.joined_at = self.models[member.workspace].wins.len();
                self.waited += 1;
            }
        }
    }

    /// Updates the expectations after the log has failed: all members are closed.
    fn dismiss_all(&mut self) {
        for (place, member) in self.members.iter_mut().enumerate() {
            if member.joined {
                member.joined = false;
                // Answers are still sent to them, but broadcasts are not.
                member.was_behind = true;
                member.close_expected = Some(1011);
                let synced = &self.rig.disk.synced;
                let is_lost =
                    |win: &(Write, usize)| win.1 == place && !synced.contains(&win.0.value);
                member.lost_an_op = self.models[member.workspace].wins.iter().any(is_lost);
            }
        }
    }

    fn forget_what_was_lost(&mut self) {
        let synced = &self.rig.disk.synced;
        assert!(
            self.shown.is_subset(synced),
            "a delivered op is not durable"
        );
        for model in &mut self.models {
            let kept = |win: &(Write, usize)| synced.contains(&win.0.value);
            let count = model.wins.iter().take_while(|win| kept(win)).count();
            assert!(
                !model.wins[count..].iter().any(kept),
                "more than a prefix is kept"
            );
            model.wins.truncate(count);
        }
    }

    // ---- the end of a run ----

    /// Lets everything in flight succeed, until nothing more happens.
    fn settle(&mut self) {
        self.may_fail = false;
        for member in &mut self.members {
            member.is_slow = false;
        }
        for _ in 0..3000 {
            self.step_without_load();
        }
    }

    fn step_without_load(&mut self) {
        if !self.finish_log() {
            self.deliver();
            self.finish_send();
        }
        self.rig.clock.now_us += 3000;
        self.turn();
    }

    fn check_quiet(&self) {
        for (place, member) in self.members.iter().enumerate() {
            let client = &self.rig.peers[place].client;
            if member.joined && !client.broken {
                let model = &self.models[member.workspace];
                let state = model.state(model.wins.len());
                let state: Vec<_> = state.values().map(|w| (&w.key, &w.value)).collect();
                let held: Vec<_> = member.held.iter().map(|held| (held.0, &held.1.0)).collect();
                assert_eq!(held, state, "client {place} ends up with another state");
                assert!(member.was_behind || member.expected.is_empty());
            } else if member.close_expected == Some(1011) && member.close_code.is_none() {
                assert!(client.closed || client.broken);
            }
        }
        assert!(self.is_ready() && self.rig.shard.log.is_settled());
    }

    fn drain(&mut self) {
        self.is_draining = true;
        for member in self.members.iter_mut().filter(|member| member.joined) {
            member.was_behind = true;
            member.close_expected = Some(1001);
        }
        self.rig.shard.handle(Input::Drain, self.rig.clock);
        for _ in 0..5000 {
            self.step_without_load();
            if self.rig.drained > 0 {
                break;
            }
        }
        assert!(self.rig.drained > 0, "the drain did not end");
        assert!(self.rig.peers.iter().all(|peer| peer.client.closed));
        assert_eq!(self.rig.shard.connections(), 0);
        assert!(self.rig.shard.log.is_settled());
    }
}

/// A guard that prints the seed if the run panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed is {}", self.0);
        }
    }
}

#[test]
fn a_shard_keeps_its_guarantees() {
    let (mut failures, mut conflated, mut waited) = (0, 0, 0);
    for seed in 0..SEEDS {
        let _seed = Seed(seed);
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.check_quiet();
        world.drain();
        failures += world.failures;
        conflated += world.conflated;
        waited += world.waited;
    }
    assert!(
        failures > 20 && conflated > 20 && waited > 20,
        "{failures} {conflated} {waited}"
    );
}
