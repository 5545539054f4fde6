//! The load generator: one thread with its own ring. It keeps the pace, checks every delivery, and
//! times a sample of them.

pub mod check;
pub mod crowd;
pub mod endpoint;
pub mod failure;
pub mod figures;
pub mod first_state;
pub mod join;
pub mod joiner;
pub mod layout;
pub mod op;
pub mod pace;
pub mod peer_run;
pub mod peers;
pub mod plan;
pub mod protocol;
pub mod ring;
pub mod run;
pub mod saved;
pub mod state;
pub mod state_parts;
pub mod tracker;
