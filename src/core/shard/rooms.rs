//! The rooms of a shard: their table, the index by workspace, and the list of rooms with work to
//! do.

use std::ops::{Index, IndexMut};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use slab::Slab;

use crate::core::fanout::room::{Room, RoomId};
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::shard::session::State;
use crate::core::shard::sessions::Sessions;
use crate::core::state::workspace::Workspace;
use crate::log::position::LogPosition;
use crate::wire::ProtocolVersion;

/// The rooms of a shard.
///
/// Invariant: the index contains each room exactly once; every member of a room is an open session
/// of that room, and every open session is a member of its room; each room marked as touched is in
/// `touched`.
pub(super) struct Rooms {
    table: Slab<Room>,
    index: HashMap<Box<str>, RoomId, FixedState>,
    /// Rooms with ops that have not been sent to their members, or with frames that could be
    /// dropped. A removed room may still have an entry here.
    touched: Vec<RoomId>,
    /// The seed of the hash of every workspace's keys.
    hash_seed: u64,
}

impl Rooms {
    pub fn new(hash_seed: u64) -> Self {
        Self {
            table: Slab::new(),
            index: HashMap::with_hasher(FixedState::with_seed(hash_seed)),
            touched: Vec::new(),
            hash_seed,
        }
    }

    // ---- the table ----

    pub fn insert(&mut self, room: Room) -> RoomId {
        let workspace = Box::from(room.workspace.id());
        let id = RoomId::new(self.table.insert(room));
        self.index.insert(workspace, id);
        id
    }

    pub fn find(&self, workspace: &str) -> Option<RoomId> {
        self.index.get(workspace).copied()
    }

    /// Returns the room of a workspace, creating an empty one if there is none.
    pub fn find_or_insert(&mut self, workspace: &str) -> RoomId {
        self.find(workspace).unwrap_or_else(|| {
            let workspace = Workspace::new(workspace, self.hash_seed);
            self.insert(Room::new(workspace))
        })
    }

    pub fn get_mut(&mut self, id: RoomId) -> Option<&mut Room> {
        self.table.get_mut(id.slot())
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (RoomId, &Room)> {
        let rooms = self.table.iter();
        rooms.map(|(slot, room)| (RoomId::new(slot), room))
    }

    // ---- members ----

    /// Adds the session in a slot to the members of a room that speak this version. Returns the
    /// session's index among them.
    pub fn add_member(&mut self, id: RoomId, version: ProtocolVersion, slot: u32) -> u32 {
        let member = self[id].add_member(version, slot);
        u32::try_from(member).expect("fewer members than descriptors")
    }

    /// Removes the member at an index. Returns the slot of the session that was moved to this
    /// index, if any.
    pub fn remove_member(
        &mut self,
        id: RoomId,
        version: ProtocolVersion,
        member: u32,
    ) -> Option<u32> {
        let members = &mut self[id].feed_mut(version).members;
        members.swap_remove(member as usize);
        members.get(member as usize).copied()
    }

    /// Removes a room that has no members and no state. Returns whether it was removed. Its id may
    /// then be reused for another room.
    pub fn remove_if_unused(&mut self, id: RoomId) -> bool {
        let room = &self[id];
        let is_unused = room.members_count() == 0 && room.workspace.is_untouched();
        if is_unused {
            let room = self.table.remove(id.slot());
            self.index.remove(room.workspace.id());
        }
        is_unused
    }

    // ---- touched rooms ----

    /// Marks a room for examination during the turn, because it has ops to announce or frames to
    /// drop.
    pub fn touch(&mut self, id: RoomId) {
        let room = &mut self.table[id.slot()];
        if !room.touched {
            room.touched = true;
            self.touched.push(id);
        }
    }

    /// Calls `announce` for each member of the rooms in which ops became visible since the last
    /// call, with the member's slot and the window offset up to which ops are visible.
    pub fn announce(
        &mut self,
        visible_position: LogPosition,
        mut announce: impl FnMut(u32, WindowOffset),
    ) {
        for id in &self.touched {
            let Some(room) = self.table.get_mut(id.slot()) else {
                continue;
            };
            for feed in room.feeds_mut() {
                let visible_end = feed.window.visible_end(visible_position);
                // Each op is announced once, however many turns its room stays touched.
                if visible_end > feed.announced_end {
                    feed.announced_end = visible_end;
                    for slot in &feed.members {
                        announce(*slot, visible_end);
                    }
                }
            }
        }
    }

    /// Calls `is_touched` for each touched room, which returns whether the room stays touched.
    pub fn retain_touched(&mut self, mut is_touched: impl FnMut(&mut Room) -> bool) {
        self.touched.retain(|id| {
            let room = self.table.get_mut(id.slot());
            room.filter(|room| room.touched).is_some_and(|room| {
                room.touched = is_touched(room);
                room.touched
            })
        });
    }

    // ---- failures and checks ----

    /// Removes all rooms. A panic may have left the members and the index inconsistent, so they are
    /// dropped as a whole rather than session by session.
    pub fn reset(&mut self) {
        self.table.clear();
        self.index.clear();
        self.touched.clear();
    }

    /// Checks the invariant.
    pub fn invariants(&self, sessions: &Sessions) {
        assert_eq!(
            self.table.len(),
            self.index.len(),
            "the index and the table of rooms differ in length"
        );
        let mut members_count = 0;
        for (slot, room) in &self.table {
            let id = RoomId::new(slot);
            assert_eq!(self.find(room.workspace.id()), Some(id), "a room is found");
            for (version, feed) in room.feeds() {
                let behind = feed.members.iter().filter_map(|slot| {
                    let session = &sessions[sessions.id_at(*slot)?];
                    Some((session.tombstones_needed_after()?, *slot))
                });
                feed.behind.invariants(behind);
                for (member, slot) in (0..).zip(&feed.members) {
                    let session = sessions.id_at(*slot).map(|id| &sessions[id]);
                    let state = session.map(|session| (session.state(), session.version));
                    assert_eq!(
                        state,
                        Some((State::Open { room: id, member }, version)),
                        "a member of {id:?}"
                    );
                    members_count += 1;
                }
            }
            assert!(
                !room.touched || self.touched.contains(&id),
                "{id:?} is not in the list of touched rooms"
            );
        }
        assert_eq!(
            members_count,
            sessions.counts().members,
            "the members of all rooms differ from the session count"
        );
    }
}

impl Index<RoomId> for Rooms {
    type Output = Room;

    fn index(&self, id: RoomId) -> &Room {
        &self.table[id.slot()]
    }
}

impl IndexMut<RoomId> for Rooms {
    fn index_mut(&mut self, id: RoomId) -> &mut Room {
        &mut self.table[id.slot()]
    }
}

#[cfg(test)]
impl Rooms {
    pub fn touched(&self) -> &[RoomId] {
        &self.touched
    }

    /// Makes the index refer to a room that does not exist, which would be a bug in the server.
    pub fn break_index(&mut self, workspace: &str) {
        self.index.insert(workspace.into(), RoomId::new(99));
    }
}
