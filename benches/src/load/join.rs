//! Joining a room: connect, upgrade, first message. These calls block, since nothing is measured
//! yet.

use std::io::{self, Read, Write};
use std::time::Duration;

use tungstenite::protocol::frame::FrameHeader;

use super::endpoint::{Connection, Endpoint};
use super::failure::Failure;
use super::first_state::FirstState;
use super::joiner::{first_message, upgraded};

const PATIENCE: Duration = Duration::from_secs(10);
/// The maximum number of bytes from the server that an error quotes.
const QUOTED_BYTES: usize = 1024;

impl Endpoint {
    /// Joins a workspace; returns the connection and the state. It fails if anything follows the
    /// state.
    pub fn join(&self, workspace: &str) -> Result<(Connection, FirstState), Failure> {
        let joined = self
            .try_join(workspace)
            .and_then(|(connection, state, has_more)| {
                if has_more {
                    let message = "something came after the state, before any op";
                    return Err(io::Error::other(message));
                }
                Ok((connection, state))
            });
        joined.map_err(|error| join_failure(workspace, error))
    }

    /// Joins a workspace in which ops may follow immediately, and leaves; returns the state.
    pub fn visit(&self, workspace: &str) -> Result<FirstState, Failure> {
        let joined = self.try_join(workspace);
        Ok(joined.map_err(|error| join_failure(workspace, error))?.1)
    }

    fn try_join(&self, workspace: &str) -> io::Result<(Connection, FirstState, bool)> {
        let mut connection = self.connect()?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(self.request(workspace).as_bytes())?;
        let mut seen = Vec::new();
        let protocol = self.protocol();
        let body = read_until(&mut connection, &mut seen, |seen| upgraded(seen, protocol))?;
        seen.drain(..body);
        let mut state = FirstState::new(protocol);
        while !state.is_complete() {
            let end = read_until(&mut connection, &mut seen, first_frame)?;
            let start = end - payload_bytes(&seen)?;
            let text = str::from_utf8(&seen[start..end]).map_err(io::Error::other)?;
            state.push(text.to_owned());
            seen.drain(..end);
        }
        let has_more = !seen.is_empty() || connection.has_unread_bytes()?;
        connection.set_read_timeout(None)?;
        Ok((connection, state, has_more))
    }
}

fn join_failure(workspace: &str, error: io::Error) -> Failure {
    Failure::Join {
        workspace: workspace.to_owned(),
        error,
    }
}

/// Reads until `end_of` finds an end.
fn read_until(
    connection: &mut Connection,
    seen: &mut Vec<u8>,
    end_of: impl Fn(&[u8]) -> io::Result<Option<usize>>,
) -> io::Result<usize> {
    loop {
        if let Some(end) = end_of(seen)? {
            return Ok(end);
        }
        read_more(connection, seen)?;
    }
}

/// Waits for more bytes and appends them.
pub fn read_more(connection: &mut Connection, seen: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 16 * 1024];
    let count = loop {
        match connection.read(&mut piece) {
            // A ring on this thread may interrupt the call to do its work.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if count == 0 {
        let seen = String::from_utf8_lossy(&seen[..seen.len().min(QUOTED_BYTES)]);
        let message = format!("the server closed the connection after it had sent {seen:?}");
        return Err(io::Error::other(message));
    }
    seen.extend_from_slice(&piece[..count]);
    Ok(())
}

/// Returns the end of the first frame.
fn first_frame(seen: &[u8]) -> io::Result<Option<usize>> {
    Ok(first_message(seen)?.map(|(_, end)| end))
}

fn payload_bytes(frame: &[u8]) -> io::Result<usize> {
    let header = FrameHeader::parse(&mut io::Cursor::new(frame)).map_err(io::Error::other)?;
    let (_, bytes) = header.ok_or_else(|| io::Error::other("no frame"))?;
    usize::try_from(bytes).map_err(io::Error::other)
}
