//! Plans the repair of one folder: the changes that turn its segments into a chain again.
//!
//! A compacted segment covers indexes and positions other than its own, so it can take the place of
//! anything that is missing: a damaged segment becomes a compacted one with its intact ops, and
//! missing segments become a single compacted segment without ops. Intact segments stay as they
//! are.

use std::path::{Path, PathBuf};

use super::super::chain::{Extent, FIRST_INDEX, Link, RecoveryError};
use super::super::disk::Disk;
use super::super::position::LogPosition;
use super::super::record::{Compacted, LoggedOp, SegmentHeader};
use super::super::segment;
use super::missing::{MissingOps, SeqTracker};
use super::recover::{self, LostRange, RecoveredItem, SegmentEnd, SegmentRecovery};
use super::scan::{FoundSegment, Stray};

/// A segment that the repair rewrites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRewrite {
    /// The file.
    pub path: PathBuf,
    /// The original header, read or reconstructed.
    pub old: SegmentHeader,
    /// The length of the part that belongs to the log.
    pub old_bytes: u64,
    /// Whether no segment follows it.
    pub is_last: bool,
    /// The header of the new file.
    pub header: SegmentHeader,
    /// The reason why the segment cannot be kept as it is.
    pub what: String,
    /// The intact and the lost parts of the segment.
    pub recovery: SegmentRecovery,
}

/// A change to one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedChange {
    /// Missing segments are replaced with one without ops.
    Fill {
        /// The new file.
        path: PathBuf,
        /// The header of the new segment.
        header: SegmentHeader,
    },
    /// A damaged segment is replaced.
    Rewrite(Box<SegmentRewrite>),
}

/// A segment that has the wrong name and is renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentMove {
    /// The current path.
    pub path: PathBuf,
    /// The correct path.
    pub home: PathBuf,
}

/// The repair of one folder.
#[derive(Debug, Default)]
pub struct FolderPlan {
    /// The segments that have the wrong name.
    pub moves: Vec<SegmentMove>,
    /// The other changes, in order. They are made once all files have their correct names.
    pub changes: Vec<PlannedChange>,
    /// Files that look like segments but are not part of the chain.
    pub strays: Vec<Stray>,
    /// The segments of the repaired chain, at their current paths.
    pub segments: Vec<PlannedSegment>,
    /// The ops that are missing, by workspace.
    pub missing: Vec<MissingOps>,
    /// The greatest number of a generation in the folder, or 0 if there is none.
    pub generation_number: u64,
    /// The torn tail of the last segment, if there is one. The next start of the server cuts it
    /// off.
    pub torn: Option<LostRange>,
}

/// A segment of the repaired chain.
#[derive(Debug, Clone)]
pub struct PlannedSegment {
    /// The current path.
    pub path: PathBuf,
    /// The segment's header.
    pub header: SegmentHeader,
    /// The first index that the segment covers.
    first_index: u64,
    /// The position where the previous segment ends, or `None` if that is unknown, because some of
    /// the segments that this one replaced still exist.
    first_position: Option<LogPosition>,
    is_header_lost: bool,
    file_bytes: u64,
    home: PathBuf,
}

/// The planner for the repair of one folder.
pub struct FolderPlanner<'a, D: Disk> {
    disk: &'a D,
    folder: &'a Path,
    epoch: [u8; 16],
    shard: u32,
    plan: FolderPlan,
    tracker: SeqTracker,
    bytes: Vec<u8>,
    /// The first index that the next segment must cover.
    index: u64,
    position: LogPosition,
}

impl<'a, D: Disk> FolderPlanner<'a, D> {
    /// Returns a planner for a shard's folder.
    pub fn new(disk: &'a D, folder: &'a Path, epoch: [u8; 16], shard: u32) -> Self {
        Self {
            disk,
            folder,
            epoch,
            shard,
            plan: FolderPlan::default(),
            tracker: SeqTracker::default(),
            bytes: Vec::new(),
            index: FIRST_INDEX,
            position: LogPosition::START,
        }
    }

    /// Returns the plan. `candidates` must be in order. A shard that has begun a log but has no
    /// segment left gets one without ops. Calls `progress` with the length of each segment after
    /// reading it.
    pub fn plan(
        mut self,
        candidates: Vec<FoundSegment>,
        has_begun: bool,
        mut progress: impl FnMut(u64),
    ) -> Result<FolderPlan, RecoveryError> {
        self.plan.segments = self.select(candidates)?;
        if has_begun && self.plan.segments.is_empty() {
            let header = self.compacted(FIRST_INDEX, LogPosition::START, LogPosition::START, 0);
            let path = self.folder.join(segment::file_name(FIRST_INDEX));
            self.plan.changes.push(PlannedChange::Fill { path, header });
        }
        for at in 0..self.plan.segments.len() {
            let segment = self.plan.segments[at].clone();
            let next = self.plan.segments.get(at + 1).cloned();
            self.fill_before(&segment);
            self.settle(&segment, next.as_ref())?;
            progress(segment.file_bytes);
        }
        self.plan.generation_number = self.tracker.generation_number();
        self.plan.missing = self.tracker.finish();
        Ok(self.plan)
    }

