//! The server's process: shards, their logs and what runs beside them, wired as `io::server`, `io::worker` and
//! `io::background` wire them, without a thread.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use etherply::core::contract::{Clock, Input, Limits, Output, ShardConfig, Ticket};
use etherply::core::deal::Deal;
use etherply::core::session::SessionId;
use etherply::core::shard::Shard;
use etherply::core::workspace::Workspace;
use etherply::limits::{COMPACTION_START_PERCENT, SECOND_US};
use etherply::log::compaction::Compaction;
use etherply::log::directory::{DataDirectory, DirectoryError};
use etherply::log::keeper::{Creation, KeeperError, LogKeeper, Rebuild};
use etherply::log::record::Op;
use etherply::log::recovery::{Recovery, RecoveryError, Report};
use etherply::wire::auth::{Secret, Verifier, mint};

use crate::dice::Dice;
use crate::disk::SimDisk;
use crate::plan::Plan;

pub const DATA: &str = "/data/log";
pub const PANIC_KEY: &str = "planted";
pub const HASH_SEED: u64 = 5;
/// The true time at the start.
pub const BEGIN_UNIX_US: u64 = 1_700_000_000 * SECOND_US;

static KEYS: LazyLock<(Arc<Verifier>, String)> = LazyLock::new(|| {
    let secret = Secret::new(b"a secret of the simulation, long enough".to_vec());
    let secret = secret.expect("it is not empty");
    let token = mint(&secret, "client", BEGIN_UNIX_US / SECOND_US, None);
    (Arc::new(Verifier::new(&secret, None)), token)
});

pub fn token() -> &'static str {
    &KEYS.1
}

/// An operation of a log: asked for, or done and not told yet.
pub enum LogOperation {
    Asked(Output),
    Done(Input<'static>),
}

/// Work for another thread.
pub enum Errand {
    Create(Result<Creation<SimDisk>, KeeperError>),
    Rebuild(Result<Rebuild<SimDisk>, KeeperError>),
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what may happen yet, or was seen"
)]
/// A shard with what its worker keeps for it.
pub struct Seat {
    pub shard: Shard,
    pub log: Option<LogKeeper<SimDisk>>,
    pub operation: Option<LogOperation>,
    pub errand: Option<Errand>,
    pub clients: BTreeMap<SessionId, usize>,
    /// Something came since its last turn.
    pub is_woken: bool,
    pub is_serving: bool,
    pub is_drained: bool,
    /// Something happened that it may fail of.
    pub may_fail: bool,
    /// A sync of the open segment has failed.
    pub is_sync_lost: bool,
    /// Wins that were handed to a write and are not confirmed: the workspace, and how many there are then.
    pub handed: Vec<(usize, usize)>,
    /// Sends that were cut short since the last turn, each of which is another send.
    pub cut_sends: usize,
    /// Sessions that it gave up, as far as they were counted.
    pub given_up: u64,
}

/// How far a process is with its start.
pub enum Stage {
    Opened,
    Read(Box<(Report, Vec<Option<Vec<Workspace>>>)>),
    Serving,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what may happen yet, or was seen"
)]
pub struct Server {
    pub directory: Arc<DataDirectory<SimDisk>>,
    pub limits: Limits,
    pub stage: Stage,
    pub seats: Vec<Seat>,
    /// To which shard which client goes.
    pub letters: VecDeque<(usize, usize, Box<Ticket>)>,
    pub compaction: Option<Compaction<SimDisk>>,
    /// The open segment of each shard, as it was told last, and the live bytes then.
    pub rotations: Vec<Option<(u64, u64)>>,
    /// A rotation was told since a compaction began: only then another one may be due.
    pub is_rotated: bool,
    /// The compaction that began last reads nothing. The next one does.
    pub is_sweep: bool,
    /// A folder could not be synced: nothing is compacted until the next start.
    pub is_compaction_over: bool,
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
            may_fail: false,
            is_sync_lost: false,
            handed: Vec::new(),
            cut_sends: 0,
            given_up: 0,
        };
        Ok(Self {
            directory: Arc::new(directory),
            limits,
            stage: Stage::Opened,
            seats: (0..shards).map(seat).collect(),
            letters: VecDeque::new(),
            compaction: None,
            rotations: vec![None; shards as usize],
            is_rotated: false,
            is_sweep: false,
            is_compaction_over: false,
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
            self.rotations[shard] = Some((log.open_segment().index, seat.shard.live_bytes()));
            self.is_rotated = true;
        }
    }

    /// The open segments, if all shards have told theirs.
    pub fn open_segments(&self) -> Option<Vec<(u32, u64)>> {
        let open = self.rotations.iter().zip(0..);
        open.map(|(told, shard)| told.map(|told| (shard, told.0)))
            .collect()
    }
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
        segment_bytes_min: plan.segment_bytes_min,
        segment_bytes_max: plan.segment_bytes_max,
        future_skew_us: 24 * 3600 * SECOND_US,
        drain_us: 5 * SECOND_US,
        hash_seed: HASH_SEED,
        verifier: Arc::clone(&KEYS.0),
        origins: std::sync::Arc::default(),
        limits,
        fault_panic_key: Some(PANIC_KEY.to_owned()),
    }
}

/// Reads the log as `io::recovery` does: the folders in any order, each by itself.
pub fn recover(
    directory: &DataDirectory<SimDisk>,
    shards: u32,
    dice: &mut Dice,
    mut visit: impl FnMut(&Op<'_>),
) -> Result<(Report, Vec<Vec<Workspace>>), RecoveryError> {
    let recovery = Recovery::open(directory)?;
    let turn = dice.below(recovery.folders().max(1));
    let mut reads: Vec<_> = (0..recovery.folders()).map(|_| None).collect();
    let mut all = Deal::new(HASH_SEED);
    for place in 0..recovery.folders() {
        let folder = (place + turn) % recovery.folders();
        let mut deal = Deal::new(HASH_SEED);
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

/// The length of all closed segments, as `io::background` measures it; all of them where `open` is empty.
pub fn closed_bytes(disk: &SimDisk, open: &[(u32, u64)]) -> u64 {
    let mut closed_bytes = 0;
    for (path, bytes) in disk.files(DATA.as_ref()) {
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        let Some(index) = name.strip_suffix(".aof") else {
            continue;
        };
        let is_open = open.iter().any(|(shard, open_index)| {
            let folder = etherply::log::directory::shard_folder(*shard);
            path.parent()
                .is_some_and(|parent| parent.ends_with(&folder))
                && index.parse::<u64>().is_ok_and(|index| index >= *open_index)
        });
        if !is_open {
            closed_bytes += bytes.len() as u64;
        }
    }
    closed_bytes
}

/// Whether so much is worth a compaction.
pub fn is_due(closed_bytes: u64, live_bytes: u64, floor_bytes: u64) -> bool {
    closed_bytes > floor_bytes && closed_bytes * 100 / live_bytes.max(1) > COMPACTION_START_PERCENT
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
