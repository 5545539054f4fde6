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

use crate::core::outbox::Outbox;
use crate::core::rest::{NEVER, Stretch};
use crate::wire::frame::Decoder;

/// The name of a session within its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// The slot in the session table.
    pub slot: u32,
    /// Which of the slot's sessions, in order. It wraps, after so long that no handle is left of the session before.
    pub generation: u32,
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
    /// Its place in the order of its shard's sessions, from 1. It marks what the session wrote, which may stay for years, so it never wraps.
    pub number: u64,
    pub state: State,
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
    pub decoder: Decoder,
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
    pub fn new(number: u64, over_limit: bool, now_us: u64, deadline_us: u64) -> Self {
        Self {
            number,
            state: State::Handshake,
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
            decoder: Decoder::new(),
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

    /// The part of its number that its handles have.
    pub fn generation(&self) -> u32 {
        u32::try_from(self.number & u64::from(u32::MAX)).expect("masked")
    }

    pub fn room(&self) -> Option<u32> {
        match self.state {
            State::Open { room, .. } => Some(room),
            State::Handshake | State::Waiting | State::Closing => None,
        }
    }
}
