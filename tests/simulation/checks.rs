//! Invariants: after a recovery, after a crash at any moment, with flipped bits, and once
//! everything has settled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use etherply::core::state::placement::shard_of;
use etherply::core::state::workspace::Workspace;
use etherply::core::testing::Dice;
use etherply::limits::{HEAD_TIMEOUT_US, SECOND_US, STALL_LINGER_US, STALL_TIMEOUT_US};
use etherply::log::commit::Durability;
use etherply::log::compaction::{Compaction, CompactionError, Settings};
use etherply::log::directory::{DataDirectory, DirectoryError, shard_folder};
use etherply::log::record::{Change, LoggedOp};
use etherply::log::recovery::RecoveryError;

use crate::client::Reading;
use crate::crash::Crash;
use crate::disk::SimDisk;
use crate::inodes::Syncs;
use crate::model::{Model, Write};
use crate::server::{self, DATA, Seat, all_bytes, log_bytes};
use crate::world::{WORKSPACES, World};
use etherply::seq::Seq;

/// The ops that a recovery visited, and the seqs of the floors.
#[derive(Debug, Default)]
pub struct Found(Vec<(String, String, u64, u64)>, Vec<(String, u64)>);

impl Found {
    pub fn visit(&mut self, op: &LoggedOp<'_>) {
        let value = match op.change {
            Change::Write { value, .. } => value.to_owned(),
            Change::Delete { .. } => Write::delete(op.key.to_owned(), op.timestamp).value,
            Change::Generation { .. } => return,
            Change::Floor { .. } => {
                return self.1.push((op.workspace.to_owned(), op.seq.get()));
            }
        };
        self.0
            .push((op.workspace.to_owned(), value, op.timestamp, op.seq.get()));
    }
}

/// A recovered workspace: its seq, and its registers in the order of their last change.
type Recovered = (u64, Vec<(String, String, u64, u64)>);

fn recovered(workspace: &Workspace) -> Recovered {
    let entries = workspace.changed_since(Seq::NONE, None);
    let entries = entries.map(|(_, entry)| {
        let (key, timestamp) = (entry.key().to_owned(), entry.timestamp());
        let value = if entry.is_deleted() {
            Write::delete(key.clone(), timestamp).value
        } else {
            entry.value().to_owned()
        };
        (key, value, timestamp, entry.seq().get())
    });
    (workspace.seq().get(), entries.collect())
}

impl Model {
    /// Returns the number of wins that a recovered workspace holds; checks that its state is the
    /// one after those wins.
    fn matches(&self, workspace: &Workspace) -> usize {
        let (seq, entries) = recovered(workspace);
        let count = usize::try_from(seq).expect("the number is small");
        assert!(
            count <= self.wins.len(),
            "{count} ops were recovered, but {} were written",
            self.wins.len()
        );
        let dropped_seq = workspace.floor().map_or(0, |floor| floor.dropped_seq.get());
        let kept = |place: &usize| !self.is_dropped_by(*place, dropped_seq);
        let mut expected: Vec<usize> = self.state(count).into_values().filter(kept).collect();
        expected.sort_unstable();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|place| {
                let write = &self.wins[place];
                (
                    write.key.clone(),
                    write.value.clone(),
                    write.timestamp,
                    place as u64 + 1,
                )
            })
            .collect();
        let differs = entries
            .iter()
            .zip(&expected)
            .find(|(entry, expected)| entry != expected);
        assert_eq!(
            differs, None,
            "the recovered state differs from the state after {count} ops"
        );
        assert_eq!(
            entries.len(),
            expected.len(),
            "the recovered state differs from the state after {count} ops"
        );
        count
    }
}

/// Returns the floor of a workspace that was read back, and the seq of the newest tombstone that
/// was dropped.
fn floor_of<'a>(mut workspaces: impl Iterator<Item = &'a Workspace>, place: usize) -> (u64, u64) {
    let workspace = workspaces.find(|workspace| workspace.id() == WORKSPACES[place]);
    let floor = workspace.and_then(Workspace::floor);
    floor.map_or((0, 0), |floor| (floor.timestamp, floor.dropped_seq.get()))
}

impl World {
    /// Checks that a floor that a client was shown has survived.
    fn check_floor(&self, place: usize, workspace: &Workspace) {
        let (floor, _) = floor_of(std::iter::once(workspace), place);
        let shown = self.models[place].floor_shown;
        assert!(
            floor >= shown || self.plan.durability != Durability::Always,
            "the floor of {:?} is {floor}, and {shown} was shown",
            WORKSPACES[place]
        );
    }

