//! An echo server on this crate's frame codec, to run RFC 6455 conformance suites against:
//!
//! ```text
//! cargo run --release --example echo -- 127.0.0.1:9001
//! ```
//!
//! Any path is accepted without a token, because only frames are under test. Each connection has
//! its own thread.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use etherply::wire::frame::{self, Decoder, FrameEvent, Opcode};
use etherply::wire::upgrade;
use tungstenite::handshake::derive_accept_key;

const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// The time that a closed connection waits for the client to close its side, too.
const LINGER: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Some(address) = std::env::args().nth(1) else {
        eprintln!("usage: echo ADDRESS:PORT");
        return ExitCode::from(2);
    };
    match serve(&address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("ws://{}/", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = talk(stream) {
                eprintln!("echo: {error}");
            }
        });
    }
    Ok(())
}

/// Serves one connection until it ends.
fn talk(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let mut output = Vec::new();
    shake_hands(&mut stream, &mut input, &mut output)?;
    let mut decoder = Decoder::new();
    loop {
        let is_closing = echo(&mut decoder, &mut input, &mut output);
        stream.write_all(&output)?;
        output.clear();
        if is_closing {
            return close(&mut stream);
        }
        if receive(&mut stream, &mut input)? == 0 {
            return Ok(());
        }
    }
}

/// Answers all complete frames in `input`, and returns whether the connection is to be closed.
fn echo(decoder: &mut Decoder, input: &mut Vec<u8>, output: &mut Vec<u8>) -> bool {
    let mut done_bytes = 0;
    loop {
        let step = match decoder.decode(&mut input[done_bytes..], MESSAGE_BYTES_MAX) {
            Ok(step) => step,
            Err(error) => {
                frame::put_close(output, error.close_code(), &error.to_string());
                return true;
            }
        };
        match step.event {
            Some(FrameEvent::Text(text)) => put_message(output, Opcode::Text, text.as_bytes()),
            Some(FrameEvent::Binary(bytes)) => put_message(output, Opcode::Binary, bytes),
            Some(FrameEvent::Ping(payload)) => frame::put_pong(output, payload),
            Some(FrameEvent::Close(Some((code, _)))) => {
                frame::put_close(output, code, "");
                return true;
            }
            Some(FrameEvent::Close(None)) => {
                frame::put_header(output, Opcode::Close, 0);
                return true;
            }
            None if step.consumed == 0 => break,
            Some(FrameEvent::Pong(_)) | None => {}
        }
        done_bytes += step.consumed;
    }
    input.drain(..done_bytes);
    false
}

fn put_message(output: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    frame::put_header(output, opcode, payload.len());
    output.extend_from_slice(payload);
}

/// Reads the request head, regardless of its path, and answers it. Frames that arrive with it stay
/// in `input`.
fn shake_hands(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    output: &mut Vec<u8>,
) -> io::Result<()> {
    loop {
        if receive(stream, input)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(head_bytes) =
            request.parse(input).map_err(io::Error::other)?
        else {
            continue;
        };
        let key = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"))
            .ok_or_else(|| io::Error::other("no Sec-WebSocket-Key"))?;
        upgrade::switching_protocols(&derive_accept_key(key.value), output);
        input.drain(..head_bytes);
        return Ok(());
    }
}

/// Appends the bytes that have arrived to `input`. Returns 0 if the client has closed its side.
fn receive(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<usize> {
    let held_bytes = input.len();
    input.resize(held_bytes + READ_BYTES, 0);
    let received = stream.read(&mut input[held_bytes..]);
    input.truncate(held_bytes + received.as_ref().copied().unwrap_or(0));
    received
}

/// Closes the server's side and reads until the end: closing with unread bytes would reset the
/// connection, and the reset could overtake the close frame.
fn close(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(LINGER))?;
    let mut rest = [0; 4096];
    while matches!(stream.read(&mut rest), Ok(bytes) if bytes > 0) {}
    Ok(())
}
