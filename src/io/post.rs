//! What the threads of the server tell each other: letters to a shard, and the status of all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};

use crate::core::contract::Ticket;
use crate::core::workspace::Workspace;
use crate::log::recovery::RecoveryError;
use crate::log::segment::Segment;

/// What the shards know of each other, and the outside of them.
#[derive(Debug)]
pub struct Status {
    ready: Vec<AtomicBool>,
    connections: AtomicUsize,
    /// The most connections.
    pub connections_max: usize,
}

impl Status {
    /// Of so many shards that can all serve.
    #[must_use]
    pub fn new(shards: u32, connections_max: usize) -> Self {
        let ready = (0..shards).map(|_| AtomicBool::new(true)).collect();
        Self {
            ready,
            connections: AtomicUsize::new(0),
            connections_max,
        }
    }

    /// Whether all shards can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.iter().all(|ready| ready.load(Ordering::Relaxed))
    }

    /// Tells whether a shard can serve.
    pub fn set_ready(&self, shard: u32, ready: bool) {
        self.ready[shard as usize].store(ready, Ordering::Relaxed);
    }
}

/// A connection's place among those that are allowed; given back when it is dropped.
pub struct Place(Arc<Status>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    /// Takes a place; gives the number of those that were taken before.
    #[must_use]
    pub fn take(status: &Arc<Status>) -> (Self, usize) {
        let before = status.connections.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(status)), before)
    }
}

/// A connection: its socket and its place.
pub struct Connection {
    /// The socket.
    pub socket: OwnedFd,
    /// Its place.
    pub place: Place,
}

/// Why a shard could not be rebuilt. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The failed segment could not be cut, or the next one not created.
    #[error("{path}: {source}")]
    Segment {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The open segment is not in its place any more. Nothing that the server could do brings its ops back there.
    #[error(
        "{path} was deleted or moved away under the running server: stop the server, put the data directory back from a backup, and start it again"
    )]
    Deleted {
        /// The segment.
        path: PathBuf,
    },
    /// The system has no thread for it, or the segment could not be created.
    #[error(transparent)]
    System(#[from] io::Error),
    /// A panic on the way: a fault of this server.
    #[error("a fault of this server")]
    Fault,
    /// The log could not be read back.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

/// What threads tell each other.
pub enum Letter {
    /// A connection whose workspace the receiver owns.
    Adopt(Connection, Ticket),
    /// Stop.
    Drain,
    /// The next segment was created, or not.
    SegmentCreated(Result<Segment, RebuildError>),
    /// The shard's state was read back, or not.
    Rebuilt(Result<(Segment, Vec<Workspace>), RebuildError>),
}

/// Where letters to one shard are put in.
#[derive(Clone)]
pub struct Post {
    letters: Sender<Letter>,
    bell: Arc<OwnedFd>,
}

impl Post {
    /// Sends a letter. One to a shard that has stopped is dropped, and with it its connection.
    pub fn send(&self, letter: Letter) {
        if self.letters.send(letter).is_ok() {
            // It cannot overflow: it is reset long before 2^64 letters.
            let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        }
    }
}

/// Where one shard's letters come out.
pub struct Mailbox {
    letters: Receiver<Letter>,
    bell: Arc<OwnedFd>,
}

impl Mailbox {
    /// What is readable when letters have come in.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The next letter.
    #[must_use]
    pub fn next(&self) -> Option<Letter> {
        self.letters.try_recv().ok()
    }
}

/// A mailbox and the post that leads to it.
pub fn mailbox() -> io::Result<(Post, Mailbox)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (sender, receiver) = channel();
    Ok((
        Post {
            letters: sender,
            bell: Arc::clone(&bell),
        },
        Mailbox {
            letters: receiver,
            bell,
        },
    ))
}
