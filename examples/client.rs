//! A client for trying out the server: prints the messages of a workspace, and sends the ops that
//! you type.
//!
//! ```text
//! cargo run --release --example client -- 'ws://127.0.0.1:8080/v1/sync/demo?token=…'
//! hello world          sends the op {"key":"hello","value":"world"}
//! count 3              a value that is JSON is sent as it is
//! ```

use std::io::{self, BufRead, ErrorKind};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tungstenite::{Error, Message, WebSocket, client};

/// The time that a read waits before typed lines are checked.
const READ_WAIT: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let Some(url) = std::env::args().nth(1) else {
        eprintln!("usage: client URL (the server prints one with `serve --dev`)");
        return ExitCode::from(2);
    };
    match run(&url) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(url: &str) -> Result<(), String> {
    let host = url
        .strip_prefix("ws://")
        .and_then(|rest| rest.split('/').next())
        .ok_or("the URL begins with ws://HOST:PORT/")?;
    let stream = TcpStream::connect(host).map_err(|error| format!("{host}: {error}"))?;
    let (mut socket, _) = client(url, stream).map_err(|error| error.to_string())?;
    socket
        .get_ref()
        .set_read_timeout(Some(READ_WAIT))
        .map_err(|error| error.to_string())?;
    let typed = typed_lines();
    println!("connected; type KEY VALUE to write, Ctrl-D to leave");
    loop {
        match typed.try_recv() {
            Ok(line) => send(&mut socket, &line)?,
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                let _ = socket.close(None);
                return Ok(());
            }
        }
        match socket.read() {
            Ok(Message::Text(text)) => println!("{text}"),
            Ok(Message::Close(frame)) => {
                return Err(frame.map_or("closed".to_owned(), |frame| format!("closed: {frame}")));
            }
            Ok(_) => {}
            Err(Error::Io(error)) if is_wait(&error) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn send(socket: &mut WebSocket<TcpStream>, line: &str) -> Result<(), String> {
    let Some((key, value)) = line.trim().split_once(' ') else {
        println!("type KEY VALUE");
        return Ok(());
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::from(value));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let timestamp = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let op = serde_json::json!({
        "type": "op",
        "payload": {"key": key, "value": value, "timestamp": timestamp},
    });
    socket
        .send(Message::text(op.to_string()))
        .map_err(|error| error.to_string())
}

fn typed_lines() -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
