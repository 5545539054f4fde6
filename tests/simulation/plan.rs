//! The kind of run that a seed selects, the faults that may occur in it, and its coverage.

use etherply::core::fanout::peers::PresenceSettings;
use etherply::core::shard::contract::Limits;
use etherply::core::testing::Dice;
use etherply::limits::{
    BATCH_BYTES_MAX, CONFLATED_BYTES_MAX, DISK_ENOUGH_FACTOR, SECOND_US, SESSION_BUDGET_BYTES,
    SNAPSHOT_BYTES_MAX, SNAPSHOT_PART_BYTES,
};
use etherply::log::blocks::BLOCK_BYTES;
use etherply::log::commit::Durability;
use etherply::log::schedule::LowMarks;

/// The kinds of faults as bits, so that a failing run can be repeated without some of them.
pub mod faults {
    pub const POWER: u32 = 1;
    pub const KILL: u32 = 1 << 1;
    pub const ERRORS: u32 = 1 << 2;
    pub const FULL: u32 = 1 << 3;
    pub const PANICS: u32 = 1 << 4;
    pub const NETWORK: u32 = 1 << 5;
    pub const CLOCK: u32 = 1 << 6;
    pub const COMPACTION: u32 = 1 << 7;
    pub const TRIALS: u32 = 1 << 8;
    pub const STOPS: u32 = 1 << 9;
    pub const COPIES: u32 = 1 << 10;
    pub const ALL: u32 = (1 << 11) - 1;

    pub const NAMES: [&str; 11] = [
        "power cuts",
        "kills",
        "disk errors",
        "a full disk",
        "panics",
        "bad clients",
        "clock jumps",
        "compaction",
        "trial crashes and flipped bits",
        "clean stops",
        "restored copies of the data directory",
    ];
}

/// A bug that the server could have, as seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// `saved` comes before the errors that it covers.
    EarlySaved,
    /// An op is applied although its `if_timestamp` does not match.
    IgnoredCondition,
    /// Each start continues the generation before it.
    OneGeneration,
    /// The floor is not read back from the log.
    LostFloor,
    /// The seq of a workspace whose newest tombstone was dropped is not read back.
    LostSeq,
    /// A deleted key is missing from a resumed state.
    LostDelete,
    /// A broadcast is lost.
    LostChange,
    /// A peer stays in the table after its connection has ended.
    KeptPeer,
    /// A change of presence is lost.
    LostValue,
    /// A cast is sent twice.
    RepeatedCast,
}

impl Planted {
    pub const ALL: [Self; 10] = [
        Self::EarlySaved,
        Self::IgnoredCondition,
        Self::OneGeneration,
        Self::LostFloor,
        Self::LostSeq,
        Self::LostDelete,
        Self::LostChange,
        Self::KeptPeer,
        Self::LostValue,
        Self::RepeatedCast,
    ];
}

/// The kind of run that a seed selects.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub steps: usize,
    pub faults: u32,
    pub durability: Durability,
    pub workspaces: usize,
    pub keys: usize,
    pub clients: usize,
    /// The share of the clients that speak version 2.
    pub version2_percent: usize,
    pub outbox_bytes_max: usize,
    pub message_bytes_max: usize,
    pub session_bytes_max: usize,
    pub snapshot_bytes_max: usize,
    pub snapshot_part_bytes: usize,
    /// The maximum length of a value.
    pub value_bytes: usize,
    /// One value in this many may be that long.
    pub large_one_in: usize,
    pub batch_bytes_max: usize,
    pub segment_bytes_min: u64,
    pub segment_bytes_max: u64,
    /// The amount of dead data that is not worth a compaction, in units of `segment_bytes_min`.
    pub segments_spared: u64,
    /// The number of bytes by which segments are filled ahead. Their writes then bypass the cache,
    /// if the disk supports that.
    pub fill_bytes: Option<u64>,
    pub ping_interval_us: u64,
    /// The time for which tombstones are kept.
    pub retention_us: u64,
    /// The size of the disk as a percentage of the space that all keys may take.
    pub disk_percent: Option<u64>,
    /// A bug that the simulation must find.
    pub planted: Option<Planted>,
    pub error_one_in: usize,
    pub crash_one_in: usize,
    pub limits: Limits,
}

