//! The disk operations of the shards' logs.

use std::io;

use etherply::core::shard::contract::{Input, Output, RestoredState};
use etherply::core::state::placement::shard_of;
use etherply::core::state::replay::Replay;
use etherply::core::testing::{Dice, HASH_SEED};
use etherply::generation::Generation;
use etherply::log::blocks::BlockWrite;
use etherply::log::commit::{Durability, LogStep};
use etherply::log::disk::DiskFile;
use etherply::log::log_files::{LogFiles, LogFilesError};
use etherply::log::record::LoggedOp;
use etherply::log::recovery::RecoveryError;

use crate::disk::SimDisk;
use crate::journal::Journal;
use crate::model::Model;
use crate::plan::{Plan, faults};
use crate::server::{Errand, LogOperation};
use crate::wire;
use crate::world::{Doing, World};

impl World {
    /// Advances one operation of a log: the disk performs it, or the shard learns its outcome.
    pub fn go_on_with_log(&mut self) {
        if self.presence.has_hanging_disk() {
            return;
        }
        let shards = self.shards as usize;
        let first = self.dice.below(shards);
        for shard in (first..shards).chain(0..first) {
            match self.seat(shard).operation.take() {
                Some(LogOperation::Asked(output)) => {
                    let done = self.perform(shard, output);
                    self.seat(shard).operation = Some(LogOperation::Done(done));
                    if !self.is_calm && self.dice.one_in(2) {
                        return;
                    }
                    if self.disk.is_dead() {
                        return;
                    }
                    let Some(LogOperation::Done(input)) = self.seat(shard).operation.take() else {
                        unreachable!("the operation was just stored");
                    };
                    return self.tell(shard, input);
                }
                Some(LogOperation::Done(input)) => return self.tell(shard, input),
                None => {}
            }
        }
    }

