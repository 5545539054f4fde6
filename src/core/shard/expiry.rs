//! Time-driven work of a shard: deleting expired keys, and dropping tombstones whose retention has
//! ended.
//!
//! An expiry is one of the server's own ops: a delete one microsecond later than the write. It is
//! logged and made visible like a client's op, but no client is notified if it is lost with the
//! log: the key then reappears with its deadline, and expires again.
//!
//! Requests for a workspace wait while one of its expired keys is not deleted yet, so that keys
//! that expired while the server was down are not served. They do not wait while the log cannot
//! grow (a full disk, or a log that waits for compaction): that may last a long time, and a state
//! with an expired key in it is more useful than none.

use crate::core::fanout::room::RoomId;
use crate::core::shard::apply::WonOp;
use crate::core::shard::contract::{Clock, Handoff};
use crate::core::shard::session::SessionId;
use crate::core::shard::shard_log::Append;
use crate::core::shard::{Drain, Shard};
use crate::core::state::workspace::{Edit, Source, Verdict};
use crate::limits::{EXPIRIES_PER_TURN_MAX, TOMBSTONES_RETRY_US};
use crate::log::record::{Change, LoggedOp};

impl Shard {
    /// Deletes expired keys and drops tombstones, at most [`EXPIRIES_PER_TURN_MAX`] in total. The
    /// rest follow in later turns.
    pub(super) fn expire(&mut self, clock: Clock) {
        self.expiry.begin_turn(clock);
        let mut left = EXPIRIES_PER_TURN_MAX;
        while left > 0
            && self.may_expire()
            && let Some(room_id) = self.expiry.next_due()
        {
            let changes_count = self.expire_in(room_id, left, clock);
            // Finding that nothing was due in a room also takes time.
            left = left.saturating_sub(changes_count.max(1));
        }
        let is_blocked = self.can_log_expiries() && self.expiry.next_due().is_some();
        if left < EXPIRIES_PER_TURN_MAX || !is_blocked {
            self.admission.examine_expiring();
        }
    }

    /// Returns whether there is a due room that can be processed now.
    pub(super) fn has_due_room(&self) -> bool {
        self.may_expire() && self.expiry.next_due().is_some()
    }

    /// Returns whether the server's own changes can be logged, now or after the next commit.
    fn can_log_expiries(&self) -> bool {
        self.log.is_serving()
            && self.drain == Drain::No
            && !self.log.is_disk_full()
            && !self.log.is_stopped()
    }

    fn may_expire(&self) -> bool {
        self.can_log_expiries() && !self.log.is_full()
    }

    /// Makes at most `most` changes to a room that is due, and returns their number.
    fn expire_in(&mut self, room_id: RoomId, most: usize, clock: Clock) -> usize {
        let mut count = 0;
        while count < most && !self.log.is_full() && self.delete_expired(room_id, clock) {
            count += 1;
        }
        if count < most && !self.log.is_full() {
            count += self.drop_tombstones(room_id, most - count, clock);
        }
        let room = &mut self.rooms[room_id];
        self.expiry.update(room_id, room);
        if count == 0 && self.expiry.next_due() == Some(room_id) {
            // A member still needs the tombstone.
            let until_us = clock.unix_us + TOMBSTONES_RETRY_US;
            self.expiry.defer(room_id, room, until_us);
        }
        count
    }

    /// Deletes a room's earliest expired key, if it has one.
    fn delete_expired(&mut self, room_id: RoomId, clock: Clock) -> bool {
        let room = &mut self.rooms[room_id];
        let Some((key, timestamp)) = room.workspace.next_expired(clock.unix_us) else {
            return false;
        };
        // The workspace changes while the key is in use. The buffer is kept for the next key.
        let mut buffer = std::mem::take(&mut self.expired_key);
        buffer.clear();
        buffer.push_str(key);
        let (key, timestamp) = (buffer.as_str(), timestamp + 1);
        let live_bytes_before = room.workspace.log_bytes();
        let change = Change::Delete {
            deleted_at_us: clock.unix_us,
        };
        let edit = Edit {
            key,
            change,
            timestamp,
            if_timestamp: None,
        };
        let source = Source {
            writer: 0,
            mark: self.log.mark(),
        };
        self.snapshots
            .preserve(room_id, &room.workspace, key, timestamp);
        let verdict = room.workspace.apply_within(u64::MAX, &edit, source);
        let Verdict::Won { seq, replaced } = verdict else {
            unreachable!("a delete that is later than the entry wins: {verdict:?}");
        };
        let won = WonOp {
            edit,
            seq,
            replaced,
            live_bytes_before,
            sender: None,
        };
        self.show_won(room_id, &won, clock);
        self.counters.expiries += 1;
        self.expired_key = buffer;
        true
    }

    /// Drops the tombstones of a room whose retention has ended, at most `most` of them, and logs
    /// the floor that they leave behind. Returns their number.
    ///
    /// The marks of the dropped tombstones stay counted as live. Only an op that supersedes an op
    /// in the log may let its segment be swept, and nothing supersedes a dropped tombstone: an
    /// older write of its key may be in an earlier segment, and would come back.
    fn drop_tombstones(&mut self, room_id: RoomId, most: usize, clock: Clock) -> usize {
        let retention_us = self.expiry.retention_us();
        let drop_us = self.rooms[room_id].workspace.next_drop_us(retention_us);
        if drop_us.is_none_or(|drop_us| drop_us > clock.unix_us) {
            return 0;
        }
        let room = &mut self.rooms[room_id];
        let feeds = room.feeds();
        let needed_after = feeds
            .filter_map(|(_, feed)| feed.tombstones_needed_after())
            .min();
        let live_bytes_before = room.workspace.log_bytes();
        let dropped = room.workspace.drop_tombstones(
            (clock.unix_us, retention_us),
            most,
            needed_after,
            self.log.mark(),
        );
        let (Some(dropped), Some(floor)) = (dropped, room.workspace.floor()) else {
            return 0;
        };
        let append = Append {
            record: LoggedOp {
                workspace: room.workspace.id(),
                key: "",
                change: Change::Floor {
                    dropped_seq: floor.dropped_seq,
                },
                seq: room.workspace.seq(),
                timestamp: floor.timestamp,
            },
            replaced: dropped.replaced,
            live_bytes: (live_bytes_before, room.workspace.log_bytes()),
            sender: None,
        };
        let position = self.log.append(&append, &mut room.allowance, clock.now_us);
        // Answers that depend on the floor wait until it is durable.
        room.logged_to(position);
        self.counters.floors += 1;
        self.counters.tombstones_dropped += dropped.count;
        usize::try_from(dropped.count).expect("at most `most`")
    }

    // ---- requests that wait ----

    /// Returns whether a request for a workspace must wait until its expired keys are deleted.
    pub(super) fn awaits_expiry(&self, workspace: &str, clock: Clock) -> bool {
        let room = self.rooms.find(workspace).map(|id| &self.rooms[id]);
        room.is_some_and(|room| room.workspace.has_expired(clock.unix_us))
            && self.can_log_expiries()
    }

    /// Makes a request wait until the expired keys of its workspace are deleted.
    pub(super) fn let_wait_for_expiry(&mut self, id: SessionId, mut handoff: Handoff) {
        self.begin_waiting(id, &mut handoff);
        self.admission
            .wait_for_expiry(id, &self.sessions[id], handoff);
        self.reads.receive(id);
    }
}
