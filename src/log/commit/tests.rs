//! Group commit: tables of what follows what, and a run of random outcomes against a naive file.

use proptest::prelude::*;

use super::*;
use crate::log::record::{Op, Reader, SegmentHeader};

const INTERVAL_US: u64 = 1000;

fn header(index: u64, first_position: u64) -> SegmentHeader {
    SegmentHeader::new(3, [7; 16], index, first_position)
}

fn segment(index: u64, first_position: u64) -> OpenSegment {
    OpenSegment {
        index,
        first_position,
        salt: header(index, first_position).salt(),
    }
}

fn op(value: &str, seq: u64) -> Op<'_> {
    Op {
        workspace: "w",
        key: "k",
        value,
        seq,
        timestamp: seq,
    }
}

/// A log under a script of words.
struct Script {
    commit: Commit,
    now_us: u64,
    /// Of the last op.
    position: u64,
    seq: u64,
    batch: Option<(Vec<u8>, usize)>,
}

type Outcome = Result<Option<Step>, LogBroken>;

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
            "seal" => return Ok(Some(self.commit.seal())),
            "written" => return self.written(Some(left)),
            "short" => return self.written(Some(5)),
            "none" => return self.written(Some(0)),
            "more" => return self.written(Some(left + 1)),
            "unwritten" => return self.written(None),
            "synced" => return self.commit.synced(true, 0).map(|()| None),
            "unsynced" => return self.commit.synced(false, 0).map(|()| None),
            word => unreachable!("{word} is no word"),
        }
        Ok(None)
    }

    fn written(&mut self, outcome: Option<usize>) -> Outcome {
        let (bytes, _) = self.batch.take().expect("a write is in flight");
        self.commit.written(bytes, outcome, self.now_us)
    }
}

/// Runs a script of words, and gives what each of them brought: `W`rite, `S`ync, `-` for nothing,
/// `!` for a broken log; a small `v` behind it where all that was pushed is visible.
fn trace(durability: Durability, script: &str) -> String {
    let mut run = Script {
        commit: Commit::new(durability, INTERVAL_US, segment(4, 100), 0),
        now_us: 0,
        position: 100,
        seq: 0,
        batch: None,
    };
    let mut told = Vec::new();
    for word in script.split(' ') {
        let letter = match run.run(word) {
            Ok(None) => "-",
            Ok(Some(Step::Write { bytes, from, .. })) => {
                run.batch = Some((bytes, from));
                "W"
            }
            Ok(Some(Step::Sync)) => "S",
            Ok(Some(Step::Open { .. })) => "O",
            Err(LogBroken) => "!",
        };
        let is_visible = run.commit.visible_position() >= run.position;
        told.push(format!("{letter}{}", if is_visible { "v" } else { "" }));
    }
    told.join(" ")
}

fn check(durability: Durability, script: &str, expected: &str) {
    assert_eq!(
        trace(durability, script),
        expected,
        "{durability:?}: {script}"
    );
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
        // Outcomes that come after the log was given up change nothing.
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
    let value = "9".repeat(usize::try_from(SEGMENT_BYTES_MAX).expect("64 MiB fit memory"));
    for (durability, synced_by_timer) in [
        (Durability::Always, false),
        (Durability::Interval, false),
        (Durability::Interval, true),
        (Durability::None, false),
    ] {
        let mut commit = Commit::new(durability, INTERVAL_US, segment(4, 100), 0);
        let end = commit.push(&op(&value, 1), 0);
        assert!(commit.is_full());
        let Some(Step::Write { bytes, .. }) = commit.start(0) else {
            unreachable!("a batch is written");
        };
        let count = bytes.len();
        let step = commit.written(bytes, Some(count), 0);
        assert_eq!(
            step == Ok(Some(Step::Sync)),
            durability == Durability::Always
        );
        if synced_by_timer {
            assert_eq!(commit.start(INTERVAL_US), Some(Step::Sync));
        }
        if step != Ok(None) || synced_by_timer {
            assert_eq!(commit.synced(true, 0), Ok(()));
        }
        assert_eq!(commit.start(0), None, "the next op opens the next segment");
        commit.push(&op("1", 2), 0);
        if durability != Durability::Always && !synced_by_timer {
            assert_eq!(commit.start(0), Some(Step::Sync));
            assert_eq!(commit.start(0), None);
            assert_eq!(commit.synced(true, 0), Ok(()));
        }
        let (index, first_position) = (5, end);
        let open = Step::Open {
            index,
            first_position,
        };
        assert_eq!(commit.start(0), Some(open));
        assert!(!commit.holds_sends() && !commit.is_quiet());
        assert_eq!(commit.opened(Some(segment(5, end))), Ok(()));
        let Some(Step::Write { offset, .. }) = commit.start(0) else {
            unreachable!("a batch is written");
        };
        assert_eq!(offset, SEGMENT_HEADER_BYTES as u64);
    }
}

