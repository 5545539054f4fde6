//! The commands beside `serve`: each reads its settings, does its work, and prints. What they know of logs and tokens stands
//! in the rooms below.

pub mod cli_docs;
pub mod doctor;
pub mod log;
pub mod token;

mod output;
mod progress;
mod text;

pub use output::print_help;
