//! Repair: random logs, random damage, a crash at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use tempfile::{TempDir, tempdir};

use super::super::chain::{Chain, Link};
use super::super::compaction::{Compaction, Settings};
use super::super::directory::DataDirectory;
use super::super::disk::HostDisk;
use super::super::position::LogPosition;
use super::super::read_only::ReadOnlyLog;
use super::super::record::{Change, FORMAT_VERSION, LoggedOp, begin_batch, push_op, seal_batch};
use super::super::recovery::recover;
use super::*;
use crate::seq::Seq;

mod crash;
mod kinds;
mod random;

/// Temporary files, whose contents are irrelevant.
const PASSING: [&str; 3] = ["LOCK", "LOCK.probe", "meta.json.new"];

/// Workspace, seq, key, value, timestamp.
type Written = (String, u64, String, String, u64);

/// A batch as stored in a file.
#[derive(Debug, Clone)]
struct Batch {
    path: PathBuf,
    begin: usize,
    bytes: Vec<u8>,
    ops: Vec<Written>,
}

/// A log as left by a server that syncs each batch, with the location of each batch.
struct Log {
    root: TempDir,
    /// The format of the segments that the test writes.
    format_version: u16,
    /// The next index and position of each shard.
    tails: BTreeMap<u32, (u64, LogPosition)>,
    seqs: BTreeMap<String, u64>,
    batches: Vec<Batch>,
    /// The timestamp of the newest op that was ever written.
    clock: u64,
}

impl Log {
    fn new() -> Self {
        let root = tempdir().unwrap();
        drop(DataDirectory::open(root.path()).unwrap());
        Self {
            root,
            format_version: FORMAT_VERSION,
            tails: BTreeMap::new(),
            seqs: BTreeMap::new(),
            batches: Vec::new(),
            clock: 0,
        }
    }

    /// Creates a log with one shard: three segments of two batches each, in which the ops alternate
    /// between `demo` and `other`.
    fn sample() -> Self {
        let mut log = Self::new();
        for _ in 0..3 {
            log.segment(0, &[vec!["demo", "other"], vec!["demo", "other", "demo"]]);
        }
        log
    }

    /// Creates the same log in format 1.
    fn sample_of_format_1() -> Self {
        let mut log = Self::new();
        log.format_version = 1;
        let meta = fs::read_to_string(log.data().join(META)).unwrap();
        let meta = meta.replace("\"format_version\":2", "\"format_version\":1");
        fs::write(log.data().join(META), meta).unwrap();
        for _ in 0..3 {
            log.segment(0, &[vec!["demo", "other"], vec!["demo", "other", "demo"]]);
        }
        log
    }

    fn data(&self) -> &Path {
        self.root.path()
    }

    fn path(&self, shard: u32, index: u64) -> PathBuf {
        self.data()
            .join(shard_folder(shard))
            .join(segment::file_name(index))
    }

    /// Appends a segment. Each batch is a list of its ops' workspaces.
    fn segment(&mut self, shard: u32, batches: &[Vec<&str>]) {
        let epoch = directory::epoch(&HostDisk, self.data()).unwrap();
        let (index, position) = self
            .tails
            .get(&shard)
            .copied()
            .unwrap_or((1, LogPosition::START));
        let header = SegmentHeader {
            format_version: self.format_version,
            ..SegmentHeader::new(shard, epoch, index, position)
        };
        let folder = self.data().join(shard_folder(shard));
        let path = segment::create(&HostDisk, &folder, header, 0).unwrap().path;
        let mut bytes = header.encode().to_vec();
        for workspaces in batches {
            let mut batch = Vec::new();
            begin_batch(&mut batch);
            let mut ops = Vec::new();
            for &workspace in workspaces {
                let seq = self.seqs.entry(workspace.to_owned()).or_default();
                *seq += 1;
                self.clock += 1;
                let (key, value) = (format!("key {}", *seq % 5), format!("[{}]", self.clock));
                let op = (workspace.to_owned(), *seq, key, value, self.clock);
                push_op(&mut batch, &as_op(&op));
                ops.push(op);
            }
            let position = header.position(bytes.len() as u64);
            seal_batch(&mut batch, header.salt(), position, position);
            self.batches.push(Batch {
                path: path.clone(),
                begin: bytes.len(),
                bytes: batch.clone(),
                ops,
            });
            bytes.extend(batch);
        }
        fs::write(&path, &bytes).unwrap();
        let end = header.position(bytes.len() as u64);
        self.tails.insert(shard, (index + 1, end));
    }

