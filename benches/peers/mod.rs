//! The servers with which ours is compared. Each implements as much of the protocol as a
//! measurement needs.

use std::process::ExitCode;

mod axum;
mod floor;
pub mod redis;

/// The peers that [`serve`] knows.
pub const NAMES: [&str; 2] = ["floor", "axum"];

/// Runs the peer of this name until it is killed. Like `etherply serve`, it prints its address on
/// its first line.
pub fn serve(name: &str, arguments: &[String]) -> ExitCode {
    let outcome = match name {
        "floor" => floor::serve(arguments),
        "axum" => axum::serve(arguments),
        _ => Err(std::io::Error::other("no such peer")),
    };
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{name}: {error}");
    ExitCode::FAILURE
}

/// Prints the line that `etherply serve` prints.
fn tell_address(address: std::net::SocketAddr) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}
