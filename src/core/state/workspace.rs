//! The state of a workspace: last-write-wins registers in the order of their last change.
//!
//! Each op that wins gets the next `seq` of its workspace. The entries are linked in the order of
//! their last change, so that the changes since seq S are the tail of a list. That tail is exactly
//! what must be sent to a client that has fallen behind, no matter how long ago that was. A sparse
//! index finds where the tail begins.
//!
//! Architecture invariant: this module knows nothing about clients, sockets or the log. A workspace
//! is plain data that may be built on another thread (during recovery) and moved to its shard.
//!
//! Last-write-wins register: Shapiro, Preguiça, Baquero, Zawirski, "A comprehensive study of
//! Convergent and Commutative Replicated Data Types" (2011), section 3.2.1.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use slab::Slab;

use crate::core::state::index::{Index, Tag};
use crate::core::state::segment_usage::{Mark, UNMARKED};
use crate::limits::ABSENT_DELETES_FACTOR;
use crate::log::record::{Change, EXTRA_BYTES, OP_HEADER_BYTES};
use crate::seq::Seq;
use crate::wire::state;

mod deadlines;
mod entry;
mod floor;
mod lifetimes;
mod sparse_index;
mod text_slabs;
mod texts;

pub use entry::{ENTRY_BYTES, Edit, Entry, Source, Writer};
pub use floor::{Dropped, Floor};

use entry::{Lifetime, StoredEntry};
use lifetimes::Lifetimes;
use sparse_index::{ENTRIES_PER_MARK, SparseIndex};
use text_slabs::TextSlabs;

/// The value for "no slot", at either end of the list of changes.
const NONE: u32 = u32::MAX;

