//! `/metrics`: the statistics in the Prometheus text format, version 0.0.4.
//!
//! The text is generated without a library: `prometheus-client` writes only `OpenMetrics`, whose
//! counters have different names, and `prometheus` first copies every name and label of every
//! sample. A shard's loop waits for this page, which has two hundred samples per shard, so the page
//! is written into a single buffer.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use crate::core::shard::contract::ListenerKind;
use crate::core::shard::counters::{
    CLOSE_CODES, Counters, DURATION_BOUNDS_US, Durations, GROUP_BOUNDS, RESPONSE_CODES,
};
use crate::status::Status;
use crate::status::stats::{LogFigures, Reading};

use families::FAMILIES;
use text_format::{MetricsPage, Value, label};

mod families;
mod text_format;

/// The media type of the page.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A duration histogram with one series per shard.
struct Histogram {
    name: &'static str,
    help: &'static str,
    of: fn(&Reading) -> &Durations,
}

const HISTOGRAMS: &[Histogram] = &[
    Histogram {
        name: "etherply_log_write_seconds",
        help: "Duration of log writes, from the submission to the turn that saw the completion.",
        of: |reading| &reading.writes,
    },
    Histogram {
        name: "etherply_log_fdatasync_seconds",
        help: "Duration of fdatasyncs of the log, from the submission to the turn that saw the \
            completion. If the log bypasses the page cache, duration of its writes, which wait \
            for the disk.",
        of: |reading| &reading.syncs,
    },
    Histogram {
        name: "etherply_op_durable_seconds",
        help: "Time from the receipt of an op until it is on disk. Sampled: the oldest op of each \
            commit.",
        of: |reading| &reading.counters.durable,
    },
    Histogram {
        name: "etherply_op_sent_seconds",
        help: "Time from the receipt of an op until the sends to all its receivers have completed, \
            except receivers whose previous send was still in flight. Sampled: the oldest op of a \
            commit, one commit at a time.",
        of: |reading| &reading.counters.sent,
    },
    Histogram {
        name: "etherply_turn_seconds",
        help: "Duration of turns of the event loop. If the next turn follows at once, a turn \
            lasts until that one begins, including the kernel's work.",
        of: |reading| &reading.turns,
    },
];

/// Returns the metrics page.
#[must_use]
pub fn text(status: &Status, now_us: u64) -> Vec<u8> {
    let shards: Vec<ShardReading> = (0_u64..)
        .zip(&status.stats)
        .map(|(number, stats)| ShardReading {
            label: label("shard", number),
            reading: stats.read(now_us),
        })
        .collect();
    let mut page = MetricsPage::with_capacity(4096 + shards.len() * 20_000);
    put_process(&mut page, status);
    put_log(&mut page, status, &shards);
    for family in FAMILIES {
        page.family(family.name, family.kind, family.help);
        for shard in &shards {
            for (labels, number) in family.series {
                let number = Value::Count(number(&shard.reading.counters));
                page.sample(family.name, "", &[&shard.label, labels], number);
            }
        }
    }
    let name = "etherply_absent_seconds_total";
    page.family(
        name,
        "counter",
        "Time for which the shard was suspended or got no CPU time. The deadlines of its clients \
         were extended by it.",
    );
    for shard in &shards {
        let absent = Value::Microseconds(shard.reading.counters.absent_us);
        page.sample(name, "", &[&shard.label], absent);
    }
    put_held(&mut page, &shards);
    put_codes(&mut page, &shards);
    put_histograms(&mut page, &shards);
    page.into_bytes()
}

struct ShardReading {
    label: String,
    reading: Reading,
}

