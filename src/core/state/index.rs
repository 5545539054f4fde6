//! An index of the items of a slab or a list, which maps the hash of an item to its slot number.
//!
//! The table stores slot numbers only. The items store their tags, so that the table can be built
//! again, larger, in one pass over the items in the order of their slots.

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
    slots: HashTable<u32>,
}

impl Index {
    /// Returns the slot for which `is_it` returns `true`, among those that may have this tag.
    pub fn find(&self, tag: Tag, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let found = self.slots.find(tag.spread(), |&slot| is_it(slot));
        found.copied()
    }

    /// Adds a slot. It must not be in the index yet. `all` yields all slots that are in the index
    /// with their tags, and may include the new one.
    pub fn insert(&mut self, tag: Tag, slot: u32, all: impl Iterator<Item = (Tag, u32)>) {
        let is_full = self.slots.len() == self.slots.capacity();
        if is_full {
            let mut slots = HashTable::with_capacity(self.slots.len() + 1);
            for (tag, held) in all.filter(|&(_, held)| held != slot) {
                insert_without_growth(&mut slots, tag, held);
            }
            self.slots = slots;
        }
        insert_without_growth(&mut self.slots, tag, slot);
    }

    /// Removes a slot that is in the index with this tag.
    ///
    /// # Panics
    /// If it is not.
    pub fn remove(&mut self, tag: Tag, slot: u32) {
        let found = self.slots.find_entry(tag.spread(), |&held| held == slot);
        found.expect("a slot is removed once").remove();
    }
}

fn insert_without_growth(slots: &mut HashTable<u32>, tag: Tag, slot: u32) {
    slots.insert_unique(tag.spread(), slot, |_| {
        unreachable!("the table has room for another slot")
    });
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
        let mut held: Vec<(Tag, u32)> = Vec::new();
        for slot in 0..100 {
            for (tag, slot) in [
                (tag, slot),
                (Tag::of(u64::from(slot + 8) << 32), 1000 + slot),
            ] {
                held.push((tag, slot));
                index.insert(tag, slot, held.iter().copied());
            }
        }
        for slot in 0..100 {
            assert_eq!(index.find(tag, |held| held == slot), Some(slot));
            let other = Tag::of(u64::from(slot + 8) << 32);
            let has_tag = |slot| held.contains(&(other, slot));
            assert_eq!(index.find(other, has_tag), Some(1000 + slot));
        }
        assert_eq!(index.find(tag, |_| false), None);
        index.remove(tag, 50);
        assert_eq!(index.find(tag, |held| held == 50), None);
        assert_eq!(index.find(tag, |held| held == 51), Some(51));
    }

    #[test]
    fn slots_may_be_removed_and_added_for_ever() {
        let mut index = Index::default();
        let mut held: Vec<(Tag, u32)> = Vec::new();
        for slot in 0..10_000 {
            let tag = Tag::of(u64::from(slot) << 32);
            index.insert(tag, slot, held.iter().copied());
            held.push((tag, slot));
            if held.len() == 50 {
                let (tag, slot) = held.remove(slot as usize % 50);
                index.remove(tag, slot);
            }
            for &(tag, slot) in &held {
                assert_eq!(index.find(tag, |held| held == slot), Some(slot));
            }
        }
        assert!(index.slots.capacity() < 200, "{}", index.slots.capacity());
    }
}