    /// Compacts everything into small segments. In the model, the content of each new file is one
    /// batch.
    fn compact(&mut self) {
        let directory = DataDirectory::open(self.data()).unwrap();
        let settings = Settings {
            dead_share: u64::MAX,
            segment_bytes_min: 300,
            segment_bytes_max: 300,
        };
        let mut compaction = Compaction::plan(Arc::new(directory), &[], settings).unwrap();
        while compaction
            .step(&mut |_| std::ops::ControlFlow::Continue(()))
            .unwrap()
        {}
        drop(compaction);
        self.batches.clear();
        let epoch = directory::epoch(&HostDisk, self.data()).unwrap();
        for shard in directory::shards(&HostDisk, self.data()).unwrap() {
            for link in Chain::read(&HostDisk, self.data(), epoch, shard)
                .unwrap()
                .links
            {
                let bytes = fs::read(&link.path).unwrap();
                self.batches.push(Batch {
                    begin: 64,
                    bytes: bytes[64..].to_vec(),
                    ops: ops_of(&link),
                    path: link.path,
                });
            }
        }
    }

    fn epoch(&self) -> [u8; 16] {
        directory::epoch(&HostDisk, self.data()).unwrap()
    }

    fn ops(&self) -> BTreeSet<Written> {
        self.batches
            .iter()
            .flat_map(|batch| batch.ops.clone())
            .collect()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for shard in directory::shards(&HostDisk, self.data()).unwrap() {
            let folder = self.data().join(shard_folder(shard));
            let segments = segment::list(&HostDisk, &folder).unwrap();
            paths.extend(segments.into_iter().map(|(_, path)| path));
        }
        paths
    }

    /// Returns the ops of the batches that are unchanged and in place, under an unchanged segment
    /// header.
    fn undamaged(&self, headers: &BTreeMap<PathBuf, Vec<u8>>) -> BTreeSet<Written> {
        let is_whole = |batch: &&Batch| {
            let bytes = fs::read(&batch.path).unwrap_or_default();
            bytes.get(..64) == Some(&headers[&batch.path])
                && bytes.get(batch.begin..batch.begin + batch.bytes.len()) == Some(&batch.bytes)
        };
        let whole = self.batches.iter().filter(is_whole);
        whole.flat_map(|batch| batch.ops.clone()).collect()
    }

    fn headers(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let header = |path: PathBuf| {
            let bytes = fs::read(&path).unwrap();
            (path, bytes[..64].to_vec())
        };
        self.segments().into_iter().map(header).collect()
    }

    fn plan(&self) -> RepairPlan<HostDisk> {
        RepairPlan::new(HostDisk, self.data().to_path_buf(), [9; 16], |_, _| {}).unwrap()
    }

    /// Repairs the log and checks the properties that hold after every repair. Returns the
    /// remaining ops, and those reported as missing.
    fn repair(&self) -> (BTreeSet<Written>, Vec<MissingOps>) {
        let before = self.contents();
        let repair = self.plan();
        repair.run().unwrap();
        let missing = repair.missing().to_vec();
        drop(repair);
        let kept = self.assert_repaired(&before);
        (kept, missing)
    }

    fn assert_repaired(&self, before: &BTreeSet<Vec<u8>>) -> BTreeSet<Written> {
        let after = self.contents();
        assert!(after.is_superset(before), "bytes of a file were lost");
        assert!(self.plan().is_empty(), "a second repair found more to do");
        let kept = read(self.data()).unwrap();
        let directory = DataDirectory::open(self.data()).unwrap();
        let mut recovered = BTreeSet::new();
        recover(&directory, |op| recovered.extend(written(op))).unwrap();
        assert_eq!(recovered, kept);
        kept
    }

    /// Returns the contents of all files.
    fn contents(&self) -> BTreeSet<Vec<u8>> {
        let mut contents = BTreeSet::new();
        let mut folders = vec![self.data().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if !PASSING.iter().any(|name| entry.file_name() == *name) {
                    contents.insert(fs::read(entry.path()).unwrap());
                }
            }
        }
        contents
    }
}

