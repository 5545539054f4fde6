//! Group commit: tables of scripts and their expected outcomes.

use super::*;
use crate::generation::Generation;
use crate::log::record::{Change, LoggedOp, SegmentHeader};
use crate::seq::Seq;

mod random;

const INTERVAL_US: u64 = 1000;

fn header(index: u64, first_position: u64) -> SegmentHeader {
    SegmentHeader::new(3, [7; 16], index, LogPosition::new(first_position))
}

fn segment(index: u64, first_position: u64) -> OpenSegment {
    OpenSegment {
        index,
        first_position: LogPosition::new(first_position),
        salt: header(index, first_position).salt(),
        writes_through: false,
    }
}

fn written_through(index: u64, first_position: u64) -> OpenSegment {
    OpenSegment {
        writes_through: true,
        ..segment(index, first_position)
    }
}

fn op(value: &str, seq: u64) -> LoggedOp<'_> {
    LoggedOp {
        workspace: "w",
        key: "k",
        change: Change::write(value),
        seq: Seq::new(seq),
        timestamp: seq,
    }
}

fn failure() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// A log that is driven by a script of words.
struct Script {
    commit: Commit,
    now_us: u64,
    /// The position of the last op.
    position: LogPosition,
    seq: u64,
    batch: Option<(Vec<u8>, usize)>,
}

type Outcome = Result<Option<LogStep>, LogBroken>;

impl Script {
    fn run(&mut self, word: &str) -> Outcome {
        let left = self
            .batch
            .as_ref()
            .map_or(0, |batch| batch.0.len() - batch.1);
        match word {
            "push" => {
                self.seq += 1;
                self.position = self.commit.push(&op("1", self.seq), self.now_us);
            }
            "wait" => self.now_us += INTERVAL_US,
            "fail" => self.commit.fail(),
            "start" => return Ok(self.commit.start(self.now_us)),
            "settle" => return Ok(self.commit.settle(self.now_us)),
            "seal" => return Ok(Some(self.commit.seal(self.now_us))),
            "written" => return self.written(Ok(left)),
            "short" => return self.written(Ok(5)),
            "none" => return self.written(Ok(0)),
            "more" => return self.written(Ok(left + 1)),
            "unwritten" => return self.written(Err(failure())),
            "synced" => return self.commit.synced(&Ok(()), 0).map(|()| None),
            "unsynced" => return self.commit.synced(&Err(failure()), 0).map(|()| None),
            word => unreachable!("{word} is not a known word"),
        }
        Ok(None)
    }

    fn written(&mut self, outcome: io::Result<usize>) -> Outcome {
        let (bytes, _) = self.batch.take().expect("a write is in flight");
        self.commit.written(bytes, outcome, self.now_us)
    }
}

/// Runs a script of words and returns the outcome of each word: `W`rite, `S`ync, `O`pen, `-` for
/// nothing, `!` for a broken log, each followed by `v` if everything pushed so far is visible.
fn trace(durability: Durability, segment: OpenSegment, script: &str) -> String {
    let mut run = Script {
        commit: Commit::new(durability, INTERVAL_US, segment, 0),
        now_us: 0,
        position: LogPosition::new(100),
        seq: 0,
        batch: None,
    };
    let mut steps = Vec::new();
    for word in script.split(' ') {
        let outcome = run.run(word);
        run.commit.invariants();
        let letter = match outcome {
            Ok(None) => "-",
            Ok(Some(LogStep::Write { bytes, from, .. })) => {
                run.batch = Some((bytes, from));
                "W"
            }
            Ok(Some(LogStep::Sync)) => "S",
            Ok(Some(LogStep::Open { .. })) => "O",
            Err(LogBroken) => "!",
        };
        let is_visible = run.commit.visible_position() >= run.position;
        steps.push(format!("{letter}{}", if is_visible { "v" } else { "" }));
    }
    steps.join(" ")
}

fn check(durability: Durability, script: &str, expected: &str) {
    assert_eq!(
        trace(durability, segment(4, 100), script),
        expected,
        "{durability:?}: {script}"
    );
}

