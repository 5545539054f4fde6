//! The scheduler, which uses the seed to choose what happens next.

use std::collections::BTreeMap;

use etherply::core::fanout::window::{skip_sent, spans_bytes};
use etherply::core::shard::contract::{Clock, Input, Limits, Received};
use etherply::core::testing::Dice;
use etherply::limits::{RECEIVE_BYTES_MAX, SECOND_US, SNAPSHOT_BYTES_MAX};
use etherply::log::commit::Durability;

use crate::client::{Client, Home, Reading};
use crate::disk::{Rates, SimDisk};
use crate::journal::Journal;
use crate::model::{Model, Write};
use crate::plan::{Coverage, Plan, faults};
use crate::presence::PresenceModel;
use crate::server::{BEGIN_UNIX_US, PANIC_KEY, Server, token};
use crate::wire;

/// The work that a process was doing when it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Nothing,
    Creation,
    Recovery,
    Commit,
    Rotation,
    Rebuild,
    Compaction,
}

pub struct World {
    pub plan: Plan,
    pub dice: Dice,
    pub journal: Journal,
    pub clock: Clock,
    /// The latest time that the wall clock has shown.
    pub latest_unix_us: u64,
    pub disk: SimDisk,
    pub server: Option<Server>,
    /// A copy of the data directory, and its contents.
    pub copy: Option<(SimDisk, Vec<Model>)>,
    pub clients: Vec<Client>,
    /// The indices of the clients that are not gone.
    pub live: Vec<usize>,
    pub models: Vec<Model>,
    /// The senders of each op, by its value.
    pub senders: BTreeMap<String, Vec<usize>>,
    /// The timestamp that the entry must have for a conditional op to win, by the op's value.
    pub conditions: BTreeMap<(usize, String), u64>,
    pub presence: PresenceModel,
    pub count: u64,
    pub shards: u32,
    pub doing: Doing,
    /// A compaction has begun, so some ops may no longer be on disk.
    pub is_compacted: bool,
    /// Faults are turned off.
    pub is_calm: bool,
    /// The previous process ended cleanly.
    pub is_sealed: bool,
    pub coverage: Coverage,
    /// The panics in this thread that are accounted for.
    pub panics: (u64, u64),
}

pub const WORKSPACES: [&str; 4] = ["one", "two", "three of them", "4"];
const HOUR_US: i64 = 3_600_000_000;

impl World {
    pub fn new(plan: Plan, journal: Journal) -> Self {
        let dice = Dice::stream(plan.seed, 2);
        let disk = SimDisk::new(Dice::stream(plan.seed, 3), journal.clone());
        disk.state().capacity_bytes = plan.disk_bytes();
        journal.note(|| format!("{plan:?}"));
        let may_grow = plan.durability != Durability::Always;
        let world = Self {
            clock: Clock {
                now_us: SECOND_US,
                unix_us: BEGIN_UNIX_US,
            },
            latest_unix_us: BEGIN_UNIX_US,
            disk,
            server: None,
            copy: None,
            clients: Vec::new(),
            live: Vec::new(),
            models: (0..plan.workspaces).map(|_| Model::new(may_grow)).collect(),
            senders: BTreeMap::new(),
            conditions: BTreeMap::new(),
            presence: PresenceModel::new(&plan),
            count: 0,
            shards: 1,
            doing: Doing::Nothing,
            is_compacted: false,
            is_calm: false,
            is_sealed: false,
            coverage: Coverage::default(),
            panics: crate::turns::panics(),
            plan,
            dice,
            journal,
        };
        world.set_rates();
        world
    }

    pub fn set_rates(&self) {
        let may_fail = !self.is_calm && self.plan.may(faults::ERRORS);
        self.disk.set_rates(Rates {
            error_one_in: if may_fail { self.plan.error_one_in } else { 0 },
            short_one_in: if self.is_calm { 0 } else { 9 },
        });
    }

