//! Recovery: torn tails, damage and gaps, against a naive model.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::super::directory::DataDirectory;
use super::super::disk::HostDisk;
use super::super::record::{
    Change, SECTOR_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, begin_batch, push_op, seal_batch,
};
use super::*;
use crate::seq::Seq;

mod generations;

/// An op in brief: its workspace is its shard's, and the other fields follow from its number.
type Number = u64;

/// A data directory, filled as by a server that syncs each batch, and its naive model.
struct Log {
    _root: TempDir,
    directory: DataDirectory,
    /// The model: the ops that every recovery must visit, for each shard that has a folder.
    shards: Vec<Vec<Number>>,
}

impl Log {
    fn new() -> Self {
        let root = tempdir().unwrap();
        let directory = DataDirectory::open(root.path()).unwrap();
        Self {
            _root: root,
            directory,
            shards: Vec::new(),
        }
    }

    /// Creates a log with one shard: three segments of two batches each, the last one without a
    /// seal.
    fn sample() -> Self {
        let mut log = Self::new();
        let segments = [
            [vec![1, 2], vec![3]],
            [vec![4], vec![5, 6]],
            [vec![7, 8], vec![9, 10, 11]],
        ];
        let tail = Tail::first(0);
        segments
            .iter()
            .fold(tail, |tail, batches| log.write(tail, batches));
        log
    }

    /// Writes a segment, with each batch synced before the next, and returns the tail after it.
    fn write(&mut self, tail: Tail, batches: &[Vec<Number>]) -> Tail {
        let epoch = self.directory.epoch();
        let header = SegmentHeader::new(tail.shard, epoch, tail.next_index, tail.next_position);
        let folder = self.directory.shard_path(tail.shard);
        let segment = segment::create(&HostDisk, &folder, header, 0).unwrap();
        let mut bytes = header.encode().to_vec();
        let mut batch = Vec::new();
        let shard = tail.shard as usize;
        self.shards
            .resize(self.shards.len().max(shard + 1), Vec::new());
        for numbers in batches {
            begin_batch(&mut batch);
            for &number in numbers {
                with_op(tail.shard, number, |op| push_op(&mut batch, op));
                self.shards[shard].push(number);
            }
            let position = header.position(bytes.len() as u64);
            seal_batch(&mut batch, header.salt(), position, position);
            bytes.extend_from_slice(&batch);
        }
        fs::write(&segment.path, &bytes).unwrap();
        Tail {
            next_index: tail.next_index + 1,
            next_position: header.position(bytes.len() as u64),
            ..tail
        }
    }

    fn path(&self, index: u64) -> PathBuf {
        self.directory.shard_path(0).join(segment::file_name(index))
    }

    fn model(&self) -> Vec<(u32, Number)> {
        let of_shard = |(shard, numbers): (usize, &Vec<Number>)| {
            let shard = u32::try_from(shard).unwrap();
            numbers
                .iter()
                .map(|&number| (shard, number))
                .collect::<Vec<_>>()
        };
        self.shards.iter().enumerate().flat_map(of_shard).collect()
    }

    fn recover(&self) -> (Result<RecoveryReport, RecoveryError>, Vec<(u32, Number)>) {
        let mut ops = Vec::new();
        let report = recover(&self.directory, |op| ops.push(checked(op)));
        (report, ops)
    }

    fn recovered(&self) -> (RecoveryReport, Vec<(u32, Number)>) {
        let (report, ops) = self.recover();
        let report = report.unwrap();
        assert_eq!(report.ops, ops.len() as u64);
        let mut paths = Vec::new();
        for shard in self.directory.shards().unwrap() {
            let folder = self.directory.shard_path(shard);
            paths.extend(segment::list(&HostDisk, &folder).unwrap());
        }
        let length = |(_, path): &(u64, PathBuf)| fs::metadata(path).unwrap().len();
        assert_eq!(report.bytes, paths.iter().map(length).sum::<u64>());
        assert_eq!(report.segments, paths.len() as u64);
        (report, ops)
    }

