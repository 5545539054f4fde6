//! A shard's mailbox, and the messages that other threads send to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};

use crate::core::shard::contract::{Handoff, ListenerKind, LoggedGenerations};
use crate::core::shard::log_space::LogSize;
use crate::core::state::workspace::Workspace;
use crate::generation::Generation;
use crate::io::handoff::ConnectionHandoff;
use crate::io::threads::ThreadError;
use crate::log::disk::HostDisk;
use crate::log::log_files::{LogFiles, LogFilesError};
use crate::log::remedy::WithRemedy;
use crate::log::segment::Segment;
use crate::wire::auth::Verifier;

/// Errors from creating a segment or rebuilding a shard. The operation is retried.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The segment could not be created, or the log could not be read back.
    #[error(transparent)]
    LogFiles(#[from] LogFilesError),
    /// No thread could be started for the work.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// A write or an fdatasync failed, or went to a segment that no longer exists.
    #[error("{}", WithRemedy(.0))]
    System(#[from] io::Error),
    /// The work panicked because of a bug in this server.
    #[error("a bug in this server, please report it")]
    Fault,
}

/// A shard that was read back from its log.
pub struct RebuiltShard {
    /// The segment in which the log continues.
    pub segment: Segment<File>,
    /// The shard's state.
    pub workspaces: Vec<Workspace>,
    /// The random id of the generation that begins with this state.
    pub generation: Generation,
}

/// The log and the workspaces that a shard starts with after the log has been read.
pub struct RecoveredShard {
    /// The shard's log.
    pub log: LogFiles<HostDisk>,
    /// The shard's state.
    pub workspaces: Vec<Workspace>,
    /// The random id of the generation that begins with this state.
    pub generation: Generation,
    /// The generations before it.
    pub logged: LoggedGenerations,
    /// The sender through which the shard reports that it serves.
    pub serves: Sender<()>,
}

/// A message to a shard.
pub enum ShardMessage {
    /// Adopt a connection to a workspace that the receiving shard owns.
    Adopt(ConnectionHandoff, Box<Handoff>),
    /// Shed a connection of this listener to make room for one that another shard has accepted.
    Shed(ListenerKind),
    /// Start accepting connections. Sent for an inherited socket, once all shards serve.
    Accept,
    /// Check tokens with this verifier from now on.
    Verify(Arc<Verifier>),
    /// Drain the connections and stop.
    Drain,
    /// The next segment was created, or its creation failed.
    SegmentCreated(Result<Segment<File>, RebuildError>),
    /// The shard's state was read back, or the attempt failed.
    Rebuilt(Result<RebuiltShard, RebuildError>),
    /// The log has been read at startup.
    Recovered(Box<RecoveredShard>),
    /// The shard's log was measured.
    LogSize(LogSize),
}

/// The sending side of a shard's mailbox.
#[derive(Clone)]
pub struct ShardSender {
    messages: Sender<ShardMessage>,
    bell: Arc<OwnedFd>,
}

impl ShardSender {
    /// Sends a message. A message to a shard that has stopped is dropped.
    pub fn send(&self, message: ShardMessage) {
        if self.messages.send(message).is_ok() {
            // The counter cannot overflow: the shard resets it long before 2^64 messages.
            let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        }
    }
}

/// The receiving side of a shard's mailbox.
pub struct Mailbox {
    messages: Receiver<ShardMessage>,
    bell: Arc<OwnedFd>,
}

impl Mailbox {
    /// Returns the descriptor that becomes readable when messages arrive.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Returns the next message, if there is one.
    #[must_use]
    pub fn next(&self) -> Option<ShardMessage> {
        self.messages.try_recv().ok()
    }
}

/// Creates a mailbox and its sender.
pub fn mailbox() -> io::Result<(ShardSender, Mailbox)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (sender, receiver) = channel();
    Ok((
        ShardSender {
            messages: sender,
            bell: Arc::clone(&bell),
        },
        Mailbox {
            messages: receiver,
            bell,
        },
    ))
}
