//! All limits of the server, with `const` assertions on how they relate to each other.
//!
//! A limit that an operator can change is a default here and a flag in [`crate::config`]; all
//! others are constants. Every limit has a rule for what happens when it is exceeded, and nothing
//! grows without a limit.

// ---- the request head (wire/protocol.md, "Requests") ----

/// The longest request head. A longer one is answered with 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The largest number of header fields that fit into a head: the shortest field is `a:` and a line
/// feed.
pub const HEADERS_MAX: usize = HEAD_BYTES_MAX / 3;
/// The number of header fields for which the first parse of a head has room. A head with more
/// fields is parsed again, with room for [`HEADERS_MAX`].
pub const HEADERS_USUAL: usize = 64;
/// The maximum number of requests that are answered per turn after having waited for their shard's
/// state. Each of them may cause [`SNAPSHOT_PART_BYTES`] to be encoded.
pub const WAITING_PER_TURN_MAX: usize = 64;
/// The maximum number of keys that expire and tombstones that are dropped per turn. Together they
/// take about as long as reading the messages of a few busy clients.
pub const EXPIRIES_PER_TURN_MAX: usize = 1000;
/// The delay before tombstones that must still be sent to a slow client are examined again.
pub const TOMBSTONES_RETRY_US: u64 = SECOND_US;
/// The longest time for which a shard sleeps until a wall clock deadline. If the wall clock is set,
/// keys expire at most this much late.
pub const WALL_CLOCK_CHECK_US: u64 = 5 * SECOND_US;
/// The time limit from accepting a connection to answering its request. If the head is still
/// incomplete by then, the answer is 408; otherwise it is 503.
pub const HEAD_TIMEOUT_US: u64 = 10 * SECOND_US;
/// The longest workspace id, after percent-decoding.
pub const WORKSPACE_ID_BYTES_MAX: usize = 256;
/// The longest `userId` that is listed in a workspace's presence, and the longest `sub` that is the
/// user of a client of version 2. `OpenID` Connect limits a `sub` to 255 characters.
pub const USER_ID_BYTES_MAX: usize = 256;
/// The tolerance for `exp` and `nbf` (RFC 7519 section 4.1.4: "some small leeway").
pub const TOKEN_LEEWAY_S: u64 = 30;
/// The shortest secret that is accepted without a warning. RFC 7518 section 3.2 requires at least
/// the size of the hash.
pub const SECRET_BYTES_ADVISED: usize = 32;

// ---- messages (wire/protocol.md, "Messages from the client") ----

/// The longest key, in bytes of its unescaped UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;
/// The largest timestamp, in Unix microseconds.
pub const TIMESTAMP_MAX_US: u64 = i64::MAX as u64;
/// The smallest timestamp that a version 2 client may send: the start of 2001, in Unix
/// microseconds. Milliseconds sent as microseconds are far below it until the year 32,971.
pub const TIMESTAMP_MIN_US: u64 = 978_307_200 * SECOND_US;
/// The largest `ttl_ms` of a write: 3,650 days, in milliseconds.
pub const TTL_MS_MAX: u64 = 3_650 * 24 * 3600 * 1000;
/// The largest `id` of a message: the largest integer up to which JavaScript numbers are exact.
pub const MESSAGE_ID_MAX: u64 = (1 << 53) - 1;
/// The longest presence value, as JSON text.
pub const PRESENCE_VALUE_BYTES_MAX: usize = 4 * 1024;
/// The longest cast value, as JSON text.
pub const CAST_VALUE_BYTES_MAX: usize = 16 * 1024;
/// The deepest nesting that is accepted in a value.
pub const VALUE_DEPTH_MAX: usize = 128;
/// The default of `--max-message-bytes`.
pub const MESSAGE_BYTES_DEFAULT: usize = 1024 * 1024;
/// The largest `--max-message-bytes`: a log record must be able to hold one message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

// ---- protection from clients ----

/// The largest `--max-ops-per-second` and `--max-handshakes-per-second`.
pub const PER_SECOND_MAX: u32 = 1_000_000;
/// The burst that a rate limit allows, in seconds' worth of the rate.
pub const RATE_BURST_S: u64 = 2;
/// The number of refused messages, in seconds' worth of the rate, after which a client that keeps
/// exceeding its rate is disconnected.
pub const PATIENCE_S: u64 = 10;
/// The smallest number of refused messages after which a client is disconnected, however low its
/// rate.
pub const REFUSALS_MIN: u64 = 256;
/// The number of frames other than messages (fragments, unsolicited pongs) that a client may send
/// per second, as a multiple of `--max-ops-per-second`. Decoding a hundred of them takes about as
/// long as handling an op.
pub const FRAMES_PER_MESSAGE: u32 = 100;
/// The smallest burst of such frames, however low the rate: enough for a message in one-kilobyte
/// fragments.
pub const FRAMES_BURST_MIN: u64 = 1024;
/// The number of frames without content (empty fragments, unsolicited pongs) that a client may send
/// between two pings from the server, with or without a rate limit. A heartbeat every millisecond
/// stays below this limit for a minute; a flood reaches it within milliseconds.
pub const EMPTY_FRAMES_MAX: u32 = 1 << 16;
/// The default of `--max-workspace-bytes`: far more than a web page can hold, and far less than a
/// server can.
pub const WORKSPACE_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
/// The size of a workspace, in multiples of `--max-workspace-bytes`, up to which a key without an
/// entry may be deleted. The delete leaves a tombstone, which a client that deletes what it wrote
/// itself a moment ago needs even in a full workspace.
pub const ABSENT_DELETES_FACTOR: u64 = 2;
/// The largest `--max-workspace-bytes`.
pub const WORKSPACE_BYTES_MAX: u64 = 1 << 40;

