//! The thin rim around the pure core: rings, sockets, files, threads, signals.

pub mod background;
pub mod buffers;
pub mod compactor;
pub mod listener;
pub mod notes;
pub mod place;
pub mod post;
pub mod recovery;
pub mod ring;
pub mod secrets;
pub mod server;
pub mod shard_thread;
pub mod threads;
pub mod worker;
