//! What clients see on the wire, as pure functions over bytes: no clock, no IO. The rules follow;
//! comments and tests name them (P1, P2, …).
//!
#![doc = include_str!("protocol.md")]

pub mod auth;
pub mod frame;
pub mod message;
pub mod state;
pub mod upgrade;