// ---- the log ----

/// The ratio of the shard's live bytes to the length at which a segment is closed. Compaction
/// cannot touch the open segment, so this keeps it a small part of the log.
pub const SEGMENT_LIVE_SHARE: u64 = 8;
/// The smallest length at which a segment is closed, however little of the log is live.
pub const SEGMENT_BYTES_MIN: u64 = 2 * 1024 * 1024;
/// The largest length at which a segment is closed. The batch that reaches this length still goes
/// into the segment.
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The size of the closed segments, in percent of the live data, above which they are compacted.
pub const COMPACTION_START_PERCENT: u64 = 175;
/// The total size of a shard's closed segments up to which compaction is not worthwhile.
pub const COMPACTION_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// The number of newest segments whose live ops a shard counts. The live ops of older segments are
/// found by reading the segments.
pub const SEGMENTS_MARKED_MAX: usize = 4096;
/// The nice(2) value of compaction, so that shards have precedence on a busy core. It is below the
/// maximum, because a log must be compacted even while it is written as fast as the cores allow.
pub const COMPACTION_NICE: i32 = 5;
/// The percentage of the time that compaction runs while the log is no larger than
/// [`COMPACTION_START_PERCENT`].
pub const COMPACTION_TIME_PERCENT_MIN: u64 = 25;
/// The size of the log, in percent of the live data, at which compaction starts to run without
/// pauses.
pub const COMPACTION_URGENT_PERCENT: u64 = 225;
/// The ratio of a segment's size to the number of dead bytes that makes it worth rewriting.
pub const COMPACTION_DEAD_SHARE: u64 = 16;
/// The size of a shard's log, in percent of its live data and in addition to [`LOG_SPARE_BYTES`],
/// above which workspaces that write more than [`LIGHT_BYTES_PER_SECOND`] are slowed down. At that
/// size, compaction already works as hard as it can.
pub const LOG_SLOW_PERCENT: u64 = 225;
/// The size, in percent of the live data and in addition to twice [`LOG_SPARE_BYTES`], above which
/// workspaces that write more than [`LIGHT_BYTES_PER_SECOND`] wait for compaction.
pub const LOG_FULL_PERCENT: u64 = 250;
/// The size, in percent of the live data and in addition to three times [`LOG_SPARE_BYTES`], above
/// which all writers of the shard wait for compaction.
pub const LOG_STOP_PERCENT: u64 = 275;
/// The unit of the fixed part of a log's size limits, which does not depend on the live data.
pub const LOG_SPARE_BYTES: u64 = 8 * 1024 * 1024;
/// The rate at which a log that is just above [`LOG_SLOW_PERCENT`] may grow: more than a core can
/// write. The rate falls with the square of the distance to [`LOG_FULL_PERCENT`], so the log
/// settles at a size at which compaction keeps up.
pub const LOG_BYTES_PER_SECOND: u64 = 256 * 1024 * 1024;
/// The burst of that rate.
pub const LOG_BURST_BYTES: u64 = 1024 * 1024;
/// The rate up to which a workspace is not slowed down when others write more.
pub const LIGHT_BYTES_PER_SECOND: u64 = 64 * 1024;
/// The burst of [`LIGHT_BYTES_PER_SECOND`], for each workspace.
pub const LIGHT_BURST_BYTES: u64 = 256 * 1024;
/// The interval between attempts to resume clients that wait for compaction.
pub const HELD_RETRY_US: u64 = 2_000;
/// The interval at which the free disk space is checked while no compaction is running.
pub const DISK_LOOK_US: u64 = SECOND_US;
/// The interval at which the free space is checked during a compaction, which changes it quickly.
pub const DISK_LOOK_BUSY_US: u64 = SECOND_US / 20;
/// The free space, in addition to [`DISK_LOW_SHARD_BYTES`] for each shard, below which ops that
/// grow the log are refused. The remaining space is left to compaction.
pub const DISK_LOW_BYTES: u64 = 16 * 1024 * 1024;
/// The ratio of a small disk's size to its low mark, if that mark is less than [`DISK_LOW_BYTES`].
pub const DISK_LOW_SHARE: u64 = 32;
/// The free space reserved for each shard's writes other than ops: the zeros that fill a segment in
/// advance, headers, and a segment to start over with.
pub const DISK_LOW_SHARD_BYTES: u64 = 1024 * 1024;
/// The hysteresis factor: ops are accepted again once the free space is this many times the low
/// mark.
pub const DISK_ENOUGH_FACTOR: u64 = 2;
/// The free disk space per shard above which the shard need not keep track of it.
pub const DISK_PLENTY_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// The ratio of the live bytes to the disk space that is reserved for compaction in case no other
/// space is free: about half a segment.
pub const RESERVE_LIVE_SHARE: u64 = 2 * SEGMENT_LIVE_SHARE;
/// The smallest reserve for compaction.
pub const RESERVE_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// The largest reserve for compaction.
pub const RESERVE_BYTES_MAX: u64 = SEGMENT_BYTES_MAX / 2;
/// The number of bytes that compaction writes and syncs at a time.
pub const COMPACTION_BATCH_BYTES: usize = 1024 * 1024;
/// The number of bytes that compaction reads before it yields: about a quarter of a millisecond of
/// CPU time.
pub const COMPACTION_READ_BYTES: usize = 256 * 1024;
/// The delay between a failed compaction and the next attempt.
pub const COMPACTION_RETRY_US: u64 = 30 * SECOND_US;
/// The number of bytes by which a segment grows at a time in `always` mode, filled with zeros in
/// advance. This way, only the writes that extend the file are slow.
pub const SEGMENT_FILL_BYTES: u64 = 256 * 1024;
/// The size of a batch of ops at which the shard stops reading messages until the batch is written.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The age of a batch's oldest op at which the commit starts even if the round of sends is not
/// complete. Otherwise, a long round in one workspace would delay its own ops and those of all
/// others.
pub const COMMIT_AGE_MIN_US: u64 = 250;
/// The maximum to which this age is raised when commits take long.
pub const COMMIT_AGE_MAX_US: u64 = 10_000;
/// The age of a batch's oldest op at which the batch is written in the modes in which no op waits
/// for the disk. A write is handed to another thread of the kernel, and at a light load each op
/// would have its own.
pub const RELAXED_COMMIT_AGE_US: u64 = 20_000;
/// The free disk space that a server needs to start: room for a segment and the zeros that are
/// written in advance.
pub const SEGMENT_RESERVE_BYTES: u64 = 1024 * 1024;
/// The delay before a failed shard first tries to reopen its log. It doubles with each attempt.
pub const REOPEN_WAIT_MIN_US: u64 = 100_000;
/// The longest delay between two attempts to reopen a log.
pub const REOPEN_WAIT_MAX_US: u64 = 5 * SECOND_US;
/// The interval at which an idle server checks that its data directory is still at its path.
pub const PLACE_CHECK_US: u64 = SECOND_US;
/// The shortest interval between such checks while the server commits.
pub const PLACE_CHECK_COMMIT_US: u64 = 50_000;

