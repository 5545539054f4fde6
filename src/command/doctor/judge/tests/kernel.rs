//! The kernel, its ring and its clock.

use super::super::judge;
use super::super::kernel::numbers;
use super::{check_rows, finding, good};
use crate::command::doctor::facts::{Facts, RingFault};
use crate::command::doctor::finding::Severity;
use crate::io::ring::locked_bytes;

#[test]
fn a_kernel_release_is_parsed_into_two_numbers() {
    for (release, expected) in [
        ("6.18.44-fc-v669", (6, 18)),
        ("5.10.0-28-amd64", (5, 10)),
        ("5.4", (5, 4)),
        ("6.6-rc1", (6, 6)),
        ("7", (7, 0)),
        ("", (0, 0)),
    ] {
        assert_eq!(numbers(release), expected, "{release}");
    }
}

#[test]
fn the_kernel() {
    check_rows(
        "kernel",
        &[
            (
                |f| f.kernel.release = "5.15.0".into(),
                Severity::Ok,
                &["5.15.0"],
            ),
            (
                |f| {
                    f.kernel.release = "5.4.0".into();
                    f.limits.locked_memory_bytes = None;
                },
                Severity::Warn,
                &["5.4.0", "5.10"],
            ),
        ],
    );
}

#[test]
fn a_working_ring() {
    check_rows(
        "io_uring",
        &[
            (|_| {}, Severity::Ok, &["native"]),
            (
                |f| f.ring.is_native = false,
                Severity::Ok,
                &["compat", "SINGLE_ISSUER", "COOP_TASKRUN"],
            ),
            (
                |f| {
                    f.kernel.release = "5.15.0".into();
                    f.ring.is_native = false;
                    f.ring.is_cooperative = false;
                    f.ring.has_single_issuer = false;
                },
                Severity::Ok,
                &["without", "poll first"],
            ),
            (
                |f| f.kernel.io_uring_disabled = Some(1),
                Severity::Warn,
                &["kernel.io_uring_disabled is 1", "server's user"],
            ),
        ],
    );
}

#[test]
fn receives_poll_first_before_linux_5_19() {
    for (release, polls) in [("5.18.19", true), ("5.19.0", false), ("5.10.0", true)] {
        let mut facts = good();
        facts.kernel.release = release.into();
        facts.ring.is_native = false;
        let found = finding(&facts, "io_uring").found;
        assert_eq!(found.contains("poll first"), polls, "{release}: {found}");
    }
}

#[test]
fn the_causes_of_a_forbidden_ring_are_distinguished() {
    fn forbid(facts: &mut Facts, disabled: Option<u32>, filter: bool, administrator: bool) {
        facts.ring.fault = Some(RingFault::Forbidden);
        facts.kernel.io_uring_disabled = disabled;
        facts.kernel.has_seccomp_filter = filter;
        facts.kernel.is_administrator = administrator;
    }
    check_rows(
        "io_uring",
        &[
            (
                |f| forbid(f, Some(2), false, true),
                Severity::Fail,
                &["by the sysctl", "io_uring_disabled=0"],
            ),
            (
                |f| forbid(f, Some(1), false, false),
                Severity::Fail,
                &["by the sysctl"],
            ),
            (
                |f| forbid(f, Some(2), true, true),
                Severity::Fail,
                &["sysctl", "possibly by the seccomp filter"],
            ),
            (
                |f| forbid(f, Some(0), true, false),
                Severity::Fail,
                &["by a seccomp filter", "tuning/seccomp.json"],
            ),
            (
                |f| forbid(f, None, true, false),
                Severity::Fail,
                &["by a seccomp filter"],
            ),
            (
                |f| forbid(f, Some(1), true, true),
                Severity::Fail,
                &["by a seccomp filter"],
            ),
            (
                |f| forbid(f, Some(0), false, false),
                Severity::Fail,
                &["security module"],
            ),
        ],
    );
}

