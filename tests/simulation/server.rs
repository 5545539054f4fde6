//! The server's process: shards, their logs and what runs beside them, wired as `io::server`, `io::worker` and
//! `io::background` wire them, without a thread.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use etherply::core::contract::{Clock, Handoff, Input, Limits, Output, ShardConfig};
use etherply::core::shard::Shard;
use etherply::core::shard::log_space::LogSize;
use etherply::core::shard::session::SessionId;
use etherply::core::state::replay::Replay;
use etherply::core::state::workspace::Workspace;
use etherply::core::testing::{self, Dice, HASH_SEED, START_UNIX_S};
use etherply::limits::SECOND_US;
use etherply::log::compaction::Compaction;
use etherply::log::directory::{DataDirectory, DirectoryError, shard_folder, shard_of_folder};
use etherply::log::disk::Disk;
use etherply::log::log_files::{Creation, LogFiles, LogFilesError, Rebuild};
use etherply::log::position::LogPosition;
use etherply::log::record::{LoggedOp, SEGMENT_HEADER_BYTES};
use etherply::log::recovery::{Recovery, RecoveryError, RecoveryReport};
use etherply::log::reserve::Reserve;
use etherply::log::schedule::{DiskRoom, FolderUsage, Schedule};

use crate::disk::SimDisk;
use crate::plan::{LOW_MARKS, Plan, faults};

pub const DATA: &str = "/data/log";
pub const PANIC_KEY: &str = "planted";
/// The true time at the start.
pub const BEGIN_UNIX_US: u64 = START_UNIX_S * SECOND_US;

pub fn token() -> &'static str {
    static TOKEN: LazyLock<String> = LazyLock::new(|| testing::token(None));
    &TOKEN
}

/// An operation of a log: asked for, or done and not told yet.
pub enum LogOperation {
    Asked(Output),
    Done(Input<'static>),
}

/// Work for another thread.
pub enum Errand {
    Create(Result<Creation<SimDisk>, LogFilesError>),
    Rebuild(Result<Rebuild<SimDisk>, LogFilesError>),
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what may happen yet, or was seen"
)]
/// A shard with what its worker keeps for it.
pub struct Seat {
    pub shard: Shard,
    pub log: Option<LogFiles<SimDisk>>,
    pub operation: Option<LogOperation>,
    pub errand: Option<Errand>,
    pub clients: BTreeMap<SessionId, usize>,
    /// Something came since its last turn.
    pub is_woken: bool,
    pub is_serving: bool,
    pub is_drained: bool,
    /// When it wants its next turn.
    pub due_us: Option<u64>,
    /// Something happened that it may fail of.
    pub may_fail: bool,
    /// A sync of the open segment has failed.
    pub is_sync_lost: bool,
    /// It has failed, and a rebuild has found out up to where its log is kept.
    pub is_end_known: bool,
    /// Wins that were handed to a write and are not confirmed: the workspace, and how many there are then.
    pub handed: Vec<(usize, usize)>,
    /// What its log may become while it is over its bound: something has died, or it was so long at the start.
    pub log_ceiling: Option<u64>,
    /// Sends that were cut short since the last turn, each of which is another send.
    pub cut_sends: usize,
    /// Sessions that it gave up, as far as they were counted.
    pub given_up: u64,
}

/// How far a process is with its start.
pub enum Stage {
    Opened,
    Read(Box<(RecoveryReport, Vec<Option<Vec<Workspace>>>)>),
    Serving,
}

pub struct Server {
    pub directory: Arc<DataDirectory<SimDisk>>,
    pub limits: Limits,
    pub stage: Stage,
    pub seats: Vec<Seat>,
    /// To which shard which client goes.
    pub letters: VecDeque<(usize, usize, Box<Handoff>)>,
    pub compaction: Option<Compaction<SimDisk>>,
    /// The open segment of each shard, as it was told last.
    pub rotations: Vec<Option<Rotation>>,
    pub schedule: Schedule,
    pub room: DiskRoom,
    pub reserve: Reserve<SimDisk>,
    /// The folders, as they were measured last.
    pub folders: Vec<FolderUsage>,
    /// What each shard was told last.
    told: Vec<Option<LogSize>>,
    pub floor_bytes: u64,
    /// What the compaction reads that is under way, as it was when it began. None: it reads nothing.
    pub compacting: Option<Vec<FolderUsage>>,
    /// What is known to be dead has just gone: the rest is next.
    pub is_swept: bool,
    pub is_draining: bool,
    pub had_failure: bool,
}

