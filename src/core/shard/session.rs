//! One connection: Handshake → Open → Closing.
//!
//! ```text
//!   accept ─► Handshake ──101──► Open ──close──► Closing ──► slot free
//!               │  │               ▲                ▲ ▲
//!               │  └─► Waiting ────┴────────────────┘ │
//!               └───── another answer ────────────────┘
//! ```
//!
//! A session knows what is in flight for it. Its slot is freed only when nothing is, and a
//! [`SessionId`] carries a generation, so that a late outcome never reaches another session.

use smallvec::SmallVec;

use crate::core::fanout::encoded_state::EncodedState;
use crate::core::fanout::outbox::Outbox;
use crate::core::fanout::pacer::{BusyPeriod, NEVER};
use crate::core::fanout::room::RoomId;
use crate::limits::{
    MESSAGE_BYTES_DEFAULT, MESSAGE_TIMEOUT_US, SESSION_BYTES_SPARED, SNAPSHOT_TRANSFER_US,
};
use crate::wire::frame::Decoder;

/// The name of a session within its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// The slot in the session table.
    pub slot: u32,
    /// Which of the slot's sessions, in order. It wraps, after so long that no handle is left of
    /// the session before.
    pub generation: u32,
}

/// Where connections come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// `--port`.
    Public,
    /// `--admin-port`.
    Admin,
}

/// A part of the life of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The request head is awaited.
    Handshake,
    /// The request was read and checked, and waits for the state of the shard.
    Waiting,
    /// A member of a workspace.
    Open {
        /// Its room.
        room: RoomId,
        /// Its place among the room's members.
        member: u32,
    },
    /// The last bytes are on their way; what still comes in is dropped.
    Closing,
}

/// Which directions of a connection are shut down. It only moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Close {
    /// None: both are open.
    No,
    /// The peer has closed its side; it may still read its answer.
    ByPeer,
    /// The server has closed its side, after the last byte; the peer has not closed its own yet.
    Finished,
    /// Both: nothing more is sent or read. Something may still be in flight.
    Aborted,
    /// Nothing is in flight; only the output that says so is still to be taken.
    Gone,
}

/// How many sessions are in which part of their life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SessionCounts {
    /// Those whose request has no answer yet.
    pub unanswered: u64,
    /// Those in a workspace.
    pub members: u64,
    /// Those that are over, and have their slot until their output is taken.
    pub gone: u64,
}

impl SessionCounts {
    pub fn add(&mut self, session: &Session) {
        match session.state {
            State::Handshake | State::Waiting => self.unanswered += 1,
            State::Open { .. } => self.members += 1,
            State::Closing => self.gone += u64::from(session.is_gone()),
        }
    }

    pub fn remove(&mut self, session: &Session) {
        match session.state {
            State::Handshake | State::Waiting => self.unanswered -= 1,
            State::Open { .. } => self.members -= 1,
            State::Closing => self.gone -= u64::from(session.is_gone()),
        }
    }
}

/// Where the bytes of a session come from next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// From its socket.
    Receiving,
    /// From those that were received and not read in their turn; it is in the queue for that.
    Unread,
    /// From those that were received, once the log has room for its ops; it is in the queue for
    /// that.
    Held,
    /// From nowhere, until its outbox drains.
    Paused,
}

