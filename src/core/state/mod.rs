//! The state of workspaces, and its recovery from the log.

pub mod placement;
pub mod replay;
pub mod segment_usage;
pub mod workspace;
pub mod write_allowance;

mod index;
