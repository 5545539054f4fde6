//! The segment files of the log. Each file appears under its name once its header is written, is
//! appended to by its shard, and is cut to its final length once it is closed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::blocks::BlockWriter;
use super::disk::{Disk, DiskFile};
use super::record::SegmentHeader;

#[cfg(test)]
mod tests;

const SUFFIX: &str = ".aof";
const SUFFIX_NEW: &str = ".aof.new";

/// A segment that is open for writing.
#[derive(Debug)]
pub struct Segment<F> {
    /// The file, open for reading and writing.
    pub file: F,
    /// The final path.
    pub path: PathBuf,
    /// The header in the file.
    pub header: SegmentHeader,
    /// The writer that turns appends into whole blocks, if the segment is written through.
    pub blocks: Option<BlockWriter>,
}

impl<F: DiskFile> Segment<F> {
    /// Makes all later writes bypass the page cache, if the file system supports that, so that each
    /// is on disk when it returns. The file then grows by `fill_bytes` at a time, so zeros follow
    /// the appended bytes.
    pub fn write_through(mut self, fill_bytes: u64) -> io::Result<Self> {
        if self.file.write_through()? {
            self.blocks = Some(BlockWriter::new(&self.header.encode(), fill_bytes));
        }
        Ok(self)
    }
}

/// Returns the file name of a segment.
#[must_use]
pub fn file_name(index: u64) -> String {
    format!("{index:010}{SUFFIX}")
}

/// Creates a segment with its header in a shard's `folder`, and creates the folder if it is
/// missing. When this returns, the segment survives a power cut under its final name. The file
/// appears under that name only once its header is on disk, so a segment with an incomplete header
/// is always damage and never the result of a crash.
///
/// `reserve_bytes` of disk space are claimed in advance, without changing the file's length, so
/// that a full disk is noticed while no op depends on the segment. Nothing is claimed if
/// `reserve_bytes` is zero or the file system does not support it. [`cut`] releases the unused
/// space.
///
/// # Errors
///
/// If the index is already in use, or if the disk fails; the new file is then removed again.
pub fn create<D: Disk>(
    disk: &D,
    folder: &Path,
    header: SegmentHeader,
    reserve_bytes: u64,
) -> io::Result<Segment<D::File>> {
    match disk.create_folder(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if let Some(data) = folder.parent() {
        disk.sync_folder(named(data))?;
    }
    let path = folder.join(file_name(header.index));
    if disk.exists(&path)? {
        // The rename below would replace it, and with it all of its ops.
        let what = format!("{} already exists", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    let path_new = new_path(folder, header.index);
    let created = write_new(disk, &path_new, &header, reserve_bytes).and_then(|file| {
        disk.rename(&path_new, &path)?;
        disk.sync_folder(folder)?;
        Ok(file)
    });
    match created {
        Ok(file) => Ok(Segment {
            file,
            path,
            header,
            blocks: None,
        }),
        Err(error) => {
            // At most one of these two files exists, and it has no ops. The first error is the one
            // to report.
            let _ = disk.remove(&path_new);
            let _ = disk.remove(&path);
            Err(error)
        }
    }
}

/// Returns the path of a segment while it is being created. After a crash, [`sweep`] removes any
/// such file.
#[must_use]
pub fn new_path(folder: &Path, index: u64) -> PathBuf {
    folder.join(format!("{index:010}{SUFFIX_NEW}"))
}

/// The files in a shard's folder that have a segment's extension.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The segments and their indexes, in order.
    pub segments: Vec<(u64, PathBuf)>,
    /// The files that do not have a valid segment name, in order. They could contain ops.
    pub strays: Vec<PathBuf>,
}

/// Lists the files in a shard's folder that have a segment's extension.
pub fn scan<D: Disk>(disk: &D, folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for name in disk.names(folder)? {
        let is_one = name.as_bytes().ends_with(SUFFIX.as_bytes());
        if !is_one {
            continue;
        }
        let path = folder.join(&name);
        match index_of(&name) {
            Some(index) => listing.segments.push((index, path)),
            None => listing.strays.push(path),
        }
    }
    listing.segments.sort_unstable();
    listing.strays.sort_unstable();
    Ok(listing)
}

/// Returns the segments of a shard's folder and their indexes, in order. Files with other
/// extensions are ignored.
///
/// # Errors
///
/// If a file has a segment's extension but not a valid segment name, because it could contain ops.
pub fn list<D: Disk>(disk: &D, folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let listing = scan(disk, folder)?;
    match listing.strays.first() {
        None => Ok(listing.segments),
        Some(path) => {
            let what = format!("{} is not a segment name", path.display());
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

fn index_of(name: &OsStr) -> Option<u64> {
    let index = name.to_str()?.strip_suffix(SUFFIX)?.parse().ok()?;
    (name == file_name(index).as_str()).then_some(index)
}

/// Removes the files left by crashes while segments were being created. Such a file never contains
/// the only copy of an op.
pub fn sweep<D: Disk>(disk: &D, folder: &Path) -> io::Result<()> {
    for name in disk.names(folder)? {
        if name.to_str().is_some_and(|name| name.ends_with(SUFFIX_NEW)) {
            disk.remove(&folder.join(name))?;
        }
    }
    Ok(())
}

/// Truncates a segment to its first `bytes`, releases the disk space claimed past them, and makes
/// both changes durable. A segment that has been cut is never appended to again, because the next
/// one begins where it ends.
///
/// # Errors
/// `InvalidInput` if the file is already shorter, because a cut must never create a hole.
pub fn cut<D: Disk>(disk: &D, path: &Path, bytes: u64) -> io::Result<()> {
    let file = disk.open_writable(path)?;
    if file.bytes()? < bytes {
        let what = format!("{} is shorter than {bytes} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    file.set_bytes(bytes)?;
    file.sync()
}

/// Truncates a closed segment to its first `bytes`, since the rest is never read. A crash may undo
/// this.
pub fn trim<D: Disk>(disk: &D, path: &Path, bytes: u64) -> io::Result<()> {
    let file = disk.open_writable(path)?;
    if file.bytes()? > bytes {
        file.set_bytes(bytes)?;
    }
    Ok(())
}

fn write_new<D: Disk>(
    disk: &D,
    path: &Path,
    header: &SegmentHeader,
    reserve_bytes: u64,
) -> io::Result<D::File> {
    let file = disk.create(path)?;
    if reserve_bytes > 0 {
        file.reserve(reserve_bytes)?;
    }
    file.write_all_at(&header.encode(), 0)?;
    file.sync()?;
    Ok(file)
}

/// Returns a path with which the folder can be opened. The parent of a relative path may be the
/// empty path, which means the working directory.
fn named(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }
}
