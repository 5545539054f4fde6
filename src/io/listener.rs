//! The listening socket: opened here, or inherited from a service manager (`sd_listen_fds(3)`).
//!
//! An inherited socket outlives this process. The service manager holds it too and passes it to the
//! successor, so this process must do nothing that would affect the successor; in particular,
//! shutdown(2) acts on every descriptor of a socket. The server accepts connections on it only
//! while it serves. Connections that arrive before or after that wait in the socket's accept queue.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, listen, shutdown, socket_with, sockopt,
};

use crate::config::{ConfigError, ServeArgs, environment};
use crate::limits::{LISTEN_BACKLOG, PORT_WAIT_US};

const PORT_WAIT: Duration = Duration::from_micros(PORT_WAIT_US);

/// Errors from opening the listening socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address settings are not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port is in use.
    #[error(
        "address already in use: {address}: stop the process that listens on it, or choose \
         another port with {port}"
    )]
    AddressInUse {
        /// The address.
        address: SocketAddr,
        /// The name of the port setting.
        port: String,
    },
    /// The server cannot listen on the address.
    #[error("cannot listen on {address} ({source}): {remedy}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// The underlying I/O error.
        source: io::Error,
        /// The remedy.
        remedy: String,
    },
    /// More than one socket was passed.
    #[error(
        "{0} sockets were passed (LISTEN_FDS), but the server listens on only one: name one \
         address in the .socket unit"
    )]
    Several(usize),
    /// The descriptor that was passed is not a listening socket.
    #[error(
        "the descriptor that was passed (LISTEN_FDS) is not a listening TCP socket ({0}): use \
         ListenStream= with a port, and Accept=no, in the .socket unit"
    )]
    Passed(io::Error),
    /// An address was given in addition to the socket.
    #[error(
        "a listening socket was passed (LISTEN_FDS, for {address}), and {settings} is set too: \
         leave out one of them"
    )]
    Twice {
        /// The address of the socket.
        address: SocketAddr,
        /// The settings that name another address.
        settings: String,
    },
    /// `--dev` was used with a socket that is not on a loopback address.
    #[error(
        "--dev listens on loopback only, but the socket that was passed (LISTEN_FDS) is for {0}: \
         leave out one of them"
    )]
    DevAddress(IpAddr),
}

/// The names of the address settings as the user gave them, for use in messages.
#[derive(Debug, Clone, Copy)]
pub struct AddressNames<'a> {
    /// The name of the address setting.
    pub host: &'a str,
    /// The name of the port setting.
    pub port: &'a str,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    /// The names of the host and port settings as the user gave them.
    names: (String, String),
    is_inherited: bool,
}

impl Listener {
    /// Returns the socket that was passed to this process, or else a new one bound to the
    /// configured address. Must be called before any thread is started, because it removes the
    /// socket's variables from the environment.
    pub fn open(settings: &ServeArgs) -> Result<Self, ListenError> {
        let passed = passed();
        if passed.len() > 0 {
            return inherited(passed, settings);
        }
        let platform_port = environment::platform_port();
        let port_name = settings.port_name(platform_port.as_deref());
        let names = AddressNames {
            host: &settings.given.name("--host"),
            port: &port_name,
        };
        let port = settings.port(platform_port)?;
        Self::bind(SocketAddr::new(settings.host()?, port), names)
    }

