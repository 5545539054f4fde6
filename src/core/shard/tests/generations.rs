//! The generations of a shard: when they are recorded, and which clients may resume in them.

use super::rig::{LogOperation, Rig};
use crate::core::shard::contract::{LoggedGenerations, Output};
use crate::core::shard::log_space::LogSize;
use crate::core::state::workspace::Workspace;
use crate::generation::Generation;
use crate::limits::SECOND_US;
use crate::log::commit::{Durability, LogStep};
use crate::log::record::Change;
use crate::seq::Seq;
use crate::wire::message::v2::WelcomeReason::{self, First, OtherGeneration, Resumed, TooOld};
use crate::wire::upgrade::ResumePoint;

const WEEK_US: u64 = 7 * 86_400 * SECOND_US;

/// Returns what the log on the disk holds, in order: the generations with their numbers and shard
/// counts, and the values of the ops.
fn logged(rig: &mut Rig) -> Vec<String> {
    let mut ops = Vec::new();
    rig.disk.replay(|op| {
        ops.push(match op.change {
            Change::Generation { id, shards } => {
                assert_eq!((op.workspace, op.key), ("", "0"));
                assert_eq!(op.seq.get(), op.timestamp);
                format!("generation {id} number {} of {shards}", op.seq)
            }
            _ => op.value().to_owned(),
        });
        String::new()
    });
    ops
}

fn generation(id: u64, number: u64) -> String {
    generation_of(id, number, 1)
}

fn generation_of(id: u64, number: u64, shards: u32) -> String {
    format!(
        "generation {} number {number} of {shards}",
        Generation::new(id)
    )
}

fn resume(generation: u64, since: u64) -> ResumePoint {
    ResumePoint {
        since: Seq::new(since),
        generation: Generation::new(generation),
    }
}

fn reason(rig: &Rig, workspace: &str, resume: ResumePoint) -> WelcomeReason {
    let room = rig.shard.rooms.find(workspace);
    let workspace = room.map(|id| &rig.shard.rooms[id].workspace);
    rig.shard
        .generations
        .welcome_reason(Some(resume), workspace)
}

/// P140.
#[test]
fn a_generation_is_recorded_before_the_first_op_after_a_start_and_after_each_rebuild() {
    // A generation in which ops are sent before they are durable is not continued.
    for (durability, shards) in [(Durability::Always, 1), (Durability::Interval, 0)] {
        let generation = |id, number| generation_of(id, number, shards);
        let mut rig = Rig::recovering(|config| config.durability = durability);
        rig.generation = Generation::new(10);
        rig.logged.last_number = 4;
        rig.recover(Vec::new());
        let writer = rig.join("w", None);
        rig.op(writer, "k", "1", 1);
        rig.sleep_until(2.0);
        assert_eq!(logged(&mut rig), [generation(10, 5), "1".to_owned()]);
        // The op that fails is lost.
        rig.log_fails = true;
        rig.op(writer, "k", "2", 2);
        rig.write_batch();
        rig.log_fails = false;
        rig.sleep_until(4.0);
        let writer = rig.join("w", None);
        rig.op(writer, "k", "3", 3);
        rig.sleep_until(6.0);
        let wanted = [
            generation(10, 5),
            "1".to_owned(),
            generation(11, 6),
            "3".to_owned(),
        ];
        assert_eq!(logged(&mut rig), wanted);
    }
}

/// An op that arrives before the first turn after the start follows the record, too.
#[test]
fn the_record_comes_before_an_op_of_the_same_turn() {
    let mut rig = Rig::recovering(|_| ());
    let writer = rig.accept(false);
    let mut request = super::rig::head("w", None).into_bytes();
    request.extend_from_slice(&super::rig::op("k", "1", 1));
    rig.receive(writer, &request);
    rig.log_hangs = true;
    rig.recover(Vec::new());
    rig.turn();
    rig.log_hangs = false;
    rig.run();
    assert_eq!(logged(&mut rig), [generation(1, 1), "1".to_owned()]);
}

#[test]
fn while_the_disk_is_full_the_record_waits() {
    use crate::core::shard::contract::Input;
    use crate::log::position::LogPosition;
    let mut rig = Rig::recovering(|_| ());
    let size = LogSize::unmeasured(LogPosition::NONE);
    rig.shard.handle(Input::LogSize(size), rig.clock);
    rig.recover(Vec::new());
    rig.run();
    assert!(rig.log.is_none() && logged(&mut rig).is_empty());
    let reader = rig.join("w", None);
    assert_eq!(rig.seen(reader), ["101", "init 0"]);
    rig.shard
        .handle(Input::LogSize(LogSize::UNKNOWN), rig.clock);
    rig.run();
    assert_eq!(logged(&mut rig), [generation(1, 1)]);
}

/// The record is never superseded while its generation lasts, so its segment must stay.
#[test]
fn the_segment_of_the_record_is_never_reported_dead() {
    let mut rig = Rig::new(|config| {
        (config.segment_bytes_min, config.segment_bytes_max) = (100, 100);
    });
    let writer = rig.join("w", None);
    for timestamp in 1..20 {
        rig.op(writer, "k", "1", timestamp);
    }
    let dead = rig.shard.dead_segments();
    assert!(dead.has(&(5..=5)) && !dead.has(&(1..=1)) && !dead.has(&(2..=2)));
}

