//! The files of one shard's log, and the slow work on them: a thread of its own creates segments and
//! reads a shard's state back, so that the shard's loop never waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use rustix::io::Errno;

use crate::core::contract::shard_of;
use crate::core::workspace::Workspace;
use crate::io::post::{Letter, Post, RebuildError};
use crate::limits::SEGMENT_RESERVE_BYTES;
use crate::log::commit::{End, OpenSegment};
use crate::log::directory::DataDirectory;
use crate::log::record::{Op, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::log::recovery::{self, Tail};
use crate::log::segment::{self, Segment};

/// The log files of one shard.
pub struct LogKeeper {
    directory: Arc<DataDirectory>,
    shard: u32,
    shards: u32,
    hash_seed: u64,
    segment: Segment,
    /// All segments in which ops of this shard's workspaces may stand, the open one last.
    sources: Vec<PathBuf>,
    /// An fdatasync of the open segment has failed: the next one would lie.
    is_sync_lost: bool,
}

impl LogKeeper {
    /// Creates the segment with which a shard begins, behind all that was recovered.
    pub fn open(
        directory: Arc<DataDirectory>,
        shard: u32,
        shards: u32,
        hash_seed: u64,
        tail: Tail,
        recovered: &[PathBuf],
    ) -> io::Result<Self> {
        let header = SegmentHeader {
            shard,
            epoch: directory.epoch(),
            index: tail.next_index,
            first_position: tail.next_position,
        };
        let folder = directory.shard_path(shard);
        let segment = segment::create(&folder, header, 0)?;
        // This shard's own last, so that its chain of segments stands together and in order.
        let (own, others): (Vec<_>, Vec<_>) = recovered
            .iter()
            .cloned()
            .partition(|path| path.parent() == Some(&folder));
        let sources = [others, own, vec![segment.path.clone()]].concat();
        Ok(Self {
            directory,
            shard,
            shards,
            hash_seed,
            segment,
            sources,
            is_sync_lost: false,
        })
    }

    /// The open segment, as the log's state machine knows it.
    #[must_use]
    pub fn open_segment(&self) -> OpenSegment {
        open_segment(&self.segment)
    }

    /// The open segment's file.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.segment.file.as_fd()
    }

    /// Fails where the open segment has lost its name: a write and an fdatasync of it still end well, and what they kept is
    /// gone as soon as the file is closed. Cheap enough for every commit.
    pub fn check_linked(&self) -> Result<(), RebuildError> {
        let open = rustix::fs::fstat(&self.segment.file).map_err(io::Error::from)?;
        if open.st_nlink == 0 {
            return Err(self.deleted());
        }
        Ok(())
    }

    /// Fails where the open segment does not stand at its path: what stands there now, nothing or a backup that was put
    /// back, does not go on with this log, and must not be given the next segment of it.
    fn check_in_place(&self) -> Result<(), RebuildError> {
        let path = &self.segment.path;
        let open = rustix::fs::fstat(&self.segment.file).map_err(io::Error::from)?;
        match rustix::fs::stat(path) {
            Ok(found) if (found.st_dev, found.st_ino) == (open.st_dev, open.st_ino) => Ok(()),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Err(self.deleted()),
            Err(errno) => Err(RebuildError::Segment {
                path: path.clone(),
                source: errno.into(),
            }),
        }
    }

    fn deleted(&self) -> RebuildError {
        RebuildError::Deleted {
            path: self.segment.path.clone(),
        }
    }

    /// Makes a new segment the open one. Nothing of the one before may be in flight.
    pub fn replace(&mut self, segment: Segment) -> OpenSegment {
        self.sources.retain(|source| *source != segment.path);
        self.sources.push(segment.path.clone());
        self.segment = segment;
        self.is_sync_lost = false;
        self.open_segment()
    }

    /// Creates the next segment on a thread of its own; its outcome comes as a letter.
    pub fn create_next(&self, index: u64, first_position: u64, post: Post) {
        if let Err(error) = self.check_in_place() {
            return post.send(Letter::SegmentCreated(Err(error)));
        }
        let folder = self.directory.shard_path(self.shard);
        let header = SegmentHeader {
            index,
            first_position,
            ..self.segment.header
        };
        spawn(post, Letter::SegmentCreated, move || {
            Ok(segment::create(&folder, header, 0)?)
        });
    }

    /// Creates the segment behind the failed one and reads the shard's state back, on a thread of its
    /// own; its outcome comes as a letter. The failed file is not written any more: it ends for its
    /// readers where the next segment says that it begins.
    pub fn rebuild(&mut self, end: End, post: Post) {
        if let Err(error) = self.check_in_place() {
            return post.send(Letter::Rebuilt(Err(error)));
        }
        let folder = self.directory.shard_path(self.shard);
        let path = folder.join(segment::file_name(end.index + 1));
        let first_position = self.kept_position(end);
        let header = SegmentHeader {
            index: end.index + 1,
            first_position,
            ..self.segment.header
        };
        let mut sources = self.sources.clone();
        // A segment that was opened just before the failure is there already; it is replaced.
        sources.retain(|source| *source != path);
        sources.push(path.clone());
        let (shard, shards, hash_seed) = (self.shard, self.shards, self.hash_seed);
        spawn(post, Letter::Rebuilt, move || {
            let at = |source| RebuildError::Segment {
                path: path.clone(),
                source,
            };
            remove_unused(&path).map_err(at)?;
            // The room on the disk is claimed first: a shard that serves for a moment and fails
            // again would be worse than one that waits.
            let segment = segment::create(&folder, header, SEGMENT_RESERVE_BYTES).map_err(at)?;
            let mut deal = Deal::new(shards, hash_seed, Some(shard));
            recovery::replay(&sources, &mut |op| deal.visit(op))?;
            Ok((segment, deal.finish().swap_remove(shard as usize)))
        });
    }

    /// Up to where a failed segment is kept: what was shown, if it can still be made durable.
    fn kept_position(&mut self, end: End) -> u64 {
        if end.shown == end.durable {
            return end.durable;
        }
        if !self.is_sync_lost && self.segment.file.sync_data().is_ok() {
            return end.shown;
        }
        self.is_sync_lost = true;
        end.durable
    }
}

