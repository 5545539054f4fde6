//! Good and bad hosts, and the findings about them.

use std::net::SocketAddr;
use std::path::PathBuf;

mod directory;
mod kernel;
mod surroundings;

use super::judge;
use crate::command::doctor::facts::{
    Directory, Facts, Kernel, Mount, Network, Port, ProcessLimits, Processor, RingSupport,
    SyncTimes, WantedServer,
};
use crate::command::doctor::finding::{Finding, Severity};

const MIB: u64 = 1024 * 1024;

/// Returns the facts about a host on which nothing needs to be changed.
fn good() -> Facts {
    Facts {
        wanted: WantedServer {
            address: SocketAddr::from(([0, 0, 0, 0], 8080)),
            shards: 4,
            connections: None,
        },
        kernel: Kernel {
            release: "6.1.0-18-amd64".into(),
            io_uring_disabled: None,
            has_seccomp_filter: false,
            is_administrator: false,
            may_lock_memory: false,
            clock_source: Some("tsc".into()),
            clock_read_ns: 25,
        },
        ring: RingSupport {
            fault: None,
            set_up: 4,
            is_cooperative: true,
            has_single_issuer: true,
            is_native: true,
        },
        limits: ProcessLimits {
            open_files: Some(524_288),
            locked_memory_bytes: Some(65_536),
        },
        network: Network {
            port: Port::Free,
            somaxconn: Some(4096),
            unsent_bytes_max: Some(u64::from(u32::MAX)),
            send_bytes_max: Some(4 * MIB),
            local_ports: Some((32768, 60999)),
            reserved_ports: Vec::new(),
        },
        directory: Directory {
            path: "/var/lib/etherply".into(),
            measured_in: "/var/lib/etherply".into(),
            is_there: true,
            server: None,
            fault: None,
            fault_remedy: None,
            other_file: None,
            sync: Some(times(180, 600)),
            mount: Some(mount("ext4", &["rw", "noatime"])),
            free_bytes: Some(100_000 * MIB),
            total_bytes: Some(200_000 * MIB),
            write_cache: Some("write back".into()),
            is_rotational: Some(false),
        },
        processor: Processor {
            cores_online: Some(8),
            cores_allowed: 8,
            quota_millicores: None,
            governors: vec!["performance".into()],
            load_percent: Some(20),
            memory_max_bytes: None,
            memory_total_bytes: Some(16_000 * MIB),
        },
    }
}

fn times(p50_us: u64, p99_us: u64) -> SyncTimes {
    SyncTimes {
        writes_through: false,
        appends: 400,
        p50_us,
        p99_us,
        max_us: 2 * p99_us,
    }
}

fn mount(file_system: &str, options: &[&str]) -> Mount {
    Mount {
        point: PathBuf::from("/var"),
        file_system: file_system.into(),
        options: options.iter().map(ToString::to_string).collect(),
        device: "8:1".into(),
    }
}

/// A change to the good host, the expected severity, and words that the finding and its advice must
/// contain.
type Case<'a> = (fn(&mut Facts), Severity, &'a [&'a str]);

fn finding(facts: &Facts, check: &str) -> Finding {
    let mut found = judge(facts).into_iter().filter(|one| one.check == check);
    let first = found.next();
    assert!(
        found.next().is_none(),
        "{check} is not reported exactly once"
    );
    first.unwrap_or_else(|| panic!("{check} is not reported"))
}

/// Checks that each change has its effect on this check and none on the others.
fn check_rows(check: &str, rows: &[Case<'_>]) {
    for (number, (change, verdict, words)) in rows.iter().enumerate() {
        let mut facts = good();
        change(&mut facts);
        let found = finding(&facts, check);
        assert_eq!(found.verdict, *verdict, "row {number}: {found:?}");
        let text = format!(
            "{} {}",
            found.found,
            found.advice.clone().unwrap_or_default()
        );
        for word in *words {
            assert!(text.contains(word), "row {number} lacks {word:?}: {text}");
        }
        assert_eq!(
            found.advice.is_some(),
            found.verdict != Severity::Ok,
            "{found:?}"
        );
        for other in judge(&facts).into_iter().filter(|one| one.check != check) {
            assert_eq!(other.verdict, Severity::Ok, "row {number}: {other:?}");
        }
    }
}

#[test]
fn on_a_good_host_every_check_is_ok() {
    let findings = judge(&good());
    assert!(findings.len() >= 12, "{findings:?}");
    for found in findings {
        assert_eq!(
            (found.verdict, &found.advice),
            (Severity::Ok, &None),
            "{found:?}"
        );
    }
}

#[test]
fn unknown_facts_cause_no_warning() {
    let mut facts = good();
    facts.kernel.clock_source = None;
    facts.network.somaxconn = None;
    facts.network.send_bytes_max = None;
    facts.network.local_ports = None;
    facts.directory.mount = None;
    facts.directory.free_bytes = None;
    facts.directory.write_cache = None;
    facts.directory.is_rotational = None;
    facts.processor.cores_online = None;
    facts.processor.governors.clear();
    facts.processor.load_percent = None;
    facts.processor.memory_total_bytes = None;
    let findings = judge(&facts);
    for found in &findings {
        assert_eq!(found.verdict, Severity::Ok, "{found:?}");
    }
    for check in [
        "accept queue",
        "send queue",
        "local ports",
        "file system",
        "memory",
        "CPU governor",
    ] {
        assert!(findings.iter().all(|found| found.check != check), "{check}");
    }
}