    /// Runs one step: a few events, then the turns of the shards that have a reason to take one.
    pub fn step(&mut self) {
        for _ in 0..=self.dice.below(4) {
            self.try_inside(Self::happen);
            self.bury();
        }
        self.presence_step();
        if self
            .server
            .as_ref()
            .is_some_and(|server| server.compaction.is_some())
        {
            if self.dice.one_in(25) && self.plan.may(faults::POWER | faults::KILL) {
                self.disk.die_within(24);
            }
            self.try_inside(Self::compact);
            self.bury();
        }
        for shard in 0..self.shards as usize {
            if self.dice.below(3) > 0 {
                self.turn(shard);
            }
            self.bury();
        }
        self.check_growth();
        self.pass(600);
    }

    /// Runs one event, and sometimes simulates a crash in the middle of it.
    pub fn try_inside(&mut self, happen: impl FnOnce(&mut Self)) {
        let is_tried = self.dice.one_in(3) && self.plan.may(faults::TRIALS);
        if !is_tried {
            return happen(self);
        }
        let before: Vec<_> = self
            .models
            .iter()
            .map(|model| (self.promised(model), model.wins.len()))
            .collect();
        self.disk.copy_within(24);
        happen(self);
        let Some(copy) = self.disk.take_copy() else {
            return;
        };
        // The copy may still hold ops that a rebuild has dropped since.
        let is_cut = before
            .iter()
            .zip(&self.models)
            .any(|(before, model)| model.wins.len() < before.1);
        if !is_cut {
            let promised = before
                .iter()
                .zip(&self.models)
                .map(|(before, model)| before.0.min(self.promised(model)));
            let promised: Vec<usize> = promised.collect();
            self.coverage.trial_crashes_inside += 1;
            self.try_crash_of(&copy, &promised);
        }
    }

    fn happen(&mut self) {
        if self.server.is_none() {
            return self.step_without_server();
        }
        match self.dice.below(100) {
            0..8 => self.connect(),
            8..22 => self.write(),
            22..44 => self.deliver(),
            44..60 => self.finish_send(),
            60..78 => self.go_on_with_log(),
            78..84 => self.go_on(),
            84..88 => {
                self.look_at_log();
                self.compact();
            }
            88..90 => self.misbehave(),
            90 => self.copy_directory(),
            91..93 => self.jump(),
            93..95 if self.plan.may(faults::TRIALS) => self.try_crash(),
            95 if self.plan.may(faults::TRIALS) => self.try_second_server(),
            96 => self.fill_disk(),
            99 => self.shed_connections(),
            97 => self.come_to_harm(),
            98 if self.plan.may(faults::STOPS) && self.dice.one_in(6) => self.stop(),
            _ => {}
        }
    }

    fn step_without_server(&mut self) {
        match self.dice.below(6) {
            0 if self.plan.may(faults::TRIALS) => self.try_flips(),
            4 | 5 if self.plan.may(faults::COPIES) && !self.is_calm => self.restore_copy(),
            1 | 2 => self.boot(),
            // An operator investigates why it does not start.
            _ => self.disk.set_full(false),
        }
    }

    fn fill_disk(&mut self) {
        let is_full = self.dice.one_in(3);
        let is_full = is_full && self.plan.may(faults::FULL) && !self.is_calm;
        self.disk.set_full(is_full);
    }

    // ---- time ----

    pub fn pass(&mut self, most_us: usize) {
        let most_us = if self.dice.one_in(25) {
            most_us * 100
        } else {
            most_us
        };
        let us = self.dice.below(most_us) as u64;
        self.clock.now_us += us;
        self.clock.unix_us += us;
    }

    fn jump(&mut self) {
        if !self.plan.may(faults::CLOCK) || self.is_calm {
            return;
        }
        if self.dice.one_in(6) {
            let us = self.dice.below_u64(90 * SECOND_US);
            // A crowd's connections would all be closed, and a run with a crowd needs them.
            if self.plan.clients <= 100 && self.dice.one_in(2) {
                self.hear_nobody(us);
            } else {
                self.be_stopped(us);
            }
            return;
        }
        let jump_us = self.dice.below_u64(6 * 3600 * SECOND_US);
        self.clock.unix_us = BEGIN_UNIX_US - 3 * 3600 * SECOND_US + jump_us;
        self.journal.note(|| "the wall clock jumps".to_owned());
    }

