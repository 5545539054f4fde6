//! Hosts as folders of files, and the facts that are read from them.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::directory::{existing, mount_of, server, sync_times, time_syncs};
use super::host::HostFiles;
use super::processor::{self, count_of_list, memory_max_bytes, quota_millicores};
use super::system::{self, ring_fault};
use crate::command::doctor::facts::{Port, RingFault};
use crate::log::directory::DataDirectory;
use crate::log::disk::HostDisk;

/// Creates a host with these files.
fn host(files: &[(&str, &str)]) -> (TempDir, HostFiles) {
    let root = TempDir::new().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
    let host = HostFiles::at(root.path());
    (root, host)
}

#[test]
fn the_kernel_reports_seccomp_filters_and_capabilities() {
    let (_root, container) = host(&[
        ("proc/sys/kernel/io_uring_disabled", "2"),
        (
            "proc/self/status",
            "Name:\tx\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nSeccomp_filters:\t1",
        ),
    ]);
    let kernel = system::kernel(&container);
    assert_eq!(kernel.io_uring_disabled, Some(2));
    assert!(kernel.release.contains('.'), "{kernel:?}");
    assert!(kernel.has_seccomp_filter && !kernel.is_administrator && !kernel.may_lock_memory);
    let (_root, root_user) = host(&[(
        "proc/self/status",
        "CapEff:\t000001ffffffffff\nSeccomp:\t0\nSeccomp_filters:\t0",
    )]);
    let kernel = system::kernel(&root_user);
    assert_eq!(kernel.io_uring_disabled, None);
    assert!(!kernel.has_seccomp_filter && kernel.is_administrator && kernel.may_lock_memory);
}

#[test]
fn ring_errors_are_distinguished() {
    use std::io::{Error, ErrorKind};
    for (errno, fault) in [
        (libc::ENOSYS, RingFault::Missing),
        (libc::EPERM, RingFault::Forbidden),
        (libc::EACCES, RingFault::Forbidden),
        (libc::ENOMEM, RingFault::NoMemory),
        (libc::EMFILE, RingFault::NoDescriptor),
    ] {
        assert_eq!(ring_fault(&Error::from_raw_os_error(errno)), fault);
    }
    let lacks = Error::from(ErrorKind::Unsupported);
    assert_eq!(ring_fault(&lacks), RingFault::LacksOperations);
    let other = ring_fault(&Error::from_raw_os_error(libc::EIO));
    assert!(matches!(other, RingFault::Other(_)), "{other:?}");
}

