//! The version 2 messages (P110 to P183): what a client may send is parsed into a
//! [`ClientEnvelope`]; what the server sends is encoded as text frames, with the exact length known
//! in advance and without allocating.

mod client;
mod parse;
mod presence;
mod refused;
mod server;
mod state_chunk;
#[cfg(test)]
mod testing;

pub use client::{
    ClientChange, ClientEnvelope, ClientMessage, ClientMessageError, ClientOp, RefusedMessage,
};
pub use presence::{PresenceFrame, put_peer};
pub use server::{
    OpEnvelope, SHORT_FRAME_BYTES_MAX, Welcome, WelcomeLimits, WelcomeReason, cast_frame_bytes,
    error_frame_bytes, op_frame_bytes, put_cast, put_error, put_op, put_op_start, put_pong,
    put_saved, put_synced, put_token,
};
pub use state_chunk::StateChunk;