    // ---- clients ----

    /// Picks one of the live clients that satisfy `fits`.
    pub fn any_client(&mut self, fits: impl Fn(&Client) -> bool) -> Option<usize> {
        let fitting = |place: &usize| fits(&self.clients[*place]);
        let count = self.live.iter().filter(|place| fitting(place)).count();
        if count == 0 {
            self.dice.below(1);
            return None;
        }
        let chosen = self.dice.below(count);
        self.live.iter().copied().filter(fitting).nth(chosen)
    }

    pub fn connect(&mut self) {
        let burst = if self.plan.clients > 100 { 40 } else { 1 };
        for _ in 0..burst {
            if self.live.len() < self.plan.clients {
                self.connect_one(None);
            }
        }
    }

    pub fn connect_one(&mut self, again: Option<usize>) {
        let Some(server) = &mut self.server else {
            return;
        };
        if server.is_draining {
            return;
        }
        let shard = self.dice.below(server.seats.len());
        let number = self.clients.len();
        let may_misbehave = self.plan.may(faults::NETWORK) && !self.is_calm;
        let reading = match self.dice.below(10) {
            0..4 if may_misbehave => Reading::Slow,
            4 | 5 if may_misbehave => Reading::Stopped,
            _ => Reading::Swift,
        };
        let skew_us = self.dice.pick(&[0, 0, 0, -5, 2, 3]) * HOUR_US;
        let workspace = self.dice.below(self.plan.workspaces);
        let workspace = again.map_or(workspace, |again| self.clients[again].workspace);
        let mut client = Client::new(number, workspace, reading, skew_us);
        let is_over_limit = self.dice.one_in(60);
        let (path, status) = match self.dice.below(40) {
            0 if may_misbehave => ("/healthz".to_owned(), 200),
            1 if may_misbehave => ("/nowhere".to_owned(), 404),
            2 if may_misbehave => ("/v1/sync/one?token=forged".to_owned(), 401),
            3 => {
                let id = WORKSPACES[workspace].replace(' ', "%20");
                let status = if is_over_limit { 503 } else { 200 };
                (format!("/v1/workspaces/{id}?token={}", token()), status)
            }
            _ => {
                let id = WORKSPACES[workspace].replace(' ', "%20");
                (
                    format!("/v1/sync/{id}?token={}", token()),
                    if is_over_limit { 503 } else { 101 },
                )
            }
        };
        let is_join = path.starts_with("/v1/sync/") && status != 401;
        let replica = is_join.then(|| self.choose_replica(again, workspace, skew_us));
        client.replica = replica.flatten();
        let head = match &mut client.replica {
            Some(replica) => {
                (client.workspace, client.is_v2) = (replica.workspace, true);
                client.skew_us = replica.skew_us;
                client.peer = self.ask_for_presence(replica);
                wire::head_v2(&Self::join_path(replica, &client.peer))
            }
            None => wire::head(&path),
        };
        client.status_wanted = status;
        self.arrive(client, &head, shard, is_over_limit);
        if let Some(again) = again
            && !self.clients[number].is_v2
            && status == 101
        {
            self.resend_last(again, number);
        }
    }

