//! Restores workspaces from the ops of a log, and partitions them by the shards that now own them.

use std::hash::BuildHasher;
use std::hint::black_box;

use foldhash::fast::FixedState;

use crate::core::state::index::{Index, Tag};
use crate::core::state::placement::shard_of;
use crate::core::state::workspace::Workspace;
use crate::log::record::{Change, LoggedOp};
use crate::seq::Seq;

/// The maximum number of ops in a group.
const GROUP_OPS: usize = 32;
/// The amount of text, in bytes, at which a group is complete.
const GROUP_BYTES: usize = 64 * 1024;

/// The workspaces restored from the ops visited so far, which may come in any order.
///
/// If a state is larger than the processor's caches, an op incurs four or five cache misses, each
/// at an address that depends on the previous one. Ops are therefore restored in groups: each step
/// is performed for all ops of a group before the next step, so that their cache misses overlap.
pub struct Replay {
    hash_seed: u64,
    hasher: FixedState,
    workspaces: Vec<Workspace>,
    index: Index,
    group: Vec<Waiting>,
    texts: String,
}

/// An op of the group. Its workspace id, key and value are adjacent in `texts`.
struct Waiting {
    begin: usize,
    key_begin: usize,
    value_begin: usize,
    end: usize,
    /// The change, without its value.
    change: Change<'static>,
    timestamp: u64,
    seq: Seq,
    workspace_tag: Tag,
    key_tag: Tag,
    /// The slot of its workspace, once it is known.
    workspace: u32,
}

impl Replay {
    /// Returns an empty replay. `hash_seed` seeds the hashes of all ids and keys.
    #[must_use]
    pub fn new(hash_seed: u64) -> Self {
        Self {
            hash_seed,
            hasher: FixedState::with_seed(hash_seed),
            workspaces: Vec::new(),
            index: Index::default(),
            group: Vec::with_capacity(GROUP_OPS),
            texts: String::new(),
        }
    }

    /// Adds an op. Ops may be added in any order.
    pub fn visit(&mut self, op: &LoggedOp<'_>) {
        if let Change::Generation { .. } = op.change {
            // It concerns the shard, not a workspace.
            return;
        }
        let begin = self.texts.len();
        self.texts.push_str(op.workspace);
        let key_begin = self.texts.len();
        self.texts.push_str(op.key);
        let value_begin = self.texts.len();
        self.texts.push_str(op.value());
        self.group.push(Waiting {
            begin,
            key_begin,
            value_begin,
            end: self.texts.len(),
            change: op.change.without_value(),
            timestamp: op.timestamp,
            seq: op.seq,
            workspace_tag: Tag::of(self.hasher.hash_one(op.workspace)),
            key_tag: Tag::of(self.hasher.hash_one(op.key)),
            workspace: 0,
        });
        if self.group.len() == GROUP_OPS || self.texts.len() > GROUP_BYTES {
            self.take_group();
        }
    }

    fn take_group(&mut self) {
        let (mut group, mut texts) = (
            std::mem::take(&mut self.group),
            std::mem::take(&mut self.texts),
        );
        for op in &group {
            // The results are not used; the accesses only load the table's cache lines in parallel.
            black_box(self.index.find(op.workspace_tag, |_| true));
        }
        for op in &mut group {
            op.workspace = self.slot_of(op.workspace_tag, &texts[op.begin..op.key_begin]);
        }
        let mut entries = [None; GROUP_OPS];
        for (op, entry) in group.iter().zip(&mut entries) {
            let workspace = &self.workspaces[op.workspace as usize];
            let slot = workspace.likely_slot(op.key_tag);
            *entry = slot.map(|slot| (workspace, slot));
        }
        for (workspace, slot) in entries.into_iter().flatten() {
            black_box(workspace.first_byte(slot));
        }
        for op in &group {
            let (key, value) = (
                &texts[op.key_begin..op.value_begin],
                &texts[op.value_begin..op.end],
            );
            let workspace = &mut self.workspaces[op.workspace as usize];
            let change = op.change.with_value(value);
            workspace.restore_tagged(op.key_tag, key, &change, op.timestamp, op.seq);
        }
        group.clear();
        texts.clear();
        // A single long op may have enlarged the buffer.
        texts.shrink_to(2 * GROUP_BYTES);
        (self.group, self.texts) = (group, texts);
    }

    /// Returns the slot of a workspace, creating the workspace if it does not exist.
    fn slot_of(&mut self, tag: Tag, id: &str) -> u32 {
        let found = self.find(tag, id);
        found.unwrap_or_else(|| self.insert(tag, Workspace::new(id, self.hash_seed)))
    }

    fn find(&self, tag: Tag, id: &str) -> Option<u32> {
        let is_it = |slot| self.workspaces[slot as usize].id() == id;
        self.index.find(tag, is_it)
    }

    fn insert(&mut self, tag: Tag, workspace: Workspace) -> u32 {
        let slot =
            u32::try_from(self.workspaces.len()).expect("there are fewer than 2^32 workspaces");
        self.workspaces.push(workspace);
        let hasher = &self.hasher;
        let tags = self.workspaces.iter().zip(0..);
        let tags = tags.map(|(held, slot)| (Tag::of(hasher.hash_one(held.id())), slot));
        self.index.insert(tag, slot, tags);
        slot
    }