/// The space that a small disk keeps free: more than the longest segment, whose last batch may have
/// several ops, since a compaction rewrites all of it.
pub const LOW_MARKS: LowMarks = LowMarks {
    bytes: 12_000,
    share: 8,
    shard_bytes: 700,
};

const WEEK_US: u64 = 7 * 24 * 3600 * SECOND_US;

impl Plan {
    pub fn new(seed: u64) -> Self {
        use Durability::{Always, Interval, None};
        let mut dice = Dice::stream(seed, 1);
        let durability = dice.pick(&[Always, Always, Always, Always, Interval, None]);
        // Two seeds in twelve have long messages, so that each share of the seeds covers the cases
        // that only they cause.
        let kind =
            [0, 1, 2, 3, 4, 5, 6, 0, 8, 9, 10, 11][usize::try_from(seed % 12).expect("below 12")];
        let plan = Self {
            seed,
            steps: 300 + dice.below(200),
            // Some runs have no compaction, so that every op that ever won stays on disk.
            faults: if dice.one_in(8) {
                faults::ALL & !faults::COMPACTION
            } else {
                faults::ALL
            },
            durability,
            workspaces: 1 + dice.below(4),
            keys: dice.pick(&[3, 6, 12]),
            clients: 12,
            version2_percent: Dice::stream(seed, 16).pick(&[0, 30, 60, 100]),
            outbox_bytes_max: dice.pick(&[512, 1024, 4096, 1 << 20]),
            message_bytes_max: 4096,
            // A legal message always fits.
            session_bytes_max: Dice::stream(seed, 12).pick(&[SESSION_BUDGET_BYTES, 16_384, 24_000]),
            snapshot_bytes_max: SNAPSHOT_BYTES_MAX,
            snapshot_part_bytes: Dice::stream(seed, 9).pick(&[
                1,
                100,
                1000,
                SNAPSHOT_PART_BYTES,
                SNAPSHOT_PART_BYTES,
                SNAPSHOT_PART_BYTES,
            ]),
            value_bytes: 1500,
            large_one_in: 12,
            batch_bytes_max: Dice::stream(seed, 13).pick(&[BATCH_BYTES_MAX, BATCH_BYTES_MAX, 4000]),
            segment_bytes_min: dice.pick(&[200, 700, 3000]),
            segment_bytes_max: dice.pick(&[5000, 20_000]),
            segments_spared: 1,
            fill_bytes: fill_bytes(seed, durability),
            ping_interval_us: dice.pick(&[SECOND_US, 25 * SECOND_US]),
            retention_us: Dice::stream(seed, 17).pick(&[
                SECOND_US / 20,
                SECOND_US,
                60 * SECOND_US,
                WEEK_US,
            ]),
            disk_percent: Option::None,
            planted: Option::None,
            error_one_in: dice.pick(&[0, 0, 60, 100, 200]),
            crash_one_in: dice.pick(&[60, 120, 400]),
            limits: limits(seed, kind),
        };
        plan.of_kind(kind, &mut dice)
    }