    /// Checks that recovery stops and reports the file, the offset and the command, and that it
    /// leaves every file unchanged.
    fn assert_damaged(&self, damaged_path: &Path, what_part: &str) {
        let image = self.image();
        let error = self.recover().0.expect_err(what_part);
        let message = error.to_string();
        let RecoveryError::Damaged { path, offset, what } = error else {
            panic!("{what_part}: {message}");
        };
        assert_eq!(path, damaged_path, "{message}");
        assert!(what.contains(what_part), "{message}");
        let expected = format!(
            "{} is damaged at byte {offset}: {what}; run: etherply log repair --data-dir {}",
            path.display(),
            self.directory.path().display()
        );
        assert_eq!(message, expected);
        assert_eq!(self.image(), image, "{message}");
    }

    /// Returns the ops that a rebuild of the last shard would read if it owned everything.
    fn replayed(&self) -> Result<Vec<(u32, Number)>, RecoveryError> {
        let shards = self.directory.shards().unwrap();
        let Some((&shard, others)) = shards.split_last() else {
            return Ok(Vec::new());
        };
        let others = others.iter().map(|&other| (other, u64::MAX)).collect();
        let mut ops = Vec::new();
        let count = replay(&self.directory, &Sources { shard, others }, |op| {
            ops.push(checked(op));
        })?;
        assert_eq!(count, ops.len() as u64);
        Ok(ops)
    }

    fn image(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let segments = segment::list(&HostDisk, &self.directory.shard_path(0)).unwrap();
        segments
            .into_iter()
            .map(|(_, path)| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }
}

fn with_op(shard: u32, number: Number, take: impl FnOnce(&LoggedOp<'_>)) {
    take(&LoggedOp {
        workspace: &format!("workspace-{shard}"),
        key: &format!("key-{}", number % 5),
        change: Change::write(&format!("\"{number}\"")),
        seq: Seq::new(number),
        timestamp: number * 10,
    });
}

/// Returns the op's shard and number. Fails if it is not an op that [`with_op`] makes, which means
/// that it was altered.
fn checked(op: &LoggedOp<'_>) -> (u32, Number) {
    let shard = op
        .workspace
        .strip_prefix("workspace-")
        .unwrap()
        .parse()
        .unwrap();
    with_op(shard, op.seq.get(), |expected| assert_eq!(op, expected));
    (shard, op.seq.get())
}

#[test]
fn an_empty_directory_is_an_empty_log() {
    let log = Log::new();
    assert_eq!(log.recovered(), (RecoveryReport::default(), vec![]));
    // Killed between creating the folder and creating its first segment, and while creating the
    // segment.
    let folder = log.directory.shard_path(4);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("0000000001.aof.new"), "half").unwrap();
    let (report, _) = log.recovered();
    assert_eq!(report.tails, [Tail::first(4)]);
    assert_eq!(report.tail(9), Tail::first(9));
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "swept");
}

#[test]
fn an_empty_last_segment_is_fine() {
    let mut log = Log::sample();
    let tail = log.recovered().0.tail(0);
    let after = log.write(tail, &[]);
    let (report, ops) = log.recovered();
    assert_eq!(ops, log.model());
    assert_eq!(report.tails, [after]);
    assert_eq!(after.next_position, tail.next_position);
    assert_eq!(report.torn, []);
}

fn written_bytes(bytes: &[u8]) -> usize {
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0);
    bytes.len() - zeros.count()
}

#[test]
fn every_truncation_is_a_torn_tail_in_the_last_segment_and_damage_elsewhere() {
    for index in 1..=3 {
        let log = Log::sample();
        let path = log.path(index);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            if index < 3 || length < SEGMENT_HEADER_BYTES {
                log.assert_damaged(&path, "");
                log.replayed().unwrap_err();
                continue;
            }
            let (report, ops) = log.recovered();
            assert_eq!(ops, log.model()[..ops.len()]);
            assert!(ops.len() >= 6, "the first two segments are not intact");
            let kept = fs::metadata(&path).unwrap().len();
            let torn = &whole[usize::try_from(kept).unwrap()..length];
            let cut = written_bytes(torn) as u64;
            let torn = Torn {
                path: path.clone(),
                offset: kept,
                bytes: cut,
            };
            assert_eq!(
                report.torn,
                Vec::from_iter((cut > 0).then_some(torn)),
                "length {length}"
            );
            let (again, ops_again) = log.recovered();
            assert_eq!(
                (again.torn, again.tails, ops_again),
                (vec![], report.tails, ops)
            );
        }
    }
}