/// One connection.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what is in flight or queued for it"
)]
pub(crate) struct Session {
    /// Its place in the order of its shard's sessions, from 1. It marks what the session wrote,
    /// which may stay for years, so it never wraps.
    pub number: u64,
    state: State,
    close: Close,
    pub listener: ListenerKind,
    /// A receive is in flight.
    pub receiving: bool,
    /// A send is in flight.
    pub sending: bool,
    /// It is in one of the queues of sessions that are sent to.
    pub queued: bool,
    pub intake: Intake,
    /// Its first answer waits for the log, or for a state that is being encoded.
    pub is_waiting_for_log: bool,
    /// It asked for a page with HEAD, so the body is not sent.
    pub head_only: bool,
    /// Its last answer may be long: it has time for that as long as bytes are taken.
    pub ends_long: bool,
    /// It was accepted over the limit of connections: an upgrade is refused.
    pub over_limit: bool,
    /// It was sent a ping and has not answered it.
    pub owes_pong: bool,
    /// It holds so much that the budget tracks it.
    pub is_tracked: bool,
    /// What it was last known to hold of what is not whole yet.
    pub unfinished_bytes: u32,
    pub decoder: Decoder,
    /// Frames without content since the last ping.
    pub empty_frames: u32,
    /// Bytes that were received and not decoded yet.
    pub unparsed: Vec<u8>,
    pub outbox: Outbox,
    /// The state that it is sent, until it has it.
    pub transfer: Option<Box<StateTransfer>>,
    /// When the message began that is not whole yet; [`u64::MAX`]: there is none.
    pub message_since_us: u64,
    /// When its entry in the timer wheel comes out; other entries of it are stale.
    pub timer_tick: u64,
    pub last_received_us: u64,
    /// When its socket last took bytes, or a send began that found it idle.
    pub last_progress_us: u64,
    /// The busy period in which it was sent to last.
    pub last_busy_period: BusyPeriod,
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
            close: Close::No,
            listener: ListenerKind::Public,
            receiving: false,
            sending: false,
            queued: false,
            intake: Intake::Receiving,
            is_waiting_for_log: false,
            head_only: false,
            ends_long: false,
            over_limit,
            owes_pong: false,
            is_tracked: false,
            unfinished_bytes: 0,
            decoder: Decoder::new(),
            empty_frames: 0,
            unparsed: Vec::new(),
            outbox: Outbox::default(),
            transfer: None,
            message_since_us: u64::MAX,
            timer_tick: 0,
            last_received_us: now_us,
            last_progress_us: now_us,
            last_busy_period: NEVER,
            next_ping_us: u64::MAX,
            expires_at_us: u64::MAX,
            deadline_us,
        }
    }

    /// Returns the part of its number that is in its ids.
    pub fn generation(&self) -> u32 {
        u32::try_from(self.number & u64::from(u32::MAX)).expect("masked")
    }

    /// Returns the memory of bytes that came in and are no whole message or head yet, and how much
    /// of it is not filled. A short list counts as the bytes in it: its memory is at most twice
    /// what any session may hold for free.
    pub fn unfinished(&self) -> (usize, usize) {
        let (bytes, capacity) = self.decoder.held_bytes();
        let lists = [
            (self.unparsed.len(), self.unparsed.capacity()),
            (bytes, capacity),
        ];
        let counted = lists.map(|(bytes, capacity)| counted(bytes, capacity));
        let all: usize = counted.iter().sum();
        (all, all - self.unparsed.len() - bytes)
    }

    /// Returns when the message that is not whole yet must be.
    pub fn message_deadline_us(&self) -> u64 {
        let held_bytes = self.unparsed.len() + self.decoder.held_bytes().0;
        let steps = 1 + (held_bytes / MESSAGE_BYTES_DEFAULT) as u64;
        self.message_since_us
            .saturating_add(MESSAGE_TIMEOUT_US * steps)
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Moves on to another part of its life, and is counted there.
    pub(super) fn enter(&mut self, state: State, counts: &mut SessionCounts) {
        counts.remove(self);
        self.state = state;
        counts.add(self);
    }

    /// Records that the peer has closed its side.
    pub fn close_by_peer(&mut self) {
        self.close = self.close.max(Close::ByPeer);
    }

    /// Records that the last byte was sent. Returns whether the peer still has to close its side.
    pub fn finish(&mut self) -> bool {
        let awaits_peer = self.close == Close::No;
        self.close = self.close.max(Close::Finished);
        awaits_peer
    }

    /// Shuts both directions down. Returns whether one of them was open.
    pub fn abort(&mut self) -> bool {
        let was_open = self.close < Close::Aborted;
        self.close = self.close.max(Close::Aborted);
        was_open
    }

    /// Ends, and is counted as over.
    pub(super) fn retire(&mut self, counts: &mut SessionCounts) {
        assert!(
            !self.sending && !self.receiving && !self.is_gone(),
            "a session ends once"
        );
        counts.remove(self);
        (self.state, self.close) = (State::Closing, Close::Gone);
        counts.add(self);
    }

    /// Returns whether bytes may still be received.
    pub fn may_receive(&self) -> bool {
        matches!(self.close, Close::No | Close::Finished)
    }

    /// Returns whether bytes may still be sent.
    pub fn may_send(&self) -> bool {
        matches!(self.close, Close::No | Close::ByPeer)
    }

    pub fn is_finished(&self) -> bool {
        self.close == Close::Finished
    }

    /// Returns whether both directions were shut down.
    pub fn is_aborted(&self) -> bool {
        self.close >= Close::Aborted
    }

    pub fn is_gone(&self) -> bool {
        self.close == Close::Gone
    }

    /// Checks that its flags agree with each other.
    pub fn invariants(&self) {
        let is_closing = self.state == State::Closing;
        assert!(
            is_closing || self.close <= Close::ByPeer,
            "{:?} is closing",
            self.close
        );
        let is_in_flight = self.sending || self.receiving;
        assert!(
            !self.is_gone() || !is_in_flight,
            "what is over has nothing in flight"
        );
    }

    pub fn room(&self) -> Option<RoomId> {
        match self.state {
            State::Open { room, .. } => Some(room),
            State::Handshake | State::Waiting | State::Closing => None,
        }
    }
}

