//! Segment files: creating, listing, truncating.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tempfile::tempdir;

use super::super::disk::HostDisk;
use super::super::position::LogPosition;
use super::super::record::SEGMENT_HEADER_BYTES;
use super::*;

fn header(index: u64) -> SegmentHeader {
    SegmentHeader::new(0, [9; 16], index, LogPosition::START)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = HostDisk
        .names(folder)
        .unwrap()
        .into_iter()
        .map(|name| name.into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_segment_is_created_with_its_folder_and_its_header() {
    let data = tempdir().unwrap();
    let folder = data.path().join("shard-00");
    let segment = create(&HostDisk, &folder, header(1), 0).unwrap();
    assert_eq!(segment.path, folder.join("0000000001.aof"));
    assert_eq!(fs::read(&segment.path).unwrap(), header(1).encode());
    assert_eq!(names(&folder), ["0000000001.aof"]);
}

#[test]
fn disk_space_is_reserved_beyond_the_length_and_released_by_a_cut() {
    let data = tempdir().unwrap();
    let segment = create(&HostDisk, &data.path().join("shard-00"), header(1), 1 << 20).unwrap();
    let reserved = segment.file.metadata().unwrap();
    assert_eq!(reserved.len(), SEGMENT_HEADER_BYTES as u64);
    cut(&HostDisk, &segment.path, reserved.len()).unwrap();
    let after = segment.file.metadata().unwrap();
    assert_eq!(after.len(), reserved.len());
    if reserved.blocks() * 512 >= 1 << 20 {
        assert!(after.blocks() < reserved.blocks());
    } else {
        eprintln!("not tested: this file system reserves nothing");
    }
}

#[test]
fn a_failed_create_leaves_nothing_and_replaces_nothing() {
    let data = tempdir().unwrap();
    let folder = data.path().join("shard-00");
    // No disk is this large, and no file system allows such a file.
    create(&HostDisk, &folder, header(1), u64::MAX / 2).unwrap_err();
    assert_eq!(names(&folder), [""; 0]);

    let segment = create(&HostDisk, &folder, header(1), 0).unwrap();
    segment
        .file
        .write_all_at(b"ops", SEGMENT_HEADER_BYTES as u64)
        .unwrap();
    let error = create(&HostDisk, &folder, header(1), 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(fs::read(&segment.path).unwrap().ends_with(b"ops"));
    assert_eq!(names(&folder), ["0000000001.aof"]);

    // A file that a crash left under the new name does no harm.
    fs::write(folder.join("0000000002.aof.new"), [1; 1000]).unwrap();
    let segment = create(&HostDisk, &folder, header(2), 0).unwrap();
    assert_eq!(fs::read(&segment.path).unwrap(), header(2).encode());

    create(
        &HostDisk,
        &data.path().join("missing/shard-00"),
        header(1),
        0,
    )
    .unwrap_err();
}

#[test]
fn the_list_is_in_order_and_reports_doubtful_names() {
    let data = tempdir().unwrap();
    for name in [
        "10000000000.aof",
        "0000000002.aof",
        "0000000010.aof",
        "0000000003.aof.new",
        "note",
        "1.aof.bad",
    ] {
        fs::write(data.path().join(name), "").unwrap();
    }
    sweep(&HostDisk, data.path()).unwrap();
    let indexes: Vec<u64> = list(&HostDisk, data.path())
        .unwrap()
        .into_iter()
        .map(|(index, _)| index)
        .collect();
    assert_eq!(indexes, [2, 10, 10_000_000_000]);
    assert!(!names(data.path()).contains(&"0000000003.aof.new".to_owned()));
    for name in ["1.aof", "+000000001.aof", "x.aof", "00000000001.aof"] {
        let path = data.path().join(name);
        fs::write(&path, "").unwrap();
        assert_eq!(
            list(&HostDisk, data.path()).unwrap_err().kind(),
            io::ErrorKind::InvalidData,
            "{name}"
        );
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_cut_never_lengthens_a_file() {
    let data = tempdir().unwrap();
    let path = data.path().join("0000000001.aof");
    fs::write(&path, [7; 100]).unwrap();
    cut(&HostDisk, &path, 60).unwrap();
    cut(&HostDisk, &path, 60).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [7; 60]);
    assert_eq!(
        cut(&HostDisk, &path, 61).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(fs::read(&path).unwrap(), [7; 60]);
}
