//! Statistics on the contents of a log: the number of records and bytes, and how many of them are
//! live.
//!
//! For each key in the state, only the key and a few numbers are held in memory, not the value.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::record::{self, Change, FloorRecord, LoggedOp};
use crate::seq::Seq;

/// The size of a part of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// The number of records.
    pub records: u64,
    /// The total length of their records, in bytes.
    pub record_bytes: u64,
    /// The total length, in bytes, of the records that make up the state, which are those that no
    /// other op on the same key supersedes.
    pub live_bytes: u64,
}

/// The part of a log that belongs to one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceShare {
    /// The workspace's id.
    pub id: String,
    /// The number of keys in its state.
    pub keys: u64,
    /// The number of deleted keys whose tombstones are kept.
    pub tombstones: u64,
    /// The seq of its last op.
    pub seq: Seq,
    /// Its floor, if tombstones have been dropped.
    pub floor: Option<FloorRecord>,
    /// The size of its records.
    pub share: Share,
}

/// The composition of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CensusResult {
    /// The size of the records in each folder, up to the last one that has a record.
    pub folders: Vec<Share>,
    /// The workspaces, largest first; workspaces of equal size are ordered by id.
    pub workspaces: Vec<WorkspaceShare>,
}

/// Counts the records of a log, which may be visited in any order.
#[derive(Default)]
pub struct Census {
    folders: Vec<Share>,
    workspaces: HashMap<String, Counted, RandomState>,
}

#[derive(Default)]
struct Counted {
    seq: Seq,
    share: Share,
    live: HashMap<Box<str>, LiveRecord, RandomState>,
    floor: Option<FloorRecord>,
}

struct LiveRecord {
    timestamp: u64,
    seq: Seq,
    bytes: u64,
    folder: usize,
    is_tombstone: bool,
}

impl Census {
    /// Counts a record in the folder with this number.
    pub fn visit(&mut self, folder: usize, op: &LoggedOp<'_>) {
        if self.folders.len() <= folder {
            self.folders.resize(folder + 1, Share::default());
        }
        let bytes = record::op_bytes(op) as u64;
        let counted = self.workspaces.entry_ref(op.workspace).or_default();
        counted.seq = counted.seq.max(op.seq);
        for share in [&mut counted.share, &mut self.folders[folder]] {
            share.records += 1;
            share.record_bytes += bytes;
        }
        let held = counted.live.get(op.key);
        let is_live = if let Some(floor) = op.floor() {
            let merged = counted.floor.unwrap_or_default().merged(floor);
            // Of two floors of a workspace, the later one is greater in all fields that differ.
            let is_greater = counted.floor != Some(merged);
            counted.floor = Some(merged);
            is_greater
        } else {
            held.is_none_or(|held| op.wins_over(held.timestamp, held.seq))
        };
        if !is_live {
            return;
        }
        let winner = LiveRecord {
            timestamp: op.timestamp,
            seq: op.seq,
            bytes,
            folder,
            is_tombstone: matches!(op.change, Change::Delete { .. }),
        };
        if let Some(held) = counted.live.get_mut(op.key) {
            counted.share.live_bytes -= held.bytes;
            self.folders[held.folder].live_bytes -= held.bytes;
            *held = winner;
        } else {
            counted.live.insert(op.key.into(), winner);
        }
        counted.share.live_bytes += bytes;
        self.folders[folder].live_bytes += bytes;
    }

