//! A bare ring that does the same fan-out with nothing around it: no token, no state, no log, no
//! limits, no pings.
//!
//! One thread: multishot accept and receives into provided buffers; a frame is built once, and
//! everything that is due to a member at the end of a turn goes out in one send. No simple server
//! of this kind can do with less.

#![allow(
    unsafe_code,
    reason = "sends point into memory; see SAFETY at the block"
)]

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::TcpListener;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;

use clap::Parser;
use etherply::wire::upgrade::{Request, parse_head, switching_protocols};
use rustix::net::{AddressFamily, Shutdown, SocketType, sockopt};
use slab::Slab;

use ring::{Completion, Message, Purpose, Ring};
use stream::{Cursor, Stream, text_header};

mod ring;
mod stream;

/// The start of the messages that are passed on.
const OP: &[u8] = br#"{"type":"op""#;
const BACKLOG: i32 = 4096;

/// A bare ring that does the same fan-out with nothing around it
#[derive(Parser)]
#[command(no_binary_name = true)]
struct FloorSettings {
    /// The port to listen on; 0: a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The length of the first message, with a made-up state
    #[arg(long, default_value_t = 0)]
    join_bytes: usize,
}

pub fn serve(arguments: &[String]) -> io::Result<()> {
    let settings = FloorSettings::parse_from(arguments);
    let listener = listen(settings.port)?;
    super::tell_address(listener.local_addr()?)?;
    let mut ring = Ring::new()?;
    let mut relay = Relay::new(init(settings.join_bytes));
    let mut completions = Vec::new();
    ring.accept(listener.as_raw_fd());
    loop {
        ring.turn(&mut completions)?;
        for completion in completions.drain(..) {
            match completion.purpose {
                Purpose::Accept => relay.accepted(&mut ring, &completion, &listener),
                Purpose::Receive => relay.received(&mut ring, &completion),
                Purpose::Send => relay.sent(&completion),
            }
        }
        relay.end_turn(&mut ring);
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit this.
    sockopt::set_tcp_nodelay(&socket, true)?;
    let address = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Returns the frame of the first message, with an empty state or one that makes the payload
/// `payload_bytes` long.
fn init(payload_bytes: usize) -> Rc<[u8]> {
    let mut payload = String::from(r#"{"type":"init","data":{}}"#);
    let field = r#""":"""#;
    let filler = payload_bytes.saturating_sub(payload.len() + field.len());
    if filler > 0 {
        let at = payload.len() - 2;
        payload.insert_str(at, &format!(r#""":"{}""#, "x".repeat(filler)));
    }
    let (header, header_bytes) = text_header(payload.len());
    [&header[..header_bytes], payload.as_bytes()]
        .concat()
        .into()
}

struct Room {
    stream: Stream,
    members: Vec<usize>,
    /// Something was appended in this turn.
    is_dirty: bool,
}

/// The membership of a connection in a room.
struct Member {
    room: usize,
    /// Its index in the room's list.
    place: usize,
    cursor: Cursor,
    /// Its own frames that the cursor has not passed yet.
    own: VecDeque<Range<u64>>,
}

struct Connection {
    socket: OwnedFd,
    /// The beginning of an incomplete head or frame.
    partial: Vec<u8>,
    member: Option<Member>,
    /// The answer to the head, until it is sent.
    greeting: Vec<u8>,
    /// The cursor after the send in flight.
    sending: Option<Cursor>,
    message: Option<Box<Message>>,
    is_receiving: bool,
    is_closing: bool,
}

struct Relay {
    connections: Slab<Connection>,
    rooms: Vec<Room>,
    names: HashMap<String, usize>,
    dirty: Vec<usize>,
    /// Connections whose send has completed, or that have just joined.
    ready: Vec<usize>,
    /// Connections whose receive has ended although the connection has not.
    unarmed: Vec<usize>,
    closing: Vec<usize>,
    pieces: Vec<(*const u8, usize)>,
    init: Rc<[u8]>,
}

impl Relay {
    fn new(init: Rc<[u8]>) -> Self {
        Self {
            connections: Slab::new(),
            rooms: Vec::new(),
            names: HashMap::new(),
            dirty: Vec::new(),
            ready: Vec::new(),
            unarmed: Vec::new(),
            closing: Vec::new(),
            pieces: Vec::new(),
            init,
        }
    }

    fn accepted(&mut self, ring: &mut Ring, completion: &Completion, listener: &TcpListener) {
        if !completion.more {
            ring.accept(listener.as_raw_fd());
        }
        if completion.result < 0 {
            return;
        }
        // SAFETY: the kernel has just opened it for this process, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(completion.result) };
        let fd = socket.as_raw_fd();
        let connection = self.connections.insert(Connection {
            socket,
            partial: Vec::new(),
            member: None,
            greeting: Vec::new(),
            sending: None,
            message: None,
            is_receiving: true,
            is_closing: false,
        });
        ring.receive(fd, connection);
    }

    fn received(&mut self, ring: &mut Ring, completion: &Completion) {
        let id = completion.connection;
        let connection = &mut self.connections[id];
        connection.is_receiving = completion.more;
        if let Some(buffer) = completion.buffer {
            let len = usize::try_from(completion.result).unwrap_or(0);
            if !connection.is_closing && self.take(id, ring.bytes(buffer, len)).is_err() {
                self.close(id);
            }
            ring.give_back(buffer);
        }
        let is_lasting = completion.result > 0 || completion.result == -libc::ENOBUFS;
        if !is_lasting {
            self.close(id);
        } else if !completion.more {
            self.unarmed.push(id);
        }
    }

    /// Handles all complete messages; an error ends the connection.
    fn take(&mut self, id: usize, bytes: &[u8]) -> Result<(), ()> {
        let mut partial = std::mem::take(&mut self.connections[id].partial);
        if partial.is_empty() {
            let consumed = self.take_whole(id, bytes)?;
            partial.extend_from_slice(&bytes[consumed..]);
        } else {
            partial.extend_from_slice(bytes);
            let consumed = self.take_whole(id, &partial)?;
            partial.drain(..consumed);
        }
        self.connections[id].partial = partial;
        Ok(())
    }

    fn take_whole(&mut self, id: usize, bytes: &[u8]) -> Result<usize, ()> {
        let mut consumed = 0;
        if self.connections[id].member.is_none() {
            consumed = match parse_head(bytes) {
                Ok(Some((head_bytes, Request::Sync(request)))) => {
                    self.join(id, request.workspace, &request.accept_key);
                    head_bytes
                }
                Ok(None) => return Ok(0),
                Ok(Some(_)) | Err(_) => return Err(()),
            };
        }
        let member = self.connections[id]
            .member
            .as_mut()
            .expect("the client has joined");
        let room = &mut self.rooms[member.room];
        while let Some(frame) = Frame::read(&bytes[consumed..]) {
            match frame.first_byte {
                0x81 => {
                    if let Some(span) = room.stream.append(frame.masked, frame.mask, OP) {
                        match member.own.back_mut() {
                            Some(last) if last.end == span.start => last.end = span.end,
                            _ => member.own.push_back(span),
                        }
                        if !room.is_dirty {
                            room.is_dirty = true;
                            self.dirty.push(member.room);
                        }
                    }
                }
                // A client in a measurement needs no answer to its pings and pongs.
                0x89 | 0x8a => {}
                _ => return Err(()),
            }
            consumed += frame.bytes;
        }
        Ok(consumed)
    }

    fn join(&mut self, id: usize, workspace: String, accept_key: &str) {
        let rooms = &mut self.rooms;
        let room = *self.names.entry(workspace).or_insert_with(|| {
            rooms.push(Room {
                stream: Stream::new(),
                members: Vec::new(),
                is_dirty: false,
            });
            rooms.len() - 1
        });
        let Room {
            stream, members, ..
        } = &mut self.rooms[room];
        let connection = &mut self.connections[id];
        connection.member = Some(Member {
            room,
            place: members.len(),
            cursor: stream.cursor(),
            own: VecDeque::new(),
        });
        members.push(id);
        switching_protocols(accept_key, None, &mut connection.greeting);
        self.ready.push(id);
    }

    fn sent(&mut self, completion: &Completion) {
        let id = completion.connection;
        let connection = &mut self.connections[id];
        let cursor = connection
            .sending
            .take()
            .expect("only one send is in flight");
        connection.greeting = Vec::new();
        let member = connection.member.as_mut().expect("the client has joined");
        member.cursor = cursor;
        // A send with MSG_WAITALL is short only if the connection has ended.
        if completion.result <= 0 || connection.is_closing {
            self.close(id);
        } else if !member.cursor.is_at_end() {
            self.ready.push(id);
        }
    }

    fn end_turn(&mut self, ring: &mut Ring) {
        for room in std::mem::take(&mut self.dirty) {
            self.rooms[room].is_dirty = false;
            for place in 0..self.rooms[room].members.len() {
                self.send(ring, self.rooms[room].members[place]);
            }
        }
        for id in std::mem::take(&mut self.ready) {
            self.send(ring, id);
        }
        for id in std::mem::take(&mut self.unarmed) {
            let connection = &mut self.connections[id];
            if !connection.is_closing {
                connection.is_receiving = true;
                ring.receive(connection.socket.as_raw_fd(), id);
            }
        }
        for id in std::mem::take(&mut self.closing) {
            let is_over = self.connections.get(id).is_some_and(|connection| {
                connection.is_closing && !connection.is_receiving && connection.sending.is_none()
            });
            if is_over {
                self.remove(id);
            }
        }
    }

    /// Sends everything that is due to a member, unless a send to it is in flight.
    fn send(&mut self, ring: &mut Ring, id: usize) {
        let connection = &mut self.connections[id];
        if connection.sending.is_some() || connection.is_closing {
            return;
        }
        let member = connection.member.as_mut().expect("the client has joined");
        self.pieces.clear();
        if !connection.greeting.is_empty() {
            let parts = [connection.greeting.as_slice(), &self.init];
            self.pieces
                .extend(parts.map(|part| (part.as_ptr(), part.len())));
        }
        let after = member.cursor.gather(&mut member.own, &mut self.pieces);
        if self.pieces.is_empty() {
            member.cursor = after;
            return;
        }
        connection.sending = Some(after);
        // SAFETY: until the send has ended, the greeting is not touched, the cursor stays and keeps
        // its chunks, whose filled part is never written again, and the connection stays, with the
        // message in its own box. The first message is never freed.
        unsafe {
            ring.send(
                connection.socket.as_raw_fd(),
                id,
                &self.pieces,
                &mut connection.message,
            );
        }
    }

    /// Shuts down both directions; the connection is removed once it has nothing in flight.
    fn close(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        if !connection.is_closing {
            connection.is_closing = true;
            // This fails if the peer has already closed the connection.
            let _ = rustix::net::shutdown(&connection.socket, Shutdown::Both);
        }
        self.closing.push(id);
    }

    fn remove(&mut self, id: usize) {
        let Some(member) = self.connections.remove(id).member else {
            return;
        };
        let members = &mut self.rooms[member.room].members;
        members.swap_remove(member.place);
        if let Some(&moved) = members.get(member.place) {
            let moved = self.connections[moved].member.as_mut();
            moved.expect("the client has joined").place = member.place;
        }
    }
}

/// A frame of a client.
struct Frame<'a> {
    first_byte: u8,
    mask: [u8; 4],
    masked: &'a [u8],
    /// The length of the whole frame.
    bytes: usize,
}

impl<'a> Frame<'a> {
    /// Reads a frame; `None` if it is incomplete.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let [first_byte, second_byte, rest @ ..] = bytes else {
            return None;
        };
        let (payload_bytes, rest) = match second_byte & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            short => (u64::from(short), rest),
        };
        let (mask, rest) = rest.split_first_chunk()?;
        let masked = rest.get(..usize::try_from(payload_bytes).ok()?)?;
        Some(Self {
            first_byte: *first_byte,
            mask: *mask,
            masked,
            bytes: bytes.len() - rest.len() + masked.len(),
        })
    }
}
