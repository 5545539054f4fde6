//! Where a failed segment ends, over all tries to rebuild.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Mutex;

use tempfile::tempdir;

use super::*;
use crate::log::disk::{HostDisk, Space};

/// This machine's disk, on which the next fdatasyncs end as they are told to.
#[derive(Debug, Clone, Default)]
struct Scripted {
    outcomes: Arc<Mutex<Vec<bool>>>,
}

#[derive(Debug)]
struct ScriptedFile {
    file: File,
    disk: Scripted,
}

impl Scripted {
    fn wrap(&self, file: File) -> ScriptedFile {
        let disk = self.clone();
        ScriptedFile { file, disk }
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
        HostDisk.open(path).map(|file| self.wrap(file))
    }
    fn open_writable(&self, path: &Path) -> io::Result<ScriptedFile> {
        HostDisk.open_writable(path).map(|file| self.wrap(file))
    }
    fn create(&self, path: &Path) -> io::Result<ScriptedFile> {
        HostDisk.create(path).map(|file| self.wrap(file))
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
            .map(|file| self.wrap(file))
            .map_err(|file| self.wrap(file)))
    }
    fn lock_folder(&self, path: &Path) -> io::Result<Option<ScriptedFile>> {
        let folder = HostDisk.lock_folder(path)?;
        Ok(folder.map(|folder| self.wrap(folder)))
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
        let mut outcomes = self.disk.outcomes.lock().unwrap();
        match outcomes.pop() {
            Some(false) => Err(io::Error::other("the disk fails")),
            Some(true) | None => Ok(()),
        }
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

#[test]
fn the_first_try_decides_up_to_where_a_failed_segment_is_kept() {
    let (durable, shown) = (LogPosition::new(100), LogPosition::new(250));
    for (outcomes, kept) in [
        // A later fdatasync that fails takes nothing back, and one that succeeds has written nothing.
        ([true, false, false], shown),
        ([true, false, true], shown),
        ([false, true, true], durable),
        ([false, false, true], durable),
    ] {
        let root = tempdir().unwrap();
        let disk = Scripted::default();
        let directory = DataDirectory::open_on(disk.clone(), root.path().to_owned(), [7; 16]);
        let directory = Arc::new(directory.unwrap());
        let mut log = LogFiles::open(directory, 0, &Report::default(), None).unwrap();
        let end = End {
            index: log.open_segment().index,
            durable,
            shown,
        };
        *disk.outcomes.lock().unwrap() = outcomes.into_iter().rev().collect();
        for attempt in 0..3 {
            let rebuild = log.rebuild(end).unwrap();
            let next = rebuild.creation.header;
            assert_eq!(next.index, end.index + 1);
            assert_eq!(next.first_position, kept, "{outcomes:?}, try {attempt}");
        }
    }
}

#[test]
fn a_segment_that_was_opened_in_the_moment_of_a_failure_is_read_once() {
    let root = tempdir().unwrap();
    let directory = Arc::new(DataDirectory::open(root.path()).unwrap());
    let mut log = LogFiles::open(directory, 0, &Report::default(), None).unwrap();
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
        // A try that gets as far as the segment, and then fails, is not kept.
        if is_kept {
            log.replace(segment);
        }
    }
}
