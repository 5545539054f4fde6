//! Every bound of the server in one file, related to each other by `const` assertions.
//!
//! A bound that an operator may move is a default here and a flag in [`crate::config`];
//! all the others are constants. Over a bound there is a rule, never growth.

// ---- the request head (protocol.md, "HTTP") ----

/// A request head longer than this is answered with 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// More header lines than this are answered with 431.
pub const HEADERS_MAX: usize = 64;
/// A head that is not complete after this long is answered with 408.
pub const HEAD_TIMEOUT_US: u64 = 10 * SECOND_US;
/// The longest workspace id, after percent-decoding.
pub const WORKSPACE_ID_BYTES_MAX: usize = 256;
/// The longest `userId`; a longer one is not listed.
pub const USER_ID_BYTES_MAX: usize = 256;
/// How far `exp` and `nbf` may be off (RFC 7519 section 4.1.4: "some small leeway").
pub const TOKEN_LEEWAY_S: u64 = 30;
/// A secret shorter than this is warned of: RFC 7518 section 3.2 wants the size of the hash.
pub const SECRET_BYTES_ADVISED: usize = 32;

// ---- messages (protocol.md, "Messages: client to server") ----

/// The longest key, in bytes of its unescaped UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;
/// The greatest timestamp, in Unix microseconds.
pub const TIMESTAMP_MAX_US: u64 = i64::MAX as u64;
/// A value nested deeper than this is refused.
pub const VALUE_DEPTH_MAX: usize = 128;
/// Default of `--max-message-bytes`.
pub const MESSAGE_BYTES_DEFAULT: usize = 1024 * 1024;
/// The greatest `--max-message-bytes`: a record of the log must hold one message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

// ---- what protects the server from its clients ----

/// The greatest `--max-ops-per-second` and `--max-handshakes-per-second`.
pub const PER_SECOND_MAX: u32 = 1_000_000;
/// So many seconds' worth of a rate may come at once.
pub const RATE_BURST_S: u64 = 2;
/// A client that goes on over its rate is closed when so many seconds' worth of its messages were refused,
pub const PATIENCE_S: u64 = 10;
/// and at least so many messages.
pub const REFUSALS_MIN: u64 = 256;
/// Default of `--max-workspace-bytes`: far above what a page can hold, and far below what a host can.
pub const WORKSPACE_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
/// The greatest `--max-workspace-bytes`.
pub const WORKSPACE_BYTES_MAX: u64 = 1 << 40;

// ---- the log ----

/// A segment is closed at the end of its batch when it has reached one in so many bytes of the shard's live data, so that what compaction
/// cannot touch yet stays a small part of the log;
pub const SEGMENT_LIVE_SHARE: u64 = 8;
/// but it may grow to this size,
pub const SEGMENT_BYTES_MIN: u64 = 2 * 1024 * 1024;
/// and not beyond this one.
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Closed segments of more than so many percent of the live data are compacted,
pub const COMPACTION_START_PERCENT: u64 = 175;
/// if they have at least this size for each shard.
pub const COMPACTION_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// How many segments a shard counts the live ops of. Those of older ones are found by reading.
pub const SEGMENTS_MARKED_MAX: usize = 4096;
/// How far compaction stands back behind the shards where a core is busy (nice(2)). Not the most there is: a log that is written as fast
/// as the cores allow must be compacted, too.
pub const COMPACTION_NICE: i32 = 5;
/// Compaction takes so many percent of its time at first,
pub const COMPACTION_TIME_PERCENT_MIN: u64 = 25;
/// and all of it when the log has reached so many percent of the live data.
pub const COMPACTION_URGENT_PERCENT: u64 = 225;
/// Segments in which less than one in so many bytes is dead are left as they are.
pub const COMPACTION_DEAD_SHARE: u64 = 16;
/// What compaction writes and syncs at a time.
pub const COMPACTION_BATCH_BYTES: usize = 1024 * 1024;
/// What compaction reads before it rests: about a quarter of a millisecond of a core.
pub const COMPACTION_READ_BYTES: usize = 256 * 1024;
/// How long compaction rests after a failure.
pub const COMPACTION_RETRY_US: u64 = 30 * SECOND_US;
/// A segment that is written through grows by so much at a time, filled with zeros: only these writes are slow.
pub const SEGMENT_FILL_BYTES: u64 = 256 * 1024;
/// A batch of ops that has reached this size takes no more sessions' messages until it is written.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A commit starts when its oldest op is this old, even where a round of sends is not done yet: a long round in one workspace
/// must not hold up the ops of the others, nor those of its own.
pub const COMMIT_AGE_MIN_US: u64 = 250;
/// It may become older where commits take long, but not older than this.
pub const COMMIT_AGE_MAX_US: u64 = 10_000;
/// The room that a new segment must find on the disk before a shard that had failed serves again.
pub const SEGMENT_RESERVE_BYTES: u64 = 1024 * 1024;
/// The first wait before a failed shard tries to open its log again; doubled from try to try.
pub const REOPEN_WAIT_MIN_US: u64 = 100_000;
/// The longest such wait.
pub const REOPEN_WAIT_MAX_US: u64 = 5 * SECOND_US;