    /// Returns the plan for a kind of run, starting from the settings shared by all kinds.
    fn of_kind(self, kind: u64, dice: &mut Dice) -> Self {
        let (plan, seed) = (self, self.seed);
        match kind {
            // Full sends, and messages that are longer than one send.
            0 => Self {
                steps: 600,
                clients: 8,
                outbox_bytes_max: 1 << 20,
                message_bytes_max: 400_000,
                session_bytes_max: Dice::stream(seed, 12).pick(&[
                    SESSION_BUDGET_BYTES,
                    SESSION_BUDGET_BYTES,
                    1_600_000,
                ]),
                snapshot_bytes_max: Dice::stream(seed, 7).pick(&[SNAPSHOT_BYTES_MAX, 1_500_000]),
                value_bytes: 330_000,
                large_one_in: 2,
                segment_bytes_min: 50_000,
                segment_bytes_max: 1 << 20,
                ..plan
            },
            // A crowd in one workspace.
            1 => Self {
                steps: 600,
                clients: 600,
                workspaces: 1,
                error_one_in: 0,
                crash_one_in: 400,
                ..plan
            },
            // A few keys, overwritten again and again, so that most segments end up entirely dead.
            2 => Self {
                steps: 2000,
                faults: faults::COMPACTION | faults::POWER | faults::KILL | faults::TRIALS,
                limits: Limits::default(),
                clients: 4,
                workspaces: 1,
                keys: 2,
                value_bytes: 80,
                segment_bytes_min: 200,
                segment_bytes_max: 5000,
                segments_spared: 8,
                error_one_in: 0,
                crash_one_in: dice.pick(&[400, 1000]),
                ..plan
            },
            // A disk hardly larger than the live data.
            3 => Self {
                steps: 700,
                faults: faults::ALL & !(faults::ERRORS | faults::FULL),
                workspaces: 3,
                keys: 12,
                large_one_in: 1,
                segment_bytes_min: 700,
                // At most a tenth of the disk, like 4 MiB on a disk that is large enough for
                // compaction.
                batch_bytes_max: 2500,
                segment_bytes_max: 2500,
                fill_bytes: Option::None,
                // A deleted key frees space.
                version2_percent: Dice::stream(seed, 16).pick(&[0, 0, 30]),
                disk_percent: Some(Dice::stream(seed, 12).pick(&[150, 200, 300])),
                error_one_in: 0,
                crash_one_in: 400,
                ..plan
            },
            // Deletes that are soon forgotten, and short segments of which few are rewritten at a
            // time.
            5 => Self {
                steps: 1000,
                faults: faults::COMPACTION
                    | faults::POWER
                    | faults::KILL
                    | faults::TRIALS
                    | faults::COPIES,
                limits: Limits::default(),
                clients: 4,
                workspaces: 1,
                keys: 12,
                version2_percent: 100,
                value_bytes: 150,
                segment_bytes_min: 200,
                segment_bytes_max: 5000,
                fill_bytes: Option::None,
                retention_us: SECOND_US / 20,
                error_one_in: 0,
                crash_one_in: 400,
                ..plan
            },
            _ => plan,
        }
    }

    /// Returns the length of a part of a state in version 2.
    pub fn state_part_bytes(&self) -> usize {
        let lengths = [1, 200, CONFLATED_BYTES_MAX, CONFLATED_BYTES_MAX];
        Dice::stream(self.seed, 18).pick(&lengths)
    }

    /// Returns the number of dead bytes in a shard that are not worth a compaction.
    pub fn floor_bytes(&self) -> u64 {
        self.segments_spared * self.segment_bytes_min
    }

    /// Returns the part of a log's bound that does not depend on its live data.
    pub fn log_spare_bytes(&self) -> u64 {
        self.floor_bytes() + self.segment_bytes_min + 1000
    }

    /// Returns the size of the disk: a share of the space that all keys may take, plus a fixed
    /// part. Each of up to three shards has an open segment, which may be entirely dead, and the
    /// space kept free is not small compared with so few keys.
    pub fn disk_bytes(&self) -> Option<u64> {
        let entries = (self.workspaces * self.keys) as u64;
        let record_bytes = self.value_bytes as u64 + 50;
        let live_bytes = entries * record_bytes;
        let low_bytes = LOW_MARKS.bytes + 3 * LOW_MARKS.shard_bytes;
        let open_bytes = 3 * (self.segment_bytes_max + record_bytes);
        let more_bytes = low_bytes * DISK_ENOUGH_FACTOR + open_bytes;
        self.disk_percent
            .map(|percent| live_bytes * percent / 100 + more_bytes)
    }

    /// Returns the settings of presence. A message is sent at most once per interval, and the
    /// entries of all peers of a workspace have a maximum length.
    pub fn presence(&self) -> PresenceSettings {
        PresenceSettings {
            interval_us: Dice::stream(self.seed, 32).pick(&[500, 5000, 50_000]),
            bytes_max: Dice::stream(self.seed, 33).pick(&[1024, 1 << 20, 1 << 20]),
            shard_bytes_max: etherply::limits::PRESENCE_SHARD_BYTES_MAX,
        }
    }

    pub fn may(&self, fault: u32) -> bool {
        self.faults & fault != 0
    }
}

fn fill_bytes(seed: u64, durability: Durability) -> Option<u64> {
    let blocks = Dice::stream(seed, 11).pick(&[0, 1, 1, 5]);
    (blocks > 0 && durability == Durability::Always).then_some(blocks * BLOCK_BYTES as u64)
}

