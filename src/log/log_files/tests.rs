//! The end of a failed segment, across all attempts to rebuild, and the thread that determines it.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Mutex;

use tempfile::tempdir;

use super::*;
use crate::log::disk::{HostDisk, Space};
use crate::log::record;
use crate::log::record::Change;
use crate::seq::Seq;

/// The host's disk, except that the next fdatasyncs of one file end as scripted.
#[derive(Debug, Clone, Default)]
struct Scripted {
    /// The path of the file, and whether each of its next fdatasyncs succeeds, in reverse order.
    script: Arc<Mutex<(PathBuf, Vec<bool>)>>,
}

#[derive(Debug)]
struct ScriptedFile {
    file: File,
    /// For a segment that was created here, its final path: it is created as `….aof.new`.
    path: PathBuf,
    disk: Scripted,
}

impl Scripted {
    fn wrap(&self, file: File, path: &Path) -> ScriptedFile {
        ScriptedFile {
            file,
            path: path.with_extension(""),
            disk: self.clone(),
        }
    }

    fn set(&self, path: &Path, outcomes: [bool; 3]) {
        let outcomes = outcomes.into_iter().rev().collect();
        *self.script.lock().unwrap() = (path.to_owned(), outcomes);
    }

    fn syncs_left(&self) -> usize {
        self.script.lock().unwrap().1.len()
    }
}

impl Disk for Scripted {
    type File = ScriptedFile;

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        HostDisk.create_folder(path)
    }
    fn is_folder(&self, path: &Path) -> bool {
        HostDisk.is_folder(path)
    }
    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        HostDisk.names(folder)
    }
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn open(&self, path: &Path) -> io::Result<ScriptedFile> {
        HostDisk.open(path).map(|file| self.wrap(file, path))
    }
    fn open_writable(&self, path: &Path) -> io::Result<ScriptedFile> {
        HostDisk
            .open_writable(path)
            .map(|file| self.wrap(file, path))
    }
    fn create(&self, path: &Path) -> io::Result<ScriptedFile> {
        HostDisk.create(path).map(|file| self.wrap(file, path))
    }
    fn is_at(&self, path: &Path, file: &ScriptedFile) -> io::Result<bool> {
        HostDisk.is_at(path, &file.file)
    }
    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        HostDisk.file_bytes(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        HostDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        HostDisk.remove(path)
    }
    fn space(&self, folder: &Path) -> io::Result<Space> {
        HostDisk.space(folder)
    }
    fn lock(&self, path: &Path) -> io::Result<Result<ScriptedFile, ScriptedFile>> {
        let locked = HostDisk.lock(path)?;
        Ok(locked
            .map(|file| self.wrap(file, path))
            .map_err(|file| self.wrap(file, path)))
    }
    fn lock_folder(&self, path: &Path) -> io::Result<Option<ScriptedFile>> {
        let folder = HostDisk.lock_folder(path)?;
        Ok(folder.map(|folder| self.wrap(folder, path)))
    }
}

