//! The files of the log: each is created complete, appended to by its shard, and cut once it is
//! closed.

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
    /// Open for reading and writing.
    pub file: F,
    /// The final path.
    pub path: PathBuf,
    /// The header in the file.
    pub header: SegmentHeader,
    /// Turns appends into whole blocks, if the segment is written through.
    pub blocks: Option<BlockWriter>,
}

impl<F: DiskFile> Segment<F> {
    /// Makes each later write bypass the page cache, so that it is on disk when it returns, if the
    /// file system supports that. The file then grows by `fill_bytes` at a time: the appended bytes
    /// are followed by zeros.
    pub fn write_through(mut self, fill_bytes: u64) -> io::Result<Self> {
        if self.file.write_through()? {
            self.blocks = Some(BlockWriter::new(&self.header.encode(), fill_bytes));
        }
        Ok(self)
    }
}

/// The file name of a segment.
#[must_use]
pub fn file_name(index: u64) -> String {
    format!("{index:010}{SUFFIX}")
}

/// Creates a segment with its header in a shard's `folder`, and the folder in the data directory if
/// it is missing. When this returns, the segment survives a power cut under its final name. The
/// file appears under that name with its header already on disk, so a segment without a whole
/// header is damage and never the trace of a crash.
///
/// `reserve_bytes` of disk are claimed in advance without changing the file's length, so that a
/// full disk is noticed here, when no op depends on it. Zero claims none, and neither does a file
/// system that cannot. [`cut`] gives back what is not used.
///
/// After a failure there is no new file. An index that is in use already is such a failure.
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
        // A rename would replace it, with all of its ops.
        let what = format!("{} exists", path.display());
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
            // At most one of the two exists, without ops. The first error is the one to report.
            let _ = disk.remove(&path_new);
            let _ = disk.remove(&path);
            Err(error)
        }
    }
}

/// The name of a segment while it is being made: what a crash leaves of it is swept.
#[must_use]
pub fn new_path(folder: &Path, index: u64) -> PathBuf {
    folder.join(format!("{index:010}{SUFFIX_NEW}"))
}

/// The files in a shard's folder with a segment's extension.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The segments with their index, in order.
    pub segments: Vec<(u64, PathBuf)>,
    /// The files that do not have a segment's name, in order: they could contain ops.
    pub strays: Vec<PathBuf>,
}

/// Lists a shard's folder. Files that do not end like a segment are left out.
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

/// The segments of a shard's folder with their index, in order. Other files are left out, but not
/// those that end like a segment and have no segment's name: ops could be in them.
pub fn list<D: Disk>(disk: &D, folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let listing = scan(disk, folder)?;
    match listing.strays.first() {
        None => Ok(listing.segments),
        Some(path) => {
            let what = format!("{} is not the name of a segment", path.display());
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

fn index_of(name: &OsStr) -> Option<u64> {
    let index = name.to_str()?.strip_suffix(SUFFIX)?.parse().ok()?;
    (name == file_name(index).as_str()).then_some(index)
}

/// Removes what a crash left while a segment was created. No op was ever in such a file.
pub fn sweep<D: Disk>(disk: &D, folder: &Path) -> io::Result<()> {
    for name in disk.names(folder)? {
        if name.to_str().is_some_and(|name| name.ends_with(SUFFIX_NEW)) {
            disk.remove(&folder.join(name))?;
        }
    }
    Ok(())
}

/// Shortens a segment to its first `bytes`, gives back the disk claimed past them, and makes both
/// durable. A segment that has been cut is never appended to: the next one begins where it ends.
///
/// # Errors
/// `InvalidInput`, when the file is shorter: a cut never makes a hole.
pub fn cut<D: Disk>(disk: &D, path: &Path, bytes: u64) -> io::Result<()> {
    let file = disk.open_writable(path)?;
    if file.bytes()? < bytes {
        let what = format!("{} is shorter than {bytes} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    file.set_bytes(bytes)?;
    file.sync()
}

/// Shortens a closed segment to its first `bytes`; nothing reads the rest. A crash may undo it.
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

/// Returns a path of the folder that can be opened: an empty path means that the parent of a
/// relative path is the working directory.
fn named(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }
}
