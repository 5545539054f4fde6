//! A workspace on its shard: the state, the frames of its recent past, and who is in it.

use std::rc::{Rc, Weak};

use crate::core::outbox::View;
use crate::core::snapshot::{Snapshot, Texts, Wanted, chunk_of};
use crate::core::window::{ChunkPool, Window};
use crate::core::workspace::Workspace;
use crate::wire::message;

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
    snapshot: Snapshot,
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
            snapshot: Snapshot::default(),
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

    /// The state as it is on its way to others already, if that will do: the newest for a look; for who joins also an older one, as
    /// long as the frames since are at hand and few.
    pub fn texts_at_hand(&self, wanted: Wanted) -> Option<Texts> {
        let snapshot = &self.snapshot;
        let init = snapshot.init()?;
        let is_newest = snapshot.seq == self.workspace.seq();
        match wanted {
            Wanted::Init => {
                let behind = self.window.end() - snapshot.at;
                let is_cheap =
                    snapshot.at >= self.window.start() && behind <= init.len() as u64 / 2;
                (is_newest || is_cheap).then(|| snapshot.texts(init, None))
            }
            Wanted::Look => {
                let stamps = snapshot.stamps.upgrade().filter(|_| is_newest)?;
                Some(snapshot.texts(init, Some(stamps)))
            }
        }
    }

    /// The bytes that must be encoded for that, and those of it that are on their way to others already.
    pub fn texts_missing(&self, wanted: Wanted) -> (usize, usize) {
        let is_newest = self.snapshot.seq == self.workspace.seq();
        let held = self.snapshot.init().filter(|_| is_newest);
        let init_bytes = self.workspace.init_bytes();
        let (missing_bytes, held_bytes) = if held.is_some() {
            (0, init_bytes)
        } else {
            (init_bytes, 0)
        };
        match wanted {
            Wanted::Init => (missing_bytes, held_bytes),
            Wanted::Look => (missing_bytes + self.workspace.stamps_bytes(), held_bytes),
        }
    }

    /// The state as it is now. What of it is on its way to others already is not encoded again.
    pub fn encode_texts(&mut self, wanted: Wanted) -> Texts {
        let workspace = &self.workspace;
        let is_newest = self.snapshot.seq == workspace.seq();
        let held = self.snapshot.init().filter(|_| is_newest);
        let init = held.unwrap_or_else(|| {
            let init = chunk_of(workspace.init_bytes(), |out| workspace.put_init(out));
            self.snapshot = Snapshot {
                seq: workspace.seq(),
                at: self.window.end(),
                gate: self.position,
                init: Rc::downgrade(&init),
                stamps: Weak::new(),
            };
            init
        });
        let stamps = (wanted == Wanted::Look)
            .then(|| chunk_of(workspace.stamps_bytes(), |out| workspace.put_stamps(out)));
        if let Some(stamps) = &stamps {
            self.snapshot.stamps = Rc::downgrade(stamps);
        }
        self.snapshot.texts(init, stamps)
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

    fn texts(room: &mut Room, wanted: Wanted) -> Texts {
        let at_hand = room.texts_at_hand(wanted);
        at_hand.unwrap_or_else(|| room.encode_texts(wanted))
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
            let first = texts(&mut room, Wanted::Init);
            assert_eq!((first.at, first.gate), (room.window.end(), 20));
            if let Some(over_half_bytes) = over_half_bytes {
                let frame_bytes = (first.init.len() / 2).strict_add_signed(over_half_bytes);
                let value = "1".repeat(frame_bytes - frame_fixed_bytes);
                write(&mut room, &mut pool, "k", &value);
                assert_eq!(room.window.end() - first.at, frame_bytes as u64);
            }
            if !is_kept {
                room.window.drop_before(room.window.end(), &mut pool);
            }
            let second = texts(&mut room, Wanted::Init);
            let case = format!("{over_half_bytes:?} {is_kept}");
            assert_eq!(Rc::ptr_eq(&first.init, &second.init), is_shared, "{case}");
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
        let first = Rc::downgrade(&texts(&mut room, Wanted::Init).init);
        assert!(first.upgrade().is_none());
        let second = texts(&mut room, Wanted::Init);
        assert!(second.init.ends_with(b"{}}"));
    }

    #[test]
    fn a_look_is_the_newest_state_and_shares_what_is_on_its_way() {
        let mut pool = ChunkPool::default();
        let mut room = Room::new(Workspace::new("w", 1));
        write(&mut room, &mut pool, "j", &"1".repeat(STATE_BYTES));
        let joined = texts(&mut room, Wanted::Init);
        assert!(joined.stamps.is_none());
        let first = texts(&mut room, Wanted::Look);
        assert!(Rc::ptr_eq(&first.init, &joined.init));
        let second = texts(&mut room, Wanted::Look);
        assert!(Rc::ptr_eq(&second.init, &joined.init));
        let stamps = [first, second].map(|look| look.stamps.unwrap());
        assert!(Rc::ptr_eq(&stamps[0], &stamps[1]));
        assert!(stamps[0].starts_with(br#"},"timestamps":{"j":1},"seq":1"#));
        write(&mut room, &mut pool, "k", "1");
        let newest = texts(&mut room, Wanted::Look);
        assert!(!Rc::ptr_eq(&newest.init, &joined.init), "one op is missing");
        assert_eq!((newest.at, newest.gate), (room.window.end(), 20));
        // Who joins takes the newest too.
        let again = texts(&mut room, Wanted::Init);
        assert!(Rc::ptr_eq(&newest.init, &again.init));
    }
}
