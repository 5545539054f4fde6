//! The thread of a shard, which owns the shard's state machine and its ring, and runs its turns.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use crate::core::shard::Shard;
use crate::core::shard::contract::ShardConfig;
use crate::io::ring::{self, RingKind};
use crate::io::threads::{self, ThreadError};
use crate::io::worker::{Worker, WorkerContext, clock};

/// The arguments of a shard's thread.
pub struct Start {
    /// The shard's settings.
    pub config: ShardConfig,
    /// The parts of the server that the shard shares with other threads.
    pub context: WorkerContext,
    /// The time at which the server was started.
    pub started: Instant,
    /// Whether the thread is pinned to one core.
    pub is_pinned: bool,
    /// The ring that the shard runs on.
    pub ring_kind: RingKind,
    /// The channel on which the shard reports that its ring is set up.
    pub ring: RingReport,
    /// The signal to begin. If the sender is dropped, the shard must not begin.
    pub go: Receiver<()>,
}

/// A shard's one-time report on whether its ring was set up.
#[derive(Default)]
pub struct RingReport(Option<Sender<io::Result<()>>>);

impl RingReport {
    /// Creates a report that is sent on this channel.
    #[must_use]
    pub fn new(sender: Sender<io::Result<()>>) -> Self {
        Self(Some(sender))
    }

    fn send(&mut self, outcome: io::Result<()>) {
        if let Some(sender) = self.0.take() {
            // The main thread may have given up because another shard has no ring.
            let _ = sender.send(outcome);
        }
    }
}

impl Drop for RingReport {
    fn drop(&mut self) {
        self.send(Err(io::Error::other(
            "a bug in this server, please report it",
        )));
    }
}

/// Starts a shard's thread. When the thread ends, it calls `stopped` with `true` if there was no
/// error.
///
/// # Errors
///
/// If the thread cannot be started.
pub fn spawn(mut start: Start, stopped: impl Fn(bool) + Send + 'static) -> Result<(), ThreadError> {
    /// Reports the end of the thread, even by a panic, because the server must not keep running
    /// with a dead shard.
    struct StopReporter<F: Fn(bool)>(F, bool);
    impl<F: Fn(bool)> Drop for StopReporter<F> {
        fn drop(&mut self) {
            (self.0)(self.1);
        }
    }
    threads::start(format!("etherply-{}", start.config.shard), move || {
        let mut ending = StopReporter(stopped, false);
        let mut report = std::mem::take(&mut start.ring);
        match run(start, &mut report) {
            Ok(()) => ending.1 = true,
            Err(error) => report.send(Err(error)),
        }
    })?;
    Ok(())
}

fn run(start: Start, report: &mut RingReport) -> io::Result<()> {
    let Start {
        config,
        context,
        started,
        is_pinned,
        ring_kind,
        ring: _,
        go,
    } = start;
    let number = config.shard;
    if is_pinned {
        pin(number);
    }
    let shard = Shard::recovering(config, clock(started));
    let mut worker = Worker::new(shard, number, context, started);
    let mut is_started = false;
    // Lets tests simulate a kernel before 5.19.
    let is_old = cfg!(debug_assertions) && std::env::var_os("ETHERPLY_FAULT_OLD_KERNEL").is_some();
    let kind = if is_old {
        RingKind::Compat {
            waits_before_receive: true,
        }
    } else {
        ring_kind
    };
    let is_set_up = || {
        report.send(Ok(()));
        match go.recv() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    ring::run(kind, is_set_up, |ring| {
        if !is_started {
            is_started = true;
            worker.start(ring);
            return ControlFlow::Continue(());
        }
        worker.turn(ring)
    })
}

fn pin(number: u32) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let core = cores.get(number as usize % cores.len().max(1)).copied();
    if !core.is_some_and(core_affinity::set_for_current) {
        tracing::warn!(
            shard = number,
            "cannot pin the shard to its core, so it runs on any core: use --no-pin to turn \
             pinning off"
        );
    }
}