/// P141.
///
/// Each case of the contract, for a workspace that had three ops when the generation began and has
/// five now.
#[test]
fn a_client_resumes_in_the_current_and_in_the_previous_generation() {
    let mut workspace = Workspace::new("w", 5);
    for seq in 1..=3 {
        let key = format!("k{seq}");
        workspace.restore(&key, &Change::write("1"), seq, Seq::new(seq));
    }
    workspace.finish_restore();
    workspace.begin_generation();
    let mut rig = Rig::recovering(|_| ());
    rig.generation = Generation::new(20);
    rig.logged = LoggedGenerations {
        last_number: 2,
        previous: Some(Generation::new(10)),
    };
    rig.recover(vec![workspace]);
    let writer = rig.join("w", None);
    rig.op(writer, "a", "1", 7);
    rig.op(writer, "b", "1", 8);
    for (point, wanted) in [
        (resume(20, 0), Resumed),
        (resume(20, 5), Resumed),
        (resume(20, 6), OtherGeneration),
        (resume(10, 0), Resumed),
        (resume(10, 3), Resumed),
        // These ops were lost when the server stopped, or belong to a copy.
        (resume(10, 4), OtherGeneration),
        (resume(10, 6), OtherGeneration),
        (resume(9, 0), OtherGeneration),
        (resume(0, 0), OtherGeneration),
    ] {
        assert_eq!(reason(&rig, "w", point), wanted, "{point:?}");
    }
    assert_eq!(rig.shard.generations.welcome_reason(None, None), First);
    // A workspace that nobody has written to.
    for (point, wanted) in [
        (resume(20, 0), Resumed),
        (resume(10, 0), Resumed),
        (resume(20, 1), OtherGeneration),
        (resume(10, 1), OtherGeneration),
    ] {
        assert_eq!(reason(&rig, "v", point), wanted, "{point:?}");
    }
}

/// P141.
#[test]
fn without_a_previous_generation_only_the_current_one_is_resumed() {
    let mut rig = Rig::recovering(|_| ());
    rig.recover(Vec::new());
    assert_eq!(reason(&rig, "w", resume(1, 0)), Resumed);
    assert_eq!(reason(&rig, "w", resume(0, 0)), OtherGeneration);
}

/// P140. P141.
///
/// In `none` mode, a rebuild loses ops that clients have seen. Even a client that has seen none of
/// them may have been sent a part of a state that omits the entries that they had replaced.
#[test]
fn a_rebuild_begins_a_generation_at_the_ops_that_were_kept() {
    let mut rig = Rig::new(|config| config.durability = Durability::None);
    let writer = rig.join("w", None);
    rig.op(writer, "k", "1", 1);
    rig.write_batch();
    rig.log_hangs = true;
    rig.op(writer, "k", "2", 2);
    rig.write_batch();
    assert_eq!(reason(&rig, "w", resume(1, 2)), Resumed);
    rig.log_hangs = false;
    assert!(matches!(rig.log, Some(Output::Log(LogStep::Write { .. }))));
    let ended = rig.end_log_with(true, |left| left);
    assert!(matches!(ended, Some(LogOperation::Commit)));
    rig.sleep_until(2.0);
    let writer = rig.join("w", None);
    let kept = rig.shard.rooms[rig.shard.rooms.find("w").unwrap()]
        .workspace
        .seq()
        .get();
    assert!(kept < 2, "the second op was lost");
    rig.op(writer, "k", "3", 3);
    assert_eq!(reason(&rig, "w", resume(1, kept)), OtherGeneration);
    assert_eq!(reason(&rig, "w", resume(1, kept + 1)), OtherGeneration);
    assert_eq!(reason(&rig, "w", resume(2, kept + 1)), Resumed);
}

/// P141.
#[test]
fn a_client_older_than_a_dropped_tombstone_does_not_resume() {
    let mut workspace = Workspace::new("w", 5);
    for (seq, key) in (1..).zip(["a", "b", "c"]) {
        let change = Change::Delete { deleted_at_us: seq };
        workspace.restore(key, &change, seq, Seq::new(seq));
    }
    workspace.finish_restore();
    workspace.begin_generation();
    workspace.drop_tombstones((WEEK_US + 2, WEEK_US), 9, None, 0);
    let mut rig = Rig::recovering(|_| ());
    rig.logged.previous = Some(Generation::new(10));
    rig.recover(vec![workspace]);
    for generation in [1, 10] {
        for (since, wanted) in [(0, TooOld), (1, TooOld), (2, Resumed), (3, Resumed)] {
            let reason = reason(&rig, "w", resume(generation, since));
            assert_eq!(reason, wanted, "{generation} {since}");
        }
        assert_eq!(reason(&rig, "w", resume(generation, 4)), OtherGeneration);
    }
}
