//! A shard's turn, and the effects of its outputs.

use std::cell::Cell;
use std::sync::Once;

use etherply::core::fanout::window::Spans;
use etherply::core::shard::contract::{ListenerKind, Output, PeerStatus};
use etherply::core::shard::session::SessionId;
use etherply::core::state::placement::shard_of;
use etherply::limits::{
    ANSWER_BYTES_MAX, ANSWER_SEND_BYTES_MAX, BATCH_BYTES_MAX, BULK_SENDS_PER_TURN_MAX, GRACE_US,
    HEAD_TIMEOUT_US, LATENESS_US_MAX, MESSAGE_TIMEOUT_US, PATIENCE_S, RATE_BURST_S, REFUSALS_MIN,
    SECOND_US, SEND_BYTES_MAX, SENDS_PER_TURN_MAX, SESSION_BUDGET_BYTES, STALL_TIMEOUT_US,
};
use etherply::log::commit::{Durability, LogStep};

use crate::client::Home;
use crate::model::Write;
use crate::server::{Errand, LogOperation, Seat};
use crate::wire::{self, Logged, Told, records};
use crate::world::{WORKSPACES, World};

thread_local! {
    /// The number of panics in this thread: those that were planted, and all others.
    static PANICS: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Installs a hook that counts panics, since a shard catches its own. Planted ones are not printed.
pub fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let (planted, others) = PANICS.get();
            if info
                .payload_as_str()
                .is_some_and(|text| text == "a planted fault")
            {
                PANICS.set((planted + 1, others));
            } else {
                PANICS.set((planted, others + 1));
                tell(info);
            }
        }));
    });
}

pub fn panics() -> (u64, u64) {
    PANICS.get()
}

/// A shard with at least this many sessions has too many to visit them all after each event.
const CROWD: usize = 32;

impl World {
    pub fn seat(&mut self, shard: usize) -> &mut Seat {
        &mut self.server.as_mut().expect("a server is running").seats[shard]
    }

    /// Returns whether the shard would wake up now.
    pub fn has_reason(&self, shard: usize) -> bool {
        let Some(seat) = self
            .server
            .as_ref()
            .and_then(|server| server.seats.get(shard))
        else {
            return false;
        };
        let is_due = seat
            .shard
            .next_deadline_us()
            .is_some_and(|at_us| at_us <= self.clock.now_us);
        !seat.is_drained && (seat.is_woken || seat.shard.has_work() || is_due)
    }

    /// Runs a shard's turn if it has a reason to take one.
    pub fn turn(&mut self, shard: usize) {
        if !self.has_reason(shard) {
            return;
        }
        let clock = self.clock;
        self.latest_unix_us = self.latest_unix_us.max(clock.unix_us);
        let server = self.server.as_mut().expect("it has a reason");
        let ready = server.seats.iter().all(|seat| seat.is_serving);
        let seat = &mut server.seats[shard];
        seat.is_woken = false;
        seat.shard.set_peer_status(PeerStatus {
            ready,
            recovered_percent: 0,
        });
        seat.shard.flush(clock);
        self.check_held(shard);
        self.note_panic(shard);
        let seat = self.seat(shard);
        let mut sends = 0;
        let sends_max =
            SENDS_PER_TURN_MAX + BULK_SENDS_PER_TURN_MAX + std::mem::take(&mut seat.cut_sends);
        while let Some(output) = self
            .server
            .as_mut()
            .and_then(|server| server.seats[shard].shard.poll_output())
        {
            sends += usize::from(matches!(output, Output::Send(..)));
            self.take(shard, output);
        }
        self.note_sleep(shard);
        assert!(
            sends <= sends_max,
            "a turn sends to at most {sends_max} sessions, not {sends}"
        );
        self.coverage.full_turns += u64::from(sends >= SENDS_PER_TURN_MAX);
        self.check_members(shard);
        let counters = self.seat(shard).shard.counters();
        self.coverage.held += u64::from(counters.sessions_held > 0);
    }