impl DiskFile for ScriptedFile {
    fn bytes(&self) -> io::Result<u64> {
        DiskFile::bytes(&self.file)
    }
    fn is_linked(&self) -> io::Result<bool> {
        self.file.is_linked()
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        DiskFile::read_at(&self.file, bytes, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        DiskFile::write_at(&self.file, bytes, offset)
    }
    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_bytes(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        let (path, outcomes) = &mut *self.disk.script.lock().unwrap();
        if self.path != *path || outcomes.pop() != Some(false) {
            return Ok(());
        }
        Err(io::Error::other("the disk fails"))
    }
    fn write_through(&self) -> io::Result<bool> {
        Ok(false)
    }
    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn share(&self) -> io::Result<bool> {
        self.file.share()
    }
    fn claim(&self) -> io::Result<bool> {
        self.file.claim()
    }
    fn drop_cache(&self) {}
}

/// Returns a log after a failure, with one batch that was durable and another that was only shown.
fn failed_log(root: &Path) -> (Scripted, LogFiles<Scripted>, End) {
    let disk = Scripted::default();
    let directory = DataDirectory::open_on(disk.clone(), root.to_owned(), [7; 16]);
    let directory = Arc::new(directory.unwrap());
    let log = LogFiles::open(directory, 0, &RecoveryReport::default(), None).unwrap();
    let segment = log.open_segment();
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    for seq in [1, 2] {
        let mut batch = Vec::new();
        let op = LoggedOp {
            workspace: "w",
            key: "k",
            change: Change::write("1"),
            seq: Seq::new(seq),
            timestamp: seq,
        };
        record::begin_batch(&mut batch);
        record::push_op(&mut batch, &op);
        let position = segment.first_position.advance(bytes.len() as u64);
        record::seal_batch(&mut batch, segment.salt, position, position);
        bytes.append(&mut batch);
        ends.push(segment.first_position.advance(bytes.len() as u64));
    }
    log.file()
        .write_at(&bytes, SEGMENT_HEADER_BYTES as u64)
        .unwrap();
    let end = End {
        index: segment.index,
        durable: ends[0],
        shown: ends[1],
    };
    (disk, log, end)
}

#[test]
fn the_first_attempt_decides_how_much_of_a_failed_segment_is_kept() {
    for (outcomes, is_shown_kept) in [
        // A later fdatasync that fails revokes nothing, and one that succeeds has written nothing.
        ([true, false, false], true),
        ([true, false, true], true),
        ([false, true, true], false),
        ([false, false, true], false),
    ] {
        let root = tempdir().unwrap();
        let (disk, log, end) = failed_log(root.path());
        disk.set(&log.segment.path.clone(), outcomes);
        let kept = if is_shown_kept {
            end.shown
        } else {
            end.durable
        };
        for attempt in 0..3 {
            let mut ops = 0;
            let next = log.rebuild(end).unwrap().run(|_| ops += 1).unwrap().header;
            assert_eq!(next.index, end.index + 1);
            assert_eq!(next.first_position, kept, "{outcomes:?}, attempt {attempt}");
            assert_eq!(
                ops,
                1 + u64::from(is_shown_kept),
                "{outcomes:?}, attempt {attempt}"
            );
        }
        assert_eq!(disk.syncs_left(), 2, "all attempts share one fdatasync");
    }
}

#[test]
fn a_failed_segment_is_synced_by_the_rebuild_and_not_by_the_requesting_thread() {
    let root = tempdir().unwrap();
    let (disk, log, end) = failed_log(root.path());
    disk.set(&log.segment.path.clone(), [true; 3]);
    let rebuild = log.rebuild(end).unwrap();
    assert_eq!(disk.syncs_left(), 3, "the shard's loop waited for the disk");
    rebuild.run(|_| ()).unwrap();
    assert_eq!(disk.syncs_left(), 2);
}

#[test]
fn a_rebuild_that_never_runs_decides_nothing() {
    for is_synced in [true, false] {
        let root = tempdir().unwrap();
        let (disk, log, end) = failed_log(root.path());
        disk.set(&log.segment.path.clone(), [is_synced; 3]);
        // The rebuild's thread cannot be started, or the server is stopped before it runs.
        drop(log.rebuild(end).unwrap());
        assert_eq!(disk.syncs_left(), 3);
        // Two concurrent rebuilds still share one fdatasync.
        let (first, second) = (log.rebuild(end).unwrap(), log.rebuild(end).unwrap());
        let kept = if is_synced { end.shown } else { end.durable };
        for rebuild in [second, first] {
            let next = rebuild.run(|_| ()).unwrap().header;
            assert_eq!(next.first_position, kept);
        }
        assert_eq!(disk.syncs_left(), 2);
    }
}

#[test]
fn a_segment_opened_at_the_moment_of_a_failure_is_read_once() {
    let root = tempdir().unwrap();
    let directory = Arc::new(DataDirectory::open(root.path()).unwrap());
    let mut log = LogFiles::open(directory, 0, &RecoveryReport::default(), None).unwrap();
    let segment = log.next(2, LogPosition::START).unwrap().run(0).unwrap();
    log.replace(segment);
    for is_kept in [true, false, true] {
        let end = End {
            index: 1,
            durable: LogPosition::START,
            shown: LogPosition::START,
        };
        let rebuild = log.rebuild(end).unwrap();
        let segment = rebuild.run(|op| panic!("{op:?}")).unwrap();
        // A segment is not kept if the attempt fails after creating it.
        if is_kept {
            log.replace(segment);
        }
    }
}