fn counted(bytes: usize, capacity: usize) -> usize {
    if bytes <= SESSION_BYTES_SPARED {
        bytes
    } else {
        capacity
    }
}

/// A state on its way to a session, and how fast the client reads it.
pub(crate) struct StateTransfer {
    /// The room that it is the state of.
    pub room: RoomId,
    pub states: SmallVec<[EncodedState; 2]>,
    /// The length of all states, at least 1.
    pub bytes: usize,
    /// How far it is behind the pace of [`SNAPSHOT_TRANSFER_US`].
    lag_us: u64,
}

impl StateTransfer {
    /// Returns a transfer of these states, which begins now.
    pub fn new(room: RoomId, states: SmallVec<[EncodedState; 2]>) -> Self {
        let bytes = states.iter().map(EncodedState::bytes).sum::<usize>();
        let bytes = bytes.max(1);
        Self {
            room,
            states,
            bytes,
            lag_us: 0,
        }
    }

    /// Records that a send of `bytes` took `took_us`. Time that is left over after one part is not
    /// credited to the next.
    pub fn took(&mut self, took_us: u64, bytes: usize) {
        let worth_us = u128::from(SNAPSHOT_TRANSFER_US) * bytes as u128 / self.bytes as u128;
        let worth_us = u64::try_from(worth_us).unwrap_or(u64::MAX);
        self.lag_us = (self.lag_us + took_us).saturating_sub(worth_us);
    }

    /// Returns how far it is behind its pace now, `in_flight_us` after a send began or the socket
    /// last took a part of it.
    pub fn lag_us(&self, in_flight_us: u64) -> u64 {
        self.lag_us + in_flight_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SECOND_US;

    #[test]
    fn a_transfer_keeps_its_pace_or_lags() {
        let state = || EncodedState::Ready(std::rc::Rc::new(vec![0; 6_000_000]));
        for (sends, in_flight_s, lag_s) in [
            (&[][..], 3, 3),
            // The 60th part of it in a second.
            (&[(1, 100_000); 9][..], 0, 0),
            (&[(5, 4096); 3], 0, 14),
            (&[(5, 4096), (1, 3_000_000), (4, 4096)], 1, 4),
        ] {
            let mut transfer = StateTransfer::new(RoomId::new(0), SmallVec::from_iter([state()]));
            for (took_s, bytes) in sends {
                transfer.took(took_s * SECOND_US, *bytes);
            }
            let lag_us = transfer.lag_us(in_flight_s * SECOND_US);
            assert_eq!(lag_us / SECOND_US, lag_s, "{sends:?}");
        }
    }
}