#[test]
fn network_settings_and_the_port() {
    let (_root, host) = host(&[
        ("proc/sys/net/core/somaxconn", "128"),
        ("proc/sys/net/ipv4/tcp_notsent_lowat", "131072"),
        ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304"),
        ("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535"),
        (
            "proc/sys/net/ipv4/ip_local_reserved_ports",
            "8080,9000-9010",
        ),
    ]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let network = system::network(&host, address);
    assert_eq!(network.port, Port::Taken);
    assert_eq!(
        (network.somaxconn, network.local_ports),
        (Some(128), Some((1024, 65535)))
    );
    let queue = (network.unsent_bytes_max, network.send_bytes_max);
    assert_eq!(queue, (Some(131_072), Some(4_194_304)));
    assert_eq!(network.reserved_ports, [(8080, 8080), (9000, 9010)]);
    let free = system::network(&host, "127.0.0.1:0".parse().unwrap());
    assert_eq!(free.port, Port::Free);
    // A documentation address (RFC 5737), which no host has.
    let foreign = system::network(&host, "192.0.2.1:0".parse().unwrap());
    assert!(
        matches!(foreign.port, Port::Refused(_)),
        "{:?}",
        foreign.port
    );
}

const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
30 22 8:17 / /var/lib rw,noatime shared:9 master:2 - ext4 /dev/sdb1 rw,discard
31 22 0:44 / /var/lib\\040too rw - tmpfs none rw
32 30 0:45 / /var/lib/over rw - xfs /dev/sdc rw
33 30 0:46 / /var/lib/over rw - btrfs /dev/sdd rw";

#[test]
fn a_folder_is_on_the_nearest_mount_and_the_last_one_mounted_there() {
    let (_root, host) = host(&[("proc/self/mountinfo", MOUNTS)]);
    for (path, file_system, device) in [
        ("/home", "ext4", "8:1"),
        ("/var/library", "ext4", "8:1"),
        ("/var/lib/etherply", "ext4", "8:17"),
        ("/var/lib too/x", "tmpfs", "0:44"),
        ("/var/lib/over/x", "btrfs", "0:46"),
    ] {
        let mount = mount_of(&host, Path::new(path)).unwrap();
        assert_eq!(
            (mount.file_system.as_str(), mount.device.as_str()),
            (file_system, device),
            "{path}"
        );
    }
    let mount = mount_of(&host, Path::new("/var/lib")).unwrap();
    assert!(mount.has("noatime") && mount.has("discard") && !mount.has("relatime"));
}

#[test]
fn a_missing_folder_is_measured_at_its_nearest_existing_parent() {
    let root = TempDir::new().unwrap();
    let path = root.path();
    assert_eq!(existing(&path.join("a/b/c")), path);
    assert_eq!(existing(path), path);
    assert_eq!(existing(Path::new("no such folder")), Path::new("."));
    assert_eq!(existing(Path::new("/no such folder/x")), Path::new("/"));
}

#[test]
fn syncs_are_timed_and_leave_no_files() {
    let root = TempDir::new().unwrap();
    let times = time_syncs(&HostDisk, root.path()).unwrap();
    assert!(times.appends > 0 && times.p50_us <= times.p99_us && times.p99_us <= times.max_us);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    assert!(time_syncs(&HostDisk, &root.path().join("missing")).is_err());
}

#[test]
fn p50_and_p99_of_a_hundred_samples_are_the_50th_and_the_99th() {
    let times = sync_times((1..=100).rev().collect());
    assert_eq!((times.p50_us, times.p99_us, times.max_us), (50, 99, 100));
    let times = sync_times(vec![7]);
    assert_eq!(
        (times.appends, times.p50_us, times.p99_us, times.max_us),
        (1, 7, 7, 7)
    );
}

#[test]
fn a_running_server_is_detected_by_its_lock_and_not_disturbed() {
    let root = TempDir::new().unwrap();
    assert_eq!(server(root.path()), None);
    let directory = DataDirectory::open(root.path()).unwrap();
    assert_eq!(server(root.path()), Some(std::process::id().to_string()));
    drop(directory);
    assert_eq!(server(root.path()), None);
    assert!(
        DataDirectory::open(root.path()).is_ok(),
        "the check left a lock behind"
    );
}

#[test]
fn cores_governors_memory_and_load() {
    let (_root, host) = host(&[
        ("sys/devices/system/cpu/online", "0-2,8"),
        (
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            "powersave",
        ),
        (
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor",
            "performance",
        ),
        (
            "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
            "powersave",
        ),
        (
            "proc/meminfo",
            "MemTotal:       16 kB\nMemFree:        4 kB",
        ),
        ("proc/loadavg", "12.05 3.00 1.00 2/300 4711"),
    ]);
    let processor = processor::read(&host);
    assert_eq!(processor.cores_online, Some(4));
    assert_eq!(processor.governors, ["performance", "powersave"]);
    assert_eq!(processor.memory_total_bytes, Some(16 * 1024));
    assert_eq!(processor.load_percent, Some(1205));
    assert_eq!(
        (processor.quota_millicores, processor.memory_max_bytes),
        (None, None)
    );
    for (list, count) in [
        ("0", Some(1)),
        ("0-63", Some(64)),
        ("3-1", None),
        ("", None),
    ] {
        assert_eq!(count_of_list(list), count, "{list}");
    }
}

#[test]
fn the_smallest_limit_of_all_parent_cgroups_applies() {
    let (_root, unified) = host(&[
        ("proc/self/cgroup", "0::/system.slice/etherply.service"),
        (
            "sys/fs/cgroup/system.slice/etherply.service/cpu.max",
            "max 100000",
        ),
        (
            "sys/fs/cgroup/system.slice/etherply.service/memory.max",
            "2097152",
        ),
        ("sys/fs/cgroup/system.slice/cpu.max", "250000 100000"),
        ("sys/fs/cgroup/system.slice/memory.max", "max"),
    ]);
    assert_eq!(quota_millicores(&unified), Some(2500));
    assert_eq!(memory_max_bytes(&unified), Some(2_097_152));
    let (_root, old) = host(&[
        (
            "proc/self/cgroup",
            "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/",
        ),
        // A container sees its own group as the root, and also under the path that it has outside.
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000"),
        ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        (
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes",
            "9223372036854771712",
        ),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576"),
    ]);
    assert_eq!(quota_millicores(&old), Some(1500));
    assert_eq!(memory_max_bytes(&old), Some(1_048_576));
    let (_root, free) = host(&[
        ("proc/self/cgroup", "3:cpu:/\n2:memory:/"),
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1"),
        ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712",
        ),
    ]);
    assert_eq!(
        (quota_millicores(&free), memory_max_bytes(&free)),
        (None, None)
    );
}
