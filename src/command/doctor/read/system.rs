//! Reads facts about the kernel, its rings, the limits of this process, and the network.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use io_uring::{Builder, IoUring};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::uname;

use super::host::HostFiles;
use crate::command::doctor::facts::{Kernel, Network, Port, ProcessLimits, RingFault, RingSupport};
use crate::config::RingChoice;
use crate::io::listener::bound_socket;
use crate::io::ring::{RingKind, probe, try_all};

/// The bits of `CAP_IPC_LOCK` and `CAP_SYS_ADMIN` (capabilities(7)).
const MAY_LOCK_MEMORY: u32 = 14;
const ADMINISTRATOR: u32 = 21;
/// The seccomp mode "filter" (proc(5)).
const SECCOMP_FILTER: &str = "2";

pub fn kernel(host: &HostFiles) -> Kernel {
    let status = host.text("proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let capabilities = field("CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let has = |bit: u32| capabilities.is_some_and(|bits| bits >> bit & 1 == 1);
    Kernel {
        // /proc/sys is not used, because a sandbox may hide it (systemd's ProcSubset=).
        release: uname().release().to_string_lossy().into_owned(),
        io_uring_disabled: host.number("proc/sys/kernel/io_uring_disabled"),
        has_seccomp_filter: field("Seccomp") == Some(SECCOMP_FILTER),
        is_administrator: has(ADMINISTRATOR),
        may_lock_memory: has(MAY_LOCK_MEMORY),
        clock_source: host.text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
        clock_read_ns: clock_read_ns(),
    }
}

/// Returns the time that reading the clock takes. This is the fastest of several rounds, because
/// slower ones may have been interrupted.
fn clock_read_ns() -> u64 {
    const ROUNDS: u32 = 20;
    const READS: u32 = 500;
    let round = |_| {
        let begun = Instant::now();
        let last = (0..READS).fold(begun, |_, _| Instant::now());
        (last - begun) / READS
    };
    let quickest = (0..ROUNDS).map(round).min().unwrap_or_default();
    u64::try_from(quickest.as_nanos()).unwrap_or(u64::MAX)
}

/// Creates as many rings as the server would use, as the current user.
pub fn ring(shards: u32) -> RingSupport {
    let knows = |builder: &Builder| builder.build(8).is_ok();
    let mut cooperative: Builder = IoUring::builder();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    let mut single_issuer = cooperative.clone();
    single_issuer.setup_single_issuer();
    let kind = RingKind::choose(RingChoice::Auto).unwrap_or(RingKind::COMPAT);
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // The server does this too. If it is not allowed, the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, raised);
    let fault = probe().map_err(|error| (0, error));
    let fault = fault.and_then(|()| try_all(kind, shards)).err();
    RingSupport {
        set_up: fault.as_ref().map_or(shards, |(number, _)| *number),
        fault: fault.map(|(_, error)| ring_fault(&error)),
        is_cooperative: knows(&cooperative),
        has_single_issuer: knows(&single_issuer),
        is_native: kind == RingKind::Native,
    }
}

pub fn ring_fault(error: &io::Error) -> RingFault {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => RingFault::Missing,
        Some(libc::EPERM | libc::EACCES) => RingFault::Forbidden,
        Some(libc::ENOMEM) => RingFault::NoMemory,
        Some(libc::EMFILE | libc::ENFILE) => RingFault::NoDescriptor,
        _ if error.kind() == io::ErrorKind::Unsupported => RingFault::LacksOperations,
        _ => RingFault::Other(error.to_string()),
    }
}

pub fn limits() -> ProcessLimits {
    ProcessLimits {
        open_files: getrlimit(Resource::Nofile).maximum,
        locked_memory_bytes: getrlimit(Resource::Memlock).current,
    }
}

pub fn network(host: &HostFiles, address: SocketAddr) -> Network {
    let text = |path: &str| host.text(path).unwrap_or_default();
    let local = text("proc/sys/net/ipv4/ip_local_port_range");
    let mut local = local.split_whitespace().map(str::parse);
    Network {
        port: match bound_socket(address) {
            Ok(_) => Port::Free,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Port::Taken,
            Err(error) => Port::Refused(format!("cannot listen on {address}: {error}")),
        },
        somaxconn: host.number("proc/sys/net/core/somaxconn"),
        unsent_bytes_max: host.number("proc/sys/net/ipv4/tcp_notsent_lowat"),
        // The file contains the minimum, the default and the maximum.
        send_bytes_max: text("proc/sys/net/ipv4/tcp_wmem")
            .split_whitespace()
            .nth(2)
            .and_then(|most| most.parse().ok()),
        local_ports: match (local.next(), local.next()) {
            (Some(Ok(first)), Some(Ok(last))) => Some((first, last)),
            _ => None,
        },
        reserved_ports: port_list(&text("proc/sys/net/ipv4/ip_local_reserved_ports")),
    }
}

/// Parses a list such as `8080,9000-9010`.
fn port_list(text: &str) -> Vec<(u16, u16)> {
    let ranges = text.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    });
    ranges.collect()
}