    /// Brings a client with its request to a shard. Returns its index.
    pub fn arrive(
        &mut self,
        mut client: Client,
        head: &[u8],
        shard: usize,
        is_over_limit: bool,
    ) -> usize {
        let number = client.number;
        let server = self.server.as_mut().expect("it runs");
        client.limits = server.limits;
        client.has_little_room = self.plan.disk_percent.is_some();
        client.came_early = !server.is_serving();
        client.met_pause = is_over_limit || self.plan.snapshot_bytes_max < SNAPSHOT_BYTES_MAX;
        client.met_failure = server.had_failure;
        client.outgoing.extend(head);
        let seat = &mut server.seats[shard];
        let id = seat.shard.accept(is_over_limit, self.clock);
        seat.is_woken = true;
        let is_taken = seat.clients.keys().any(|other| other.slot == id.slot);
        assert!(!is_taken, "the slot is still in use");
        seat.clients.insert(id, number);
        client.home = Home::At(shard, id);
        let now_us = self.clock.now_us;
        (client.came_us, client.heard_us, client.moved_us) = (now_us, now_us, now_us);
        client.emptied_us = now_us;
        self.journal.note(|| {
            format!(
                "client {number} comes to shard {shard} for {}",
                WORKSPACES[client.workspace]
            )
        });
        self.clients.push(client);
        self.live.push(number);
        number
    }

    /// Sends the last op of an earlier connection again, whose outcome the client does not know.
    fn resend_last(&mut self, again: usize, number: usize) {
        let Some(write) = self.clients[again].sent.last().cloned() else {
            return;
        };
        self.senders
            .get_mut(&write.value)
            .expect("the op was sent")
            .push(number);
        let client = &mut self.clients[number];
        client.write(write);
        (client.judged, client.has_resent) = (1, true);
    }

    pub fn write(&mut self) {
        let burst = if self.dice.one_in(20) { 30 } else { 3 };
        let can = |client: &Client| {
            let has_copy = !client.is_v2 || client.replica.is_some();
            client.is_open() && client.reading != Reading::HalfOpen && has_copy
        };
        let Some(place) = self.any_client(can) else {
            return;
        };
        for _ in 0..=self.dice.below(burst) {
            self.write_one(place);
        }
    }

    fn write_one(&mut self, place: usize) {
        self.count += 1;
        let key = format!("k{}", self.dice.below(self.plan.keys));
        let mut timestamp = self.timestamp(self.clients[place].skew_us);
        // A refusal names an op by its key and timestamp.
        let sent = &self.clients[place].sent;
        let is_taken = |at| {
            sent.iter()
                .any(|sent| sent.key == key && sent.timestamp == at)
        };
        let may_be_refused =
            self.plan.limits != Limits::default() || self.plan.disk_percent.is_some();
        while may_be_refused && is_taken(timestamp) {
            timestamp += 1;
        }
        let is_large = self.dice.one_in(self.plan.large_one_in);
        let most = if is_large { self.plan.value_bytes } else { 40 };
        let width = self
            .dice
            .below(most)
            .max(if self.dice.one_in(4) { most - 1 } else { 0 });
        // On a small disk all values have the maximum length, so that the live size is known.
        let is_long = self.plan.disk_percent.is_some();
        let width = if is_long { most - 1 } else { width };
        let value = match self.dice.below(3) {
            1 if is_long => format!("\"{}{}\"", self.count, "+".repeat(width)),
            0 => format!("[{},\"{}\"]", self.count, "x".repeat(width)),
            1 => format!("{{\"n\":{}}}", self.count),
            _ => format!("\"{}{}\"", self.count, "-".repeat(width)),
        };
        let write = Write {
            key,
            value,
            timestamp,
        };
        let workspace = self.clients[place].workspace;
        let held = self.models[workspace].held(&write.key);
        self.coverage.ties += u64::from(held.is_some_and(|held| held.timestamp == timestamp));
        if self.clients[place].is_v2 {
            return self.write_v2(place, write);
        }
        self.journal.note(|| {
            format!(
                "client {place} writes {} = {:.40} at {timestamp}",
                write.key, write.value
            )
        });
        self.senders.insert(write.value.clone(), vec![place]);
        self.clients[place].write(write);
    }

    /// Delivers some of a client's outgoing bytes to its shard, cut at any point.
    pub fn deliver(&mut self) {
        let can = |client: &Client| {
            let has_news = !client.outgoing.is_empty() || client.is_leaving;
            client.receiving
                && (client.is_broken || has_news && client.reading != Reading::HalfOpen)
        };
        if let Some(place) = self.any_client(can) {
            self.deliver_from(place);
        }
    }

