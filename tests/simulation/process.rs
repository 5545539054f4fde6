//! The life of a process: its start, the work done alongside its shards, and its end.

use std::ops::ControlFlow;

use etherply::core::shard::contract::{Input, RestoredState};
use etherply::core::shard::log_space::LogSize;
use etherply::generation::Generation;
use etherply::log::chain::Chain;
use etherply::log::compaction::{Compaction, CompactionError, Settings};
use etherply::log::directory::DirectoryError;
use etherply::log::disk::Disk;
use etherply::log::log_files::LogFiles;
use etherply::log::recovery::RecoveryError;
use etherply::log::segment;

use crate::checks::Found;
use crate::client::Home;
use crate::crash::Crash;
use crate::disk::SimDisk;
use crate::plan::{Planted, faults};
use crate::server::{self, Recovered, Server, Stage, rubbish};
use crate::wire::BATCH_HEADER_BYTES;
use crate::world::{Doing, World};

impl World {
    // ---- the start ----

    /// Starts a process with one to three shards.
    pub fn boot(&mut self) {
        let shards = 1 + u32::try_from(self.dice.below(3)).expect("the number is small");
        self.coverage.reshards += u64::from(shards != self.shards && self.coverage.starts > 0);
        self.shards = shards;
        // The first start, which creates the data directory, takes fewer disk operations than the
        // others.
        let is_first = self.coverage.starts == 0;
        if !self.is_calm && self.dice.one_in(5) && self.plan.may(faults::POWER | faults::KILL) {
            self.disk.die_within(if is_first { 12 } else { 40 });
        }
        self.doing = Doing::Creation;
        self.presence.begin();
        self.journal
            .note(|| format!("a process starts with {shards} shards"));
        let epoch = self.dice.below_u64(u64::MAX);
        let is_one = self.plan.planted == Some(Planted::OneGeneration);
        let generation = Generation::new(if is_one { 1 } else { epoch });
        match Server::open(&self.disk, &self.plan, shards, self.clock, epoch) {
            Ok(mut server) => {
                server.generation = generation;
                self.server = Some(server);
                self.coverage.starts += 1;
            }
            Err(_) if self.disk.is_dead() => {}
            Err(error) => {
                let is_disk = matches!(
                    error,
                    DirectoryError::Io { .. }
                        | DirectoryError::CannotCreate { .. }
                        | DirectoryError::NotWritable { .. }
                );
                assert!(is_disk, "no bits were flipped: {error}");
                self.end_process(&format!("it cannot start: {error}"));
            }
        }
        self.bury();
    }

    /// Reads the log, or opens it for the next shard.
    fn start_on(&mut self) {
        let server = self.server.as_mut().expect("the server is running");
        match &mut server.stage {
            Stage::Opened => self.read_log(),
            Stage::Read(read) => {
                let Recovered {
                    report,
                    dealt,
                    logged,
                } = &mut **read;
                let waiting = dealt.iter().position(Option::is_some);
                let Some(shard) = waiting else {
                    server.stage = Stage::Serving;
                    return self.look_at_log();
                };
                self.doing = Doing::Rotation;
                let workspaces = dealt[shard].take().expect("the shard is waiting");
                let number = u32::try_from(shard).expect("the number is small");
                let fill_bytes = self.plan.fill_bytes;
                let opened = LogFiles::open(server.directory.clone(), number, report, fill_bytes);
                if self.disk.is_dead() {
                    return;
                }
                let log = match opened {
                    Ok(log) => log,
                    Err(error) => {
                        // Releasing the reserve may leave enough space for the next start.
                        let is_full = error.kind() == std::io::ErrorKind::StorageFull;
                        if is_full {
                            server.reserve.give_up();
                        }
                        return self.end_process("a segment cannot be created");
                    }
                };
                if dealt.iter().all(Option::is_none) {
                    let noted = server.directory.note_shards(self.shards);
                    if self.disk.is_dead() {
                        return;
                    }
                    if noted.is_err() {
                        return self.end_process("the number of its shards cannot be recorded");
                    }
                }
                let generation = server.generation;
                let logged = Some(logged[shard]);
                let seat = &mut server.seats[shard];
                let segment = seat.log.insert(log).open_segment();
                let space = self.disk.space(server::DATA.as_ref());
                server.room.looked(space.ok(), false, &[]);
                let room_end = server.room.end(segment.first_position);
                let size = LogSize::unmeasured(room_end);
                seat.shard.handle(Input::LogSize(size), self.clock);
                let state = RestoredState {
                    segment,
                    workspaces,
                    generation,
                    logged,
                };
                seat.shard.handle(Input::Rebuilt(Ok(state)), self.clock);
                (seat.is_serving, seat.is_woken) = (true, true);
                server.tell_rotation(shard);
            }
            Stage::Serving => {}
        }
        if !self.disk.is_dead() {
            self.doing = Doing::Nothing;
        }
    }

