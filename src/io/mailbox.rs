//! What the threads of the server tell each other: letters to a shard, and the status of all.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendFlags, send};

use crate::admin::stats::{LogStats, ShardStats};
use crate::core::contract::Handoff;
pub use crate::core::contract::ListenerKind;
use crate::core::shard::log_space::LogSize;
use crate::core::state::workspace::Workspace;
use crate::io::threads::ThreadError;
use crate::limits::RETRY_AFTER_S;
use crate::log::disk::HostDisk;
use crate::log::log_files::{LogFiles, LogFilesError};
use crate::log::remedy::WithRemedy;
use crate::log::segment::Segment;
use crate::wire::auth::Verifier;
use crate::wire::upgrade::Answer;

/// What the shards know of each other, and the outside of them.
#[derive(Debug)]
pub struct Status {
    ready: Vec<AtomicBool>,
    /// When the server was started, in Unix microseconds.
    pub started_unix_us: u64,
    /// How much of the log has been read, while the server starts.
    pub recovery: Progress,
    public: Arc<ConnectionLimit>,
    admin: Arc<ConnectionLimit>,
    /// By shard, of each door: whether one of its connections would give way, when its last turn ended.
    yielding: Vec<[AtomicBool; 2]>,
    /// Of each shard.
    pub stats: Vec<ShardStats>,
    /// Of the log.
    pub log: LogStats,
    /// The most connections.
    pub connections_max: usize,
}

impl Status {
    /// Of so many shards, none of which can serve yet.
    #[must_use]
    pub fn new(shards: u32, connections_max: usize) -> Self {
        let ready = (0..shards).map(|_| AtomicBool::new(false)).collect();
        Self {
            ready,
            started_unix_us: unix_us(),
            recovery: Progress::default(),
            public: Arc::new(ConnectionLimit::new(ListenerKind::Public)),
            admin: Arc::new(ConnectionLimit::new(ListenerKind::Admin)),
            yielding: (0..shards).map(|_| <[AtomicBool; 2]>::default()).collect(),
            stats: (0..shards).map(|_| ShardStats::default()).collect(),
            log: LogStats::default(),
            connections_max,
        }
    }

    /// Whether all shards can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.each_ready().all(|ready| ready)
    }

    /// Whether each shard can serve.
    pub fn each_ready(&self) -> impl Iterator<Item = bool> {
        self.ready.iter().map(|ready| ready.load(Ordering::Relaxed))
    }

    /// The connections that came in by a door.
    #[must_use]
    pub fn connections(&self, door: ListenerKind) -> usize {
        self.gate(door).connections.load(Ordering::Relaxed)
    }

    fn gate(&self, door: ListenerKind) -> &Arc<ConnectionLimit> {
        match door {
            ListenerKind::Public => &self.public,
            ListenerKind::Admin => &self.admin,
        }
    }

    /// Tells whether a shard has a connection that would give way to a new one.
    pub fn set_yielding(&self, shard: u32, door: ListenerKind, yields: bool) {
        self.yielding[shard as usize][door as usize].store(yields, Ordering::Relaxed);
    }

    /// A shard other than this one that has a connection which would give way: it is not told to others before its next turn.
    #[must_use]
    pub fn claim_yielding(&self, shard: u32, door: ListenerKind) -> Option<usize> {
        (0..self.yielding.len())
            .filter(|other| *other != shard as usize)
            .find(|other| self.yielding[*other][door as usize].swap(false, Ordering::Relaxed))
    }

    /// Tells whether a shard can serve.
    pub fn set_ready(&self, shard: u32, ready: bool) {
        self.ready[shard as usize].store(ready, Ordering::Relaxed);
    }
}

/// How far something is that takes long.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl Progress {
    /// Tells how much there is to do.
    pub fn begin(&self, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Tells that so much more is done.
    pub fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What is done, and what there is to do.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let total_bytes = self.total_bytes.load(Ordering::Relaxed);
        (self.done_bytes.load(Ordering::Relaxed), total_bytes)
    }

    /// What is done of it.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let (done_bytes, total_bytes) = self.bytes();
        let percent = done_bytes.saturating_mul(100) / total_bytes.max(1);
        u8::try_from(percent.min(100)).expect("at most 100")
    }
}

/// The connections that came in by one door.
#[derive(Debug)]
struct ConnectionLimit {
    door: ListenerKind,
    connections: AtomicUsize,
}

impl ConnectionLimit {
    fn new(door: ListenerKind) -> Self {
        Self {
            door,
            connections: AtomicUsize::new(0),
        }
    }
}