    /// Returns the number of wins that must have survived: those synced and, in `always` mode,
    /// those shown.
    pub fn promised(&self, model: &Model) -> usize {
        let shown = match self.plan.durability {
            Durability::Always => model.shown,
            _ => 0,
        };
        shown.max(model.synced)
    }

    /// Compares the recovered state with the models. Returns the number of wins of each.
    fn compare(&self, dealt: &[Vec<Workspace>], promised: &[usize]) -> Vec<usize> {
        let mut counts = vec![0; self.models.len()];
        for (shard, workspaces) in dealt.iter().enumerate() {
            for workspace in workspaces {
                let owner = shard_of(
                    workspace.id(),
                    u32::try_from(dealt.len()).expect("the number is small"),
                );
                assert_eq!(
                    owner as usize, shard,
                    "the workspace belongs to another shard"
                );
                let place = self.workspace(workspace.id());
                counts[place] = self.models[place].matches(workspace);
                self.check_floor(place, workspace);
            }
        }
        for (place, (count, promised)) in counts.iter().zip(promised).enumerate() {
            let id = WORKSPACES[place];
            assert!(
                count >= promised,
                "{id:?} has {count} ops, but {promised} were promised"
            );
        }
        counts
    }

    /// Accepts a recovered state after checking it: wins that are not in it are lost.
    pub fn accept_recovered(&mut self, dealt: &[Vec<Workspace>], found: &Found) {
        // A failed sync discards the data that the kernel held.
        let is_written = self.disk.state().met.sync_errors == 0;
        let written = |model: &Model| if is_written { model.written } else { 0 };
        let promised = self
            .models
            .iter()
            .map(|model| self.promised(model).max(written(model)));
        let promised: Vec<usize> = promised.collect();
        let counts = self.compare(dealt, &promised);
        self.check_found(found, &counts);
        self.journal.note(|| format!("recovered {counts:?}"));
        for (place, count) in counts.into_iter().enumerate() {
            let workspaces = dealt.iter().flatten();
            let floor = floor_of(workspaces, place);
            let model = &mut self.models[place];
            if self.is_sealed {
                assert_eq!(count, model.wins.len(), "a sealed log lost ops");
            }
            model.cut(count, floor);
        }
    }

    /// Checks that every op on disk is one that won. Returns the seqs of each workspace.
    fn check_ops(&self, found: &Found) -> Vec<Vec<u64>> {
        let mut seen = vec![Vec::new(); self.models.len()];
        for (workspace, value, timestamp, seq) in &found.0 {
            let place = self.workspace(workspace);
            let at = usize::try_from(*seq)
                .ok()
                .and_then(|seq| seq.checked_sub(1));
            let write = at.and_then(|at| self.models[place].wins.get(at));
            let is_same =
                write.is_some_and(|write| write.value == *value && write.timestamp == *timestamp);
            assert!(
                is_same,
                "{workspace}: op {seq} is {value:.40} instead of {write:?}"
            );
            seen[place].push(*seq);
        }
        seen
    }

    /// Checks that, until a compaction, every op that won is on disk exactly once, and that the
    /// last one always is.
    fn check_found(&self, found: &Found, counts: &[usize]) {
        let mut seen = self.check_ops(found);
        for (place, (seqs, count)) in seen.iter_mut().zip(counts).enumerate() {
            seqs.sort_unstable();
            let floors = found.1.iter().filter(|floor| floor.0 == WORKSPACES[place]);
            let floor_seq = floors.map(|floor| floor.1).max().unwrap_or(0);
            assert!(floor_seq <= *count as u64, "a floor is of a known op");
            if !self.is_compacted {
                assert!(
                    seqs.iter().copied().eq(1..=*count as u64),
                    "the seqs have a gap: {seqs:?} of {count}"
                );
            }
            seqs.dedup();
            // The last op may be a delete whose tombstone was dropped.
            assert_eq!(
                seqs.last().copied().unwrap_or(0).max(floor_seq),
                *count as u64,
                "the last op is not on disk"
            );
        }
    }