fn open_segment(segment: &Segment) -> OpenSegment {
    let SegmentHeader {
        index,
        first_position,
        ..
    } = segment.header;
    OpenSegment {
        index,
        first_position,
        salt: segment.header.salt(),
    }
}

/// A try before this one may have got as far as an empty segment.
fn remove_unused(path: &PathBuf) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() <= SEGMENT_HEADER_BYTES as u64 => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Does slow work on a thread of its own, and sends its outcome. An outcome comes in any case: a shard
/// that waits for one serves nobody.
fn spawn<T: Send + 'static>(
    post: Post,
    letter: impl FnOnce(Result<T, RebuildError>) -> Letter + Copy + Send + 'static,
    work: impl FnOnce() -> Result<T, RebuildError> + Send + 'static,
) {
    let own_post = post.clone();
    let spawned = thread::Builder::new()
        .name("etherply-log".to_owned())
        .spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            post.send(letter(outcome.unwrap_or(Err(RebuildError::Fault))));
        });
    if let Err(error) = spawned {
        own_post.send(letter(Err(RebuildError::System(error))));
    }
}

/// Deals the ops of a log out to the shards that own their workspaces now.
pub struct Deal {
    shards: u32,
    hash_seed: u64,
    only: Option<u32>,
    workspaces: HashMap<String, Workspace, FixedState>,
}

impl Deal {
    /// For all shards, or for one only.
    #[must_use]
    pub fn new(shards: u32, hash_seed: u64, only: Option<u32>) -> Self {
        let workspaces = HashMap::with_hasher(FixedState::with_seed(hash_seed));
        Self {
            shards,
            hash_seed,
            only,
            workspaces,
        }
    }

    /// Takes an op.
    pub fn visit(&mut self, op: &Op<'_>) {
        if self
            .only
            .is_some_and(|only| shard_of(op.workspace, self.shards) != only)
        {
            return;
        }
        let Self {
            workspaces,
            hash_seed,
            ..
        } = self;
        // Only a workspace that is met for the first time costs a copy of its id.
        let workspace = workspaces
            .entry_ref(op.workspace)
            .or_insert_with(|| Workspace::new(op.workspace, *hash_seed));
        workspace.restore(op.key, op.value, op.timestamp, op.seq);
    }

    /// The workspaces of each shard.
    #[must_use]
    pub fn finish(self) -> Vec<Vec<Workspace>> {
        let mut dealt: Vec<Vec<Workspace>> = (0..self.shards).map(|_| Vec::new()).collect();
        for (id, mut workspace) in self.workspaces {
            workspace.finish_restore();
            dealt[shard_of(&id, self.shards) as usize].push(workspace);
        }
        dealt
    }
}