impl Server {
    pub fn open(
        disk: &SimDisk,
        plan: &Plan,
        shards: u32,
        clock: Clock,
        epoch: u64,
    ) -> Result<Self, DirectoryError> {
        let epoch = u128::from(epoch).to_be_bytes();
        let directory = DataDirectory::open_on(disk.clone(), PathBuf::from(DATA), epoch)?;
        let directory = Arc::new(directory);
        let limits = limits(plan, epoch[15]);
        let seat = |shard| Seat {
            shard: Shard::recovering(config(plan, limits, shard, shards), clock),
            log: None,
            operation: None,
            errand: None,
            clients: BTreeMap::new(),
            is_woken: false,
            is_serving: false,
            is_drained: false,
            due_us: None,
            may_fail: false,
            is_sync_lost: false,
            is_end_known: false,
            handed: Vec::new(),
            log_ceiling: None,
            cut_sends: 0,
            given_up: 0,
        };
        let mut schedule = Schedule::new(plan.floor_bytes());
        if !plan.may(faults::COMPACTION) {
            schedule.give_up();
        }
        Ok(Self {
            reserve: Reserve::new(Arc::clone(&directory)),
            directory,
            limits,
            stage: Stage::Opened,
            seats: (0..shards).map(seat).collect(),
            letters: VecDeque::new(),
            compaction: None,
            rotations: vec![None; shards as usize],
            schedule,
            room: DiskRoom::new(LOW_MARKS, u64::from(shards)),
            folders: Vec::new(),
            told: vec![None; shards as usize],
            floor_bytes: plan.floor_bytes(),
            compacting: None,
            is_swept: false,
            is_draining: false,
            had_failure: false,
        })
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving)
    }

    /// The segment with which each shard goes on, and what its state takes.
    pub fn tell_rotation(&mut self, shard: usize) {
        let seat = &self.seats[shard];
        if let Some(log) = &seat.log {
            let open = log.open_segment();
            self.rotations[shard] = Some(Rotation {
                index: open.index,
                first_position: open.first_position,
                live_bytes: seat.shard.live_bytes(),
            });
        }
    }

    /// The open segments, if all shards have told theirs.
    pub fn open_segments(&self) -> Option<Vec<(u32, u64)>> {
        let open = self.rotations.iter().zip(0..);
        open.map(|(told, shard)| told.map(|told| (shard, told.index)))
            .collect()
    }

    /// When a compaction begins that must wait for the clock.
    pub fn compacts_at_us(&self) -> Option<u64> {
        let now_us = self.schedule.not_before_us()?;
        let is_due = !self.due(Clock { now_us, unix_us: 0 }).is_empty();
        is_due.then_some(now_us)
    }

    /// The folders that are to be compacted.
    pub fn due(&self, clock: Clock) -> Vec<u32> {
        if self.open_segments().is_none() || self.is_draining {
            return Vec::new();
        }
        let is_short = self.room.is_short();
        self.schedule.due(&self.folders, is_short, clock.now_us)
    }

    /// Measures the log, looks at the disk, and tells the shards what has changed, as the thread that compacts does.
    pub fn look(&mut self, disk: &SimDisk, clock: Clock) {
        self.folders = folders(disk, &self.rotations);
        let lacks_room = self.schedule.lacks_room();
        let space = disk.space(DATA.as_ref()).ok();
        self.room.looked(space, lacks_room, &self.folders);
        self.schedule.looked(self.room.free_bytes().unwrap_or(0));
        let reserve_bytes = self.room.reserve_bytes(&self.folders, self.floor_bytes);
        let had_bytes = self.reserve.bytes();
        if let Some(bytes) = reserve_bytes.filter(|bytes| !lacks_room && *bytes > had_bytes)
            && self.reserve.claim(bytes).is_ok()
        {
            self.room.reserved(bytes - had_bytes);
        }
        if self.open_segments().is_none() {
            return;
        }
        for (number, seat) in self.seats.iter_mut().enumerate() {
            let rotation = self.rotations[number].expect("all have told theirs");
            let is_it = |folder: &&FolderUsage| folder.shard as usize == number;
            let Some(folder) = self.folders.iter().find(is_it) else {
                continue;
            };
            let written_bytes = seat.shard.counters().log_open_bytes;
            let written_bytes = written_bytes.saturating_sub(SEGMENT_HEADER_BYTES as u64);
            let size = LogSize {
                open_index: rotation.index,
                closed_bytes: folder.closed_bytes,
                kept_bytes: self.schedule.kept_bytes(folder, &self.folders),
                is_compacted: self.schedule.is_working(),
                room_end: self
                    .room
                    .end(rotation.first_position.advance(written_bytes)),
            };
            if self.told[number].replace(size) != Some(size) {
                seat.shard.handle(Input::LogSize(size), clock);
                seat.is_woken = true;
            }
        }
    }
}

/// What a shard told of its open segment.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    pub index: u64,
    pub first_position: LogPosition,
    pub live_bytes: u64,
}

