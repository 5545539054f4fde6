//! The ops that every contestant reads back: as a server log, and as a redis append-only file.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use etherply::core::state::placement::shard_of;
use etherply::core::testing::Dice;
use etherply::log::chain::FIRST_INDEX;
use etherply::log::directory::DataDirectory;
use etherply::log::disk::{DiskFile, HostDisk};
use etherply::log::position::LogPosition;
use etherply::log::record::{
    BATCH_HEADER_BYTES, Change, LoggedOp, OP_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader,
    begin_batch, push_op, seal_batch,
};
use etherply::log::segment::{self, Segment};

use etherply::seq::Seq;
use etherply_bench::resp::put_command;

/// The size of a record on disk, in bytes.
const RECORD_BYTES: u16 = 100;
/// The length at which a segment of the log is closed.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// The maximum number of ops in a batch.
const BATCH_OPS_MAX: u64 = 128;

/// Ops in the order in which they were applied.
pub struct Workload {
    /// The key that each op writes.
    ops: Vec<u32>,
    /// The last op of each key.
    last: Vec<u32>,
    workspaces: u32,
}

/// The texts of an op.
#[derive(Default)]
pub struct Texts {
    pub workspace: String,
    pub key: String,
    pub value: String,
}

/// The layout in which a workspace is stored in redis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RedisLayout {
    /// Each key of a workspace is a redis key.
    Set,
    /// Each workspace is a hash.
    Hset,
}

impl Workload {
    pub fn new(records: u32, keys: u32, workspaces: u32) -> Self {
        assert!(
            (workspaces..=records).contains(&keys),
            "not enough ops for the workspaces and keys"
        );
        assert!(workspaces <= 100_000, "a workspace id has 5 digits");
        let mut dice = Dice::new(1);
        let overwrites = (keys..records)
            .map(|_| pick(&mut dice, keys))
            .collect::<Vec<_>>();
        let mut ops: Vec<u32> = (0..keys).chain(overwrites).collect();
        for place in (1..records).rev() {
            let other = pick(&mut dice, place + 1);
            ops.swap(place as usize, other as usize);
        }
        let mut last = vec![0; keys as usize];
        for (op, &key) in (0..).zip(&ops) {
            last[key as usize] = op;
        }
        Self {
            ops,
            last,
            workspaces,
        }
    }

    pub fn records(&self) -> u32 {
        u32::try_from(self.ops.len()).expect("the count came from a u32")
    }

    pub fn keys(&self) -> u32 {
        u32::try_from(self.last.len()).expect("the count came from a u32")
    }

    pub fn workspaces(&self) -> u32 {
        self.workspaces
    }

    /// Returns the size of the state in a log without superseded ops.
    pub fn live_bytes(&self) -> f64 {
        f64::from(self.keys()) * f64::from(RECORD_BYTES)
    }

    /// Returns the state of a workspace after the last op, in no particular order.
    pub fn state(&self, workspace: u32) -> Vec<Texts> {
        let keys = (workspace..self.keys()).step_by(self.workspaces as usize);
        keys.map(|key| {
            let mut texts = Texts::default();
            self.put_texts(&mut texts, key, self.last[key as usize]);
            texts
        })
        .collect()
    }

