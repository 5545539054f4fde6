//! Every bound of the server in one file, related to each other by `const` assertions.
//!
//! A bound that an operator may move is a default here and a flag in [`crate::config`];
//! all the others are constants. Over a bound there is a rule, never growth.

// ---- the request head (wire/protocol.md, "Requests") ----

/// A request head longer than this is answered with 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most header fields that fit into a head: the shortest is `a:` and a line feed.
pub const HEADERS_MAX: usize = HEAD_BYTES_MAX / 3;
/// A head with more header fields than this is parsed a second time, with room for all that fit.
pub const HEADERS_USUAL: usize = 64;
/// Requests that waited for the state of their shard and are answered in one turn: each may have a state of
/// [`SNAPSHOT_PART_BYTES`] encoded.
pub const WAITING_PER_TURN_MAX: usize = 64;
/// A head that is not complete after this long is answered with 408; one whose answer takes until then is answered with 503.
pub const HEAD_TIMEOUT_US: u64 = 10 * SECOND_US;
/// The longest workspace id, after percent-decoding.
pub const WORKSPACE_ID_BYTES_MAX: usize = 256;
/// The longest `userId`; a longer one is not listed.
pub const USER_ID_BYTES_MAX: usize = 256;
/// How far `exp` and `nbf` may be off (RFC 7519 section 4.1.4: "some small leeway").
pub const TOKEN_LEEWAY_S: u64 = 30;
/// A secret shorter than this is warned of: RFC 7518 section 3.2 wants the size of the hash.
pub const SECRET_BYTES_ADVISED: usize = 32;

// ---- messages (wire/protocol.md, "Messages from the client") ----

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
/// Frames of one client in a second for each message of `--max-ops-per-second`: fragments, and pongs that nobody asked for. Decoding a
/// hundred of them takes about as long as an op.
pub const FRAMES_PER_MESSAGE: u32 = 100;
/// Frames that may come at once, however low the rate: a message in fragments of a kilobyte.
pub const FRAMES_BURST_MIN: u64 = 1024;
/// Frames without content that a client may send between two pings of the server, with or without a rate: empty fragments, and pongs
/// that nobody asked for. A heartbeat each millisecond stays below that for a minute; a flood reaches it within milliseconds.
pub const EMPTY_FRAMES_MAX: u32 = 1 << 16;
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
/// Over this many percent of the live data, and [`LOG_SPARE_BYTES`], a shard slows down the workspaces that
/// write more than [`LIGHT_BYTES_PER_SECOND`]: compaction works as hard as it can by then.
pub const LOG_SLOW_PERCENT: u64 = 225;
/// Over this many percent of the live data, and twice [`LOG_SPARE_BYTES`], those workspaces wait for compaction;
pub const LOG_FULL_PERCENT: u64 = 250;
/// and over this many, and three times [`LOG_SPARE_BYTES`], all writers of the shard do.
pub const LOG_STOP_PERCENT: u64 = 275;
/// What the log of a shard may have besides, however little of it is live.
pub const LOG_SPARE_BYTES: u64 = 8 * 1024 * 1024;
/// How fast a log that is just over [`LOG_SLOW_PERCENT`] may grow: more than a core can write. The rate falls
/// with the square of the distance to [`LOG_FULL_PERCENT`], so it settles where compaction keeps up.
pub const LOG_BYTES_PER_SECOND: u64 = 256 * 1024 * 1024;
/// What may be left of that rate unused, and come at once.
pub const LOG_BURST_BYTES: u64 = 1024 * 1024;
/// A workspace that writes no more than this is not slowed down by those that do.
pub const LIGHT_BYTES_PER_SECOND: u64 = 64 * 1024;
/// What such a workspace may write at once.
pub const LIGHT_BURST_BYTES: u64 = 256 * 1024;
/// How often clients that wait for compaction are looked at.
pub const HELD_RETRY_US: u64 = 2_000;
/// How often the free space of the disk is looked at, while compaction works and while nothing happens.
pub const DISK_LOOK_US: u64 = SECOND_US;
/// The same while compaction works, which moves it fast.
pub const DISK_LOOK_BUSY_US: u64 = SECOND_US / 20;
/// Ops that grow the log are refused when the disk has less room than this, and [`DISK_LOW_SHARD_BYTES`] for
/// each shard: it is left to compaction,
pub const DISK_LOW_BYTES: u64 = 16 * 1024 * 1024;
/// or one part in this many of a small disk;
pub const DISK_LOW_SHARE: u64 = 32;
/// and what a shard writes beside ops: zeros that a segment is filled with ahead, headers, a segment to begin again with.
pub const DISK_LOW_SHARD_BYTES: u64 = 1024 * 1024;
/// They are taken again when there is this many times that room.
pub const DISK_ENOUGH_FACTOR: u64 = 2;
/// With more room than this nobody needs to count.
pub const DISK_PLENTY_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Compaction keeps one in this many bytes of the live data in reserve on the disk, for when nothing else is free:
/// about half a segment,
pub const RESERVE_LIVE_SHARE: u64 = 2 * SEGMENT_LIVE_SHARE;
/// at least this much
pub const RESERVE_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// and at most this much.
pub const RESERVE_BYTES_MAX: u64 = SEGMENT_BYTES_MAX / 2;
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
/// With less room than this on its disk a server should not be started: a segment, and what it is filled with ahead.
pub const SEGMENT_RESERVE_BYTES: u64 = 1024 * 1024;
/// The first wait before a failed shard tries to open its log again; doubled from try to try.
pub const REOPEN_WAIT_MIN_US: u64 = 100_000;
/// The longest such wait.
pub const REOPEN_WAIT_MAX_US: u64 = 5 * SECOND_US;
/// How often an idle server checks that its data directory is still at its path.
pub const PLACE_CHECK_US: u64 = SECOND_US;
/// The same for a server that commits.
pub const PLACE_CHECK_COMMIT_US: u64 = 50_000;