/// The folders of all shards there ever were.
fn folders(disk: &SimDisk, rotations: &[Option<Rotation>]) -> Vec<FolderUsage> {
    let mut folders: BTreeMap<u32, FolderUsage> = BTreeMap::new();
    for (path, bytes) in disk.lengths(DATA.as_ref()) {
        let folder = path.parent().and_then(|folder| folder.file_name());
        let shard = folder.and_then(|name| shard_of_folder(name.to_str()?));
        let (Some(shard), Some(index)) = (shard, index_of(&path)) else {
            continue;
        };
        let rotation = rotations.get(shard as usize).copied().flatten();
        let folder = folders.entry(shard).or_insert(FolderUsage {
            shard,
            closed_bytes: 0,
            live_bytes: rotation.map_or(0, |told| told.live_bytes),
            is_running: rotation.is_some(),
        });
        if rotation.is_none_or(|told| index < told.index) {
            folder.closed_bytes += bytes;
        }
    }
    folders.into_values().collect()
}

fn index_of(path: &std::path::Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".aof")?.parse().ok()
}

/// How long a shard's log is: all segments in its folder.
pub fn log_bytes(disk: &SimDisk, shard: u32) -> u64 {
    let folder = PathBuf::from(DATA).join(shard_folder(shard));
    let files = disk.lengths(&folder);
    let segments = files.iter().filter(|(path, _)| index_of(path).is_some());
    segments.map(|(_, bytes)| bytes).sum()
}

/// A process may be started with another limit than the one before it.
fn limits(plan: &Plan, epoch: u8) -> Limits {
    let bytes = plan.limits.workspace_bytes;
    let divisor = if epoch.is_multiple_of(3) { 2 } else { 1 };
    Limits {
        workspace_bytes: bytes.map(|bytes| bytes / divisor),
        ..plan.limits
    }
}

fn config(plan: &Plan, limits: Limits, shard: u32, shards: u32) -> ShardConfig {
    ShardConfig {
        shard,
        shards,
        durability: plan.durability,
        sync_interval_us: SECOND_US / 4,
        ping_interval_us: plan.ping_interval_us,
        outbox_bytes_max: plan.outbox_bytes_max,
        message_bytes_max: plan.message_bytes_max,
        session_bytes_max: plan.session_bytes_max,
        snapshot_bytes_max: plan.snapshot_bytes_max,
        snapshot_part_bytes: plan.snapshot_part_bytes,
        batch_bytes_max: plan.batch_bytes_max,
        segment_bytes_min: plan.segment_bytes_min,
        segment_bytes_max: plan.segment_bytes_max,
        log_spare_bytes: plan.log_spare_bytes(),
        limits,
        fault_panic_key: Some(PANIC_KEY.to_owned()),
        ..testing::shard_config()
    }
}

/// Reads the log as `io::recovery` does: the folders in any order, each by itself.
pub fn recover(
    directory: &DataDirectory<SimDisk>,
    shards: u32,
    dice: &mut Dice,
    mut visit: impl FnMut(&LoggedOp<'_>),
) -> Result<(RecoveryReport, Vec<Vec<Workspace>>), RecoveryError> {
    let recovery = Recovery::open(directory)?;
    let turn = dice.below(recovery.folders().max(1));
    let mut reads: Vec<_> = (0..recovery.folders()).map(|_| None).collect();
    let mut all = Replay::new(HASH_SEED);
    for place in 0..recovery.folders() {
        let folder = (place + turn) % recovery.folders();
        let mut deal = Replay::new(HASH_SEED);
        let read = recovery.read(
            folder,
            |op| {
                visit(op);
                deal.visit(op);
            },
            |_| {},
        )?;
        deal.finish_restore();
        all.merge(deal);
        reads[folder] = Some(read);
    }
    let reads: Vec<_> = reads
        .into_iter()
        .map(|read| read.expect("all were read"))
        .collect();
    let report = recovery.finish(&reads)?;
    Ok((report, all.finish(shards)))
}

/// The length of all segments.
pub fn all_bytes(disk: &SimDisk) -> u64 {
    let files = disk.lengths(DATA.as_ref());
    let segments = files.iter().filter(|(path, _)| index_of(path).is_some());
    segments.map(|(_, bytes)| bytes).sum()
}

/// The files in the folders of shards that a recovery must not leave.
pub fn rubbish(disk: &SimDisk) -> Vec<PathBuf> {
    let files = disk.files(DATA.as_ref()).into_iter().map(|(path, _)| path);
    let in_shard = |path: &PathBuf| {
        path.parent()
            .is_some_and(|parent| parent != std::path::Path::new(DATA))
    };
    files
        .filter(in_shard)
        .filter(|path| !path.to_string_lossy().ends_with(".aof"))
        .collect()
}
