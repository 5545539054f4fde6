//! The generations in a log, and the one that a shard continues.

use super::*;

fn generation(shard: u32, id: u64, number: u64, shards: u32) -> FolderGeneration {
    FolderGeneration {
        shard,
        id: Generation::new(id),
        number,
        shards,
    }
}

#[test]
fn a_shard_continues_from_the_generation_that_was_certainly_the_last_to_write_its_workspaces() {
    let of = generation;
    let repair = |shard, number| of(shard, 99, number, 0);
    let four = [
        of(0, 8, 5, 2),
        of(1, 8, 5, 2),
        of(2, 7, 1, 4),
        of(3, 7, 1, 4),
    ];
    // The last generations, the shard, the number of shards now, and the expected id.
    let cases: &[(&[FolderGeneration], u32, u32, Option<u64>)] = &[
        // A new log, or one in format 1.
        (&[], 0, 1, None),
        // All folders end with the last start, regardless of the current number of shards.
        (&[of(0, 7, 1, 2), of(1, 7, 1, 2)], 1, 2, Some(7)),
        (&[of(0, 7, 1, 2), of(1, 7, 1, 2)], 0, 1, Some(7)),
        (&[of(0, 7, 1, 2), of(1, 7, 1, 2)], 2, 3, Some(7)),
        // Shard 1 was rebuilt: each shard continues its own generation, but not with other
        // workspaces.
        (&[of(0, 7, 1, 2), of(1, 8, 2, 2)], 0, 2, Some(7)),
        (&[of(0, 7, 1, 2), of(1, 8, 2, 2)], 1, 2, Some(8)),
        (&[of(0, 7, 1, 2), of(1, 8, 2, 2)], 0, 1, None),
        (&[of(0, 7, 1, 2), of(1, 8, 2, 2)], 2, 3, None),
        // There used to be four shards, and there have been two for a while.
        (&four, 1, 2, Some(8)),
        // Four again: in between, the workspaces of shards 2 and 3 belonged to shards 0 and 1.
        (&four, 3, 4, None),
        (&four, 0, 4, None),
        // A start with two shards was killed when only shard 1 had written anything.
        (&[of(0, 7, 1, 1), of(1, 8, 2, 2)], 0, 1, None),
        (&[of(0, 7, 1, 1), of(1, 8, 2, 2)], 1, 2, Some(8)),
        // The same number belongs to a start and to a rebuild that knew nothing of each other.
        (&[of(0, 7, 2, 1), of(1, 8, 2, 2)], 0, 1, None),
        // A repair has lost ops of one folder, or of the only one.
        (&[of(0, 7, 1, 2), repair(1, 2)], 0, 2, None),
        (&[of(0, 7, 1, 2), repair(1, 2)], 1, 2, None),
        (&[repair(0, 2)], 0, 1, None),
        // The starts after the repair may be continued like any others.
        (&[of(0, 9, 3, 1), repair(1, 2)], 0, 1, Some(9)),
    ];
    for (folders, shard, shards, expected) in cases {
        let previous = previous_generation(folders, *shard, *shards);
        let expected = expected.map(Generation::new);
        assert_eq!(previous, expected, "{folders:?}: {shard} of {shards}");
    }
}

/// Writes a segment with these generations, two ops and a floor.
fn write(log: &Log, shard: u32, numbers: &[u64]) {
    let tail = Tail::first(shard);
    let header = SegmentHeader::new(shard, log.directory.epoch(), 1, tail.next_position);
    let folder = log.directory.shard_path(shard);
    let path = segment::create(&HostDisk, &folder, header, 0).unwrap().path;
    let mut batch = Vec::new();
    begin_batch(&mut batch);
    for &number in numbers {
        push_op(
            &mut batch,
            &LoggedOp {
                workspace: "",
                key: &shard.to_string(),
                change: Change::Generation {
                    id: Generation::new(number * 10),
                    shards: 3,
                },
                seq: Seq::new(number),
                timestamp: number,
            },
        );
    }
    let floor = Change::Floor {
        dropped_seq: Seq::new(1),
    };
    for (seq, key, change) in [
        (1, "k", Change::Delete { deleted_at_us: 1 }),
        (1, "", floor),
        (2, "k", Change::write("1")),
    ] {
        push_op(
            &mut batch,
            &LoggedOp {
                workspace: "w",
                key,
                change,
                seq: Seq::new(seq),
                timestamp: seq,
            },
        );
    }
    seal_batch(
        &mut batch,
        header.salt(),
        tail.next_position,
        tail.next_position,
    );
    fs::write(path, [&header.encode()[..], &batch].concat()).unwrap();
}

#[test]
fn the_last_generation_of_each_folder_is_reported_and_is_not_an_op() {
    let log = Log::new();
    for (shard, numbers) in [(0, &[1, 3, 2][..]), (1, &[]), (2, &[4])] {
        write(&log, shard, numbers);
    }
    let mut records = 0;
    let report = recover(&log.directory, |_| records += 1).unwrap();
    assert_eq!(records, 4 + 3 * 3);
    assert_eq!(report.ops, 3 * 2);
    let generations = [generation(0, 30, 3, 3), generation(2, 40, 4, 3)];
    assert_eq!(report.generations, generations);
    assert_eq!(report.next_generation_number(), 5);
    assert_eq!(RecoveryReport::default().next_generation_number(), 1);
    let sources = Sources {
        shard: 0,
        others: vec![(1, 1), (2, 1)],
    };
    assert_eq!(replay(&log.directory, &sources, |_| {}).unwrap(), 6);
}
