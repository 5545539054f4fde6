//! What the server is measured against: each peer is a server of its own, run by the same binary.

use std::process::ExitCode;

/// Runs a peer until it is killed.
pub fn serve(name: &str, _arguments: &[String]) -> ExitCode {
    eprintln!("no such peer: {name}");
    ExitCode::FAILURE
}
