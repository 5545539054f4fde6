//! Finds the files of a damaged log, and determines which of them are its segments.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::chain::RecoveryError;
use super::super::directory::{self, Identity, shard_folder};
use super::super::disk::{Disk, DiskFile};
use super::super::record::{HeaderError, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::super::segment;
use super::recover::{self, HeaderHints};

/// A file that is a segment of this log, according to its header.
#[derive(Debug, Clone)]
pub struct FoundSegment {
    /// The current path.
    pub path: PathBuf,
    /// The correct path.
    pub home: PathBuf,
    /// The segment's header.
    pub header: SegmentHeader,
    /// Whether the header in the file is damaged. If so, `header` was reconstructed, and the
    /// batches after it prove that it is correct.
    pub is_header_lost: bool,
    /// The length of the file.
    pub file_bytes: u64,
}

/// A file that is not a segment of this log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The path.
    pub path: PathBuf,
    /// The reason why it is not a segment of this log.
    pub what: String,
}

/// The files in the folders of a log.
#[derive(Debug, Default)]
pub struct DirectoryScan {
    /// The segments of each shard, in order of their indexes. If several files claim the same
    /// index, the correctly named one comes first.
    pub folders: BTreeMap<u32, Vec<FoundSegment>>,
    /// The files that are not segments of this log.
    pub strays: Vec<Stray>,
}

/// A file that has a segment's extension.
struct ScannedFile {
    path: PathBuf,
    shard: u32,
    /// The index in its name, if the name is valid.
    index: Option<u64>,
    header: Result<SegmentHeader, HeaderError>,
    file_bytes: u64,
}

impl DirectoryScan {
    /// Reads the headers of all files that have a segment's extension. If the epoch is not known,
    /// the one whose segments have the most bytes in total is chosen, or `new_epoch` if no header
    /// is intact.
    pub fn of<D: Disk>(
        disk: &D,
        data: &Path,
        known: Option<Identity>,
        new_epoch: [u8; 16],
    ) -> Result<([u8; 16], Self), RecoveryError> {
        let (mut scan, mut entries) = (Self::default(), Vec::new());
        let shards = directory::shards(disk, data).map_err(RecoveryError::at(data))?;
        // A shard that has begun a log counts even if it has no folder.
        let shards_begun = known.map_or(0, |known| known.shards_begun);
        scan.folders
            .extend((0..shards_begun).map(|shard| (shard, Vec::new())));
        for shard in shards {
            scan.folders.insert(shard, Vec::new());
            let folder = data.join(shard_folder(shard));
            let listing = segment::scan(disk, &folder).map_err(RecoveryError::at(&folder))?;
            let named = listing.segments.into_iter();
            let named = named.map(|(index, path)| (Some(index), path));
            for (index, path) in named.chain(listing.strays.into_iter().map(|path| (None, path))) {
                if disk.is_folder(&path) {
                    scan.set_aside(&path, "it is a folder");
                } else {
                    entries.push(ScannedFile::read(disk, path, shard, index)?);
                }
            }
        }
        let known = known.map(|known| known.epoch);
        let epoch = known.or_else(|| epoch_of(&entries)).unwrap_or(new_epoch);
        scan.sort(disk, data, epoch, entries)?;
        Ok((epoch, scan))
    }

    fn set_aside(&mut self, path: &Path, what: impl Into<String>) {
        self.strays.push(Stray {
            path: path.to_path_buf(),
            what: what.into(),
        });
    }

    fn sort<D: Disk>(
        &mut self,
        disk: &D,
        data: &Path,
        epoch: [u8; 16],
        entries: Vec<ScannedFile>,
    ) -> Result<(), RecoveryError> {
        let mut headless = Vec::new();
        for entry in entries {
            match entry.header {
                Ok(header) if header.epoch != epoch => {
                    self.set_aside(&entry.path, "it belongs to another data directory");
                }
                Ok(header) if !(1..u64::MAX).contains(&header.index) => {
                    let what = format!("its index {} is invalid", header.index);
                    self.set_aside(&entry.path, what);
                }
                Ok(header) => self.add(data, entry.path, header, entry.file_bytes, false),
                Err(error) => headless.push((entry, error)),
            }
        }
        let mut bytes = Vec::new();
        for (entry, error) in headless {
            let place = self.place(&entry, epoch);
            recover::load(disk, &entry.path, &mut bytes)?;
            if let Some(header) = place.and_then(|place| recover::restore_header(&bytes, place)) {
                self.add(data, entry.path, header, entry.file_bytes, true);
            } else {
                let what = format!("{error}, and no batch in it identifies the segment");
                self.set_aside(&entry.path, what);
            }
        }
        for folder in self.folders.values_mut() {
            folder.sort_by_key(|found| (found.header.index, found.path != found.home));
        }
        Ok(())
    }

    fn add(
        &mut self,
        data: &Path,
        path: PathBuf,
        header: SegmentHeader,
        file_bytes: u64,
        is_header_lost: bool,
    ) {
        let home = data
            .join(shard_folder(header.shard))
            .join(segment::file_name(header.index));
        self.folders
            .entry(header.shard)
            .or_default()
            .push(FoundSegment {
                path,
                home,
                header,
                is_header_lost,
                file_bytes,
            });
    }

    fn place(&self, entry: &ScannedFile, epoch: [u8; 16]) -> Option<HeaderHints> {
        let index = entry.index.filter(|index| (1..u64::MAX).contains(index))?;
        let headers = || {
            let found = self.folders.get(&entry.shard).into_iter().flatten();
            found.map(|found| &found.header)
        };
        let indexes: BTreeSet<u64> = headers().map(|header| header.index).collect();
        let next = headers()
            .filter(|header| header.index > index)
            .min_by_key(|header| header.index);
        Some(HeaderHints {
            epoch,
            shard: entry.shard,
            index,
            index_before: indexes.range(..index).next_back().copied().unwrap_or(0),
            position_behind: next.map(|header| header.first_position),
        })
    }
}

impl ScannedFile {
    fn read<D: Disk>(
        disk: &D,
        path: PathBuf,
        shard: u32,
        index: Option<u64>,
    ) -> Result<Self, RecoveryError> {
        let file = disk.open(&path).map_err(RecoveryError::at(&path))?;
        let file_bytes = file.bytes().map_err(RecoveryError::at(&path))?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        // A header that cannot be read counts as damaged.
        let count = file.read_full_at(&mut bytes, 0).unwrap_or(0);
        let header = SegmentHeader::decode(&bytes[..count]);
        if let Err(source @ HeaderError::Version(_)) = header {
            return Err(RecoveryError::Newer { path, source });
        }
        Ok(Self {
            path,
            shard,
            index,
            header,
            file_bytes,
        })
    }
}

fn epoch_of(entries: &[ScannedFile]) -> Option<[u8; 16]> {
    let mut bytes: BTreeMap<[u8; 16], u64> = BTreeMap::new();
    for entry in entries {
        if let Ok(header) = entry.header {
            *bytes.entry(header.epoch).or_default() += entry.file_bytes;
        }
    }
    let most = bytes.into_iter().max_by_key(|&(_, bytes)| bytes);
    most.map(|(epoch, _)| epoch)
}
