//! The rooms of a shard in the order of their next deadlines: the expiry of a key, or the end of
//! the retention of a tombstone.
//!
//! A room without such keys is not in the queue. A room appears in the queue only once, regardless
//! of its number of keys, with their earliest deadline, which the workspace maintains. So a key
//! with a deadline costs memory in its workspace, but nothing per turn.

use std::collections::BTreeSet;

use crate::core::fanout::room::{Room, RoomDeadline, RoomId};
use crate::core::shard::contract::Clock;
use crate::core::shard::rooms::Rooms;
use crate::limits::WALL_CLOCK_CHECK_US;

/// The rooms that become due as time passes. The wall clock decides, because a deadline must
/// survive a restart.
///
/// Invariant: each room with a deadline is in the queue once, no later than its next key expires;
/// the totals are the sums over all rooms.
pub(super) struct ExpiryQueue {
    /// The time for which tombstones are kept.
    retention_us: u64,
    deadlines: BTreeSet<(u64, RoomId)>,
    /// The shard's clock and the wall clock at the last turn.
    clock: Clock,
    tombstones_count: usize,
    expiries_count: usize,
}

impl ExpiryQueue {
    pub fn new(retention_us: u64) -> Self {
        Self {
            retention_us,
            deadlines: BTreeSet::new(),
            clock: Clock::default(),
            tombstones_count: 0,
            expiries_count: 0,
        }
    }

    pub fn retention_us(&self) -> u64 {
        self.retention_us
    }

    /// Records the time of a turn.
    pub fn begin_turn(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Moves a room to its current position in the queue. Must be called after each change to its
    /// workspace.
    pub fn update(&mut self, id: RoomId, room: &mut Room) {
        let due_us = room.workspace.next_due_us(self.retention_us);
        self.place(id, room, due_us);
    }

    /// Moves a room whose tombstones cannot be dropped yet to `until_us`, or to the expiry of its
    /// next key if that is earlier.
    pub fn defer(&mut self, id: RoomId, room: &mut Room, until_us: u64) {
        let expiry_us = room.workspace.next_expiry_us();
        let due_us = expiry_us.map_or(until_us, |expiry_us| expiry_us.min(until_us));
        self.place(id, room, Some(due_us));
    }

    fn place(&mut self, id: RoomId, room: &mut Room, due_us: Option<u64>) {
        let now = RoomDeadline {
            due_us,
            tombstones_count: room.workspace.tombstones_count(),
            expiries_count: room.workspace.expiries_count(),
        };
        // Most ops are on rooms without deadlines, and cost only this comparison.
        if now == room.deadline {
            return;
        }
        let before = std::mem::replace(&mut room.deadline, now);
        if before.due_us != now.due_us {
            if let Some(due_us) = before.due_us {
                self.deadlines.remove(&(due_us, id));
            }
            self.deadlines.extend(now.due_us.map(|due_us| (due_us, id)));
        }
        self.tombstones_count =
            self.tombstones_count - before.tombstones_count + now.tombstones_count;
        self.expiries_count = self.expiries_count - before.expiries_count + now.expiries_count;
    }

    /// Returns the room that has been due for longest, if any was due at the time of the turn.
    pub fn next_due(&self) -> Option<RoomId> {
        let (due_us, id) = *self.deadlines.first()?;
        (due_us <= self.clock.unix_us).then_some(id)
    }

    /// Returns the time on the shard's clock at which a turn must begin, unless a room is due
    /// already.
    ///
    /// The wall clock may be set while the shard sleeps. Sleeps that wait for a wall clock deadline
    /// are therefore kept short, and a turn that begins too early finds nothing due.
    pub fn next_turn_us(&self) -> Option<u64> {
        let (due_us, _) = *self.deadlines.first()?;
        let wait_us = due_us.checked_sub(self.clock.unix_us)?;
        (wait_us > 0).then(|| self.clock.now_us + wait_us.min(WALL_CLOCK_CHECK_US))
    }

    pub fn tombstones_count(&self) -> u64 {
        self.tombstones_count as u64
    }

    pub fn expiries_count(&self) -> u64 {
        self.expiries_count as u64
    }

    /// Removes all rooms.
    pub fn reset(&mut self) {
        *self = Self {
            clock: self.clock,
            ..Self::new(self.retention_us)
        };
    }

    /// Checks the invariant.
    pub fn invariants(&self, rooms: &Rooms) {
        let (mut rooms_count, mut tombstones_count, mut expiries_count) = (0, 0, 0);
        for (id, room) in rooms.iter() {
            let (workspace, due_us) = (&room.workspace, room.deadline.due_us);
            let next_us = workspace.next_due_us(self.retention_us);
            assert_eq!(due_us.is_some(), next_us.is_some(), "a deadline of {id:?}");
            if let Some(due_us) = due_us {
                assert!(self.deadlines.contains(&(due_us, id)), "{id:?} is queued");
                let expiry_us = workspace.next_expiry_us();
                assert!(
                    expiry_us.is_none_or(|at_us| due_us <= at_us),
                    "{id:?} is not late"
                );
                rooms_count += 1;
            }
            tombstones_count += workspace.tombstones_count();
            expiries_count += workspace.expiries_count();
        }
        assert_eq!(self.deadlines.len(), rooms_count, "the queue of deadlines");
        let totals = (self.tombstones_count, self.expiries_count);
        assert_eq!(
            totals,
            (tombstones_count, expiries_count),
            "tombstones, expiries"
        );
    }
}
