//! The content of a disk after a crash, and copies of a disk on which to try a crash.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use etherply::core::testing::Dice;

use crate::disk::{Met, Rates, SimDisk, State};
use crate::inodes::{Change, Inode, Node};
use crate::journal::Journal;

/// The way in which a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The kernel survives, with all the data it was given.
    Kill,
    /// Any part of the unsynced data may be lost.
    PowerCut,
}

impl SimDisk {
    /// Ends the process that used the disk, so that the next one can start.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state();
        state.journal.note(|| format!("  disk {crash:?}"));
        (state.is_dead, state.dies_at) = (false, None);
        state.next_sync_fails = false;
        for inode in state.inodes.values_mut() {
            inode.is_locked = false;
        }
        for folder in state.folders.values_mut() {
            folder.is_locked = false;
        }
        if crash == Crash::PowerCut {
            state.is_read_only = false;
            state.lose_names();
            state.lose_bytes();
        }
        state.forget_unnamed();
    }

    /// Returns a separate disk with the same content on which nothing fails.
    pub fn fork(&self) -> Self {
        let mut state = self.state();
        let stream = state.dice.below(usize::MAX);
        let fork = state.clone();
        drop(state);
        Self::of(fork, stream)
    }

    /// Replaces the content of the disk, which no process uses, with that of another disk.
    pub fn restore(&self, other: &Self) {
        let State {
            inodes,
            folders,
            next_inode,
            ..
        } = other.state().clone();
        let mut state = self.state();
        (state.inodes, state.folders) = (inodes, folders);
        state.next_inode = state.next_inode.max(next_inode);
    }

    /// Schedules a copy of the disk to be made within the next `operations` operations.
    pub fn copy_within(&self, operations: usize) {
        let mut state = self.state();
        let after = state.dice.below(operations) as u64;
        state.copied_at = Some(state.operations + 1 + after);
    }

    /// Returns the copy that `copy_within` scheduled, if it has been made.
    pub fn take_copy(&self) -> Option<Self> {
        let mut state = self.state();
        state.copied_at = None;
        let copy = state.copy.take()?;
        let stream = state.dice.below(usize::MAX);
        drop(state);
        Some(Self::of(*copy, stream))
    }

    fn of(mut fork: State, stream: usize) -> Self {
        fork.dice = Dice::stream(stream as u64, 9);
        fork.journal = Journal::default();
        fork.rates = Rates::default();
        fork.next_sync_fails = false;
        fork.met = Met::default();
        (fork.copied_at, fork.copy) = (None, None);
        (fork.is_full, fork.is_read_only) = (false, false);
        fork.capacity_bytes = None;
        let fork = Self(Arc::new(Mutex::new(fork)));
        fork.crash(Crash::Kill);
        fork
    }

    /// Makes the kernel write everything that it considers unwritten and drop its cache.
    pub fn write_back(&self) {
        let mut state = self.state();
        let numbers: Vec<u64> = state.inodes.keys().copied().collect();
        for number in numbers {
            state.sync_inode(number, true);
        }
        for inode in state.inodes.values_mut() {
            inode.seen.clone_from(&inode.durable);
        }
    }

    /// Returns the files under a folder, in order, with their content.
    pub fn files(&self, folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.state();
        let mut files = Vec::new();
        for (path, content) in &state.folders {
            if path.starts_with(folder) {
                for (name, node) in &content.seen {
                    if let Node::File(inode) = node {
                        files.push((path.join(name), state.inodes[inode].seen.clone()));
                    }
                }
            }
        }
        files
    }

    /// Removes a file's name and returns its inode.
    pub fn take_name(&self, path: &Path) -> Node {
        let mut state = self.state();
        let (folder, name) = crate::disk::split(path);
        let folder = state.folders.get_mut(folder).expect("a folder");
        folder.seen.remove(name).expect("a name")
    }

    /// Restores a name that `take_name` removed. Neither change needs a sync.
    pub fn put_name(&self, path: &Path, node: Node) {
        let mut state = self.state();
        let (folder, name) = crate::disk::split(path);
        let folder = state.folders.get_mut(folder).expect("a folder");
        let other = folder.seen.insert(name.to_owned(), node);
        assert_eq!(other, None, "another file has the name");
    }

    /// Returns the files under a folder with their lengths.
    pub fn lengths(&self, folder: &Path) -> Vec<(PathBuf, u64)> {
        let state = self.state();
        let folders = state.folders.iter();
        let folders = folders.filter(|(path, _)| path.starts_with(folder));
        let names = folders.flat_map(|(path, content)| {
            let names = content.seen.iter();
            names.map(move |(name, node)| (path.join(name), *node))
        });
        names
            .filter_map(|(path, node)| match node {
                Node::File(inode) => Some((path, state.inodes[&inode].seen.len() as u64)),
                Node::Folder => None,
            })
            .collect()
    }

    /// Flips a bit of a file, on the disk itself.
    pub fn flip(&self, path: &Path, at: usize, bit: u32) {
        let mut state = self.state();
        let (folder, name) = crate::disk::split(path);
        let Node::File(inode) = state.folders[folder].seen[name] else {
            unreachable!("the path is a file");
        };
        let inode = state.inodes.get_mut(&inode).expect("a name has a file");
        inode.seen[at] ^= 1 << bit;
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= 1 << bit;
        }
    }

    /// Makes operations fail at these rates from now on.
    pub fn set_rates(&self, rates: Rates) {
        self.state().rates = rates;
    }

    pub fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }

    /// Makes the process die within this many operations.
    pub fn die_within(&self, operations: usize) {
        let mut state = self.state();
        let after = state.dice.below(operations) as u64;
        state.dies_at = Some(state.operations + 1 + after);
    }

    /// Returns whether no process can write to the disk.
    pub fn is_unusable(&self) -> bool {
        let state = self.state();
        state.is_dead || state.is_read_only
    }

    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }
}

