//! The files of the log: each is created whole, appended to by its shard, and cut at most once, after which it is closed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::directory::sync_folder;
use super::record::SegmentHeader;

#[cfg(test)]
mod tests;

const SUFFIX: &str = ".aof";
const SUFFIX_NEW: &str = ".aof.new";

/// A segment that is open for writing; the file's cursor stands behind the header.
#[derive(Debug)]
pub struct Segment {
    /// Open for reading and writing.
    pub file: File,
    /// Its final name.
    pub path: PathBuf,
    /// The header that stands in it.
    pub header: SegmentHeader,
}

/// The file name of a segment.
#[must_use]
pub fn file_name(index: u64) -> String {
    format!("{index:010}{SUFFIX}")
}

/// Creates a segment with its header in a shard's `folder`, and the folder in the data directory if it is missing. When
/// this returns, the segment survives a power cut under its final name. The file appears under that name with its header
/// already on disk, so a segment without a whole header is damage and never the trace of a crash.
///
/// `reserve_bytes` of disk are claimed ahead without a change of the file's length, so that a full disk shows here, where
/// no op hangs on it; zero claims none, as does a file system that cannot. [`cut`] gives back what is not used.
///
/// After a failure there is no new file. An index that is in use already is such a failure.
pub fn create(folder: &Path, header: SegmentHeader, reserve_bytes: u64) -> io::Result<Segment> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if let Some(data) = folder.parent() {
        // An empty parent is the way in which a relative path of one name tells the working directory.
        sync_folder(if data.as_os_str().is_empty() {
            Path::new(".")
        } else {
            data
        })?;
    }
    let path = folder.join(file_name(header.index));
    if path.try_exists()? {
        // A rename would replace it, with all of its ops.
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} exists", path.display()),
        ));
    }
    let path_new = folder.join(format!("{:010}{SUFFIX_NEW}", header.index));
    let created = write_new(&path_new, &header, reserve_bytes).and_then(|file| {
        fs::rename(&path_new, &path)?;
        sync_folder(folder)?;
        Ok(file)
    });
    match created {
        Ok(file) => Ok(Segment { file, path, header }),
        Err(error) => {
            // At most one of the two is there, without ops. The error to tell is the first one.
            let _ = fs::remove_file(&path_new);
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

/// The segments of a shard's folder with their index, in order. Other files are left out, but not those that end like a
/// segment and have no segment's name: ops could be in them.
pub fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for name in file_names(folder)? {
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else {
            continue;
        };
        let path = folder.join(&name);
        match stem.parse() {
            Ok(index) if path.ends_with(file_name(index)) => segments.push((index, path)),
            _ => {
                let what = format!("{} is not the name of a segment", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Removes what a crash left while a segment was created. No op was ever in such a file.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for name in file_names(folder)? {
        if name.to_str().is_some_and(|name| name.ends_with(SUFFIX_NEW)) {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}

/// Shortens a segment to its first `bytes`, gives back the disk claimed beyond them, and makes both durable. A segment
/// that has been cut is never appended to: the next one begins where it ends.
///
/// # Errors
/// `InvalidInput`, when the file is shorter: a cut never makes a hole.
pub fn cut(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() < bytes {
        let what = format!("{} is shorter than {bytes} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    file.set_len(bytes)?;
    file.sync_all()
}

fn write_new(path: &Path, header: &SegmentHeader, reserve_bytes: u64) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    if reserve_bytes > 0 {
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, reserve_bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    file.write_all(&header.encode())?;
    file.sync_all()?;
    Ok(file)
}

fn file_names(folder: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}
