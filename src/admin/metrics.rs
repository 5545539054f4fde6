//! `/metrics`: the figures in the Prometheus text format, version 0.0.4.
//!
//! The text is written by own code: `prometheus-client` writes only `OpenMetrics`, whose counters
//! have other names, and `prometheus` copies each name and label of each sample first. A shard's
//! loop waits for this page, which has two hundred samples for each shard, so it fills one buffer.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use crate::core::shard::contract::ListenerKind;
use crate::core::shard::counters::{
    CLOSE_CODES, Counters, DURATION_BOUNDS_US, Durations, GROUP_BOUNDS, RESPONSE_CODES,
};
use crate::status::Status;
use crate::status::stats::{LogFigures, Reading};

use text_format::{MetricsPage, Value, label};

mod text_format;

/// The media type of the page.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Numbers of each shard under one name.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    series: &'static [Series],
}

/// Labels beside `shard`, and the number.
type Series = (&'static str, fn(&Counters) -> u64);

const FAMILIES: &[Family] = &[
    Family {
        name: "etherply_sessions",
        kind: "gauge",
        help: "Connections by state: handshake (the request is awaited), open (in a workspace), \
            closing (the last bytes are on their way).",
        series: &[
            ("state=\"handshake\"", |c| c.sessions_handshake),
            ("state=\"open\"", |c| c.connections),
            ("state=\"closing\"", |c| c.sessions_closing),
        ],
    },
    Family {
        name: "etherply_workspaces",
        kind: "gauge",
        help: "Workspaces in memory.",
        series: &[("", |c| c.workspaces)],
    },
    Family {
        name: "etherply_ops_total",
        kind: "counter",
        help: "Ops by result: won, lost (the sender is sent the winner), duplicate (sent again, \
            there already).",
        series: &[
            ("result=\"won\"", |c| c.ops),
            ("result=\"lost\"", |c| c.ops_lost),
            ("result=\"duplicate\"", |c| c.ops_duplicate),
        ],
    },
    Family {
        name: "etherply_ops_refused_total",
        kind: "counter",
        help: "Messages that were refused, by reason: bad_message, future_skew \
            (--max-future-skew), too_large (--max-message-bytes), rate (--max-ops-per-second), \
            workspace_bytes (--max-workspace-bytes); disk_full (the disk is nearly full, each got \
            an error 500); log_failed counts the clients that were told 500.",
        series: &[
            ("reason=\"bad_message\"", |c| c.refused_bad_message),
            ("reason=\"future_skew\"", |c| c.refused_future_skew),
            ("reason=\"too_large\"", |c| c.refused_too_large),
            ("reason=\"rate\"", |c| c.refused_rate),
            ("reason=\"workspace_bytes\"", |c| c.refused_workspace_bytes),
            ("reason=\"disk_full\"", |c| c.refused_disk_full),
            ("reason=\"log_failed\"", |c| c.refused_log_failed),
        ],
    },
    Family {
        name: "etherply_handshakes_refused_total",
        kind: "counter",
        help: "Requests that a limit refused with 503, by reason: members \
            (--max-connections-per-workspace), rate (--max-handshakes-per-second), snapshot_bytes \
            (a join, or a look, where the states that are on their way have all the memory that \
            they may).",
        series: &[
            ("reason=\"members\"", |c| c.refused_members),
            ("reason=\"rate\"", |c| c.refused_handshakes),
            ("reason=\"snapshot_bytes\"", |c| c.refused_snapshot_bytes),
        ],
    },
    Family {
        name: "etherply_deliveries_total",
        kind: "counter",
        help: "Ops that won, times the clients that were owed them.",
        series: &[("", |c| c.deliveries)],
    },
    Family {
        name: "etherply_received_bytes_total",
        kind: "counter",
        help: "Bytes that came in from clients.",
        series: &[("", |c| c.bytes_received)],
    },
    Family {
        name: "etherply_sent_bytes_total",
        kind: "counter",
        help: "Bytes that the sockets of clients took.",
        series: &[("", |c| c.bytes_sent)],
    },
    Family {
        name: "etherply_sends_total",
        kind: "counter",
        help: "Sends. Each carries all that its client is owed by then.",
        series: &[("", |c| c.sends)],
    },
    Family {
        name: "etherply_sends_in_flight",
        kind: "gauge",
        help: "Sends that sockets have not taken yet.",
        series: &[("", |c| c.sends.saturating_sub(c.sends_ended))],
    },
    Family {
        name: "etherply_sent_frames_total",
        kind: "counter",
        help: "Frames with the ops of others in all sends; divided by etherply_sends_total, \
            frames per send.",
        series: &[("", |c| c.frames_sent)],
    },
    Family {
        name: "etherply_conflations_total",
        kind: "counter",
        help: "How often a client fell behind (--outbox-max-bytes), and was owed the latest op of \
            each key from then on.",
        series: &[("", |c| c.conflations)],
    },
    Family {
        name: "etherply_conflated_keys_total",
        kind: "counter",
        help: "Ops that such clients were sent, each the latest of its key.",
        series: &[("", |c| c.conflated_keys)],
    },
    Family {
        name: "etherply_outbox_bytes",
        kind: "gauge",
        help: "Memory of what goes out, until the last byte is sent: windows (frames, shared by \
            the clients of a workspace), answers (for one client each), shared_answers \
            (corrections and lists of users, each shared by all who are sent it), snapshots \
            (states, each shared by all who joined or looked meanwhile); and unfinished: of \
            messages and requests that came in and are not whole yet. All but windows and \
            snapshots have one budget.",
        series: &[
            ("kind=\"windows\"", |c| c.window_bytes),
            ("kind=\"answers\"", |c| c.answer_bytes),
            ("kind=\"shared_answers\"", |c| c.shared_answer_bytes),
            ("kind=\"snapshots\"", |c| c.snapshot_bytes),
            ("kind=\"unfinished\"", |c| c.unfinished_bytes),
        ],
    },
    Family {
        name: "etherply_given_up_total",
        kind: "counter",
        help: "What was given up for its memory, by reason: session_bytes (a connection, the one \
            that held the most of unfinished messages and answers), snapshot_bytes (a state that \
            nobody took at its pace where others wanted room, with the connections that it was \
            sent to), message_time (a connection whose message took too long).",
        series: &[
            ("reason=\"session_bytes\"", |c| c.given_up_sessions),
            ("reason=\"snapshot_bytes\"", |c| c.given_up_states),
            ("reason=\"message_time\"", |c| c.given_up_messages),
        ],
    },
    Family {
        name: "etherply_shard_failures_total",
        kind: "counter",
        help: "How often the shard stopped serving: its log could not be written, or a fault of \
            the server.",
        series: &[("", |c| c.failures)],
    },
    Family {
        name: "etherply_connections_gave_way_total",
        kind: "counter",
        help: "Connections that gave way to others, since there were as many as there may be: \
            without a whole request (408), or with their answer.",
        series: &[("", |c| c.shed)],
    },
    Family {
        name: "etherply_log_written_bytes_total",
        kind: "counter",
        help: "Bytes that were written to the log.",
        series: &[("", |c| c.log_bytes_written)],
    },
    Family {
        name: "etherply_log_open_bytes",
        kind: "gauge",
        help: "Length of the open segment.",
        series: &[("", |c| c.log_open_bytes)],
    },
    Family {
        name: "etherply_log_live_bytes",
        kind: "gauge",
        help: "What the state takes in a log in which nothing is dead.",
        series: &[("", |c| c.log_live_bytes)],
    },
    Family {
        name: "etherply_log_bytes",
        kind: "gauge",
        help: "Length of the log in the shard's folder, dead bytes included.",
        series: &[("", |c| c.log_bytes)],
    },
    Family {
        name: "etherply_log_limit_bytes",
        kind: "gauge",
        help: "The bound of etherply_log_bytes, relative to what is live: there all writers of \
            the shard wait for compaction, and well before it those that write much.",
        series: &[("", |c| c.log_bytes_max)],
    },
    Family {
        name: "etherply_writers_held",
        kind: "gauge",
        help: "Clients whose ops wait for compaction, since the log is near its bound.",
        series: &[("", |c| c.sessions_held)],
    },
    Family {
        name: "etherply_disk_full",
        kind: "gauge",
        help: "1 while ops that grow the log are refused with an error 500, since the disk is \
            nearly full.",
        series: &[("", |c| c.disk_is_full)],
    },
];

/// Durations of each shard under one name.
struct Histogram {
    name: &'static str,
    help: &'static str,
    of: fn(&Reading) -> &Durations,
}

const HISTOGRAMS: &[Histogram] = &[
    Histogram {
        name: "etherply_log_write_seconds",
        help: "Writes of the log, from their submission to the turn that saw their end.",
        of: |reading| &reading.writes,
    },
    Histogram {
        name: "etherply_log_fdatasync_seconds",
        help: "The fdatasyncs of the log, likewise; where it is written past the page cache its \
            writes, since these wait for the disk.",
        of: |reading| &reading.syncs,
    },
    Histogram {
        name: "etherply_op_durable_seconds",
        help: "From the receipt of an op until it is on disk. A sample: the oldest op of each \
            commit.",
        of: |reading| &reading.counters.durable,
    },
    Histogram {
        name: "etherply_op_sent_seconds",
        help: "From the receipt of an op to the end of the sends to all who were owed it, but for \
            those whose send before had not ended. A sample: the oldest op of a commit, one \
            commit at a time.",
        of: |reading| &reading.counters.sent,
    },
    Histogram {
        name: "etherply_turn_seconds",
        help: "Turns of the event loop; one that wants another at once counts until that begins, \
            the kernel's part with it.",
        of: |reading| &reading.turns,
    },
];

/// The page.
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
        "How long the shard was stopped, or had no core: the deadlines of its clients moved by \
         that.",
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
    page.family(name, "gauge", "When the server was started, in Unix time.");
    let started = Value::Microseconds(status.started_unix_us);
    page.sample(name, "", &[], started);
    let name = "etherply_connections";
    page.family(
        name,
        "gauge",
        "Open connections, by the port that they came to.",
    );
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
        "The most connections: --max-connections, or what the limit of open files allows.",
    );
    page.sample(name, "", &[], Value::Count(status.connections_max as u64));
    let name = "etherply_ready";
    page.family(
        name,
        "gauge",
        "Whether the shard serves: 0 while its log is read or cannot be written.",
    );
    for (number, is_ready) in (0_u64..).zip(status.each_ready()) {
        let is_ready = Value::Count(u64::from(is_ready));
        page.sample(name, "", &[&label("shard", number)], is_ready);
    }
}