impl State {
    /// Keeps a random subset of the name changes that were not synced.
    fn lose_names(&mut self) {
        let Self { folders, dice, .. } = self;
        for folder in folders.values_mut() {
            for change in std::mem::take(&mut folder.pending) {
                if dice.one_in(2) {
                    change.apply(&mut folder.durable);
                }
            }
            folder.seen = folder.durable.clone();
        }
        // A folder that has lost its name is lost with its content.
        let is_named = |path: &Path| {
            path.ancestors()
                .filter(|path| path.parent().is_some())
                .all(|path| {
                    let (parent, name) = crate::disk::split(path);
                    let parent = folders.get(parent);
                    parent.is_some_and(|parent| parent.seen.get(name) == Some(&Node::Folder))
                })
        };
        let lost: Vec<PathBuf> = folders
            .keys()
            .filter(|path| !is_named(path))
            .cloned()
            .collect();
        for path in lost {
            folders.remove(&path);
        }
    }

    fn lose_bytes(&mut self) {
        let Self {
            inodes,
            dice,
            sector_bytes,
            ..
        } = self;
        for inode in inodes.values_mut() {
            let (seen_bytes, durable_bytes) = (inode.seen.len(), inode.durable.len());
            let (least, most) = (seen_bytes.min(durable_bytes), seen_bytes.max(durable_bytes));
            let bytes = match dice.below(3) {
                0 => durable_bytes,
                1 => seen_bytes,
                _ => least + dice.below(most - least + 1),
            };
            // A dirty sector holds either the new content or the old.
            let Inode {
                seen,
                durable,
                dirty,
                ..
            } = inode;
            durable.resize(bytes, 0);
            for sector in std::mem::take(dirty) {
                // A truncated file may have dirty sectors beyond its end.
                let bytes = bytes.min(seen_bytes);
                let start = (sector * *sector_bytes).min(bytes);
                let end = (start + *sector_bytes).min(bytes);
                if dice.one_in(2) {
                    durable[start..end].copy_from_slice(&seen[start..end]);
                }
            }
            seen.clone_from(durable);
        }
    }

    /// Commits the file system's journal if a file that is to be `end` bytes long needs the space.
    /// Data that a power cut may bring back occupy the disk until such a commit frees them.
    pub fn commit_for(&mut self, number: u64, end: usize) {
        let Some(capacity_bytes) = self.capacity_bytes else {
            return;
        };
        let folders = self.folders.values();
        let names = folders.flat_map(|folder| folder.seen.values().chain(folder.durable.values()));
        let numbers: BTreeSet<u64> = names
            .filter_map(|node| match node {
                Node::File(number) => Some(*number),
                Node::Folder => None,
            })
            .chain([number])
            .collect();
        let bytes_of = |inode: &Inode| {
            let bytes = inode.seen.len().max(inode.durable.len());
            bytes.max(inode.reserved_bytes)
        };
        let files = numbers.iter().filter_map(|other| {
            let least = if *other == number { end } else { 0 };
            Some(bytes_of(self.inodes.get(other)?).max(least) as u64)
        });
        if files.sum::<u64>() <= capacity_bytes {
            return;
        }
        for folder in self.folders.values_mut() {
            for change in std::mem::take(&mut folder.pending) {
                change.apply(&mut folder.durable);
            }
        }
        for inode in self.inodes.values_mut() {
            inode.durable.truncate(inode.seen.len());
        }
    }

    fn forget_unnamed(&mut self) {
        let mut named = BTreeSet::new();
        let mut note = |node: &Node| {
            if let Node::File(inode) = node {
                named.insert(*inode);
            }
        };
        for folder in self.folders.values() {
            folder.seen.values().for_each(&mut note);
            folder.durable.values().for_each(&mut note);
            for change in &folder.pending {
                if let Change::Create(_, node) | Change::Rename(_, _, node) = change {
                    note(node);
                }
            }
        }
        self.inodes.retain(|inode, _| named.contains(inode));
    }
}

#[test]
fn after_a_power_cut_a_disk_does_not_exceed_its_capacity() {
    use etherply::log::disk::{Disk, DiskFile};

    for seed in 0..50 {
        let disk = SimDisk::new(Dice::stream(seed, 3), Journal::default());
        disk.state().capacity_bytes = Some(1000);
        let (old, new) = (Path::new("/old"), Path::new("/new"));
        let file = disk.create(old).unwrap();
        file.write_at(&[1; 800], 0).unwrap();
        file.sync().unwrap();
        disk.sync_folder(Path::new("/")).unwrap();
        disk.remove(old).unwrap();
        let file = disk.create(new).unwrap();
        assert_eq!(
            file.write_at(&[2; 900], 0).unwrap(),
            900,
            "the disk has space for the file"
        );
        file.sync().unwrap();
        disk.crash(Crash::PowerCut);
        let bytes: u64 = disk.lengths(Path::new("/")).iter().map(|file| file.1).sum();
        assert!(bytes <= 1000, "{bytes} bytes of seed {seed}");
    }
}