#[test]
fn a_ring_that_cannot_be_set_up_fails() {
    check_rows(
        "io_uring",
        &[
            (
                |f| f.ring.fault = Some(RingFault::Missing),
                Severity::Fail,
                &["a seccomp filter hides it"],
            ),
            (
                |f| {
                    f.ring.fault = Some(RingFault::NoMemory);
                    f.ring.set_up = 2;
                },
                Severity::Fail,
                &["2 of the 4 rings", "memory", "--shards"],
            ),
            (
                |f| f.ring.fault = Some(RingFault::NoDescriptor),
                Severity::Fail,
                &["ulimit -n"],
            ),
            (
                |f| f.ring.fault = Some(RingFault::LacksOperations),
                Severity::Fail,
                &["Linux 5.10"],
            ),
            (
                |f| f.ring.fault = Some(RingFault::Other("odd".into())),
                Severity::Fail,
                &["odd"],
            ),
        ],
    );
    let mut facts = good();
    facts.kernel.release = "4.19.0".into();
    facts.ring.fault = Some(RingFault::Missing);
    let found = finding(&facts, "io_uring");
    assert!(
        found.found.contains("this kernel has no io_uring"),
        "{found:?}"
    );
}

#[test]
fn locked_memory_matters_on_kernels_where_rings_count() {
    let has_line = |facts: &Facts| judge(facts).iter().any(|one| one.check == "locked memory");
    let mut facts = good();
    for (release, is_reported) in [
        ("5.11.0", true),
        ("5.12.0", false),
        ("6.1.0-18-amd64", false),
        ("6.13.9", false),
        ("6.14.0", true),
        ("6.18.44-cloud", true),
    ] {
        facts.kernel.release = release.into();
        assert_eq!(has_line(&facts), is_reported, "{release}");
    }
    check_rows(
        "locked memory",
        &[
            (
                |f| f.kernel.release = "5.10.0".into(),
                Severity::Fail,
                &["64.00 KiB", "4 shards", "1.25 MiB", "ulimit -l"],
            ),
            (
                |f| {
                    f.kernel.release = "5.11.22".into();
                    f.limits.locked_memory_bytes = locked_bytes((5, 11), 4);
                },
                Severity::Ok,
                &["1.25 MiB"],
            ),
            (
                |f| f.kernel.release = "6.14.0".into(),
                Severity::Fail,
                &["64.00 KiB", "4 shards", "816.00 KiB", "ulimit -l"],
            ),
            (
                |f| {
                    f.kernel.release = "6.18.1".into();
                    f.limits.locked_memory_bytes = locked_bytes((6, 18), 4);
                },
                Severity::Ok,
                &["816.00 KiB"],
            ),
            (
                |f| {
                    f.kernel.release = "5.10.0".into();
                    f.kernel.may_lock_memory = true;
                },
                Severity::Ok,
                &["no limit"],
            ),
        ],
    );
    // Another process owned by the same user uses up the memory that the rings would need.
    facts.limits.locked_memory_bytes = locked_bytes((6, 18), 4);
    facts.ring.fault = Some(RingFault::NoMemory);
    facts.ring.set_up = 1;
    assert_eq!(finding(&facts, "locked memory").verdict, Severity::Fail);
    let ring = finding(&facts, "io_uring");
    assert!(ring.found.contains("1 of the 4 rings"), "{ring:?}");
}

#[test]
fn the_clock() {
    check_rows(
        "clock",
        &[
            (|f| f.kernel.clock_read_ns = 200, Severity::Ok, &["200 ns"]),
            (|f| f.kernel.clock_read_ns = 201, Severity::Warn, &[]),
            (
                |f| {
                    f.kernel.clock_source = Some("acpi_pm".into());
                    f.kernel.clock_read_ns = 1_700;
                },
                Severity::Warn,
                &["acpi_pm", "1,700 ns", "tuning/cpu.md"],
            ),
        ],
    );
}