/// What of a segment is read at a time.
pub const READ_BYTES: usize = 256 * 1024;
/// Between two lines that tell how far the reading of the log is.
pub const PROGRESS_INTERVAL_MS: u64 = 2_000;

// ---- what goes out ----

/// Default of `--outbox-max-bytes`: what a client may have queued before it is conflated.
pub const OUTBOX_BYTES_DEFAULT: usize = 1024 * 1024;
/// The smallest `--outbox-max-bytes`.
pub const OUTBOX_BYTES_MIN: usize = 4 * 1024;
/// The most that one send carries, unless a single frame is longer: a send pins its chunks until it
/// is done.
pub const SEND_BYTES_MAX: usize = 256 * 1024;
/// The most that one send carries if everything over [`SEND_BYTES_MAX`] is answers, such as an init
/// message. Their chunks are held from the moment they are queued, so a long send pins nothing more
/// and saves trips through the ring and the kernel.
pub const ANSWER_SEND_BYTES_MAX: usize = 2 * 1024 * 1024;
/// A send of more pieces than this is copied into one.
pub const SEND_SPANS_MAX: usize = 16;
/// Sessions that are sent to in one turn, so that receives and log completions never wait long.
pub const SENDS_PER_TURN_MAX: usize = 256;
/// A shard that had sessions left to send to after each slice for this long is saturated: it pauses
/// between slices.
pub const PACE_AFTER_US: u64 = 20_000;
/// A pause takes one in this many parts of the time from the slice before it.
pub const PACE_SHARE: u64 = 4;
/// The longest pause.
pub const PACE_PAUSE_US_MAX: u64 = 1000;
/// Sessions that are owed more than one send of frames, mostly a state, have a queue of their own. A
/// turn leaves it after this many bytes: the kernel copies all of them before the turn is over, and
/// the ops of other sessions must not wait for that.
pub const BULK_BYTES_PER_TURN: usize = 4 * 1024 * 1024;
/// Sessions of that queue which one turn serves.
pub const BULK_SENDS_PER_TURN_MAX: usize = BULK_BYTES_PER_TURN / SEND_BYTES_MAX;
/// The most that a conflated session is sent at a time, unless a single op is longer.
pub const CONFLATED_BYTES_MAX: usize = 64 * 1024;
/// Keys that are looked at for a conflated session in a turn. Its own ops are passed over.
pub const CONFLATED_STEPS_MAX: usize = 4096;
/// The memory of answers that wait in a session (errors, corrections, pongs) before its messages
/// are left unread.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Single frames of its own that a session remembers to skip before it is conflated instead. Own
/// frames in a row count as one.
pub const OWN_FRAMES_MAX: usize = 1024;
/// Messages of one session that one turn handles.
pub const MESSAGES_PER_TURN_MAX: usize = 256;
/// What a shard may hold for single sessions: messages and heads that are not whole yet, and
/// answers until their last byte is sent. What several sessions are sent counts once. A quarter of
/// what states may take, as much as 64 messages of the largest default length, and far more than a
/// shard holds whose clients read. Over it, the session that holds most is evicted.
pub const SESSION_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// The session budget is at least this many times `--max-message-bytes`: a message that grows may
/// have twice the memory of its bytes, and one beside it must not close it.
pub const SESSION_BUDGET_MESSAGES: usize = 4;
/// Memory of each session that the session budget does not count. A session with no more than this
/// is never evicted.
pub const SESSION_BYTES_SPARED: usize = 4 * 1024;
/// The frame of an op that is at least this long is encoded once for all sessions that are corrected
/// with it or have fallen behind.
pub const SHARED_FRAME_BYTES_MIN: usize = SESSION_BYTES_SPARED;
/// Names in an answer about presence, the first ones in their order. The answer also says how many
/// there are.
pub const PRESENCE_NAMES_MAX: usize = 1000;
/// A new chunk of outgoing bytes has at least this capacity.
pub const CHUNK_BYTES_MIN: usize = 256;
/// Frames share a chunk up to this size. A longer frame has a chunk of its own.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// Each shard keeps one init message of up to this size for the next session that joins.
pub const INIT_BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;
/// The memory of a shard's encoded states. One encoding serves all sessions that want the same
/// state, so this is filled by clients that take the states of many workspaces, or of one at many
/// moments, and do not read them. Four of the largest states that the default allows. Over it, a
/// join or an HTTP read of a state is answered with 503, unless the state is small, or is the only
/// one.
pub const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// States longer than [`SNAPSHOT_SMALL_BYTES`] leave one in this many bytes of
/// [`SNAPSHOT_BYTES_MAX`] to smaller ones.
pub const SNAPSHOT_RESERVE_SHARE: usize = 8;
/// States of up to this length may use all of [`SNAPSHOT_BYTES_MAX`].
pub const SNAPSHOT_SMALL_BYTES: usize = INIT_BYTES_KEPT_MAX;
/// The pace at which a state has to be received where the budget is full: all of it in this time,
/// by at least one of the sessions that are sent it.
pub const SNAPSHOT_TRANSFER_US: u64 = 60 * SECOND_US;
/// A state whose receivers are all this far behind the pace of [`SNAPSHOT_TRANSFER_US`] may be
/// evicted for another one.
pub const SNAPSHOT_PATIENCE_US: u64 = 2 * SECOND_US;
/// How long a shard that found too few states to evict does not search again.
pub const SNAPSHOT_SEARCH_INTERVAL_US: u64 = SECOND_US / 10;
/// Bytes of large states that a turn encodes, and the rest of a field. A state that is no larger is
/// encoded at once.
pub const SNAPSHOT_PART_BYTES: usize = 1024 * 1024;
/// Encoded states, and shared answers, of which a turn checks whether any session still holds them.
pub const SNAPSHOTS_SWEPT_PER_TURN: usize = 32;
/// Frames of a window are copied into one piece for all receivers up to this length.
pub const JOINED_BYTES_MAX: usize = 64 * 1024;
/// Chunks that a shard keeps for their next use.
pub const CHUNKS_KEPT_MAX: usize = 1024;
/// The memory of the chunks that a shard keeps.
pub const CHUNK_BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;
/// Lists of each kind that a shard keeps for their next use: of frames, answers, spans, and bytes
/// that are not a whole frame yet.
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
/// A message has to be whole this long after its first byte, or its first fragment; each mebibyte
/// of it that has come brings as much again. A client that is slower is closed with 1008: the same
/// message would be as slow again.
pub const MESSAGE_TIMEOUT_US: u64 = 30 * SECOND_US;
/// How long a connection that is closed has to take the last bytes and to close its side.
pub const LINGER_US: u64 = 2 * SECOND_US;
/// Default of `--drain-ms`.
pub const DRAIN_MS_DEFAULT: u64 = 5_000;
/// Default of `--max-future-skew`, in seconds.
pub const FUTURE_SKEW_S_DEFAULT: u64 = 24 * 3600;
/// `Retry-After` of a 503, in seconds.
pub const RETRY_AFTER_S: u32 = 5;
/// A turn that begins later than it is due by more than this is an absence of the shard, by which its deadlines move
/// ([`core::shard::absence`](crate::core::shard::absence)): two ticks of the timers, which a machine that is merely busy stays below.
pub const LATENESS_US_MAX: u64 = 2 * TIMER_TICK_US;
/// After an absence as much of what was missed, and no more than this, does not count of the time before: what was due then is due
/// a moment later, when the shard has looked at what came in.
pub const GRACE_US: u64 = SECOND_US;
/// An absence of this length is logged as a warning.
pub const ABSENCE_WARNING_US: u64 = SECOND_US;
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
/// Connections to `--admin-port`; of those beyond, no more become members of a workspace.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;
/// Connections to `--admin-port` over that which are still answered instead of being dropped: those that gave way are on their way out.
pub const ADMIN_REFUSALS_IN_FLIGHT_MAX: usize = 16;
/// How long the longest turn of a loop is told, at least; twice as long at most.
pub const LONGEST_TURN_WINDOW_US: u64 = 60 * SECOND_US;
/// Connections over `--max-connections` that are still answered with 503 instead of being dropped.
pub const REFUSALS_IN_FLIGHT_MAX: usize = 64;