fn as_op(op: &Written) -> LoggedOp<'_> {
    let (workspace, seq, key, value, timestamp) = op;
    LoggedOp {
        workspace,
        key,
        change: Change::write(value),
        seq: Seq::new(*seq),
        timestamp: *timestamp,
    }
}

/// The op, or `None` for the generation that a repair begins.
fn written(op: &LoggedOp<'_>) -> Option<Written> {
    if !op.change.is_op() {
        return None;
    }
    let text = str::to_owned;
    Some((
        text(op.workspace),
        op.seq.get(),
        text(op.key),
        text(op.value()),
        op.timestamp,
    ))
}

fn ops_of(link: &Link) -> Vec<Written> {
    let mut ops = Vec::new();
    let read = link.read(&HostDisk, &mut Vec::new(), |op| ops.extend(written(op)));
    read.unwrap();
    ops
}

/// Returns all ops of an undamaged log.
fn read(data: &Path) -> Result<BTreeSet<Written>, String> {
    let snapshot = ReadOnlyLog::take(&HostDisk, data).map_err(|error| error.to_string())?;
    let (mut ops, mut buffer) = (BTreeSet::new(), Vec::new());
    for folder in snapshot.folders() {
        for place in 0..folder.links().len() {
            let read = folder.read(place, &mut buffer, |op| ops.extend(written(op)));
            read.map_err(|error| error.to_string())?;
        }
    }
    Ok(ops)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn seqs(ops: &BTreeSet<Written>, workspace: &str) -> Vec<u64> {
    let of = ops.iter().filter(|op| op.0 == workspace);
    of.map(|op| op.1).collect()
}

fn missing_ops(workspace: &str, seqs: std::ops::RangeInclusive<u64>) -> MissingOps {
    MissingOps {
        workspace: workspace.to_owned(),
        seqs: Seq::new(*seqs.start())..=Seq::new(*seqs.end()),
    }
}

#[test]
fn an_intact_log_is_left_alone() {
    let log = Log::sample();
    let before = log.contents();
    assert!(log.plan().is_empty());
    assert_eq!(log.contents(), before);
    let kept = log.repair().0;
    assert_eq!((kept, log.contents()), (log.ops(), before));
}

#[test]
fn a_torn_tail_is_left_for_the_next_start() {
    let log = Log::sample();
    let path = log.path(0, 3);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(log.plan().is_empty());
    assert_eq!(fs::read(&path).unwrap().len(), bytes.len() - 1);
}

#[test]
fn a_damaged_last_batch_is_rewritten_and_its_loss_is_reported_once() {
    let log = Log::sample();
    let last = log.batches.last().unwrap().clone();
    flip(&last.path, last.begin + 28 + 29 + 5);
    let plan = log.plan();
    let Some(PlannedChange::Rewrite(rewritten)) = plan.changes().next() else {
        panic!("the damaged segment was not rewritten");
    };
    let are_torn: Vec<bool> = rewritten
        .recovery
        .lost
        .iter()
        .map(|lost| lost.is_torn)
        .collect();
    assert_eq!(are_torn, [false]);
    drop(plan);
    let (kept, _) = log.repair();
    let mut expected = log.ops();
    assert!(expected.remove(&last.ops[0]));
    assert_eq!(kept, expected);
}

#[test]
fn one_bad_byte_costs_one_op() {
    for index in 1..=3 {
        let log = Log::sample();
        // Alters the value of the first op of the first batch, so the length of its record is still
        // correct.
        let batch = log.batches[usize::try_from(index).unwrap() * 2 - 2].clone();
        flip(&batch.path, batch.begin + 28 + 29 + 5);
        let (kept, missing) = log.repair();
        let mut expected = log.ops();
        assert!(expected.remove(&batch.ops[0]));
        assert_eq!(kept, expected);
        let seq = batch.ops[0].1;
        assert_eq!(missing, [missing_ops("demo", seq..=seq)], "segment {index}");
        let aside = log
            .data()
            .join("damaged-1/shard-00")
            .join(segment::file_name(index));
        let header = log.path(0, index);
        assert_ne!(fs::read(aside).unwrap(), fs::read(header).unwrap());
    }
}

#[test]
fn a_flipped_byte_costs_one_op_or_the_rest_of_its_batch() {
    let first = Log::sample().batches[0].clone();
    assert_eq!(first.ops.len(), 2);
    for at in 0..first.begin + first.bytes.len() {
        let log = Log::sample();
        flip(&log.path(0, 1), at);
        let (kept, _) = log.repair();
        // The segment header and the batch header are restored from the data that follows them. The
        // length of the first record is not, and the second record is lost with it.
        let lost = match at.checked_sub(first.begin) {
            None | Some(0..28) => 0,
            Some(32..36) => 2,
            // The checksum of the next record is still valid, so only this record's op is lost.
            Some(_) => 1,
        };
        assert!(kept.is_subset(&log.ops()), "byte {at}");
        assert_eq!(log.ops().len() - kept.len(), lost, "byte {at}");
    }
}

#[test]
fn missing_segments_are_replaced_by_an_empty_one() {
    let mut log = Log::sample();
    log.segment(0, &[vec!["demo", "late"]]);
    for index in [2, 3] {
        fs::remove_file(log.path(0, index)).unwrap();
    }
    let (kept, missing) = log.repair();
    assert_eq!(seqs(&kept, "demo"), [1, 2, 3, 10]);
    assert_eq!(missing, [missing_ops("demo", 4..=9)]);
    let filler = ReadOnlyLog::take(&HostDisk, log.data()).unwrap().folders()[0].links()[1].clone();
    assert_eq!((filler.header.first_index(), filler.header.index), (2, 3));

    let log = Log::sample();
    fs::remove_file(log.path(0, 1)).unwrap();
    let (kept, missing) = log.repair();
    assert_eq!(seqs(&kept, "other"), [3, 4, 5, 6]);
    assert_eq!(
        missing,
        [missing_ops("demo", 1..=3), missing_ops("other", 1..=2)]
    );
}

#[test]
fn a_truncated_segment_ends_where_the_next_one_begins() {
    let log = Log::sample();
    let batch = log.batches[1].clone();
    let bytes = fs::read(&batch.path).unwrap();
    fs::write(&batch.path, &bytes[..batch.begin]).unwrap();
    let (kept, missing) = log.repair();
    assert_eq!(kept.len(), log.ops().len() - 3);
    assert_eq!(
        missing,
        [missing_ops("demo", 2..=3), missing_ops("other", 2..=2)]
    );
}

#[test]
fn ops_in_another_folder_are_not_missing() {
    let mut log = Log::new();
    log.segment(0, &[vec!["demo"], vec!["other"]]);
    log.segment(1, &[vec!["demo"]]);
    log.segment(0, &[vec!["demo"]]);
    let other = log.batches[1].clone();
    flip(&other.path, other.begin + 60);
    assert_eq!(log.repair().1, []);
}

#[test]
fn a_damaged_compacted_segment_does_not_hide_its_sources() {
    let mut log = Log::sample();
    let first = fs::read(log.path(0, 1)).unwrap();
    let first_ops = log.batches[..2].iter().flat_map(|batch| batch.ops.clone());
    let first_ops: Vec<Written> = first_ops.collect();
    log.compact();
    log.segment(0, &[vec!["demo"]]);
    let compacted = log.batches[0].path.clone();
    assert_ne!(
        compacted,
        log.path(0, 1),
        "the first segment was not replaced"
    );
    // A crash undid its removal.
    fs::write(log.path(0, 1), first).unwrap();
    assert!(log.plan().is_empty(), "the leftover segment is repaired");
    flip(&compacted, 64 + 28 + 29 + 5);
    let (kept, _) = log.repair();
    let mut expected = log.ops();
    assert!(
        expected.remove(&log.batches[0].ops[0]),
        "the op is still there"
    );
    expected.extend(first_ops);
    assert_eq!(kept, expected);
}

#[test]
fn a_lost_meta_file_is_recreated() {
    for content in [
        None,
        Some(""),
        Some("{\"format_version\":1,\"epoch\":\"x\"}"),
    ] {
        let log = Log::sample();
        let epoch = directory::epoch(&HostDisk, log.data()).unwrap();
        let meta = log.data().join(META);
        match content {
            None => fs::remove_file(&meta).unwrap(),
            Some(text) => fs::write(&meta, text).unwrap(),
        }
        assert!(log.plan().is_meta_lost());
        assert_eq!(log.repair().0, log.ops(), "{content:?}");
        assert_eq!(directory::epoch(&HostDisk, log.data()).unwrap(), epoch);
    }
}

#[test]
fn files_that_are_not_segments_of_this_log_are_set_aside() {
    let (log, foreign) = (Log::sample(), Log::sample());
    let folder = log.data().join("shard-00");
    fs::copy(foreign.path(0, 2), log.path(0, 4)).unwrap();
    fs::write(log.path(0, 9), "no segment").unwrap();
    fs::write(folder.join("notes.aof"), "no segment").unwrap();
    fs::create_dir(folder.join("folder.aof")).unwrap();
    fs::copy(log.path(0, 1), folder.join("1.aof")).unwrap();
    let plan = log.plan();
    let reasons: BTreeSet<_> = plan
        .strays()
        .iter()
        .map(|stray| stray.what.as_str())
        .collect();
    let expected = [
        "another file with the same index was kept",
        "it belongs to another data directory",
        "it is a folder",
        "it is too short to hold a segment header, and no batch in it identifies the segment",
    ];
    assert_eq!(reasons, BTreeSet::from(expected));
    drop(plan);
    assert_eq!(log.repair().0, log.ops());
    for name in [
        "0000000004.aof",
        "0000000009.aof",
        "notes.aof",
        "folder.aof",
        "1.aof",
    ] {
        assert!(
            log.data().join("damaged-1/shard-00").join(name).exists(),
            "{name}"
        );
    }
}

#[test]
fn renamed_segments_get_their_names_back() {
    let log = Log::sample();
    let aside = log.data().join("shard-00/third.aof");
    fs::rename(log.path(0, 3), &aside).unwrap();
    fs::rename(log.path(0, 2), log.path(0, 3)).unwrap();
    fs::rename(&aside, log.path(0, 2)).unwrap();
    fs::create_dir(log.data().join("shard-07")).unwrap();
    fs::rename(log.path(0, 1), log.path(7, 5)).unwrap();
    assert_eq!(log.plan().moves().count(), 3);
    assert_eq!(log.repair().0, log.ops());
    assert_eq!(log.plan().changes().count(), 0);
}

#[test]
fn positions_that_go_backward_are_renumbered() {
    let mut log = Log::sample();
    log.tails.insert(0, (4, LogPosition::new(7)));
    log.segment(0, &[vec!["demo"], vec!["demo"]]);
    log.segment(0, &[vec!["demo"]]);
    assert_eq!(log.repair().0, log.ops());
    let mut log = Log::new();
    log.tails.insert(0, (1, LogPosition::new(5)));
    log.segment(0, &[vec!["demo"]]);
    assert_eq!(log.repair().0, log.ops());
}

#[test]
fn a_shard_that_lost_all_its_segments_gets_an_empty_one() {
    for is_folder_left in [false, true] {
        let mut log = Log::sample();
        log.segment(1, &[vec!["other"]]);
        let directory = DataDirectory::open(log.data()).unwrap();
        directory.note_shards(2).unwrap();
        drop(directory);
        assert!(log.plan().is_empty());
        let folder = log.data().join("shard-01");
        fs::remove_dir_all(&folder).unwrap();
        if is_folder_left {
            fs::create_dir(&folder).unwrap();
        }
        let message = read(log.data()).unwrap_err();
        let expected = format!(
            "{} is damaged at byte 0: all segments of the shard are missing",
            log.path(1, 1).display()
        );
        assert!(message.starts_with(&expected), "{message}");
        let directory = DataDirectory::open(log.data()).unwrap();
        let start = recover(&directory, |_| {}).unwrap_err().to_string();
        assert_eq!(start, message);
        drop(directory);
        let kept = log.repair().0;
        let expected = log
            .ops()
            .into_iter()
            .filter(|op| op.0 != "other" || op.1 < 7);
        assert_eq!(kept, expected.collect());
        assert!(log.path(1, 1).exists());
    }
}

#[test]
fn a_newer_format_is_left_untouched() {
    let log = Log::sample();
    let mut bytes = fs::read(log.path(0, 2)).unwrap();
    bytes[8] = 3;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(log.path(0, 2), bytes).unwrap();
    let plan = RepairPlan::new(HostDisk, log.data().to_path_buf(), [9; 16], |_, _| {});
    let message = plan.unwrap_err().to_string();
    assert!(message.ends_with("start the newer server"), "{message}");
}
