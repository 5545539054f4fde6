//! The commands other than `serve`. Each reads its settings, calls the layers below and prints the
//! result.

pub mod cli_docs;
pub mod doctor;
pub mod log;
pub mod token;

mod output;
mod progress;
mod text;

pub use output::print_help;
