//! The state of a workspace as JSON text, in the order of the last change of its keys.

use std::ops::Range;

use super::{Entry, Workspace, slot_index};
use crate::wire::state;

impl Workspace {
    /// Returns the sum of [`state::init_field_bytes`] over all entries.
    pub(crate) fn init_fields_bytes(&self) -> usize {
        self.init_fields_bytes
    }

    /// Returns a number that is greater than the slot of any entry. An entry keeps its slot until
    /// its tombstone is dropped.
    pub(crate) fn slots(&self) -> u32 {
        slot_index(self.entries.capacity())
    }

    /// Returns the entry in a slot, if there is one.
    pub(crate) fn entry(&self, slot: u32) -> Option<Entry<'_>> {
        let stored = self.entries.get(slot as usize)?;
        Some(Entry::new(stored, &self.texts))
    }

    /// Returns the slot of a key's entry.
    pub(crate) fn slot_of(&self, key: &str) -> Option<u32> {
        self.find(self.tag(key), key)
    }

    /// Returns the length of the init message, in bytes.
    #[must_use]
    pub fn init_bytes(&self) -> usize {
        state::init_frame_bytes(self.init_fields_bytes)
    }

    /// Returns the range of the state within the init message.
    #[must_use]
    pub fn init_fields(&self) -> Range<usize> {
        state::init_fields(self.init_fields_bytes)
    }

    /// Appends the init message, which contains the whole state.
    pub fn put_init(&self, out: &mut Vec<u8>) {
        let fields = self.entries().map(Entry::key_and_value);
        state::put_init(out, self.init_fields_bytes, fields);
    }

    /// Returns the number of bytes that [`Workspace::put_stamps`] appends.
    #[must_use]
    pub fn stamps_bytes(&self) -> usize {
        state::stamps_bytes(self.stamp_fields_bytes, self.seq)
    }

    /// Appends the second part of the state in an HTTP answer: the timestamps and the seq.
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
        fn an_http_state_is_assembled_from_the_init_message(
            ops in prop::collection::vec(
                (".{1,3}", "[0-9]{1,9}|\"\\{\"", any::<u64>()),
                0..30,
            ),
            connections in any::<usize>(),
        ) {
            let mut workspace = Workspace::new("w", 1);
            for (key, value, timestamp) in &ops {
                workspace.apply(key, value, *timestamp, 0);
            }
            let (mut init, mut stamps) = (Vec::new(), Vec::new());
            workspace.put_init(&mut init);
            workspace.put_stamps(&mut stamps);
            prop_assert_eq!(init.len(), workspace.init_bytes());
            prop_assert_eq!(stamps.len(), workspace.stamps_bytes());
            let mut http_state = Vec::new();
            state::put_http_state_start(&mut http_state);
            http_state.extend_from_slice(&init[workspace.init_fields()]);
            http_state.extend_from_slice(&stamps);
            state::put_http_state_end(&mut http_state, connections);
            let fields = workspace.entries().map(|entry| Register {
                key: entry.key(),
                value: entry.value(),
                timestamp: entry.timestamp(),
            });
            let mut expected = Vec::new();
            put_http_state(&mut expected, fields, workspace.seq(), connections);
            prop_assert_eq!(&http_state, &expected);
            let ends_bytes = state::http_state_ends_bytes(connections);
            let fields_bytes = workspace.init_fields().len();
            prop_assert_eq!(http_state.len(), fields_bytes + stamps.len() + ends_bytes);
        }
    }
}
