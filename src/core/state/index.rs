//! An index of the items of a slab or a list, which maps the hash of an item to its slot number.
//!
//! The table stores a part of the hash next to the slot number. So the items themselves, which are
//! elsewhere in memory, are read only for the final comparison, and neither for wrong candidates
//! during a probe nor when the table grows.

use hashbrown::HashTable;

/// A hash, reduced to the bits that the index stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u32);

impl Tag {
    /// Returns the tag for the upper half of a hash, which must be as well distributed as the
    /// whole.
    #[must_use]
    pub fn of(hash: u64) -> Self {
        let upper = hash >> 32;
        Self(u32::try_from(upper).expect("32 bits are left"))
    }

    /// Returns a hash of the tag for the table, which derives positions from the lowest bits and
    /// its markers from the highest ones, so both must depend on the tag.
    fn spread(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// A map from the tags of items to their slot numbers.
#[derive(Debug, Default)]
pub struct Index {
    places: HashTable<(Tag, u32)>,
}

impl Index {
    /// Returns the slot with this tag for which `is_it` returns `true`.
    pub fn find(&self, tag: Tag, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let found = self
            .places
            .find(tag.spread(), |&(held, slot)| held == tag && is_it(slot));
        found.map(|&(_, slot)| slot)
    }

    /// Adds a slot. It must not be in the index yet.
    pub fn insert(&mut self, tag: Tag, slot: u32) {
        let rehash = |&(tag, _): &(Tag, u32)| tag.spread();
        self.places.insert_unique(tag.spread(), (tag, slot), rehash);
    }

    /// Removes a slot that is in the index with this tag.
    ///
    /// # Panics
    /// If it is not.
    pub fn remove(&mut self, tag: Tag, slot: u32) {
        let is_it = |&(held, held_slot): &(Tag, u32)| held == tag && held_slot == slot;
        let found = self.places.find_entry(tag.spread(), is_it);
        found.expect("a slot is removed once").remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_resolves_slots_with_equal_tags() {
        let mut index = Index::default();
        let tag = Tag::of(7 << 32);
        assert_eq!(
            tag,
            Tag::of((7 << 32) + 1),
            "the tag includes the lower half"
        );
        for slot in 0..100 {
            index.insert(tag, slot);
            index.insert(Tag::of(u64::from(slot + 8) << 32), 1000 + slot);
        }
        for slot in 0..100 {
            assert_eq!(index.find(tag, |held| held == slot), Some(slot));
            let other = Tag::of(u64::from(slot + 8) << 32);
            assert_eq!(index.find(other, |_| true), Some(1000 + slot));
        }
        assert_eq!(index.find(tag, |_| false), None);
        assert_eq!(index.find(Tag::of(500 << 32), |_| true), None);
        index.remove(tag, 50);
        assert_eq!(index.find(tag, |held| held == 50), None);
        assert_eq!(index.find(tag, |held| held == 51), Some(51));
    }
}