    /// Lowers the promises of a failed shard to the ops that it knows to be durable, since it
    /// discards the rest. Until a rebuild has synced the ops that were shown, a power cut may lose
    /// those, too.
    pub fn give_up_the_rest(&mut self, shard: usize) {
        let &mut Seat {
            is_sync_lost,
            is_end_known,
            ..
        } = self.seat(shard);
        for place in self.places_of(shard) {
            let model = &mut self.models[place];
            let kept = match self.plan.durability {
                Durability::Always => model.shown.max(model.covered),
                _ if is_sync_lost => model.covered,
                _ => model.confirmed.max(model.covered),
            };
            let is_on_disk = is_end_known || self.plan.durability == Durability::Always;
            model.written = kept;
            model.synced = if is_on_disk { kept } else { model.covered };
        }
    }

    /// Records an attempt at a rebuild; `before` counts the syncs of the failed segment before it.
    /// The first attempt decides: the ops that it has kept stay, regardless of later attempts.
    pub fn note_end(&mut self, shard: usize, before: Syncs) {
        let is_dead = self.disk.is_dead();
        let seat = self.seat(shard);
        if seat.is_end_known {
            return;
        }
        let syncs = seat.log.as_ref().expect("the log is open").file().syncs();
        let is_lost = syncs.failed > before.failed;
        let is_synced = syncs.succeeded > before.succeeded;
        seat.is_sync_lost |= is_lost;
        // If the process is alive and has synced nothing, there was nothing to sync.
        seat.is_end_known = is_lost || is_synced || !is_dead;
        self.coverage.ends_decided += u64::from(is_synced || is_lost);
        self.give_up_the_rest(shard);
    }

    /// Checks the state that a shard has read back while other shards run.
    pub fn accept_rebuilt(&mut self, shard: usize, workspaces: &[Workspace]) {
        for place in self.places_of(shard) {
            let workspace = workspaces
                .iter()
                .find(|workspace| workspace.id() == WORKSPACES[place]);
            let model = &mut self.models[place];
            let count = workspace.map_or(0, |workspace| model.matches(workspace));
            let promised = model.synced;
            assert!(
                count >= promised,
                "{:?} has {count} ops, but {promised} were promised",
                WORKSPACES[place]
            );
            model.cut(count, floor_of(workspaces.iter(), place));
        }
    }

    /// Returns the indices of the workspaces of a shard.
    pub fn places_of(&self, shard: usize) -> Vec<usize> {
        let is_own = |place: &usize| shard_of(WORKSPACES[*place], self.shards) as usize == shard;
        (0..self.models.len()).filter(is_own).collect()
    }

    // ---- trials on a copy of the disk ----

    /// Simulates a crash on a copy of the disk and checks that everything promised has survived. A
    /// second crash may follow while the log is being read.
    pub fn try_crash(&mut self) {
        let promised = self.models.iter().map(|model| self.promised(model));
        let promised: Vec<usize> = promised.collect();
        self.try_crash_of(&self.disk.fork(), &promised);
    }

    /// Simulates a crash on `fork` and checks that everything in `promised` has survived. For a
    /// copy made in the middle of an operation, those are the promises from before the operation.
    pub fn try_crash_of(&mut self, fork: &SimDisk, promised: &[usize]) {
        let crash = self
            .dice
            .pick(&[Crash::PowerCut, Crash::PowerCut, Crash::Kill]);
        fork.crash(crash);
        self.coverage.trial_crashes += 1;
        let mut dice = Dice::stream(self.dice.below_u64(u64::MAX), 4);
        if dice.one_in(2) {
            fork.die_within(30);
            let _ = try_recover(fork, self.shards, &mut dice);
            if fork.is_dead() {
                self.coverage.trial_crashes_twice += 1;
                fork.crash(dice.pick(&[Crash::PowerCut, Crash::Kill]));
            } else {
                fork.crash(Crash::Kill);
            }
        }
        let shards = 1 + u32::try_from(dice.below(3)).expect("the number is small");
        match try_recover(fork, shards, &mut dice) {
            Ok((dealt, found)) => {
                let counts = self.compare(&dealt, promised);
                self.check_found(&found, &counts);
            }
            Err(error) => panic!("after a simulated {crash:?}: {error}"),
        }
    }