    fn deliver_from(&mut self, place: usize) {
        let is_whole = self.is_calm || self.dice.below(3) > 0;
        let cut = self.dice.below(usize::MAX);
        let client = &mut self.clients[place];
        client.receiving = false;
        let Home::At(shard, id) = client.home else {
            unreachable!("only a running shard receives");
        };
        let most = client.outgoing.len().min(RECEIVE_BYTES_MAX);
        let length = if is_whole || most == 0 {
            most
        } else {
            1 + cut % most
        };
        let rest = client.outgoing.split_off(length);
        let mut bytes = Vec::from(std::mem::replace(&mut client.outgoing, rest));
        let is_broken = client.is_broken;
        client.silence_us = client.silence_us.max(self.clock.now_us - client.heard_us);
        client.heard_us = self.clock.now_us;
        client.note_delivery(self.clock.now_us);
        self.journal
            .note(|| format!("client {place} sends {length} bytes, broken: {is_broken}"));
        let received = if is_broken {
            Received::Broken
        } else if bytes.is_empty() {
            Received::Eof
        } else {
            Received::Bytes(&mut bytes)
        };
        let seat = &mut self.server.as_mut().expect("the server is running").seats[shard];
        seat.shard.handle(Input::Received(id, received), self.clock);
        seat.is_woken = true;
        self.note_panic(shard);
        self.check_held_after_event(shard);
    }

    /// Completes a send: a client's socket accepts some or all of its bytes.
    pub fn finish_send(&mut self) {
        let is_patient = self.dice.one_in(10);
        let takes = |client: &Client| match client.reading {
            _ if client.is_broken => true,
            Reading::Swift => true,
            Reading::Slow => is_patient,
            Reading::Stopped | Reading::HalfOpen => false,
        };
        if let Some(place) = self.any_client(|client| client.sending.is_some() && takes(client)) {
            self.finish_send_of(place);
        }
    }

    fn finish_send_of(&mut self, place: usize) {
        let cut = self.dice.below(4);
        let part = self.dice.below(usize::MAX);
        let client = &mut self.clients[place];
        let (spans, bytes) = client.sending.take().expect("a send is in flight");
        let now = wire::bytes_of(&spans);
        assert!(now == bytes, "bytes of a send in flight changed");
        let all = spans_bytes(&spans);
        let taken = match cut {
            _ if client.is_broken => None,
            0 => Some(1 + part % all),
            _ => Some(all),
        };
        self.journal
            .note(|| format!("client {place} accepts {taken:?} of {all} bytes"));
        let Home::At(shard, id) = client.home else {
            unreachable!("only a running shard sends");
        };
        if let Some(taken) = taken {
            client.read_bytes += taken as u64;
            client.stalled_us = client.stalled_us.max(self.clock.now_us - client.moved_us);
            client.moved_us = self.clock.now_us;
            let mut rest = spans.clone();
            skip_sent(&mut rest, taken);
        }
        let seat = &mut self.server.as_mut().expect("the server is running").seats[shard];
        seat.cut_sends += usize::from(taken.is_some_and(|taken| taken < all));
        let outcome = taken.ok_or_else(wire::failure);
        seat.shard
            .handle(Input::Sent(id, spans, outcome), self.clock);
        seat.is_woken = true;
        self.note_panic(shard);
        self.check_held_after_event(shard);
        self.read(place);
    }

