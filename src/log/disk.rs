//! The file system operations that the log needs, as a trait, so that all code that makes decisions
//! about files can also run on a simulated disk.
//!
//! Each method is one system call, or its equivalent on a simulated disk. Any call may fail, and a
//! crash may happen between any two. [`super::record`] lists the assumptions about what a crash
//! leaves.
//!
//! Architecture invariant: outside this module, no code under `log` accesses files directly.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::blocks::{BLOCK_BYTES, Blocks};

/// The free and total space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The number of bytes that an unprivileged user can still write.
    pub free_bytes: u64,
    /// The size of the disk in bytes.
    pub total_bytes: u64,
}

/// A disk with folders and files.
pub trait Disk: Debug + Clone + Send + Sync + 'static {
    /// An open file on this disk.
    type File: DiskFile;

    /// Creates a folder that only this process's user may enter: mkdir(2).
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Returns whether a folder exists at this path.
    fn is_folder(&self, path: &Path) -> bool;
    /// Returns the names of the entries in a folder, in no particular order.
    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>>;
    /// Makes the names in a folder durable, with fsync(2) on the folder.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens a file for reading and writing.
    fn open_writable(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens an empty file for reading and writing; an existing file is truncated. A new file is
    /// accessible only to the user of this process.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Returns whether the file at `path` is the open file `file`.
    fn is_at(&self, path: &Path, file: &Self::File) -> io::Result<bool>;
    /// Returns the length of a file.
    fn file_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Returns whether a file exists at this path.
    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.file_bytes(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
    /// Returns the space of the file system that contains this folder: statvfs(3).
    fn space(&self, folder: &Path) -> io::Result<Space>;
    /// Renames a file, atomically replacing an existing one at `to`: rename(2).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Adds a second name to a file: link(2). If the file system has no hard links, the new name
    /// refers to a copy, which is synced to disk.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.open(from)?.read_whole(&mut bytes)?;
        let copy = self.create(to)?;
        copy.write_all_at(&bytes, 0)?;
        copy.sync()
    }
    /// Removes a file: unlink(2).
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Opens a file, creating it if it is missing, and locks it for as long as it is open
    /// (flock(2)). If another process has locked it, returns the open file in the inner `Err`, so
    /// that it can be read.
    fn lock(&self, path: &Path) -> io::Result<Result<Self::File, Self::File>>;
    /// Opens a folder and locks it for as long as it is open (flock(2)). Returns `None` if another
    /// process has locked it. If the file system cannot lock folders, the folder is opened without
    /// a lock.
    fn lock_folder(&self, path: &Path) -> io::Result<Option<Self::File>>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Returns the length of the file.
    fn bytes(&self) -> io::Result<u64>;
    /// Returns whether the file still has a name. This is cheap enough for every commit.
    fn is_linked(&self) -> io::Result<bool>;
    /// Reads at an offset, possibly fewer bytes than requested, and returns their number, which is
    /// 0 at the end of the file: pread(2).
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at an offset, possibly fewer bytes than requested, and returns their number:
    /// pwrite(2).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Sets the length of the file: ftruncate(2).
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;
    /// Makes the content and the length durable: fdatasync(2).
    fn sync(&self) -> io::Result<()>;
    /// Makes later writes bypass the page cache (open(2), `O_DIRECT`). They must then consist of
    /// whole, aligned blocks, and each must have `RWF_DSYNC` (pwritev2(2)), so that it is on disk
    /// when it returns. Returns `false` and changes nothing if the file system does not support
    /// this.
    fn write_through(&self) -> io::Result<bool>;
    /// Writes at an offset, like [`DiskFile::write_at`], but the written bytes are on disk when it
    /// returns: pwritev2(2) with `RWF_DSYNC`.
    fn write_synced_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let count = self.write_at(bytes, offset)?;
        self.sync()?;
        Ok(count)
    }
    /// Claims disk space in advance without changing the length of the file. Does nothing if the
    /// file system does not support this.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Acquires a shared lock (flock(2)), which keeps others from claiming the file while it is
    /// open. Returns `false` if it is claimed.
    fn share(&self) -> io::Result<bool>;
    /// Acquires an exclusive lock (flock(2)), which keeps others from sharing or claiming the file
    /// while it is open. Returns `false` if it is shared or claimed.
    fn claim(&self) -> io::Result<bool>;
    /// Drops the file's clean pages from the page cache, so that the next read comes from the disk.
    /// This is only advice. If the kernel ignores it, reads still return what was written.
    fn drop_cache(&self);

    /// Writes all of `bytes`, in as many calls as necessary.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads from `offset` until `bytes` is full or the file ends. Returns the number of bytes
    /// read.
    fn read_full_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut count = 0;
        while count < bytes.len() {
            match self.read_at(&mut bytes[count..], offset + count as u64) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Replaces the content of `bytes` with that of the file.
    fn read_whole(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let file_bytes = usize::try_from(self.bytes()?)
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // Only newly added bytes are zeroed, so most of a buffer that is reused for several
        // segments is not zeroed again.
        bytes.resize(file_bytes, 0);
        let count = self.read_full_at(bytes, 0)?;
        bytes.truncate(count);
        Ok(())
    }
}

