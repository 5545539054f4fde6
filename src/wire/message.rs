//! The messages of the [protocol](crate::wire): JSON text in, frames out.
//!
//! [`Parser`] reads a client's message with simd-json and finds the bytes of `payload.value` as
//! they were sent. The value is never reformatted, so `1.0`, `"\u00e9"` and inner spaces reach the
//! other clients unchanged (P47).
//!
//! Both versions share the parser (`walk`). The version 1 messages (P30 to P36, P45 to P48) are in
//! [`v1`], and their names are re-exported here. The version 2 messages (P110 to P183) are in
//! [`v2`].
//!
//! Invariant: parsing allocates nothing once the parser's buffers have grown to the size of the
//! messages.

mod depth;
mod error;
pub mod v1;
pub mod v2;
mod walk;

pub use depth::DeepField;
pub use error::MessageError;
pub use v1::{Message, Op, op_frame_bytes, put_error, put_op, put_op_error};
pub use walk::Parser;
