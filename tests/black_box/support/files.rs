//! The data directory as files: its segments, and the ways in which a crash or a bad disk alters
//! them.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Returns the paths of the segments (`shard-NN/*.aof`) in the order of their names.
pub fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for shard in entries(data_dir).iter().filter(|path| path.is_dir()) {
        found.extend(
            entries(shard)
                .into_iter()
                .filter(|path| path.extension().is_some_and(|end| end == "aof")),
        );
    }
    found.sort();
    assert!(!found.is_empty(), "{} has no segments", data_dir.display());
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the data directory can be read");
    entries
        .map(|entry| entry.expect("the data directory can be read").path())
        .collect()
}

/// Reads all files under a folder, keyed by their relative path. Returns an empty map if there is
/// no such folder.
pub fn image(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut image = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(inner) = folders.pop().filter(|inner| inner.is_dir()) {
        for path in entries(&inner) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path
                    .strip_prefix(folder)
                    .expect("the path is inside the folder");
                let bytes = std::fs::read(&path).expect("the file can be read");
                image.insert(name.to_path_buf(), bytes);
            }
        }
    }
    image
}

/// Writes the files of an [`image`] into a folder that only its owner can read, as the server does.
pub fn put_back(folder: &Path, image: &BTreeMap<PathBuf, Vec<u8>>) {
    for (name, bytes) in image {
        let path = folder.join(name);
        let parent = path.parent().expect("the path has a parent");
        let mut folders = DirBuilder::new();
        let made = folders.recursive(true).mode(0o700).create(parent);
        made.expect("the folder can be created");
        std::fs::write(path, bytes).expect("the file can be written");
    }
}

/// Returns the last segment that contains this text, and the offset of the text.
pub fn find(data_dir: &Path, text: &str) -> (PathBuf, usize) {
    let mut hits = segments(data_dir).into_iter().rev().filter_map(|path| {
        let bytes = std::fs::read(&path).expect("the segment can be read");
        let at = bytes
            .windows(text.len())
            .position(|window| window == text.as_bytes())?;
        Some((path, at))
    });
    hits.next()
        .unwrap_or_else(|| panic!("no segment contains {text:?}"))
}

pub fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new()
        .append(true)
        .open(path)
        .expect("the segment can be opened");
    file.write_all(bytes).expect("the segment can be written");
}

/// Returns the length of an undamaged segment up to the end of its last batch, without the zeros
/// that it is preallocated with.
pub fn log_len(bytes: &[u8]) -> usize {
    let magic = b"\xFFEPB";
    let last = bytes
        .windows(magic.len())
        .rposition(|window| window == magic);
    last.map_or(64, |at| {
        let payload = bytes[at + 4..at + 8].try_into().expect("four bytes");
        at + 28 + usize::try_from(u32::from_le_bytes(payload)).expect("the number is small")
    })
}

/// Truncates a segment after its last batch and appends these bytes.
pub fn append_to_log(path: &Path, bytes: &[u8]) {
    let whole = std::fs::read(path).expect("the segment can be read");
    cut(path, log_len(&whole));
    append(path, bytes);
}

/// Returns the length without the trailing zeros, which a segment is preallocated with.
pub fn written_len(bytes: &[u8]) -> usize {
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0);
    bytes.len() - zeros.count()
}

/// Truncates the file to this length.
pub fn cut(path: &Path, len: usize) {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the segment can be opened");
    file.set_len(len as u64)
        .expect("the segment can be truncated");
}

/// Flips one bit of the byte at this offset.
pub fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).expect("the segment can be read");
    bytes[offset] ^= 1;
    std::fs::write(path, bytes).expect("the segment can be written");
}
