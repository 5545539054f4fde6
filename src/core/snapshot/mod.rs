//! The state of a workspace as bytes, encoded once for all who join at the time.

pub mod encoded_state;

pub(in crate::core) mod cut;
pub(in crate::core) mod encoded;
pub(in crate::core) mod snapshot_budget;
