//! A workspace on its shard: its state, and for each version of the protocol in use, its recent
//! frames and its members.

use std::rc::Rc;

use crate::core::fanout::behind_members::BehindMembers;
use crate::core::fanout::outbox::View;
use crate::core::fanout::presence::Presence;
use crate::core::fanout::window::{Window, WindowPool};
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::state::workspace::{Entry, Workspace};
use crate::core::state::write_allowance::WriteAllowance;
use crate::log::position::LogPosition;
use crate::seq::Seq;
use crate::wire::ProtocolVersion;
use crate::wire::message;
use crate::wire::message::v2::{self, OpEnvelope};

/// The slot of a room in its shard's table. The slot may be reused once the room is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(u32);

impl RoomId {
    /// Returns the id of the room in this slot.
    ///
    /// # Panics
    /// If `slot` is 2^32 or more.
    #[must_use]
    pub fn new(slot: usize) -> Self {
        Self(u32::try_from(slot).expect("fewer rooms than 2^32"))
    }

    /// Returns the slot of the room.
    #[must_use]
    pub fn slot(self) -> usize {
        self.0 as usize
    }
}

/// An op as clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShownOp<'a> {
    pub key: &'a str,
    /// The JSON text of the value. `None` if the op is a delete.
    pub value: Option<&'a str>,
    pub timestamp: u64,
}

impl<'a> ShownOp<'a> {
    /// Returns the op that produced an entry.
    pub fn of(entry: Entry<'a>) -> Self {
        let (key, value) = entry.key_and_value();
        Self {
            key,
            value: (!entry.is_deleted()).then_some(value),
            timestamp: entry.timestamp(),
        }
    }

    /// Returns the length of the op's frame in a version of the protocol. Version 1 has no
    /// `envelope`.
    pub fn frame_bytes(&self, version: ProtocolVersion, envelope: OpEnvelope) -> usize {
        let Self {
            key,
            value,
            timestamp,
        } = *self;
        match version {
            ProtocolVersion::V1 => message::op_frame_bytes(key, value.unwrap_or(NULL), timestamp),
            ProtocolVersion::V2 => v2::op_frame_bytes(key, value, timestamp, envelope),
        }
    }

    /// Appends the op's frame in a version of the protocol.
    pub fn put(&self, out: &mut Vec<u8>, version: ProtocolVersion, envelope: OpEnvelope) {
        let Self {
            key,
            value,
            timestamp,
        } = *self;
        match version {
            ProtocolVersion::V1 => message::put_op(out, key, value.unwrap_or(NULL), timestamp),
            ProtocolVersion::V2 => v2::put_op(out, key, value, timestamp, envelope),
        }
    }
}

/// The value that represents a delete to version 1 clients, which know no deletes (P121).
const NULL: &str = "null";

/// The recent frames of a room in one version of the protocol, and the members that speak it.
pub(crate) struct Feed {
    pub window: Window,
    /// The slots of the sessions.
    pub members: Vec<u32>,
    /// The members that are behind.
    pub behind: BehindMembers,
    /// The window offset up to which the members have been queued for sending.
    pub announced_end: WindowOffset,
    /// The log position that must be visible before all ops up to the start of the window are
    /// visible.
    begun_from: LogPosition,
}

impl Feed {
    /// Returns the seq after which a member still has to be sent the tombstones. If one of them
    /// were dropped before that, the member would keep a deleted key.
    ///
    /// A member that follows the window may still fall behind, so it needs the tombstones of all
    /// frames that it was not sent. Those of all members begin where the window does.
    pub fn tombstones_needed_after(&self) -> Option<Seq> {
        let start = self.window.start();
        let has_unsent = !self.members.is_empty() && start < self.window.end();
        let unsent = has_unsent.then(|| self.window.seq_at(start));
        unsent.into_iter().chain(self.behind.first()).min()
    }
}

/// The place of a room in the queue of rooms that become due as time passes, and its part of the
/// queue's totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RoomDeadline {
    /// The Unix time in microseconds at which the room is due.
    pub due_us: Option<u64>,
    pub tombstones_count: usize,
    pub expiries_count: usize,
}