    /// Records the time of the shard's next turn.
    fn note_sleep(&mut self, shard: usize) {
        let now_us = self.clock.now_us;
        let seat = self.seat(shard);
        seat.due_us = if seat.shard.has_work() {
            Some(now_us)
        } else {
            seat.shard.next_deadline_us()
        };
    }

    /// Suspends the process or its machine for `us`. Clients are not to blame for that time, so all
    /// deadlines for closing them move by the same amount, except for the part that the shard
    /// cannot detect: it does not know whether it was running until its next deadline.
    pub fn be_stopped(&mut self, us: u64) {
        self.journal
            .note(|| format!("the process is stopped for {us} us"));
        let stopped_us = self.clock.now_us;
        self.clock.now_us += us;
        self.clock.unix_us += us;
        self.coverage.stopped += 1;
        let Some(server) = &self.server else {
            return;
        };
        let missed = |seat: &Seat| {
            let due_us = seat.due_us?;
            let late_us = (stopped_us + us).checked_sub(due_us + LATENESS_US_MAX)?;
            let slept_us = due_us.saturating_sub(stopped_us + late_us.min(GRACE_US));
            us.checked_sub(slept_us.max(LATENESS_US_MAX))
        };
        let missed: Vec<u64> = server
            .seats
            .iter()
            .map(|seat| missed(seat).unwrap_or(0))
            .collect();
        for place in &self.live {
            let client = &mut self.clients[*place];
            if let Home::At(shard, _) = client.home {
                let missed_us = missed[shard];
                client.heard_us += missed_us;
                client.moved_us += missed_us;
                client.came_us += missed_us;
                client.emptied_us += missed_us;
            }
        }
    }

    /// Closes a connection, as a server with too many connections does, but never that of a client
    /// with a token.
    pub fn shed_connections(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let shard = self.dice.below(server.seats.len());
        let seat = &mut server.seats[shard];
        let Some(yielded) = seat.shard.shed(ListenerKind::Public, self.clock) else {
            return;
        };
        seat.is_woken = true;
        let place = self.client_of(shard, yielded.id);
        self.journal.note(|| format!("client {place} is shed"));
        let client = &self.clients[place];
        let is_over = client.code.is_some() || client.is_leaving;
        assert!(
            if yielded.is_silent {
                client.sent_bytes == 0
            } else {
                is_over
            },
            "client {place} was shed while it was being served"
        );
        self.coverage.gave_way += 1;
    }

    /// Runs `check_held` after an event. The sessions of a crowd are visited only once per turn: a
    /// sum that an event makes wrong is still wrong then.
    pub fn check_held_after_event(&mut self, shard: usize) {
        if self.seat(shard).clients.len() < CROWD {
            self.check_held(shard);
        }
    }

    /// Checks that the memory held for clients is counted correctly and within its bound.
    pub fn check_held(&mut self, shard: usize) {
        let plan = self.plan;
        let seat = self.seat(shard);
        seat.shard.invariants();
        let counters = seat.shard.counters();
        let state_bytes = plan.keys * (plan.value_bytes + 300);
        let tiny_bytes = seat.clients.len() * ANSWER_BYTES_MAX;
        let most_bytes = plan.snapshot_bytes_max.max(state_bytes) + tiny_bytes;
        assert!(
            counters.snapshot_bytes <= most_bytes as u64,
            "{} bytes of encoded states exceed {most_bytes}",
            counters.snapshot_bytes
        );
        let given_up = counters.given_up_sessions;
        let news = given_up - std::mem::replace(&mut seat.given_up, given_up);
        self.coverage.given_up += news;
    }

    /// Checks that no workspace exceeds its member limit.
    fn check_members(&self, shard: usize) {
        let server = self.server.as_ref().expect("the server just ran a turn");
        if let Some(most) = server.limits.connections_per_workspace {
            let members = server.seats[shard].shard.counters().connections;
            let bound = (most * self.places_of(shard).len()) as u64;
            assert!(members <= bound, "{members} members exceed {bound}");
        }
    }