/// The number of bytes of a segment that are read at a time.
pub const READ_BYTES: usize = 256 * 1024;
/// The interval between log lines that report the progress of recovery.
pub const PROGRESS_INTERVAL_MS: u64 = 2_000;

// ---- sending ----

/// The default of `--outbox-max-bytes`: the number of broadcast bytes by which a client may lag
/// before it is conflated.
pub const OUTBOX_BYTES_DEFAULT: usize = 1024 * 1024;
/// The smallest `--outbox-max-bytes`.
pub const OUTBOX_BYTES_MIN: usize = 4 * 1024;
/// The largest send, unless a single frame is longer. A send pins its chunks until it ends.
pub const SEND_BYTES_MAX: usize = 256 * 1024;
/// The largest send that ends with answers, such as an init. Their chunks are held in full from
/// the moment they are queued, so one large send pins no more memory than several small ones, and
/// each send saved is one less pass through the ring and the kernel.
pub const ANSWER_SEND_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The largest number of pieces in a send: a full send of state parts, and what surrounds them.
pub const SEND_SPANS_MAX: usize = 40;
/// The largest number of pieces in a send of at most [`SEND_BYTES_MAX`]. Such a send with more
/// pieces is copied into a single piece, which costs less than having the kernel send them all.
pub const SHORT_SEND_SPANS_MAX: usize = 16;
/// The maximum number of sessions served per turn, so that receives and log completions never wait
/// long.
pub const SENDS_PER_TURN_MAX: usize = 256;
/// The time after which a shard starts to pace its sends if every turn has left sessions to serve
/// (`core::fanout::pacer`).
pub const PACE_AFTER_US: u64 = 20_000;
/// The ratio of a turn's duration to the pause after it, in a shard that paces its sends.
pub const PACE_SHARE: u64 = 4;
/// The longest such pause.
pub const PACE_PAUSE_US_MAX: u64 = 1000;
/// The number of bytes sent per turn to sessions with more pending bytes than a single send of
/// frames may carry, such as those that receive a state. These sessions have a separate queue,
/// because the kernel copies all of the bytes before the turn ends and the ops of other sessions
/// must not wait for that.
pub const BULK_BYTES_PER_TURN: usize = 4 * 1024 * 1024;
/// The maximum number of sessions in that queue that are served per turn.
pub const BULK_SENDS_PER_TURN_MAX: usize = BULK_BYTES_PER_TURN / SEND_BYTES_MAX;
/// The maximum number of bytes sent to a conflated session at a time, unless a single op is longer.
pub const CONFLATED_BYTES_MAX: usize = 64 * 1024;
/// The maximum number of bytes of state parts that are kept for the next version 2 client that
/// joins.
pub const STATE_CHUNKS_KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The number of ops after which an encoded part of a state is not sent to further clients: those
/// clients would receive too many entries twice.
pub const STATE_CHUNK_STALE_OPS_MAX: u64 = 1024;
/// The maximum number of keys examined for a conflated session per turn. Keys that the session
/// wrote itself are skipped, but they count.
pub const CONFLATED_STEPS_MAX: usize = 4096;
/// The number of bytes that are encoded per turn for clients that are sent a state in parts or have
/// fallen behind, and for peers that are sent all others. The last part may exceed it. What is
/// encoded already does not count. The other clients follow in the next turns.
pub const ENCODED_BYTES_PER_TURN: usize = 1024 * 1024;
/// The bytes for which an entry counts that is examined for such a part, whether or not it is in
/// it: those of a cache line, as each of them is a cache miss.
pub const EXAMINED_ENTRY_BYTES: usize = 64;
/// The memory of a session's queued answers (errors, corrections, pongs) at which the shard stops
/// reading its messages.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The maximum number of separate runs of its own ops that a session skips; with more, it is
/// conflated.
pub const OWN_FRAMES_MAX: usize = 1024;
/// The maximum number of messages from one session that are handled per turn.
pub const MESSAGES_PER_TURN_MAX: usize = 256;
/// The memory that a shard may hold for individual sessions: incomplete messages and heads, and
/// answers until their last byte is sent. An answer that is sent to several sessions counts once.
///
/// It is a quarter of the memory allowed for encoded states, as much as 64 messages of the default
/// maximum size, and far more than a shard holds while its clients keep reading. When it is
/// exceeded, the session that holds the most is evicted.
pub const SESSION_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// The smallest such budget, in multiples of `--max-message-bytes`. A message that is still growing
/// may use twice its length in memory, and a second one must not cause it to be evicted.
pub const SESSION_BUDGET_MESSAGES: usize = 4;
/// The memory of each session that does not count toward the budget. A session that holds no more
/// than this is never evicted.
pub const SESSION_BYTES_SPARED: usize = 4 * 1024;
/// The minimum length at which an op's frame is encoded once for all sessions that receive it as a
/// correction or after falling behind.
pub const SHARED_FRAME_BYTES_MIN: usize = SESSION_BYTES_SPARED;
/// The maximum number of names in an answer about presence, which lists the first ones in order and
/// the total number of names.
pub const PRESENCE_NAMES_MAX: usize = 1000;
/// The largest number of version 2 peers in such an answer, in the order of their connections.
pub const PRESENCE_PEERS_MAX: usize = 1000;
/// The default of `--max-presence-bytes`: the total length of the entries of a workspace's peers.
pub const PRESENCE_BYTES_DEFAULT: usize = 1024 * 1024;
/// The smallest `--max-presence-bytes`.
pub const PRESENCE_BYTES_MIN: usize = 1024;
/// The largest `--max-presence-bytes`. A peer that has missed a message is sent every entry.
pub const PRESENCE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The maximum total length of the values of all peers of a shard. The users need no limit of their
/// own: each is short, and its connection costs more.
pub const PRESENCE_SHARD_BYTES_MAX: usize = SESSION_BUDGET_BYTES;
/// The capacity that a peer's entry keeps, however short the entry becomes.
pub const PEER_BYTES_KEPT: usize = 512;
/// The smallest capacity of a new chunk of outgoing bytes.
pub const CHUNK_BYTES_MIN: usize = 256;
/// The size up to which frames share a chunk. A longer frame gets its own chunk.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// The longest init message that a shard keeps for the next client that joins. Each shard keeps at
/// most one.
pub const INIT_BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;
/// The memory of all encoded states that a shard may be sending at once, in init messages and in
/// answers to reads over HTTP.
///
/// Sessions that request the same state share it. The memory therefore fills up only if clients
/// request the states of many workspaces, or of one workspace at many different times, and do not
/// read them. It holds four of the largest states that the default settings allow. When it is full,
/// a join or a read is answered with 503, unless the state is small or no other is being sent.
pub const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The ratio of [`SNAPSHOT_BYTES_MAX`] to the memory reserved for small states.
pub const SNAPSHOT_RESERVE_SHARE: usize = 8;
/// The longest state that may use this reserve.
pub const SNAPSHOT_SMALL_BYTES: usize = INIT_BYTES_KEPT_MAX;
/// The time within which the fastest receiver of a state should have read it. This matters only
/// while the memory for states is exhausted.
pub const SNAPSHOT_TRANSFER_US: u64 = 60 * SECOND_US;
/// The lag behind that pace at which a state may be evicted to make room for another.
pub const SNAPSHOT_PATIENCE_US: u64 = 2 * SECOND_US;
/// The time that a shard waits to search again after it has found no state to evict.
pub const SNAPSHOT_SEARCH_INTERVAL_US: u64 = SECOND_US / 10;
/// The number of bytes of large states that are encoded per turn. It may be exceeded by at most the
/// rest of a field. A state no longer than this is encoded in one step.
pub const SNAPSHOT_PART_BYTES: usize = 1024 * 1024;
/// The number of encoded states that are checked per turn to see whether any session still holds
/// them.
pub const SNAPSHOTS_SWEPT_PER_TURN: usize = 32;
/// The longest part of a window that is copied into one piece, which all its receivers share.
pub const JOINED_BYTES_MAX: usize = 64 * 1024;
/// The maximum number of chunks that a shard keeps for reuse.
pub const CHUNKS_KEPT_MAX: usize = 1024;
/// The maximum total size of the chunks that a shard keeps for reuse.
pub const CHUNK_BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;
/// The maximum number of lists of each kind (frames, answers, spans, bytes of incomplete frames)
/// that a shard keeps for reuse.
pub const LISTS_KEPT_MAX: usize = 1024;
/// The maximum total size of the lists of each kind that a shard keeps for reuse.
pub const LIST_BYTES_KEPT_MAX: usize = 1024 * 1024;