/// A live workspace on its shard, with its feeds.
///
/// A feed is created when the first member of its version joins. It stays until the room is
/// removed, so that its offsets never repeat, but nothing is encoded for it while it has no
/// members.
pub(crate) struct Room {
    pub workspace: Workspace,
    feeds: [Option<Box<Feed>>; ProtocolVersion::ALL.len()],
    /// The named users among the members; `None` if no member has a name.
    pub presence: Option<Box<Presence>>,
    /// Whether the room is in the list of rooms that have frames to send or to drop.
    pub touched: bool,
    /// The allowance for free writes while the log is long.
    pub allowance: WriteAllowance,
    /// The next time at which a key expires or a tombstone is dropped.
    pub deadline: RoomDeadline,
    /// The log position of the room's last op; `NONE` if the op was read from disk.
    position: LogPosition,
}

impl Room {
    pub fn new(workspace: Workspace) -> Self {
        Self {
            workspace,
            feeds: [None, None],
            presence: None,
            touched: false,
            allowance: WriteAllowance::default(),
            deadline: RoomDeadline::default(),
            position: LogPosition::NONE,
        }
    }

    // ---- feeds ----

    /// Returns the feed of a version that has, or had, a member.
    pub fn feed(&self, version: ProtocolVersion) -> &Feed {
        let feed = self.feeds[version as usize].as_ref();
        feed.expect("a member has made its feed")
    }

    /// Returns the feed of a version that has, or had, a member.
    pub fn feed_mut(&mut self, version: ProtocolVersion) -> &mut Feed {
        let feed = self.feeds[version as usize].as_mut();
        feed.expect("a member has made its feed")
    }

    /// Returns the feeds, each with its version.
    pub fn feeds(&self) -> impl Iterator<Item = (ProtocolVersion, &Feed)> {
        let feeds = ProtocolVersion::ALL.into_iter().zip(&self.feeds);
        feeds.filter_map(|(version, feed)| Some((version, feed.as_deref()?)))
    }

    /// Returns the feeds.
    pub fn feeds_mut(&mut self) -> impl Iterator<Item = &mut Feed> {
        self.feeds.iter_mut().filter_map(Option::as_deref_mut)
    }

    /// Returns the window offset at the end of a version's feed.
    pub fn window_end(&self, version: ProtocolVersion) -> WindowOffset {
        let feed = self.feeds[version as usize].as_ref();
        feed.map_or(WindowOffset::START, |feed| feed.window.end())
    }

    /// Returns the oldest offset of a version's feed, if it has members, in which case it contains
    /// every op after that offset.
    pub fn window_start(&self, version: ProtocolVersion) -> Option<WindowOffset> {
        let feed = self.feeds[version as usize].as_ref();
        let feed = feed.filter(|feed| !feed.members.is_empty())?;
        Some(feed.window.start())
    }

    /// Returns the number of members.
    pub fn members_count(&self) -> usize {
        self.feeds().map(|(_, feed)| feed.members.len()).sum()
    }

    /// Prepares the feed of a version for a session that is about to join.
    pub fn open_feed(&mut self, version: ProtocolVersion, pool: &mut WindowPool) {
        let feed = self.feeds[version as usize].get_or_insert_with(|| {
            Box::new(Feed {
                window: Window::default(),
                members: Vec::new(),
                behind: BehindMembers::default(),
                announced_end: WindowOffset::START,
                begun_from: LogPosition::NONE,
            })
        });
        if feed.members.is_empty() {
            // The ops since the last member left are not in the window.
            feed.window.restart(self.workspace.seq(), pool);
            (feed.announced_end, feed.begun_from) = (feed.window.end(), self.position);
        }
    }

    /// Adds the session in a slot to a feed that was opened; no op may have won since. Returns the
    /// session's index among the feed's members.
    pub fn add_member(&mut self, version: ProtocolVersion, slot: u32) -> usize {
        let members = &mut self.feed_mut(version).members;
        members.push(slot);
        members.len() - 1
    }

    // ---- users ----

    /// Records that a client with this name has joined.
    pub fn user_came(&mut self, user: Rc<str>) {
        self.presence.get_or_insert_default().add(user);
    }

    /// Records that a client with this name has left.
    pub fn user_left(&mut self, user: &str) {
        let presence = self
            .presence
            .as_mut()
            .expect("the leaving member was present");
        presence.remove(user);
        self.drop_unused_presence();
    }