    /// Selects the segments of the chain, omitting duplicates and segments that another one covers.
    /// A compacted segment covers others only if it is completely intact; otherwise, the segments
    /// that it was made from are preferable to what remains of it.
    fn select(
        &mut self,
        candidates: Vec<FoundSegment>,
    ) -> Result<Vec<PlannedSegment>, RecoveryError> {
        let mut single: Vec<FoundSegment> = Vec::new();
        for found in candidates {
            let index_before = single.last().map_or(0, |last| last.header.index);
            if found.header.index == index_before {
                self.set_aside(&found.path, "another file with the same index was kept");
            } else if found.header.index - index_before > u64::from(u32::MAX) {
                self.set_aside(&found.path, "its index is far beyond all others");
            } else {
                single.push(found);
            }
        }
        let mut segments: Vec<PlannedSegment> = Vec::new();
        for found in single.into_iter().rev() {
            let next_index = segments.last().map_or(u64::MAX, |next| next.first_index);
            if found.header.index >= next_index {
                // A segment with the correct name is a leftover of a compaction; the next start
                // removes it.
                if found.path != found.home {
                    self.set_aside(&found.path, "it was replaced by a compacted segment");
                }
                continue;
            }
            let first_index = if self.is_whole_compacted(&found)? {
                found.header.first_index()
            } else {
                found.header.index
            };
            segments.push(PlannedSegment {
                path: found.path,
                header: found.header,
                first_index,
                first_position: Some(found.header.first_position),
                is_header_lost: found.is_header_lost,
                file_bytes: found.file_bytes,
                home: found.home,
            });
        }
        segments.reverse();
        let mut index_before = 0;
        for segment in &mut segments {
            // A damaged segment also covers the missing ones before it.
            let first_index = segment.header.first_index().max(index_before + 1);
            if segment.first_index > first_index {
                segment.first_index = first_index;
            }
            if segment.first_index > segment.header.first_index() {
                segment.first_position = None;
            }
            index_before = segment.header.index;
        }
        Ok(segments)
    }

    fn set_aside(&mut self, path: &Path, what: &str) {
        self.plan.strays.push(Stray {
            path: path.to_path_buf(),
            what: what.to_owned(),
        });
    }

    fn is_whole_compacted(&mut self, found: &FoundSegment) -> Result<bool, RecoveryError> {
        if found.header.compacted.is_none() || found.is_header_lost {
            return Ok(false);
        }
        let link = Link {
            path: found.path.clone(),
            header: found.header,
            end_position: None,
            file_bytes: found.file_bytes,
        };
        judged(link.read(self.disk, &mut self.bytes, |_| {})).map(|outcome| outcome.is_ok())
    }

    /// Plans a segment without ops for any that are missing before `segment`.
    fn fill_before(&mut self, segment: &PlannedSegment) {
        let Some(missing) = segment.first_index.checked_sub(self.index + 1) else {
            return;
        };
        let end_position = self
            .position
            .max(segment.first_position.unwrap_or(LogPosition::START));
        let index = segment.first_index - 1;
        let header = self.compacted(index, self.position, end_position, missing);
        let path = self.folder.join(segment::file_name(index));
        self.plan.changes.push(PlannedChange::Fill { path, header });
        self.tracker.note_damage();
        self.index = segment.first_index;
        self.position = end_position;
    }

    fn compacted(
        &self,
        index: u64,
        first: LogPosition,
        end_position: LogPosition,
        replaced: u64,
    ) -> SegmentHeader {
        let replaced = u32::try_from(replaced).expect("select leaves no larger gap");
        SegmentHeader {
            compacted: Some(Compacted {
                replaced,
                end_position,
            }),
            ..SegmentHeader::new(self.shard, self.epoch, index, first)
        }
    }

    /// Decides whether a segment is kept, moved or rewritten, and adds the decision to the plan.
    fn settle(
        &mut self,
        segment: &PlannedSegment,
        next: Option<&PlannedSegment>,
    ) -> Result<(), RecoveryError> {
        if segment.path != segment.home {
            self.plan.moves.push(SegmentMove {
                path: segment.path.clone(),
                home: segment.home.clone(),
            });
        }
        let is_followed = next.is_some_and(|next| next.first_index == segment.header.index + 1);
        let next_position = next.and_then(|next| next.first_position);
        let first = segment.header.first_position;
        let link = Link {
            path: segment.path.clone(),
            header: segment.header,
            end_position: next_position.filter(|&next| is_followed && next >= first),
            file_bytes: segment.file_bytes,
        };
        let is_compacted = segment.header.compacted.is_some();
        let what = if segment.is_header_lost {
            "the segment header is damaged".to_owned()
        } else {
            let tracker = &mut self.tracker;
            let visit = |op: &LoggedOp<'_>| tracker.visit(op, is_compacted);
            match judged(link.read(self.disk, &mut self.bytes, visit))? {
                Err(what) => what,
                Ok(extent) => {
                    let Some(what) = self.unfit(segment, &extent, next) else {
                        self.keep(segment, &extent);
                        return Ok(());
                    };
                    what
                }
            }
        };
        self.rewrite(&link, segment, next, what)
    }

