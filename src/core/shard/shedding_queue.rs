//! Which connections give way when there are as many as there may be ([`yielding`](crate::core::shard::shedding)).

use std::collections::BTreeMap;

use crate::core::shard::session::SessionId;

/// The connections of a shard that give way, of those that came in by one door. By the numbers of their sessions: in the order in
/// which they came.
#[derive(Debug, Default)]
pub(super) struct SheddingQueue {
    pub silent: BTreeMap<u64, SessionId>,
    pub answered: BTreeMap<u64, SessionId>,
}

impl SheddingQueue {
    pub fn remove(&mut self, number: u64) {
        self.silent.remove(&number);
        self.answered.remove(&number);
    }
}
