//! An index of things that stand in a slab or a list: a hash leads to the number of a thing's slot.
//!
//! Each place holds the hash beside the number. So a look at the things themselves, which are somewhere else in memory, is
//! needed for the last comparison only: neither for the wrong ones on the way, nor when the table grows.

use hashbrown::HashTable;

/// A hash, cut to what the index holds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u32);

impl Tag {
    /// Of a hash whose upper half is as good as all of it.
    #[must_use]
    pub fn of(hash: u64) -> Self {
        let upper = hash >> 32;
        Self(u32::try_from(upper).expect("32 bits are left"))
    }

    /// The table takes the place from the lowest bits and its marks from the highest ones, so both must depend on the tag.
    fn spread(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// The numbers of slots, by the tags of what stands there.
#[derive(Debug, Default)]
pub struct Index {
    places: HashTable<(Tag, u32)>,
}

impl Index {
    /// The slot with this tag of which `is_it` holds.
    pub fn find(&self, tag: Tag, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let found = self
            .places
            .find(tag.spread(), |&(held, slot)| held == tag && is_it(slot));
        found.map(|&(_, slot)| slot)
    }

    /// Adds a slot that is not in it.
    pub fn insert(&mut self, tag: Tag, slot: u32) {
        let rehash = |&(tag, _): &(Tag, u32)| tag.spread();
        self.places.insert_unique(tag.spread(), (tag, slot), rehash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_with_one_tag_are_told_apart_by_the_caller() {
        let mut index = Index::default();
        let tag = Tag::of(7 << 32);
        assert_eq!(tag, Tag::of((7 << 32) + 1), "the lower half is not held");
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
    }
}
