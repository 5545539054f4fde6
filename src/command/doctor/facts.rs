//! The facts about a host: plain data that is read by `super::read` and judged by `super::judge`.
//!
//! `None` means that the host does not reveal the fact, unless a field says otherwise. The field
//! names are the keys of `--json`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

/// All facts about a host.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    pub wanted: WantedServer,
    pub kernel: Kernel,
    pub ring: RingSupport,
    pub limits: ProcessLimits,
    pub network: Network,
    pub directory: Directory,
    pub processor: Processor,
}

/// The settings that the server would be started with.
#[derive(Debug, Clone, Serialize)]
pub struct WantedServer {
    pub address: SocketAddr,
    pub shards: u32,
    pub connections: Option<usize>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Kernel {
    pub release: String,
    /// The sysctl `kernel.io_uring_disabled`: 1 forbids rings for most users, 2 for all users.
    pub io_uring_disabled: Option<u32>,
    /// Whether a seccomp filter applies to this process.
    pub has_seccomp_filter: bool,
    /// Whether this process has `CAP_SYS_ADMIN`, which exempts it from a sysctl value of 1.
    pub is_administrator: bool,
    /// Whether this process has `CAP_IPC_LOCK`, which exempts it from the limit on locked memory.
    pub may_lock_memory: bool,
    pub clock_source: Option<String>,
    /// The time that reading the clock takes.
    pub clock_read_ns: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct RingSupport {
    /// The problem that keeps some shards from having a ring, if there is one.
    pub fault: Option<RingFault>,
    /// The number of rings that could be created at once; the server needs one per shard.
    pub set_up: u32,
    /// `IORING_SETUP_COOP_TASKRUN` and `IORING_SETUP_TASKRUN_FLAG`, Linux 5.19.
    pub is_cooperative: bool,
    /// `IORING_SETUP_SINGLE_ISSUER`, Linux 6.0.
    pub has_single_issuer: bool,
    /// Whether the native ring works (`--ring native`), Linux 6.1.
    pub is_native: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RingFault {
    /// ENOSYS: there is no `io_uring`.
    Missing,
    /// EPERM or EACCES: this process may not set up a ring.
    Forbidden,
    /// ENOMEM: there is not enough memory for a ring.
    NoMemory,
    /// EMFILE or ENFILE: no file descriptor is left.
    NoDescriptor,
    /// The kernel lacks operations that the server needs.
    LacksOperations,
    /// Another error.
    Other(String),
}

#[derive(Debug, Clone, Serialize)]
pub struct ProcessLimits {
    /// The highest open-file limit that the server can set for itself. `None` means no limit.
    pub open_files: Option<u64>,
    /// The limit on locked memory. `None` means no limit.
    pub locked_memory_bytes: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Network {
    pub port: Port,
    pub somaxconn: Option<u64>,
    /// The number of unsent bytes that the kernel queues per connection (`tcp_notsent_lowat`).
    pub unsent_bytes_max: Option<u64>,
    /// The largest send buffer of a connection (`tcp_wmem`).
    pub send_bytes_max: Option<u64>,
    /// The range of ports for outgoing connections.
    pub local_ports: Option<(u16, u16)>,
    /// The reserved ranges, which outgoing connections do not use.
    pub reserved_ports: Vec<(u16, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Port {
    Free,
    Taken,
    /// The port cannot be bound, for this reason.
    Refused(String),
}

#[derive(Debug, Clone, Serialize)]
pub struct Directory {
    /// The path as given.
    pub path: PathBuf,
    /// The folder in which the measurements were made: the data directory, or its nearest existing
    /// parent.
    pub measured_in: PathBuf,
    pub is_there: bool,
    /// The process id of the server that is using the directory, if there is one.
    pub server: Option<String>,
    /// The problem that keeps files from being written and synced there, if there is one.
    pub fault: Option<String>,
    /// The remedy for the fault, if one is known.
    pub fault_remedy: Option<&'static str>,
    /// The name of a foreign file, if the folder has no log but contains other files.
    pub other_file: Option<String>,
    pub sync: Option<SyncTimes>,
    pub mount: Option<Mount>,
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    /// The cache mode of the device: `write back` if it has a cache that must be flushed.
    pub write_cache: Option<String>,
    /// Whether the device reports that it is a spinning disk.
    pub is_rotational: Option<bool>,
}

/// The time taken to append a small batch and sync it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SyncTimes {
    /// Whether the file system lets the log bypass the page cache.
    pub writes_through: bool,
    pub appends: usize,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    pub point: PathBuf,
    pub file_system: String,
    /// The mount options, followed by those of the file system.
    pub options: Vec<String>,
    /// The device number, such as `8:1`.
    pub device: String,
}

impl Mount {
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|one| one == option)
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Processor {
    pub cores_online: Option<usize>,
    /// The number of cores on which this process may run.
    pub cores_allowed: usize,
    /// The CPU quota of the control group, in thousandths of a core.
    pub quota_millicores: Option<u64>,
    pub governors: Vec<String>,
    /// The load average over the last minute, in hundredths.
    pub load_percent: Option<u64>,
    /// The memory limit of the control group.
    pub memory_max_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
}

impl Processor {
    /// Returns whether there are more runnable threads than cores.
    pub fn is_busy(&self) -> bool {
        let cores = self.cores_online.unwrap_or(self.cores_allowed) as u64;
        self.load_percent
            .is_some_and(|percent| percent > 100 * cores)
    }
}
