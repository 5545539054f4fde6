//! Checks the checks before anything is measured: servers with one planted fault each are put under
//! load, and the load generator must detect it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use etherply::wire::frame::put_text_header;
use tungstenite::handshake::derive_accept_key;

use crate::load::check::Mismatch;
use crate::load::endpoint::{Endpoint, Tls};
use crate::load::failure::Failure;
use crate::load::op::FieldOrder;
use crate::load::pace::Pace;
use crate::load::plan::Plan;
use crate::load::protocol::ClientProtocol;
use crate::load::run::{self, Outcome};

#[cfg(test)]
mod tests;

/// The mistake that a server makes in one delivery to one of its receivers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Altered,
    Dropped,
    Doubled,
    DroppedLast,
    DoubledLast,
    Closed,
    /// Version 2: `saved` covers an op that the client has not sent.
    SavedUnsent,
    /// Version 2: the sender never receives `saved` for its last op.
    UnsavedLast,
}

const FAULTS: [Fault; 9] = [
    Fault::None,
    Fault::Altered,
    Fault::Dropped,
    Fault::Doubled,
    Fault::DroppedLast,
    Fault::DoubledLast,
    Fault::Closed,
    Fault::SavedUnsent,
    Fault::UnsavedLast,
];

const RECEIVERS: u32 = 3;
/// The number of ops in a run: 30 ms at 1,000 ops/s.
const OPS: u64 = 30;
/// The op that goes wrong, unless it is the last.
const VICTIM: u64 = 10;
/// The receiver for which it goes wrong.
const VICTIM_RECEIVER: usize = 1;

/// The wrapper in which the server uses a connection, and the TLS with which clients reach it.
#[derive(Clone)]
struct Transport {
    wrap: fn(TcpStream) -> io::Result<Box<dyn Duplex>>,
    tls: Option<Tls>,
}

trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

/// Runs the servers in sequence; returns the first fault that was not detected.
pub fn run() -> Result<(), String> {
    run_over(&Transport {
        wrap: |stream| Ok(Box::new(stream)),
        tls: None,
    })
}

fn run_over(transport: &Transport) -> Result<(), String> {
    let tries = [ClientProtocol::V1, ClientProtocol::V2]
        .into_iter()
        .flat_map(|protocol| FAULTS.map(|fault| (protocol, fault)));
    for (protocol, fault) in tries {
        if fault.is_of_version_2() && !protocol.is_v2() {
            continue;
        }
        let outcome = try_fault(fault, protocol, transport);
        let outcome = outcome.map_err(|error| format!("self-check: {error}"))?;
        if !is_noticed(fault, &outcome) {
            let outcome = outcome.map_or_else(
                |failure| failure.to_string(),
                |outcome| format!("{} deliveries, all right", outcome.deliveries),
            );
            return Err(format!(
                "self-check: the outcome of a server of {} with the fault {fault:?} was: {outcome}",
                protocol.title()
            ));
        }
    }
    Ok(())
}

impl Fault {
    fn is_of_version_2(self) -> bool {
        matches!(self, Self::SavedUnsent | Self::UnsavedLast)
    }
}

fn is_noticed(fault: Fault, outcome: &Result<Outcome, Failure>) -> bool {
    match (fault, outcome) {
        (Fault::None, outcome) => outcome.is_ok(),
        (
            Fault::Altered | Fault::Dropped | Fault::Doubled,
            Err(Failure::Wrong { mismatch, .. }),
        ) => {
            // A duplicated op takes the place of the one after it.
            let at = VICTIM + u64::from(fault == Fault::Doubled);
            matches!(mismatch, Mismatch::Different { number, .. } if *number == at)
                || fault == Fault::Doubled
                    && matches!(mismatch, Mismatch::Extra { count, .. } if *count == at)
        }
        (
            Fault::DroppedLast,
            Err(Failure::Missing {
                number, missing, ..
            }),
        ) => *number == OPS - 1 && *missing == 1,
        (Fault::DoubledLast, Err(Failure::Wrong { mismatch, .. })) => {
            matches!(mismatch, Mismatch::Extra { count, .. } if *count == OPS)
        }
        (Fault::Closed, Err(Failure::Gone { .. })) => true,
        (Fault::SavedUnsent, Err(Failure::Wrong { mismatch, .. })) => {
            matches!(mismatch, Mismatch::Saved { saved, .. } if *saved == VICTIM)
        }
        (Fault::UnsavedLast, Err(Failure::Unsaved { saved, sent, .. })) => {
            (*saved, *sent) == (OPS - 1, OPS)
        }
        _ => false,
    }
}