/// What a shard may hold for single sessions, by its longest message.
#[must_use]
pub const fn session_budget_bytes(message_bytes_max: usize) -> usize {
    let least_bytes = SESSION_BUDGET_MESSAGES * message_bytes_max;
    if least_bytes > SESSION_BUDGET_BYTES {
        least_bytes
    } else {
        SESSION_BUDGET_BYTES
    }
}

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
    session_budget_bytes(MESSAGE_BYTES_DEFAULT) >= 64 * MESSAGE_BYTES_DEFAULT
        && session_budget_bytes(MESSAGE_BYTES_MAX) >= 4 * MESSAGE_BYTES_MAX,
    "one legal message always fits, however its memory grows"
);
const _: () = assert!(
    RECEIVE_BYTES_MAX + HEAD_BYTES_MAX + ANSWER_BYTES_MAX < SESSION_BUDGET_BYTES / 64
        && SESSION_BYTES_SPARED < ANSWER_BYTES_MAX
        && SHARED_FRAME_BYTES_MIN <= SESSION_BYTES_SPARED,
    "no session fills the budget with small things, and what is copied for a session is small"
);
const _: () = assert!(
    PRESENCE_NAMES_MAX * (6 * USER_ID_BYTES_MAX + 64) < SESSION_BUDGET_BYTES / 16,
    "a list of users is a small part of the budget, however much its names are escaped"
);
const _: () = assert!(
    SNAPSHOT_PATIENCE_US < SNAPSHOT_TRANSFER_US
        && SNAPSHOT_SEARCH_INTERVAL_US < SNAPSHOT_PATIENCE_US
        && SNAPSHOT_PATIENCE_US / SECOND_US < RETRY_AFTER_S as u64,
    "a client that was put off finds room when it comes again"
);
const _: () = assert!(
    MESSAGE_TIMEOUT_US < STALL_TIMEOUT_US,
    "a session is looked at within the time of its message"
);
const _: () = assert!(
    4 * WORKSPACE_BYTES_DEFAULT <= SNAPSHOT_BYTES_MAX as u64
        && 3 * WORKSPACE_BYTES_DEFAULT
            <= (SNAPSHOT_BYTES_MAX - SNAPSHOT_BYTES_MAX / SNAPSHOT_RESERVE_SHARE) as u64
        && 8 * SNAPSHOT_SMALL_BYTES <= SNAPSHOT_BYTES_MAX / SNAPSHOT_RESERVE_SHARE
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
    "what is filled ahead is a small part of a segment, and of the room that a start should find"
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
    COMPACTION_URGENT_PERCENT <= LOG_SLOW_PERCENT
        && LOG_SLOW_PERCENT < LOG_FULL_PERCENT
        && LOG_FULL_PERCENT < LOG_STOP_PERCENT,
    "compaction works as hard as it can before anybody is slowed down, and floods wait before the others do"
);
const _: () = assert!(
    // What is measured may hold one segment that is not closed.
    COMPACTION_START_PERCENT + 100 / SEGMENT_LIVE_SHARE < LOG_SLOW_PERCENT
        && COMPACTION_BYTES_MIN <= LOG_SPARE_BYTES
        && SEGMENT_BYTES_MIN < LOG_SPARE_BYTES,
    "a compaction is due for each shard that waits for one"
);
const _: () = assert!(
    LOG_STOP_PERCENT + 2 * 100 / SEGMENT_LIVE_SHARE <= 300
        && 3 * LOG_SPARE_BYTES + 2 * BATCH_BYTES_MAX as u64 <= 4 * LOG_SPARE_BYTES
        && MESSAGE_BYTES_DEFAULT as u64 <= SEGMENT_BYTES_MIN,
    "a log, the open segment, the one that compaction writes and two batches fit three times the live data and 4 times what a log may have besides"
);
const _: () = assert!(
    LIGHT_BURST_BYTES < LOG_SPARE_BYTES / 4 && LOG_BURST_BYTES < LOG_SPARE_BYTES / 4,
    "what may come at once is a small part of what lies between the marks"
);
const _: () = assert!(
    LOG_BYTES_PER_SECOND / SECOND_US * HELD_RETRY_US <= LOG_BURST_BYTES,
    "clients that are looked at now and then can use all of the rate"
);
const _: () = assert!(
    SEGMENT_FILL_BYTES + SEGMENT_RESERVE_BYTES / 2 <= DISK_LOW_SHARD_BYTES
        && DISK_ENOUGH_FACTOR > 1,
    "a shard that refuses ops can still seal its log, and does not change its mind with each look"
);
const _: () = assert!(HELD_RETRY_US < DISK_LOOK_BUSY_US && DISK_LOOK_BUSY_US < DISK_LOOK_US);
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
const _: () = assert!(
    DESCRIPTORS_RESERVED
        > (REFUSALS_IN_FLIGHT_MAX + ADMIN_CONNECTIONS_MAX + ADMIN_REFUSALS_IN_FLIGHT_MAX) as u64
);
const _: () = assert!(
    RESUBMIT_US < SECOND_US,
    "a timer's nanoseconds are a part of a second"
);
