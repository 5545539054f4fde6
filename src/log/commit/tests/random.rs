//! A run with random outcomes, compared with a naive file.

use proptest::prelude::*;

use super::super::*;
use super::{INTERVAL_US, failure, header, op, segment};
use crate::log::record::{Reader, SegmentHeader};

#[derive(Debug, Clone, Copy)]
enum Fate {
    Whole,
    /// Only this many 256ths of the remaining bytes are written.
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
    /// If true, keeps the failed segment up to the last op that was sent to clients; otherwise,
    /// only up to the last synced one.
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

/// The log under test and its naive model: files that accept everything, and a list of the pushed
/// ops.
struct Rig {
    durability: Durability,
    writes_through: bool,
    commit: Commit,
    files: Vec<File>,
    in_flight: Option<LogStep>,
    pushed: Vec<(LogPosition, String)>,
    count: u64,
    now_us: u64,
}

impl Rig {
    fn new(durability: Durability, writes_through: bool) -> Self {
        let segment = OpenSegment {
            writes_through,
            ..segment(1, 500)
        };
        Self {
            durability,
            writes_through,
            commit: Commit::new(durability, INTERVAL_US, segment, 0),
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

    fn take(&mut self, step: Option<LogStep>) {
        let Some(step) = step else {
            return;
        };
        assert!(self.in_flight.is_none(), "only one operation is in flight");
        assert!(
            !self.commit.is_failed(),
            "an operation was started on a failed log"
        );
        let file = self.files.last().expect("a file is open");
        if let LogStep::Write {
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
        let file = self.files.last_mut().expect("a file is open");
        let result = match self.in_flight.take() {
            None => return,
            Some(LogStep::Write { bytes, from, .. }) => {
                let left = bytes.len() - from;
                let (count, outcome) = match fate {
                    Fate::Whole => (left, Ok(left)),
                    Fate::Short(part) => {
                        let count = 1 + (left - 1) * usize::from(part) / 256;
                        (count, Ok(count))
                    }
                    Fate::Fail => (left / 2, Err(failure())),
                };
                file.bytes.extend_from_slice(&bytes[from..from + count]);
                // Part of a batch is on disk as well, but nothing may rely on it.
                if self.writes_through && matches!(outcome, Ok(count) if count == left) {
                    file.synced = file.bytes.len();
                }
                self.commit.written(bytes, outcome, self.now_us)
            }
            Some(LogStep::Sync) => {
                assert!(
                    !self.writes_through,
                    "a write-through log needs no fdatasync"
                );
                let outcome = if matches!(fate, Fate::Fail) {
                    Err(failure())
                } else {
                    file.synced = file.bytes.len();
                    Ok(())
                };
                self.commit.synced(&outcome, 0).map(|()| None)
            }
            Some(LogStep::Open { .. }) => unreachable!("no segment of this test becomes full"),
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
        let file = self.files.last_mut().expect("a file is open");
        assert_eq!(file.header.index, end.index);
        let offset = file
            .header
            .offset(kept)
            .expect("the position is in this segment");
        assert!(
            offset <= file.bytes.len(),
            "the kept end is beyond the written bytes"
        );
        assert!(
            file.header
                .offset(end.durable)
                .expect("the position is in this segment")
                <= file.synced
        );
        file.bytes.truncate(offset);
        file.synced = offset;
        self.pushed.retain(|pushed| pushed.0 <= kept);
        self.files.push(File::new(end.index + 1, kept.get()));
        let segment = OpenSegment {
            writes_through: self.writes_through,
            ..segment(end.index + 1, kept.get())
        };
        self.commit.reopen(segment, self.now_us);
    }

    /// Returns the values of the ops in the files, up to the last synced byte or up to the last
    /// valid op.
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
                    Ok(op) => values.push(op.value().to_owned()),
                    Err(fault) => assert!(!is_synced_only, "{fault} in synced bytes"),
                }
            }
        }
        values
    }

    fn check(&self) {
        self.commit.invariants();
        let pushed: Vec<&String> = self.pushed.iter().map(|pushed| &pushed.1).collect();
        let synced = self.read_back(true);
        assert!(pushed.starts_with(&synced.iter().collect::<Vec<_>>()));
        let written = self.read_back(false);
        assert!(pushed.starts_with(&written.iter().collect::<Vec<_>>()));
        let visible_position = self.commit.visible_position();
        let is_always = self.durability == Durability::Always;
        if is_always {
            let is_visible = |pushed: &&(LogPosition, String)| pushed.0 <= visible_position;
            let visible = self.pushed.iter().take_while(is_visible).count();
            assert!(visible <= synced.len(), "unsynced ops are visible");
            assert!(self.commit.is_failed() || visible == synced.len());
        }
        assert_eq!(self.commit.is_quiet(), self.in_flight.is_none());
        let is_on_its_way = self.in_flight.is_some() && !self.commit.is_failed();
        assert_eq!(self.commit.holds_sends(), is_always && is_on_its_way);
        if self.commit.is_settled() {
            assert_eq!(synced.len(), self.pushed.len());
        }
    }

    /// Lets every operation succeed from now on, and seals the log.
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
        let step = self.commit.seal(self.now_us);
        self.take(Some(step));
        while !self.commit.is_settled() {
            self.act(Action::Finish(Fate::Whole));
            self.act(Action::Settle);
        }
        assert_eq!(self.read_back(true).len(), self.pushed.len());
        let file = self.files.last().expect("a file is open");
        let seal = &file.bytes[file.bytes.len() - BATCH_HEADER_BYTES..];
        let position = file
            .header
            .position((file.bytes.len() - BATCH_HEADER_BYTES) as u64);
        assert_eq!(seal[8..16], position.get().to_le_bytes());
        assert_eq!(
            seal[16..24],
            position.get().to_le_bytes(),
            "some bytes are not synced"
        );
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
    fn the_files_contain_what_was_pushed(
        (durability, writes_through) in prop::sample::select(vec![
            (Durability::Always, false),
            (Durability::Always, true),
            (Durability::Interval, false),
            (Durability::None, false),
        ]),
        actions in actions(),
    ) {
        let mut rig = Rig::new(durability, writes_through);
        for action in actions {
            // A log that has already failed is not abandoned again.
            if !(matches!(action, Action::GiveUp) && rig.commit.is_failed()) {
                rig.act(action);
                rig.check();
            }
        }
        rig.stop();
    }
}
