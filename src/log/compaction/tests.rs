//! Compaction: the state is preserved, dead ops are removed, and a stop or an error at any point
//! does no harm.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::super::disk::HostDisk;
use super::super::recovery::{RecoveryReport, Tail, recover};
use super::*;
use crate::log::record::Change;
use crate::seq::Seq;

mod model;

/// The winner of each key, by the rule of replay.
type State = BTreeMap<(String, String), (u64, u64, String)>;

const SMALL: Settings = Settings {
    dead_share: COMPACTION_DEAD_SHARE,
    segment_bytes_min: 1000,
    segment_bytes_max: 4000,
};

struct Log {
    root: TempDir,
    /// The format of the segments that the test writes.
    format_version: u16,
    directory: Arc<DataDirectory>,
    seq: Seq,
}

impl Log {
    fn new() -> Self {
        let root = tempdir().unwrap();
        let directory = Arc::new(DataDirectory::open(root.path()).unwrap());
        Self {
            root,
            format_version: record::FORMAT_VERSION,
            directory,
            seq: Seq::NONE,
        }
    }

    /// Writes the next segment of a shard. Each op has the next seq and a timestamp that may
    /// repeat.
    fn segment(&mut self, shard: u32, keys: &[u8]) {
        let tail = self.recovered().0.tail(shard);
        self.segment_at(tail, keys);
    }

    fn segment_at(&mut self, tail: Tail, keys: &[u8]) {
        let Tail {
            shard,
            next_index,
            next_position,
        } = tail;
        let header = SegmentHeader {
            format_version: self.format_version,
            ..SegmentHeader::new(shard, self.directory.epoch(), next_index, next_position)
        };
        let folder = self.directory.shard_path(shard);
        let segment = segment::create(&HostDisk, &folder, header, 0).unwrap();
        let mut bytes = header.encode().to_vec();
        let mut batch = Vec::new();
        for ops in keys.chunks(3) {
            record::begin_batch(&mut batch);
            for key in ops {
                self.seq = self.seq.next();
                record::push_op(
                    &mut batch,
                    &LoggedOp {
                        workspace: &format!("workspace-{}", key % 3),
                        key: &format!("key-{key}"),
                        change: Change::write(&format!(
                            "\"{:0width$}\"",
                            self.seq,
                            width = 5 + usize::from(*key)
                        )),
                        seq: self.seq,
                        timestamp: self.seq.get() / 2,
                    },
                );
            }
            let position = header.position(bytes.len() as u64);
            record::seal_batch(&mut batch, header.salt(), position, position);
            bytes.extend_from_slice(&batch);
        }
        fs::write(segment.path, bytes).unwrap();
    }

    fn recovered(&self) -> (RecoveryReport, State) {
        let mut state = State::new();
        let report = recover(&self.directory, |op| {
            let key = (op.workspace.to_owned(), op.key.to_owned());
            let held = (op.timestamp, op.seq.get(), op.value().to_owned());
            let entry = state.entry(key).or_insert_with(|| held.clone());
            if held.0 > entry.0 || (held.0 == entry.0 && held.1 < entry.1) {
                *entry = held;
            }
        });
        (report.unwrap(), state)
    }

    fn compaction(&self, open: &[(u32, u64)], settings: Settings) -> Compaction<HostDisk> {
        Compaction::plan(Arc::clone(&self.directory), open, settings).unwrap()
    }

    fn compact(&self, open: &[(u32, u64)], settings: Settings) -> CompactionOutcome {
        let mut compaction = self.compaction(open, settings);
        while compaction.step(&mut |_| ControlFlow::Continue(())).unwrap() {}
        compaction.outcome()
    }

    /// Runs a sweep in which exactly the segments with these indexes are known to be dead.
    fn sweep(&self, open: &[(u32, u64)], dead: &[(u32, u64)]) -> CompactionOutcome {
        let directory = Arc::clone(&self.directory);
        let sweep = Compaction::sweep(directory, open, SMALL, |shard, segments| {
            segments.clone().all(|index| dead.contains(&(shard, index)))
        });
        let mut sweep = sweep.unwrap();
        while sweep.step(&mut |_| ControlFlow::Continue(())).unwrap() {}
        assert!(sweep.is_done());
        sweep.outcome()
    }

