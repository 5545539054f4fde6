//! Ops that are read back from a log become workspaces, and each goes to the shard that owns it now.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::contract::shard_of;
use crate::core::workspace::Workspace;
use crate::log::record::Op;

/// The workspaces of the ops that were visited, in any order.
pub struct Deal {
    hash_seed: u64,
    workspaces: HashMap<String, Workspace, FixedState>,
}

impl Deal {
    /// No workspace yet. `hash_seed` keys all hashes of ids and keys.
    #[must_use]
    pub fn new(hash_seed: u64) -> Self {
        let workspaces = HashMap::with_hasher(FixedState::with_seed(hash_seed));
        Self {
            hash_seed,
            workspaces,
        }
    }

    /// Takes an op.
    pub fn visit(&mut self, op: &Op<'_>) {
        let Self {
            workspaces,
            hash_seed,
        } = self;
        // Only a workspace that is met for the first time costs a copy of its id.
        let workspace = workspaces
            .entry_ref(op.workspace)
            .or_insert_with(|| Workspace::new(op.workspace, *hash_seed));
        workspace.restore(op.key, op.value, op.timestamp, op.seq);
    }

    /// Puts the workspaces in order, after the last visit.
    pub fn finish_restore(&mut self) {
        for workspace in self.workspaces.values_mut() {
            workspace.finish_restore();
        }
    }

    /// Takes all of another deal. Both are in order, and this one is then, too.
    pub fn merge(&mut self, other: Self) {
        for (id, workspace) in other.workspaces {
            match self.workspaces.entry(id) {
                hashbrown::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(workspace);
                }
                hashbrown::hash_map::Entry::Occupied(mut held) => {
                    held.get_mut().restore_from(&workspace);
                    held.get_mut().finish_restore();
                }
            }
        }
    }

    /// The workspaces of each of `shards`, once they are in order.
    #[must_use]
    pub fn finish(self, shards: u32) -> Vec<Vec<Workspace>> {
        let mut dealt: Vec<Vec<Workspace>> = (0..shards).map(|_| Vec::new()).collect();
        for (id, workspace) in self.workspaces {
            dealt[shard_of(&id, shards) as usize].push(workspace);
        }
        dealt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op<'a>(workspace: &'a str, value: &'a str, timestamp: u64, seq: u64) -> Op<'a> {
        Op {
            workspace,
            key: "key",
            value,
            seq,
            timestamp,
        }
    }

    #[test]
    fn ops_become_the_same_workspaces_however_they_were_split() {
        let ops = [
            op("a", "1", 5, 1),
            op("b", "2", 5, 1),
            op("a", "3", 7, 2),
            op("a", "4", 6, 3),
            op("b", "5", 5, 2),
        ];
        for split in 0..1 << ops.len() {
            let mut deals = [Deal::new(1), Deal::new(1)];
            for (place, op) in ops.iter().enumerate() {
                deals[split >> place & 1].visit(op);
            }
            for deal in &mut deals {
                deal.finish_restore();
            }
            let [mut deal, other] = deals;
            deal.merge(other);
            let shards = deal.finish(3);
            for (id, value, seq) in [("a", "3", 3), ("b", "2", 2)] {
                let workspaces = &shards[shard_of(id, 3) as usize];
                let workspace = workspaces.iter().find(|workspace| workspace.id() == id);
                let workspace = workspace.expect("it is with the shard that owns it");
                let entry = workspace.get("key").expect("it has the key");
                assert_eq!((entry.value(), workspace.seq()), (value, seq));
            }
            assert_eq!(shards.iter().map(Vec::len).sum::<usize>(), 2);
        }
    }
}
