//! The disk operations of the shards' logs.

use std::io;

use etherply::core::shard::contract::{Input, Output};
use etherply::core::state::placement::shard_of;
use etherply::core::state::replay::Replay;
use etherply::core::testing::HASH_SEED;
use etherply::log::blocks::BlockWrite;
use etherply::log::commit::{Durability, LogStep};
use etherply::log::disk::DiskFile;
use etherply::log::log_files::{LogFiles, LogFilesError};
use etherply::log::record::LoggedOp;
use etherply::log::recovery::RecoveryError;

use crate::disk::SimDisk;
use crate::plan::faults;
use crate::server::{Errand, LogOperation};
use crate::wire;
use crate::world::{Doing, World};

impl World {
    /// Advances one operation of a log: the disk does it, or the shard learns of it.
    pub fn go_on_with_log(&mut self) {
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
                        unreachable!("it was just put there");
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
        let log = seat.log.as_mut().expect("it is open");
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
            other => unreachable!("{other:?} is no operation of the ring"),
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
        let log = seat.log.as_ref().expect("it is open");
        let writes_through = log.open_segment().writes_through;
        // A short write continues. The sync of an `always` log is still to come, unless writes
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
                check_keeper(outcome.as_ref().err());
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
                if rebuild.is_ok() {
                    self.give_up_the_rest(shard);
                }
                let mut deal = Replay::new(HASH_SEED);
                let shards = self.shards;
                let visit = |op: &LoggedOp<'_>| {
                    if shard_of(op.workspace, shards) as usize == shard {
                        deal.visit(op);
                    }
                };
                let outcome = rebuild.and_then(|rebuild| rebuild.run(visit));
                if self.disk.is_dead() {
                    return;
                }
                check_keeper(outcome.as_ref().err());
                deal.finish_restore();
                let workspaces = deal.finish(shards).swap_remove(shard);
                let clock = self.clock;
                if outcome.is_ok() {
                    self.accept_rebuilt(shard, &workspaces);
                    self.coverage.rebuilds += 1;
                }
                let seat = self.seat(shard);
                let log = seat.log.as_mut().expect("open");
                let state = outcome
                    .map(|segment| (log.replace(segment), workspaces))
                    .map_err(io::Error::other);
                seat.is_sync_lost &= state.is_err();
                seat.is_end_known &= state.is_err();
                seat.shard.handle(Input::Rebuilt(state), clock);
                seat.is_woken = true;
            }
        }
        self.doing = Doing::Nothing;
        self.server.as_mut().expect("it runs").tell_rotation(shard);
        self.look_at_log();
    }
}

/// Writes as the worker does: whole blocks if writes bypass the cache.
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
    let writer = log.blocks().expect("it is the same segment");
    let (bytes, outcome) = writer.finish(blocks, outcome);
    (bytes, outcome.ok())
}

/// Checks that nothing is damaged if no bit was flipped.
fn check_keeper(error: Option<&LogFilesError>) {
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
