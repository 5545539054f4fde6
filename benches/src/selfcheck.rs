//! Before anything is measured: servers that each do one thing wrong are put under the load, and the load generator has to notice.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tungstenite::handshake::derive_accept_key;

use crate::load::check::Wrong;
use crate::load::join::Door;
use crate::load::op::Order;
use crate::load::pace::Pace;
use crate::load::{self, Failure, Plan};

/// What a server does wrong with one delivery to one of its receivers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Altered,
    Dropped,
    Doubled,
    DroppedLast,
    DoubledLast,
    Closed,
}

const FAULTS: [Fault; 7] = [
    Fault::None,
    Fault::Altered,
    Fault::Dropped,
    Fault::Doubled,
    Fault::DroppedLast,
    Fault::DoubledLast,
    Fault::Closed,
];

const RECEIVERS: u32 = 3;
/// Ops of the run: at 1,000 in a second, in 30 ms.
const OPS: u64 = 30;
/// The op that goes wrong, unless it is the last.
const VICTIM: u64 = 10;

/// What the checker did not notice, or an empty text.
pub fn run() -> Result<(), String> {
    for fault in FAULTS {
        let outcome = try_fault(fault).map_err(|error| format!("self-check: {error}"))?;
        let is_noticed = match (fault, &outcome) {
            (Fault::None, outcome) => outcome.is_ok(),
            (
                Fault::Altered | Fault::Dropped | Fault::Doubled,
                Err(Failure::Wrong { wrong, .. }),
            ) => {
                // The one that came twice is wrong in the place of the next, the others in their own.
                let at = VICTIM + u64::from(fault == Fault::Doubled);
                matches!(wrong, Wrong::Different { number, .. } if *number == at)
                    || fault == Fault::Doubled
                        && matches!(wrong, Wrong::Extra { count, .. } if *count == at)
            }
            (
                Fault::DroppedLast,
                Err(Failure::Missing {
                    number, missing, ..
                }),
            ) => *number == OPS - 1 && *missing == 1,
            (Fault::DoubledLast, Err(Failure::Wrong { wrong, .. })) => {
                matches!(wrong, Wrong::Extra { count, .. } if *count == OPS)
            }
            (Fault::Closed, Err(Failure::Gone { .. })) => true,
            _ => false,
        };
        if !is_noticed {
            let told = outcome.map_or_else(
                |failure| failure.to_string(),
                |outcome| format!("{} deliveries, all right", outcome.deliveries),
            );
            return Err(format!(
                "self-check: a server whose fault is {fault:?} was judged so: {told}"
            ));
        }
    }
    Ok(())
}

fn try_fault(fault: Fault) -> io::Result<Result<load::Outcome, Failure>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let door = Door {
        address: listener.local_addr()?,
        token: "any".to_owned(),
        prefix: String::new(),
    };
    // It ends when its clients do, with an error that is of no interest.
    thread::spawn(move || serve(&listener, fault));
    let plan = Plan {
        rooms: 1,
        receivers: RECEIVERS,
        pace: Pace::Open { ops_per_s: 1000 },
        order: Order::AsSent,
        has_state: false,
        warm_up: Duration::ZERO,
        measured: Duration::from_millis(OPS),
        late: Duration::from_millis(200),
    };
    Ok(load::run(&door, &plan, &mut || None))
}

/// Takes a sender and its receivers, and sends on what the first sends, with the fault.
fn serve(listener: &TcpListener, fault: Fault) -> io::Result<()> {
    let mut sender = accept(listener)?;
    let receivers: io::Result<Vec<TcpStream>> = (0..RECEIVERS).map(|_| accept(listener)).collect();
    let mut receivers = receivers?;
    let mut number = 0;
    loop {
        let mut header = [0; 8];
        sender.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let mut payload = vec![0; length];
        sender.read_exact(&mut payload)?;
        for (byte, mask) in payload.iter_mut().zip(header[4..].iter().cycle()) {
            *byte ^= mask;
        }
        let frame = [
            &[header[0], header[1] & 0x7F, header[2], header[3]],
            &payload[..],
        ]
        .concat();
        for (place, receiver) in receivers.iter_mut().enumerate() {
            let is_victim = match fault {
                Fault::DroppedLast | Fault::DoubledLast => number == OPS - 1,
                _ => number == VICTIM,
            };
            let fault = if is_victim && place == 1 {
                fault
            } else {
                Fault::None
            };
            send(receiver, &frame, fault)?;
        }
        number += 1;
    }
}

fn send(receiver: &mut TcpStream, frame: &[u8], fault: Fault) -> io::Result<()> {
    match fault {
        Fault::None => receiver.write_all(frame),
        Fault::Dropped | Fault::DroppedLast => Ok(()),
        Fault::Doubled | Fault::DoubledLast => receiver.write_all(&[frame, frame].concat()),
        Fault::Closed => receiver.shutdown(Shutdown::Both),
        Fault::Altered => {
            let mut altered = frame.to_vec();
            let last = altered.len() - 3;
            altered[last] ^= 1;
            receiver.write_all(&altered)
        }
    }
}

/// Takes a client in: upgrade and first message.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
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
    let init = br#"{"type":"init","data":{}}"#;
    let length = u8::try_from(init.len()).expect("it is short");
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    stream.write_all(&[0x81, length])?;
    stream.write_all(init)?;
    Ok(stream)
}