    fn perform(&mut self, shard: usize, output: Output) -> Input<'static> {
        self.doing = Doing::Commit;
        let seat = self.seat(shard);
        let log = seat.log.as_mut().expect("the log is open");
        match output {
            Output::Log(LogStep::Write {
                offset,
                bytes,
                from,
            }) => {
                let writes_through = log.open_segment().writes_through;
                let (bytes, count) = write(log, bytes, from, offset);
                let is_kept = log.check_linked().is_ok() && log.check_place().is_ok();
                let count = count.filter(|_| is_kept);
                let is_whole = count == Some(bytes.len() - from);
                let handed = seat.handed.clone();
                if is_whole && !self.disk.is_dead() {
                    self.coverage.writes_through += u64::from(writes_through);
                    for (workspace, count) in handed {
                        let model = &mut self.models[workspace];
                        model.written = model.written.max(count);
                        if writes_through {
                            model.synced = model.synced.max(count);
                        }
                    }
                }
                Input::LogWritten(bytes, count.ok_or_else(wire::failure))
            }
            Output::Log(LogStep::Sync) => {
                let ok = log.file().sync().is_ok() && log.check_linked().is_ok();
                let handed = seat.handed.clone();
                seat.is_sync_lost |= !ok;
                if ok && !self.disk.is_dead() {
                    for (workspace, count) in handed {
                        let model = &mut self.models[workspace];
                        model.synced = model.synced.max(count.min(model.written));
                    }
                }
                Input::LogSynced(if ok { Ok(()) } else { Err(wire::failure()) })
            }
            other => unreachable!("{other:?} is not a ring operation"),
        }
    }

    fn tell(&mut self, shard: usize, input: Input<'static>) {
        self.doing = Doing::Nothing;
        let clock = self.clock;
        let durability = self.plan.durability;
        let seat = self.seat(shard);
        let is_failure = matches!(
            &input,
            Input::LogWritten(_, Err(_)) | Input::LogSynced(Err(_))
        );
        // Completions after a failure are ignored.
        let is_late = seat.may_fail;
        seat.may_fail |= is_failure;
        let log = seat.log.as_ref().expect("the log is open");
        let writes_through = log.open_segment().writes_through;
        // A short write is continued. The sync of an `always` log is still to come, unless writes
        // bypass the cache.
        let is_end = match &input {
            Input::LogWritten(..) => {
                (durability != Durability::Always || writes_through) && !is_failure
            }
            Input::LogSynced(outcome) => outcome.is_ok(),
            _ => false,
        };
        let is_sync = writes_through || matches!(input, Input::LogSynced(_));
        let mut handed = seat.handed.clone();
        seat.shard.handle(input, clock);
        seat.is_woken = true;
        self.note_panic(shard);
        if is_end && !is_late {
            for (workspace, count) in &handed {
                let model = &mut self.models[*workspace];
                let count = (*count).min(model.written);
                model.confirmed = model.confirmed.max(count);
                if is_sync {
                    model.covered = model.covered.max(count);
                }
            }
            handed.retain(|(workspace, count)| *count > self.models[*workspace].synced);
            self.seat(shard).handed = handed;
        }
    }

    // ---- slow work ----

    pub fn run_errand(&mut self, shard: usize) {
        let Some(errand) = self.seat(shard).errand.take() else {
            return;
        };
        match errand {
            Errand::Create(creation) => {
                self.doing = Doing::Rotation;
                let outcome = creation.and_then(|creation| creation.run(0));
                if self.disk.is_dead() {
                    return;
                }
                check_log_files(outcome.as_ref().err());
                let clock = self.clock;
                let seat = self.seat(shard);
                let segment = outcome
                    .map(|segment| seat.log.as_mut().expect("open").replace(segment))
                    .map_err(io::Error::other);
                seat.may_fail |= segment.is_err();
                self.coverage.rotations += u64::from(segment.is_ok());
                let seat = self.seat(shard);
                seat.shard.handle(Input::LogOpened(segment), clock);
                seat.is_woken = true;
            }
            Errand::Rebuild(rebuild) => {
                self.doing = Doing::Rebuild;
                if !self.is_calm
                    && self.dice.one_in(12)
                    && self.plan.may(faults::POWER | faults::KILL)
                {
                    self.disk.die_within(20);
                }
                let log = self.seat(shard).log.as_ref().expect("open");
                let syncs = log.file().syncs();
                let is_tried = rebuild.is_ok();
                if is_tried {
                    self.give_up_the_rest(shard);
                    self.disk.state().next_sync_fails |= self.fails_deciding_sync();
                }
                let mut deal = Replay::new(HASH_SEED);
                let shards = self.shards;
                let visit = |op: &LoggedOp<'_>| {
                    if shard_of(op.workspace, shards) as usize == shard {
                        deal.visit(op);
                    }
                };
                let outcome = rebuild.and_then(|rebuild| rebuild.run(visit));
                self.disk.state().next_sync_fails = false;
                if is_tried {
                    self.note_end(shard, syncs);
                }
                if self.disk.is_dead() {
                    return;
                }
                check_log_files(outcome.as_ref().err());
                deal.finish_restore();
                let workspaces = deal.finish(shards).swap_remove(shard);
                let clock = self.clock;
                if outcome.is_ok() {
                    self.accept_rebuilt(shard, &workspaces);
                    self.coverage.rebuilds += 1;
                }
                let generation = Generation::new(self.dice.below_u64(u64::MAX));
                let seat = self.seat(shard);
                let log = seat.log.as_mut().expect("open");
                let state = outcome
                    .map(|segment| RestoredState {
                        segment: log.replace(segment),
                        workspaces,
                        generation,
                        logged: None,
                    })
                    .map_err(io::Error::other);
                seat.is_sync_lost &= state.is_err();
                seat.is_end_known &= state.is_err();
                seat.shard.handle(Input::Rebuilt(state), clock);
                seat.is_woken = true;
            }
        }
        self.doing = Doing::Nothing;
        self.server
            .as_mut()
            .expect("the server is running")
            .tell_rotation(shard);
        self.look_at_log();
    }
}

impl World {
    /// Returns whether the next sync of a rebuild fails. In modes that show ops before they are on
    /// disk, this sync decides which ops are kept; at the general failure rate it would hardly ever
    /// fail.
    fn fails_deciding_sync(&self) -> bool {
        let may_fail = !self.is_calm && self.plan.may(faults::ERRORS);
        let is_shown_early = self.plan.durability != Durability::Always;
        // A separate stream of dice keeps all other runs unchanged.
        let mut dice = Dice::stream(self.plan.seed ^ self.clock.now_us, 14);
        may_fail && is_shown_early && dice.one_in(3)
    }
}

