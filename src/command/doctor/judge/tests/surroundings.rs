//! Connections, cores and memory.

use super::super::processor::working_bytes;
use super::{MIB, check_rows};
use crate::command::doctor::facts::Port;
use crate::command::doctor::finding::Severity;

#[test]
fn open_files_are_counted_as_in_the_server() {
    check_rows(
        "open files",
        &[
            // At least 128, plus 10 for each shard.
            (
                |f| f.limits.open_files = Some(168),
                Severity::Fail,
                &["168", "4 shards", "169"],
            ),
            (
                |f| f.limits.open_files = Some(169),
                Severity::Warn,
                &["enough for 1 connections"],
            ),
            (
                |f| f.limits.open_files = Some(10_167),
                Severity::Warn,
                &["9,999", "LimitNOFILE"],
            ),
            (
                |f| f.limits.open_files = Some(10_168),
                Severity::Ok,
                &["10,000"],
            ),
            (|f| f.limits.open_files = None, Severity::Ok, &["no limit"]),
            (
                |f| {
                    f.limits.open_files = Some(1024);
                    f.wanted.connections = Some(856);
                },
                Severity::Ok,
                &["856"],
            ),
            (
                |f| {
                    f.limits.open_files = Some(1024);
                    f.wanted.connections = Some(857);
                },
                Severity::Warn,
                &["856", "--max-connections is 857"],
            ),
        ],
    );
}

#[test]
fn the_port() {
    check_rows(
        "port",
        &[
            (
                |f| f.wanted.address.set_port(0),
                Severity::Ok,
                &["a free one"],
            ),
            (
                |f| f.network.port = Port::Taken,
                Severity::Fail,
                &["0.0.0.0:8080", "another process", "ss -ltnp"],
            ),
            (
                |f| {
                    f.network.port = Port::Taken;
                    f.directory.server = Some("4711".into());
                },
                Severity::Warn,
                &["pid 4711"],
            ),
            (
                |f| f.network.port = Port::Refused("cannot listen on it".into()),
                Severity::Fail,
                &["cannot listen on it", "CAP_NET_BIND_SERVICE"],
            ),
        ],
    );
}

#[test]
fn the_accept_queue_the_send_queue_and_local_ports() {
    check_rows(
        "accept queue",
        &[(
            |f| f.network.somaxconn = Some(128),
            Severity::Warn,
            &["128", "net.core.somaxconn=4096"],
        )],
    );
    check_rows(
        "send queue",
        &[
            (|_| {}, Severity::Ok, &["4.00 MiB", "tuning/sysctl.conf"]),
            (
                |f| f.network.unsent_bytes_max = Some(128 * 1024),
                Severity::Ok,
                &["128.00 KiB unsent"],
            ),
        ],
    );
    check_rows(
        "local ports",
        &[
            (|_| {}, Severity::Ok, &["28,232 connections"]),
            (
                |f| f.wanted.address.set_port(32_768),
                Severity::Warn,
                &["ip_local_reserved_ports=32768"],
            ),
            (
                |f| f.wanted.address.set_port(60_999),
                Severity::Warn,
                &["port 60999"],
            ),
            (|f| f.wanted.address.set_port(61_000), Severity::Ok, &[]),
            (
                |f| {
                    f.wanted.address.set_port(40_000);
                    f.network.reserved_ports = vec![(1, 2), (39_000, 41_000)];
                },
                Severity::Ok,
                &[],
            ),
        ],
    );
}

#[test]
fn cores_and_memory() {
    check_rows(
        "shards",
        &[
            (
                |f| f.wanted.shards = 8,
                Severity::Ok,
                &["8 shards on 8 cores"],
            ),
            (
                |f| f.wanted.shards = 9,
                Severity::Warn,
                &["9 shards", "--shards 8"],
            ),
            (
                |f| f.processor.cores_allowed = 2,
                Severity::Warn,
                &["2 of 8 cores", "--shards 2"],
            ),
        ],
    );
    check_rows(
        "CPU quota",
        &[
            (
                |f| f.processor.quota_millicores = Some(1_500),
                Severity::Warn,
                &["1.500 cores", "4 shards"],
            ),
            (
                |f| f.processor.quota_millicores = Some(4_000),
                Severity::Ok,
                &["4.000"],
            ),
        ],
    );
    check_rows(
        "memory",
        &[
            (|_| {}, Severity::Ok, &["15.62 GiB on this host"]),
            (
                |f| f.processor.memory_max_bytes = Some(512 * MIB),
                Severity::Ok,
                &["for the control group"],
            ),
            (
                |f| f.processor.memory_max_bytes = Some(32 * MIB),
                Severity::Warn,
                &["32.00 MiB", "72.00 MiB"],
            ),
        ],
    );
    assert_eq!(working_bytes(0), 16 * MIB);
    check_rows(
        "CPU governor",
        &[(
            |f| f.processor.governors = vec!["performance".into(), "powersave".into()],
            Severity::Warn,
            &["powersave", "cpupower"],
        )],
    );
}