    /// Puts the entries of all workspaces in order. Must be called after the last visit.
    pub fn finish_restore(&mut self) {
        self.take_group();
        for workspace in &mut self.workspaces {
            workspace.finish_restore();
        }
    }

    /// Merges another replay into this one. Both must be finished ([`Replay::finish_restore`]); the
    /// result is then finished, too.
    ///
    /// # Panics
    /// If their hash seeds differ.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(self.hash_seed, other.hash_seed, "the hash seeds differ");
        for workspace in other.workspaces {
            let tag = Tag::of(self.hasher.hash_one(workspace.id()));
            if let Some(slot) = self.find(tag, workspace.id()) {
                let held = &mut self.workspaces[slot as usize];
                held.restore_from(&workspace);
                held.finish_restore();
            } else {
                self.insert(tag, workspace);
            }
        }
    }

    /// Returns the workspaces of each shard. The replay must be finished.
    #[must_use]
    pub fn finish(self, shards: u32) -> Vec<Vec<Workspace>> {
        let mut partitioned: Vec<Vec<Workspace>> = (0..shards).map(|_| Vec::new()).collect();
        for mut workspace in self.workspaces {
            workspace.begin_generation();
            partitioned[shard_of(workspace.id(), shards) as usize].push(workspace);
        }
        partitioned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op<'a>(workspace: &'a str, value: &'a str, timestamp: u64, seq: u64) -> LoggedOp<'a> {
        LoggedOp {
            workspace,
            key: "key",
            change: Change::write(value),
            seq: Seq::new(seq),
            timestamp,
        }
    }

    #[test]
    fn the_same_workspaces_result_however_the_ops_are_split() {
        let ops = [
            op("a", "1", 5, 1),
            op("b", "2", 5, 1),
            op("a", "3", 7, 2),
            op("a", "4", 6, 3),
            op("b", "5", 5, 2),
        ];
        for split in 0..1 << ops.len() {
            let mut replays = [Replay::new(1), Replay::new(1)];
            for (place, op) in ops.iter().enumerate() {
                replays[split >> place & 1].visit(op);
            }
            for replay in &mut replays {
                replay.finish_restore();
            }
            let [mut replay, other] = replays;
            replay.merge(other);
            let shards = replay.finish(3);
            for (id, value, seq) in [("a", "3", 3), ("b", "2", 2)] {
                let workspaces = &shards[shard_of(id, 3) as usize];
                let workspace = workspaces.iter().find(|workspace| workspace.id() == id);
                let workspace = workspace.expect("the owning shard has the workspace");
                let entry = workspace.get("key").expect("the workspace has the key");
                assert_eq!((entry.value(), workspace.seq().get()), (value, seq));
            }
            assert_eq!(shards.iter().map(Vec::len).sum::<usize>(), 2);
        }
    }

    #[test]
    fn groups_produce_the_same_state_as_single_ops() {
        let mut replay = Replay::new(1);
        let mut wanted: Vec<Workspace> = Vec::new();
        for number in 0..10 * GROUP_OPS as u64 + 5 {
            // Keys that occur twice in a group, new ones, and older timestamps. A few ops are long.
            let (id, key) = (
                format!("w{}", number % 3),
                format!("k{}", number * number % 90),
            );
            let value = "1".repeat(1 + usize::from(number % 50 == 0) * GROUP_BYTES);
            let (timestamp, seq) = (number * 7 % 100, Seq::new(number + 1));
            replay.visit(&LoggedOp {
                workspace: &id,
                key: &key,
                change: Change::write(&value),
                seq,
                timestamp,
            });
            let held = wanted.iter().position(|workspace| workspace.id() == id);
            let held = held.unwrap_or_else(|| {
                wanted.push(Workspace::new(&id, 2));
                wanted.len() - 1
            });
            wanted[held].restore(&key, &Change::write(&value), timestamp, seq);
        }
        replay.finish_restore();
        let partitioned = replay.finish(1).swap_remove(0);
        assert_eq!(partitioned.len(), wanted.len());
        for (workspace, mut wanted) in partitioned.iter().zip(wanted) {
            wanted.finish_restore();
            let state = |workspace: &Workspace| {
                let (mut init, id) = (Vec::new(), workspace.id().to_owned());
                workspace.put_init(&mut init);
                (id, workspace.seq(), workspace.log_bytes(), init)
            };
            assert_eq!(state(workspace), state(&wanted));
        }
    }

    #[test]
    fn a_group_is_bounded_in_ops_and_bytes() {
        let mut replay = Replay::new(1);
        for seq in 1..=GROUP_OPS as u64 {
            assert_eq!(replay.group.len() as u64, seq - 1);
            replay.visit(&op("w", "1", seq, seq));
        }
        assert!(replay.group.is_empty() && replay.texts.is_empty());
        replay.visit(&op("w", &"1".repeat(8 * GROUP_BYTES), 90, 90));
        assert!(replay.group.is_empty() && replay.texts.is_empty());
        assert!(replay.texts.capacity() <= 2 * GROUP_BYTES);
    }
}