    /// Checks that a shard has caught only planted panics, which may make it fail.
    pub fn note_panic(&mut self, shard: usize) {
        let (planted, others) = panics();
        assert_eq!(others, self.panics.1, "a shard panicked");
        if planted > self.panics.0 {
            self.coverage.panics += planted - self.panics.0;
            self.panics.0 = planted;
            self.seat(shard).may_fail = true;
        }
    }

    fn client_of(&self, shard: usize, id: SessionId) -> usize {
        let server = self.server.as_ref().expect("a server is running");
        let place = server.seats[shard].clients.get(&id);
        *place.expect("the session of an output exists")
    }

    fn take(&mut self, shard: usize, output: Output) {
        self.journal
            .note(|| format!("shard {shard}: {}", text(&output)));
        match output {
            Output::Receive(id) => {
                let place = self.client_of(shard, id);
                let client = &mut self.clients[place];
                assert!(!client.receiving, "only one receive is in flight");
                client.receiving = true;
            }
            Output::Page(..) => unreachable!("unexpected request for a page"),
            Output::Note(..) => unreachable!("unexpected journal entry"),
            Output::Send(id, spans) => self.take_send(shard, id, spans),
            Output::Finish(id) => {
                let place = self.client_of(shard, id);
                self.clients[place].is_leaving = true;
            }
            Output::Abort(id) => {
                let place = self.client_of(shard, id);
                self.clients[place].is_broken = true;
            }
            Output::Close(id) => {
                let place = self.client_of(shard, id);
                let client = &mut self.clients[place];
                assert!(
                    !client.receiving && client.sending.is_none(),
                    "something is still in flight"
                );
                client.home = Home::Gone;
                self.forget(shard, id, place);
            }
            Output::Handoff(id, owner, handoff) => {
                let place = self.client_of(shard, id);
                let client = &mut self.clients[place];
                assert!(
                    !client.receiving && client.sending.is_none(),
                    "something is still in flight"
                );
                assert_eq!(
                    owner,
                    shard_of(WORKSPACES[client.workspace], self.shards),
                    "the session is handed off to the owner"
                );
                client.home = Home::Travelling;
                self.seat(shard).clients.remove(&id);
                let server = self.server.as_mut().expect("the server is running");
                server.letters.push_back((owner as usize, place, handoff));
                self.coverage.handoffs += 1;
            }
            Output::Log(LogStep::Write {
                ref bytes, from, ..
            }) => {
                if from == 0 {
                    self.note_wins(shard, bytes);
                }
                self.ask(shard, output);
            }
            Output::Log(LogStep::Sync) => self.ask(shard, output),
            Output::Log(LogStep::Open {
                index,
                first_position,
            }) => {
                let seat = self.seat(shard);
                let log = seat.log.as_ref().expect("the log is open");
                let errand = Errand::Create(log.next(index, first_position));
                assert!(
                    seat.operation.is_none() && seat.errand.replace(errand).is_none(),
                    "only one operation is in flight"
                );
            }
            Output::Rebuild(end) => {
                let seat = self.seat(shard);
                let log = seat.log.as_ref().expect("the log is open");
                let errand = Errand::Rebuild(log.rebuild(end));
                assert!(
                    seat.operation.is_none() && seat.errand.replace(errand).is_none(),
                    "only one operation is in flight"
                );
            }
            Output::Ready(ready) => self.take_ready(shard, ready),
            Output::Drained => self.seat(shard).is_drained = true,
        }
    }

    fn forget(&mut self, shard: usize, id: SessionId, place: usize) {
        self.seat(shard).clients.remove(&id);
        self.live.retain(|live| *live != place);
    }

    fn ask(&mut self, shard: usize, output: Output) {
        let seat = self.seat(shard);
        let is_alone = seat.errand.is_none() && seat.operation.is_none();
        assert!(is_alone, "only one log operation is in flight");
        seat.operation = Some(LogOperation::Asked(output));
    }