#[test]
fn a_write_through_completes_the_commit() {
    for (script, expected) in [
        ("start settle", "-v -v"),
        ("push start written", "- W -v"),
        (
            "push start push start written start written settle",
            "- W - - - W -v -v",
        ),
        ("push start short short written", "- W W W -v"),
        ("seal written start settle", "Wv -v -v -v"),
        ("push start unwritten start settle", "- W ! - -"),
        ("push start none start", "- W ! -"),
        ("push start short unwritten start", "- W W ! -"),
        ("push start fail written start", "- W - - -"),
    ] {
        let trace = trace(Durability::Always, written_through(4, 100), script);
        assert_eq!(trace, expected, "{script}");
    }
}

#[test]
fn a_batch_is_due_later_if_commits_are_slow() {
    let least_us = COMMIT_AGE_MIN_US;
    for (took_us, age_us) in [
        (0, least_us),
        (4 * least_us + 3, least_us),
        (4 * least_us + 4, least_us + 1),
        (4 * COMMIT_AGE_MAX_US, COMMIT_AGE_MAX_US),
        (5 * COMMIT_AGE_MAX_US, COMMIT_AGE_MAX_US),
    ] {
        for segment in [segment(1, 0), written_through(1, 0)] {
            let mut commit = Commit::new(Durability::Always, INTERVAL_US, segment, 0);
            assert_eq!(commit.batch_due_us(), None);
            commit.push(&op("1", 1), 1000);
            assert_eq!(commit.batch_due_us(), Some(1000 + least_us));
            let Some(LogStep::Write { bytes, .. }) = commit.start(2000) else {
                unreachable!("a batch is being written");
            };
            // The wait of an op that is pushed in the meantime is measured from the end of this
            // commit.
            commit.push(&op("1", 2), 2000);
            let (count, end_us) = (bytes.len(), 2000 + took_us);
            let step = commit.written(bytes, Ok(count), end_us);
            if step == Ok(Some(LogStep::Sync)) {
                assert_eq!(commit.synced(&Ok(()), end_us), Ok(()));
            }
            let case = format!("{took_us} {segment:?}");
            assert_eq!(commit.batch_due_us(), Some(end_us + age_us), "{case}");
        }
    }
}

#[test]
fn phases() {
    use Durability::{Always, Interval, None};
    for (durability, script, expected) in [
        (Always, "start settle", "-v -v"),
        (Always, "push start written synced", "- W S -v"),
        (
            Always,
            "push start push start written start synced start written synced",
            "- W - - S - - W S -v",
        ),
        (
            Always,
            "push start short short written synced",
            "- W W W S -v",
        ),
        (
            Interval,
            "push start written start settle synced settle",
            "-v Wv -v -v Sv -v -v",
        ),
        (
            Interval,
            "push start written wait start synced wait start",
            "-v Wv -v -v Sv -v -v -v",
        ),
        (
            Interval,
            "push start written push wait start synced start",
            "-v Wv -v -v -v Sv -v Wv",
        ),
        (
            None,
            "push start written wait start settle synced",
            "-v Wv -v -v -v Sv -v",
        ),
        (Always, "seal written synced start settle", "Wv Sv -v -v -v"),
        (None, "seal written settle synced", "Wv -v Sv -v"),
    ] {
        check(durability, script, expected);
    }
}

#[test]
fn failures() {
    use Durability::{Always, Interval, None};
    for (durability, script, expected) in [
        (Always, "push start unwritten start settle", "- W ! - -"),
        (Always, "push start none start", "- W ! -"),
        (Always, "push start more start", "- W ! -"),
        (Always, "push start short unwritten start", "- W W ! -"),
        (
            Always,
            "push start written unsynced start settle",
            "- W S ! - -",
        ),
        (
            Interval,
            "push start written settle unsynced wait start",
            "-v Wv -v Sv !v -v -v",
        ),
        (None, "push start unwritten start", "-v Wv !v -v"),
        // Outcomes that arrive after the log was abandoned change nothing.
        (Always, "push fail start", "- - -"),
        (Always, "push start fail written start", "- W - - -"),
        (Always, "push start fail short start", "- W - - -"),
        (Always, "push start fail unwritten start", "- W - - -"),
        (
            Always,
            "push start written fail synced start settle",
            "- W S - - - -",
        ),
        (
            Always,
            "push start written fail unsynced start",
            "- W S - - -",
        ),
    ] {
        check(durability, script, expected);
    }
}

