//! One connection: Handshake → Open → Closing.
//!
//! ```text
//!   accept ─► Handshake ──101──► Open ──close──► Closing ──► slot free
//!               │  │               ▲                ▲ ▲
//!               │  └─► Waiting ────┴────────────────┘ │
//!               └───── another answer ────────────────┘
//! ```
//!
//! A session knows what is in flight for it. Its slot is given back only when nothing is, and a
//! [`SessionId`] carries a generation, so that an outcome that comes late never meets a stranger.

use crate::core::contract::Door;
use crate::core::outbox::Outbox;
use crate::core::rest::{NEVER, Stretch};
use crate::wire::frame::Decoder;

/// The name of a session within its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// The slot in the session table.
    pub slot: u32,
    /// Which of the slot's sessions, in order.
    pub generation: u32,
}

impl SessionId {
    /// The id as one number, never 0.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        (u64::from(self.generation) << 32 | u64::from(self.slot)) + 1
    }

    /// The id of a number that [`SessionId::as_u64`] gave.
    ///
    /// # Panics
    /// Where it gave no such number.
    #[must_use]
    pub fn from_u64(number: u64) -> Self {
        let number = number.checked_sub(1).expect("0 names no session");
        let slot = u32::try_from(number & u64::from(u32::MAX)).expect("masked");
        let generation = u32::try_from(number >> 32).expect("shifted");
        Self { slot, generation }
    }
}

/// Where a session stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The request head is awaited.
    Handshake,
    /// The request was read and checked, and waits for the state of the shard.
    Waiting,
    /// A member of a workspace.
    Open {
        /// The slot of its room.
        room: u32,
        /// Its place among the room's members.
        member: u32,
    },
    /// The last bytes are on their way; what still comes in is dropped.
    Closing,
}

/// Where the bytes of a session come from next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// From its socket.
    Receiving,
    /// From those that were received and not read in their turn; it stands in the queue for that.
    Unread,
    /// From nowhere, until its outbox drains.
    Paused,
}

/// One connection.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what is in flight or queued for it"
)]
pub(crate) struct Session {
    pub generation: u32,
    pub state: State,
    pub door: Door,
    /// A receive is in flight.
    pub receiving: bool,
    /// A send is in flight.
    pub sending: bool,
    /// It stands in the queue of those who are sent to.
    pub queued: bool,
    pub intake: Intake,
    /// It stands in the list of those whose answers wait.
    pub gated: bool,
    /// The page that it asked for is sent without its body.
    pub head_only: bool,
    /// What it is sent last may be long: it has time for that as long as it goes on.
    pub ends_long: bool,
    /// It was accepted over the limit of connections: an upgrade is refused.
    pub over_limit: bool,
    /// The peer has closed its side.
    pub ended: bool,
    /// The socket was shut down for writing behind the last byte.
    pub finished: bool,
    /// Both directions were shut down: nothing more is sent or read.
    pub aborted: bool,
    /// It is over; only its output is still to be taken.
    pub gone: bool,
    /// It was sent a ping and has not answered it.
    pub owes_pong: bool,
    pub decoder: Decoder,
    /// Frames without content since the last ping.
    pub empty_frames: u32,
    /// Bytes that were received and not decoded yet.
    pub unparsed: Vec<u8>,
    pub outbox: Outbox,
    /// When its entry in the timer wheel comes out; other entries of it are stale.
    pub timer_tick: u64,
    pub last_received_us: u64,
    /// When its socket last took bytes, or a send began that found it idle.
    pub last_progress_us: u64,
    /// When it was sent to last.
    pub last_stretch: Stretch,
    pub next_ping_us: u64,
    /// Unix time at which its token is not valid any more; [`u64::MAX`]: never.
    pub expires_at_us: u64,
    /// The deadline of its state: of the head, of the drain, of the last bytes.
    pub deadline_us: u64,
}

impl Session {
    pub fn new(generation: u32, over_limit: bool, now_us: u64, deadline_us: u64) -> Self {
        Self {
            generation,
            state: State::Handshake,
            door: Door::Public,
            receiving: false,
            sending: false,
            queued: false,
            intake: Intake::Receiving,
            gated: false,
            head_only: false,
            ends_long: false,
            over_limit,
            ended: false,
            finished: false,
            aborted: false,
            gone: false,
            owes_pong: false,
            decoder: Decoder::new(),
            empty_frames: 0,
            unparsed: Vec::new(),
            outbox: Outbox::default(),
            timer_tick: 0,
            last_received_us: now_us,
            last_progress_us: now_us,
            last_stretch: NEVER,
            next_ping_us: u64::MAX,
            expires_at_us: u64::MAX,
            deadline_us,
        }
    }

    pub fn room(&self) -> Option<u32> {
        match self.state {
            State::Open { room, .. } => Some(room),
            State::Handshake | State::Waiting | State::Closing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_goes_through_its_number_and_back() {
        for (slot, generation, number) in [
            (0, 0, 1),
            (1, 0, 2),
            (0, 1, (1 << 32) + 1),
            (u32::MAX, 0, 1 << 32),
            (0, u32::MAX, (u64::from(u32::MAX) << 32) + 1),
            (7, 9, (9 << 32) + 8),
        ] {
            let id = SessionId { slot, generation };
            assert_eq!(id.as_u64(), number, "{id:?}");
            assert_eq!(SessionId::from_u64(number), id);
        }
    }
}
