//! The kernel: its ring, and its clock.

use crate::command::doctor::facts::{Kernel, Limits, Ring, RingFault, Wanted};
use crate::command::doctor::finding::Finding;
use crate::command::text;
use crate::limits::{COMPLETION_ENTRIES, RING_ENTRIES};

/// The oldest kernel on which the server is meant to work.
const OLDEST: (u32, u32) = (5, 10);
/// Rings count as the memory of a control group from here on, not as locked memory.
const RING_NOT_LOCKED: (u32, u32) = (5, 12);
/// A receive that waits holds no buffer from here on.
const LENDS_LATE: (u32, u32) = (5, 19);
/// A clock that is read in the process itself takes some tens of nanoseconds; one that asks the kernel takes more than this.
const CLOCK_READ_NS_MAX: u64 = 200;
/// The bytes of an entry of the submission queue, its index, an entry of the completion queue, and the head of both.
const SUBMISSION_BYTES: u64 = 64;
const INDEX_BYTES: u64 = 4;
const COMPLETION_BYTES: u64 = 16;
const HEAD_BYTES: u64 = 320;

const ALLOW: &str = "let the container have io_uring_setup, io_uring_enter and io_uring_register: for Docker and Podman --security-opt seccomp=tuning/seccomp.json, for Kubernetes see tuning/containers.md";

/// The numbers of a release such as `6.1.0-18-amd64`.
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
            format!("Linux {release} is older than all that the server is tested on"),
            "use Linux 5.10 or later; 6.0 or later is best",
        );
    }
    Finding::ok("kernel", format!("Linux {release}"))
}

pub fn ring(kernel: &Kernel, ring: &Ring) -> Finding {
    let Some(fault) = &ring.fault else {
        return working_ring(kernel, ring);
    };
    let is_new = numbers(&kernel.release) >= OLDEST;
    let (found, advice) = match fault {
        RingFault::Missing if is_new => (
            "io_uring is not there (ENOSYS), and this kernel should have it: a seccomp filter hides it, or the kernel was built without",
            ALLOW,
        ),
        RingFault::Missing => (
            "this kernel has no io_uring (ENOSYS)",
            "use Linux 5.10 or later",
        ),
        RingFault::Forbidden => forbidden(kernel),
        RingFault::NoMemory => (
            "no memory may be locked for a ring (ENOMEM)",
            "raise the limit of locked memory (ulimit -l): LimitMEMLOCK in tuning/etherply.service, or tuning/limits.conf",
        ),
        RingFault::NoDescriptor => (
            "no file may be opened for a ring",
            "raise the limit of open files (ulimit -n): tuning/limits.conf",
        ),
        RingFault::LacksOperations => (
            "this kernel's io_uring lacks operations that the server needs",
            "use Linux 5.10 or later",
        ),
        RingFault::Other(error) => {
            let found = format!("a ring cannot be set up: {error}");
            return Finding::fail("io_uring", found, "see tuning/containers.md");
        }
    };
    Finding::fail("io_uring", found, advice)
}

/// Who has forbidden it: the sysctl, a filter of system calls, or what is left.
fn forbidden(kernel: &Kernel) -> (&'static str, &'static str) {
    let by_sysctl = match kernel.io_uring_disabled {
        Some(0) | None => false,
        Some(1) => !kernel.is_administrator,
        Some(_) => true,
    };
    match (by_sysctl, kernel.has_seccomp_filter) {
        (true, false) => (
            "io_uring is forbidden by the sysctl kernel.io_uring_disabled",
            "sudo sysctl -w kernel.io_uring_disabled=0, and keep it: tuning/sysctl.conf",
        ),
        (true, true) => (
            "io_uring is forbidden by the sysctl kernel.io_uring_disabled, and perhaps by the seccomp filter too",
            "sudo sysctl -w kernel.io_uring_disabled=0 on the host (tuning/sysctl.conf), then look again",
        ),
        (false, true) => ("io_uring is forbidden by a seccomp filter (EPERM)", ALLOW),
        (false, false) => (
            "io_uring is forbidden (EPERM), by no sysctl and no seccomp filter: a security module (AppArmor, SELinux) does it",
            "allow io_uring in that module's profile: journalctl -k | grep -i denied tells which",
        ),
    }
}

fn working_ring(kernel: &Kernel, ring: &Ring) -> Finding {
    if kernel.io_uring_disabled == Some(1) {
        return Finding::warn(
            "io_uring",
            "a ring works for this user, and kernel.io_uring_disabled is 1: it does not for most others",
            "run this as the server's user; sudo sysctl -w kernel.io_uring_disabled=0, and keep it: tuning/sysctl.conf",
        );
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
    let way = if numbers(&kernel.release) < LENDS_LATE {
        "; receives wait with a poll first, as before Linux 5.19"
    } else {
        ""
    };
    Finding::ok("io_uring", format!("a ring works, {flags}{way}"))
}

/// What the rings of so many shards count as, where they count as locked memory: each part is a power of two.
pub fn ring_bytes(shards: u32) -> u64 {
    let (entries, completions) = (u64::from(RING_ENTRIES), u64::from(COMPLETION_ENTRIES));
    let queues = HEAD_BYTES + COMPLETION_BYTES * completions + INDEX_BYTES * entries;
    let submissions = SUBMISSION_BYTES * entries;
    u64::from(shards) * (queues.next_power_of_two() + submissions.next_power_of_two())
}

pub fn locked_memory(kernel: &Kernel, limits: &Limits, wanted: &Wanted) -> Option<Finding> {
    const CHECK: &str = "locked memory";
    if numbers(&kernel.release) >= RING_NOT_LOCKED {
        return None;
    }
    let (needed, shards) = (ring_bytes(wanted.shards), wanted.shards);
    let needed_text = text::bytes(needed);
    let Some(limit) = limits
        .locked_memory_bytes
        .filter(|_| !kernel.may_lock_memory)
    else {
        return Some(Finding::ok(CHECK, "no limit holds for this user"));
    };
    let limit_text = text::bytes(limit);
    Some(if limit < needed {
        Finding::fail(
            CHECK,
            format!(
                "the limit is {limit_text}, and before Linux 5.12 the rings of {shards} shards lock {needed_text}"
            ),
            "raise it (ulimit -l): LimitMEMLOCK in tuning/etherply.service, or tuning/limits.conf",
        )
    } else {
        Finding::ok(
            CHECK,
            format!("the limit is {limit_text}; the rings lock {needed_text} of it"),
        )
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
            format!("{found}: each reading is a system call"),
            "see which sources there are in /sys/devices/system/clocksource/clocksource0/available_clocksource, and tuning/cpu.md",
        );
    }
    Finding::ok("clock", found)
}