    fn read_log(&mut self) {
        self.doing = Doing::Recovery;
        let server = self.server.as_ref().expect("the server is running");
        let directory = server.directory.clone();
        let mut found = Found::default();
        let planted = self.plan.planted;
        let read = server::recover(&directory, self.shards, &mut self.dice, planted, |op| {
            found.visit(op);
        });
        if self.disk.is_dead() {
            return;
        }
        match read {
            Ok((report, dealt, logged)) => {
                assert_eq!(
                    rubbish(&self.disk),
                    Vec::<std::path::PathBuf>::new(),
                    "the recovery left temporary files"
                );
                self.coverage.torn_tails += report.torn.len() as u64;
                self.check_replaced();
                assert!(
                    !self.is_sealed || report.torn.is_empty(),
                    "a sealed log has a torn tail"
                );
                self.accept_recovered(&dealt, &found);
                self.is_sealed = false;
                let dealt = dealt.into_iter().map(Some).collect();
                self.server.as_mut().expect("it runs").stage = Stage::Read(Box::new(Recovered {
                    report,
                    dealt,
                    logged,
                }));
            }
            Err(error @ (RecoveryError::Damaged { .. } | RecoveryError::Newer { .. })) => {
                panic!("no bits were flipped: {error}");
            }
            Err(RecoveryError::Io { .. }) => self.end_process("the log cannot be read"),
        }
    }

    /// Checks that a start has removed the files that a compaction replaced.
    fn check_replaced(&self) {
        let directory = &self
            .server
            .as_ref()
            .expect("the server is running")
            .directory;
        let fork = self.disk.fork();
        for shard in directory.shards().unwrap_or_default() {
            let chain = Chain::read(&fork, directory.path(), directory.epoch(), shard);
            let replaced = chain.expect("the log was just read").replaced;
            assert!(
                replaced.is_empty(),
                "a start left replaced segments: {replaced:?}"
            );
        }
    }

    // ---- alongside the shards ----

    /// Advances the work of the other threads: the start, messages between shards, slow work on the
    /// log.
    pub fn go_on(&mut self) {
        let server = self.server.as_mut().expect("the server is running");
        if !server.is_serving() {
            // Clients are handed over even while the log is being read.
            if !server.letters.is_empty() && self.dice.one_in(2) {
                return self.deliver_message();
            }
            return self.start_on();
        }
        let shards = self.shards as usize;
        let first = self.dice.below(shards);
        let errand = (first..shards)
            .chain(0..first)
            .find(|shard| self.seat(*shard).errand.is_some());
        if let Some(shard) = errand {
            return self.run_errand(shard);
        }
        self.deliver_message();
    }

    fn deliver_message(&mut self) {
        let clock = self.clock;
        let server = self.server.as_mut().expect("the server is running");
        let Some((owner, place, handoff)) = server.letters.pop_front() else {
            return;
        };
        let seat = &mut server.seats[owner];
        if seat.is_drained {
            // Its thread has ended, and the message with the connection is dropped.
            self.clients[place].home = Home::Gone;
            self.live.retain(|live| *live != place);
            return;
        }
        let id = seat.shard.adopt(handoff, clock);
        seat.is_woken = true;
        let is_taken = seat.clients.keys().any(|other| other.slot == id.slot);
        assert!(!is_taken, "the slot is still in use");
        seat.clients.insert(id, place);
        self.clients[place].home = Home::At(owner, id);
        self.note_panic(owner);
    }

