//! A workspace on its shard: its state, its recent frames, and its members.

use std::rc::Rc;

use crate::core::fanout::outbox::View;
use crate::core::fanout::presence::Presence;
use crate::core::fanout::window::{Window, WindowPool};
use crate::core::fanout::window_offset::WindowOffset;
use crate::core::state::workspace::Workspace;
use crate::core::state::write_allowance::WriteAllowance;
use crate::log::position::LogPosition;
use crate::wire::message;

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

/// A live workspace on its shard, with its window and members.
pub(crate) struct Room {
    pub workspace: Workspace,
    pub window: Window,
    /// The slots of the sessions in the room.
    pub members: Vec<u32>,
    /// The named users among the members; `None` if no member has a name.
    pub presence: Option<Box<Presence>>,
    /// Whether the room is in the list of rooms that have frames to send or to drop.
    pub touched: bool,
    /// The window offset up to which the members have been queued for sending.
    pub announced_end: WindowOffset,
    /// The allowance for free writes while the log is long.
    pub allowance: WriteAllowance,
    /// The log position of the room's last op; `NONE` if the op was read from disk.
    position: LogPosition,
}

impl Room {
    pub fn new(workspace: Workspace) -> Self {
        let window = Window::new(workspace.seq());
        Self {
            workspace,
            window,
            members: Vec::new(),
            presence: None,
            touched: false,
            announced_end: WindowOffset::START,
            allowance: WriteAllowance::default(),
            position: LogPosition::NONE,
        }
    }

    /// Records that a client with this user name has joined.
    pub fn user_came(&mut self, user: Rc<str>) {
        self.presence.get_or_insert_default().add(user);
    }

    /// Records that a client with this user name has left.
    pub fn user_left(&mut self, user: &str) {
        let presence = self
            .presence
            .as_mut()
            .expect("the leaving member was present");
        presence.remove(user);
        self.presence.take_if(|presence| presence.count() == 0);
    }

    /// Returns the log position that must be visible before the newest op may be sent.
    pub fn visible_from(&self) -> LogPosition {
        self.position
    }

    /// Returns the window and the end of its visible frames.
    pub fn view(&mut self, visible_position: LogPosition) -> View<'_> {
        View {
            visible_end: self.window.visible_end(visible_position),
            window: &mut self.window,
        }
    }

    /// Encodes the op that just won, once for all members, and returns the offsets of its frame.
    pub fn broadcast(
        &mut self,
        key: &str,
        value: &str,
        timestamp: u64,
        position: LogPosition,
        pool: &mut WindowPool,
    ) -> (WindowOffset, WindowOffset) {
        self.position = position;
        let start = self.window.end();
        let bytes = message::op_frame_bytes(key, value, timestamp);
        self.window
            .push(pool, self.workspace.seq(), position, bytes, |out| {
                message::put_op(out, key, value, timestamp);
            });
        (start, self.window.end())
    }
}