#[test]
fn a_log_continues_after_a_cut_inside_a_batch() {
    let mut log = Log::sample();
    let path = log.path(3);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let (report, _) = log.recovered();
    assert_eq!(report.torn.len(), 1);
    assert_eq!(log.shards[0].pop(), Some(11));
    assert_eq!(log.replayed().unwrap(), log.model());

    log.write(report.tail(0), &[vec![12, 13], vec![]]);
    let (report, ops) = log.recovered();
    assert_eq!((ops, report.torn), (log.model(), vec![]));
    assert_eq!(log.replayed().unwrap(), log.model());

    // The next segment confirms the exact end of the truncated one.
    let kept = fs::read(&path).unwrap();
    fs::write(&path, &kept[..kept.len() - 1]).unwrap();
    log.assert_damaged(&path, "all of a closed segment was on disk");
    // Bytes after that end are dead: they come from a failed write that no client was shown.
    fs::write(&path, &whole).unwrap();
    assert_eq!(log.replayed().unwrap(), log.model());
    let (report, ops) = log.recover();
    assert_eq!((ops, report.unwrap().torn), (log.model(), vec![]));
}

#[test]
fn every_flipped_byte_is_damage() {
    for index in 1..=3 {
        let log = Log::sample();
        let path = log.path(index);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            log.assert_damaged(&path, "");
        }
    }
}

/// A segment that is written through ends in zeros, which do not count as written data.
#[test]
fn any_sector_of_the_last_batch_may_be_missing() {
    let mut log = Log::new();
    let last: Vec<Number> = (20..60).collect();
    log.write(Tail::first(0), &[(1..20).collect(), last]);
    let path = log.path(1);
    let whole = fs::read(&path).unwrap();
    let last_at = whole.windows(4).rposition(|bytes| bytes == b"\xFFEPB");
    let last_at = last_at.unwrap();
    let sectors = last_at / SECTOR_BYTES..=(whole.len() - 1) / SECTOR_BYTES;
    assert!(sectors.clone().count() > 3);
    for sector in sectors {
        let mut bytes = whole.clone();
        bytes.resize(8 * SECTOR_BYTES, 0);
        let begin = last_at.max(sector * SECTOR_BYTES);
        bytes[begin..(sector + 1) * SECTOR_BYTES].fill(0);
        let end = written_bytes(&bytes) as u64;
        fs::write(&path, &bytes).unwrap();
        let (report, ops) = log.recovered();
        assert_eq!(ops, log.model()[..ops.len()]);
        assert!(ops.len() >= 19, "the first batch is not intact");
        let kept = fs::metadata(&path).unwrap().len();
        assert!(kept >= last_at as u64 && kept <= begin as u64);
        let torn = Torn {
            path: path.clone(),
            offset: kept,
            bytes: end.saturating_sub(kept),
        };
        assert_eq!(
            report.torn,
            Vec::from_iter((torn.bytes > 0).then_some(torn))
        );
    }
    let mut bytes = whole.clone();
    bytes.resize(8 * SECTOR_BYTES, 0);
    fs::write(&path, &bytes).unwrap();
    let (report, ops) = log.recovered();
    assert_eq!((ops, report.torn), (log.model(), vec![]));
}

#[test]
fn damage_in_one_shard_leaves_the_torn_tail_of_another_alone() {
    let mut log = Log::sample();
    let path = log.path(3);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    log.write(Tail::first(1), &[vec![1], vec![2]]);
    let other = log.directory.shard_path(1).join(segment::file_name(1));
    let mut bytes = fs::read(&other).unwrap();
    bytes[SEGMENT_HEADER_BYTES + 1] ^= 1;
    fs::write(&other, bytes).unwrap();
    log.assert_damaged(&other, "the batch at byte");
}

#[test]
fn a_gap_is_damage() {
    for index in [1, 2] {
        let log = Log::sample();
        fs::remove_file(log.path(index)).unwrap();
        log.assert_damaged(&log.path(index), "the segment is missing");
    }
    let mut log = Log::sample();
    let tail = log.recovered().0.tail(0);
    log.write(
        Tail {
            next_position: tail.next_position.advance(1),
            ..tail
        },
        &[vec![12]],
    );
    log.assert_damaged(&log.path(3), "and the next one begins at");

    let mut log = Log::new();
    log.write(
        Tail {
            next_position: LogPosition::new(5),
            ..Tail::first(0)
        },
        &[],
    );
    log.assert_damaged(&log.path(1), "does not begin at position 0");
}