    /// Applies the ops to the models in the order in which they are logged.
    fn note_wins(&mut self, shard: usize, batch: &[u8]) {
        let bytes_max = BATCH_BYTES_MAX + self.plan.message_bytes_max + 1024;
        assert!(batch.len() <= bytes_max, "a batch of {} bytes", batch.len());
        for record in records(batch) {
            if let Logged::Generation = record.logged {
                continue;
            }
            let workspace = self.workspace(&record.workspace);
            let owner = shard_of(&record.workspace, self.shards) as usize;
            assert_eq!(owner, shard, "a workspace is logged by its shard");
            let (write, expires_at_us) = match record.logged {
                Logged::Op(write, expires_at_us) => (write, expires_at_us),
                Logged::Floor(timestamp, dropped_seq) => {
                    let model = &mut self.models[workspace];
                    assert_eq!(
                        record.seq,
                        model.wins.len() as u64,
                        "a floor has the last seq"
                    );
                    model.raise_floor(timestamp, dropped_seq);
                    self.coverage.floors += 1;
                    continue;
                }
                Logged::Generation => unreachable!("it is of no workspace"),
            };
            self.note_win(workspace, write, expires_at_us, record.seq);
            let count = self.models[workspace].wins.len();
            self.seat(shard).handed.push((workspace, count));
        }
    }

    fn note_win(&mut self, workspace: usize, write: Write, expires_at_us: Option<u64>, seq: u64) {
        self.journal.note(|| {
            let Write { key, value, .. } = &write;
            format!(
                "op {seq} of {:?}: {key} = {value:.20}",
                WORKSPACES[workspace]
            )
        });
        let value = write.value.clone();
        let id_bytes = WORKSPACES[workspace].len();
        let (before_bytes, is_delete) = (self.models[workspace].bytes(id_bytes), write.is_delete());
        let model = &mut self.models[workspace];
        // The clock may have been set back since the key expired.
        let unix_us = self.latest_unix_us;
        let has_expired = model
            .expiry_us(&write.key)
            .is_some_and(|at_us| at_us <= unix_us);
        let is_new = model.held(&write.key).is_none();
        let held = model.held(&write.key).map_or(0, |held| held.timestamp);
        let is_expiry = has_expired && is_delete && write.timestamp == held + 1;
        if let Some(expected) = self
            .conditions
            .get(&(workspace, value.clone()))
            .filter(|_| !is_expiry)
        {
            let held = model.held(&write.key).map_or(0, Write::condition);
            assert_eq!(held, *expected, "the condition of {write:?} holds");
        }
        model.win(write, seq);
        if let Some(at_us) = expires_at_us {
            model.expires(at_us);
        }
        let after_bytes = model.bytes(id_bytes);
        let bytes_max = self
            .server
            .as_ref()
            .and_then(|server| server.limits.workspace_bytes);
        // A key with an entry can always be deleted, and one without up to twice the limit.
        let bytes_max = match (bytes_max, is_delete) {
            (Some(bytes_max), true) if is_new => 2 * bytes_max,
            (Some(bytes_max), false) => bytes_max,
            _ => u64::MAX,
        };
        assert!(
            after_bytes <= before_bytes.max(bytes_max),
            "{value:.40} grows its workspace to {after_bytes} bytes"
        );
        let clients = &mut self.clients;
        let mut senders = self.senders.get(&value).cloned().unwrap_or_default();
        // Clients of two workspaces may send identical deletes.
        senders.retain(|sender| !is_delete || clients[*sender].workspace == workspace);
        assert!(is_expiry || !senders.is_empty(), "nobody sent {value:.40}");
        self.coverage.expiries += u64::from(senders.is_empty());
        for sender in &senders {
            let client = &mut clients[*sender];
            assert_eq!(client.workspace, workspace, "nothing crosses workspaces");
            let at = client.sent.iter().position(|write| write.value == value);
            assert!(at.is_some() || client.is_v2, "it sent it");
            if let Some(at) = at
                && senders.len() == 1
            {
                client.judge_until(at + 1, model);
            }
        }
    }

