//! The data directory: locking, formats, damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::tempdir;

use super::*;
use crate::log::mortal_disk::MortalDisk;
use crate::log::position::LogPosition;
use crate::log::record::SegmentHeader;
use crate::log::segment;

#[test]
fn a_directory_is_created_with_its_parents_and_keeps_its_epoch() {
    let root = tempdir().unwrap();
    let path = root.path().join("a/b/data");
    let first = DataDirectory::open(&path).unwrap();
    let epoch = first.epoch();
    assert_ne!(epoch, [0; 16]);
    assert_eq!(first.path(), path);
    drop(first);
    // Files that a crash leaves behind in the middle of an open do no harm.
    fs::write(path.join(META_NEW), "{").unwrap();
    fs::write(path.join(PROBE), "").unwrap();
    assert_eq!(DataDirectory::open(&path).unwrap().epoch(), epoch);
    let other = DataDirectory::open(root.path().join("other")).unwrap();
    assert_ne!(other.epoch(), epoch);
}

fn mode(path: &Path) -> u32 {
    HostDisk.mode(path).unwrap()
}

#[test]
fn new_files_are_private_and_existing_ones_keep_their_mode() {
    let root = tempdir().unwrap();
    let path = root.path().join("parent/data");
    let directory = DataDirectory::open(&path).unwrap();
    let header = SegmentHeader::new(0, directory.epoch(), 1, LogPosition::START);
    let folder = directory.shard_path(0);
    let segment = segment::create(&HostDisk, &folder, header, 0).unwrap();
    for folder in [path.parent().unwrap(), &path, &folder] {
        assert_eq!(mode(folder), 0o700, "{}", folder.display());
    }
    for file in [path.join(LOCK), path.join(META), segment.path] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    assert_eq!(directory.public_mode(), None);
    drop(directory);
    for (before, is_public) in [
        (0o755, true),
        (0o711, true),
        (0o777, true),
        (0o2775, true),
        (0o770, false),
        (0o750, false),
        (0o700, false),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
        let directory = DataDirectory::open(&path).unwrap();
        assert_eq!(mode(&path), before);
        assert_eq!(
            directory.public_mode(),
            is_public.then_some(before),
            "{before:o}"
        );
    }
}

#[test]
fn a_deleted_lock_file_does_not_let_another_server_in() {
    let root = tempdir().unwrap();
    let first = DataDirectory::open(root.path()).unwrap();
    assert!(first.is_lock_linked().unwrap() && first.is_lock_in_place().unwrap());
    fs::remove_file(root.path().join(LOCK)).unwrap();
    assert!(!first.is_lock_linked().unwrap() && !first.is_lock_in_place().unwrap());
    let message = DataDirectory::open(root.path()).unwrap_err().to_string();
    assert!(message.contains("(pid unknown)"), "{message}");
    let message = DataDirectory::open_existing(HostDisk, root.path().to_owned());
    assert!(matches!(message, Err(DirectoryError::InUse { .. })));
    assert!(matches!(
        lock_damaged(&HostDisk, root.path()),
        Err(DirectoryError::InUse { .. })
    ));
    assert!(!root.path().join(LOCK).exists(), "the file was changed");
    // An older server creates a new one.
    fs::write(root.path().join(LOCK), "").unwrap();
    assert!(!first.is_lock_in_place().unwrap());
    drop(first);
    let next = DataDirectory::open(root.path()).unwrap();
    let elsewhere = root.path().with_extension("elsewhere");
    fs::rename(root.path(), &elsewhere).unwrap();
    assert!(next.is_lock_linked().unwrap() && !next.is_lock_in_place().unwrap());
    fs::rename(&elsewhere, root.path()).unwrap();
    assert!(next.is_lock_in_place().unwrap());
}

#[test]
fn a_second_open_names_the_lock_holder_and_changes_nothing() {
    let root = tempdir().unwrap();
    let first = DataDirectory::open(root.path()).unwrap();
    for _ in 0..2 {
        let message = DataDirectory::open(root.path()).unwrap_err().to_string();
        let expected = format!(
            "data directory {} is in use by another server (pid {}): \
             stop it, or pick another with --data-dir",
            root.path().display(),
            std::process::id()
        );
        assert_eq!(message, expected);
    }
    fs::write(root.path().join(LOCK), "not a pid").unwrap();
    let message = DataDirectory::open(root.path()).unwrap_err().to_string();
    assert!(message.contains("(pid unknown)"), "{message}");
    drop(first);
    DataDirectory::open(root.path()).unwrap();
}