#[test]
fn a_segment_that_cannot_be_opened() {
    let value = "9".repeat(usize::try_from(SEGMENT_BYTES_MAX).expect("64 MiB fit memory"));
    for is_late in [false, true] {
        let mut commit = Commit::new(Durability::Always, INTERVAL_US, segment(4, 100), 0);
        let durable = commit.push(&op(&value, 1), 0);
        let Some(Step::Write { bytes, .. }) = commit.start(0) else {
            unreachable!("a batch is written");
        };
        let count = bytes.len();
        assert_eq!(commit.written(bytes, Some(count), 0), Ok(Some(Step::Sync)));
        assert_eq!(commit.synced(true, 0), Ok(()));
        let lost = commit.push(&op("1", 2), 0);
        assert!(matches!(commit.start(0), Some(Step::Open { .. })));
        if is_late {
            commit.fail();
            assert!(!commit.is_quiet());
            assert_eq!(commit.opened(Some(segment(5, durable))), Ok(()));
        } else {
            assert_eq!(commit.opened(None), Err(LogBroken));
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
        commit.reopen(segment(6, durable), 0);
        assert!(commit.is_settled());
    }
}

#[test]
fn the_timer_of_interval_mode() {
    let mut commit = Commit::new(Durability::Interval, INTERVAL_US, segment(0, 0), 50);
    assert_eq!(
        (commit.sync_due_us(), commit.waiting_since_us()),
        (None, None)
    );
    commit.push(&op("1", 1), 60);
    commit.push(&op("1", 2), 70);
    assert_eq!(
        (commit.sync_due_us(), commit.waiting_since_us()),
        (None, Some(60))
    );
    let Some(Step::Write { bytes, .. }) = commit.start(80) else {
        unreachable!("a batch is written");
    };
    let count = bytes.len();
    assert_eq!(commit.written(bytes, Some(count), 90), Ok(None));
    let due_us = 50 + INTERVAL_US;
    assert_eq!(commit.sync_due_us(), Some(due_us));
    assert_eq!(commit.start(due_us - 1), None);
    assert_eq!(commit.start(due_us), Some(Step::Sync));
    assert_eq!(commit.synced(true, 0), Ok(()));
    assert_eq!(commit.sync_due_us(), None);
    for durability in [Durability::Always, Durability::None] {
        let mut commit = Commit::new(durability, INTERVAL_US, segment(0, 0), 0);
        commit.push(&op("1", 1), 0);
        assert!(commit.start(0).is_some());
        assert_eq!(commit.sync_due_us(), None);
    }
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Whole,
    /// So many 256ths of what is left.
    Short(u8),
    Fail,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Push(usize),
    Start,
    Settle,
    Finish(Fate),
    GiveUp,
    /// Where the failed segment is kept to the last op that was shown, or only to the last synced.
    Reopen(bool),
    Wait(u64),
}

struct File {
    header: SegmentHeader,
    bytes: Vec<u8>,
    synced: usize,
}

impl File {
    fn new(index: u64, first_position: u64) -> Self {
        let header = header(index, first_position);
        let bytes = header.encode().to_vec();
        let synced = bytes.len();
        Self {
            header,
            bytes,
            synced,
        }
    }
}

/// The naive model: files that take what is written, and a list of what was pushed.
struct Rig {
    durability: Durability,
    commit: Commit,
    files: Vec<File>,
    in_flight: Option<Step>,
    pushed: Vec<(u64, String)>,
    count: u64,
    now_us: u64,
}

impl Rig {
    fn new(durability: Durability) -> Self {
        Self {
            durability,
            commit: Commit::new(durability, INTERVAL_US, segment(1, 500), 0),
            files: vec![File::new(1, 500)],
            in_flight: None,
            pushed: Vec::new(),
            count: 0,
            now_us: 0,
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Push(bytes) if !self.commit.is_failed() => {
                self.count += 1;
                let value = format!("{:0bytes$}", self.count);
                let position = self.commit.push(&op(&value, self.count), self.now_us);
                assert!(self.pushed.last().is_none_or(|last| last.0 < position));
                self.pushed.push((position, value));
            }
            Action::Start => {
                let step = self.commit.start(self.now_us);
                self.take(step);
            }
            Action::Settle => {
                let step = self.commit.settle(self.now_us);
                self.take(step);
            }
            Action::Finish(fate) => self.finish(fate),
            Action::GiveUp => self.commit.fail(),
            Action::Reopen(keeps_shown) => self.reopen(keeps_shown),
            Action::Wait(us) => self.now_us += us,
            Action::Push(_) => {}
        }
    }

    fn take(&mut self, step: Option<Step>) {
        let Some(step) = step else {
            return;
        };
        assert!(self.in_flight.is_none(), "one operation at a time");
        assert!(!self.commit.is_failed(), "a failed log is left alone");
        let file = self.files.last().expect("there is a file");
        if let Step::Write {
            offset,
            bytes,
            from,
        } = &step
        {
            assert_eq!(*offset, file.bytes.len() as u64, "writes are contiguous");
            assert!(*from < bytes.len());
        }
        self.in_flight = Some(step);
    }

    fn finish(&mut self, fate: Fate) {
        let is_late = self.commit.is_failed();
        let file = self.files.last_mut().expect("there is a file");
        let result = match self.in_flight.take() {
            None => return,
            Some(Step::Write { bytes, from, .. }) => {
                let left = bytes.len() - from;
                let (count, outcome) = match fate {
                    Fate::Whole => (left, Some(left)),
                    Fate::Short(part) => {
                        let count = 1 + (left - 1) * usize::from(part) / 256;
                        (count, Some(count))
                    }
                    Fate::Fail => (left / 2, None),
                };
                file.bytes.extend_from_slice(&bytes[from..from + count]);
                self.commit.written(bytes, outcome, self.now_us)
            }
            Some(Step::Sync) => {
                let ok = !matches!(fate, Fate::Fail);
                if ok {
                    file.synced = file.bytes.len();
                }
                self.commit.synced(ok, 0).map(|()| None)
            }
            Some(Step::Open { .. }) => unreachable!("the segments stay small here"),
        };
        assert_eq!(result.is_err(), matches!(fate, Fate::Fail) && !is_late);
        self.take(result.unwrap_or(None));
    }

    fn reopen(&mut self, keeps_shown: bool) {
        if !self.commit.is_failed() || !self.commit.is_quiet() {
            return;
        }
        let end = self.commit.end();
        assert!(end.durable <= end.shown);
        if self.durability == Durability::Always {
            assert_eq!(end.durable, end.shown);
            assert_eq!(end.durable, self.commit.visible_position());
        }
        let kept = if keeps_shown { end.shown } else { end.durable };
        let file = self.files.last_mut().expect("there is a file");
        assert_eq!(file.header.index, end.index);
        let offset = file.header.offset(kept).expect("it is in this segment");
        assert!(offset <= file.bytes.len(), "what is kept was written");
        assert!(file.header.offset(end.durable).expect("as above") <= file.synced);
        file.bytes.truncate(offset);
        file.synced = offset;
        self.pushed.retain(|pushed| pushed.0 <= kept);
        self.files.push(File::new(end.index + 1, kept));
        self.commit
            .reopen(segment(end.index + 1, kept), self.now_us);
    }

    /// The values of the ops in the files, as far as they are synced or as far as they are valid.
    fn read_back(&self, is_synced_only: bool) -> Vec<String> {
        let mut values = Vec::new();
        for file in &self.files {
            let until = if is_synced_only {
                file.synced
            } else {
                file.bytes.len()
            };
            for op in Reader::new(&file.header, &file.bytes[..until]) {
                match op {
                    Ok(op) => values.push(op.value.to_owned()),
                    Err(fault) => assert!(!is_synced_only, "{fault} in synced bytes"),
                }
            }
        }
        values
    }

    fn check(&self) {
        let pushed: Vec<&String> = self.pushed.iter().map(|pushed| &pushed.1).collect();
        let synced = self.read_back(true);
        assert!(pushed.starts_with(&synced.iter().collect::<Vec<_>>()));
        let written = self.read_back(false);
        assert!(pushed.starts_with(&written.iter().collect::<Vec<_>>()));
        let visible_position = self.commit.visible_position();
        let is_always = self.durability == Durability::Always;
        if is_always {
            let is_visible = |pushed: &&(u64, String)| pushed.0 <= visible_position;
            let visible = self.pushed.iter().take_while(is_visible).count();
            assert!(visible <= synced.len(), "only what is synced is visible");
            assert!(self.commit.is_failed() || visible == synced.len());
        }
        assert_eq!(self.commit.is_quiet(), self.in_flight.is_none());
        let is_on_its_way = self.in_flight.is_some() && !self.commit.is_failed();
        assert_eq!(self.commit.holds_sends(), is_always && is_on_its_way);
        if self.commit.is_settled() {
            assert_eq!(synced.len(), self.pushed.len());
        }
    }

    /// All goes well from now on, and the log is sealed.
    fn stop(&mut self) {
        while !self.commit.is_settled() {
            self.act(Action::Finish(Fate::Whole));
            self.act(Action::Reopen(true));
            if self.in_flight.is_none() {
                self.act(Action::Start);
            }
            if self.in_flight.is_none() {
                self.act(Action::Settle);
            }
            self.check();
        }
        let step = self.commit.seal();
        self.take(Some(step));
        while !self.commit.is_settled() {
            self.act(Action::Finish(Fate::Whole));
            self.act(Action::Settle);
        }
        assert_eq!(self.read_back(true).len(), self.pushed.len());
        let file = self.files.last().expect("there is a file");
        let seal = &file.bytes[file.bytes.len() - BATCH_HEADER_BYTES..];
        let position = file
            .header
            .position((file.bytes.len() - BATCH_HEADER_BYTES) as u64);
        assert_eq!(seal[8..16], position.to_le_bytes());
        assert_eq!(seal[16..24], position.to_le_bytes(), "all is synced");
    }
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        6 => (1..200_usize).prop_map(Action::Push),
        6 => Just(Action::Start),
        1 => Just(Action::Settle),
        6 => Just(Action::Finish(Fate::Whole)),
        3 => any::<u8>().prop_map(|part| Action::Finish(Fate::Short(part))),
        1 => Just(Action::Finish(Fate::Fail)),
        1 => Just(Action::GiveUp),
        3 => any::<bool>().prop_map(Action::Reopen),
        2 => (0..INTERVAL_US).prop_map(Action::Wait),
    ];
    prop::collection::vec(action, 0..80)
}

proptest! {
    #[test]
    fn the_files_hold_what_was_pushed(
        durability in prop::sample::select(vec![Durability::Always, Durability::Interval, Durability::None]),
        actions in actions(),
    ) {
        let mut rig = Rig::new(durability);
        for action in actions {
            // A log that was given up twice while something was in flight is given up once.
            if !(matches!(action, Action::GiveUp) && rig.commit.is_failed()) {
                rig.act(action);
                rig.check();
            }
        }
        rig.stop();
    }
}
