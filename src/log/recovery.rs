//! Reading the log back: at the start of the server, and when a shard rebuilds itself.
//!
//! Here the rules that [`super::record`] argues meet the files. Each shard folder is a chain of segments: indexes without a
//! gap from [`FIRST_INDEX`], and each first position is the end of the segment before. Only the last of a chain may have a
//! torn tail. Everything is read and judged before anything is cut, so a damaged log is left as it was found.
//!
//! An op that a start shows to a client must be durable, also where the process before was killed between a write and its
//! sync, or had a sync fail and left pages in the cache that the disk does not hold. So a last segment is synced, dropped from
//! the cache and then read: what is read is what the disk has.
//!
//! On any error the ops that were visited so far are worth nothing: they are to be dropped.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::Advice;
use thiserror::Error;

use super::directory::{DataDirectory, shard_folder};
use super::record::{
    FaultKind, HeaderError, Op, Reader, SEGMENT_HEADER_BYTES, SegmentHeader, damage_behind,
};
use super::segment;

#[cfg(test)]
mod tests;

/// The index of the first segment of every shard; its first position is 0.
pub const FIRST_INDEX: u64 = 1;

/// Where the next segment of a shard's folder begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The shard.
    pub shard: u32,
    /// The next segment's index.
    pub next_index: u64,
    /// The next segment's first position.
    pub next_position: u64,
}

impl Tail {
    /// Of a shard that has no segment yet.
    #[must_use]
    pub fn first(shard: u32) -> Self {
        Self {
            shard,
            next_index: FIRST_INDEX,
            next_position: 0,
        }
    }
}

/// A torn tail that was cut off: what a crash left of writes that nothing had synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// Its length now.
    pub offset: u64,
    /// How much was cut off.
    pub bytes: u64,
}

/// What a recovery read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One for each shard folder there is, in order.
    pub tails: Vec<Tail>,
    /// The tails that were cut off.
    pub torn: Vec<Torn>,
    /// All segments that were read, in order.
    pub segments: Vec<PathBuf>,
    /// The ops that were visited.
    pub ops: u64,
    /// The length of all segments, after the cuts.
    pub bytes: u64,
}

impl Report {
    /// Where the next segment of `shard` begins, also when it has no folder yet.
    #[must_use]
    pub fn tail(&self, shard: u32) -> Tail {
        self.tails
            .iter()
            .copied()
            .find(|tail| tail.shard == shard)
            .unwrap_or(Tail::first(shard))
    }
}

/// Why a log cannot be read.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// Bytes that were on disk are lost or altered.
    #[error("{path} is damaged at byte {offset}: {what}; run: etherply log repair --data-dir {}", data_path(.path).display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// The first bad byte, or the begin of the record or header that it is in.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A segment that a newer server wrote.
    #[error("{path}: {source}; start the newer server")]
    Newer {
        /// The segment.
        path: PathBuf,
        /// Which version it has.
        source: HeaderError,
    },
    /// The system failed to read, sync or cut.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads every op of every shard folder, whatever the number of shards that wrote them, in file order, and cuts the torn
