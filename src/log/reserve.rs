//! Disk space that is claimed for compaction, so that the server can recover when other programs
//! have filled the disk: compaction frees space, but needs a little space first.
//!
//! The reserve is an empty file with blocks claimed beyond its end. If the file system cannot claim
//! blocks, the file occupies no space and does no harm. The reserve survives a restart of the
//! server.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::{DataDirectory, RESERVE};
use super::disk::{Disk, DiskFile};

/// The reserve of a data directory.
#[derive(Debug)]
pub struct Reserve<D: Disk> {
    directory: Arc<DataDirectory<D>>,
    /// The number of bytes claimed, as far as this process knows.
    bytes: u64,
}

impl<D: Disk> Reserve<D> {
    /// Returns the reserve of a data directory. A file from an earlier process may already exist.
    #[must_use]
    pub fn new(directory: Arc<DataDirectory<D>>) -> Self {
        Self {
            directory,
            bytes: 0,
        }
    }

    /// Returns the number of bytes claimed, as far as this process knows.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Claims `bytes` of disk space, unless at least that much is already claimed.
    pub fn claim(&mut self, bytes: u64) -> io::Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let disk = self.directory.disk();
        let claimed = disk
            .create(&self.path())
            .and_then(|file| file.reserve(bytes));
        if claimed.is_err() {
            // Part of the space may have been claimed.
            let _ = disk.remove(&self.path());
            self.bytes = 0;
        } else {
            self.bytes = bytes;
        }
        claimed
    }

    /// Releases the reserve. Returns whether there was one.
    pub fn give_up(&mut self) -> bool {
        self.bytes = 0;
        self.directory.disk().remove(&self.path()).is_ok()
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(RESERVE)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_reserve_claims_and_releases_blocks_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Arc::new(DataDirectory::open(folder.path().join("data")).unwrap());
        let mut reserve = Reserve::new(Arc::clone(&directory));
        assert!(!reserve.give_up(), "no reserve exists yet");
        let path = folder.path().join("data").join(RESERVE);
        for bytes in [1 << 20, 1 << 16, 2 << 20] {
            reserve.claim(bytes).unwrap();
            let metadata = path.metadata().unwrap();
            assert_eq!(metadata.len(), 0);
            // All file systems that the tests run on support it.
            assert!(
                metadata.blocks() * 512 >= bytes,
                "{} blocks",
                metadata.blocks()
            );
        }
        assert_eq!(reserve.bytes(), 2 << 20);
        let mut next = Reserve::new(directory);
        assert_eq!(next.bytes(), 0, "a new process knows the size");
        assert!(next.give_up());
        assert!(!path.exists() && !next.give_up());
    }
}
