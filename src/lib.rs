//! `EtherPly`.

pub mod config;
pub mod core;
pub mod io;
pub mod limits;
pub mod log;
pub mod wire;
