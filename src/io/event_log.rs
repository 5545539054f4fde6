//! Log messages about problems with environment variables and, at `debug` and `trace`, about
//! individual connections and batches.

use std::net::SocketAddr;

use crate::config::environment::Others;
use crate::core::shard::connection_log::{Ended, Note};
use crate::core::shard::session::SessionId;

/// Logs an event that a shard has noted about a connection.
pub fn log(of: (u32, SessionId), peer: Option<SocketAddr>, note: Note, now_us: u64) {
    match note {
        Note::Joined(member) => tracing::debug!(
            shard = of.0,
            connection = of.1.generation,
            peer = peer.map(tracing::field::display),
            workspace = member.workspace,
            sub = member.subject,
            "client connected"
        ),
        Note::EarlyTimestamp(timestamp) => tracing::debug!(
            shard = of.0,
            connection = of.1.generation,
            peer = peer.map(tracing::field::display),
            timestamp,
            "client sends timestamps before 2001: are these milliseconds instead of microseconds?"
        ),
        Note::Ended(ended) => log_end(of, ended, now_us),
    }
}

/// Logging state for the batch that is being written.
#[derive(Debug, Default)]
pub struct BatchLog {
    /// The number of ops in all batches up to and including this one.
    ops_total: u64,
    ops: u64,
}

impl BatchLog {
    /// Records the submission of a batch, or of the rest of a partly written one. `ops_total`
    /// counts its ops and those of all earlier batches.
    pub fn begin(&mut self, ops_total: u64) {
        self.ops = ops_total - std::mem::replace(&mut self.ops_total, ops_total);
    }

    /// Logs that the batch was written.
    pub fn log_written(&self, shard: u32, bytes: Option<usize>, took_us: u64) {
        tracing::trace!(shard, ops = self.ops, bytes, took_us, "batch written");
    }
}

/// Logs an fdatasync of the log.
pub fn log_sync(shard: u32, ok: bool, took_us: u64) {
    tracing::trace!(shard, ok, took_us, "log synced");
}

fn log_end((shard, id): (u32, SessionId), ended: Ended, now_us: u64) {
    let connection = id.generation;
    let Ended {
        member,
        ending,
        begun_us,
        bytes_received,
        bytes_sent,
        ops,
        has_early_timestamp: _,
    } = ended;
    let duration_ms = now_us.saturating_sub(begun_us) / 1000;
    let (code, reason, closed_by) = ending.map_or((None, None, None), |ending| {
        let reason = Some(ending.reason).filter(|reason| !reason.is_empty());
        (Some(ending.code), reason, Some(ending.closed_by.name()))
    });
    match member {
        Some(member) => tracing::debug!(
            shard,
            connection,
            workspace = member.workspace,
            sub = member.subject,
            code,
            reason,
            closed_by,
            duration_ms,
            bytes_received,
            bytes_sent,
            ops,
            "client disconnected"
        ),
        None if code.is_some() => tracing::debug!(
            shard,
            connection,
            status = code,
            reason,
            duration_ms,
            bytes_received,
            bytes_sent,
            "request answered"
        ),
        None => tracing::debug!(
            shard,
            connection,
            duration_ms,
            bytes_received,
            "connection closed before its request was answered"
        ),
    }
}

/// Logs the environment variables that look like settings but are not read.
pub fn log_variables(others: &Others) {
    for variable in &others.unknown {
        let name = variable.name.escape_debug();
        let hint = variable.nearest.as_ref().map_or_else(
            || "see `etherply serve --help`".to_owned(),
            |nearest| format!("did you mean {nearest}?"),
        );
        tracing::warn!("the variable {name} is unknown and has no effect: {hint}");
    }
    if !others.service_links.is_empty() {
        let names = others.service_links.join(", ").escape_debug().to_string();
        tracing::debug!(
            "variables that describe a Kubernetes Service are ignored: {names}; set \
             enableServiceLinks: false in the pod to avoid them"
        );
    }
}
