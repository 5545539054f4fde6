//! Support for tests and benches: a shard configuration, tokens for it, and a random number
//! generator.
//!
//! The unit tests, the simulation, the allocation test and the benches all drive a
//! [`Shard`](crate::core::shard::Shard). They start from [`shard_config`], so that a new setting
//! needs a value in only one place, and each overrides only the settings that it tests. The server
//! itself does not use this module.

use std::sync::Arc;

use crate::core::fanout::peers::PresenceSettings;
use crate::core::shard::contract::{Limits, ShardConfig};
use crate::limits::{
    BATCH_BYTES_MAX, CONFLATED_BYTES_MAX, DRAIN_MS_DEFAULT, FUTURE_SKEW_S_DEFAULT, LOG_SPARE_BYTES,
    MESSAGE_BYTES_DEFAULT, OUTBOX_BYTES_DEFAULT, PING_INTERVAL_MS_DEFAULT, PRESENCE_BYTES_DEFAULT,
    PRESENCE_INTERVAL_MS_DEFAULT, PRESENCE_SHARD_BYTES_MAX, SECOND_US, SESSION_BUDGET_BYTES,
    SNAPSHOT_BYTES_MAX, SNAPSHOT_PART_BYTES, TOMBSTONE_RETENTION_S_DEFAULT,
};
use crate::log::commit::Durability;
use crate::wire::auth::{Secret, Verifier, mint};

/// The Unix time at which a test begins, in seconds.
pub const START_UNIX_S: u64 = 1_700_000_000;
/// The seed for hashing the keys of a workspace.
pub const HASH_SEED: u64 = 5;

/// Returns the configuration of a server's only shard.
///
/// It uses the defaults of `etherply serve`, except that segments never fill up and clients have no
/// limits.
#[must_use]
pub fn shard_config() -> ShardConfig {
    ShardConfig {
        shard: 0,
        shards: 1,
        durability: Durability::Always,
        sync_interval_us: SECOND_US,
        ping_interval_us: PING_INTERVAL_MS_DEFAULT * 1000,
        outbox_bytes_max: OUTBOX_BYTES_DEFAULT,
        message_bytes_max: MESSAGE_BYTES_DEFAULT,
        session_bytes_max: SESSION_BUDGET_BYTES,
        snapshot_bytes_max: SNAPSHOT_BYTES_MAX,
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        state_part_bytes: CONFLATED_BYTES_MAX,
        batch_bytes_max: BATCH_BYTES_MAX,
        segment_bytes_min: u64::MAX,
        segment_bytes_max: u64::MAX,
        log_spare_bytes: LOG_SPARE_BYTES,
        future_skew_us: FUTURE_SKEW_S_DEFAULT * SECOND_US,
        tombstone_retention_us: TOMBSTONE_RETENTION_S_DEFAULT * SECOND_US,
        drain_us: DRAIN_MS_DEFAULT * 1000,
        hash_seed: HASH_SEED,
        verifier: Arc::new(Verifier::new(&secret(), None)),
        origins: Arc::default(),
        limits: Limits::default(),
        presence: PresenceSettings {
            interval_us: PRESENCE_INTERVAL_MS_DEFAULT * 1000,
            bytes_max: PRESENCE_BYTES_DEFAULT,
            shard_bytes_max: PRESENCE_SHARD_BYTES_MAX,
        },
        has_journal: false,
        fault_panic_key: None,
    }
}

/// Returns the secret that [`shard_config`] uses.
#[must_use]
pub fn secret() -> Secret {
    let secret = Secret::new(b"a secret for tests that is long enough".to_vec());
    secret.expect("the secret is not empty")
}

/// Returns a token for [`shard_config`], issued at [`START_UNIX_S`] and valid for `ttl_s` seconds,
/// or forever if `ttl_s` is `None`.
#[must_use]
pub fn token(ttl_s: Option<u64>) -> String {
    mint(&secret(), "client", START_UNIX_S, ttl_s)
}

/// Returns the request that a client sends to join `workspace`.
#[must_use]
pub fn join_request(workspace: &str, token: &str) -> String {
    upgrade_request(&format!("/v1/sync/{workspace}?token={token}"))
}

/// Returns the upgrade request for a WebSocket on `path`.
#[must_use]
pub fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A random number generator that depends only on its seed, so that a failing run can be repeated.
///
/// The algorithm is `SplitMix64` (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Returns the sequence for a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns one of several independent sequences for a seed.
    #[must_use]
    pub fn stream(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0xA24B_AED4_963E_E407) ^ stream << 48);
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// Returns a number below `bound`.
    ///
    /// # Panics
    ///
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.below_u64(bound as u64)).expect("the value fits in a usize")
    }

    /// Returns a number below `bound`, like [`Dice::below`].
    ///
    /// # Panics
    ///
    /// If `bound` is 0.
    pub fn below_u64(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "the range is not empty");
        self.next() % bound
    }

    /// Returns true with a probability of one in `count`, or always false if `count` is 0.
    pub fn one_in(&mut self, count: usize) -> bool {
        let thrown = self.below(count.max(1));
        count > 0 && thrown == 0
    }

    /// Returns one of the values in `from`.
    ///
    /// # Panics
    ///
    /// If `from` is empty.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
