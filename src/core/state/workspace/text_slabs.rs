//! The keys and values of a workspace's entries, in a slab allocator.
//!
//! A *slab* is one allocation, cut into slots of the same size. A text has the smallest slot that
//! it fits into, and is named by 4 bytes. It costs what its length is rounded up by: 3.5 bytes on
//! average if it is short, at most an eighth if it is long. An allocation of its own would cost a
//! header and a coarser rounding, and its owner a pointer, a length and a capacity.
//!
//! A slab has at most [`SLOTS_MAX`] slots. It is freed with its last text, so that a value that was
//! once large does not hold its memory. The slabs of a size become larger as their number grows, so
//! that a small workspace has no large ones, and few slots are free.
//!
//! Bonwick, "The Slab Allocator: An Object-Caching Kernel Memory Allocator" (USENIX 1994).

use std::str;

/// The maximum number of slots of a slab.
const SLOTS_MAX: usize = 255;

/// The size up to which a slab grows, in bytes. A larger text has a slab of its own.
const SLAB_BYTES_MAX: usize = 16 * 1024;

/// A new slab has as many slots as all slabs of its size together, divided by this.
const GROWTH: usize = 8;

/// The size, in bytes, up to which an empty slab is kept if its size has no other one with room: a
/// value that becomes longer and shorter all the time then allocates nothing.
const EMPTY_SLAB_BYTES_MAX: usize = 1024;

/// A text that becomes shorter keeps its slot, since the next value may be longer again, unless the
/// slot is more than this many times as long as the text and as [`SMALL_TEXT_BYTES`].
const SLACK: usize = 4;
const SMALL_TEXT_BYTES: usize = 64;

/// The granularity of slots, in bytes.
const STEP_BYTES: usize = 8;

/// The value for "no slab" and "no slot", at the end of a list.
const NO_SLAB: u32 = u32::MAX;
const NO_SLOT: u8 = u8::MAX;

/// The place of a text: the number of its slab, and that of its slot in the lowest byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextPlace(u32);

impl TextPlace {
    fn new(slab: u32, slot: u8) -> Self {
        assert!(slab >> 24 == 0, "a workspace has at most 2^24 slabs");
        Self(slab << 8 | u32::from(slot))
    }

    fn slab(self) -> usize {
        (self.0 >> 8) as usize
    }

    fn slot(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
}

/// The texts of a workspace. Takes up no memory of its own until the first text is added.
#[derive(Debug, Default)]
pub(super) struct TextSlabs(Option<Box<Slabs>>);

/// The slabs, by their number and by their size.
///
/// Invariants: a slab is in the list of its size if and only if it has a free slot; a slab without
/// memory is in the list of vacant numbers.
#[derive(Debug)]
struct Slabs {
    by_number: Vec<TextSlab>,
    /// The first vacant number.
    vacant: u32,
    /// The sizes that have ever had a slab, in ascending order.
    by_size: Vec<SlotSize>,
}

/// A size of slots, and the slabs that have it.
#[derive(Debug)]
struct SlotSize {
    bytes: u32,
    /// The number of slots in all slabs of this size.
    slots: u32,
    /// The first slab with a free slot.
    open: u32,
}

/// A number of slots of the same size.
#[derive(Debug)]
struct TextSlab {
    /// The slots. Empty if the slab's number is vacant. The first byte of a free slot is the number
    /// of the next free one.
    memory: Box<[u8]>,
    slot_bytes: u32,
    /// The number of slots that contain a text.
    used: u8,
    /// The number of slots that were ever used. Those after them are free, and not in the list.
    touched: u8,
    /// The first free slot in the list.
    free: u8,
    /// The neighbours in the list that the slab is in.
    previous: u32,
    next: u32,
}

const _: () = assert!(
    size_of::<TextSlab>() == 32,
    "two of them should fit in a cache line, and none should straddle two"
);

/// Returns the size of the slot for a text.
fn slot_bytes_for(text_bytes: usize) -> usize {
    let step = (text_bytes.next_power_of_two() / 16).max(STEP_BYTES);
    text_bytes.max(1).next_multiple_of(step)
}

impl TextSlabs {
    /// Adds a text that consists of a key and a value.
    pub fn insert(&mut self, key: &str, value: &str) -> TextPlace {
        let slabs = self.0.get_or_insert_with(|| Box::new(Slabs::new()));
        let place = slabs.take_slot(slot_bytes_for(key.len() + value.len()));
        let slot = slabs.by_number[place.slab()].slot_mut(place.slot());
        put(slot, 0, key);
        put(slot, key.len(), value);
        place
    }

