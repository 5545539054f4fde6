//! The server's status, shared by its threads: whether each shard serves, how far recovery has
//! progressed, how many connections are open, and the counters.
//!
//! The shard threads write it, and the metrics and the console display it. It is a separate layer
//! below `io` and `admin`, so that neither depends on the other for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::shard::contract::ListenerKind;

use stats::{LogStats, ShardStats};

pub mod stats;

/// The state that the shards share with each other and with the server's pages.
#[derive(Debug)]
pub struct Status {
    ready: Vec<AtomicBool>,
    /// The time at which the server was started, in Unix microseconds.
    pub started_unix_us: u64,
    /// The progress of recovery at startup.
    pub recovery: RecoveryProgress,
    public: Arc<ConnectionCount>,
    admin: Arc<ConnectionCount>,
    /// For each shard and listener, the number of connections that the shard could shed for new
    /// ones at the end of its last turn, minus those claimed since. This is a number rather than a
    /// flag, because a shard may accept many connections before the shard that it asks runs its
    /// next turn.
    sheddable: Vec<[AtomicUsize; 2]>,
    /// The statistics of each shard.
    pub stats: Vec<ShardStats>,
    /// The statistics of the log.
    pub log: LogStats,
    /// The maximum number of connections to the public listener.
    pub connections_max: usize,
}

impl Status {
    /// Creates the status of a server with `shards` shards, none of which serves yet.
    #[must_use]
    pub fn new(shards: u32, connections_max: usize) -> Self {
        let ready = (0..shards).map(|_| AtomicBool::new(false)).collect();
        Self {
            ready,
            started_unix_us: unix_us(),
            recovery: RecoveryProgress::default(),
            public: Arc::new(ConnectionCount::new(ListenerKind::Public)),
            admin: Arc::new(ConnectionCount::new(ListenerKind::Admin)),
            sheddable: (0..shards).map(|_| <[AtomicUsize; 2]>::default()).collect(),
            stats: (0..shards).map(|_| ShardStats::default()).collect(),
            log: LogStats::default(),
            connections_max,
        }
    }

    /// Returns whether all shards serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.each_ready().all(|ready| ready)
    }

    /// Returns whether each shard serves, in the order of the shards.
    pub fn each_ready(&self) -> impl Iterator<Item = bool> {
        self.ready.iter().map(|ready| ready.load(Ordering::Relaxed))
    }

    /// Sets whether a shard serves.
    pub fn set_ready(&self, shard: u32, ready: bool) {
        self.ready[shard as usize].store(ready, Ordering::Relaxed);
    }

    /// Returns the number of connections to a listener, including those that are being refused.
    #[must_use]
    pub fn connections(&self, listener: ListenerKind) -> usize {
        self.count(listener).connections.load(Ordering::Relaxed)
    }

    /// Counts a new connection. Returns its permit and the previous number of connections.
    #[must_use]
    pub fn take_permit(&self, listener: ListenerKind) -> (ConnectionPermit, usize) {
        let count = self.count(listener);
        let before = count.connections.fetch_add(1, Ordering::Relaxed);
        (ConnectionPermit(Arc::clone(count)), before)
    }

    fn count(&self, listener: ListenerKind) -> &Arc<ConnectionCount> {
        match listener {
            ListenerKind::Public => &self.public,
            ListenerKind::Admin => &self.admin,
        }
    }

    /// Sets the number of connections that a shard could shed for new ones.
    pub fn set_sheddable(&self, shard: u32, listener: ListenerKind, count: usize) {
        self.sheddable[shard as usize][listener as usize].store(count, Ordering::Relaxed);
    }

    /// Finds a shard other than `shard` that has a connection to shed, and claims one. Until that
    /// shard ends its next turn, each of its connections can be claimed only once.
    #[must_use]
    pub fn claim_sheddable(&self, shard: u32, listener: ListenerKind) -> Option<usize> {
        let claims = |other: &usize| {
            self.sheddable[*other][listener as usize]
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    count.checked_sub(1)
                })
                .is_ok()
        };
        (0..self.sheddable.len())
            .filter(|other| *other != shard as usize)
            .find(claims)
    }
}

/// The progress of reading the log.
#[derive(Debug, Default)]
pub struct RecoveryProgress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl RecoveryProgress {
    /// Sets the total length of the log.
    pub fn begin(&self, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Adds `bytes` to the bytes that have been read.
    pub fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the number of bytes read so far and the total number to read.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let total_bytes = self.total_bytes.load(Ordering::Relaxed);
        (self.done_bytes.load(Ordering::Relaxed), total_bytes)
    }

    /// Returns the percentage that has been read, from 0 to 100.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let (done_bytes, total_bytes) = self.bytes();
        let percent = done_bytes.saturating_mul(100) / total_bytes.max(1);
        u8::try_from(percent.min(100)).expect("at most 100")
    }
}

/// The number of connections to one listener.
#[derive(Debug)]
struct ConnectionCount {
    listener: ListenerKind,
    connections: AtomicUsize,
}

impl ConnectionCount {
    fn new(listener: ListenerKind) -> Self {
        Self {
            listener,
            connections: AtomicUsize::new(0),
        }
    }
}

/// A permit that counts a connection for as long as it exists. Created by [`Status::take_permit`].
pub struct ConnectionPermit(Arc<ConnectionCount>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConnectionPermit {
    /// Returns the listener that accepted the connection.
    #[must_use]
    pub fn listener(&self) -> ListenerKind {
        self.0.listener
    }
}

/// Returns the wall-clock time in Unix microseconds, or 0 if the clock is set before 1970.
#[must_use]
pub fn unix_us() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sheddable_connection_is_claimed_once() {
        let status = Status::new(3, 1);
        status.set_sheddable(0, ListenerKind::Public, 5);
        status.set_sheddable(1, ListenerKind::Public, 2);
        let claim = || status.claim_sheddable(0, ListenerKind::Public);
        assert_eq!([claim(), claim(), claim()], [Some(1), Some(1), None]);
        assert_eq!(status.claim_sheddable(0, ListenerKind::Admin), None);
        status.set_sheddable(2, ListenerKind::Public, 1);
        assert_eq!([claim(), claim()], [Some(2), None]);
    }

    #[test]
    fn a_permit_counts_until_it_is_dropped() {
        let status = Status::new(1, 1);
        let (first, before) = status.take_permit(ListenerKind::Public);
        assert_eq!((before, first.listener()), (0, ListenerKind::Public));
        let (second, before) = status.take_permit(ListenerKind::Public);
        assert_eq!((before, status.connections(ListenerKind::Public)), (1, 2));
        assert_eq!(status.connections(ListenerKind::Admin), 0);
        drop((first, second));
        assert_eq!(status.connections(ListenerKind::Public), 0);
    }
}