/// The result of applying an op.
#[derive(Debug)]
pub enum Verdict<'a> {
    /// The op won and is now the state of its key.
    Won {
        /// The position of the op in the sequence of the workspace's ops.
        seq: Seq,
        /// The mark of the entry that it replaced.
        replaced: Mark,
    },
    /// The state already holds the same value and timestamp, because the op was resent.
    Same,
    /// The op lost to this entry, or its condition does not hold for it.
    Lost(Entry<'a>),
    /// The op lost although the key has no entry: its timestamp is at or below the floor, or its
    /// condition requires an entry. Contains the floor.
    Absent(u64),
    /// The op would have won, but would have made the workspace larger than allowed. Contains the
    /// key's current entry, if there is one.
    TooLarge(Option<Entry<'a>>),
}

/// The state of one workspace, and the sizes of its encodings.
pub struct Workspace {
    id: Box<str>,
    seq: Seq,
    entries: Slab<StoredEntry>,
    texts: TextSlabs,
    index: Index,
    hasher: FixedState,
    oldest: u32,
    newest: u32,
    /// Some of the entries, by the seq of their last change. `None` in a small workspace.
    marks: Option<Box<SparseIndex>>,
    init_fields_bytes: usize,
    stamp_fields_bytes: usize,
    log_bytes: u64,
    /// `None` if no entry has ever expired or been deleted.
    lifetimes: Option<Box<Lifetimes>>,
    floor: Floor,
    /// The seq at which the current generation began.
    begun_seq: Seq,
    /// A seq at or after that of the last delete.
    last_delete_seq: Seq,
}

impl Workspace {
    /// Returns an empty workspace. `hash_seed` seeds the hash of its keys, so that no client can
    /// choose keys that collide.
    #[must_use]
    pub fn new(id: &str, hash_seed: u64) -> Self {
        Self {
            id: id.into(),
            seq: Seq::NONE,
            entries: Slab::new(),
            texts: TextSlabs::default(),
            index: Index::default(),
            hasher: FixedState::with_seed(hash_seed),
            oldest: NONE,
            newest: NONE,
            marks: None,
            init_fields_bytes: 0,
            stamp_fields_bytes: 0,
            log_bytes: 0,
            lifetimes: None,
            floor: Floor::default(),
            begun_seq: Seq::NONE,
            last_delete_seq: Seq::NONE,
        }
    }

    /// Returns the workspace's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the seq of the last op that won.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Returns the number of bytes that its entries occupy in a log without dead records.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Returns whether no op has ever been applied. Such a workspace may be removed.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.seq == Seq::NONE
    }

    /// Applies a write: the later timestamp wins, and if they are equal, the op applied first
    /// stays.
    pub fn apply(&mut self, key: &str, value: &str, timestamp: u64, writer: Writer) -> Verdict<'_> {
        let edit = Edit {
            key,
            change: Change::write(value),
            timestamp,
            if_timestamp: None,
        };
        let mark = UNMARKED;
        self.apply_within(u64::MAX, &edit, Source { writer, mark })
    }

    /// Returns whether an op would win, regardless of its size.
    #[must_use]
    pub fn would_win(&self, edit: &Edit<'_>) -> bool {
        match self.find(self.tag(edit.key), edit.key) {
            Some(slot) => self.entries[slot as usize].loses_to(edit),
            None => self.may_insert(edit),
        }
    }

    /// Returns whether an op on a key without an entry wins.
    fn may_insert(&self, edit: &Edit<'_>) -> bool {
        let expects_entry = edit.if_timestamp.is_some_and(|expected| expected > 0);
        !self.floor.covers(edit.timestamp) && !expects_entry
    }

    /// Applies an op that may not make the workspace larger than `log_bytes_max`. A workspace that
    /// is already larger may still shrink.
    ///
    /// The limit does not hold for the delete of a key that has an entry, and is twice as high for
    /// that of a key without one. Each such delete adds a tombstone, which is kept for days, so
    /// without a limit deletes alone could fill the memory.
    pub fn apply_within(
        &mut self,
        log_bytes_max: u64,
        edit: &Edit<'_>,
        source: Source,
    ) -> Verdict<'_> {
        let tag = self.tag(edit.key);
        let found = self.find(tag, edit.key);
        let Some(slot) = found else {
            if !self.may_insert(edit) {
                return Verdict::Absent(self.floor.timestamp);
            }
            let grown_bytes = self.log_bytes + self.record_bytes(edit.key.len(), &edit.change);
            if grown_bytes > insert_bytes_max(log_bytes_max, &edit.change) {
                return Verdict::TooLarge(None);
            }
            self.seq = self.seq.next();
            let slot = self.insert(
                tag,
                edit.key,
                &edit.change,
                edit.timestamp,
                self.seq,
                source,
            );
            self.link_newest(slot);
            self.note_delete(&edit.change);
            return Verdict::Won {
                seq: self.seq,
                replaced: UNMARKED,
            };
        };
        if self.entry_at(slot).is(edit) {
            return Verdict::Same;
        }
        let stored = &self.entries[slot as usize];
        if !stored.loses_to(edit) {
            return Verdict::Lost(self.entry_at(slot));
        }
        let held_bytes = self.entry_bytes(stored);
        let bytes = self.record_bytes(edit.key.len(), &edit.change);
        let is_growing = bytes > held_bytes && !is_delete(&edit.change);
        if is_growing && self.log_bytes - held_bytes + bytes > log_bytes_max {
            return Verdict::TooLarge(Some(self.entry_at(slot)));
        }
        let replaced = stored.mark;
        self.seq = self.seq.next();
        self.unlink(slot);
        self.overwrite(slot, &edit.change, edit.timestamp, self.seq, source);
        self.link_newest(slot);
        self.note_delete(&edit.change);
        Verdict::Won {
            seq: self.seq,
            replaced,
        }
    }

    /// Merges an op read from the log: the later timestamp wins, and if they are equal, the lower
    /// seq. The order of the calls does not matter; [`Workspace::finish_restore`] must follow the
    /// last one.
    pub fn restore(&mut self, key: &str, change: &Change<'_>, timestamp: u64, seq: Seq) {
        self.restore_tagged(self.tag(key), key, change, timestamp, seq);
    }

    /// Like [`Workspace::restore`], for a key whose tag is already known.
    pub(in crate::core) fn restore_tagged(
        &mut self,
        tag: Tag,
        key: &str,
        change: &Change<'_>,
        timestamp: u64,
        seq: Seq,
    ) {
        self.seq = self.seq.max(seq);
        match change {
            Change::Write { .. } | Change::Delete { .. } => {}
            Change::Floor { dropped_seq } => return self.raise_floor(timestamp, *dropped_seq),
            Change::Generation { .. } => return,
        }
        if let Some(slot) = self.find(tag, key) {
            let entry = &self.entries[slot as usize];
            if timestamp > entry.timestamp || (timestamp == entry.timestamp && seq < entry.seq) {
                self.overwrite(slot, change, timestamp, seq, Source::LOG);
            }
        } else {
            self.insert(tag, key, change, timestamp, seq, Source::LOG);
        }
    }

    /// Returns the tag of a key, which is the same in all workspaces with the same hash seed.
    pub(in crate::core) fn tag(&self, key: &str) -> Tag {
        Tag::of(self.hasher.hash_one(key))
    }

    /// Returns the slot of the key with this tag, or of another key with an equal tag.
    pub(in crate::core) fn likely_slot(&self, tag: Tag) -> Option<u32> {
        self.index.find(tag, |_| true)
    }

    /// Returns the first byte of the key in a slot. Reading it pulls the entry's text into the
    /// cache.
    pub(in crate::core) fn first_byte(&self, slot: u32) -> u8 {
        self.texts.bytes(self.entries[slot as usize].text)[0]
    }

    /// Merges the state of the same workspace that was read from another part of the log.
    pub fn restore_from(&mut self, other: &Self) {
        self.seq = self.seq.max(other.seq);
        if let Some(Floor {
            timestamp,
            dropped_seq,
            ..
        }) = other.floor()
        {
            self.raise_floor(timestamp, dropped_seq);
        }
        for (slot, stored) in &other.entries {
            let slot = slot_index(slot);
            let (entry, change) = (other.entry_at(slot), other.change_of(slot));
            self.restore(entry.key(), &change, stored.timestamp, stored.seq);
        }
    }

    /// Links the entries in the order of their last change, after the last [`Workspace::restore`].
    pub fn finish_restore(&mut self) {
        let mut slots: Vec<(Seq, u32)> = self
            .entries
            .iter()
            .map(|(slot, entry)| (entry.seq, slot_index(slot)))
            .collect();
        slots.sort_unstable();
        (self.oldest, self.newest) = (NONE, NONE);
        self.marks = None;
        for (_, slot) in slots {
            self.link_newest(slot);
        }
    }

    /// Returns the entry of a key, which may be a tombstone.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Entry<'_>> {
        let slot = self.find(self.tag(key), key)?;
        Some(self.entry_at(slot))
    }

    fn entry_at(&self, slot: u32) -> Entry<'_> {
        Entry::new(&self.entries[slot as usize], &self.texts)
    }

    /// Iterates over the live entries, in the order of their last change.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> + Clone {
        let entries = self.entries_from(self.oldest).map(|(_, entry)| entry);
        entries.filter(|entry| !entry.is_deleted())
    }

    /// Iterates over the entries whose last change came after `since`, tombstones included, in the
    /// order of that change.
    /// `hint`, if known, is the slot of the entry with seq `since`; it avoids the search for the
    /// first of them.
    pub fn changed_since(
        &self,
        since: Seq,
        hint: Option<u32>,
    ) -> impl Iterator<Item = (u32, Entry<'_>)> {
        let after_hint = hint
            .and_then(|slot| self.entries.get(slot as usize))
            .filter(|entry| entry.seq == since)
            .map(|entry| entry.newer);
        let first = after_hint.unwrap_or_else(|| self.first_after(since));
        self.entries_from(first)
    }

    /// Returns the slot of the first entry that changed after `since`, searching from both ends of
    /// the part of the list between two marks.
    fn first_after(&self, since: Seq) -> u32 {
        let ((mut older, mut newer), mut first) = (self.ends_around(since), NONE);
        while let Some(entry) = self.entries.get(older as usize) {
            if entry.seq > since {
                return older;
            }
            older = entry.newer;
            let entry = &self.entries[newer as usize];
            if entry.seq <= since {
                return first;
            }
            (first, newer) = (newer, entry.older);
        }
        NONE
    }

    /// Returns the slots of the ends of a short part of the list that contains the first entry
    /// after `since`, if there is one, and the entry in front of it, if there is one.
    fn ends_around(&self, since: Seq) -> (u32, u32) {
        let marks = self.marks.as_ref();
        let older = marks.and_then(|marks| marks.last_until(since));
        let newer = marks.and_then(|marks| marks.first_after(since));
        (older.unwrap_or(self.oldest), newer.unwrap_or(self.newest))
    }

    fn entries_from(&self, first: u32) -> impl Iterator<Item = (u32, Entry<'_>)> + Clone {
        let mut slot = first;
        std::iter::from_fn(move || {
            let stored = self.entries.get(slot as usize)?;
            let current = slot;
            slot = stored.newer;
            Some((current, Entry::new(stored, &self.texts)))
        })
    }

    fn find(&self, tag: Tag, key: &str) -> Option<u32> {
        self.index.find(tag, |slot| {
            let stored = &self.entries[slot as usize];
            let is_likely = stored.tag == tag && usize::from(stored.key_bytes) == key.len();
            is_likely && self.texts.bytes(stored.text)[..key.len()] == *key.as_bytes()
        })
    }

    /// Returns the number of bytes that a change takes up in the log.
    fn record_bytes(&self, key_bytes: usize, change: &Change<'_>) -> u64 {
        let texts_bytes = self.id.len() + key_bytes + change.value().len();
        (OP_HEADER_BYTES + change.extra_bytes() + texts_bytes) as u64
    }

    /// Returns the number of bytes that an entry takes up in the log.
    fn entry_bytes(&self, entry: &StoredEntry) -> u64 {
        let extra_bytes = if entry.is_timed() { EXTRA_BYTES } else { 0 };
        (OP_HEADER_BYTES + extra_bytes + self.id.len() + entry.text_bytes()) as u64
    }

    fn insert(
        &mut self,
        tag: Tag,
        key: &str,
        change: &Change<'_>,
        timestamp: u64,
        seq: Seq,
        source: Source,
    ) -> u32 {
        let mut stored = StoredEntry {
            timestamp,
            seq,
            text: self.texts.insert(key, change.value()),
            value_bytes: 0,
            tag,
            mark: source.mark,
            older: NONE,
            newer: NONE,
            writer: [0; _],
            lifetime: Lifetime::Permanent,
            key_bytes: u16::try_from(key.len()).expect("KEY_BYTES_MAX is smaller than 64 KiB"),
        };
        stored.set(change, timestamp, seq, source);
        let slot = slot_index(self.entries.insert(stored));
        let entries = self.entries.iter();
        let tags = entries.map(|(slot, stored)| (stored.tag, slot_index(slot)));
        self.index.insert(tag, slot, tags);
        self.set_time(slot, change);
        self.add_bytes(slot);
        slot
    }

    fn overwrite(
        &mut self,
        slot: u32,
        change: &Change<'_>,
        timestamp: u64,
        seq: Seq,
        source: Source,
    ) {
        self.subtract_bytes(slot);
        self.clear_time(slot);
        let stored = &mut self.entries[slot as usize];
        let key_bytes = usize::from(stored.key_bytes);
        stored.text = self.texts.set_value(stored.text, key_bytes, change.value());
        stored.set(change, timestamp, seq, source);
        self.set_time(slot, change);
        self.add_bytes(slot);
    }

    /// Adds an entry to the sums of bytes.
    fn add_bytes(&mut self, slot: u32) {
        self.log_bytes += self.entry_bytes(&self.entries[slot as usize]);
        let entry = Entry::new(&self.entries[slot as usize], &self.texts);
        if !entry.is_deleted() {
            let (key, value) = entry.key_and_value();
            self.init_fields_bytes += state::init_field_bytes(key, value);
            self.stamp_fields_bytes += state::stamp_field_bytes(key, entry.timestamp());
        }
    }

    /// Subtracts an entry that changes or is removed from the sums of bytes.
    fn subtract_bytes(&mut self, slot: u32) {
        self.log_bytes -= self.entry_bytes(&self.entries[slot as usize]);
        let entry = Entry::new(&self.entries[slot as usize], &self.texts);
        if !entry.is_deleted() {
            let (key, value) = entry.key_and_value();
            self.init_fields_bytes -= state::init_field_bytes(key, value);
            self.stamp_fields_bytes -= state::stamp_field_bytes(key, entry.timestamp());
        }
    }

    fn unlink(&mut self, slot: u32) {
        let StoredEntry {
            older, newer, seq, ..
        } = self.entries[slot as usize];
        if let Some(marks) = &mut self.marks {
            marks.remove(seq, &self.hasher);
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let older = self.newest;
        match older {
            NONE => self.oldest = slot,
            older => self.entries[older as usize].newer = slot,
        }
        let entry = &mut self.entries[slot as usize];
        (entry.older, entry.newer) = (older, NONE);
        self.newest = slot;
        if self.entries.len() > ENTRIES_PER_MARK {
            let seq = self.entries[slot as usize].seq;
            let marks = self.marks.get_or_insert_default();
            marks.add(seq, slot, &self.hasher);
        }
    }
}

