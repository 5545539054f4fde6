//! A disk for testing what remains after a kill at any step.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::disk::{Disk, DiskFile, HostDisk, Space};

/// This machine's disk, until a given number of changes has been made; from then on every call
/// fails, since nothing happens after a kill.
#[derive(Debug, Clone)]
pub struct MortalDisk {
    left: Arc<Mutex<usize>>,
}

/// A file on a [`MortalDisk`].
#[derive(Debug)]
pub struct MortalFile {
    file: fs::File,
    disk: MortalDisk,
}

impl MortalDisk {
    /// Returns a disk that fails after this many changes.
    pub fn new(changes: usize) -> Self {
        Self {
            left: Arc::new(Mutex::new(changes)),
        }
    }

    /// Sets the number of changes after which the disk fails.
    pub fn leave(&self, changes: usize) {
        *self.left.lock().unwrap() = changes;
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

impl Disk for MortalDisk {
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
