//! The state of a workspace as texts, in the order of the last change of its keys.

use std::ops::Range;

use super::{Entry, Workspace, slot_index};
use crate::wire::state;

impl Workspace {
    /// The sum of [`state::init_field_bytes`] over its entries.
    pub(crate) fn init_fields_bytes(&self) -> usize {
        self.init_fields_bytes
    }

    /// How many slots there are; an entry never leaves its own.
    pub(crate) fn slots(&self) -> u32 {
        slot_index(self.entries.len())
    }

    /// What stands in a slot.
    pub(crate) fn entry(&self, slot: u32) -> &Entry {
        &self.entries[slot as usize]
    }

    /// The slot that a key has.
    pub(crate) fn slot_of(&self, key: &str) -> Option<u32> {
        self.find(self.tag(key), key)
    }

    /// The bytes of the init message.
    #[must_use]
    pub fn init_bytes(&self) -> usize {
        state::init_frame_bytes(self.init_fields_bytes)
    }

    /// Where the state stands in it.
    #[must_use]
    pub fn init_fields(&self) -> Range<usize> {
        state::init_fields(self.init_fields_bytes)
    }

    /// Appends the init message: the whole state.
    pub fn put_init(&self, out: &mut Vec<u8>) {
        let fields = self.entries().map(|entry| (entry.key(), entry.value()));
        state::put_init(out, self.init_fields_bytes, fields);
    }

    /// The bytes of the stamps of a look.
    #[must_use]
    pub fn stamps_bytes(&self) -> usize {
        state::stamps_bytes(self.stamp_fields_bytes, self.seq)
    }

    /// Appends the stamps of a look: the timestamps and the seq.
    pub fn put_stamps(&self, out: &mut Vec<u8>) {
        let fields = self.entries().map(|entry| (entry.key(), entry.timestamp()));
        state::put_stamps(out, self.seq, fields);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::state::{Register, put_http_state};

    proptest! {
        #[test]
        fn a_look_is_made_of_the_init_message(ops in prop::collection::vec((".{1,3}", "[0-9]{1,9}|\"\\{\"", any::<u64>()), 0..30), connections in any::<usize>()) {
            let mut workspace = Workspace::new("w", 1);
            for (key, value, timestamp) in &ops {
                workspace.apply(key, value, *timestamp, 0);
            }
            let (mut init, mut stamps) = (Vec::new(), Vec::new());
            workspace.put_init(&mut init);
            workspace.put_stamps(&mut stamps);
            prop_assert_eq!(init.len(), workspace.init_bytes());
            prop_assert_eq!(stamps.len(), workspace.stamps_bytes());
            let mut look = Vec::new();
            state::put_http_state_start(&mut look);
            look.extend_from_slice(&init[workspace.init_fields()]);
            look.extend_from_slice(&stamps);
            state::put_http_state_end(&mut look, connections);
            let fields = workspace.entries().map(|entry| Register {
                key: entry.key(),
                value: entry.value(),
                timestamp: entry.timestamp(),
            });
            let mut expected = Vec::new();
            put_http_state(&mut expected, fields, workspace.seq(), connections);
            prop_assert_eq!(&look, &expected);
            let ends_bytes = state::http_state_ends_bytes(connections);
            prop_assert_eq!(look.len(), workspace.init_fields().len() + stamps.len() + ends_bytes);
        }
    }
}
