//! Reads the log at startup, processing the shards' folders in parallel on one thread per core, and
//! shows the progress.

use std::cell::Cell;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::core::state::replay::Replay;
use crate::core::state::workspace::Workspace;
use crate::limits::{PROGRESS_INTERVAL_MS, READ_BYTES};
use crate::log::directory::DataDirectory;
use crate::log::disk::Disk;
use crate::log::record::{LoggedOp, op_bytes};
use crate::log::recovery::{Recovery, RecoveryError, RecoveryReport};
use crate::status::RecoveryProgress;

/// Reads the log and partitions its workspaces among `shards` shards.
pub fn recover<D: Disk>(
    directory: &DataDirectory<D>,
    shards: u32,
    hash_seed: u64,
    progress: &RecoveryProgress,
) -> Result<(RecoveryReport, Vec<Vec<Workspace>>), RecoveryError> {
    let recovery = Recovery::open(directory)?;
    progress.begin(recovery.bytes());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let reads = Mutex::new(Vec::new());
    // Each thread takes the next folder. The workspaces of a folder are usually in no other folder.
    let work = || loop {
        let folder = next.fetch_add(1, Ordering::Relaxed);
        if folder >= recovery.folders() {
            break;
        }
        let mut replay = Replay::new(hash_seed);
        let meter = ReadMeter::new(progress);
        let visit = |op: &LoggedOp<'_>| {
            replay.visit(op);
            meter.op(op_bytes(op));
        };
        let read = recovery.read(folder, visit, |bytes| {
            meter.segment(bytes);
            hold();
        });
        replay.finish_restore();
        let read = read.map(|read| (read, replay));
        let mut reads = reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.push((folder, read));
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(recovery.folders()) {
            // If a thread cannot be started, the server starts anyway: this thread reads the
            // remaining folders.
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let mut reads = reads.into_inner().unwrap_or_else(PoisonError::into_inner);
    reads.sort_by_key(|(folder, _)| *folder);
    let (mut folders, mut replay) = (Vec::new(), Replay::new(hash_seed));
    for (_, read) in reads {
        let (folder, part) = read?;
        folders.push(folder);
        replay.merge(part);
    }
    let report = recovery.finish(&folders)?;
    Ok((report, replay.finish(shards)))
}

/// Reports the bytes read from a folder to a [`RecoveryProgress`], even in the middle of a segment,
/// because segments may be long.
struct ReadMeter<'a> {
    progress: &'a RecoveryProgress,
    /// The bytes of the current segment that have been reported.
    told_bytes: Cell<u64>,
    untold_bytes: Cell<u64>,
}

impl<'a> ReadMeter<'a> {
    fn new(progress: &'a RecoveryProgress) -> Self {
        Self {
            progress,
            told_bytes: Cell::new(0),
            untold_bytes: Cell::new(0),
        }
    }

    fn op(&self, bytes: usize) {
        let untold_bytes = self.untold_bytes.get() + bytes as u64;
        self.untold_bytes.set(untold_bytes);
        // Do not report after every op, because the threads share the counter.
        if untold_bytes >= READ_BYTES as u64 {
            self.progress.add(self.untold_bytes.take());
            self.told_bytes.set(self.told_bytes.get() + untold_bytes);
        }
    }

    /// Records the end of a segment whose file is `file_bytes` long, including headers.
    fn segment(&self, file_bytes: u64) {
        self.untold_bytes.set(0);
        let told_bytes = self.told_bytes.take();
        self.progress.add(file_bytes.saturating_sub(told_bytes));
    }
}

/// Pauses recovery until the file exists, so that tests can observe a server that is reading its
/// log.
fn hold() {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Some(path) = std::env::var_os("ETHERPLY_FAULT_HOLD_RECOVERY") {
        while !Path::new(&path).exists() {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A display of a [`RecoveryProgress`]: a progress bar on a terminal, otherwise a line in the log
/// every few seconds.
pub struct Display {
    bar: Option<ProgressBar>,
    next_line: Instant,
}

impl Display {
    /// Creates a display that shows nothing yet, because a quick recovery needs none.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bar: None,
            next_line: Instant::now() + Duration::from_millis(PROGRESS_INTERVAL_MS),
        }
    }

    /// Updates the display; call it several times a second.
    pub fn show(&mut self, progress: &RecoveryProgress) {
        let (done_bytes, total_bytes) = progress.bytes();
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| bar(total_bytes));
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
        } else if self.next_line <= Instant::now() {
            self.next_line += Duration::from_millis(PROGRESS_INTERVAL_MS);
            let percent = progress.percent();
            tracing::info!(done_bytes, total_bytes, "reading the log: {percent}%");
        }
    }

    /// Removes the bar from the terminal.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

fn bar(total_bytes: u64) -> ProgressBar {
    let style = "reading the log [{wide_bar}] {bytes} of {total_bytes}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("the template is valid");
    let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
    bar.set_style(style.progress_chars("=> "));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_segment_is_reported_in_parts_and_each_byte_once() {
        let progress = RecoveryProgress::default();
        let meter = ReadMeter::new(&progress);
        for begin in [0, 10_000_000] {
            meter.op(READ_BYTES - 1);
            assert_eq!(progress.bytes().0, begin);
            meter.op(100);
            assert_eq!(progress.bytes().0, begin + READ_BYTES as u64 + 99);
            meter.op(READ_BYTES - 1);
            meter.segment(10_000_000);
            assert_eq!(progress.bytes().0, begin + 10_000_000);
        }
        meter.segment(64);
        assert_eq!(progress.bytes().0, 20_000_064);
    }
}