fn put_process(page: &mut MetricsPage, status: &Status) {
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    page.family("etherply_build_info", "gauge", "The version of the server.");
    page.sample("etherply_build_info", "", &[version], Value::Count(1));
    let name = "process_start_time_seconds";
    page.family(name, "gauge", "Start time of the server, in Unix time.");
    let started = Value::Microseconds(status.started_unix_us);
    page.sample(name, "", &[], started);
    let name = "etherply_connections";
    page.family(name, "gauge", "Open connections by port.");
    for (listener, label) in [
        (ListenerKind::Public, "port=\"public\""),
        (ListenerKind::Admin, "port=\"admin\""),
    ] {
        let count = Value::Count(status.connections(listener) as u64);
        page.sample(name, "", &[label], count);
    }
    let name = "etherply_connections_limit";
    page.family(
        name,
        "gauge",
        "Maximum number of connections: --max-connections, or as many as the limit on open files \
         allows.",
    );
    page.sample(name, "", &[], Value::Count(status.connections_max as u64));
    let name = "etherply_ready";
    page.family(
        name,
        "gauge",
        "1 while the shard serves; 0 while its log is being read or cannot be written.",
    );
    for (number, is_ready) in (0_u64..).zip(status.each_ready()) {
        let is_ready = Value::Count(u64::from(is_ready));
        page.sample(name, "", &[&label("shard", number)], is_ready);
    }
}

/// A metric of the log as a whole.
struct OfLog {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&LogFigures) -> Value,
}

const OF_LOG: &[OfLog] = &[
    OfLog {
        name: "etherply_log_segments",
        kind: "gauge",
        help: "Segments of the log, counted when a segment is opened or the log is compacted.",
        value: |log| Value::Count(log.segments),
    },
    OfLog {
        name: "etherply_log_closed_bytes",
        kind: "gauge",
        help: "Length of the closed segments, measured when a segment is opened or the log is \
            compacted.",
        value: |log| Value::Count(log.closed_bytes),
    },
    OfLog {
        name: "etherply_log_compactions_total",
        kind: "counter",
        help: "Compactions of the log. Segments that are known to be dead are removed first, in a \
            compaction of their own.",
        value: |log| Value::Count(log.compactions),
    },
    OfLog {
        name: "etherply_log_compaction_freed_bytes_total",
        kind: "counter",
        help: "Bytes freed by compactions.",
        value: |log| Value::Count(log.compaction_freed_bytes),
    },
    OfLog {
        name: "etherply_log_compaction_failures_total",
        kind: "counter",
        help: "Failed compactions. The server continues with the log as it is, and the log grows.",
        value: |log| Value::Count(log.compaction_failures),
    },
    OfLog {
        name: "etherply_log_compaction_works",
        kind: "gauge",
        help: "1 while compaction works; 0 after a failure until it succeeds again, and until a \
            restart if a folder could not be synced. At 0 no writer waits for compaction, and the \
            log grows until the disk is nearly full.",
        value: |log| Value::Count(u64::from(!log.compaction_is_broken)),
    },
    OfLog {
        name: "etherply_disk_free_bytes",
        kind: "gauge",
        help: "Free space on the disk of the log, checked once a second; 0 if the file system does \
            not report it.",
        value: |log| Value::Count(log.disk_free_bytes.unwrap_or(0)),
    },
    OfLog {
        name: "etherply_recovery_ops",
        kind: "gauge",
        help: "Ops read from the log at startup.",
        value: |log| Value::Count(log.recovered_ops),
    },
    OfLog {
        name: "etherply_recovery_torn_bytes",
        kind: "gauge",
        help: "Bytes cut off the log at startup, left by writes that a crash interrupted.",
        value: |log| Value::Count(log.torn_bytes),
    },
    OfLog {
        name: "etherply_recovery_seconds",
        kind: "gauge",
        help: "Time that reading the log took at startup; 0 until it is complete.",
        value: |log| Value::Microseconds(log.recovery_us),
    },
];

