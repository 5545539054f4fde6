//! The CPU time and the context switches of a process.
//!
//! Both are read task by task, in nanoseconds: the ticks of `/proc/PID/stat` are a hundredth of a
//! second long, and are wrong by a fifth for a process that runs in short bursts. The kernel's
//! workers for the rings of a process (`iou-wrk-*`, `iou-sqp-*`) are tasks of it and are listed
//! among its threads.

#![allow(
    unsafe_code,
    reason = "the CPU clock of another process; see SAFETY at the block"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

/// The start of the names of the kernel's workers for a ring.
const KERNEL_WORKER: &str = "iou-";

/// What a process had used at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The CPU time of all tasks, including those that have ended.
    cpu_ns: u64,
    /// The tasks that had not ended, by their id.
    tasks: BTreeMap<u32, Task>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Task {
    cpu_ns: u64,
    context_switches: u64,
    is_kernel_worker: bool,
}

/// What a process used between two readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    pub cpu_s: f64,
    /// The part of it that the kernel's workers for its rings used.
    pub kernel_workers_s: f64,
    /// Voluntary and involuntary.
    pub context_switches: u64,
}

impl Reading {
    /// Reads what a process has used so far.
    ///
    /// A thread that ends is no longer listed. The CPU clock of the process counts the same
    /// nanoseconds and keeps those of ended threads, so the CPU time never goes down. The context
    /// switches of an ended thread are lost.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut tasks = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let folder = entry?.path();
            let id = folder.file_name().and_then(|name| name.to_str());
            let id = id.and_then(|name| name.parse().ok());
            // A task may end between the listing and this.
            if let (Some(id), Ok(task)) = (id, Task::read(&folder)) {
                tasks.insert(id, task);
            }
        }
        if tasks.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let listed_ns = tasks.values().map(|task| task.cpu_ns).sum();
        Ok(Self {
            cpu_ns: process_clock_ns(pid).map_or(listed_ns, |clock_ns| listed_ns.max(clock_ns)),
            tasks,
        })
    }

    /// Returns the CPU time.
    pub fn cpu_s(&self) -> f64 {
        seconds(self.cpu_ns)
    }

    /// Returns what was used since an earlier reading.
    pub fn since(&self, earlier: &Self) -> Usage {
        let mut usage = Usage {
            cpu_s: seconds(self.cpu_ns.saturating_sub(earlier.cpu_ns)),
            kernel_workers_s: 0.0,
            context_switches: 0,
        };
        for (id, task) in &self.tasks {
            let before = earlier.tasks.get(id).copied().unwrap_or_default();
            // The id of an ended task may have been used again.
            let before = if before.cpu_ns <= task.cpu_ns {
                before
            } else {
                Task::default()
            };
            let switches = task
                .context_switches
                .saturating_sub(before.context_switches);
            usage.context_switches += switches;
            if task.is_kernel_worker {
                usage.kernel_workers_s += seconds(task.cpu_ns - before.cpu_ns);
            }
        }
        usage
    }
}

impl Usage {
    /// Returns the sum of two periods.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_s: self.cpu_s + other.cpu_s,
            kernel_workers_s: self.kernel_workers_s + other.kernel_workers_s,
            context_switches: self.context_switches + other.context_switches,
        }
    }
}

impl Task {
    /// Reads a folder such as `/proc/PID/task/TID`.
    fn read(folder: &Path) -> io::Result<Self> {
        let read = |name| fs::read_to_string(folder.join(name));
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        Ok(Self {
            cpu_ns: schedstat_cpu_ns(&read("schedstat")?).ok_or_else(invalid)?,
            context_switches: status_context_switches(&read("status")?).ok_or_else(invalid)?,
            is_kernel_worker: read("comm")?.starts_with(KERNEL_WORKER),
        })
    }
}

/// Returns the CPU time from the text of a task's `schedstat`: its first number, in nanoseconds
/// (Documentation/scheduler/sched-stats.rst).
pub(super) fn schedstat_cpu_ns(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Returns the voluntary and involuntary context switches from the text of a task's `status`
/// (`proc_pid_status(5)`).
fn status_context_switches(text: &str) -> Option<u64> {
    let number = |name: &str| {
        let mut lines = text.lines();
        let number = lines.find_map(|line| line.strip_prefix(name))?.trim();
        number.parse::<u64>().ok()
    };
    Some(number("voluntary_ctxt_switches:")? + number("nonvoluntary_ctxt_switches:")?)
}

/// Reads the CPU clock of a process, which counts the time of all its tasks, also of those that
/// have ended; `None` if there is no such process.
fn process_clock_ns(pid: u32) -> Option<u64> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY:
    // - both calls write to a variable of this function, of the type that they expect, and keep no
    //   pointer to it (clock_getcpuclockid(3), clock_gettime(2))
    let is_read = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    let time = is_read.then(|| {
        let whole = u64::try_from(time.tv_sec)
            .ok()?
            .checked_mul(1_000_000_000)?;
        whole.checked_add(u64::try_from(time.tv_nsec).ok()?)
    });
    time.flatten()
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

#[cfg(test)]
mod tests;
