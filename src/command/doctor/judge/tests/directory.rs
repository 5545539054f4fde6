//! The data directory.

use super::{MIB, check_rows, finding, good, mount, times};
use crate::command::doctor::finding::Severity;

#[test]
fn the_data_directory() {
    check_rows(
        "data directory",
        &[
            (
                |f| f.directory.server = Some("4711".into()),
                Severity::Ok,
                &["pid 4711"],
            ),
            (
                |f| f.directory.is_there = false,
                Severity::Ok,
                &["can be created in /var/lib"],
            ),
            (
                |f| {
                    f.directory.sync = None;
                    f.directory.fault = Some("read-only".into());
                },
                Severity::Fail,
                &[
                    "/var/lib/etherply: read-only",
                    "pick another with --data-dir",
                ],
            ),
            (
                |f| {
                    f.directory.fault = Some("full".into());
                    f.directory.fault_remedy = Some("make room");
                },
                Severity::Fail,
                &["full", "make room, or pick another with --data-dir"],
            ),
            (
                |f| f.directory.other_file = Some("holiday.jpg".into()),
                Severity::Fail,
                &["holiday.jpg", "an empty folder"],
            ),
        ],
    );
}

#[test]
fn the_file_system() {
    check_rows(
        "file system",
        &[
            (|_| {}, Severity::Ok, &["ext4 on /var", "write back"]),
            (
                |f| f.directory.mount = Some(mount("xfs", &["rw", "discard"])),
                Severity::Ok,
                &["xfs"],
            ),
            (
                |f| f.directory.mount = Some(mount("ext4", &["nobarrier"])),
                Severity::Warn,
                &["nobarrier", "power cut"],
            ),
            (
                |f| f.directory.mount = Some(mount("tmpfs", &["rw"])),
                Severity::Warn,
                &["memory"],
            ),
            (
                |f| f.directory.mount = Some(mount("nfs4", &["rw"])),
                Severity::Warn,
                &["not a local disk"],
            ),
            (
                |f| f.directory.mount = Some(mount("fuse.sshfs", &["rw"])),
                Severity::Warn,
                &["fuse.sshfs"],
            ),
            (
                |f| f.directory.mount = Some(mount("overlay", &["rw"])),
                Severity::Warn,
                &["tuning/containers.md"],
            ),
        ],
    );
    check_rows(
        "discard",
        &[(
            |f| f.directory.mount = Some(mount("ext4", &["rw", "discard"])),
            Severity::Warn,
            &["fstrim.timer"],
        )],
    );
}

#[test]
fn free_space() {
    check_rows(
        "free space",
        &[
            (
                |f| f.directory.free_bytes = Some(MIB - 1),
                Severity::Fail,
                &["1024.00 KiB"],
            ),
            (
                |f| f.directory.free_bytes = Some(MIB),
                Severity::Warn,
                &["1.00 MiB", "32.00 MiB per shard"],
            ),
            (
                |f| f.directory.free_bytes = Some(1024 * MIB),
                Severity::Ok,
                &["1.00 GiB"],
            ),
        ],
    );
}

#[test]
fn sync_duration() {
    check_rows(
        "fdatasync",
        &[
            (
                |_| {},
                Severity::Ok,
                &["p50 0.18 ms, p99 0.60 ms, max 1.20 ms", "400"],
            ),
            (
                |f| f.directory.sync = Some(times(3, 9)),
                Severity::Warn,
                &["faster than any disk"],
            ),
            (
                |f| f.directory.sync = Some(times(5_000, 50_000)),
                Severity::Ok,
                &[],
            ),
            (
                |f| f.directory.sync = Some(times(5_001, 9_000)),
                Severity::Warn,
                &["tuning/disk.md"],
            ),
            (
                |f| f.directory.sync = Some(times(200, 50_001)),
                Severity::Warn,
                &["50.00 ms"],
            ),
            (
                |f| {
                    f.directory.sync = Some(times(9_000, 20_000));
                    f.directory.is_rotational = Some(true);
                },
                Severity::Warn,
                &["spinning disk", "--durability interval"],
            ),
            (
                |f| {
                    f.directory.sync = Some(times(9_000, 20_000));
                    f.processor.load_percent = Some(801);
                },
                Severity::Warn,
                &["the cores were busy", "idle", "tuning/disk.md"],
            ),
            (
                |f| f.processor.load_percent = Some(801),
                Severity::Ok,
                &["p50 0.18 ms", "the cores were busy"],
            ),
        ],
    );
    let mut facts = good();
    facts.directory.sync = Some(times(3, 9));
    facts.directory.mount = Some(mount("tmpfs", &["rw"]));
    let idle = finding(&good(), "fdatasync").found;
    assert!(!idle.contains("busy"), "{idle}");
    assert_eq!(
        finding(&facts, "fdatasync").verdict,
        Severity::Ok,
        "tmpfs is not reported exactly once"
    );
}
