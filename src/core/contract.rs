//! What a [`Shard`](super::shard::Shard) and its caller tell each other.

use std::io;
use std::sync::Arc;

use crate::core::fanout::window::Spans;
use crate::core::shard::connection_log::Note;
use crate::core::shard::log_space::LogSize;
pub use crate::core::shard::session::ListenerKind;
use crate::core::shard::session::SessionId;
use crate::core::state::workspace::Workspace;
use crate::log::commit::{Durability, End, LogStep, OpenSegment};
use crate::wire::auth::{Grant, Verifier};
use crate::wire::upgrade::{Answer, PageRequest, ReadTarget};

/// The time, as the caller sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Monotonic microseconds from any start.
    pub now_us: u64,
    /// Microseconds since the Unix epoch.
    pub unix_us: u64,
}

/// What a shard must know; the same for its whole life, but for the verifier.
#[derive(Clone)]
pub struct ShardConfig {
    /// Its number.
    pub shard: u32,
    /// How many there are.
    pub shards: u32,
    /// When an op counts as kept.
    pub durability: Durability,
    /// Between two fdatasyncs of `interval` mode.
    pub sync_interval_us: u64,
    /// Between two pings.
    pub ping_interval_us: u64,
    /// What a client may have queued before it is conflated.
    pub outbox_bytes_max: usize,
    /// The longest message.
    pub message_bytes_max: usize,
    /// What may be held for single sessions: [`crate::limits::session_budget_bytes`].
    pub session_bytes_max: usize,
    /// What the texts of states may take that are on their way to anybody.
    pub snapshot_bytes_max: usize,
    /// What is encoded of states in a turn; one that is no larger is encoded at once.
    pub snapshot_part_bytes: usize,
    /// A batch of ops that has reached this size takes no more messages until it is written.
    pub batch_bytes_max: usize,
    /// A segment of the log may grow to this size, however little of it is live;
    pub segment_bytes_min: u64,
    /// and not beyond this one.
    pub segment_bytes_max: u64,
    /// What the log may have beside what its live data allow, before anybody is slowed down.
    pub log_spare_bytes: u64,
    /// How far ahead of the clock a timestamp may be.
    pub future_skew_us: u64,
    /// How long a drain may take.
    pub drain_us: u64,
    /// Keys the hash of every workspace's keys.
    pub hash_seed: u64,
    /// A random id of this start of the server, the same for all its shards.
    pub start_id: u64,
    /// Checks tokens.
    pub verifier: Arc<Verifier>,
    /// The origins whose pages may connect and read (RFC 6454); none named: all.
    pub origins: Arc<[String]>,
    /// What protects the server from its clients.
    pub limits: Limits,
    /// Whether it notes each connection for the log ([`Output::Note`]).
    pub has_journal: bool,
    /// Handling an op with this key panics: a fault for tests.
    pub fault_panic_key: Option<String>,
}

/// What protects the server from its clients; None: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Messages of one connection in a second.
    pub ops_per_second: Option<u32>,
    /// Members of one workspace.
    pub connections_per_workspace: Option<usize>,
    /// What a workspace's entries may take in a log in which nothing is dead.
    pub workspace_bytes: Option<u64>,
    /// Requests with a token in a second, of all shards together: each takes its share.
    pub handshakes_per_second: Option<u32>,
}

/// What the caller sees of the other shards, brought up to date before a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStatus {
    /// Every shard can write its log.
    pub ready: bool,
    /// How much of the log has been read, while the server starts.
    pub recovered_percent: u8,
}

/// What a receive ended with.
#[derive(Debug)]
pub enum Received<'a> {
    /// At least one byte.
    Bytes(&'a mut [u8]),
    /// The peer has closed its sending side.
    Eof,
    /// The connection is lost in both directions.
    Broken,
}

