//! The URL of a server: `ws://HOST[:PORT][/PATH]` or `wss://HOST[:PORT][/PATH]`.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use tungstenite::http::Uri;

#[cfg(test)]
mod tests;

/// The time that an address may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub has_tls: bool,
    /// A name or an address; an IPv6 address is without its brackets.
    pub host: String,
    pub port: u16,
    /// The prefix of every request's path: empty, or a path without a trailing slash.
    pub base_path: String,
    text: String,
}

impl Url {
    /// Returns the value of the `Host` header.
    pub fn authority(&self) -> String {
        let text = self.text.split_once("://").map_or("", |(_, rest)| rest);
        text.split('/').next().unwrap_or_default().to_owned()
    }

    /// Connects to the first address of the host that accepts a connection.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::other("the name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Returns an address of the host that accepts connections, and whether it belongs to this
    /// machine.
    pub fn resolve(&self) -> io::Result<(SocketAddr, bool)> {
        let stream = self.connect()?;
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        // A connection to an address of this machine also comes from that address.
        Ok((peer, local.ip() == peer.ip()))
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "it must be a URL such as ws://127.0.0.1:8080 or wss://sync.example.com";
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("{error}; {expected}"))?;
        let has_tls = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(expected.to_owned()),
        };
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let has_user = uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'));
        if host.is_empty() || has_user || uri.query().is_some() {
            return Err(expected.to_owned());
        }
        Ok(Self {
            has_tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if has_tls { 443 } else { 80 }),
            base_path: uri.path().trim_end_matches('/').to_owned(),
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