    /// Makes a client violate the protocol.
    fn misbehave(&mut self) {
        let Some(place) = self.any_client(|client| client.init.is_some()) else {
            return;
        };
        if self.is_calm || !self.plan.may(faults::NETWORK) {
            return;
        }
        let kind = self.dice.below(13);
        self.journal
            .note(|| format!("client {place} misbehaves: {kind}"));
        let open = self.clients[place].is_open();
        match kind {
            0 => self.clients[place].is_broken = true,
            1 => {
                self.clients[place].is_broken = true;
                self.connect_one(Some(place));
            }
            2 => self.clients[place].reading = Reading::HalfOpen,
            3 => self.clients[place].reading = Reading::Stopped,
            4 | 5 => self.clients[place].reading = Reading::Slow,
            6 if open => self.flood(place),
            7 if open => self.leave(
                place,
                1000,
                &wire::frame(wire::CLOSE, &1000_u16.to_be_bytes()),
            ),
            8 if open => self.leave(place, 1003, &wire::frame(wire::BINARY, b"1")),
            9 if open && place % 2 == 1 => self.begin_message(place),
            9 if open => {
                let long = vec![b'x'; self.plan.message_bytes_max + 1];
                self.leave(place, 1009, &wire::frame(wire::TEXT, &long));
            }
            10 | 11 if open => self.write_invalid(place),
            12 if open && self.plan.may(faults::PANICS) && !self.clients[place].is_v2 => {
                self.plant_panic(place);
            }
            _ => self.clients[place].reading = Reading::Swift,
        }
    }

    pub fn leave(&mut self, place: usize, code: u16, last: &[u8]) {
        let client = &mut self.clients[place];
        client.codes.insert(code);
        client.outgoing.extend(last);
        client.is_leaving = true;
    }

    /// Begins a message that the client never finishes.
    fn begin_message(&mut self, place: usize) {
        let most = self.plan.message_bytes_max;
        let bytes = [100, most / 2, most][place / 2 % 3];
        let mut fragment = wire::frame(wire::TEXT, &vec![b'x'; bytes]);
        fragment[0] = wire::TEXT;
        let client = &mut self.clients[place];
        client.outgoing.extend(fragment);
        client.is_mid_message = true;
    }

    fn flood(&mut self, place: usize) {
        let client = &mut self.clients[place];
        let payload = [b'p'; 3];
        for _ in 0..1500 {
            client.outgoing.extend(wire::frame(wire::PING, &payload));
            client.messages += 1;
            client.pongs_due += 1;
        }
    }

    fn write_invalid(&mut self, place: usize) {
        let far_us = (self.clock.unix_us + 400 * 24 * 3600 * SECOND_US).to_string();
        let bad = [
            format!(r#"{{"type":"op","payload":{{"key":"k0","value":666,"timestamp":{far_us}}}}}"#),
            r#"{"type":"op","payload":{"key":"k0","value":666}}"#.to_owned(),
            r#"{"type":"op","payload":{"key":"k0","value":666,"timestamp":1.5}}"#.to_owned(),
            "[666]".to_owned(),
            "{".to_owned(),
        ];
        let text = &bad[self.dice.below(bad.len())];
        let client = &mut self.clients[place];
        client
            .outgoing
            .extend(wire::frame(wire::TEXT, text.as_bytes()));
        client.refusals_due += 1;
        client.messages += 1;
    }

    fn plant_panic(&mut self, place: usize) {
        let client = &mut self.clients[place];
        let write = Write {
            key: PANIC_KEY.to_owned(),
            value: "666".to_owned(),
            timestamp: 1,
        };
        client.outgoing.extend(wire::op_frame(&write));
        client.messages += 1;
        client.has_planted = true;
        client.is_leaving = true;
    }

    /// Turns faults off and makes all clients behave well from now on.
    pub fn calm_down(&mut self) {
        self.is_calm = true;
        self.presence.calm_down();
        self.set_rates();
        self.disk.set_full(false);
        self.disk.state().dies_at = None;
        if self.disk.state().is_read_only {
            self.end_process("the machine restarts");
        }
        for place in self.live.clone() {
            let client = &mut self.clients[place];
            if client.reading == Reading::HalfOpen {
                continue;
            }
            client.reading = Reading::Swift;
        }
    }

    /// Ends all connections, as the end of their process does.
    pub fn hang_up(&mut self) {
        for place in std::mem::take(&mut self.live) {
            self.clients[place].home = Home::Gone;
            self.clients[place].sending = None;
        }
    }
}
