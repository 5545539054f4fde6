//! Compactions of random logs with deletes, dropped tombstones and changes of the number of shards,
//! against a server that keeps everything in memory.

use std::io::Write;

use super::*;
use crate::generation::Generation;
use crate::log::mortal_disk::MortalDisk;
use crate::log::record::FloorRecord;
use crate::log::recovery::FolderGeneration;

/// A workspace, both in the server and after a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ModelWorkspace {
    /// The timestamp, the seq and the value of each key; a tombstone has no value.
    entries: BTreeMap<String, (u64, Seq, Option<String>)>,
    floor: FloorRecord,
}

impl ModelWorkspace {
    /// Adds an op; ops may come in any order.
    fn replay(&mut self, op: &LoggedOp<'_>) {
        self.floor.seq = self.floor.seq.max(op.seq);
        if let Some(floor) = op.floor() {
            self.floor = self.floor.merged(floor);
            return;
        }
        let held = self.entries.get(op.key);
        if held.is_none_or(|held| op.wins_over(held.0, held.1)) {
            let is_write = matches!(op.change, Change::Write { .. });
            let value = is_write.then(|| op.value().to_owned());
            let entry = (op.timestamp, op.seq, value);
            self.entries.insert(op.key.to_owned(), entry);
        }
    }

    fn forget_dropped(&mut self) {
        let dropped_seq = self.floor.dropped_seq;
        let is_kept =
            |entry: &(u64, Seq, Option<String>)| entry.2.is_some() || entry.1 > dropped_seq;
        self.entries.retain(|_, entry| is_kept(entry));
    }
}

fn replayed(
    directory: &DataDirectory,
) -> (RecoveryReport, BTreeMap<String, ModelWorkspace>, usize) {
    let (mut spaces, mut records) = (BTreeMap::<String, ModelWorkspace>::new(), 0);
    let report = recover(directory, |op| {
        records += 1;
        if !op.workspace.is_empty() {
            spaces
                .entry(op.workspace.to_owned())
                .or_default()
                .replay(op);
        }
    });
    spaces.values_mut().for_each(ModelWorkspace::forget_dropped);
    (report.unwrap(), spaces, records)
}

/// An open segment.
struct ModelSegment {
    header: SegmentHeader,
    path: PathBuf,
    end: u64,
}

struct ModelServer {
    root: TempDir,
    directory: Option<Arc<DataDirectory>>,
    open: Vec<ModelSegment>,
    spaces: BTreeMap<String, ModelWorkspace>,
    generations: BTreeMap<u32, FolderGeneration>,
    clock: u64,
}

#[derive(Debug, Clone)]
enum ModelStep {
    /// Writes, or deletes, a key with a timestamp that may lose.
    Op {
        workspace: u8,
        key: u8,
        is_delete: bool,
        age: u64,
    },
    /// Drops the oldest tombstones of a workspace.
    Retain {
        workspace: u8,
        count: usize,
    },
    Rotate {
        shard: usize,
    },
    /// Restarts the server with this number of shards.
    Restart {
        shards: u32,
    },
    /// Compacts the folders of these shards, or all folders.
    Compact {
        shards: Vec<u32>,
        settings: Settings,
    },
    /// Kills a compaction after this number of changes to the disk.
    Kill {
        changes: usize,
        settings: Settings,
    },
}

/// Segments of a few records, so that the records of a key are in many groups.
fn settings(dead_share: u64) -> Settings {
    Settings {
        dead_share,
        segment_bytes_min: 300,
        segment_bytes_max: 900,
    }
}

fn any_settings() -> impl Strategy<Value = Settings> {
    prop_oneof![1..4_u64, Just(u64::MAX)].prop_map(settings)
}

fn any_step() -> impl Strategy<Value = ModelStep> {
    let op = (0..2_u8, 0..12_u8, prop::bool::weighted(0.3), 0..6_u64);
    prop_oneof![
        40 => op.prop_map(|(workspace, key, is_delete, age)| ModelStep::Op {
            workspace, key, is_delete, age: age * 10,
        }),
        12 => (0..2_u8, 1..8_usize)
            .prop_map(|(workspace, count)| ModelStep::Retain { workspace, count }),
        6 => (0..3_usize).prop_map(|shard| ModelStep::Rotate { shard }),
        1 => (1..4_u32).prop_map(|shards| ModelStep::Restart { shards }),
        2 => (prop::collection::vec(0..3_u32, 0..3), any_settings())
            .prop_map(|(shards, settings)| ModelStep::Compact { shards, settings }),
        1 => (0..40_usize, any_settings())
            .prop_map(|(changes, settings)| ModelStep::Kill { changes, settings }),
    ]
}

