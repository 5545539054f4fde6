//! The thread that compacts the log, measures it, and checks the free disk space.
//!
//! [`crate::log::schedule`] decides when and what to compact; this module provides the files, the
//! clock and the communication with other threads. Each shard is notified of changes that affect
//! it, so that it can slow its writers down or refuse their ops.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::core::shard::log_space::LogSize;
use crate::core::state::segment_usage::Dead;
use crate::io::mailbox::{ShardMessage, ShardSender};
use crate::io::threads::{self, ThreadError};
use crate::limits::{
    COMPACTION_BYTES_MIN, COMPACTION_NICE, DISK_LOOK_BUSY_US, DISK_LOOK_US, SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
};
use crate::log::compaction::{Compaction, CompactionError, Settings};
use crate::log::directory::DataDirectory;
use crate::log::disk::{Disk, HostDisk};
use crate::log::position::LogPosition;
use crate::log::record::SEGMENT_HEADER_BYTES;
use crate::log::reserve::Reserve;
use crate::log::schedule::{DiskRoom, FolderUsage, LowMarks, Schedule};
use crate::log::segment;
use crate::status::Status;

/// A report that a shard's log continues in a new segment.
#[derive(Clone)]
pub struct Rotation {
    /// The shard.
    pub shard: u32,
    /// The index of the segment that is now open.
    pub index: u64,
    /// The log position of the segment's first batch.
    pub first_position: LogPosition,
    /// The size that the shard's state would have in a log without dead bytes.
    pub live_bytes: u64,
    /// The segments that hold no live data of the shard.
    pub dead: Dead,
    /// The sender for the shard's mailbox, which receives the size of its log.
    pub sender: ShardSender,
}

/// An event that a shard reports to the compactor.
pub enum CompactorEvent {
    /// A segment was opened. A shard's first rotation means that it has started serving.
    Rotated(Rotation),
    /// A shard cannot write its log. If the disk is full, space must be freed immediately.
    Failed,
}

/// The thread that compacts the log. It sleeps until a shard opens a new segment, but wakes from
/// time to time to check the disk.
pub struct Compactor {
    events: Sender<CompactorEvent>,
    thread: JoinHandle<()>,
}

impl Compactor {
    /// Starts the thread for a server with `shards` shards. Nothing is compacted until every shard
    /// has reported its first rotation: before that, its open segment is unknown.
    pub fn start(
        directory: Arc<DataDirectory>,
        shards: usize,
        status: Arc<Status>,
    ) -> Result<Self, ThreadError> {
        let (events, inbox) = channel();
        let thread = threads::start("etherply-compact".to_owned(), move || {
            // Linux applies this to the calling thread only (setpriority(2), "C library/kernel
            // differences").
            let _ = rustix::process::setpriority_process(None, COMPACTION_NICE);
            Loop::new(directory, shards, status, inbox).run();
        })?;
        Ok(Self { events, thread })
    }

    /// Returns a sender of events. The thread ends when all senders have been dropped.
    #[must_use]
    pub fn events(&self) -> Sender<CompactorEvent> {
        self.events.clone()
    }

    /// Stops the thread, leaving no step half done. The shards must have stopped already.
    pub fn stop(self) {
        drop(self.events);
        // The thread has already logged any failure.
        let _ = self.thread.join();
    }
}

struct Loop {
    directory: Arc<DataDirectory>,
    /// The number of shards that this server runs.
    shards: usize,
    status: Arc<Status>,
    inbox: Receiver<CompactorEvent>,
    started: Instant,
    /// The latest rotation of each shard.
    rotations: Vec<Rotation>,
    /// The folders as last measured.
    folders: Vec<FolderUsage>,
    /// The log size that was last sent to each shard.
    notified: Vec<(u32, LogSize)>,
    schedule: Schedule,
    room: DiskRoom,
    reserve: Reserve<HostDisk>,
    next_look_us: u64,
    is_over: bool,
}

/// Makes the shards stop waiting for compaction when the thread ends, even if it panics.
impl Drop for Loop {
    fn drop(&mut self) {
        self.schedule.give_up();
        self.notify_shards();
    }
}

impl Loop {
    fn new(
        directory: Arc<DataDirectory>,
        shards: usize,
        status: Arc<Status>,
        inbox: Receiver<CompactorEvent>,
    ) -> Self {
        Self {
            reserve: Reserve::new(Arc::clone(&directory)),
            directory,
            shards,
            status,
            inbox,
            started: Instant::now(),
            rotations: Vec::new(),
            folders: Vec::new(),
            notified: Vec::new(),
            schedule: Schedule::new(COMPACTION_BYTES_MIN),
            room: DiskRoom::new(LowMarks::default(), shards as u64),
            next_look_us: 0,
            is_over: false,
        }
    }