/// A connection's permit among those that are allowed; given back when it is dropped.
pub struct ConnectionPermit(Arc<ConnectionLimit>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConnectionPermit {
    /// Takes a permit; gives the number of those behind that door that were taken before.
    #[must_use]
    pub fn take(status: &Status, door: ListenerKind) -> (Self, usize) {
        let gate = status.gate(door);
        let before = gate.connections.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(gate)), before)
    }

    /// Where the connection came in.
    #[must_use]
    pub fn door(&self) -> ListenerKind {
        self.0.door
    }
}

/// A connection: its socket and its permit.
pub struct Connection {
    /// The socket.
    pub socket: OwnedFd,
    /// Its permit.
    pub permit: ConnectionPermit,
}

impl Connection {
    /// Sends an answer beside the ring, to a peer that was sent nothing before.
    pub fn answer_at_once(&self, answer: &Answer) {
        let mut bytes = Vec::new();
        answer.encode(unix_us(), &mut bytes);
        // So there is room in the socket; a peer that has gone needs no answer.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = send(&self.socket, &bytes, flags);
    }
}

/// Why a shard could not be rebuilt. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The segment could not be created, or the log not be read back.
    #[error(transparent)]
    SecretStore(#[from] LogFilesError),
    /// The system has no thread for it.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// A write or an fdatasync failed, or was to a segment that is gone.
    #[error("{}", WithRemedy(.0))]
    System(#[from] io::Error),
    /// A panic on the way: a fault of this server.
    #[error("a bug in this server, please report it")]
    Fault,
}

/// What a rebuild brings.
pub type Rebuilt = (Segment<File>, Vec<Workspace>);

/// What a shard begins with.
pub struct Recovered {
    /// Its log.
    pub log: LogFiles<HostDisk>,
    /// Its state.
    pub workspaces: Vec<Workspace>,
    /// Told when it serves.
    pub serves: Sender<()>,
}

/// A connection on its way to the shard that owns its workspace. If it never gets there, since that shard has stopped, its peer
/// is told so.
pub struct ConnectionHandoff(Option<Connection>);

impl ConnectionHandoff {
    /// Sends it on its way.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self(Some(connection))
    }

    /// It has got there.
    #[must_use]
    pub fn arrive(mut self) -> Connection {
        self.0.take().expect("a connection arrives once")
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

fn unix_us() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// What threads tell each other.
pub enum ShardMessage {
    /// A connection whose workspace the receiver owns.
    Adopt(ConnectionHandoff, Box<Handoff>),
    /// Let a connection of that door give way to one that another shard has accepted.
    GiveWay(ListenerKind),
    /// Accept connections: for a socket that waited until all shards serve.
    Accept,
    /// Check tokens with this from now on.
    Verify(Arc<Verifier>),
    /// Stop.
    Drain,
    /// The next segment was created, or not.
    SegmentCreated(Result<Segment<File>, RebuildError>),
    /// The shard's state was read back, or not.
    Rebuilt(Result<Rebuilt, RebuildError>),
    /// The log was read at the start.
    Recovered(Box<Recovered>),
    /// The shard's log was measured.
    LogSize(LogSize),
}

/// Where letters to one shard are put in.
#[derive(Clone)]
pub struct ShardSender {
    letters: Sender<ShardMessage>,
    bell: Arc<OwnedFd>,
}

impl ShardSender {
    /// Sends a letter. One to a shard that has stopped is dropped.
    pub fn send(&self, letter: ShardMessage) {
        if self.letters.send(letter).is_ok() {
            // It cannot overflow: it is reset long before 2^64 letters.
            let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        }
    }
}

/// Where one shard's letters come out.
pub struct Mailbox {
    letters: Receiver<ShardMessage>,
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
    pub fn next(&self) -> Option<ShardMessage> {
        self.letters.try_recv().ok()
    }
}

/// A mailbox and the post that leads to it.
pub fn mailbox() -> io::Result<(ShardSender, Mailbox)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (sender, receiver) = channel();
    Ok((
        ShardSender {
            letters: sender,
            bell: Arc::clone(&bell),
        },
        Mailbox {
            letters: receiver,
            bell,
        },
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_connection_that_never_arrives_is_told_so() {
        let status = Arc::new(Status::new(1, 1));
        for arrives in [false, true] {
            let (socket, mut peer) = UnixStream::pair().unwrap();
            let (permit, taken) = ConnectionPermit::take(&status, ListenerKind::Public);
            assert_eq!(taken, 0, "the permit of the one before is free");
            let socket = socket.into();
            let handoff = ConnectionHandoff::new(Connection { socket, permit });
            if arrives {
                drop(handoff.arrive());
            } else {
                drop(handoff);
            }
            let mut told = String::new();
            peer.read_to_string(&mut told).unwrap();
            assert_eq!(told.starts_with("HTTP/1.1 503 "), !arrives, "{told}");
            assert_eq!(told.contains("Retry-After: "), !arrives, "{told}");
        }
    }
}