    /// Returns the reason why an intact segment does not fit its neighbours, or `None` if it fits.
    fn unfit(
        &self,
        segment: &PlannedSegment,
        extent: &Extent,
        next: Option<&PlannedSegment>,
    ) -> Option<String> {
        let (first, due) = (segment.header.first_position, self.position);
        if first != due {
            return Some(format!(
                "it begins at log position {first} instead of {due}"
            ));
        }
        let next = next?;
        if extent.whole_bytes < extent.file_bytes {
            // Readers of a chain accept a torn tail only in its last segment.
            let offset = extent.whole_bytes;
            return Some(format!(
                "it is not the last segment, and it is incomplete at byte {offset}"
            ));
        }
        let (end, next) = (extent.end_position, next.first_position?);
        let is_over = next >= self.position && end > next;
        is_over.then(|| format!("it ends at log position {end}, and the next one begins at {next}"))
    }

    fn keep(&mut self, segment: &PlannedSegment, extent: &Extent) {
        if extent.whole_bytes < extent.file_bytes {
            self.plan.torn = Some(LostRange {
                bytes: extent.whole_bytes..extent.file_bytes,
                what: String::new(),
                is_torn: true,
            });
        }
        self.position = extent.end_position;
        self.index = segment.header.index + 1;
    }

    fn rewrite(
        &mut self,
        link: &Link,
        segment: &PlannedSegment,
        next: Option<&PlannedSegment>,
        what: String,
    ) -> Result<(), RecoveryError> {
        let old = segment.header;
        let (is_last, next_position) = (next.is_none(), next.and_then(|next| next.first_position));
        let unreadable_end = recover::load(self.disk, &segment.path, &mut self.bytes)?;
        let end_offset = match old.compacted {
            None => link.end_position.and_then(|end| old.offset(end)),
            Some(_) => None,
        };
        if let Some(end) = end_offset {
            self.bytes.truncate(end);
        }
        let ending = SegmentEnd {
            is_last,
            may_be_filled: end_offset.is_none() && old.compacted.is_none(),
            unreadable_end,
        };
        let tracker = &mut self.tracker;
        let mut recovery = recover::recover(&old, &self.bytes, ending, |found| match found {
            RecoveredItem::Op(op) => tracker.visit(op, old.compacted.is_some()),
            RecoveredItem::Lost(lost) if !lost.is_torn => tracker.note_damage(),
            RecoveredItem::Lost(_) => {}
        });
        if let Some(end) = end_offset
            && end > self.bytes.len()
        {
            recovery.lost.push(LostRange {
                bytes: self.bytes.len() as u64..end as u64,
                what: "the file ends before them".to_owned(),
                is_torn: false,
            });
            tracker.note_damage();
        }
        let natural_end = match old.compacted {
            Some(compacted) => compacted.end_position,
            None => old.position(self.bytes.len() as u64),
        };
        let end = match (link.end_position, next_position) {
            (Some(end), _) if end >= self.position => end,
            (_, Some(next)) if next >= self.position => natural_end.clamp(self.position, next),
            _ => natural_end.max(self.position),
        };
        let replaced = old.index - self.index;
        self.plan
            .changes
            .push(PlannedChange::Rewrite(Box::new(SegmentRewrite {
                path: segment.home.clone(),
                old,
                old_bytes: self.bytes.len() as u64,
                is_last,
                header: self.compacted(old.index, self.position, end, replaced),
                what,
                recovery,
            })));
        self.position = end;
        self.index = old.index + 1;
        Ok(())
    }
}

/// Separates damage, returned as the inner error, from errors that stop a repair. Bytes that the
/// disk cannot read count as damage.
fn judged(outcome: Result<Extent, RecoveryError>) -> Result<Result<Extent, String>, RecoveryError> {
    match outcome {
        Ok(extent) => Ok(Ok(extent)),
        Err(RecoveryError::Damaged { offset, what, .. }) => {
            Ok(Err(format!("byte {offset}: {what}")))
        }
        Err(RecoveryError::Io { source, .. }) if recover::is_unreadable(&source) => {
            Ok(Err(source.to_string()))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn unreadable_bytes_are_damage_and_other_errors_stop_a_repair() {
        for (errno, is_damage) in [
            (Errno::IO, true),
            (Errno::ACCESS, false),
            (Errno::NOENT, false),
        ] {
            let error = RecoveryError::at(Path::new("a segment"))(errno.into());
            match judged(Err(error)) {
                Ok(judgement) => assert!(is_damage && judgement.is_err(), "{errno}"),
                Err(error) => {
                    assert!(
                        !is_damage && error.to_string().contains("a segment"),
                        "{errno}"
                    );
                }
            }
        }
    }
}