impl ModelServer {
    fn new() -> Self {
        let root = tempdir().unwrap();
        let directory = Some(Arc::new(DataDirectory::open(root.path()).unwrap()));
        Self {
            root,
            directory,
            open: Vec::new(),
            spaces: BTreeMap::new(),
            generations: BTreeMap::new(),
            clock: 1000,
        }
    }

    fn directory(&self) -> &Arc<DataDirectory> {
        self.directory.as_ref().unwrap()
    }

    fn start(&mut self, shards: u32) {
        let (report, ..) = replayed(self.directory());
        let number = report.next_generation_number();
        self.open.clear();
        for shard in 0..shards {
            self.open_segment(report.tail(shard));
            let (id, key) = (Generation::new(self.clock + number), shard.to_string());
            let generation = LoggedOp {
                workspace: "",
                key: &key,
                change: Change::Generation { id, shards },
                seq: Seq::new(number),
                timestamp: number,
            };
            self.append(shard as usize, &generation);
            let last = FolderGeneration {
                shard,
                id,
                number,
                shards,
            };
            self.generations.insert(shard, last);
        }
    }

    fn open_segment(&mut self, tail: Tail) {
        let epoch = self.directory().epoch();
        let header = SegmentHeader::new(tail.shard, epoch, tail.next_index, tail.next_position);
        let folder = self.directory().shard_path(tail.shard);
        let path = segment::create(&HostDisk, &folder, header, 0).unwrap().path;
        let open = ModelSegment {
            header,
            path,
            end: SEGMENT_HEADER_BYTES as u64,
        };
        let shard = tail.shard as usize;
        if shard < self.open.len() {
            self.open[shard] = open;
        } else {
            self.open.push(open);
        }
    }

    fn append(&mut self, shard: usize, op: &LoggedOp<'_>) {
        let open = &mut self.open[shard];
        let mut batch = Vec::new();
        record::begin_batch(&mut batch);
        record::push_op(&mut batch, op);
        let position = open.header.position(open.end);
        record::seal_batch(&mut batch, open.header.salt(), position, position);
        let mut file = fs::File::options().append(true).open(&open.path).unwrap();
        file.write_all(&batch).unwrap();
        open.end += batch.len() as u64;
    }

    fn shard_of(&self, workspace: &str) -> usize {
        let number: usize = workspace[1..].parse().unwrap();
        (number + 1) % self.open.len()
    }

    fn log(&mut self, workspace: &str, key: &str, change: Change<'_>, seq: Seq, timestamp: u64) {
        let shard = self.shard_of(workspace);
        let op = LoggedOp {
            workspace,
            key,
            change,
            seq,
            timestamp,
        };
        self.append(shard, &op);
    }

    fn step(&mut self, step: &ModelStep) {
        self.clock += 10;
        match *step {
            ModelStep::Op {
                workspace,
                key,
                is_delete,
                age,
            } => self.apply(workspace, key, is_delete, self.clock - age),
            ModelStep::Retain { workspace, count } => self.retain(workspace, count),
            ModelStep::Rotate { shard } => {
                let shard = shard % self.open.len();
                let ModelSegment { header, end, .. } = self.open[shard];
                self.open_segment(Tail {
                    shard: header.shard,
                    next_index: header.index + 1,
                    next_position: header.position(end),
                });
            }
            ModelStep::Restart { shards } => self.start(shards),
            ModelStep::Compact {
                ref shards,
                settings,
            } => self.compact(shards, settings),
            ModelStep::Kill { changes, settings } => self.kill(changes, settings),
        }
    }

    fn apply(&mut self, workspace: u8, key: u8, is_delete: bool, timestamp: u64) {
        let (workspace, key) = (format!("w{workspace}"), format!("k{key}"));
        let space = self.spaces.entry(workspace.clone()).or_default();
        let held = space.entries.get(&key).map(|held| held.0);
        if timestamp <= held.unwrap_or(space.floor.floor) {
            return;
        }
        let seq = space.floor.seq.next();
        space.floor.seq = seq;
        let text = format!("\"{seq:0100}\"");
        let value = (!is_delete).then(|| text.clone());
        space.entries.insert(key.clone(), (timestamp, seq, value));
        let change = if is_delete {
            Change::Delete { deleted_at_us: 1 }
        } else {
            Change::write(&text)
        };
        self.log(&workspace, &key, change, seq, timestamp);
    }

