//! Snapshots of a log that changes, and of one that is damaged.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tempfile::tempdir;

use super::super::compaction::{Compaction, Settings};
use super::super::directory::{DataDirectory, shard_folder};
use super::super::disk::DiskFile;
use super::super::position::LogPosition;
use super::super::record::{SegmentHeader, begin_batch, push_op, seal_batch};
use super::super::segment;
use super::*;
use crate::log::record::Change;
use crate::seq::Seq;

/// Writes an op for each of three keys, with the round as timestamp, to a separate segment, and
/// returns the index and the position of the next segment.
fn write(
    directory: &DataDirectory,
    shard: u32,
    (index, position): (u64, LogPosition),
    round: u64,
) -> (u64, LogPosition) {
    let header = SegmentHeader::new(shard, directory.epoch(), index, position);
    let folder = directory.shard_path(shard);
    let open = segment::create(&HostDisk, &folder, header, 0).unwrap();
    let mut batch = Vec::new();
    begin_batch(&mut batch);
    for key in ["a", "b", "c"] {
        let op = LoggedOp {
            workspace: "w",
            key,
            change: Change::write("0"),
            seq: Seq::new(round),
            timestamp: round,
        };
        push_op(&mut batch, &op);
    }
    seal_batch(&mut batch, header.salt(), position, position);
    // In pieces, as a concurrent reader may find it.
    for (at, piece) in batch.chunks(50).enumerate() {
        let offset = 64 + 50 * at as u64;
        open.file.write_all_at(piece, offset).unwrap();
    }
    open.file.sync().unwrap();
    (index + 1, position.advance(batch.len() as u64))
}

/// Returns the greatest timestamp of each key.
fn state(data: &Path) -> BTreeMap<String, u64> {
    let snapshot = ReadOnlyLog::take(&HostDisk, data).unwrap();
    let (mut state, mut buffer) = (BTreeMap::new(), Vec::new());
    for folder in snapshot.folders() {
        for place in 0..folder.links().len() {
            let read = folder.read(place, &mut buffer, |op| {
                let held = state.entry(op.key.to_owned()).or_insert(0);
                *held = op.timestamp.max(*held);
            });
            read.unwrap();
        }
    }
    state
}

#[test]
fn a_log_being_written_and_compacted_is_intact_at_every_moment() {
    const ROUNDS: u64 = 60;
    let root = tempdir().unwrap();
    let directory = Arc::new(DataDirectory::open(root.path()).unwrap());
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The keys alternate between the folders, so that each one contains ops that supersede
            // those in the other.
            let mut tails = [(1, LogPosition::START); 2];
            for round in 1..=ROUNDS {
                let shard = round % 2;
                let tail = &mut tails[usize::try_from(shard).unwrap()];
                *tail = write(&directory, u32::try_from(shard).unwrap(), *tail, round);
                written.store(round, Ordering::SeqCst);
                let open = [(0, tails[0].0), (1, tails[1].0)];
                let settings = Settings {
                    dead_share: u64::MAX,
                    segment_bytes_min: 64,
                    segment_bytes_max: 1000,
                };
                let mut compaction =
                    Compaction::plan(Arc::clone(&directory), &open, settings).unwrap();
                while compaction.step(&mut |_| ControlFlow::Continue(())).unwrap() {}
            }
        });
        loop {
            let before = written.load(Ordering::SeqCst);
            let state = state(root.path());
            for key in ["a", "b", "c"] {
                let held = state.get(key).copied().unwrap_or(0);
                assert!(held >= before, "{key} is {held}, but {before} was on disk");
            }
            if before == ROUNDS {
                break;
            }
        }
    });
}

#[test]
fn an_open_file_is_readable_after_it_is_unlinked() {
    let root = tempdir().unwrap();
    let directory = DataDirectory::open(root.path()).unwrap();
    write(&directory, 0, (1, LogPosition::START), 1);
    let snapshot = ReadOnlyLog::take(&HostDisk, root.path()).unwrap();
    fs::remove_dir_all(root.path().join(shard_folder(0))).unwrap();
    let mut ops = 0;
    let read = snapshot.folders()[0].read(0, &mut Vec::new(), |_| ops += 1);
    assert_eq!((read.unwrap().records, ops), (3, 3));
}

#[test]
fn damage_is_reported_as_at_startup_and_nothing_is_truncated() {
    let root = tempdir().unwrap();
    let directory = DataDirectory::open(root.path()).unwrap();
    let tail = write(&directory, 0, (1, LogPosition::START), 1);
    write(&directory, 0, tail, 2);
    let path = directory.shard_path(0).join(segment::file_name(1));
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let snapshot = ReadOnlyLog::take(&HostDisk, root.path()).unwrap();
    let mut visited = 0;
    let read = snapshot.folders()[0].read(0, &mut Vec::new(), |_| visited += 1);
    let message = read.unwrap_err().to_string();
    assert!(message.contains("is damaged at byte 92: "), "{message}");
    assert_eq!(visited, 0, "a record before the damage was visited");
    fs::remove_file(&path).unwrap();
    let message = ReadOnlyLog::take(&HostDisk, root.path())
        .unwrap_err()
        .to_string();
    assert!(message.contains("the segment is missing"), "{message}");
    fs::remove_dir_all(root.path().join(shard_folder(0))).unwrap();
    assert_eq!(
        ReadOnlyLog::take(&HostDisk, root.path())
            .unwrap()
            .folders()
            .len(),
        0
    );
}

#[test]
fn an_incomplete_tail_is_not_an_error() {
    let root = tempdir().unwrap();
    let directory = DataDirectory::open(root.path()).unwrap();
    write(&directory, 0, (1, LogPosition::START), 1);
    let path = directory.shard_path(0).join(segment::file_name(1));
    let bytes = fs::read(&path).unwrap();
    for end in 64..bytes.len() {
        fs::write(&path, &bytes[..end]).unwrap();
        let snapshot = ReadOnlyLog::take(&HostDisk, root.path()).unwrap();
        let extent = snapshot.folders()[0]
            .read(0, &mut Vec::new(), |_| {})
            .unwrap();
        let whole = usize::try_from(extent.whole_bytes).unwrap();
        let zeros = bytes[whole..end].iter().rev();
        let zeros = zeros.take_while(|byte| **byte == 0).count();
        assert_eq!(extent.file_bytes, (end - zeros) as u64);
        assert_eq!(
            fs::read(&path).unwrap().len(),
            end,
            "something was truncated"
        );
    }
}
