//! Version 2 clients: how they connect, resume and write, and checks of the messages sent to them.

use etherply::limits::SECOND_US;
use etherply::log::commit::Durability;

use crate::model::{Write, place_after};
use crate::plan::Planted;
use crate::presence::PeerSide;
use crate::replica::{Edit, Oracle, Replica};
use crate::server::BEGIN_UNIX_US;
use crate::wire::{self, Told};
use crate::world::{WORKSPACES, World};

/// The longest time to live, as in the protocol.
const TTL_MS_MAX: u64 = 3_650 * 24 * 3600 * 1000;

impl World {
    /// Returns a client's copy of its workspace if the next client speaks version 2: that of a
    /// client whose connection is lost, or a new one.
    pub fn choose_replica(
        &mut self,
        again: Option<usize>,
        workspace: usize,
        skew_us: i64,
    ) -> Option<Box<Replica>> {
        let is_v2 = match again {
            Some(again) => self.clients[again].replica.is_some(),
            None => self.dice.below(100) < self.plan.version2_percent,
        };
        if !is_v2 {
            return None;
        }
        let mut away: Vec<usize> = match again {
            Some(again) => vec![again],
            None if self.dice.below(4) > 0 => (0..self.clients.len()).collect(),
            None => Vec::new(),
        };
        away.retain(|place| {
            let client = &self.clients[*place];
            let is_away = client.is_gone() || client.is_broken || again == Some(*place);
            client.replica.is_some() && is_away
        });
        let mut replica = if away.is_empty() {
            Box::new(Replica::new(workspace, skew_us))
        } else {
            let place = away[self.dice.below(away.len())];
            self.journal.note(|| format!("client {place} comes back"));
            let replica = self.clients[place].replica.take();
            replica.expect("it was just there")
        };
        // A client that does not know which of its keys are unconfirmed starts over.
        let forgets = self.dice.one_in(if replica.is_full { 2 } else { 8 });
        replica.connect(!forgets);
        Some(replica)
    }

    /// Copies the data directory, or replaces it with the copy that was made before. The replaced
    /// history becomes the copy, so it may be continued later, too.
    pub fn restore_copy(&mut self) {
        let copy = (self.disk.fork(), self.models.clone());
        let Some((disk, models)) = self.copy.replace(copy) else {
            return;
        };
        self.journal.note(|| "a copy is restored".to_owned());
        self.coverage.copies_restored += 1;
        self.disk.restore(&disk);
        self.models = models;
        self.is_sealed = false;
    }

    /// Returns the request of a version 2 client.
    pub fn join_path(replica: &Replica, side: &PeerSide) -> String {
        let id = WORKSPACES[replica.workspace].replace(' ', "%20");
        let point = replica.asked.as_ref().map_or(String::new(), |point| {
            format!("&since={}&generation={}", point.since, point.generation)
        });
        let (token, presence) = (side.token(), side.query());
        format!("/v1/sync/{id}?token={token}{point}{presence}")
    }

    /// Makes a version 2 client write or delete a key, with or without a condition.
    pub fn write_v2(&mut self, place: usize, write: Write) {
        let (is_delete, is_conditional) = (self.dice.one_in(3), self.dice.one_in(5));
        let ttl_ms = self.dice.pick(&[1, 60_000, 7_200_000, TTL_MS_MAX]);
        let ttl_ms = (self.dice.one_in(4) && !is_delete).then_some(ttl_ms);
        let is_wrong = self.dice.one_in(4);
        let Self {
            clients, senders, ..
        } = self;
        let client = &mut clients[place];
        let replica = client.replica.as_mut().expect("it speaks version 2");
        let mut write = write;
        if is_delete {
            let Write {
                key, mut timestamp, ..
            } = write;
            let is_taken = |timestamp: u64| {
                let delete = Write::delete(key.clone(), timestamp);
                senders.contains_key(&delete.value)
            };
            // Clients write at whole seconds, and a write expires one microsecond later.
            while is_taken(timestamp) {
                timestamp += 2;
            }
            write = Write::delete(key, timestamp);
        }
        let condition = replica.condition(&write.key);
        let condition = if is_wrong { condition / 2 } else { condition };
        let edit = replica.edit(Edit {
            if_timestamp: is_conditional.then_some(condition),
            ttl_ms,
            id: 0,
            is_resent: false,
            has_lost: false,
            write,
        });
        self.journal
            .note(|| format!("client {place} sends {edit:?}"));
        if let Some(condition) = edit.if_timestamp {
            let workspace = self.clients[place].workspace;
            let value = edit.write.value.clone();
            self.conditions.insert((workspace, value), condition);
        }
        self.coverage.deletes += u64::from(is_delete);
        self.send_edit(place, &edit);
        if self.dice.one_in(6) {
            let client = &mut self.clients[place];
            let id = client.replica.as_mut().expect("it is there").ping();
            client.outgoing.extend(wire::ping_frame(id));
            client.messages += 1;
        }
    }

    fn send_edit(&mut self, place: usize, edit: &Edit) {
        let senders = self.senders.entry(edit.write.value.clone()).or_default();
        senders.push(place);
        let client = &mut self.clients[place];
        let mut sent = edit.clone();
        if self.plan.planted == Some(Planted::IgnoredCondition) {
            sent.if_timestamp = None;
        }
        client.outgoing.extend(wire::edit_frame(&sent));
        client.messages += 1;
    }

    /// Sends the messages that were not settled on an earlier connection.
    fn resend(&mut self, place: usize) {
        let replica = self.clients[place].replica.as_mut();
        for edit in replica.expect("it speaks version 2").resend() {
            self.coverage.resends += 1;
            self.send_edit(place, &edit);
        }
    }

