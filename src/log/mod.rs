//! The log: how ops are written to disk, and how they are read back.

pub mod blocks;
pub mod census;
pub mod chain;
pub mod commit;
pub mod compaction;
pub mod directory;
pub mod disk;
pub mod log_files;
#[cfg(test)]
mod mortal_disk;
pub mod past_end;
pub mod position;
pub mod read_only;
pub mod record;
pub mod recovery;
pub mod remedy;
pub mod repair;
pub mod reserve;
mod rewrite;
pub mod schedule;
pub mod segment;
