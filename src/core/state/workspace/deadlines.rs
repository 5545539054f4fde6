//! The effects of time on a workspace: keys expire, and tombstones are dropped after their
//! retention. A dropped tombstone raises the *floor*, which keeps refusing the writes that the
//! tombstone refused.

use super::Workspace;
use super::floor::{Dropped, Floor};
use crate::core::state::segment_usage::{Mark, UNMARKED};
use crate::log::record::{Change, EXTRA_BYTES, OP_HEADER_BYTES};
use crate::seq::Seq;

impl Workspace {
    /// Returns the floor, if any tombstone was ever dropped.
    #[must_use]
    pub fn floor(&self) -> Option<Floor> {
        (self.floor.dropped_seq > Seq::NONE).then_some(self.floor)
    }

    /// Returns the seq at which the current generation began.
    #[must_use]
    pub fn begun_seq(&self) -> Seq {
        self.begun_seq
    }

    /// Returns the number of tombstones.
    #[must_use]
    pub fn tombstones_count(&self) -> usize {
        let lifetimes = self.lifetimes.as_ref();
        lifetimes.map_or(0, |lifetimes| lifetimes.tombstones_count())
    }

    /// Returns the number of keys that have an expiry.
    #[must_use]
    pub fn expiries_count(&self) -> usize {
        let lifetimes = self.lifetimes.as_ref();
        lifetimes.map_or(0, |lifetimes| lifetimes.expiries_count())
    }

    /// Returns the Unix time in microseconds at which a key expires or a tombstone has been kept
    /// for `retention_us`, whichever comes first.
    #[must_use]
    pub fn next_due_us(&self, retention_us: u64) -> Option<u64> {
        let drop_us = self.next_drop_us(retention_us);
        self.next_expiry_us().into_iter().chain(drop_us).min()
    }

    /// Returns the Unix time in microseconds at which a key expires.
    #[must_use]
    pub fn next_expiry_us(&self) -> Option<u64> {
        let (at_us, _) = self.lifetimes.as_ref()?.next_expiry()?;
        Some(at_us)
    }

    /// Returns the Unix time in microseconds at which a tombstone has been kept for `retention_us`,
    /// and is not in the future.
    ///
    /// The second condition matters if the retention is shorter than the clock skew that clients
    /// are allowed. A floor in the future would refuse current writes to any key without an entry.
    #[must_use]
    pub fn next_drop_us(&self, retention_us: u64) -> Option<u64> {
        let (deleted_at_us, slot) = self.oldest_tombstone()?;
        let timestamp = self.entries[slot as usize].timestamp;
        Some(deleted_at_us.saturating_add(retention_us).max(timestamp))
    }

    /// Returns whether a key has expired by `unix_us` and has not been deleted yet.
    #[must_use]
    pub fn has_expired(&self, unix_us: u64) -> bool {
        self.next_expired(unix_us).is_some()
    }

    /// Returns the key that expires first, with its timestamp, if it has expired by `unix_us`.
    #[must_use]
    pub fn next_expired(&self, unix_us: u64) -> Option<(&str, u64)> {
        let (at_us, slot) = self.lifetimes.as_ref()?.next_expiry()?;
        let entry = self.entry_at(slot);
        (at_us <= unix_us).then(|| (entry.key(), entry.timestamp()))
    }

    /// Drops the tombstones whose retention ended by `unix_us`, at most `most` of them, and raises
    /// the floor. Returns `None` if there are none. The record of the new floor will have `mark`.
    /// The tombstones after the seq `needed_after` are kept, since a client still needs them.
    ///
    /// Tombstones are dropped in the order of their seqs, so that none is left up to
    /// [`Floor::dropped_seq`]. If the clock was set back in the meantime, later ones wait for
    /// earlier ones.
    pub fn drop_tombstones(
        &mut self,
        (unix_us, retention_us): (u64, u64),
        most: usize,
        needed_after: Option<Seq>,
        mark: Mark,
    ) -> Option<Dropped> {
        let mut count = 0;
        while count < most
            && let Some((_, slot)) = self.oldest_tombstone()
            && self
                .next_drop_us(retention_us)
                .is_some_and(|drop_us| drop_us <= unix_us)
            && needed_after.is_none_or(|seq| self.entries[slot as usize].seq <= seq)
        {
            self.drop_tombstone(slot);
            count += 1;
        }
        (count > 0).then(|| Dropped {
            count: count as u64,
            replaced: std::mem::replace(&mut self.floor.mark, mark),
        })
    }

