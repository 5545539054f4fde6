//! `EtherPly`, a sync server. A workspace is a small shared state: a map from keys to JSON values.
//! The server stores it, orders the clients' changes, and broadcasts each change to all other
//! clients of the workspace.
//!
//! # What it promises
//!
//! - With `--durability always`, everything a client sees is already on disk: each broadcast, each
//!   correction and each state waits for the write that contains it. A crash undoes nothing that a
//!   client has seen. The other two modes trade this for latency ([`wire`], P60 to P64).
//! - A version 2 client receives `saved` for its edits (P150). After a reconnect, it is sent only
//!   the changes, including deletes, or the whole state if the changes might not suffice (P141).
//! - All clients of a workspace receive its ops in the same order, and the op with the greater
//!   timestamp wins. A client that applies every op that is not older than the one it holds ends up
//!   with the server's state, however slow it was (P55 to P59, P72).
//! - Memory is bounded: every bound in [`limits`] comes with a rule for what happens when it is
//!   reached.
//! - Input from a client never causes a panic. Invalid input becomes a typed error, and the error
//!   becomes an answer.
//!
//! # The path of an op
//!
//! ```text
//! socket ─► ring ─► worker ─► Shard::handle ─► frame ─► message ─► Workspace::apply
//!                                                                       │ won: seq
//!                                   commit: appended to the batch ◄─────┤
//!                        windows: a frame for each protocol version ◄───┘
//!            worker ◄─ Shard::flush: 1. the batch is written and synced
//! socket ◄─ ring ◄┘                  2. what is durable is sent, then `saved`
//!                                    3. receives are armed again
//! ```
//!
//! One thread per core runs one shard. The hash of a workspace's id selects its shard, which owns
//! its clients, its state and its log. Shards share no lock and no mutable memory on the path of an
//! op.
//!
//! # Which file to open first
//!
//! The server as a state machine, in [`core`]:
//!
//! - the contract, and the order of a turn: [`core::shard::contract`], [`core::shard`]
//! - a connection, from its request head until it joins a workspace: `core::shard::handshake`
//! - decoding messages: `core::shard::intake`; applying them to the state, errors and corrections:
//!   `core::shard::apply`
//! - which op wins, and the order of ops: [`core::state::workspace`]
//! - broadcasts, slow clients, pacing: `core::shard::delivery`, [`core::fanout::window`],
//!   [`core::fanout::outbox`], `core::fanout::pacer`
//! - init messages, and states over HTTP: `core::snapshot`, `core::shard::http_read`
//! - version 2: joining and resuming: `core::shard::state_sync`, `core::shard::generations`;
//!   `saved`: `core::shard::settlement`; presence: [`core::fanout::peers`],
//!   `core::shard::presence_turns`
//! - expiries and dropped tombstones: `core::shard::expiry`
//! - pings, time-outs: `core::shard::deadlines`; closing, the drain: `core::shard::closing`
//! - log failures, panics, rebuilding: `core::shard::failure`
//! - the size limit of a log, and a full disk: [`core::shard::log_space`]
//! - memory: [`core::fanout::chunk_pool`], `core::shard::session_budget`, `core::shard::eviction`
//!
//! The bytes on the wire, in [`wire`], which is also the protocol reference:
//!
//! - request heads and HTTP responses: [`wire::upgrade`]
//! - tokens: [`wire::auth`], and the source of their secrets: [`config`], [`io::secrets`]
//! - frames: [`wire::frame`]; messages: [`wire::message`] ([`wire::message::v2`] for version 2);
//!   states: [`wire::state`]
//!
//! The log, in [`log`]:
//!
//! - the format, and what a crash can leave behind: [`log::record`]
//! - when an op is durable: [`log::commit`], [`log::position`]
//! - reading it back: [`log::chain`], [`log::recovery`], [`core::state::replay`], [`io::recovery`]
//! - compaction: [`log::compaction`], [`log::schedule`], [`io::compactor`]
//! - repair: [`log::repair`]
//!
//! The process:
//!
//! - start, threads, signals, stop: [`io::server`]
//! - the event loop of a core, its ring and its receive buffers: [`io::worker`], [`io::ring`],
//!   [`io::buffers`]
//! - the listening socket, and restarts without refused connections: [`io::listener`]
//! - metrics, the console and the client module: [`admin`]; the state that threads share:
//!   [`status`]
//! - flags and variables: [`config`]; the other commands: [`command`]
//! - the configuration and the source of randomness for all tests: [`core::testing`]
//! - all bounds: [`limits`]; the order of a workspace's ops: [`seq`]; the identity of its history:
//!   [`generation`]
//!
//! # Architecture invariants
//!
//! Imports go one way: `main` → [`command`] → [`io`] → [`admin`] → {[`status`], [`config`]} →
//! {[`core`], the rest of [`log`]} → {[`wire`], [`log::commit`], [`log::record`],
//! [`log::position`]} → {[`limits`], [`seq`], [`generation`]}. A layer may skip others, and there
//! are no import cycles between files or folders, direct or indirect.
//!
//! [`core`], [`wire`], [`log::commit`], [`log::record`] and [`log::position`] are pure: no clock,
//! no randomness, no file, no socket; time is an argument. `unsafe` appears only in [`io::ring`]
//! and [`io::buffers`]. `tests/tidy.rs` checks all of this.
//!
//! # Glossary
//!
//! - **Batch**: the ops in one write to the log. One write is in flight at a time.
//! - **Beyond**: records in a file after the end of its segment. They are reported but not served.
//! - **Cast**: a message from a client to all others in its workspace. It is not stored.
//! - **Chunk**: a buffer of outgoing bytes, shared by all sessions that send it.
//! - **Compaction**: rewriting closed segments without superseded ops.
//! - **Conflation**: sending a client that has fallen behind its window only the latest op of each
//!   changed key.
//! - **Correction**: the winning op, sent to a client whose op lost.
//! - **Damage**: bytes of the log that are wrong even though they had already been written to disk.
//!   The server refuses to start on a damaged log.
//! - **Drain**: closing all connections, spread over some seconds, when the server stops.
//! - **Durable**: confirmed by the disk.
//! - **Entry**: a key of a workspace with the value and the timestamp of its winning op. If that op
//!   is a delete, the entry is a tombstone.
//! - **Epoch**: the random id of a data directory, stored in each of its segments. A segment from
//!   another directory is refused.
//! - **Feed**: the recent broadcasts of a room in one version of the protocol, and the members that
//!   speak this version.
//! - **Floor**: the highest timestamp of the tombstones that a workspace has dropped. An op for a
//!   key without an entry loses unless its timestamp is above the floor.
//! - **Generation**: the random id of the history that a shard adds to, new at each start and after
//!   each rebuild. A client that resumes specifies it.
//! - **Handoff**: a fresh connection on its way from the shard that accepted it to the shard of its
//!   workspace.
//! - **Init**: the first message to a version 1 client, with the whole state.
//! - **Live**: a record of the log is live while its op is the winner of its key, and dead
//!   afterwards.
//! - **Log position**: a byte offset in a shard's log. An op may be shown once the log is durable
//!   up to its position.
//! - **Op**: a write or a delete of one key, by a client or, when a key expires, by the server. An
//!   op that wins supersedes the previous winner of its key.
//! - **Outbox**: the pending output of one session: a cursor into its workspace's window, and the
//!   session's own answers.
//! - **Peer**: a version 2 connection that takes part in presence: other peers see its user and its
//!   value, and it sees theirs.
//! - **Presence**: the users connected to a workspace: user names in version 1, peers in version 2.
//! - **Resume point**: a generation and a seq up to which a client has every change.
//! - **Room**: a workspace on its shard: its state, its presence and its feeds.
//! - **Saved**: the message to a client that its messages up to some id are settled.
//! - **Segment**: a file of a shard's log. The last one is open; the others are closed.
//! - **Seq**: the number of an op that won, counted from 1 per workspace. It survives restarts.
//! - **Session**: a connection on its shard. Slots are reused, so a session's handle also
//!   identifies the use of the slot.
//! - **Settled**: a client's message is settled once it has been answered; an op is settled once it
//!   has won and is durable, has lost and the winner was sent, or was refused with an error.
//! - **Shard**: one event loop, on one core, with its share of the workspaces and its own log.
//! - **Snapshot**: an encoded state, shared by all sessions that receive it.
//! - **Tombstone**: the entry of a deleted key: a timestamp and a seq, but no value.
//! - **Torn tail**: the beginning of a batch that a crash interrupted. It was never confirmed, and
//!   it is truncated at the next startup.
//! - **Turn**: one round of a shard's loop: inputs, one flush, outputs.
//! - **Window**: the recent broadcasts of a feed, encoded once, in order.

pub mod admin;
pub mod command;
pub mod config;
pub mod core;
pub mod generation;
pub mod io;
pub mod limits;
pub mod log;
pub mod seq;
pub mod status;
pub mod wire;
