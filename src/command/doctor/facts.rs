//! What is known of a host: plain data, read by `super::read` and judged by `super::judge`.
//!
//! None stands for what this host does not tell. The field names are those of `--json`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

/// All that is known.
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

/// What the server would be started with.
#[derive(Debug, Clone, Serialize)]
pub struct WantedServer {
    pub address: SocketAddr,
    pub shards: u32,
    pub connections: Option<usize>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Kernel {
    pub release: String,
    /// The sysctl `kernel.io_uring_disabled`: 1 forbids it to most, 2 to all.
    pub io_uring_disabled: Option<u32>,
    /// A filter of system calls lies on this process.
    pub has_seccomp_filter: bool,
    /// `CAP_SYS_ADMIN`: the sysctl's 1 does not hold for this process.
    pub is_administrator: bool,
    /// `CAP_IPC_LOCK`: no limit of locked memory holds for this process.
    pub may_lock_memory: bool,
    pub clock_source: Option<String>,
    /// What it takes to read the clock once.
    pub clock_read_ns: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct RingSupport {
    /// Why not each shard can have a ring.
    pub fault: Option<RingFault>,
    /// How many rings could be set up at once, of one for each shard.
    pub set_up: u32,
    /// `IORING_SETUP_COOP_TASKRUN` and `IORING_SETUP_TASKRUN_FLAG`, Linux 5.19.
    pub is_cooperative: bool,
    /// `IORING_SETUP_SINGLE_ISSUER`, Linux 6.0.
    pub has_single_issuer: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RingFault {
    /// ENOSYS.
    Missing,
    /// EPERM or EACCES.
    Forbidden,
    /// ENOMEM.
    NoMemory,
    /// EMFILE or ENFILE.
    NoDescriptor,
    /// The kernel lacks operations that the server needs.
    LacksOperations,
    /// Another error.
    Other(String),
}

#[derive(Debug, Clone, Serialize)]
pub struct ProcessLimits {
    /// What the server can raise its limit of open files to. None: there is none.
    pub open_files: Option<u64>,
    /// None: there is none.
    pub locked_memory_bytes: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Network {
    pub port: Port,
    pub somaxconn: Option<u64>,
    /// What the kernel queues of a connection and has not sent (`tcp_notsent_lowat`).
    pub unsent_bytes_max: Option<u64>,
    /// What the send buffer of a connection grows to (`tcp_wmem`).
    pub send_bytes_max: Option<u64>,
    /// The ports of outgoing connections.
    pub local_ports: Option<(u16, u16)>,
    /// Those of them that are left alone.
    pub reserved_ports: Vec<(u16, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Port {
    Free,
    Taken,
    /// It cannot be bound: the server's own words.
    Refused(String),
}

#[derive(Debug, Clone, Serialize)]
pub struct Directory {
    /// As it was given.
    pub path: PathBuf,
    /// Where it was measured: the folder, or that of its parents which is there.
    pub measured_in: PathBuf,
    pub is_there: bool,
    /// The process id of the server that runs on it.
    pub server: Option<String>,
    /// Why no file can be written and synced there.
    pub fault: Option<String>,
    /// What to do about that, where it is known.
    pub fault_remedy: Option<&'static str>,
    /// A file that is not a server's, in a folder without a log.
    pub other_file: Option<String>,
    pub sync: Option<SyncTimes>,
    pub mount: Option<Mount>,
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    /// Of the device's queue: `write back` where the device has a cache that a flush must empty.
    pub write_cache: Option<String>,
    /// The device has a head that moves, or says so.
    pub is_rotational: Option<bool>,
}

/// How long an append of a small batch and its fdatasync took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SyncTimes {
    /// The file system lets the log write past the page cache.
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
    /// Of the mount and of the file system.
    pub options: Vec<String>,
    /// The device's numbers, as `8:1`.
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
    /// Those that this process may run on.
    pub cores_allowed: usize,
    /// The CPU time that the control group gets, in thousandths of a core.
    pub quota_millicores: Option<u64>,
    pub governors: Vec<String>,
    /// Threads that ran or wanted to, over the last minute, in hundredths.
    pub load_percent: Option<u64>,
    /// The most memory that the control group gets.
    pub memory_max_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
}

impl Processor {
    /// More threads want to run than there are cores for.
    pub fn is_busy(&self) -> bool {
        let cores = self.cores_online.unwrap_or(self.cores_allowed) as u64;
        self.load_percent
            .is_some_and(|percent| percent > 100 * cores)
    }
}
