//! The server's process without threads: shards, their logs and the background work, connected as
//! `io::server`, `io::worker` and `io::background` connect them.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use etherply::core::shard::Shard;
use etherply::core::shard::contract::{
    Clock, Handoff, Input, Limits, LoggedGenerations, Output, ShardConfig,
};
use etherply::core::shard::log_space::LogSize;
use etherply::core::shard::session::SessionId;
use etherply::core::state::replay::Replay;
use etherply::core::state::workspace::Workspace;
use etherply::core::testing::{self, Dice, HASH_SEED, START_UNIX_S};
use etherply::generation::Generation;
use etherply::io::compactor::log_size;
use etherply::limits::SECOND_US;
use etherply::log::compaction::Compaction;
use etherply::log::directory::{DataDirectory, DirectoryError, shard_folder, shard_of_folder};
use etherply::log::disk::Disk;
use etherply::log::log_files::{Creation, LogFiles, LogFilesError, Rebuild};
use etherply::log::position::LogPosition;
use etherply::log::record::{Change, LoggedOp};
use etherply::log::recovery::{
    FolderGeneration, Recovery, RecoveryError, RecoveryReport, previous_generation,
};
use etherply::log::reserve::Reserve;
use etherply::log::schedule::{DiskRoom, FolderUsage, Schedule};

use crate::disk::SimDisk;
use crate::plan::{LOW_MARKS, Plan, Planted, faults};

pub const DATA: &str = "/data/log";
pub const PANIC_KEY: &str = "planted";
/// The true time at the start.
pub const BEGIN_UNIX_US: u64 = START_UNIX_S * SECOND_US;

pub fn token() -> &'static str {
    static TOKEN: LazyLock<String> = LazyLock::new(|| testing::token(None));
    &TOKEN
}

/// An operation of a log: requested, or completed but not reported yet.
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
/// A shard and its worker's state.
pub struct Seat {
    pub shard: Shard,
    pub log: Option<LogFiles<SimDisk>>,
    pub operation: Option<LogOperation>,
    pub errand: Option<Errand>,
    pub clients: BTreeMap<SessionId, usize>,
    /// An event has arrived since its last turn.
    pub is_woken: bool,
    pub is_serving: bool,
    pub is_drained: bool,
    /// The time of its next turn.
    pub due_us: Option<u64>,
    /// A fault has occurred that may make it fail.
    pub may_fail: bool,
    /// A sync of the open segment has failed.
    pub is_sync_lost: bool,
    /// It has failed, and a rebuild has determined the durable end of its log.
    pub is_end_known: bool,
    /// Unconfirmed writes: the workspace, and its number of wins once the write is confirmed.
    pub handed: Vec<(usize, usize)>,
    /// The bound on a log that exceeds the usual bound, because data have died or because it was
    /// that long at the start.
    pub log_ceiling: Option<u64>,
    /// Short sends since the last turn, each of which is followed by another send.
    pub cut_sends: usize,
    /// The number of sessions that it has given up, as last counted.
    pub given_up: u64,
}

/// The data that a start has read, until the shards have it.
pub struct Recovered {
    pub report: RecoveryReport,
    pub dealt: Vec<Option<Vec<Workspace>>>,
    pub logged: Vec<LoggedGenerations>,
}

/// The progress of a process's start.
pub enum Stage {
    Opened,
    Read(Box<Recovered>),
    Serving,
}

pub struct Server {
    pub directory: Arc<DataDirectory<SimDisk>>,
    pub limits: Limits,
    /// The generation that begins with the start.
    pub generation: Generation,
    pub stage: Stage,
    pub seats: Vec<Seat>,
    /// Handoffs in transit: the shard and the client.
    pub letters: VecDeque<(usize, usize, Box<Handoff>)>,
    pub compaction: Option<Compaction<SimDisk>>,
    /// The open segment of each shard, as last reported.
    pub rotations: Vec<Option<Rotation>>,
    pub schedule: Schedule,
    pub room: DiskRoom,
    pub reserve: Reserve<SimDisk>,
    /// The folders, as last measured.
    pub folders: Vec<FolderUsage>,
    /// The size that was last reported to each shard.
    told: Vec<Option<LogSize>>,
    pub floor_bytes: u64,
    /// The folders that the running compaction reads, as they were at its start. `None` if it reads
    /// nothing.
    pub compacting: Option<Vec<FolderUsage>>,
    /// Segments known to be dead have just been removed; the others are next.
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
        let generation = epoch;
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
            generation: Generation::new(generation),
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

    /// Reports the shard's open segment to the compaction, with the size of its state.
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

    /// Returns the open segments, if all shards have reported theirs.
    pub fn open_segments(&self) -> Option<Vec<(u32, u64)>> {
        let open = self.rotations.iter().zip(0..);
        open.map(|(told, shard)| told.map(|told| (shard, told.index)))
            .collect()
    }

    /// Returns the time at which a waiting compaction begins.
    pub fn compacts_at_us(&self) -> Option<u64> {
        let now_us = self.schedule.not_before_us()?;
        let is_due = !self.due(Clock { now_us, unix_us: 0 }).is_empty();
        is_due.then_some(now_us)
    }

    /// Returns the folders to compact.
    pub fn due(&self, clock: Clock) -> Vec<u32> {
        if self.open_segments().is_none() || self.is_draining {
            return Vec::new();
        }
        let is_short = self.room.is_short();
        self.schedule.due(&self.folders, is_short, clock.now_us)
    }