    /// Replaces the value of a text, which follows its first `key_bytes` bytes. Returns the place
    /// of the text from now on.
    pub fn set_value(&mut self, place: TextPlace, key_bytes: usize, value: &str) -> TextPlace {
        let slabs = self.0.as_mut().expect("the text is in a slab");
        let text_bytes = key_bytes + value.len();
        let slab = &mut slabs.by_number[place.slab()];
        let is_roomy = slab.slot_bytes as usize / SLACK > text_bytes.max(SMALL_TEXT_BYTES);
        if text_bytes <= slab.slot_bytes as usize && !is_roomy {
            put(slab.slot_mut(place.slot()), key_bytes, value);
            return place;
        }
        let moved = slabs.take_slot(slot_bytes_for(text_bytes));
        let both = slabs
            .by_number
            .get_disjoint_mut([place.slab(), moved.slab()])
            .expect("slots of different sizes are in different slabs");
        let [from, to] = both;
        let slot = to.slot_mut(moved.slot());
        slot[..key_bytes].copy_from_slice(&from.slot_mut(place.slot())[..key_bytes]);
        put(slot, key_bytes, value);
        slabs.give_slot(place);
        moved
    }

    /// Removes a text.
    pub fn remove(&mut self, place: TextPlace) {
        let slabs = self.0.as_mut().expect("the text is in a slab");
        slabs.give_slot(place);
    }

    /// Returns the bytes from `begin` to `end` of a text.
    ///
    /// # Panics
    /// If they are not at boundaries of the strings that the text was made of.
    pub fn get(&self, place: TextPlace, begin: usize, end: usize) -> &str {
        let bytes = &self.bytes(place)[begin..end];
        // The check costs less than a nanosecond per 8 bytes of ASCII, and saves `unsafe` code.
        str::from_utf8(bytes).expect("a text consists of strings")
    }

    /// Returns the slot of a text, which may be longer than the text.
    pub fn bytes(&self, place: TextPlace) -> &[u8] {
        let slabs = self.0.as_ref().expect("the text is in a slab");
        slabs.by_number[place.slab()].slot(place.slot())
    }
}

fn put(slot: &mut [u8], begin: usize, text: &str) {
    slot[begin..begin + text.len()].copy_from_slice(text.as_bytes());
}

impl Slabs {
    fn new() -> Self {
        Self {
            by_number: Vec::new(),
            vacant: NO_SLAB,
            by_size: Vec::new(),
        }
    }

    fn take_slot(&mut self, slot_bytes: usize) -> TextPlace {
        let slot_bytes = u32::try_from(slot_bytes).expect("a message is shorter than 4 GiB");
        let found = self
            .by_size
            .binary_search_by_key(&slot_bytes, |size| size.bytes);
        let size = found.unwrap_or_else(|size| {
            reserve_double(&mut self.by_size);
            let empty = SlotSize {
                bytes: slot_bytes,
                slots: 0,
                open: NO_SLAB,
            };
            self.by_size.insert(size, empty);
            size
        });
        if self.by_size[size].open == NO_SLAB {
            self.add_slab(size);
        }
        let number = self.by_size[size].open;
        let slab = &mut self.by_number[number as usize];
        let slot = slab.take_slot();
        if slab.is_full() {
            self.close(size, number);
        }
        TextPlace::new(number, slot)
    }

    fn give_slot(&mut self, place: TextPlace) {
        let slab = &mut self.by_number[place.slab()];
        let was_full = slab.is_full();
        slab.give_slot(place.slot());
        let (is_empty, slot_bytes) = (slab.used == 0, slab.slot_bytes);
        let bytes = slab.memory.len();
        let found = self
            .by_size
            .binary_search_by_key(&slot_bytes, |size| size.bytes);
        let size = found.expect("the size has a slab");
        let number = place.0 >> 8;
        if was_full {
            self.open(size, number);
        }
        let slab = &self.by_number[place.slab()];
        let is_only = slab.previous == NO_SLAB && slab.next == NO_SLAB;
        if is_empty && !(is_only && bytes <= EMPTY_SLAB_BYTES_MAX) {
            self.free_slab(size, number);
        }
    }

    /// Adds a slab to a size that has no free slot.
    fn add_slab(&mut self, size: usize) {
        let SlotSize { bytes, slots, .. } = self.by_size[size];
        let slots_max = (SLAB_BYTES_MAX / bytes as usize).clamp(1, SLOTS_MAX);
        let count = (slots as usize / GROWTH).clamp(1, slots_max);
        let slab = TextSlab {
            memory: vec![0; count * bytes as usize].into_boxed_slice(),
            slot_bytes: bytes,
            used: 0,
            touched: 0,
            free: NO_SLOT,
            previous: NO_SLAB,
            next: NO_SLAB,
        };
        self.by_size[size].slots += slab.slots();
        let number = match self.vacant {
            NO_SLAB => {
                reserve_double(&mut self.by_number);
                self.by_number.push(slab);
                u32::try_from(self.by_number.len() - 1).expect("a slab has a 24-bit number")
            }
            number => {
                self.vacant = self.by_number[number as usize].next;
                self.by_number[number as usize] = slab;
                number
            }
        };
        self.open(size, number);
    }

