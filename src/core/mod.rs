//! The server's logic as a pure state machine: no clock, no IO. Open [`shard`] first.

pub mod absence;
pub mod chunk;
pub mod contract;
pub mod counters;
pub mod deal;
pub mod journal;
pub mod log_space;
pub mod outbox;
pub mod rate;
pub mod session;
pub mod shard;
pub mod text;
pub mod timers;
pub mod usage;
pub mod window;
pub mod workspace;
pub mod yielding;

mod budget;
mod cut;
mod delivery;
mod encoding;
mod eviction;
mod failure;
mod handshake;
mod held;
mod index;
mod intake;
mod ledger;
mod lifetime;
mod look;
mod presence;
mod rest;
mod room;
mod snapshot;
mod waiting;
