//! The compactions that are due, the room on the disk, and the reserve.

use proptest::prelude::*;

use super::*;
use crate::limits::{COMPACTION_BYTES_MIN, SECOND_US};

const MIB: u64 = 1 << 20;
const NOW_US: u64 = 7 * SECOND_US;

fn folder(shard: u32, closed_mib: u64, live_mib: u64) -> FolderUsage {
    FolderUsage {
        shard,
        closed_bytes: closed_mib * MIB,
        live_bytes: live_mib * MIB,
        is_running: true,
    }
}

fn schedule() -> Schedule {
    Schedule::new(COMPACTION_BYTES_MIN)
}

fn due(all: &[FolderUsage]) -> Vec<u32> {
    schedule().due(all, false, NOW_US)
}

#[test]
fn compaction_starts_when_enough_is_dead() {
    for (closed, live, is_due) in [
        (0, 0, false),
        (8, 0, false),
        (9, 0, true),
        (9, 6, false),
        (50, 29, false),
        (50, 28, true),
    ] {
        let one = [folder(0, closed, live)];
        assert_eq!(!due(&one).is_empty(), is_due, "{closed} {live}");
    }
}

#[test]
fn a_small_shard_is_due_despite_a_large_idle_one() {
    let all = [folder(0, 1000, 1000), folder(1, 40, 1), folder(2, 3, 1)];
    let mut schedule = schedule();
    // Before its first compaction, the folder may contain ops of any shard.
    assert_eq!(schedule.due(&all, false, NOW_US), Vec::<u32>::new());
    schedule.compacted(&folder(1, 40, 1), MIB, 0, MIB);
    assert_eq!(schedule.due(&all, false, NOW_US), [1]);
}

#[test]
fn all_folders_are_due_if_a_folder_without_a_shard_is_dead() {
    let mut all = [folder(0, 10, 10), folder(1, 12, 10), folder(2, 60, 0)];
    all[2].is_running = false;
    assert_eq!(due(&all), [0, 1, 2]);
}

#[test]
fn ops_kept_for_other_shards_do_not_make_a_folder_due() {
    let mut schedule = schedule();
    let all = [folder(0, 110, 10), folder(1, 100, 200)];
    assert_eq!(schedule.kept_bytes(&all[0], &all), 110 * MIB);
    assert_eq!(schedule.due(&all, false, NOW_US), Vec::<u32>::new());
    // Half of that was live, and belonged to other shards.
    schedule.compacted(&all[0], 50 * MIB, 0, 55 * MIB);
    assert_eq!(schedule.kept_bytes(&all[0], &all), 50 * MIB);
    assert_eq!(schedule.due(&all, false, NOW_US), [0]);
    schedule.compacted(&all[0], 80 * MIB, 0, 85 * MIB);
    assert_eq!(schedule.due(&all, false, NOW_US), Vec::<u32>::new());
}

#[test]
fn tombstones_that_only_a_compaction_of_all_folders_drops_make_all_folders_due() {
    for (blocked, expected) in [(0, vec![]), (90, vec![0, 1])] {
        let mut schedule = schedule();
        let all = [folder(0, 110, 10), folder(1, 100, 100)];
        schedule.compacted(&all[0], 100 * MIB, blocked * MIB, 105 * MIB);
        assert_eq!(schedule.due(&all, false, NOW_US), expected, "{blocked}");
        assert_eq!(schedule.kept_bytes(&all[0], &all), 100 * MIB);
    }
}

#[test]
fn ops_overwritten_in_the_open_segment_are_compacted_once_it_is_closed() {
    let mut schedule = schedule();
    // All of it was live when the open segment was created.
    let large = folder(0, 100, 100);
    schedule.compacted(&large, 100 * MIB, 0, 106 * MIB);
    assert_eq!(
        schedule.due(&[folder(0, 106, 100)], false, NOW_US),
        Vec::<u32>::new()
    );
    assert_eq!(schedule.due(&[folder(0, 108, 2)], false, NOW_US), [0]);
    // It is due again only once it has grown.
    schedule.compacted(&folder(0, 108, 2), 90 * MIB, 0, 95 * MIB);
    let all = [folder(0, 95, 2)];
    assert_eq!(schedule.due(&all, false, NOW_US), Vec::<u32>::new());
}

