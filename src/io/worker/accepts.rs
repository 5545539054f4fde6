//! Accepting connections: when to accept, how many at once, and which connection to shed when there
//! are too many.
//!
//! All shards share one connection limit. A shard whose accept exceeds the limit sheds one of its
//! own connections: the oldest that has not sent its request head, or else one whose answer has
//! been sent completely ([`shedding`](crate::core::shard::shedding)). If it has neither, it asks
//! another shard, which had one at the end of its last turn, to shed that one. If that shard no
//! longer has one either, the server stays one connection over the limit until some connection
//! ends. The total stays bounded: when [`REFUSALS_IN_FLIGHT_MAX`] more connections than the limit
//! are open, further ones are closed without an answer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{Worker, WorkerTokens};
use crate::core::shard::contract::{Clock, ListenerKind};
use crate::io::handoff::Connection;
use crate::io::mailbox::ShardMessage;
use crate::io::ring::Ring;
use crate::limits::{
    ABSENCE_WARNING_US, ACCEPT_PAUSE_US, ACCEPT_WARNING_US, ACCEPTS_IN_FLIGHT,
    ADMIN_CONNECTIONS_MAX, ADMIN_REFUSALS_IN_FLIGHT_MAX, REFUSALS_IN_FLIGHT_MAX,
};
use crate::wire::upgrade::Answer;

impl Worker {
    pub(super) fn accepted(
        &mut self,
        kind: ListenerKind,
        outcome: io::Result<OwnedFd>,
        clock: Clock,
    ) {
        match kind {
            ListenerKind::Public => self.accepts_in_flight -= 1,
            ListenerKind::Admin => self.admin_accepts_in_flight -= 1,
        }
        match outcome {
            Ok(socket) => self.let_in(kind, socket, clock),
            Err(error) if is_exhausted(&error) => {
                if self.next_accept_warning_us <= clock.now_us {
                    self.next_accept_warning_us = clock.now_us + ACCEPT_WARNING_US;
                    tracing::warn!(
                        shard = self.number,
                        "accepting connections is paused: {error}; raise the limit on open files \
                         (ulimit -n), or lower --max-connections"
                    );
                }
                self.accepts_paused_until_us = Some(clock.now_us + ACCEPT_PAUSE_US);
            }
            // The peer went away before its connection was accepted, or the server is stopping.
            Err(_) => {}
        }
    }

    fn let_in(&mut self, kind: ListenerKind, socket: OwnedFd, clock: Clock) {
        let (permit, before) = self.context.status.take_permit(kind);
        let (permits, refusals_max) = match kind {
            ListenerKind::Public => (self.context.status.connections_max, REFUSALS_IN_FLIGHT_MAX),
            ListenerKind::Admin => (ADMIN_CONNECTIONS_MAX, ADMIN_REFUSALS_IN_FLIGHT_MAX),
        };
        if before >= permits + refusals_max {
            return;
        }
        let is_over = before >= permits && !self.shed_for_another(kind, clock);
        let id = self.shard.accept_at(kind, is_over, clock);
        self.keep(id, Connection { socket, permit });
    }

    /// Sheds a connection of this shard, or asks another shard to shed one. Returns whether there
    /// was one to shed.
    fn shed_for_another(&mut self, kind: ListenerKind, clock: Clock) -> bool {
        if self.shed(kind, clock) {
            return true;
        }
        let other = self.context.status.claim_sheddable(self.number, kind);
        if let Some(other) = other {
            self.context.senders[other].send(ShardMessage::Shed(kind));
        }
        other.is_some()
    }

    /// Sheds a connection of this shard. Returns whether there was one to shed.
    pub(super) fn shed(&mut self, kind: ListenerKind, clock: Clock) -> bool {
        let Some(shed) = self.shard.shed(kind, clock) else {
            return false;
        };
        if shed.is_silent {
            let connection = self.connections[shed.id.slot as usize].as_ref();
            let connection = connection.expect("a session has a connection");
            connection.answer_at_once(&Answer::request_timeout());
        }
        true
    }

    /// Logs that the shard did not run for a while, which otherwise only its clients would notice.
    pub(super) fn log_absence(&mut self) {
        let absent_us = self.shard.counters().absent_us;
        let missed_us = absent_us - std::mem::replace(&mut self.logged_absent_us, absent_us);
        if missed_us >= ABSENCE_WARNING_US {
            tracing::warn!(
                shard = self.number,
                "the shard was suspended or got no CPU time for {:.1} s: the deadlines of its \
                 clients are extended by that time",
                Duration::from_micros(missed_us).as_secs_f64()
            );
        }
    }

    pub(super) fn arm_accepts(&mut self, ring: &mut Ring<WorkerTokens>, now_us: u64) {
        if self
            .accepts_paused_until_us
            .is_some_and(|until_us| until_us <= now_us)
        {
            self.accepts_paused_until_us = None;
        }
        if self.accepts_paused_until_us.is_some() || !self.is_accepting {
            return;
        }
        while self.accepts_in_flight < ACCEPTS_IN_FLIGHT {
            self.accepts_in_flight += 1;
            ring.accept(self.context.listener.as_fd(), ListenerKind::Public);
        }
        if let Some(listener) = &self.context.admin_listener
            && self.admin_accepts_in_flight == 0
        {
            self.admin_accepts_in_flight = 1;
            ring.accept(listener.as_fd(), ListenerKind::Admin);
        }
    }
}

/// Returns whether an accept failed because the process or the system lacks resources for another
/// connection.
fn is_exhausted(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM]
        .map(Some)
        .contains(&error.raw_os_error())
}
