//! The inputs and outputs of a [`Shard`](super::Shard), and its configuration.

use std::io;
use std::sync::Arc;

use crate::core::fanout::peers::PresenceSettings;
use crate::core::fanout::window::Spans;
use crate::core::shard::connection_log::Note;
use crate::core::shard::log_space::LogSize;
pub use crate::core::shard::session::ListenerKind;
use crate::core::shard::session::SessionId;
use crate::core::state::workspace::Workspace;
use crate::generation::Generation;
use crate::log::commit::{Durability, End, LogStep, OpenSegment};
use crate::wire::ProtocolVersion;
use crate::wire::auth::{Grant, Verifier};
use crate::wire::upgrade::{Answer, PageRequest, ReadTarget, ResumePoint};

/// The current time according to the caller.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Monotonic microseconds from an arbitrary start.
    pub now_us: u64,
    /// Microseconds since the Unix epoch.
    pub unix_us: u64,
}

/// The configuration of a shard. Only the verifier can change while the shard runs.
#[derive(Clone)]
pub struct ShardConfig {
    /// The number of this shard, from 0.
    pub shard: u32,
    /// The number of shards in the server.
    pub shards: u32,
    /// The durability mode, which determines when an op may be sent to other clients.
    pub durability: Durability,
    /// The time between two fdatasyncs in `interval` mode.
    pub sync_interval_us: u64,
    /// The time between two pings to a client.
    pub ping_interval_us: u64,
    /// The number of broadcast bytes by which a client may lag behind before it is conflated.
    pub outbox_bytes_max: usize,
    /// The length of the longest message that is accepted.
    pub message_bytes_max: usize,
    /// The memory that may be held for individual sessions
    /// ([`crate::limits::session_budget_bytes`]).
    pub session_bytes_max: usize,
    /// The memory that all encoded states being sent may hold.
    pub snapshot_bytes_max: usize,
    /// The number of bytes of states that may be encoded per turn. A state no longer than this is
    /// encoded in one step.
    pub snapshot_part_bytes: usize,
    /// The length of a part of a state for a client of version 2, unless a single entry is longer.
    pub state_part_bytes: usize,
    /// The size of a batch of ops at which the shard stops reading messages until the batch is
    /// written.
    pub batch_bytes_max: usize,
    /// The length to which a log segment may always grow, however little of the log is live.
    pub segment_bytes_min: u64,
    /// The length that no log segment exceeds by more than one batch.
    pub segment_bytes_max: u64,
    /// The number of bytes by which the log may exceed the length that its live data justify before
    /// any workspace is slowed down.
    pub log_spare_bytes: u64,
    /// How far a timestamp may be ahead of the clock.
    pub future_skew_us: u64,
    /// How long tombstones are kept.
    pub tombstone_retention_us: u64,
    /// The longest time that a drain may take.
    pub drain_us: u64,
    /// The seed of the hash of every workspace's keys, so that no client can choose keys that
    /// collide.
    pub hash_seed: u64,
    /// The secrets that tokens are verified with.
    pub verifier: Arc<Verifier>,
    /// The origins whose pages may connect and read (RFC 6454). If the list is empty, all origins
    /// may.
    pub origins: Arc<[String]>,
    /// The limits that protect the server from its clients.
    pub limits: Limits,
    /// Presence settings.
    pub presence: PresenceSettings,
    /// Whether each connection is reported in the server's log ([`Output::Note`]).
    pub has_journal: bool,
    /// The key of an op that makes the shard panic, for tests.
    pub fault_panic_key: Option<String>,
}

/// The limits that protect the server from its clients. `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// The number of messages per second from one connection.
    pub ops_per_second: Option<u32>,
    /// The number of members of one workspace.
    pub connections_per_workspace: Option<usize>,
    /// The size of a workspace's entries in a log without superseded ops.
    pub workspace_bytes: Option<u64>,
    /// The number of requests with a token per second, over all shards, each of which gets an equal
    /// share.
    pub handshakes_per_second: Option<u32>,
}

/// The state of the other shards, which the caller updates before each turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStatus {
    /// Whether every shard can write its log.
    pub ready: bool,
    /// The percentage of the log that has been read so far during the start of the server.
    pub recovered_percent: u8,
}

/// The outcome of a receive.
#[derive(Debug)]
pub enum Received<'a> {
    /// At least one byte.
    Bytes(&'a mut [u8]),
    /// The peer has closed its sending side.
    Eof,
    /// The connection is lost in both directions.
    Broken,
}