    /// Frees a slab without texts.
    fn free_slab(&mut self, size: usize, number: u32) {
        self.close(size, number);
        let slab = &mut self.by_number[number as usize];
        self.by_size[size].slots -= slab.slots();
        slab.memory = Box::default();
        slab.next = self.vacant;
        self.vacant = number;
    }

    /// Adds a slab to the list of those with a free slot.
    fn open(&mut self, size: usize, number: u32) {
        let next = std::mem::replace(&mut self.by_size[size].open, number);
        let slab = &mut self.by_number[number as usize];
        (slab.previous, slab.next) = (NO_SLAB, next);
        if next != NO_SLAB {
            self.by_number[next as usize].previous = number;
        }
    }

    /// Removes a slab from the list of those with a free slot.
    fn close(&mut self, size: usize, number: u32) {
        let slab = &mut self.by_number[number as usize];
        let (previous, next) = (slab.previous, slab.next);
        (slab.previous, slab.next) = (NO_SLAB, NO_SLAB);
        match previous {
            NO_SLAB => self.by_size[size].open = next,
            previous => self.by_number[previous as usize].next = next,
        }
        if next != NO_SLAB {
            self.by_number[next as usize].previous = previous;
        }
    }
}

impl TextSlab {
    fn slots(&self) -> u32 {
        u32::try_from(self.memory.len()).expect("a slab is shorter than 4 GiB") / self.slot_bytes
    }

    fn is_full(&self) -> bool {
        u32::from(self.used) == self.slots()
    }

    fn slot(&self, slot: u8) -> &[u8] {
        let bytes = self.slot_bytes as usize;
        &self.memory[usize::from(slot) * bytes..][..bytes]
    }

    fn slot_mut(&mut self, slot: u8) -> &mut [u8] {
        let bytes = self.slot_bytes as usize;
        &mut self.memory[usize::from(slot) * bytes..][..bytes]
    }

    fn take_slot(&mut self) -> u8 {
        self.used += 1;
        if self.free == NO_SLOT {
            self.touched += 1;
            return self.touched - 1;
        }
        let slot = self.free;
        self.free = self.slot(slot)[0];
        slot
    }

