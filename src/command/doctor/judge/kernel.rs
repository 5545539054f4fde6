//! Checks of the kernel: its release, its rings, its locked memory and its clock.

use crate::command::doctor::facts::{Kernel, ProcessLimits, RingFault, RingSupport, WantedServer};
use crate::command::doctor::finding::Finding;
use crate::command::text;
use crate::io::ring::locked_bytes;

/// The oldest supported kernel.
const OLDEST: (u32, u32) = (5, 10);
/// The first kernel on which a pending receive holds no buffer, so that no poll is needed before
/// it.
const PENDING_WITHOUT_BUFFER: (u32, u32) = (5, 19);
/// The maximum read time of a clock that needs no system call. Reading such a clock takes a few
/// tens of nanoseconds; reading any other takes longer than this.
const CLOCK_READ_NS_MAX: u64 = 200;

const RAISE_LOCKED: &str = "raise the limit on locked memory (ulimit -l; LimitMEMLOCK in \
     tuning/etherply.service, docker run --ulimit memlock, or tuning/limits.conf), or lower \
     --shards";
const ALLOW: &str = "allow io_uring_setup, io_uring_enter and io_uring_register in the container: \
     with Docker and Podman, use --security-opt seccomp=tuning/seccomp.json; for Kubernetes, see \
     tuning/containers.md";