    fn run(&mut self) {
        while !self.is_over {
            match self.inbox.recv_timeout(self.wait()) {
                Ok(events) => self.apply(events),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.catch_up(DISK_LOOK_US);
            // The log may have grown enough in the meantime for the next compaction to be due.
            while !self.is_over && self.compact_if_due() {}
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Returns the time to sleep if no event arrives.
    fn wait(&self) -> Duration {
        let wait_us = self.next_look_us.saturating_sub(self.now_us());
        Duration::from_micros(wait_us)
    }

    fn due(&self) -> Vec<u32> {
        if self.rotations.len() < self.shards {
            return Vec::new();
        }
        let is_short = self.room.is_short();
        self.schedule.due(&self.folders, is_short, self.now_us())
    }

    /// Compacts the shards that are due. Returns false if none is due or if compaction failed or
    /// was stopped.
    fn compact_if_due(&mut self) -> bool {
        let due = self.due();
        if due.is_empty() {
            return false;
        }
        let outcome = self.compact(&due);
        let is_done = match outcome {
            Ok(()) => {
                self.schedule.succeeded();
                true
            }
            Err(CompactionError::Stopped) => false,
            Err(error) => self.failed(&error),
        };
        self.measure();
        self.look_at_disk();
        self.notify_shards();
        let is_broken = !self.schedule.is_working();
        self.status
            .log
            .update(|log| log.compaction_is_broken = is_broken);
        is_done
    }

    /// Handles a failed compaction. Returns whether it may be retried immediately.
    fn failed(&mut self, error: &CompactionError) -> bool {
        if error.is_for_room() {
            self.schedule.ran_out_of_room();
            if self.reserve.give_up() {
                tracing::warn!("compaction uses the disk space that was reserved for it: {error}");
                return true;
            }
        }
        self.status.log.update(|log| log.compaction_failures += 1);
        if let CompactionError::Folder { .. } = error {
            tracing::error!("compaction is off until the server is restarted: {error}");
            self.schedule.give_up();
            return false;
        }
        // Check the disk only now that the failed step has released its space.
        self.look_at_disk();
        let free_bytes = self.room.free_bytes().filter(|_| error.is_for_room());
        let now_us = self.now_us();
        if self.schedule.failed(error.to_string(), free_bytes, now_us) {
            tracing::warn!(
                "compaction failed and will be retried; the log stays as it is until then: \
                 {error}"
            );
        }
        false
    }

    /// Compacts the shards in `due`. Segments that are known to be dead are removed first. If a
    /// workload overwrites a small set of keys, that is often enough, and the remaining segments
    /// need not be read.
    fn compact(&mut self, due: &[u32]) -> Result<(), CompactionError> {
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
        }
        let due: Vec<u32> = {
            let still_due = self.due();
            let is_due = |shard: &u32| still_due.contains(shard);
            due.iter().copied().filter(is_due).collect()
        };
        if due.is_empty() {
            return Ok(());
        }
        let directory = Arc::clone(&self.directory);
        let mut compaction = Compaction::plan(directory, &self.open(), settings)?.only(&due);
        if self.room.is_short() || self.schedule.lacks_room() {
            compaction = compaction.in_small_steps();
        }
        let begun = self.folders.clone();
        let compaction = self.carry_out(compaction)?;
        for folder in begun.iter().filter(|folder| due.contains(&folder.shard)) {
            let kept_bytes = compaction.kept_bytes(folder.shard);
            let freed_bytes = compaction.freed_bytes(folder.shard);
            let closed_bytes = folder.closed_bytes.saturating_sub(freed_bytes);
            let blocked_bytes = compaction.blocked_bytes(folder.shard);
            self.schedule
                .compacted(folder, kept_bytes, blocked_bytes, closed_bytes);
        }
        Ok(())
    }

    /// Returns the open segment of each shard.
    fn open(&self) -> Vec<(u32, u64)> {
        let each = self.rotations.iter();
        each.map(|last| (last.shard, last.index)).collect()
    }

    fn carry_out(
        &mut self,
        mut compaction: Compaction<HostDisk>,
    ) -> Result<Compaction<HostDisk>, CompactionError> {
        let begun = Instant::now();
        tracing::info!(bytes = compaction.outcome().bytes, "compacting the log");
        let mut since = Instant::now();
        let mut replaced = 0;
        loop {
            let more = compaction.step(&mut |_| {
                self.catch_up(DISK_LOOK_BUSY_US);
                let (folders, is_short) = (&self.folders, self.room.is_short());
                thread::sleep(self.schedule.pause(folders, is_short, since.elapsed()));
                since = Instant::now();
                if self.is_over {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            if compaction.outcome().segments_replaced > replaced {
                replaced = compaction.outcome().segments_replaced;
                self.measure();
                self.notify_shards();
            }
            if !more {
                break;
            }
        }
        let outcome = compaction.outcome();
        self.status.log.update(|log| {
            log.compactions += 1;
            log.compaction_freed_bytes += outcome.bytes_freed;
        });
        tracing::info!(
            bytes = outcome.bytes,
            bytes_freed = outcome.bytes_freed,
            segments_replaced = outcome.segments_replaced,
            segments_written = outcome.segments_written,
            took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "compacted the log"
        );
        Ok(compaction)
    }

    fn apply(&mut self, events: CompactorEvent) {
        match events {
            CompactorEvent::Rotated(rotation) => {
                self.rotations.retain(|last| last.shard != rotation.shard);
                self.rotations.push(rotation);
                self.measure();
                self.look_at_disk();
            }
            CompactorEvent::Failed => self.look_at_disk(),
        }
    }

    /// Handles the events that have arrived, checks the disk if a check is due, and notifies the
    /// shards of changes.
    fn catch_up(&mut self, look_us: u64) {
        loop {
            match self.inbox.try_recv() {
                Ok(events) => self.apply(events),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.is_over = true;
                    break;
                }
            }
        }
        let now_us = self.now_us();
        if self.next_look_us.saturating_sub(DISK_LOOK_US - look_us) <= now_us {
            self.look_at_disk();
        }
        self.notify_shards();
    }

    /// Checks the free space on the disk.
    fn look_at_disk(&mut self) {
        self.next_look_us = self.now_us() + DISK_LOOK_US;
        let was_short = self.room.is_short();
        let space = HostDisk.space(self.directory.path());
        let lacks_room = self.schedule.lacks_room();
        self.room.looked(space.ok(), lacks_room, &self.folders);
        let free_bytes = self.room.free_bytes();
        self.schedule.looked(free_bytes.unwrap_or(0));
        self.status
            .log
            .update(|log| log.disk_free_bytes = free_bytes);
        match (was_short, self.room.is_short()) {
            (false, true) => tracing::error!(
                free_bytes,
                "the disk is nearly full: ops that grow the log are refused with error 500, \
                 everything else continues; free up space on the disk of --data-dir"
            ),
            (true, false) => {
                tracing::info!(
                    free_bytes,
                    "the disk has enough free space again: ops are accepted"
                );
            }
            (true, true) | (false, false) => {}
        }
        let reserve_bytes = self.room.reserve_bytes(&self.folders, COMPACTION_BYTES_MIN);
        let had_bytes = self.reserve.bytes();
        if let Some(bytes) = reserve_bytes.filter(|bytes| !lacks_room && *bytes > had_bytes) {
            match self.reserve.claim(bytes) {
                Ok(()) => self.room.reserved(bytes - had_bytes),
                Err(error) => {
                    tracing::warn!("cannot reserve disk space for compaction: {error}");
                }
            }
        }
    }

    /// Measures the closed segments and publishes the totals.
    fn measure(&mut self) {
        let mut folders = Vec::new();
        let mut segments = 0;
        for shard in self.directory.shards().unwrap_or_default() {
            let rotation = self.rotations.iter().find(|last| last.shard == shard);
            let Some((count, closed_bytes)) = self.measure_folder(shard, rotation) else {
                // Keep the previous figures; the next measurement follows soon.
                return;
            };
            segments += count;
            folders.push(FolderUsage {
                shard,
                closed_bytes,
                live_bytes: rotation.map_or(0, |last| last.live_bytes),
                is_running: rotation.is_some(),
            });
        }
        self.folders = folders;
        if self.rotations.len() == self.shards {
            let closed_bytes = self.folders.iter().map(|folder| folder.closed_bytes).sum();
            self.status.log.update(|log| {
                (log.segments, log.closed_bytes) = (segments, closed_bytes);
            });
        }
    }

    /// Returns the number of segments in a folder and the total size of the closed ones.
    fn measure_folder(&self, shard: u32, rotation: Option<&Rotation>) -> Option<(u64, u64)> {
        let open_index = rotation.map_or(u64::MAX, |last| last.index);
        let folder = self.directory.shard_path(shard);
        let segments = segment::list(&HostDisk, &folder).ok()?;
        let mut closed_bytes = 0;
        for (_, path) in segments.iter().filter(|(index, _)| *index < open_index) {
            closed_bytes += path.metadata().ok()?.len();
        }
        Some((segments.len() as u64, closed_bytes))
    }

    /// Notifies each shard of changes to its log size.
    fn notify_shards(&mut self) {
        if self.rotations.len() < self.shards {
            return;
        }
        for rotation in &self.rotations {
            let shard = rotation.shard;
            let Some(folder) = self.folders.iter().find(|folder| folder.shard == shard) else {
                continue;
            };
            let stats = &self.status.stats[shard as usize];
            let open_bytes = stats.read(0).counters.log_open_bytes;
            let open = (rotation.index, rotation.first_position, open_bytes);
            let size = log_size(open, folder, &self.folders, &self.schedule, &self.room);
            let last = self.notified.iter_mut().find(|(of, _)| *of == shard);
            match last {
                Some((_, last)) if *last == size => continue,
                Some((_, last)) => *last = size,
                None => self.notified.push((shard, size)),
            }
            rotation.sender.send(ShardMessage::LogSize(size));
        }
    }
}

/// Returns the log size to report to a shard, based on the last measurement. The tuple describes
/// the open segment: its index, the position of its first batch, and its length in bytes. `folder`
/// must be one of `folders`.
#[must_use]
pub fn log_size(
    (open_index, first_position, open_bytes): (u64, LogPosition, u64),
    folder: &FolderUsage,
    folders: &[FolderUsage],
    schedule: &Schedule,
    room: &DiskRoom,
) -> LogSize {
    let written_bytes = open_bytes.saturating_sub(SEGMENT_HEADER_BYTES as u64);
    LogSize {
        open_index,
        closed_bytes: folder.closed_bytes,
        kept_bytes: schedule.kept_bytes(folder, folders),
        is_compacted: schedule.is_working(),
        room_end: room.end(first_position.advance(written_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::mailbox::mailbox;

    #[test]
    fn nothing_is_compacted_before_each_shard_has_reported_its_open_segment() {
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
        let (_news, inbox) = channel();
        let mut compactor = Loop::new(directory, 2, Arc::clone(&status), inbox);
        let (sender, mailbox) = mailbox().unwrap();
        for (shard, due) in [(1, &[][..]), (1, &[]), (0, &[0, 1])] {
            compactor.apply(CompactorEvent::Rotated(Rotation {
                shard,
                index: 2,
                first_position: LogPosition::new(100 << 20),
                live_bytes: 1,
                dead: Dead::default(),
                sender: sender.clone(),
            }));
            assert_eq!(
                compactor.due(),
                due,
                "shard {shard} has reported its segment"
            );
            let known = status.log.read();
            let is_known = !due.is_empty();
            let (segments, closed_bytes) = if is_known { (4, 200 << 20) } else { (0, 0) };
            assert_eq!(
                (known.segments, known.closed_bytes),
                (segments, closed_bytes)
            );
            compactor.notify_shards();
            assert_eq!(mailbox.next().is_some(), is_known);
        }
        while mailbox.next().is_some() {}
        compactor.notify_shards();
        assert!(mailbox.next().is_none(), "an unchanged size was sent");
        // When the thread ends, for whatever reason, the shards that wait for it are released.
        drop(compactor);
        for _ in 0..2 {
            let Some(ShardMessage::LogSize(size)) = mailbox.next() else {
                panic!("each shard receives the size");
            };
            assert!(!size.is_compacted);
        }
    }

    #[test]
    fn an_unreadable_segment_is_retried_later_and_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Arc::new(DataDirectory::open(folder.path()).unwrap());
        let path = directory.shard_path(0);
        std::fs::create_dir(&path).unwrap();
        let closed = std::fs::File::create(path.join("0000000001.aof")).unwrap();
        closed.set_len(100 << 20).unwrap();
        let status = Arc::new(Status::new(1, 1));
        let (_news, inbox) = channel();
        let mut compactor = Loop::new(directory, 1, Arc::clone(&status), inbox);
        let (sender, mailbox) = mailbox().unwrap();
        for index in 2..20 {
            compactor.apply(CompactorEvent::Rotated(Rotation {
                shard: 0,
                index,
                first_position: LogPosition::new(100 << 20),
                live_bytes: 1,
                dead: Dead::default(),
                sender: sender.clone(),
            }));
            while compactor.compact_if_due() {}
        }
        assert_eq!(status.log.read().compaction_failures, 1);
        let mut last = None;
        while let Some(ShardMessage::LogSize(size)) = mailbox.next() {
            last = Some(size);
        }
        assert!(
            !last.expect("a size was reported").is_compacted,
            "no shard waits for it"
        );
    }
}
