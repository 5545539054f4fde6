//! The state of a workspace as bytes, encoded once for all sessions that are sent it.
//!
//! `snapshots` is the part of the shard that decides what is encoded and what may be held. A
//! small state is encoded at once, a large one over several turns by a `state_encoder`. Both are
//! handed out as a `shared_snapshot`, and `snapshot_budget` counts what they take.

pub(in crate::core) mod shared_snapshot;
pub(in crate::core) mod snapshot_budget;
pub(in crate::core) mod snapshots;
pub(in crate::core) mod state_encoder;
