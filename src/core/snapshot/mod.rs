//! The encoded state of a workspace, shared by all sessions that receive it.
//!
//! `snapshots` decides which states a shard encodes and holds. A small state is encoded
//! immediately, and a large one over several turns by a `state_encoder`. Both are shared as a
//! `shared_snapshot`, and `snapshot_budget` accounts for their memory.
//!
//! Version 2 clients receive the state in parts instead, from `state_chunks`.

pub(in crate::core) mod shared_snapshot;
pub(in crate::core) mod snapshot_budget;
pub(in crate::core) mod snapshots;
pub(in crate::core) mod state_chunks;
pub(in crate::core) mod state_encoder;
