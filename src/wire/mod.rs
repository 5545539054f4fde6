//! The outside's formats, as pure functions over bytes: no clock, no IO.

pub mod auth;
pub mod frame;
pub mod message;
pub mod state;
pub mod upgrade;
