//! One connection: Handshake → Open → Closing.
//!
//! ```text
//!   accept ─► Handshake ──101──► Open ──close──► Closing ──► slot free
//!               │  │               ▲                ▲ ▲
//!               │  └─► Waiting ────┴────────────────┘ │
//!               └───── another answer ────────────────┘
//! ```
//!
//! A session records what is in flight for it. Its slot is reused only when nothing is in flight,
//! and a [`SessionId`] carries a generation, so a late completion never reaches another session.

use smallvec::SmallVec;

use crate::core::fanout::encoded_state::EncodedState;
use crate::core::fanout::outbox::{Behind, Outbox};
use crate::core::fanout::pacer::{BusyPeriod, NEVER};
use crate::core::fanout::room::RoomId;
use crate::core::shard::version2::Version2;
use crate::limits::{
    MESSAGE_BYTES_DEFAULT, MESSAGE_TIMEOUT_US, SESSION_BYTES_SPARED, SNAPSHOT_TRANSFER_US,
};
use crate::log::position::LogPosition;
use crate::seq::Seq;
use crate::wire::ProtocolVersion;
use crate::wire::frame::Decoder;

/// The handle of a session within its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// The slot in the session table.
    pub slot: u32,
    /// The slot's session counter, which wraps. By the time a value repeats, no handle to the
    /// earlier session is left.
    pub generation: u32,
}

/// A listener that accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// The listener of `--port`.
    Public,
    /// The listener of `--admin-port`.
    Admin,
}

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The request head is not complete yet.
    Handshake,
    /// The request was verified and waits for the state of the shard.
    Waiting,
    /// The session is a member of a workspace.
    Open {
        /// The room of the workspace.
        room: RoomId,
        /// Its index among the room's members.
        member: u32,
    },
    /// The last bytes are being sent. Bytes that still arrive are dropped.
    Closing,
}

/// How far the closing of a connection has progressed. The value only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Close {
    /// Neither direction is closed.
    No,
    /// The peer has closed its sending side, but may still read its answer.
    ByPeer,
    /// The server has closed its side after the last byte. The peer has not closed its own yet.
    Finished,
    /// Both directions are closed. Nothing more is sent or read, but an operation may still be in
    /// flight.
    Aborted,
    /// Both directions are closed and nothing is in flight. Only the session's last output remains
    /// to be delivered.
    Gone,
}

/// The number of sessions by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SessionCounts {
    /// Sessions whose request has no answer yet.
    pub unanswered: u64,
    /// Sessions that are members of a workspace.
    pub members: u64,
    /// Sessions that have ended but keep their slots until their last output is delivered.
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

/// The source of a session's next bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// The socket.
    Receiving,
    /// Bytes that were received but not read in their turn. The session is queued to read them.
    Unread,
    /// Bytes that were received but wait until the log has room for the session's ops. The session
    /// is queued to read them.
    Held,
    /// No source, because the session is not read until its outbox drains.
    Paused,
}

/// A connection.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what is in flight or queued for it"
)]
pub(crate) struct Session {
    /// The session's number among all sessions of the shard, from 1. It marks the entries that the
    /// session wrote. These may exist for years, so the number never wraps.
    pub number: u64,
    state: State,
    close: Close,
    pub listener: ListenerKind,
    /// The version of the protocol that a member speaks.
    pub version: ProtocolVersion,
    /// Whether a receive is in flight.
    pub receiving: bool,
    /// Whether a send is in flight.
    pub sending: bool,
    /// Whether the session is in a queue of sessions to send to.
    pub queued: bool,
    pub intake: Intake,
    /// Whether the first answer waits for the log, or for a state that is being encoded.
    pub is_waiting_for_log: bool,
    /// Whether the session requested a page with HEAD, so that the body is not sent.
    pub head_only: bool,
    /// Whether the last answer may be long; if so, the session is not closed while it keeps
    /// reading.
    pub ends_long: bool,
    /// Whether the connection was accepted over the connection limit, so that requests to
    /// workspaces are refused.
    pub over_limit: bool,
    /// Whether the session has not yet answered its last ping.
    pub owes_pong: bool,
    /// Whether the session holds enough memory to be tracked by the budget.
    pub is_tracked: bool,
    /// The memory of the session's incomplete message or head, as last counted.
    pub unfinished_bytes: u32,
    pub decoder: Decoder,
    /// The number of frames without content since the last ping, at most
    /// [`EMPTY_FRAMES_MAX`](crate::limits::EMPTY_FRAMES_MAX).
    pub empty_frames: u32,
    /// Bytes that were received but not decoded yet.
    pub unparsed: Vec<u8>,
    pub outbox: Outbox,
    /// The state that only a version 2 member has.
    pub v2: Option<Box<Version2>>,
    /// The state being sent to the session, until the session has received all of it.
    pub transfer: Option<Box<StateTransfer>>,
    /// The time at which the incomplete message began, or [`u64::MAX`] if there is none.
    pub message_since_us: u64,
    /// The tick at which the session's entry in the timer wheel expires. Its other entries are
    /// stale.
    pub timer_tick: u64,
    pub last_received_us: u64,
    /// The last time that the socket accepted bytes or a send started on an idle socket.
    pub last_progress_us: u64,
    /// The shard's busy period in which something was last sent to the session.
    pub last_busy_period: BusyPeriod,
    pub next_ping_us: u64,
    /// The Unix time at which the token expires, or [`u64::MAX`] for never.
    pub expires_at_us: u64,
    /// The deadline of the current state, that is, for the head or the answer, for the drain, or
    /// for the last bytes.
    pub deadline_us: u64,
}