    fn image(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut image = BTreeMap::new();
        for shard in self.directory.shards().unwrap() {
            for entry in fs::read_dir(self.directory.shard_path(shard)).unwrap() {
                let path = entry.unwrap().path();
                image.insert(path.clone(), fs::read(path).unwrap());
            }
        }
        image
    }
}

#[test]
fn dead_ops_are_removed_and_the_log_continues() {
    let mut log = Log::new();
    for _ in 0..20 {
        log.segment(0, &[1, 2, 3, 1, 2, 3, 1, 2, 3]);
    }
    let (before, state) = log.recovered();
    let outcome = log.compact(&[], SMALL);
    assert_eq!(outcome.segments, 20);
    assert_eq!(
        (outcome.segments_replaced, outcome.segments_written),
        (20, 1)
    );
    let (after, state_after) = log.recovered();
    assert_eq!(state_after, state);
    assert_eq!(after.ops, 3, "one op is left per key");
    assert_eq!(after.segments, 1);
    assert_eq!(before.bytes - after.bytes, outcome.bytes_freed);
    // It replaces all the others: the shard would continue at the same index and position as
    // before.
    assert_eq!(after.tails, before.tails);
    assert_eq!(
        log.compact(&[], SMALL).segments_replaced,
        0,
        "nothing was dead"
    );
    log.segment(0, &[9]);
    assert_eq!(log.recovered().1.len(), 4);
}

#[test]
fn format_1_segments_are_compacted_into_a_format_2_segment() {
    let mut log = Log::new();
    for format_version in [1, 1, 2] {
        log.format_version = format_version;
        log.segment(0, &[1, 2, 3, 1, 2, 3, 1, 2, 3]);
    }
    let (_, state) = log.recovered();
    assert_eq!(log.compact(&[], SMALL).segments_replaced, 3);
    assert_eq!(log.recovered().1, state);
    let chain = Chain::read(&HostDisk, log.root.path(), log.directory.epoch(), 0).unwrap();
    assert_eq!(chain.links.len(), 1);
    assert_eq!(chain.links[0].header.format_version, 2);
}

#[test]
fn segments_known_to_be_dead_are_removed_without_being_read() {
    let mut log = Log::new();
    for shard in [0, 1] {
        for _ in 0..6 {
            log.segment(shard, &[1, 2, 1, 2, 1, 2]);
        }
    }
    let (before, state) = log.recovered();
    let folder = log.directory.shard_path(0);
    // This segment cannot be read: its first record is damaged.
    let path = folder.join(segment::file_name(2));
    let mut bytes = fs::read(&path).unwrap();
    bytes[SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + 4] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(recover(&log.directory, |_| {}).is_err());
    let dead = [(0, 1), (0, 2), (0, 3), (0, 5), (0, 6), (1, 4), (1, 5)];
    let outcome = log.sweep(&[(0, 6), (1, 6)], &dead);
    assert_eq!((outcome.segments, outcome.bytes), (10, outcome.bytes));
    assert_eq!(
        (outcome.segments_replaced, outcome.segments_written),
        (3 + 1 + 2, 3),
        "each run of segments is replaced by one, except for the open one"
    );
    let (after, state_after) = log.recovered();
    assert_eq!(state_after, state);
    assert_eq!(after.ops, before.ops - 6 * 6);
    assert_eq!(after.tails, before.tails);
    assert_eq!(before.bytes - after.bytes, outcome.bytes_freed);
    let again = log.sweep(&[(0, 6), (1, 6)], &dead);
    assert_eq!(again.segments_replaced, 0, "nothing is left to remove");
    log.segment(0, &[1]);
    assert_eq!(
        log.sweep(&[(0, 7)], &dead).segments_replaced,
        2,
        "segments 5 and 6 are replaced"
    );
}

#[test]
fn the_open_segment_and_later_ones_are_left_alone() {
    let mut log = Log::new();
    for _ in 0..3 {
        log.segment(0, &[1; 9]);
        log.segment(1, &[1; 9]);
    }
    let before = log.image();
    log.compact(&[(0, 2), (1, 1)], SMALL.thorough());
    let after = log.image();
    for (path, bytes) in &before {
        let is_closed = path.ends_with("shard-00/0000000001.aof");
        assert_eq!(after.get(path) != Some(bytes), is_closed, "{path:?}");
    }
}