/// Returns the size up to which a change may add an entry to a workspace with this limit.
fn insert_bytes_max(log_bytes_max: u64, change: &Change<'_>) -> u64 {
    if is_delete(change) {
        log_bytes_max.saturating_mul(ABSENT_DELETES_FACTOR)
    } else {
        log_bytes_max
    }
}

fn is_delete(change: &Change<'_>) -> bool {
    matches!(change, Change::Delete { .. })
}

fn slot_index(slot: usize) -> u32 {
    u32::try_from(slot).expect("a workspace has fewer than 2^32 keys")
}

#[cfg(test)]
mod lifetime_tests;
#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod sparse_index_tests;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A naive model that consists of a map and a list of keys in the order of their changes.
    #[derive(Default)]
    struct Model {
        map: HashMap<String, (String, u64, Seq)>,
        changes: Vec<(String, Seq)>,
    }

    impl Model {
        /// Returns the seq of an op that won, or `None` if it lost or was identical to the entry.
        fn apply(&mut self, key: &str, value: &str, timestamp: u64) -> Option<Seq> {
            if self.map.get(key).is_some_and(|held| held.1 >= timestamp) {
                return None;
            }
            let seq = Seq::new(self.changes.len() as u64 + 1);
            self.map
                .insert(key.to_owned(), (value.to_owned(), timestamp, seq));
            self.changes.push((key.to_owned(), seq));
            Some(seq)
        }

        fn changed_since(&self, since: Seq) -> Vec<(String, Seq)> {
            let last = |change: &&(String, Seq)| self.map[&change.0].2 == change.1;
            self.changes
                .iter()
                .filter(|change| change.1 > since)
                .filter(last)
                .cloned()
                .collect()
        }
    }

    fn changes(workspace: &Workspace, since: Seq, hint: Option<u32>) -> Vec<(String, Seq)> {
        workspace
            .changed_since(since, hint)
            .map(|(_, entry)| (entry.key().to_owned(), entry.seq()))
            .collect()
    }

    #[test]
    fn last_write_wins_rules() {
        let mut workspace = Workspace::new("w", 1);
        assert!(workspace.is_untouched());
        assert!(matches!(
            workspace.apply("k", "1", 10, 7),
            Verdict::Won { seq, .. } if seq == Seq::new(1)
        ));
        assert!(matches!(workspace.apply("k", "1", 10, 8), Verdict::Same));
        let verdict = workspace.apply("k", "1.0", 10, 8);
        assert!(matches!(verdict, Verdict::Lost(entry) if entry.value() == "1"));
        let verdict = workspace.apply("k", "2", 9, 8);
        assert!(matches!(verdict, Verdict::Lost(entry) if entry.timestamp() == 10));
        assert!(workspace.get("k").is_some_and(|entry| entry.is_by(7)));
        assert!(matches!(
            workspace.apply("k", "3", 11, 8),
            Verdict::Won { seq, .. } if seq == Seq::new(2)
        ));
        assert_eq!(
            workspace
                .get("k")
                .map(|entry| (entry.value(), entry.is_by(8))),
            Some(("3", true))
        );
        let mut init = Vec::new();
        workspace.put_init(&mut init);
        assert!(init.ends_with(br#"{"type":"init","data":{"k":3}}"#));
    }

    #[test]
    fn an_empty_state_is_an_empty_object() {
        let mut init = Vec::new();
        Workspace::new("w", 1).put_init(&mut init);
        assert!(init.ends_with(br#"{"type":"init","data":{}}"#));
    }

    #[test]
    fn the_lower_seq_wins_between_records_with_equal_timestamps() {
        for order in [[(10, 1, "1"), (10, 2, "2")], [(10, 2, "2"), (10, 1, "1")]] {
            let mut workspace = Workspace::new("w", 1);
            for (timestamp, seq, value) in order {
                workspace.restore("k", &Change::write(value), timestamp, Seq::new(seq));
            }
            // Restoring the same record again changes nothing: its value is not compared.
            workspace.restore("k", &Change::write("3"), 10, Seq::new(1));
            workspace.finish_restore();
            let entry = workspace.get("k").map(|entry| (entry.value(), entry.seq()));
            assert_eq!(entry, Some(("1", Seq::new(1))), "{order:?}");
            assert_eq!(workspace.seq(), Seq::new(2));
        }
    }

    #[test]
    fn an_entry_knows_its_writer() {
        let mut workspace = Workspace::new("w", 1);
        for writer in [1, 255, 256, (1 << 40) - 1, (1 << 40) + 1] {
            workspace.apply("k", "1", writer, writer);
            let entry = workspace.get("k").unwrap();
            assert!(entry.is_by(writer) && !entry.is_by(writer + 1), "{writer}");
        }
        // What was read from the log was written by nobody, not even by a session whose lower
        // bits are 0.
        workspace.restore("k", &Change::write("2"), u64::MAX, Seq::new(9));
        let entry = workspace.get("k").unwrap();
        assert!(!entry.is_by(0) && !entry.is_by(1 << 40));
    }

    proptest! {
        #[test]
        fn a_workspace_agrees_with_the_model(
            ops in prop::collection::vec((0..6_u8, 0..4_u8, 0..20_u64), 0..80),
            since in (0..90_u64).prop_map(Seq::new),
        ) {
            let (mut workspace, mut model) = (Workspace::new("w", 3), Model::default());
            let mut log = Vec::new();
            for (key, value, timestamp) in ops {
                let (key, value) = (format!("k{key}"), value.to_string());
                let won = match workspace.apply(&key, &value, timestamp, 0) {
                    Verdict::Won { seq, .. } => Some(seq),
                    Verdict::Same => None,
                    Verdict::Lost(entry) => {
                        prop_assert_eq!(&model.map[&key].0, entry.value());
                        None
                    }
                    Verdict::TooLarge(_) => unreachable!("its size is not limited"),
                    Verdict::Absent(_) => unreachable!("nothing was deleted"),
                };
                prop_assert_eq!(won, model.apply(&key, &value, timestamp));
                log.extend(won.map(|seq| (key, value, timestamp, seq)));
            }
            for (key, held) in &model.map {
                let entry = workspace.get(key).unwrap();
                let found = (entry.value(), entry.timestamp(), entry.seq());
                prop_assert_eq!(found, (held.0.as_str(), held.1, held.2));
            }
            prop_assert_eq!(changes(&workspace, since, None), model.changed_since(since));
            // A hint yields the same entries as the walk, from any entry's slot.
            for (slot, entry) in workspace.changed_since(Seq::NONE, None) {
                let hint = Some(slot);
                let expected = model.changed_since(entry.seq());
                prop_assert_eq!(changes(&workspace, entry.seq(), hint), expected);
                prop_assert_eq!(changes(&workspace, since, hint), model.changed_since(since));
            }
            // The records of the log yield the same state in any order.
            for reversed in [false, true] {
                if reversed {
                    log.reverse();
                }
                let mut restored = Workspace::new("w", 4);
                for (key, value, timestamp, seq) in &log {
                    restored.restore(key, &Change::write(value), *timestamp, *seq);
                }
                restored.finish_restore();
                let expected = changes(&workspace, Seq::NONE, None);
                prop_assert_eq!(changes(&restored, Seq::NONE, None), expected);
                prop_assert_eq!(restored.seq(), workspace.seq());
                let (mut one, mut other) = (Vec::new(), Vec::new());
                workspace.put_init(&mut one);
                restored.put_init(&mut other);
                prop_assert_eq!(one, other);
            }
        }
    }
}
