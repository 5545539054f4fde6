//! EtherPly.

pub mod core;
pub mod limits;
pub mod log;
pub mod wire;