impl Session {
    pub fn new(number: u64, over_limit: bool, now_us: u64, deadline_us: u64) -> Self {
        Self {
            number,
            state: State::Handshake,
            close: Close::No,
            listener: ListenerKind::Public,
            version: ProtocolVersion::V1,
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
            v2: None,
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

    /// Returns the state that only a version 2 session has.
    pub fn v2(&self) -> &Version2 {
        let v2 = self.v2.as_ref();
        v2.expect("the session speaks version 2")
    }

    /// Returns the state that only a version 2 session has.
    pub fn v2_mut(&mut self) -> &mut Version2 {
        let v2 = self.v2.as_mut();
        v2.expect("the session speaks version 2")
    }

    /// Returns the seq after which the session has to be sent the tombstones, if it is behind. A
    /// full state does not list the tombstones that are older than it.
    pub fn tombstones_needed_after(&self) -> Option<Seq> {
        let Behind { since, .. } = self.outbox.behind()?;
        let cutoff = self.v2.as_ref().map_or(Seq::NONE, |v2| v2.cutoff);
        Some(since.max(cutoff))
    }

    /// Returns the session's room if the session is a peer of it.
    pub fn peer_room(&self) -> Option<RoomId> {
        self.v2.as_ref().filter(|v2| v2.is_peer)?;
        self.room()
    }

    /// Returns whether one of the session's messages waits for the log before it is settled.
    pub fn awaits_settlement(&self, visible_position: LogPosition) -> bool {
        let v2 = self.v2.as_ref().filter(|_| self.is_open());
        v2.is_some_and(|v2| v2.settlement.is_waiting(visible_position))
    }

    /// Returns whether the session must be sent a `saved`, now or later.
    pub fn is_owed_saved(&self) -> bool {
        let v2 = self.v2.as_ref().filter(|_| self.is_open());
        v2.is_some_and(|v2| v2.settlement.is_due(LogPosition::MAX))
    }

    /// Returns the part of the session's number that appears in its handles.
    pub fn generation(&self) -> u32 {
        u32::try_from(self.number & u64::from(u32::MAX)).expect("masked")
    }

    /// Returns the memory of the session's incomplete message or head, and how much of that is
    /// unused capacity. For a short buffer, only its content counts: its unused capacity is no more
    /// than every session may hold uncounted.
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

    /// Returns the time by which the incomplete message must be complete.
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

    /// Moves the session to another state and updates the counts.
    pub(super) fn enter(&mut self, state: State, counts: &mut SessionCounts) {
        counts.remove(self);
        self.state = state;
        counts.add(self);
    }

    /// Records that the peer has closed its sending side.
    pub fn close_by_peer(&mut self) {
        self.close = self.close.max(Close::ByPeer);
    }

    /// Records that the last byte has been sent. Returns whether the peer still has to close its
    /// side.
    pub fn finish(&mut self) -> bool {
        let awaits_peer = self.close == Close::No;
        self.close = self.close.max(Close::Finished);
        awaits_peer
    }

    /// Shuts down both directions. Returns whether the connection had not been shut down before.
    pub fn abort(&mut self) -> bool {
        let was_open = self.close < Close::Aborted;
        self.close = self.close.max(Close::Aborted);
        was_open
    }

    /// Ends the session and updates the counts.
    pub(super) fn retire(&mut self, counts: &mut SessionCounts) {
        assert!(
            !self.sending && !self.receiving && !self.is_gone(),
            "a session ended twice or with operations in flight"
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

    /// Returns whether both directions are shut down.
    pub fn is_aborted(&self) -> bool {
        self.close >= Close::Aborted
    }

    pub fn is_gone(&self) -> bool {
        self.close == Close::Gone
    }

    /// Checks that the state, the close state and the operations in flight are consistent.
    pub fn invariants(&self) {
        let is_closing = self.state == State::Closing;
        assert!(
            is_closing || self.close <= Close::ByPeer,
            "{:?}, but the session is not closing",
            self.close
        );
        let is_in_flight = self.sending || self.receiving;
        assert!(
            !self.is_gone() || !is_in_flight,
            "an ended session has an operation in flight"
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

/// An encoded state being sent to a session, and the pace at which the session reads it.
pub(crate) struct StateTransfer {
    /// The room of the workspace.
    pub room: RoomId,
    pub states: SmallVec<[EncodedState; 2]>,
    /// The total length of the states, at least 1.
    pub bytes: usize,
    /// The lag behind the pace of [`SNAPSHOT_TRANSFER_US`] as of the end of the last send.
    lag_us: u64,
}

impl StateTransfer {
    /// Returns a transfer of `states` that begins now.
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

    /// Records that a send of `bytes` took `took_us`. Time saved on one part does not carry over to
    /// the next.
    pub fn took(&mut self, took_us: u64, bytes: usize) {
        let worth_us = u128::from(SNAPSHOT_TRANSFER_US) * bytes as u128 / self.bytes as u128;
        let worth_us = u64::try_from(worth_us).unwrap_or(u64::MAX);
        self.lag_us = (self.lag_us + took_us).saturating_sub(worth_us);
    }

    /// Returns the lag when `in_flight_us` have passed since a send began or the socket last
    /// accepted bytes.
    pub fn lag_us(&self, in_flight_us: u64) -> u64 {
        self.lag_us + in_flight_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SECOND_US;

    #[test]
    fn a_transfer_keeps_up_or_lags() {
        let state = || EncodedState::Ready(std::rc::Rc::new(vec![0; 6_000_000]));
        for (sends, in_flight_s, lag_s) in [
            (&[][..], 3, 3),
            // A sixtieth of the state per second.
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
