//! `EtherPly`: a sync server. A workspace is a small shared state, a map of keys to JSON values. The
//! server keeps it, tells every client in it of each change at once, and never loses one.
//!
//! # The map of the house
//!
//! | to find | open |
//! | --- | --- |
//! | how it all goes together: the state machine and its contract | [`core::shard`], then [`core::contract`] |
//! | which op wins, the order of ops, what changed since | [`core::state::workspace`], `core::state::index` |
//! | the request head, every HTTP answer, percent-decoding | [`wire::upgrade`] |
//! | who may connect: tokens, leeway, rotation | [`wire::auth`], `config::secrets`, [`io::secrets`] |
//! | joining a workspace, init, 500 and 503, health checks | `core::shard::handshake`, `core::fanout::room` |
//! | frames: masking, fragments, UTF-8, close codes | [`wire::frame`] |
//! | states as texts: encoded once for all, large ones in parts, within a bound | `core::shard::encoding`, `core::snapshot::encoded`, `core::snapshot::cut` |
//! | messages: fields, errors, the value's bytes as sent | [`wire::message`] |
//! | a message's way into the state: errors, corrections, 1003, skew | `core::shard::intake` |
//! | broadcasts, slow clients, conflation, what goes out when | `core::shard::delivery`, `core::fanout::pacer`, [`core::fanout::outbox`], [`core::fanout::window`] |
//! | chunks of bytes, the pool that lets the steady state allocate nothing | [`core::fanout::chunk_pool`] |
//! | pings, silence, stalls, 4001, closing, drain | `core::shard::lifetime`, [`core::shard::timers`] |
//! | looks at a workspace without a WebSocket, presence, origins | `core::shard::http_read`, [`wire::state`] |
//! | the console, the client module, who may see what | [`admin`] |
//! | what is counted, how it reaches `/metrics` | [`core::shard::counters`], [`status::stats`], [`admin::metrics`] |
//! | what the threads share: readiness, connections, figures | [`status`] |
//! | a log that fails, a panic, rebuilding | `core::shard::failure` |
//! | when an op is durable: group commit | [`log::commit`] |
//! | what stands on disk, and what a crash can leave | [`log::record`], [`log::segment`], [`log::directory`], [`log::log_files`], [`log::disk`] |
//! | reading the log back, torn tails, damage | [`log::chain`], [`log::recovery`], [`core::state::replay`], [`io::recovery`] |
//! | what is dead in the log goes: compaction | [`log::compaction`], [`core::state::segment_usage`], [`log::schedule`], [`io::compactor`] |
//! | how long a log may become, who waits for compaction, a disk that is nearly full | [`core::shard::log_space`], `core::shard::held_writers`, [`log::schedule`], [`log::reserve`] |
//! | the ring, receive buffers, one core's loop | [`io::ring`], [`io::buffers`], [`io::worker`] |
//! | start-up, threads, signals | [`io::server`], [`io::shard_thread`], [`io::mailbox`] |
//! | the listening socket, one's own or inherited; restarts that refuse nobody | [`io::listener`], `io::worker` |
//! | `etherply log`: a look at the log, its repair | [`command::log`], [`log::snapshot`], [`log::repair`] |
//! | `etherply doctor`: the host's facts, and what is said of them | [`command::doctor`], its `facts`, `read` and `judge` |
//! | completions of shells, manual pages | [`command::cli_docs`] |
//! | flags and variables | [`config`] |
//! | every bound | [`limits`] |
//!
//! # How an op goes
//!
//! ```text
//! socket ─► ring ─► worker ─► Shard::handle ─► frame ─► message ─► Workspace::apply
//!                                                                       │ won: seq
//!                                          commit: the batch ◄──────────┤
//!                                          window: the frame, encoded once
//!            worker ◄─ Shard::flush: 1. write the batch to the disk; 2. sends of what is durable;
//! socket ◄─ ring ◄┘                  3. receives
//! ```
//!
//! # What it promises
//!
//! With `--durability always`, nothing leaves the server that a crash could take back: every
//! broadcast, correction and init waits until the disk has what it shows. All clients
//! of a workspace see its ops in one order. A client that applies every op that is not older than
//! what it holds ends in the server's state, however slow it was.
//!
//! # Architecture invariants
//!
//! Imports go one way: `main` → [`command`] → [`io`] → [`admin`] → {[`status`], [`config`]} →
//! {[`core`], the rest of [`log`]} → {[`wire`], [`log::commit`], [`log::record`]} → [`limits`]; a layer
//! may skip others, and no file or folder imports one that imports it, directly or through others.
//! [`core`], [`wire`], [`log::commit`] and [`log::record`] are pure: no clock, no
//! randomness, no file, no socket; time is an argument. `unsafe` is in [`io::ring`] and
//! [`io::buffers`] only. `tests/tidy.rs` holds all of this. Between shards there is no lock and no
//! shared mutable memory on the way of an op: a workspace lives on one shard.

pub mod admin;
pub mod command;
pub mod config;
pub mod core;
pub mod io;
pub mod limits;
pub mod log;
pub mod seq;
pub mod status;
pub mod wire;
