//! The wire protocol, as pure functions over bytes: no clock, no IO. The rules of the protocol
//! follow; comments and tests refer to them by number (P1, P2, …).
//!
#![doc = include_str!("protocol.md")]

pub mod auth;
pub mod frame;
mod json;
pub mod message;
pub mod state;
pub mod upgrade;
mod version;

pub use version::ProtocolVersion;
