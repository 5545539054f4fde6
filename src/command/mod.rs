//! The commands beside `serve`: each reads its settings, does its work, and prints. What they know of logs and tokens stands
//! in the rooms below.

pub mod doctor;
pub mod log;
pub mod paper;
pub mod token;

pub mod output;
mod progress;
mod text;
