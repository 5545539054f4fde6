//! The files of one shard's log, and the slow work on them: a thread of its own creates segments and
//! reads a shard's state back, so that the shard's loop never waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

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

    /// Makes a new segment the open one. Nothing of the one before may be in flight.
    pub fn replace(&mut self, segment: Segment) -> OpenSegment {
        self.sources.push(segment.path.clone());
        self.segment = segment;
        self.is_sync_lost = false;
        self.open_segment()
    }

    /// Creates the next segment on a thread of its own; its outcome comes as a letter.
    pub fn create_next(&self, index: u64, first_position: u64, post: Post) {
        let folder = self.directory.shard_path(self.shard);
        let header = SegmentHeader {
            index,
            first_position,
            ..self.segment.header
        };
        spawn(move || post.send(Letter::SegmentCreated(segment::create(&folder, header, 0))));
    }

    /// Creates the segment behind the failed one and reads the shard's state back, on a thread of its
    /// own; its outcome comes as a letter. The failed file is not written any more: it ends for its
    /// readers where the next segment says that it begins.
    pub fn rebuild(&mut self, end: End, post: Post) {
        let folder = self.directory.shard_path(self.shard);
        let path = folder.join(segment::file_name(end.index + 1));
        let first_position = self.kept_position(end);
        let header = SegmentHeader {
            index: end.index + 1,
            first_position,
            ..self.segment.header
        };
        let mut sources = self.sources.clone();
        sources.push(path.clone());
        let (shard, shards, hash_seed) = (self.shard, self.shards, self.hash_seed);
        spawn(move || {
            let rebuild = || {
                let at = |source| RebuildError::Segment {
                    path: path.clone(),
                    source,
                };
                remove_unused(&path).map_err(at)?;
                // The room on the disk is claimed first: a shard that serves for a moment and fails
                // again would be worse than one that waits.
                let segment =
                    segment::create(&folder, header, SEGMENT_RESERVE_BYTES).map_err(at)?;
                let mut deal = Deal::new(shards, hash_seed, Some(shard));
                recovery::replay(&sources, &mut |op| deal.visit(op))?;
                Ok((segment, deal.finish().swap_remove(shard as usize)))
            };
            post.send(Letter::Rebuilt(rebuild()));
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

fn spawn(work: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .name("etherply-log".to_owned())
        .spawn(work)
        .expect("the system has a thread to spare for the log");
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
