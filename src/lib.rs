//! EtherPly.

pub mod limits;
pub mod log;
pub mod wire;
