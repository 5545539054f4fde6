//! What the black-box suites share: the server as a process, its clients, tokens and raw sockets.
//!
//! Nothing here knows the inside of the server. Every wait is bounded by [`PATIENCE`] and names what it waited for.

// Each suite is a crate of its own and uses its own part of this folder.
#![allow(dead_code)]

pub mod client;
pub mod disk;
pub mod files;
pub mod raw;
pub mod server;
pub mod strace;
pub mod token;

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a test waits for anything before it fails. It bounds a wait; it is no measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Says that the test that calls this cannot be run here. `.ci/run` counts these lines.
pub fn skipped(reason: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    let line = format!("skipped - {test}: {reason}\n");
    // The print macros are captured, and dropped when the test passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The clock in the unit of the contract: Unix microseconds.
pub fn now_us() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    u64::try_from(since_epoch.as_micros()).expect("the clock is before the year 500000")
}

/// The clock in the unit of `exp` and `nbf`: Unix seconds.
pub fn now_s() -> u64 {
    now_us() / 1_000_000
}

/// A timestamp greater than every one handed out before: an op that carries it wins.
pub fn stamp() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = now_us();
    let before = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        Some(now.max(last + 1))
    });
    now.max(before.expect("the closure always gives a value") + 1)
}

/// The future's outcome, or a failed test that says what did not come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(PATIENCE, future).await;
    outcome.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Asks again and again until the probe gives an answer.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_in(PATIENCE, what, probe).await
}

/// [`eventually`] with a bound of its own.
pub async fn eventually_in<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::time::timeout(limit, asking).await;
    outcome.unwrap_or_else(|_| panic!("waited {limit:?} in vain: {what}"))
}

/// A small generator (xorshift64*): a failing run repeats with the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.max(1))
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}