#[test]
fn a_full_segment_is_synced_and_then_closed() {
    let value = "9".repeat(usize::try_from(SEGMENT_BYTES_MAX).expect("64 MiB fit in memory"));
    for (durability, synced_by_timer) in [
        (Durability::Always, false),
        (Durability::Interval, false),
        (Durability::Interval, true),
        (Durability::None, false),
    ] {
        let mut commit = Commit::new(durability, INTERVAL_US, segment(4, 100), 0);
        let end = commit.push(&op(&value, 1), 0);
        assert!(commit.is_full());
        let Some(LogStep::Write { bytes, .. }) = commit.start(0) else {
            unreachable!("a batch is being written");
        };
        let count = bytes.len();
        let step = commit.written(bytes, Ok(count), 0);
        assert_eq!(
            step == Ok(Some(LogStep::Sync)),
            durability == Durability::Always
        );
        if synced_by_timer {
            assert_eq!(commit.start(INTERVAL_US), Some(LogStep::Sync));
        }
        if step != Ok(None) || synced_by_timer {
            assert_eq!(commit.synced(&Ok(()), 0), Ok(()));
        }
        assert_eq!(commit.start(0), None, "the next op opens the next segment");
        commit.push(&op("1", 2), 0);
        if durability != Durability::Always && !synced_by_timer {
            assert_eq!(commit.start(0), Some(LogStep::Sync));
            assert_eq!(commit.start(0), None);
            assert_eq!(commit.synced(&Ok(()), 0), Ok(()));
        }
        let (index, first_position) = (5, end);
        let open = LogStep::Open {
            index,
            first_position,
        };
        assert_eq!(commit.start(0), Some(open));
        assert!(!commit.holds_sends() && !commit.is_quiet());
        assert_eq!(commit.opened(&Ok(segment(5, end.get()))), Ok(()));
        let Some(LogStep::Write { offset, .. }) = commit.start(0) else {
            unreachable!("a batch is being written");
        };
        assert_eq!(offset, SEGMENT_HEADER_BYTES as u64);
    }
}

#[test]
fn segment_open_failures() {
    let value = "9".repeat(usize::try_from(SEGMENT_BYTES_MAX).expect("64 MiB fit in memory"));
    for is_late in [false, true] {
        let mut commit = Commit::new(Durability::Always, INTERVAL_US, segment(4, 100), 0);
        let durable = commit.push(&op(&value, 1), 0);
        let Some(LogStep::Write { bytes, .. }) = commit.start(0) else {
            unreachable!("a batch is being written");
        };
        let count = bytes.len();
        assert_eq!(commit.written(bytes, Ok(count), 0), Ok(Some(LogStep::Sync)));
        assert_eq!(commit.synced(&Ok(()), 0), Ok(()));
        let lost = commit.push(&op("1", 2), 0);
        assert!(matches!(commit.start(0), Some(LogStep::Open { .. })));
        if is_late {
            commit.fail();
            assert!(!commit.is_quiet());
            assert_eq!(commit.opened(&Ok(segment(5, durable.get()))), Ok(()));
        } else {
            assert_eq!(commit.opened(&Err(failure())), Err(LogBroken));
        }
        assert!(commit.is_failed() && commit.is_quiet() && !commit.has_ops());
        assert!(commit.visible_position() < lost);
        let (index, shown) = (4, durable);
        assert_eq!(
            commit.end(),
            End {
                index,
                durable,
                shown
            }
        );
        commit.reopen(segment(6, durable.get()), 0);
        assert!(commit.is_settled());
    }
}