fn try_fault(
    fault: Fault,
    protocol: ClientProtocol,
    transport: &Transport,
) -> io::Result<Result<Outcome, Failure>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = Endpoint::plain(listener.local_addr()?, "any".to_owned());
    let endpoint = endpoint
        .with_tls(transport.tls.clone())
        .with_protocol(protocol);
    let wrap = transport.wrap;
    // The thread ends when its clients do, with a meaningless error.
    thread::spawn(move || serve(&listener, fault, protocol, wrap));
    let plan = Plan {
        rooms: 1,
        receivers: RECEIVERS,
        pace: Pace::Open { ops_per_s: 1000 },
        protocol,
        field_order: FieldOrder::AsSent,
        has_state: false,
        warm_up: Duration::ZERO,
        measured: Duration::from_millis(OPS),
        late: Duration::from_millis(200),
    };
    Ok(run::run(&endpoint, &plan, &mut || None))
}

/// A client of a faulty server.
struct Client {
    socket: TcpStream,
    stream: Box<dyn Duplex>,
}

/// Accepts a sender and its receivers, and passes on the sender's ops, with the fault.
fn serve(
    listener: &TcpListener,
    fault: Fault,
    protocol: ClientProtocol,
    wrap: fn(TcpStream) -> io::Result<Box<dyn Duplex>>,
) -> io::Result<()> {
    let mut sender = accept(listener, protocol, wrap)?;
    let receivers: io::Result<Vec<Client>> = (0..RECEIVERS)
        .map(|_| accept(listener, protocol, wrap))
        .collect();
    let mut receivers = receivers?;
    let mut number = 0;
    loop {
        let mut header = [0; 8];
        sender.stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let mut payload = vec![0; length];
        sender.stream.read_exact(&mut payload)?;
        for (byte, mask) in payload.iter_mut().zip(header[4..].iter().cycle()) {
            *byte ^= mask;
        }
        let text = String::from_utf8_lossy(&payload);
        // The id of a message is the seq of its op, since only one client writes.
        let frame = text_frame(&text.replace(r#","id":"#, r#","seq":"#));
        let is_victim = match fault {
            Fault::DroppedLast | Fault::DoubledLast => number == OPS - 1,
            _ => number == VICTIM,
        };
        for (place, receiver) in receivers.iter_mut().enumerate() {
            let is_faulty = is_victim && place == VICTIM_RECEIVER;
            send(
                receiver,
                &frame,
                if is_faulty { fault } else { Fault::None },
            )?;
        }
        number += 1;
        if protocol.is_v2() && !(fault == Fault::UnsavedLast && number == OPS) {
            let is_unsent = fault == Fault::SavedUnsent && is_victim;
            // No op of the run has this id, no matter how far the sender is ahead of the server.
            let id = if is_unsent { OPS + 1 } else { number };
            let saved = format!(r#"{{"type":"saved","payload":{{"id":{id}}},"seq":{id}}}"#);
            sender.stream.write_all(&text_frame(&saved))?;
        }
    }
}

fn send(receiver: &mut Client, frame: &[u8], fault: Fault) -> io::Result<()> {
    let Client { socket, stream } = receiver;
    match fault {
        Fault::None | Fault::SavedUnsent | Fault::UnsavedLast => stream.write_all(frame),
        Fault::Dropped | Fault::DroppedLast => Ok(()),
        Fault::Doubled | Fault::DoubledLast => stream.write_all(&[frame, frame].concat()),
        Fault::Closed => socket.shutdown(Shutdown::Both),
        Fault::Altered => {
            let mut altered = frame.to_vec();
            let last = altered.len() - 3;
            altered[last] ^= 1;
            stream.write_all(&altered)
        }
    }
}

/// Accepts a client: upgrade and first message.
fn accept(
    listener: &TcpListener,
    protocol: ClientProtocol,
    wrap: fn(TcpStream) -> io::Result<Box<dyn Duplex>>,
) -> io::Result<Client> {
    let (socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut stream = wrap(socket.try_clone()?)?;
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        seen.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&seen).into_owned();
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
    let named = protocol.subprotocol().map_or_else(String::new, |name| {
        format!("Sec-WebSocket-Protocol: {name}\r\n")
    });
    let state: &[&str] = if protocol.is_v2() {
        &[
            r#"{"type":"welcome","payload":{"state":"full"}}"#,
            r#"{"type":"synced","payload":{},"seq":0}"#,
        ]
    } else {
        &[r#"{"type":"init","data":{}}"#]
    };
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{named}\r\n"
    )?;
    for text in state {
        stream.write_all(&text_frame(text))?;
    }
    stream.flush()?;
    Ok(Client { socket, stream })
}

fn text_frame(text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    put_text_header(&mut frame, text.len());
    frame.extend_from_slice(text.as_bytes());
    frame
}
