//! Disks that fail on demand: a limit on file sizes, a full tmpfs, and an in-memory disk that
//! refuses writes.

use rustix::process::{Pid, Resource, Rlimit, geteuid, prlimit};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

use super::skipped;

/// Makes every write by the process beyond this offset of any file fail. `None` lifts the limit.
pub fn limit_file_size(pid: Pid, limit: Option<u64>) {
    prlimit(
        Some(pid),
        Resource::Fsize,
        Rlimit {
            current: limit,
            maximum: None,
        },
    )
    .expect("the server is running");
}

/// Makes the process fail to open any descriptor numbered `limit` or higher. Descriptors that are
/// already open stay open.
pub fn limit_open_files(pid: Pid, limit: u64) {
    prlimit(
        Some(pid),
        Resource::Nofile,
        Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        },
    )
    .expect("the server is running");
}

/// Returns whether this test may mount a file system, and reports the test as skipped if it may
/// not.
pub fn may_mount() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        skipped("mounting a small disk requires root");
    }
    is_root
}

/// A mounted file system. Dropping it unmounts it once nothing uses it.
pub struct Mount {
    point: TempDir,
    /// Unmounts if the test process ends without dropping anything: it waits for end of file on its
    /// stdin, in its own session so that it is not killed together with the test.
    guard: Option<Child>,
}

impl Mount {
    /// Mounts a tmpfs of this size. Returns `None`, and prints a reason, if mounting is not
    /// allowed.
    pub fn tmpfs(size: &str) -> Option<Mount> {
        Mount::run(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    /// Mounts the file system on a disk.
    pub fn disk(disk: &MemoryDisk) -> Option<Mount> {
        Mount::run(&["-o", "errors=continue", &disk.device()])
    }

    fn run(arguments: &[&str]) -> Option<Mount> {
        let point = TempDir::new().expect("a temporary folder");
        let path = point.path().display().to_string();
        if !succeeds("mount", &[arguments, &[&path]].concat()) {
            return None;
        }
        let script = "read -r _; umount -l \"$0\"; rmdir \"$0\"";
        let guard = Command::new("setsid")
            .args(["sh", "-c", script, &path])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Some(Mount {
            point,
            guard: guard.ok(),
        })
    }

    pub fn path(&self) -> &Path {
        self.point.path()
    }

    fn unmount(&self) {
        // Operations in flight may keep the disk busy for a short time after the process was
        // killed.
        let path = self.path().display().to_string();
        for _ in 0..200 {
            let output = Command::new("umount").arg(&path).output();
            if output.is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = Command::new("umount").args(["-l", &path]).output();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            // The guard has nothing left to do but must be reaped.
            let _ = guard.wait();
        }
    }
}

/// The presence of a journal in the file system, which determines how it behaves on a failing disk.
///
/// Without a journal it continues, and a later fdatasync succeeds although its blocks never reached
/// the disk: a minimal program that writes, syncs and remounts reads back zeros in half of its
/// runs. With a journal it turns read-only until it is remounted, and it lost nothing in 40 runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    No,
    Yes,
}

/// An in-memory disk (zram) whose writes fail on demand.
///
/// A loop device over a sparse file would not do: when there is space for only part of a write, it
/// reports that all of it was written (Linux 6.18).
pub struct MemoryDisk {
    number: u32,
}

impl MemoryDisk {
    /// Creates a disk with an ext4 file system. Returns `None`, and prints a reason, if the host
    /// has no zram.
    pub fn ext4(size: &str, journal: Journal) -> Option<MemoryDisk> {
        // Reading this file creates a device.
        let number = match std::fs::read_to_string("/sys/class/zram-control/hot_add") {
            Ok(number) => number.trim().parse().expect("a number"),
            Err(error) => {
                skipped(format_args!("cannot create an in-memory disk: {error}"));
                return None;
            }
        };
        let disk = MemoryDisk { number };
        disk.set("disksize", size);
        let journal: &[&str] = match journal {
            Journal::No => &["-O", "^has_journal"],
            Journal::Yes => &["-J", "size=4"],
        };
        let common = [
            "-q",
            "-F",
            "-b",
            "4096",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
        ];
        succeeds(
            "mkfs.ext4",
            &[&common[..], journal, &[&disk.device()]].concat(),
        )
        .then_some(disk)
    }

    fn device(&self) -> String {
        format!("/dev/zram{}", self.number)
    }

    /// Makes every write that would need more memory fail.
    pub fn fail(&self) {
        self.set("mem_limit", "4096");
    }

    /// Lets writes succeed again.
    pub fn mend(&self) {
        self.set("mem_limit", "0");
    }

    fn set(&self, name: &str, value: &str) {
        let path = format!("/sys/block/zram{}/{name}", self.number);
        std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        // A disk that is still mounted is busy, so it cannot be removed and remains until the host
        // restarts.
        let reset = format!("/sys/block/zram{}/reset", self.number);
        let _ = std::fs::write(reset, "1");
        let _ = std::fs::write(
            "/sys/class/zram-control/hot_remove",
            self.number.to_string(),
        );
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            skipped(format_args!("{program} {arguments:?}: {}", error.trim()));
            false
        }
        Err(error) => {
            skipped(format_args!("{program} cannot be run: {error}"));
            false
        }
    }
}

/// A file that fills the remaining space of a disk.
pub struct Ballast {
    path: PathBuf,
}

impl Ballast {
    pub fn fill(folder: &Path) -> Ballast {
        let path = folder.join("ballast");
        let mut file = File::create(&path).expect("a file can be created");
        for chunk_len in [64 * 1024, 4096, 512, 1] {
            while file.write_all(&vec![b'x'; chunk_len]).is_ok() {}
        }
        Ballast { path }
    }

    pub fn remove(self) {
        std::fs::remove_file(self.path).expect("the ballast file can be removed");
    }
}