#[test]
fn an_invalid_meta_file_is_reported() {
    let epoch = "00112233445566778899aabbccddeeff";
    let cases = [
        ("", "is damaged"),
        ("{", "is damaged"),
        (
            "{\"epoch\":1}",
            "is damaged (missing field `format_version`",
        ),
        (
            "{\"format_version\":0}",
            "is damaged (format_version is 0, which is not a known version)",
        ),
        (
            "{\"format_version\":1}",
            "is damaged (missing field `epoch`",
        ),
        (
            "{\"format_version\":1,\"epoch\":\"+0112233445566778899aabbccddeeff\"}",
            "32 hexadecimal digits",
        ),
        (
            "{\"format_version\":2}",
            "is damaged (missing field `epoch`",
        ),
        (
            "{\"format_version\":3}",
            "has a newer format (3; this server reads 2): start the newer server",
        ),
        (
            "{\"format_version\":65537,\"epoch\":[1]}",
            "has a newer format (65537; this server reads 2)",
        ),
    ];
    let root = tempdir().unwrap();
    for (text, expected) in cases {
        fs::write(root.path().join(META), text).unwrap();
        let message = DataDirectory::open(root.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
        assert_eq!(
            fs::read_to_string(root.path().join(META)).unwrap(),
            text,
            "the file changed"
        );
    }
    let text = format!("{{\"format_version\":1,\"epoch\":\"{epoch}\"}}");
    fs::write(root.path().join(META), text).unwrap();
    let directory = DataDirectory::open(root.path()).unwrap();
    assert_eq!(directory.epoch()[..3], [0x00, 0x11, 0x22]);
}

#[test]
fn a_log_that_lost_its_meta_file_gets_no_new_epoch() {
    let root = tempdir().unwrap();
    drop(DataDirectory::open(root.path()).unwrap());
    fs::create_dir(root.path().join("shard-02")).unwrap();
    fs::remove_file(root.path().join(META)).unwrap();
    let message = DataDirectory::open(root.path()).unwrap_err().to_string();
    assert!(
        message.contains("meta.json is damaged (it is missing, but shard-02 exists)"),
        "{message}"
    );
    assert!(!root.path().join(META).exists());
}

#[test]
fn the_recorded_number_of_shards_never_decreases() {
    let root = tempdir().unwrap();
    for (shards, expected) in [(0, 0), (2, 2), (1, 2), (3, 3)] {
        let directory = DataDirectory::open(root.path()).unwrap();
        let epoch = directory.epoch();
        directory.note_shards(shards).unwrap();
        drop(directory);
        let read = identity(&HostDisk, root.path()).unwrap();
        assert_eq!((read.epoch, read.shards_begun), (epoch, expected));
    }
    let text = concat!(
        r#"{"format_version":1,"epoch":"00112233445566778899aabbccddeeff","#,
        r#""shards_begun":1025}"#
    );
    fs::write(root.path().join(META), text).unwrap();
    let message = DataDirectory::open(root.path()).unwrap_err().to_string();
    assert!(
        message.contains("shards_begun is 1025, but the maximum is 1024"),
        "{message}"
    );
}

#[test]
fn only_folders_with_a_shard_name_are_shards() {
    let root = tempdir().unwrap();
    let directory = DataDirectory::open(root.path()).unwrap();
    assert_eq!(directory.shards().unwrap(), [0; 0]);
    for name in [
        "shard-10",
        "shard-02",
        "shard-123",
        "shard-2",
        "shard-002",
        "shard-+2",
        "shard-03.aside",
    ] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    fs::write(root.path().join("shard-04"), "a file").unwrap();
    assert_eq!(directory.shards().unwrap(), [2, 10, 123]);
    assert_eq!(directory.shard_path(2), root.path().join("shard-02"));
    assert_eq!(directory.shard_path(123), root.path().join("shard-123"));
}

#[test]
fn a_path_through_a_file_cannot_be_created() {
    let root = tempdir().unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    for path in ["file", "file/data"] {
        let error = DataDirectory::open(root.path().join(path)).unwrap_err();
        assert!(
            matches!(error, DirectoryError::NotAFolder { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("is not a folder"), "{error}");
    }
}

#[test]
fn a_folder_without_write_access_is_reported() {
    if rustix::process::geteuid().is_root() {
        eprintln!("not tested: root may write everywhere");
        return;
    }
    let root = tempdir().unwrap();
    for lock_is_there in [false, true] {
        let path = root.path().join(format!("data-{lock_is_there}"));
        fs::create_dir(&path).unwrap();
        if lock_is_there {
            fs::write(path.join(LOCK), "").unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
        let message = DataDirectory::open(&path).unwrap_err().to_string();
        assert!(
            message.contains("is not writable (Permission denied"),
            "{message}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

const META_1: &str = concat!(
    r#"{"format_version":1,"epoch":"00112233445566778899aabbccddeeff","#,
    r#""shards_begun":3}"#
);

#[test]
fn a_format_1_directory_is_upgraded_to_format_2_and_keeps_the_rest() {
    let root = tempdir().unwrap();
    let meta = root.path().join(META);
    for is_server in [true, false] {
        fs::write(&meta, META_1).unwrap();
        let before = identity(&HostDisk, root.path()).unwrap();
        assert_eq!((before.format_version, before.shards_begun), (1, 3));
        assert_eq!(
            fs::read_to_string(&meta).unwrap(),
            META_1,
            "reading leaves it"
        );
        let open = || {
            if is_server {
                DataDirectory::open(root.path())
            } else {
                DataDirectory::open_existing(HostDisk, root.path().to_path_buf())
            }
        };
        let directory = open().unwrap();
        assert_eq!(directory.upgraded_from(), Some(1));
        let expected = Identity {
            format_version: 2,
            ..before
        };
        assert_eq!(directory.identity(), expected);
        drop(directory);
        assert_eq!(identity(&HostDisk, root.path()).unwrap(), expected);
        let text = fs::read_to_string(&meta).unwrap();
        assert_eq!(text.trim_end(), META_1.replacen('1', "2", 1));
        let directory = open().unwrap();
        assert_eq!(directory.upgraded_from(), None, "once");
        directory.note_shards(4).unwrap();
        drop(directory);
        let noted = Identity {
            shards_begun: 4,
            ..expected
        };
        assert_eq!(identity(&HostDisk, root.path()).unwrap(), noted);
    }
}

#[test]
fn a_directory_in_use_is_not_upgraded() {
    let root = tempdir().unwrap();
    let first = DataDirectory::open(root.path()).unwrap();
    // As if the first server used format 1.
    fs::write(root.path().join(META), META_1).unwrap();
    let second = DataDirectory::open(root.path());
    assert!(matches!(second, Err(DirectoryError::InUse { .. })));
    let text = fs::read_to_string(root.path().join(META)).unwrap();
    assert_eq!(text, META_1);
    drop(first);
}

#[test]
fn an_upgrade_that_is_killed_at_any_step_leaves_one_of_the_two_formats() {
    let mut found_formats = [0; 2];
    for changes in 0.. {
        let root = tempdir().unwrap();
        fs::write(root.path().join(META), META_1).unwrap();
        let path = root.path().to_path_buf();
        let opened = DataDirectory::open_on(MortalDisk::new(changes), path, [9; 16]);
        let is_done = opened.is_ok();
        drop(opened);
        let found = identity(&HostDisk, root.path()).unwrap();
        assert!(!is_done || found.format_version == 2);
        found_formats[usize::from(found.format_version) - 1] += 1;
        let directory = DataDirectory::open(root.path()).unwrap();
        let expected = Identity {
            format_version: 2,
            ..found
        };
        assert_eq!(directory.identity(), expected, "killed after {changes}");
        assert_eq!(directory.epoch()[..3], [0x00, 0x11, 0x22]);
        if is_done {
            assert!(found_formats[0] > 3, "{found_formats:?}");
            return;
        }
    }
}
