//! Slow work on the log, on threads of its own, so that no shard's loop waits for it: new segments, rebuilds, compaction.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::core::contract::shard_of;
use crate::core::deal::Deal;
use crate::core::usage::Dead;
use crate::io::post::{Letter, Post, RebuildError, Status};
use crate::io::threads::{self, ThreadError};
use crate::limits::{
    COMPACTION_BYTES_MIN, COMPACTION_NICE, COMPACTION_RETRY_US, COMPACTION_START_PERCENT,
    COMPACTION_TIME_PERCENT_MIN, COMPACTION_URGENT_PERCENT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
};
use crate::log::compaction::{Compaction, CompactionError, Settings};
use crate::log::directory::DataDirectory;
use crate::log::disk::HostDisk;
use crate::log::keeper::{Creation, Rebuild};
use crate::log::segment;

/// Creates a segment; its outcome comes as a letter.
pub fn create(creation: Creation<HostDisk>, post: Post) {
    spawn(post, Letter::SegmentCreated, move || Ok(creation.run(0)?));
}

/// Rebuilds a shard, of so many; its outcome comes as a letter.
pub fn rebuild(
    rebuild: Rebuild<HostDisk>,
    (shard, shards): (u32, u32),
    hash_seed: u64,
    post: Post,
) {
    spawn(post, Letter::Rebuilt, move || {
        let mut deal = Deal::new(hash_seed);
        let segment = rebuild.run(|op| {
            if shard_of(op.workspace, shards) == shard {
                deal.visit(op);
            }
        })?;
        deal.finish_restore();
        Ok((segment, deal.finish(shards).swap_remove(shard as usize)))
    });
}

/// Does slow work on a thread of its own, and sends its outcome. An outcome comes in any case: a shard
/// that waits for one serves nobody.
fn spawn<T: Send + 'static>(
    post: Post,
    letter: impl FnOnce(Result<T, RebuildError>) -> Letter + Copy + Send + 'static,
    work: impl FnOnce() -> Result<T, RebuildError> + Send + 'static,
) {
    let own_post = post.clone();
    let started = threads::start("etherply-log".to_owned(), move || {
        let outcome = catch_unwind(AssertUnwindSafe(work));
        post.send(letter(outcome.unwrap_or(Err(RebuildError::Fault))));
    });
    if let Err(error) = started {
        own_post.send(letter(Err(RebuildError::Thread(error))));
    }
}

/// A shard's log goes on in a new segment.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// The shard.
    pub shard: u32,
    /// The segment that is open now.
    pub index: u64,
    /// What the shard's state takes in a log in which nothing is dead.
    pub live_bytes: u64,
    /// Which segments hold nothing of it.
    pub dead: Dead,
}

/// The thread that compacts the log. It sleeps until a shard begins a new segment, so a server without ops costs nothing.
pub struct Compactor {
    rotations: Sender<Rotation>,
    thread: JoinHandle<()>,
}

impl Compactor {
    /// Starts it, for a server with so many shards. Nothing is compacted before each of them has told its first rotation:
    /// until then, nobody knows which of its segments is open.
    pub fn start(
        directory: Arc<DataDirectory>,
        shards: usize,
        status: Arc<Status>,
    ) -> Result<Self, ThreadError> {
        let (rotations, inbox) = channel();
        let thread = threads::start("etherply-compact".to_owned(), move || {
            // Linux takes this for the calling thread alone (setpriority(2), "C library/kernel differences").
            let _ = rustix::process::setpriority_process(None, COMPACTION_NICE);
            Loop::new(directory, shards, status, inbox).run();
        })?;
        Ok(Self { rotations, thread })
    }

    /// Where rotations are told. When all senders are gone, the thread ends.
    #[must_use]
    pub fn rotations(&self) -> Sender<Rotation> {
        self.rotations.clone()
    }

    /// Ends it, and leaves nothing half done. The shards must have ended.
    pub fn stop(self) {
        drop(self.rotations);
        // It has told what went wrong.
        let _ = self.thread.join();
    }
}

struct Loop {
    directory: Arc<DataDirectory>,
    /// How many run.
    shards: usize,
    status: Arc<Status>,
    inbox: Receiver<Rotation>,
    /// The last of each shard.
    rotations: Vec<Rotation>,
    /// Something was told during the last compaction.
    is_news: bool,
    is_over: bool,
}