    fn give_slot(&mut self, slot: u8) {
        let next = std::mem::replace(&mut self.free, slot);
        self.slot_mut(slot)[0] = next;
        self.used -= 1;
    }
}

/// Makes room for one more item, doubling the capacity from one.
fn reserve_double<T>(items: &mut Vec<T>) {
    if items.len() == items.capacity() {
        items.reserve_exact(items.len().max(1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Slabs {
        /// Checks the invariants.
        fn invariants(&self) {
            let mut vacant = Vec::new();
            let mut next = self.vacant;
            while next != NO_SLAB {
                vacant.push(next);
                next = self.by_number[next as usize].next;
            }
            let mut open = Vec::new();
            for size in &self.by_size {
                let (mut previous, mut next) = (NO_SLAB, size.open);
                while next != NO_SLAB {
                    let slab = &self.by_number[next as usize];
                    assert_eq!((slab.slot_bytes, slab.previous), (size.bytes, previous));
                    open.push(next);
                    (previous, next) = (next, slab.next);
                }
            }
            for (slab, number) in self.by_number.iter().zip(0..) {
                assert_eq!(slab.memory.is_empty(), vacant.contains(&number));
                let has_room = !slab.memory.is_empty() && !slab.is_full();
                assert_eq!(has_room, open.contains(&number));
            }
            for size in &self.by_size {
                let slabs = self.by_number.iter().filter(|slab| !slab.memory.is_empty());
                let slabs = slabs.filter(|slab| slab.slot_bytes == size.bytes);
                assert_eq!(size.slots, slabs.map(TextSlab::slots).sum::<u32>());
            }
        }

        fn bytes(&self) -> usize {
            self.by_number.iter().map(|slab| slab.memory.len()).sum()
        }
    }

    fn bytes(texts: &TextSlabs) -> usize {
        texts.0.as_ref().map_or(0, |slabs| slabs.bytes())
    }

    #[test]
    fn a_slot_is_at_most_an_eighth_longer_than_a_long_text() {
        for text_bytes in 0..100_000 {
            let slot_bytes = slot_bytes_for(text_bytes);
            let most = text_bytes + (text_bytes / 8).max(STEP_BYTES - 1);
            assert!(
                (text_bytes..=most.max(STEP_BYTES)).contains(&slot_bytes),
                "{text_bytes}"
            );
            assert_eq!(
                slot_bytes_for(slot_bytes),
                slot_bytes,
                "a slot holds its own size"
            );
        }
    }

    #[test]
    fn a_large_value_does_not_hold_its_memory() {
        let mut texts = TextSlabs::default();
        let mut place = texts.insert("k", &"1".repeat(1 << 20));
        assert!(bytes(&texts) >= 1 << 20);
        place = texts.set_value(place, 1, "1");
        assert!(bytes(&texts) < 1024, "{}", bytes(&texts));
        assert_eq!(texts.get(place, 0, 2), "k1");
    }

    #[test]
    fn small_texts_cost_little_more_than_their_bytes() {
        for count in [1, 10, 100, 1000, 10_000] {
            let mut texts = TextSlabs::default();
            for _ in 0..count {
                texts.insert("12345678", "12345678");
            }
            let wanted = count * 16;
            assert!((wanted..=2 * wanted).contains(&bytes(&texts)), "{count}");
        }
    }

    #[test]
    fn removed_texts_free_their_memory() {
        let mut texts = TextSlabs::default();
        let places: Vec<TextPlace> = (0..10_000)
            .map(|_| texts.insert("key", &"v".repeat(97)))
            .collect();
        assert!(bytes(&texts) >= 1_000_000);
        for place in places {
            texts.remove(place);
        }
        texts.0.as_ref().unwrap().invariants();
        assert!(bytes(&texts) <= EMPTY_SLAB_BYTES_MAX, "{}", bytes(&texts));
        let slabs = texts.0.as_ref().unwrap().by_number.len();
        for _ in 0..1_000 {
            texts.insert("key", &"v".repeat(97));
        }
        assert_eq!(
            texts.0.as_ref().unwrap().by_number.len(),
            slabs,
            "numbers are used again"
        );
    }

    #[test]
    fn a_value_that_changes_its_length_all_the_time_allocates_nothing() {
        let mut texts = TextSlabs::default();
        let mut place = texts.insert("k", "1");
        for round in 0..10 {
            place = texts.set_value(place, 1, &"1".repeat(if round % 2 == 0 { 500 } else { 1 }));
            let slabs = texts.0.as_ref().unwrap();
            let kept = slabs
                .by_number
                .iter()
                .filter(|slab| !slab.memory.is_empty());
            assert_eq!(kept.count(), 2, "{round}");
        }
    }

    /// A step: insert a text, or change or remove one of those that are there.
    #[derive(Debug, Clone)]
    enum TextStep {
        Insert(String, String),
        SetValue(usize, String),
        Remove(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<TextStep>> {
        let value = || {
            prop_oneof![
                4 => "[a-zä€]{0,40}",
                1 => (0..40_000_usize).prop_map(|bytes| "x".repeat(bytes)),
            ]
        };
        let step = prop_oneof![
            3 => ("[a-zß]{1,9}", value()).prop_map(|(key, value)| TextStep::Insert(key, value)),
            3 => (any::<usize>(), value())
                .prop_map(|(which, value)| TextStep::SetValue(which, value)),
            2 => any::<usize>().prop_map(TextStep::Remove),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn texts_agree_with_the_model(steps in steps()) {
            let mut texts = TextSlabs::default();
            let mut model: Vec<(TextPlace, String, String)> = Vec::new();
            for step in steps {
                match step {
                    TextStep::Insert(key, value) => {
                        model.push((texts.insert(&key, &value), key, value));
                    }
                    TextStep::SetValue(which, value) if !model.is_empty() => {
                        let which = which % model.len();
                        let (place, key, held) = &mut model[which];
                        *place = texts.set_value(*place, key.len(), &value);
                        *held = value;
                    }
                    TextStep::Remove(which) if !model.is_empty() => {
                        let (place, ..) = model.swap_remove(which % model.len());
                        texts.remove(place);
                    }
                    TextStep::SetValue(..) | TextStep::Remove(_) => {}
                }
                for (place, key, value) in &model {
                    let end = key.len() + value.len();
                    prop_assert_eq!(texts.get(*place, 0, key.len()), key);
                    prop_assert_eq!(texts.get(*place, key.len(), end), value);
                }
                if let Some(slabs) = &texts.0 {
                    slabs.invariants();
                }
            }
        }
    }
}