// ---- time ----

/// The default of `--ping-interval-ms`.
pub const PING_INTERVAL_MS_DEFAULT: u64 = 25_000;
/// The time after which a client whose socket accepts no bytes is closed with 1013.
pub const STALL_TIMEOUT_US: u64 = 60 * SECOND_US;
/// The time that a stalled client has to read the bytes that were already being sent and the close
/// frame that follows them.
pub const STALL_LINGER_US: u64 = 15 * SECOND_US;
/// The time limit from the first byte or fragment of a message to its end. Each mebibyte that has
/// arrived adds the same amount of time. A slower client is closed with 1008 rather than with a
/// code that asks it to try again later, because the same message would be just as slow.
pub const MESSAGE_TIMEOUT_US: u64 = 30 * SECOND_US;
/// The time that the peer of a closing connection has to accept the last bytes and close its side.
pub const LINGER_US: u64 = 2 * SECOND_US;
/// The default of `--drain-ms`.
pub const DRAIN_MS_DEFAULT: u64 = 5_000;
/// The default of `--presence-interval-ms`.
pub const PRESENCE_INTERVAL_MS_DEFAULT: u64 = 50;
/// The longest `--presence-interval-ms`.
pub const PRESENCE_INTERVAL_MS_MAX: u64 = 60_000;
/// The time for which a presence message that is due waits for the round of sends to end.
pub const PRESENCE_WAIT_US: u64 = SECOND_US;
/// The default of `--max-future-skew`, in seconds.
pub const FUTURE_SKEW_S_DEFAULT: u64 = 24 * 3600;
/// The default of `--tombstone-retention`, in seconds.
pub const TOMBSTONE_RETENTION_S_DEFAULT: u64 = 7 * 24 * 3600;
/// The `Retry-After` of a 503, in seconds.
pub const RETRY_AFTER_S: u32 = 5;
/// The lateness of a turn beyond which the shard counts as absent, which postpones its deadlines
/// ([`core::shard::shard_clock`](crate::core::shard::shard_clock)). A machine that is merely busy
/// stays below two ticks of the timers.
pub const LATENESS_US_MAX: u64 = 2 * TIMER_TICK_US;
/// The maximum time before an absence that is discounted along with it. A deadline that passed
/// within this time expires a moment later, after the shard has read the bytes that have arrived.
pub const GRACE_US: u64 = SECOND_US;
/// The minimum length of an absence that is logged as a warning.
pub const ABSENCE_WARNING_US: u64 = SECOND_US;
/// The resolution of all session timers.
pub const TIMER_TICK_US: u64 = 50_000;
/// The number of slots in the timer wheel. A deadline beyond the end of the wheel is checked along
/// the way and put back.
pub const TIMER_SLOTS: usize = 1024;

