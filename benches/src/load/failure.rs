//! The failures that invalidate a run.

use std::io;

use thiserror::Error;

use super::check::Mismatch;

#[derive(Debug, Error)]
pub enum Failure {
    #[error("room {room}, receiver {place}: {mismatch}")]
    Wrong {
        room: u32,
        place: u32,
        mismatch: Mismatch,
    },
    #[error(
        "room {room}: op {number} of {sent} has not reached {missing} of {receivers} receivers \
         after {after_ms} ms, including receiver {first}\n  expected {expected}"
    )]
    Missing {
        room: u32,
        number: u64,
        sent: u64,
        missing: usize,
        receivers: u32,
        first: u32,
        after_ms: u64,
        expected: String,
    },
    #[error(
        "room {room}: {sent} ops were sent, and after {after_ms} ms only those up to {saved} are \
         saved"
    )]
    Unsaved {
        room: u32,
        saved: u64,
        sent: u64,
        after_ms: u64,
    },
    #[error("room {room}, connection {place}: the connection is gone: {why}")]
    Gone { room: u32, place: u32, why: String },
    #[error("workspace {workspace}: a client cannot join: {error}")]
    Join { workspace: String, error: io::Error },
    #[error(
        "room {room}: a client that joins receives a wrong state\n  \
         expected {expected}\n  received {received}"
    )]
    State {
        room: u32,
        expected: String,
        received: String,
    },
    #[error("the ring of the load generator: {0}")]
    Ring(#[from] io::Error),
}