    /// Flips bits on copies of the disk and checks that each flip is detected or makes no
    /// difference.
    pub fn try_flips(&mut self) {
        let mut dice = Dice::stream(self.dice.below_u64(u64::MAX), 5);
        let dirty = self.disk.fork();
        dirty.write_back();
        let clean = dirty.fork();
        let shards = self.shards;
        let Ok((expected, _)) = try_recover(&clean, shards, &mut dice) else {
            return;
        };
        clean.crash(Crash::Kill);
        let expected = states(&expected);
        self.try_emptied(&clean, &mut dice);
        for _ in 0..6 {
            // Sometimes the bit is flipped after a recovery, when all segments are closed.
            let is_closed = dice.one_in(2);
            let fork = if is_closed {
                clean.fork()
            } else {
                dirty.fork()
            };
            let files = fork.files(DATA.as_ref());
            let files: Vec<_> = files
                .iter()
                .filter(|(path, bytes)| !path.ends_with("LOCK") && !bytes.is_empty())
                .collect();
            if files.is_empty() {
                return;
            }
            let (path, bytes) = files[dice.below(files.len())];
            let at = dice.below(bytes.len());
            let bit = u32::try_from(dice.below(8)).expect("a bit");
            fork.flip(path, at, bit);
            let is_provable = crate::detection::is_provable(path, bytes, (at, bit), &files);
            if is_closed && dice.one_in(2) {
                self.compact_flipped(&fork);
            }
            match try_recover(&fork, shards, &mut dice) {
                Err(_) => self.coverage.flips_found += 1,
                Ok((dealt, found)) => {
                    let is_same = states(&dealt) == expected;
                    assert!(
                        is_same || !is_provable,
                        "altered byte {at} of {} was not detected",
                        path.display()
                    );
                    self.coverage.flips_harmless += 1;
                    // Damage that looks like a torn tail is cut off and never served.
                    self.check_ops(&found);
                }
            }
        }
    }

    /// Empties the folder of a shard on a copy of the disk and checks that this is detected. The
    /// shard is known to have begun.
    fn try_emptied(&mut self, clean: &SimDisk, dice: &mut Dice) {
        let Ok(directory) = DataDirectory::open_existing(clean.fork(), PathBuf::from(DATA)) else {
            return;
        };
        let shards_begun = directory.identity().shards_begun;
        drop(directory);
        if shards_begun == 0 {
            return;
        }
        let shard = u32::try_from(dice.below(shards_begun as usize)).expect("the number is small");
        let fork = clean.fork();
        let folder = PathBuf::from(DATA).join(shard_folder(shard));
        for (path, _) in fork.files(&folder) {
            fork.take_name(&path);
        }
        let is_found = try_recover(&fork, self.shards, dice).is_err();
        assert!(
            is_found,
            "the emptied folder of shard {shard} was not detected"
        );
        self.coverage.emptied_found += 1;
    }

    /// Runs a compaction over altered bytes, which must not give them a valid checksum; the
    /// subsequent recovery checks that.
    fn compact_flipped(&mut self, fork: &SimDisk) {
        let Ok(directory) = DataDirectory::open_on(fork.clone(), PathBuf::from(DATA), [7; 16])
        else {
            return;
        };
        let settings =
            Settings::routine(self.plan.segment_bytes_min, self.plan.segment_bytes_max).thorough();
        let compact = || -> Result<(), CompactionError> {
            let mut compaction = Compaction::plan(std::sync::Arc::new(directory), &[], settings)?;
            while compaction.step(&mut |_| std::ops::ControlFlow::Continue(()))? {}
            Ok(())
        };
        self.coverage.flips_met_by_compaction += u64::from(compact().is_err());
        fork.crash(Crash::Kill);
    }

    /// Checks that a second server on the same data does not start.
    pub fn try_second_server(&mut self) {
        if self.disk.is_unusable() {
            return;
        }
        self.set_trial(true);
        // People tend to delete LOCK when a server does not start.
        let lock = self
            .dice
            .one_in(2)
            .then(|| self.disk.take_name(&Path::new(DATA).join("LOCK")));
        let second = DataDirectory::open_on(self.disk.clone(), PathBuf::from(DATA), [8; 16]);
        let server = self.server.as_ref().expect("the server is running");
        let is_noticed = server
            .directory
            .is_lock_in_place()
            .is_ok_and(|is_there| !is_there);
        assert_eq!(
            is_noticed,
            lock.is_some(),
            "the first server did not notice"
        );
        if let Some(lock) = lock {
            self.disk.put_name(&Path::new(DATA).join("LOCK"), lock);
            self.coverage.locks_deleted += 1;
        }
        self.set_trial(false);
        match second {
            Err(DirectoryError::InUse { .. }) => self.coverage.locks_refused += 1,
            other => panic!("a second server opened the directory: {other:?}"),
        }
    }

