//! The rooms of a shard whose next presence message is due, in the order of their times.
//!
//! A message is not encoded while the send queue still holds sessions. A peer whose socket accepts
//! bytes has therefore always been sent the previous message, and needs only the changes.
//! Otherwise, a shard that cannot keep up would send its peers whole tables, which are longer, and
//! fall back further. The wait is bounded, so a shard that is always busy sends presence less
//! often, but does send it.

use std::collections::VecDeque;

use crate::core::fanout::peers::Peers;
use crate::core::fanout::room::RoomId;
use crate::limits::PRESENCE_WAIT_US;

/// The rooms with changes of presence that have not been announced.
///
/// The interval is the same for all rooms, so the rooms are in the order of their times. An entry
/// whose room has been removed, or whose peers have all left, is still here until its time.
#[derive(Debug, Default)]
pub struct PresenceQueue {
    rooms: VecDeque<(u64, RoomId)>,
}

impl PresenceQueue {
    /// Adds a room if its peers have changed and it is not in the queue yet. Must be called after
    /// each change to the peers.
    pub fn add(&mut self, room: RoomId, peers: &mut Peers) {
        if let Some(due_us) = peers.take_due_us() {
            self.rooms.push_back((due_us, room));
        }
    }

    /// Removes and returns the next room whose message is due, with the time at which it became
    /// due. If that is not the time of the room's peers ([`Peers::due_us`]), the entry is stale.
    ///
    /// `is_round_done` is whether the send queue is empty. Must be called after the sends of a
    /// turn: before them, the turn's own events have queued some sessions again.
    pub fn pop(&mut self, is_round_done: bool, now_us: u64) -> Option<(u64, RoomId)> {
        if self.next_due_us(is_round_done)? > now_us {
            return None;
        }
        self.rooms.pop_front()
    }

    /// Returns the time from which [`PresenceQueue::pop`] returns a room.
    #[must_use]
    pub fn next_due_us(&self, is_round_done: bool) -> Option<u64> {
        let (due_us, _) = self.rooms.front()?;
        let wait_us = if is_round_done { 0 } else { PRESENCE_WAIT_US };
        Some(due_us.saturating_add(wait_us))
    }

    /// Removes all rooms.
    pub fn reset(&mut self) {
        self.rooms.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fanout::outbox::OutboxPool;
    use crate::core::fanout::peers::{NewPeer, PresenceSettings};
    use crate::wire::message::v2::PresenceFrame;

    const INTERVAL_US: u64 = 50_000;

    fn peers() -> Peers {
        Peers::new(PresenceSettings {
            interval_us: INTERVAL_US,
            bytes_max: 1024,
            shard_bytes_max: 1024,
        })
    }

    fn join(peers: &mut Peers, connection: u64, now_us: u64) {
        let new = NewPeer {
            connection,
            slot: 0,
            user: None,
            replaces: None,
        };
        peers.join(new, now_us);
    }

    #[test]
    fn a_room_is_due_once_for_all_changes_of_an_interval() {
        let (mut queue, mut peers) = (PresenceQueue::default(), peers());
        queue.add(RoomId::new(3), &mut peers);
        assert_eq!(queue.next_due_us(true), None);
        for connection in 0..3 {
            join(&mut peers, connection, 1000 + connection);
            queue.add(RoomId::new(3), &mut peers);
        }
        let due_us = 1000 + INTERVAL_US;
        assert_eq!(queue.next_due_us(true), Some(due_us));
        assert_eq!(queue.pop(true, due_us - 1), None);
        assert_eq!(queue.pop(true, due_us), Some((due_us, RoomId::new(3))));
        assert_eq!(peers.due_us(), Some(due_us));
        assert_eq!(queue.pop(true, u64::MAX), None);
        // The next change after the message is due an interval later.
        let (mut frame, mut pool) = (PresenceFrame::new(), OutboxPool::default());
        peers.announce(&mut frame, &mut pool);
        queue.add(RoomId::new(3), &mut peers);
        assert_eq!(queue.next_due_us(true), None);
        peers.leave(0, due_us + 5);
        queue.add(RoomId::new(3), &mut peers);
        assert_eq!(queue.next_due_us(true), Some(due_us + 5 + INTERVAL_US));
        queue.reset();
        assert_eq!(queue.next_due_us(true), None);
    }

    #[test]
    fn a_message_waits_for_the_round_of_sends_but_not_forever() {
        let (mut queue, mut peers) = (PresenceQueue::default(), peers());
        join(&mut peers, 1, 0);
        queue.add(RoomId::new(0), &mut peers);
        for (is_round_done, now_us, is_popped) in [
            (true, INTERVAL_US - 1, false),
            (false, INTERVAL_US, false),
            (false, INTERVAL_US + PRESENCE_WAIT_US - 1, false),
            (false, INTERVAL_US + PRESENCE_WAIT_US, true),
        ] {
            let due_us = queue.next_due_us(is_round_done);
            assert_eq!(due_us.is_some_and(|due_us| due_us <= now_us), is_popped);
            assert_eq!(
                queue.pop(is_round_done, now_us).is_some(),
                is_popped,
                "{now_us}"
            );
        }
    }

    #[test]
    fn the_entry_of_a_room_whose_peers_have_left_is_stale() {
        let (mut queue, mut peers) = (PresenceQueue::default(), peers());
        join(&mut peers, 1, 0);
        queue.add(RoomId::new(0), &mut peers);
        peers.leave(1, 1);
        assert_eq!(peers.due_us(), None);
        join(&mut peers, 2, 10);
        queue.add(RoomId::new(0), &mut peers);
        let (due_us, _) = queue.pop(true, u64::MAX).unwrap();
        assert_ne!(peers.due_us(), Some(due_us), "the first entry is stale");
        let (due_us, _) = queue.pop(true, u64::MAX).unwrap();
        assert_eq!(peers.due_us(), Some(due_us));
    }
}