#[test]
fn a_late_fdatasync_failure_is_not_retried() {
    // The shard abandons its log for another reason while the fdatasync is in flight.
    for (ok, keeps_written) in [(true, true), (false, false)] {
        let mut commit = Commit::new(Durability::Interval, INTERVAL_US, segment(0, 0), 0);
        let written = commit.push(&op("1", 1), 0);
        let Some(LogStep::Write { bytes, .. }) = commit.start(0) else {
            unreachable!("a batch is being written");
        };
        let count = bytes.len();
        assert_eq!(commit.written(bytes, Ok(count), 0), Ok(None));
        assert_eq!(commit.start(INTERVAL_US), Some(LogStep::Sync));
        commit.fail();
        let outcome = if ok { Ok(()) } else { Err(failure()) };
        assert_eq!(commit.synced(&outcome, INTERVAL_US), Ok(()));
        assert!(commit.is_quiet());
        let shown = if keeps_written {
            written
        } else {
            LogPosition::START
        };
        let (index, durable) = (0, LogPosition::START);
        assert_eq!(
            commit.end(),
            End {
                index,
                durable,
                shown
            },
            "the fdatasync succeeded: {ok}"
        );
    }
}

#[test]
fn the_interval_mode_timer() {
    let mut commit = Commit::new(Durability::Interval, INTERVAL_US, segment(0, 0), 50);
    assert_eq!(commit.sync_due_us(), None);
    commit.push(&op("1", 1), 60);
    commit.push(&op("1", 2), 70);
    assert_eq!((commit.sync_due_us(), commit.oldest_us()), (None, Some(60)));
    let Some(LogStep::Write { bytes, .. }) = commit.start(80) else {
        unreachable!("a batch is being written");
    };
    let count = bytes.len();
    assert_eq!(commit.written(bytes, Ok(count), 90), Ok(None));
    let due_us = 50 + INTERVAL_US;
    assert_eq!(commit.sync_due_us(), Some(due_us));
    assert_eq!(commit.start(due_us - 1), None);
    assert_eq!(commit.start(due_us), Some(LogStep::Sync));
    assert_eq!(commit.synced(&Ok(()), 0), Ok(()));
    assert_eq!(commit.sync_due_us(), None);
    for durability in [Durability::Always, Durability::None] {
        let mut commit = Commit::new(durability, INTERVAL_US, segment(0, 0), 0);
        commit.push(&op("1", 1), 0);
        assert!(commit.start(0).is_some());
        assert_eq!(commit.sync_due_us(), None);
    }
}

#[test]
fn a_batch_is_full_at_the_configured_size_even_after_a_failure() {
    let nowhere = Commit::closed(Durability::None, INTERVAL_US, 0);
    let mut commit = nowhere.with_batch_bytes_max(100);
    for index in [1, 2] {
        commit.reopen(segment(index, 0), 0);
        assert!(!commit.is_full());
        commit.push(&op(&"9".repeat(100), 1), 0);
        assert!(commit.is_full());
        commit.fail();
    }
}

/// A floor and a generation are logged, but the metrics do not count them as ops.
#[test]
fn only_writes_and_deletes_count_as_ops() {
    let with = |key, change| LoggedOp {
        key,
        change,
        ..op("", 2)
    };
    let generation = LoggedOp {
        workspace: "",
        ..with(
            "3",
            Change::Generation {
                id: Generation::new(7),
                shards: 4,
            },
        )
    };
    let dropped_seq = Seq::new(1);
    let cases = [
        (generation, 0),
        (with("", Change::Floor { dropped_seq }), 0),
        (with("k", Change::Delete { deleted_at_us: 5 }), 1),
        (op("1", 2), 1),
    ];
    for (op, ops_count) in cases {
        let mut commit = Commit::new(Durability::Always, INTERVAL_US, segment(1, 0), 0);
        commit.push(&op, 0);
        assert!(matches!(commit.start(0), Some(LogStep::Write { .. })));
        assert_eq!(commit.take_group(), ops_count, "{op:?}");
    }
}