// ---- the ring ----

/// The largest number of shards: each has a thread, a ring and a log.
pub const SHARDS_MAX: u32 = 1024;
/// The number of entries in a shard's submission queue.
pub const RING_ENTRIES: u32 = 1024;
/// The number of entries in a shard's completion queue.
pub const COMPLETION_ENTRIES: u32 = 8192;
/// The delay between submitting operations and checking that the kernel has accepted them, and
/// between attempts to submit the remaining ones.
pub const RESUBMIT_US: u64 = 20_000;
/// The maximum time that a ring spends trying to submit its remaining operations while it shuts
/// down.
pub const LAST_SUBMIT_US: u64 = SECOND_US;
/// The size of a provided receive buffer.
pub const RECEIVE_BYTES_MAX: usize = 16 * 1024;
/// The number of receive buffers provided for a shard.
pub const RECEIVE_BUFFERS: u16 = 128;
/// The memory that a busy shard uses in addition to its state: its receive buffers, the chunks that
/// it keeps, and two batches, since one fills while the other is written.
pub const SHARD_BYTES: u64 = (RECEIVE_BUFFERS as usize * RECEIVE_BYTES_MAX
    + CHUNK_BYTES_KEPT_MAX
    + 2 * BATCH_BYTES_MAX) as u64;
