//! The thin I/O layer around the pure core: rings, sockets, files, threads, signals.

pub mod background;
pub mod buffers;
pub mod compactor;
pub mod directory_watch;
pub mod event_log;
pub mod handoff;
pub mod listener;
pub mod mailbox;
pub mod random;
pub mod recovery;
pub mod ring;
pub mod secrets;
pub mod server;
pub mod shard_thread;
pub mod threads;
pub mod worker;
