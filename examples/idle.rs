//! Connects many idle clients and reports the server's resident memory per client.
//!
//! ```text
//! cargo run --release --example idle -- URL PID COUNT [apart]
//! ```
//!
//! URL is printed by `serve --dev`, and PID is the process id of the server. With `apart`, each
//! client has its own workspace.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (url, pid, count, apart) = match arguments[..] {
        [url, pid, count] => (url, pid, count.parse(), false),
        [url, pid, count, "apart"] => (url, pid, count.parse(), true),
        _ => (" ", "", "".parse(), false),
    };
    let (Some((host, target)), Ok(count @ 1..)) = (split(url), count) else {
        eprintln!("usage: idle URL PID COUNT [apart]");
        return ExitCode::from(2);
    };
    match measure(host, target, pid, count, apart) {
        Ok(bytes) => {
            println!("{count} idle connections: {bytes} bytes of resident memory each");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error} (is `ulimit -n` of both processes over {count}?)");
            ExitCode::FAILURE
        }
    }
}

/// Splits `ws://host:port/path?query` into the host with the port and the request target.
fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("ws://")?;
    Some(rest.split_at(rest.find('/')?))
}

fn measure(
    host: &str,
    target: &str,
    pid: &str,
    count: usize,
    apart: bool,
) -> Result<usize, String> {
    let before = resident_bytes(pid)?;
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        let target = if apart {
            target.replacen('?', &format!("-{number}?"), 1)
        } else {
            target.to_owned()
        };
        let client =
            connect(host, &target).map_err(|error| format!("connection {number}: {error}"))?;
        clients.push(client);
    }
    let after = resident_bytes(pid)?;
    Ok(after.saturating_sub(before) / count)
}

/// Connects a client and reads its init message, after which the server has no more work to do for
/// it.
fn connect(host: &str, target: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(host)?;
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    let mut bytes = [0; 512];
    while !answer.windows(7).any(|window| window == b"\"init\",") {
        match stream.read(&mut bytes)? {
            0 => {
                return Err(std::io::Error::other(
                    String::from_utf8_lossy(&answer).into_owned(),
                ));
            }
            length => answer.extend_from_slice(&bytes[..length]),
        }
    }
    Ok(stream)
}

fn resident_bytes(pid: &str) -> Result<usize, String> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| format!("{path} tells no VmRSS"))
}