    /// Binds a socket to `address`; no client can connect before [`Self::listen`]. If the port is
    /// in use, this retries for a moment: after a server is killed, the kernel tears down its ring
    /// later than its process, and until then, pending accepts in the ring hold the port.
    pub fn bind(address: SocketAddr, names: AddressNames<'_>) -> Result<Self, ListenError> {
        let at_address = |source| listen_error(address, names, source);
        let begun = Instant::now();
        let socket = loop {
            match bound_socket(address) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PORT_WAIT =>
                {
                    thread::sleep(PORT_WAIT / 50);
                }
                outcome => break outcome.map_err(at_address)?,
            }
        };
        let socket = TcpListener::from(socket);
        let bound = socket.local_addr();
        Ok(Self {
            address: bound.map_err(at_address)?,
            socket,
            names: (names.host.to_owned(), names.port.to_owned()),
            is_inherited: false,
        })
    }

    /// Starts listening, so that clients can connect. An inherited socket already listens.
    pub fn listen(&self) -> Result<(), ListenError> {
        if self.is_inherited {
            return Ok(());
        }
        let begun = listen(&self.socket, LISTEN_BACKLOG);
        let names = AddressNames {
            host: &self.names.0,
            port: &self.names.1,
        };
        begun.map_err(|errno| listen_error(self.address, names, errno.into()))
    }

    /// Returns the address of the socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns whether the socket was inherited, so that another process holds it too.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Ends all accepts on the socket and refuses connections from now on.
    ///
    /// # Panics
    /// If the socket is inherited.
    pub fn end(&self) {
        assert!(!self.is_inherited, "an inherited socket is shut down");
        // The shards share the socket, so it may already have been shut down.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns the sockets that were passed to this process. `LISTEN_PID` names the process they are
/// meant for: without it, they are ignored, as `sd_listen_fds(3)` specifies, because a process that
/// merely inherited the variables has some other file at that descriptor.
fn passed() -> ListenFd {
    if environment::value("LISTEN_PID").is_some() {
        return ListenFd::from_env();
    }
    if environment::value("LISTEN_FDS").is_some() {
        tracing::warn!(
            "LISTEN_FDS is set without LISTEN_PID, so no socket was passed to this process: it \
             opens its own"
        );
    }
    ListenFd::empty()
}

fn inherited(mut passed: ListenFd, settings: &ServeArgs) -> Result<Listener, ListenError> {
    if passed.len() > 1 {
        return Err(ListenError::Several(passed.len()));
    }
    let socket = passed.take_tcp_listener(0).map_err(ListenError::Passed)?;
    let socket = socket.expect("a passed socket is taken only once");
    let (address, listens) = examine(&socket).map_err(ListenError::Passed)?;
    if !listens {
        let what = "it does not listen: it is a connection, or listen(2) was not called";
        return Err(ListenError::Passed(io::Error::other(what)));
    }
    let set = [
        settings.host.map(|_| settings.given.name("--host")),
        settings.port.map(|_| settings.given.name("--port")),
    ];
    let set: Vec<String> = set.into_iter().flatten().collect();
    if !set.is_empty() {
        let settings = set.join(" and ");
        return Err(ListenError::Twice { address, settings });
    }
    if settings.dev && !address.ip().is_loopback() {
        return Err(ListenError::DevAddress(address.ip()));
    }
    Ok(Listener {
        socket,
        address,
        names: ("--host".to_owned(), "--port".to_owned()),
        is_inherited: true,
    })
}

/// Prepares a socket for the ring, and returns its address and whether it listens.
fn examine(socket: &TcpListener) -> io::Result<(SocketAddr, bool)> {
    // On a nonblocking socket, an accept in the ring fails with EAGAIN instead of waiting.
    socket.set_nonblocking(false)?;
    sockopt::set_tcp_nodelay(socket, true)?;
    Ok((socket.local_addr()?, sockopt::socket_acceptconn(socket)?))
}

/// Binds a socket that does not listen yet. Fails while another socket listens on the address.
pub fn bound_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Lets a restarted server bind the port while old connections are in TIME_WAIT (socket(7)).
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit this (tcp(7)): a small op must not wait to be merged into a larger
    // segment.
    sockopt::set_tcp_nodelay(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket)
}

fn listen_error(address: SocketAddr, names: AddressNames<'_>, source: io::Error) -> ListenError {
    let AddressNames { host, port } = names;
    let remedy = match Errno::from_io_error(&source) {
        Some(Errno::ADDRINUSE) => {
            let port = port.to_owned();
            return ListenError::AddressInUse { address, port };
        }
        Some(Errno::ACCESS) if address.port() < 1024 => format!(
            "ports below 1024 require CAP_NET_BIND_SERVICE: grant it (in a systemd unit, with \
             AmbientCapabilities=CAP_NET_BIND_SERVICE), or choose another port with {port}"
        ),
        Some(Errno::ACCESS | Errno::PERM) => {
            format!("a security policy forbids it: allow it, or choose another port with {port}")
        }
        Some(Errno::ADDRNOTAVAIL) => {
            format!("this machine has no such address; choose another with {host}")
        }
        Some(Errno::AFNOSUPPORT) => {
            format!("this system has no IPv6; choose an IPv4 address with {host}")
        }
        Some(Errno::MFILE | Errno::NFILE) => "raise the limit on open files (ulimit -n)".to_owned(),
        _ => format!("choose another address with {host} or {port}"),
    };
    ListenError::Address {
        address,
        source,
        remedy,
    }
}