/// Returns the limits of a run. Each limit is on in some runs.
fn limits(seed: u64, kind: u64) -> Limits {
    let mut dice = Dice::stream(seed, 6);
    let (members, bytes) = match kind {
        0 => ([2, 4], [700_000, 1_500_000]),
        1 => ([80, 150], [600, 4000]),
        _ => ([2, 4], [600, 4000]),
    };
    let limits = Limits {
        ops_per_second: dice.one_in(3).then(|| dice.pick(&[5, 20])),
        connections_per_workspace: dice.one_in(3).then(|| dice.pick(&members)),
        workspace_bytes: dice.one_in(2).then(|| dice.pick(&bytes)),
        handshakes_per_second: dice.one_in(4).then(|| dice.pick(&[20, 60])),
    };
    if kind != 3 {
        return limits;
    }
    // With less state or fewer ops, a small disk would never fill up.
    Limits {
        ops_per_second: None,
        workspace_bytes: None,
        ..limits
    }
}

macro_rules! coverage {
    ($($name:ident: $least:expr,)*) => {
        /// The number of times that each case occurred.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Coverage { $(pub $name: u64,)* }

        impl Coverage {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Returns the cases that occurred less often than one test's share of the fixed seeds
            /// requires.
            pub fn missing(&self) -> Vec<String> {
                let mut missing = Vec::new();
                $(if self.$name < $least {
                    missing.push(format!("{} of {} {}", self.$name, $least, stringify!($name)));
                })*
                missing
            }
        }
    };
}

// Each case with the minimum count that one test's share of the fixed seeds requires.
coverage! {
    starts: 100,
    power_cuts: 20,
    kills: 20,
    crashes_in_creation: 1,
    crashes_in_recovery: 5,
    crashes_in_rotation: 1,
    crashes_in_compaction: 1,
    crashes_in_rebuild: 1,
    crashes_in_commit: 5,
    trial_crashes: 100,
    trial_crashes_inside: 50,
    trial_crashes_twice: 50,
    torn_tails: 10,
    failures: 10,
    rebuilds: 10,
    ends_decided: 1,
    panics: 5,
    told_500: 5,
    write_errors: 2,
    sync_errors: 2,
    open_errors: 5,
    rename_errors: 1,
    folder_sync_errors: 1,
    full_disks: 5,
    writes_through: 200,
    short_writes: 10,
    rotations: 50,
    compactions: 10,
    compactions_stopped: 1,
    segments_replaced: 50,
    segments_swept: 20,
    held: 5,
    short_of_room: 5,
    small_steps: 1,
    refused_for_room: 5,
    reserves_used: 1,
    flips_found: 50,
    flips_harmless: 5,
    emptied_found: 20,
    flips_met_by_compaction: 5,
    handoffs: 50,
    reshards: 10,
    drains: 20,
    locks_refused: 10,
    locks_deleted: 5,
    conflations: 20,
    corrections: 50,
    ties: 50,
    refusals: 20,
    pongs: 50,
    refused_by_rate: 50,
    refused_by_size: 20,
    closed_by_policy: 1,
    put_off: 20,
    inits: 100,
    looks: 20,
    states_in_parts: 50,
    broadcasts: 1000,
    full_sends: 1,
    long_frames: 1,
    long_answers: 1,
    full_turns: 1,
    given_up: 5,
    slow_messages: 1,
    stalls: 1,
    silences: 1,
    settled: 20,
    stopped: 100,
    waited: 20,
    gave_way: 20,
    joins: 50,
    resumes: 5,
    resumes_elsewhere: 5,
    resumes_too_old: 1,
    points_dropped: 1,
    resends: 20,
    parts: 100,
    saved: 200,
    deletes: 100,
    expiries: 20,
    floors: 5,
    floors_shown: 1,
    copies_restored: 5,
    copies_of_running: 20,
    prompt: 20,
    presence_messages: 500,
    tables_compared: 50,
    users_compared: 20,
    presence_refused: 20,
    connections_beside: 50,
    peers_replaced: 20,
    peers_not_replaced: 20,
    casts_heard: 200,
    casts_compared: 50,
    casts_while_hanging: 1,
}
