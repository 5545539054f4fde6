//! Parts of a state for version 2 clients, each encoded once for the clients that need it at about
//! the same time.
//!
//! A version 2 client receives a state as the entries after a seq, in the order of their last
//! change. So clients that join together need the same parts: each part begins where the one before
//! it ended.
//!
//! A part may be sent to a client although the workspace has changed since it was encoded: an
//! overwritten entry follows later with its new value, and the client keeps the newer one. Only a
//! delete is different, because a full state lists no tombstones from before the join
//! ([`StateChunkCache::find`]).

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::fanout::encoded_state::Chunk;
use crate::core::fanout::room::RoomId;
use crate::core::state::workspace::Workspace;
use crate::limits::{STATE_CHUNK_STALE_OPS_MAX, STATE_CHUNKS_KEPT_BYTES_MAX};
use crate::log::position::LogPosition;
use crate::seq::Seq;

/// The key of a part: the room, and the seq after which the part begins.
type PartKey = (RoomId, Seq);

/// An encoded part of a state.
#[derive(Debug, Clone)]
pub(in crate::core) struct StatePart {
    /// The frames.
    pub chunk: Chunk,
    /// The seq of the last entry in it.
    pub until: Seq,
    /// The workspace's seq when it was encoded.
    pub encoded_at: Seq,
    /// The seq up to which it lists no tombstones.
    pub cutoff: Seq,
    /// Whether it lists any tombstones.
    pub has_tombstones: bool,
    /// Whether tombstones were left out of it, because they are at or before `cutoff`.
    pub lacks_tombstones: bool,
    /// The slot of its last entry.
    pub hint: u32,
    /// The log position that must be visible before it may be sent.
    pub visible_from: LogPosition,
    /// The number of entries and tombstones.
    pub keys: u64,
}

/// The recently encoded parts.
///
/// Invariant: the parts in `kept` do not cost more than the limit in total, unless there is only
/// one.
#[derive(Default)]
pub(in crate::core) struct StateChunkCache {
    parts: HashMap<PartKey, CachedPart, FixedState>,
    /// The number of parts at which those that nobody holds are removed.
    sweep_at: usize,
    /// The newest parts, which are kept although no client is being sent them.
    kept: VecDeque<Chunk>,
    kept_bytes: usize,
}

struct CachedPart {
    chunk: Weak<Vec<u8>>,
    part: StatePart,
}

/// Returns the memory of a part that is kept. Even an empty part costs some.
fn kept_cost(chunk: &Chunk) -> usize {
    chunk.len() + size_of::<(PartKey, CachedPart)>()
}

impl StateChunkCache {
    /// Returns an encoded part after `since` that may be sent to a client, if there is one.
    /// `cutoff` is the seq up to which the client must not be sent tombstones.
    ///
    /// A key in the part may have been deleted since it was encoded. Its tombstone must then reach
    /// the client later, so it must be newer than `cutoff`.
    pub fn find(
        &self,
        room_id: RoomId,
        workspace: &Workspace,
        since: Seq,
        cutoff: Seq,
    ) -> Option<StatePart> {
        let cached = self.parts.get(&(room_id, since))?;
        let part = &cached.part;
        let shows_no_ghost = part.encoded_at >= cutoff.min(workspace.last_delete_seq());
        let shows_right_tombstones = match part.cutoff.cmp(&cutoff) {
            Ordering::Less => !part.has_tombstones,
            Ordering::Equal => true,
            Ordering::Greater => !part.lacks_tombstones,
        };
        let is_fresh = workspace.seq() >= part.encoded_at
            && workspace.seq().ops_since(part.encoded_at) <= STATE_CHUNK_STALE_OPS_MAX;
        if !(shows_no_ghost && shows_right_tombstones && is_fresh) {
            return None;
        }
        let chunk = cached.chunk.upgrade()?;
        Some(StatePart {
            chunk,
            ..part.clone()
        })
    }

    /// Adds a part that was just encoded.
    pub fn add(&mut self, room_id: RoomId, since: Seq, part: &StatePart) {
        let key = (room_id, since);
        // The parts are scanned again only when they may have doubled, which pays for the scan.
        if self.parts.len() >= self.sweep_at {
            self.parts
                .retain(|_, cached| cached.chunk.strong_count() > 0);
            self.sweep_at = 2 * (self.parts.len() + 16);
        }
        let cached = CachedPart {
            chunk: Rc::downgrade(&part.chunk),
            part: StatePart {
                chunk: Chunk::default(),
                ..part.clone()
            },
        };
        self.parts.insert(key, cached);
        self.kept_bytes += kept_cost(&part.chunk);
        self.kept.push_back(Rc::clone(&part.chunk));
        while self.kept_bytes > STATE_CHUNKS_KEPT_BYTES_MAX && self.kept.len() > 1 {
            let oldest = self.kept.pop_front().expect("there are at least two");
            self.kept_bytes -= kept_cost(&oldest);
        }
    }

    /// Removes the parts of a room that is removed, whose id may be reused.
    pub fn forget_room(&mut self, room_id: RoomId) {
        if !self.parts.is_empty() {
            self.parts.retain(|(held, _), _| *held != room_id);
        }
    }

    /// Drops the parts that are not being sent to any client.
    pub fn release(&mut self) {
        self.kept.clear();
        self.kept_bytes = 0;
    }

    /// Removes everything.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Checks the invariant.
    ///
    /// # Panics
    /// If it is violated.
    pub fn invariants(&self) {
        let bytes: usize = self.kept.iter().map(kept_cost).sum();
        assert_eq!(bytes, self.kept_bytes);
        assert!(bytes <= STATE_CHUNKS_KEPT_BYTES_MAX || self.kept.len() == 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_parts_are_not_kept_forever() {
        let mut cache = StateChunkCache::default();
        for since in 0..100_000 {
            let part = StatePart {
                chunk: Chunk::default(),
                until: Seq::new(since + 1),
                encoded_at: Seq::new(since + 1),
                cutoff: Seq::new(since + 1),
                has_tombstones: false,
                lacks_tombstones: true,
                hint: 0,
                visible_from: LogPosition::NONE,
                keys: 0,
            };
            cache.add(RoomId::new(0), Seq::new(since), &part);
        }
        cache.invariants();
        let most = STATE_CHUNKS_KEPT_BYTES_MAX / 64;
        assert!(cache.kept.len() < most && cache.parts.len() < 3 * most);
    }
}