/// A figure of the log as a whole.
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
        help: "Segments of the log, when one was opened or the log was compacted last.",
        value: |log| Value::Count(log.segments),
    },
    OfLog {
        name: "etherply_log_closed_bytes",
        kind: "gauge",
        help: "Length of the closed segments, likewise.",
        value: |log| Value::Count(log.closed_bytes),
    },
    OfLog {
        name: "etherply_log_compactions_total",
        kind: "counter",
        help: "Compactions of the log. What is known to be dead goes in one of its own, before \
            the rest.",
        value: |log| Value::Count(log.compactions),
    },
    OfLog {
        name: "etherply_log_compaction_freed_bytes_total",
        kind: "counter",
        help: "What compactions have freed.",
        value: |log| Value::Count(log.compaction_freed_bytes),
    },
    OfLog {
        name: "etherply_log_compaction_failures_total",
        kind: "counter",
        help: "Compactions that failed. The log is served as it is, and grows.",
        value: |log| Value::Count(log.compaction_failures),
    },
    OfLog {
        name: "etherply_log_compaction_works",
        kind: "gauge",
        help: "0 while the last compaction has failed, and for good where a folder could not be \
            synced: then no writer waits for it, and logs grow until the disk is nearly full.",
        value: |log| Value::Count(u64::from(!log.compaction_is_broken)),
    },
    OfLog {
        name: "etherply_disk_free_bytes",
        kind: "gauge",
        help: "What is free on the disk of the log, looked at once a second; 0 where the file \
            system does not say.",
        value: |log| Value::Count(log.disk_free_bytes.unwrap_or(0)),
    },
    OfLog {
        name: "etherply_recovery_ops",
        kind: "gauge",
        help: "Ops that were read from the log at the start.",
        value: |log| Value::Count(log.recovered_ops),
    },
    OfLog {
        name: "etherply_recovery_torn_bytes",
        kind: "gauge",
        help: "What was cut off the log at the start: writes that a crash had interrupted.",
        value: |log| Value::Count(log.torn_bytes),
    },
    OfLog {
        name: "etherply_recovery_seconds",
        kind: "gauge",
        help: "How long the log was read at the start; 0 until that is done.",
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
        "The length of the log at the start, and how much of it has been read.",
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
        "The part of the log that is live. A log that is over a little \
        size is compacted below 0.57.",
    );
    // In millionths, which is how durations are written too.
    let ratio = u128::from(live_bytes) * 1_000_000 / u128::from(bytes.max(1));
    let ratio = u64::try_from(ratio).unwrap_or(u64::MAX).min(1_000_000);
    page.sample(name, "", &[], Value::Microseconds(ratio));
}

fn put_held(page: &mut MetricsPage, shards: &[ShardReading]) {
    let name = "etherply_writers_held_seconds_total";
    page.family(
        name,
        "counter",
        "Time in which clients waited for compaction.",
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
        "Answers to requests by status; 101 is a WebSocket handshake that succeeded.",
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
        "Close frames that the server sent first, by code; client: those \
        that answered one of the client.",
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
        "The longest turn of the event loop within the last minute or two: \
        nothing else of the shard moved meanwhile.",
    );
    for shard in shards {
        let longest = Value::Microseconds(shard.reading.longest_turn_us);
        page.sample(name, "", &[&shard.label], longest);
    }
    let name = "etherply_ring_retries_total";
    page.family(
        name,
        "counter",
        "Times that the kernel had refused operations \
        (io_uring_enter(2)), and they were submitted again a moment later.",
    );
    for shard in shards {
        let retries = Value::Count(shard.reading.ring_retries);
        page.sample(name, "", &[&shard.label], retries);
    }
    let name = "etherply_commit_ops";
    page.family(
        name,
        "histogram",
        "Ops of each batch that was written to the log at once.",
    );
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