    /// Turns faults off while the disk is only being examined, and on again afterwards.
    fn set_trial(&self, is_trial: bool) {
        if is_trial {
            let mut state = self.disk.state();
            state.rates = crate::disk::Rates::default();
            state.dies_at = None;
        } else {
            self.set_rates();
        }
    }

    // ---- quiet ----

    /// Checks that clients and server agree once everything has settled.
    pub fn check_quiet(&mut self) {
        self.coverage.settled += 1;
        for place in self.live.clone() {
            self.read(place);
            self.check_client(place);
        }
        let server = self.server.as_ref().expect("the server is running");
        for (shard, seat) in server.seats.iter().enumerate() {
            assert!(seat.is_serving, "shard {shard} serves again");
            let places = self.places_of(shard).into_iter();
            let live_bytes: u64 = places
                .map(|place| self.models[place].bytes(WORKSPACES[place].len()))
                .sum();
            // Each shard has the record of its generation.
            let live_bytes = live_bytes + 29 + 12 + 1;
            assert_eq!(
                seat.shard.live_bytes(),
                live_bytes,
                "the live bytes of shard {shard}"
            );
        }
        for model in &self.models {
            let kept = match self.plan.durability {
                Durability::None => model.written,
                _ => model.synced,
            };
            assert_eq!(kept, model.wins.len(), "a settled log has unwritten ops");
        }
        self.check_size();
        self.check_room();
        self.check_peers();
    }

    /// Checks that compaction has freed space on a small disk and that ops are accepted again.
    fn check_room(&self) {
        let server = self.server.as_ref().expect("the server is running");
        if server.schedule.is_over() || !self.plan.may(crate::plan::faults::COMPACTION) {
            return;
        }
        assert!(!server.room.is_short(), "the disk stays full of dead ops");
        for seat in &server.seats {
            assert_eq!(
                seat.shard.counters().disk_is_full,
                0,
                "ops are still refused"
            );
        }
    }

    fn check_client(&mut self, place: usize) {
        let client = &mut self.clients[place];
        // A late scheduler counts as an absence of the shard, too.
        let seats = self.server.iter().flat_map(|server| &server.seats);
        let absent_us: u64 = seats.map(|seat| seat.shard.counters().absent_us).sum();
        let waited_us = (self.clock.now_us - client.came_us).saturating_sub(absent_us);
        let is_answered = client.sent_bytes > 0;
        assert!(
            is_answered || waited_us < HEAD_TIMEOUT_US + SECOND_US,
            "client {place} is still waiting for an answer"
        );
        let model = &self.models[client.workspace];
        let is_served = client.init.is_some()
            && !client.is_broken
            && client.code.is_none()
            && !client.is_leaving;
        if !is_served || client.reading == Reading::HalfOpen {
            return;
        }
        assert!(
            client.told.is_empty(),
            "client {place} has not read everything: {:?}",
            client.told
        );
        if client.is_v2 {
            assert_eq!(client.refusals, client.refusals_due, "client {place}");
            assert_eq!(client.pongs, client.pongs_due, "client {place}");
            return self.check_replica(place);
        }
        let all = client.sent.len();
        client.judge_until(all, model);
        let refused = &client.refused;
        client
            .unexplained
            .retain(|write| !refused.contains(&write.value));
        assert!(
            client.unexplained.is_empty(),
            "client {place}: neither won, nor lost, nor refused: {:?}",
            client.unexplained
        );
        client.check_left_out(model);
        assert_eq!(
            client.refusals, client.refusals_due,
            "client {place} received no error for some invalid message"
        );
        assert_eq!(
            client.pongs, client.pongs_due,
            "client {place} is missing pongs"
        );
        let state = model.live(model.wins.len());
        let held = client.held.iter();
        let held: BTreeMap<&str, &str> = held
            .filter(|(key, held)| Write::delete((*key).clone(), held.1).value != held.0)
            .map(|(key, held)| (key.as_str(), held.0.as_str()))
            .collect();
        assert_eq!(
            held, state,
            "client {place} does not end up with the server's state"
        );
        let can_fall_behind =
            self.plan.outbox_bytes_max < 1 << 20 || self.plan.value_bytes > 100_000;
        assert!(
            can_fall_behind || !client.was_conflated,
            "client {place} was never far behind"
        );
    }