#[test]
fn compaction_runs_part_of_the_time_and_speeds_up_as_a_log_grows() {
    let worked = Duration::from_millis(10);
    for (closed, pause_ms) in [(0, 30), (175, 30), (200, 6), (225, 0), (1000, 0)] {
        let all = [folder(0, closed, 100), folder(1, 0, 0)];
        let pause = schedule().pause(&all, false, worked);
        assert_eq!(pause.as_millis(), pause_ms, "{closed}");
        assert!(schedule().pause(&all, true, worked).is_zero());
    }
    // A single log that is too long is enough.
    let mut schedule = schedule();
    schedule.compacted(&folder(1, 40, 1), MIB, 0, MIB);
    let all = [folder(0, 1000, 1000), folder(1, 40, 1)];
    assert!(schedule.pause(&all, false, worked).is_zero());
}

#[test]
fn after_a_failure_compaction_waits_and_warns_once_per_cause() {
    let all = [folder(0, 100, 1)];
    let mut schedule = schedule();
    assert!(schedule.failed("a".to_owned(), None, NOW_US));
    assert!(!schedule.is_working());
    let again_us = schedule.not_before_us().unwrap();
    assert_eq!(again_us, NOW_US + COMPACTION_RETRY_US);
    assert!(schedule.due(&all, false, again_us - 1).is_empty());
    assert!(schedule.due(&all, true, again_us - 1).is_empty());
    assert_eq!(schedule.due(&all, false, again_us), [0]);
    assert!(!schedule.failed("a".to_owned(), None, again_us));
    assert!(schedule.failed("b".to_owned(), None, again_us));
    schedule.looked(u64::MAX);
    assert!(
        schedule.due(&all, false, again_us).is_empty(),
        "space was not what it lacked"
    );
    schedule.succeeded();
    assert!(schedule.is_working());
    assert!(schedule.failed("b".to_owned(), None, again_us));
    schedule.succeeded();
    schedule.give_up();
    assert!(!schedule.is_working() && schedule.is_over());
    assert!(schedule.due(&all, false, u64::MAX).is_empty());
}

#[test]
fn a_failure_for_lack_of_space_ends_once_there_is_more() {
    let all = [folder(0, 100, 1)];
    let mut schedule = schedule();
    schedule.failed("full".to_owned(), Some(1000), NOW_US);
    schedule.looked(1250);
    assert!(schedule.due(&all, true, NOW_US).is_empty());
    schedule.looked(1251);
    assert_eq!(schedule.due(&all, true, NOW_US), [0]);
}

#[test]
fn with_little_space_compaction_starts_earlier_but_is_not_repeated_in_vain() {
    let mut schedule = schedule();
    let all = [folder(0, 107, 100), folder(1, 106, 100)];
    assert!(schedule.due(&all, false, NOW_US).is_empty());
    assert_eq!(schedule.due(&all, true, NOW_US), [0]);
    // None of it could be freed.
    schedule.compacted(&all[0], 100 * MIB, 0, 107 * MIB);
    assert!(schedule.due(&all, true, NOW_US).is_empty());
    let all = [folder(0, 115, 100)];
    assert_eq!(schedule.due(&all, true, NOW_US), [0]);
}

fn room(shards: u64) -> DiskRoom {
    DiskRoom::new(LowMarks::default(), shards)
}

fn space(free_mib: u64, total_mib: u64) -> Space {
    Space {
        free_bytes: free_mib * MIB,
        total_bytes: total_mib * MIB,
    }
}

#[test]
fn a_disk_runs_low_before_it_is_full_and_recovers_with_hysteresis() {
    let mut room = room(4);
    // The low mark is 16 MiB plus 1 MiB for each shard.
    for (free_mib, is_short) in [
        (1000, false),
        (25, false),
        (24, true),
        (39, true),
        (40, false),
    ] {
        room.looked(Some(space(free_mib, 100_000)), false, &[]);
        assert_eq!(room.is_short(), is_short, "{free_mib}");
    }
    room.looked(Some(space(0, 100_000)), false, &[]);
    room.looked(None, false, &[]);
    assert!(
        !room.is_short(),
        "a disk that reports no space limits nobody"
    );
    assert_eq!(room.end(LogPosition::new(5)), LogPosition::MAX);
    // On a small disk, less space is kept free.
    room.looked(Some(space(8, 64)), false, &[]);
    assert!(!room.is_short());
}