    pub fn workspace(&self, id: &str) -> usize {
        let place = WORKSPACES[..self.plan.workspaces]
            .iter()
            .position(|known| *known == id);
        place.expect("a workspace that a client named")
    }

    fn take_send(&mut self, shard: usize, id: SessionId, spans: Spans) {
        let place = self.client_of(shard, id);
        let now_us = self.clock.now_us;
        let bytes = wire::bytes_of(&spans);
        let client = &mut self.clients[place];
        assert!(client.sending.is_none(), "only one send is in flight");
        assert!(!bytes.is_empty(), "an empty send");
        // The remainder of a short send was checked when the send began.
        let known = client.sent_bytes - client.read_bytes;
        if known == 0 {
            let begins_whole = client.stream.is_whole();
            client.sent_bytes += bytes.len() as u64;
            client.stream.push(&bytes);
            client.moved_us = now_us;
            let (mut frames, mut has_state, mut presence) = (0, false, 0);
            while let Some((end, told)) = self.clients[place].stream.next() {
                frames += 1;
                has_state |= matches!(told, Told::Init(_) | Told::State(_));
                presence += usize::from(matches!(told, Told::Presence(_)));
                self.check_send(place, &told);
                self.clients[place].told.push_back((end, told));
                self.plant_in_messages(place);
                self.plant_in_presence(place);
            }
            assert!(presence <= 1, "client {place} is sent a queue of presence");
            let is_one = frames == 1 && begins_whole && self.clients[place].stream.is_whole();
            assert!(
                bytes.len() <= ANSWER_SEND_BYTES_MAX || is_one,
                "a send of {} bytes",
                bytes.len()
            );
            self.coverage.full_sends += u64::from(bytes.len() >= SEND_BYTES_MAX - 70_000);
            let is_long = bytes.len() > SEND_BYTES_MAX;
            self.coverage.long_frames += u64::from(is_long && !has_state);
            self.coverage.long_answers += u64::from(is_long && has_state);
        } else {
            assert_eq!(
                known,
                bytes.len() as u64,
                "the rest of a send differs from the unsent bytes"
            );
        }
        self.clients[place].sending = Some((spans, bytes));
    }

    /// Checks a message that is about to leave the server.
    fn check_send(&mut self, place: usize, told: &Told) {
        self.check_send_peer(place, told);
        let client = &self.clients[place];
        let now_us = self.clock.now_us;
        let model = &mut self.models[client.workspace];
        let may_be_lost = self.plan.durability != Durability::Always;
        if let Told::Op(write) | Told::Correction(write, _) = told
            && write.is_delete()
            && model.place(&write.value).is_none()
        {
            assert!(may_be_lost || model.is_absent(write), "{write:?} never was");
            model.floor_shown = model.floor_shown.max(write.timestamp);
            self.coverage.floors_shown += u64::from(write.timestamp > 0);
            return;
        }
        let mut show = |value: &str| {
            if let Some(at) = model.place(value) {
                model.shown = model.shown.max(at + 1);
            }
            let is_kept = model.place(value).is_some_and(|at| at < model.synced);
            assert!(
                is_kept || may_be_lost,
                "client {place} received {value:.40}, which is not durable"
            );
        };
        match told {
            Told::Op(write) | Told::Correction(write, _) => show(&write.value),
            Told::Part(..) | Told::Change(..) | Told::Synced(_) | Told::Saved(..) => {
                self.check_send_v2(place, told);
            }
            Told::Init(data) | Told::State(data) => {
                let mut bytes = 0;
                for (key, value) in data {
                    show(value);
                    bytes += key.len() + value.len();
                }
                let is_state = model.places_of(data, model.synced).is_some();
                assert!(
                    is_state || may_be_lost,
                    "client {place} is shown a state that is not durable: {data:?}"
                );
                let is_init = matches!(told, Told::Init(_));
                self.coverage.inits += u64::from(is_init);
                self.coverage.looks += u64::from(!is_init);
                self.coverage.states_in_parts += u64::from(bytes > self.plan.snapshot_part_bytes);
            }
            Told::Status(408) => {
                let waited_us = now_us - client.came_us;
                assert!(
                    waited_us >= HEAD_TIMEOUT_US,
                    "client {place} connected {waited_us} us ago"
                );
                self.clients[place].status_wanted = 408;
            }
            Told::Status(503) if !client.met_pause && !client.may_be_put_off() => {
                let waited_us = now_us - client.came_us;
                assert!(
                    waited_us >= HEAD_TIMEOUT_US,
                    "client {place} connected {waited_us} us ago and is refused"
                );
                self.clients[place].met_pause = true;
            }
            Told::Close(code) => self.check_close(place, *code),
            _ => {}
        }
    }