/// The disks of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostDisk;

/// The permission bits of new folders, which let only the server's user access the log, regardless
/// of the umask.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

impl HostDisk {
    /// Returns the permission bits of a file or folder.
    pub fn mode(self, path: &Path) -> io::Result<u32> {
        Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
    }
}

impl Disk for HostDisk {
    type File = File;

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(FOLDER_MODE).create(path)
    }

    fn is_folder(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn open_writable(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.mode(FILE_MODE).open(path)
    }

    fn is_at(&self, path: &Path, file: &File) -> io::Result<bool> {
        let open = rustix::fs::fstat(file)?;
        match rustix::fs::stat(path) {
            Ok(found) => Ok((found.st_dev, found.st_ino) == (open.st_dev, open.st_ino)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn space(&self, folder: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(folder)?;
        Ok(Space {
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::hard_link(from, to) {
            // The errors returned by file systems without hard links (link(2)).
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)
                ) =>
            {
                fs::copy(from, to)?;
                File::open(to)?.sync_all()
            }
            outcome => outcome,
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Result<File, File>> {
        let mut options = OpenOptions::new();
        // Do not truncate the file: until the lock is acquired, its content belongs to another
        // process.
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(FILE_MODE).open(path)?;
        Ok(if file.claim()? { Ok(file) } else { Err(file) })
    }

    fn lock_folder(&self, path: &Path) -> io::Result<Option<File>> {
        let folder = File::open(path)?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            // NFS turns this into a byte-range lock, which requires a file that is open for
            // writing. Other file systems do not support it at all.
            Ok(())
            | Err(Errno::BADF | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => {
                Ok(Some(folder))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl DiskFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(self)?.st_nlink > 0)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn write_through(&self) -> io::Result<bool> {
        let flags = rustix::fs::fcntl_getfl(self)?;
        let set = rustix::fs::fcntl_setfl(self, flags | OFlags::DIRECT);
        // Some file systems accept the flag but reject blocks that are too short for them, so try a
        // read here.
        let mut block = Blocks::new(BLOCK_BYTES);
        block.resize(BLOCK_BYTES, 0);
        let probed = set.and_then(|()| rustix::io::pread(self, &mut *block, 0));
        match probed {
            Ok(_) => Ok(true),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                rustix::fs::fcntl_setfl(self, flags)?;
                Ok(false)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_synced_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let parts = [IoSlice::new(bytes)];
        Ok(rustix::io::pwritev2(
            self,
            &parts,
            offset,
            ReadWriteFlags::DSYNC,
        )?)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn share(&self) -> io::Result<bool> {
        flock(self, FlockOperation::NonBlockingLockShared)
    }

    fn claim(&self) -> io::Result<bool> {
        flock(self, FlockOperation::NonBlockingLockExclusive)
    }

    fn drop_cache(&self) {
        let _ = rustix::fs::fadvise(self, 0, None, Advice::DontNeed);
    }
}

fn flock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tempfile::{tempdir, tempfile};

    use super::*;

    /// A file that reads and writes three bytes at a time, and is interrupted before each.
    #[derive(Debug)]
    struct Choppy {
        file: File,
        was_interrupted: Mutex<bool>,
    }

    impl Choppy {
        fn piece(&self, bytes: usize) -> io::Result<usize> {
            let mut was_interrupted = self.was_interrupted.lock().unwrap();
            *was_interrupted = !*was_interrupted;
            if *was_interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(bytes.min(3))
        }
    }

    impl DiskFile for Choppy {
        fn bytes(&self) -> io::Result<u64> {
            DiskFile::bytes(&self.file)
        }
        fn is_linked(&self) -> io::Result<bool> {
            self.file.is_linked()
        }
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            let piece = self.piece(bytes.len())?;
            DiskFile::read_at(&self.file, &mut bytes[..piece], offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            let piece = self.piece(bytes.len())?;
            DiskFile::write_at(&self.file, &bytes[..piece], offset)
        }
        fn set_bytes(&self, bytes: u64) -> io::Result<()> {
            self.file.set_bytes(bytes)
        }
        fn sync(&self) -> io::Result<()> {
            self.file.sync()
        }
        fn write_through(&self) -> io::Result<bool> {
            Ok(false)
        }
        fn reserve(&self, bytes: u64) -> io::Result<()> {
            self.file.reserve(bytes)
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
    fn everything_is_written_and_read_despite_short_transfers() {
        for length in [0, 1, 2, 3, 4, 9, 100] {
            let file = Choppy {
                file: tempfile().unwrap(),
                was_interrupted: Mutex::new(false),
            };
            let written: Vec<u8> = (0..length).collect();
            file.write_all_at(&written, 5).unwrap();
            let mut read = vec![0xFF; usize::from(length) + 7];
            let count = file.read_full_at(&mut read, 5).unwrap();
            assert_eq!(read[..count], written, "{length}");
        }
    }

    #[test]
    fn other_errors_end_a_transfer() {
        let readable = File::open("/dev/null").unwrap();
        let error = DiskFile::write_all_at(&readable, b"x", 0).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::BADF));
        let folder = File::open("/").unwrap();
        let error = folder.read_full_at(&mut [0], 0).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::ISDIR));
    }

    #[test]
    fn a_file_is_identified_by_its_inode_and_not_its_name() {
        let folder = tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let file = HostDisk.create(&path("a")).unwrap();
        assert!(HostDisk.is_at(&path("a"), &file).unwrap());
        assert!(!HostDisk.is_at(&path("b"), &file).unwrap());
        assert!(!HostDisk.is_at(&path("a/b"), &file).unwrap());
        HostDisk.link(&path("a"), &path("c")).unwrap();
        assert!(HostDisk.is_at(&path("c"), &file).unwrap());
        HostDisk.remove(&path("a")).unwrap();
        HostDisk.create(&path("a")).unwrap();
        assert!(!HostDisk.is_at(&path("a"), &file).unwrap());
    }

    #[test]
    fn a_write_through_file_accepts_whole_blocks() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("a");
        let file = HostDisk.create(&path).unwrap();
        let write = |bytes: &[u8], at| DiskFile::write_all_at(&file, bytes, at);
        write(b"header", 0).unwrap();
        // If the file system does not support it, the file is unchanged.
        let takes_bytes = !DiskFile::write_through(&file).unwrap();
        let mut blocks = Blocks::new(BLOCK_BYTES);
        blocks.resize(2 * BLOCK_BYTES, b'b');
        write(&blocks, 0).unwrap();
        write(&blocks[..BLOCK_BYTES], BLOCK_BYTES as u64).unwrap();
        assert_eq!(write(b"short", 1).is_ok(), takes_bytes);
        let synced = file.write_synced_at(&blocks, 0).unwrap();
        assert_eq!(synced, blocks.len());
        let mut read = Vec::new();
        File::open(&path).unwrap().read_whole(&mut read).unwrap();
        assert_eq!(read.len(), 2 * BLOCK_BYTES);
    }

    #[test]
    fn a_file_is_linked_while_it_has_a_name() {
        let folder = tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let file = HostDisk.create(&path("a")).unwrap();
        HostDisk.link(&path("a"), &path("b")).unwrap();
        for (name, is_linked) in [("a", true), ("b", false)] {
            assert!(file.is_linked().unwrap());
            HostDisk.remove(&path(name)).unwrap();
            assert_eq!(file.is_linked().unwrap(), is_linked);
        }
    }
}