/// What of a segment is read at a time.
pub const READ_BYTES: usize = 256 * 1024;
/// Between two lines that tell how far the reading of the log is.
pub const PROGRESS_INTERVAL_MS: u64 = 2_000;

// ---- what goes out ----

/// Default of `--outbox-max-bytes`: what a client may have queued before it is conflated.
pub const OUTBOX_BYTES_DEFAULT: usize = 1024 * 1024;
/// The smallest `--outbox-max-bytes`.
pub const OUTBOX_BYTES_MIN: usize = 4 * 1024;
/// What one send carries, unless a single frame is longer: it pins its chunks until it is done.
pub const SEND_BYTES_MAX: usize = 256 * 1024;
/// The same where the rest are answers, such as an init: their chunks are held whole from the moment they are queued, so a send of all of
/// them pins nothing more, and each piece less is a way through the ring and the kernel less.
pub const ANSWER_SEND_BYTES_MAX: usize = 2 * 1024 * 1024;
/// A send of more pieces than this is copied into one.
pub const SEND_SPANS_MAX: usize = 16;
/// Sessions that are sent to in one turn, so that receives and log completions never wait long.
pub const SENDS_PER_TURN_MAX: usize = 256;
/// A shard that had somebody left to send to after each turn for so long
pub const REST_AFTER_US: u64 = 20_000;
/// rests after each of them for one part in so many of the time that it took,
pub const REST_SHARE: u64 = 4;
/// and at most for so long.
pub const REST_US_MAX: u64 = 1000;
/// Those who are owed more than one send of frames may be, a state most of all, are sent to in a queue of their own, which a turn leaves
/// when it has reached this: the kernel copies all of it before the turn is over, and the ops of others are not to wait for that.
pub const BULK_BYTES_PER_TURN: usize = 4 * 1024 * 1024;
/// So many of them at the most.
pub const BULK_SENDS_PER_TURN_MAX: usize = BULK_BYTES_PER_TURN / SEND_BYTES_MAX;
/// What a conflated session is sent at a time, unless a single op is longer.
pub const CONFLATED_BYTES_MAX: usize = 64 * 1024;
/// Keys that are looked at for a conflated session in a turn: its own are passed over.
pub const CONFLATED_STEPS_MAX: usize = 4096;
/// The memory of answers that wait in a session (errors, corrections, pongs) before its messages are left unread.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Separate stretches of its own ops that a session skips before it is conflated instead.
pub const OWN_STRETCHES_MAX: usize = 1024;
/// Messages of one session that one turn handles.
pub const MESSAGES_PER_TURN_MAX: usize = 256;
/// A new chunk of outgoing bytes has at least this capacity.
pub const CHUNK_BYTES_MIN: usize = 256;
/// Frames share a chunk up to this size; a longer frame has one for itself.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// An init message up to this size is kept for whoever joins next; one for each shard.
pub const INIT_BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;
/// What the init messages, and the other texts of states, may take that a shard has on their way to anybody. One text serves all who want
/// the same state, so what fills this is clients that take the states of many workspaces, or of one at many moments, and do not read them.
/// Four of the largest states that the default allows; beyond, a join or a look is answered with 503, but for a state that is small, or where nothing
/// else is on its way.
pub const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// What of large states is encoded in a turn, and the rest of a field. A state that is no larger is encoded at once.
pub const SNAPSHOT_PART_BYTES: usize = 1024 * 1024;
/// Texts of which a shard looks in a turn whether they are still on their way.
pub const SNAPSHOTS_SWEPT_PER_TURN: usize = 32;
/// A stretch of a window that is copied into one piece for those who are sent it is no longer than this.
pub const JOINED_BYTES_MAX: usize = 64 * 1024;
/// Chunks that a shard keeps for their next use.
pub const CHUNKS_KEPT_MAX: usize = 1024;
/// The memory of the chunks that a shard keeps.
pub const CHUNK_BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;
/// Lists of each kind that a shard keeps for their next use: of frames, answers, spans, and bytes that are no whole frame yet.
pub const LISTS_KEPT_MAX: usize = 1024;
/// The memory of the lists of each kind that a shard keeps.
pub const LIST_BYTES_KEPT_MAX: usize = 1024 * 1024;

