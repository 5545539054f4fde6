//! The log: what an op becomes on disk, and how it comes back.

pub mod record;
pub mod recovery;
pub mod segment;
