//! The state of a workspace as it was at one moment, read in parts while ops go on.
//!
//! An entry never leaves its slot, and what comes anew has a slot behind all others. So the state of a moment is the slots that
//! there were then, and, of those that were written over since and not read yet, the text that stood there: who
//! applies an op puts that aside first.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::core::state::workspace::{Entry, Workspace};

/// What stood in a slot before it was written over.
struct Replaced {
    key: Box<str>,
    value: Box<str>,
    timestamp: u64,
}

/// The state of a workspace as it was at one moment.
pub(in crate::core) struct Cut {
    /// The slots that there were.
    slots: u32,
    /// The next one to be read.
    next: u32,
    /// It is read from the beginning once more, when the end is reached.
    is_read_again: bool,
    replaced: HashMap<u32, Replaced, FixedState>,
}

impl Cut {
    /// The state as it is now.
    pub fn new(workspace: &Workspace) -> Self {
        Self {
            slots: workspace.slots(),
            next: 0,
            is_read_again: false,
            replaced: HashMap::with_hasher(FixedState::with_seed(0)),
        }
    }

    /// Reads it once more behind this time. Nothing must have won since the moment of the cut.
    pub fn read_again(&mut self) {
        self.is_read_again = true;
    }

    /// Puts aside what stands in a slot: it may be written over.
    pub fn put_aside(&mut self, slot: u32, entry: &Entry) {
        let is_read = slot >= self.next || self.is_read_again;
        if slot < self.slots && is_read {
            self.replaced.entry(slot).or_insert_with(|| Replaced {
                key: entry.key().into(),
                value: entry.value().into(),
                timestamp: entry.timestamp(),
            });
        }
    }

    /// Reads the next entry: gives its key, value and timestamp to `read`. False at the end.
    pub fn read_next(&mut self, workspace: &Workspace, read: impl FnOnce(&str, &str, u64)) -> bool {
        if self.is_at_end() {
            return false;
        }
        let slot = self.next;
        if let Some(replaced) = self.replaced.get(&slot) {
            read(&replaced.key, &replaced.value, replaced.timestamp);
            if !self.is_read_again {
                self.replaced.remove(&slot);
            }
        } else {
            let entry = workspace.entry(slot);
            read(entry.key(), entry.value(), entry.timestamp());
        }
        self.next += 1;
        true
    }

    /// Whether all was read.
    pub fn is_at_end(&self) -> bool {
        self.next == self.slots
    }

    /// Begins anew.
    pub fn rewind(&mut self) {
        assert!(self.is_read_again, "what was read was let go");
        (self.next, self.is_read_again) = (0, false);
    }
}