    /// Returns the result, once all records have been visited.
    #[must_use]
    pub fn finish(self) -> CensusResult {
        let mut folders = self.folders;
        let mut workspaces = Vec::new();
        for (id, mut counted) in self.workspaces {
            let floor = counted.floor.unwrap_or_default();
            let (mut keys, mut tombstones) = (0, 0);
            // A floor has an empty key.
            for (_, live) in counted.live.iter().filter(|(key, _)| !key.is_empty()) {
                if !live.is_tombstone {
                    keys += 1;
                } else if live.seq > floor.dropped_seq {
                    tombstones += 1;
                } else {
                    counted.share.live_bytes -= live.bytes;
                    folders[live.folder].live_bytes -= live.bytes;
                }
            }
            // The shards' generations belong to no workspace.
            if !id.is_empty() {
                workspaces.push(WorkspaceShare {
                    id,
                    keys,
                    tombstones,
                    seq: counted.seq,
                    floor: counted.floor,
                    share: counted.share,
                });
            }
        }
        workspaces.sort_unstable_by(|a, b| {
            let bytes = b.share.record_bytes.cmp(&a.share.record_bytes);
            bytes.then_with(|| a.id.cmp(&b.id))
        });
        CensusResult {
            folders,
            workspaces,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Generation;

    #[test]
    fn each_op_counts_for_its_folder_and_only_the_winner_is_live() {
        let op = |workspace, key, value, seq, timestamp| LoggedOp {
            workspace,
            key,
            change: Change::write(value),
            seq: Seq::new(seq),
            timestamp,
        };
        let ops = [
            (0, op("w", "k", "1", 1, 10)),
            (2, op("w", "k", "\"a longer one\"", 2, 20)),
            (0, op("w", "k", "3", 3, 15)),
            (0, op("w", "l", "4", 4, 1)),
            (2, op("v", "k", "5", 9, 1)),
        ];
        let bytes: Vec<u64> = ops
            .iter()
            .map(|(_, op)| record::op_bytes(op) as u64)
            .collect();
        // In any order, the last write wins.
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 4, 2, 3]] {
            let mut census = Census::default();
            for place in order {
                census.visit(ops[place].0, &ops[place].1);
            }
            let share = |of: &[usize], live: &[usize]| Share {
                records: of.len() as u64,
                record_bytes: of.iter().map(|place| bytes[*place]).sum(),
                live_bytes: live.iter().map(|place| bytes[*place]).sum(),
            };
            let folders = [
                share(&[0, 2, 3], &[3]),
                Share::default(),
                share(&[1, 4], &[1, 4]),
            ];
            let workspace = |id: &str, keys, seq, share| WorkspaceShare {
                id: id.to_owned(),
                keys,
                tombstones: 0,
                seq: Seq::new(seq),
                floor: None,
                share,
            };
            let workspaces = vec![
                workspace("w", 2, 4, share(&[0, 1, 2, 3], &[1, 3])),
                workspace("v", 1, 9, share(&[4], &[4])),
            ];
            let expected = CensusResult {
                folders: folders.to_vec(),
                workspaces,
            };
            assert_eq!(census.finish(), expected);
        }
    }

    #[test]
    fn tombstones_count_until_they_are_dropped_and_generations_are_in_no_workspace() {
        let record = |workspace, key, change, seq| LoggedOp {
            workspace,
            key,
            change,
            seq: Seq::new(seq),
            timestamp: seq,
        };
        let delete = Change::Delete { deleted_at_us: 9 };
        let floor = |dropped_seq| Change::Floor {
            dropped_seq: Seq::new(dropped_seq),
        };
        let generation = Change::Generation {
            id: Generation::new(7),
            shards: 1,
        };
        let records = [
            record("", "0", generation, 1),
            record("w", "a", Change::write("1"), 1),
            record("w", "a", delete, 2),
            record("w", "b", delete, 3),
            record("w", "c", Change::write("3"), 4),
            record("w", "", floor(2), 4),
            record("w", "", floor(1), 3),
            record("", "0", generation, 2),
        ];
        let bytes = records.map(|record| record::op_bytes(&record) as u64);
        for is_reversed in [false, true] {
            let mut census = Census::default();
            let mut order: Vec<_> = records.iter().collect();
            if is_reversed {
                order.reverse();
            }
            for record in order {
                census.visit(0, record);
            }
            let CensusResult {
                folders,
                workspaces,
            } = census.finish();
            let live_bytes = bytes[3] + bytes[4] + bytes[5];
            assert_eq!(folders[0].records, 8);
            assert_eq!(folders[0].live_bytes, live_bytes + bytes[7]);
            let expected = WorkspaceShare {
                id: "w".to_owned(),
                keys: 1,
                tombstones: 1,
                seq: Seq::new(4),
                floor: records[5].floor(),
                share: Share {
                    records: 6,
                    record_bytes: bytes[1..7].iter().sum(),
                    live_bytes,
                },
            };
            assert_eq!(workspaces, [expected]);
        }
    }
}