/// Returns the first two numbers of a release such as `6.1.0-18-amd64`.
pub fn numbers(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

pub fn release(kernel: &Kernel) -> Finding {
    let (numbers, release) = (numbers(&kernel.release), &kernel.release);
    if numbers < OLDEST {
        return Finding::warn(
            "kernel",
            format!("Linux {release} is older than any kernel the server is tested on"),
            "use Linux 5.10 or later; 6.0 or later is best",
        );
    }
    Finding::ok("kernel", format!("Linux {release}"))
}

pub fn ring(kernel: &Kernel, ring: &RingSupport, wanted: &WantedServer) -> Finding {
    let Some(fault) = &ring.fault else {
        return working_ring(kernel, ring, wanted);
    };
    let is_new = numbers(&kernel.release) >= OLDEST;
    let (found, advice) = match fault {
        RingFault::Missing if is_new => (
            "io_uring is missing (ENOSYS), although this kernel should have it: a seccomp filter \
             hides it, or the kernel was built without it",
            ALLOW,
        ),
        RingFault::Missing => (
            "this kernel has no io_uring (ENOSYS)",
            "use Linux 5.10 or later",
        ),
        RingFault::Forbidden => forbidden(kernel),
        RingFault::NoMemory => {
            let (created, shards) = (ring.set_up, wanted.shards);
            let found = format!(
                "only {created} of the {shards} rings (one per shard) can be created (ENOMEM)"
            );
            let advice = match locked_bytes(numbers(&kernel.release), shards) {
                Some(_) => RAISE_LOCKED,
                None => {
                    "free memory, raise the memory limit of the control group, or lower --shards"
                }
            };
            return Finding::fail("io_uring", found, advice);
        }
        RingFault::NoDescriptor => (
            "no file descriptor is left for a ring",
            "raise the limit on open files (ulimit -n); see tuning/limits.conf",
        ),
        RingFault::LacksOperations => (
            "this kernel's io_uring lacks operations that the server needs",
            "use Linux 5.10 or later",
        ),
        RingFault::Other(error) => {
            let found = format!("a ring cannot be created: {error}");
            return Finding::fail("io_uring", found, "see tuning/containers.md");
        }
    };
    Finding::fail("io_uring", found, advice)
}

/// Determines what forbids rings: the sysctl, a system call filter, or a security module.
fn forbidden(kernel: &Kernel) -> (&'static str, &'static str) {
    let by_sysctl = match kernel.io_uring_disabled {
        Some(0) | None => false,
        Some(1) => !kernel.is_administrator,
        Some(_) => true,
    };
    match (by_sysctl, kernel.has_seccomp_filter) {
        (true, false) => (
            "io_uring is forbidden by the sysctl kernel.io_uring_disabled",
            "sudo sysctl -w kernel.io_uring_disabled=0; to make it permanent, see \
             tuning/sysctl.conf",
        ),
        (true, true) => (
            "io_uring is forbidden by the sysctl kernel.io_uring_disabled, and possibly by the \
             seccomp filter as well",
            "sudo sysctl -w kernel.io_uring_disabled=0 on the host (see tuning/sysctl.conf), then \
             run this check again",
        ),
        (false, true) => ("io_uring is forbidden by a seccomp filter (EPERM)", ALLOW),
        (false, false) => (
            "io_uring is forbidden (EPERM), but not by a sysctl or a seccomp filter: probably by a \
             security module (AppArmor, SELinux)",
            "allow io_uring in that module's profile: journalctl -k | grep -i denied shows which \
             one",
        ),
    }
}

fn working_ring(kernel: &Kernel, ring: &RingSupport, wanted: &WantedServer) -> Finding {
    if kernel.io_uring_disabled == Some(1) {
        return Finding::warn(
            "io_uring",
            "a ring works for this user, but kernel.io_uring_disabled is 1: most other users \
             cannot create one",
            "run this check as the server's user, or sudo sysctl -w kernel.io_uring_disabled=0; \
             to make it permanent, see tuning/sysctl.conf",
        );
    }
    let rings = match wanted.shards {
        1 => "a ring works".to_owned(),
        shards => format!("{shards} rings work at the same time"),
    };
    if ring.is_native {
        return Finding::ok("io_uring", format!("{rings}, of the native kind"));
    }
    let mut flags = Vec::new();
    if ring.has_single_issuer {
        flags.push("SINGLE_ISSUER");
    }
    if ring.is_cooperative {
        flags.push("COOP_TASKRUN");
    }
    let flags = match flags.as_slice() {
        [] => "without the setup flags of newer kernels".to_owned(),
        flags => format!("with {}", flags.join(" and ")),
    };
    let way = if numbers(&kernel.release) < PENDING_WITHOUT_BUFFER {
        "; receives poll first, as on every kernel before 5.19"
    } else {
        ""
    };
    let found = format!("{rings}, of the kind for kernels before 6.1 (compat), {flags}{way}");
    Finding::ok("io_uring", found)
}

pub fn locked_memory(
    kernel: &Kernel,
    ring: &RingSupport,
    limits: &ProcessLimits,
    wanted: &WantedServer,
) -> Option<Finding> {
    const CHECK: &str = "locked memory";
    let shards = wanted.shards;
    let needed = locked_bytes(numbers(&kernel.release), shards)?;
    let needed_text = text::bytes(needed);
    let Some(limit) = limits
        .locked_memory_bytes
        .filter(|_| !kernel.may_lock_memory)
    else {
        return Some(Finding::ok(CHECK, "no limit applies to this user"));
    };
    let limit_text = text::bytes(limit);
    let found = format!(
        "the limit is {limit_text} for all processes of this user, and the rings of {shards} \
         shards lock {needed_text}"
    );
    // A running server of this user takes up part of the limit, so a trial may fail even though the
    // limit itself is high enough.
    let is_short = limit < needed || ring.fault == Some(RingFault::NoMemory);
    Some(if is_short {
        Finding::fail(CHECK, found, RAISE_LOCKED)
    } else {
        Finding::ok(CHECK, found)
    })
}

pub fn clock(kernel: &Kernel) -> Finding {
    let source = kernel.clock_source.as_deref().unwrap_or("unknown");
    let found = format!(
        "source {source}, {} ns to read",
        text::thousands(kernel.clock_read_ns)
    );
    if kernel.clock_read_ns > CLOCK_READ_NS_MAX {
        return Finding::warn(
            "clock",
            format!("{found}: each read is a system call"),
            "see /sys/devices/system/clocksource/clocksource0/available_clocksource for other \
             sources, and tuning/cpu.md",
        );
    }
    Finding::ok("clock", found)
}
