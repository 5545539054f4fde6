//! The index of a compaction: which records must be kept.
//!
//! For each key, the winning op is kept, and for each shard, the newest generation, which is the
//! winner of its own key. Two more rules apply to tombstones that the server has dropped.
//!
//! A *floor* is kept until another one *covers* it, that is, none of the other's fields is smaller.
//! Replay takes the maximum of each field over all floors, so a floor with just one greater field
//! must be kept. A shard writes floors whose fields never decrease, and after a change of the
//! number of shards the next owner continues from all of them. So a workspace nearly always has one
//! such floor, but the index does not depend on it.
//!
//! A *tombstone* that won its key is dropped together with all other records of the key if two
//! rules hold:
//!
//! 1. A floor of the workspace in a closed segment covers its timestamp and its seq. This floor, or
//!    one that covers it, is then on disk to stay, and makes replay drop the tombstone whether or
//!    not its record exists.
//! 2. All records of the key in closed segments are in the group that is rewritten. Otherwise an
//!    older write in another segment would no longer have a tombstone, and the key would come back.
//!    Later segments hold no older write: an op on a key that has no entry must be newer than the
//!    floor.
//!
//! The second rule needs the records of all folders, since the workspace may have belonged to
//! another shard. So a compaction that reads only some folders drops no tombstone.

use std::ops::Range;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::log::record::{self, Change, FloorRecord, LoggedOp};
use crate::seq::Seq;

/// The records that must be kept, and the number of bytes of such records in each segment. Segments
/// are identified by their *place*, which increases in the order in which they are read.
pub(super) struct WinnerIndex {
    workspaces: HashMap<String, WorkspaceWinners, RandomState>,
    live_bytes: Vec<u64>,
    /// Whether the segments include those of all folders.
    has_all_folders: bool,
}

#[derive(Default)]
struct WorkspaceWinners {
    keys: HashMap<Box<str>, Winner, RandomState>,
    /// The floors that no other one covers.
    floors: Vec<PlacedFloor>,
}

/// The winning op of a key.
struct Winner {
    timestamp: u64,
    seq: Seq,
    bytes: u32,
    place: u32,
    /// The place of the first record of the key.
    first_place: u32,
    is_tombstone: bool,
    /// Whether a record of the key was read from a later segment.
    has_later: bool,
}

struct PlacedFloor {
    floor: FloorRecord,
    bytes: u32,
    place: u32,
}

/// A tombstone that the server has dropped.
pub(super) struct DroppedTombstone {
    /// The place of its segment.
    pub place: usize,
    /// The place of the first record of its key.
    pub first_place: usize,
    /// The length of its record.
    pub bytes: u64,
}

impl DroppedTombstone {
    /// Returns whether a rewrite of these segments drops it.
    pub fn goes_with(&self, group: &Range<usize>) -> bool {
        group.start <= self.first_place && group.contains(&self.place)
    }
}

impl WorkspaceWinners {
    fn has_dropped(&self, winner: &Winner) -> bool {
        let Winner { timestamp, seq, .. } = *winner;
        let mut floors = self.floors.iter();
        winner.is_tombstone && floors.any(|held| held.floor.has_dropped(timestamp, seq))
    }
}

impl WinnerIndex {
    /// Returns an empty index for this number of segments.
    pub fn new(segments: usize, has_all_folders: bool) -> Self {
        Self {
            workspaces: HashMap::default(),
            live_bytes: vec![0; segments],
            has_all_folders,
        }
    }

    /// Returns whether the segments include those of all folders.
    pub fn has_all_folders(&self) -> bool {
        self.has_all_folders
    }

    /// Returns the bytes of the records to be kept, by place.
    pub fn live_bytes(&self) -> &[u64] {
        &self.live_bytes
    }

    /// Adds a record of the segment at `place`, which must not be before the place of the previous
    /// one.
    pub fn note(&mut self, op: &LoggedOp<'_>, place: usize) {
        let bytes = u32::try_from(record::op_bytes(op)).expect("a record is below 4 GiB");
        let place_u32 = u32::try_from(place).expect("fewer than 2^32 segments");
        let workspace = self.workspaces.entry_ref(op.workspace).or_default();
        let live_bytes = &mut self.live_bytes;
        if let Some(floor) = op.floor() {
            if workspace
                .floors
                .iter()
                .any(|held| held.floor.covers(&floor))
            {
                return;
            }
            workspace.floors.retain(|held| {
                let is_covered = floor.covers(&held.floor);
                live_bytes[held.place as usize] -= u64::from(held.bytes) * u64::from(is_covered);
                !is_covered
            });
            workspace.floors.push(PlacedFloor {
                floor,
                bytes,
                place: place_u32,
            });
        } else {
            let winner = Winner {
                timestamp: op.timestamp,
                seq: op.seq,
                bytes,
                place: place_u32,
                first_place: place_u32,
                is_tombstone: matches!(op.change, Change::Delete { .. }),
                has_later: false,
            };
            if let Some(held) = workspace.keys.get_mut(op.key) {
                // This is the rule of Workspace::restore, which reads the remaining ops.
                if !op.wins_over(held.timestamp, held.seq) {
                    held.has_later |= place_u32 > held.place;
                    return;
                }
                live_bytes[held.place as usize] -= u64::from(held.bytes);
                *held = Winner {
                    first_place: held.first_place,
                    ..winner
                };
            } else {
                workspace.keys.insert(op.key.into(), winner);
            }
        }
        live_bytes[place] += u64::from(bytes);
    }

    /// Returns the tombstones that the server has dropped and that a rewrite may drop, unless
    /// another segment has a record of their key.
    pub fn dropped_tombstones(&self) -> Vec<DroppedTombstone> {
        let mut dropped = Vec::new();
        let workspaces = self.workspaces.values();
        for workspace in workspaces.filter(|workspace| !workspace.floors.is_empty()) {
            let winners = workspace.keys.values();
            let are_dropped = winners.filter(|winner| workspace.has_dropped(winner));
            dropped.extend(
                are_dropped
                    .filter(|winner| !winner.has_later)
                    .map(|winner| DroppedTombstone {
                        place: winner.place as usize,
                        first_place: winner.first_place as usize,
                        bytes: winner.bytes.into(),
                    }),
            );
        }
        dropped
    }

    /// Records that a tombstone will be dropped. It is no longer counted as live.
    pub fn drop_tombstone(&mut self, tombstone: &DroppedTombstone) {
        self.live_bytes[tombstone.place] -= tombstone.bytes;
    }

    /// Returns whether a rewrite of `group` keeps this record of the segment at `place`.
    pub fn keeps(&self, op: &LoggedOp<'_>, place: usize, group: &Range<usize>) -> bool {
        let noted = "each record was noted before";
        let workspace = self.workspaces.get(op.workspace).expect(noted);
        if let Some(floor) = op.floor() {
            let mut floors = workspace.floors.iter();
            return floors.any(|held| (held.place as usize, held.floor) == (place, floor));
        }
        let winner = workspace.keys.get(op.key).expect(noted);
        let is_winner =
            (winner.place as usize, winner.timestamp, winner.seq) == (place, op.timestamp, op.seq);
        let are_all_in_group = !winner.has_later && group.start <= winner.first_place as usize;
        let is_dropped = self.has_all_folders && are_all_in_group && workspace.has_dropped(winner);
        is_winner && !is_dropped
    }
}