/// An event. If it contains an error that needs to be logged, the caller has already logged it.
pub enum Input<'a> {
    /// A receive ended.
    Received(SessionId, Received<'a>),
    /// A send ended, and the kernel accepted this many of its bytes. If there was an error, or no
    /// bytes were accepted, the connection is broken.
    Sent(SessionId, Spans, io::Result<usize>),
    /// A [`LogStep::Write`] ended, and this many of its bytes were written.
    LogWritten(Vec<u8>, io::Result<usize>),
    /// A [`LogStep::Sync`] ended.
    LogSynced(io::Result<()>),
    /// A [`LogStep::Open`] ended.
    LogOpened(io::Result<OpenSegment>),
    /// The state was read back and a new segment is open. After an error, the shard tries again
    /// later. For a shard created with [`Shard::recovering`](super::Shard::recovering), this is the
    /// first input about the log.
    Rebuilt(io::Result<RestoredState>),
    /// The log's files are no longer at their paths, so anything written to them would be lost.
    LogDisplaced,
    /// The log was measured, because a segment was opened, a compaction freed space, or the free
    /// space of the disk changed.
    LogSize(LogSize),
    /// The answer to an [`Output::Page`].
    Page(SessionId, Answer),
    /// The server is stopping, so the shard refuses new requests, writes the remaining ops and
    /// closes all sessions. A second `Drain` closes them without waiting.
    Drain,
}

/// The state of a shard as it was read from the log, and the segment in which its log continues.
pub struct RestoredState {
    /// The segment that was opened for the ops that follow.
    pub segment: OpenSegment,
    /// The workspaces that the shard owns.
    pub workspaces: Vec<Workspace>,
    /// The random id of the generation that begins with this state.
    pub generation: Generation,
    /// The generations that the log holds. `None` after a rebuild: the shard has recorded them.
    pub logged: Option<LoggedGenerations>,
}

/// The earlier generations of a shard, as far as the log shows them when the server starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoggedGenerations {
    /// The highest number of a generation in the log, in any folder; 0 if there is none.
    pub last_number: u64,
    /// The generation that the state continues; `None` if that is not certain for all workspaces of
    /// the shard.
    pub previous: Option<Generation>,
}

/// An action for the caller to carry out.
#[derive(Debug)]
pub enum Output {
    /// Receive on the session's connection.
    Receive(SessionId),
    /// Send the spans, in order.
    Send(SessionId, Spans),
    /// Close the sending side, because the last byte was sent.
    Finish(SessionId),
    /// Shut down both sides, so that the operations in flight end.
    Abort(SessionId),
    /// Close the descriptor and forget the session, which has nothing in flight.
    Close(SessionId),
    /// Move the connection to the shard that owns its workspace, and forget the session here.
    Handoff(SessionId, u32, Box<Handoff>),
    /// Write this note about the connection to the server's log. Only with
    /// [`ShardConfig::has_journal`].
    Note(SessionId, Box<Note>),
    /// Render a page and return it immediately as [`Input::Page`].
    Page(SessionId, PageRequest),
    /// Carry out the next step of the log on its open segment.
    Log(LogStep),
    /// Create the segment that follows the failed one, which ends at this point, and read back the
    /// shard's state.
    Rebuild(End),
    /// The shard can serve again (`true`), or no longer can (`false`).
    Ready(bool),
    /// All sessions are closed and the log is sealed.
    Drained,
}

/// A verified request, to be passed to the shard that owns its workspace.
#[derive(Debug)]
pub struct Handoff {
    pub(super) workspace: String,
    pub(super) intent: Intent,
    /// The time that the client may still wait for its answer.
    pub(super) left_us: u64,
    /// The bytes that the client sent after its request.
    pub(super) unparsed: Vec<u8>,
}

/// The contents of a 101 answer.
#[derive(Debug)]
pub(super) struct Acceptance {
    pub key: String,
    pub subprotocol: Option<&'static str>,
}

/// A verified request to join a workspace.
#[derive(Debug)]
pub(super) struct JoinRequest {
    pub grant: Grant,
    /// The subject of the token. Only with version 2 or [`ShardConfig::has_journal`].
    pub subject: Option<Box<str>>,
    pub acceptance: Acceptance,
    /// The self-chosen name of the client.
    pub user: Option<Box<str>>,
    pub version: ProtocolVersion,
    /// The point from which a version 2 client resumes.
    pub resume: Option<ResumePoint>,
    /// Whether a version 2 client wants to be a peer.
    pub has_presence: bool,
    /// The earlier connection of a version 2 client, whose peer it replaces.
    pub replaces: Option<u64>,
}

/// The purpose of a request to a workspace.
#[derive(Debug)]
pub(super) enum Intent {
    /// To join the workspace as a member.
    Join(Box<JoinRequest>),
    /// To read the state or the presence of the workspace over HTTP.
    Read {
        target: ReadTarget,
        if_none_match: Option<String>,
        allow_origin: Option<String>,
        head_only: bool,
    },
}
