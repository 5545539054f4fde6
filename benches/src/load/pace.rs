//! The schedule by which ops are due. Pure.

/// The pace at which the ops of a load are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// On a schedule, whatever the server does: `ops_per_s` in all rooms together, with the rooms
    /// taking turns. Latency is measured from the time at which the op was due, so a delay caused
    /// by a slow server counts in full.
    Open { ops_per_s: u32 },
    /// As fast as they are delivered: each room keeps `in_flight` ops in flight.
    Closed { in_flight: u32 },
}

/// A schedule on which op `i` is due at `i` times the interval, without drift.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub start_ns: u64,
    pub ops_per_s: u32,
}

impl Schedule {
    pub fn due_ns(&self, op: u64) -> u64 {
        let whole = op / u64::from(self.ops_per_s);
        let rest = op % u64::from(self.ops_per_s);
        self.start_ns + whole * 1_000_000_000 + rest * 1_000_000_000 / u64::from(self.ops_per_s)
    }
}

#[cfg(test)]
mod tests;
