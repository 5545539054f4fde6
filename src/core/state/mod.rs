//! Workspaces, and how they come back from the log.

pub mod replay;
pub mod segment_usage;
pub mod workspace;

mod index;
