//! The log: what an op becomes on disk, and how it comes back.

pub mod commit;
pub mod directory;
pub mod record;
pub mod recovery;
pub mod segment;