    /// Makes a version 2 client read a message. Returns false if the model does not know all of it
    /// yet.
    pub fn read_v2(&mut self, place: usize, told: &Told) -> bool {
        let client = &mut self.clients[place];
        let Some(replica) = client.replica.as_mut() else {
            // The client has another connection by now.
            return true;
        };
        let oracle = Oracle {
            model: &self.models[client.workspace],
            number: place,
            is_always: self.plan.durability == Durability::Always,
        };
        if let Told::Refused(code, _) = told {
            let limits = client.limits;
            let is_right = match code {
                413 => limits.workspace_bytes.is_some(),
                429 => limits.ops_per_second.is_some(),
                500 => client.has_little_room,
                _ => false,
            };
            assert!(is_right, "client {place}: {told:?}");
            match code {
                413 => self.coverage.refused_by_size += 1,
                429 => self.coverage.refused_by_rate += 1,
                _ => self.coverage.refused_for_room += 1,
            }
        }
        let is_first = client.init.is_none();
        assert_eq!(
            is_first,
            matches!(told, Told::Welcome(_)),
            "client {place}: welcome comes first, and once"
        );
        if !replica.read(told, &oracle) {
            return false;
        }
        match told {
            Told::Welcome(welcome) => {
                client.init = Some(std::collections::BTreeMap::new());
                match welcome.why.as_str() {
                    "first" => self.coverage.joins += 1,
                    "too_old" => self.coverage.resumes_too_old += 1,
                    "resumed" => self.coverage.resumes += 1,
                    _ => self.coverage.resumes_elsewhere += 1,
                }
                if client
                    .replica
                    .as_ref()
                    .is_some_and(|replica| replica.is_obsolete)
                {
                    self.coverage.points_dropped += 1;
                    self.clients[place].is_broken = true;
                    self.connect_one(Some(place));
                } else if !client.is_leaving && !client.is_broken {
                    self.resend(place);
                }
            }
            Told::Part(..) => self.coverage.parts += 1,
            Told::Saved(..) => self.coverage.saved += 1,
            Told::Correction(..) => self.coverage.corrections += 1,
            _ => {}
        }
        true
    }

    /// Checks a version 2 message that is about to leave the server.
    pub fn check_send_v2(&mut self, place: usize, told: &Told) {
        let client = &self.clients[place];
        let model = &mut self.models[client.workspace];
        let is_always = self.plan.durability == Durability::Always;
        let (writes, seq) = match told {
            Told::Part(writes, seq) => (&writes[..], Some(*seq)),
            Told::Change(write, seq) => (std::slice::from_ref(write), Some(*seq)),
            Told::Synced(seq) => (&[][..], Some(*seq)),
            Told::Saved(_, seq) => (&[][..], *seq),
            _ => return,
        };
        let places = writes.iter().map(|write| model.place(&write.value));
        let places: Vec<Option<usize>> = places.collect();
        let counts = places.iter().flatten().map(|place| place + 1);
        let shown = counts.chain(seq.map(place_after)).max();
        let shown = shown.unwrap_or(0);
        model.shown = model.shown.max(shown.min(model.wins.len()));
        if !is_always {
            return;
        }
        assert!(
            shown <= model.synced && places.iter().all(Option::is_some),
            "client {place} is shown {shown} ops, and {} are durable: {told:?}",
            model.synced
        );
        if let (Told::Saved(id, _), Some(replica)) = (told, &client.replica) {
            for edit in replica.edits.iter().filter(|edit| edit.id <= *id) {
                let won = model.place(&edit.write.value);
                assert!(
                    won.is_none_or(|won| won < model.synced),
                    "client {place}: {edit:?} is saved, and not durable"
                );
            }
        }
    }

    /// Alters a message to a client, if such a bug is planted.
    pub fn plant_in_messages(&mut self, place: usize) {
        let told = &mut self.clients[place].told;
        let Some((_, last)) = told.back() else {
            return;
        };
        match (self.plan.planted, last) {
            (Some(Planted::EarlySaved), Told::Saved(..)) => {
                let before = told
                    .iter()
                    .position(|told| matches!(told.1, Told::Refused(..)));
                if let Some(before) = before {
                    let (end, saved) = told.pop_back().expect("it was just there");
                    told.insert(before, (told[before].0, saved));
                    told.back_mut().expect("an error").0 = end;
                }
            }
            (Some(Planted::LostDelete), Told::Part(writes, seq)) => {
                let kept = writes.iter().filter(|write| !write.is_delete());
                let part = Told::Part(kept.cloned().collect(), *seq);
                told.back_mut().expect("it was just there").1 = part;
            }
            (Some(Planted::LostChange), Told::Change(_, seq)) if seq % 16 == 0 => {
                told.pop_back();
            }
            _ => {}
        }
    }

    /// Checks a version 2 client once everything has settled.
    pub fn check_replica(&self, place: usize) {
        let client = &self.clients[place];
        let oracle = Oracle {
            model: &self.models[client.workspace],
            number: place,
            is_always: self.plan.durability == Durability::Always,
        };
        if let Some(replica) = &client.replica {
            replica.check_quiet(&oracle);
        }
    }

    /// Returns a timestamp for an op of a client with this clock. It ticks rarely, so ties are
    /// common.
    pub fn timestamp(&mut self, skew_us: i64) -> u64 {
        let tick = (self.count / 6 + self.dice.below_u64(4)) * SECOND_US;
        let timestamp = (BEGIN_UNIX_US + tick).checked_add_signed(skew_us);
        timestamp.expect("hours")
    }
}
