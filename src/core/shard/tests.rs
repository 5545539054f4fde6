//! A whole shard in miniature: clients, sockets and a disk that delay, cut and fail by the seed, against a naive model.

use std::collections::BTreeSet;

use super::*;
use crate::core::fanout::window::{Spans, skip_sent, spans_bytes};
use crate::core::testing::{self, Dice, START_UNIX_S};
use crate::limits::SECOND_US;

mod absence;
mod budgets;
mod counters;
mod delivery;
mod failures;
mod frames;
mod http_read;
mod limits;
mod notes;
mod parts;
mod peers;
mod received;
mod regressions;
mod rig;
mod rules;
mod space;
mod times;
mod waiting;
mod yielding;

use peers::{Client, Disk, Model, Verdict, Write};

const SEEDS: u64 = 200;
const STEPS: usize = 500;
const WORKSPACES: [&str; 2] = ["one", "two"];

#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what may happen yet"
)]
struct World {
    dice: Dice,
    clock: Clock,
    shard: Shard,
    token: String,
    disk: Disk,
    /// The operation of the log that is in flight.
    log: Option<Output>,
    clients: Vec<Client>,
    models: [Model; 2],
    /// The values of all ops that were handed to a send.
    shown: BTreeSet<String>,
    count: u64,
    may_fail: bool,
    ready: bool,
    draining: bool,
    drained: bool,
    failures: usize,
    conflated: usize,
    waited: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let (disk, segment) = Disk::new();
        let clock = Clock {
            now_us: 1_000_000,
            unix_us: START_UNIX_S * SECOND_US,
        };
        let config = ShardConfig {
            outbox_bytes_max: 1024,
            message_bytes_max: 4096,
            ..testing::shard_config()
        };
        Self {
            dice: Dice::new(seed),
            clock,
            shard: Shard::new(config, segment, Vec::new(), clock),
            token: testing::token(None),
            disk,
            log: None,
            clients: Vec::new(),
            models: [Model::default(), Model::default()],
            shown: BTreeSet::new(),
            count: 0,
            may_fail: seed % 2 == 1,
            ready: true,
            draining: false,
            drained: false,
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

    /// Ends the turn, and lets some time pass.
    fn turn(&mut self) {
        self.shard.flush(self.clock);
        self.shard.invariants();
        self.note_conflation();
        while let Some(output) = self.shard.poll_output() {
            self.take(output);
        }
        let pass_us = if self.dice.one_in(30) { 40_000 } else { 500 };
        self.clock.now_us += self.dice.below(pass_us) as u64;
        // The wall clock is set now and then.
        if self.dice.one_in(40) {
            self.clock.unix_us = START_UNIX_S * SECOND_US + self.dice.below(3_600_000_000) as u64;
        }
    }

    fn note_conflation(&mut self) {
        for client in self.clients.iter_mut().filter(|client| !client.closed) {
            let session = self.shard.sessions.get(client.id);
            let outbox = session.map(|session| &session.outbox);
            if outbox.is_some_and(|outbox| outbox.behind().is_some()) && !client.was_behind {
                client.was_behind = true;
                self.conflated += 1;
            }
        }
    }

    // ---- what the shard wants ----

    fn client(&mut self, id: SessionId) -> &mut Client {
        let known = |client: &&mut Client| client.id == id && !client.closed;
        let client = self.clients.iter_mut().find(known);
        client.expect("an output names a session that is there")
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Receive(id) => {
                let client = self.client(id);
                assert!(!client.receiving, "one receive at a time");
                client.receiving = true;
            }
            Output::Send(id, spans) => self.take_send(id, spans),
            Output::Finish(id) => self.client(id).finished = true,
            Output::Abort(id) => self.client(id).broken = true,
            Output::Close(id) => {
                let client = self.client(id);
                assert!(!client.receiving && client.sending.is_none());
                (client.closed, client.joined) = (true, false);
            }
            Output::Handoff(..) | Output::Page(..) | Output::Note(..) => {
                unreachable!("there is one shard, no page and no journal")
            }
            Output::LogWrite { .. } | Output::LogSync | Output::LogOpen { .. } => {
                assert!(self.log.is_none(), "one operation of the log at a time");
                self.log = Some(output);
            }
            Output::Rebuild(end) => {
                assert!(self.log.is_none());
                self.log = Some(Output::Rebuild(end));
            }
            Output::Ready(ready) => {
                assert_ne!(self.ready, ready);
                self.ready = ready;
            }
            Output::Drained => self.drained = true,
        }
    }

    fn take_send(&mut self, id: SessionId, spans: Spans) {
        let sent: Vec<u8> = spans
            .iter()
            .flat_map(|span| span.bytes().to_vec())
            .collect();
        for value in String::from_utf8_lossy(&sent).split('"') {
            let is_value = value.len() > 2 && value.starts_with('<') && value.ends_with('>');
            if is_value {
                let value = format!("\"{value}\"");
                assert!(self.disk.synced.contains(&value), "{value} is not durable");
                self.shown.insert(value);
            }
        }
        let client = self.client(id);
        assert!(client.sending.is_none(), "one send at a time");
        client.sending = Some(spans);
    }

