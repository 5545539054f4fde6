//! What the server is measured against. Each peer speaks as much of the wire contract as a measurement needs.

use std::process::ExitCode;

mod axum;
mod floor;
pub mod redis;

/// The peers that [`serve`] knows.
pub const NAMES: [&str; 2] = ["floor", "axum"];

/// Is the peer of this name, until it is killed. Its first line on stdout tells where it listens, as that of `etherply serve` does.
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

/// The same line as that of `etherply serve`.
fn tell_address(address: std::net::SocketAddr) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}