    fn put_texts(&self, texts: &mut Texts, key: u32, op: u32) {
        let Texts {
            workspace,
            key: name,
            value,
        } = texts;
        workspace.clear();
        name.clear();
        value.clear();
        let (x, y) = (10_000_000 + op % 90_000_000, 99_999_999 - key % 90_000_000);
        let written = write!(workspace, "room-{:05}", key % self.workspaces)
            .and_then(|()| write!(name, "shape-{:08}", key / self.workspaces))
            .and_then(|()| write!(value, r#"{{"x":{x},"y":{y},"by":"user-{:07}"}}"#, op % 997));
        written.expect("writing to a String cannot fail");
        assert_eq!(
            OP_HEADER_BYTES + workspace.len() + name.len() + value.len(),
            usize::from(RECORD_BYTES)
        );
    }

    /// Writes the log of a server with `shards` shards.
    pub fn write_log(&self, data: &Path, shards: u32) {
        let directory = DataDirectory::open(data).expect("the folder can be written");
        let mut logs: Vec<Log> = (0..shards)
            .map(|shard| Log::new(&directory, shard))
            .collect();
        let mut seqs = vec![0; self.workspaces as usize];
        let mut texts = Texts::default();
        for (op, &key) in (0..).zip(&self.ops) {
            self.put_texts(&mut texts, key, op);
            let seq = &mut seqs[(key % self.workspaces) as usize];
            *seq += 1;
            let log = &mut logs[shard_of(&texts.workspace, shards) as usize];
            log.push(
                &directory,
                &LoggedOp {
                    workspace: &texts.workspace,
                    key: &texts.key,
                    change: Change::write(&texts.value),
                    seq: Seq::new(*seq),
                    timestamp: 1_700_000_000_000_000 + u64::from(op) * 100,
                },
            );
        }
        for log in &mut logs {
            log.commit();
            log.segment
                .file
                .sync()
                .expect("writing to the disk succeeds");
        }
    }

    /// Writes the data folder of redis 7.
    pub fn write_aof(&self, data: &Path, shape: RedisLayout) {
        let folder = data.join("appendonlydir");
        fs::create_dir_all(&folder).expect("the folder can be written");
        let manifest = "file appendonly.aof.1.incr.aof seq 1 type i\n";
        fs::write(folder.join("appendonly.aof.manifest"), manifest)
            .expect("the folder can be written");
        let file = File::create(folder.join("appendonly.aof.1.incr.aof"))
            .expect("the folder can be written");
        let mut file = BufWriter::new(file);
        let mut texts = Texts::default();
        put_command(&mut file, &["SELECT", "0"]);
        for (op, &key) in (0..).zip(&self.ops) {
            self.put_texts(&mut texts, key, op);
            let Texts {
                workspace,
                key,
                value,
            } = &mut texts;
            match shape {
                RedisLayout::Hset => put_command(&mut file, &["HSET", workspace, key, value]),
                RedisLayout::Set => {
                    workspace.push(':');
                    workspace.push_str(key);
                    put_command(&mut file, &["SET", workspace, value]);
                }
            }
        }
        let file = file.into_inner().expect("writing to the disk succeeds");
        file.sync_all().expect("writing to the disk succeeds");
    }
}

fn pick(dice: &mut Dice, bound: u32) -> u32 {
    u32::try_from(dice.below_u64(bound.into())).expect("the number fits in 32 bits")
}

/// The log of one shard while it is being written.
struct Log {
    segment: Segment<File>,
    /// The length of the segment.
    bytes: u64,
    durable_position: LogPosition,
    batch: Vec<u8>,
    batch_ops: u64,
    dice: Dice,
}

impl Log {
    fn new(directory: &DataDirectory, shard: u32) -> Self {
        let mut batch = Vec::new();
        begin_batch(&mut batch);
        let mut dice = Dice::new(u64::from(shard) + 2);
        Self {
            segment: create(
                directory,
                SegmentHeader::new(shard, directory.epoch(), FIRST_INDEX, LogPosition::START),
            ),
            bytes: SEGMENT_HEADER_BYTES as u64,
            durable_position: LogPosition::START,
            batch,
            batch_ops: 1 + dice.below_u64(BATCH_OPS_MAX),
            dice,
        }
    }

    fn push(&mut self, directory: &DataDirectory, op: &LoggedOp<'_>) {
        push_op(&mut self.batch, op);
        self.batch_ops -= 1;
        if self.batch_ops > 0 {
            return;
        }
        self.commit();
        self.batch_ops = 1 + self.dice.below_u64(BATCH_OPS_MAX);
        if self.bytes >= SEGMENT_BYTES {
            self.segment
                .file
                .sync()
                .expect("writing to the disk succeeds");
            let header = self.segment.header;
            let header = SegmentHeader::new(
                header.shard,
                header.epoch,
                header.index + 1,
                header.position(self.bytes),
            );
            self.segment = create(directory, header);
            self.bytes = SEGMENT_HEADER_BYTES as u64;
        }
    }

    fn commit(&mut self) {
        if self.batch.len() == BATCH_HEADER_BYTES {
            return;
        }
        let header = self.segment.header;
        let position = header.position(self.bytes);
        // The header is written as if each earlier commit had been synced.
        seal_batch(
            &mut self.batch,
            header.salt(),
            position,
            self.durable_position,
        );
        let file = &self.segment.file;
        file.write_all_at(&self.batch, self.bytes)
            .expect("writing to the disk succeeds");
        self.bytes += self.batch.len() as u64;
        self.durable_position = position;
        begin_batch(&mut self.batch);
    }
}

fn create(directory: &DataDirectory, header: SegmentHeader) -> Segment<File> {
    segment::create(&HostDisk, &directory.shard_path(header.shard), header, 0)
        .expect("writing to the disk succeeds")
}