// ---- time ----

/// Default of `--ping-interval-ms`.
pub const PING_INTERVAL_MS_DEFAULT: u64 = 25_000;
/// A client whose socket takes nothing for this long is closed with 1013.
pub const STALL_TIMEOUT_US: u64 = 60 * SECOND_US;
/// How long a stalled client has to read what was on its way, and the close frame behind it.
pub const STALL_LINGER_US: u64 = 15 * SECOND_US;
/// How long a connection that is closed has to take the last bytes and to close its side.
pub const LINGER_US: u64 = 2 * SECOND_US;
/// Default of `--drain-ms`.
pub const DRAIN_MS_DEFAULT: u64 = 5_000;
/// Default of `--max-future-skew`, in seconds.
pub const FUTURE_SKEW_S_DEFAULT: u64 = 24 * 3600;
/// `Retry-After` of a 503, in seconds.
pub const RETRY_AFTER_S: u32 = 5;
/// The resolution of all session timers.
pub const TIMER_TICK_US: u64 = 50_000;
/// Slots of the timer wheel; a deadline further away is looked at again on the way.
pub const TIMER_SLOTS: usize = 1024;

// ---- the ring ----

/// The most shards: each has a thread, a ring and a log.
pub const SHARDS_MAX: u32 = 1024;
/// Entries of a shard's submission queue.
pub const RING_ENTRIES: u32 = 1024;
/// Entries of a shard's completion queue.
pub const COMPLETION_ENTRIES: u32 = 8192;
/// How long after operations were handed over it is checked that the kernel has taken them; and how
/// often they are submitted again where it has not.
pub const RESUBMIT_US: u64 = 20_000;
/// How long a ring that ends tries to submit what is left.
pub const LAST_SUBMIT_US: u64 = SECOND_US;
/// The size of a provided receive buffer.
pub const RECEIVE_BYTES_MAX: usize = 16 * 1024;
/// The provided receive buffers of a shard.
pub const RECEIVE_BUFFERS: u16 = 128;
/// What a shard takes when it is busy, without any state: its receive buffers, the chunks that it keeps,
/// and two batches, since one fills while the other is written.
pub const SHARD_BYTES: u64 = (RECEIVE_BUFFERS as usize * RECEIVE_BYTES_MAX
    + CHUNK_BYTES_KEPT_MAX
    + 2 * BATCH_BYTES_MAX) as u64;
/// A start with more shards than this for each core warns: they wait for each other.
pub const SHARDS_PER_CORE_MAX: usize = 4;
/// Accepts that a shard has in flight.
pub const ACCEPTS_IN_FLIGHT: usize = 16;
/// Connections that wait in the kernel to be accepted (listen(2), cut to net.core.somaxconn).
pub const LISTEN_BACKLOG: i32 = 4096;
/// How long a start waits for a port that is taken: a server that was killed held it for 8 ms here.
pub const PORT_WAIT_US: u64 = 500_000;
/// How long accepting rests when the process has no file descriptor left.
pub const ACCEPT_PAUSE_US: u64 = 100_000;
/// How often it is warned of that, as long as it lasts.
pub const ACCEPT_WARNING_US: u64 = 10 * SECOND_US;
/// Descriptors that are kept free of connections: the standard streams, the signals, connections that are refused, those to
/// `--admin-port`.
pub const DESCRIPTORS_RESERVED: u64 = 128;
/// The same for each shard: eight for its ring, its mailbox and its segment, and those of a segment that is opened or read.
pub const DESCRIPTORS_PER_SHARD: u64 = 10;
/// Connections to `--admin-port`; more are dropped.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;
/// How long the longest turn of a loop is told, at least; twice as long at most.
pub const LONGEST_TURN_WINDOW_US: u64 = 60 * SECOND_US;
/// Connections over `--max-connections` that are still answered with 503 instead of being dropped.
pub const REFUSALS_IN_FLIGHT_MAX: usize = 64;

/// One second, in the unit of all times inside the server.
pub const SECOND_US: u64 = 1_000_000;

