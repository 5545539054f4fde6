//! A repair that is killed at any step and started again.

use std::ffi::OsString;
use std::sync::Mutex;

use super::*;
use crate::log::disk::{DiskFile, Space};

/// The host's disk, until a number of changes is used up. Then every call fails, since nothing more
/// happens after a kill.
#[derive(Debug, Clone)]
struct Mortal {
    left: Arc<Mutex<usize>>,
}

#[derive(Debug)]
struct MortalFile {
    file: fs::File,
    disk: Mortal,
}

impl Mortal {
    fn new(changes: usize) -> Self {
        Self {
            left: Arc::new(Mutex::new(changes)),
        }
    }

    fn change(&self) -> io::Result<()> {
        let mut left = self.left.lock().unwrap();
        *left = left.checked_sub(1).ok_or(io::ErrorKind::Other)?;
        Ok(())
    }

    fn wrap(&self, file: io::Result<fs::File>) -> io::Result<MortalFile> {
        let disk = self.clone();
        file.map(|file| MortalFile { file, disk })
    }
}

impl Disk for Mortal {
    type File = MortalFile;

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.change()?;
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
    fn open(&self, path: &Path) -> io::Result<MortalFile> {
        self.wrap(HostDisk.open(path))
    }
    fn open_writable(&self, path: &Path) -> io::Result<MortalFile> {
        self.wrap(HostDisk.open_writable(path))
    }
    fn create(&self, path: &Path) -> io::Result<MortalFile> {
        self.change()?;
        self.wrap(HostDisk.create(path))
    }
    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        HostDisk.file_bytes(path)
    }
    fn space(&self, folder: &Path) -> io::Result<Space> {
        HostDisk.space(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        HostDisk.rename(from, to)
    }
    fn is_at(&self, path: &Path, file: &MortalFile) -> io::Result<bool> {
        HostDisk.is_at(path, &file.file)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        HostDisk.remove(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Result<MortalFile, MortalFile>> {
        let wrap = |file| self.wrap(Ok(file));
        Ok(match HostDisk.lock(path)? {
            Ok(file) => Ok(wrap(file)?),
            Err(file) => Err(wrap(file)?),
        })
    }
    fn lock_folder(&self, path: &Path) -> io::Result<Option<MortalFile>> {
        let folder = HostDisk.lock_folder(path)?;
        folder.map(|folder| self.wrap(Ok(folder))).transpose()
    }
}

impl DiskFile for MortalFile {
    fn is_linked(&self) -> io::Result<bool> {
        self.file.is_linked()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        DiskFile::read_at(&self.file, bytes, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.change()?;
        DiskFile::write_at(&self.file, bytes, offset)
    }
    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.disk.change()?;
        self.file.set_bytes(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
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

/// Returns a log that requires everything a repair can do at once: segments in each other's place,
/// a damaged one, a missing one, strays, no `meta.json`.
fn ruined() -> Log {
    let mut log = Log::sample();
    log.segment(0, &[vec!["demo"], vec!["other"]]);
    log.segment(0, &[vec!["demo"], vec!["other"]]);
    log.segment(1, &[vec!["third"], vec!["third", "third"]]);
    log.segment(1, &[vec!["third"]]);
    let spare = log.data().join("shard-00/spare.aof");
    fs::rename(log.path(0, 3), &spare).unwrap();
    fs::rename(log.path(0, 5), log.path(0, 3)).unwrap();
    fs::rename(&spare, log.path(0, 5)).unwrap();
    fs::remove_file(log.path(0, 2)).unwrap();
    flip(&log.path(0, 1), 64 + 28 + 29 + 5);
    flip(&log.path(1, 1), 64 + 28 + 29 + 5);
    fs::write(log.path(1, 3), "no segment").unwrap();
    fs::write(log.data().join(META), "no meta file").unwrap();
    log
}

#[test]
fn a_repair_killed_at_any_step_is_completed_by_the_next_one() {
    let expected = ruined().repair().0;
    for changes in 0.. {
        let log = ruined();
        let before = log.contents();
        let mortal = Mortal::new(changes);
        let plan = RepairPlan::new(mortal, log.data().to_path_buf(), [9; 16], |_, _| {});
        let is_done = plan.is_ok_and(|plan| plan.run().is_ok());
        let kept_now = read(log.data());
        let (kept, _) = log.repair();
        assert_eq!(kept, expected, "killed after {changes} changes");
        assert!(
            log.contents().is_superset(&before),
            "killed after {changes} changes"
        );
        if let Ok(kept_now) = kept_now {
            assert_eq!(
                kept_now, expected,
                "the log is not served after {changes} changes"
            );
        }
        if is_done {
            assert!(changes > 20, "only {changes} changes were made");
            return;
        }
    }
}
