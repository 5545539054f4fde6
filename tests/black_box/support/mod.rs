//! Support code for the black-box tests: the server as a process, its clients, tokens and raw
//! sockets.
//!
//! Nothing here depends on the server's internals. Every wait is bounded by [`PATIENCE`], and a
//! wait that times out names what it waited for.

pub mod client;
pub mod disk;
pub mod files;
pub mod raw;
pub mod server;
pub mod strace;
pub mod token;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fmt::Display;
use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The maximum time that a test waits for anything before it fails. It is not a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Reports that the calling test cannot run on this host. `.ci/run` counts these lines.
pub fn skipped(reason: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    let line = format!("skipped - {test}: {reason}\n");
    // The print macros' output is captured, and discarded if the test passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Raises this process's limit on open files to the hard limit.
///
/// All tests share one process, and some of them open hundreds of connections: together they exceed
/// the common soft limit of 1024. The server raises its own limit, so inheriting this one makes no
/// difference.
pub fn raise_open_files_limit() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).expect("a process can raise its soft limit");
    });
}

/// Returns the time in the protocol's unit: microseconds since the Unix epoch.
pub fn now_us() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is after 1970");
    u64::try_from(since_epoch.as_micros()).expect("the clock is before the year 500000")
}

/// Returns the time in the unit of `exp` and `nbf`: seconds since the Unix epoch.
pub fn now_s() -> u64 {
    now_us() / 1_000_000
}

/// Returns a timestamp greater than all previously returned ones, so that an op with it wins.
pub fn stamp() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = now_us();
    let before = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        Some(now.max(last + 1))
    });
    now.max(before.expect("the closure always returns a value") + 1)
}

/// Awaits the future, and fails the test, naming `what`, if that takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(PATIENCE, future).await;
    outcome.unwrap_or_else(|_| panic!("timed out after {PATIENCE:?} waiting for {what}"))
}

/// Polls the probe until it returns an answer.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_in(PATIENCE, what, probe).await
}

/// Polls the probe like [`eventually`], but with the given time limit.
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
    outcome.unwrap_or_else(|_| panic!("timed out after {limit:?}: {what}"))
}
