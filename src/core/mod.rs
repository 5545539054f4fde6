//! The server's logic as a pure state machine: no clock, no IO. Start reading at [`shard`].

pub mod fanout;
pub mod shard;
pub mod snapshot;
pub mod state;
pub mod testing;
