//! What several benches share.

pub mod process;
pub mod resp;