    /// Checks that clients that vanished without a close are released in time.
    pub fn check_vanished(&mut self) {
        let silence_us = self.plan.ping_interval_us * 5 / 2;
        self.settle_for(silence_us.max(STALL_TIMEOUT_US) + STALL_LINGER_US + 2 * SECOND_US);
        let is_vanished = |place: &&usize| self.clients[**place].reading == Reading::HalfOpen;
        let vanished = self.live.iter().find(is_vanished);
        assert_eq!(vanished, None, "a vanished client is still connected");
    }

    /// Checks that no log ever exceeds its bound. A log whose data has just died may be longer for
    /// a while.
    pub fn check_growth(&mut self) {
        let may_compact = self.plan.may(crate::plan::faults::COMPACTION);
        let Some(server) = self.server.as_mut().filter(|server| server.is_serving()) else {
            return;
        };
        let is_bounded = may_compact && server.schedule.is_working();
        let record_bytes = self.plan.value_bytes as u64 + 100;
        let filled_bytes = self.plan.fill_bytes.unwrap_or(0);
        for (number, seat) in (0..).zip(&mut server.seats) {
            let bytes = log_bytes(&self.disk, number);
            let live_bytes = seat.shard.live_bytes();
            let segment_bytes =
                (live_bytes / 8).clamp(self.plan.segment_bytes_min, self.plan.segment_bytes_max);
            // The open segment may exceed its target length, and ops may already have been in
            // flight.
            let more_bytes = 2 * segment_bytes + 2 * filled_bytes + 35 * record_bytes;
            let bound = seat.shard.counters().log_bytes_max + more_bytes;
            let ceiling = *seat.log_ceiling.get_or_insert(bytes + more_bytes);
            assert!(
                !is_bounded || bytes <= bound.max(ceiling),
                "the log of shard {number} has {bytes} bytes of at most {bound}; {live_bytes} are live"
            );
            if bytes <= bound || !is_bounded {
                seat.log_ceiling = Some(bytes + more_bytes);
            }
        }
    }

    /// Checks that the log is not longer than its live data allows.
    fn check_size(&self) {
        let server = self.server.as_ref().expect("the server is running");
        if server.schedule.is_over() || !self.plan.may(crate::plan::faults::COMPACTION) {
            return;
        }
        let live_bytes: u64 = server
            .seats
            .iter()
            .map(|seat| seat.shard.live_bytes())
            .sum();
        let log_bytes = all_bytes(&self.disk);
        // Each folder has an open segment, which may hold as much again, and pieces that are too
        // small to be worth compacting.
        let segment_bytes =
            (live_bytes / 8).clamp(self.plan.segment_bytes_min, self.plan.segment_bytes_max);
        let record_bytes = self.plan.value_bytes as u64 + 100;
        let filled_bytes = self.plan.fill_bytes.unwrap_or(0);
        let floor_bytes = 3
            * ((1 + self.plan.segments_spared) * self.plan.segment_bytes_min
                + segment_bytes
                + filled_bytes
                + 35 * record_bytes);
        let bound = live_bytes * 5 / 2 + floor_bytes;
        assert!(
            log_bytes <= bound,
            "the log has {log_bytes} bytes, of which {live_bytes} are live"
        );
    }
}

/// Reads a log from its beginning, as a start does.
fn try_recover(
    disk: &SimDisk,
    shards: u32,
    dice: &mut Dice,
) -> Result<(Vec<Vec<Workspace>>, Found), String> {
    let opened = DataDirectory::open_on(disk.clone(), PathBuf::from(DATA), [9; 16]);
    let directory = opened.map_err(|error| error.to_string())?;
    let mut found = Found::default();
    let read = server::recover(&directory, shards, dice, None, |op| found.visit(op));
    let (_, dealt, _) = read.map_err(|error: RecoveryError| error.to_string())?;
    Ok((dealt, found))
}

fn states(dealt: &[Vec<Workspace>]) -> Vec<(String, Recovered)> {
    let mut states: Vec<_> = dealt
        .iter()
        .flatten()
        .map(|workspace| (workspace.id().to_owned(), recovered(workspace)))
        .collect();
    states.sort();
    states
}