    // ---- what happens ----

    fn any_client(&mut self, fits: impl Fn(&Client) -> bool) -> Option<usize> {
        let all = self.clients.iter().enumerate();
        let fitting: Vec<usize> = all
            .filter(|(_, client)| !client.closed && fits(client))
            .map(|(place, _)| place)
            .collect();
        (!fitting.is_empty()).then(|| fitting[self.dice.below(fitting.len())])
    }

    fn connect(&mut self) {
        if self.clients.iter().filter(|client| !client.closed).count() >= 8 {
            return;
        }
        let id = self.shard.accept(false, self.clock);
        let workspace = self.dice.below(2);
        let head = testing::join_request(WORKSPACES[workspace], &self.token);
        let is_slow = self.dice.one_in(3);
        let client = Client::new(id, workspace, head.into_bytes(), is_slow);
        self.clients.push(client);
    }

    fn write(&mut self) {
        let Some(place) = self.any_client(|client| client.has_init && client.joined) else {
            return;
        };
        for _ in 0..=self.dice.below(3) {
            self.count += 1;
            let key = format!("k{}", self.dice.below(6));
            // Ties are common, and the greatest timestamps grow slowly.
            let timestamp = self.count / 8 + self.dice.below(4) as u64;
            let value = format!("\"<{:0width$}>\"", self.count, width = self.dice.below(60));
            self.clients[place].send_op(Write {
                key,
                value,
                timestamp,
            });
        }
    }

    /// Brings bytes of a client to the shard, cut anywhere.
    fn deliver(&mut self) {
        let wants = |client: &Client| {
            client.receiving && (client.broken || client.finished || !client.outgoing.is_empty())
        };
        let Some(place) = self.any_client(wants) else {
            return;
        };
        let client = &mut self.clients[place];
        client.receiving = false;
        if client.broken || client.finished {
            let mut none = [];
            let bytes: Option<&mut [u8]> = if client.broken { None } else { Some(&mut none) };
            return self
                .shard
                .handle(Input::Received(client.id, bytes), self.clock);
        }
        let (mut bytes, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..=self.dice.below(4) {
            let Some((message, write)) = client.outgoing.pop_front() else {
                break;
            };
            if self.dice.one_in(3) && message.len() > 1 {
                let cut = 1 + self.dice.below(message.len() - 1);
                bytes.extend_from_slice(&message[..cut]);
                let rest = message[cut..].to_vec();
                client.outgoing.push_front((rest, write));
                break;
            }
            bytes.extend_from_slice(&message);
            whole.push(write);
            if whole == [None] {
                break;
            }
        }
        let input = Input::Received(client.id, Some(&mut bytes));
        self.shard.handle(input, self.clock);
        for write in whole {
            match write {
                Some(write) => self.apply(place, &write),
                None => self.join(place),
            }
        }
    }

    /// The head of a client is with the shard.
    fn join(&mut self, place: usize) {
        let is_reading = self.shard.is_reading_state();
        let client = &mut self.clients[place];
        client.status_expected = match (self.draining, self.ready) {
            (true, _) => Some(503),
            (false, true) => Some(101),
            // That is known when the state has been read back.
            (false, false) if is_reading => None,
            (false, false) => Some(500),
        };
        client.waits = client.status_expected.is_none();
        client.joined = client.status_expected == Some(101);
        client.joined_at = self.models[client.workspace].wins.len();
    }

    /// An op is with the shard: the model applies it, too.
    fn apply(&mut self, place: usize, write: &Write) {
        if !self.clients[place].joined {
            return;
        }
        let workspace = self.clients[place].workspace;
        match self.models[workspace].apply(write, place) {
            Verdict::Same => {}
            Verdict::Lost(winner) => {
                let client = &mut self.clients[place];
                client.expected.push_back(winner.clone());
                client.corrections.push(winner);
            }
            Verdict::Won => {
                let members = self.clients.iter_mut().enumerate();
                for (_, member) in members.filter(|(other, client)| {
                    *other != place && client.joined && client.workspace == workspace
                }) {
                    member.expected.push_back(write.clone());
                }
            }
        }
    }

    fn finish_send(&mut self) {
        let patience = self.dice.one_in(12);
        let Some(place) = self.any_client(|client| {
            client.sending.is_some() && (patience || client.broken || !client.is_slow)
        }) else {
            return;
        };
        let client = &mut self.clients[place];
        let spans = client.sending.take().expect("it was just there");
        let bytes = spans_bytes(&spans);
        let taken = match self.dice.below(4) {
            _ if client.broken => None,
            0 => Some(1 + self.dice.below(bytes)),
            _ => Some(bytes),
        };
        if let Some(taken) = taken {
            let mut rest = spans.clone();
            let all = spans.iter().flat_map(|span| span.bytes().iter().copied());
            client.incoming.extend(all.take(taken));
            skip_sent(&mut rest, taken);
            assert_eq!(spans_bytes(&rest), bytes - taken);
        }
        let input = Input::Sent(client.id, spans, taken);
        self.shard.handle(input, self.clock);
        self.read(place);
    }

    fn vanish(&mut self) {
        if let Some(place) = self.any_client(|client| !client.broken && client.has_init)
            && self.dice.one_in(6)
        {
            self.clients[place].broken = true;
        }
    }

    /// True where the turn must end: the log has failed, or is there again.
    fn finish_log(&mut self) -> bool {
        let fails = self.may_fail && self.dice.one_in(15);
        let input = match self.log.take() {
            None => return false,
            Some(Output::LogWrite {
                offset,
                bytes,
                from,
            }) => {
                let left = bytes.len() - from;
                let count = if self.dice.one_in(4) {
                    1 + self.dice.below(left)
                } else {
                    left
                };
                self.disk.write(offset, &bytes[from..from + count]);
                Input::LogWritten(bytes, (!fails).then_some(count))
            }
            Some(Output::LogSync) => {
                if !fails {
                    self.disk.sync();
                }
                Input::LogSynced(!fails)
            }
            Some(Output::Rebuild(_)) if fails => Input::Rebuilt(None),
            Some(Output::Rebuild(end)) => {
                let (segment, workspaces) = self.disk.rebuild(end);
                self.forget_what_was_lost();
                Input::Rebuilt(Some((segment, workspaces)))
            }
            Some(output) => unreachable!("{output:?} is no operation of this log"),
        };
        if let Input::Rebuilt(outcome) = &input {
            self.answer_waiting(outcome.is_some());
        }
        let is_rebuilt = matches!(input, Input::Rebuilt(_));
        let is_failure = fails && !is_rebuilt;
        self.shard.handle(input, self.clock);
        if is_failure {
            self.failures += 1;
            self.dismiss_all();
        }
        is_failure || is_rebuilt
    }

    /// The state was read back, or could not be: all that waited for it are answered in this turn.
    fn answer_waiting(&mut self, is_read: bool) {
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            client.waits = false;
            client.status_expected = Some(if is_read { 101 } else { 500 });
            client.joined = is_read && !client.broken;
            client.joined_at = self.models[client.workspace].wins.len();
            self.waited += 1;
        }
    }

