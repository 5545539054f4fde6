//! The data directory, its file system and its disk.

use crate::command::doctor::facts::{Directory, Processor, SyncTimes};
use crate::command::doctor::finding::Finding;
use crate::command::text;
use crate::limits::{SEGMENT_BYTES_MIN, SEGMENT_RESERVE_BYTES};

/// They keep nothing.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// What a sync and a lock mean there is another machine's or another program's matter.
const REMOTE: [&str; 9] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "virtiofs",
    "ceph",
    "glusterfs",
    "fuse",
];
/// A sync promises nothing with these.
const LYING_OPTIONS: [&str; 2] = ["nobarrier", "barrier=0"];
/// No disk that keeps what it has taken is faster than this.
const SYNC_BELIEVED_US: u64 = 10;
/// A median over this is felt in every op of a light load.
const SYNC_SLOW_US: u64 = 5_000;
/// A tail over this is seen as a hitch.
const SYNC_TAIL_US: u64 = 50_000;
/// Where less is free, it is told: a log grows to 2.5 times what is live in it, and a compaction needs room to begin.
const FREE_ADVISED_BYTES: u64 = 1024 * 1024 * 1024;

pub fn folder(directory: &Directory) -> Finding {
    const CHECK: &str = "data directory";
    let path = directory.path.display();
    if let Some(fault) = &directory.fault {
        return Finding::fail(
            CHECK,
            format!("{path}: {fault}"),
            match directory.fault_remedy {
                Some(remedy) => format!("{remedy}, or name another with --data-dir"),
                None => "name another with --data-dir".to_owned(),
            },
        );
    }
    if let Some(name) = &directory.other_file {
        return Finding::fail(
            CHECK,
            format!("{path} has no log, and other files (such as {name})"),
            "name an empty folder, or a new one in it, with --data-dir",
        );
    }
    match &directory.server {
        Some(pid) => Finding::ok(
            CHECK,
            format!("{path} can be written; a server runs on it (pid {pid})"),
        ),
        None if directory.is_there => Finding::ok(
            CHECK,
            format!("{path} can be written, and nobody holds its lock"),
        ),
        None => Finding::ok(
            CHECK,
            format!(
                "{path} is not there; it can be made in {}",
                directory.measured_in.display()
            ),
        ),
    }
}

pub fn file_system(directory: &Directory) -> Option<Finding> {
    const CHECK: &str = "file system";
    let mount = directory.mount.as_ref()?;
    let kind = mount.file_system.as_str();
    let found = format!("{kind} on {}", mount.point.display());
    if let Some(option) = LYING_OPTIONS.into_iter().find(|option| mount.has(option)) {
        return Some(Finding::warn(
            CHECK,
            format!(
                "{found}, mounted with {option}: after a power cut, what fdatasync promised may be lost"
            ),
            "remount without it, unless the disk's cache survives a power cut: tuning/disk.md",
        ));
    }
    // `fuse.sshfs` and its like.
    let family = kind.split('.').next().unwrap_or(kind);
    Some(if IN_MEMORY.contains(&kind) {
        Finding::warn(
            CHECK,
            format!("{found} is memory: nothing in it survives a reboot"),
            "name a folder on a disk with --data-dir",
        )
    } else if REMOTE.contains(&family) {
        Finding::warn(
            CHECK,
            format!(
                "{found} is not a disk of this host: what fdatasync and flock promise depends on the other side"
            ),
            "use ext4 or xfs on a block device: tuning/disk.md",
        )
    } else if kind == "overlay" {
        Finding::warn(
            CHECK,
            format!(
                "{found} is the writable layer of a container: it is deleted with the container"
            ),
            "mount a volume there: tuning/containers.md",
        )
    } else {
        let cache = directory.write_cache.as_ref();
        let cache = cache.map_or(String::new(), |cache| format!(", device cache: {cache}"));
        Finding::ok(CHECK, found + &cache)
    })
}

pub fn discard(directory: &Directory) -> Option<Finding> {
    let mount = directory.mount.as_ref()?;
    // Of btrfs and xfs it is asynchronous, or small.
    let is_felt = mount.file_system == "ext4" && mount.has("discard");
    is_felt.then(|| {
        Finding::warn(
            "discard",
            "ext4 mounted with discard: a commit of its journal waits until the device has discarded what was freed, and so does every fdatasync",
            "mount it without discard, and run fstrim.timer instead: tuning/disk.md",
        )
    })
}

pub fn room(directory: &Directory) -> Option<Finding> {
    const CHECK: &str = "free space";
    let free = directory.free_bytes?;
    let found = format!("{} free", text::bytes(free));
    // Each shard begins with a segment; one that has failed waits until there is room again.
    Some(if free < SEGMENT_RESERVE_BYTES {
        Finding::fail(
            CHECK,
            format!("{found}: not enough for one segment of the log"),
            "make room, or name another folder with --data-dir",
        )
    } else if free < FREE_ADVISED_BYTES {
        Finding::warn(
            CHECK,
            format!(
                "{found}: the log grows to 2.5 times its live data, and {} a shard besides",
                text::bytes(4 * SEGMENT_BYTES_MIN)
            ),
            "make room; on a full disk the server answers 500 until there is some",
        )
    } else {
        Finding::ok(CHECK, found)
    })
}

pub fn sync(directory: &Directory, processor: &Processor) -> Option<Finding> {
    const CHECK: &str = "fdatasync";
    let times = directory.sync?;
    let SyncTimes {
        writes_through,
        appends,
        p50_us,
        p99_us,
        max_us,
    } = times;
    let way = if writes_through {
        ", past the page cache"
    } else {
        ""
    };
    let found = format!(
        "p50 {}, p99 {}, most {} ({appends} small appends{way})",
        text::milliseconds(p50_us),
        text::milliseconds(p99_us),
        text::milliseconds(max_us)
    );
    // The kernel's threads that sync wait for a core, too.
    let found = if processor.is_busy() {
        found + ", while the cores are busy: measure again at rest"
    } else {
        found
    };
    let in_memory = directory.mount.as_ref();
    let in_memory = in_memory.is_some_and(|mount| IN_MEMORY.contains(&mount.file_system.as_str()));
    Some(if in_memory {
        Finding::ok(CHECK, found)
    } else if p50_us < SYNC_BELIEVED_US {
        Finding::warn(
            CHECK,
            format!("{found}: faster than any disk that keeps what it has accepted"),
            "something ignores it (a hypervisor's cache=unsafe, eatmydata, a mount without barriers): tuning/disk.md",
        )
    } else if p50_us > SYNC_SLOW_US || p99_us > SYNC_TAIL_US {
        let why = match directory.is_rotational {
            Some(true) => ", on a device that reports to be a spinning disk",
            _ => "",
        };
        Finding::warn(
            CHECK,
            format!("{found}{why}: with --durability always, each change takes at least as long"),
            "tuning/disk.md lists causes; --durability interval does not wait for it",
        )
    } else {
        Finding::ok(CHECK, found)
    })
}