#[test]
fn a_misplaced_segment_is_damage() {
    let log = Log::sample();
    fs::rename(log.path(3), log.path(4)).unwrap();
    log.assert_damaged(&log.path(4), "its header names segment 3 of shard 0");

    let log = Log::sample();
    let folder = log.directory.shard_path(1);
    fs::create_dir(&folder).unwrap();
    fs::copy(log.path(1), folder.join(segment::file_name(1))).unwrap();
    log.assert_damaged(
        &folder.join(segment::file_name(1)),
        "its header names segment 1 of shard 0",
    );

    let (log, other) = (Log::sample(), Log::sample());
    fs::copy(other.path(2), log.path(2)).unwrap();
    log.assert_damaged(&log.path(2), "it belongs to another data directory");
    log.replayed().unwrap_err();
}

#[test]
fn a_segment_from_a_newer_server_is_not_repaired() {
    let log = Log::sample();
    let mut bytes = fs::read(log.path(3)).unwrap();
    bytes[8] = 3;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(log.path(3), bytes).unwrap();
    let message = log.recover().0.unwrap_err().to_string();
    assert!(
        message.ends_with("it has format 3, but this server reads 1 to 2; start the newer server"),
        "{message}"
    );
}

#[test]
fn a_replay_reads_its_own_folder_and_older_ops_in_the_others() {
    let mut log = Log::sample();
    let tail = log.write(Tail::first(1), &[vec![21], vec![22]]);
    log.write(tail, &[vec![23]]);
    let of = |shard: u32, others: &[(u32, u64)]| {
        let sources = Sources {
            shard,
            others: others.to_vec(),
        };
        let mut numbers = Vec::new();
        let count = replay(&log.directory, &sources, |op| numbers.push(op.seq.get()));
        count.map(|count| {
            assert_eq!(count, numbers.len() as u64);
            numbers
        })
    };
    assert_eq!(of(1, &[]).unwrap(), [21, 22, 23]);
    assert_eq!(of(1, &[(0, 0)]).unwrap(), [21, 22, 23]);
    assert_eq!(of(1, &[(0, 1)]).unwrap(), [1, 2, 3, 21, 22, 23]);
    assert_eq!(of(0, &[(1, 1)]).unwrap()[..2], [21, 22]);
    let error = of(9, &[]).unwrap_err();
    assert!(matches!(error, RecoveryError::Io { .. }), "{error}");

    let path = log.path(3);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = of(0, &[]).unwrap_err();
    assert!(matches!(error, RecoveryError::Damaged { .. }), "{error}");
    let length = fs::read(&path).unwrap().len();
    assert_eq!(length, whole.len() - 1, "the replay truncated the log");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// After any number of starts and crashes, each start finds the synced ops, in order, and the
    /// log continues.
    #[test]
    fn recovery_finds_what_the_model_contains(
        rounds in prop::collection::vec(
            (0_u32..3, prop::collection::vec(0_usize..4, 0..4), prop::option::of(0_usize..200)),
            0..8,
        ),
    ) {
        let mut log = Log::new();
        let mut number = 0;
        for (shard, batches, torn_bytes) in rounds {
            let (report, ops) = log.recovered();
            prop_assert_eq!(ops, log.model());
            let mut numbered = |count| (0..count).map(|_| { number += 1; number }).collect();
            let batches: Vec<Vec<Number>> = batches.into_iter().map(&mut numbered).collect();
            let tail = report.tail(shard);
            log.write(tail, &batches);
            if let Some(bytes) = torn_bytes {
                let folder = log.directory.shard_path(shard);
                let path = folder.join(segment::file_name(tail.next_index));
                let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
                io::Write::write_all(&mut file, &vec![0; bytes]).unwrap();
            }
        }
        let (_, ops) = log.recovered();
        prop_assert_eq!(ops, log.model());
        prop_assert_eq!(log.replayed().unwrap(), log.model());
        prop_assert_eq!(log.recovered().0.torn, []);
    }
}