const _: () = assert!(
    WORKSPACE_ID_BYTES_MAX < HEAD_BYTES_MAX,
    "a legal id fits a legal head"
);
const _: () = assert!(CONTROL_BYTES_MAX == 125, "a fixed number of RFC 6455");
const _: () = assert!(
    KEY_BYTES_MAX <= u16::MAX as usize,
    "a record holds a key's length in 16 bits"
);
const _: () = assert!(
    WORKSPACE_ID_BYTES_MAX <= u16::MAX as usize,
    "a record holds an id's length in 16 bits"
);
const _: () = assert!(
    CHUNK_BYTES_MAX <= SEND_BYTES_MAX,
    "one send can empty a chunk"
);
const _: () = assert!(
    CHUNK_BYTES_MIN.is_power_of_two()
        && CHUNK_BYTES_MAX.is_power_of_two()
        && SEND_BYTES_MAX.is_power_of_two(),
    "chunks that are kept fall into classes"
);
const _: () = assert!(
    MESSAGE_BYTES_DEFAULT + SEND_BYTES_MAX <= ANSWER_SEND_BYTES_MAX
        && ANSWER_SEND_BYTES_MAX < u32::MAX as usize,
    "the longest usual correction goes out in one send, whatever stands before it, and a length fits the ring"
);
const _: () = assert!(
    4 * WORKSPACE_BYTES_DEFAULT <= SNAPSHOT_BYTES_MAX as u64
        && SNAPSHOT_PART_BYTES <= INIT_BYTES_KEPT_MAX
        && 16 * INIT_BYTES_KEPT_MAX <= SNAPSHOT_BYTES_MAX,
    "a few large states may be on their way at once, and the one that is kept is a small part of them"
);
const _: () = assert!(
    CONFLATED_BYTES_MAX <= SEND_BYTES_MAX,
    "what is conflated at a time goes out in one send"
);
const _: () =
    assert!(CHUNK_BYTES_MIN <= CHUNK_BYTES_MAX && OUTBOX_BYTES_MIN <= OUTBOX_BYTES_DEFAULT);
const _: () =
    assert!(MESSAGE_BYTES_DEFAULT <= MESSAGE_BYTES_MAX && MESSAGE_BYTES_DEFAULT <= BATCH_BYTES_MAX);
const _: () = assert!(
    STALL_TIMEOUT_US / 2 < TIMER_TICK_US * (TIMER_SLOTS as u64 - 1),
    "a session is looked at twice within the stall timeout"
);
const _: () = assert!(LINGER_US < STALL_LINGER_US && HEAD_TIMEOUT_US < STALL_TIMEOUT_US);
const _: () = assert!(
    ANSWER_SEND_BYTES_MAX < BULK_BYTES_PER_TURN && BULK_SENDS_PER_TURN_MAX <= SENDS_PER_TURN_MAX,
    "a turn serves several who are sent a state, and does not take longer for them than for the others"
);
const _: () = assert!(
    SENDS_PER_TURN_MAX + BULK_SENDS_PER_TURN_MAX <= RING_ENTRIES as usize,
    "a turn's sends fit the submission queue"
);
const _: () = assert!(RING_ENTRIES < COMPLETION_ENTRIES);
const _: () =
    assert!(SEGMENT_BYTES_MIN <= SEGMENT_BYTES_MAX && COMPACTION_BATCH_BYTES <= BATCH_BYTES_MAX);
const _: () = assert!(
    SEGMENT_FILL_BYTES <= SEGMENT_BYTES_MIN / 8 && SEGMENT_FILL_BYTES <= SEGMENT_RESERVE_BYTES,
    "what is filled ahead is a small part of a segment, and a shard that serves again finds room for it"
);
const _: () = assert!(
    100 + 100 / COMPACTION_DEAD_SHARE < COMPACTION_START_PERCENT,
    "a compaction leaves less than what starts the next one"
);
const _: () = assert!(
    COMPACTION_START_PERCENT < COMPACTION_URGENT_PERCENT
        && COMPACTION_URGENT_PERCENT + 2 * 100 / SEGMENT_LIVE_SHARE <= 250,
    "the open segments, and the one that compaction writes, fit between the urgent size and 2.5 times the live data"
);
const _: () = assert!(
    RATE_BURST_S < PATIENCE_S,
    "who is refused has more to lose than its burst"
);
const _: () = assert!(
    MESSAGE_BYTES_DEFAULT as u64 <= WORKSPACE_BYTES_DEFAULT / 16
        && WORKSPACE_BYTES_DEFAULT <= WORKSPACE_BYTES_MAX,
    "a workspace holds more than a few messages"
);
const _: () = assert!(REOPEN_WAIT_MIN_US < REOPEN_WAIT_MAX_US);
const _: () = assert!(COMMIT_AGE_MIN_US < COMMIT_AGE_MAX_US);
const _: () = assert!(ACCEPT_PAUSE_US < ACCEPT_WARNING_US);
const _: () =
    assert!(DESCRIPTORS_RESERVED > (REFUSALS_IN_FLIGHT_MAX + ADMIN_CONNECTIONS_MAX) as u64);
const _: () = assert!(
    RESUBMIT_US < SECOND_US,
    "a timer's nanoseconds are a part of a second"
);