/// tails off the last segments. The op order across folders is the caller's to make, by timestamp and seq.
pub fn recover(
    directory: &DataDirectory,
    visit: &mut dyn FnMut(&Op<'_>),
) -> Result<Report, RecoveryError> {
    let mut report = Report::default();
    let mut lasts = Vec::new();
    let mut bytes = Vec::new();
    for shard in directory.shards().map_err(at(directory.path()))? {
        let folder = directory.shard_path(shard);
        segment::sweep(&folder).map_err(at(&folder))?;
        let segments = segment::list(&folder).map_err(at(&folder))?;
        let mut last: Option<Extent> = None;
        for (place, (_, path)) in segments.iter().enumerate() {
            let next = segments.get(place + 1).map(|(_, next)| next.as_path());
            let header = load(path, next, &mut bytes)?;
            if header.epoch != directory.epoch() {
                return Err(damaged(path, 16, "it belongs to another data directory"));
            }
            match &last {
                None => check_first(path, &header)?,
                Some(before) => check_next(before, &header)?,
            }
            let extent = read_ops(path, header, &bytes, visit)?;
            report.ops += extent.ops;
            report.bytes += extent.whole_bytes;
            report.segments.push(path.clone());
            last = Some(extent);
        }
        report
            .tails
            .push(last.as_ref().map_or(Tail::first(shard), Extent::tail));
        lasts.extend(last);
    }
    for last in lasts {
        // Also where nothing is torn: the cut gives back the disk that the segment had reserved.
        segment::cut(&last.path, last.whole_bytes).map_err(at(&last.path))?;
        if last.file_bytes > last.whole_bytes {
            let bytes = last.file_bytes - last.whole_bytes;
            report.torn.push(Torn {
                path: last.path,
                offset: last.whole_bytes,
                bytes,
            });
        }
    }
    Ok(report)
}

/// Reads closed segments again, in the order of `paths`, where the segments of a shard stand together and in order: a shard
/// rebuilds itself while others run. Returns the number of ops. A closed segment has no torn tail before the place where the next
/// one begins, so that is damage here; it may end between two records, where a recovery has cut it.
pub fn replay(paths: &[PathBuf], visit: &mut dyn FnMut(&Op<'_>)) -> Result<u64, RecoveryError> {
    let mut ops = 0;
    let mut bytes = Vec::new();
    let mut last: Option<Extent> = None;
    for (place, path) in paths.iter().enumerate() {
        let next = paths
            .get(place + 1)
            .filter(|next| next.parent() == path.parent());
        let header = load(path, next.map(PathBuf::as_path), &mut bytes)?;
        if let Some(before) = &last {
            if before.header.epoch != header.epoch {
                return Err(damaged(path, 16, "it belongs to another data directory"));
            }
            if before.header.shard == header.shard {
                check_next(before, &header)?;
            }
        }
        let extent = read_ops(path, header, &bytes, visit)?;
        extent.check_closed()?;
        ops += extent.ops;
        last = Some(extent);
    }
    Ok(ops)
}

/// A segment that was read up to its end or to its first fault.
struct Extent {
    path: PathBuf,
    header: SegmentHeader,
    ops: u64,
    file_bytes: u64,
    /// All before it is valid; what is behind it is a torn tail, if this is the last segment.
    whole_bytes: u64,
    /// Why the reading ended before the end. [`FaultKind::Cut`]: with nothing behind it.
    fault: Option<FaultKind>,
}

impl Extent {
    fn tail(&self) -> Tail {
        Tail {
            shard: self.header.shard,
            next_index: self.header.index + 1,
            next_position: self.header.position(self.whole_bytes),
        }
    }

    fn check_closed(&self) -> Result<(), RecoveryError> {
        match self.fault {
            None | Some(FaultKind::Cut) => Ok(()),
            Some(fault) => {
                let what = format!("{fault}, and all of a closed segment was on disk");
                Err(damaged(&self.path, self.whole_bytes, what))
            }
        }
    }
}

/// Reads a segment into `bytes` and judges its header. A segment ends where the `next` one begins: what a failed write left
/// behind that was shown to nobody, and cutting a file on a disk that fails may fail without a word. The last segment may
/// hold what was never synced, so it is made to hold what the disk has.
fn load(
    path: &Path,
    next: Option<&Path>,
    bytes: &mut Vec<u8>,
) -> Result<SegmentHeader, RecoveryError> {
    let settle = next.is_none();
    bytes.clear();
    File::open(path)
        .and_then(|mut file| {
            if settle {
                file.sync_all()?;
                // Advice: where it is not taken, the sync still holds for all but a disk that failed one before.
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            }
            file.read_to_end(bytes)
        })
        .map_err(at(path))?;
    let header = SegmentHeader::decode(bytes).map_err(|error| match error {
        HeaderError::Version(_) => RecoveryError::Newer {
            path: path.to_path_buf(),
            source: error,
        },
        _ => damaged(path, 0, error.to_string()),
    })?;
    if !path
        .ends_with(Path::new(&shard_folder(header.shard)).join(segment::file_name(header.index)))
    {
        let what = format!(
            "its header tells segment {} of shard {}",
            header.index, header.shard
        );
        return Err(damaged(path, 0, what));
    }
    if header.index == u64::MAX {
        return Err(damaged(path, 32, "no index can follow this one"));
    }
    if let Some(end) = next
        .and_then(first_position)
        .and_then(|end| header.offset(end))
    {
        bytes.truncate(end);
    }
    Ok(header)
}

/// Where a segment begins, if its header can be read; why it cannot is told when its turn comes.
fn first_position(path: &Path) -> Option<u64> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut header))
        .ok()?;
    SegmentHeader::decode(&header)
        .ok()
        .map(|header| header.first_position)
}

fn check_first(path: &Path, header: &SegmentHeader) -> Result<(), RecoveryError> {
    if header.index != FIRST_INDEX {
        let missing = path.with_file_name(segment::file_name(FIRST_INDEX));
        return Err(damaged(&missing, 0, "the segment is missing"));
    }
    if header.first_position != 0 {
        return Err(damaged(path, 40, "the log does not begin at position 0"));
    }
    Ok(())
}

fn check_next(before: &Extent, header: &SegmentHeader) -> Result<(), RecoveryError> {
    before.check_closed()?;
    let Tail {
        next_index,
        next_position,
        ..
    } = before.tail();
    if header.index != next_index {
        let missing = before.path.with_file_name(segment::file_name(next_index));
        return Err(damaged(&missing, 0, "the segment is missing"));
    }
    if header.first_position != next_position {
        let what = format!(
            "the segment ends at log position {next_position}, and the next one begins at {}",
            header.first_position
        );
        return Err(damaged(&before.path, before.whole_bytes, what));
    }
    Ok(())
}

/// Visits the ops of a loaded segment. A fault that no crash can leave is damage in any segment; whether a torn tail is
/// damage too hangs on the segment's place, which the caller knows.
fn read_ops(
    path: &Path,
    header: SegmentHeader,
    bytes: &[u8],
    visit: &mut dyn FnMut(&Op<'_>),
) -> Result<Extent, RecoveryError> {
    let mut ops = 0;
    let mut fault_kind = None;
    let mut reader = Reader::new(&header, bytes);
    for item in reader.by_ref() {
        match item {
            Ok(op) => {
                visit(&op);
                ops += 1;
            }
            Err(fault) => {
                let offset = fault.offset as u64;
                if let FaultKind::Content(_) = fault.kind {
                    return Err(damaged(path, offset, fault.to_string()));
                }
                if let Some(proof) = damage_behind(&header, bytes, fault.offset) {
                    let what = format!(
                        "{fault}, and the batch at byte {proof} tells that this was on disk"
                    );
                    return Err(damaged(path, offset, what));
                }
                fault_kind = Some(fault.kind);
            }
        }
    }
    Ok(Extent {
        path: path.to_path_buf(),
        header,
        ops,
        file_bytes: bytes.len() as u64,
        whole_bytes: reader.offset() as u64,
        fault: fault_kind,
    })
}

fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> RecoveryError {
    RecoveryError::Damaged {
        path: path.to_path_buf(),
        offset,
        what: what.into(),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RecoveryError {
    move |source| RecoveryError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// The data directory of a segment.
fn data_path(segment: &Path) -> &Path {
    segment.parent().and_then(Path::parent).unwrap_or(segment)
}
