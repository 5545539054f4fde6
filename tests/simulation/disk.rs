//! An in-memory disk with everything that an operating system puts between a program and the disk:
//! unsynced writes, names that are separate from files, and operations that fail. `crash` decides
//! what survives a crash.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etherply::core::testing::Dice;
use etherply::log::blocks::BLOCK_BYTES;
use etherply::log::disk::{Disk, DiskFile, Space};
use etherply::log::record::SECTOR_BYTES;

use crate::inodes::{Change, Folder, Inode, Node, Syncs};
use crate::journal::Journal;

/// The rates at which operations fail; 0 means never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// One operation in this many returns an error.
    pub error_one_in: usize,
    /// One read or write in this many does less than requested.
    pub short_one_in: usize,
}

/// The number of times that each case occurred.
#[derive(Debug, Clone, Copy, Default)]
pub struct Met {
    pub write_errors: u64,
    pub sync_errors: u64,
    pub open_errors: u64,
    pub rename_errors: u64,
    pub folder_sync_errors: u64,
    pub full: u64,
    pub out_of_room: u64,
    pub short_writes: u64,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each says what the disk can do, or what has become of it"
)]
#[derive(Debug, Clone)]
pub struct State {
    pub dice: Dice,
    pub journal: Journal,
    pub sector_bytes: usize,
    /// Writes can bypass the cache.
    pub knows_direct: bool,
    pub inodes: BTreeMap<u64, Inode>,
    pub folders: BTreeMap<PathBuf, Folder>,
    pub next_inode: u64,
    pub rates: Rates,
    /// The next sync fails, because the world has planned that.
    pub next_sync_fails: bool,
    pub is_full: bool,
    /// The total capacity for all files; `None` means unlimited.
    pub capacity_bytes: Option<u64>,
    /// The file system is read-only until the machine restarts.
    pub is_read_only: bool,
    pub operations: u64,
    /// The operation at which the process dies.
    pub dies_at: Option<u64>,
    pub is_dead: bool,
    /// The operation before which a copy of the disk is kept.
    pub copied_at: Option<u64>,
    pub copy: Option<Box<State>>,
    pub met: Met,
}

/// A disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk(pub Arc<Mutex<State>>);

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