    /// Advances the compaction by a step, or begins one if it is worthwhile.
    pub fn compact(&mut self) {
        if !self.plan.may(faults::COMPACTION) {
            return;
        }
        self.doing = Doing::Compaction;
        let server = self.server.as_mut().expect("the server is running");
        let compaction = server.compaction.take().or_else(|| self.plan_compaction());
        let Some(mut compaction) = compaction else {
            self.doing = Doing::Nothing;
            return;
        };
        let stepped = compaction.step(&mut |_| self.meanwhile());
        if self.disk.is_dead() {
            self.doing = Doing::Compaction;
            return;
        }
        self.doing = Doing::Nothing;
        self.end_step(compaction, stepped);
    }

    fn end_step(
        &mut self,
        compaction: Compaction<SimDisk>,
        stepped: Result<bool, CompactionError>,
    ) {
        let clock = self.clock;
        let server = self.server.as_mut().expect("the server is running");
        let outcome = compaction.outcome();
        match stepped {
            Ok(true) => server.compaction = Some(compaction),
            Ok(false) => {
                self.coverage.compactions += 1;
                self.coverage.segments_replaced += outcome.segments_replaced;
                match server.compacting.take() {
                    None => {
                        self.coverage.segments_swept += outcome.segments_replaced;
                        server.is_swept = true;
                        if server.due(clock).is_empty() {
                            server.schedule.succeeded();
                        }
                    }
                    Some(begun) => {
                        for folder in begun {
                            let kept_bytes = compaction.kept_bytes(folder.shard);
                            let freed_bytes = compaction.freed_bytes(folder.shard);
                            let left_bytes = folder.closed_bytes.saturating_sub(freed_bytes);
                            let blocked_bytes = compaction.blocked_bytes(folder.shard);
                            server.schedule.compacted(
                                &folder,
                                kept_bytes,
                                blocked_bytes,
                                left_bytes,
                            );
                        }
                        server.schedule.succeeded();
                    }
                }
            }
            // In a real server only the end of the process stops a compaction; here the process
            // continues and begins another one.
            Err(CompactionError::Stopped) => self.coverage.compactions_stopped += 1,
            Err(CompactionError::Folder { .. }) => server.schedule.give_up(),
            Err(error) if error.is_for_room() && server.reserve.give_up() => {
                server.schedule.ran_out_of_room();
                self.coverage.reserves_used += 1;
            }
            Err(
                error @ (CompactionError::Write { .. }
                | CompactionError::Recovery(RecoveryError::Io { .. })),
            ) => {
                if error.is_for_room() {
                    server.schedule.ran_out_of_room();
                }
                server.look(&self.disk, clock);
                let free_bytes = server.room.free_bytes().filter(|_| error.is_for_room());
                let cause = error.to_string();
                server.schedule.failed(cause, free_bytes, clock.now_us);
            }
            Err(error @ CompactionError::Recovery(_)) => panic!("no bits were flipped: {error}"),
        }
        self.look_at_log();
    }

    /// Measures the log and reports its size to the shards.
    pub fn look_at_log(&mut self) {
        let (disk, clock) = (&self.disk, self.clock);
        if let Some(server) = self.server.as_mut().filter(|server| server.is_serving()) {
            server.look(disk, clock);
            self.coverage.short_of_room += u64::from(server.room.is_short());
        }
    }

    fn plan_compaction(&mut self) -> Option<Compaction<SimDisk>> {
        if !self.may_compact() {
            return None;
        }
        let clock = self.clock;
        let server = self.server.as_mut().expect("the server is running");
        let open = server.open_segments()?;
        let due = server.due(clock);
        self.is_compacted = true;
        let settings = Settings::routine(self.plan.segment_bytes_min, self.plan.segment_bytes_max);
        let directory = server.directory.clone();
        let planned = if std::mem::take(&mut server.is_swept) {
            let all = server.folders.iter();
            let begun = all.filter(|folder| due.contains(&folder.shard)).copied();
            server.compacting = Some(begun.collect());
            let planned = Compaction::plan(directory, &open, settings);
            planned.map(|planned| {
                let planned = planned.only(&due);
                if server.room.is_short() || server.schedule.lacks_room() {
                    self.coverage.small_steps += 1;
                    planned.in_small_steps()
                } else {
                    planned
                }
            })
        } else {
            let seats = &server.seats;
            server.compacting = None;
            Compaction::sweep(directory, &open, settings, |shard, segments| {
                let seat = seats.get(shard as usize);
                seat.is_some_and(|seat| seat.shard.dead_segments().has(segments))
            })
        };
        match planned {
            Ok(planned) => Some(planned),
            Err(error) => {
                if !self.disk.is_dead() {
                    let cause = error.to_string();
                    server.schedule.failed(cause, None, clock.now_us);
                }
                None
            }
        }
    }

