//! Tracks which messages of a version 2 client are settled, which `saved` reports to it (P150).
//!
//! A message is settled immediately if its answer shows no op, as with an error or a ping. It is
//! settled at a log position if its op won, or if its answer shows an op that is not visible yet.
//! Only a prefix of the ids is ever reported, so a message that is settled immediately still waits
//! for those before it.

use smallvec::SmallVec;

use crate::log::position::LogPosition;

/// The messages of one client, by id.
///
/// Invariant: `saved ≤` each waiting id `≤ handled`, and the waiting ids and positions increase.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    /// The greatest id of a message that was handled.
    handled: u64,
    /// The greatest id that was reported to the client as settled.
    saved: u64,
    /// The messages that wait for the log: of those that wait for the same commit, the greatest id,
    /// and the position that must be visible for all of them.
    waiting: SmallVec<[(u64, LogPosition); 2]>,
}

impl Settlement {
    /// Returns whether a message may have this id: ids must increase.
    pub fn accepts(&self, id: u64) -> bool {
        id > self.handled
    }

    /// Records that the next message was handled, and is settled once `position` is visible.
    /// Everything appended to the log from `batch_start` on becomes visible with one commit.
    ///
    /// # Panics
    /// If the id is not accepted.
    pub fn handled(
        &mut self,
        id: u64,
        position: LogPosition,
        visible: LogPosition,
        batch_start: LogPosition,
    ) {
        assert!(self.accepts(id), "ids grow");
        self.handled = id;
        if self.waiting.is_empty() && position <= visible {
            return;
        }
        // A client that does not read may go without `saved` for a long time. Of the messages that
        // are settled in the meantime, only the last matters.
        let settled = self.waiting.iter().take_while(|(_, at)| *at <= visible);
        let settled_count = settled.count();
        self.waiting.drain(..settled_count.saturating_sub(1));
        match self.waiting.last_mut() {
            Some(last) if position <= last.1 || last.1 > batch_start => {
                *last = (id, position.max(last.1));
            }
            _ => self.waiting.push((id, position)),
        }
    }

    /// Returns the greatest id up to which all messages are settled, if it was not reported yet,
    /// and records it as reported.
    pub fn take_settled(&mut self, visible: LogPosition) -> Option<u64> {
        let settled = self.settled(visible);
        let first_hidden = self.waiting.iter().position(|(_, at)| *at > visible);
        self.waiting
            .drain(..first_hidden.unwrap_or(self.waiting.len()));
        (settled > self.saved).then(|| {
            self.saved = settled;
            settled
        })
    }

    /// Returns whether there is more to report to the client.
    pub fn is_due(&self, visible: LogPosition) -> bool {
        self.settled(visible) > self.saved
    }

    /// Returns whether a message waits for the log.
    pub fn is_waiting(&self, visible: LogPosition) -> bool {
        self.waiting.last().is_some_and(|(_, at)| *at > visible)
    }

    fn settled(&self, visible: LogPosition) -> u64 {
        match self.waiting.iter().position(|(_, at)| *at > visible) {
            None => self.handled,
            Some(0) => self.saved,
            Some(hidden) => self.waiting[hidden - 1].0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(bytes: u64) -> LogPosition {
        LogPosition::new(bytes)
    }

    #[test]
    fn messages_are_reported_once_per_commit_and_only_as_a_prefix() {
        let mut settlement = Settlement::default();
        assert!(!settlement.accepts(0));
        assert_eq!(settlement.take_settled(position(0)), None);
        // An error and a ping are settled immediately.
        settlement.handled(3, LogPosition::NONE, position(10), position(10));
        assert_eq!(settlement.take_settled(position(10)), Some(3));
        assert_eq!(settlement.take_settled(position(10)), None);
        assert!(!settlement.accepts(3) && settlement.accepts(4));
        // Two ops in a batch that begins at 10, with an error between them.
        settlement.handled(4, position(20), position(10), position(10));
        settlement.handled(5, LogPosition::NONE, position(10), position(10));
        settlement.handled(6, position(30), position(10), position(10));
        assert!(settlement.is_waiting(position(10)) && !settlement.is_due(position(10)));
        // The batch is being written, and the next one filled.
        settlement.handled(7, position(40), position(10), position(30));
        assert_eq!(settlement.waiting.len(), 2);
        assert_eq!(settlement.take_settled(position(10)), None);
        assert_eq!(settlement.take_settled(position(30)), Some(6));
        settlement.handled(8, LogPosition::NONE, position(30), position(40));
        assert_eq!(settlement.take_settled(position(30)), None);
        assert_eq!(settlement.take_settled(position(40)), Some(8));
        assert!(!settlement.is_waiting(position(40)));
    }

    #[test]
    fn a_client_that_does_not_read_costs_no_memory_per_commit() {
        let mut settlement = Settlement::default();
        for commit in 1..100 {
            let visible = position(10 * commit);
            settlement.handled(commit, position(10 * commit + 10), visible, visible);
            assert!(settlement.waiting.len() <= 3, "{:?}", settlement.waiting);
        }
        assert_eq!(settlement.take_settled(position(990)), Some(98));
        assert_eq!(settlement.take_settled(position(1000)), Some(99));
    }

    proptest! {
        /// P150: a message is reported only when all before it are settled, and at the latest when
        /// everything is visible.
        #[test]
        fn what_is_reported_is_settled(
            steps in prop::collection::vec((0..4_u8, 1..20_u64), 1..60),
        ) {
            let mut settlement = Settlement::default();
            let (mut id, mut end, mut handed, mut visible) = (0, 1, 1, 1);
            let mut positions: Vec<(u64, u64)> = Vec::new();
            for (kind, bytes) in steps {
                match kind {
                    0 | 1 => {
                        id += bytes;
                        let at = if kind == 0 {
                            end += bytes;
                            position(end)
                        } else {
                            LogPosition::NONE
                        };
                        positions.push((id, at.get()));
                        settlement.handled(id, at, position(visible), position(handed));
                    }
                    // One commit is in flight at a time.
                    2 if handed == visible => handed = end,
                    2 => {}
                    _ => visible = handed,
                }
                prop_assert!(settlement.waiting.len() <= 2);
                let told = settlement.take_settled(position(visible));
                let hidden = positions.iter().find(|(_, at)| *at > visible);
                if let Some(told) = told {
                    prop_assert!(hidden.is_none_or(|(id, _)| told < *id), "{told} {hidden:?}");
                }
                prop_assert_eq!(settlement.is_waiting(position(visible)), hidden.is_some());
            }
            let _ = settlement.take_settled(LogPosition::MAX);
            prop_assert_eq!(settlement.saved, settlement.handled);
        }
    }
}
