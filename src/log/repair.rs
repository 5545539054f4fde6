//! Repairs a damaged log. Intact ops are kept, everything else is set aside, and nothing is
//! deleted.
//!
//! A repair is planned first, and the plan lists everything that the repair will do and everything
//! that is lost. Each change replaces one file with another in a single rename, once the new one is
//! on disk and the old one has a second name in a folder `damaged-N` of the data directory. The log
//! counts as damaged until the last change has been made, and no server starts on it until then. So
//! after a crash at any step, the log is either repaired or still damaged with all its intact ops,
//! and running the repair again completes it.
//!
//! Clients may hold ops that the repaired log has lost. To keep them from resuming from before the
//! repair, each segment that the repair writes begins a new generation of 0 shards
//! ([`previous_generation`](super::recovery::previous_generation)).
//!
//! The changes are made in this order: first a lost `meta.json`; then files that are not segments
//! of this log, and segments with the wrong name; and finally, folder by folder, damaged and
//! missing segments, each of which becomes a compacted segment ([`plan`]).

use crate::log::remedy::WithRemedy;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::chain::RecoveryError;
use super::directory::{self, ASIDE_PREFIX, DirectoryError, Identity, Lock, META, shard_folder};
use super::disk::Disk;
use super::record::{Change, FORMAT_VERSION, LoggedOp, SegmentHeader};
use super::rewrite::Rewrite;
use super::segment;
use crate::generation::Generation;
use crate::seq::Seq;

pub mod missing;
pub mod plan;
pub mod recover;
pub mod resync;
pub mod scan;

#[cfg(test)]
mod tests;

use missing::{MissingFilter, MissingOps};
use plan::{FolderPlan, FolderPlanner, PlannedChange, SegmentMove, SegmentRewrite};
use recover::{RecoveredItem, SegmentEnd};
use scan::{DirectoryScan, Stray};

const MOVED_EXTENSION: &str = "moved.aof";

