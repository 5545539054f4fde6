//! Statistics on the contents of a log: the number of records and bytes, and how many of them are
//! live.
//!
//! For each key in the state, only the key and a few numbers are held in memory, not the value.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::record::{self, LoggedOp};
use crate::seq::Seq;

/// The size of a part of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// The number of ops.
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
    /// The largest seq among its ops.
    pub seq: Seq,
    /// The size of its ops.
    pub share: Share,
}

/// Counts the ops of a log, which may be visited in any order.
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
}

struct LiveRecord {
    timestamp: u64,
    seq: Seq,
    bytes: u64,
    folder: usize,
}

impl Census {
    /// Counts an op in the folder with this number.
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
        let winner = LiveRecord {
            timestamp: op.timestamp,
            seq: op.seq,
            bytes,
            folder,
        };
        if let Some(held) = counted.live.get_mut(op.key) {
            if !op.wins_over(held.timestamp, held.seq) {
                return;
            }
            counted.share.live_bytes -= held.bytes;
            self.folders[held.folder].live_bytes -= held.bytes;
            *held = winner;
        } else {
            counted.live.insert(op.key.into(), winner);
        }
        counted.share.live_bytes += bytes;
        self.folders[folder].live_bytes += bytes;
    }

    /// Returns the size of the ops in the folder with this number.
    #[must_use]
    pub fn folder(&self, folder: usize) -> Share {
        self.folders.get(folder).copied().unwrap_or_default()
    }

    /// Returns the workspaces, largest first; workspaces of equal size are ordered by id.
    #[must_use]
    pub fn workspaces(self) -> Vec<WorkspaceShare> {
        let share = |(id, counted): (String, Counted)| WorkspaceShare {
            id,
            keys: counted.live.len() as u64,
            seq: counted.seq,
            share: counted.share,
        };
        let mut workspaces: Vec<_> = self.workspaces.into_iter().map(share).collect();
        workspaces.sort_unstable_by(|a, b| {
            let bytes = b.share.record_bytes.cmp(&a.share.record_bytes);
            bytes.then_with(|| a.id.cmp(&b.id))
        });
        workspaces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_op_counts_for_its_folder_and_only_the_winner_is_live() {
        let op = |workspace, key, value, seq, timestamp| LoggedOp {
            workspace,
            key,
            value,
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
            assert_eq!(census.folder(0), share(&[0, 2, 3], &[3]));
            assert_eq!(census.folder(1), Share::default());
            assert_eq!(census.folder(2), share(&[1, 4], &[1, 4]));
            assert_eq!(census.folder(3), Share::default());
            let workspace = |id: &str, keys, seq, share| WorkspaceShare {
                id: id.to_owned(),
                keys,
                seq: Seq::new(seq),
                share,
            };
            let expected = [
                workspace("w", 2, 4, share(&[0, 1, 2, 3], &[1, 3])),
                workspace("v", 1, 9, share(&[4], &[4])),
            ];
            assert_eq!(census.workspaces(), expected);
        }
    }
}
