//! The allowance for a workspace's free writes while its shard's log is long.

use crate::limits::{LIGHT_BURST_BYTES, LIGHT_BYTES_PER_SECOND, SECOND_US};

/// A leaky bucket of a workspace's recent writes that are not charged to the rate shared by all
/// workspaces that write a lot.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteAllowance {
    /// The used part of [`LIGHT_BURST_BYTES`], times [`SECOND_US`]. It leaks at
    /// [`LIGHT_BYTES_PER_SECOND`].
    used: u64,
    at_us: u64,
}

impl WriteAllowance {
    /// Returns whether the workspace may now write at no charge.
    pub fn has_room(&mut self, now_us: u64) -> bool {
        let passed_us = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        let leaked = passed_us.saturating_mul(LIGHT_BYTES_PER_SECOND);
        self.used = self.used.saturating_sub(leaked);
        self.used < LIGHT_BURST_BYTES * SECOND_US
    }

    /// Counts bytes that were written at no charge. The last write may exceed the allowance.
    pub fn spend(&mut self, bytes: u64) {
        self.used += bytes * SECOND_US;
    }
}