/// The reason why a log cannot be repaired.
#[derive(Debug, Error)]
pub enum RepairError {
    /// There is no log, or it is in use.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file cannot be read.
    #[error(transparent)]
    Log(#[from] RecoveryError),
    /// A change cannot be made. Earlier changes remain in place, and the repair may be run again.
    #[error("{path}: {}", WithRemedy(.source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A planned repair of a data directory. The directory stays locked for as long as this value
/// lives.
#[derive(Debug)]
pub struct RepairPlan<D: Disk> {
    disk: D,
    data: PathBuf,
    epoch: [u8; 16],
    /// The content of `meta.json`, or `None` if it is missing or damaged, and so must be written
    /// again.
    known: Option<Identity>,
    aside: PathBuf,
    strays: Vec<Stray>,
    plans: Vec<FolderPlan>,
    missing: Vec<MissingOps>,
    /// The generation that the repaired log begins, and its number, which is higher than all
    /// others.
    generation: (Generation, Seq),
    /// Held only to keep the directory locked.
    _lock: Lock<D::File>,
}

impl<D: Disk> RepairPlan<D> {
    /// Locks a data directory and plans its repair, without changing anything. `new_epoch` must be
    /// random: it is used if the epoch of the log cannot be determined, and its first half is the
    /// id of the generation that the repaired log begins. `progress` is called with the number of
    /// bytes read so far and the total number of bytes to read.
    pub fn new(
        disk: D,
        data: PathBuf,
        new_epoch: [u8; 16],
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self, RepairError> {
        let (lock, known) = directory::lock_damaged(&disk, &data)?;
        let (epoch, scan) = DirectoryScan::of(&disk, &data, known, new_epoch)?;
        let mut strays = scan.strays;
        let all = scan.folders.values().flatten();
        let total_bytes: u64 = all.map(|found| found.file_bytes).sum();
        let (mut plans, mut missing, mut done_bytes) = (Vec::new(), Vec::new(), 0);
        for (shard, candidates) in scan.folders {
            let folder = data.join(shard_folder(shard));
            let planner = FolderPlanner::new(&disk, &folder, epoch, shard);
            let has_begun = known.is_some_and(|known| shard < known.shards_begun);
            let mut plan = planner.plan(candidates, has_begun, |bytes| {
                done_bytes += bytes;
                progress(done_bytes, total_bytes);
            })?;
            strays.append(&mut plan.strays);
            missing.append(&mut plan.missing);
            plans.push(plan);
        }
        let missing = subtract(&disk, missing, &plans)?;
        let numbers = plans.iter().map(|plan| plan.generation_number);
        let number = Seq::new(numbers.max().unwrap_or(0)).next();
        let id = new_epoch.first_chunk().expect("an epoch has 16 bytes");
        let id = Generation::new(u64::from_le_bytes(*id));
        let aside = next_aside(&disk, &data).map_err(at(&data))?;
        Ok(Self {
            disk,
            data,
            epoch,
            known,
            aside,
            strays,
            plans,
            missing,
            generation: (id, number),
            _lock: lock,
        })
    }

    /// Returns whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let is_whole = |plan: &FolderPlan| plan.moves.is_empty() && plan.changes.is_empty();
        !self.is_meta_lost() && self.strays.is_empty() && self.plans.iter().all(is_whole)
    }

    /// Returns whether `meta.json` is missing or damaged.
    #[must_use]
    pub fn is_meta_lost(&self) -> bool {
        self.known.is_none()
    }

    /// Returns the files that are set aside unchanged, because the repaired log does not use them.
    #[must_use]
    pub fn strays(&self) -> &[Stray] {
        &self.strays
    }

    /// Returns the segments that are renamed to their correct names.
    pub fn moves(&self) -> impl Iterator<Item = &SegmentMove> {
        self.plans.iter().flat_map(|plan| &plan.moves)
    }

    /// Returns the changes to damaged and missing segments.
    pub fn changes(&self) -> impl Iterator<Item = &PlannedChange> {
        self.plans.iter().flat_map(|plan| &plan.changes)
    }

    /// Returns the ops that are known to be missing.
    #[must_use]
    pub fn missing(&self) -> &[MissingOps] {
        &self.missing
    }

    /// Returns the path of the folder in which files are set aside.
    #[must_use]
    pub fn aside(&self) -> &Path {
        &self.aside
    }

    /// Carries out the plan.
    pub fn run(&self) -> Result<(), RepairError> {
        self.put_meta()?;
        for stray in &self.strays {
            let to = self.aside_path(&stray.path)?;
            self.rename(&stray.path, &to)?;
        }
        // Two segments may have each other's names, so all of them get temporary names first.
        let moves: Vec<_> = self
            .moves()
            .map(|step| (step, moved_path(&step.home)))
            .collect();
        for (step, path) in &moves {
            if step.path != *path {
                self.create_folder(parent(path))?;
                self.rename(&step.path, path)?;
            }
        }
        for (step, path) in &moves {
            self.rename(path, &step.home)?;
        }
        for change in self.changes() {
            match change {
                PlannedChange::Fill { path, header } => self.fill(path, *header)?,
                PlannedChange::Rewrite(rewritten) => self.rewrite(rewritten)?,
            }
        }
        Ok(())
    }

    /// Writes a lost `meta.json`, or raises the format in it if the repair writes segments.
    fn put_meta(&self) -> Result<(), RepairError> {
        let path = self.data.join(META);
        if let Some(known) = self.known {
            if self.changes().next().is_some() {
                directory::upgrade(&self.disk, &self.data, known).map_err(at(&path))?;
            }
            return Ok(());
        }
        if self.disk.file_bytes(&path).is_ok() {
            let to = self.aside_path(&path)?;
            self.link(&path, &to)?;
        }
        let identity = Identity {
            format_version: FORMAT_VERSION,
            epoch: self.epoch,
            // The next start of the server records them.
            shards_begun: 0,
        };
        directory::write_meta(&self.disk, &self.data, identity).map_err(at(&path))
    }

    fn fill(&self, path: &Path, header: SegmentHeader) -> Result<(), RepairError> {
        let new = segment::new_path(parent(path), header.index);
        self.create_folder(parent(path))?;
        self.keep_leftover(&new)?;
        let filled = Rewrite::begin(&self.disk, &new, header);
        filled
            .and_then(|rewrite| self.finish(rewrite, header.shard))
            .map_err(at(&new))?;
        self.rename(&new, path)
    }

    fn rewrite(&self, change: &SegmentRewrite) -> Result<(), RepairError> {
        let path = &change.path;
        let mut bytes = Vec::new();
        recover::load(&self.disk, path, &mut bytes)?;
        bytes.truncate(usize::try_from(change.old_bytes).unwrap_or(usize::MAX));
        let new = segment::new_path(parent(path), change.header.index);
        self.keep_leftover(&new)?;
        let mut rewrite = Rewrite::begin(&self.disk, &new, change.header).map_err(at(&new))?;
        let mut outcome = Ok(());
        let ending = SegmentEnd {
            is_last: change.is_last,
            ..SegmentEnd::NEXT
        };
        recover::recover(&change.old, &bytes, ending, |found| {
            if let RecoveredItem::Op(op) = found
                && outcome.is_ok()
            {
                outcome = rewrite.push(op).map(|_| ());
            }
        });
        outcome
            .and_then(|()| self.finish(rewrite, change.header.shard))
            .map_err(at(&new))?;
        let to = self.aside_path(path)?;
        self.link(path, &to)?;
        self.replace(&new, path)
    }

    /// Appends the generation that the repaired log begins to a segment of `shard`, and seals it.
    fn finish(&self, mut rewrite: Rewrite<D::File>, shard: u32) -> io::Result<u64> {
        let (id, number) = self.generation;
        rewrite.push(&LoggedOp {
            workspace: "",
            key: &shard.to_string(),
            change: Change::Generation { id, shards: 0 },
            seq: number,
            timestamp: number.get(),
        })?;
        rewrite.finish()
    }

    /// Sets aside a file that a crash has left under the name with which a new segment is to be
    /// written.
    fn keep_leftover(&self, new: &Path) -> Result<(), RepairError> {
        if self.disk.file_bytes(new).is_err() {
            return Ok(());
        }
        let to = self.aside_path(new)?;
        self.rename(new, &to)
    }

    /// Returns the path at which a file is set aside, and durably creates the folders for it.
    fn aside_path(&self, path: &Path) -> Result<PathBuf, RepairError> {
        let inner = path
            .strip_prefix(&self.data)
            .expect("the path is in the data directory");
        let to = self.aside.join(inner);
        self.create_folder(&self.aside)?;
        self.create_folder(parent(&to))?;
        Ok(to)
    }

    fn create_folder(&self, path: &Path) -> Result<(), RepairError> {
        if self.disk.is_folder(path) {
            return Ok(());
        }
        self.disk.create_folder(path).map_err(at(path))?;
        self.sync_folder(parent(path))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), RepairError> {
        self.check_free(to)?;
        self.disk.link(from, to).map_err(at(to))?;
        self.sync_folder(parent(to))
    }

    /// Durably renames a file to a name that is not in use.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), RepairError> {
        self.check_free(to)?;
        self.replace(from, to)
    }

    /// Durably renames a file, replacing any existing file with the new name.
    fn replace(&self, from: &Path, to: &Path) -> Result<(), RepairError> {
        self.disk.rename(from, to).map_err(at(from))?;
        self.sync_folder(parent(to))?;
        if parent(from) != parent(to) {
            self.sync_folder(parent(from))?;
        }
        Ok(())
    }

    fn check_free(&self, path: &Path) -> Result<(), RepairError> {
        match self.disk.file_bytes(path) {
            Ok(_) => Err(at(path)(io::ErrorKind::AlreadyExists.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(at(path)(error)),
        }
    }

    fn sync_folder(&self, path: &Path) -> Result<(), RepairError> {
        self.disk.sync_folder(path).map_err(at(path))
    }
}

/// Removes from `missing` any ops that are found in a folder.
fn subtract<D: Disk>(
    disk: &D,
    missing: Vec<MissingOps>,
    plans: &[FolderPlan],
) -> Result<Vec<MissingOps>, RecoveryError> {
    let mut filter = MissingFilter::new(missing);
    if filter.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    for segment in plans.iter().flat_map(|plan| &plan.segments) {
        recover::load(disk, &segment.path, &mut bytes)?;
        let is_compacted = segment.header.compacted.is_some();
        recover::recover(&segment.header, &bytes, SegmentEnd::NEXT, |found| {
            if let RecoveredItem::Op(op) = found {
                filter.visit(op, is_compacted);
            }
        });
    }
    Ok(filter.finish())
}

/// Returns the path of the first `damaged-N` folder after all existing ones.
fn next_aside<D: Disk>(disk: &D, data: &Path) -> io::Result<PathBuf> {
    let names = disk.names(data)?;
    let number = |name: &std::ffi::OsString| -> Option<u64> {
        name.to_str()?.strip_prefix(ASIDE_PREFIX)?.parse().ok()
    };
    let last = names.iter().filter_map(number).max().unwrap_or(0);
    Ok(data.join(format!("{ASIDE_PREFIX}{}", last.saturating_add(1))))
}

/// Returns the temporary path of a segment that is being renamed. Its name is not a valid segment
/// name, but a repeated repair still finds the file by it.
fn moved_path(home: &Path) -> PathBuf {
    home.with_extension(MOVED_EXTENSION)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RepairError {
    let path = path.to_path_buf();
    move |source| RepairError::Io { path, source }
}
