//! Files and names: the content that programs see, and the content on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

#[derive(Debug, Clone, Default)]
pub struct Inode {
    /// The content that programs see.
    pub seen: Vec<u8>,
    /// The content on the disk.
    pub durable: Vec<u8>,
    /// The sectors that a sync writes. If `seen` differs from `durable` in any other sector, a sync
    /// has failed and the kernel considers that sector written.
    pub dirty: BTreeSet<usize>,
    pub is_locked: bool,
    pub syncs: Syncs,
    /// The number of bytes reserved for the file.
    pub reserved_bytes: usize,
}

/// The outcomes of a file's syncs. A sync during which the process died is in neither count, unless
/// the disk completed it anyway.
#[derive(Debug, Clone, Copy, Default)]
pub struct Syncs {
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Folder,
    File(u64),
}

#[derive(Debug, Clone)]
pub enum Change {
    Create(OsString, Node),
    Rename(OsString, OsString, Node),
    Remove(OsString),
}

#[derive(Debug, Clone, Default)]
pub struct Folder {
    pub seen: BTreeMap<OsString, Node>,
    pub durable: BTreeMap<OsString, Node>,
    /// The changes that a sync makes durable.
    pub pending: Vec<Change>,
    pub is_locked: bool,
}

impl Change {
    pub fn apply(self, names: &mut BTreeMap<OsString, Node>) {
        match self {
            Self::Create(name, node) => {
                names.insert(name, node);
            }
            Self::Rename(from, to, node) => {
                if names.get(&from) == Some(&node) {
                    names.remove(&from);
                }
                names.insert(to, node);
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}