/// The number of shards per core above which the server warns when it starts, because the shards
/// would wait for each other.
pub const SHARDS_PER_CORE_MAX: usize = 4;
/// The number of accepts that a shard keeps in flight.
pub const ACCEPTS_IN_FLIGHT: usize = 16;
/// The maximum number of connections that wait in the kernel to be accepted (listen(2)). The kernel
/// caps it at net.core.somaxconn.
pub const LISTEN_BACKLOG: i32 = 4096;
/// The time that a starting server waits for a port that is in use. In a measurement, a server that
/// was killed held its port for 8 ms.
pub const PORT_WAIT_US: u64 = 500_000;
/// The pause in accepting connections when the process has no file descriptors left.
pub const ACCEPT_PAUSE_US: u64 = 100_000;
/// The minimum interval between two warnings about such a pause.
pub const ACCEPT_WARNING_US: u64 = 10 * SECOND_US;
/// The number of descriptors that client connections cannot use: for standard streams, signals,
/// connections that are being refused, and those to `--admin-port`.
pub const DESCRIPTORS_RESERVED: u64 = 128;
/// The number of descriptors reserved for each shard: eight for its ring, its mailbox and its
/// segment, and the others for a segment that is being opened or read.
pub const DESCRIPTORS_PER_SHARD: u64 = 10;
/// The maximum number of connections to `--admin-port`. On any further connection, requests to
/// workspaces are refused.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;
/// The number of connections to `--admin-port` beyond that limit that are still answered rather
/// than dropped while the connections shed for them are closing.
pub const ADMIN_REFUSALS_IN_FLIGHT_MAX: usize = 16;
/// The minimum time for which the longest turn of a loop is reported. The maximum is twice that
/// time.
pub const LONGEST_TURN_WINDOW_US: u64 = 60 * SECOND_US;
/// The number of connections over `--max-connections` that are still answered with 503 instead of
/// being dropped.
pub const REFUSALS_IN_FLIGHT_MAX: usize = 64;

/// Returns the memory that a shard may hold for individual sessions in a server that accepts
/// messages of up to `message_bytes_max`.
#[must_use]
pub const fn session_budget_bytes(message_bytes_max: usize) -> usize {
    let least_bytes = SESSION_BUDGET_MESSAGES * message_bytes_max;
    if least_bytes > SESSION_BUDGET_BYTES {
        least_bytes
    } else {
        SESSION_BUDGET_BYTES
    }
}

/// One second in microseconds, the unit of all times inside the server.
pub const SECOND_US: u64 = 1_000_000;