/// Writes to the log as the worker does: whole blocks if writes bypass the cache.
fn write(
    log: &mut LogFiles<SimDisk>,
    bytes: Vec<u8>,
    from: usize,
    offset: u64,
) -> (Vec<u8>, Option<usize>) {
    let Some(writer) = log.blocks() else {
        let outcome = log.file().write_at(&bytes[from..], offset);
        return (bytes, outcome.ok());
    };
    let BlockWrite { offset, blocks } = writer.begin(bytes, from, offset);
    let outcome = log.file().write_at(&blocks, offset);
    let writer = log.blocks().expect("the segment has not been replaced");
    let (bytes, outcome) = writer.finish(blocks, outcome);
    (bytes, outcome.ok())
}

/// Checks that an error does not report damage, since no bit was flipped.
fn check_log_files(error: Option<&LogFilesError>) {
    let is_damage = matches!(
        error,
        Some(
            LogFilesError::Deleted { .. }
                | LogFilesError::Unlocked { .. }
                | LogFilesError::Recovery(
                    RecoveryError::Damaged { .. } | RecoveryError::Newer { .. }
                )
        )
    );
    assert!(!is_damage, "{error:?}");
}

/// The outcome of the sync that decides how much of a failed segment is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SyncEnd {
    Succeeds,
    Fails,
    /// The process dies during the sync, and then the power fails.
    Dies,
}

impl World {
    /// Runs a plan until a shard waits for a rebuild that must sync the ops shown in a workspace.
    fn until_rebuild(plan: Plan) -> Option<(Self, usize, usize)> {
        let mut world = Self::new(plan, Journal::default());
        for _ in 0..plan.steps {
            world.step();
            world.end_drained();
            let shards = world.server.as_ref().map_or(0, |server| server.seats.len());
            for shard in 0..shards {
                let seat = world.seat(shard);
                let is_asked = matches!(seat.errand, Some(Errand::Rebuild(Ok(_))));
                if !is_asked || seat.is_end_known || seat.is_sync_lost {
                    continue;
                }
                let place = world.places_of(shard).into_iter().find(|place| {
                    let model = &world.models[*place];
                    model.confirmed > model.covered
                });
                if let Some(place) = place {
                    return Some((world, shard, place));
                }
            }
        }
        None
    }

    /// Runs the rebuild with `end` as the outcome of its first sync. Returns whether that sync made
    /// the shown ops durable.
    fn rebuild_with(&mut self, shard: usize, end: SyncEnd) -> bool {
        self.is_calm = true;
        self.set_rates();
        self.disk.set_full(false);
        {
            let mut state = self.disk.state();
            state.dies_at = (end == SyncEnd::Dies).then_some(state.operations + 1);
            state.next_sync_fails = end == SyncEnd::Fails;
        }
        let inode = self.seat(shard).log.as_ref().expect("open").file().inode();
        let succeeded = |disk: &SimDisk| disk.state().inodes[&inode].syncs.succeeded;
        let before = succeeded(&self.disk);
        self.run_errand(shard);
        assert_eq!(self.disk.is_dead(), end == SyncEnd::Dies);
        succeeded(&self.disk) > before
    }
}

#[test]
fn a_rebuild_keeps_everything_that_its_sync_has_written() {
    crate::turns::count_panics();
    let mut met = 0;
    for seed in 0..2000 {
        let plan = Plan {
            faults: faults::ALL & !(faults::KILL | faults::TRIALS | faults::COPIES),
            ..Plan::new(seed)
        };
        if plan.durability == Durability::Always || plan.error_one_in == 0 || seed % 12 < 4 {
            continue;
        }
        for end in [SyncEnd::Succeeds, SyncEnd::Fails, SyncEnd::Dies] {
            let Some((mut world, shard, place)) = World::until_rebuild(plan) else {
                break;
            };
            met += 1;
            let Model {
                confirmed, covered, ..
            } = world.models[place];
            let is_synced = world.rebuild_with(shard, end);
            assert!(is_synced == (end == SyncEnd::Succeeds) || end == SyncEnd::Dies);
            let kept = if is_synced { confirmed } else { covered };
            assert_eq!(world.models[place].synced, kept, "seed {seed}: {end:?}");
            // The next start, or the next attempt, compares the disk with the promises.
            world.bury();
            world.set_rates();
            world.settle();
        }
        if met >= 30 {
            return;
        }
    }
    panic!("only {met} rebuilds had to sync delivered ops");
}
