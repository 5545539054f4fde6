//! Checks of the data directory, its file system and its disk.

use crate::command::doctor::facts::{Directory, Processor, SyncTimes};
use crate::command::doctor::finding::Finding;
use crate::command::text;
use crate::limits::{LOG_SPARE_BYTES, SEGMENT_RESERVE_BYTES};

/// File systems that lose everything on a reboot.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// File systems on which another machine or program determines what a sync and a lock guarantee.
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
/// Mount options under which a sync guarantees nothing.
const LYING_OPTIONS: [&str; 2] = ["nobarrier", "barrier=0"];
/// The fastest credible sync: no disk that keeps the writes it confirms is faster.
const SYNC_BELIEVED_US: u64 = 10;
/// The median sync time above which every op is noticeably slower under light load.
const SYNC_SLOW_US: u64 = 5_000;
/// The 99th percentile of sync times above which users notice hitches.
const SYNC_TAIL_US: u64 = 50_000;
/// The amount of free space below which a warning is shown, because a log grows to three times its
/// live data.
const FREE_ADVISED_BYTES: u64 = 1024 * 1024 * 1024;

pub fn folder(directory: &Directory) -> Finding {
    const CHECK: &str = "data directory";
    let path = directory.path.display();
    if let Some(fault) = &directory.fault {
        return Finding::fail(
            CHECK,
            format!("{path}: {fault}"),
            match directory.fault_remedy {
                Some(remedy) => format!("{remedy}, or pick another with --data-dir"),
                None => "pick another with --data-dir".to_owned(),
            },
        );
    }
    if let Some(name) = &directory.other_file {
        return Finding::fail(
            CHECK,
            format!("{path} contains other files (such as {name}) but no log"),
            "point --data-dir at an empty folder, or at a new one inside it",
        );
    }
    match &directory.server {
        Some(pid) => Finding::ok(
            CHECK,
            format!("{path} is writable; a server is using it (pid {pid})"),
        ),
        None if directory.is_there => Finding::ok(
            CHECK,
            format!("{path} is writable, and no server is using it"),
        ),
        None => Finding::ok(
            CHECK,
            format!(
                "{path} does not exist; it can be created in {}",
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
                "{found}, mounted with {option}: a power cut may lose data that fdatasync has \
                 confirmed"
            ),
            "remount without it, unless the disk's write cache survives a power cut; see \
             tuning/disk.md",
        ));
    }
    // Covers `fuse.sshfs` and similar types.
    let family = kind.split('.').next().unwrap_or(kind);
    Some(if IN_MEMORY.contains(&kind) {
        Finding::warn(
            CHECK,
            format!("{found} is in memory: its contents do not survive a reboot"),
            "point --data-dir at a folder on a disk",
        )
    } else if REMOTE.contains(&family) {
        Finding::warn(
            CHECK,
            format!(
                "{found} is not a local disk: the guarantees of fdatasync and flock depend on the \
                 remote side"
            ),
            "use ext4 or xfs on a block device; see tuning/disk.md",
        )
    } else if kind == "overlay" {
        Finding::warn(
            CHECK,
            format!(
                "{found} is the writable layer of a container: it is deleted with the container"
            ),
            "mount a volume there; see tuning/containers.md",
        )
    } else {
        let cache = directory.write_cache.as_ref();
        let cache = cache.map_or(String::new(), |cache| format!(", device cache: {cache}"));
        Finding::ok(CHECK, found + &cache)
    })
}

pub fn discard(directory: &Directory) -> Option<Finding> {
    let mount = directory.mount.as_ref()?;
    // On btrfs and xfs, discarding is asynchronous or cheap.
    let is_felt = mount.file_system == "ext4" && mount.has("discard");
    is_felt.then(|| {
        Finding::warn(
            "discard",
            "ext4 is mounted with discard: each journal commit, and so each fdatasync, waits \
             until the device has discarded the freed blocks",
            "remount it without discard, and enable fstrim.timer instead; see tuning/disk.md",
        )
    })
}

pub fn free_space(directory: &Directory) -> Option<Finding> {
    const CHECK: &str = "free space";
    let free = directory.free_bytes?;
    let found = format!("{} free", text::bytes(free));
    // Each shard needs a segment to start.
    Some(if free < SEGMENT_RESERVE_BYTES {
        Finding::fail(
            CHECK,
            format!("{found}: not enough for one log segment"),
            "free up space, or pick another folder with --data-dir",
        )
    } else if free < FREE_ADVISED_BYTES {
        Finding::warn(
            CHECK,
            format!(
                "{found}: the log can grow to 3 times its live data plus {} per shard",
                text::bytes(4 * LOG_SPARE_BYTES)
            ),
            "free up space; while the disk is nearly full, ops are refused with error 500",
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
        ", bypassing the page cache"
    } else {
        ""
    };
    let found = format!(
        "p50 {}, p99 {}, max {} ({appends} small appends{way})",
        text::milliseconds(p50_us),
        text::milliseconds(p99_us),
        text::milliseconds(max_us)
    );
    // The kernel threads that carry out a sync need a core too.
    let found = if processor.is_busy() {
        found + ", measured while the cores were busy: measure again when they are idle"
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
            format!("{found}: faster than any disk that keeps what it confirms"),
            "something ignores the sync (a hypervisor's cache=unsafe, eatmydata, a mount without \
             barriers); see tuning/disk.md",
        )
    } else if p50_us > SYNC_SLOW_US || p99_us > SYNC_TAIL_US {
        let why = match directory.is_rotational {
            Some(true) => ", on a device that reports itself as a spinning disk",
            _ => "",
        };
        Finding::warn(
            CHECK,
            format!("{found}{why}: with --durability always, each change takes at least this long"),
            "see tuning/disk.md for causes; --durability interval does not wait for the disk",
        )
    } else {
        Finding::ok(CHECK, found)
    })
}
