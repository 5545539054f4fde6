//! Files and names: what programs see of them, and what the disk has.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

#[derive(Debug, Clone, Default)]
pub struct Inode {
    /// What programs see.
    pub seen: Vec<u8>,
    /// What the disk has.
    pub durable: Vec<u8>,
    /// Sectors that a sync writes. Where `seen` differs from `durable` elsewhere, a sync has failed, and the kernel thinks that the
    /// sector was written.
    pub dirty: BTreeSet<usize>,
    pub is_locked: bool,
    pub syncs: Syncs,
    /// Disk that is claimed for it.
    pub reserved_bytes: usize,
}

/// How the syncs of a file have ended. One in which the process died is in neither count, unless the
/// disk has done it nevertheless.
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
    /// What a sync makes durable.
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
