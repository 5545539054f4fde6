//! The data directory as files: the segments, and what a crash or a bad disk does to them.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The segments (`shard-NN/*.aof`) in the order of their names.
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
    assert!(!found.is_empty(), "{} has segments", data_dir.display());
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the data directory can be read");
    entries
        .map(|entry| entry.expect("the data directory can be read").path())
        .collect()
}

/// The last segment that has this text in it, and where.
pub fn find(data_dir: &Path, text: &str) -> (PathBuf, usize) {
    let mut hits = segments(data_dir).into_iter().rev().filter_map(|path| {
        let bytes = std::fs::read(&path).expect("a segment can be read");
        let at = bytes
            .windows(text.len())
            .position(|window| window == text.as_bytes())?;
        Some((path, at))
    });
    hits.next()
        .unwrap_or_else(|| panic!("some segment has {text:?} in it"))
}

pub fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new()
        .append(true)
        .open(path)
        .expect("a segment can be opened");
    file.write_all(bytes).expect("a segment can be written");
}

/// Cuts the file off at this length.
pub fn cut(path: &Path, len: usize) {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("a segment can be opened");
    file.set_len(len as u64).expect("a segment can be cut");
}

/// Turns over one bit of the byte at this offset.
pub fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).expect("a segment can be read");
    bytes[offset] ^= 1;
    std::fs::write(path, bytes).expect("a segment can be written");
}
