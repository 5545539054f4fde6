//! A connection as it is passed between threads: its socket and its permit.

use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, send};

use crate::limits::RETRY_AFTER_S;
use crate::status::{ConnectionPermit, unix_us};
use crate::wire::upgrade::Answer;

/// An accepted connection.
pub struct Connection {
    /// The socket.
    pub socket: OwnedFd,
    /// The permit that counts the connection towards the limit.
    pub permit: ConnectionPermit,
}

impl Connection {
    /// Sends an answer directly, without the ring, to a peer that has not been sent anything yet.
    pub fn answer_at_once(&self, answer: &Answer) {
        let mut bytes = Vec::new();
        answer.encode(unix_us(), &mut bytes);
        // An unused send buffer has room for the answer, and a peer that has disconnected needs
        // none.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = send(&self.socket, &bytes, flags);
    }
}

/// A connection on its way to the shard that owns its workspace. If that shard has stopped and the
/// connection never arrives, the client receives 503.
pub struct ConnectionHandoff(Option<Connection>);

impl ConnectionHandoff {
    /// Starts the handoff of a connection.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self(Some(connection))
    }

    /// Completes the handoff and returns the connection.
    #[must_use]
    pub fn arrive(mut self) -> Connection {
        self.0.take().expect("a connection arrives only once")
    }
}

impl Drop for ConnectionHandoff {
    fn drop(&mut self) {
        let Some(connection) = self.0.take() else {
            return;
        };
        let answer = Answer::unavailable("the server is stopping", RETRY_AFTER_S);
        connection.answer_at_once(&answer);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::core::shard::contract::ListenerKind;
    use crate::status::Status;

    #[test]
    fn the_peer_of_a_connection_that_never_arrives_receives_503() {
        let status = Status::new(1, 1);
        for arrives in [false, true] {
            let (socket, mut peer) = UnixStream::pair().unwrap();
            let (permit, taken) = status.take_permit(ListenerKind::Public);
            assert_eq!(taken, 0, "the previous permit was not returned");
            let socket = socket.into();
            let handoff = ConnectionHandoff::new(Connection { socket, permit });
            if arrives {
                drop(handoff.arrive());
            } else {
                drop(handoff);
            }
            let mut answer = String::new();
            peer.read_to_string(&mut answer).unwrap();
            assert_eq!(answer.starts_with("HTTP/1.1 503 "), !arrives, "{answer}");
            assert_eq!(answer.contains("Retry-After: "), !arrives, "{answer}");
        }
    }
}