const _: () = assert!(
    WORKSPACE_ID_BYTES_MAX < HEAD_BYTES_MAX,
    "a valid id must fit in a valid head"
);
const _: () = assert!(CONTROL_BYTES_MAX == 125, "RFC 6455 fixes this number");
const _: () = assert!(
    KEY_BYTES_MAX <= u16::MAX as usize,
    "the length of a key must fit in 16 bits"
);
const _: () = assert!(
    WORKSPACE_ID_BYTES_MAX <= u16::MAX as usize,
    "the length of an id must fit in 16 bits"
);
const _: () = assert!(
    CHUNK_BYTES_MAX <= SEND_BYTES_MAX,
    "one send must be able to empty a chunk"
);
const _: () = assert!(
    CHUNK_BYTES_MIN.is_power_of_two()
        && CHUNK_BYTES_MAX.is_power_of_two()
        && SEND_BYTES_MAX.is_power_of_two(),
    "the sizes of kept chunks must be powers of two"
);
const _: () = assert!(
    MESSAGE_BYTES_DEFAULT + SEND_BYTES_MAX <= ANSWER_SEND_BYTES_MAX
        && ANSWER_SEND_BYTES_MAX < u32::MAX as usize,
    "the longest default correction must fit in one send after frames, and its length in the ring"
);
const _: () = assert!(
    session_budget_bytes(MESSAGE_BYTES_DEFAULT) >= 64 * MESSAGE_BYTES_DEFAULT
        && session_budget_bytes(MESSAGE_BYTES_MAX) >= 4 * MESSAGE_BYTES_MAX,
    "one valid message must always fit, however its buffer grows"
);
const _: () = assert!(
    RECEIVE_BYTES_MAX + HEAD_BYTES_MAX + ANSWER_BYTES_MAX < SESSION_BUDGET_BYTES / 64
        && SESSION_BYTES_SPARED < ANSWER_BYTES_MAX
        && SHARED_FRAME_BYTES_MIN <= SESSION_BYTES_SPARED,
    "small items must not fill the budget, and copies for one session must be small"
);
const _: () = assert!(
    PRESENCE_NAMES_MAX * (6 * USER_ID_BYTES_MAX + 64) < SESSION_BUDGET_BYTES / 16,
    "a list of users must be a small part of the budget, even if all names are escaped"
);
const _: () = assert!(
    PRESENCE_BYTES_MAX + PRESENCE_PEERS_MAX * 64 < SESSION_BUDGET_BYTES / 2
        && 64 * PRESENCE_VALUE_BYTES_MAX <= PRESENCE_BYTES_DEFAULT
        && PRESENCE_BYTES_DEFAULT + 64 < ANSWER_SEND_BYTES_MAX
        && 4 * PRESENCE_BYTES_MAX <= PRESENCE_SHARD_BYTES_MAX
        && PEER_BYTES_KEPT <= PRESENCE_VALUE_BYTES_MAX,
    "all peers fit the budget, and by default a message fits one send and has room for many values"
);
const _: () = assert!(
    SNAPSHOT_PATIENCE_US < SNAPSHOT_TRANSFER_US
        && SNAPSHOT_SEARCH_INTERVAL_US < SNAPSHOT_PATIENCE_US
        && SNAPSHOT_PATIENCE_US / SECOND_US < RETRY_AFTER_S as u64,
    "a refused client must find space when it retries"
);
const _: () = assert!(
    MESSAGE_TIMEOUT_US < STALL_TIMEOUT_US,
    "a session must be checked within the message timeout"
);
const _: () = assert!(
    4 * WORKSPACE_BYTES_DEFAULT <= SNAPSHOT_BYTES_MAX as u64
        && 3 * WORKSPACE_BYTES_DEFAULT
            <= (SNAPSHOT_BYTES_MAX - SNAPSHOT_BYTES_MAX / SNAPSHOT_RESERVE_SHARE) as u64
        && 8 * SNAPSHOT_SMALL_BYTES <= SNAPSHOT_BYTES_MAX / SNAPSHOT_RESERVE_SHARE
        && SNAPSHOT_PART_BYTES <= INIT_BYTES_KEPT_MAX
        && 16 * INIT_BYTES_KEPT_MAX <= SNAPSHOT_BYTES_MAX,
    "several large states must fit in the budget, and the kept one must be a small part of it"
);
const _: () = assert!(
    SHORT_SEND_SPANS_MAX < SEND_SPANS_MAX
        && ANSWER_SEND_BYTES_MAX / CONFLATED_BYTES_MAX + 4 < SEND_SPANS_MAX,
    "a 101, a welcome, a full send of state parts and what follows them must fit in one send"
);
const _: () = assert!(
    CONFLATED_BYTES_MAX <= SEND_BYTES_MAX,
    "one conflation step must fit in one send"
);
const _: () = assert!(
    2 * (CONFLATED_BYTES_MAX + CONFLATED_STEPS_MAX * EXAMINED_ENTRY_BYTES) < ENCODED_BYTES_PER_TURN,
    "a turn must encode parts for several clients"
);
const _: () =
    assert!(CHUNK_BYTES_MIN <= CHUNK_BYTES_MAX && OUTBOX_BYTES_MIN <= OUTBOX_BYTES_DEFAULT);
const _: () =
    assert!(MESSAGE_BYTES_DEFAULT <= MESSAGE_BYTES_MAX && MESSAGE_BYTES_DEFAULT <= BATCH_BYTES_MAX);
