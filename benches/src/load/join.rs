//! How a client comes into a room: connect, upgrade, first message. It blocks, since nothing is measured yet.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tungstenite::protocol::frame::FrameHeader;

use super::Failure;
use super::guest::{KEY, first_message, upgraded};

const PATIENCE: Duration = Duration::from_secs(10);

/// Where a server is, and what lets a client in.
#[derive(Clone)]
pub struct Door {
    pub address: SocketAddr,
    pub token: String,
    /// What the names of the rooms begin with: a server elsewhere may have those of another run.
    pub prefix: String,
}

impl Door {
    /// The name of a room.
    pub fn workspace(&self, room: u32) -> String {
        format!("{}room-{room}", self.prefix)
    }

    /// Joins a workspace; gives the connection and the text of the first message.
    pub fn join(&self, workspace: &str) -> Result<(TcpStream, String), Failure> {
        let joined = self.try_join(workspace).and_then(|(stream, text, more)| {
            if more {
                let message = "something came after the first message, before any op";
                return Err(io::Error::other(message));
            }
            Ok((stream, text))
        });
        joined.map_err(|error| Failure::Join {
            workspace: workspace.to_owned(),
            error,
        })
    }

    /// The same where ops may follow at once, for a client that leaves again.
    pub fn visit(&self, workspace: &str) -> Result<String, Failure> {
        let joined = self.try_join(workspace);
        let joined = joined.map_err(|error| Failure::Join {
            workspace: workspace.to_owned(),
            error,
        });
        Ok(joined?.1)
    }

    /// What a client says first.
    pub fn request(&self, workspace: &str) -> String {
        let Self { address, token, .. } = self;
        format!(
            "GET /v1/sync/{workspace}?token={token} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        )
    }

    fn try_join(&self, workspace: &str) -> io::Result<(TcpStream, String, bool)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(self.request(workspace).as_bytes())?;
        let mut seen = Vec::new();
        let body = read_until(&mut stream, &mut seen, upgraded)?;
        seen.drain(..body);
        let end = read_until(&mut stream, &mut seen, first_frame)?;
        let more = seen.len() > end;
        seen.truncate(end);
        let payload = seen.split_off(end - payload_bytes(&seen)?);
        let text = String::from_utf8(payload).map_err(io::Error::other)?;
        stream.set_read_timeout(None)?;
        Ok((stream, text, more))
    }
}

/// Reads until `end_of` finds the end of what is read for.
fn read_until(
    stream: &mut TcpStream,
    seen: &mut Vec<u8>,
    end_of: fn(&[u8]) -> io::Result<Option<usize>>,
) -> io::Result<usize> {
    loop {
        if let Some(end) = end_of(seen)? {
            return Ok(end);
        }
        read_more(stream, seen)?;
    }
}

/// Waits for more, and appends it.
pub fn read_more(stream: &mut TcpStream, seen: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 16 * 1024];
    let count = loop {
        match stream.read(&mut piece) {
            // A ring of this thread may have something to do meanwhile.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if count == 0 {
        let seen = String::from_utf8_lossy(&seen[..seen.len().min(1024)]);
        let message = format!("the server closed the connection; it had said {seen:?}");
        return Err(io::Error::other(message));
    }
    seen.extend_from_slice(&piece[..count]);
    Ok(())
}

/// The end of the first frame.
fn first_frame(seen: &[u8]) -> io::Result<Option<usize>> {
    Ok(first_message(seen)?.map(|(_, end)| end))
}

fn payload_bytes(frame: &[u8]) -> io::Result<usize> {
    let header = FrameHeader::parse(&mut io::Cursor::new(frame)).map_err(io::Error::other)?;
    let (_, bytes) = header.ok_or_else(|| io::Error::other("no frame"))?;
    usize::try_from(bytes).map_err(io::Error::other)
}