#[test]
fn an_op_is_superseded_by_one_in_another_folder() {
    let mut log = Log::new();
    log.segment(0, &[1, 1, 1, 4]);
    log.segment(1, &[1, 1, 1, 7]);
    let (_, state) = log.recovered();
    log.compact(&[], SMALL.thorough());
    let (report, state_after) = log.recovered();
    assert_eq!((state_after, report.ops), (state, 3));
}

#[test]
fn mostly_live_segments_are_left_unless_compaction_is_thorough() {
    let mut log = Log::new();
    log.segment(0, &(0..100).collect::<Vec<u8>>());
    log.segment(0, &[50]);
    let settings = Settings {
        segment_bytes_min: 1 << 20,
        segment_bytes_max: 1 << 20,
        dead_share: 4,
    };
    assert_eq!(log.compact(&[], settings).segments_replaced, 0);
    assert_eq!(log.compact(&[], settings.thorough()).segments_replaced, 2);
    assert_eq!(log.recovered().0.ops, 100);
    assert_eq!(log.compact(&[], settings.thorough()).segments_replaced, 0);
}

#[test]
fn a_stop_at_any_step_leaves_an_intact_log_and_no_leftovers() {
    for stop_at in 0..100 {
        let mut log = Log::new();
        for round in 0..12 {
            log.segment(round % 2, &[1, 2, 3, 60, 60, 61, 62, 63]);
        }
        let (_, state) = log.recovered();
        let mut compaction = log.compaction(&[], SMALL);
        let mut pauses = 0;
        let stopped = loop {
            let step = compaction.step(&mut |_| {
                pauses += 1;
                if pauses > stop_at {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            match step {
                Ok(true) => {}
                Ok(false) => break false,
                Err(CompactionError::Stopped) => break true,
                Err(error) => panic!("{error}"),
            }
        };
        let names: Vec<_> = log.image().into_keys().collect();
        assert!(
            names
                .iter()
                .all(|name| !name.to_string_lossy().ends_with(".new"))
        );
        assert_eq!(log.recovered().1, state, "stopped at {stop_at}");
        if !stopped {
            assert!(stop_at > 12, "fewer pauses than segments");
            return;
        }
    }
    panic!("the compaction never ends");
}

#[test]
fn replaced_segments_left_by_a_crash_are_ignored_and_removed_at_startup() {
    let mut log = Log::new();
    for _ in 0..4 {
        log.segment(0, &[1, 2, 1, 2]);
    }
    let before = log.image();
    let (_, state) = log.recovered();
    log.compact(&[], SMALL);
    let after = log.image();
    assert_eq!(after.len(), 1);
    // A crash may undo any of the removals; the contents of these segments no longer matter.
    for left in 0..1 << 3 {
        for (place, (path, _)) in before.iter().take(3).enumerate() {
            if left >> place & 1 == 1 {
                fs::write(path, "not even a segment").unwrap();
            }
        }
        let (report, state_after) = log.recovered();
        assert_eq!((report.ops, state_after), (2, state.clone()));
        assert_eq!(log.image(), after);
    }
}

#[test]
fn the_last_segment_of_a_running_shard_is_kept_even_if_the_open_one_is_gone() {
    let mut log = Log::new();
    for _ in 0..4 {
        log.segment(0, &[1, 2, 1, 2]);
    }
    // Segment 5 was reported as open, but a failed rebuild has removed it. Segment 4 was written
    // through, and its zeros could not be trimmed.
    let last = log.directory.shard_path(0).join(segment::file_name(4));
    let mut bytes = fs::read(&last).unwrap();
    bytes.resize(bytes.len() + 8192, 0);
    fs::write(&last, &bytes).unwrap();
    assert_eq!(
        log.compact(&[(0, 5)], SMALL.thorough()).segments_replaced,
        3
    );
    assert_eq!(fs::read(&last).unwrap(), bytes);
    // A shard that is not running has no open segment, so its whole folder is compacted.
    assert_eq!(log.compact(&[], SMALL.thorough()).segments, 2);
}

#[test]
fn a_compacted_segment_has_no_torn_tail() {
    let mut log = Log::new();
    log.segment(0, &[1, 2, 1, 2]);
    log.compact(&[], SMALL.thorough());
    let path = log.root.path().join("shard-00/0000000001.aof");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = recover(&log.directory, |_| {}).unwrap_err();
        assert!(
            matches!(error, RecoveryError::Damaged { .. }),
            "length {length}: {error}"
        );
        assert_eq!(fs::read(&path).unwrap().len(), length, "the file changed");
    }
}

#[test]
fn a_failed_write_is_reported_and_changes_nothing() {
    let mut log = Log::new();
    log.segment(0, &[1, 2, 1, 2]);
    let before = log.image();
    let mut compaction = log.compaction(&[], SMALL.thorough());
    // A folder occupies the path at which the new segment is to be written.
    let path_new = log.root.path().join("shard-00/0000000001.aof.new");
    fs::create_dir(&path_new).unwrap();
    let mut step = || compaction.step(&mut |_| ControlFlow::Continue(()));
    assert!(step().unwrap());
    let error = step().unwrap_err();
    assert!(matches!(error, CompactionError::Write { .. }), "{error}");
    fs::remove_dir(path_new).unwrap();
    assert_eq!(log.image(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever is written, and whenever it is compacted, the state is the same as without
    /// compaction.
    #[test]
    fn compaction_does_not_change_the_state(
        rounds in prop::collection::vec(
            (0_u32..3, prop::collection::vec(0_u8..12, 0..30), 0_u8..4),
            1..8,
        ),
    ) {
        let (mut plain, mut compacted) = (Log::new(), Log::new());
        for (shard, keys, what) in rounds {
            plain.segment(shard, &keys);
            compacted.segment(shard, &keys);
            match what {
                0 => drop(compacted.compact(&[], SMALL)),
                1 => drop(compacted.compact(&[], SMALL.thorough())),
                2 => {
                    let open = compacted.recovered().0.tail(shard).next_index - 1;
                    compacted.compact(&[(shard, open)], SMALL.thorough());
                }
                _ => {}
            }
            let (_, state) = plain.recovered();
            let (_, state_compacted) = compacted.recovered();
            prop_assert_eq!(state_compacted, state);
        }
    }
}

#[test]
fn reading_pauses_after_each_piece_and_continues_until_stopped() {
    let value = "1".repeat(COMPACTION_READ_BYTES / 2);
    let op = LoggedOp {
        workspace: "w",
        key: "k",
        change: Change::write(&value),
        seq: Seq::new(1),
        timestamp: 1,
    };
    let op_bytes = record::op_bytes(&op) as u64;
    for stop_at in [1, 2, 3, 9] {
        let mut pauses = Vec::new();
        let mut throttle = |bytes| {
            pauses.push(bytes);
            if pauses.len() == stop_at {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let mut pieces = ReadThrottle::default();
        for _ in 0..5 {
            pieces.add(&op, &mut throttle);
        }
        let ended = pieces.end(&mut throttle);
        assert_eq!(ended.is_err(), stop_at <= 3, "{stop_at}");
        let all = [2 * op_bytes, 2 * op_bytes, op_bytes];
        assert_eq!(pauses, all[..stop_at.min(3)]);
    }
}

#[test]
fn an_unlinked_file_is_truncated_in_steps_unless_a_reader_holds_it() {
    let piece = COMPACTION_BATCH_BYTES as u64;
    for (is_read, bytes, pauses_count) in
        [(false, 5 * piece / 2, 3), (false, 0, 0), (true, piece, 0)]
    {
        let folder = tempdir().unwrap();
        let path = folder.path().join("segment");
        let file = HostDisk.create(&path).unwrap();
        file.set_bytes(bytes).unwrap();
        let reader = HostDisk.open(&path).unwrap();
        assert!(!is_read || reader.share().unwrap());
        let mut left = Vec::new();
        let mut throttle = |_| {
            left.push(DiskFile::bytes(&reader).unwrap());
            ControlFlow::Continue(())
        };
        shrink(&file, &mut throttle).unwrap();
        assert_eq!(left.len(), pauses_count, "{is_read}, {bytes}");
        assert!(left.is_sorted_by(|a, b| a - b == piece || *b == 0));
        let expected = if is_read { bytes } else { 0 };
        assert_eq!(DiskFile::bytes(&file).unwrap(), expected);
    }
}