/// Something that happened. Of an error the caller has reported all that is worth reporting.
pub enum Input<'a> {
    /// A receive ended.
    Received(SessionId, Received<'a>),
    /// A send ended, and the kernel took this many bytes of it. With an error, or with none, the
    /// connection is broken.
    Sent(SessionId, Spans, io::Result<usize>),
    /// A [`LogStep::Write`] ended, and this many bytes of it were written.
    LogWritten(Vec<u8>, io::Result<usize>),
    /// A [`LogStep::Sync`] ended.
    LogSynced(io::Result<()>),
    /// A [`LogStep::Open`] ended.
    LogOpened(io::Result<OpenSegment>),
    /// The state was read back and a new segment is open. With an error the shard tries again
    /// later. It is the first input of the log for a shard that began with
    /// [`Shard::recovering`](super::shard::Shard::recovering).
    Rebuilt(io::Result<(OpenSegment, Vec<Workspace>)>),
    /// The log's files are not at their paths any more. What is written to them would be lost.
    LogDisplaced,
    /// The log was measured: after a segment was opened, a compaction has freed something, or the room on
    /// the disk has changed.
    LogSize(LogSize),
    /// The page that was asked for.
    Page(SessionId, Answer),
    /// Stop: refuse, finish, close. A second one closes everybody at once.
    Drain,
}

/// Something that the caller is to do.
#[derive(Debug)]
pub enum Output {
    /// Receive on the session's connection.
    Receive(SessionId),
    /// Send the spans, in order.
    Send(SessionId, Spans),
    /// Close the sending side: the last byte is out.
    Finish(SessionId),
    /// Shut both sides down, so that what is in flight comes back.
    Abort(SessionId),
    /// Nothing is in flight: close the descriptor and forget the session.
    Close(SessionId),
    /// Move the connection to the shard that owns its workspace, and forget the session here.
    Handoff(SessionId, u32, Box<Handoff>),
    /// Log this of the connection. Only with [`ShardConfig::has_journal`].
    Note(SessionId, Box<Note>),
    /// Make a page, and bring it back at once as [`Input::Page`].
    Page(SessionId, PageRequest),
    /// Take the next step of the log, on its open segment.
    Log(LogStep),
    /// Open the segment behind the failed one, which ends there, and read the shard's state back.
    Rebuild(End),
    /// The shard serves, or does not any more.
    Ready(bool),
    /// All sessions are closed and the log is sealed.
    Drained,
}

/// A request that was read and checked: what the owner of its workspace needs to go on.
#[derive(Debug)]
pub struct Handoff {
    pub(super) workspace: String,
    pub(super) intent: Intent,
    /// How long the client may still wait for its answer.
    pub(super) left_us: u64,
    /// What the client sent behind its request.
    pub(super) unparsed: Vec<u8>,
}

/// What a client wants of a workspace.
#[derive(Debug)]
pub(super) enum Intent {
    /// To be a member.
    Join {
        grant: Grant,
        /// For the journal, where there is one.
        subject: Option<Box<str>>,
        accept_key: String,
        user: Option<Box<str>>,
    },
    /// To look at it.
    Read {
        target: ReadTarget,
        if_none_match: Option<String>,
        allow_origin: Option<String>,
        head_only: bool,
    },
}

/// The shard that owns a workspace. The same on every start with the same count, and spread evenly.
#[must_use]
pub fn shard_of(workspace: &str, shards: u32) -> u32 {
    let hash = crc32c::crc32c(workspace.as_bytes());
    // Multiply and shift instead of a remainder: all bits of the hash count (Lemire, 2016).
    u32::try_from((u64::from(hash) * u64::from(shards)) >> 32)
        .expect("less than the count of shards")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspaces_are_spread_and_stay_where_they_are() {
        for shards in [1_u32, 2, 3, 7, 64] {
            let mut counts = vec![0_u32; shards as usize];
            for workspace in 0..6400 {
                let id = format!("workspace-{workspace}");
                counts[shard_of(&id, shards) as usize] += 1;
                assert_eq!(shard_of(&id, shards), shard_of(&id, shards));
            }
            let fair = 6400 / shards;
            assert!(
                counts
                    .iter()
                    .all(|count| (fair / 2..=fair * 2).contains(count)),
                "{shards}: {counts:?}"
            );
        }
    }
}