    /// Begins a generation with the state that was read back: drops the tombstones that the floor
    /// covers, whose records may still be in the log.
    ///
    /// Must not be called until every part of the log has been merged: an unmerged part may hold an
    /// older write of a key, which its tombstone must supersede.
    pub fn begin_generation(&mut self) {
        let dropped_seq = self.floor.dropped_seq;
        while let Some((_, slot)) = self.oldest_tombstone()
            && self.entries[slot as usize].seq <= dropped_seq
        {
            self.drop_tombstone(slot);
        }
        (self.begun_seq, self.last_delete_seq) = (self.seq, self.seq);
    }

    /// Returns a seq after which no key was deleted.
    #[must_use]
    pub fn last_delete_seq(&self) -> Seq {
        self.last_delete_seq
    }

    /// Records the op that just won, if it is a delete.
    pub(super) fn note_delete(&mut self, change: &Change<'_>) {
        if let Change::Delete { .. } = change {
            self.last_delete_seq = self.seq;
        }
    }

    fn oldest_tombstone(&self) -> Option<(u64, u32)> {
        self.lifetimes.as_ref()?.oldest_tombstone()
    }

    fn drop_tombstone(&mut self, slot: u32) {
        self.subtract_bytes(slot);
        self.clear_time(slot);
        self.unlink(slot);
        let entry = self.entries.remove(slot as usize);
        self.index.remove(entry.tag, slot);
        self.texts.remove(entry.text);
        self.raise_floor(entry.timestamp, entry.seq);
    }

    /// Raises the floor to a dropped tombstone, or to a floor that was read from the log.
    pub(super) fn raise_floor(&mut self, timestamp: u64, dropped_seq: Seq) {
        if self.floor().is_none() && dropped_seq > Seq::NONE {
            self.log_bytes += (OP_HEADER_BYTES + EXTRA_BYTES + self.id.len()) as u64;
            self.floor.mark = UNMARKED;
        }
        self.floor.timestamp = self.floor.timestamp.max(timestamp);
        self.floor.dropped_seq = self.floor.dropped_seq.max(dropped_seq);
    }

    /// Records the time of an entry after a change, if it has one.
    pub(super) fn set_time(&mut self, slot: u32, change: &Change<'_>) {
        let seq = self.entries[slot as usize].seq;
        let lifetimes = &mut self.lifetimes;
        match *change {
            Change::Write {
                expires_at_us: Some(expires_at_us),
                ..
            } => lifetimes
                .get_or_insert_default()
                .add_expiry(slot, expires_at_us),
            Change::Delete { deleted_at_us } => {
                lifetimes
                    .get_or_insert_default()
                    .add_tombstone(slot, seq, deleted_at_us);
            }
            Change::Write { .. } | Change::Floor { .. } | Change::Generation { .. } => {}
        }
    }

    /// Forgets the time of an entry before a change.
    pub(super) fn clear_time(&mut self, slot: u32) {
        let entry = &self.entries[slot as usize];
        if entry.is_timed() {
            let lifetimes = self.lifetimes.as_mut();
            let lifetimes = lifetimes.expect("an entry with a time is in the table of times");
            lifetimes.remove(slot, entry.seq);
        }
    }

    /// Returns the change that produced an entry.
    pub(super) fn change_of(&self, slot: u32) -> Change<'_> {
        let entry = &self.entries[slot as usize];
        let lifetimes = self.lifetimes.as_ref().filter(|_| entry.is_timed());
        let time_us = lifetimes.map(|lifetimes| lifetimes.time_us(slot));
        if entry.is_deleted() {
            return Change::Delete {
                deleted_at_us: time_us.expect("a tombstone has a time"),
            };
        }
        Change::Write {
            value: self.entry_at(slot).value(),
            expires_at_us: time_us,
        }
    }
}