    /// Measures the log and the disk and reports changes to the shards, as the compaction thread
    /// does.
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
            let rotation = self.rotations[number].expect("each shard has reported its segment");
            let is_it = |folder: &&FolderUsage| folder.shard as usize == number;
            let Some(folder) = self.folders.iter().find(is_it) else {
                continue;
            };
            let open_bytes = seat.shard.counters().log_open_bytes;
            let open = (rotation.index, rotation.first_position, open_bytes);
            let size = log_size(open, folder, &self.folders, &self.schedule, &self.room);
            if self.told[number].replace(size) != Some(size) {
                seat.shard.handle(Input::LogSize(size), clock);
                seat.is_woken = true;
            }
        }
    }
}

/// A shard's report on its open segment.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    pub index: u64,
    pub first_position: LogPosition,
    pub live_bytes: u64,
}

/// Returns the usage of the folders of all shards that ever existed.
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

/// Returns the length of a shard's log: all segments in its folder.
pub fn log_bytes(disk: &SimDisk, shard: u32) -> u64 {
    let folder = PathBuf::from(DATA).join(shard_folder(shard));
    let files = disk.lengths(&folder);
    let segments = files.iter().filter(|(path, _)| index_of(path).is_some());
    segments.map(|(_, bytes)| bytes).sum()
}

/// Returns the limits of a process, which may differ from those of the previous process.
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
        tombstone_retention_us: plan.retention_us,
        sync_interval_us: SECOND_US / 4,
        ping_interval_us: plan.ping_interval_us,
        outbox_bytes_max: plan.outbox_bytes_max,
        message_bytes_max: plan.message_bytes_max,
        session_bytes_max: plan.session_bytes_max,
        snapshot_bytes_max: plan.snapshot_bytes_max,
        snapshot_part_bytes: plan.snapshot_part_bytes,
        state_part_bytes: plan.state_part_bytes(),
        batch_bytes_max: plan.batch_bytes_max,
        segment_bytes_min: plan.segment_bytes_min,
        segment_bytes_max: plan.segment_bytes_max,
        log_spare_bytes: plan.log_spare_bytes(),
        limits,
        presence: plan.presence(),
        fault_panic_key: Some(PANIC_KEY.to_owned()),
        ..testing::shard_config()
    }
}

/// The report on a log that was read, and the workspaces and generations of each shard.
pub type RecoveredLog = (RecoveryReport, Vec<Vec<Workspace>>, Vec<LoggedGenerations>);

/// Reads the log as `io::recovery` does: each folder separately, in any order.
pub fn recover(
    directory: &DataDirectory<SimDisk>,
    shards: u32,
    dice: &mut Dice,
    planted: Option<Planted>,
    mut visit: impl FnMut(&LoggedOp<'_>),
) -> Result<RecoveredLog, RecoveryError> {
    let recovery = Recovery::open(directory)?;
    let turn = dice.below(recovery.folders().max(1));
    let mut reads: Vec<_> = (0..recovery.folders()).map(|_| None).collect();
    let mut all = Replay::new(HASH_SEED);
    let mut generations = BTreeMap::new();
    let is_lost = |op: &LoggedOp<'_>| {
        matches!(
            (planted, op.change),
            (
                Some(Planted::LostFloor | Planted::LostSeq),
                Change::Floor { .. }
            ) | (Some(Planted::LostSeq), Change::Delete { .. })
        )
    };
    for place in 0..recovery.folders() {
        let folder = (place + turn) % recovery.folders();
        let mut deal = Replay::new(HASH_SEED);
        let read = recovery.read(
            folder,
            |op| {
                visit(op);
                if !is_lost(op) {
                    deal.visit(op);
                }
                note_generation(&mut generations, op);
            },
            |_| {},
        )?;
        deal.finish_restore();
        all.merge(deal);
        reads[folder] = Some(read);
    }
    let reads: Vec<_> = reads
        .into_iter()
        .map(|read| read.expect("every part has been read"))
        .collect();
    let report = recovery.finish(&reads)?;
    let logged = (0..shards).map(|shard| logged_generations(&generations, shard, shards));
    Ok((report, all.finish(shards), logged.collect()))
}

/// The last generation in the folder of a shard: its number, its id, and the number of shards.
type LastGeneration = (u64, Generation, u32);

fn note_generation(generations: &mut BTreeMap<u32, LastGeneration>, op: &LoggedOp<'_>) {
    if let Change::Generation { id, shards } = op.change {
        let shard = op.key.parse().expect("the number of a shard");
        let last = generations.entry(shard).or_insert((0, id, shards));
        if op.seq.get() > last.0 {
            *last = (op.seq.get(), id, shards);
        }
    }
}

/// Returns the generations in the log, as passed to a shard.
fn logged_generations(
    generations: &BTreeMap<u32, LastGeneration>,
    shard: u32,
    shards: u32,
) -> LoggedGenerations {
    let folders = generations.iter().map(|(shard, last)| FolderGeneration {
        shard: *shard,
        number: last.0,
        id: last.1,
        shards: last.2,
    });
    let folders: Vec<FolderGeneration> = folders.collect();
    LoggedGenerations {
        last_number: folders.iter().map(|last| last.number).max().unwrap_or(0),
        previous: previous_generation(&folders, shard, shards),
    }
}

/// Returns the total length of all segments.
pub fn all_bytes(disk: &SimDisk) -> u64 {
    let files = disk.lengths(DATA.as_ref());
    let segments = files.iter().filter(|(path, _)| index_of(path).is_some());
    segments.map(|(_, bytes)| bytes).sum()
}

/// Returns the files in the shards' folders that must not be there after a recovery.
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
