//! A workspace on its shard: the state, the frames of its recent past, and who is in it.

use std::rc::{Rc, Weak};

use crate::core::outbox::View;
use crate::core::window::{Chunk, ChunkPool, Window};
use crate::core::workspace::Workspace;
use crate::wire::message;

/// An init message as it was encoded at one point of the order of the ops.
struct Snapshot {
    chunk: Weak<Vec<u8>>,
    seq: u64,
    at: u64,
    gate: u64,
}

/// What a client that joins is sent, and from where on it follows the window.
pub(crate) struct Init {
    pub chunk: Chunk,
    pub at: u64,
    pub gate: u64,
}

/// A workspace on its shard.
pub(crate) struct Room {
    pub workspace: Workspace,
    pub window: Window,
    /// The slots of the sessions in it.
    pub members: Vec<u32>,
    /// It stands in the list of rooms that have news or frames to let go.
    pub touched: bool,
    /// The window offset up to which its members were queued to be sent.
    pub announced_end: u64,
    /// The log position of its last op; 0 where that came from the disk.
    position: u64,
    snapshot: Option<Snapshot>,
}

impl Room {
    pub fn new(workspace: Workspace) -> Self {
        let window = Window::new(workspace.seq());
        Self {
            workspace,
            window,
            members: Vec::new(),
            touched: false,
            announced_end: 0,
            position: 0,
            snapshot: None,
        }
    }

    /// The position that must be visible before the newest op may be shown.
    pub fn gate(&self) -> u64 {
        self.position
    }

    /// What may be shown now.
    pub fn view(&mut self, visible_position: u64) -> View<'_> {
        View {
            visible_end: self.window.visible_end(visible_position),
            window: &mut self.window,
        }
    }

    /// Encodes the op that just won, once for all members; gives the offsets of its frame. Without
    /// another member than its sender there is nobody to tell.
    pub fn broadcast(
        &mut self,
        key: &str,
        value: &str,
        timestamp: u64,
        position: u64,
        pool: &mut ChunkPool,
    ) -> (u64, u64) {
        self.position = position;
        let start = self.window.end();
        let bytes = message::op_frame_bytes(key, value, timestamp);
        self.window
            .push(pool, self.workspace.seq(), position, bytes, |out| {
                message::put_op(out, key, value, timestamp);
            });
        (start, self.window.end())
    }

    /// The whole state. One encoding serves all who join while it is still on its way to anyone, as
    /// long as the frames since are at hand.
    pub fn init(&mut self) -> Init {
        if let Some(init) = self.shared_init() {
            return init;
        }
        let mut bytes = Vec::new();
        self.workspace.put_init(&mut bytes);
        let init = Init {
            chunk: Rc::new(bytes),
            at: self.window.end(),
            gate: self.position,
        };
        let chunk = Rc::downgrade(&init.chunk);
        self.snapshot = Some(Snapshot {
            chunk,
            seq: self.workspace.seq(),
            at: init.at,
            gate: init.gate,
        });
        init
    }

    fn shared_init(&self) -> Option<Init> {
        let snapshot = self.snapshot.as_ref()?;
        let chunk = snapshot.chunk.upgrade()?;
        if snapshot.seq == self.workspace.seq() {
            return Some(Init {
                chunk,
                at: self.window.end(),
                gate: snapshot.gate,
            });
        }
        let behind = self.window.end() - snapshot.at;
        let cheap = snapshot.at >= self.window.start() && behind <= chunk.len() as u64 / 2;
        cheap.then_some(Init {
            chunk,
            at: snapshot.at,
            gate: snapshot.gate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE_BYTES: usize = 2000;

    fn write(room: &mut Room, pool: &mut ChunkPool, key: &str, value: &str) {
        let timestamp = room.workspace.seq() + 1;
        room.workspace.apply(key, value, timestamp, 0);
        room.broadcast(key, value, timestamp, timestamp * 10, pool);
    }

    #[test]
    fn one_encoding_of_init_serves_all_who_join_while_it_is_cheap() {
        let frame_fixed_bytes = message::op_frame_bytes("k", &"1".repeat(500), 3) - 500;
        // What was written since, as frame bytes beyond half of the init message; whether the
        // window still has it; whether the encoding is still good.
        for (over_half_bytes, is_kept, is_shared) in [
            (None, true, true),
            (None, false, true),
            (Some(-400), true, true),
            (Some(-400), false, false),
            (Some(0), true, true),
            (Some(1), true, false),
        ] {
            let mut pool = ChunkPool::default();
            let mut room = Room::new(Workspace::new("w", 1));
            write(&mut room, &mut pool, "j", "1");
            write(&mut room, &mut pool, "k", &"1".repeat(STATE_BYTES));
            let first = room.init();
            assert_eq!((first.at, first.gate), (room.window.end(), 20));
            if let Some(over_half_bytes) = over_half_bytes {
                let frame_bytes = (first.chunk.len() / 2).strict_add_signed(over_half_bytes);
                let value = "1".repeat(frame_bytes - frame_fixed_bytes);
                write(&mut room, &mut pool, "k", &value);
                assert_eq!(room.window.end() - first.at, frame_bytes as u64);
            }
            if !is_kept {
                room.window.drop_before(room.window.end(), &mut pool);
            }
            let second = room.init();
            let case = format!("{over_half_bytes:?} {is_kept}");
            assert_eq!(Rc::ptr_eq(&first.chunk, &second.chunk), is_shared, "{case}");
            let expected = if is_shared {
                (first.at, first.gate)
            } else {
                (room.window.end(), 30)
            };
            assert_eq!((second.at, second.gate), expected, "{case}");
        }
    }

    #[test]
    fn an_init_that_is_on_its_way_to_nobody_is_let_go() {
        let mut room = Room::new(Workspace::new("w", 1));
        let first = Rc::downgrade(&room.init().chunk);
        assert!(first.upgrade().is_none());
        assert!(room.init().chunk.ends_with(b"{}}"));
    }
}
