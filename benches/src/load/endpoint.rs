//! The address of a server, how a client reaches it, and the token that lets the client in.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};

use super::joiner::KEY;
use super::protocol::ClientProtocol;

/// A server, and the token for it.
#[derive(Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The value of the `Host` header.
    host: String,
    /// The prefix of every request's path, for a server that a proxy serves under a path.
    base_path: String,
    token: String,
    /// The prefix of every room's name, since a server elsewhere may hold the rooms of another run.
    prefix: String,
    tls: Option<Tls>,
    /// The version that each client requests.
    protocol: ClientProtocol,
    /// The query of every request, if there is one.
    query: String,
}

/// The TLS settings, and the name for which the server's certificate must be valid.
#[derive(Clone)]
pub struct Tls {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

/// A client's connection, encrypted or not.
pub struct Connection {
    pub stream: TcpStream,
    pub tls: Option<Box<ClientConnection>>,
}

impl Endpoint {
    /// Returns the endpoint of a server without TLS.
    pub fn plain(address: SocketAddr, token: String) -> Self {
        Self {
            address,
            host: address.to_string(),
            base_path: String::new(),
            token,
            prefix: String::new(),
            tls: None,
            protocol: ClientProtocol::V1,
            query: String::new(),
        }
    }

    /// Begins the name of each room with `prefix`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: String) -> Self {
        self.prefix = prefix;
        self
    }

    /// Formats the server's address as in its URL.
    #[must_use]
    pub fn with_host(mut self, host: String, base_path: String) -> Self {
        self.host = host;
        self.base_path = base_path;
        self
    }

    #[must_use]
    pub fn with_tls(mut self, tls: Option<Tls>) -> Self {
        self.tls = tls;
        self
    }

    #[must_use]
    pub fn with_protocol(mut self, protocol: ClientProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Adds version 2 parameters to each request.
    #[must_use]
    pub fn with_query(mut self, query: &str) -> Self {
        self.query = format!("?{query}");
        self
    }

    /// Returns the version that each client requests.
    pub fn protocol(&self) -> ClientProtocol {
        self.protocol
    }

    /// Returns the workspace id of a room.
    pub fn workspace(&self, room: u32) -> String {
        format!("{}room-{room}", self.prefix)
    }

    /// Returns the request that opens a WebSocket. The token is in a header, because a proxy may
    /// log the URL.
    pub fn request(&self, workspace: &str) -> String {
        let Self {
            host,
            base_path,
            token,
            query,
            ..
        } = self;
        let offer = self
            .protocol
            .subprotocol()
            .map_or_else(String::new, |name| {
                format!("Sec-WebSocket-Protocol: {name}\r\n")
            });
        format!(
            "GET {base_path}/v1/sync/{workspace}{query} HTTP/1.1\r\nHost: {host}\r\n{offer}\
             Authorization: Bearer {token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        )
    }

    /// Opens a connection. The TLS handshake takes place when it is first used.
    pub fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        let tls = self.tls.as_ref().map(|tls| {
            let mut session = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone())
                .map_err(io::Error::other)?;
            // The session needs no limit: the bound on ops in flight also bounds the queued bytes.
            session.set_buffer_limit(None);
            Ok::<_, io::Error>(Box::new(session))
        });
        Ok(Connection {
            stream,
            tls: tls.transpose()?,
        })
    }
}

impl Connection {
    /// Limits the time that a read may take.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Returns whether decrypted bytes are still unread.
    pub fn has_unread_bytes(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            return Ok(false);
        };
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        Ok(state.plaintext_bytes_to_read() > 0)
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => Stream::new(tls.as_mut(), &mut self.stream).read(into),
            None => self.stream.read(into),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => Stream::new(tls.as_mut(), &mut self.stream).write(bytes),
            None => self.stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => Stream::new(tls.as_mut(), &mut self.stream).flush(),
            None => self.stream.flush(),
        }
    }
}