    /// Returns whether a compaction would begin now.
    pub fn may_compact(&self) -> bool {
        let server = self.server.as_ref().expect("the server is running");
        self.plan.may(faults::COMPACTION) && !server.due(self.clock).is_empty()
    }

    /// Lets the shards run while a compaction reads and writes.
    fn meanwhile(&mut self) -> ControlFlow<()> {
        for _ in 0..self.dice.below(3) {
            if self.disk.is_dead() {
                break;
            }
            match self.dice.below(3) {
                0 => self.go_on_with_log(),
                1 => self.go_on(),
                _ => self.deliver(),
            }
            let shard = self.dice.below(self.shards as usize);
            if !self.disk.is_dead() && self.server.is_some() {
                self.turn(shard);
            }
        }
        self.doing = Doing::Compaction;
        if !self.is_calm && self.dice.one_in(50) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Copies the data directory while the server runs, as a snapshot of the file system does.
    /// Clients may be shown more in the same generation before the copy is restored.
    pub fn copy_directory(&mut self) {
        let may_copy = self.plan.may(faults::COPIES) && !self.is_calm;
        if may_copy && self.dice.one_in(3) {
            self.journal
                .note(|| "the data directory is copied".to_owned());
            self.copy = Some((self.disk.fork(), self.models.clone()));
            self.coverage.copies_of_running += 1;
        }
    }

    // ---- the end ----

    /// Sometimes kills the process, now or at one of its next disk operations.
    pub fn come_to_harm(&mut self) {
        if self.is_calm
            || !self.plan.may(faults::POWER | faults::KILL)
            || !self.dice.one_in(self.plan.crash_one_in / 30)
        {
            return;
        }
        if self.dice.one_in(3) {
            self.disk.state().is_dead = true;
        } else {
            self.disk.die_within(12);
        }
    }

    /// Checks that a clean stop ended each log with an empty batch, which proves that everything
    /// before it is on disk.
    fn check_seals(&self) {
        let server = self.server.as_ref().expect("the server is running");
        let files = self.disk.files(server::DATA.as_ref());
        for (shard, seat) in (0..).zip(&server.seats) {
            let index = seat
                .log
                .as_ref()
                .expect("the log is open")
                .open_segment()
                .index;
            let path = server
                .directory
                .shard_path(shard)
                .join(segment::file_name(index));
            let (_, bytes) = files
                .iter()
                .find(|(known, _)| *known == path)
                .expect("the file exists");
            // A segment whose writes bypass the cache ends in zeros.
            let empty = b"\xFFEPB\0\0\0\0";
            let seal = bytes.windows(empty.len()).rposition(|part| part == empty);
            let is_last = |at: usize| {
                bytes[at + BATCH_HEADER_BYTES..]
                    .iter()
                    .all(|byte| *byte == 0)
            };
            assert!(
                seal.is_some_and(is_last),
                "{} is not sealed",
                path.display()
            );
        }
    }

    /// Cleans up after a process that has died.
    pub fn bury(&mut self) {
        if !self.disk.is_dead() {
            return;
        }
        let crash = match (self.plan.may(faults::POWER), self.plan.may(faults::KILL)) {
            (true, true) => self
                .dice
                .pick(&[Crash::PowerCut, Crash::PowerCut, Crash::Kill]),
            (true, false) => Crash::PowerCut,
            _ => Crash::Kill,
        };
        let doing = self.doing;
        self.journal.note(|| format!("{crash:?} while {doing:?}"));
        let seen = match doing {
            Doing::Nothing => None,
            Doing::Creation => Some(&mut self.coverage.crashes_in_creation),
            Doing::Recovery => Some(&mut self.coverage.crashes_in_recovery),
            Doing::Commit => Some(&mut self.coverage.crashes_in_commit),
            Doing::Rotation => Some(&mut self.coverage.crashes_in_rotation),
            Doing::Rebuild => Some(&mut self.coverage.crashes_in_rebuild),
            Doing::Compaction => Some(&mut self.coverage.crashes_in_compaction),
        };
        if let Some(seen) = seen {
            *seen += 1;
        }
        self.server = None;
        self.hang_up();
        self.crash(crash);
    }

    fn crash(&mut self, crash: Crash) {
        match crash {
            Crash::PowerCut => {
                self.coverage.power_cuts += 1;
                for model in &mut self.models {
                    model.written = model.synced;
                }
            }
            Crash::Kill => self.coverage.kills += 1,
        }
        self.doing = Doing::Nothing;
        self.disk.crash(crash);
    }

    /// Ends the process; the kernel keeps the data it was given.
    pub fn end_process(&mut self, why: &str) {
        self.journal.note(|| format!("the process ends: {why}"));
        self.server = None;
        self.hang_up();
        // If the file system is read-only, an operator restarts the machine.
        let is_read_only = self.disk.state().is_read_only;
        self.crash(if is_read_only {
            Crash::PowerCut
        } else {
            Crash::Kill
        });
    }

    /// Begins a clean stop, which closes all connections and seals the log.
    pub fn stop(&mut self) {
        let clock = self.clock;
        let Some(server) = self
            .server
            .as_mut()
            .filter(|server| server.is_serving() && !server.is_draining)
        else {
            return;
        };
        self.journal
            .note(|| "the process is asked to stop".to_owned());
        server.is_draining = true;
        for seat in &mut server.seats {
            seat.shard.handle(Input::Drain, clock);
            seat.is_woken = true;
        }
        for place in &self.live {
            self.clients[*place].met_pause |= self.clients[*place].status.is_none();
        }
    }

    /// Ends a run: turns faults off, compares everything, and stops and restarts the server.
    pub fn end(&mut self) {
        self.settle();
        self.check_quiet();
        // Fill the workspace, so that an op needs more sends than one turn allows.
        for _ in 0..10 {
            self.connect();
        }
        self.settle();
        self.write();
        for _ in 0..20 {
            self.presence_step();
        }
        self.settle();
        self.check_quiet();
        self.check_users();
        self.try_crash();
        if self.plan.seed.is_multiple_of(5) {
            self.check_vanished();
            self.check_quiet();
        }
        self.stop();
        for _ in 0..20_000 {
            if self.server.is_none() {
                break;
            }
            self.happen_well();
            self.pass(6000);
        }
        assert!(
            self.server.is_none() && self.is_sealed,
            "the stop does not end with a sealed log"
        );
        self.try_flips();
        self.settle();
        self.check_quiet();
        self.count_up();
    }

    fn count_up(&mut self) {
        let met = self.disk.state().met;
        let coverage = &mut self.coverage;
        coverage.write_errors = met.write_errors;
        coverage.sync_errors = met.sync_errors;
        coverage.open_errors = met.open_errors;
        coverage.rename_errors = met.rename_errors;
        coverage.folder_sync_errors = met.folder_sync_errors;
        coverage.full_disks = met.full;
        coverage.short_writes = met.short_writes;
        for client in &self.clients {
            coverage.conflations += u64::from(client.was_conflated);
            coverage.corrections += client.was_corrected;
        }
    }

    /// Ends a process whose shards have all drained.
    pub fn end_drained(&mut self) {
        self.bury();
        let Some(server) = self.server.as_ref() else {
            return;
        };
        if !server.seats.iter().all(|seat| seat.is_drained) {
            return;
        }
        let is_settled = server.seats.iter().all(|seat| seat.is_serving);
        for seat in &server.seats {
            // Clients that connected while the log was being sealed get no answer.
            let is_new = |place: &usize| {
                self.clients[*place].met_pause && self.clients[*place].init.is_none()
            };
            assert!(
                seat.clients.values().all(is_new),
                "a drained shard has members"
            );
        }
        self.coverage.drains += 1;
        self.is_sealed = is_settled;
        if is_settled {
            self.check_seals();
            for model in &self.models {
                assert_eq!(
                    model.synced,
                    model.wins.len(),
                    "a drained log is not on disk"
                );
            }
        }
        self.journal
            .note(|| format!("the process has stopped, its log sealed: {is_settled}"));
        self.server = None;
        self.hang_up();
        self.disk.crash(Crash::Kill);
    }
}
