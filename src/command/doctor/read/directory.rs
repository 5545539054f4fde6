//! Reads facts about the data directory: its file system and device, and how long a sync takes.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;

use super::host::HostFiles;
use crate::command::doctor::facts::{Directory, Mount, SyncTimes};
use crate::limits::SEGMENT_FILL_BYTES;
use crate::log::blocks::{BlockWrite, BlockWriter};
use crate::log::directory::{lock_holder, other_file};
use crate::log::disk::{Disk, DiskFile, HostDisk};
use crate::log::record::SEGMENT_HEADER_BYTES;
use crate::log::remedy::remedy;

/// The number of appends that are timed, unless that takes longer than `APPENDING_MAX`.
const APPENDS: usize = 400;
const APPENDING_MAX: Duration = Duration::from_secs(4);
/// The size of a batch that holds one small op.
const APPEND_BYTES: usize = 200;

pub fn read(host: &HostFiles, path: &Path) -> Directory {
    let measured_in = existing(path);
    let (sync, error) = match time_syncs(&HostDisk, &measured_in) {
        Ok(times) => (Some(times), None),
        Err(error) => (None, Some(error)),
    };
    let canonical = measured_in.canonicalize();
    let mount = canonical.ok().and_then(|folder| mount_of(host, &folder));
    let room = statvfs(&measured_in).ok();
    let device = mount.as_ref().map(|mount| mount.device.as_str());
    let queue = |name: &str| device.and_then(|device| queue(host, device, name));
    Directory {
        path: path.to_owned(),
        is_there: measured_in == path,
        server: server(path),
        fault: error.as_ref().map(|error| fault(&measured_in, error)),
        fault_remedy: error.as_ref().and_then(remedy),
        other_file: other_file(&HostDisk, path),
        sync,
        free_bytes: room.as_ref().map(|room| room.f_bavail * room.f_frsize),
        total_bytes: room.as_ref().map(|room| room.f_blocks * room.f_frsize),
        write_cache: queue("write_cache"),
        is_rotational: queue("rotational").map(|text| text == "1"),
        mount,
        measured_in,
    }
}

fn fault(measured_in: &Path, error: &io::Error) -> String {
    if measured_in.is_dir() {
        let folder = measured_in.display();
        format!("cannot write and sync a file in {folder} ({error})")
    } else {
        format!("{} is not a folder", measured_in.display())
    }
}

/// Returns the path if it exists, or its nearest existing parent.
pub fn existing(path: &Path) -> PathBuf {
    let mut at = path;
    loop {
        if at.symlink_metadata().is_ok() {
            return at.to_owned();
        }
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            _ if path.is_absolute() => return PathBuf::from("/"),
            _ => return PathBuf::from("."),
        }
    }
}

/// Returns the process id of the server that holds the directory's lock, or `unknown` if it cannot
/// be read. Returns `None` if the directory is not locked.
pub fn server(path: &Path) -> Option<String> {
    // Taking a shared lock for a moment is the only test that also detects a server in another
    // container.
    let is_locked =
        |file: &File| flock(file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    let file = File::open(path.join("LOCK"));
    let folder = File::open(path).ok()?;
    // The server locks the folder too, in case LOCK is deleted.
    let is_used = file.as_ref().is_ok_and(is_locked) || is_locked(&folder);
    let pid = || file.map_or_else(|_| "unknown".to_owned(), |file| lock_holder(&file));
    is_used.then(pid)
}

/// A probe file that is removed when the value is dropped.
struct Probe<'a, D: Disk> {
    disk: &'a D,
    path: PathBuf,
}

impl<D: Disk> Drop for Probe<'_, D> {
    fn drop(&mut self) {
        // If this fails, the file was most likely never created.
        let _ = self.disk.remove(&self.path);
    }
}

/// Times appends made in the same way as the log's: either bypassing the page cache, or to a file
/// that grows, so that a sync must also write its length.
pub fn time_syncs<D: Disk>(disk: &D, folder: &Path) -> io::Result<SyncTimes> {
    let name = format!(".doctor-{}", std::process::id());
    let probe = Probe {
        disk,
        path: folder.join(name),
    };
    let file = disk.create(&probe.path)?;
    let header = [0; SEGMENT_HEADER_BYTES];
    file.write_all_at(&header, 0)?;
    file.sync()?;
    let writer = file.write_through()?;
    let mut writer = writer.then(|| BlockWriter::new(&header, SEGMENT_FILL_BYTES));
    let writes_through = writer.is_some();
    let mut append = |number: usize| {
        let offset = (SEGMENT_HEADER_BYTES + number * APPEND_BYTES) as u64;
        let bytes = vec![1; APPEND_BYTES];
        let Some(writer) = &mut writer else {
            file.write_all_at(&bytes, offset)?;
            return file.sync();
        };
        let BlockWrite { offset, blocks } = writer.begin(bytes, 0, offset);
        let outcome = file.write_synced_at(&blocks, offset);
        match writer.finish(blocks, outcome).1? {
            APPEND_BYTES => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    };
    // The first append allocates blocks, so it is not timed.
    append(0)?;
    let mut times_us = Vec::with_capacity(APPENDS);
    let all = Instant::now();
    while times_us.len() < APPENDS && all.elapsed() < APPENDING_MAX {
        let begun = Instant::now();
        append(times_us.len() + 1)?;
        times_us.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(SyncTimes {
        writes_through,
        ..sync_times(times_us)
    })
}

/// Summarizes the durations of appends.
///
/// # Panics
/// If `times_us` is empty.
pub fn sync_times(mut times_us: Vec<u64>) -> SyncTimes {
    times_us.sort_unstable();
    let appends = times_us.len();
    let at = |percent: usize| times_us[(appends * percent).div_ceil(100) - 1];
    SyncTimes {
        writes_through: false,
        appends,
        p50_us: at(50),
        p99_us: at(99),
        max_us: at(100),
    }
}

/// Returns the mount that a path is on: the one with the nearest mount point above the path, or the
/// last one if several mounts share that point.
pub fn mount_of(host: &HostFiles, path: &Path) -> Option<Mount> {
    let table = host.text("proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(mount);
    let above = mounts.filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.components().count())
}

/// Parses a line of `mountinfo` (proc(5)):
/// `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda1 rw,discard`.
fn mount(line: &str) -> Option<Mount> {
    let (own, of_file_system) = line.split_once(" - ")?;
    let own: Vec<&str> = own.split(' ').collect();
    let mut of_file_system = of_file_system.split(' ');
    let file_system = of_file_system.next()?.to_owned();
    let options = of_file_system.nth(1).unwrap_or_default();
    let options = own.get(5)?.split(',').chain(options.split(','));
    Some(Mount {
        point: PathBuf::from(unescaped(own.get(4)?)),
        file_system,
        options: options.map(str::to_owned).collect(),
        device: (*own.get(2)?).to_owned(),
    })
}

/// Decodes the octal escapes of `mountinfo`: spaces, tabs, line breaks and backslashes.
fn unescaped(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let replace = |text: String, (escape, plain): (&str, &str)| text.replace(escape, plain);
    escapes.into_iter().fold(text.to_owned(), replace)
}

/// Returns a setting of a device's queue. A partition uses the queue of its disk.
fn queue(host: &HostFiles, device: &str, name: &str) -> Option<String> {
    let device = Path::new("sys/dev/block").join(device);
    let own = host.text(device.join("queue").join(name));
    own.or_else(|| host.text(device.join("../queue").join(name)))
}