    /// Frees the table of users and peers if it is empty.
    pub fn drop_unused_presence(&mut self) {
        self.presence.take_if(|presence| presence.count() == 0);
    }

    // ---- sending ----

    /// Returns the log position that must be visible before the newest op may be sent.
    pub fn visible_from(&self) -> LogPosition {
        self.position
    }

    /// Records that a record of the room other than an op ends at `position`. Answers that depend
    /// on it must wait until it is visible.
    pub fn logged_to(&mut self, position: LogPosition) {
        self.position = position;
    }

    /// Returns the window of a version's feed and the end of its visible frames.
    pub fn view(&mut self, version: ProtocolVersion, visible_position: LogPosition) -> View<'_> {
        let window = &mut self.feed_mut(version).window;
        View {
            visible_end: window.visible_end(visible_position),
            window,
        }
    }

    /// Returns the seq of the newest op before `cursor` up to which all ops are visible, if it is
    /// known.
    ///
    /// It is unknown until the op at which the window began is visible. From then on, all ops
    /// before the window are visible, since a window drops no hidden frames.
    pub fn visible_seq(
        &self,
        version: ProtocolVersion,
        cursor: WindowOffset,
        visible_position: LogPosition,
    ) -> Option<Seq> {
        let feed = self.feed(version);
        let known_end = cursor.min(feed.window.visible_end(visible_position));
        let is_known = feed.begun_from <= visible_position;
        is_known.then(|| feed.window.seq_at(known_end))
    }

    /// Returns the log position up to which a member whose cursor is at `cursor` has been sent all
    /// visible ops of others.
    pub fn sent_position(
        &self,
        version: ProtocolVersion,
        cursor: WindowOffset,
        visible_position: LogPosition,
    ) -> LogPosition {
        let next = self.feed(version).window.position_after(cursor);
        let next = next.filter(|next| *next <= visible_position);
        next.map_or(visible_position, LogPosition::before)
    }

    /// Encodes the op that just won, once for each version that has members.
    pub fn broadcast(&mut self, op: ShownOp<'_>, position: LogPosition, pool: &mut WindowPool) {
        self.position = position;
        let seq = self.workspace.seq();
        for version in ProtocolVersion::ALL {
            let feed = self.feeds[version as usize].as_mut();
            let Some(feed) = feed.filter(|feed| !feed.members.is_empty()) else {
                continue;
            };
            let envelope = OpEnvelope {
                seq: Some(seq),
                ..OpEnvelope::default()
            };
            let bytes = op.frame_bytes(version, envelope);
            feed.window.push(pool, seq, position, bytes, |out| {
                op.put(out, version, envelope);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seq_is_known_once_the_op_at_which_the_window_began_is_visible() {
        let position = LogPosition::new;
        let mut pool = WindowPool::default();
        let mut room = Room::new(Workspace::new("w", 1));
        let write = |room: &mut Room, pool: &mut WindowPool, number: u64| {
            room.workspace.apply("k", "1", number, 0);
            let shown = ShownOp {
                key: "k",
                value: Some("1"),
                timestamp: number,
            };
            room.broadcast(shown, position(10 * number), pool);
        };
        write(&mut room, &mut pool, 1);
        room.open_feed(ProtocolVersion::V2, &mut pool);
        room.add_member(ProtocolVersion::V2, 0);
        let seq = |room: &Room, visible: u64| {
            let cursor = room.window_end(ProtocolVersion::V2);
            let seq = room.visible_seq(ProtocolVersion::V2, cursor, position(visible));
            seq.map(Seq::get)
        };
        assert_eq!((seq(&room, 9), seq(&room, 10)), (None, Some(1)));
        write(&mut room, &mut pool, 2);
        assert_eq!((seq(&room, 10), seq(&room, 20)), (Some(1), Some(2)));
        // The op is visible and has been sent to everyone, and a record that is not an op follows.
        let end = room.window_end(ProtocolVersion::V2);
        let window = &mut room.feed_mut(ProtocolVersion::V2).window;
        window.drop_before(end, &mut pool);
        room.logged_to(position(30));
        assert_eq!(seq(&room, 20), Some(2));
    }
}
