//! The thin rim around the pure core: rings, sockets, files, threads, signals.

pub mod buffers;
pub mod log_keeper;
pub mod post;
pub mod ring;
pub mod server;
pub mod worker;