impl Loop {
    fn new(
        directory: Arc<DataDirectory>,
        shards: usize,
        status: Arc<Status>,
        inbox: Receiver<Rotation>,
    ) -> Self {
        Self {
            directory,
            shards,
            status,
            inbox,
            rotations: Vec::new(),
            is_news: false,
            is_over: false,
        }
    }

    fn run(&mut self) {
        let mut wait = Duration::MAX;
        while !self.is_over {
            self.is_news = false;
            match self.inbox.recv_timeout(wait) {
                Ok(rotation) => self.note(rotation),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.catch_up();
            wait = Duration::MAX;
            if !self.is_due() {
                continue;
            }
            match self.compact() {
                // The log has grown meanwhile, perhaps by so much that the next one is due.
                Ok(()) if self.is_news => wait = Duration::ZERO,
                Ok(()) | Err(CompactionError::Stopped) => {}
                Err(error @ CompactionError::Folder { .. }) => {
                    self.status.log.tell(|log| log.compaction_failures += 1);
                    tracing::error!("compaction is off until the next start: {error}");
                    return;
                }
                Err(error) => {
                    self.status.log.tell(|log| log.compaction_failures += 1);
                    tracing::warn!(
                        "compaction failed, and the log stays as it is for now: {error}"
                    );
                    wait = Duration::from_micros(COMPACTION_RETRY_US);
                }
            }
        }
    }

    fn is_due(&self) -> bool {
        self.rotations.len() == self.shards && self.size().is_some_and(Size::is_due)
    }

    /// What is known to be dead goes first. Where few keys are written again and again, the rest need not be read then.
    fn compact(&mut self) -> Result<(), CompactionError> {
        let settings = Settings::routine(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let sweep = Compaction::sweep(
            Arc::clone(&self.directory),
            &self.open(),
            settings,
            |shard, segments| {
                let of_shard = |last: &&Rotation| last.shard == shard;
                let rotation = self.rotations.iter().find(of_shard);
                rotation.is_some_and(|last| last.dead.has(segments))
            },
        )?;
        if !sweep.is_done() {
            self.carry_out(sweep)?;
            if !self.is_due() {
                return Ok(());
            }
        }
        let directory = Arc::clone(&self.directory);
        self.carry_out(Compaction::plan(directory, &self.open(), settings)?)
    }

    /// The open segment of each shard.
    fn open(&self) -> Vec<(u32, u64)> {
        let each = self.rotations.iter();
        each.map(|last| (last.shard, last.index)).collect()
    }

    fn carry_out(&mut self, mut compaction: Compaction<HostDisk>) -> Result<(), CompactionError> {
        let begun = Instant::now();
        tracing::info!(bytes = compaction.outcome().bytes, "compacting the log");
        let mut since = Instant::now();
        let mut size = self.size();
        loop {
            let more = compaction.step(&mut |_| {
                if self.catch_up() {
                    self.is_news = true;
                    size = self.size();
                }
                let worked = since.elapsed();
                thread::sleep(size.map_or(Duration::ZERO, |size| size.rest(worked)));
                since = Instant::now();
                if self.is_over {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            if !more {
                break;
            }
        }
        let outcome = compaction.outcome();
        self.status.log.tell(|log| {
            log.compactions += 1;
            log.compaction_freed_bytes += outcome.bytes_freed;
        });
        self.size();
        tracing::info!(
            bytes = outcome.bytes,
            bytes_freed = outcome.bytes_freed,
            segments_replaced = outcome.segments_replaced,
            segments_written = outcome.segments_written,
            took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "compacted the log"
        );
        Ok(())
    }

    fn note(&mut self, rotation: Rotation) {
        self.rotations.retain(|last| last.shard != rotation.shard);
        self.rotations.push(rotation);
    }

    /// Takes what has been told meanwhile; true where there was something.
    fn catch_up(&mut self) -> bool {
        let mut is_news = false;
        loop {
            match self.inbox.try_recv() {
                Ok(rotation) => self.note(rotation),
                Err(TryRecvError::Empty) => return is_news,
                Err(TryRecvError::Disconnected) => {
                    self.is_over = true;
                    return is_news;
                }
            }
            is_news = true;
        }
    }

    /// How long the closed segments are, which is told to those who show it; None where it is not known now.
    fn size(&self) -> Option<Size> {
        let (mut segments, mut closed_bytes) = (0, 0);
        for shard in self.directory.shards().ok()? {
            let open = self.rotations.iter().find(|last| last.shard == shard);
            let open_index = open.map_or(u64::MAX, |last| last.index);
            let folder = self.directory.shard_path(shard);
            for (index, path) in segment::list(&HostDisk, &folder).ok()? {
                segments += 1;
                if index < open_index {
                    closed_bytes += path.metadata().ok()?.len();
                }
            }
        }
        if self.rotations.len() == self.shards {
            self.status.log.tell(|log| {
                (log.segments, log.closed_bytes) = (segments, closed_bytes);
            });
        }
        Some(Size {
            closed_bytes,
            live_bytes: self.rotations.iter().map(|last| last.live_bytes).sum(),
            shards: self.rotations.len() as u64,
        })
    }
}

/// How long the closed segments are, and how long they would be without what is dead.
#[derive(Debug, Clone, Copy)]
struct Size {
    closed_bytes: u64,
    live_bytes: u64,
    shards: u64,
}

impl Size {
    fn percent(self) -> u64 {
        self.closed_bytes.saturating_mul(100) / self.live_bytes.max(1)
    }

    fn is_due(self) -> bool {
        self.closed_bytes > COMPACTION_BYTES_MIN * self.shards
            && self.percent() > COMPACTION_START_PERCENT
    }

    /// How long to rest after so much work: the longer the log, the less.
    fn rest(self, worked: Duration) -> Duration {
        let over = self.percent().saturating_sub(COMPACTION_START_PERCENT);
        let range = COMPACTION_URGENT_PERCENT - COMPACTION_START_PERCENT;
        let share = COMPACTION_TIME_PERCENT_MIN
            + (100 - COMPACTION_TIME_PERCENT_MIN) * over.min(range) / range;
        let rest_percent = u32::try_from((100 - share) * 100 / share).expect("a small number");
        worked * rest_percent / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_compacted_before_each_shard_has_told_which_segment_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Arc::new(DataDirectory::open(folder.path()).unwrap());
        for shard in 0..2 {
            let path = directory.shard_path(shard);
            std::fs::create_dir(&path).unwrap();
            let closed = std::fs::File::create(path.join("0000000001.aof")).unwrap();
            closed.set_len(100 << 20).unwrap();
            std::fs::File::create(path.join("0000000002.aof")).unwrap();
        }
        let status = Arc::new(Status::new(2, 1));
        let mut compactor = Loop::new(directory, 2, Arc::clone(&status), channel().1);
        for (shard, is_due) in [(1, false), (1, false), (0, true)] {
            compactor.note(Rotation {
                shard,
                index: 2,
                live_bytes: 1,
                dead: Dead::default(),
            });
            assert_eq!(compactor.is_due(), is_due, "shard {shard} has told");
            let known = status.log.read();
            let (segments, closed_bytes) = if is_due { (4, 200 << 20) } else { (0, 0) };
            assert_eq!(
                (known.segments, known.closed_bytes),
                (segments, closed_bytes)
            );
        }
    }

    #[test]
    fn compaction_begins_when_enough_is_dead_and_hurries_as_the_log_grows() {
        let size = |closed_mib: u64, live_mib: u64| Size {
            closed_bytes: closed_mib << 20,
            live_bytes: live_mib << 20,
            shards: 2,
        };
        for (closed, live, is_due) in [
            (0, 0, false),
            (16, 0, false),
            (17, 0, true),
            (17, 10, false),
            (100, 58, false),
            (100, 56, true),
        ] {
            assert_eq!(size(closed, live).is_due(), is_due, "{closed} {live}");
        }
        let worked = Duration::from_millis(10);
        for (closed, rest_ms) in [(0, 30), (175, 30), (200, 6), (225, 0), (1000, 0)] {
            assert_eq!(
                size(closed, 100).rest(worked).as_millis(),
                rest_ms,
                "{closed}"
            );
        }
    }
}