#[test]
fn shards_share_the_free_space() {
    let mut room = room(4);
    room.looked(Some(space(1000, 100_000)), false, &[]);
    let position = LogPosition::new(77);
    assert_eq!(room.end(position), position.advance((1000 - 20) * MIB / 4));
    room.looked(Some(space(100_000, 100_000)), false, &[]);
    assert_eq!(room.end(position), LogPosition::MAX, "plenty");
    room.looked(Some(space(22, 100_000)), false, &[]);
    assert_eq!(room.end(position), LogPosition::NONE, "short");
}

#[test]
fn the_reserve_grows_with_the_log_and_is_claimed_if_there_is_space() {
    let mut room = room(1);
    for (free_mib, total_mib, closed_mib, live_mib, reserve_mib) in [
        (1000, 10_000, 7, 7, None),
        (1000, 10_000, 8, 7, Some(8)),
        (1000, 10_000, 500, 256, Some(16)),
        (1000, 10_000, 9000, 9000, Some(32)),
        (41, 10_000, 500, 256, None),
        // One 32nd of a small disk.
        (100, 160, 60, 40, Some(5)),
    ] {
        room.looked(Some(space(free_mib, total_mib)), false, &[]);
        let all = [folder(0, closed_mib, live_mib)];
        let bytes = room.reserve_bytes(&all, COMPACTION_BYTES_MIN);
        assert_eq!(bytes, reserve_mib.map(|mib: u64| mib * MIB), "{all:?}");
    }
}

#[test]
fn space_released_from_the_reserve_is_for_compaction_and_not_for_ops() {
    let mut room = room(1);
    let all = [folder(0, 500, 256)];
    // The reserve holds 16 MiB. Of the free space, 17 MiB are withheld and 8 MiB are left for ops.
    room.looked(Some(space(25, 10_000)), false, &all);
    assert_eq!(room.end(LogPosition::START).get(), 8 * MIB);
    // The reserve is released.
    room.looked(Some(space(25 + 16, 10_000)), true, &all);
    assert_eq!(
        (room.is_short(), room.end(LogPosition::START).get()),
        (false, 8 * MIB)
    );
    assert_eq!(room.free_bytes(), Some((25 + 16) * MIB));
    // Compaction has used a part of it.
    room.looked(Some(space(25 + 10, 10_000)), true, &all);
    assert_eq!(
        (room.is_short(), room.end(LogPosition::START).get()),
        (true, 0)
    );
    // The compaction succeeded, and freed enough for a disk that was short to have room again.
    room.looked(Some(space(50, 10_000)), false, &all);
    assert_eq!(
        (room.is_short(), room.end(LogPosition::START).get()),
        (false, 33 * MIB)
    );
    // The reserve's space is no longer available to ops, even before the disk is checked again.
    room.reserved(16 * MIB);
    assert_eq!(
        (room.is_short(), room.end(LogPosition::START).get()),
        (false, 17 * MIB)
    );
}

proptest! {
    /// Whatever else happens on the disk, shards that stay within their limits never use the space
    /// that is kept free.
    #[test]
    fn space_kept_free_is_never_used(
        shards in 1_u64..5,
        looks in prop::collection::vec((0_u64..64, any::<bool>()), 1..50),
    ) {
        let total_bytes = 2000 * MIB;
        let mut room = room(shards);
        let mut positions = vec![0; usize::try_from(shards).unwrap()];
        let mut free_bytes = total_bytes;
        for (freed_mib, is_greedy) in looks {
            room.looked(Some(Space { free_bytes, total_bytes }), false, &[]);
            for position in &mut positions {
                let end = room.end(LogPosition::new(*position));
                let may_bytes = end.get().saturating_sub(*position);
                let bytes = if is_greedy { may_bytes } else { may_bytes / 3 };
                *position += bytes;
                free_bytes -= bytes;
            }
            prop_assert!(free_bytes >= 16 * MIB + shards * MIB);
            free_bytes = total_bytes.min(free_bytes + freed_mib * MIB);
        }
    }
}