    fn retain(&mut self, workspace: u8, count: usize) {
        let workspace = format!("w{workspace}");
        let Some(space) = self.spaces.get_mut(&workspace) else {
            return;
        };
        let entries = space.entries.iter();
        let tombstones = entries.filter(|(_, entry)| entry.2.is_none());
        let mut tombstones: Vec<_> = tombstones
            .map(|(key, entry)| (entry.1, entry.0, key.clone()))
            .collect();
        tombstones.sort();
        tombstones.truncate(count);
        let Some((dropped_seq, ..)) = tombstones.last().cloned() else {
            return;
        };
        for (_, timestamp, key) in tombstones {
            space.entries.remove(&key);
            space.floor.floor = space.floor.floor.max(timestamp);
        }
        space.floor.dropped_seq = dropped_seq;
        let FloorRecord { floor, seq, .. } = space.floor;
        self.log(&workspace, "", Change::Floor { dropped_seq }, seq, floor);
    }

    fn open_indexes(&self) -> Vec<(u32, u64)> {
        let headers = self.open.iter().map(|open| open.header);
        headers.map(|header| (header.shard, header.index)).collect()
    }

    fn compact(&self, shards: &[u32], settings: Settings) {
        let directory = Arc::clone(self.directory());
        let mut compaction = Compaction::plan(directory, &self.open_indexes(), settings).unwrap();
        if !shards.is_empty() {
            compaction = compaction.only(shards);
        }
        while compaction.step(&mut |_| ControlFlow::Continue(())).unwrap() {}
    }

    fn kill(&mut self, changes: usize, settings: Settings) {
        self.directory = None;
        let (disk, path) = (MortalDisk::new(usize::MAX), self.root.path().to_path_buf());
        let directory = DataDirectory::open_existing(disk.clone(), path).unwrap();
        disk.leave(changes);
        let open = self.open_indexes();
        let planned = Compaction::plan(Arc::new(directory), &open, settings);
        if let Ok(mut compaction) = planned {
            while let Ok(true) = compaction.step(&mut |_| ControlFlow::Continue(())) {}
        }
        self.directory = Some(Arc::new(DataDirectory::open(self.root.path()).unwrap()));
    }

    /// Checks that the log matches this server's state, and returns its number of records.
    fn check(&self) -> usize {
        let (report, spaces, records) = replayed(self.directory());
        assert_eq!(spaces, self.spaces);
        let generations: Vec<_> = self.generations.values().copied().collect();
        assert_eq!(report.generations, generations);
        records
    }

    /// Returns the number of records in a log without dead ones.
    fn live_records(&self) -> usize {
        let of_space = |space: &ModelWorkspace| {
            space.entries.len() + usize::from(space.floor.dropped_seq > Seq::NONE)
        };
        self.spaces.values().map(of_space).sum::<usize>() + self.generations.len()
    }
}

impl ModelServer {
    fn rotate(&mut self) {
        self.step(&ModelStep::Rotate { shard: 0 });
    }

    fn op(&mut self, key: u8, is_delete: bool) {
        self.step(&ModelStep::Op {
            workspace: 0,
            key,
            is_delete,
            age: 0,
        });
    }

    fn retain_one(&mut self) {
        self.step(&ModelStep::Retain {
            workspace: 0,
            count: 1,
        });
    }
}

#[test]
fn a_dropped_tombstone_stays_while_an_older_segment_has_a_write_of_its_key() {
    let mut server = ModelServer::new();
    server.start(1);
    for key in 0..10 {
        server.op(key, false);
    }
    server.rotate();
    server.op(0, true);
    server.retain_one();
    server.rotate();
    // A tenth of the first segment is dead, which is not worth a rewrite. More than a quarter of
    // the second one would be dead, if the tombstone were not needed.
    let before = server.check();
    server.compact(&[], settings(4));
    assert_eq!(server.check(), before);
    // Both rules hold once the write is gone.
    server.compact(&[], settings(u64::MAX));
    assert_eq!(server.check(), before - 1, "the write");
    server.compact(&[], settings(u64::MAX));
    assert_eq!(server.check(), before - 2, "its tombstone");
}