    /// The log has failed: all members are closed.
    fn dismiss_all(&mut self) {
        for (place, client) in self.clients.iter_mut().enumerate() {
            if client.joined {
                client.joined = false;
                // Answers are still sent then, broadcasts are not.
                client.was_behind = true;
                client.close_expected = Some(1011);
                let wins = &self.models[client.workspace].wins;
                client.lost_an_op = wins
                    .iter()
                    .any(|win| win.1 == place && !self.disk.synced.contains(&win.0.value));
            }
        }
    }

    fn forget_what_was_lost(&mut self) {
        assert!(
            self.shown.is_subset(&self.disk.synced),
            "what was shown stays"
        );
        for model in &mut self.models {
            let kept = |win: &(Write, usize)| self.disk.synced.contains(&win.0.value);
            let count = model.wins.iter().take_while(|win| kept(win)).count();
            assert!(!model.wins[count..].iter().any(kept), "a prefix is kept");
            model.wins.truncate(count);
        }
    }

    // ---- the end ----

    /// Lets all that is in flight end well, until nothing happens any more.
    fn settle(&mut self) {
        self.may_fail = false;
        for client in &mut self.clients {
            client.is_slow = false;
        }
        for _ in 0..3000 {
            if !self.finish_log() {
                self.deliver();
                self.finish_send();
            }
            self.clock.now_us += 3000;
            self.turn();
        }
    }

    fn check_quiet(&self) {
        for (place, client) in self.clients.iter().enumerate() {
            if client.joined && !client.broken {
                let model = &self.models[client.workspace];
                let state = model.state(model.wins.len());
                let state: Vec<_> = state.values().map(|w| (&w.key, &w.value)).collect();
                let held: Vec<_> = client.held.iter().map(|held| (held.0, &held.1.0)).collect();
                assert_eq!(held, state, "client {place} ends in the state");
                assert!(client.was_behind || client.expected.is_empty());
            } else if client.close_expected == Some(1011) && client.close_code.is_none() {
                assert!(client.closed || client.broken);
            }
        }
        assert!(self.ready && self.shard.log.is_settled());
    }

    fn drain(&mut self) {
        self.draining = true;
        for client in self.clients.iter_mut().filter(|client| client.joined) {
            client.was_behind = true;
            client.close_expected = Some(1001);
        }
        self.shard.handle(Input::Drain, self.clock);
        for _ in 0..5000 {
            if !self.finish_log() {
                self.deliver();
                self.finish_send();
            }
            self.clock.now_us += 3000;
            self.turn();
            if self.drained {
                break;
            }
        }
        assert!(self.drained, "a drain ends");
        assert!(self.clients.iter().all(|client| client.closed));
        assert_eq!(self.shard.connections(), 0);
        assert!(self.shard.log.is_settled());
    }
}

/// Tells the seed of a run that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed is {}", self.0);
        }
    }
}

#[test]
fn a_shard_keeps_its_promises() {
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