    /// Checks a close that is about to leave the server.
    fn check_close(&mut self, place: usize, code: u16) {
        let client = &self.clients[place];
        let now_us = self.clock.now_us;
        match code {
            1012 => {
                let server = self.server.as_ref();
                let is_draining = server.is_some_and(|server| server.is_draining);
                assert!(
                    client.is_v2 && is_draining,
                    "client {place}: 1012 is for a drain"
                );
                self.clients[place].codes.insert(1012);
            }
            1001 => {
                let is_draining = self
                    .server
                    .as_ref()
                    .is_some_and(|server| server.is_draining);
                let silence_us = client.silence_us.max(now_us - client.heard_us);
                assert!(
                    is_draining || silence_us >= self.plan.ping_interval_us * 5 / 2,
                    "client {place} was never silent for longer than {silence_us} us"
                );
                self.coverage.silences += u64::from(!is_draining);
                self.clients[place].codes.insert(1001);
            }
            1008 if client.unfinished_us.max(now_us - client.emptied_us) >= MESSAGE_TIMEOUT_US => {
                self.coverage.slow_messages += 1;
                self.clients[place].codes.insert(1008);
            }
            1008 => {
                let per_second = self.plan.limits.ops_per_second;
                let per_second = u64::from(per_second.expect("a rate is configured"));
                let least = per_second * RATE_BURST_S + (per_second * PATIENCE_S).max(REFUSALS_MIN);
                let sent = client.messages;
                assert!(
                    sent > least,
                    "client {place} was closed after {sent} messages"
                );
                self.coverage.closed_by_policy += 1;
                self.clients[place].codes.insert(1008);
            }
            1013 => {
                let stalled_us = client.stalled_us.max(now_us - client.moved_us);
                let is_stalled = stalled_us >= STALL_TIMEOUT_US;
                assert!(
                    is_stalled || self.plan.session_bytes_max < SESSION_BUDGET_BYTES,
                    "client {place} was never stalled for longer than {stalled_us} us"
                );
                self.coverage.stalls += u64::from(is_stalled);
                self.clients[place].codes.insert(1013);
            }
            _ => {}
        }
    }

    /// Makes a client read the messages that have arrived in its socket.
    pub fn read(&mut self, place: usize) {
        while let Some((end, told)) = self.clients[place].told.front().cloned() {
            if end > self.clients[place].read_bytes {
                break;
            }
            self.journal
                .note(|| format!("client {place} reads {}", brief(&told)));
            let is_kept = self.plan.durability == Durability::Always;
            // An op that was shown before it was written may be lost before it reaches the log, and
            // so may the history that a welcome continues.
            let is_of_history = told.shows_state() || matches!(told, Told::Welcome(_));
            if !is_kept && self.clients[place].is_cut_off() && is_of_history {
                self.clients[place].told.pop_front();
                continue;
            }
            if !self.read_one(place, &told) {
                assert!(
                    !is_kept,
                    "client {place} is sent an op that did not win: {told:?}"
                );
                break;
            }
            let client = &mut self.clients[place];
            client.told.pop_front();
            if is_kept {
                client.check_left_out(&self.models[client.workspace]);
            }
            match told {
                Told::Op(_) | Told::Change(..) => self.coverage.broadcasts += 1,
                Told::Pong => self.coverage.pongs += 1,
                Told::Error(429, _) => self.coverage.refused_by_rate += 1,
                Told::Error(500, Some(_)) => self.coverage.refused_for_room += 1,
                Told::Error(413, _) => self.coverage.refused_by_size += 1,
                Told::Error(400, _) => self.coverage.refusals += 1,
                Told::Error(..) => self.coverage.told_500 += 1,
                Told::Status(503) if !client.met_pause => self.coverage.put_off += 1,
                Told::Init(_) if client.came_early => self.coverage.waited += 1,
                _ => {}
            }
        }
    }