/// An open file on a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    /// The content depends on this process, not on the seed, so no dice are rolled for it.
    is_plain: bool,
    holds_lock: bool,
    locked_folder: Option<PathBuf>,
    /// Writes bypass the cache and are on disk when they return.
    writes_through: AtomicBool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.holds_lock
            && let Some(inode) = self.disk.state().inodes.get_mut(&self.inode)
        {
            inode.is_locked = false;
        }
        if let Some(path) = &self.locked_folder
            && let Some(folder) = self.disk.state().folders.get_mut(path)
        {
            folder.is_locked = false;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Open,
    Write,
    Sync,
    Names,
    Rename,
    FolderSync,
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

impl State {
    /// Begins an operation: it may be the last one of the process, and it may fail.
    fn enter(&mut self, kind: Kind, what: impl FnOnce() -> String) -> io::Result<()> {
        if self.is_dead {
            return Err(io::Error::other("the process is dead"));
        }
        self.operations += 1;
        if self.copied_at.is_some_and(|at| at <= self.operations) {
            self.copied_at = None;
            self.copy = Some(Box::new(self.clone()));
        }
        let dies = self.dies_at.is_some_and(|at| at <= self.operations);
        let is_planned = matches!(kind, Kind::Sync) && std::mem::take(&mut self.next_sync_fails);
        let fails = self.dice.one_in(self.rates.error_one_in) || is_planned;
        let is_late = self.dice.one_in(2);
        let changes = !matches!(kind, Kind::Read | Kind::Open);
        self.journal.note(|| {
            let end = match (dies, fails) {
                (true, _) => " †",
                (_, true) => " EIO",
                _ => "",
            };
            format!("  disk {}{end}", what())
        });
        if dies {
            self.is_dead = true;
            // The operation may have taken effect anyway, but the process never learns of it.
            return if is_late {
                Ok(())
            } else {
                Err(io::Error::other("the process dies"))
            };
        }
        if changes && self.is_read_only {
            return Err(error(EROFS));
        }
        if fails {
            match kind {
                Kind::Write => self.met.write_errors += 1,
                // A planned failure is not counted, because the world knows its effects.
                Kind::Sync => self.met.sync_errors += u64::from(!is_planned),
                Kind::Open => self.met.open_errors += 1,
                Kind::Rename => self.met.rename_errors += 1,
                Kind::FolderSync => self.met.folder_sync_errors += 1,
                Kind::Read | Kind::Names => {}
            }
            // Writes and syncs fail halfway.
            if !matches!(kind, Kind::Write | Kind::Sync | Kind::FolderSync) {
                return Err(error(EIO));
            }
            return Err(io::Error::new(io::ErrorKind::Interrupted, "in the middle"));
        }
        Ok(())
    }

    fn claim(&mut self) -> io::Result<()> {
        if self.is_full {
            self.met.full += 1;
            return Err(error(ENOSPC));
        }
        Ok(())
    }

    /// Returns the free space if the disk has a capacity. A file without a name takes up none.
    pub fn free_bytes(&self) -> Option<u64> {
        let capacity_bytes = self.capacity_bytes?;
        let names = self
            .folders
            .values()
            .flat_map(|folder| folder.seen.values());
        let inodes = names.filter_map(|node| match node {
            Node::File(inode) => self.inodes.get(inode),
            Node::Folder => None,
        });
        let used: usize = inodes
            .map(|inode| inode.seen.len().max(inode.reserved_bytes))
            .sum();
        Some(capacity_bytes.saturating_sub(used as u64))
    }

    /// Returns how much of a write from `start` to `end` of a file fits.
    fn room(&self, inode: u64, start: usize, end: usize) -> usize {
        let (Some(free_bytes), Some(inode)) = (self.free_bytes(), self.inodes.get(&inode)) else {
            return end - start;
        };
        let had = inode.seen.len().max(inode.reserved_bytes) as u64;
        let end_max = usize::try_from(had + free_bytes).expect("the disk is small");
        end.min(end_max).saturating_sub(start)
    }

    fn folder(&mut self, path: &Path) -> io::Result<&mut Folder> {
        self.folders
            .get_mut(path)
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn find(&mut self, path: &Path) -> io::Result<Node> {
        if path.parent().is_none() {
            return Ok(Node::Folder);
        }
        let (folder, name) = split(path);
        self.folder(folder)?
            .seen
            .get(name)
            .copied()
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn find_file(&mut self, path: &Path) -> io::Result<u64> {
        match self.find(path)? {
            Node::File(inode) => Ok(inode),
            Node::Folder => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn change(&mut self, folder: &Path, change: Change) -> io::Result<()> {
        let folder = self.folder(folder)?;
        change.clone().apply(&mut folder.seen);
        folder.pending.push(change);
        Ok(())
    }

    /// Returns the inode of a path, creating an empty file if there is none.
    fn find_or_create(&mut self, path: &Path) -> io::Result<u64> {
        if let Ok(inode) = self.find_file(path) {
            return Ok(inode);
        }
        self.claim()?;
        let (folder, name) = split(path);
        self.folder(folder)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.change(folder, Change::Create(name.to_owned(), Node::File(inode)))?;
        Ok(inode)
    }

    /// Marks a write that bypassed the cache as durable, unless the process has died in the
    /// meantime, in which case the write is still in flight. Data that did not reach the disk are
    /// not readable either.
    fn end_write_through(&mut self, number: u64, is_whole: bool) {
        if self.is_dead {
            return;
        }
        self.sync_inode(number, is_whole);
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.seen.clone_from(&inode.durable);
        }
    }

    pub fn sync_inode(&mut self, number: u64, is_whole: bool) {
        let Self {
            inodes,
            dice,
            sector_bytes,
            ..
        } = self;
        // The file lost its name, and the machine has restarted since.
        let Some(inode) = inodes.get_mut(&number) else {
            return;
        };
        let seen_bytes = inode.seen.len();
        if is_whole || dice.one_in(2) {
            inode.durable.resize(seen_bytes, 0);
        }
        for sector in std::mem::take(&mut inode.dirty) {
            let end = ((sector + 1) * *sector_bytes)
                .min(seen_bytes)
                .min(inode.durable.len());
            let start = (sector * *sector_bytes).min(end);
            if is_whole || dice.one_in(2) {
                inode.durable[start..end].copy_from_slice(&inode.seen[start..end]);
            }
        }
    }
}

pub fn split(path: &Path) -> (&Path, &std::ffi::OsStr) {
    let folder = path.parent().expect("a path below the root");
    (folder, path.file_name().expect("a path with a name"))
}

fn name(path: &Path) -> String {
    let parts: Vec<_> = path
        .iter()
        .skip(2)
        .map(|part| part.to_string_lossy())
        .collect();
    parts.join("/")
}

impl SimDisk {
    /// Creates an empty disk.
    pub fn new(mut dice: Dice, journal: Journal) -> Self {
        let sector_bytes = dice.pick(&[SECTOR_BYTES, SECTOR_BYTES, 4096]);
        let knows_direct = !dice.one_in(6);
        Self(Arc::new(Mutex::new(State {
            dice,
            journal,
            sector_bytes,
            knows_direct,
            inodes: BTreeMap::new(),
            folders: BTreeMap::from([(PathBuf::from("/"), Folder::default())]),
            next_inode: 1,
            rates: Rates::default(),
            next_sync_fails: false,
            is_full: false,
            capacity_bytes: None,
            is_read_only: false,
            operations: 0,
            dies_at: None,
            is_dead: false,
            copied_at: None,
            copy: None,
            met: Met::default(),
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: u64, path: &Path) -> SimFile {
        SimFile {
            disk: self.clone(),
            inode,
            is_plain: path.ends_with("LOCK"),
            holds_lock: false,
            locked_folder: None,
            writes_through: AtomicBool::new(false),
        }
    }
}

/// Returns whether an operation failed halfway, which its caller sees as an I/O error.
fn is_half_done(outcome: &io::Result<()>) -> bool {
    outcome
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.enter(Kind::Names, || format!("mkdir {}", name(path)))?;
        if state.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.claim()?;
        let (parent, name) = split(path);
        state.change(parent, Change::Create(name.to_owned(), Node::Folder))?;
        state.folders.insert(path.to_owned(), Folder::default());
        Ok(())
    }

    fn is_folder(&self, path: &Path) -> bool {
        let state = self.state();
        !state.is_dead && state.folders.contains_key(path)
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.state();
        state.enter(Kind::Open, || format!("list {}", name(folder)))?;
        let mut names: Vec<_> = state.folder(folder)?.seen.keys().cloned().collect();
        let turn = state.dice.below(names.len().max(1));
        names.rotate_left(turn);
        Ok(names)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.state();
        let entered = state.enter(Kind::FolderSync, || format!("sync folder {}", name(folder)));
        if entered.is_err() && !is_half_done(&entered) {
            return entered;
        }
        let gives_up = state.dice.one_in(2);
        let pending = std::mem::take(&mut state.folder(folder)?.pending);
        for change in pending {
            let is_done = entered.is_ok() || state.dice.one_in(2);
            let folder = state.folder(folder)?;
            if is_done {
                // Once a file's new name is durable, its first name never comes back.
                if let Change::Rename(_, _, renamed) = change {
                    let is_older = |change: &Change| match change {
                        Change::Create(_, node) => *node == renamed,
                        _ => false,
                    };
                    folder.pending.retain(|change| !is_older(change));
                }
                change.apply(&mut folder.durable);
            } else {
                folder.pending.push(change);
            }
        }
        if entered.is_err() {
            // Either a later sync succeeds, or the file system becomes read-only.
            state.is_read_only |= gives_up;
            return Err(error(EIO));
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let mut state = self.state();
        state.enter(Kind::Open, || format!("open {}", name(path)))?;
        Ok(self.file(state.find_file(path)?, path))
    }

    fn open_writable(&self, path: &Path) -> io::Result<SimFile> {
        let mut state = self.state();
        state.enter(Kind::Open, || format!("open {} to write", name(path)))?;
        if state.is_read_only {
            return Err(error(EROFS));
        }
        Ok(self.file(state.find_file(path)?, path))
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut state = self.state();
        state.enter(Kind::Names, || format!("create {}", name(path)))?;
        let inode = state.find_or_create(path)?;
        let file = state.inodes.get_mut(&inode).expect("a name has a file");
        file.seen.clear();
        file.dirty.clear();
        file.reserved_bytes = 0;
        Ok(self.file(inode, path))
    }

    fn is_at(&self, path: &Path, file: &SimFile) -> io::Result<bool> {
        let mut state = self.state();
        state.enter(Kind::Open, || format!("compare {}", name(path)))?;
        Ok(state.find_file(path).ok() == Some(file.inode))
    }

    fn file_bytes(&self, path: &Path) -> io::Result<u64> {
        let mut state = self.state();
        state.enter(Kind::Open, || format!("stat {}", name(path)))?;
        let inode = state.find_file(path)?;
        Ok(state.inodes[&inode].seen.len() as u64)
    }

    fn space(&self, _folder: &Path) -> io::Result<Space> {
        let state = self.state();
        let total_bytes = state.capacity_bytes.unwrap_or(1 << 60);
        Ok(Space {
            free_bytes: state.free_bytes().unwrap_or(total_bytes),
            total_bytes,
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.enter(Kind::Rename, || {
            format!("rename {} to {}", name(from), name(to))
        })?;
        let node = state.find(from)?;
        let (folder, from) = split(from);
        let (to_folder, to) = split(to);
        assert_eq!(folder, to_folder, "a rename to another folder");
        state.change(folder, Change::Rename(from.to_owned(), to.to_owned(), node))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.enter(Kind::Names, || format!("remove {}", name(path)))?;
        state.find_file(path)?;
        let (folder, name) = split(path);
        state.change(folder, Change::Remove(name.to_owned()))
    }

    fn lock(&self, path: &Path) -> io::Result<Result<SimFile, SimFile>> {
        let mut state = self.state();
        state.enter(Kind::Open, || format!("lock {}", name(path)))?;
        let inode = state.find_or_create(path)?;
        let mut file = self.file(inode, path);
        let locked = &mut state
            .inodes
            .get_mut(&inode)
            .expect("a name has a file")
            .is_locked;
        if std::mem::replace(locked, true) {
            return Ok(Err(file));
        }
        file.holds_lock = true;
        Ok(Ok(file))
    }

    fn lock_folder(&self, path: &Path) -> io::Result<Option<SimFile>> {
        let mut state = self.state();
        state.enter(Kind::Open, || format!("lock folder {}", name(path)))?;
        let folder = state.folder(path)?;
        if std::mem::replace(&mut folder.is_locked, true) {
            return Ok(None);
        }
        // No file has inode number 0.
        let mut file = self.file(0, path);
        file.locked_folder = Some(path.to_owned());
        Ok(Some(file))
    }
}

impl SimFile {
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns how many of its syncs have succeeded and how many have failed.
    pub fn syncs(&self) -> Syncs {
        let state = self.disk.state();
        let inode = state.inodes.get(&self.inode);
        inode.map_or_else(Syncs::default, |inode| inode.syncs)
    }
}

impl DiskFile for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.enter(Kind::Open, || "fstat".to_owned())?;
        Ok(state
            .inodes
            .get(&self.inode)
            .map_or(0, |inode| inode.seen.len() as u64))
    }

    fn is_linked(&self) -> io::Result<bool> {
        let mut state = self.disk.state();
        state.enter(Kind::Open, || "fstat".to_owned())?;
        let mut names = state
            .folders
            .values()
            .flat_map(|folder| folder.seen.values());
        Ok(names.any(|node| *node == Node::File(self.inode)))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.enter(Kind::Read, || "read".to_owned())?;
        let is_short = !self.is_plain && {
            let rate = state.rates.short_one_in;
            state.dice.one_in(rate)
        };
        let share = state.dice.below(8);
        let seen = &state.inodes[&self.inode].seen;
        let offset = usize::try_from(offset)
            .expect("the file is small")
            .min(seen.len());
        let mut count = bytes.len().min(seen.len() - offset);
        if is_short {
            count -= count * share / 8;
        }
        bytes[..count].copy_from_slice(&seen[offset..offset + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        let entered = state.enter(Kind::Write, || {
            let bytes = if self.is_plain { 0 } else { bytes.len() };
            format!("write {bytes} at {offset} of inode {}", self.inode)
        });
        if entered.is_err() && !is_half_done(&entered) {
            return entered.map(|()| 0);
        }
        let writes_through = self.writes_through.load(Ordering::Relaxed);
        if writes_through {
            let block = BLOCK_BYTES as u64;
            assert!(
                bytes.len().is_multiple_of(BLOCK_BYTES) && offset.is_multiple_of(block),
                "a write that bypasses the cache is not in whole blocks"
            );
        }
        let rate = state.rates.short_one_in;
        let (is_short, share) = (state.dice.one_in(rate), 1 + state.dice.below(7));
        let is_half = !self.is_plain && (entered.is_err() || is_short || state.is_full);
        let mut count = bytes.len();
        if is_half {
            count = count * share / 8;
            state.met.short_writes += u64::from(entered.is_ok());
        }
        if state.is_full && entered.is_ok() && count == 0 {
            state.claim()?;
        }
        let start = usize::try_from(offset).expect("the file is small");
        state.commit_for(self.inode, start + count);
        let room = state.room(self.inode, start, start + count);
        if room < count {
            state.met.out_of_room += 1;
            // Writes that bypass the cache consist of whole blocks.
            count = if writes_through {
                room - room % BLOCK_BYTES
            } else {
                room
            };
        }
        let State {
            inodes,
            sector_bytes,
            ..
        } = &mut *state;
        if let Some(inode) = inodes.get_mut(&self.inode) {
            let end = start + count;
            if inode.seen.len() < end {
                inode.seen.resize(end, 0);
            }
            inode.seen[start..end].copy_from_slice(&bytes[..count]);
            if count > 0 {
                inode
                    .dirty
                    .extend(start / *sector_bytes..=(end - 1) / *sector_bytes);
            }
        }
        if writes_through {
            state.end_write_through(self.inode, entered.is_ok());
        }
        match entered {
            Ok(()) if count == 0 && !bytes.is_empty() => Err(error(ENOSPC)),
            Ok(()) => Ok(count),
            Err(_) => Err(error(EIO)),
        }
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.enter(Kind::Names, || {
            format!("truncate inode {} to {bytes}", self.inode)
        })?;
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            inode
                .seen
                .resize(usize::try_from(bytes).expect("the file is small"), 0);
            inode.reserved_bytes = 0;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let entered = state.enter(Kind::Sync, || format!("sync inode {}", self.inode));
        let is_dead = state.is_dead;
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            inode.syncs.succeeded += u64::from(entered.is_ok());
            inode.syncs.failed += u64::from(entered.is_err() && !is_dead);
        }
        if entered.is_err() && !is_half_done(&entered) {
            return entered;
        }
        state.sync_inode(self.inode, entered.is_ok());
        entered.map_err(|_| error(EIO))
    }

    fn write_through(&self) -> io::Result<bool> {
        let mut state = self.disk.state();
        state.enter(Kind::Open, || format!("write through inode {}", self.inode))?;
        self.writes_through
            .store(state.knows_direct, Ordering::Relaxed);
        Ok(state.knows_direct)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.enter(Kind::Names, || format!("reserve for inode {}", self.inode))?;
        state.claim()?;
        let bytes = usize::try_from(bytes).expect("the file is small");
        state.commit_for(self.inode, bytes);
        if state.room(self.inode, 0, bytes) < bytes {
            state.met.out_of_room += 1;
            return Err(error(ENOSPC));
        }
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            inode.reserved_bytes = inode.reserved_bytes.max(bytes);
        }
        Ok(())
    }

    fn share(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn claim(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn drop_cache(&self) {
        let mut state = self.disk.state();
        let State {
            inodes,
            sector_bytes,
            ..
        } = &mut *state;
        let Some(inode) = inodes.get_mut(&self.inode) else {
            return;
        };
        let Inode {
            seen,
            durable,
            dirty,
            ..
        } = inode;
        // Bytes beyond the end of the file on disk read as zeros.
        let durable_bytes = durable.len();
        durable.resize(durable_bytes.max(seen.len()), 0);
        for (sector, bytes) in seen.chunks_mut(*sector_bytes).enumerate() {
            if !dirty.contains(&sector) {
                let start = sector * *sector_bytes;
                bytes.copy_from_slice(&durable[start..start + bytes.len()]);
            }
        }
        durable.truncate(durable_bytes);
    }
}