#[test]
fn a_dropped_tombstone_stays_while_another_folder_has_a_write_of_its_key() {
    for is_partial in [true, false] {
        let mut server = ModelServer::new();
        server.start(2);
        assert_eq!(server.shard_of("w0"), 1, "and 0 below");
        server.op(0, false);
        server.start(1);
        server.op(0, true);
        server.retain_one();
        server.rotate();
        let only: &[u32] = if is_partial { &[0] } else { &[] };
        let before = server.check();
        let directory = Arc::clone(server.directory());
        let open = server.open_indexes();
        let mut compaction = Compaction::plan(directory, &open, settings(u64::MAX)).unwrap();
        if is_partial {
            compaction = compaction.only(only);
        }
        // The folder with the tombstone comes first, and the server stops after compacting it.
        while compaction.outcome().segments_written == 0
            && compaction.step(&mut |_| ControlFlow::Continue(())).unwrap()
        {}
        assert!(server.check() < before, "there are older generations");
        let tombstone = LoggedOp {
            workspace: "w0",
            key: "k0",
            change: Change::Delete { deleted_at_us: 1 },
            seq: Seq::new(2),
            timestamp: server.clock,
        };
        let blocked_bytes = record::op_bytes(&tombstone) as u64 * u64::from(is_partial);
        assert_eq!(compaction.blocked_bytes(0), blocked_bytes);
        assert!(compaction.kept_bytes(0) > blocked_bytes);
    }
}

#[test]
fn the_seq_and_the_floor_survive_the_last_tombstone() {
    let mut server = ModelServer::new();
    server.start(1);
    server.op(0, false);
    server.op(0, true);
    server.retain_one();
    server.rotate();
    server.compact(&[], settings(u64::MAX));
    assert_eq!(server.check(), 1 + 1, "the floor and the generation");
    let space = &server.spaces["w0"];
    assert!(space.entries.is_empty());
    assert_eq!(
        (space.floor.seq, space.floor.dropped_seq),
        (Seq::new(2), Seq::new(2))
    );
    assert!(space.floor.floor > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is deleted, dropped and compacted, and wherever a compaction is killed, replay
    /// restores the server's state, including floors and seqs, no deleted key comes back, and in
    /// the end no dead record is left.
    #[test]
    fn replay_restores_the_servers_state(steps in prop::collection::vec(any_step(), 1..120)) {
        let mut server = ModelServer::new();
        server.start(2);
        for step in &steps {
            server.step(step);
            if !matches!(step, ModelStep::Op { .. } | ModelStep::Retain { .. }) {
                server.check();
            }
        }
        server.check();
        server.open.clear();
        for _ in 0..3 {
            server.compact(&[], settings(u64::MAX));
            server.check();
        }
        prop_assert_eq!(server.check(), server.live_records());
    }

    /// Records that no server writes, such as floors that do not cover each other, are replayed as
    /// they would be without a compaction.
    #[test]
    fn compaction_does_not_change_the_replay_of_any_records(
        segments in prop::collection::vec(
            (0..2_u32, prop::collection::vec((0..5_u8, 0..4_u64, 1..5_u64, any::<bool>()), 1..6)),
            1..8,
        ),
        only in prop::collection::vec(0..2_u32, 0..2),
    ) {
        let mut server = ModelServer::new();
        server.start(2);
        for (shard, records) in segments {
            let tail = replayed(server.directory()).0.tail(shard);
            server.open_segment(tail);
            for (kind, timestamp, seq, is_delete) in records {
                let (key, change) = match (kind, is_delete) {
                    (0 | 1, _) => {
                        let dropped_seq = Seq::new(seq.min(u64::from(kind) * 2 + timestamp));
                        (String::new(), Change::Floor { dropped_seq })
                    }
                    (_, true) => (format!("k{kind}"), Change::Delete { deleted_at_us: 1 }),
                    (_, false) => (format!("k{kind}"), Change::write("[\"a value\"]")),
                };
                let (workspace, key, seq) = ("w", &key, Seq::new(seq));
                let op = LoggedOp { workspace, key, change, seq, timestamp };
                server.append(shard as usize, &op);
            }
        }
        server.open.clear();
        let merged = |server: &ModelServer| {
            let (_, mut spaces, _) = replayed(server.directory());
            // No server has an op whose seq is greater than that of its key's winner.
            for space in spaces.values_mut() {
                space.floor.seq = Seq::NONE;
            }
            spaces
        };
        let before = merged(&server);
        for _ in 0..2 {
            server.compact(&only, settings(u64::MAX));
            prop_assert_eq!(merged(&server), before.clone());
            server.compact(&[], settings(u64::MAX));
            prop_assert_eq!(merged(&server), before.clone());
        }
    }
}