    /// Makes a client read a message. Returns false if the model does not know all of it yet.
    fn read_one(&mut self, place: usize, told: &Told) -> bool {
        if self.read_peer(place, told) {
            return true;
        }
        if self.clients[place].is_v2 && told.is_of_workspace() {
            let is_read = self.read_v2(place, told);
            if is_read {
                self.note_peer_read(place, told);
            }
            return is_read;
        }
        let Self {
            clients,
            models,
            senders,
            ..
        } = self;
        let client = &mut clients[place];
        let is_sender = |value: &str| {
            let senders = senders.get(value);
            senders.is_some_and(|senders| senders.contains(&place))
        };
        client.read(told, &models[client.workspace], &is_sender)
    }

    fn take_ready(&mut self, shard: usize, ready: bool) {
        let seat = self.seat(shard);
        assert_ne!(seat.is_serving, ready, "an unchanged value was reported");
        seat.is_serving = ready;
        if ready {
            seat.may_fail = false;
            return;
        }
        assert!(seat.may_fail, "shard {shard} failed without a reason");
        seat.handed.clear();
        let clients: Vec<usize> = seat.clients.values().copied().collect();
        for place in clients {
            let client = &self.clients[place];
            let model = &self.models[client.workspace];
            let lost = &model.wins[model.confirmed.min(model.wins.len())..];
            let is_lost = |value: &str| {
                let senders = self.senders.get(value);
                senders.is_some_and(|senders| *senders == [place])
            };
            let lost_an_op = lost.iter().any(|write| is_lost(&write.value));
            let client = &mut self.clients[place];
            let has_edits = client.is_v2 && client.messages > 0;
            // A client that does not read still has to receive the answer to an earlier failure.
            client.lost_an_op |= lost_an_op && client.code.is_none() && !client.is_leaving;
            client.may_have_lost |= lost_an_op
                || client.has_planted
                || client.has_resent
                || client.judged < client.sent.len()
                || has_edits;
            client.codes.insert(1011);
            client.was_answered |= client.sent_bytes > 0;
        }
        let server = self.server.as_mut().expect("the server is running");
        server.had_failure = true;
        for place in &self.live {
            self.clients[*place].met_failure |= self.clients[*place].status.is_none();
        }
        self.coverage.failures += 1;
    }
}

fn brief(told: &Told) -> String {
    match told {
        Told::Op(write) | Told::Correction(write, _) | Told::Change(write, _) => {
            format!("{} = {:.20} at {}", write.key, write.value, write.timestamp)
        }
        Told::Init(data) | Told::State(data) => format!("a state of {} keys", data.len()),
        other => format!("{other:?}"),
    }
}

fn text(output: &Output) -> String {
    match output {
        Output::Send(id, spans) => {
            let bytes: usize = spans.iter().map(|span| span.bytes().len()).sum();
            format!("send {bytes} bytes to {id:?}")
        }
        Output::Log(LogStep::Write {
            offset,
            bytes,
            from,
        }) => format!("write {} bytes at {offset}", bytes.len() - from),
        Output::Handoff(id, owner, _) => format!("hand {id:?} to {owner}"),
        other => format!("{other:?}"),
    }
}

/// Long enough for a failed log to be reopened and for a timer of `interval` mode to fire.
pub const CALM_US: u64 = 12 * SECOND_US;
