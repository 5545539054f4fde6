//! The metrics that are read from the counters of each shard.

use crate::core::shard::counters::Counters;

/// A metric with one or more values per shard.
pub(super) struct Family {
    pub name: &'static str,
    pub kind: &'static str,
    pub help: &'static str,
    pub series: &'static [Series],
}

/// The labels of a value in addition to `shard`, and the function that reads it.
pub(super) type Series = (&'static str, fn(&Counters) -> u64);

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "etherply_sessions",
        kind: "gauge",
        help: "Connections by state: handshake (waiting for the request), open (in a workspace), \
            closing (the last bytes are being sent).",
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
        name: "etherply_tombstones",
        kind: "gauge",
        help: "Deleted keys that are still remembered (--tombstone-retention).",
        series: &[("", |c| c.tombstones)],
    },
    Family {
        name: "etherply_expiring_keys",
        kind: "gauge",
        help: "Keys that were written with a ttl and have not expired yet.",
        series: &[("", |c| c.expiring_keys)],
    },
    Family {
        name: "etherply_expiries_total",
        kind: "counter",
        help: "Keys deleted by the server because their ttl had passed.",
        series: &[("", |c| c.expiries)],
    },
    Family {
        name: "etherply_tombstones_dropped_total",
        kind: "counter",
        help: "Deleted keys forgotten after --tombstone-retention.",
        series: &[("", |c| c.tombstones_dropped)],
    },
    Family {
        name: "etherply_floors_total",
        kind: "counter",
        help: "Times that deleted keys of a workspace were forgotten and its floor was logged: an \
            op at or below the floor does not bring a forgotten key back.",
        series: &[("", |c| c.floors)],
    },
    Family {
        name: "etherply_joins_total",
        kind: "counter",
        help: "Version 2 clients that joined, by the state that they were sent: first, \
            other_generation and too_old are full states; resumed is only the changes.",
        series: &[
            ("reason=\"first\"", |c| c.joins_first),
            ("reason=\"resumed\"", |c| c.joins_resumed),
            ("reason=\"other_generation\"", |c| c.joins_other_generation),
            ("reason=\"too_old\"", |c| c.joins_too_old),
        ],
    },
    Family {
        name: "etherply_state_parts_total",
        kind: "counter",
        help: "Messages with part of a state that were sent to version 2 clients.",
        series: &[("", |c| c.state_chunks)],
    },
    Family {
        name: "etherply_saved_total",
        kind: "counter",
        help: "Messages that report to a version 2 client which of its ops are saved.",
        series: &[("", |c| c.saved)],
    },
    Family {
        name: "etherply_presence_messages_total",
        kind: "counter",
        help: "Presence messages, each counted once for all peers of its workspace.",
        series: &[("", |c| c.presence_messages)],
    },
    Family {
        name: "etherply_casts_total",
        kind: "counter",
        help: "Casts received from version 2 clients.",
        series: &[("", |c| c.casts)],
    },
    Family {
        name: "etherply_ops_total",
        kind: "counter",
        help: "Ops by result: won, lost (another op holds the key, and the sender receives that \
            op), floor (the key may have been deleted since, and was forgotten), duplicate \
            (resent; the server already has it).",
        series: &[
            ("result=\"won\"", |c| c.ops),
            ("result=\"lost\"", |c| c.ops_lost),
            ("result=\"floor\"", |c| c.refused_floor),
            ("result=\"duplicate\"", |c| c.ops_duplicate),
        ],
    },
    Family {
        name: "etherply_ops_refused_total",
        kind: "counter",
        help: "Refused messages by reason: bad_message, future_skew (--max-future-skew), too_large \
            (--max-message-bytes), rate (--max-ops-per-second), workspace_bytes \
            (--max-workspace-bytes), disk_full (the disk is nearly full; error 500). log_failed \
            counts clients, not messages: those that received error 500 because the log could not \
            be written.",
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
        name: "etherply_early_timestamps_total",
        kind: "counter",
        help: "Ops of version 1 clients with timestamps before 2001, probably \
            because they are in milliseconds. They are applied, but any op in microseconds wins \
            over them.",
        series: &[("", |c| c.early_timestamps)],
    },
    Family {
        name: "etherply_handshakes_refused_total",
        kind: "counter",
        help: "Requests refused with 503 because of a limit, by reason: members \
            (--max-connections-per-workspace), rate (--max-handshakes-per-second), snapshot_bytes \
            (a join or a request for the state while the memory reserved for sending states is \
            used up).",
        series: &[
            ("reason=\"members\"", |c| c.refused_members),
            ("reason=\"rate\"", |c| c.refused_handshakes),
            ("reason=\"snapshot_bytes\"", |c| c.refused_snapshot_bytes),
        ],
    },
    Family {
        name: "etherply_deliveries_total",
        kind: "counter",
        help: "Ops that won, each counted once per recipient.",
        series: &[("", |c| c.deliveries)],
    },
    Family {
        name: "etherply_received_bytes_total",
        kind: "counter",
        help: "Bytes received from clients.",
        series: &[("", |c| c.bytes_received)],
    },
    Family {
        name: "etherply_sent_bytes_total",
        kind: "counter",
        help: "Bytes accepted by the sockets of clients.",
        series: &[("", |c| c.bytes_sent)],
    },
    Family {
        name: "etherply_sends_total",
        kind: "counter",
        help: "Sends. Each carries everything that is queued for its client at that time.",
        series: &[("", |c| c.sends)],
    },
    Family {
        name: "etherply_sends_in_flight",
        kind: "gauge",
        help: "Sends that have not completed yet.",
        series: &[("", |c| c.sends.saturating_sub(c.sends_ended))],
    },
    Family {
        name: "etherply_sent_frames_total",
        kind: "counter",
        help: "Frames with ops from other clients, in all sends. Divide by etherply_sends_total \
            to get frames per send.",
        series: &[("", |c| c.frames_sent)],
    },
    Family {
        name: "etherply_conflations_total",
        kind: "counter",
        help: "Times that a client fell behind (--outbox-max-bytes) and was sent only the latest \
            op of each key from then on.",
        series: &[("", |c| c.conflations)],
    },
    Family {
        name: "etherply_conflated_keys_total",
        kind: "counter",
        help: "Ops sent to clients that had fallen behind, each the latest of its key.",
        series: &[("", |c| c.conflated_keys)],
    },
    Family {
        name: "etherply_outbox_bytes",
        kind: "gauge",
        help: "Memory held by outgoing data until its last byte is sent: windows (frames, shared \
            by the clients of a workspace), answers (each for one client), shared_answers \
            (corrections and lists of users, each shared by all its receivers), snapshots \
            (states, each shared by the clients that joined or requested it in the meantime); and \
            by incoming data: unfinished (messages and requests that are still incomplete). All \
            but windows and snapshots share one budget.",
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
        help: "Connections and states dropped because of a limit, by reason: session_bytes (the \
            connection that held the most memory in unfinished messages and answers), \
            snapshot_bytes (a state that no client read fast enough while others needed the \
            memory, together with the connections that it was being sent to), message_time (a \
            connection whose message took too long to arrive).",
        series: &[
            ("reason=\"session_bytes\"", |c| c.given_up_sessions),
            ("reason=\"snapshot_bytes\"", |c| c.given_up_states),
            ("reason=\"message_time\"", |c| c.given_up_messages),
        ],
    },
    Family {
        name: "etherply_shard_failures_total",
        kind: "counter",
        help: "Times that the shard stopped serving, because its log could not be written or \
            because of a bug in the server.",
        series: &[("", |c| c.failures)],
    },
    Family {
        name: "etherply_connections_gave_way_total",
        kind: "counter",
        help: "Connections closed at the connection limit to make room for new ones: those without \
            a complete request (408), and those that already had their answer.",
        series: &[("", |c| c.shed)],
    },
    Family {
        name: "etherply_log_written_bytes_total",
        kind: "counter",
        help: "Bytes written to the log.",
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
        help: "Size that the log would have with only its live data.",
        series: &[("", |c| c.log_live_bytes)],
    },
    Family {
        name: "etherply_log_bytes",
        kind: "gauge",
        help: "Length of the log in the shard's folder, including dead bytes.",
        series: &[("", |c| c.log_bytes)],
    },
    Family {
        name: "etherply_log_limit_bytes",
        kind: "gauge",
        help: "Limit on etherply_log_bytes, in proportion to the live data: at the limit, all \
            writers of the shard wait for compaction; the heaviest writers wait well before that.",
        series: &[("", |c| c.log_bytes_max)],
    },
    Family {
        name: "etherply_writers_held",
        kind: "gauge",
        help: "Clients whose ops wait for compaction because the log is near its limit.",
        series: &[("", |c| c.sessions_held)],
    },
    Family {
        name: "etherply_disk_full",
        kind: "gauge",
        help: "1 while ops that grow the log are refused with error 500 because the disk is nearly \
            full.",
        series: &[("", |c| c.disk_is_full)],
    },
];