fn put_log(page: &mut MetricsPage, status: &Status, shards: &[ShardReading]) {
    let log = status.log.read();
    for family in OF_LOG {
        page.family(family.name, family.kind, family.help);
        page.sample(family.name, "", &[], (family.value)(&log));
    }
    let name = "etherply_recovery_bytes";
    page.family(
        name,
        "gauge",
        "Length of the log at startup (total), and how much of it has been read (read).",
    );
    let (read_bytes, total_bytes) = status.recovery.bytes();
    page.sample(name, "", &["state=\"total\""], Value::Count(total_bytes));
    page.sample(name, "", &["state=\"read\""], Value::Count(read_bytes));
    let sum = |number: fn(&Counters) -> u64| -> u64 {
        let counters = shards.iter().map(|shard| &shard.reading.counters);
        counters.map(number).sum()
    };
    let bytes = log.closed_bytes + sum(|counters| counters.log_open_bytes);
    let live_bytes = sum(|counters| counters.log_live_bytes);
    let name = "etherply_log_live_ratio";
    page.family(
        name,
        "gauge",
        "Live fraction of the log, from 0 to 1. Unless the log is small, it is compacted below \
         0.57.",
    );
    // In millionths, so that it is formatted like a duration in microseconds.
    let ratio = u128::from(live_bytes) * 1_000_000 / u128::from(bytes.max(1));
    let ratio = u64::try_from(ratio).unwrap_or(u64::MAX).min(1_000_000);
    page.sample(name, "", &[], Value::Microseconds(ratio));
}

fn put_held(page: &mut MetricsPage, shards: &[ShardReading]) {
    let name = "etherply_writers_held_seconds_total";
    page.family(
        name,
        "counter",
        "Time that clients spent waiting for compaction.",
    );
    for ShardReading { label, reading } in shards {
        let held = Value::Microseconds(reading.counters.held_us);
        page.sample(name, "", &[label], held);
    }
}

fn put_codes(page: &mut MetricsPage, shards: &[ShardReading]) {
    let name = "etherply_http_responses_total";
    page.family(
        name,
        "counter",
        "HTTP responses by status; 101 is a successful WebSocket handshake.",
    );
    let codes: Vec<String> = labels_of(&RESPONSE_CODES);
    for shard in shards {
        for (code, count) in codes.iter().zip(shard.reading.counters.responses.counts) {
            page.sample(name, "", &[&shard.label, code], Value::Count(count));
        }
    }
    let name = "etherply_closes_total";
    page.family(
        name,
        "counter",
        "Close frames that the server sent first, by code; client: those that it sent in reply to \
        a client's close frame.",
    );
    let codes: Vec<String> = labels_of(&CLOSE_CODES);
    for shard in shards {
        let counters = &shard.reading.counters;
        for (code, count) in codes.iter().zip(counters.closes.counts) {
            page.sample(name, "", &[&shard.label, code], Value::Count(count));
        }
        let count = Value::Count(counters.closed_by_peer);
        page.sample(name, "", &[&shard.label, "code=\"client\""], count);
    }
}

fn labels_of(codes: &[u16]) -> Vec<String> {
    let known = codes.iter().map(|code| label("code", (*code).into()));
    known.chain(["code=\"other\"".to_owned()]).collect()
}

fn put_histograms(page: &mut MetricsPage, shards: &[ShardReading]) {
    let name = "etherply_turn_longest_seconds";
    page.family(
        name,
        "gauge",
        "Longest turn of the event loop within the last one to two minutes. A shard does nothing \
        else during a turn.",
    );
    for shard in shards {
        let longest = Value::Microseconds(shard.reading.longest_turn_us);
        page.sample(name, "", &[&shard.label], longest);
    }
    let name = "etherply_ring_retries_total";
    page.family(
        name,
        "counter",
        "Times that the kernel refused operations (io_uring_enter(2)), which were resubmitted a \
        moment later.",
    );
    for shard in shards {
        let retries = Value::Count(shard.reading.ring_retries);
        page.sample(name, "", &[&shard.label], retries);
    }
    let name = "etherply_commit_ops";
    page.family(name, "histogram", "Ops per batch written to the log.");
    let bounds = GROUP_BOUNDS.map(Value::Count);
    for shard in shards {
        let groups = &shard.reading.counters.groups;
        page.histogram(
            name,
            &shard.label,
            &bounds,
            &groups.counts,
            Value::Count(groups.sum),
        );
    }
    let bounds = DURATION_BOUNDS_US.map(Value::Microseconds);
    for Histogram { name, help, of } in HISTOGRAMS {
        page.family(name, "histogram", help);
        for shard in shards {
            let tally = of(&shard.reading);
            page.histogram(
                name,
                &shard.label,
                &bounds,
                &tally.counts,
                Value::Microseconds(tally.sum),
            );
        }
    }
}