const _: () = assert!(
    STALL_TIMEOUT_US / 2 < TIMER_TICK_US * (TIMER_SLOTS as u64 - 1),
    "a session must be checked twice within the stall timeout"
);
const _: () = assert!(LINGER_US < STALL_LINGER_US && HEAD_TIMEOUT_US < STALL_TIMEOUT_US);
const _: () = assert!(
    ANSWER_SEND_BYTES_MAX < BULK_BYTES_PER_TURN && BULK_SENDS_PER_TURN_MAX <= SENDS_PER_TURN_MAX,
    "a turn must send states to several sessions, but to no more than receive other data"
);
const _: () = assert!(
    SENDS_PER_TURN_MAX + BULK_SENDS_PER_TURN_MAX <= RING_ENTRIES as usize,
    "the sends of one turn must fit in the submission queue"
);
const _: () = assert!(RING_ENTRIES < COMPLETION_ENTRIES);
const _: () = assert!(
    RECEIVE_BUFFERS.is_power_of_two(),
    "the kernel requires it of a ring of buffers"
);
const _: () =
    assert!(SEGMENT_BYTES_MIN <= SEGMENT_BYTES_MAX && COMPACTION_BATCH_BYTES <= BATCH_BYTES_MAX);
const _: () = assert!(
    SEGMENT_FILL_BYTES <= SEGMENT_BYTES_MIN / 8 && SEGMENT_FILL_BYTES <= SEGMENT_RESERVE_BYTES,
    "preallocated zeros must be a small part of a segment and fit in its initial reservation"
);
const _: () = assert!(
    100 + 100 / COMPACTION_DEAD_SHARE < COMPACTION_START_PERCENT,
    "a compaction must leave less than what starts the next one"
);
const _: () = assert!(
    COMPACTION_START_PERCENT < COMPACTION_URGENT_PERCENT
        && COMPACTION_URGENT_PERCENT + 2 * 100 / SEGMENT_LIVE_SHARE <= 250,
    "the open segment and the one being compacted must fit in 2.5 times the live data"
);
const _: () = assert!(
    COMPACTION_URGENT_PERCENT <= LOG_SLOW_PERCENT
        && LOG_SLOW_PERCENT < LOG_FULL_PERCENT
        && LOG_FULL_PERCENT < LOG_STOP_PERCENT,
    "compaction must be at full speed before writers are slowed down, and floods must wait first"
);
const _: () = assert!(
    // The measured log may include one segment that is not closed.
    COMPACTION_START_PERCENT + 100 / SEGMENT_LIVE_SHARE < LOG_SLOW_PERCENT
        && COMPACTION_BYTES_MIN <= LOG_SPARE_BYTES
        && SEGMENT_BYTES_MIN < LOG_SPARE_BYTES,
    "a compaction must be due for each shard that waits for one"
);
const _: () = assert!(
    LOG_STOP_PERCENT + 2 * 100 / SEGMENT_LIVE_SHARE <= 300
        && 3 * LOG_SPARE_BYTES + 2 * BATCH_BYTES_MAX as u64 <= 4 * LOG_SPARE_BYTES
        && MESSAGE_BYTES_DEFAULT as u64 <= SEGMENT_BYTES_MIN,
    "a log with two open segments and two batches must fit in 3 times its live data and 4 spares"
);
const _: () = assert!(
    LIGHT_BURST_BYTES < LOG_SPARE_BYTES / 4 && LOG_BURST_BYTES < LOG_SPARE_BYTES / 4,
    "a burst must be a small part of the distance between two marks"
);
const _: () = assert!(
    LOG_BYTES_PER_SECOND / SECOND_US * HELD_RETRY_US <= LOG_BURST_BYTES,
    "clients retried at intervals must be able to use the full rate"
);
const _: () = assert!(
    SEGMENT_FILL_BYTES + SEGMENT_RESERVE_BYTES / 2 <= DISK_LOW_SHARD_BYTES
        && DISK_ENOUGH_FACTOR > 1,
    "a shard that refuses ops must be able to seal its log, without flapping at each check"
);
const _: () = assert!(HELD_RETRY_US < DISK_LOOK_BUSY_US && DISK_LOOK_BUSY_US < DISK_LOOK_US);
const _: () = assert!(
    RATE_BURST_S < PATIENCE_S,
    "a client must be refused more than its burst before it is closed"
);
const _: () = assert!(
    MESSAGE_BYTES_DEFAULT as u64 <= WORKSPACE_BYTES_DEFAULT / 16
        && WORKSPACE_BYTES_DEFAULT <= WORKSPACE_BYTES_MAX,
    "a workspace must hold more than a few messages"
);
const _: () = assert!(REOPEN_WAIT_MIN_US < REOPEN_WAIT_MAX_US);
const _: () = assert!(COMMIT_AGE_MIN_US < COMMIT_AGE_MAX_US);
const _: () = assert!(ACCEPT_PAUSE_US < ACCEPT_WARNING_US);
const _: () = assert!(
    DESCRIPTORS_RESERVED
        > (REFUSALS_IN_FLIGHT_MAX + ADMIN_CONNECTIONS_MAX + ADMIN_REFUSALS_IN_FLIGHT_MAX) as u64
);
const _: () = assert!(
    RESUBMIT_US < SECOND_US,
    "the timer must be shorter than a second"
);
